"""Track -> normalised STFT chunks: consecutive runs of frames of the whole track's STFT."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from jaxtyping import Complex, Float
from torch import Tensor

from bsrnn_core.config import StftConfig
from bsrnn_core.normalization import spectrum_statistics, track_gain
from bsrnn_core.stft import reflect_pad, stft_frames
from data_prep.config import PrepConfig

SUB_CHUNKS = 10
"""Parts of a chunk that are judged active or not.

The BSRNN paper (arXiv 2209.15174) cuts its 6 s segments in 10. A stored chunk stands where its
segment stands, so it is cut in 10 as well, whatever its length: the paper's rule "more than half
of the parts" keeps its meaning, and no part crosses the edge of a chunk.
"""
ACTIVITY_QUANTILE = 0.15
ACTIVITY_FLOOR = 1e-3 / (0.6 * 44100)
"""The paper's least energy, 1e-3 for 0.6 s at 44.1 kHz, as power (energy per sample), so that
parts of any length and rate are held to the same level. Samples count at the track's gain."""
LARGEST_STORED = 2.0**15
"""Bound on the stored numbers, half of float16's range. Stems that cancel in the mixture would
pass it when divided by the mixture's std; there the std of the chunk is raised instead."""


@dataclass(frozen=True, slots=True)
class Chunk:
    """A run of frames of all stems of a track."""

    index: int
    first_sample: int
    """Centre of the first frame, in samples of the track."""
    valid_samples: int
    """Samples of the track between this chunk's first frame and the next chunk's (0 is possible:
    the last chunk may hold nothing but the track's last frame)."""
    num_frames: int
    """Frames that belong to the track; those after them are zero (in the last chunk only)."""
    gain: float
    """Factor of the whole track, already applied."""
    mean: complex
    """Mean of the mixture's STFT over channels, bins and frames, at the track's gain."""
    std: float
    """What the STFT was divided by: the mixture's std, or more (see LARGEST_STORED)."""
    activity: tuple[float, ...]
    """Per stem, the fraction of the chunk's parts in which the stem sounds."""
    stft: Complex[Tensor, "S C F T"]
    """complex64, divided by std."""


def track_chunks(references: Float[Tensor, "S C N"], config: PrepConfig) -> Iterator[Chunk]:
    """The chunks of a track, ``config.chunk_frames`` frames each, the last one filled with zeros.

    One gain for the track brings the mixture (the stems' sum) to the configured RMS, held below the
    configured peak. Nothing but the current chunk's frames is held besides the waveform.
    """
    mixture = references.sum(0)
    gain = track_gain(mixture, config.chunk.target_rms, config.chunk.peak)
    del mixture
    stft, step = config.stft, config.chunk_frames * config.stft.hop
    num_samples = references.shape[-1]
    num_frames = stft.num_frames(num_samples)
    active = track_activity(references, gain, step)
    padded = _padded_parts(references, stft)
    for index, first_frame in enumerate(range(0, num_frames, config.chunk_frames)):
        frames = min(config.chunk_frames, num_frames - first_frame)
        first_sample = first_frame * stft.hop
        run = _slice_of_parts(
            padded, first_sample, first_sample + (frames - 1) * stft.hop + stft.n_fft
        )
        spectrogram = stft_frames(run * gain, stft)
        mean, std = spectrum_statistics(spectrogram.sum(0))
        largest = torch.view_as_real(spectrogram).abs().amax().item()
        scale = max(std.item(), largest / LARGEST_STORED)
        yield Chunk(
            index=index,
            first_sample=first_sample,
            valid_samples=max(0, min(step, num_samples - first_sample)),
            num_frames=frames,
            gain=gain,
            mean=mean.item(),
            std=scale,
            activity=tuple(active[index]) if index < len(active) else (0.0,) * len(references),
            stft=torch.nn.functional.pad(spectrogram / scale, (0, config.chunk_frames - frames)),
        )


def track_activity(
    references: Float[Tensor, "S C N"], gain: float, chunk_samples: int
) -> list[list[float]]:
    """Per chunk of ``chunk_samples`` and stem, the fraction of its parts in which the stem sounds.

    A part sounds when its power (sum over channels, mean over samples) exceeds ACTIVITY_FLOOR and
    is not below the 15 % quantile of the stem's parts over the whole track: the source-activity
    detection of the BSRNN paper (arXiv 2209.15174). A stem of steady level sounds throughout.
    """
    edges = np.unique(np.linspace(0, chunk_samples, SUB_CHUNKS + 1).astype(int))[:-1]
    powers = []
    for first in range(0, references.shape[-1], chunk_samples):
        squares = references[..., first : first + chunk_samples].square().sum(1).numpy()
        starts = edges[edges < squares.shape[-1]]
        counts = np.diff(starts, append=squares.shape[-1])
        powers.append(gain**2 * np.add.reduceat(squares, starts, axis=-1) / counts)
    quantile = np.quantile(np.concatenate(powers, axis=-1), ACTIVITY_QUANTILE, axis=-1)
    return [
        ((power >= quantile[:, None]) & (power > ACTIVITY_FLOOR)).mean(axis=-1).tolist()
        for power in powers
    ]


def _padded_parts(
    references: Float[Tensor, "S C N"], stft: StftConfig
) -> tuple[Tensor, Tensor, Tensor]:
    """Head, body and tail whose concatenation is the reflect-padded track; the body is a view.

    The paddings are shorter than n_fft samples, so they mirror none but the outermost n_fft.
    """
    half, length = stft.n_fft // 2, references.shape[-1]
    right = half + (stft.num_frames(length) - 1) * stft.hop - length
    head = reflect_pad(references[..., : stft.n_fft], half, 0)[..., :half]
    tail = reflect_pad(references[..., -stft.n_fft :], 0, right)[..., -right:]
    return head, references, tail


def _slice_of_parts(parts: Sequence[Tensor], first: int, last: int) -> Tensor:
    """``torch.cat(parts, -1)[..., first:last]`` without building the whole."""
    pieces, offset = [], 0
    for part in parts:
        start, stop = max(first - offset, 0), min(last - offset, part.shape[-1])
        if start < stop:
            pieces.append(part[..., start:stop])
        offset += part.shape[-1]
    return torch.cat(pieces, -1)
