"""Excerpts and scores, as the tests of the page to listen show them."""

import math
from typing import Any

import torch
from torch import Tensor

from bsrnn_core import BSRNN, BsrnnConfig, ModelConfig, StftConfig
from bsrnn_core.metrics import track_json
from data_prep.config import SourceConfig
from pipelines.excerpts import Excerpt, Scored
from pipelines.scoring import MEASURES, SYSTEMS, Evaluation, TrackScores

RATE = 8000
SECONDS = 10
STEMS = ("drums", "bass")
HOSTILE = "<img src=x onerror=\"document.title='broken'\"></script><script>{{data}}&'"
SOURCE = SourceConfig(musdbhq_location="songs")


def tone(hz: float, level: float, rate: int = RATE, channels: int = 2) -> Tensor:
    time = torch.arange(SECONDS * rate) / rate
    return (level * torch.sin(2 * torch.pi * hz * time)).expand(channels, -1).clone()


def excerpt(song: str = "one", labels: tuple[str, ...] = ("a",), **changes: Any) -> Excerpt:
    """Drums that begin after two seconds, and a silent bass."""
    drums = tone(440, 0.5)
    drums[:, : 2 * RATE] = 0
    references = {"drums": drums, "bass": torch.zeros_like(drums)}
    estimates = {
        label: {"drums": 0.5 / (k + 1) * drums, "bass": tone(100, 0.01)}
        for k, label in enumerate(labels)
    }
    values = {
        "song": song,
        "reason": "worst",
        "first_second": 0,
        "song_seconds": float(SECONDS),
        "sample_rate": RATE,
        "mixture": drums + tone(900, 0.1),
        "references": references,
        "estimates": estimates,
    }
    return Excerpt(**(values | changes))


def scored(heard: Excerpt, label: str = "a", others: tuple[str, ...] = ()) -> Scored:
    """The scores of a model on the song that is heard, and made-up ones on other songs."""
    references = torch.stack(list(heard.references.values()))
    estimates = torch.stack(list(heard.estimates[label].values()))
    museval = track_json(STEMS, references, estimates, heard.sample_rate, "single")
    tracks = []
    for k, song in enumerate((heard.song, *others)):
        scores = {
            measure: {
                system: {"drums": 2.0 + 3 * k + j + len(label), "bass": math.nan}
                for j, system in enumerate(SYSTEMS)
            }
            for measure in MEASURES
        }
        tracks.append(TrackScores(track=song, seconds=SECONDS, scores=scores, museval=museval))
    config = BsrnnConfig(
        stft=StftConfig(sample_rate=RATE, n_fft=256),
        model=ModelConfig(band_schema="v1", feature_dim=4, num_blstm_layers=1, mlp_dim=4),
        stems=STEMS,
        crop_seconds=0.5,
    )
    return Scored(
        label=label,
        checkpoint=f"runs/{label}/best",
        model=BSRNN(config),
        evaluation=Evaluation(
            subset="valid",
            protocol="single",
            stems=STEMS,
            tracks=tuple(tracks),
            skipped={"bad": "is cut short"},
        ),
    )
