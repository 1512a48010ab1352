"""Search options of a training with Ray Tune: sizes, band schema, learning rate, anything.

    bsrnn tune --part drums --musdbhq_location musdb18hq --name sweep \
        --space "feature_dim=[32,64,128]" "num_blstm_layers=[4,8]" "band_schema=[v7,generic]"
    ray job submit -- python pipelines/tune.py --search tpe --num_samples 40 ...

Each trial is a training like any other: a child of one MLflow run, in OUT/NAME/TRIAL. Trials that
lag behind are stopped (ASHA); one that fails does not end the sweep; --resume goes on with it. It
ends with OUT/NAME/sweep: a table, figures, and best.yaml, which `bsrnn train --config` takes.
"""

import dataclasses
import logging
import math
import os
import sys
from collections.abc import Mapping
from datetime import datetime
from pathlib import Path
from typing import Any

import ray
from ray import tune
from ray.tune.search.optuna import OptunaSearch
from ray.util.state import list_nodes
from ray.util.state.exception import RayStateApiException

from bsrnn_core.errors import BadInput
from data_prep.batches import training_channels
from data_prep.shards import ShardDataset
from pipelines import base, tune_results
from pipelines.launch import start_ray
from pipelines.parent_run import parent_folder, parent_run
from pipelines.status_board import new_board
from pipelines.tune_plan import Plan, TuneConfig, datasets, plan
from pipelines.tune_progress import show_trials
from pipelines.tune_room import DRIVER_CPUS, fitted_room
from pipelines.tune_runs import Setting, close_all, report_end, run_trial
from pipelines.tune_trials import BEST, LEDGER_FILE, Asha, Ledger, LedgerKeeper

logger = logging.getLogger(__name__)

CHANGEABLE = (
    *("resume", "num_samples", "max_concurrent", "time_budget_minutes", "device"),
    *("max_failures", "log_every_steps", "data_loader_workers", "wait_minutes"),
)
"""Options that may be others when a sweep is resumed."""
_ENVIRONMENT = {
    # Its own way with Ctrl-C ends a sweep as if all were well.
    "TUNE_DISABLE_SIGINT_HANDLER": "1",
    # Without a metric of the tuner's own it takes its scheduler's for one that is always there.
    "TUNE_DISABLE_STRICT_METRIC_CHECKING": "1",
    # What it prints says less than the table of trials does.
    "RAY_AIR_NEW_OUTPUT": "0",
}


def run(config: TuneConfig) -> Path:
    """Do the trials that are not done yet, then report; returns the folder of the report.

    Raises BadInput for a name already used, a space that means nothing, missing data, options that
    do not fit together, and a sweep that the cluster cannot hold; RuntimeError when no trial could
    be trained.
    """
    config = dataclasses.replace(config, train=base.complete(config.train))
    space = plan(config)
    folder = parent_folder(config, config.train, "a sweep", CHANGEABLE)
    start_ray(config.trial.cluster.num_workers, dashboard=True)
    _check_dashboard()
    slots, threads = fitted_room(config)
    shards = _shards(config, space)
    for remark in space.remarks:
        logger.info("%s", remark)
    run_id, uri = parent_run(config, config.train, folder, "sweep")
    with base.finishing(run_id, uri):
        setting = Setting(
            config=config,
            space=space,
            folder=folder,
            shards=shards,
            run_id=run_id,
            tracking_uri=uri,
            threads=threads,
            board=new_board(),
        )
        ledger = _ledger(setting)
        try:
            _search(ledger, setting, slots)
        finally:
            ledger.halt()
            ledger.save()
            close_all(ledger, setting)
        return tune_results.write(config, space, folder, ledger, run_id, uri)


def _check_dashboard() -> None:
    """Raises BadInput where a stopped trial would keep its CPUs or GPUs for ever."""
    try:
        # Without an address it looks for one, and does not answer where the machine runs two Rays.
        list_nodes(ray.get_runtime_context().gcs_address, limit=1)
    except (RayStateApiException, ConnectionError, ValueError) as error:
        raise BadInput(
            "a sweep needs Ray's dashboard, which cleans up after trials that are stopped, and it "
            "does not answer: start Ray with --include-dashboard=true"
        ) from error


def _shards(config: TuneConfig, space: Plan) -> dict[str, str]:
    """Prepare what trials are made on, once. Raises BadInput where one could not be trained."""
    found: dict[str, str] = {}
    for key, prep in datasets(config, space).items():
        folder = config.train.shards or base.prepared_shards(prep, config.train.out)
        dataset = ShardDataset.open(folder)
        dataset.check(prep, config.train.part)
        training_channels(dataset)
        if not dataset.tracks("valid"):
            raise BadInput(f"{dataset.folder} has no validation songs, which trials are judged by")
        found[key] = str(dataset.folder)
    return found


