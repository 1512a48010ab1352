"""What holds several trainings together: a folder with its options, and one MLflow run."""

from collections.abc import Collection
from pathlib import Path

from bsrnn_core.errors import BadInput
from pipelines import base, tracking
from pipelines.config import PARENT_STAGES, TrainConfig
from pipelines.config_files import (
    RUN_CONFIG,
    changes,
    read_yaml,
    save_yaml,
    with_values,
    yaml_values,
)

CHANGEABLE = (
    *("resume", "max_concurrent", "device", "num_workers", "threads_per_worker"),
    *("data_loader_workers", "max_failures", "log_every_steps", "shards"),
    *("stall_seconds", "wait_minutes"),
)
"""Options that may be others when the trainings are resumed."""


def parent_folder(
    config: object, train: TrainConfig, noun: str, changeable: Collection[str] = CHANGEABLE
) -> Path:
    """The folder of the trainings that ``config`` asks for, OUT/NAME.

    Raises BadInput when it is taken, or holds others than those that are to be resumed.
    """
    folder = base.run_folder(train)
    if not isinstance(folder, Path):
        raise BadInput(
            f"{noun} keeps its books in --out, which must be a folder that all machines share and "
            f"not {train.out}; its --shards may be in object storage"
        )
    saved = folder / RUN_CONFIG
    if not saved.exists():
        return folder
    if not train.resume:
        raise BadInput(f"{folder} holds {noun} already: take another --name, or --resume")
    was, now = read_yaml(saved, type(config)), yaml_values(config)
    changed = changes(was, now, [name for name in was if name not in changeable])
    if changed:
        raise BadInput(f"{folder} is {noun} with other options: {'; '.join(changed)}")
    return folder


def parent_run(config: object, train: TrainConfig, folder: Path, stage: str) -> tuple[str, str]:
    """Id and store of the parent's MLflow run: of an earlier invocation, or new.

    Raises BadInput when the store cannot be used.
    """
    assert stage in PARENT_STAGES
    folder.mkdir(parents=True, exist_ok=True)
    before = base.recorded_run(folder)
    # Those of the last invocation count for the next.
    save_yaml(with_values(config, {"resume": False}), folder / RUN_CONFIG)
    if before:
        tracking.reopen_run(before["run_id"], before["tracking_uri"])
        return before["run_id"], before["tracking_uri"]
    uri = tracking.tracking_uri()
    tags = {"stage": stage, "git_commit": base.git_commit()}
    params = tracking.flatten(config)
    run_id = tracking.create_run(uri, train.experiment, train.name, params, tags)
    base.record_run(folder, run_id, uri)
    return run_id, uri
