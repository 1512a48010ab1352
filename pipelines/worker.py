"""What each Ray Train worker runs: a training, tied to Ray, MLflow and its machine's signals."""

import contextlib
import dataclasses
from dataclasses import dataclass
from functools import partial
from typing import Any

import ray
import ray.train
import ray.train.torch
import torch

from bsrnn_core.errors import BadInput
from data_prep.storage import Location, Unavailable
from pipelines.devices import cores
from pipelines.events import Events
from pipelines.run_files import JOURNAL_FILE
from pipelines.run_storage import RunStorage, check_shared
from pipelines.sigterm import sigterm_noted
from pipelines.stalls import Pulse
from pipelines.stopping import Interrupted, Stop
from pipelines.tracking import Tracker
from pipelines.training import Training, TrainingJob

PULSES_PER_STALL = 4
"""How often a worker says what it is at in the time after which it counts as late."""
DRAIN_CHECK_STEPS = 10
"""Steps between two looks at whether a machine will be taken away, for which all workers meet. A
GPU, which is waited for then, is not asked more often whether to stop."""


@dataclass(frozen=True, kw_only=True)
class Launch:
    """A training and where it is logged and shown."""

    job: TrainingJob
    run_id: str
    tracking_uri: str
    home: Location | None = None
    """Where the run's folder is kept, when ``job.folder`` is this machine's copy of it."""

    @property
    def storage(self) -> RunStorage:
        """Where the run is kept, and this machine's copy."""
        return RunStorage(self.home or self.job.folder)


def train_worker(settings: dict[str, Any]) -> BaseException | None:
    """A worker of a training, to its end; returns what the driver is to raise, if anything.

    What is raised here instead has Ray start all workers again, from the last checkpoint.
    """
    launch: Launch = settings["launch"]
    board: Any = settings["board"]
    name = launch.job.config.name
    why = ray.get(board.why_hopeless.remote(name))
    if why:
        return BadInput(why)
    try:
        _train(launch, board, settings["node"])
    except Unavailable:
        # A storage that is away may be back when all are started again.
        raise
    except FloatingPointError as error:
        return error
    except BadInput as error:
        # Other workers may be in the middle of a step: they end when Ray starts all anew.
        ray.get(board.give_up.remote(name, str(error)))
        raise
    except Interrupted as error:
        if error.stop is Stop.END:
            return KeyboardInterrupt(str(error))
        raise
    return None


def _train(launch: Launch, board: Any, drivers_node: str) -> None:
    config, context = launch.job.config, ray.train.get_context()
    rank, storage = context.get_world_rank(), launch.storage
    if ray.get_runtime_context().get_node_id() != drivers_node:
        check_shared(storage.home, launch.run_id, launch.job.shards)
    storage.fetch()
    # Another machine may have its cache in another place.
    job = dataclasses.replace(launch.job, folder=storage.folder)
    torch.set_num_threads(
        config.cluster.threads_per_worker or max(1, cores() // context.get_local_world_size())
    )
    device = ray.train.torch.get_device()
    told = _Told(board, config.name, 1 if device.type == "cuda" else DRAIN_CHECK_STEPS)
    events = Events(wish=told.wish, on_epoch=ray.train.report)
    with contextlib.ExitStack() as stack:
        if config.cluster.stall_seconds:
            pulse = Pulse(
                partial(board.post_beat.remote, config.name, rank),
                config.cluster.stall_seconds / PULSES_PER_STALL,
            )
            events.on_phase = stack.enter_context(pulse).at
        if rank == 0:
            tracker = Tracker(launch.run_id, launch.tracking_uri, journal=job.folder / JOURNAL_FILE)
            events.on_checkpoint = storage.send_if_possible
            events.on_metrics = stack.enter_context(tracker).log
            events.on_step, events.on_epoch = told.post, told.post_epoch
        if rank == 0:
            # Also when it ends early: what an earlier attempt left out must not be lost.
            stack.callback(storage.send_at_last)
        Training(job, device=device, wrap=_distributed, events=events).run()


def _distributed(model: torch.nn.Module) -> torch.nn.Module:
    options = {"forward_sync_buffers": False, "gradient_as_bucket_view": True}
    return ray.train.torch.prepare_model(model, parallel_strategy_kwargs=options)


class _Told:
    """What a worker tells the driver of its training, and what it is told."""

    def __init__(self, board: Any, name: str, drain_every: int) -> None:
        """Asks every ``drain_every`` wishes whether a machine will be taken away."""
        self._board, self._name, self._drain_every = board, name, drain_every
        self._answer: Any = None
        self._asked = 0
        self._drained = False

    def post(self, status: dict[str, float]) -> None:
        """Say where the training stands."""
        self._answer = self._board.post.remote(self._name, status)

    def post_epoch(self, metrics: dict[str, float]) -> None:
        """Report an epoch."""
        # On the board before the training can go on or end.
        ray.get(self._board.post_epoch.remote(self._name, metrics))
        ray.train.report(metrics)

    def wish(self) -> Stop:
        """What this worker wishes the training to do before its next step."""
        self._asked += 1
        wishes = [Stop.NO]
        # Whatever else a worker is told: all have to meet here.
        if self._asked % self._drain_every == 0 and not self._drained:
            self._drained = ray.train.get_preemption_info() is not None
            if self._drained:
                wishes.append(Stop.CHECKPOINT)
        if sigterm_noted():
            wishes.append(Stop.RESTART)
        if self._answer and ray.wait([self._answer], timeout=0)[0] and ray.get(self._answer):
            wishes.append(Stop.END)
        return max(wishes)