def _ledger(setting: Setting) -> Ledger:
    """What is known of the trials. Those of a list are in it from the start."""
    ledger, space = Ledger(setting.folder / LEDGER_FILE), setting.space
    for trial in ledger.trials:
        # The values of the space, and not what JSON made of them.
        trial.values = {a.name: a.value(a.drawn(trial.values[a.name])) for a in space.axes}
    for values in (space.points or ())[len(ledger.trials) :]:
        ledger.add(values, _max_epochs(setting.config, values))
    return ledger


def _search(ledger: Ledger, setting: Setting, slots: int) -> None:
    """Let Ray Tune do the trials that are not done."""
    os.environ.update(_ENVIRONMENT)
    # It prints the traceback of every trial that fails; they are among its files.
    logging.getLogger("ray.tune").setLevel(logging.CRITICAL)
    logging.getLogger("optuna").setLevel(logging.WARNING)
    config, space = setting.config, setting.space
    if space.points is not None:
        known = ledger.trials[: len(space.points)]
        open_points = [number for number, trial in enumerate(known) if not trial.ended]
        missing = len(open_points)
        param_space = {"point": tune.grid_search(open_points)}
    else:
        missing = space.num_trials - sum(trial.ended for trial in ledger.trials)
        param_space = None
    if missing <= 0:
        return

    named: dict[str, str] = {}

    def name(trial: Any) -> str:
        if trial.trial_id not in named:
            values = space.values(trial.config)
            known = ledger.find(values, named.values())
            known = known or ledger.add(values, _max_epochs(config, values))
            named[trial.trial_id] = known.name
        return named[trial.trial_id]

    tuner = tune.Tuner(
        tune.with_resources(tune.with_parameters(run_trial, setting=setting), {"CPU": DRIVER_CPUS}),
        param_space=param_space,
        tune_config=tune.TuneConfig(
            num_samples=1 if param_space else missing,
            search_alg=None if param_space else _tpe(ledger, setting),
            scheduler=_asha(ledger, setting) if config.asha else None,
            max_concurrent_trials=slots,
            time_budget_s=60 * config.time_budget_minutes if config.time_budget_minutes else None,
            trial_name_creator=name,
            trial_dirname_creator=str,
        ),
        run_config=tune.RunConfig(
            name=f"{datetime.now():%Y%m%d-%H%M%S}",
            storage_path=str(setting.folder / "ray"),
            verbose=0,
            callbacks=[LedgerKeeper(ledger, lambda trial: report_end(trial, setting))],
        ),
    )
    with show_trials(ledger, space, setting.board, slots):
        tuner.fit()


def _max_epochs(config: TuneConfig, values: Mapping[str, Any]) -> int:
    return int(values.get("max_epochs", config.train.optim.max_epochs))


def _asha(ledger: Ledger, setting: Setting) -> Asha:
    config = setting.config
    epochs = [config.train.optim.max_epochs]
    for axis in setting.space.axes:
        if axis.name == "max_epochs":
            epochs = [int(value) for value in axis.extremes]
    shortest = max(1, round(min(epochs) / config.reduction_factor**2))
    return Asha(
        ledger,
        max_epochs=max(epochs),
        grace_epochs=config.grace_epochs or shortest,
        reduction_factor=config.reduction_factor,
    )


def _tpe(ledger: Ledger, setting: Setting) -> OptunaSearch:
    """Optuna's search, which is told of earlier trials and begins with those interrupted."""
    axes = setting.space.axes
    drawn = {
        trial.name: {axis.name: axis.drawn(trial.values[axis.name]) for axis in axes}
        for trial in ledger.trials
    }
    search = OptunaSearch(
        space=OptunaSearch.convert_search_space({axis.name: axis.domain for axis in axes}),
        metric=BEST,
        mode="max",
        points_to_evaluate=[drawn[trial.name] for trial in ledger.trials if not trial.ended],
        # Another one after an interruption, or it would draw what it has drawn before.
        seed=setting.config.train.seed + len(ledger.trials),
    )
    for trial in ledger.trials:
        failed = trial.state == "failed"
        if failed or (trial.ended and math.isfinite(trial.best_usdr)):
            search.add_evaluated_point(drawn[trial.name], trial.best_usdr, error=failed)
    return search


if __name__ == "__main__":
    from pipelines.cli import main

    sys.exit(main(["tune", *sys.argv[1:]]))
