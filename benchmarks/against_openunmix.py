"""Open-Unmix and BSRNN trained for equal minutes on the same songs and cores, then scored.

    uv pip install --python .venv/bin/python -e '.[bench]'
    python benchmarks/against_openunmix.py --minutes 5
    python benchmarks/against_openunmix.py --minutes 5 --musdbhq_location musdb18hq --part vocals

Open-Unmix: the model, augmentations and Wiener step of the package openunmix, trained by the recipe
of its authors' training script: batches of 16 x 6 s cut at random from random songs, gain and
channel swap, magnitudes' mean squared error, Adam 1e-3 with weight decay 1e-5, the rate lowered on
plateaus, the input scaled by the training songs' statistics, validation on whole songs after every
epoch (64 excerpts per song), the best epoch kept. Its songs lie in memory, where its own loader
would decode files: no minute is lost to reading. Memory must hold all training songs.

BSRNN: `--preset tiny` through the real job, as `bsrnn train --num_workers 2` runs it.

For both the minutes hold training steps and the validations between them; what comes before the
first step (statistics, shards, the workers' start), the last validation and the scoring are outside
for both. Ours ends early when its schedule (--max_epochs) does. Both have two threads: one process
with two, and two workers with one each. They run one after the other, Open-Unmix first, before Ray
is there. Aim: ours ends at least 1 dB ahead in uSDR over the test songs. Without a folder of songs
16 are made on the spot: 10 to train on, 2 to validate, 4 to test, 20 s each.
"""

import argparse
import copy
import dataclasses
import logging
import math
import os
import random
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import torch
from torch import Tensor, nn

from bsrnn_core import BadInput, load, separate
from bsrnn_core.config import STEMS
from bsrnn_core.metrics import aggregate, track_usdr
from data_prep.config import SourceConfig
from data_prep.demo_songs import make_corpus
from data_prep.tracks import Track, find_tracks, read_track
from pipelines import base
from pipelines.config import ClusterConfig, TrainConfig, tiny
from pipelines.training_state import STATE_FILE

AIM_DB = 1.0
THREADS = 2
SAMPLE_RATE = 44100
N_FFT, HOP_SAMPLES, BANDWIDTH_HZ, HIDDEN = 4096, 1024, 16000, 512
BATCH, EXCERPT_SECONDS, EXCERPTS_PER_SONG = 16, 6.0, 64
"""Of Open-Unmix's recipe."""

Estimator = Callable[[Tensor], Tensor]
"""Mixture [C, N] at SAMPLE_RATE -> estimate [C, N]."""


@dataclasses.dataclass(frozen=True)
class Trained:
    """A model, and what it had to become so."""

    name: str
    estimate: Estimator
    steps: int
    seconds: float
    parameters: int


def songs_of(tracks: list[Track], split: str) -> list[Tensor]:
    """The stems [S, 2, N] of every song of a split. Raises BadInput for what Open-Unmix cannot
    take: too short, or not in stereo."""
    songs = []
    for track in (track for track in tracks if track.split == split):
        song = read_track(track, STEMS, sample_rate=SAMPLE_RATE, lengths="refuse").references
        if song.shape[1] != 2 or song.shape[2] <= EXCERPT_SECONDS * SAMPLE_RATE:
            raise BadInput(f"{track.path} must be stereo and longer than {EXCERPT_SECONDS:g} s")
        songs.append(song)
    return songs


