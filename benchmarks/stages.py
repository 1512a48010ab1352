"""A training step of base, of transfer onto a frozen trunk, and of MTL, in turns.

    python benchmarks/stages.py
    python benchmarks/stages.py --preset paper --crop_seconds 1 --repeats 3

base: one stem. transfer: one fresh head on the trunk of base, which stays. mtl: four heads on one
trunk. four bases: a step of four models of one stem each, one after the other, which is what mtl
takes the place of. Every step is `Training.train_step`, as a worker runs it: forward, loss,
backward, clipping, Adam, schedule. All see the same mixture, of noise, which lies in memory. The
contenders take turns; medians over the turns. Aim: a step of transfer takes half of base's.
"""

import argparse
import dataclasses
import tempfile
from collections.abc import Callable
from pathlib import Path

import numpy as np
import soundfile
import torch
from timing import median_seconds

from bsrnn_core import checkpoint
from bsrnn_core.config import STEMS
from data_prep.config import PrepConfig
from data_prep.manifest import Manifest
from data_prep.prepare import prepare_track
from data_prep.tracks import Track
from pipelines.config import PRESETS, TrainConfig
from pipelines.training import Training, TrainingJob

AIM = 0.5
RATIOS = (("transfer", "base"), ("mtl", "base"), ("mtl", "four bases"))
"""Whose time is divided by whose."""


def write_shards(config: PrepConfig, folder: Path) -> Path:
    """A dataset of one song, two chunks of stereo noise long, to train on."""
    song, shards = folder / "song", folder / "shards"
    song.mkdir()
    rate, random = config.stft.sample_rate, np.random.default_rng(0)
    num_samples = round(2 * config.chunk.chunk_size_in_seconds * rate)
    for stem in config.source.stem_names:
        soundfile.write(song / f"{stem}.wav", 0.1 * random.standard_normal((num_samples, 2)), rate)
    track = prepare_track(Track("song", "train", str(song)), config, shards)
    Manifest.of(config, [track], {}).write(shards)
    return shards


def make_trainings(config: TrainConfig, folder: Path, device: str) -> dict[str, list[Training]]:
    """What is compared: the trainings of which each contender makes a step."""
    shards = write_shards(config.prep, folder)

    def training(part: tuple[str, ...], trunk: Path | None = None) -> Training:
        changes = {"transfer": True, "checkpoint_fp": str(trunk)} if trunk else {}
        job = TrainingJob(
            config=dataclasses.replace(config, part=part, **changes),
            folder=folder / "none",
            shards=shards,
            metadata={},
        )
        made = Training(job, device=torch.device(device))
        made.network.train()
        return made

    bases = [training((stem,)) for stem in STEMS]
    checkpoint.save(folder / "trunk", bases[0].state.model, {})
    return {
        "base": bases[:1],
        "transfer": [training(STEMS[:1], folder / "trunk")],
        "mtl": [training(STEMS)],
        "four bases": bases,
    }


def step_of(trainings: list[Training]) -> Callable[[], None]:
    """A step of each of them, on a batch that is read beforehand."""
    batches = [training.batches.batch(0, 0).to(training.device) for training in trainings]

    def step() -> None:
        for training, batch in zip(trainings, batches, strict=True):
            training.train_step(batch)

    return step


def ratios(taken: dict[str, float]) -> dict[str, float]:
    """The times compared, by what is divided by what."""
    return {f"{one} / {other}": taken[one] / taken[other] for one, other in RATIOS}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--preset", choices=PRESETS, default="small")
    parser.add_argument("--batch", type=int, default=1, help="stereo examples of a step")
    parser.add_argument("--crop_seconds", type=float, help="their length (default: the preset's)")
    parser.add_argument("--precision", choices=("float32", "bf16"), default="float32")
    parser.add_argument("--device", choices=("cpu", "cuda"), default="cpu")
    parser.add_argument("--threads", type=int, help="CPU threads (default: torch's own choice)")
    parser.add_argument("--repeats", type=int, default=5, help="turns")
    options = parser.parse_args()
    if options.threads:
        torch.set_num_threads(options.threads)
    preset = PRESETS[options.preset]()
    config = dataclasses.replace(
        preset,
        crop_seconds=options.crop_seconds or preset.crop_seconds,
        remix=dataclasses.replace(preset.remix, one_channel=False),
        optim=dataclasses.replace(
            preset.optim, batch_size=options.batch, precision=options.precision
        ),
    )
    with tempfile.TemporaryDirectory(prefix="stages-") as folder:
        trainings = make_trainings(config, Path(folder), options.device)
        steps = {name: step_of(of_one) for name, of_one in trainings.items()}
        taken = median_seconds(steps, options.device, options.repeats)
    print(
        f"{options.preset}, {options.batch} x {config.crop_seconds:g} s, stereo, "
        f"{options.precision}, {options.device}, {torch.get_num_threads()} threads, "
        f"torch {torch.__version__}"
    )
    for name, time_s in taken.items():
        print(f"{name:<18}{1000 * time_s:>10.1f} ms")
    found = ratios(taken)
    for name, ratio in found.items():
        print(f"{name:<18}{ratio:>10.2f}")
    met = "met" if found["transfer / base"] <= AIM else "not met"
    print(f"aim: transfer / base at most {AIM}: {met}")


if __name__ == "__main__":
    main()
