"""Room on disks: libraries that write for us do not say when there was none."""

import os
import shutil
import tempfile
from pathlib import Path
from typing import IO

from bsrnn_core.errors import BadInput

FULL_BYTES = 1 << 16
"""With less room than this a disk is taken to be full when something could not be written."""


def is_full(folder: str | os.PathLike[str]) -> bool:
    """Whether the disk of a folder has next to no room left."""
    return shutil.disk_usage(folder).free < FULL_BYTES


def temporary_file(path: Path) -> IO[bytes]:
    """A file without a name, for what is decoded of ``path``. Raises BadInput where none can be."""
    try:
        return tempfile.TemporaryFile()
    except OSError as error:
        raise no_room(path, error) from error


def no_room(path: Path, error: object) -> BadInput:
    """What to say when what is decoded of ``path`` cannot be put down."""
    return BadInput(
        f"{path}: no room for the decoded song in the temporary folder ({error}); make room there, "
        "or name another folder in the environment variable TMPDIR"
    )