class OpenUnmixTraining:
    """Open-Unmix by its own recipe, for one stem."""

    def __init__(self, train: list[Tensor], valid: list[Tensor], part: str, seed: int) -> None:
        from openunmix import data, model, transforms, utils  # pyright: ignore

        self.train, self.valid, self.stem = train, valid, STEMS.index(part)
        self.augment = data.aug_from_str(["gain", "channelswap"])
        torch.manual_seed(seed)
        self.random = random.Random(seed)
        stft, _ = transforms.make_filterbanks(
            n_fft=N_FFT, n_hop=HOP_SAMPLES, sample_rate=SAMPLE_RATE
        )
        self.magnitude = nn.Sequential(stft, model.ComplexNorm(mono=False))
        mean, std = self.statistics()
        self.model: nn.Module = model.OpenUnmix(
            nb_bins=N_FFT // 2 + 1,
            nb_channels=2,
            hidden_size=HIDDEN,
            input_mean=mean.numpy(),
            input_scale=std.numpy(),
            max_bin=int(utils.bandwidth_to_max_bin(SAMPLE_RATE, N_FFT, BANDWIDTH_HZ)),
        )
        self.optimizer = torch.optim.Adam(self.model.parameters(), lr=1e-3, weight_decay=1e-5)
        self.scheduler = torch.optim.lr_scheduler.ReduceLROnPlateau(
            self.optimizer, factor=0.3, patience=80, cooldown=10
        )
        self.best: tuple[float, dict[str, Tensor]] = (math.inf, {})

    @torch.no_grad()
    def statistics(self) -> tuple[Tensor, Tensor]:
        """Mean and std per bin of the training mixtures' magnitudes, channels averaged."""
        frames, total, squares = 0, torch.zeros(()), torch.zeros(())
        for song in self.train:
            magnitude = self.magnitude(song.sum(0)[None])[0].mean(0).double()
            frames += magnitude.shape[-1]
            total = total + magnitude.sum(-1)
            squares = squares + magnitude.square().sum(-1)
        mean = total / frames
        std = (squares / frames - mean.square()).clamp_min(0).sqrt()
        return mean, std.clamp_min(1e-4 * std.max().item())

    def batch(self) -> tuple[Tensor, Tensor]:
        """Mixtures and references [16, 2, N]: every stem from a random place of a random song."""
        length = int(EXCERPT_SECONDS * SAMPLE_RATE)
        mixtures, references = [], []
        for _ in range(BATCH):
            stems = []
            for stem in range(len(STEMS)):
                song = self.random.choice(self.train)
                start = self.random.randrange(song.shape[-1] - length)
                stems.append(self.augment(song[stem, :, start : start + length]))
            mixtures.append(torch.stack(stems).sum(0))
            references.append(stems[self.stem])
        return torch.stack(mixtures), torch.stack(references)

    def loss(self, mixtures: Tensor, references: Tensor) -> Tensor:
        """Mean squared error of the magnitudes."""
        estimates = self.model(self.magnitude(mixtures))
        return nn.functional.mse_loss(estimates, self.magnitude(references))

    def step(self) -> None:
        """One step of the optimiser."""
        self.optimizer.zero_grad()
        self.loss(*self.batch()).backward()
        self.optimizer.step()

    @torch.no_grad()
    def validate(self) -> None:
        """Keep the weights when they are the best so far on the whole validation songs."""
        self.model.eval()
        losses = [self.loss(song.sum(0)[None], song[None, self.stem]) for song in self.valid]
        self.model.train()
        # Without validation songs the newest is the best.
        mean = sum(loss.item() for loss in losses) / len(losses) if losses else self.best[0]
        self.scheduler.step(mean)
        if mean <= self.best[0]:
            self.best = mean, copy.deepcopy(self.model.state_dict())

    def run(self, minutes: float) -> Trained:
        """Train for ``minutes``, validate a last time, and take the best."""
        from openunmix.model import Separator  # pyright: ignore

        steps_per_epoch = max(1, EXCERPTS_PER_SONG * len(self.train) // BATCH)
        steps, start = 0, time.monotonic()
        while (taken := time.monotonic() - start) < 60 * minutes:
            self.step()
            steps += 1
            if steps % steps_per_epoch == 0:
                self.validate()
        self.validate()
        self.model.load_state_dict(self.best[1])
        separator = Separator(
            {"stem": self.model},
            niter=1,
            residual=True,
            sample_rate=SAMPLE_RATE,
            n_fft=N_FFT,
            n_hop=HOP_SAMPLES,
        )
        separator.freeze()
        size = parameters(self.model)
        return Trained("openunmix", lambda x: separator(x[None])[0, 0], steps, taken, size)


def parameters(model: nn.Module) -> int:
    """Numbers that a model holds."""
    return sum(parameter.numel() for parameter in model.parameters())


def our_config(options: argparse.Namespace, music: Path, out: Path) -> TrainConfig:
    """The tiny preset for the minutes given, as `bsrnn train --num_workers 2` runs it."""
    preset = tiny()
    optim = dataclasses.replace(
        preset.optim,
        max_minutes=options.minutes,
        max_epochs=options.max_epochs or preset.optim.max_epochs,
    )
    return dataclasses.replace(
        preset,
        name="against-openunmix",
        part=(options.part,),
        out=str(out),
        experiment="benchmarks",
        seed=options.seed,
        source=SourceConfig(musdbhq_location=str(music)),
        optim=optim,
        cluster=ClusterConfig(device="cpu", num_workers=THREADS, threads_per_worker=1),
    )


def train_ours(config: TrainConfig) -> Trained:
    """Shards, then the training on Ray, and its best checkpoint."""
    folder = base.run(config)
    state = torch.load(folder / "last" / STATE_FILE, weights_only=True)["progress"]
    model = load(folder / "best")
    (stem,) = config.part

    def estimate(mixture: Tensor) -> Tensor:
        return separate(model, mixture, SAMPLE_RATE)[stem]

    return Trained("ours", estimate, state["step"], state["elapsed_seconds"], parameters(model))


@torch.no_grad()
def scores(tracks: list[Track], part: str, systems: dict[str, Estimator]) -> dict[str, list[float]]:
    """uSDR of every system on every test song, in dB."""
    found: dict[str, list[float]] = {name: [] for name in systems}
    for track in tracks:
        audio = read_track(track, STEMS, sample_rate=SAMPLE_RATE, lengths="refuse")
        reference = audio.references[STEMS.index(part)]
        for name, estimate in systems.items():
            usdr = track_usdr(reference[None], estimate(audio.mixture)[None], "single")
            found[name].append(usdr.item())
    return found


def show(tracks: list[Track], found: dict[str, list[float]], trained: list[Trained]) -> None:
    """The scores per song, their means, and what each training was."""
    print(f"\n{'uSDR in dB':<30}" + "".join(f"{name:>12}" for name in found))
    for index, track in enumerate(tracks):
        values = "".join(f"{values[index]:>12.2f}" for values in found.values())
        print(f"{track.name[:29]:<30}{values}")
    means = {name: aggregate(values, "usdr").value for name, values in found.items()}
    print(f"{'mean':<30}" + "".join(f"{mean:>12.2f}" for mean in means.values()))
    gains = {name: mean - means["mixture"] for name, mean in means.items()}
    print(f"{'gain over the mixture':<30}" + "".join(f"{gain:>12.2f}" for gain in gains.values()))
    for each in trained:
        print(
            f"{each.name}: {each.steps} steps in {each.seconds / 60:.2f} min, "
            f"{each.parameters / 1e6:.2f} million parameters"
        )
    ahead = means["ours"] - means["openunmix"]
    met = "met" if ahead >= AIM_DB else "not met"
    print(f"ours is {ahead:+.2f} dB ahead; aim at least {AIM_DB:g}: {met}")


def compare(options: argparse.Namespace, folder: Path) -> None:
    """Train both, score both, show it. Raises BadInput where the songs cannot be used."""
    music = Path(options.musdbhq_location) if options.musdbhq_location else folder / "songs"
    if not options.musdbhq_location:
        make_corpus(music)
    tracks = find_tracks(SourceConfig(musdbhq_location=str(music)))
    test = [track for track in tracks if track.split == "test"]
    if not test:
        raise BadInput(f"{music} has no test songs: put some in test/")
    torch.set_num_threads(THREADS)
    print(f"training Open-Unmix for {options.minutes:g} minutes")
    theirs = OpenUnmixTraining(
        songs_of(tracks, "train"), songs_of(tracks, "valid"), options.part, options.seed
    ).run(options.minutes)
    print(f"training ours for {options.minutes:g} minutes")
    os.environ.setdefault("MLFLOW_TRACKING_URI", f"sqlite:///{folder / 'mlflow.db'}")
    config = our_config(options, music, folder / "runs")
    ours = train_ours(config)
    planned = config.optim.max_epochs * (config.optim.steps_per_epoch or 0)
    print(f"our schedule was made for {planned} steps (--max_epochs)")
    systems: dict[str, Estimator] = {"mixture": lambda mixture: mixture}
    systems |= {each.name: each.estimate for each in (theirs, ours)}
    show(test, scores(test, options.part, systems), [theirs, ours])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--minutes", type=float, default=5.0, help="of training, for each")
    parser.add_argument("--musdbhq_location", help="folder of songs (default: made on the spot)")
    parser.add_argument("--part", choices=STEMS, default="drums", help="stem to separate")
    parser.add_argument("--max_epochs", type=int, help="our schedule (default: the preset's)")
    parser.add_argument("--seed", type=int, default=42, help="of both trainings")
    options = parser.parse_args()
    logging.basicConfig(level=logging.WARNING)
    try:
        import openunmix  # pyright: ignore # noqa: F401
    except ImportError:
        parser.error("this needs the package openunmix: install the extra `bench`")
    with tempfile.TemporaryDirectory() as temporary:
        try:
            compare(options, Path(temporary))
        except BadInput as error:
            parser.error(str(error))


if __name__ == "__main__":
    main()
