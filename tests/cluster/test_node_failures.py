"""A machine dies, a cable comes out, the MLflow server is away: the training loses nothing.

`pytest -m cluster --log-cli-level INFO` shows how long each takes to be training again.
"""

import json
import logging
import subprocess
import time
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import pytest

from tests.cluster.cluster import TINY, Cluster, wait_until

pytestmark = pytest.mark.cluster
logger = logging.getLogger(__name__)

STEPS = 300
EPOCH_STEPS = 100
CHECKPOINT_STEPS = 20


@dataclass(kw_only=True)
class Running:
    """A training that has made some steps."""

    cluster: Cluster
    steps: int
    """That it will make."""
    valid_steps: int
    """From one validation to the next."""
    folder: Path
    process: subprocess.Popen[bytes]
    output: Path

    @property
    def step(self) -> int:
        """The last step that was logged."""
        lines = (self.folder / "metrics.jsonl").read_text().splitlines()
        # The last line may not be whole yet.
        steps = [json.loads(line)[3] for line in lines[-20:-1] if line]
        return max(steps, default=0)

    @property
    def written(self) -> int:
        """Bytes of its curves so far."""
        file = self.folder / "metrics.jsonl"
        return file.stat().st_size if file.exists() else 0

    @property
    def saved(self) -> int:
        """The step of the checkpoint that it would go on from; 0 without one."""
        file = self.folder / "last" / "config.json"
        return json.loads(file.read_text())["metadata"]["step"] if file.exists() else 0

    def made_twice(self) -> int:
        """Steps that were lost, and made again from a checkpoint."""
        lines = (self.folder / "metrics.jsonl").read_text().splitlines()
        points = [json.loads(line) for line in lines if line.endswith("]")]
        steps = Counter(step for key, _, _, step in points if key == "train/loss")
        return sum(times > 1 for times in steps.values())

    def back_after(self, since: float) -> float:
        """Wait for the next point of a curve; seconds from ``since`` to it."""
        written = self.written
        wait_until(lambda: self.written > written or self.process.poll() is not None)
        assert self.process.poll() is None, self.output.read_text()[-4000:]
        return time.monotonic() - since

    def end(self) -> None:
        """Wait for its end; nothing may be missing then, and nothing there twice."""
        assert self.process.wait(timeout=400) == 0, self.output.read_text()[-4000:]
        run = self.cluster.mlflow_run(self.folder.name)
        assert run["status"] == "FINISHED"
        steps = [step for step, _ in run["curves"]["train/loss"]]
        assert steps == list(range(1, self.steps + 1)), self._warnings()
        validated = list(range(self.valid_steps, self.steps + 1, self.valid_steps))
        assert [step for step, _ in run["curves"]["valid/usdr_mean"]] == validated

    def _warnings(self) -> str:
        """What the workers have said of their MLflow run."""
        look = "grep -h 'MLflow run' /tmp/ray/session_latest/logs/*.err"
        return "\n".join(w.run(look, check=False).stdout for w in self.cluster.workers)


@pytest.fixture(scope="module")
def shards(cluster: Cluster) -> Path:
    """Prepared songs."""
    folder = cluster.shared / "shards"
    done = cluster.submit(
        "prep",
        f"--musdbhq_location {cluster.shared}/songs --out {folder} --sample_rate 8000 --n_fft 256 "
        "--chunk_size_in_seconds 0.5",
    )
    assert done.returncode == 0, done.stdout
    return folder


@contextmanager
def training(
    cluster: Cluster,
    shards: Path,
    name: str,
    *,
    steps: int = STEPS,
    epoch_steps: int = EPOCH_STEPS,
    checkpoint_steps: int = CHECKPOINT_STEPS,
) -> Iterator[Running]:
    """A training in its first hundred steps; ended afterwards, come what may."""
    runs = cluster.shared / "runs"
    valid_steps = max(STEPS, epoch_steps)
    process, output = cluster.submit_in_background(
        "mtl",
        f"--shards {shards} --out {runs} --name {name} {TINY} --max_epochs {steps // epoch_steps} "
        f"--steps_per_epoch {epoch_steps} --valid_every_epochs {valid_steps // epoch_steps} "
        f"--checkpoint_every_steps {checkpoint_steps}",
    )
    run = Running(
        cluster=cluster,
        steps=steps,
        valid_steps=valid_steps,
        folder=runs / name,
        process=process,
        output=output,
    )
    try:
        wait_until(lambda: process.poll() is not None or (run.written and run.step >= 60))
        assert process.poll() is None, output.read_text()[-4000:]
        yield run
    finally:
        process.kill()
        process.wait()


