"""What one GPU does: steps of the training loop over NCCL, and separation of a song.

    python benchmarks/gpu.py --presets small paper

A step is `Training.train_step` on batches that are read and remixed from shards, as a worker of one
makes it, with DDP; its time is the mean of the second half of the steps. The song is noise and the
weights are untrained, so only times and memory mean something. Runs without Ray. With --device cpu
(gloo, no bf16) it shows no more than that it works.
"""

import argparse
import dataclasses
import itertools
import tempfile
import time
from pathlib import Path

import torch
import torch.distributed as dist
from bare_processes import distributed
from stages import write_shards
from timing import seconds

from bsrnn_core import BSRNN, separate
from bsrnn_core.config import Precision, SeparationConfig
from pipelines import display
from pipelines.config import PRESETS, TrainConfig
from pipelines.training import Training, TrainingJob

ARITHMETIC: tuple[tuple[Precision, bool], ...] = (
    ("float32", False),
    ("bf16", False),
    ("bf16", True),
)
"""Number format, and whether the network is compiled."""
WAYS = (
    SeparationConfig(window_seconds=3, overlap=5 / 6, batch_size=16, precision="float32"),
    *(
        SeparationConfig(batch_size=batch_size, precision=precision)
        for precision, batch_size in itertools.product(("float32", "bf16"), (1, 4, 8, 16))
    ),
)
GIB = 2**30


def configured(preset: str, precision: Precision, compiled: bool, batch: int) -> TrainConfig:
    """A preset's training of one stem, on all that a machine's cores can read ahead."""
    config = PRESETS[preset]()
    return dataclasses.replace(
        config,
        part=("drums",),
        remix=dataclasses.replace(config.remix, sad=False),
        optim=dataclasses.replace(
            config.optim, precision=precision, compile=compiled, batch_size=batch
        ),
        cluster=dataclasses.replace(config.cluster, data_loader_workers=8),
    )


def step_row(
    preset: str, arithmetic: tuple[Precision, bool], batch: int, steps: int, device: torch.device
) -> list[display.Cell]:
    """Steps per second, seconds of the first step, and peak memory of the GPU in GiB."""
    precision, compiled = arithmetic
    config = configured(preset, precision, compiled, batch)
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        shards = write_shards(config.prep, folder)
        job = TrainingJob(config=config, folder=folder / "run", shards=shards, metadata={})
        training = Training(job, device=device, wrap=distributed)
        training.network.train()
        reset(device)
        ends = [time.perf_counter()]
        batches = training.batches.epoch(0, 0, config.cluster.data_loader_workers)
        for each in itertools.islice(batches, steps):
            training.train_step(each.to(device))
            if device.type == "cuda":
                torch.cuda.synchronize()
            ends.append(time.perf_counter())
    counted = ends[len(ends) // 2 :]
    rate = (len(counted) - 1) / (counted[-1] - counted[0])
    name = precision + (", compiled" if compiled else "")
    return [preset, name, rate, ends[1] - ends[0], peak(device)]


def separation_row(
    model: BSRNN, preset: str, song: torch.Tensor, config: SeparationConfig
) -> list[display.Cell]:
    """Seconds, times real time, and peak memory of the GPU in GiB."""
    device, rate = next(model.parameters()).device, model.config.stft.sample_rate
    separate(model, song[:, : 30 * rate], rate, config)
    reset(device)
    taken = seconds(lambda: separate(model, song, rate, config), device.type)
    return [
        preset,
        f"{config.window_seconds:g} s, {config.overlap:.2f}",
        config.precision,
        config.batch_size,
        taken,
        display.times_real_time(song.shape[-1] / rate, taken),
        peak(device),
    ]


def reset(device: torch.device) -> None:
    """Begin to count the GPU's memory anew."""
    if device.type == "cuda":
        torch.cuda.empty_cache()
        torch.cuda.reset_peak_memory_stats()


def peak(device: torch.device) -> float:
    """GiB since then; nan on a CPU."""
    return torch.cuda.max_memory_allocated() / GIB if device.type == "cuda" else float("nan")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--presets", nargs="+", choices=PRESETS, default=["small", "paper"])
    parser.add_argument("--batch_size", type=int, default=16)
    parser.add_argument("--steps", type=int, default=20)
    parser.add_argument("--minutes", type=float, default=3, help="of the song")
    parser.add_argument("--device", choices=("cuda", "cpu"), default="cuda")
    options = parser.parse_args()
    device = torch.device(options.device)
    on_gpu = device.type == "cuda"
    with tempfile.TemporaryDirectory() as folder:
        dist.init_process_group(
            "nccl" if on_gpu else "gloo",
            init_method=f"file://{folder}/group",
            rank=0,
            world_size=1,
        )
        name = torch.cuda.get_device_name() if on_gpu else "a CPU"
        steps = [
            step_row(preset, arithmetic, options.batch_size, options.steps, device)
            for preset in options.presets
            for arithmetic in (ARITHMETIC if on_gpu else ARITHMETIC[:1])
        ]
        dist.destroy_process_group()
    display.show(
        f"training, one stem, {options.batch_size} crops a step, {name}, torch {torch.__version__}",
        ("preset", "numbers", "steps/s", "first step s", "peak GiB"),
        steps,
    )
    song = 0.1 * torch.randn(2, round(60 * options.minutes * 44100))
    rows = []
    for preset in options.presets:
        torch.manual_seed(0)
        config = configured(preset, "float32", False, 1)
        model = BSRNN(config.bsrnn).to(device).eval()
        ways = [way for way in WAYS if on_gpu or way.precision == "float32"]
        rows += [separation_row(model, preset, song, way) for way in ways]
    display.show(
        f"separation of {options.minutes:g} minutes, one stem, {name}",
        ("preset", "window, overlap", "numbers", "at a time", "seconds", "speed", "peak GiB"),
        rows,
    )


if __name__ == "__main__":
    main()
