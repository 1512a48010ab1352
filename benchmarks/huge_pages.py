"""A training step and a separation on the CPU, large tensors in small pages and in huge ones.

    python benchmarks/huge_pages.py

`bsrnn` and the nodes of a cluster set THP_MEM_ALLOC_ENABLE=1. Torch reads it once: so every
measurement is a process of its own, and those with it and without take turns. Untrained weights and
noise; stereo crops of 3 s, and a song in windows of `bsrnn infer` and in those of the paper.
"""

import argparse
import contextlib
import dataclasses
import json
import os
import resource
import statistics
import subprocess
import sys

import torch
from model_step import ModelStep
from separation import PAPER
from timing import seconds

from bsrnn_core import BSRNN, separate
from bsrnn_core.config import SeparationConfig
from pipelines.config import PRESETS

SETTINGS = {"small": "0", "huge": "1"}
"""Pages -> THP_MEM_ALLOC_ENABLE."""
SAMPLE_RATE = 44100
CROP_SECONDS = 3
WINDOWS = {
    "song, windows of 12 s": SeparationConfig(precision="float32"),
    "song, the paper's windows": PAPER,
}


def measure(options: argparse.Namespace) -> dict[str, float]:
    """Seconds of each task and the peak memory, in GB, of this process."""
    torch.set_num_threads(options.threads)
    torch.manual_seed(0)
    config = dataclasses.replace(PRESETS[options.preset](), part=("vocals",)).bsrnn
    model = BSRNN(config)
    song = 0.1 * torch.randn(2, options.song_seconds * SAMPLE_RATE)
    found = {
        name: seconds(lambda windows=windows: separate(model, song, SAMPLE_RATE, windows), "cpu")
        for name, windows in WINDOWS.items()
    }
    batch = ModelStep(model, options.batch_size, config.stft.num_frames(CROP_SECONDS * SAMPLE_RATE))
    steps = [
        seconds(lambda: batch.step(contextlib.nullcontext()), "cpu")
        for _ in range(options.steps + 1)
    ]
    found["training step"] = statistics.median(steps[1:])
    found["peak memory, GB"] = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1e6
    return found


def main() -> None:
    """Run the benchmark, or (--one) one of its measurements."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--preset", choices=PRESETS, default="tiny")
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--batch_size", type=int, default=2)
    parser.add_argument("--steps", type=int, default=6)
    parser.add_argument("--song_seconds", type=int, default=24)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--one", action="store_true", help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.one:
        print(json.dumps(measure(options)))
        return
    found: dict[str, list[dict[str, float]]] = {pages: [] for pages in SETTINGS}
    for _ in range(options.rounds):
        for pages, value in SETTINGS.items():
            said = subprocess.run(
                [sys.executable, __file__, *sys.argv[1:], "--one"],
                env=os.environ | {"THP_MEM_ALLOC_ENABLE": value},
                check=True, capture_output=True, text=True,
            )  # fmt: skip
            found[pages].append(json.loads(said.stdout.splitlines()[-1]))
    title = f"medians of {options.rounds} rounds"
    print(f"{title:<28}{'small':>10}{'huge':>10}{'ratio':>10}")
    for task in found["small"][0]:
        small, huge = (statistics.median(one[task] for one in found[pages]) for pages in SETTINGS)
        print(f"{task:<28}{small:>10.2f}{huge:>10.2f}{small / huge:>10.2f}")


if __name__ == "__main__":
    main()
