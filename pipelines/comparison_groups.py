"""What a comparison consists of: numbers of several runs, groups of runs, and all groups."""

import math
import statistics
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from pipelines.scoring import Measure


@dataclass(frozen=True, slots=True)
class Statistic:
    """One number of several runs."""

    values: tuple[float, ...]
    """A value per run, nan where it has none."""

    @property
    def finite(self) -> tuple[float, ...]:
        """The values that count."""
        return tuple(value for value in self.values if math.isfinite(value))

    @property
    def nan(self) -> int:
        """How many values do not count."""
        return len(self.values) - len(self.finite)

    @property
    def mean(self) -> float:
        """The mean of the values that count, nan where there is none."""
        finite = self.finite
        return statistics.fmean(finite) if finite else math.nan

    @property
    def spread(self) -> float:
        """The sample standard deviation (n - 1), nan for fewer than two values."""
        finite = self.finite
        return statistics.stdev(finite) if len(finite) > 1 else math.nan


@dataclass(frozen=True, kw_only=True, slots=True)
class MeanCurve:
    """Validation uSDR by epoch over several runs, nan left out.

    A run that ended before the others counts on with its last value: else the mean would jump where
    one stops early.
    """

    epochs: tuple[float, ...] = ()
    mean: tuple[float, ...] = ()
    low: tuple[float, ...] = ()
    """The lowest of the runs."""
    high: tuple[float, ...] = ()
    complete_until: float = -math.inf
    """The last epoch before the first of the runs ended."""

    @property
    def final(self) -> float:
        """The mean of the runs' last values."""
        return self.mean[-1] if self.mean else math.nan


@dataclass(frozen=True, kw_only=True, slots=True)
class Group:
    """Runs alike in all that is compared by, for one of the stems that they estimate."""

    key: tuple[str, ...]
    """The values of what is compared by."""
    stem: str
    runs: tuple[str, ...]
    """Their names, oldest first, as are all values below."""
    seeds: tuple[str, ...]
    test: Mapping[Measure, Statistic]
    """Scores on the test songs, in dB."""
    gain: Statistic
    """Test uSDR above that of the mixture taken as the estimate, in dB."""
    valid: Statistic
    """Validation uSDR of the epoch that is kept: that of the best mean over the stems."""
    curve: MeanCurve
    minutes: Statistic
    """Of the whole training, however many stems it has, as the next two."""
    parameters_trained: Statistic
    peak_memory_gb: Statistic


@dataclass(frozen=True, kw_only=True, slots=True)
class Comparison:
    """Groups of runs side by side."""

    by: tuple[str, ...]
    """Names of the tags or parameters that are compared."""
    values: tuple[tuple[str, ...], ...]
    """Their values, for each name in the order in which they were first recorded."""
    stems: tuple[str, ...]
    groups: tuple[Group, ...]
    """In the order of ``values``, then of ``stems``."""
    floor: Mapping[tuple[Measure, str], Statistic]
    """Scores of the mixture taken as the estimate, by measure and stem."""
    oracle: Mapping[tuple[Measure, str], Statistic]
    """Scores of the ideal ratio mask."""
    left_out: tuple[tuple[str, str], ...]
    """Runs that are not compared, each with the reason."""
    notes: tuple[str, ...]
    """Sentences on what a reader should know of the numbers."""

    def group(self, key: tuple[str, ...], stem: str) -> Group | None:
        """The group of these values and this stem, if there is one."""
        found = (group for group in self.groups if (group.key, group.stem) == (key, stem))
        return next(found, None)

    @property
    def keys(self) -> tuple[tuple[str, ...], ...]:
        """The values that there are groups of, in order."""
        return tuple(dict.fromkeys(group.key for group in self.groups))


def mean_curve(runs: Sequence[Mapping[float, float]]) -> MeanCurve:
    """The mean of runs' values by epoch."""
    finite = [{e: v for e, v in run.items() if math.isfinite(v)} for run in runs]
    finite = [run for run in finite if run]
    points: dict[float, list[float]] = {}
    for epoch in sorted({epoch for run in finite for epoch in run}):
        of_runs = [
            run.get(epoch, run[max(run)] if epoch > max(run) else math.nan) for run in finite
        ]
        points[epoch] = [value for value in of_runs if math.isfinite(value)]
    return MeanCurve(
        epochs=tuple(points),
        mean=tuple(statistics.fmean(values) for values in points.values()),
        low=tuple(min(values) for values in points.values()),
        high=tuple(max(values) for values in points.values()),
        complete_until=min((max(run) for run in finite), default=-math.inf),
    )
