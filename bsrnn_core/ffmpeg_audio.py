"""Decode mp3, m4a, mp4 and aac with the program ffmpeg: the first audio stream, in float32.

libsndfile reads mp3 too, but believes what is written about the length, or guesses it from the
first frames: it leaves out half of a variable bit rate file without a header, and of two files that
were joined. ffmpeg reads to the end.
"""

import json
import math
import os
import subprocess
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import IO

import soundfile

from bsrnn_core.disk import is_full, no_room, temporary_file
from bsrnn_core.errors import BadInput

FFMPEG_ENDINGS = (".mp3", ".m4a", ".mp4", ".aac")

READ_OPTIONS = (
    # What a file says it is counts for nothing: a playlist could have other files opened, and URLs.
    *("-format_whitelist", "mp3,mov,aac,flac"),
    *("-protocol_whitelist", "file"),
)
CONTAINERS = ("mov", "flac")
"""Formats (ffmpeg's names) that state their length, so that it shows when they are cut."""
MISSING_SECONDS = 0.25
"""So much less than stated is nothing missing: lengths are rounded, and a codec has its delay."""
MESSAGE_BYTES = 2000
"""So much of the end of ffmpeg's complaints is looked at."""


@dataclass(frozen=True, slots=True)
class StreamInfo:
    """What ffprobe says of the first audio stream of a file."""

    sample_rate: int
    channels: int
    seconds: float | None
    """As stated in the file, or estimated from its bit rate; None where neither can be."""
    states_length: bool


def probe(path: Path) -> StreamInfo:
    """Rate, channels and duration, from the header or estimated; nothing is decoded.

    Raises BadInput when ffprobe is not installed, cannot read the file or finds no audio in it.
    """
    entries = "stream=sample_rate,channels,duration:format=duration,format_name"
    with temporary_file(path) as answer:
        _run(
            path,
            ["ffprobe", "-v", "error", *READ_OPTIONS, "-of", "json", "-select_streams", "a:0"],
            ["-show_entries", entries],
            answer,
        )
        answer.seek(0)
        said = json.load(answer)
    if not said.get("streams"):
        raise BadInput(f"{path}: holds no audio; replace it or leave it out")
    stream, container = said["streams"][0], said.get("format", {})
    seconds = [float(text) for text in (stream.get("duration"), container.get("duration")) if text]
    info = StreamInfo(
        int(stream.get("sample_rate", 0)),
        int(stream.get("channels", 0)),
        seconds[0] if seconds and 0 < seconds[0] < math.inf else None,
        container.get("format_name", "").split(",")[0] in CONTAINERS,
    )
    if info.sample_rate <= 0 or info.channels <= 0:
        raise BadInput(f"{path}: not readable as audio, it states no sample rate or no channels")
    return info


def _decode(path: Path) -> IO[bytes]:
    """The whole first audio stream as an AU file of float32, unnamed, in the temporary folder."""
    decoded = temporary_file(path)
    try:
        _run(
            path,
            ["ffmpeg", "-nostdin", "-v", "error", *READ_OPTIONS],
            ["-map", "0:a:0", "-c:a", "pcm_f32be", "-f", "au", "pipe:1"],
            decoded,
        )
        decoded.seek(0)
    except BaseException:
        decoded.close()
        raise
    return decoded


def open_decoded(path: Path) -> soundfile.SoundFile:
    """The samples that ffmpeg decodes from a file: float32, exact to seek in, in a temporary file.

    Raises BadInput as ``probe`` does; when the file cannot be decoded, when less comes of it than
    it states, and when the temporary folder has no room.
    """
    stream = probe(path)
    with _decode(path) as decoded:
        try:
            # The duplicate keeps the file without a name until it is closed.
            file = soundfile.SoundFile(os.dup(decoded.fileno()))
        except soundfile.SoundFileError as error:
            raise BadInput(f"{path}: holds no samples; replace it or leave it out") from error
    seconds = file.frames / file.samplerate
    if stream.states_length and seconds < (stream.seconds or 0) - MISSING_SECONDS:
        file.close()
        raise BadInput(
            f"{path}: is cut short or damaged, {seconds:.1f} of {stream.seconds:.1f} seconds can "
            "be read; replace it or leave it out"
        )
    return file


def _run(path: Path, program: Sequence[str], options: Sequence[str], output: IO[bytes]) -> None:
    """Let ffmpeg or ffprobe read ``path`` and write to ``output``."""
    # As an absolute path behind "file:" a name is never taken for an option or an address.
    source = ["-i", f"file:{path.absolute()}"]
    with temporary_file(path) as complaints:
        try:
            done = subprocess.run(
                [*program, *source, *options],
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=complaints,
                check=False,
            )
        except FileNotFoundError as error:
            raise BadInput(
                f"{path}: cannot be read without the programs ffmpeg and ffprobe: install ffmpeg, "
                "or convert the file to wav, flac or ogg"
            ) from error
        complaints.seek(max(0, complaints.seek(0, os.SEEK_END) - MESSAGE_BYTES))
        said = complaints.read().decode(errors="replace").strip().splitlines()
    if done.returncode == 0:
        return
    # ffmpeg does not always say so.
    if is_full(tempfile.gettempdir()):
        raise no_room(path, f"{tempfile.gettempdir()} is full")
    reason = said[-1].removeprefix(f"file:{path.absolute()}: ") if said else "no reason is given"
    raise BadInput(f"{path}: not readable as audio ({reason}); replace it or leave it out")
