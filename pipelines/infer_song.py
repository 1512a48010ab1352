"""One song -> its files, block by block; either all of them or none."""

import contextlib
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import IO

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor

from bsrnn_core.audio_files import AudioInfo, AudioReader, AudioWriter
from bsrnn_core.disk import no_room, temporary_file
from bsrnn_core.model import BSRNN
from bsrnn_core.separation import separate_blocks
from pipelines.infer_plan import INSTRUMENTAL, VOCALS, InferConfig, SongJob

ShowProgress = Callable[[int, AudioInfo], None]
"""Told how many samples are done, and of what."""


@dataclass(frozen=True, kw_only=True, slots=True)
class SongReport:
    """What came of a song."""

    seconds: float
    sample_rate: int
    channels: int
    wall_seconds: float
    exceeding: int
    """Samples of all files that were clamped to full scale, or exceed it in a float file."""
    gain: float
    """What all files were multiplied by: less than 1 where they were rescaled."""


def separate_song(
    model: BSRNN, job: SongJob, config: InferConfig, show: ShowProgress | None = None
) -> SongReport:
    """Write each output of a song to its file.

    Raises BadInput when the song cannot be read or a file cannot be written; what was not there
    before is not there after it.
    """
    started = time.perf_counter()
    new = [file for file in job.files.values() if not file.exists()]
    try:
        with AudioReader(job.song) as reader:
            info = reader.info
            blocks = _outputs(model, reader, tuple(job.files), config)
            if show is not None:
                blocks = _shown(blocks, info, show)
            gain = 1.0
            with contextlib.ExitStack() as stack:
                if config.clip == "rescale" and config.ends_at_full_scale:
                    spool = stack.enter_context(temporary_file(job.song))
                    blocks, gain = _rescaled(blocks, job, spool)
                exceeding = _write(blocks, job, info, config)
    except BaseException:
        # The files get their names one after the other: one may have, and another not.
        for file in new:
            with contextlib.suppress(OSError):
                file.unlink()
        raise
    return SongReport(
        seconds=info.seconds,
        sample_rate=info.sample_rate,
        channels=info.channels,
        wall_seconds=time.perf_counter() - started,
        exceeding=exceeding,
        gain=gain,
    )


def _outputs(
    model: BSRNN, reader: AudioReader, outputs: Sequence[str], config: InferConfig
) -> Iterator[Float[Tensor, "O C n"]]:
    """Consecutive runs of what is written, in the order of ``outputs``."""
    info = reader.info
    place = {stem: k for k, stem in enumerate(model.stems)}
    stems = [output for output in outputs if output in place]
    chosen = torch.tensor([place[stem] for stem in stems], dtype=torch.long)
    rest = [name for name in outputs if name not in place]
    done = 0
    for estimates in separate_blocks(
        model, reader.read, info.num_samples, info.sample_rate, config.separation
    ):
        count = estimates.shape[-1]
        written = estimates[chosen]
        if rest:
            mixture = reader.read(done, count)
            taken = [
                estimates[place[VOCALS]] if name == INSTRUMENTAL else written.sum(0)
                for name in rest
            ]
            written = torch.cat([written, mixture - torch.stack(taken)])
        yield written
        done += count
    assert done == info.num_samples, (done, info)


def _shown(blocks: Iterator[Tensor], info: AudioInfo, show: ShowProgress) -> Iterator[Tensor]:
    done = 0
    for block in blocks:
        yield block
        done += block.shape[-1]
        show(done, info)


def _write(blocks: Iterator[Tensor], job: SongJob, info: AudioInfo, config: InferConfig) -> int:
    """Write the blocks; returns how many samples exceed full scale."""
    exceeding = 0
    with contextlib.ExitStack() as stack:
        writers = [
            stack.enter_context(
                AudioWriter(file, info.sample_rate, info.channels, subtype=config.written_subtype)
            )
            for file in job.files.values()
        ]
        for block in blocks:
            exceeding += int((block.abs() > 1).sum())
            # libsndfile's own encoders of ogg and mp3 do not clamp.
            bounded = block.clamp(-1, 1) if config.ends_at_full_scale else block
            for writer, samples in zip(writers, bounded, strict=True):
                writer.write(samples)
    return exceeding


def _rescaled(
    blocks: Iterator[Tensor], job: SongJob, spool: IO[bytes]
) -> tuple[Iterator[Tensor], float]:
    """The blocks, all multiplied by the gain that brings the loudest sample to full scale where it
    exceeds it; and the gain, known at the end only: so they wait in ``spool``."""
    peak, shapes = 1.0, []
    for block in blocks:
        peak = max(peak, block.abs().max().item())
        shapes.append(block.shape)
        try:
            spool.write(block.contiguous().numpy().tobytes())
            spool.flush()
        except OSError as error:
            raise no_room(job.song, error) from error
    spool.seek(0)

    def again() -> Iterator[Tensor]:
        for shape in shapes:
            samples = np.frombuffer(spool.read(4 * shape.numel()), np.float32).reshape(shape)
            yield torch.from_numpy(samples / np.float32(peak))

    return again(), 1 / peak
