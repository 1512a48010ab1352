import dataclasses
import os
import shutil
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import soundfile
import torch

from bsrnn_core.config import STEMS
from bsrnn_core.errors import BadInput
from data_prep import tracks as tracks_module
from data_prep.config import SourceConfig
from data_prep.tracks import (
    Lengths,
    Track,
    find_tracks,
    fingerprint,
    inspect_track,
    looks_unchanged,
    read_references,
    read_track,
)

WriteSongs = Callable[..., Path]


def names_of(source: SourceConfig, split: str) -> list[str]:
    return [track.name for track in find_tracks(source) if track.split == split]


def source_of(root: Path, **options: object) -> SourceConfig:
    return dataclasses.replace(SourceConfig(musdbhq_location=str(root)), **options)


@pytest.fixture
def song(tmp_path: Path, write_songs: WriteSongs) -> Track:
    root = write_songs(tmp_path / "songs", {"train": ["a song"]}, num_samples=4000)
    return find_tracks(source_of(root))[0]


def folders(root: Path, split: str, names: list[str]) -> None:
    for name in names:
        (root / split / name).mkdir(parents=True)


def test_a_valid_folder_is_the_validation_split(tmp_path: Path) -> None:
    folders(tmp_path, "train", ["b", "a", "Actions - One Minute Smile"])
    folders(tmp_path, "valid", ["c"])
    folders(tmp_path, "test", ["d"])
    found = [(track.split, track.name) for track in find_tracks(source_of(tmp_path))]
    train = [("train", name) for name in ("Actions - One Minute Smile", "a", "b")]
    assert found == [*train, ("valid", "c"), ("test", "d")]


def test_musdbs_own_validation_tracks_are_taken_where_their_names_match(tmp_path: Path) -> None:
    known = ["Actions - One Minute Smile", "Meaxic - Take A Step"]
    folders(tmp_path, "train", [*known, *(f"song {k}" for k in range(20))])
    assert names_of(source_of(tmp_path), "valid") == known
    assert len(names_of(source_of(tmp_path), "train")) == 20


def test_musdb_names_fourteen_validation_tracks() -> None:
    assert len(tracks_module._musdb_setup()["validation_tracks"]) == 14


def test_a_drawn_validation_split_is_seeded_and_never_takes_from_test(tmp_path: Path) -> None:
    songs = [f"song {k}" for k in range(20)]
    folders(tmp_path, "train", songs)
    folders(tmp_path, "test", ["t1", "t2"])
    source = source_of(tmp_path, valid_fraction=0.25)
    valid = names_of(source, "valid")
    assert len(valid) == 5
    assert names_of(source, "valid") == valid
    assert sorted(valid + names_of(source, "train")) == sorted(songs)
    assert names_of(source, "test") == ["t1", "t2"]
    assert names_of(dataclasses.replace(source, split_seed=1), "valid") != valid
    assert names_of(dataclasses.replace(source, valid_fraction=0.0), "valid") == []


@pytest.mark.parametrize(("songs", "valid"), [(1, 0), (2, 1), (3, 1)])
def test_few_songs_still_leave_one_to_train_on(tmp_path: Path, songs: int, valid: int) -> None:
    folders(tmp_path, "train", [f"song {k}" for k in range(songs)])
    assert len(names_of(source_of(tmp_path), "valid")) == valid
    assert len(names_of(source_of(tmp_path, valid_fraction=0.99), "train")) == 1


def test_portion_thins_training_tracks_only_and_nests(tmp_path: Path) -> None:
    folders(tmp_path, "train", [f"song {k}" for k in range(20)])
    folders(tmp_path, "test", ["t"])
    whole = source_of(tmp_path, valid_fraction=0.2)
    half = dataclasses.replace(whole, portion=0.5)
    tiny = dataclasses.replace(whole, portion=0.01)
    assert len(names_of(half, "train")) == 8
    assert len(names_of(tiny, "train")) == 1
    assert set(names_of(tiny, "train")) < set(names_of(half, "train"))
    for split in ("valid", "test"):
        assert names_of(half, split) == names_of(whole, split)


def test_no_tracks_says_what_was_looked_for_and_where(tmp_path: Path) -> None:
    (tmp_path / "train").mkdir()
    (tmp_path / "train" / "stray.wav").touch()
    with pytest.raises(BadInput, match=r"no tracks found in .*train/.*vocals\.wav.*\.stem\.mp4"):
        find_tracks(source_of(tmp_path))
    with pytest.raises(BadInput, match="nowhere is not a folder"):
        find_tracks(source_of(tmp_path / "nowhere"))
    with pytest.raises(BadInput, match="--musdbhq_location"):
        find_tracks(SourceConfig())


