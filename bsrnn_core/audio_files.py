"""Read and write audio files (wav, flac, ogg, mp3 and what else libsndfile knows), and resample.

Samples are float32 tensors [C, N] in units of full scale. Reading refuses what cannot be trained on
or separated, naming the file; writing goes to a temporary name in the same folder and is renamed
at the end, so that a file under its own name is always whole.
"""

import math
import os
import tempfile
import uuid
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import IO, Self

import numpy as np
import soundfile
import torch
import torchaudio
from torch import Tensor

from bsrnn_core.errors import BadInput

BLOCK_SAMPLES = 1 << 16
"""Samples per channel that are encoded or decoded at a time."""


@dataclass(frozen=True, slots=True)
class AudioInfo:
    """What the header of an audio file says."""

    sample_rate: int
    channels: int
    num_samples: int
    """Samples per channel."""

    @property
    def seconds(self) -> float:
        """Duration."""
        return self.num_samples / self.sample_rate


def audio_info(path: str | os.PathLike[str]) -> AudioInfo:
    """Sample rate, channels and length of a file, from its header.

    Raises BadInput for a file that is missing, not readable as audio, or without samples.
    """
    with _open(Path(path)) as file:
        return _info(file)


def read_audio(path: str | os.PathLike[str], first: int = 0, count: int | None = None) -> Tensor:
    """``count`` samples from sample ``first`` on (default: all that follow), as [C, count].

    The range must lie within the file. Raises BadInput for a file that is missing, not readable as
    audio, without samples, cut short, or that holds NaN or infinite samples in the range.
    """
    if first == 0:
        # From the start nothing has to be sought, so lossy files need no copy.
        with _open(Path(path)) as file:
            wanted = file.frames if count is None else count
            assert 0 <= wanted <= file.frames, (path, wanted, file.frames)
            return _tensor(_decode(file, Path(path), wanted))
    with AudioReader(path) as reader:
        return reader.read(first, reader.info.num_samples - first if count is None else count)


class AudioReader:
    """Reads any range of a file without holding the rest in memory: a context manager.

    Seeking in ogg and mp3 does not land on the exact sample in libsndfile, so these are decoded
    once, from start to end, into a temporary file that is read instead.

    Raises BadInput as ``read_audio`` does; for ogg and mp3 already on opening.
    """

    def __init__(self, path: str | os.PathLike[str]) -> None:
        self.path = Path(path)
        self._file = _open(self.path)
        self._spool: IO[bytes] | None = None
        self.info = _info(self._file)
        exact = self._file.subtype.startswith("PCM_") or self._file.subtype in ("FLOAT", "DOUBLE")
        if not exact:
            try:
                self._spool = self._copy_decoded()
            except BaseException:
                self._file.close()
                raise

    def read(self, first: int, count: int) -> Tensor:
        """The samples ``first`` .. ``first + count`` - 1 of every channel: [C, count]."""
        assert first >= 0 and 0 <= count <= self.info.num_samples - first, (first, count, self.info)
        if self._spool is None:
            self._file.seek(first)
            return _tensor(_decode(self._file, self.path, count))
        frame_bytes = 4 * self.info.channels
        self._spool.seek(first * frame_bytes)
        samples = np.frombuffer(self._spool.read(count * frame_bytes), np.float32)
        return _tensor(samples.reshape(count, self.info.channels))

    def close(self) -> None:
        """Close the file, and remove the copy if there is one."""
        self._file.close()
        if self._spool is not None:
            self._spool.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def _copy_decoded(self) -> IO[bytes]:
        spool = tempfile.TemporaryFile()  # noqa: SIM115 - closed by close()
        try:
            for first in range(0, self.info.num_samples, BLOCK_SAMPLES):
                count = min(BLOCK_SAMPLES, self.info.num_samples - first)
                spool.write(_decode(self._file, self.path, count).tobytes())
        except BaseException:
            spool.close()
            raise
        return spool


def write_audio(
    path: str | os.PathLike[str], samples: Tensor, sample_rate: int, *, subtype: str | None = None
) -> None:
    """Write ``samples`` [C, N] at once; arguments and errors are those of ``AudioWriter``."""
    with AudioWriter(path, sample_rate, samples.shape[0], subtype=subtype) as writer:
        writer.write(samples)


