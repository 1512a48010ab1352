"""Train one trunk shared by all stems, with a mask head for each: multi-task learning.

    bsrnn mtl --musdbhq_location musdb18hq --name mtl
    ray job submit -- python pipelines/mtl.py --shards /data/shards --name mtl

The same as `bsrnn train` with a --part for every stem of the music; the heads are computed
together, and the stems' losses summed (--stem_weights weighs them).
"""

import dataclasses
import sys
from pathlib import Path

from data_prep.shards import ShardDataset
from pipelines import base
from pipelines.config import TrainConfig


def run(config: TrainConfig) -> Path:
    """Train heads for all stems, unless ``config.part`` names some; returns the run's folder.

    Raises BadInput as ``base.run`` does.
    """
    stems = config.part or (
        ShardDataset.open(config.shards).stems if config.shards else config.source.stem_names
    )
    return base.run(dataclasses.replace(config, part=stems))


if __name__ == "__main__":
    from pipelines.cli import main

    sys.exit(main(["mtl", *sys.argv[1:]]))
