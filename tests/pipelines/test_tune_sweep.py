"""A real sweep on a running Ray: killed and gone on with, a bad trial stopped, nothing left."""

import contextlib
import json
import os
import shlex
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import yaml
from mlflow import MlflowClient
from mlflow.entities import Run

from bsrnn_core.checkpoint import read_metadata
from data_prep.demo_songs import make_corpus
from pipelines import tracking

pytestmark = pytest.mark.proof

RATES = (0.002, 0.004, 1.0, 1e30)
"""Learning rates: two that learn, one that is far too high, one whose loss is not finite."""
MAX_EPOCHS, RUNGS = 7, (2, 4)
"""Epochs of a trial, and those after which ASHA looks at it."""
TOY_SWEEP = shlex.split(
    "--musdbhq_location songs --part drums --name toy --experiment toys --max_concurrent 1 "
    f"--max_epochs {MAX_EPOCHS} --grace_epochs 2 --reduction_factor 2 --sample_rate 8000 "
    "--n_fft 256 "
    "--feature_dim 4 --num_blstm_layers 1 --mlp_dim 8 --chunk_size_in_seconds 0.5 "
    "--crop_seconds 0.4 --batch_size 2 --steps_per_epoch 4 --log_every_steps 1 "
    "--max_skipped_steps 3 "
    f"--space 'lr=[{','.join(map(str, RATES))}]'"
)
NUM_CPUS = 2
"""So that a trial that left a CPU taken would keep the next from starting."""
PATIENCE_SECONDS = 600
"""How long a part of the sweep may take on a busy machine."""
LEFT = """
import json, ray
from ray.util import placement_group_table
from ray.util.state import list_actors
ray.init(log_to_driver=False)
groups = [group["state"] for group in placement_group_table().values()]
print(json.dumps({
    "groups": [state for state in groups if state != "REMOVED"],
    "ever": len(groups),
    "actors": [actor.class_name for actor in list_actors() if actor.state == "ALIVE"],
    "cpus": ray.available_resources().get("CPU", 0),
}))
"""
"""A program that says what is left on the Ray of RAY_ADDRESS."""
OF_RAY_DATA = {"_AutoscalingCoordinatorActor", "_StatsActor", "_UsageCollectionActor"}
"""What Ray Data, which made the shards, leaves on a cluster for as long as that runs."""


@dataclass(kw_only=True)
class ToySweep:
    """A sweep that was killed in its second trial, then gone on with."""

    home: Path
    environment: dict[str, str]
    database: str
    """The MLflow store."""
    ledger_when_killed: list[dict[str, Any]]
    statuses_when_killed: dict[str, str]
    """Of the runs in the store: name -> status."""
    files_when_killed: dict[Path, int]
    """The files of the first trial, with their times of change."""
    epoch_when_killed: int
    """Of the second trial's checkpoint."""
    said: str
    """By the resumed sweep."""

    @property
    def folder(self) -> Path:
        """Of the sweep."""
        return self.home / "runs" / "toy"

    def ledger(self) -> list[dict[str, Any]]:
        """The trials as they are now."""
        return json.loads((self.folder / "trials.json").read_text())

    def bsrnn(self, *words: str) -> subprocess.CompletedProcess[str]:
        """Run a command to its end."""
        return subprocess.run(
            [*BSRNN, *words], cwd=self.home, env=self.environment, capture_output=True, text=True,
            timeout=PATIENCE_SECONDS, check=False,
        )  # fmt: skip


BSRNN = (sys.executable, "-m", "pipelines.cli")


def left_on_ray(environment: dict[str, str]) -> dict[str, Any]:
    """What the Ray of an environment holds."""
    said = subprocess.run(
        [sys.executable, "-c", LEFT], env=environment, capture_output=True, text=True,
        timeout=PATIENCE_SECONDS, check=True,
    )  # fmt: skip
    return json.loads(said.stdout.splitlines()[-1])


def wait_until(happened: Callable[[], Any], driver: subprocess.Popen[Any] | None = None) -> None:
    deadline = time.monotonic() + PATIENCE_SECONDS
    while not happened():
        assert time.monotonic() < deadline
        assert driver is None or driver.poll() is None
        time.sleep(0.05)


