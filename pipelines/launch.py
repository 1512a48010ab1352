"""The only place that starts Ray and builds a trainer; train and tune share it.

What its workers run is in worker.py.
"""

import logging
import os
import secrets
import signal
import socket
import threading
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from threading import Event, Thread
from typing import Any

import ray
import ray.exceptions
import ray.train
import ray.train.torch
from ray._private import ray_constants
from ray.train import FailureConfig, RunConfig, ScalingConfig

from bsrnn_core.errors import BadInput
from pipelines.config import ClusterConfig
from pipelines.devices import cores
from pipelines.growth import wait_for_workers
from pipelines.mlflow_gate import TOKEN_FILE
from pipelines.process_group import LOOPBACK, torch_config
from pipelines.sigterm import sigterm_asks
from pipelines.stalls import StallReport
from pipelines.status_board import new_board
from pipelines.worker import Launch, train_worker

logger = logging.getLogger(__name__)

SPARE_CPUS = 2
"""Logical CPUs left for Ray's own actors beside the workers."""
PROCESSES_AT_ONCE = 8
"""Processes that a local Ray may start at the same time."""


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
    _make_token()
    try:
        with _on_loopback():
            ray.init(
                num_cpus=max(os.cpu_count() or 1, num_workers) + SPARE_CPUS,
                include_dashboard=dashboard,
                dashboard_host=LOOPBACK,
                log_to_driver=False,
                logging_level=logging.WARNING,
            )
    except ValueError:
        # Only a new Ray may be given its CPUs: `ray start` has been here, so join its cluster.
        ray.init(log_to_driver=False)


def _make_token() -> None:
    """Make the token that lets into Ray, where there is none, for this user alone.

    Ray would write one that everybody may read.
    """
    token = TOKEN_FILE.expanduser()
    token.parent.mkdir(mode=0o700, exist_ok=True)
    try:
        # As Ray makes it.
        descriptor = os.open(token, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
    except FileExistsError:
        token.chmod(0o600)
        return
    with os.fdopen(descriptor, "w") as file:
        file.write(secrets.token_hex(32))


@contextmanager
def _on_loopback() -> Iterator[None]:
    """Keep the Ray that is started meanwhile to the loopback interface, and tell its processes
    where it is.

    Ray does the first by itself on macOS and Windows only, and on Linux when told that it cannot
    have other nodes; given 127.0.0.1, or any other of 127.0.0.0/8, it listens on all interfaces.
    Its processes look for it otherwise when they clean up, and give up where the machine runs two.
    """
    with socket.socket() as probe:
        probe.bind((LOOPBACK, 0))
        port = probe.getsockname()[1]
    ours = {
        ray_constants.ENABLE_RAY_CLUSTERS_ENV_VAR: "0",
        "RAY_GCS_SERVER_PORT": str(port),
        "RAY_API_SERVER_ADDRESS": f"{LOOPBACK}:{port}",
    }
    before = {name: os.environ.get(name) for name in ours}
    other_nodes, ray_constants.ENABLE_RAY_CLUSTER = ray_constants.ENABLE_RAY_CLUSTER, False
    os.environ.update(ours)
    try:
        yield
    finally:
        ray_constants.ENABLE_RAY_CLUSTER = other_nodes
        for name, value in before.items():
            if value is None:
                del os.environ[name]
            else:
                os.environ[name] = value


def use_gpu(device: str) -> bool:
    """Whether workers get a GPU each. Raises BadInput when asked for and there is none."""
    gpus = ray.cluster_resources().get("GPU", 0)
    if device == "cuda" and not gpus:
        raise BadInput(
            "device cuda was asked for, but Ray sees no GPU; leave --device at auto, or have an "
            "autoscaled cluster grow with --wait_minutes"
        )
    return device != "cpu" and gpus > 0


def check_resources(cluster: ClusterConfig) -> None:
    """Raises BadInput when the cluster can never hold the workers, instead of waiting for ever.

    An autoscaled one is given ``wait_minutes`` to grow.
    """
    wait_for_workers(cluster)
    kind = "GPU" if use_gpu(cluster.device) else "CPU"
    there = ray.cluster_resources().get(kind, 0)
    if cluster.num_workers > there:
        raise BadInput(
            f"num_workers = {cluster.num_workers} needs {cluster.num_workers} {kind}s, "
            f"but the cluster has {there:g}"
        )


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


def build_trainer(launch: Launch, board: Any) -> Any:
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
        scaling_config=ScalingConfig(
            num_workers=config.cluster.num_workers,
            use_gpu=gpu,
            resources_per_worker={"GPU": 1} if gpu else {"CPU": 1},
        ),
        torch_config=torch_config(),
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
    board = new_board()
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
