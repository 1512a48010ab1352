"""A small multi-track corpus made on the spot, in the layout of MUSDB18-HQ.

    python -m data_prep.demo_songs OUT --num_train 10 --num_valid 2 --num_test 4 --seconds 20

Every song has its own key, tempo, chords, drum kit, instruments, voice and balance.
"""

import argparse
import json
import os
import shutil
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import soundfile
from numpy.typing import NDArray

from bsrnn_core.config import STEMS
from bsrnn_core.errors import BadInput
from data_prep import demo_instruments as sound
from data_prep.demo_instruments import Samples
from data_prep.demo_melody import play_other, play_vocals
from data_prep.demo_rhythm import play_bass, play_drums
from data_prep.demo_score import Song
from data_prep.tracks import SPLITS

PLAYERS = {"vocals": play_vocals, "drums": play_drums, "bass": play_bass, "other": play_other}
SETTINGS_FILE = "corpus.json"


def make_song(
    seed: int, split: str, index: int, seconds: float, sample_rate: int
) -> dict[str, NDArray[np.int16]]:
    """The stems of one song and ``mixture``, their exact sum: each int16 [N, 2].

    The drums lie between 4.5 and 7.7 dB below the sum of the other stems.
    """
    song = Song.draw((seed, SPLITS.index(split), index), seconds, sample_rate)
    rng = song.rng("balance")
    response = sound.room(rng.uniform(0.5, 1.4), rng.uniform(2500, 7000), sample_rate, rng)
    wet = {"vocals": rng.uniform(0.15, 0.4), "drums": rng.uniform(0.03, 0.2), "bass": 0.0}
    wet["other"] = rng.uniform(0.1, 0.35)
    level_db = {"vocals": rng.uniform(-2, 3), "bass": rng.uniform(-8, -2), "drums": 0.0}
    level_db["other"] = rng.uniform(-3, 2)
    stems: dict[str, Samples] = {}
    for name in STEMS:
        stem = sound.reverberated(PLAYERS[name](song), response, wet[name])
        stem = sound.filtered(stem, "high", 25, sample_rate)
        loudness = max(1e-9, float(np.sqrt(np.mean(stem**2))))
        stems[name] = stem * (10 ** (level_db[name] / 20) / loudness)
    rest = sum(stems[name] for name in STEMS if name != "drums")
    drums_db = rng.uniform(-7.7, -4.5)
    stems["drums"] *= 10 ** (drums_db / 20) * np.sqrt(np.mean(rest**2))
    peak = max(float(np.abs(part).max()) for part in (*stems.values(), rest + stems["drums"]))
    scale = rng.uniform(0.7, 0.95) * 32767 / peak
    edge = np.minimum(1, np.arange(1, song.num_samples + 1)[::-1] / (0.02 * sample_rate))
    whole = {name: np.rint(scale * edge * stems[name]).astype(np.int16).T for name in STEMS}
    total = np.stack(list(whole.values())).sum(axis=0, dtype=np.int64)
    assert np.abs(total).max() < 32768, "the levels leave room for the sum"
    return {"mixture": total.astype(np.int16), **whole}


def _write_song(folder: Path, song: dict[str, NDArray[np.int16]], sample_rate: int) -> None:
    """Writes a track's wav files, all or none."""
    unfinished = folder.parent.parent / f".{folder.name}.tmp.{os.getpid()}"
    shutil.rmtree(unfinished, ignore_errors=True)
    unfinished.mkdir()
    try:
        for name, samples in song.items():
            soundfile.write(unfinished / f"{name}.wav", samples, sample_rate, subtype="PCM_16")
        unfinished.rename(folder)
    finally:
        shutil.rmtree(unfinished, ignore_errors=True)


def _check_settings(out: Path, settings: dict[str, float]) -> None:
    """Remembers the settings of a corpus beside it; refuses to mix songs of two settings."""
    file = out / SETTINGS_FILE
    if not file.exists():
        if any((out / split).exists() for split in SPLITS):
            raise BadInput(f"{out} already holds songs that are not of this corpus: name another")
        unfinished = out / f"{SETTINGS_FILE}.tmp.{os.getpid()}"
        unfinished.write_text(json.dumps(settings))
        unfinished.replace(file)
    elif json.loads(file.read_text()) != settings:
        raise BadInput(
            f"{out} holds songs made with {file.read_text()}: remove it or name another folder"
        )


def make_corpus(
    out: Path,
    *,
    num_train: int = 10,
    num_valid: int = 2,
    num_test: int = 4,
    seconds: float = 20.0,
    seed: int = 42,
    sample_rate: int = 44100,
) -> None:
    """Writes OUT/{train,valid,test}/<track>/{mixture,vocals,drums,bass,other}.wav.

    Stereo PCM_16; a mixture is the exact integer sum of its stems. The same arguments give the same
    bytes. Songs already there are kept, so that a stopped run goes on where it was. Raises BadInput
    for impossible sizes, and when OUT holds songs made otherwise.
    """
    counts = dict(zip(SPLITS, (num_train, num_valid, num_test), strict=True))
    if min(counts.values()) < 0 or seed < 0:
        raise BadInput("num_train, num_valid, num_test and seed must not be negative")
    if not 1 <= seconds <= 600:
        raise BadInput(f"seconds must lie between 1 and 600, not {seconds:g}")
    if sample_rate < 4000:
        raise BadInput(f"sample_rate must be at least 4000, not {sample_rate}")
    out.mkdir(parents=True, exist_ok=True)
    _check_settings(out, {"seconds": seconds, "seed": seed, "sample_rate": sample_rate})

    def make(split: str, index: int) -> None:
        folder = out / split / f"{split}-{index:02d}"
        if not folder.exists():
            song = make_song(seed, split, index, seconds, sample_rate)
            _write_song(folder, song, sample_rate)

    for split in SPLITS:
        (out / split).mkdir(exist_ok=True)
    # Threads suffice: nearly all the time goes to NumPy and SciPy, which let each other run.
    with ThreadPoolExecutor(max_workers=min(8, os.cpu_count() or 1)) as pool:
        for made in [pool.submit(make, s, i) for s, n in counts.items() for i in range(n)]:
            made.result()


def main(arguments: list[str]) -> None:
    """The script; leaves with exit code 2 on bad input."""
    parser = argparse.ArgumentParser(
        description="Make a small multi-track corpus in the layout of MUSDB18-HQ."
    )
    parser.add_argument("out", type=Path, help="folder to make")
    for split, count in zip(SPLITS, (10, 2, 4), strict=True):
        parser.add_argument(f"--num_{split}", type=int, default=count, help=f"songs in {split}/")
    parser.add_argument("--seconds", type=float, default=20.0, help="length of a song")
    parser.add_argument("--seed", type=int, default=42, help="another seed makes other songs")
    parser.add_argument("--sample_rate", type=int, default=44100, help="samples per second")
    try:
        make_corpus(**vars(parser.parse_args(arguments)))
    except BadInput as error:
        parser.error(str(error))


if __name__ == "__main__":
    main(sys.argv[1:])
