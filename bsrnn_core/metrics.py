"""uSDR and cSDR of separated songs, with museval's numbers at a fraction of its time.

The signal-to-distortion ratio of BSSEval version 4 is 10 log10(|reference|^2 / |reference -
estimate|^2) over all channels of a frame: its distortion filters divide the error into parts (ISR,
SIR, SAR) and leave the sum as it is. So SDR alone needs no filters.

uSDR is the SDR of a whole song, averaged over songs (Mitsufuji et al., "Music Demixing Challenge
2021"). cSDR is the median over frames of one second, then the median over songs (Stoter, Liutkus
and Ito, "The 2018 Signal Separation Evaluation Campaign").

Which frames count follows museval. A source is silent in a frame when its channels sum to zero at
every sample. In protocol ``joint`` a frame where any reference or estimate is silent is nan for all
stems, as in published scores; in ``single`` every stem is judged alone. What is left after the last
whole second is dropped; a song shorter than a second is one frame. A perfect frame is inf.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
import torch
from torch import Tensor

from bsrnn_core.errors import BadInput

Protocol = Literal["joint", "single"]
Audio = Tensor | np.ndarray

PIECE_SAMPLES = 1 << 16
"""A whole song's energy is summed over pieces of this length."""

MUSEVAL_METRICS = ("SDR", "ISR", "SIR", "SAR")
"""In the order in which museval returns them."""


def usdr(reference: Audio, estimate: Audio) -> float:
    """SDR in dB of a whole song, both [C, N]; nan where one of them is silent.

    Raises BadInput when the shapes differ or hold nothing.
    """
    return track_usdr(_as_stems(reference), _as_stems(estimate), "single").item()


def csdr(reference: Audio, estimate: Audio, sample_rate: int) -> float:
    """Median SDR in dB over frames of one second, both [C, N]; nan where every frame is.

    Raises BadInput when the shapes differ or hold nothing.
    """
    return track_csdr(_as_stems(reference), _as_stems(estimate), sample_rate, "single").item()


