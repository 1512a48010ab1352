"""A comparison as tables: the scores at a glance, all numbers, and those for machines."""

import csv
import io
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from statistics import fmean

from pipelines.comparison_groups import Comparison, Group, Statistic
from pipelines.display import DISPLAY, Cell, text
from pipelines.scoring import Measure

FLOOR, ORACLE = "mixture (floor)", "ideal mask (ceiling)"
LIST = ";"
"""Stands between the elements of a list in CSV."""
UNKNOWN = "-"
"""Shown where a run has no value of what is compared by."""


@dataclass(frozen=True, kw_only=True, slots=True)
class ScoreTable:
    """Scores as mean ± spread: a row per way of training, a column per stem."""

    header: tuple[str, ...]
    rows: tuple[tuple[str, ...], ...]
    best: frozenset[tuple[int, int]]
    """Row and column of the highest mean of each column, floor and oracle left out."""
    rules: tuple[int, ...]
    """Rows that begin a new part: another first value, the floor."""


def score_table(comparison: Comparison, measure: Measure) -> ScoreTable:
    """The test scores of one measure.

    The last columns are the mean over the stems, where there are all, and how many runs count.
    """
    stems, names = comparison.stems, comparison.by
    several = len(stems) > 1
    header = (*names, *stems, *(["mean"] if several else []), "runs")
    rows: list[tuple[str, ...]] = []
    means: list[list[float]] = []
    rules: list[int] = []
    previous = comparison.keys[0][0]
    for key in comparison.keys:
        if len(names) > 1 and key[0] != previous:
            rules.append(len(rows))
            previous = key[0]
        scores = [_scores(comparison.group(key, stem), measure) for stem in stems]
        row_means = [score.mean for score in scores] + [fmean(s.mean for s in scores)] * several
        means.append(row_means)
        cells = [_mean_and_spread(score) for score in scores]
        cells += [_plain(row_means[-1])] * several
        rows.append((*(value or UNKNOWN for value in key), *cells, _counts(scores)))
    rules.append(len(rows))
    for name, references in ((FLOOR, comparison.floor), (ORACLE, comparison.oracle)):
        values = [references[measure, stem].mean for stem in stems]
        cells = [_plain(value) for value in [*values, *[fmean(values)] * several]]
        rows.append((name, *[""] * (len(names) - 1), *cells, ""))
    best = frozenset(
        (row, len(names) + column)
        for column in range(len(stems) + several)
        for row in _best_rows([line[column] for line in means])
    )
    return ScoreTable(header=header, rows=tuple(rows), best=best, rules=tuple(rules))


def _scores(group: Group | None, measure: Measure) -> Statistic:
    return Statistic(()) if group is None else group.test[measure]


def _best_rows(means: Sequence[float]) -> list[int]:
    """All rows that show the highest value, when there is anything to be better than."""
    finite = [value for value in means if math.isfinite(value)]
    if len(finite) < 2:
        return []
    return [row for row, value in enumerate(means) if text(value) == text(max(finite))]


def _plain(value: float) -> str:
    return "" if math.isnan(value) else text(value)


def _mean_and_spread(scores: Statistic) -> str:
    if not scores.values:
        return ""
    spread = "" if math.isnan(scores.spread) else f" ± {text(scores.spread)}"
    nan = f" ({scores.nan} nan)" if scores.nan and scores.finite else ""
    return f"{text(scores.mean)}{spread}{nan}"


def _counts(scores: Sequence[Statistic]) -> str:
    counts = sorted({len(score.finite) for score in scores if score.values})
    return str(counts[0]) if len(counts) == 1 else f"{counts[0]} to {counts[-1]}"


def number_table(comparison: Comparison) -> tuple[list[str], list[list[Cell]]]:
    """Header and rows of all numbers: a row per group and stem."""
    scores = [column for m in DISPLAY.values() for column in (m, f"± {m}")]
    header = [
        *comparison.by,
        "stem",
        "runs",
        "nan",
        *scores,
        "gain",
        "valid",
        "min",
        "GB",
        "trained",
    ]
    return header, [_number_row(group) for group in comparison.groups]


def _number_row(group: Group) -> list[Cell]:
    usdr, csdr = group.test["usdr"], group.test["csdr"]
    trained = group.parameters_trained.mean
    return [
        *(value or UNKNOWN for value in group.key),
        group.stem,
        len(group.runs),
        usdr.nan,
        usdr.mean,
        _blank(usdr.spread),
        csdr.mean,
        _blank(csdr.spread),
        group.gain.mean,
        group.valid.mean,
        group.minutes.mean,
        group.peak_memory_gb.mean,
        trained if math.isnan(trained) else round(trained),
    ]


def _blank(spread: float) -> Cell:
    return "" if math.isnan(spread) else spread


NUMBERS_EXPLAINED = (
    "uSDR and cSDR: mean over the runs that have one, in dB; ±: sample standard deviation over "
    "them; nan: runs without a test uSDR; gain: uSDR above the mixture's; valid: validation uSDR "
    "of the epoch that is kept; min, GB, trained: minutes, peak memory and trained parameters of "
    "the whole training, however many stems it has."
)
"""What the columns of the tables are."""


def csv_text(comparison: Comparison) -> str:
    """All numbers in full precision, in CSV: a row per group and stem, and each run's values."""
    records = [_record(comparison, group) for group in comparison.groups]
    output = io.StringIO()
    writer = csv.DictWriter(output, list(records[0]), lineterminator="\n")
    writer.writeheader()
    writer.writerows(records)
    return output.getvalue()


def _record(comparison: Comparison, group: Group) -> dict[str, object]:
    statistics: Mapping[str, Statistic] = {
        **{f"test_{measure}": scores for measure, scores in group.test.items()},
        "gain": group.gain,
        "valid_usdr": group.valid,
        "minutes": group.minutes,
        "parameters_trained": group.parameters_trained,
        "peak_memory_gb": group.peak_memory_gb,
    }
    record: dict[str, object] = dict(zip(comparison.by, group.key, strict=True))
    record |= {"stem": group.stem, "runs": len(group.runs)}
    for name, statistic in statistics.items():
        record[name] = statistic.mean
        record[f"{name}_spread"] = _blank(statistic.spread)
        record[f"{name}_nan"] = statistic.nan
    for measure in group.test:
        record[f"test_{measure}_mixture"] = comparison.floor[measure, group.stem].mean
        record[f"test_{measure}_oracle"] = comparison.oracle[measure, group.stem].mean
    record["valid_usdr_last"] = group.curve.final
    # As many elements as there are runs, the same run in the same place.
    record["run_names"] = LIST.join(group.runs)
    record["seeds"] = LIST.join(seed or UNKNOWN for seed in group.seeds)
    for measure, scores in group.test.items():
        record[f"test_{measure}_values"] = LIST.join(str(value) for value in scores.values)
    return record
