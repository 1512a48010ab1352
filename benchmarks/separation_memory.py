"""Peak memory of `bsrnn infer` on songs of unlike lengths, and of a preset over a few windows.

    python benchmarks/separation_memory.py --preset tiny --minutes 3 120
    python benchmarks/separation_memory.py --preset paper --minutes 1

Each song (noise, stereo, 44.1 kHz, a wav file made on the spot) is separated by a process of its
own with untrained weights, file to file; its peak is what the system says of that process.
"""

import argparse
import dataclasses
import resource
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import torch

from bsrnn_core import BSRNN
from bsrnn_core.audio_files import AudioWriter
from bsrnn_core.checkpoint import load, save
from pipelines import display
from pipelines.config import PRESETS
from pipelines.infer_plan import InferConfig, SongJob
from pipelines.infer_song import separate_song

SAMPLE_RATE = 44100


def write_song(path: Path, minutes: float) -> None:
    """Noise, a minute at a time."""
    generator = torch.Generator().manual_seed(0)
    left = round(60 * minutes * SAMPLE_RATE)
    with AudioWriter(path, SAMPLE_RATE, 2) as writer:
        while left > 0:
            count = min(left, 60 * SAMPLE_RATE)
            writer.write(0.1 * torch.randn(2, count, generator=generator))
            left -= count


def separate_one(checkpoint: str, song: str, threads: int) -> None:
    """In a process of its own: separate a song; prints seconds and peak memory."""
    torch.set_num_threads(threads)
    model = load(checkpoint)
    out = Path(song).with_name("drums.wav")
    config = InferConfig(checkpoint_fp=checkpoint, input=(song,), out=str(out.parent))
    started = time.perf_counter()
    separate_song(model, SongJob(song=Path(song), files={"drums": out}), config)
    seconds = time.perf_counter() - started
    print(seconds, resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1e6)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--preset", choices=PRESETS, default="tiny")
    parser.add_argument("--minutes", type=float, nargs="+", default=[3, 120])
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    parser.add_argument("--one", nargs=2, metavar=("CHECKPOINT", "SONG"), help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.one:
        checkpoint, song = options.one
        separate_one(checkpoint, song, options.threads)
        return
    rows: list[list[display.Cell]] = []
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        config = dataclasses.replace(PRESETS[options.preset](), part=("drums",)).bsrnn
        torch.manual_seed(0)
        save(folder / "model", BSRNN(config), {})
        for minutes in options.minutes:
            write_song(folder / "song.wav", minutes)
            words = ["--one", str(folder / "model"), str(folder / "song.wav")]
            words += ["--threads", str(options.threads)]
            ran = subprocess.run(
                [sys.executable, __file__, *words], check=True, stdout=subprocess.PIPE, text=True
            )
            seconds, peak_gb = map(float, ran.stdout.split())
            rows.append(
                [f"{minutes:g}", seconds, display.times_real_time(60 * minutes, seconds), peak_gb]
            )
    display.show(
        f"{options.preset}, {options.threads} threads",
        ("minutes of music", "seconds", "speed", "peak memory, GB"),
        rows,
    )


if __name__ == "__main__":
    main()
