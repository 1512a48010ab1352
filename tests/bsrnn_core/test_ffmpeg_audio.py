"""Files that ffmpeg decodes: whole, at their own rate and channels, and nothing else with them."""

import math
import os
import shutil
import subprocess
from collections.abc import Callable, Sequence
from pathlib import Path

import pytest
import soundfile
import torch
from torch import Tensor

from bsrnn_core.audio_files import (
    SONG_ENDINGS,
    AudioReader,
    audio_info,
    read_audio,
    write_audio,
)
from bsrnn_core.errors import BadInput

RATE = 44100
NUM_SAMPLES = 3 * RATE + 17
FRAME = 1152
"""Samples of an mp3's frame; an aac's has 1024."""

Encode = Callable[..., Path]

pytestmark = pytest.mark.skipif(shutil.which("ffmpeg") is None, reason="ffmpeg is not installed")


def ffmpeg(*words: str | Path) -> None:
    program = ["ffmpeg", "-nostdin", "-v", "error", "-y"]
    subprocess.run([*program, *map(str, words)], check=True)


@pytest.fixture
def song(tmp_path: Path) -> Path:
    """A wav: a rising tone left, noise that begins in the middle right."""
    time = torch.arange(NUM_SAMPLES) / RATE
    noise = torch.randn(NUM_SAMPLES, generator=torch.Generator().manual_seed(0))
    tone = 0.5 * torch.sin(2 * math.pi * (200 + 200 * time) * time)
    write_audio(tmp_path / "song.wav", torch.stack([tone, 0.2 * noise * (time > 1.5)]), RATE)
    return tmp_path / "song.wav"


def vbr_mp3(song: Path, name: str, *options: str, more_input: Sequence[str] = ()) -> Path:
    path = song.with_name(name)
    ffmpeg("-i", song, *more_input, "-c:a", "libmp3lame", "-q:a", "2", *options, path)
    return path


def similarity(samples: Tensor, song: Path) -> float:
    """The correlation with what was encoded, as far as both go."""
    clean = read_audio(song)
    length = min(samples.shape[1], clean.shape[1])
    both = torch.stack([samples[:, :length].flatten(), clean[:, :length].flatten()])
    return float(torch.corrcoef(both)[0, 1])


@pytest.mark.parametrize(
    ("ending", "codec", "excess"),
    # The encoder of aac fills its last frame.
    [("m4a", "aac", 1024), ("mp4", "aac", 1024), ("m4a", "alac", 0), ("mp3", "libmp3lame", 0)],
)
def test_is_read_at_its_own_length_rate_and_channels(
    song: Path, ending: str, codec: str, excess: int
) -> None:
    path = song.with_name(f"coded.{ending}")
    ffmpeg("-i", song, "-c:a", codec, path)
    with AudioReader(path) as reader:
        info = reader.info
        assert (info.sample_rate, info.channels) == (RATE, 2)
        assert 0 <= info.num_samples - NUM_SAMPLES <= excess
        whole = reader.read(0, info.num_samples)
        assert torch.equal(reader.read(50_001, 7), whole[:, 50_001:50_008])
    assert audio_info(path) == info
    assert abs(audio_info(path, estimate=True).seconds - NUM_SAMPLES / RATE) < 0.06
    assert torch.equal(read_audio(path), whole)
    if codec == "alac":
        assert torch.equal(whole, read_audio(song))
    assert similarity(whole, song) > 0.9
    assert path.suffix in SONG_ENDINGS


def test_a_bare_aac_stream_is_read(song: Path) -> None:
    path = song.with_name("bare.aac")
    ffmpeg("-i", song, path)
    assert 0 <= audio_info(path).num_samples - NUM_SAMPLES <= 2 * 1024
    assert abs(audio_info(path, estimate=True).seconds - NUM_SAMPLES / RATE) < 1


def test_six_channels_keep_their_order(tmp_path: Path) -> None:
    seconds = torch.arange(RATE) / RATE
    levels = torch.arange(1, 7)[:, None] / 10
    write_audio(tmp_path / "wide.wav", levels * torch.sin(2764.6 * seconds), RATE)
    ffmpeg("-i", tmp_path / "wide.wav", "-c:a", "alac", tmp_path / "wide.m4a")
    read = read_audio(tmp_path / "wide.m4a")
    torch.testing.assert_close(read, read_audio(tmp_path / "wide.wav"), rtol=0, atol=1e-4)


def test_of_a_video_the_first_sound_is_read(song: Path) -> None:
    write_audio(song.with_name("other.wav"), torch.zeros(1, RATE), 8000)
    picture = ["-f", "lavfi", "-i", "color=red:size=64x64:rate=5:duration=3"]
    sounds = ["-i", song, "-i", song.with_name("other.wav")]
    ffmpeg(*picture, *sounds, "-map", "0", "-map", "1", "-map", "2", song.with_name("film.mp4"))
    assert similarity(read_audio(song.with_name("film.mp4")), song) > 0.9
    ffmpeg(*picture, song.with_name("silent.mp4"))
    with pytest.raises(BadInput, match=r"silent\.mp4: holds no audio"):
        audio_info(song.with_name("silent.mp4"))


@pytest.mark.parametrize("options", [["-b:a", "128k"], []], ids=["constant", "variable"])
def test_an_mp3_that_does_not_state_its_length_is_read_to_its_end(
    song: Path, options: list[str]
) -> None:
    path = vbr_mp3(song, "bare.mp3", "-write_xing", "0", *options)
    read = read_audio(path)
    assert 0 <= read.shape[1] - NUM_SAMPLES < 3 * FRAME


