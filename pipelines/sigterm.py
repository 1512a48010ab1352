"""SIGTERM, as it comes before a machine is taken away: noted in workers, and asked of by drivers.

It reaches a process's main thread, while Ray Train runs the training in another one. So the main
thread of each worker only notes it, and the training asks between two steps.
"""

import signal
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

from ray.train.torch import TorchConfig
from ray.train.torch.config import _TorchBackend


class _Note:
    """A signal handler that does no more than remember."""

    def __init__(self) -> None:
        self.taken = False

    def __call__(self, *_: object) -> None:
        self.taken = True


def sigterm_noted() -> bool:
    """Whether SIGTERM has reached this worker since its training began."""
    handler = signal.getsignal(signal.SIGTERM)
    return isinstance(handler, _Note) and handler.taken


def note_sigterm() -> None:
    """Remember SIGTERM from now on, instead of dying of it."""
    signal.signal(signal.SIGTERM, _Note())


class NotingBackend(_TorchBackend):
    """Sets torch.distributed up as Ray does, in workers that note SIGTERM."""

    def on_training_start(self, worker_group: Any, backend_config: Any) -> None:
        """Called before the training begins in its thread."""
        super().on_training_start(worker_group, backend_config)
        # It runs on the main thread of each worker, the only one that may set a handler.
        worker_group.execute(note_sigterm)


@dataclass
class SigtermNoted(TorchConfig):
    """The settings of it."""

    @property
    def backend_cls(self) -> Any:
        """What Ray calls around a training."""
        return NotingBackend


@contextmanager
def sigterm_asks(ask: Callable[[], bool]) -> Iterator[None]:
    """Meanwhile SIGTERM calls ``ask``; where that returns False, and the second time, it interrupts
    like Ctrl-C.

    Outside the main thread nothing changes.
    """
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    asked = False

    def handle(*_: object) -> None:
        nonlocal asked
        if asked or not ask():
            raise KeyboardInterrupt
        asked = True

    before = signal.signal(signal.SIGTERM, handle)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)