def test_a_name_twice_is_refused(tmp_path: Path) -> None:
    folders(tmp_path, "train", ["a"])
    (tmp_path / "train" / "a.stem.mp4").touch()
    with pytest.raises(BadInput, match="both as a folder"):
        find_tracks(source_of(tmp_path))


@pytest.mark.parametrize("ending", ["wav", "flac"])
@pytest.mark.parametrize("channels", [1, 2])
def test_stems_are_read_in_the_order_asked_for(
    tmp_path: Path, write_songs: WriteSongs, ending: str, channels: int
) -> None:
    stems = ("lead", "rest")
    root = write_songs(tmp_path, {"train": ["a"]}, stems=stems, ending=ending, channels=channels)
    track = find_tracks(source_of(root, stem_names=stems))[0]
    audio = read_track(track, stems[::-1], sample_rate=None, lengths="refuse")
    assert audio.sample_rate == 8000
    assert audio.references.shape == (2, channels, 16000)
    lead, _ = soundfile.read(root / "train" / "a" / f"lead.{ending}", always_2d=True)
    np.testing.assert_allclose(audio.references[1].numpy(), lead.T, atol=1e-7)
    torch.testing.assert_close(audio.mixture, audio.references.sum(0))


def test_a_mixture_file_is_the_mixture(song: Track) -> None:
    samples = np.full((4000, 2), 0.25)
    soundfile.write(Path(song.path) / "mixture.wav", samples, 8000)
    audio = read_track(song, STEMS, sample_rate=None, lengths="refuse")
    assert audio.references.shape[0] == 4
    torch.testing.assert_close(audio.mixture, torch.full((2, 4000), 0.25))


def test_wav_is_preferred_over_lossy_copies(song: Track) -> None:
    path = Path(song.path) / "drums.ogg"
    soundfile.write(path, np.zeros((10, 2)), 8000)
    references, _ = read_references(song, STEMS, sample_rate=None, lengths="refuse")
    assert references.shape == (4, 2, 4000)


def test_resampled_stems_still_sum_and_keep_their_pitch(tmp_path: Path) -> None:
    folder = tmp_path / "train" / "a"
    folder.mkdir(parents=True)
    for name, frequency in (("low", 220), ("high", 1000)):
        tone = 0.3 * np.sin(2 * np.pi * frequency * np.arange(48000) / 48000)
        soundfile.write(folder / f"{name}.wav", tone, 48000, subtype="FLOAT")
    track = Track("a", "train", str(folder))
    audio = read_track(track, ("low", "high"), sample_rate=44100, lengths="refuse")
    assert audio.sample_rate == 44100
    assert audio.references.shape == (2, 1, 44100)
    torch.testing.assert_close(audio.mixture, audio.references.sum(0))
    expected = 0.3 * np.sin(2 * np.pi * 220 * np.arange(44100) / 44100)
    inner = slice(500, -500)
    np.testing.assert_allclose(audio.references[0, 0, inner].numpy(), expected[inner], atol=1e-3)


def test_a_missing_stem_is_named(song: Track) -> None:
    (Path(song.path) / "bass.wav").unlink()
    with pytest.raises(BadInput, match=r"a song has no file for the stem 'bass'.*drums\.wav"):
        inspect_track(song, STEMS, "refuse")


@pytest.mark.parametrize("content", [b"", b"no audio at all", b"RIFF\0\0\0\0WAVE"])
def test_an_unreadable_stem_is_named(song: Track, content: bytes) -> None:
    (Path(song.path) / "bass.wav").write_bytes(content)
    with pytest.raises(BadInput, match=r"bass\.wav"):
        inspect_track(song, STEMS, "refuse")


def test_a_stem_without_samples_is_named(song: Track) -> None:
    soundfile.write(Path(song.path) / "bass.wav", np.zeros((0, 2)), 8000)
    with pytest.raises(BadInput, match=r"bass\.wav"):
        inspect_track(song, STEMS, "refuse")


@pytest.mark.parametrize("value", [np.nan, np.inf])
def test_samples_that_are_no_numbers_are_refused(song: Track, value: float) -> None:
    samples = np.zeros((4000, 2))
    samples[1234, 1] = value
    soundfile.write(Path(song.path) / "bass.wav", samples, 8000, subtype="FLOAT")
    with pytest.raises(BadInput, match=r"bass\.wav.*NaN"):
        read_references(song, STEMS, sample_rate=None, lengths="refuse")


