"""Audio files: what is written is read back, from any place, and bad files are refused."""

import contextlib
import math

import numpy as np
import pytest
import soundfile
import torch

from bsrnn_core.audio_files import (
    AudioInfo,
    AudioReader,
    AudioWriter,
    audio_info,
    check_writable,
    read_audio,
    resample,
    write_audio,
)
from bsrnn_core.errors import BadInput

SAMPLE_RATE = 44100
LOSSY_SNR_DB = {"ogg": 15, "mp3": 15}


@pytest.fixture
def song():
    """Two seconds of stereo: a rising tone left, decaying noise right; [2, N]."""
    time = torch.arange(2 * SAMPLE_RATE) / SAMPLE_RATE
    noise = torch.randn(len(time), generator=torch.Generator().manual_seed(0))
    return torch.stack(
        [0.5 * torch.sin(2 * math.pi * (200 + 300 * time) * time), 0.05 * noise * torch.exp(-time)]
    )


@pytest.mark.parametrize("ending", ["wav", "flac", "ogg", "mp3"])
@pytest.mark.parametrize("channels", [1, 2])
def test_round_trip(tmp_path, song, ending, channels):
    path = tmp_path / f"song.{ending}"
    samples = song[:channels]
    write_audio(path, samples, SAMPLE_RATE)
    assert audio_info(path) == AudioInfo(SAMPLE_RATE, channels, samples.shape[1])
    assert audio_info(path).seconds == 2
    read = read_audio(path)
    assert read.dtype == torch.float32
    assert read.shape == samples.shape
    assert read.is_contiguous()
    if ending in LOSSY_SNR_DB:
        noise = (read - samples).square().sum()
        assert 10 * torch.log10(samples.square().sum() / noise) > LOSSY_SNR_DB[ending]
    else:
        assert (read - samples).abs().max() < 2**-15
        # What came from a 16-bit file goes back unchanged.
        write_audio(path, read, SAMPLE_RATE)
        assert torch.equal(read_audio(path), read)
    assert [file.name for file in tmp_path.iterdir()] == [path.name]


def test_float_wav_is_exact_and_unclipped(tmp_path, song):
    write_audio(tmp_path / "a.wav", 4 * song, SAMPLE_RATE, subtype="FLOAT")
    assert torch.equal(read_audio(tmp_path / "a.wav"), 4 * song)


@pytest.mark.parametrize("subtype", ["PCM_16", "PCM_24"])
@pytest.mark.parametrize("ending", ["wav", "flac"])
def test_integer_formats_clip_and_never_wrap(tmp_path, ending, subtype):
    path = tmp_path / f"loud.{ending}"
    write_audio(
        path, torch.tensor([[0.5, 1.0, 1.5, 70.0, -1.0, -1.5, -70.0]]), 8000, subtype=subtype
    )
    expected = torch.tensor([[0.5, 1.0, 1.0, 1.0, -1.0, -1.0, -1.0]])
    torch.testing.assert_close(read_audio(path), expected, rtol=0, atol=2**-15)


@pytest.mark.parametrize("ending", ["wav", "flac", "ogg", "mp3"])
def test_reader_is_exact_from_any_place(tmp_path, song, ending):
    path = tmp_path / f"song.{ending}"
    write_audio(path, song, SAMPLE_RATE)
    whole = read_audio(path)
    rng = np.random.default_rng(0)
    with AudioReader(path) as reader:
        assert reader.info == audio_info(path)
        for first in [0, whole.shape[1] - 1, *rng.integers(0, whole.shape[1], 40).tolist()]:
            count = min(int(rng.integers(1, 5000)), whole.shape[1] - first)
            assert torch.equal(reader.read(first, count), whole[:, first : first + count])
        assert reader.read(5, 0).shape == (2, 0)
    assert torch.equal(read_audio(path, 1000, 10), whole[:, 1000:1010])
    assert torch.equal(read_audio(path, 0, 10), whole[:, :10])
    assert torch.equal(read_audio(path, 1000), whole[:, 1000:])
    with pytest.raises(AssertionError):
        read_audio(path, 1000, whole.shape[1])


