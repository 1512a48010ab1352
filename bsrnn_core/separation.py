"""A whole song through the model, in memory that does not grow with the song.

The song is cut into overlapping windows as long as the crops of the training; each is separated by
itself and the estimates are added up under a tapered window whose shifted copies sum to one. The
ends of the song are mirrored, so that its first and last samples are covered like all others.
Other sample rates are resampled window by window, and back.
"""

from collections.abc import Callable, Iterator

import torch
from jaxtyping import Float
from torch import Tensor

from bsrnn_core.audio_files import resample
from bsrnn_core.errors import BadInput
from bsrnn_core.model import BSRNN
from bsrnn_core.stft import istft, reflect_index, stft

ReadSamples = Callable[[int, int], Tensor]
"""read(first, count) -> samples [C, count] of the mixture."""


def _window(length: int, hop: int) -> Float[Tensor, "W"]:
    """A Hann window divided by the sum of its copies shifted by multiples of ``hop``."""
    # Sampled between the zeros of the Hann window: every sample gets some weight at any overlap.
    position = (torch.arange(length, dtype=torch.float64) + 0.5) / length
    hann = torch.sin(torch.pi * position).square()
    periods = torch.nn.functional.pad(hann, (0, -length % hop)).view(-1, hop)
    return (hann / periods.sum(0).repeat(len(periods))[:length]).float()


def _read_mirrored(read: ReadSamples, first: int, count: int, num_samples: int) -> Tensor:
    index = reflect_index(torch.arange(first, first + count), num_samples)
    low, high = int(index.min()), int(index.max()) + 1
    return read(low, high - low)[:, index - low]


@torch.inference_mode()
def _separate_windows(
    model: BSRNN, windows: Float[Tensor, "B C W"], sample_rate: int
) -> Float[Tensor, "B S C W"]:
    length = windows.shape[-1]
    config = model.config.stft
    device = next(model.parameters()).device
    at_model_rate = resample(windows, sample_rate, config.sample_rate).to(device)
    estimates = istft(model(stft(at_model_rate, config)), config, at_model_rate.shape[-1])
    back = resample(estimates.cpu(), config.sample_rate, sample_rate)[..., :length]
    return torch.nn.functional.pad(back, (0, length - back.shape[-1]))


def separate_blocks(
    model: BSRNN,
    read: ReadSamples,
    num_samples: int,
    sample_rate: int,
    *,
    overlap: float = 0.5,
    batch_size: int = 4,
) -> Iterator[Float[Tensor, "S C n"]]:
    """Separate a song that is read on demand; yields consecutive runs of the estimates.

    The runs add up to ``num_samples`` samples at the song's own ``sample_rate``. ``overlap`` is
    the fraction of a window that the next one covers again, in [0, 1). Raises BadInput on another
    overlap, and when there is nothing to separate.
    """
    if not 0 <= overlap < 1:
        raise BadInput(f"overlap must lie in [0, 1), not {overlap}")
    if num_samples < 1:
        raise BadInput("there is no sample to separate")
    length = max(2, round(model.config.crop_seconds * sample_rate))
    hop = max(1, round(length * (1 - overlap)))
    window = _window(length, hop)
    starts = range(hop - length, num_samples, hop)
    pending: Tensor | None = None
    for batch_first in range(0, len(starts), batch_size):
        batch = starts[batch_first : batch_first + batch_size]
        windows = [_read_mirrored(read, start, length, num_samples) for start in batch]
        estimates = _separate_windows(model, torch.stack(windows), sample_rate) * window
        for start, estimate in zip(batch, estimates, strict=True):
            if pending is not None:
                estimate[..., : length - hop] += pending
            pending = estimate[..., hop:]
            # What lies before the next window is finished; the first windows begin before 0.
            run = estimate[..., max(0, -start) : min(hop, num_samples - start)]
            if run.shape[-1]:
                yield run.clone()


def separate(
    model: BSRNN,
    mixture: Float[Tensor, "C N"],
    sample_rate: int,
    *,
    overlap: float = 0.5,
    batch_size: int = 4,
) -> dict[str, Float[Tensor, "C N"]]:
    """The estimate of every stem of a song in memory; same length, rate and channels as it.

    See ``separate_blocks`` for ``overlap``; ``batch_size`` windows are computed at a time. Raises
    BadInput when the mixture is not a [C, N] tensor of at least one sample.
    """
    if mixture.ndim != 2 or 0 in mixture.shape:
        raise BadInput(
            f"a mixture must be [channels, samples], at least one of each, not "
            f"{list(mixture.shape)}"
        )
    runs = separate_blocks(
        model,
        lambda first, count: mixture[:, first : first + count].float(),
        mixture.shape[-1],
        sample_rate,
        overlap=overlap,
        batch_size=batch_size,
    )
    return dict(zip(model.stems, torch.cat(list(runs), dim=-1), strict=True))