def test_differing_lengths_are_refused_padded_or_trimmed(song: Track) -> None:
    soundfile.write(Path(song.path) / "bass.wav", np.full((3000, 2), 0.5), 8000)
    with pytest.raises(BadInput, match=r"bass\.wav has 3000 samples.*4000.*--lengths"):
        inspect_track(song, STEMS, "refuse")
    padded, _ = read_references(song, STEMS, sample_rate=None, lengths="pad")
    trimmed, _ = read_references(song, STEMS, sample_rate=None, lengths="trim")
    assert padded.shape == (4, 2, 4000)
    assert trimmed.shape == (4, 2, 3000)
    torch.testing.assert_close(padded[..., :3000], trimmed)
    assert padded[STEMS.index("bass"), :, 3000:].abs().max() == 0
    assert inspect_track(song, STEMS, "pad").num_samples == 4000
    assert inspect_track(song, STEMS, "trim").num_samples == 3000


@pytest.mark.parametrize("lengths", ["refuse", "pad", "trim"])
def test_differing_rates_and_channels_are_always_refused(song: Track, lengths: Lengths) -> None:
    path = Path(song.path) / "bass.wav"
    soundfile.write(path, np.zeros((4000, 2)), 16000)
    with pytest.raises(BadInput, match=r"bass\.wav.*samples per second"):
        inspect_track(song, STEMS, lengths)
    soundfile.write(path, np.zeros((4000, 1)), 8000)
    with pytest.raises(BadInput, match=r"bass\.wav.*channels"):
        inspect_track(song, STEMS, lengths)


def test_a_fingerprint_tells_change_by_time_size_and_name(song: Track) -> None:
    stamps = fingerprint(song, STEMS)
    assert sorted(stamps) == sorted(f"{stem}.wav" for stem in STEMS)
    assert looks_unchanged(song, STEMS, stamps)
    path = Path(song.path) / "bass.wav"
    os.utime(path, ns=(0, 1))
    assert not looks_unchanged(song, STEMS, stamps)
    assert fingerprint(song, STEMS)["bass.wav"].sha256 == stamps["bass.wav"].sha256
    path.unlink()
    assert not looks_unchanged(song, STEMS, stamps)


def example_stem_mp4(tmp_path: Path) -> Track:
    """The real MUSDB18 excerpt that comes with stempeg."""
    import stempeg

    (tmp_path / "test").mkdir(parents=True)
    path = Path(stempeg.example_stem_path())
    shutil.copy(path, tmp_path / "test" / path.name)
    return find_tracks(source_of(tmp_path))[0]


@pytest.mark.skipif(shutil.which("ffmpeg") is None, reason="ffmpeg is not installed")
def test_a_real_stem_mp4_is_read(tmp_path: Path) -> None:
    track = example_stem_mp4(tmp_path)
    assert (track.name, track.split) == ("The Easton Ellises - Falcon 69", "test")
    info = inspect_track(track, STEMS, "refuse")
    audio = read_track(track, STEMS, sample_rate=None, lengths="refuse")
    assert audio.references.shape == (4, info.channels, info.num_samples) == (4, 2, 268288)
    assert audio.sample_rate == info.sample_rate == 44100
    residual = audio.mixture - audio.references.sum(0)
    assert 0 < residual.norm() < 0.2 * audio.mixture.norm()
    flipped, _ = read_references(track, STEMS[::-1], sample_rate=22050, lengths="refuse")
    assert flipped.shape == (4, 2, 134144)
    assert list(fingerprint(track, STEMS)) == [Path(track.path).name]
    with pytest.raises(BadInput, match="'piano'"):
        inspect_track(track, ("piano",), "refuse")


@pytest.mark.skipif(shutil.which("ffmpeg") is None, reason="ffmpeg is not installed")
def test_a_damaged_stem_mp4_is_named(tmp_path: Path) -> None:
    track = example_stem_mp4(tmp_path)
    Path(track.path).write_bytes(Path(track.path).read_bytes()[:1000])
    with pytest.raises(BadInput, match=r"Falcon 69\.stem\.mp4 cannot be decoded"):
        inspect_track(track, STEMS, "refuse")


def test_without_ffmpeg_a_stem_mp4_says_what_to_install(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    import sys

    for name in [n for n in sys.modules if n.split(".")[0] == "stempeg"]:
        monkeypatch.delitem(sys.modules, name)
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(BadInput, match=r"x\.stem\.mp4.*install ffmpeg"):
        inspect_track(Track("x", "train", "x.stem.mp4"), STEMS, "refuse")
