"""Separated songs: as long, as fast and as wide as the input; all stems of a song or none."""

import re
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from torch import Tensor

from bsrnn_core import BSRNN, BadInput, BsrnnConfig, ModelConfig, StftConfig
from bsrnn_core.audio_files import audio_info, read_audio, write_audio
from bsrnn_core.checkpoint import save
from pipelines import infer
from pipelines.cli import main
from pipelines.infer import InferConfig

CONFIG = BsrnnConfig(
    stft=StftConfig(n_fft=512),
    model=ModelConfig(band_schema="v1", feature_dim=4, num_blstm_layers=1, mlp_dim=4),
    stems=("drums", "bass"),
    crop_seconds=0.5,
)


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> str:
    folder = tmp_path_factory.mktemp("run") / "best"
    torch.manual_seed(0)
    save(folder, BSRNN(CONFIG), {})
    return str(folder)


@pytest.fixture
def all_pass(monkeypatch: pytest.MonkeyPatch) -> None:
    """A model whose masks are one: every stem is the mixture."""

    def forward(self: BSRNN, mixture: Tensor) -> Tensor:
        return mixture[:, None].expand(-1, len(self.stems), -1, -1, -1)

    monkeypatch.setattr(BSRNN, "forward", forward)


def tone(channels: int, num_samples: int, sample_rate: int) -> Tensor:
    """Another frequency in every channel, so that exchanged ones show."""
    seconds = torch.arange(num_samples) / sample_rate
    return torch.stack([0.5 * torch.sin(2764.6 * (c + 1) * seconds) for c in range(channels)])


@pytest.mark.usefixtures("all_pass")
@pytest.mark.parametrize(
    ("name", "channels", "num_samples", "sample_rate", "tolerance"),
    [
        ("odd.wav", 2, 44101, 44100, 1e-4),
        ("one.wav", 2, 1, 44100, 1e-4),
        ("mono.flac", 1, 30011, 44100, 1e-4),
        ("wide.wav", 3, 9000, 44100, 1e-4),
        # Resampling to the model's rate and back costs a little at the ends.
        ("studio.flac", 2, 48007, 48000, 1e-2),
        ("old.wav", 1, 9999, 8000, 1e-2),
        ("lossy.ogg", 2, 44100, 44100, 1e-4),
        ("lossy.mp3", 2, 44100, 44100, 1e-4),
    ],
)
def test_masks_of_one_give_the_song_itself(
    checkpoint: str,
    tmp_path: Path,
    name: str,
    channels: int,
    num_samples: int,
    sample_rate: int,
    tolerance: float,
) -> None:
    song = tmp_path / name
    write_audio(song, tone(channels, num_samples, sample_rate), sample_rate)
    out = tmp_path / "out"
    files = infer.run(InferConfig(checkpoint_fp=checkpoint, input=str(song), out=str(out)))
    assert files == [out / f"{song.stem}-drums.wav", out / f"{song.stem}-bass.wav"]
    heard = read_audio(song)
    for file in files:
        assert audio_info(file) == audio_info(song)
        torch.testing.assert_close(read_audio(file), heard, atol=tolerance, rtol=0)


def test_a_random_model_gives_each_stem_its_own_file(checkpoint: str, tmp_path: Path) -> None:
    song = tmp_path / "song.wav"
    write_audio(song, tone(2, 30000, 44100), 44100)
    drums, bass = infer.run(
        InferConfig(checkpoint_fp=checkpoint, input=str(song), out=str(tmp_path / "out"))
    )
    assert not torch.equal(read_audio(drums), read_audio(bass))


