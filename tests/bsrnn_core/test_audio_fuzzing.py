"""Whatever bytes a file holds: sound samples or a sentence, in bounded time and memory."""

import shutil
import tempfile
from functools import cache
from pathlib import Path

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from bsrnn_core.audio_files import AudioReader, audio_info, read_audio, write_audio
from bsrnn_core.errors import BadInput

MOST_SAMPLES = 100_000
"""A header may promise more; a song is read in parts."""


@cache
def sound_file(ending: str) -> bytes:
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / f"a.{ending}"
        write_audio(path, 0.1 * torch.randn(2, 3000), 44100)
        return path.read_bytes()


def assert_sound_or_refused(content: bytes, ending: str) -> None:
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / f"a.{ending}"
        path.write_bytes(content)
        try:
            info = audio_info(path)
            assert min(info.sample_rate, info.channels, info.num_samples) > 0
            with AudioReader(path) as reader:
                assert reader.info == info
                count = min(info.num_samples, MOST_SAMPLES)
                for first in (0, info.num_samples - count):
                    samples = reader.read(first, count)
                    assert samples.shape == (info.channels, count)
                    assert samples.isfinite().all()
            if info.num_samples <= MOST_SAMPLES:
                assert read_audio(path).shape == (info.channels, info.num_samples)
        except BadInput as error:
            assert str(error).startswith(f"{path}: ")


@st.composite
def changed(draw: st.DrawFn, ending: str) -> bytes:
    """A sound file with some bytes changed, most of them in its header, and perhaps cut."""
    content = bytearray(sound_file(ending))
    places = st.integers(0, 60) | st.integers(0, len(content) - 1)
    for _ in range(draw(st.integers(1, 6))):
        content[draw(places)] = draw(st.integers(0, 255) | st.sampled_from([0, 127, 128, 255]))
    return bytes(content[: draw(st.just(len(content)) | places)])


@pytest.mark.parametrize("ending", ["wav", "flac", "ogg", "aiff"])
def test_a_changed_file_is_sound_or_refused(ending: str) -> None:
    @settings(max_examples=60, deadline=None)
    @given(changed(ending))
    def check(content: bytes) -> None:
        assert_sound_or_refused(content, ending)

    check()


@settings(max_examples=60, deadline=None)
@given(st.binary(max_size=300), st.sampled_from([b"", b"RIFF", b"fLaC", b"OggS", b"FORM", b".snd"]))
def test_any_bytes_are_sound_or_refused(content: bytes, start: bytes) -> None:
    assert_sound_or_refused(start + content, "wav")


@pytest.mark.skipif(shutil.which("ffmpeg") is None, reason="ffmpeg is not installed")
@settings(max_examples=6, deadline=None)
@given(changed("mp3") | st.binary(max_size=300).map(lambda content: b"\0\0\0\x18ftyp" + content))
def test_what_ffmpeg_is_given_is_sound_or_refused(content: bytes) -> None:
    assert_sound_or_refused(content, "mp3")


@pytest.mark.parametrize("promised", [2**36 - 1, 2**32])
def test_a_header_that_promises_more_than_memory_holds(tmp_path: Path, promised: int) -> None:
    content = bytearray(sound_file("flac"))
    # The 36 bits of STREAMINFO that count the samples.
    content[21] = (content[21] & 0xF0) | promised >> 32
    content[22:26] = (promised % 2**32).to_bytes(4, "big")
    path = tmp_path / "a.flac"
    path.write_bytes(content)
    if promised % 2**32:
        assert audio_info(path).num_samples == promised
    with pytest.raises(BadInput, match=r"a\.flac: "):
        read_audio(path)
