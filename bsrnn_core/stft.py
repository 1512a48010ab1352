"""Samples <-> frames: the short-time Fourier transform of whole signals and of runs of frames."""

import torch
from jaxtyping import Complex, Float, Int
from torch import Tensor

from bsrnn_core.config import StftConfig


def _window(config: StftConfig, like: Tensor) -> Tensor:
    return torch.hann_window(config.n_fft, dtype=like.real.dtype, device=like.device)


def reflect_index(position: Int[Tensor, "M"], length: int) -> Int[Tensor, "M"]:
    """Where a signal of ``length`` samples, mirrored at its ends for ever, has ``position``.

    Unlike torch's own reflection this works for any distance; a single sample is repeated.
    """
    if length == 1:
        return torch.zeros_like(position)
    position = position.remainder(2 * (length - 1))
    return torch.where(position < length, position, 2 * (length - 1) - position)


def reflect_pad(samples: Float[Tensor, "... N"], left: int, right: int) -> Float[Tensor, "... M"]:
    """Pad with the signal mirrored at its first and last sample, M = left + N + right."""
    length = samples.shape[-1]
    position = torch.arange(-left, length + right, device=samples.device)
    return samples[..., reflect_index(position, length)]


def pad_for_frames(
    samples: Float[Tensor, "... N"], config: StftConfig
) -> Float[Tensor, "... (T-1)*hop+n_fft"]:
    """Reflect-pad a whole signal so that its T = config.num_frames(N) frames fit exactly."""
    half = config.n_fft // 2
    length = samples.shape[-1]
    to_last_frame = (config.num_frames(length) - 1) * config.hop - length
    return reflect_pad(samples, half, half + to_last_frame)


def stft_frames(
    padded: Float[Tensor, "... (T-1)*hop+n_fft"], config: StftConfig
) -> Complex[Tensor, "... F T"]:
    """The frames of an already padded run of samples: frame t starts at sample t * hop."""
    spectrogram = torch.stft(
        padded.reshape(-1, padded.shape[-1]),
        config.n_fft,
        config.hop,
        window=_window(config, padded),
        center=False,
        return_complex=True,
    )
    return spectrogram.reshape(*padded.shape[:-1], *spectrogram.shape[-2:])


def stft(samples: Float[Tensor, "... N"], config: StftConfig) -> Complex[Tensor, "... F T"]:
    """The STFT of a whole signal of any length N >= 1, T = config.num_frames(N); Hann window."""
    return stft_frames(pad_for_frames(samples, config), config)


def istft(
    spectrogram: Complex[Tensor, "... F T"], config: StftConfig, num_samples: int | None = None
) -> Float[Tensor, "... N"]:
    """The inverse of ``stft``: windowed overlap-add, divided by the squared windows' sum.

    N is ``num_samples``, or (T - 1) * hop when not given (at least one sample): a run of frames
    out of the middle of a song gives the samples between its first and last frame's centres.
    """
    num_frames = spectrogram.shape[-1]
    count = max(1, (num_frames - 1) * config.hop) if num_samples is None else num_samples
    reach = (num_frames - 1) * config.hop + config.n_fft // 2
    assert count <= reach, f"{num_frames} frames do not reach over {count} samples"
    samples = torch.istft(
        spectrogram.reshape(-1, *spectrogram.shape[-2:]),
        config.n_fft,
        config.hop,
        window=_window(config, spectrogram),
        length=count,
    )
    return samples.reshape(*spectrogram.shape[:-2], count)