def test_of_joined_mp3s_both_are_read(song: Path) -> None:
    path = vbr_mp3(song, "one.mp3")
    song.with_name("both.mp3").write_bytes(2 * path.read_bytes())
    assert abs(read_audio(song.with_name("both.mp3")).shape[1] - 2 * NUM_SAMPLES) < 3 * FRAME


@pytest.mark.parametrize("frames", [0, 20, 1000, 2**32 - 1])
def test_a_wrong_number_of_frames_does_no_harm(song: Path, frames: int) -> None:
    content = vbr_mp3(song, "one.mp3").read_bytes()
    place = content.index(b"Xing") + 8
    path = song.with_name("wrong.mp3")
    path.write_bytes(content[:place] + frames.to_bytes(4, "big") + content[place + 4 :])
    with AudioReader(path) as reader:
        assert abs(reader.info.num_samples - NUM_SAMPLES) < 3 * FRAME


def test_tags_and_a_cover_are_passed_over(song: Path) -> None:
    cover = song.with_name("cover.png")
    ffmpeg("-f", "lavfi", "-i", "nullsrc=size=300x300,geq=random(1)*255", "-frames:v", "1", cover)
    tags = ["-map", "0", "-map", "1", "-metadata", "title=Träume", "-write_id3v1", "1"]
    path = vbr_mp3(song, "tagged.mp3", *tags, more_input=("-i", str(cover)))
    assert read_audio(path).shape[1] == NUM_SAMPLES
    plain = vbr_mp3(song, "plain.mp3")
    assert torch.equal(read_audio(path), read_audio(plain))


def test_a_cut_mp3_is_read_as_far_as_it_goes(song: Path) -> None:
    path = vbr_mp3(song, "cut.mp3")
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])
    samples = read_audio(path)
    assert 0.3 * NUM_SAMPLES < samples.shape[1] < 0.8 * NUM_SAMPLES
    assert similarity(samples, song) > 0.9


@pytest.mark.parametrize("fast_start", [True, False])
def test_a_cut_m4a_is_refused(song: Path, fast_start: bool) -> None:
    path = song.with_name("cut.m4a")
    ffmpeg("-i", song, *(["-movflags", "+faststart"] if fast_start else []), path)
    path.write_bytes(path.read_bytes()[: path.stat().st_size * 2 // 3])
    message = r"of 3\.0 seconds can be read" if fast_start else "not readable as audio"
    with pytest.raises(BadInput, match=message) as caught:
        AudioReader(path)
    assert str(caught.value).startswith(f"{path}: ")


def test_a_flac_from_a_pipe_is_read_whole(song: Path) -> None:
    path = song.with_name("piped.flac")
    with path.open("wb") as output:
        piped = ["ffmpeg", "-nostdin", "-v", "error", "-i", str(song), "-f", "flac", "pipe:1"]
        subprocess.run(piped, stdout=output, check=True)
    assert torch.equal(read_audio(path), read_audio(song))
    assert audio_info(path, estimate=True).num_samples == NUM_SAMPLES


@pytest.mark.parametrize("name", ["-i.m4a", "pipe:0.m4a", "http:x%d'\"\n.m4a", "ä 音.m4a"])
def test_names_are_only_names(song: Path, name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    ffmpeg("-i", song, "-c:a", "alac", song.with_name("a.m4a"))
    song.with_name("a.m4a").rename(song.with_name(name))
    monkeypatch.chdir(song.parent)
    assert torch.equal(read_audio(name), read_audio(song))


@pytest.mark.parametrize(
    "playlist", ["#EXTM3U\n#EXTINF:3,\n{}\n", "ffconcat version 1.0\nfile {}\n"]
)
def test_a_playlist_opens_no_other_file(song: Path, playlist: str) -> None:
    ffmpeg("-i", song, song.with_name("secret.mp3"))
    path = song.with_name("list.m4a")
    for target in (song.with_name("secret.mp3").as_uri(), "secret.mp3"):
        path.write_text(playlist.format(target))
        with pytest.raises(BadInput, match=r"list\.m4a: not readable as audio"):
            read_audio(path)


@pytest.mark.parametrize("content", [b"", b"text" * 999, os.urandom(4000)])
@pytest.mark.parametrize("ending", ["mp3", "m4a", "aac"])
def test_what_is_no_audio_is_refused(tmp_path: Path, ending: str, content: bytes) -> None:
    path = tmp_path / f"bad.{ending}"
    path.write_bytes(content)
    for estimate in (True, False):
        with pytest.raises(BadInput) as caught:
            audio_info(path, estimate=estimate)
        assert str(caught.value).startswith(f"{path}: ")
        assert "\n" not in str(caught.value)


def test_without_ffmpeg_the_sentence_says_what_to_install(
    song: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = vbr_mp3(song, "song.mp3")
    monkeypatch.setenv("PATH", str(song.parent))
    for read in (read_audio, audio_info):
        with pytest.raises(BadInput, match=r"song\.mp3: cannot be read without.*install ffmpeg"):
            read(path)


def test_no_room_for_the_decoded_song(
    song: Path, small_disk: Callable[[int], Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    lossy = vbr_mp3(song, "song.mp3")
    soundfile.write(song.with_name("song.ogg"), read_audio(song).T.numpy(), RATE)
    disk = small_disk(1)
    monkeypatch.setattr("tempfile.tempdir", str(disk))
    for path in (lossy, song.with_name("song.ogg")):
        with pytest.raises(BadInput, match=rf"{path.name}: no room for the decoded song .* TMPDIR"):
            AudioReader(path)
    # A file without a name is gone with the reader that failed.
    assert shutil.disk_usage(disk).free == shutil.disk_usage(disk).total
    monkeypatch.setattr("tempfile.tempdir", str(disk / "gone"))
    with pytest.raises(BadInput, match="no room for the decoded song"):
        AudioReader(lossy)
