"""Curves and files on their way to a real sqlite store, and to a server that dies and returns."""

import os
import shutil
import signal
import socket
import statistics
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from mlflow import MlflowClient
from mlflow.entities import Run

from pipelines import tracking


def get_run(uri: str, run_id: str) -> Run:
    return MlflowClient(uri).get_run(run_id)


def history(uri: str, run_id: str, key: str) -> list[tuple[int, float]]:
    return [(m.step, m.value) for m in MlflowClient(uri).get_metric_history(run_id, key)]


def files(uri: str, run_id: str, folder: str) -> list[str]:
    return sorted(item.path for item in MlflowClient(uri).list_artifacts(run_id, folder))


def free_port() -> int:
    with socket.socket() as server:
        server.bind(("127.0.0.1", 0))
        return server.getsockname()[1]


def log_slowly(tracker: tracking.Tracker, steps: range, pause_s: float) -> list[float]:
    """Log a loss at each step; how long each call took, in seconds."""
    durations_s = []
    for step in steps:
        start = time.perf_counter()
        tracker.log(step, {"train/loss": float(step)})
        durations_s.append(time.perf_counter() - start)
        time.sleep(pause_s)
    return durations_s


def assert_never_waited(durations_s: list[float]) -> None:
    """Recording a point itself takes 10 ms and more; a busy machine may delay a few calls."""
    assert statistics.median(durations_s) < 0.002
    assert max(durations_s) < 0.5


# Curves


def test_points_arrive_with_names_that_mlflow_takes(uri: str, run_id: str) -> None:
    with tracking.Tracker(run_id, uri) as tracker:
        for step in range(600):
            tracker.log(step, {"train/loss": 1 / (step + 1), "train/lr": 1e-3})
        tracker.log(600, {"valid/usdr_my (own) stem": 3.5})
        assert tracker.flush(30)
        assert history(uri, run_id, "train/loss") == [(s, 1 / (s + 1)) for s in range(600)]
    assert len(history(uri, run_id, "train/lr")) == 600
    assert history(uri, run_id, "valid/usdr_my _own_ stem") == [(600, 3.5)]


def test_values_that_are_not_finite_show_as_nan(uri: str, run_id: str) -> None:
    with tracking.Tracker(run_id, uri) as tracker:
        tracker.log(1, {"nan": float("nan"), "inf": float("inf"), "train/loss": 2.0})
    metrics = get_run(uri, run_id).data.metrics
    assert metrics["nan"] != metrics["nan"]
    assert metrics["inf"] != metrics["inf"]
    assert metrics["train/loss"] == 2.0


def test_a_resumed_run_logs_no_step_twice(uri: str, run_id: str) -> None:
    with tracking.Tracker(run_id, uri) as tracker:
        for step in range(10):
            tracker.log(step, {"train/loss": float(step)})
        tracker.log(4, {"valid/usdr": 1.0})
    with tracking.Tracker(run_id, uri) as tracker:  # from a checkpoint of step 3
        for step in range(4, 12):
            tracker.log(step, {"train/loss": float(step)})
            if step in (4, 8):
                tracker.log(step, {"valid/usdr": 2.0})
        tracker.log(11, {"train/loss": -1.0})
    assert history(uri, run_id, "train/loss") == [(step, float(step)) for step in range(12)]
    assert history(uri, run_id, "valid/usdr") == [(4, 1.0), (8, 2.0)]


def test_points_wait_for_a_store_that_is_away(
    uri: str, run_id: str, caplog: pytest.LogCaptureFixture
) -> None:
    database = Path(uri.removeprefix("sqlite:///"))
    tracker = tracking.Tracker(run_id, uri, every_s=0.05)
    tracker.log(0, {"train/loss": 0.0})
    assert tracker.flush(30)
    away = database.rename(database.with_suffix(".away"))
    durations_s = log_slowly(tracker, range(1, 200), 0.005)
    assert not tracker.flush(0.1)
    assert not database.exists(), "an empty database was made in its place"
    away.rename(database)
    tracker.close(30)
    assert [step for step, _ in history(uri, run_id, "train/loss")] == list(range(200))
    assert_never_waited(durations_s)
    assert len([r for r in caplog.records if "kept for later" in r.getMessage()]) == 1


