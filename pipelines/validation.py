"""Scores of the validation songs, by which a training judges its epochs."""

import math
from collections.abc import Iterable, Mapping, Sequence

import torch

from bsrnn_core import BSRNN
from bsrnn_core.config import Precision, SeparationConfig
from bsrnn_core.metrics import aggregate, track_usdr
from bsrnn_core.separation import separate
from data_prep.shards import ShardDataset
from pipelines.config import VALID_MEAN

VALIDATION_OVERLAP = 0.25
"""Of windows as long as the crops, which a GPU holds beside what the training needs."""


def score_tracks(
    model: BSRNN, dataset: ShardDataset, tracks: Iterable[str], precision: Precision
) -> dict[str, list[float]]:
    """Song -> uSDR of the model's stems on the whole of it; ``precision`` is the training's."""
    windows = SeparationConfig(
        window_seconds=model.config.crop_seconds,
        overlap=VALIDATION_OVERLAP,
        batch_size=4,
        precision=precision,
    )
    return {track: _score(model, dataset, track, windows) for track in tracks}


def _score(
    model: BSRNN, dataset: ShardDataset, track: str, windows: SeparationConfig
) -> list[float]:
    references = dataset.track_references("valid", track)
    rate = model.config.stft.sample_rate
    estimates = separate(model, references.sum(0), rate, windows)
    wanted = [dataset.stems.index(stem) for stem in model.stems]
    stacked = torch.stack([estimates[stem] for stem in model.stems])
    return track_usdr(references[wanted], stacked, "single").tolist()


def stem_scores(scores: Mapping[str, Sequence[float]], stems: Sequence[str]) -> dict[str, float]:
    """The metrics of an epoch: ``valid/usdr_<stem>``, each the mean over songs, and their mean.

    What is not known (a stem that is silent everywhere, or no songs at all) is nan.
    """
    metrics = {
        f"valid/usdr_{stem}": aggregate(
            [scores[track][position] for track in sorted(scores)], "usdr"
        ).value
        for position, stem in enumerate(stems)
    }
    known = [value for value in metrics.values() if not math.isnan(value)]
    return {**metrics, VALID_MEAN: sum(known) / len(known) if known else math.nan}
