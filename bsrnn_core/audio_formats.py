"""What a file of some format can hold: asked before anything is separated or written."""

import io
import os
from pathlib import Path

import soundfile

from bsrnn_core.errors import BadInput

OGG_CHANNELS, OGG_SAMPLE_RATE = 255, 200_000
"""Beyond these libsndfile's ogg encoder does not refuse, it takes the process down."""
WAV_BYTES = 2**32 - 2**16
"""A wav counts its bytes in 32 bits; some are left for its header."""


def check_writable(
    path: str | os.PathLike[str],
    sample_rate: int,
    channels: int,
    *,
    subtype: str | None = None,
    num_samples: int = 0,
) -> None:
    """Whether ``AudioWriter`` can put so much sound into a file of this ending; no file is made.

    Raises BadInput for an unknown ending or sample format, a sample rate or number of channels
    that the format does not have, and for more samples (per channel) than a wav can count.
    """
    path, audio_format = Path(path), format_of(Path(path))
    if audio_format == "RAW" or audio_format not in soundfile.available_formats():
        raise BadInput(f"{path}: cannot write this format; use wav, flac, ogg or mp3")
    if not soundfile.check_format(audio_format, subtype):
        known = ", ".join(soundfile.available_subtypes(audio_format))
        raise BadInput(f"{path}: sample format {subtype} is not one of {known}")
    crashes = channels > OGG_CHANNELS or sample_rate > OGG_SAMPLE_RATE
    try:
        if audio_format == "OGG" and crashes:
            raise soundfile.SoundFileRuntimeError("beyond the encoder")
        soundfile.SoundFile(
            io.BytesIO(), "w", sample_rate, channels, subtype, format=audio_format
        ).close()
    except soundfile.SoundFileError as error:
        other = "wav" if audio_format != "WAV" else "fewer"
        raise BadInput(
            f"{path}: this format cannot hold {channels} channels at {sample_rate} Hz; use {other}"
        ) from error
    refuse_long_wav(path, channels, num_samples, subtype)


def format_of(path: Path) -> str:
    """libsndfile's name of the format that the ending stands for."""
    return path.suffix[1:].upper()


def refuse_long_wav(path: Path, channels: int, num_samples: int, subtype: str | None) -> None:
    """Raises BadInput for a wav of more samples (per channel) than it can count."""
    bytes_per_sample = {"PCM_24": 3, "PCM_32": 4, "FLOAT": 4, "DOUBLE": 8}.get(subtype or "", 2)
    if format_of(path) == "WAV" and num_samples * channels * bytes_per_sample > WAV_BYTES:
        raise BadInput(f"{path}: a wav holds at most 4 GiB and this would be more; use flac")
