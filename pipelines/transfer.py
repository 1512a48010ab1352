"""Train a new head on the frozen trunk of a checkpoint: transfer to another stem.

    bsrnn transfer --part bass --checkpoint_fp runs/drums/best --name drums-to-bass
    ray job submit -- python pipelines/transfer.py --part bass --checkpoint_fp mtl/best --name b

The same as `bsrnn train --transfer`: the checkpoint's heads are replaced, band split and band
sequence stay as they are, for good or for the first --unfreeze_after_epochs epochs. Options that
are not given are those of the run that the checkpoint comes from.
"""

import dataclasses
import sys
from pathlib import Path

from pipelines import base
from pipelines.config import TrainConfig


def run(config: TrainConfig) -> Path:
    """Train fresh heads for ``config.part`` on the trunk of ``config.checkpoint_fp``; returns the
    run's folder. Raises BadInput as ``base.run`` does."""
    return base.run(dataclasses.replace(config, transfer=True))


if __name__ == "__main__":
    from pipelines.cli import main

    sys.exit(main(["transfer", *sys.argv[1:]]))
