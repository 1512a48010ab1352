"""Separated songs: as long, as fast and as wide as the input; all stems of a song or none."""

import math
import re
import tempfile
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import soundfile
import torch
from torch import Tensor

from bsrnn_core import BSRNN, BadInput, BsrnnConfig, ModelConfig, StftConfig, load, separate
from bsrnn_core.audio_files import audio_info, read_audio, write_audio
from bsrnn_core.checkpoint import save
from pipelines import infer, infer_song
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
    files = infer.run(InferConfig(checkpoint_fp=checkpoint, input=(str(song),), out=str(out)))
    assert files == [out / f"{song.stem}-drums.wav", out / f"{song.stem}-bass.wav"]
    heard = read_audio(song)
    for file in files:
        assert audio_info(file) == audio_info(song)
        torch.testing.assert_close(read_audio(file), heard, atol=tolerance, rtol=0)


def test_a_random_model_gives_each_stem_its_own_file(checkpoint: str, tmp_path: Path) -> None:
    song = tmp_path / "song.wav"
    write_audio(song, tone(2, 30000, 44100), 44100)
    drums, bass = infer.run(
        InferConfig(checkpoint_fp=checkpoint, input=(str(song),), out=str(tmp_path / "out"))
    )
    assert not torch.equal(read_audio(drums), read_audio(bass))
    expected = separate(load(checkpoint), song)
    assert torch.equal(read_audio(drums), expected["drums"])
    assert torch.equal(read_audio(bass), expected["bass"])


def test_the_parts_sum_to_the_song(checkpoint: str, tmp_path: Path) -> None:
    song = tmp_path / "song.wav"
    write_audio(song, tone(2, 30000, 44100), 44100, subtype="FLOAT")
    config = InferConfig(
        checkpoint_fp=checkpoint, input=(str(song),), out=str(tmp_path / "all"), residual=True
    )
    files = infer.run(config)
    assert [file.stem for file in files] == ["song-drums", "song-bass", "song-residual"]
    total = torch.stack([read_audio(file) for file in files]).sum(0)
    torch.testing.assert_close(total, read_audio(song), atol=1e-6, rtol=0)
    one = replace(config, out=str(tmp_path / "one"), stems=("bass",))
    bass, rest = infer.run(one)
    assert torch.equal(read_audio(bass), read_audio(files[1]))
    torch.testing.assert_close(
        read_audio(bass) + read_audio(rest), read_audio(song), atol=1e-6, rtol=0
    )


def test_the_instrumental_is_the_song_without_its_vocals(tmp_path: Path) -> None:
    folder, song = tmp_path / "best", tmp_path / "song.wav"
    save(folder, BSRNN(replace(CONFIG, stems=("vocals", "drums"))), {})
    write_audio(song, tone(2, 30000, 44100), 44100, subtype="FLOAT")
    drums, instrumental = infer.run(
        InferConfig(
            checkpoint_fp=str(folder), input=(str(song),), out=str(tmp_path / "out"),
            stems=("drums",), instrumental=True,
        )
    )  # fmt: skip
    vocals = separate(load(folder), song)["vocals"]
    assert drums.stem == "song-drums"
    assert instrumental.stem == "song-instrumental"
    torch.testing.assert_close(
        read_audio(instrumental), read_audio(song) - vocals, atol=1e-6, rtol=0
    )


@pytest.mark.usefixtures("all_pass")
@pytest.mark.parametrize(
    ("format", "subtype", "written"),
    [
        *(("wav", None, "FLOAT"), ("wav", "PCM_24", "PCM_24"), ("wav", "PCM_16", "PCM_16")),
        *(("flac", None, "PCM_24"), ("flac", "PCM_16", "PCM_16")),
        *(("ogg", None, "VORBIS"), ("mp3", None, "MPEG_LAYER_III")),
    ],
)
def test_every_format_keeps_rate_channels_and_length(
    checkpoint: str, tmp_path: Path, format: Any, subtype: Any, written: str
) -> None:
    song = tmp_path / "song.wav"
    write_audio(song, tone(2, 30011, 44100), 44100)
    (drums, _) = infer.run(
        InferConfig(
            checkpoint_fp=checkpoint, input=(str(song),), out=str(tmp_path / "out"),
            format=format, subtype=subtype,
        )
    )  # fmt: skip
    assert drums.suffix == f".{format}"
    assert audio_info(drums) == audio_info(song)
    assert soundfile.info(drums).subtype == written


@pytest.mark.usefixtures("all_pass")
def test_rescaling_keeps_the_parts_in_proportion(checkpoint: str, tmp_path: Path) -> None:
    loud = 0.5 * tone(1, 4000, 44100)
    loud[:, 1000:1007] = 2.0
    write_audio(tmp_path / "loud.wav", loud, 44100, subtype="FLOAT")
    config = InferConfig(
        checkpoint_fp=checkpoint, input=(str(tmp_path / "loud.wav"),), out=str(tmp_path / "out"),
        subtype="PCM_24", clip="rescale",
    )  # fmt: skip
    for file in infer.run(config):
        torch.testing.assert_close(read_audio(file), loud / 2, atol=1e-4, rtol=0)


