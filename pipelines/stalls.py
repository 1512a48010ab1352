"""Who keeps a training waiting: every worker says what it is at, and the driver names who is late.

All workers make the same steps together, so one that waits for data, or is gone, stops them all.
"""

import socket
import threading
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Literal

At = Literal["data", "step", "others", "work"]
"""Waiting for a batch; in a step, in which workers wait for each other too; only waiting for the
others; or at something that may take long (validation, a checkpoint)."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Beat:
    """What a worker says that it is at."""

    host: str
    at: At
    step: int
    seconds: float
    """For how long."""


class Pulse:
    """A thread that says every ``every_s`` seconds what a worker is at. Use it as a context
    manager."""

    def __init__(self, send: Callable[[Beat], object], every_s: float) -> None:
        self._send, self._every_s = send, every_s
        self._now: tuple[At, int, float] = ("work", 0, time.monotonic())
        self._done = threading.Event()
        self._thread = threading.Thread(target=self._run, name="pulse", daemon=True)

    def at(self, what: At, step: int) -> None:
        """Note what the worker begins to do."""
        self._now = (what, step, time.monotonic())

    def __enter__(self) -> "Pulse":
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._done.set()
        self._thread.join(timeout=self._every_s)

    def _run(self) -> None:
        host = socket.gethostname()
        while not self._done.wait(self._every_s):
            what, step, since = self._now
            self._send(Beat(host=host, at=what, step=step, seconds=time.monotonic() - since))


class StallReport:
    """Names the workers that a training waits for, each time once."""

    def __init__(self, limit_s: float) -> None:
        self._limit_s = limit_s
        self._told: set[tuple[int, str]] = set()

    def sentences(self, beats: Mapping[int, tuple[float, Beat]]) -> list[str]:
        """What to say of ``beats``: rank -> (seconds since it was heard, what it said)."""
        late: dict[tuple[int, str], str] = {}
        for rank, (silence, beat) in sorted(beats.items()):
            who = f"rank {rank} on {beat.host}"
            if silence > self._limit_s:
                late[rank, "gone"] = (
                    f"{who} has not been heard of for {silence:.0f} s, since step {beat.step}"
                )
            elif beat.at == "data" and beat.seconds > self._limit_s:
                late[rank, "data"] = (
                    f"{who} has waited {beat.seconds:.0f} s for the data of step {beat.step}: is "
                    "its storage slow, or --data_loader_workers too low?"
                )
        waiting = [
            (rank, beat)
            for rank, (_, beat) in sorted(beats.items())
            if beat.at in ("step", "others") and beat.seconds > self._limit_s
        ]
        busy = [(rank, b) for rank, (_, b) in sorted(beats.items()) if b.at == "work"]
        if not late and waiting:
            # Who works is what they wait for; else each waits, or computes for too long.
            for rank, beat in busy:
                if beat.seconds > self._limit_s:
                    late[rank, "work"] = (
                        f"rank {rank} on {beat.host} has scored songs or written a checkpoint at "
                        f"step {beat.step} for {beat.seconds:.0f} s, and others wait for it"
                    )
        if not late:
            for rank, beat in waiting:
                late[rank, "others"] = (
                    f"rank {rank} on {beat.host} has been in step {beat.step}, or waiting for the "
                    f"others there, for {beat.seconds:.0f} s"
                )
        new = [sentence for stall, sentence in late.items() if stall not in self._told]
        self._told = set(late)
        return new
