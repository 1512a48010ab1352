"""Separate songs into their stems, in memory that does not grow with the song.

bsrnn infer --checkpoint_fp runs/demo/best --input song.mp3 --out stems
"""

import contextlib
import sys
import time
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

import torch
from rich.progress import Progress

from bsrnn_core.audio_files import AudioInfo, AudioReader, AudioWriter, audio_info
from bsrnn_core.checkpoint import load
from bsrnn_core.config import SeparationConfig
from bsrnn_core.errors import BadInput
from bsrnn_core.model import BSRNN
from bsrnn_core.separation import separate_blocks
from data_prep.storage import local_only
from pipelines import display
from pipelines.remote_checkpoints import local_checkpoint

ENDINGS = (".wav", ".flac", ".ogg", ".mp3")
"""The files of a folder that are taken for songs."""


@dataclass(frozen=True, kw_only=True, slots=True)
class InferConfig:
    """Options of `bsrnn infer`."""

    checkpoint_fp: str
    """Folder of the checkpoint, or s3://bucket/runs/NAME/best."""
    input: str
    """A song (wav, flac, ogg, mp3), or a folder of songs."""
    out: str
    """Folder for the stems: <song>-<stem>.wav."""
    subtype: Literal["FLOAT", "PCM_24", "PCM_16"] = "FLOAT"
    """Sample format of the stems; the integer ones clip what exceeds full scale."""
    device: Literal["auto", "cpu", "cuda"] = "auto"
    """auto takes the GPU when there is one."""
    separation: SeparationConfig = field(default_factory=SeparationConfig)


def run(config: InferConfig) -> list[Path]:
    """Separate the song or songs, say where the stems are, and return their files.

    All songs are looked at before the first is separated. Of a song either all stems are written
    or none. Raises BadInput for an input that cannot be read and for outputs that would replace it.
    """
    out = local_only(config.out, "out")
    songs = _find_songs(local_only(config.input, "input"))
    infos = {song: audio_info(song) for song in songs}
    model = load(local_checkpoint(config.checkpoint_fp), _device(config.device))
    outputs = _plan(songs, model.stems, out)
    rows: list[list[display.Cell]] = []
    with display.progress(counted=False) as progress:
        for song in songs:
            started = time.perf_counter()
            clipped = separate_file(model, song, outputs[song], config, progress)
            wall_seconds = time.perf_counter() - started
            speed = display.times_real_time(infos[song].seconds, wall_seconds)
            rows.append([song.name, _shape(infos[song]), wall_seconds, speed, clipped])
    header = ("song", "audio", "wall seconds", "speed", "clipped samples")
    if config.subtype == "FLOAT":
        header, rows = header[:-1], [row[:-1] for row in rows]
    display.show(f"{', '.join(model.stems)} of {len(songs)} song(s)", header, rows)
    files = [file for song in songs for file in outputs[song].values()]
    for file in files:
        print(file)
    return files


def separate_file(
    model: BSRNN,
    song: Path,
    outputs: Mapping[str, Path],
    config: InferConfig,
    progress: Progress,
) -> int:
    """Write each stem of ``song`` to its file, block by block; returns how many samples exceed
    full scale."""
    exceeding = 0
    started = time.perf_counter()
    with contextlib.ExitStack() as stack:
        reader = stack.enter_context(AudioReader(song))
        info = reader.info
        writers = [
            stack.enter_context(
                AudioWriter(outputs[stem], info.sample_rate, info.channels, subtype=config.subtype)
            )
            for stem in model.stems
        ]
        bar = progress.add_task(song.name, total=info.num_samples, rate="")
        blocks = separate_blocks(
            model,
            reader.read,
            info.num_samples,
            info.sample_rate,
            config.separation,
        )
        done = 0
        for block in blocks:
            for writer, estimate in zip(writers, block, strict=True):
                writer.write(estimate)
            exceeding += int((block.abs() > 1).sum())
            done += block.shape[-1]
            wall_seconds = time.perf_counter() - started
            rate = display.times_real_time(done / info.sample_rate, wall_seconds)
            progress.update(bar, completed=done, rate=rate)
        assert done == info.num_samples, (done, info)
    return exceeding


def _device(name: str) -> torch.device:
    """Raises BadInput when a GPU is asked for and there is none."""
    there = torch.cuda.is_available()
    if name == "cuda" and not there:
        raise BadInput("device cuda was asked for, but torch sees no GPU; leave --device at auto")
    return torch.device("cuda" if there and name != "cpu" else "cpu")


def _find_songs(path: Path) -> list[Path]:
    """The song itself, or the songs of a folder, by name. Raises BadInput when there is none."""
    if not path.exists():
        raise BadInput(f"{path}: there is no such file or folder")
    if not path.is_dir():
        return [path]
    songs = sorted(file for file in path.iterdir() if file.suffix.lower() in ENDINGS)
    if not songs:
        raise BadInput(f"{path}: no songs in this folder; looked for {', '.join(ENDINGS)}")
    return songs


def _plan(songs: list[Path], stems: tuple[str, ...], out: Path) -> dict[Path, dict[str, Path]]:
    """song -> stem -> output file. Raises BadInput where an output would replace a song, or two
    songs have the same outputs."""
    if out.exists() and not out.is_dir():
        raise BadInput(f"{out}: is a file; give a folder for the stems with --out")
    outputs: dict[Path, dict[str, Path]] = {}
    taken: dict[Path, Path] = {song.resolve(): song for song in songs}
    for song in songs:
        outputs[song] = {stem: out / f"{song.stem}-{stem}.wav" for stem in stems}
        for file in outputs[song].values():
            other = taken.setdefault(file.resolve(), song)
            if other is not song or file.resolve() == song.resolve():
                raise BadInput(
                    f"{file}: the output of {song.name} would replace {other.name} or its output; "
                    "choose another folder with --out, or rename a song"
                )
    return outputs


def _shape(info: AudioInfo) -> str:
    minutes, seconds = divmod(info.seconds, 60)
    channels = {1: "mono", 2: "stereo"}.get(info.channels, f"{info.channels} channels")
    return f"{minutes:.0f}:{seconds:04.1f} min, {info.sample_rate} Hz, {channels}"


if __name__ == "__main__":
    from pipelines.cli import main

    sys.exit(main(["infer", *sys.argv[1:]]))
