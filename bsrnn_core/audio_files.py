"""Read and write audio files (wav, flac, ogg, mp3, m4a and others), and resample.

Samples are float32 tensors [C, N] in units of full scale. Reading refuses what cannot be trained on
or separated, naming the file; writing goes to a temporary name in the same folder and is renamed
at the end, so that a file under its own name is always whole.

A wav, flac or m4a that is shorter than it says is refused. An mp3, ogg or aac has no length to rely
on and is read as far as it goes.
"""

import contextlib
import math
import os
import re
import stat
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

from bsrnn_core.audio_formats import check_writable, format_of, refuse_long_wav
from bsrnn_core.disk import is_full, no_room, temporary_file
from bsrnn_core.errors import BadInput
from bsrnn_core.ffmpeg_audio import FFMPEG_ENDINGS, open_decoded, probe

SONG_ENDINGS = (".wav", ".flac", ".ogg", ".opus", ".aiff", ".aif", *FFMPEG_ENDINGS)
"""Endings, in lower case, of the files that are taken for songs."""
BLOCK_SAMPLES = 1 << 16
"""Samples per channel that are encoded or decoded at a time."""
UNKNOWN_FRAMES = 2**63 - 1
"""libsndfile's number of frames for a flac that was written to a pipe."""


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


def audio_info(path: str | os.PathLike[str], *, estimate: bool = False) -> AudioInfo:
    """Sample rate, channels and length of a file.

    They stand in the header, but mp3, m4a, mp4 and aac are decoded to count their samples; with
    ``estimate`` their length is what ffprobe says, often some milliseconds off, and more where the
    file states none. Raises BadInput for a file that is missing, not readable as audio, or without
    samples.
    """
    path = Path(path)
    _require_file(path)
    if estimate and path.suffix.lower() in FFMPEG_ENDINGS:
        stream = probe(path)
        if stream.seconds is not None:
            num_samples = max(1, round(stream.seconds * stream.sample_rate))
            return AudioInfo(stream.sample_rate, stream.channels, num_samples)
    with _open(path) as file:
        return _info(file)


def read_audio(path: str | os.PathLike[str], first: int = 0, count: int | None = None) -> Tensor:
    """``count`` samples from sample ``first`` on (default: all that follow), as [C, count].

    The range must lie within the file. Raises BadInput for a file that is missing, not readable as
    audio, without samples, cut short, or that holds NaN or infinite samples in the range.
    """
    if first == 0:
        # From the start nothing has to be sought, so an ogg needs no copy.
        with _open(Path(path)) as file:
            wanted = file.frames if count is None else count
            assert 0 <= wanted <= file.frames, (path, wanted, file.frames)
            return _tensor(_decode(file, Path(path), wanted))
    with AudioReader(path) as reader:
        return reader.read(first, reader.info.num_samples - first if count is None else count)