@pytest.mark.usefixtures("all_pass")
def test_integer_formats_count_what_they_clip(
    checkpoint: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    loud = 0.1 * torch.ones(1, 4000)
    loud[:, 1000:1007] = 1.5
    write_audio(tmp_path / "loud.wav", loud, 44100, subtype="FLOAT")
    infer.run(
        InferConfig(
            checkpoint_fp=checkpoint,
            input=str(tmp_path / "loud.wav"),
            out=str(tmp_path / "out"),
            subtype="PCM_16",
        )
    )
    assert re.search(r" 14 .$", capsys.readouterr().out, re.MULTILINE)  # 7 in each of two stems
    assert read_audio(tmp_path / "out" / "loud-drums.wav").max() <= 1


@pytest.mark.usefixtures("all_pass")
def test_a_folder_gives_the_stems_of_its_songs(checkpoint: str, tmp_path: Path) -> None:
    songs = tmp_path / "songs"
    write_audio(songs / "b.flac", tone(2, 3000, 44100), 44100)
    write_audio(songs / "a.wav", tone(1, 5000, 8000), 8000)
    (songs / "cover.jpg").write_text("no song")
    files = infer.run(
        InferConfig(checkpoint_fp=checkpoint, input=str(songs), out=str(tmp_path / "out"))
    )
    assert [file.name for file in files] == [
        "a-drums.wav", "a-bass.wav", "b-drums.wav", "b-bass.wav",
    ]  # fmt: skip


@pytest.mark.usefixtures("all_pass")
def test_an_error_half_way_leaves_no_stem(
    checkpoint: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    song, out = tmp_path / "song.wav", tmp_path / "out"
    write_audio(song, tone(2, 100000, 44100), 44100)
    whole: Callable[..., object] = infer.separate_blocks

    def breaks(*args: object, **options: object) -> object:
        blocks = iter(whole(*args, **options))  # type: ignore[call-overload]
        yield next(blocks)
        raise RuntimeError("power cut")

    monkeypatch.setattr(infer, "separate_blocks", breaks)
    with pytest.raises(RuntimeError, match="power cut"):
        infer.run(InferConfig(checkpoint_fp=checkpoint, input=str(song), out=str(out)))
    assert list(out.iterdir()) == []


def _silent_file(folder: Path) -> Path:
    write_audio(folder / "song-drums.wav", torch.zeros(1, 100), 44100)
    return folder / "song-drums.wav"


def test_an_output_never_replaces_its_input(checkpoint: str, tmp_path: Path) -> None:
    write_audio(tmp_path / "song.wav", tone(1, 100, 44100), 44100)
    other = _silent_file(tmp_path)
    config = InferConfig(checkpoint_fp=checkpoint, input=str(tmp_path), out=str(tmp_path))
    with pytest.raises(BadInput, match=r"song-drums\.wav.*--out"):
        infer.run(config)
    assert read_audio(other).abs().max() == 0


def test_songs_of_one_name_are_refused(checkpoint: str, tmp_path: Path) -> None:
    for name in ("song.wav", "song.flac"):
        write_audio(tmp_path / name, tone(1, 100, 44100), 44100)
    config = InferConfig(checkpoint_fp=checkpoint, input=str(tmp_path), out=str(tmp_path / "out"))
    with pytest.raises(BadInput, match="would replace"):
        infer.run(config)


def _text_file(folder: Path) -> Path:
    (folder / "song.wav").write_text("not audio")
    return folder / "song.wav"


@pytest.mark.parametrize(
    ("make", "words"),
    [
        (lambda folder: folder / "nowhere.wav", "nowhere.wav: there is no such file"),
        (lambda folder: folder, "no songs in this folder"),
        (_text_file, "song.wav: not readable as audio"),
    ],
)
def test_bad_songs_end_with_one_sentence_and_code_2(
    checkpoint: str,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    make: Callable[[Path], Path],
    words: str,
) -> None:
    out = tmp_path.parent / "never made"
    code = main(
        ["infer", "--checkpoint_fp", checkpoint, "--input", str(make(tmp_path)), "--out", str(out)]
    )
    stderr = capsys.readouterr().err
    assert code == 2
    assert words in stderr
    assert "Traceback" not in stderr
    assert not out.exists()


def test_a_missing_checkpoint_and_a_file_for_a_folder_are_refused(
    checkpoint: str, tmp_path: Path
) -> None:
    song = _silent_file(tmp_path)
    with pytest.raises(BadInput, match="no such checkpoint"):
        infer.run(InferConfig(checkpoint_fp=str(tmp_path / "x"), input=str(song), out="out"))
    with pytest.raises(BadInput, match="is a file"):
        infer.run(InferConfig(checkpoint_fp=checkpoint, input=str(song), out=str(song)))


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU")
def test_a_gpu_that_is_not_there_is_refused(checkpoint: str, tmp_path: Path) -> None:
    with pytest.raises(BadInput, match="no GPU"):
        infer.run(
            InferConfig(
                checkpoint_fp=checkpoint,
                input=str(_silent_file(tmp_path)),
                out=str(tmp_path / "out"),
                device="cuda",
            )
        )