def test_a_batch_whose_answer_was_lost_is_recorded_once(
    uri: str, run_id: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    log_batch = MlflowClient.log_batch
    calls: list[int] = []

    def lose_first_answer(client: MlflowClient, *args: Any, **kwargs: Any) -> None:
        log_batch(client, *args, **kwargs)
        calls.append(len(args[1]))
        if len(calls) == 1:
            raise ConnectionError("the answer was lost")

    monkeypatch.setattr(MlflowClient, "log_batch", lose_first_answer)
    with tracking.Tracker(run_id, uri, every_s=0.05) as tracker:
        for step in range(50):
            tracker.log(step, {"train/loss": float(step), "nan": float("nan")})
    assert sum(calls) > 100, "nothing was sent twice"
    assert [step for step, _ in history(uri, run_id, "train/loss")] == list(range(50))
    assert [step for step, _ in history(uri, run_id, "nan")] == list(range(50))


def test_the_newest_points_are_kept_and_the_loss_is_told(
    uri: str, run_id: str, caplog: pytest.LogCaptureFixture
) -> None:
    database = Path(uri.removeprefix("sqlite:///"))
    away = database.rename(database.with_suffix(".away"))
    tracker = tracking.Tracker(run_id, uri, every_s=60, max_points=100)
    for step in range(250):
        tracker.log(step, {"train/loss": float(step)})
    away.rename(database)
    tracker.close(30)
    assert [step for step, _ in history(uri, run_id, "train/loss")] == list(range(150, 250))
    assert "lacks 150 points" in caplog.text


def test_close_gives_up_in_time_and_says_what_is_lost(
    uri: str, run_id: str, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    Path(uri.removeprefix("sqlite:///")).unlink()
    tracker = tracking.Tracker(run_id, uri, every_s=0.05)
    tracker.log(1, {"train/loss": 1.0, "train/lr": 1.0})
    tracker.log_artifacts(tmp_path, "all")
    start = time.monotonic()
    tracker.close(0.5)
    assert time.monotonic() - start < 2
    assert "lacks 2 points and 1 files" in caplog.text


def test_a_deleted_run_is_a_warning(
    uri: str, run_id: str, caplog: pytest.LogCaptureFixture
) -> None:
    MlflowClient(uri).delete_run(run_id)
    tracking.reopen_run(run_id, uri)
    with tracking.Tracker(run_id, uri, every_s=0.05) as tracker:
        tracker.log(1, {"train/loss": 1.0})
    tracking.finish_run(run_id, uri, "FINISHED")
    assert caplog.text.count("is not updated") == 2
    assert "points are refused" in caplog.text
    assert "lacks 1 points" in caplog.text


# Files


def test_files_are_copied_in_order(uri: str, run_id: str, tmp_path: Path) -> None:
    folder = tmp_path / "checkpoint"
    folder.mkdir()
    (folder / "config.json").write_text("{}")
    (tmp_path / "plot.png").write_bytes(b"png")
    with tracking.Tracker(run_id, uri) as tracker:
        tracker.log_artifacts(folder, "best")
        tracker.log_artifact(tmp_path / "plot.png", "plots")
        tracker.log_artifact(tmp_path / "plot.png")
    assert files(uri, run_id, "best") == ["best/config.json"]
    assert files(uri, run_id, "plots") == ["plots/plot.png"]
    assert files(uri, run_id, "") == ["best", "plot.png", "plots"]


def test_a_file_that_is_gone_or_cannot_be_copied_holds_nothing_up(
    uri: str, run_id: str, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    (tmp_path / "plot.png").write_bytes(b"png")
    with tracking.Tracker(run_id, uri, every_s=0.05) as tracker:
        tracker.log_artifact(tmp_path / "gone.png", "plots")
        tracker.log_artifact(tmp_path / "plot.png", "../outside")
        tracker.log_artifact(tmp_path / "plot.png", "plots")
        tracker.log(1, {"train/loss": 1.0})
        tracker.flush(30)
    assert files(uri, run_id, "plots") == ["plots/plot.png"]
    assert history(uri, run_id, "train/loss") == [(1, 1.0)]
    assert caplog.text.count("is not copied") == 2


# A real server


class Server:
    """`mlflow server` on the loopback, which can be killed and started again."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.port = free_port()
        self.uri = f"http://127.0.0.1:{self.port}"
        self.process: subprocess.Popen[bytes] | None = None

    def start(self) -> None:
        command = [sys.executable, "-m", "mlflow", "server", "--host", "127.0.0.1"]
        command += ["--port", str(self.port), "--workers", "1"]
        command += ["--backend-store-uri", f"sqlite:///{self.folder / 'mlflow.db'}"]
        command += ["--artifacts-destination", str(self.folder / "artifacts")]
        with (self.folder / "server.log").open("ab") as log:
            self.process = subprocess.Popen(
                command, stdout=log, stderr=log, cwd=self.folder, start_new_session=True
            )
        deadline = time.monotonic() + 300
        while tracking.check_reachable(self.uri) is not None:
            assert time.monotonic() < deadline, (self.folder / "server.log").read_text()
            time.sleep(0.2)

    def kill(self) -> None:
        if self.process is not None:
            os.killpg(self.process.pid, signal.SIGKILL)
            self.process.wait()
            self.process = None


@pytest.fixture
def server(migrated_database: Path, tmp_path: Path) -> Iterator[Server]:
    shutil.copy(migrated_database, tmp_path / "mlflow.db")
    server = Server(tmp_path)
    server.start()
    yield server
    server.kill()


@pytest.mark.proof
def test_a_server_that_dies_and_returns_gets_every_point(server: Server, tmp_path: Path) -> None:
    (tmp_path / "plot.png").write_bytes(b"png")
    params = {"empty": "", "lr": 1e-3}
    run_id = tracking.create_run(server.uri, "tests", "one", params, {"stage": "base"})
    tracker = tracking.Tracker(run_id, server.uri, every_s=0.2)
    tracker.log(0, {"nan": float("nan"), "inf": float("inf")})
    durations_s = log_slowly(tracker, range(100), 0.01)
    assert tracker.flush(30)
    server.kill()
    durations_s += log_slowly(tracker, range(100, 300), 0.01)
    tracker.log_artifact(tmp_path / "plot.png", "plots")
    start = time.monotonic()
    tracking.finish_run(run_id, server.uri, "FINISHED")
    assert tracking.log_results(run_id, server.uri, {"test/a": 1.0}, []) is not None
    assert time.monotonic() - start < 3
    server.start()
    durations_s += log_slowly(tracker, range(300, 320), 0.01)
    tracker.close(60)
    assert [step for step, _ in history(server.uri, run_id, "train/loss")] == list(range(320))
    assert_never_waited(durations_s)
    assert files(server.uri, run_id, "plots") == ["plots/plot.png"]
    tracking.finish_run(run_id, server.uri, "FINISHED")
    run = get_run(server.uri, run_id)
    assert run.info.status == "FINISHED"
    assert run.data.params == {"empty": "", "lr": "0.001"}
    assert run.data.metrics["inf"] != run.data.metrics["inf"]
    assert tracking.run_url(run_id, server.uri).startswith(f"{server.uri}/#/experiments/")