class AudioWriter:
    """Writes a file block by block: a context manager.

    The file appears under its name when the block ends without an error; after an error nothing is
    left and a file that was there before is untouched. The ending of ``path`` names the format;
    ``subtype`` is libsndfile's name of the sample format (default: PCM_16 for wav and flac, the
    usual codec for ogg and mp3). Integer formats clip what exceeds full scale. Missing folders are
    made.

    Raises BadInput for an unknown ending or sample format, a sample rate or number of channels
    that the format does not have, NaN or infinite samples, a place that cannot be written to, or
    when the block ends without samples.
    """

    def __init__(
        self,
        path: str | os.PathLike[str],
        sample_rate: int,
        channels: int,
        *,
        subtype: str | None = None,
    ) -> None:
        self.path = Path(path)
        self.channels = channels
        audio_format = self.path.suffix[1:].upper()
        if audio_format == "RAW" or audio_format not in soundfile.available_formats():
            raise BadInput(f"{self.path}: cannot write this format; use wav, flac, ogg or mp3")
        if not soundfile.check_format(audio_format, subtype):
            known = ", ".join(soundfile.available_subtypes(audio_format))
            raise BadInput(f"{self.path}: sample format {subtype} is not one of {known}")
        self._temporary = self.path.with_name(f"{self.path.name}.tmp.{uuid.uuid4().hex}")
        try:
            self.path.parent.mkdir(parents=True, exist_ok=True)
            self._temporary.touch()
        except OSError as error:
            raise BadInput(f"{self.path}: cannot write there ({error})") from error
        try:
            self._file = soundfile.SoundFile(
                self._temporary, "w", sample_rate, channels, subtype, format=audio_format
            )
        except soundfile.SoundFileError as error:
            self._temporary.unlink()
            raise BadInput(
                f"{self.path}: this format cannot hold {channels} channels at {sample_rate} Hz; "
                "use wav"
            ) from error

    def write(self, samples: Tensor) -> None:
        """Append ``samples`` [C, n]."""
        assert samples.ndim == 2 and samples.shape[0] == self.channels, samples.shape
        if not samples.isfinite().all():
            raise BadInput(f"{self.path}: not written, the samples hold NaN or infinite values")
        # libsndfile's ogg encoder overflows the stack when it is given a minute at once.
        for block in samples.detach().to("cpu", torch.float32).split(BLOCK_SAMPLES, dim=1):
            self._file.write(block.T.numpy())

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        try:
            num_samples = self._file.frames
            self._file.close()
            if kind is None:
                if num_samples == 0:
                    raise BadInput(f"{self.path}: not written, there are no samples")
                os.replace(self._temporary, self.path)
        finally:
            self._temporary.unlink(missing_ok=True)


def resample(samples: Tensor, from_rate: int, to_rate: int) -> Tensor:
    """``samples`` [..., N] at ``to_rate``: [..., ceil(N * to_rate / from_rate)].

    A windowed sinc of 64 zero crossings; the same tensor when the rates are equal.
    """
    assert from_rate > 0 and to_rate > 0, (from_rate, to_rate)
    if from_rate == to_rate:
        return samples
    resampled = torchaudio.functional.resample(samples, from_rate, to_rate, lowpass_filter_width=64)
    assert resampled.shape[-1] == math.ceil(samples.shape[-1] * to_rate / from_rate)
    return resampled


def _open(path: Path) -> soundfile.SoundFile:
    """Open for reading. Raises BadInput when that fails or there are no samples."""
    if not path.is_file():
        raise BadInput(f"{path}: there is no such file")
    try:
        file = soundfile.SoundFile(path)
    except (soundfile.SoundFileError, TypeError) as error:
        raise BadInput(
            f"{path}: not readable as audio; convert it to wav, flac, ogg or mp3"
        ) from error
    if file.frames == 0:
        file.close()
        raise BadInput(f"{path}: holds no samples; replace it or leave it out")
    return file


def _info(file: soundfile.SoundFile) -> AudioInfo:
    return AudioInfo(file.samplerate, file.channels, file.frames)


def _decode(file: soundfile.SoundFile, path: Path, count: int) -> np.ndarray:
    """The next ``count`` samples, float32 [count, C]. Raises BadInput when they are not sound."""
    try:
        samples = file.read(count, dtype="float32", always_2d=True)
    except soundfile.SoundFileError as error:
        raise BadInput(f"{path}: is damaged ({error}); replace it or leave it out") from error
    if len(samples) < count:
        raise BadInput(
            f"{path}: is cut short, its header promises {file.frames} samples; replace it or "
            "leave it out"
        )
    if not np.isfinite(samples).all():
        raise BadInput(f"{path}: holds NaN or infinite samples; repair it or leave it out")
    return samples


def _tensor(samples: np.ndarray) -> Tensor:
    """From [N, C] to a contiguous tensor [C, N]."""
    return torch.from_numpy(np.array(samples.T, order="C"))
