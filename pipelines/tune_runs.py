"""A trial of a sweep as a training, in a process of its own, and as an MLflow run."""

import logging
import math
import os
from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor, wait
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import ray
import torch
from ray import tune

from bsrnn_core.checkpoint import read_metadata
from bsrnn_core.errors import BadInput
from pipelines import base, tracking
from pipelines.config import VALID_MEAN, TrainConfig
from pipelines.config_files import with_values
from pipelines.launch import build_trainer, run_trainer
from pipelines.run_files import JOURNAL_FILE
from pipelines.tune_plan import Plan, TuneConfig, trial_config
from pipelines.tune_space import as_words
from pipelines.tune_trials import BEST, FINISHED, Ledger, Trial
from pipelines.worker import Launch

logger = logging.getLogger(__name__)

STATUSES: dict[str, tracking.RunStatus] = {"finished": "FINISHED", "failed": "FAILED"}
"""How MLflow calls what became of a trial; all else is KILLED."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Setting:
    """What all trials of a running sweep share."""

    config: TuneConfig
    space: Plan
    folder: Path
    shards: Mapping[str, str]
    """The prepared datasets, by ``Plan.dataset``."""
    run_id: str
    """The parent run."""
    tracking_uri: str
    threads: int | None
    """CPU threads of a worker (None: its own choice)."""
    board: Any
    """The StatusBoard that trials post to."""


def run_trial(drawn: dict[str, Any], *, setting: Setting) -> dict[str, float]:
    """One trial, in a process of its own: a training like any other."""
    values = setting.space.values(drawn)
    options = trial_options(tune.get_context().get_trial_name(), values, setting)
    os.environ["MLFLOW_TRACKING_URI"] = setting.tracking_uri
    # Its own work at the end is not to disturb other trials.
    torch.set_num_threads(setting.threads or 1)

    def launch_with(launch: Launch) -> None:
        # Ray Tune's own way from a training's workers to the trial loses the last epoch.
        with ThreadPoolExecutor(1) as thread:
            training = thread.submit(run_trainer, build_trainer(launch, setting.board))
            told = 0
            while True:
                over = training.done()
                epochs: Any = ray.get(setting.board.read_epochs.remote(options.name, told))
                for metrics in epochs:
                    if VALID_MEAN in metrics:
                        tune.report(metrics | _best_so_far(launch.job.folder))
                told += len(epochs)
                if over:
                    break
                wait([training], timeout=0.5)
            training.result()

    launch = base.train(options, launch_with, parent_run_id=setting.run_id)
    return {FINISHED: 1.0, **_best_so_far(launch.job.folder)}


def _best_so_far(folder: Path) -> dict[str, float]:
    usdr = read_metadata(folder / "best").get(VALID_MEAN)
    return {BEST: math.nan if usdr is None else usdr}


def trial_options(name: str, values: Mapping[str, Any], setting: Setting) -> TrainConfig:
    """A trial's options with what only the running sweep knows.

    Raises BadInput where the values do not go together.
    """
    options = trial_config(setting.config, values)
    shared: dict[str, Any] = {
        "name": name,
        "out": str(setting.folder),
        "shards": setting.shards[setting.space.dataset(values)],
        "resume": base.recorded_run(setting.folder / name) is not None,
        "threads_per_worker": setting.threads,
    }
    return with_values(options, shared)


def report_end(trial: Trial, setting: Setting) -> None:
    """Say how a trial ended, here and in MLflow."""
    usdr = f", {trial.best_usdr:.2f} dB" if math.isfinite(trial.best_usdr) else ""
    error = f": {trial.error}" if trial.error else ""
    logger.info("%s (%s) %s%s%s", trial.name, as_words(trial.values), trial.state, usdr, error)
    _close(trial, setting)


def _close(trial: Trial, setting: Setting) -> None:
    """Bring a trial's MLflow run to where the trial stands; one that failed before it had any gets
    it."""
    folder = setting.folder / trial.name
    tags = {"outcome": _outcome(trial)}
    if trial.error:
        tags["error"] = trial.error
    record = base.recorded_run(folder)
    if record is None and trial.state == "failed":
        train, uri = setting.config.train, setting.tracking_uri
        tags |= {"stage": train.stage, "stems": ",".join(train.part)}
        try:
            run_id = tracking.create_run(
                uri, train.experiment, trial.name, trial.values, tags, setting.run_id
            )
        except BadInput as error:
            logger.warning("%s has no MLflow run: %s", trial.name, error)
            return
        base.record_run(folder, run_id, uri)
        record = base.recorded_run(folder)
    if record is not None:
        status = STATUSES.get(trial.state, "KILLED")
        tracking.finish_run(record["run_id"], record["tracking_uri"], status, tags)


def close_all(ledger: Ledger, setting: Setting) -> None:
    """Close what this and earlier invocations left open, or a dying process has closed wrongly."""
    children = f"tags.`mlflow.parentRunId` = '{setting.run_id}'"
    try:
        runs = tracking.find_runs(setting.tracking_uri, setting.config.train.experiment, children)
    except BadInput as error:
        logger.warning("the states of the trials are not checked: %s", error)
        return
    recorded = {run.name: (run.status, run.tags.get("outcome", "")) for run in runs}
    for trial in ledger.trials:
        wanted = STATUSES.get(trial.state, "KILLED"), _outcome(trial)
        never_begun = trial.name not in recorded and trial.state == "waiting"
        if not never_begun and recorded.get(trial.name) != wanted:
            _close(trial, setting)
        if trial.state != "finished":
            _send_what_is_left(setting.folder / trial.name)


def _send_what_is_left(folder: Path) -> None:
    """Let the points of a trial that was stopped arrive, which had no time to send them."""
    record, journal = base.recorded_run(folder), folder / JOURNAL_FILE
    if record and journal.exists():
        tracking.Tracker(record["run_id"], record["tracking_uri"], journal=journal).close()


def _outcome(trial: Trial) -> str:
    return trial.state if trial.ended else "unfinished"
