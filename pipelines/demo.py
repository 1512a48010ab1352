"""The whole job in minutes, on music made on the spot: songs -> shards -> training -> scores.

bsrnn demo

Four small trainings: for the band schemas v7 and generic, a model of drums, and its transfer to
bass; the original's experiment in short, with its figure.
"""

import dataclasses
import json
import sys
import time
from dataclasses import dataclass
from pathlib import Path

import torch

from bsrnn_core.audio_files import read_audio
from bsrnn_core.config import StftConfig
from bsrnn_core.errors import BadInput
from bsrnn_core.precision import use_bf16
from data_prep.config import SourceConfig
from data_prep.demo_songs import make_corpus
from data_prep.storage import local_only
from pipelines import display, experiment, infer, plots
from pipelines.config import tiny
from pipelines.experiment_plan import ExperimentConfig, plan

PART, TRANSFER_PART = "drums", "bass"
"""The stem of the base models, which the demo separates, and the one that they are transferred
to."""
STEPS_PER_EPOCH = 25
FAST_EPOCHS, SLOW_EPOCHS = (4, 2), (2, 1)
"""Of a base model and of a transfer: where the hardware is fast in bf16, and where it is not, so
that a step takes about three times as long."""


@dataclass(frozen=True, kw_only=True, slots=True)
class DemoConfig:
    """Options of `bsrnn demo`."""

    out: str = "demo"
    """Folder for the songs, the runs, the separated song and the pictures."""
    max_epochs: int | None = None
    """Epochs of the base models (4 where the hardware is fast in bf16, otherwise 2)."""
    transfer_epochs: int | None = None
    """Epochs of the transfers (2 where the hardware is fast in bf16, otherwise 1)."""
    max_minutes: float | None = None
    """Stop each training after these minutes, wherever it is."""
    seed: int = 42
    """Seed of the songs and of the training."""

    def __post_init__(self) -> None:
        for name in ("max_epochs", "transfer_epochs"):
            epochs = getattr(self, name)
            if epochs is not None and epochs < 1:
                raise BadInput(f"{name} must be at least 1, not {epochs}")


def run(config: DemoConfig) -> Path:
    """Make the songs, train on them, score, separate one, draw it; returns the picture."""
    started = time.perf_counter()
    out = local_only(config.out, "out")
    songs = out / "songs"
    print("1/4  composing songs with known stems")
    make_corpus(songs, seed=config.seed)
    print("2/4  shards, then four trainings on Ray, each scored on the test songs")
    trainings = _trainings(config, songs)
    comparison = experiment.run(trainings)
    print("3/4  separating a song")
    base = plan(trainings)[0].name
    folder = comparison.parent / base
    track = sorted((songs / "test").iterdir())[0]
    (estimate, *_) = infer.run(
        infer.InferConfig(
            checkpoint_fp=str(folder / "best"),
            input=(str(track / "mixture.wav"),),
            out=str(out / "separated"),
            overwrite=True,
        )
    )
    print("4/4  drawing it")
    picture = _draw(track, estimate, out / "demo.png")
    scores = json.loads((folder / experiment.SCORED_FILE).read_text())
    floor, score = scores[f"test/usdr_{PART}_mixture"], scores[f"test/usdr_{PART}"]
    display.show(
        "the demo",
        ("", ""),
        [
            [f"uSDR of {PART}: mixture", f"{floor:.2f} dB"],
            [f"uSDR of {PART}: estimate ({base})", f"{score:.2f} dB ({score - floor:+.2f} dB)"],
            ["minutes", (time.perf_counter() - started) / 60],
            ["v7 against generic", str(comparison)],
            ["picture", str(picture)],
            ["listen", str(estimate)],
            ["checkpoint", str(folder / "best")],
        ],
    )
    return picture


def _trainings(config: DemoConfig, songs: Path) -> ExperimentConfig:
    preset, runs = tiny(), Path(config.out) / "runs"
    fast = torch.cuda.is_available() or use_bf16("auto", torch.device("cpu"))
    base_epochs, transfer_epochs = FAST_EPOCHS if fast else SLOW_EPOCHS
    base_epochs = config.max_epochs or base_epochs
    optim = dataclasses.replace(
        preset.optim,
        steps_per_epoch=STEPS_PER_EPOCH,
        max_epochs=base_epochs,
        valid_every_epochs=1,
        warmup_steps=base_epochs * STEPS_PER_EPOCH // 4,
        max_minutes=config.max_minutes,
    )
    train = dataclasses.replace(
        preset,
        name=_free_name(runs),
        out=str(runs),
        experiment="demo",
        seed=config.seed,
        source=SourceConfig(musdbhq_location=str(songs)),
        optim=optim,
    )
    return ExperimentConfig(
        base_part=PART,
        transfer_part=(TRANSFER_PART,),
        transfer_epochs=config.transfer_epochs or transfer_epochs,
        mtl=False,
        num_seeds=1,
        control_seeds=0,
        train=train,
    )


def _free_name(runs: Path) -> str:
    """A name that no earlier demo has taken: experiment, experiment-2, experiment-3 ..."""
    number = 1
    while (runs / (name := "experiment" if number == 1 else f"experiment-{number}")).exists():
        number += 1
    return name


def _draw(track: Path, estimate: Path, picture: Path) -> Path:
    files = {
        "mixture": track / "mixture.wav",
        "reference": track / f"{PART}.wav",
        "estimate": estimate,
    }
    panels = {name: read_audio(file) for name, file in files.items()}
    return plots.plot_spectrograms(
        panels, StftConfig().sample_rate, f"{PART} of {track.name}", picture
    )


if __name__ == "__main__":
    from pipelines.cli import main

    sys.exit(main(["demo", *sys.argv[1:]]))
