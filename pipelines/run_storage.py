"""A run's folder where it is remote: a working copy on each machine, and how both are kept alike.

What is in object storage counts. A machine that begins, or goes on with, a training takes it from
there first, and the worker of rank 0 sends what has changed whenever a checkpoint is written; so a
worker that is started again on another machine loses no more than one on the same. Files are
objects of the same names, checkpoint folders one object each (remote_checkpoints.py).
"""

import json
import logging
import socket
import time
from pathlib import Path
from typing import Any

from bsrnn_core.checkpoint import existing_folder
from bsrnn_core.errors import BadInput
from data_prep.cache import locked
from data_prep.manifest import MANIFEST_NAME
from data_prep.storage import Location, RemotePath, cache_folder, key_of, size_of, whole
from pipelines.config_files import RUN_CONFIG
from pipelines.remote_checkpoints import archive_of, fetch_checkpoint, forget, send_checkpoint
from pipelines.run_files import COSTS_FILE, JOURNAL_FILE, RUN_FILE

logger = logging.getLogger(__name__)

CHECKPOINTS = ("best", "last")
FILES = (RUN_CONFIG, RUN_FILE, COSTS_FILE, JOURNAL_FILE)
MARKS_FILE = ".copied.json"
"""In a working copy: name -> the remote version, and the local state that is a copy of it."""
LAST_ATTEMPTS_S = (1, 5, 15, 30)
"""Pauses between the attempts to send what a training leaves at its end."""


class RunStorage:
    """Where a run is kept. For a run on a local disk there is nothing to do."""

    def __init__(self, home: Location) -> None:
        self.home = home
        self.remote = home if isinstance(home, RemotePath) else None
        self.folder = working_copy(home)
        """The run's folder on this machine."""
        self._warned = False

    @property
    def uri(self) -> str:
        """The run's folder as Ray takes it."""
        return str(self.folder) if self.remote is None else self.remote.uri

    def fetch(self) -> None:
        """Make the working copy what the storage holds.

        Raises BadInput when the storage cannot be reached.
        """
        if self.remote is None:
            return
        with locked(str(self.home)):
            if not (self.remote / RUN_FILE).exists():
                forget(self.folder)
            self.folder.mkdir(parents=True, exist_ok=True)
            marks = self._marks()
            for name in (*FILES, *CHECKPOINTS):
                copy, version = self.folder / name, self._version(name)
                if version is None:
                    # Of a checkpoint whose replacement was cut short, both.
                    forget(copy)
                    forget(existing_folder(copy) or copy)
                elif marks.get(name) != [version, _state(copy)]:
                    self._fetch_one(name)
                    marks[name] = [version, _state(copy)]
            self._note(marks)

    def send(self) -> None:
        """Send what has changed since it was fetched or sent. Raises BadInput when that fails."""
        if self.remote is None:
            return
        for name in (*FILES, *CHECKPOINTS):
            state, marks = _state(self.folder / name), self._marks()
            if state is None or (name in marks and marks[name][1] == state):
                continue
            if name in CHECKPOINTS:
                send_checkpoint(self.folder / name, self.remote / name)
            else:
                self._send_file(name)
            self._note({**marks, name: [self._version(name), state]})

    def send_if_possible(self) -> None:
        """The same while a training runs, which does not end because its storage is away."""
        try:
            self.send()
        except BadInput as error:
            if not self._warned:
                logger.warning("not all of %s is in its storage: %s", self.home, error)
            self._warned = True

    def send_at_last(self) -> None:
        """The same at a training's end: it waits a while for a storage that is away.

        Raises BadInput, which says where the results are, when that fails.
        """
        for pause in LAST_ATTEMPTS_S:
            try:
                return self.send()
            except BadInput:
                time.sleep(pause)
        try:
            self.send()
        except BadInput as error:
            raise BadInput(
                f"the training has ended, but {error}. Its results are on {socket.gethostname()} "
                f"in {self.folder}: copy them, or --resume the run to make the last steps again"
            ) from error

    def send_folder(self, name: str) -> None:
        """Send the files in a folder of the run. Raises BadInput when that fails."""
        if self.remote is None:
            return
        for file in sorted((self.folder / name).iterdir()):
            (self.remote / name / file.name).send(file)

    def _fetch_one(self, name: str) -> None:
        assert self.remote is not None
        if name in CHECKPOINTS:
            fetch_checkpoint(self.remote / name, self.folder / name)
        else:
            with whole(self.folder / name) as unfinished:
                (self.remote / name).fetch(unfinished)

    def _send_file(self, name: str) -> None:
        assert self.remote is not None
        with whole(self.remote / name) as unsent:
            # A copy: the journal grows meanwhile.
            unsent.write_bytes((self.folder / name).read_bytes())

    def _version(self, name: str) -> str | None:
        assert self.remote is not None
        path = self.remote / name
        return (archive_of(path) if name in CHECKPOINTS else path).version()

    def _marks(self) -> dict[str, list[str | None]]:
        try:
            return json.loads((self.folder / MARKS_FILE).read_text())
        except (OSError, ValueError):
            return {}

    def _note(self, marks: dict[str, list[str | None]]) -> None:
        with whole(self.folder / MARKS_FILE) as unfinished:
            unfinished.write_text(json.dumps(marks))


def working_copy(home: Location) -> Path:
    """Where a machine has the results that belong at ``home``: there, unless that is remote."""
    if isinstance(home, RemotePath):
        return cache_folder() / "runs" / key_of(str(home.parent)) / home.name
    return home


def _state(path: Path) -> str | None:
    """A name for a file or a checkpoint as it is now: every checkpoint is a new folder."""
    found = existing_folder(path) or path
    try:
        there = found.stat()
    except FileNotFoundError:
        return None
    return f"{there.st_ino}-{there.st_mtime_ns}-{there.st_size}"


def check_shared(run: Location, run_id: str, shards: Location) -> None:
    """Raises BadInput where this machine does not see the driver's folders."""
    host = socket.gethostname()
    if isinstance(run, Path) and (recorded_run(run) or {}).get("run_id") != run_id:
        raise BadInput(
            f"{host} does not see {run}, where the results go: with several machines, give --out "
            "a folder that all of them share, or s3://bucket/runs"
        )
    if isinstance(shards, Path) and size_of(shards / MANIFEST_NAME) is None:
        raise BadInput(
            f"{host} does not see {shards}, where the shards are: with several machines, give "
            "--shards a folder that all of them share, or s3://bucket/shards"
        )


def recorded_run(folder: Path) -> dict[str, Any] | None:
    """The MLflow run that is noted in a run's folder, None when there is none."""
    file = folder / RUN_FILE
    return json.loads(file.read_text()) if file.exists() else None
