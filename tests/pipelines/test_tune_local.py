"""A sweep that starts Ray by itself: TPE, two MTL trials at once, two datasets, a time budget."""

import json
import os
import shlex
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from data_prep.demo_songs import make_corpus
from pipelines import tracking

pytestmark = pytest.mark.proof

NUM_TRIALS = 2
SWEEP = shlex.split(
    "--musdbhq_location songs --part drums --part bass --name tpe --experiment toys "
    f"--search tpe --num_samples {NUM_TRIALS} --max_concurrent 2 --max_epochs 2 "
    "--grace_epochs 1 --reduction_factor 2 --sample_rate 8000 --feature_dim 4 "
    "--num_blstm_layers 1 --mlp_dim 8 --chunk_size_in_seconds 0.5 --crop_seconds 0.4 "
    "--batch_size 2 --steps_per_epoch 2 --log_every_steps 1 "
    "--space n_fft=[256,512] 'lr=loguniform(1e-3,1e-1)'"
)
OTHER_RAY = "from pipelines.launch import start_ray; start_ray(1); print('up', flush=True); input()"


@pytest.fixture(scope="module")
def home(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("local")
    make_corpus(folder / "songs", num_train=3, num_valid=1, num_test=1, seconds=4, sample_rate=8000)
    return folder


@pytest.fixture(scope="module", autouse=True)
def other_ray() -> Iterator[None]:
    """A Ray of someone else, which a sweep is not to take for its own."""
    with subprocess.Popen(
        [sys.executable, "-c", OTHER_RAY],
        stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True,
    ) as process:  # fmt: skip
        assert process.stdout
        assert process.stdout.readline() == "up\n"
        yield
        process.communicate("\n")


def bsrnn(home: Path, *words: str) -> subprocess.CompletedProcess[str]:
    unset = {"RAY_ADDRESS", "MLFLOW_TRACKING_URI"}
    environment = {name: value for name, value in os.environ.items() if name not in unset}
    return subprocess.run(
        [sys.executable, "-m", "pipelines.cli", *words], cwd=home, env=environment,
        capture_output=True, text=True, timeout=900, check=False,
    )  # fmt: skip


def ledger(home: Path) -> list[dict[str, Any]]:
    return json.loads((home / "runs" / "tpe" / "trials.json").read_text())


def test_a_sweep_halts_when_its_time_is_up_and_goes_on(home: Path):
    halted = bsrnn(home, "tune", *SWEEP, "--time_budget_minutes", "0.02")
    assert halted.returncode == 1, halted.stderr
    assert "no trial has a score (they are not trained far enough)" in halted.stderr
    assert {trial["state"] for trial in ledger(home)} <= {"waiting"}
    uri = f"sqlite:///{home / 'mlflow.db'}"
    assert all(run.status in ("KILLED", "FAILED") for run in tracking.find_runs(uri, "toys"))

    resumed = bsrnn(home, "tune", "--name", "tpe", "--resume", "--time_budget_minutes", "30")
    assert resumed.returncode == 0, resumed.stderr
    trials = ledger(home)
    assert len(trials) == NUM_TRIALS
    assert {trial["state"] for trial in trials} <= {"finished", "stopped early"}
    assert any(trial["state"] == "finished" for trial in trials)
    assert all(1e-3 <= trial["values"]["lr"] <= 1e-1 for trial in trials)
    shards = {path.name for path in (home / "runs" / "shards").iterdir()}
    assert len(shards) == 2
    runs = {run.name: run for run in tracking.find_runs(uri, "toys")}
    assert set(runs) == {"tpe", *(trial["name"] for trial in trials)}
    assert len(tracking.find_runs(uri, "toys")) == 1 + NUM_TRIALS
    for trial in trials:
        run = runs[trial["name"]]
        assert (run.tags["outcome"], run.tags["stems"]) == (trial["state"], "drums,bass")
        assert run.params["n_fft"] == str(trial["values"]["n_fft"])
        assert {"valid/usdr_drums", "valid/usdr_bass"} <= run.metrics.keys()
    assert runs["tpe"].status == "FINISHED"
