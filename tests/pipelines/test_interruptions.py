"""Real trainings of two workers, hurt for real: they end with the bits and the curves of one that
nothing disturbed. The seconds and steps that it cost are logged (--log-cli-level INFO)."""

import json
import logging
import os
import shlex
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import IO

import psutil
import pytest
from mlflow import MlflowClient

from data_prep.demo_songs import make_corpus
from data_prep.manifest import Manifest

pytestmark = pytest.mark.proof

logger = logging.getLogger(__name__)

EPOCH_STEPS = 45
STEPS = 2 * EPOCH_STEPS
OPTIONS = shlex.split(
    "--part drums --num_workers 2 --threads_per_worker 1 --sample_rate 8000 --n_fft 256 "
    "--feature_dim 8 --num_blstm_layers 2 --mlp_dim 16 --chunk_size_in_seconds 0.5 "
    f"--crop_seconds 0.4 --batch_size 4 --steps_per_epoch {EPOCH_STEPS} --max_epochs 2 "
    "--log_every_steps 1 --checkpoint_every_steps 10 --stall_seconds 2"
)
CURVES = ("train/loss", "train/lr", "train/grad_norm", "valid/usdr_drums")
SECONDS = 400
"""How long one thing may take on a busy machine."""


class Home:
    """A folder with songs, shards, an MLflow store and runs."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.uri = f"sqlite:///{folder / 'mlflow.db'}"
        self.environment = os.environ | {"MLFLOW_TRACKING_URI": self.uri}
        make_corpus(folder / "songs", num_train=3, num_valid=1, num_test=1, seconds=4,
                    sample_rate=8000)  # fmt: skip

    def command(self, *words: str) -> list[str]:
        """The bsrnn command."""
        return [sys.executable, "-m", "pipelines.cli", *words]

    @contextmanager
    def training(self, *words: str) -> "Iterator[Driver]":
        """A `bsrnn train` that goes on meanwhile; it does not survive."""
        log = (self.folder / "log").open("w+")
        process = subprocess.Popen(
            self.command("train", *words),
            cwd=self.folder,
            env=self.environment,
            stdout=log,
            stderr=subprocess.STDOUT,
        )
        try:
            yield Driver(process, log)
        finally:
            process.kill()
            process.wait()
            log.close()

    def train(self, *words: str) -> None:
        """A training, from its beginning to its good end."""
        with self.training(*words) as driver:
            assert driver.ends() == 0, driver.said()


class Driver:
    """The process of a `bsrnn train`."""

    def __init__(self, process: "subprocess.Popen[bytes]", log: IO[str]) -> None:
        self.process, self._log = process, log

    def said(self) -> str:
        """All that it printed so far."""
        self._log.seek(0)
        return self._log.read()

    def ends(self) -> int:
        """Its exit code, waited for."""
        return self.process.wait(SECONDS)

    def wait_for(self, condition: Callable[[], object]) -> None:
        """Wait until something holds, while the process lives."""
        deadline = time.monotonic() + SECONDS
        while not condition():
            assert self.process.poll() is None, self.said()
            assert time.monotonic() < deadline, self.said()
            time.sleep(0.02)

    def workers(self) -> list[psutil.Process]:
        """The processes that train."""
        found = []
        for child in psutil.Process(self.process.pid).children(recursive=True):
            try:
                if "RayTrainWorker" in " ".join(child.cmdline()):
                    found.append(child)
            except psutil.Error:
                continue
        return sorted(found, key=lambda worker: worker.pid)


def step_of(run: Path) -> int:
    """The last step in a run's journal."""
    try:
        lines = (run / "metrics.jsonl").read_text().splitlines()
    except OSError:
        return 0
    return max((json.loads(line)[3] for line in lines if line.endswith("]")), default=0)


def checkpoint_of(run: Path) -> int:
    """The step of the checkpoint that a run would go on from; 0 when there is none."""
    try:
        return json.loads((run / "last" / "config.json").read_text())["metadata"]["step"]
    except OSError:
        return 0


def curves(home: Home, run: Path) -> dict[str, list[tuple[int, float]]]:
    """As MLflow has them: a step that was recorded twice is there twice."""
    run_id = json.loads((run / "run.json").read_text())["run_id"]
    client = MlflowClient(home.uri)
    return {
        name: [(point.step, point.value) for point in client.get_metric_history(run_id, name)]
        for name in CURVES
    }


def status(home: Home, run: Path) -> str:
    run_id = json.loads((run / "run.json").read_text())["run_id"]
    return str(MlflowClient(home.uri).get_run(run_id).info.status)


def files(run: Path) -> list[bytes]:
    return [(run / name / "model.safetensors").read_bytes() for name in ("last", "best")]


@pytest.fixture(scope="module")
def home(tmp_path_factory: pytest.TempPathFactory) -> Home:
    return Home(tmp_path_factory.mktemp("home"))


@pytest.fixture(scope="module")
def whole(home: Home) -> Path:
    """A run that nothing disturbed."""
    home.train("--musdbhq_location", "songs", "--name", "whole", *OPTIONS)
    return home.folder / "runs" / "whole"


@pytest.fixture
def shards(home: Home, whole: Path) -> Sequence[str]:
    """The option that names its shards."""
    (manifest,) = (home.folder / "runs" / "shards").glob("*/manifest.json")
    return "--shards", str(manifest.parent)