def test_a_machine_loses_its_power_and_comes_back(cluster: Cluster, shards: Path):
    victim = cluster.workers[1]
    with training(cluster, shards, "power") as run:
        victim.kill9()
        killed = time.monotonic()
        victim.start()
        victim.start_sshd()
        seconds = run.back_after(killed)
        run.end()
        lost = run.made_twice()
    logger.info("power: training again after %.0f s, %d steps lost", seconds, lost)
    assert lost <= CHECKPOINT_STEPS
    wait_until(lambda: cluster.cpus() == len(cluster.workers))


def test_a_machine_that_is_announced_to_go(cluster: Cluster, shards: Path):
    victim = cluster.workers[0]
    notice = "latest/meta-data/spot"
    # As on EC2, where there is no such file until AWS wants the machine back.
    victim.run(
        f"mkdir -p /tmp/metadata/{notice} && cd /tmp/metadata && "
        "(setsid python3 -m http.server 8169 --bind 127.0.0.1 > /dev/null 2>&1 &) && "
        "source ~/.bashrc && "
        "BSRNN_METADATA=http://127.0.0.1:8169 bash ~/bsrnn/clusters/watch.sh restart"
    )
    # Without the notice it would save at its end only.
    steps = 4 * STEPS
    with training(
        cluster, shards, "notice", steps=steps, epoch_steps=steps, checkpoint_steps=steps
    ) as run:
        announced = time.monotonic()
        victim.run(f"touch /tmp/metadata/{notice}/instance-action")
        try:
            wait_until(lambda: run.saved or run.process.poll() is not None)
            saved_step, saved = run.saved, time.monotonic() - announced
            assert run.process.poll() is None, run.output.read_text()[-4000:]
        finally:
            # Ray gives a machine that is to go no more work, and the next tests need it.
            victim.kill9()
            killed = time.monotonic()
            victim.start()
            victim.start_sshd()
        seconds = run.back_after(killed)
        run.end()
        lost = run.made_twice()
    logger.info(
        "notice: saved after %.0f s, training again %.0f s after the machine went, %d steps lost",
        *(saved, seconds, lost),
    )
    assert lost < saved_step  # it went on from there, and did not begin anew
    wait_until(lambda: cluster.cpus() == len(cluster.workers))


def test_a_cable_is_out_for_half_a_minute(cluster: Cluster, shards: Path):
    with training(cluster, shards, "cable") as run:
        cut = time.monotonic()
        with cluster.workers[1].without_network():
            time.sleep(5)
            step = run.step
            time.sleep(25)
            assert run.step == step  # it is felt
        seconds = run.back_after(cut)
        run.end()
        lost = run.made_twice()
    logger.info("cable: training again after %.0f s, %d steps lost", seconds, lost)
    assert lost <= CHECKPOINT_STEPS


def test_mlflow_is_away_for_a_minute(cluster: Cluster, shards: Path):
    with training(cluster, shards, "away", steps=6 * STEPS) as run:
        began = run.step
        cluster.head.run("bash ~/bsrnn/clusters/mlflow.sh stop")
        try:
            assert not cluster.processes("mlflow server")
            time.sleep(60)
            meanwhile = run.step - began
        finally:
            cluster.head.run("source ~/.bashrc; bash ~/bsrnn/clusters/mlflow.sh restart")
        run.end()
    logger.info("mlflow: %d steps were made in a minute without it", meanwhile)
    assert meanwhile > 0
    assert run.made_twice() == 0


def test_the_mlflow_server_is_started_again_when_it_dies(cluster: Cluster):
    def servers() -> set[str]:
        lines = cluster.processes("mlflow server").get(cluster.head.name, [])
        return {line.split()[0] for line in lines if "--app-name" in line}

    wait_until(servers)
    before = servers()
    cluster.head.run(f"kill -9 {' '.join(before)}; pkill -9 -f uvicorn", check=False)
    wait_until(lambda: servers() and not servers() & before)
