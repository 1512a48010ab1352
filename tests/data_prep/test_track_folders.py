"""Music folders as they are found: stray files, capitals, links, doubles, gaps."""

import logging
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
import soundfile
import torch

from bsrnn_core.audio_files import read_audio, write_audio
from bsrnn_core.config import STEMS
from bsrnn_core.errors import BadInput
from data_prep.config import SourceConfig
from data_prep.tracks import Track, find_tracks, inspect_track, read_track, stem_files

WriteSongs = Callable[..., Path]


@pytest.fixture
def root(tmp_path: Path, write_songs: WriteSongs) -> Path:
    songs = {"train": ["a", "b"], "valid": ["v"], "test": ["t"]}
    return write_songs(tmp_path / "music", songs, num_samples=4000, mixture=True)


def tracks_of(root: Path) -> list[Track]:
    return find_tracks(SourceConfig(musdbhq_location=str(root)))


def read(track: Track) -> torch.Tensor:
    audio = read_track(track, STEMS, sample_rate=None, lengths="refuse")
    return torch.cat([audio.mixture[None], audio.references])


def test_stray_files_change_nothing(root: Path) -> None:
    before = tracks_of(root)
    samples = [read(track) for track in before]
    strays = (".DS_Store", "Thumbs.db", "desktop.ini", "cover.jpg", "readme.txt", "a.stem.mp4.part")
    for folder in (root, root / "train", root / "train" / "a"):
        for name in strays:
            (folder / name).write_bytes(b"\0stray")
    (root / "train" / "._a").write_bytes(b"\0\5\x16\7")
    (root / "train" / "._a.stem.mp4").write_bytes(b"\0\5\x16\7")
    (root / "train" / "__MACOSX").mkdir()
    (root / "train" / ".Trashes").mkdir()
    (root / "train" / "loose song.wav").write_bytes(b"RIFF")
    for stem in (*STEMS, "mixture"):
        (root / "train" / "a" / f"._{stem}.wav").write_bytes(b"\0\5\x16\7")
    (root / "train" / "a" / "vocals.wav.asd").write_bytes(b"")
    (root / "train" / "a" / "old.wav").mkdir()
    assert tracks_of(root) == before
    assert all(torch.equal(read(t), s) for t, s in zip(before, samples, strict=True))


def test_capitals_make_no_difference(root: Path) -> None:
    before = [read(track) for track in tracks_of(root)]
    for path in (root / "train" / "a").iterdir():
        path.rename(path.with_name(path.name.upper()))
    (root / "train").rename(root / "Train")
    (root / "test").rename(root / "TEST")
    tracks = tracks_of(root)
    assert [(t.name, t.split) for t in tracks] == [
        *(("a", "train"), ("b", "train"), ("v", "valid"), ("t", "test"))
    ]
    assert [path.name for path in stem_files(tracks[0], ("vocals",))] == ["VOCALS.WAV"]
    assert all(torch.equal(read(t), s) for t, s in zip(tracks, before, strict=True))


def test_links_are_followed_and_broken_ones_named(root: Path, tmp_path: Path) -> None:
    whole = read(tracks_of(root)[0])
    (root / "train" / "a").rename(tmp_path / "elsewhere")
    (root / "train" / "a").symlink_to(tmp_path / "elsewhere")
    shutil.move(tmp_path / "elsewhere" / "bass.wav", tmp_path / "bass")
    (tmp_path / "elsewhere" / "bass.wav").symlink_to(tmp_path / "bass")
    # Neither a link to nowhere nor a circle is a song.
    (root / "train" / "gone").symlink_to(tmp_path / "nowhere")
    (root / "train" / "circle").symlink_to(root / "train" / "circle")
    tracks = tracks_of(root)
    assert [track.name for track in tracks] == ["a", "b", "v", "t"]
    assert torch.equal(read(tracks[0]), whole)
    (tmp_path / "bass").unlink()
    with pytest.raises(BadInput, match=r"a/bass\.wav: there is no such file"):
        inspect_track(tracks[0], STEMS, "refuse")


def test_a_link_back_up_is_a_song_without_stems_and_no_endless_walk(root: Path) -> None:
    (root / "train" / "loop").symlink_to(root)
    loop = next(track for track in tracks_of(root) if track.name == "loop")
    with pytest.raises(BadInput, match=r"loop has no file for the stem 'vocals'.*no audio file"):
        inspect_track(loop, STEMS, "refuse")


def test_an_empty_folder_is_named(root: Path) -> None:
    (root / "train" / "empty").mkdir()
    empty = next(track for track in tracks_of(root) if track.name == "empty")
    with pytest.raises(BadInput, match=r"empty has no file for the stem 'vocals'.*no audio file"):
        inspect_track(empty, STEMS, "refuse")


def test_what_can_be_meant_in_two_ways_is_refused(root: Path) -> None:
    (root / "train" / "a" / "Vocals.WAV").write_bytes(b"")
    with pytest.raises(BadInput, match=r"vocals\.wav and Vocals\.WAV are the same stem: remove"):
        stem_files(tracks_of(root)[0], STEMS)
    (root / "train" / "A.STEM.MP4").write_bytes(b"")
    (root / "train" / "A").mkdir()
    with pytest.raises(BadInput, match="'A' both as a folder and as"):
        tracks_of(root)
    (root / "Train").mkdir()
    with pytest.raises(BadInput, match="holds Train and train: put the songs of both into one"):
        tracks_of(root)


def test_of_two_formats_the_lossless_one_is_read(root: Path) -> None:
    track = tracks_of(root)[0]
    whole = read(track)
    write_audio(root / "train" / "a" / "Vocals.ogg", torch.zeros(2, 10), 8000)
    write_audio(root / "train" / "a" / "vocals.flac", torch.zeros(2, 10), 8000)
    assert torch.equal(read(track), whole)


def test_a_song_in_train_and_in_test_is_reported(
    root: Path, caplog: pytest.LogCaptureFixture
) -> None:
    tracks_of(root)
    assert caplog.messages == []
    shutil.copytree(root / "train" / "a", root / "test" / "a")
    assert [track.name for track in tracks_of(root)] == ["a", "b", "v", "a", "t"]
    assert len(caplog.messages) == 1
    assert "'a' is in train and in test" in caplog.messages[0]


def test_a_mixture_that_is_no_sum_is_kept_and_reported(
    root: Path, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.WARNING)
    track = tracks_of(root)[0]
    path = root / "train" / "a" / "mixture.wav"
    mixture = read_audio(path)
    read(track)
    # Mastered a little louder is the sum still.
    write_audio(path, 1.2 * mixture, 8000)
    read(track)
    assert caplog.messages == []
    other = mixture.flip(1)
    soundfile.write(path, other.T.numpy(), 8000, subtype="FLOAT")
    assert torch.equal(read(track)[0], other)
    assert len(caplog.messages) == 1
    assert f"{track.path}: the mixture is not the sum of the stems" in caplog.messages[0]
    # Of some of the stems the mixture is never the sum.
    read_track(track, ("vocals",), sample_rate=None, lengths="refuse")
    assert len(caplog.messages) == 1
