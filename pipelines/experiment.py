"""The original's experiment at any size: band schemas compared over stages, stems and seeds.

    bsrnn experiment --musdbhq_location musdb18hq --preset small --name exp --schemas v7 generic
    ray job submit -- python pipelines/experiment.py --preset paper --name paper --num_workers 8 ...

Each training (experiment_plan.py) is a child of one MLflow run, and goes to OUT/NAME/STEP, scored
on the test songs. What is finished is not done again after an interruption (--resume); trainings
run side by side where the cluster has room. It ends with OUT/NAME/comparison: the original's
figure, a bar chart and a table, which MLflow holds too.
"""

import dataclasses
import json
import logging
import math
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from queue import SimpleQueue
from threading import Thread

from rich.progress import Progress

from bsrnn_core.errors import BadInput
from data_prep.batches import training_channels
from data_prep.shards import ShardDataset
from data_prep.storage import Location
from pipelines import base, compare, display, evaluate, tracking
from pipelines.config import TrainConfig
from pipelines.config_files import RUN_CONFIG
from pipelines.experiment_plan import ExperimentConfig, Step, plan
from pipelines.launch import check_resources, room, start_ray
from pipelines.parent_run import parent_folder, parent_run

logger = logging.getLogger(__name__)

SCORED_FILE = "scored.json"
"""Written last into a step's folder: with it, the step is finished."""
COMPARISON = "comparison"
"""The folder of the results, in the experiment's and among the parent run's artifacts."""
BY = ("band_schema", "way")
"""What the trainings are compared by."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Setting:
    """What all steps of a running experiment share."""

    folder: Path
    shards: Location
    run_id: str
    """The parent run."""
    tracking_uri: str
    threads: int | None
    """CPU threads of a worker (None: its own choice)."""
    bars: Progress


def run(config: ExperimentConfig) -> Path:
    """Do all that is not done yet, then compare; returns the folder of the comparison.

    Raises BadInput for a name already used, missing data or options that do not fit together, and
    RuntimeError when steps failed: the others are done and compared all the same.
    """
    steps = plan(config)
    folder = parent_folder(config, config.train, "an experiment")
    start_ray(config.train.cluster.num_workers)
    check_resources(config.train.cluster)
    slots, threads = room(config.train.cluster, config.max_concurrent)
    shards = _shards(config)
    run_id, uri = parent_run(config, config.train, folder, "experiment")
    with base.finishing(run_id, uri):
        with display.progress(counted=True) as bars, display.log_above():
            setting = Setting(
                folder=folder,
                shards=shards,
                run_id=run_id,
                tracking_uri=uri,
                threads=threads,
                bars=bars,
            )
            failed = _do_all(steps, setting, slots)
        # Without a single score there is nothing to compare, and the failures are told below.
        if len(failed) < len(steps):
            _compare(config, folder, run_id, uri)
        if failed:
            raise RuntimeError(
                f"{len(failed)} of {len(steps)} trainings failed or could not begin "
                f"({', '.join(failed)}); the same command with --resume tries them again"
            )
    return folder / COMPARISON


def _shards(config: ExperimentConfig) -> Location:
    """The shards of all steps. Raises BadInput where a step could not be trained or scored."""
    dataset = ShardDataset.open(base.training_shards(config.train))
    dataset.check(config.train.prep, config.stems)
    training_channels(dataset)
    if not dataset.tracks("test"):
        raise BadInput(f"{dataset.folder} has no test songs, which every training is scored on")
    return dataset.folder


def _do_all(steps: Sequence[Step], setting: Setting, slots: int) -> list[str]:
    """Do the steps, ``slots`` at a time; returns the names of those that are not done."""
    waiting = list(steps)
    done: set[str] = set()
    failed: list[str] = []
    running: dict[str, Step] = {}
    outcomes: SimpleQueue[tuple[Step, BaseException | None]] = SimpleQueue()

    def work(step: Step) -> None:
        try:
            _do(step, setting)
        except BaseException as error:
            outcomes.put((step, error))
        else:
            outcomes.put((step, None))

    overall = setting.bars.add_task("trainings", total=len(steps), rate="")
    while waiting or running:
        for step in [step for step in waiting if step.trunk in failed]:
            waiting.remove(step)
            failed.append(step.name)
            setting.bars.update(overall, advance=1)
        ready = [step for step in waiting if step.trunk is None or step.trunk in done]
        for step in ready[: slots - len(running)]:
            waiting.remove(step)
            running[step.name] = step
            # A daemon, for Ctrl-C is not to wait for it.
            Thread(target=work, args=(step,), name=step.name, daemon=True).start()
        if not running:
            continue
        try:
            step, problem = outcomes.get()
        except KeyboardInterrupt:
            _mark_as_killed(list(running), setting)
            raise
        del running[step.name]
        if problem is None:
            done.add(step.name)
        else:
            logger.error("%s failed", step.name, exc_info=problem)
            failed.append(step.name)
        setting.bars.update(overall, advance=1)
    return failed


def _mark_as_killed(names: Sequence[str], setting: Setting) -> None:
    """In MLflow, the trainings that end with this process."""
    for name in names:
        record = base.recorded_run(setting.folder / name)
        if record:
            tracking.finish_run(record["run_id"], record["tracking_uri"], "KILLED")


def _do(step: Step, setting: Setting) -> None:
    """Train and score a step, or what is left of it."""
    folder = setting.folder / step.name
    if (folder / SCORED_FILE).exists():
        return
    launch = base.train(
        _step_config(step, setting),
        lambda launch: base.launch_with_bar(launch, setting.bars),
        parent_run_id=setting.run_id,
        tags={"way": step.way} if step.way else {},
    )
    config = launch.job.config
    scoring = evaluate.EvaluateConfig(
        checkpoint_fp=str(folder / "best"),
        device=config.cluster.device,
        num_workers=1,
        source=config.source,
    )
    evaluation = evaluate.evaluate(scoring, setting.bars)
    files = evaluate.write_results(evaluation, scoring)
    evaluate.log_to_training_run(evaluation, scoring, files)
    scores = evaluation.metrics("test")
    display.write_text(folder / SCORED_FILE, json.dumps(scores, indent=2) + "\n")
    logger.info("%s: test uSDR %.2f dB", step.name, scores.get("test/usdr_mean", math.nan))


def _step_config(step: Step, setting: Setting) -> TrainConfig:
    """The step's options with what only the running experiment knows."""
    trunk = None if step.trunk is None else str(setting.folder / step.trunk / "best")
    cluster = dataclasses.replace(step.config.cluster, threads_per_worker=setting.threads)
    return dataclasses.replace(
        step.config,
        out=str(setting.folder),
        shards=str(setting.shards),
        checkpoint_fp=trunk,
        resume=base.recorded_run(setting.folder / step.name) is not None,
        cluster=cluster,
    )


def _compare(config: ExperimentConfig, folder: Path, run_id: str, uri: str) -> None:
    """Compare what is done, as `bsrnn compare` does, and add it to the parent run."""
    out = folder / COMPARISON
    children = f"tags.`mlflow.parentRunId` = '{run_id}'"
    runs = tracking.find_runs(uri, config.train.experiment, children)
    comparison = compare.collect(uri, runs, BY)
    files = compare.write_comparison(comparison, out, f"Experiment {config.train.name}")
    compare.show(comparison)
    print(f"{', '.join(file.name for file in files)} written to {out}")
    artifacts = [(file, COMPARISON) for file in files] + [(folder / RUN_CONFIG, "")]
    problem = tracking.log_results(run_id, uri, {}, artifacts)
    if problem:
        logger.warning("%s", problem)


if __name__ == "__main__":
    from pipelines.cli import main

    sys.exit(main(["experiment", *sys.argv[1:]]))
