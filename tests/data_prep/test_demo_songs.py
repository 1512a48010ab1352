"""The demo corpus: exact sums, the same bytes for a seed, and levels like those of real songs."""

import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import soundfile

from bsrnn_core.config import STEMS
from bsrnn_core.errors import BadInput
from data_prep.demo_melody import melody
from data_prep.demo_score import Song
from data_prep.demo_songs import make_corpus, make_song

SECONDS, RATE = 5.0, 44100


def read(track: Path) -> dict[str, np.ndarray]:
    """The wav files of a track, int16 [N, 2] each."""
    return {file.stem: soundfile.read(file, dtype="int16")[0] for file in track.glob("*.wav")}


def contents(corpus: Path) -> dict[str, bytes]:
    """Every file of a corpus by its relative path."""
    files = (file for file in corpus.rglob("*") if file.is_file())
    return {str(file.relative_to(corpus)): file.read_bytes() for file in files}


@pytest.fixture(scope="module")
def corpus(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two songs to train on, one to validate, two to test."""
    out = tmp_path_factory.mktemp("songs") / "corpus"
    make_corpus(out, num_train=2, num_valid=1, num_test=2, seconds=SECONDS, seed=7)
    return out


def test_layout_is_that_of_musdb_hq(corpus: Path) -> None:
    tracks = sorted(str(track.relative_to(corpus)) for track in corpus.glob("*/*"))
    names = ["test/test-00", "test/test-01", "train/train-00", "train/train-01", "valid/valid-00"]
    assert tracks == names
    for track in corpus.glob("*/*"):
        assert {file.name for file in track.iterdir()} == {
            f"{name}.wav" for name in ("mixture", *STEMS)
        }
        for file in track.iterdir():
            info = soundfile.info(file)
            assert (info.samplerate, info.channels, info.subtype) == (RATE, 2, "PCM_16")
            assert info.frames == round(SECONDS * RATE)


def test_stems_sum_to_the_mixture_bit_for_bit_without_clipping(corpus: Path) -> None:
    for track in corpus.glob("*/*"):
        audio = read(track)
        total = sum(audio[name].astype(np.int64) for name in STEMS)
        np.testing.assert_array_equal(total, audio["mixture"])
        for name, samples in audio.items():
            assert 0.02 * 32768 < np.abs(samples.astype(np.int64)).max() < 32000, name
            assert abs(samples.mean()) < 0.01 * samples.std(), f"{name} has an offset"


def test_the_same_seed_gives_the_same_bytes(corpus: Path, tmp_path: Path) -> None:
    make_corpus(tmp_path / "again", num_train=2, num_valid=1, num_test=2, seconds=SECONDS, seed=7)
    assert contents(tmp_path / "again") == contents(corpus)


def test_every_song_and_every_seed_differs(corpus: Path, tmp_path: Path) -> None:
    make_corpus(tmp_path, num_train=1, num_valid=0, num_test=0, seconds=SECONDS, seed=8)
    tracks = [*corpus.glob("*/*"), tmp_path / "train" / "train-00"]
    for name in ("mixture", *STEMS):
        assert len({(track / f"{name}.wav").read_bytes() for track in tracks}) == len(tracks), name


def test_finished_songs_are_kept_and_missing_ones_made(corpus: Path, tmp_path: Path) -> None:
    make_corpus(tmp_path, num_train=1, num_valid=0, num_test=0, seconds=SECONDS, seed=7)
    before = (tmp_path / "train" / "train-00" / "mixture.wav").stat().st_mtime_ns
    make_corpus(tmp_path, num_train=2, num_valid=1, num_test=2, seconds=SECONDS, seed=7)
    assert (tmp_path / "train" / "train-00" / "mixture.wav").stat().st_mtime_ns == before
    assert contents(tmp_path) == contents(corpus)


def test_a_song_that_fails_to_write_leaves_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    write = soundfile.write

    def full_disk(file: Path, *arguments: object, **options: object) -> None:
        if Path(file).stem == "drums":
            raise OSError("no space left on device")
        write(file, *arguments, **options)  # pyright: ignore[reportArgumentType]

    monkeypatch.setattr(soundfile, "write", full_disk)
    with pytest.raises(OSError, match="no space"):
        make_corpus(tmp_path, num_train=1, num_valid=0, num_test=0, seconds=1.0)
    assert not list(tmp_path.rglob("*.wav"))
    assert not list(tmp_path.glob(".*"))


@pytest.mark.parametrize("index", range(6))
def test_drums_in_the_mixture_are_as_hard_as_in_real_songs(index: int) -> None:
    song = make_song(42, "test", index, 6.0, RATE)
    drums = song["drums"].astype(float)
    rest = song["mixture"] - drums
    assert -8 < 10 * np.log10(np.sum(drums**2) / np.sum(rest**2)) < 0


@pytest.mark.parametrize("index", range(6))
def test_vocals_pause(index: int) -> None:
    vocals = make_song(42, "train", index, 6.0, RATE)["vocals"].astype(float)
    frames = vocals[: len(vocals) // 4410 * 4410].reshape(-1, 4410, 2)
    level_db = 10 * np.log10(np.mean(frames**2, axis=(1, 2)) + 1e-9)
    quiet = np.mean(level_db < level_db.max() - 40)
    assert 0.02 < quiet < 0.8


@pytest.mark.parametrize("index", range(8))
def test_melody_keeps_to_the_scale_and_to_time(index: int) -> None:
    song = Song.draw((3, 0, index), 20.0, RATE)
    syllables = melody(song, song.rng("vocals"))
    scale = {song.pitch(degree) % 12 for degree in range(7)}
    assert {note.pitch % 12 for note in syllables} <= scale
    starts = [note.start for note in syllables]
    assert starts == sorted(starts)
    bars = {int((note.start + 0.05) / (4 * song.beat)) for note in syllables}
    assert not bars & set(range(*song.rests.get("vocals", (0, 0))))


def test_stems_rest_for_some_bars_in_some_songs() -> None:
    songs = [Song.draw((42, 0, index), 20.0, RATE) for index in range(40)]
    for stem in STEMS:
        assert 0 < sum(stem in song.rests for song in songs) < len(songs), stem


@pytest.mark.parametrize("sample_rate", [8000, 48000])
def test_other_sample_rates(sample_rate: int) -> None:
    song = make_song(1, "train", 0, 2.5, sample_rate)
    for name, samples in song.items():
        assert samples.shape == (round(2.5 * sample_rate), 2)
        assert np.abs(samples.astype(np.int64)).max() > 300, f"{name} is silent"


def test_bad_sizes_are_refused_before_anything_is_written(tmp_path: Path) -> None:
    out = tmp_path / "corpus"
    with pytest.raises(BadInput, match="num_train"):
        make_corpus(out, num_train=-1)
    with pytest.raises(BadInput, match="seconds"):
        make_corpus(out, seconds=0)
    with pytest.raises(BadInput, match="sample_rate"):
        make_corpus(out, sample_rate=100)
    assert not out.exists()


def test_songs_of_other_settings_are_not_mixed(corpus: Path, tmp_path: Path) -> None:
    with pytest.raises(BadInput, match="remove it or name another"):
        make_corpus(corpus, seconds=SECONDS, seed=8)
    (tmp_path / "train" / "someone's song").mkdir(parents=True)
    with pytest.raises(BadInput, match="already holds songs"):
        make_corpus(tmp_path)


def test_script(tmp_path: Path) -> None:
    command = [sys.executable, "-m", "data_prep.demo_songs", str(tmp_path / "out")]
    sizes = ["--num_train", "1", "--num_valid", "0", "--num_test", "0", "--sample_rate", "8000"]
    subprocess.run([*command, *sizes, "--seconds", "2"], check=True)
    assert len(list((tmp_path / "out").rglob("*.wav"))) == 5
    refused = subprocess.run([*command, "--seconds", "-1"], capture_output=True, text=True)
    assert refused.returncode == 2
    assert "seconds must lie between" in refused.stderr
    assert "Traceback" not in refused.stderr
