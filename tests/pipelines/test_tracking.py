"""Runs in a real sqlite store."""

import os
import signal
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
from pipelines import tracking, tracking_runs
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


# Looking at runs


def curve(uri: str, run_id: str, points: list[tuple[int, float]], name: str) -> None:
    with tracking.Tracker(run_id, uri) as tracker:
        for step, value in points:
            tracker.log(step, {name: value})
        assert tracker.flush(30)


def test_runs_are_found_oldest_first_with_what_they_hold(
    uri: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(tracking_runs, "RUNS_PER_PAGE", 2)
    run_id = ""
    for index in range(5):
        tags = {"stage": "transfer" if index % 2 else "base"}
        run_id = tracking.create_run(uri, "tests", f"run {index}", {"seed": index}, tags)
        tracking.log_results(run_id, uri, {"test/usdr_drums": index, "n": float("nan")}, [])
        time.sleep(0.002)  # the store counts in milliseconds
    tracking.create_run(uri, "another", "not here", {}, {})
    tracking.finish_run(run_id, uri, "KILLED")
    runs = tracking.find_runs(uri, "tests")
    assert [run.name for run in runs] == [f"run {index}" for index in range(5)]
    last = runs[-1]
    assert (last.run_id, last.status) == (run_id, "KILLED")
    assert [run.status for run in runs[:-1]] == ["RUNNING"] * 4
    assert last.params == {"seed": "4"}
    assert last.tags["stage"] == "base"
    assert last.metrics["test/usdr_drums"] == 4.0
    assert last.metrics["n"] != last.metrics["n"]
    chosen = tracking.find_runs(uri, "tests", "tags.stage = 'transfer' and params.seed != '1'")
    assert [run.name for run in chosen] == ["run 3"]
    assert tracking.find_runs(uri, "tests", "tags.stage = 'mtl'") == []


def test_more_runs_than_asked_for_are_refused_and_not_cut_off(uri: str) -> None:
    for index in range(3):
        tracking.create_run(uri, "tests", f"run {index}", {}, {})
    assert len(tracking.find_runs(uri, "tests", max_results=3)) == 3
    with pytest.raises(BadInput, match="more than 2 runs of tests"):
        tracking.find_runs(uri, "tests", max_results=2)


@pytest.mark.parametrize(
    ("filter_string", "reason"),
    [
        ("stage is transfer", "Invalid clause"),
        ("tags.stage = transfer", "not quoted"),
        ("params.seed = 1", "Expected a quoted string value"),
        ("foo.bar = 'x'", "Invalid entity type 'foo'"),
    ],
)
def test_a_filter_that_mlflow_does_not_understand_is_refused(
    uri: str, run_id: str, filter_string: str, reason: str
) -> None:
    with pytest.raises(BadInput) as refusal:
        tracking.find_runs(uri, "tests", filter_string)
    sentence = str(refusal.value)
    assert f"does not understand the filter {filter_string} (" in sentence
    assert reason in sentence
    assert sentence.endswith("as in tags.stage = 'transfer' and params.seed = '1'")
    assert "\n" not in sentence


def test_an_experiment_that_is_not_there_is_refused(uri: str, run_id: str) -> None:
    with pytest.raises(BadInput, match=r"holds no experiment test; did you mean tests\?"):
        tracking.find_runs(uri, "test")
    with pytest.raises(BadInput, match=r"no experiment nothing like it; there are .*tests"):
        tracking.find_runs(uri, "nothing like it")
    MlflowClient(uri).delete_experiment(get_run(uri, run_id).info.experiment_id)
    with pytest.raises(BadInput, match="holds no experiment tests"):
        tracking.find_runs(uri, "tests")


def test_to_look_for_runs_makes_no_store(tmp_path: Path) -> None:
    uri = f"sqlite:///{tmp_path / 'mlflow.db'}"
    with pytest.raises(BadInput, match=r"there is no .*mlflow\.db.*MLFLOW_TRACKING_URI"):
        tracking.find_runs(uri, "tests")
    with pytest.raises(BadInput, match=r"there is no .*mlflow\.db"):
        tracking.metric_curves(uri, "0" * 32, ["x"])
    assert list(tmp_path.iterdir()) == []
    with pytest.raises(BadInput, match="no MLflow server answers"):
        tracking.find_runs(f"http://127.0.0.1:{free_port()}", "tests")


def test_curves_come_by_step_with_the_last_value_of_each(uri: str, run_id: str) -> None:
    curve(uri, run_id, [(10, 1.0), (20, float("nan")), (30, 3.0)], "valid/usdr_my (own) stem")
    for step, value, timestamp in ((30, 8.0, 2), (10, 9.0, 1), (30, 7.0, 3)):
        MlflowClient(uri).log_metric(run_id, "again", value, timestamp, step)
    curves = tracking.metric_curves(uri, run_id, ["valid/usdr_my (own) stem", "again", "never"])
    assert str(curves["valid/usdr_my (own) stem"]) == "[(10, 1.0), (20, nan), (30, 3.0)]"
    assert curves["again"] == [(10, 9.0), (30, 7.0)]
    assert curves["never"] == []


@pytest.mark.proof
def test_a_server_is_looked_at_like_a_file(uri: str, run_id: str, tmp_path: Path) -> None:
    curve(uri, run_id, [(10, 1.0), (20, float("nan"))], "valid/usdr_drums")
    port = free_port()
    command = ["-m", "mlflow", "server", "--backend-store-uri", uri, "--port", str(port)]
    with (tmp_path / "log").open("w") as log:
        server = subprocess.Popen(
            [sys.executable, *command, "--workers", "1"],
            stdout=log, stderr=log, cwd=tmp_path, start_new_session=True,
        )  # fmt: skip
    try:
        address = f"http://127.0.0.1:{port}"
        deadline = time.monotonic() + 120
        while tracking.check_reachable(address) is not None:
            assert time.monotonic() < deadline, (tmp_path / "log").read_text()
            time.sleep(0.5)
        for place in (uri, address):
            (run,) = tracking.find_runs(place, "tests", "attributes.status = 'RUNNING'")
            assert (run.run_id, run.name) == (run_id, "one")
            assert str(run.metrics) == "{'valid/usdr_drums': nan}"
            curves = tracking.metric_curves(place, run_id, ["valid/usdr_drums"])
            assert str(curves["valid/usdr_drums"]) == "[(10, 1.0), (20, nan)]"
            with pytest.raises(BadInput, match="does not understand the filter x y"):
                tracking.find_runs(place, "tests", "x y")
            with pytest.raises(BadInput, match="did you mean tests"):
                tracking.find_runs(place, "test")
    finally:
        os.killpg(server.pid, signal.SIGKILL)
        server.wait()