class AudioReader:
    """Reads any range of a file without holding the rest in memory: a context manager.

    Lossy files are decoded once, from start to end, into a temporary file that is read instead:
    mp3, m4a, mp4 and aac by ffmpeg, and ogg because seeking in it does not land on the exact
    sample in libsndfile. ``info`` is exact.

    Raises BadInput as ``read_audio`` does; for lossy files already on opening.
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
            try:
                self._file.seek(first)
            except soundfile.SoundFileError as error:
                raise _damaged(self.path, error) from error
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
        spool = temporary_file(self.path)
        try:
            for first in range(0, self.info.num_samples, BLOCK_SAMPLES):
                count = min(BLOCK_SAMPLES, self.info.num_samples - first)
                spool.write(_decode(self._file, self.path, count).tobytes())
            spool.flush()
        except OSError as error:
            spool.close()
            raise no_room(self.path, error) from error
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
        check_writable(path, sample_rate, channels, subtype=subtype)
        self.path = Path(path)
        self.channels = channels
        # Shortened, so that a name may be as long as the file system has them.
        self._temporary = self.path.with_name(f"{self.path.name[:40]}.tmp.{uuid.uuid4().hex}")
        try:
            self.path.parent.mkdir(parents=True, exist_ok=True)
            with contextlib.suppress(FileNotFoundError):
                if stat.S_ISDIR(self.path.stat().st_mode):
                    raise IsADirectoryError("a folder has this name")
            self._temporary.touch()
        except OSError as error:
            raise BadInput(f"{self.path}: cannot write there ({error})") from error
        try:
            self._file = soundfile.SoundFile(
                self._temporary, "w", sample_rate, channels, subtype, format=format_of(self.path)
            )
        except soundfile.SoundFileError as error:
            self._temporary.unlink()
            raise self._failed(error) from error

    def write(self, samples: Tensor) -> None:
        """Append ``samples`` [C, n]."""
        assert samples.ndim == 2 and samples.shape[0] == self.channels, samples.shape
        if not samples.isfinite().all():
            raise BadInput(f"{self.path}: not written, the samples hold NaN or infinite values")
        refuse_long_wav(
            self.path, self.channels, self._file.frames + samples.shape[1], self._file.subtype
        )
        # libsndfile's ogg encoder overflows the stack when it is given a minute at once.
        for block in samples.detach().to("cpu", torch.float32).split(BLOCK_SAMPLES, dim=1):
            try:
                self._file.write(block.T.numpy())
            except soundfile.SoundFileError as error:
                raise self._failed(error) from error

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
                # The encoders write their last bytes on closing, and keep to themselves whether
                # there was room for them.
                if (
                    is_full(self.path.parent)
                    or soundfile.info(self._temporary).frames != num_samples
                ):
                    raise self._failed("the end is missing")
                os.replace(self._temporary, self.path)
        except (soundfile.SoundFileError, OSError) as failure:
            raise self._failed(failure) from failure
        finally:
            self._temporary.unlink(missing_ok=True)

    def _failed(self, error: object) -> BadInput:
        # libsndfile does not say why it could not write.
        reason = "the disk is full, make room on it" if is_full(self.path.parent) else str(error)
        return BadInput(f"{self.path}: not written, {reason}")


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


def _require_file(path: Path) -> None:
    if not path.is_file():
        raise BadInput(f"{path}: there is no such file")


def _open(path: Path) -> soundfile.SoundFile:
    """Open for reading. Raises BadInput when that fails, there are no samples, or some miss."""
    _require_file(path)
    by_ffmpeg = path.suffix.lower() in FFMPEG_ENDINGS
    file = open_decoded(path) if by_ffmpeg else _open_by_libsndfile(path)
    if file.frames == 0:
        file.close()
        raise BadInput(f"{path}: holds no samples; replace it or leave it out")
    return file


def _open_by_libsndfile(path: Path) -> soundfile.SoundFile:
    try:
        file = soundfile.SoundFile(path)
    except (soundfile.SoundFileError, TypeError) as error:
        raise BadInput(
            f"{path}: not readable as audio; convert it to wav, flac, ogg or mp3"
        ) from error
    if file.frames == UNKNOWN_FRAMES:
        file.close()
        return open_decoded(path)
    if _is_cut(file):
        file.close()
        raise BadInput(
            f"{path}: is cut short, {file.frames} samples are left of it; replace it or leave it "
            "out"
        )
    return file


def _is_cut(file: soundfile.SoundFile) -> bool:
    """Whether the samples of a wav, aiff or au end before their header says.

    libsndfile then shortens them without a word but in its log.
    """
    found = re.findall(r"(?:data|SSND|Data Size)\s*: (\d+) \(should be (\d+)\)", file.extra_info)
    # Who writes to a pipe does not know the length, and writes the largest there is.
    unknown = (range(2**31 - 2**12, 2**31), range(2**32 - 2**12, 2**32))
    return any(
        int(stated) > int(there) and not any(int(stated) in values for values in unknown)
        for stated, there in found
    )


def _info(file: soundfile.SoundFile) -> AudioInfo:
    return AudioInfo(file.samplerate, file.channels, file.frames)


def _decode(file: soundfile.SoundFile, path: Path, count: int) -> np.ndarray:
    """The next ``count`` samples, float32 [count, C]. Raises BadInput when they are not sound."""
    try:
        samples = file.read(count, dtype="float32", always_2d=True)
    except MemoryError as error:
        raise BadInput(f"{path}: {count} samples of it do not fit into memory") from error
    except soundfile.SoundFileError as error:
        raise _damaged(path, error) from error
    if len(samples) < count:
        raise BadInput(
            f"{path}: is cut short, its header promises {file.frames} samples; replace it or "
            "leave it out"
        )
    if not np.isfinite(samples).all():
        raise BadInput(f"{path}: holds NaN or infinite samples; repair it or leave it out")
    return samples


def _damaged(path: Path, error: soundfile.SoundFileError) -> BadInput:
    reason = str(error).strip() or "its parts do not fit together"
    return BadInput(f"{path}: is damaged ({reason}); replace it or leave it out")


def _tensor(samples: np.ndarray) -> Tensor:
    """From [N, C] to a contiguous tensor [C, N]."""
    return torch.from_numpy(np.array(samples.T, order="C"))
