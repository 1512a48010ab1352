"""A whole song through the model, in memory that does not grow with the song.

The song is cut into overlapping windows of equal length, the first of which starts with it and the
last of which ends with it; each is separated by itself, and the estimates are added up under a
tapered weight and divided by the sum of the weights. Other sample rates are resampled window by
window, and back.
"""

import os
from collections.abc import Callable, Iterator

import torch
from jaxtyping import Float
from torch import Tensor

from bsrnn_core.audio_files import AudioReader, resample
from bsrnn_core.config import SeparationConfig
from bsrnn_core.errors import BadInput
from bsrnn_core.model import BSRNN
from bsrnn_core.precision import autocast
from bsrnn_core.stft import istft, reflect_index, stft

ReadSamples = Callable[[int, int], Tensor]
"""read(first, count) -> samples [C, count] of the mixture."""

WINDOWS_ON_GPU, WINDOWS_ON_CPU = 8, 1
"""Windows computed at a time: a GPU needs many to be busy, a CPU's caches hold no more."""
RESAMPLING_MARGIN_SECONDS = 0.05
"""Music on either side of a window that is resampled with it, for a resampler's filter is long."""


def _weights(length: int) -> Float[Tensor, "W"]:
    """A Hann window, sampled between its zeros: every sample has some weight at any overlap."""
    position = (torch.arange(length, dtype=torch.float64) + 0.5) / length
    return torch.sin(torch.pi * position).square().float()


def _window_starts(num_samples: int, length: int, overlap: float) -> list[int]:
    """First samples of the windows over a song, evenly spaced; they overlap by no less than asked.

    ``length`` is at most ``num_samples``.
    """
    hop = max(1, round(length * (1 - overlap)))
    steps = -(-(num_samples - length) // hop)
    return [round(k * (num_samples - length) / max(1, steps)) for k in range(steps + 1)]


def _read_mirrored(read: ReadSamples, first: int, count: int, num_samples: int) -> Tensor:
    index = reflect_index(torch.arange(first, first + count), num_samples)
    low, high = int(index.min()), int(index.max()) + 1
    return read(low, high - low)[:, index - low]


@torch.inference_mode()
def _separate_windows(
    model: BSRNN, windows: Float[Tensor, "B C W"], sample_rate: int, precision: str
) -> Float[Tensor, "B S C W"]:
    length = windows.shape[-1]
    config = model.config.stft
    device = next(model.parameters()).device
    at_model_rate = resample(windows, sample_rate, config.sample_rate).to(device)
    mixture = stft(at_model_rate, config)
    with autocast(precision, device):
        spectrograms = model(mixture)
    estimates = istft(spectrograms, config, at_model_rate.shape[-1])
    back = resample(estimates.cpu(), config.sample_rate, sample_rate)[..., :length]
    return torch.nn.functional.pad(back, (0, length - back.shape[-1]))


def separate_blocks(
    model: BSRNN,
    read: ReadSamples,
    num_samples: int,
    sample_rate: int,
    config: SeparationConfig | None = None,
    *,
    first: int = 0,
    count: int | None = None,
) -> Iterator[Float[Tensor, "S C n"]]:
    """Separate a song that is read on demand; yields consecutive runs of the estimates.

    The runs make up the samples ``first`` .. ``first + count`` - 1 (default: all ``num_samples``)
    at the song's own ``sample_rate``, the same to the bit for an excerpt as for the whole song in
    batches of one. Raises BadInput when there is nothing to separate, and for bf16 on a CPU that
    cannot compute in it.
    """
    config = config or SeparationConfig()
    end = num_samples if count is None else first + count
    if not 0 <= first < end <= num_samples:
        raise BadInput("there is no sample to separate")
    on_gpu = next(model.parameters()).device.type == "cuda"
    batch_size = config.batch_size or (WINDOWS_ON_GPU if on_gpu else WINDOWS_ON_CPU)
    length = min(num_samples, max(2, round(config.window_seconds * sample_rate)))
    same_rate = sample_rate == model.config.stft.sample_rate
    margin = 0 if same_rate else round(RESAMPLING_MARGIN_SECONDS * sample_rate)
    weights = _weights(length)
    starts = [
        start
        for start in _window_starts(num_samples, length, config.overlap)
        if start < end and start + length > first
    ]
    # What is not given out yet, from sample `begin` on: the weighted sum and its weights.
    begin, total, weight = starts[0], torch.zeros(0), torch.zeros(0)

    def finished(samples: int) -> Tensor:
        """The estimates of the next ``samples`` samples, without those that nobody asked for."""
        run = total[..., :samples] / weight[:samples]
        return run[..., max(0, first - begin) : max(0, end - begin)]

    for batch_first in range(0, len(starts), batch_size):
        batch = starts[batch_first : batch_first + batch_size]
        windows = [
            _read_mirrored(read, start - margin, length + 2 * margin, num_samples)
            for start in batch
        ]
        estimates = _separate_windows(model, torch.stack(windows), sample_rate, config.precision)
        estimates = estimates[..., margin : margin + length]
        for start, estimate in zip(batch, estimates, strict=True):
            # Nothing more is added to what lies before this window.
            run = finished(start - begin)
            if run.shape[-1]:
                yield run
            total = _added(total[..., start - begin :], weights * estimate)
            weight = _added(weight[start - begin :], weights.clone())
            begin = start
    yield finished(length)


def _added(part: Float[Tensor, "... n"], whole: Float[Tensor, "... W"]) -> Float[Tensor, "... W"]:
    """``whole`` with ``part`` added to its beginning; works on ``whole`` itself."""
    if part.shape[-1]:
        whole[..., : part.shape[-1]] += part
    return whole


def separate(
    model: BSRNN,
    mixture: Float[Tensor, "C N"] | str | os.PathLike[str],
    sample_rate: int | None = None,
    config: SeparationConfig | None = None,
) -> dict[str, Float[Tensor, "C N"]]:
    """The estimate of every stem of a song; same length, rate and channels as it.

    ``mixture`` is a file, or samples at ``sample_rate`` (the model's own rate when not given).
    Raises BadInput when the file cannot be read, or the samples are no [C, N] tensor of at least
    one finite sample.
    """
    if isinstance(mixture, Tensor):
        _check_samples(mixture)
        rate = model.config.stft.sample_rate if sample_rate is None else sample_rate

        def read(first: int, count: int) -> Tensor:
            return mixture[:, first : first + count].float()

        return _separate_all(model, read, mixture.shape[-1], rate, config)
    with AudioReader(mixture) as song:
        if sample_rate not in (None, song.info.sample_rate):
            raise BadInput(f"{mixture}: has {song.info.sample_rate} Hz, not {sample_rate}")
        info = song.info
        return _separate_all(model, song.read, info.num_samples, info.sample_rate, config)


def _check_samples(mixture: Tensor) -> None:
    if mixture.ndim != 2 or 0 in mixture.shape:
        raise BadInput(
            f"a mixture must be [channels, samples], at least one of each, not "
            f"{list(mixture.shape)}"
        )
    if not mixture.isfinite().all():
        raise BadInput("the mixture holds NaN or infinite samples")


def _separate_all(
    model: BSRNN,
    read: ReadSamples,
    num_samples: int,
    sample_rate: int,
    config: SeparationConfig | None,
) -> dict[str, Float[Tensor, "C N"]]:
    runs = separate_blocks(model, read, num_samples, sample_rate, config)
    return dict(zip(model.stems, torch.cat(list(runs), dim=-1), strict=True))
