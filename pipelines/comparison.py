"""From recorded runs to a comparison: runs that differ in their seed alone become one group.

Numbers in, numbers out: where the runs come from and what is written and drawn is elsewhere.
"""

import math
from collections.abc import Iterable, Iterator, Mapping, Sequence

from bsrnn_core.config import STEMS
from bsrnn_core.errors import BadInput
from pipelines.comparison_groups import Comparison, Group, Statistic, mean_curve
from pipelines.config import PARENT_STAGES, VALID_MEAN
from pipelines.config_files import nearest
from pipelines.scoring import MEASURES, Measure
from pipelines.tracking_params import mlflow_key
from pipelines.tracking_runs import RecordedRun

EPOCH = "valid/epoch"

SAME_SCORE_DB = 0.005
"""Scores nearer than this are alike in a table."""

RunCurves = Mapping[str, Sequence[tuple[int, float]]]
"""The (step, value) pairs of a run's validation metrics, by the metric's name."""


def trainings(runs: Iterable[RecordedRun]) -> list[RecordedRun]:
    """The runs without the parents that only hold them together."""
    return [run for run in runs if run.tags.get("stage") not in PARENT_STAGES]


def stems_of(run: RecordedRun) -> tuple[str, ...]:
    """The stems that a run estimates; none where it is no training."""
    return tuple(stem for stem in run.tags.get("stems", "").split(",") if stem)


def compare_runs(
    runs: Sequence[RecordedRun],
    curves: Mapping[str, RunCurves],
    by: Sequence[str],
    allow_different_data: bool = False,
) -> Comparison:
    """Group runs (oldest first) by tags or, failing that, parameters; ``curves`` go by run id.

    Raises BadInput when no run has scores, when none knows a name in ``by``, and when they were
    not trained on one dataset, unless that is allowed.
    """
    chosen = trainings(runs)
    left_out = tuple((run.name, why) for run in chosen if (why := _why_not(run, curves)))
    compared = [run for run in chosen if not _why_not(run, curves)]
    if not compared:
        example = ": ".join(left_out[0]) if left_out else "they are no trainings"
        raise BadInput(f"none of the {len(runs)} runs can be compared ({example})")
    _check_names(by, compared)
    if not allow_different_data:
        _check_data(compared)
    orders = tuple(tuple(dict.fromkeys(_value(run, name) for run in compared)) for name in by)
    stems = _stem_order(compared)
    members: dict[tuple[tuple[str, ...], str], list[RecordedRun]] = {}
    for run in compared:
        for stem in stems_of(run):
            members.setdefault((tuple(_value(run, name) for name in by), stem), []).append(run)

    def place(of: tuple[tuple[str, ...], str]) -> tuple[int, ...]:
        key, stem = of
        return (*(order.index(v) for order, v in zip(orders, key, strict=True)), stems.index(stem))

    groups = tuple(_group(*of, members[of], curves) for of in sorted(members, key=place))
    floor, oracle = (_references(compared, stems, s) for s in ("_mixture", "_oracle"))
    return Comparison(
        by=tuple(by),
        values=orders,
        stems=stems,
        groups=groups,
        floor=floor,
        oracle=oracle,
        left_out=left_out,
        notes=tuple(_notes(compared, groups, floor, curves)),
    )


def _why_not(run: RecordedRun, curves: Mapping[str, RunCurves]) -> str:
    """Why a run cannot be compared; nothing when it can."""
    stems = stems_of(run)
    if not stems:
        return "it has no tag stems, as every training has"
    tested = any(_metric(run, f"test/usdr_{stem}") is not None for stem in stems)
    validated = any(curves.get(run.run_id, {}).get(f"valid/usdr_{stem}") for stem in stems)
    return "" if tested or validated else f"it has no scores (it is {run.status})"


def _metric(run: RecordedRun, name: str) -> float | None:
    return run.metrics.get(mlflow_key(name))


def _number(run: RecordedRun, name: str) -> float:
    value = _metric(run, name)
    return math.nan if value is None else value


def _value(run: RecordedRun, name: str) -> str:
    return run.tags.get(name, run.params.get(name, ""))


def _check_names(by: Sequence[str], runs: Sequence[RecordedRun]) -> None:
    if not by or len(set(by)) != len(by):
        raise BadInput(f"by must hold one or more different names, not {' '.join(by) or 'none'}")
    tags = dict.fromkeys(tag for run in runs for tag in run.tags if not tag.startswith("mlflow."))
    known = dict.fromkeys([*tags, *(param for run in runs for param in run.params)])
    for name in by:
        if name not in known and not any(name in run.tags for run in runs):
            hint = nearest(name, known) or f"; there are {', '.join(sorted(tags))}"
            raise BadInput(f"no run has a tag or parameter {name}{hint}")