def hurt(driver: Driver, run: Path, what: str, injure: Callable[[], None]) -> None:
    """Injure a training; wait until it makes new steps, and print what it cost."""
    began = time.monotonic()
    injure()
    step = step_of(run)
    again = step - checkpoint_of(run)
    driver.wait_for(lambda: step_of(run) > step)
    logger.info(
        "%s: new steps after %.1f s, %d steps made again", what, time.monotonic() - began, again
    )


def test_workers_that_are_killed_terminated_and_stopped(home: Home, whole: Path, shards):
    run = home.folder / "runs" / "hurt"
    with home.training(*shards, "--name", "hurt", *OPTIONS) as driver:
        driver.wait_for(lambda: step_of(run) >= 15)
        hurt(driver, run, "kill -9 of a worker within an epoch", driver.workers()[0].kill)

        before = checkpoint_of(run)
        driver.wait_for(lambda: checkpoint_of(run) > before)
        hurt(driver, run, "kill -9 of a worker after a checkpoint", driver.workers()[-1].kill)

        step = step_of(run)
        driver.wait_for(lambda: step_of(run) > step)
        last = driver.workers()[-1]

        def terminate() -> None:
            last.terminate()
            driver.wait_for(lambda: not last.is_running())
            # Nothing that was made is made again.
            assert checkpoint_of(run) == step_of(run)

        hurt(driver, run, "SIGTERM of a worker", terminate)

        frozen = driver.workers()[0]
        frozen.suspend()
        driver.wait_for(lambda: "has not been heard of for" in driver.said())
        frozen.resume()
        assert driver.ends() == 0, driver.said()
    assert files(run) == files(whole)
    assert curves(home, run) == curves(home, whole)
    assert status(home, run) == "FINISHED"


def test_a_driver_that_is_killed_and_terminated(home: Home, whole: Path, shards):
    run = home.folder / "runs" / "driver"
    with home.training(*shards, "--name", "driver", *OPTIONS) as driver:
        driver.wait_for(lambda: step_of(run) >= 25)
        workers = driver.workers()
        driver.process.kill()
        driver.ends()
        # They see it a moment later.
        assert not psutil.wait_procs(workers, timeout=60)[1]
    step, saved, began = step_of(run), checkpoint_of(run), time.monotonic()
    assert step - saved < 10 + 1
    with home.training("--name", "driver", "--resume") as driver:
        driver.wait_for(lambda: step_of(run) > step)
        logger.info(
            "kill -9 of the driver: new steps %.1f s after --resume, %d steps made again",
            *(time.monotonic() - began, step - saved),
        )
        # SIGTERM is Ctrl-C until the driver, which asks twice a second, has heard of steps.
        time.sleep(1)
        began = time.monotonic()
        driver.process.terminate()
        assert driver.ends() == 1
        logger.info("SIGTERM of the driver: ended after %.1f s", time.monotonic() - began)
        assert "interrupted" in driver.said()
    # Nothing that was made is lost.
    assert checkpoint_of(run) == step_of(run)
    assert status(home, run) == "KILLED"
    home.train("--name", "driver", "--resume")
    assert files(run) == files(whole)
    assert curves(home, run) == curves(home, whole)
    # With another number of workers it goes on too, if not to the same bits.
    home.train("--name", "driver", "--resume", "--num_workers", "1", "--max_epochs", "3")
    assert [step for step, _ in curves(home, run)["train/loss"]] == list(
        range(1, STEPS + EPOCH_STEPS + 1)
    )
    assert curves(home, run)["train/loss"][:STEPS] == curves(home, whole)["train/loss"]


def test_a_disk_that_is_full(home: Home, whole: Path, shards, small_disk):
    disk = small_disk(8)
    run = disk / "full"
    with home.training(*shards, "--name", "full", "--out", str(disk), *OPTIONS) as driver:
        driver.wait_for(lambda: checkpoint_of(run) >= 10)
        filler = disk / "filler"
        with filler.open("wb", buffering=0) as file, pytest.raises(OSError):
            while True:
                file.write(bytes(4096))
        assert driver.ends() == 2, driver.said()
        assert f"{run} has no room for last: the disk is full" in driver.said()
    saved = checkpoint_of(run)
    assert 10 <= saved < STEPS
    filler.unlink()
    home.train("--name", "full", "--out", str(disk), "--resume")
    assert files(run) == files(whole)
    assert curves(home, run) == curves(home, whole)


def test_a_shard_that_is_damaged_is_named_and_not_tried_for_ever(home: Home, whole: Path, shards):
    folder = Path(shards[1])
    track = next(track for track in Manifest.read(folder).tracks if track.split == "train")
    shard = folder / track.shard
    content = shard.read_bytes()
    spoiled = bytearray(content)
    for place in range(1000, len(spoiled) - 20_000, 1000):
        spoiled[place] ^= 1
    shard.write_bytes(spoiled)
    try:
        with home.training(*shards, "--name", "damaged", *OPTIONS) as driver:
            assert driver.ends() == 2, driver.said()
            assert f"bsrnn: {shard} is not a whole shard" in driver.said()
            assert "Traceback" not in driver.said()
    finally:
        shard.write_bytes(content)
