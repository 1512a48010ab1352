"""The only place that starts Ray and builds a trainer; train and tune share it.

What its workers run is in worker.py.
"""

import logging
import os
import signal
import socket
import sys
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from threading import Event, Thread
from typing import Any

import ray
import ray.autoscaler.sdk
import ray.exceptions
import ray.train
import ray.train.torch
from ray.train import FailureConfig, RunConfig, ScalingConfig

from bsrnn_core.errors import BadInput
from pipelines.config import ClusterConfig
from pipelines.devices import cores
from pipelines.sigterm import SigtermNoted, sigterm_asks
from pipelines.stalls import StallReport
from pipelines.status_board import StatusBoard
from pipelines.worker import Launch, train_worker

logger = logging.getLogger(__name__)

SPARE_CPUS = 2
"""Logical CPUs left for Ray's own actors beside the workers."""
PROCESSES_AT_ONCE = 8
"""Processes that a local Ray may start at the same time."""
LOOPBACK = "127.0.0.2"
"""Where a local Ray listens on Linux: Ray takes 127.0.0.1 to mean the routable address. Elsewhere
it keeps to loopback by itself."""
AUTH_TOKEN_FILE = Path("~/.ray/auth_token")


def start_ray(num_workers: int = 0, *, dashboard: bool = False) -> None:
    """Join the cluster of this machine or of RAY_ADDRESS; else start Ray here, on loopback only.

    A local Ray gets a logical CPU per core, and always enough for ``num_workers`` workers. Its
    ``dashboard`` answers what Ray asks to clean up after a training that Tune has stopped.
    SIGTERM is what Ctrl-C is from then on, where Ray would have the process exit with 15.
    """
    if ray.is_initialized():
        return
    if os.environ.get("RAY_ADDRESS"):
        ray.init(log_to_driver=False)
    else:
        _start_local_ray(num_workers, dashboard)
    if threading.current_thread() is threading.main_thread():
        signal.signal(signal.SIGTERM, signal.default_int_handler)


def _start_local_ray(num_workers: int, dashboard: bool) -> None:
    # glibc gives every thread a heap of its own, which large tensors soon fragment: a training of
    # the tiny preset held twice the memory (docs/results.md).
    os.environ.setdefault("MALLOC_ARENA_MAX", "2")
    # Ray warns of three times as many processes, but every training has some that only wait.
    os.environ.setdefault("RAY_worker_maximum_startup_concurrency", str(PROCESSES_AT_ONCE))
    # It warns that its token authentication is on, as it should be.
    logging.getLogger("ray._private.authentication").setLevel(logging.ERROR)
    try:
        with _known_address():
            ray.init(
                num_cpus=max(os.cpu_count() or 1, num_workers) + SPARE_CPUS,
                include_dashboard=dashboard,
                dashboard_host="127.0.0.1",
                log_to_driver=False,
                logging_level=logging.WARNING,
                _node_ip_address=LOOPBACK if sys.platform == "linux" else None,
            )
    except ValueError:
        # Only a new Ray may be given its CPUs: `ray start` has been here, so join its cluster.
        ray.init(log_to_driver=False)
    token = AUTH_TOKEN_FILE.expanduser()
    if token.exists():
        # Ray writes it readable for everybody.
        token.chmod(0o600)


@contextmanager
def _known_address() -> Iterator[None]:
    """Tell the processes of the Ray that is started meanwhile where it is.

    They look for it otherwise when they clean up, and give up where the machine runs two.
    """
    if sys.platform != "linux":
        yield
        return
    with socket.socket() as probe:
        probe.bind((LOOPBACK, 0))
        port = probe.getsockname()[1]
    ours = {"RAY_GCS_SERVER_PORT": str(port), "RAY_API_SERVER_ADDRESS": f"{LOOPBACK}:{port}"}
    before = {name: os.environ.get(name) for name in ours}
    os.environ.update(ours)
    try:
        yield
    finally:
        for name, value in before.items():
            if value is None:
                del os.environ[name]
            else:
                os.environ[name] = value


def use_gpu(device: str) -> bool:
    """Whether workers get a GPU each. Raises BadInput when asked for and there is none.

    On a cluster that was joined, GPUs that are asked for by name may be yet to come.
    """
    gpus = ray.cluster_resources().get("GPU", 0)
    if device == "cuda" and not gpus and not _may_grow():
        raise BadInput("device cuda was asked for, but Ray sees no GPU; leave --device at auto")
    return device == "cuda" or (device == "auto" and gpus > 0)


def _may_grow() -> bool:
    """Whether nodes may join: a Ray of this machine alone is what it is."""
    return bool(os.environ.get("RAY_ADDRESS")) or len(ray.nodes()) > 1


def check_resources(cluster: ClusterConfig) -> None:
    """See that the cluster can hold the workers; one that may grow is asked to, and waited for.

    Raises BadInput when it does not hold them (after ``wait_minutes``), instead of waiting for
    ever.
    """
    kind = "GPU" if use_gpu(cluster.device) else "CPU"
    deadline = time.monotonic() + 60 * cluster.wait_minutes * _may_grow()
    asked = False
    while (there := ray.cluster_resources().get(kind, 0)) < cluster.num_workers:
        if time.monotonic() >= deadline:
            waited = f" after {cluster.wait_minutes:g} minutes of waiting" if asked else ""
            raise BadInput(
                f"num_workers = {cluster.num_workers} needs {cluster.num_workers} {kind}s, "
                f"but the cluster has {there:g}{waited}"
            )
        if not asked:
            asked = True
            logger.info(
                "the cluster has %g of %d %ss: waiting up to %g minutes for more",
                *(there, cluster.num_workers, kind, cluster.wait_minutes),
            )
            ray.autoscaler.sdk.request_resources(bundles=[{kind: 1}] * cluster.num_workers)
        time.sleep(1)
    if asked:
        # The trainer asks for its own: nothing is to keep the nodes after it.
        ray.autoscaler.sdk.request_resources(bundles=[])