def _check_data(runs: Sequence[RecordedRun]) -> None:
    hashes = [run.tags.get("manifest_hash", "") for run in runs]
    for run, other in zip(runs, hashes, strict=True):
        if other != hashes[0]:
            one, two = (value[:12] or "an unknown one" for value in (hashes[0], other))
            raise BadInput(
                f"{runs[0].name} and {run.name} were trained on different datasets ({one} and "
                f"{two}): choose one with --filter \"tags.manifest_hash = '...'\", or compare "
                "them all the same with --allow_different_data"
            )


def _stem_order(runs: Sequence[RecordedRun]) -> tuple[str, ...]:
    found = dict.fromkeys(stem for run in runs for stem in stems_of(run))
    return (*(s for s in STEMS if s in found), *(s for s in found if s not in STEMS))


def _group(
    key: tuple[str, ...], stem: str, runs: Sequence[RecordedRun], curves: Mapping[str, RunCurves]
) -> Group:
    def statistic(name: str) -> Statistic:
        return Statistic(tuple(_number(run, name) for run in runs))

    of_runs = [curves.get(run.run_id, {}) for run in runs]
    usdr, floor = statistic(f"test/usdr_{stem}"), statistic(f"test/usdr_{stem}_mixture")
    return Group(
        key=key,
        stem=stem,
        runs=tuple(run.name for run in runs),
        seeds=tuple(run.params.get("seed", "") for run in runs),
        test={measure: statistic(f"test/{measure}_{stem}") for measure in MEASURES},
        gain=Statistic(tuple(a - b for a, b in zip(usdr.values, floor.values, strict=True))),
        valid=Statistic(tuple(_kept_validation(of_run, stem) for of_run in of_runs)),
        curve=mean_curve([_by_epoch(of_run, stem) for of_run in of_runs]),
        minutes=statistic("system/minutes"),
        parameters_trained=statistic("system/parameters_trained"),
        peak_memory_gb=statistic("system/peak_memory_gb"),
    )


def _kept_validation(curves: RunCurves, stem: str) -> float:
    own = [(step, v) for step, v in curves.get(f"valid/usdr_{stem}", ()) if math.isfinite(v)]
    means = [(step, v) for step, v in curves.get(VALID_MEAN, ()) if math.isfinite(v)]
    # max keeps the first of equals, as a training does.
    best_step, _ = max(means or own, key=lambda point: point[1], default=(None, math.nan))
    return dict(own).get(best_step, math.nan) if best_step is not None else math.nan


def _by_epoch(curves: RunCurves, stem: str) -> dict[float, float]:
    epochs = dict(curves.get(EPOCH, ()))
    points = curves.get(f"valid/usdr_{stem}", ())
    return {
        epochs[step]: value for step, value in points if math.isfinite(epochs.get(step, math.nan))
    }


def _references(
    runs: Sequence[RecordedRun], stems: Sequence[str], ending: str
) -> dict[tuple[Measure, str], Statistic]:
    """The scores that do not depend on the model, as all evaluated runs have them."""
    return {
        (measure, stem): Statistic(
            tuple(
                value
                for run in runs
                if (value := _metric(run, f"test/{measure}_{stem}{ending}")) is not None
            )
        )
        for measure in MEASURES
        for stem in stems
    }


def _notes(
    runs: Sequence[RecordedRun],
    groups: Sequence[Group],
    floor: Mapping[tuple[Measure, str], Statistic],
    curves: Mapping[str, RunCurves],
) -> Iterator[str]:
    hashes = dict.fromkeys(run.tags.get("manifest_hash", "") for run in runs)
    if len(hashes) > 1:
        shown = ", ".join(value[:12] or "unknown" for value in hashes)
        yield f"The runs were trained on {len(hashes)} datasets: {shown}."
    for run in runs:
        if run.status != "FINISHED":
            yield f"{run.name} is {run.status}."
        lacking = [
            f"{measure} of {stem}"
            for stem in stems_of(run)
            for measure in MEASURES
            if math.isnan(_number(run, f"test/{measure}_{stem}"))
        ]
        if lacking:
            yield f"{run.name} has no test {', '.join(lacking)}: counted as nan."
        if curves.get(run.run_id) and EPOCH not in curves[run.run_id]:
            yield f"{run.name} has no {EPOCH}: its validations are not drawn."
    for group in groups:
        for seed in sorted({s for s in group.seeds if s and group.seeds.count(s) > 1}):
            yield (
                f"{' '.join(group.key)}, {group.stem}: {group.seeds.count(seed)} runs have seed "
                f"{seed}, and each counts."
            )
    unlike = [
        f"{measure} of {stem} by {max(scores.finite) - min(scores.finite):.2f} dB"
        for (measure, stem), scores in floor.items()
        if scores.finite and max(scores.finite) - min(scores.finite) > SAME_SCORE_DB
    ]
    if unlike:
        yield (
            f"The mixture's own scores differ between runs ({', '.join(unlike)}): not all were "
            "scored on the same songs and seconds."
        )
