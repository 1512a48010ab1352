"""What evaluation computes: the scores of one song, and their aggregates over songs.

Each score is given for three systems: `mixture` (the song itself taken as every estimate: the
floor), `model`, and `oracle` (the ideal ratio mask: the ceiling of masking).
"""

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal, Self

from torch import Tensor

from bsrnn_core import BSRNN, separate
from bsrnn_core.config import SeparationConfig
from bsrnn_core.metrics import (
    Aggregate,
    Protocol,
    aggregate,
    full_museval,
    track_csdr,
    track_json,
    track_usdr,
)
from bsrnn_core.oracle import ideal_ratio_estimates
from data_prep.tracks import Lengths, Track, read_track

Measure = Literal["usdr", "csdr"]
System = Literal["mixture", "model", "oracle"]

MEASURES: tuple[Measure, ...] = ("usdr", "csdr")
SYSTEMS: tuple[System, ...] = ("mixture", "model", "oracle")

Scores = dict[str, dict[str, dict[str, float]]]
"""measure -> system -> stem -> dB."""


@dataclass(frozen=True, kw_only=True, slots=True)
class ScoringOptions:
    """How songs are read, separated and scored."""

    stem_names: tuple[str, ...]
    """All stems of a song; the model's are among them."""
    lengths: Lengths
    protocol: Protocol
    separation: SeparationConfig
    full_museval: bool


@dataclass(frozen=True, kw_only=True, slots=True)
class TrackScores:
    """The scores of one song."""

    track: str
    seconds: float
    """Duration of the song."""
    scores: Scores
    museval: dict[str, Any]
    """The model's scores by frames, in museval's JSON layout."""


def score_track(model: BSRNN, track: Track, options: ScoringOptions) -> TrackScores:
    """Separate a whole song and score it, at the song's own sample rate.

    Raises BadInput when the song cannot be read.
    """
    audio = read_track(track, options.stem_names, sample_rate=None, lengths=options.lengths)
    rate, mixture = audio.sample_rate, audio.mixture
    chosen = [options.stem_names.index(stem) for stem in model.stems]
    references = audio.references[chosen]

    def score(estimates: Tensor) -> dict[str, dict[str, float]]:
        values = {
            "usdr": track_usdr(references, estimates, options.protocol),
            "csdr": track_csdr(references, estimates, rate, options.protocol),
        }
        return {m: dict(zip(model.stems, v.tolist(), strict=True)) for m, v in values.items()}

    by_system = {"mixture": score(mixture.expand_as(references))}
    oracle = ideal_ratio_estimates(mixture, audio.references, model.config.stft)[chosen]
    by_system["oracle"] = score(oracle)
    del oracle  # as large as the song's stems
    separated = separate(model, mixture, rate, options.separation)
    estimates = references.new_empty(references.shape)
    for k, stem in enumerate(model.stems):
        estimates[k] = separated.pop(stem)
    by_system["model"] = score(estimates)
    layout = full_museval if options.full_museval else track_json
    return TrackScores(
        track=track.name,
        seconds=mixture.shape[-1] / rate,
        scores={m: {system: by_system[system][m] for system in SYSTEMS} for m in MEASURES},
        museval=layout(model.stems, references, estimates, rate, options.protocol),
    )


@dataclass(frozen=True, kw_only=True, slots=True)
class Evaluation:
    """The scores of a model on a set of songs."""

    subset: str
    protocol: Protocol
    stems: tuple[str, ...]
    """The stems that the model estimates."""
    tracks: tuple[TrackScores, ...]
    skipped: Mapping[str, str]
    """Songs left out: name -> why."""

    def aggregate(self, measure: Measure, system: System, stem: str) -> Aggregate:
        """A stem's score over all songs: the mean of uSDR, the median of cSDR."""
        return aggregate([t.scores[measure][system][stem] for t in self.tracks], measure)

    def mean(self, measure: Measure, system: System) -> float:
        """The mean of the stems' aggregates; nan when a stem has none."""
        values = [self.aggregate(measure, system, stem).value for stem in self.stems]
        return math.fsum(values) / len(values)

    def metrics(self, prefix: str) -> dict[str, float]:
        """The finite aggregates by name, for MLflow: ``<prefix>/usdr_drums``, ``.._drums_oracle``.

        The model's scores carry no system's name.
        """
        named: dict[str, float] = {}
        for measure in MEASURES:
            for system in SYSTEMS:
                ending = "" if system == "model" else f"_{system}"
                for stem in self.stems:
                    value = self.aggregate(measure, system, stem).value
                    named[f"{prefix}/{measure}_{stem}{ending}"] = value
                named[f"{prefix}/{measure}_mean{ending}"] = self.mean(measure, system)
        return {name: value for name, value in named.items() if math.isfinite(value)}

    def to_dict(self) -> dict[str, Any]:
        """For JSON: aggregates and scores per song; what is not finite is None, or "inf"."""
        aggregates = {
            stem: {
                measure: {
                    system: _aggregate_dict(self.aggregate(measure, system, stem))
                    for system in SYSTEMS
                }
                for measure in MEASURES
            }
            for stem in self.stems
        }
        means = {m: {s: _finite(self.mean(m, s)) for s in SYSTEMS} for m in MEASURES}
        return {
            "subset": self.subset,
            "protocol": self.protocol,
            "stems": list(self.stems),
            "aggregates": aggregates,
            "mean": means,
            "tracks": {
                track.track: {"seconds": track.seconds, **_finite_scores(track.scores)}
                for track in self.tracks
            },
            "skipped": dict(self.skipped),
        }

    @classmethod
    def from_dict(cls, values: Mapping[str, Any], museval: Mapping[str, dict[str, Any]]) -> Self:
        """What ``to_dict`` gave, with each song's ``TrackScores.museval`` by name.

        Raises KeyError, TypeError or ValueError when it is something else.
        """
        tracks = [
            TrackScores(
                track=name,
                seconds=float(track["seconds"]),
                scores={measure: _scores_from(track[measure]) for measure in MEASURES},
                museval=museval[name],
            )
            for name, track in values["tracks"].items()
        ]
        return cls(
            subset=values["subset"],
            protocol=values["protocol"],
            stems=tuple(values["stems"]),
            tracks=tuple(tracks),
            skipped=values["skipped"],
        )


def _aggregate_dict(score: Aggregate) -> dict[str, float | int | str | None]:
    return {"value": _finite(score.value), "count": score.count, "nan": score.nan}


def _finite_scores(scores: Scores) -> dict[str, Any]:
    return {
        measure: {
            system: {stem: _finite(value) for stem, value in stems.items()}
            for system, stems in systems.items()
        }
        for measure, systems in scores.items()
    }


def _scores_from(systems: Mapping[str, Mapping[str, Any]]) -> dict[str, dict[str, float]]:
    return {
        system: {
            stem: math.nan if value is None else float(value)
            for stem, value in systems[system].items()
        }
        for system in SYSTEMS
    }


def _finite(value: float) -> float | str | None:
    """JSON knows neither nan nor infinity, which is the score of a perfect estimate."""
    if math.isnan(value):
        return None
    return value if math.isfinite(value) else str(value)
