"""Points and files of a run, sent by a thread of their own, whatever the store does.

Knows nothing of MLflow: `pipelines.tracking` supplies the store that is written to.
"""

import logging
import threading
import time
from collections import deque
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Protocol, Self

from pipelines.tracking_journal import Journal, Point

logger = logging.getLogger(__name__)

POINTS_PER_BATCH = 1000
LONGEST_PAUSE_S = 30.0
"""Between two attempts while the store is away."""
URGENT_PAUSE_S = 1.0
"""The same while somebody waits in `flush` or `close`."""
ARTIFACT_ATTEMPTS = 3


class Refused(Exception):
    """The store is there and will never take these points."""


class Store(Protocol):
    """One run in a store. Any exception but Refused means: try again later."""

    def last_steps(self) -> dict[str, int]:
        """The highest step recorded for each metric."""
        ...

    def send(self, points: Sequence[Point]) -> None:
        """Record at most POINTS_PER_BATCH points."""
        ...

    def upload(self, path: Path, folder: str) -> None:
        """Copy a file, or the contents of a folder, to a folder of the run."""
        ...

    def problem(self) -> str | None:
        """Why the store cannot be used now, or None."""
        ...


class BackgroundLog:
    """Takes points and files without waiting, and sends them when the store is there.

    A metric's steps only ever rise: a step at or below the highest one recorded is left out, so
    that a resumed run repeats nothing. A ``journal`` keeps all points on disk, of which a resumed
    run sends first what the store lacks. While the store is away the newest ``max_points`` points
    are kept. Use it as a context manager, or call `close`.
    """

    def __init__(
        self,
        store: Store,
        title: str,
        *,
        journal: Journal | None = None,
        every_s: float = 2.0,
        max_points: int = 100_000,
    ) -> None:
        self._store = store
        self._journal = journal
        self._title = title
        self._every_s = every_s
        self._changed = threading.Condition()
        self._points = deque(journal.read() if journal else (), maxlen=max_points)
        self._files: dict[tuple[Path, str], int] = {}  # in order -> failed attempts
        self._batch: list[Point] = []
        self._uploading: tuple[Path, str] | None = None
        self._last_steps: dict[str, int] | None = None
        self._lost_points = 0
        self._refused = False
        self._waiting = 0
        self._closing = False
        self._abandoned = False
        self._thread = threading.Thread(target=self._work, name="tracking", daemon=True)
        self._thread.start()

    def log(self, step: int, metrics: Mapping[str, float]) -> None:
        """Record one value per metric. Returns at once."""
        now_ms = int(time.time() * 1000)
        points = [Point(key, float(value), now_ms, step) for key, value in metrics.items()]
        if self._journal:
            self._journal.write(points)
        with self._changed:
            assert self._points.maxlen is not None
            self._lost_points += max(0, len(self._points) + len(points) - self._points.maxlen)
            self._points.extend(points)

    def log_artifact(self, path: Path, folder: str = "") -> None:
        """Copy a file to a folder of the run. Returns at once.

        The file is read later: it must stay until `flush` or `close`, and what it holds then is
        what is copied. Asked for again before it was copied, it is copied once.
        """
        with self._changed:
            self._files[(Path(path).absolute(), folder)] = 0

    log_artifacts = log_artifact
    """The same for everything inside a folder."""

    def flush(self, timeout_s: float = 60) -> bool:
        """Wait until all is sent, at most ``timeout_s`` seconds; says whether it is."""
        with self._changed:
            self._waiting += 1
            self._changed.notify_all()
            done = self._changed.wait_for(lambda: not self._pending(), timeout_s)
            self._waiting -= 1
        return done

    def close(self, timeout_s: float = 60) -> None:
        """Send what is left, for at most ``timeout_s`` seconds; warns of what was lost."""
        with self._changed:
            if self._closing:
                return
            self._closing = True
            self._changed.notify_all()
        self._thread.join(timeout_s)
        if self._journal:
            self._journal.close()
        with self._changed:
            self._abandoned = True
            self._changed.notify_all()
            points = len(self._points) + len(self._batch) + self._lost_points
            files = len(self._files) + (self._uploading is not None)
            self._points.clear()
            self._files.clear()
        if points or files:
            logger.warning("%s lacks %d points and %d files", self._title, points, files)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exception: object) -> None:
        self.close()

    def _pending(self) -> bool:
        return bool(self._points or self._batch or self._files or self._uploading)

    def _work(self) -> None:
        failures = 0
        while self._next_round(failures):
            try:
                self._send_points()
                self._send_files()
            except Exception as error:  # whatever happens here, the training goes on
                failures += 1
                if failures == 1:
                    logger.warning("%s: %s; kept for later", self._title, first_line(error))
            else:
                if failures:
                    logger.warning("%s: the store records again", self._title)
                failures = 0

    def _next_round(self, failures: int) -> bool:
        """Pause, the longer the more often it failed; False when there is nothing left to do."""
        pause_s = min(self._every_s * 2 ** min(failures, 10), LONGEST_PAUSE_S)
        with self._changed:
            self._changed.notify_all()
            self._changed.wait_for(self._urgent, pause_s)
            if failures:
                self._changed.wait_for(lambda: self._abandoned, URGENT_PAUSE_S)
            return not self._abandoned and (self._pending() or not self._closing)

    def _urgent(self) -> bool:
        return self._closing or (self._waiting > 0 and self._pending())

    def _send_points(self) -> None:
        while self._points or self._batch:
            try:
                if self._last_steps is None:
                    self._last_steps = self._store.last_steps()
                if not self._batch:
                    self._take_batch(self._last_steps)
                if self._batch:
                    self._store.send(self._batch)
            except Refused as error:
                self._drop_points(error)
            self._batch = []

    def _take_batch(self, last_steps: dict[str, int]) -> None:
        """Move the oldest points to the batch, less those whose step is recorded already."""
        with self._changed:
            while self._points and len(self._batch) < POINTS_PER_BATCH:
                point = self._points.popleft()
                if point.step > last_steps.get(point.key, -1):
                    last_steps[point.key] = point.step
                    self._batch.append(point)

    def _drop_points(self, error: Refused) -> None:
        """Give up the batch, or all there is when the run itself is refused. Warns once."""
        with self._changed:
            self._lost_points += len(self._batch)
            if self._last_steps is None:
                self._lost_points += len(self._points)
                self._points.clear()
        if not self._refused:
            logger.warning("%s: points are refused: %s", self._title, first_line(error))
        self._refused = True

    def _send_files(self) -> None:
        while self._files:
            with self._changed:
                item = next(iter(self._files))
                attempts = self._files.pop(item) + 1
                self._uploading = item
            try:
                self._store.upload(*item)
            except Exception as error:
                if not self._is_hopeless(item[0], attempts):
                    with self._changed:
                        self._files = {item: attempts, **self._files}
                    raise
                logger.warning("%s: %s is not copied: %s", self._title, item[0], first_line(error))
            finally:
                self._uploading = None

    def _is_hopeless(self, path: Path, attempts: int) -> bool:
        """Whether the file is the trouble, not the store."""
        if not path.exists():
            return True
        return attempts >= ARTIFACT_ATTEMPTS and self._store.problem() is None


def first_line(error: BaseException) -> str:
    """What an error says, without its details."""
    return (str(error).strip() or type(error).__name__).splitlines()[0]
