"""Write the network of a checkpoint to an ONNX file, and check the file against PyTorch.

bsrnn export --checkpoint_fp runs/demo/best --onnx drums.onnx
"""

import sys
from dataclasses import dataclass
from pathlib import Path

import torch

from bsrnn_core.checkpoint import load
from bsrnn_core.errors import BadInput
from bsrnn_core.onnx_network import (
    TOLERANCE,
    OnnxNetwork,
    check_packages,
    largest_deviation,
    write_onnx,
)
from data_prep.atomic import AtomicPath
from data_prep.storage import local_only
from pipelines.remote_checkpoints import local_checkpoint

CHECKED = ((1, 2, 100), (2, 1, 17))
"""Batch, channels and frames of the random spectrograms that a file is checked with."""


@dataclass(frozen=True, kw_only=True, slots=True)
class ExportConfig:
    """Options of `bsrnn export`."""

    checkpoint_fp: str
    """Folder of the checkpoint, or s3://bucket/runs/NAME/best."""
    onnx: str
    """File to write: the network between STFT and inverse STFT, for onnxruntime and the like."""
    overwrite: bool = False
    """Replace the file if there is one."""


def run(config: ExportConfig) -> Path:
    """Write the file, say how far onnxruntime is from PyTorch with it, and return it.

    Raises BadInput where there is such a file already, or it cannot be written; RuntimeError, and
    leaves no file, where the two do not agree to TOLERANCE.
    """
    check_packages()
    file = local_only(config.onnx, "onnx")
    if file.is_dir():
        raise BadInput(f"{file}: is a folder; name a file with --onnx")
    if file.exists() and not config.overwrite:
        raise BadInput(f"{file}: is there already; name another file, or give --overwrite")
    model = load(local_checkpoint(config.checkpoint_fp))
    generator = torch.Generator().manual_seed(0)
    bins = model.config.stft.num_bins
    mixtures = [
        torch.randn(batch, channels, bins, frames, 2, generator=generator)
        for batch, channels, frames in CHECKED
    ]
    try:
        with AtomicPath(file) as unfinished:
            write_onnx(model, unfinished)
            deviation = largest_deviation(model, OnnxNetwork(unfinished), mixtures)
            if not deviation <= TOLERANCE:
                raise RuntimeError(
                    f"onnxruntime deviates from PyTorch by {deviation:.1e} of the loudest value"
                )
    except OSError as error:
        raise BadInput(f"{file}: cannot be written ({error.strerror or error})") from error
    frames = " and ".join(str(frames) for _, _, frames in CHECKED)
    print(f"{file}: {', '.join(model.stems)}, {file.stat().st_size / 1e6:.1f} MB")
    print(
        f"largest deviation from PyTorch: {deviation:.1e} of the loudest value, "
        f"on noise of {frames} frames"
    )
    return file


if __name__ == "__main__":
    from pipelines.cli import main

    sys.exit(main(["export", *sys.argv[1:]]))
