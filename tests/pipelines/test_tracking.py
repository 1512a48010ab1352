"""Runs in a real sqlite store."""

import socket
import sqlite3
import subprocess
import sys
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
from mlflow import MlflowClient
from mlflow.entities import Run

from bsrnn_core.errors import BadInput
from pipelines import tracking
from pipelines.config import tiny


def get_run(uri: str, run_id: str) -> Run:
    return MlflowClient(uri).get_run(run_id)


def files(uri: str, run_id: str, folder: str) -> list[str]:
    return sorted(item.path for item in MlflowClient(uri).list_artifacts(run_id, folder))


def free_port() -> int:
    with socket.socket() as server:
        server.bind(("127.0.0.1", 0))
        return server.getsockname()[1]


# Starting a run


def test_a_run_holds_its_parameters_tags_and_parent(uri: str) -> None:
    parent = tracking.create_run(uri, "tests", "sweep", {}, {})
    params = {f"p{index}": index for index in range(250)}
    odd = {"none": None, "empty": "", "long": "x" * 9000, "stems": ("vocals", "my (own) stem")}
    tags = {"stage": "mtl", "long": "y" * 9000, "empty": ""}
    run_id = tracking.create_run(uri, "tests", "trial", params | odd, tags, parent)
    run = get_run(uri, run_id)
    assert run.info.status == "RUNNING"
    assert run.info.run_name == "trial"
    assert len(run.data.params) == 254
    assert run.data.params["p249"] == "249"
    assert run.data.params["none"] == "None"
    assert run.data.params["stems"] == "vocals,my (own) stem"
    assert run.data.params["long"] == "x" * 6000
    assert run.data.tags["stage"] == "mtl"
    assert run.data.tags["long"] == "y" * 8000
    assert run.data.tags["mlflow.parentRunId"] == parent