def test_lossy_files_are_copied_in_several_blocks(tmp_path, song, monkeypatch):
    write_audio(tmp_path / "song.ogg", song, SAMPLE_RATE)
    whole = read_audio(tmp_path / "song.ogg")
    monkeypatch.setattr("bsrnn_core.audio_files.BLOCK_SAMPLES", 10_000)
    with AudioReader(tmp_path / "song.ogg") as reader:
        assert torch.equal(reader.read(0, whole.shape[1]), whole)


@pytest.mark.parametrize("ending", ["wav", "flac", "ogg", "mp3"])
def test_blocks_written_one_by_one_are_the_whole(tmp_path, song, ending):
    write_audio(tmp_path / f"whole.{ending}", song, SAMPLE_RATE)
    with AudioWriter(tmp_path / f"blocks.{ending}", SAMPLE_RATE, 2) as writer:
        for block in song.split(7919, dim=1):
            writer.write(block)
    blocks, whole = (read_audio(tmp_path / f"{name}.{ending}") for name in ("blocks", "whole"))
    assert blocks.shape == whole.shape
    # The ogg encoder's first milliseconds depend on the size of the first block.
    start = 1000 if ending == "ogg" else 0
    torch.testing.assert_close(blocks[:, start:], whole[:, start:], rtol=0, atol=1e-4)


def test_a_long_ogg_is_written_at_once(tmp_path):
    samples = torch.zeros(1, 2_500_000)
    write_audio(tmp_path / "long.ogg", samples, SAMPLE_RATE)
    assert audio_info(tmp_path / "long.ogg").num_samples == samples.shape[1]


def test_writer_is_atomic(tmp_path, song):
    path = tmp_path / "new" / "folder" / "song.wav"
    with pytest.raises(ZeroDivisionError), AudioWriter(path, SAMPLE_RATE, 2) as writer:
        writer.write(song)
        raise ZeroDivisionError
    assert list(path.parent.iterdir()) == []

    write_audio(path, song, SAMPLE_RATE)
    before = path.read_bytes()
    with pytest.raises(ZeroDivisionError), AudioWriter(path, SAMPLE_RATE, 2) as writer:
        writer.write(song[:, :100])
        assert path.read_bytes() == before
        raise ZeroDivisionError
    assert path.read_bytes() == before
    assert list(path.parent.iterdir()) == [path]


def test_writer_refuses(tmp_path, song):
    def write(name, samples=song, sample_rate=SAMPLE_RATE, subtype=None):
        write_audio(tmp_path / name, samples, sample_rate, subtype=subtype)

    with pytest.raises(BadInput, match=r"song\.xyz: cannot write this format"):
        write("song.xyz")
    with pytest.raises(BadInput, match="cannot write this format"):
        write("song")
    with pytest.raises(BadInput, match="PCM_12 is not one of PCM_16"):
        write("song.wav", subtype="PCM_12")
    with pytest.raises(BadInput, match="at 96000 Hz"):
        write("song.mp3", sample_rate=96000)
    with pytest.raises(BadInput, match="9 channels"):
        write("song.flac", samples=torch.zeros(9, 100))
    with pytest.raises(BadInput, match=r"6 channels.*use wav"):
        write("song.mp3", samples=torch.zeros(6, 100))
    # The ogg encoder itself would end the process.
    with pytest.raises(BadInput, match="256 channels"):
        write("song.ogg", samples=torch.zeros(256, 100))
    with pytest.raises(BadInput, match="at 384000 Hz"):
        write("song.ogg", sample_rate=384000)
    with pytest.raises(BadInput, match=r"2000 channels.*use fewer"):
        write("song.wav", samples=torch.zeros(2000, 100))
    with pytest.raises(BadInput, match="NaN"):
        write("song.wav", samples=torch.full((2, 10), math.nan))
    with pytest.raises(BadInput, match="no samples"):
        write("song.wav", samples=torch.zeros(2, 0))
    assert list(tmp_path.iterdir()) == []
    (tmp_path / "file").touch()
    with pytest.raises(BadInput, match="cannot write"):
        write("file/song.wav")
    with pytest.raises(BadInput, match="name too long"):
        write(252 * "x" + ".wav")
    (tmp_path / "folder.wav").mkdir()
    with pytest.raises(BadInput, match="a folder has this name"):
        write("folder.wav")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["file", "folder.wav"]
    write(251 * "x" + ".wav")


