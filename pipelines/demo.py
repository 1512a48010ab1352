"""The whole job in minutes, on music made on the spot: songs -> shards -> training -> scores.

bsrnn demo
"""

import dataclasses
import sys
import time
from dataclasses import dataclass
from pathlib import Path

from bsrnn_core.audio_files import read_audio
from bsrnn_core.checkpoint import read_metadata
from bsrnn_core.config import StftConfig
from bsrnn_core.errors import BadInput
from data_prep.config import SourceConfig
from data_prep.demo_songs import make_corpus
from pipelines import base, evaluate, infer, plots, report, tracking
from pipelines.config import TrainConfig, tiny

PART = "drums"
"""The stem that the demo separates."""
NUM_WORKERS = 2
MAX_EPOCHS = 3
"""Epochs of the tiny preset that the demo takes, as its learning rate's whole schedule."""


@dataclass(frozen=True, kw_only=True, slots=True)
class DemoConfig:
    """Options of `bsrnn demo`."""

    out: str = "demo"
    """Folder for the songs, the runs, the separated song and the picture."""
    max_epochs: int = MAX_EPOCHS
    """Epochs of the training."""
    max_minutes: float | None = None
    """Stop the training after these minutes, wherever it is."""
    seed: int = 42
    """Seed of the songs and of the training."""

    def __post_init__(self) -> None:
        if self.max_epochs < 1:
            raise BadInput(f"max_epochs must be at least 1, not {self.max_epochs}")


def run(config: DemoConfig) -> Path:
    """Make the songs, train on them, score, separate one, draw it; returns the picture."""
    started = time.perf_counter()
    out = Path(config.out)
    songs = out / "songs"
    print("1/5  composing songs with known stems")
    make_corpus(songs, seed=config.seed)
    source = SourceConfig(musdbhq_location=str(songs))
    print("2/5  shards, then training on Ray with 2 workers")
    folder = base.run(_training(config, source))
    print("3/5  scoring the test songs")
    best = str(folder / "best")
    evaluation = evaluate.run(evaluate.EvaluateConfig(checkpoint_fp=best, source=source))
    print("4/5  separating a song")
    track = sorted((songs / "test").iterdir())[0]
    (estimate, *_) = infer.run(
        infer.InferConfig(
            checkpoint_fp=best, input=str(track / "mixture.wav"), out=str(out / "separated")
        )
    )
    print("5/5  drawing it")
    picture = _draw(track, estimate, out / "demo.png")
    score = evaluation.aggregate("usdr", "model", PART).value
    floor = evaluation.aggregate("usdr", "mixture", PART).value
    known = read_metadata(best)
    report.show(
        "the demo",
        ("", ""),
        [
            [f"uSDR of {PART}: mixture", f"{floor:.2f} dB"],
            [f"uSDR of {PART}: estimate", f"{score:.2f} dB ({score - floor:+.2f} dB)"],
            ["minutes", (time.perf_counter() - started) / 60],
            ["picture", str(picture)],
            ["listen", str(estimate)],
            ["checkpoint", best],
            ["MLflow", tracking.run_url(known["mlflow_run_id"], known["mlflow_tracking_uri"])],
        ],
    )
    return picture


def _training(config: DemoConfig, source: SourceConfig) -> TrainConfig:
    preset = tiny()
    return dataclasses.replace(
        preset,
        name=_free_name(Path(config.out) / "runs"),
        part=(PART,),
        out=str(Path(config.out) / "runs"),
        experiment="demo",
        seed=config.seed,
        source=source,
        optim=dataclasses.replace(
            preset.optim, max_epochs=config.max_epochs, max_minutes=config.max_minutes
        ),
        cluster=dataclasses.replace(preset.cluster, num_workers=NUM_WORKERS),
    )


def _free_name(runs: Path) -> str:
    """A name that no earlier demo has taken: drums, drums-2, drums-3 ..."""
    number = 1
    while (runs / (name := PART if number == 1 else f"{PART}-{number}")).exists():
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