@pytest.mark.usefixtures("all_pass")
def test_files_are_kept_replaced_or_left_out_as_asked(checkpoint: str, tmp_path: Path) -> None:
    songs, out = tmp_path / "songs", tmp_path / "out"
    for name in ("a.wav", "b.wav"):
        write_audio(songs / name, tone(1, 3000, 44100), 44100)
    config = InferConfig(checkpoint_fp=checkpoint, input=(str(songs),), out=str(out), num_workers=1)
    infer.run(config)
    kept, gone, spoilt = out / "a-drums.wav", out / "b-bass.wav", out / "b-drums.wav"
    gone.unlink()
    for file in (kept, spoilt):
        write_audio(file, torch.zeros(1, 5), 44100)
    with pytest.raises(BadInput, match=r"a-drums\.wav: is there already; --overwrite"):
        infer.run(config)
    assert not gone.exists()
    # A song is done when all its files are there.
    assert len(infer.run(replace(config, resume=True))) == 2
    assert gone.exists()
    assert audio_info(spoilt).num_samples == 3000
    assert audio_info(kept).num_samples == 5
    assert len(infer.run(replace(config, overwrite=True))) == 4
    assert audio_info(kept).num_samples == 3000


@pytest.mark.usefixtures("all_pass")
def test_a_song_that_fails_keeps_no_other_from_being_separated(
    checkpoint: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    songs, out = tmp_path / "songs", tmp_path / "out"
    write_audio(songs / "good.wav", tone(1, 3000, 44100), 44100)
    _text_file(songs)
    config = InferConfig(checkpoint_fp=checkpoint, input=(str(songs),), out=str(out), num_workers=1)
    with pytest.raises(BadInput, match=r"1 of 2 songs .*song\.wav: not readable as audio"):
        infer.run(config)
    assert sorted(file.name for file in out.iterdir()) == ["good-bass.wav", "good-drums.wav"]
    assert "left out: " in capsys.readouterr().out


def test_songs_are_mapped_over_ray(
    checkpoint: str, tmp_path: Path, ray_cluster: str, capsys: pytest.CaptureFixture[str]
) -> None:
    """What fails in a worker is listed; the others have the samples of a song separated here."""
    songs, out = tmp_path / "songs", tmp_path / "out"
    for name in ("a.wav", "b.wav"):
        write_audio(songs / name, tone(2, 30000, 44100), 44100)
    broken = torch.zeros(1, 3000)
    broken[0, 1500] = math.nan
    soundfile.write(songs / "c.wav", broken.T.numpy(), 44100, subtype="FLOAT")
    words = ["infer", "--checkpoint_fp", checkpoint, "--input", str(songs), "--out", str(out)]
    assert main(words) == 2
    printed = capsys.readouterr()
    assert "1 of 3 songs" in printed.err
    assert "c.wav: holds NaN" in printed.out
    assert len(list(out.iterdir())) == 4
    expected = separate(load(checkpoint), songs / "a.wav")
    for name in ("a", "b"):
        for stem in CONFIG.stems:
            torch.testing.assert_close(
                read_audio(out / f"{name}-{stem}.wav"), expected[stem], atol=1e-6, rtol=0
            )


def test_what_a_format_cannot_hold_is_refused_before_anything_is_written(
    checkpoint: str, tmp_path: Path
) -> None:
    song, out = tmp_path / "six.wav", tmp_path / "out"
    write_audio(song, tone(6, 3000, 44100), 44100)
    config = InferConfig(checkpoint_fp=checkpoint, input=(str(song),), out=str(out), format="mp3")
    with pytest.raises(BadInput, match="cannot hold 6 channels"):
        infer.run(config)
    assert not out.exists()


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
            input=(str(tmp_path / "loud.wav"),),
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
        InferConfig(
            checkpoint_fp=checkpoint, input=(str(songs),), out=str(tmp_path / "out"), num_workers=1
        )
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
    whole: Callable[..., object] = infer_song.separate_blocks

    def breaks(*args: object, **options: object) -> object:
        blocks = iter(whole(*args, **options))  # type: ignore[call-overload]
        yield next(blocks)
        raise RuntimeError("power cut")

    monkeypatch.setattr(infer_song, "separate_blocks", breaks)
    with pytest.raises(RuntimeError, match="power cut"):
        infer.run(InferConfig(checkpoint_fp=checkpoint, input=(str(song),), out=str(out)))
    assert list(out.iterdir()) == []


def _silent_file(folder: Path) -> Path:
    write_audio(folder / "song-drums.wav", torch.zeros(1, 100), 44100)
    return folder / "song-drums.wav"


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
        infer.run(InferConfig(checkpoint_fp=str(tmp_path / "x"), input=(str(song),), out="out"))
    with pytest.raises(BadInput, match="is a file"):
        infer.run(InferConfig(checkpoint_fp=checkpoint, input=(str(song),), out=str(song)))


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU")
def test_a_gpu_that_is_not_there_is_refused(checkpoint: str, tmp_path: Path) -> None:
    with pytest.raises(BadInput, match="no GPU"):
        infer.run(
            InferConfig(
                checkpoint_fp=checkpoint,
                input=(str(_silent_file(tmp_path)),),
                out=str(tmp_path / "out"),
                device="cuda",
            )
        )


@pytest.mark.usefixtures("all_pass")
def test_a_full_temporary_folder_is_named_when_songs_are_rescaled(
    checkpoint: str, tmp_path: Path, small_disk: Callable[[int], Path],
    monkeypatch: pytest.MonkeyPatch,
) -> None:  # fmt: skip
    song, out = tmp_path / "song.wav", tmp_path / "out"
    write_audio(song, 2 * tone(2, 200_000, 44100), 44100, subtype="FLOAT")
    monkeypatch.setattr(tempfile, "tempdir", str(small_disk(1)))
    config = InferConfig(
        checkpoint_fp=checkpoint, input=(str(song),), out=str(out), subtype="PCM_16", clip="rescale"
    )
    with pytest.raises(BadInput, match=r"song\.wav: no room .*TMPDIR"):
        infer.run(config)
    assert not out.exists()