def test_what_cannot_be_written_is_known_before(tmp_path):
    check_writable(tmp_path / "a" / "song.ogg", 192_000, 8)
    check_writable("song.mp3", 44100, 2)
    for name, rate, channels, subtype in (
        ("song.mp3", 44100, 6, None),
        ("song.mp3", 96000, 2, None),
        ("song.flac", 44100, 9, None),
        ("song.ogg", 44100, 256, None),
        ("song.flac", 44100, 2, "FLOAT"),
        ("song.xyz", 44100, 2, None),
        ("song.raw", 44100, 2, "PCM_16"),
    ):
        with pytest.raises(BadInput, match=rf"{tmp_path}/{name}: "):
            check_writable(tmp_path / name, rate, channels, subtype=subtype)
    hours = 3600 * 44100
    check_writable("song.wav", 44100, 2, num_samples=6 * hours)
    check_writable("song.wav", 44100, 2, subtype="FLOAT", num_samples=3 * hours)
    with pytest.raises(BadInput, match="at most 4 GiB"):
        check_writable("song.wav", 44100, 2, subtype="FLOAT", num_samples=4 * hours)
    check_writable("song.flac", 44100, 2, num_samples=40 * hours)
    assert list(tmp_path.iterdir()) == []


def test_a_wav_that_grows_too_long_is_not_written(tmp_path, monkeypatch, song):
    monkeypatch.setattr("bsrnn_core.audio_formats.WAV_BYTES", 4 * song.shape[1])
    with AudioWriter(tmp_path / "song.wav", SAMPLE_RATE, 2) as writer:
        writer.write(song)
    before = (tmp_path / "song.wav").read_bytes()
    with (
        pytest.raises(BadInput, match="at most 4 GiB"),
        AudioWriter(tmp_path / "song.wav", SAMPLE_RATE, 2) as writer,
    ):
        writer.write(song)
        writer.write(song[:, :1])
    assert [path.read_bytes() for path in tmp_path.iterdir()] == [before]


@pytest.mark.parametrize("ending", ["wav", "flac", "ogg", "mp3"])
def test_a_full_disk_leaves_no_part_of_a_file(small_disk, song, ending):
    disk = small_disk(1)
    for kilobytes in range(0, 120, 24):
        with (disk / "filler").open("wb", buffering=0) as filler:
            with contextlib.suppress(OSError):
                while True:
                    filler.write(bytes(4096))
            filler.truncate(filler.tell() - kilobytes * 1024)
        path = disk / f"song.{ending}"
        try:
            write_audio(path, song[:, :20_000], SAMPLE_RATE)
        except BadInput as error:
            assert str(error) == f"{path}: not written, the disk is full, make room on it"
            assert [file.name for file in disk.iterdir()] == ["filler"]
        else:
            assert kilobytes > 64
            assert read_audio(path).shape == (2, 20_000)
            path.unlink()


def test_bad_files_are_refused_by_name(tmp_path, song):
    def assert_refused(path, message):
        for read in (read_audio, lambda path: AudioReader(path).read(0, 10)):
            with pytest.raises(BadInput, match=message) as caught:
                read(path)
            assert str(caught.value).startswith(str(path))

    assert_refused(tmp_path / "none.wav", "no such file")
    assert_refused(tmp_path, "no such file")
    for name, content in (("empty.wav", b""), ("text.wav", b"text" * 999), ("text.raw", b"text")):
        (tmp_path / name).write_bytes(content)
        assert_refused(tmp_path / name, "not readable as audio")
        with pytest.raises(BadInput, match="not readable"):
            audio_info(tmp_path / name)
    soundfile.write(tmp_path / "zero.wav", np.zeros((0, 2)), SAMPLE_RATE)
    assert_refused(tmp_path / "zero.wav", "holds no samples")
    for value in (math.nan, math.inf, -math.inf):
        bad = song.clone()
        bad[1, 3] = value
        soundfile.write(tmp_path / "bad.wav", bad.T.numpy(), SAMPLE_RATE, subtype="FLOAT")
        assert_refused(tmp_path / "bad.wav", "NaN or infinite")
    assert AudioReader(tmp_path / "bad.wav").read(4, 10).isfinite().all()