def frame_sdr(
    references: Audio, estimates: Audio, sample_rate: int, protocol: Protocol = "joint"
) -> Tensor:
    """SDR in dB of every second: [S, C, N] twice -> float64 [S, frames], nan where undefined.

    Raises BadInput when the shapes differ or hold nothing.
    """
    assert sample_rate > 0, sample_rate
    references, estimates = _checked(references, estimates)
    frames = max(1, references.shape[-1] // sample_rate)
    signal, error, silent = _pieces(references, estimates, sample_rate)
    return _sdr(signal[:, :frames], error[:, :frames], silent[..., :frames], protocol)


def track_usdr(references: Audio, estimates: Audio, protocol: Protocol = "joint") -> Tensor:
    """SDR in dB of a whole song per stem: [S, C, N] twice -> float64 [S], nan where undefined.

    Raises BadInput when the shapes differ or hold nothing.
    """
    references, estimates = _checked(references, estimates)
    signal, error, silent = _pieces(references, estimates, PIECE_SAMPLES)
    return _sdr(signal.sum(dim=1), error.sum(dim=1), silent.all(dim=2), protocol)


def track_csdr(
    references: Audio, estimates: Audio, sample_rate: int, protocol: Protocol = "joint"
) -> Tensor:
    """Median of ``frame_sdr`` over the frames that are not nan: float64 [S], nan where all are."""
    scores = frame_sdr(references, estimates, sample_rate, protocol)
    medians = [_median(stem_scores) for stem_scores in scores.cpu().numpy()]
    return torch.tensor(medians, dtype=torch.float64, device=scores.device)


@dataclass(frozen=True, slots=True)
class Aggregate:
    """A score over songs."""

    value: float
    """Mean or median in dB over the songs that have the score; nan when none has."""
    count: int
    """Songs that ``value`` is taken over."""
    nan: int
    """Songs without the score, which ``value`` leaves out."""


def aggregate(scores: Sequence[float], score: Literal["usdr", "csdr"]) -> Aggregate:
    """One number from the scores of several songs: the mean of uSDR, the median of cSDR."""
    values = np.asarray(scores, dtype=np.float64)
    valid = values[~np.isnan(values)]
    mean = float(valid.mean()) if len(valid) else math.nan
    value = mean if score == "usdr" else _median(valid)
    return Aggregate(value, len(valid), len(values) - len(valid))


def track_json(
    stems: Sequence[str],
    references: Audio,
    estimates: Audio,
    sample_rate: int,
    protocol: Protocol = "joint",
) -> dict[str, Any]:
    """The framewise SDR of a song [S, C, N] in the layout of museval's JSON files.

    As in museval, values are rounded to 1e-5 dB and infinite ones become nan. ISR, SIR and SAR are
    nan, for museval's own readers want to find them. ``protocol`` is an additional entry. Raises
    BadInput when the shapes differ or hold nothing.
    """
    sdr = frame_sdr(references, estimates, sample_rate, protocol).cpu().numpy()
    return _json(stems, {"SDR": sdr}, protocol)


def full_museval(
    stems: Sequence[str],
    references: Audio,
    estimates: Audio,
    sample_rate: int,
    protocol: Protocol = "joint",
) -> dict[str, Any]:
    """Like ``track_json`` with museval's own SDR, ISR, SIR and SAR: minutes of work for a song.

    A stem that is silent throughout, which museval refuses, gives nan by the rules of
    ``protocol``. Raises BadInput when the shapes differ or hold nothing, or without ffmpeg.
    """
    try:
        from museval.metrics import bss_eval  # fails at import where ffmpeg is missing
    except RuntimeError as error:
        raise BadInput(
            f"museval's scores need ffmpeg and ffprobe: install them ({error})"
        ) from error
    references, estimates = _checked(references, estimates)
    sdr = frame_sdr(references, estimates, sample_rate, protocol)
    undefined = track_usdr(references, estimates, protocol).isnan().tolist()
    scores = np.full((len(MUSEVAL_METRICS), *sdr.shape), np.nan)
    every = list(range(len(stems)))
    for group in [every] if protocol == "joint" else [[stem] for stem in every]:
        if not any(undefined[stem] for stem in group):
            reference, estimate = (
                audio[group].to(torch.float64).cpu().numpy().swapaxes(1, 2)  # [S, N, C]
                for audio in (references, estimates)
            )
            *group_scores, _ = bss_eval(reference, estimate, window=sample_rate, hop=sample_rate)
            scores[:, group] = np.stack(group_scores)
    return _json(stems, dict(zip(MUSEVAL_METRICS, scores, strict=True)), protocol)


def _as_stems(audio: Audio) -> Tensor:
    """[C, N] as the only stem of [1, C, N]."""
    return torch.as_tensor(audio)[None]


def _checked(references: Audio, estimates: Audio) -> tuple[Tensor, Tensor]:
    """As tensors without a graph, once they are known to be of one shape [S, C, N]."""
    references, estimates = torch.as_tensor(references), torch.as_tensor(estimates)
    if references.shape != estimates.shape:
        raise BadInput(
            f"references {tuple(references.shape)} and estimates {tuple(estimates.shape)} differ "
            "in shape: scores need the same stems, channels and samples"
        )
    if references.ndim != 3 or references.numel() == 0:
        raise BadInput(
            f"audio of shape {tuple(references.shape[-2:])} cannot be scored: it must be "
            "[channels, samples] and not empty"
        )
    return references.detach(), estimates.detach()


def _pieces(references: Tensor, estimates: Tensor, length: int) -> tuple[Tensor, Tensor, Tensor]:
    """Energies of the references and of the errors, and silence, of consecutive pieces.

    [S, C, N] twice -> float64 [S, P] twice, bool [2, S, P] (of references, of estimates). The last
    piece may be shorter than ``length`` samples.
    """
    signal, error, silent = [], [], []
    # Piece by piece, for the double-precision copies of a whole song would not fit a cache.
    for pair in zip(references.split(length, -1), estimates.split(length, -1), strict=True):
        reference, estimate = (piece.to(torch.float64) for piece in pair)
        signal.append(reference.square().sum(dim=(1, 2)))
        error.append((reference - estimate).square().sum(dim=(1, 2)))
        silent.append(torch.stack([(x.sum(dim=1) == 0).all(dim=1) for x in (reference, estimate)]))
    return torch.stack(signal, dim=1), torch.stack(error, dim=1), torch.stack(silent, dim=2)


def _sdr(signal: Tensor, error: Tensor, silent: Tensor, protocol: Protocol) -> Tensor:
    """Decibels from energies [S, ...] and silence [2, S, ...]; nan by the rules of ``protocol``."""
    assert protocol in ("joint", "single"), protocol
    undefined = silent.any(dim=0)
    if protocol == "joint":
        undefined = undefined.any(dim=0)
    return (10 * torch.log10(signal / error)).masked_fill(undefined, math.nan)


def _median(values: np.ndarray) -> float:
    """The median of what is not nan; the mean of the two middle values of an even number."""
    valid = values[~np.isnan(values)]
    return float(np.median(valid)) if len(valid) else math.nan


def _json(stems: Sequence[str], metrics: dict[str, np.ndarray], protocol: str) -> dict[str, Any]:
    """Arrays [S, frames] by metric, in museval's layout."""

    def frame(stem: int, second: int) -> dict[str, Any]:
        values: dict[str, float] = dict.fromkeys(MUSEVAL_METRICS, math.nan)
        for name, scores in metrics.items():
            value = float(scores[stem, second])
            values[name] = round(value, 5) if math.isfinite(value) else math.nan
        return {"time": float(second), "duration": 1.0, "metrics": values}

    num_stems, num_frames = metrics["SDR"].shape
    assert len(stems) == num_stems, (stems, num_stems)
    targets = [
        {"name": name, "frames": [frame(stem, second) for second in range(num_frames)]}
        for stem, name in enumerate(stems)
    ]
    return {"targets": targets, "protocol": protocol}