def room(cluster: ClusterConfig, max_concurrent: int | None) -> tuple[int, int | None]:
    """Trainings that run side by side, and the CPU threads of a worker (None: its own choice)."""
    there = ray.cluster_resources()
    if use_gpu(cluster.device):
        slots = int(there["GPU"]) // cluster.num_workers
    elif len(ray.nodes()) == 1:
        # A local Ray has more logical CPUs than there are cores.
        slots = cores() // (cluster.num_workers * (cluster.threads_per_worker or 1))
    else:
        slots = int(there["CPU"]) // cluster.num_workers
    slots = max(1, min(slots, max_concurrent or slots))
    share = max(1, cores() // (slots * cluster.num_workers)) if len(ray.nodes()) == 1 else None
    return slots, cluster.threads_per_worker or share


def parallel_tasks(task_bytes: float, waiting: int = 0) -> int:
    """Tasks of one core and ``task_bytes`` of memory that the cluster holds at once; at least 1.

    ``waiting`` more than there are cores fill the time that others wait for the disk.
    """
    there = ray.cluster_resources()
    limit = int(there.get("CPU", 1))
    if len(ray.nodes()) == 1:
        # A local Ray has more logical CPUs than there are cores.
        limit = min(limit, cores() + waiting)
    return max(1, min(limit, int(there.get("memory", task_bytes) // max(1.0, task_bytes))))


def build_trainer(launch: Launch, board: Any = None) -> Any:
    """A TorchTrainer for a training; gloo on CPUs and nccl on GPUs, chosen by Ray.

    ``board`` is a StatusBoard to post to. Ray's own files go to `ray/` in the run's folder;
    checkpoints are the training's own (training_state.py), so Ray keeps none.
    """
    config = launch.job.config
    gpu = use_gpu(config.cluster.device)
    return ray.train.torch.TorchTrainer(
        train_worker,
        train_loop_config={
            "launch": launch,
            "board": board,
            "node": ray.get_runtime_context().get_node_id(),
        },
        torch_config=SigtermNoted(),
        scaling_config=ScalingConfig(
            num_workers=config.cluster.num_workers,
            use_gpu=gpu,
            resources_per_worker={"GPU": 1} if gpu else {"CPU": 1},
        ),
        run_config=RunConfig(
            name="ray",
            storage_path=launch.storage.uri,
            failure_config=FailureConfig(max_failures=config.cluster.max_failures),
        ),
    )


def launch_training(
    launch: Launch, show: Callable[[dict[str, float]], None] = lambda status: None
) -> None:
    """Run a training to its end, calling ``show`` with its status twice a second.

    Workers that keep it waiting are named in the log. SIGTERM has it end after a last checkpoint,
    once it makes steps. Raises as ``run_trainer`` does.
    """
    board: Any = StatusBoard.remote()
    config, steps_are_made = launch.job.config, Event()
    stalls = StallReport(config.cluster.stall_seconds)

    def show_own(statuses: Mapping[str, dict[str, float]]) -> None:
        if config.name in statuses:
            steps_are_made.set()
            show(statuses[config.name])
        for sentence in stalls.sentences(ray.get(board.read_beats.remote(config.name))):
            logger.warning("%s: %s", config.name, sentence)

    def ask_to_end() -> bool:
        if steps_are_made.is_set():
            board.ask_to_end.remote(config.name)
        return steps_are_made.is_set()

    with polling(board, show_own), sigterm_asks(ask_to_end):
        run_trainer(build_trainer(launch, board))


def run_trainer(trainer: Any) -> None:
    """Run a trainer to its end.

    Raises ray.train.TrainingFailedError when it failed more often than ``max_failures``,
    FloatingPointError when its loss is no longer finite, BadInput when its data cannot be used,
    and KeyboardInterrupt when it is interrupted.
    """
    # Ray's own handler of Ctrl-C ends the workers, but exits with 0 and stays in place for good.
    before = signal.getsignal(signal.SIGINT)
    try:
        problem = trainer.fit().return_value
    except SystemExit as stop:
        raise KeyboardInterrupt from stop
    finally:
        if threading.current_thread() is threading.main_thread():
            signal.signal(signal.SIGINT, before)
    if problem:
        raise problem


@contextmanager
def polling(board: Any, show: Callable[[Mapping[str, dict[str, float]]], None]) -> Iterator[None]:
    """Call ``show`` with the statuses on a StatusBoard twice a second, and a last time at the
    end."""
    done = Event()

    def poll() -> None:
        last = False
        while not last:
            last = done.wait(0.5)
            try:
                show(ray.get(board.read.remote()))
            except ray.exceptions.RayError:
                return  # Ray is gone, and so is what was shown

    thread = Thread(target=poll, daemon=True)
    thread.start()
    try:
        yield
    finally:
        done.set()
        thread.join(timeout=5)
