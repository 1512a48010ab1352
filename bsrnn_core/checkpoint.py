"""A model on disk: a folder with its weights (safetensors) and the config that rebuilds it.

`model.safetensors` holds the weights, `config.json` the BsrnnConfig under "model", whatever is
worth knowing of the training under "metadata", the version of this format, and the SHA-256 of the
weights' file. A folder is written under a temporary name and then renamed, so that one that carries
its name is whole. Nothing in it is ever executed.
"""

import errno
import hashlib
import json
import os
import re
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import safetensors.torch
import torch
from safetensors import SafetensorError

from bsrnn_core.config import BsrnnConfig
from bsrnn_core.disk import is_full
from bsrnn_core.errors import BadInput
from bsrnn_core.model import BSRNN, num_parameters

WEIGHTS_FILE = "model.safetensors"
CONFIG_FILE = "config.json"
FORMAT_VERSION = 1
"""Of the folder and what is in it; raised when an older program would misread a new checkpoint."""
CONFIG_BYTES = 10_000_000
"""No configuration is as long as that."""


def _previous(folder: Path) -> Path:
    return folder.with_name(f"{folder.name}.previous")


def replace_folder(folder: Path, write: Callable[[Path], None]) -> None:
    """Let ``write`` fill a new folder, then put it in the place of ``folder``, all or nothing.

    A folder cannot be replaced in one step, so for a moment the old one is called *.previous;
    ``existing_folder`` finds it there should the process die in that moment. Raises BadInput when
    the disk is full; the old folder then stays as it is.
    """
    folder.parent.mkdir(parents=True, exist_ok=True)
    temporary = folder.with_name(f"{folder.name}.tmp.{os.getpid()}")
    previous = _previous(folder)
    # A folder has one writer: what an earlier one left half-written is in nobody's use.
    for unfinished in folder.parent.glob(f"{folder.name}.tmp.*"):
        shutil.rmtree(unfinished, ignore_errors=True)
    temporary.mkdir()
    try:
        write(temporary)
        for file in temporary.iterdir():
            with file.open("rb") as handle:
                os.fsync(handle.fileno())
        if folder.exists():
            shutil.rmtree(previous, ignore_errors=True)
            folder.rename(previous)
        temporary.rename(folder)
    except BaseException as error:
        full = _disk_is_full(temporary, error)
        shutil.rmtree(temporary, ignore_errors=True)
        if full:
            raise BadInput(
                f"{folder.parent} has no room for {folder.name}: the disk is full, make room on it"
            ) from error
        raise
    shutil.rmtree(previous, ignore_errors=True)


def _disk_is_full(folder: Path, error: BaseException) -> bool:
    if isinstance(error, (OSError, SafetensorError)):
        reasons = (errno.ENOSPC, errno.EDQUOT)
        return any(os.strerror(reason) in str(error) for reason in reasons)
    # PyTorch does not say why it could not write.
    return isinstance(error, RuntimeError) and is_full(folder)


def existing_folder(folder: Path) -> Path | None:
    """``folder``, or its predecessor where the last replacement was cut short, or None."""
    for candidate in (folder, _previous(folder)):
        if candidate.is_dir():
            return candidate
    return None


def save(folder: str | Path, model: BSRNN, metadata: dict[str, Any]) -> None:
    """Write ``model`` and ``metadata`` (plain JSON values) as a checkpoint folder, atomically."""
    replace_folder(Path(folder), lambda new: write_model(new, model, metadata))


def write_model(folder: Path, model: BSRNN, metadata: dict[str, Any]) -> None:
    """Write the two files of a checkpoint into an existing folder."""
    weights = {name: value.detach().cpu() for name, value in model.state_dict().items()}
    safetensors.torch.save_file(
        {name: value.contiguous() for name, value in weights.items()}, folder / WEIGHTS_FILE
    )
    content = {
        "format_version": FORMAT_VERSION,
        "weights_sha256": hashlib.sha256((folder / WEIGHTS_FILE).read_bytes()).hexdigest(),
        "model": model.config.to_dict(),
        "metadata": metadata,
    }
    (folder / CONFIG_FILE).write_text(json.dumps(content, indent=2) + "\n")


def _read_config(folder: str | Path) -> tuple[Path, dict[str, Any]]:
    found = existing_folder(Path(folder))
    if found is None:
        raise BadInput(f"{folder}: there is no such checkpoint folder")
    file = found / CONFIG_FILE
    try:
        if file.stat().st_size > CONFIG_BYTES:
            raise ValueError("it is too long")
        content = json.loads(file.read_text())
        if not isinstance(content, dict):
            raise ValueError("no JSON object")
        # Checkpoints from before there were versions are of the first.
        version = content.get("format_version", 1)
        if not isinstance(version, int):
            raise ValueError(f"format_version must be a whole number, not {version!r}")
    except (OSError, ValueError, RecursionError) as error:
        raise BadInput(
            f"{folder}: not a checkpoint, its {CONFIG_FILE} cannot be read ({error})"
        ) from error
    if version > FORMAT_VERSION:
        raise BadInput(
            f"{folder}: made by a newer version of this program (its format is {version}, "
            f"{FORMAT_VERSION} is the newest known here); update the program"
        )
    return found, content


def read_metadata(folder: str | Path) -> dict[str, Any]:
    """What ``save`` was given as metadata. Raises BadInput where there is no checkpoint."""
    metadata = _read_config(folder)[1].get("metadata", {})
    if not isinstance(metadata, dict):
        raise BadInput(
            f"{folder}: not a checkpoint, the metadata in its {CONFIG_FILE} is no object"
        )
    return metadata


def load(folder: str | Path, device: str | torch.device = "cpu") -> BSRNN:
    """The model of a checkpoint folder, in evaluation mode.

    Raises BadInput, naming the folder, when it is missing, incomplete or does not fit together.
    """
    found, content = _read_config(folder)
    try:
        weights = _read_weights(found / WEIGHTS_FILE, content.get("weights_sha256"))
        config = BsrnnConfig.from_dict(content.get("model", {}))
        for stem in config.stems:
            # It becomes part of a file's name.
            if not re.fullmatch(r"[^/\\\0]{1,100}", stem):
                raise ValueError(f"{stem[:100]!r} cannot be the name of a stem")
        # Asked first: a configuration may want any amount of memory.
        if num_parameters(config) != sum(values.numel() for values in weights.values()):
            raise ValueError(f"{WEIGHTS_FILE} is of another model than {CONFIG_FILE}")
        model = BSRNN(config)
        model.load_state_dict(weights)
    except (OSError, SafetensorError, RuntimeError, ValueError) as error:
        raise BadInput(f"{folder}: the checkpoint cannot be loaded ({error})") from error
    return model.to(device).eval()


def _read_weights(file: Path, sha256: object) -> dict[str, torch.Tensor]:
    """Raises ValueError for weights that are not those that were saved, or not finite."""
    content = file.read_bytes()
    # Checkpoints from before there were sums have none.
    if sha256 is not None and hashlib.sha256(content).hexdigest() != sha256:
        raise ValueError(
            f"{file.name} has changed since it was written, it is damaged: copy it anew"
        )
    weights = safetensors.torch.load(content)
    for name, values in weights.items():
        if not values.is_floating_point() or not values.isfinite().all():
            raise ValueError(f"{name} in {file.name} holds NaN or infinite values")
    return weights
