"""Every point of a run on disk, so that one that was killed sends what had not left yet."""

import json
import logging
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import IO, NamedTuple

logger = logging.getLogger(__name__)


class Point(NamedTuple):
    """One value of one metric. Sent twice with the same time stamp it is recorded once."""

    key: str
    value: float
    timestamp_ms: int
    step: int


class Journal:
    """A file of points, one a line. What was written survives the process, not the machine."""

    def __init__(self, file: Path) -> None:
        self.file = file
        self._handle: IO[str] | None = None
        self._broken = False

    def read(self) -> Iterator[Point]:
        """The points of earlier invocations; a line that was cut off is none."""
        if not self.file.exists():
            return
        with self.file.open(encoding="utf-8", errors="replace") as lines:
            for line in lines:
                try:
                    key, value, timestamp_ms, step = json.loads(line)
                    yield Point(str(key), float(value), int(timestamp_ms), int(step))
                except (ValueError, TypeError):
                    continue

    def write(self, points: Sequence[Point]) -> None:
        """Add points. Warns once when they cannot be written: the training goes on."""
        if self._broken:
            return
        try:
            if self._handle is None:
                self._handle = self.file.open("a", encoding="utf-8")
                # Whoever was killed may have left half a line.
                if self._handle.tell():
                    self._handle.write("\n")
            self._handle.writelines(json.dumps(point) + "\n" for point in points)
            self._handle.flush()
        except OSError as error:
            self._broken = True
            logger.warning("%s is kept no further: %s", self.file, error.strerror)

    def close(self) -> None:
        """Write no more."""
        if self._handle is not None and not self._broken:
            self._handle.close()
        self._handle = None
