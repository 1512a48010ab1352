"""Shards, runs, checkpoints and artifacts in object storage, by flags alone, on Ray."""

import os
import shlex
import shutil
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest
import soundfile
import torch
from mlflow import MlflowClient

from bsrnn_core import load
from bsrnn_core.checkpoint import read_metadata
from data_prep.storage import RemotePath, cache_folder, location
from pipelines import tracking
from pipelines.cli import main
from pipelines.remote_checkpoints import local_checkpoint

SONGS = {"train": ["a", "b", "c"], "valid": ["d"], "test": ["e"]}
SMALL = shlex.split(
    "--sample_rate 8000 --n_fft 256 --band_schema v1 --feature_dim 4 --num_blstm_layers 1 "
    "--mlp_dim 8 --chunk_size_in_seconds 0.5 --crop_seconds 0.4 --batch_size 3 --num_workers 2 "
    "--steps_per_epoch 2 --ema_decay 0.9 --log_every_steps 1"
)


@pytest.fixture
def elsewhere(
    ray_cluster: str,
    tmp_path: Path,
    uri: str,
    write_songs: Callable[..., Path],
    monkeypatch: pytest.MonkeyPatch,
) -> Path:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("MLFLOW_TRACKING_URI", uri)
    # Another cache than that of Ray's workers, as on a machine of the driver's own.
    monkeypatch.setenv("BSRNN_CACHE", str(tmp_path / "cache"))
    write_songs(tmp_path / "music", SONGS, num_samples=8000)
    return tmp_path


@pytest.fixture
def workers_cache(object_store: str) -> Path:
    """That of Ray's workers."""
    return cache_folder()


def steps_logged(uri: str, run: RemotePath) -> list[int]:
    run_id = read_metadata(local_checkpoint(str(run / "last")))["mlflow_run_id"]
    history = MlflowClient(uri).get_metric_history(run_id, "train/loss")
    return [point.step for point in history]


def forget(cache: Path) -> None:
    """As on a machine that joins later."""
    for part in cache.iterdir():
        shutil.rmtree(part)


@pytest.mark.proof
def test_a_training_whose_everything_is_in_storage(
    workers_cache: Path, elsewhere: Path, bucket: str, capsys: pytest.CaptureFixture[str]
):
    runs = ["--out", f"{bucket}/runs", "--name", "d"]
    words = ["train", "--musdbhq_location", "music", "--part", "drums", *runs, *SMALL]
    assert main([*words, "--max_epochs", "1"]) == 0
    assert f"{bucket}/runs/d/best" in capsys.readouterr().out
    home = location(f"{bucket}/runs/d")
    assert isinstance(home, RemotePath)
    there = set(home.sizes())
    files = {"config.yaml", "run.json", "costs.json", "metrics.jsonl", "best.tar", "last.tar"}
    assert files <= there
    assert {"samples/drums-estimate.wav", "samples/drums.png"} <= there
    assert any(name.startswith("ray/") for name in there)
    shards = {name.rpartition("/")[2] for name in (home.parent / "shards").sizes()}
    assert shards == {"manifest.json", *(f"{name}.parquet" for name in "abcde")}
    assert not any(path.name == "s3:" for path in elsewhere.iterdir())

    best = f"{bucket}/runs/d/best"
    assert main(["evaluate", "--checkpoint_fp", best, "--musdbhq_location", "music"]) == 0
    assert {f"evaluation/best/test/{name}" for name in ("e.json", "summary.json")} <= set(
        home.sizes()
    )
    song = "music/test/e/bass.wav"
    assert main(["infer", "--checkpoint_fp", best, "--input", song, "--out", "stems"]) == 0
    assert soundfile.info("stems/bass-drums.wav").frames == 8000
    # What is not said is as in the run of the checkpoint.
    forget(workers_cache)
    forget(elsewhere / "cache")
    transfer = ["transfer", "--checkpoint_fp", best, "--part", "bass", "--name", "b"]
    assert main([*transfer, "--max_epochs", "1"]) == 0
    trunk, base = load("runs/b/best").trunk, load(local_checkpoint(best)).trunk
    for mine, theirs in zip(trunk.parameters(), base.parameters(), strict=True):
        assert torch.equal(mine, theirs)