@contextlib.contextmanager
def running_ray() -> Iterator[dict[str, str]]:
    """A Ray of its own, as `ray start` makes it; yields the environment of who is to use it."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.2", 0))
        address = f"127.0.0.2:{probe.getsockname()[1]}"
    # A short path, for those of sockets have a limit.
    temporary = tempfile.mkdtemp(prefix="ray")
    # Its helpers look for it by this address, for the machine may run another one.
    environment = os.environ | {"RAY_AUTH_MODE": "disabled", "RAY_API_SERVER_ADDRESS": address}
    host, _, port = address.partition(":")
    server = subprocess.Popen(
        [
            *(sys.executable, "-m", "ray.scripts.scripts", "start", "--head", "--block"),
            *("--node-ip-address", host, "--port", port, "--num-cpus", str(NUM_CPUS)),
            *("--dashboard-host", "127.0.0.1", "--dashboard-port", "0", "--disable-usage-stats"),
            *("--temp-dir", temporary, "--object-store-memory", "200000000"),
        ],
        env=environment, stdout=subprocess.DEVNULL, start_new_session=True,
    )  # fmt: skip
    try:
        wait_until((Path(temporary) / "ray_current_cluster").exists, server)
        yield environment | {"RAY_ADDRESS": address}
    finally:
        with contextlib.suppress(ProcessLookupError):
            os.killpg(server.pid, signal.SIGTERM)
        server.wait(timeout=60)
        with contextlib.suppress(ProcessLookupError):
            os.killpg(server.pid, signal.SIGKILL)
        shutil.rmtree(temporary, ignore_errors=True)


@pytest.fixture(scope="module")
def toy_sweep(tmp_path_factory: pytest.TempPathFactory) -> Iterator[ToySweep]:
    """By the command line: killed with -9 once the second trial has a checkpoint, then --resume."""
    home = tmp_path_factory.mktemp("sweep")
    make_corpus(home / "songs", num_train=3, num_valid=1, num_test=1, seconds=4, sample_rate=8000)
    database = f"sqlite:///{home / 'mlflow.db'}"
    folder = home / "runs" / "toy"
    with running_ray() as environment:
        environment["MLFLOW_TRACKING_URI"] = database
        driver = subprocess.Popen([*BSRNN, "tune", *TOY_SWEEP], cwd=home, env=environment)
        try:
            ledger = folder / "trials.json"
            wait_until(
                # The ledger may be looked at when only the first trial is in it.
                lambda: (
                    ledger.exists()
                    and any(trial["validations"] for trial in json.loads(ledger.read_text())[1:2])
                ),
                driver,
            )
        finally:
            driver.send_signal(signal.SIGKILL)
            driver.wait()
        # Workers outlive the driver for a moment.
        wait_until(lambda: "RayTrainWorker" not in left_on_ray(environment)["actors"])
        sweep = ToySweep(
            home=home,
            environment=environment,
            database=database,
            ledger_when_killed=json.loads(ledger.read_text()),
            statuses_when_killed={r.name: r.status for r in tracking.find_runs(database, "toys")},
            files_when_killed={
                file: file.stat().st_mtime_ns
                for file in (folder / "trial-001").rglob("*")
                if file.suffix in (".safetensors", ".pt", ".wav")
            },
            epoch_when_killed=read_metadata(folder / "trial-002" / "last")["epoch"],
            said="",
        )
        resumed = sweep.bsrnn("tune", "--name", "toy", "--resume")
        assert resumed.returncode == 0, resumed.stderr
        sweep.said = resumed.stdout + resumed.stderr
        yield sweep


@pytest.fixture(scope="module")
def client(toy_sweep: ToySweep) -> MlflowClient:
    return MlflowClient(toy_sweep.database)


@pytest.fixture(scope="module")
def runs(client: MlflowClient, runs_by_name) -> dict[str, Run]:
    """All runs of the store by name, each once."""
    return runs_by_name(client, "toys")


def test_it_was_killed_in_the_second_trial(toy_sweep: ToySweep):
    assert [trial["state"] for trial in toy_sweep.ledger_when_killed] == [
        *("finished", "running", "waiting", "waiting"),
    ]
    assert toy_sweep.statuses_when_killed == {
        "toy": "RUNNING",
        "trial-001": "FINISHED",
        "trial-002": "RUNNING",
    }


def test_a_finished_trial_is_not_touched_again(toy_sweep: ToySweep):
    files = toy_sweep.files_when_killed
    assert len(files) > 3
    assert {file: file.stat().st_mtime_ns for file in files} == files


def test_the_interrupted_trial_goes_on_from_its_checkpoint(
    toy_sweep: ToySweep, client: MlflowClient, runs: dict[str, Run]
):
    before, after = (
        ledger[1]["validations"] for ledger in (toy_sweep.ledger_when_killed, toy_sweep.ledger())
    )
    assert toy_sweep.epoch_when_killed >= len(before) >= 1
    assert after[: len(before)] == before
    # Whether it is then stopped or not, it does not begin anew.
    new = [epoch for epoch, _ in after[len(before) :]]
    assert new == list(range(toy_sweep.epoch_when_killed + 1, MAX_EPOCHS + 1))[: len(new)]
    assert new or toy_sweep.epoch_when_killed == MAX_EPOCHS
    run_id = runs["trial-002"].info.run_id
    steps = [point.step for point in client.get_metric_history(run_id, "train/loss")]
    assert steps == list(range(1, len(steps) + 1))


def test_the_trial_that_learns_nothing_is_stopped(toy_sweep: ToySweep):
    first, second, high, infinite = toy_sweep.ledger()
    assert first["state"] == "finished"
    assert [epoch for epoch, _ in first["validations"]] == list(range(1, MAX_EPOCHS + 1))
    assert second["state"] in ("finished", "stopped early")
    stopped_at, usdr = high["validations"][-1]
    assert (high["state"], stopped_at in RUNGS) == ("stopped early", True)
    assert usdr < max(
        dict(trial["validations"]).get(stopped_at, -99.0) for trial in (first, second)
    )
    assert infinite["state"] == "failed"
    assert "was not finite" in infinite["error"]


def test_nothing_of_a_trial_is_left_on_ray(toy_sweep: ToySweep):
    # What cleans up after a stopped trial looks once a second whether it is gone.
    wait_until(lambda: set(left_on_ray(toy_sweep.environment)["actors"]) <= OF_RAY_DATA)
    left = left_on_ray(toy_sweep.environment)
    assert left["groups"] == []
    assert left["ever"] >= 4
    assert left["cpus"] == NUM_CPUS
    titles = processes_of(toy_sweep.environment["RAY_ADDRESS"])
    assert any("dashboard" in title for title in titles)
    of_ray = ("IDLE", "DashboardAgent", "RuntimeEnvAgent", *OF_RAY_DATA)
    left_over = [
        title
        for title in titles
        if title.startswith("ray::") and not any(known in title for known in of_ray)
    ]
    assert left_over == []


def processes_of(address: str) -> list[str]:
    """The command lines of the processes that were started by the Ray at ``address``."""
    found: list[str] = []
    for process in Path("/proc").glob("[0-9]*"):
        with contextlib.suppress(OSError):
            if f"RAY_API_SERVER_ADDRESS={address}" in (process / "environ").read_text():
                found.append((process / "cmdline").read_text().replace("\0", " "))
    return found


def test_mlflow_tells_what_became_of_every_trial(toy_sweep: ToySweep, runs: dict[str, Run]):
    assert set(runs) == {"toy", *(f"trial-{number:03d}" for number in range(1, 5))}
    parent = runs["toy"]
    assert (parent.info.status, parent.data.tags["stage"]) == ("FINISHED", "sweep")
    assert parent.data.metrics["best/usdr_mean"] > -20
    statuses = {"finished": "FINISHED", "stopped early": "KILLED", "failed": "FAILED"}
    for trial, rate in zip(toy_sweep.ledger(), RATES, strict=True):
        run = runs[trial["name"]]
        assert run.info.status == statuses[trial["state"]]
        assert run.data.tags["outcome"] == trial["state"]
        assert run.data.tags["mlflow.parentRunId"] == parent.info.run_id
        assert float(run.data.params["lr"]) == rate
        assert run.info.end_time is not None
    assert "was not finite" in runs["trial-004"].data.tags["error"]
    assert "valid/usdr_drums" in runs["trial-003"].data.metrics


def test_the_report_is_among_the_files_and_in_mlflow(
    toy_sweep: ToySweep, client: MlflowClient, runs: dict[str, Run]
):
    report = toy_sweep.folder / "sweep"
    names = {file.name for file in report.iterdir()}
    assert names == {"best.yaml", "sweep.md", "sweep.csv", "parallel.png", "tradeoffs.png"}
    logged = client.list_artifacts(runs["toy"].info.run_id, "sweep")
    assert {Path(file.path).name for file in logged} == names
    best = yaml.safe_load((report / "best.yaml").read_text())
    assert best["optim"]["lr"] in RATES[:2]
    assert "trials, best first" in toy_sweep.said


def test_the_best_configuration_trains(toy_sweep: ToySweep):
    words = ("--config", "runs/toy/sweep/best.yaml", "--name", "best", "--max_epochs", "1")
    trained = toy_sweep.bsrnn("train", *words)
    assert trained.returncode == 0, trained.stderr
    assert (toy_sweep.home / "runs" / "best" / "best" / "model.safetensors").exists()


def test_what_cannot_run_is_refused(toy_sweep: ToySweep):
    big = ("tune", *TOY_SWEEP, "--batch_size", "4", "--name", "big")
    refusals = {
        (*big, "--workers_per_trial", "2"): "--workers_per_trial 1 would fit\n",
        (*big, "--max_concurrent", "2"): "--max_concurrent 1 would fit\n",
        ("tune", *TOY_SWEEP): "holds a sweep already: take another --name, or --resume",
        ("tune", "--name", "toy", "--resume", "--space", "lr=[0.001]"): (
            "is a sweep with other options: space is"
        ),
    }
    with ThreadPoolExecutor() as pool:
        refused = list(pool.map(lambda words: toy_sweep.bsrnn(*words), refusals))
    for result, said in zip(refused, refusals.values(), strict=True):
        assert result.returncode == 2
        assert said in result.stderr.splitlines(keepends=True)[-1]
    assert not (toy_sweep.home / "runs" / "big").exists()
