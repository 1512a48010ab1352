"""Folder and run of trainings that belong together: made once, taken up again, never mixed up."""

import dataclasses
from pathlib import Path
from typing import Any

import pytest

from bsrnn_core.errors import BadInput
from pipelines import tracking
from pipelines.config import tiny
from pipelines.config_files import RUN_CONFIG, read_yaml, save_yaml
from pipelines.experiment_plan import ExperimentConfig
from pipelines.parent_run import parent_folder, parent_run


def config(out: Path, train: dict[str, Any] | None = None, **options: Any) -> ExperimentConfig:
    values = {"name": "exp", "out": str(out), **(train or {})}
    return ExperimentConfig(train=dataclasses.replace(tiny(), **values), **options)


def folder_of(asked: ExperimentConfig) -> Path:
    return parent_folder(asked, asked.train, "an experiment")


def test_a_name_is_used_once(tmp_path: Path):
    first = config(tmp_path)
    folder = folder_of(first)
    save_yaml(first, folder / RUN_CONFIG)
    with pytest.raises(BadInput, match="holds an experiment already"):
        folder_of(first)
    cluster = dataclasses.replace(first.train.cluster, num_workers=2)
    resumed = config(tmp_path, {"resume": True, "cluster": cluster}, max_concurrent=1)
    assert folder_of(resumed) == folder
    with pytest.raises(BadInput, match="num_seeds is 3 and not 2"):
        folder_of(config(tmp_path, {"resume": True}, num_seeds=2))
    with pytest.raises(BadInput, match=r"crop_seconds is 3\.0 and not 2\.0"):
        folder_of(config(tmp_path, {"resume": True, "crop_seconds": 2.0}))


@pytest.mark.parametrize(
    ("name", "said"), [("", "give --name"), ("a/b", "plain folder"), ("..", "plain folder")]
)
def test_a_name_that_is_no_folders_is_refused(tmp_path: Path, name: str, said: str):
    with pytest.raises(BadInput, match=said):
        folder_of(config(tmp_path, {"name": name}))


def test_a_run_is_made_once_and_taken_up_again(
    tmp_path: Path, uri: str, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setenv("MLFLOW_TRACKING_URI", uri)
    asked = config(tmp_path, {"experiment": "parents"}, num_seeds=2)
    folder = folder_of(asked)
    run_id, store = parent_run(asked, asked.train, folder, "experiment")
    assert store == uri
    assert read_yaml(folder / RUN_CONFIG, ExperimentConfig)["num_seeds"] == 2
    tracking.finish_run(run_id, uri, "KILLED")
    more = config(tmp_path, {"experiment": "parents", "resume": True}, max_concurrent=7)
    assert parent_run(more, more.train, folder, "experiment") == (run_id, uri)
    saved = read_yaml(folder / RUN_CONFIG, ExperimentConfig)
    assert (saved["max_concurrent"], saved["resume"]) == (7, False)
    (found,) = tracking.find_runs(uri, "parents")
    assert (found.run_id, found.name, found.status) == (run_id, "exp", "RUNNING")
    assert (found.tags["stage"], found.params["num_seeds"]) == ("experiment", "2")