@pytest.mark.parametrize(
    ("ending", "message"),
    [("wav", "cut short"), ("aiff", "cut short"), ("au", "cut short"), ("flac", "damaged")],
)
def test_cut_files_are_refused(tmp_path, song, ending, message):
    path = tmp_path / f"song.{ending}"
    write_audio(path, song, SAMPLE_RATE)
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])
    with pytest.raises(BadInput, match=message):
        read_audio(path)
    with pytest.raises(BadInput, match=message), AudioReader(path) as reader:
        reader.read(0, reader.info.num_samples)


def test_a_wav_from_a_pipe_does_not_count_as_cut(tmp_path, song):
    path = tmp_path / "song.wav"
    write_audio(path, song, SAMPLE_RATE, subtype="FLOAT")
    content = path.read_bytes()
    place = content.index(b"data") + 4
    for unknown in (2**32 - 1, 2**31 - 1, 0x7FFFF000 + 36):
        path.write_bytes(content[:place] + unknown.to_bytes(4, "little") + content[place + 4 :])
        assert torch.equal(read_audio(path), song)


def test_a_cut_ogg_is_read_as_far_as_it_goes(tmp_path, song):
    path = tmp_path / "song.ogg"
    write_audio(path, song, SAMPLE_RATE)
    whole = read_audio(path)
    path.write_bytes(path.read_bytes()[: path.stat().st_size * 2 // 3])
    with AudioReader(path) as reader:
        count = reader.info.num_samples
        assert 0 < count < whole.shape[1]
        assert torch.equal(reader.read(0, count), whole[:, :count])


@pytest.mark.parametrize("ending", ["mp3", "ogg", "opus"])
@pytest.mark.parametrize("sample_rate", [8000, 44100, 48000])
def test_lossy_formats_keep_every_length(tmp_path, ending, sample_rate):
    if (ending, sample_rate) == ("opus", 44100):
        pytest.skip("opus has 8, 12, 16, 24 and 48 kHz only")
    path = tmp_path / f"song.{'ogg' if ending == 'opus' else ending}"
    for length in (1, 2, 100, 575, 576, 577, 1151, 1152, 1153, 44099, 44100, 44101):
        samples = 0.1 * torch.randn(1, length)
        subtype = "OPUS" if ending == "opus" else None
        write_audio(path, samples, sample_rate, subtype=subtype)
        # libsndfile's own reading: the test of ffmpeg's is in test_ffmpeg_audio.py.
        assert soundfile.info(path).frames == len(soundfile.read(path)[0]) == length
        if ending != "mp3" or length in (100, 1153, 44101):
            assert read_audio(path).shape == (1, length)


@pytest.mark.parametrize("to_rate", [16000, 22050, 32000, 48000])
def test_resampled_tones_are_the_tones_at_the_new_rate(to_rate):
    def tones(rate):
        time = torch.arange(rate // 2, dtype=torch.float64) / rate
        phases = 2 * math.pi * torch.tensor([440.0, 6500.0], dtype=torch.float64)[:, None] * time
        return torch.sin(phases).to(torch.float32)

    resampled = resample(tones(44100), 44100, to_rate)
    expected = tones(to_rate)
    assert resampled.shape == expected.shape
    inner = slice(200, -200)
    torch.testing.assert_close(resampled[:, inner], expected[:, inner], rtol=0, atol=2e-3)


def test_resampling_removes_what_is_above_the_new_nyquist():
    time = torch.arange(44100, dtype=torch.float64) / 44100
    resampled = resample(torch.sin(2 * math.pi * 9000 * time).float()[None], 44100, 16000)
    assert resampled[:, 200:-200].abs().max() < 1e-3


def test_resampling_lengths():
    samples = torch.randn(2, 101)
    assert resample(samples, 44100, 44100) is samples
    assert resample(samples, 44100, 22050).shape == (2, 51)
    assert resample(samples[:, :1], 44100, 48000).shape == (2, 2)