@pytest.mark.proof
def test_a_driver_that_is_killed_is_gone_on_with_on_another_machine(
    elsewhere: Path, bucket: str, uri: str
):
    command = [sys.executable, "-m", "pipelines.cli", "train", "--out", f"{bucket}/runs"]
    words = ["--part", "drums", *SMALL, "--musdbhq_location", "music", "--name", "d"]
    epochs = ["--max_epochs", "6"]

    def environment(machine: str) -> dict[str, str]:
        return {**os.environ, "BSRNN_CACHE": str(elsewhere / machine)}

    home = location(f"{bucket}/runs/d")
    assert isinstance(home, RemotePath)
    driver = subprocess.Popen([*command, *words, *epochs], env=environment("one"))
    try:
        deadline = time.monotonic() + 600
        while not (home / "last.tar").exists():
            assert driver.poll() is None and time.monotonic() < deadline
            time.sleep(0.05)
    finally:
        driver.send_signal(signal.SIGKILL)
        driver.wait()
    resumed = [*command, "--name", "d", "--resume"]
    subprocess.run(resumed, env=environment("two"), check=True, timeout=600)
    assert main(["train", *words[:-1], "whole", *epochs]) == 0
    for name in ("best", "last"):
        here = load(elsewhere / "runs" / "whole" / name).state_dict()
        weights = load(local_checkpoint(str(home / name))).state_dict()
        assert all(torch.equal(here[key], weights[key]) for key in here)
    assert steps_logged(uri, home) == list(range(1, 13))


# --- artifacts ------------------------------------------------------------------------------


def log_checkpoint(uri: str, folder: Path) -> str:
    """A run of a new experiment, with a checkpoint among its artifacts."""
    (folder / "best").mkdir()
    (folder / "best" / "model.safetensors").write_bytes(b"weights")
    run_id = tracking.create_run(uri, "artifacts", "one", {}, {})
    assert tracking.log_results(run_id, uri, {}, [(folder / "best", "checkpoint")]) is None
    return run_id


def objects(bucket: str) -> set[str]:
    remote = location(bucket)
    assert isinstance(remote, RemotePath)
    return {name.rpartition("artifacts/")[2] for name in remote.sizes()}


def test_artifacts_of_a_local_store_go_where_they_are_asked_to(
    uri: str, bucket: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setenv("BSRNN_ARTIFACTS", f"{bucket}/mine")
    run_id = log_checkpoint(uri, tmp_path)
    assert objects(bucket) == {"checkpoint/model.safetensors"}
    assert f"{bucket}/mine" in str(MlflowClient(uri).get_run(run_id).info.artifact_uri)


@pytest.mark.proof
def test_artifacts_go_to_storage_through_a_server(uri: str, bucket: str, tmp_path: Path):
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    places = ["--backend-store-uri", uri, "--artifacts-destination", f"{bucket}/all"]
    command = [sys.executable, "-m", "mlflow", "server", *places, "--port", str(port)]
    with (tmp_path / "log").open("w") as log:
        server = subprocess.Popen(
            [*command, "--workers", "1"], stdout=log, stderr=log, start_new_session=True
        )
    try:
        address = f"http://127.0.0.1:{port}"
        deadline = time.monotonic() + 240
        while tracking.check_reachable(address) is not None:
            assert time.monotonic() < deadline, (tmp_path / "log").read_text()
            time.sleep(0.5)
        log_checkpoint(address, tmp_path)
        assert objects(bucket) == {"checkpoint/model.safetensors"}
    finally:
        os.killpg(server.pid, signal.SIGKILL)
        server.wait()