def test_artifacts_lie_beside_the_database_wherever_the_program_runs(
    uri: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run_id = tracking.create_run(uri, "tests", "one", {}, {})
    (tmp_path / "elsewhere").mkdir()
    monkeypatch.chdir(tmp_path / "elsewhere")
    (tmp_path / "report.txt").write_text("fine")
    assert tracking.log_results(run_id, uri, {}, [(tmp_path / "report.txt", "reports")]) is None
    folder = tmp_path / "a store #1" / "mlartifacts" / run_id / "artifacts"
    assert (folder / "reports" / "report.txt").read_text() == "fine"
    assert not list((tmp_path / "elsewhere").iterdir())


def test_programs_that_start_together_share_one_experiment(uri: str) -> None:
    barrier = threading.Barrier(4)

    def start(index: int) -> str:
        barrier.wait()
        return tracking.create_run(uri, "new", f"run {index}", {"index": index}, {})

    with ThreadPoolExecutor(4) as pool:
        run_ids = list(pool.map(start, range(4)))
    assert len(set(run_ids)) == 4
    assert len({get_run(uri, run_id).info.experiment_id for run_id in run_ids}) == 1


@pytest.mark.proof
def test_first_users_of_a_new_database_wait_for_each_other(tmp_path: Path) -> None:
    command = (
        "import sys; from pipelines import tracking; "
        "tracking.create_run(sys.argv[1], 'tests', 'one', {}, {})"
    )
    uri = f"sqlite:///{tmp_path / 'mlflow.db'}"
    programs = [subprocess.Popen([sys.executable, "-c", command, uri]) for _ in range(2)]
    assert [program.wait(120) for program in programs] == [0, 0]
    client = MlflowClient(uri)
    experiment = client.get_experiment_by_name("tests")
    assert experiment is not None
    assert len(client.search_runs([experiment.experiment_id])) == 2


def test_a_deleted_experiment_is_refused_with_the_way_out(uri: str, run_id: str) -> None:
    experiment_id = get_run(uri, run_id).info.experiment_id
    MlflowClient(uri).delete_experiment(experiment_id)
    with pytest.raises(BadInput, match=f"restore --experiment-id {experiment_id}"):
        tracking.create_run(uri, "tests", "two", {}, {})


def test_a_run_is_refused_when_no_server_answers() -> None:
    uri = f"http://127.0.0.1:{free_port()}"
    start = time.monotonic()
    with pytest.raises(BadInput, match=rf"{uri}.*start it, or unset MLFLOW_TRACKING_URI"):
        tracking.create_run(uri, "tests", "one", {}, {})
    assert time.monotonic() - start < 3


def test_a_file_that_is_no_store_of_mlflow_is_refused(tmp_path: Path) -> None:
    database = tmp_path / "other.db"
    with sqlite3.connect(database) as connection:
        connection.execute("create table alembic_version (version_num text)")
        connection.execute("insert into alembic_version values ('from another program')")
    with pytest.raises(BadInput, match=r"other.db cannot be used"):
        tracking.create_run(f"sqlite:///{database}", "tests", "one", {}, {})


# Parameters


def test_parameters_are_named_as_on_the_command_line() -> None:
    params = tracking.flatten(tiny())
    assert params["lr"] == str(tiny().optim.lr)
    assert params["feature_dim"] == str(tiny().model.feature_dim)
    assert params["stem_names"] == "vocals,drums,bass,other"
    assert params["shards"] == "None"
    assert all(isinstance(value, str) for value in params.values())


def test_a_name_that_occurs_twice_keeps_its_path() -> None:
    nested = {"a": {"lr": 1, "deep": {"lr": 2}}, "splits": ((1.0, 2.0),), "b": {"only": True}}
    assert tracking.flatten(nested) == {
        "a.lr": "1",
        "a.deep.lr": "2",
        "splits": "[[1.0, 2.0]]",
        "only": "True",
    }


# After a training


def test_the_state_of_a_run_follows_it(uri: str, run_id: str) -> None:
    for status in ("KILLED", "FAILED", "FINISHED"):
        tracking.finish_run(run_id, uri, status)
        assert get_run(uri, run_id).info.status == status
        tracking.reopen_run(run_id, uri)
        assert get_run(uri, run_id).info.status == "RUNNING"


def test_results_join_a_finished_run(uri: str, run_id: str, tmp_path: Path) -> None:
    tracking.finish_run(run_id, uri, "FINISHED")
    (tmp_path / "scores.json").write_text("{}")
    metrics = {f"test/{index}": float(index) for index in range(1500)}
    problem = tracking.log_results(run_id, uri, metrics, [(tmp_path / "scores.json", "scores")])
    assert problem is None
    assert get_run(uri, run_id).data.metrics == metrics
    assert files(uri, run_id, "scores") == ["scores/scores.json"]


def test_results_that_cannot_be_recorded_are_one_sentence(
    uri: str, run_id: str, tmp_path: Path
) -> None:
    missing = tmp_path / "missing.json"
    problem = tracking.log_results(run_id, uri, {"test/a": 1.0}, [(missing, "scores")])
    assert problem is not None
    assert "missing.json" in problem
    elsewhere = tmp_path / "elsewhere.db"
    problem = tracking.log_results(run_id, f"sqlite:///{elsewhere}", {"test/a": 1.0}, [])
    assert problem is not None
    assert "elsewhere.db is not on this machine" in problem
    assert not elsewhere.exists()


def test_where_to_look_at_a_run(uri: str, run_id: str) -> None:
    experiment_id = get_run(uri, run_id).info.experiment_id
    place = tracking.run_url(run_id, uri)
    assert f"http://127.0.0.1:5000/#/experiments/{experiment_id}/runs/{run_id}" in place
    assert f"mlflow ui --backend-store-uri '{uri}'" in place
    away = f"http://127.0.0.1:{free_port()}"
    assert tracking.run_url(run_id, away) == away
