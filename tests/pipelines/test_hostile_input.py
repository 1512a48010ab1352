"""Whatever `bsrnn infer` is given: sound stems, or one sentence, exit code 2 and no file at all."""

import json
import pickle
import shutil
import struct
import subprocess
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import soundfile
import torch
from torch import Tensor

from bsrnn_core import BSRNN, BsrnnConfig, ModelConfig, StftConfig
from bsrnn_core.audio_files import audio_info, read_audio, write_audio
from bsrnn_core.checkpoint import save
from pipelines.cli import main

STEMS = ("drums", "bass")
CONFIG = BsrnnConfig(
    stft=StftConfig(n_fft=512),
    model=ModelConfig(band_schema="v1", feature_dim=4, num_blstm_layers=1, mlp_dim=4),
    stems=STEMS,
    crop_seconds=0.5,
)
RATE = 44100

Infer = Callable[..., tuple[int, str]]


@pytest.fixture(scope="module")
def saved(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("run") / "best"
    torch.manual_seed(0)
    save(folder, BSRNN(CONFIG), {})
    return folder


@pytest.fixture
def checkpoint(saved: Path, tmp_path: Path) -> Path:
    """One that may be damaged."""
    return Path(shutil.copytree(saved, tmp_path / "run" / "best"))


@pytest.fixture
def infer(saved: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> Infer:
    """Runs `bsrnn infer` on a song; returns the exit code and what it complains of."""

    def run(song: Path | str, out: Path | None = None, checkpoint: Path | None = None):
        capsys.readouterr()
        code = main(
            [
                *("infer", "--checkpoint_fp", str(checkpoint or saved), "--input", str(song)),
                *("--out", str(out or tmp_path / "out"), "--device", "cpu"),
                # Short, so that what is wrong with a song shows when blocks are written already.
                *("--window_seconds", "0.5"),
            ]
        )
        return code, capsys.readouterr().err

    return run


def assert_refused(result: tuple[int, str], named: object, out: Path, about: str) -> None:
    code, complaint = result
    assert code == 2, complaint
    assert "Traceback" not in complaint
    (sentence,) = [line for line in complaint.splitlines() if line.startswith("bsrnn: ")]
    assert str(named) in sentence
    assert about in sentence
    assert not out.exists() or list(out.iterdir()) == []


def noise(channels: int = 2, num_samples: int = 2 * RATE) -> Tensor:
    return 0.1 * torch.randn(
        channels, num_samples, generator=torch.Generator().manual_seed(channels)
    )


def header(channels: int, sample_rate: int = RATE, promised: int = 4000) -> bytes:
    """A wav's 44 bytes in front of 16-bit samples, whatever is asked for."""
    width = 2 * channels
    return b"".join(
        [
            *(b"RIFF", struct.pack("<I", 36 + promised), b"WAVEfmt "),
            struct.pack("<IHHIIHH", 16, 1, channels, sample_rate, sample_rate * width, width, 16),
            *(b"data", struct.pack("<I", promised)),
        ]
    )


def write_cut(path: Path) -> None:
    write_audio(path, noise(), RATE)
    path.write_bytes(path.read_bytes()[: path.stat().st_size * 2 // 3])


def write_cut_m4a(path: Path) -> None:
    if shutil.which("ffmpeg") is None:
        pytest.skip("ffmpeg is not installed")
    write_audio(path.with_suffix(".flac"), noise(), RATE)
    program = ["ffmpeg", "-nostdin", "-v", "error", "-i", str(path.with_suffix(".flac"))]
    subprocess.run([*program, "-movflags", "+faststart", str(path)], check=True)
    path.with_suffix(".flac").unlink()
    path.write_bytes(path.read_bytes()[: path.stat().st_size * 2 // 3])


def write_value(value: float) -> Callable[[Path], None]:
    def write(path: Path) -> None:
        samples = noise().T.numpy().copy()
        samples[RATE, 1] = value
        soundfile.write(path, samples, RATE, subtype="FLOAT")

    return write


REFUSED: dict[str, tuple[str, Callable[[Path], object], str]] = {
    "empty wav": ("a.wav", lambda p: p.write_bytes(b""), "not readable as audio"),
    "empty mp3": ("a.mp3", lambda p: p.write_bytes(b""), "not readable as audio"),
    "header only": ("a.wav", lambda p: p.write_bytes(header(2, promised=0)), "no samples"),
    "header without what it promises": ("a.wav", lambda p: p.write_bytes(header(2)), "cut short"),
    "part of a header": ("a.wav", lambda p: p.write_bytes(header(2)[:20]), "not readable"),
    "flac header only": ("a.flac", lambda p: p.write_bytes(b"fLaC\0\0\0\x22"), "not readable"),
    "cut wav": ("a.wav", write_cut, "cut short"),
    "cut flac": ("a.flac", write_cut, "is damaged"),
    "cut m4a": ("a.m4a", write_cut_m4a, "cut short or damaged"),
    "text": ("a.wav", lambda p: p.write_text("This is no music.\n" * 50), "not readable as audio"),
    "NaN": ("a.wav", write_value(np.nan), "NaN or infinite"),
    "Inf": ("a.wav", write_value(-np.inf), "NaN or infinite"),
    "no channels": ("a.wav", lambda p: p.write_bytes(header(0) + bytes(4000)), "not readable"),
    "rate of zero": ("a.wav", lambda p: p.write_bytes(header(2, 0) + bytes(4000)), "not readable"),
    "no such file": ("a.wav", lambda p: None, "no such file"),
    "folder without audio": ("a", lambda p: (p / "b").mkdir(parents=True), "no songs"),
    "folder with other files": (
        "a",
        lambda p: (p.mkdir(), (p / "cover.jpg").touch(), (p / "._a.wav.txt").touch()),
        "no songs",
    ),
}


@pytest.mark.parametrize(("name", "write", "about"), REFUSED.values(), ids=list(REFUSED))
def test_what_is_no_song_is_refused(
    infer: Infer, tmp_path: Path, name: str, write: Callable[[Path], object], about: str
) -> None:
    write(tmp_path / name)
    assert_refused(infer(tmp_path / name), tmp_path / name, tmp_path / "out", about)


def stems_of(song: Path, out: Path) -> list[Tensor]:
    """The stems, each as long, as wide and at the rate of the song, and finite."""
    files = sorted(out.iterdir())
    assert len(files) == len(STEMS)
    assert all(audio_info(file) == audio_info(song) for file in files)
    stems = [read_audio(file) for file in files]
    assert all(stem.isfinite().all() for stem in stems)
    return stems


SONGS = {
    "full scale": (noise().sign(), RATE),
    "clipped": ((40 * noise()).clamp(-1, 1), RATE),
    "direct current": (torch.full((2, RATE), 0.5), RATE),
    "one impulse": (torch.eye(2, RATE), RATE),
    "one sample": (noise(2, 1), RATE),
    "two samples": (noise(1, 2), 96000),
    "six channels": (noise(6, RATE), RATE),
    "eight channels": (noise(8, 9000), RATE),
    **{f"{rate} Hz": (noise(2, rate), rate) for rate in (8000, 11025, 96000, 192_000)},
}


@pytest.mark.parametrize(("samples", "rate"), SONGS.values(), ids=list(SONGS))
def test_unusual_songs_give_sound_stems(
    infer: Infer, tmp_path: Path, samples: Tensor, rate: int
) -> None:
    write_audio(tmp_path / "a.wav", samples, rate, subtype="FLOAT")
    assert infer(tmp_path / "a.wav")[0] == 0
    assert any(stem.any() for stem in stems_of(tmp_path / "a.wav", tmp_path / "out"))


@pytest.mark.parametrize("rate", [44100, 48000])
def test_silence_gives_silence(infer: Infer, tmp_path: Path, rate: int) -> None:
    write_audio(tmp_path / "a.wav", torch.zeros(2, rate), rate)
    assert infer(tmp_path / "a.wav")[0] == 0
    assert not any(stem.any() for stem in stems_of(tmp_path / "a.wav", tmp_path / "out"))


NAMES = [
    "Ünïcödé 音楽 🎵.wav",
    "  two  spaces .wav",
    'it\'s "quoted" `$(touch oops)` %s {x}.wav',
    "-leading dash.wav",
    "--device.wav",
    "[bold]red[blue] *?.wav",
    "UPPER.WAV",
    "a.b.c..wav",
    f"{'long ' * 48}.wav",
]


@pytest.mark.parametrize("name", NAMES)
def test_names_of_any_kind(
    infer: Infer, tmp_path: Path, name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    write_audio(tmp_path / "a.wav", noise(1, 3000), RATE)
    (tmp_path / "a.wav").rename(tmp_path / name)
    for song in (name, tmp_path / name):
        assert infer(song)[0] == 0
        stems_of(tmp_path / name, tmp_path / "out")
        shutil.rmtree(tmp_path / "out")
    assert sorted(path.name for path in tmp_path.iterdir()) == [name]


def test_a_name_that_leaves_no_room_for_the_stem_s(infer: Infer, tmp_path: Path) -> None:
    song = tmp_path / f"{251 * 'x'}.wav"
    write_audio(song, noise(1, 3000), RATE)
    assert_refused(infer(song), song.stem, tmp_path / "out", "too long")


def test_a_folder_that_cannot_be_written_to(
    infer: Infer, tmp_path: Path, small_disk: Callable[[int], Path]
) -> None:
    disk = small_disk(1)
    write_audio(tmp_path / "a.wav", noise(), RATE)
    # Root may write whatever the permissions say, but not to what is mounted so.
    subprocess.run(["mount", "-o", "remount,ro", str(disk)], check=True)
    for out in (disk, disk / "new"):
        assert_refused(infer(tmp_path / "a.wav", out), out, out, "Read-only file system")


def test_a_full_disk(infer: Infer, tmp_path: Path, small_disk: Callable[[int], Path]) -> None:
    disk = small_disk(1)
    write_audio(tmp_path / "a.wav", noise(), RATE)
    out = disk / "out"
    assert_refused(infer(tmp_path / "a.wav", out), out, out, "the disk is full")


class Payload:
    """Makes a file when it is unpickled."""

    def __init__(self, file: Path) -> None:
        self.file = file

    def __reduce__(self) -> tuple[Callable[[Path], None], tuple[Path]]:
        return Path.touch, (self.file,)


def flip_a_bit(folder: Path) -> None:
    content = bytearray((folder / "model.safetensors").read_bytes())
    content[-1000] ^= 1
    (folder / "model.safetensors").write_bytes(content)


def cut(folder: Path) -> None:
    content = (folder / "model.safetensors").read_bytes()
    (folder / "model.safetensors").write_bytes(content[: len(content) // 2])


def to_config(folder: Path, **values: object) -> None:
    content = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps(content | values))


def only_a_pickle(folder: Path) -> None:
    shutil.rmtree(folder)
    folder.mkdir()
    (folder / "model.pt").write_bytes(pickle.dumps(Payload(folder.parent / "executed")))


def pickled_weights(folder: Path) -> None:
    to_config(folder, weights_sha256=None)
    torch.save(Payload(folder.parent / "executed"), folder / "model.safetensors")


DAMAGED: dict[str, tuple[Callable[[Path], object], str]] = {
    "none": (shutil.rmtree, "no such checkpoint"),
    "a file": (lambda f: (shutil.rmtree(f), f.touch()), "no such checkpoint"),
    "an empty folder": (lambda f: (shutil.rmtree(f), f.mkdir()), "not a checkpoint"),
    "a pickle": (only_a_pickle, "not a checkpoint"),
    "pickled weights": (pickled_weights, "cannot be loaded"),
    "cut weights": (cut, "damaged"),
    "a flipped bit": (flip_a_bit, "damaged"),
    "a newer version": (lambda f: to_config(f, format_version=99), "newer version"),
    "another model": (lambda f: to_config(f, model={}), "cannot be loaded"),
}


@pytest.mark.parametrize(("damage", "about"), DAMAGED.values(), ids=list(DAMAGED))
def test_what_is_no_checkpoint_is_refused(
    infer: Infer,
    checkpoint: Path,
    tmp_path: Path,
    damage: Callable[[Path], object],
    about: str,
) -> None:
    write_audio(tmp_path / "a.wav", noise(1, 3000), RATE)
    damage(checkpoint)
    result = infer(tmp_path / "a.wav", checkpoint=checkpoint)
    assert_refused(result, checkpoint, tmp_path / "out", about)
    assert not (checkpoint.parent / "executed").exists()
