"""The rhythm section of a demo song: drums and bass."""

from functools import cache

import numpy as np

from data_prep import demo_instruments as sound
from data_prep.demo_instruments import Kit, Samples
from data_prep.demo_score import Song, held, pick, place

Note = tuple[float, float, float, float]
"""Start and length in seconds, pitch in MIDI notes, velocity."""

PATTERNS = {
    "rock": {"kick": "X.......X.x.....", "snare": "....X.......X...", "hat": "X.x.X.x.X.x.X.x."},
    "four": {
        "kick": "X...X...X...X...",
        "snare": "....X.......X...",
        "open": "..x...x...x...x.",
        "hat": "xo.oxo.oxo.oxo.o",
    },
    "funk": {
        "kick": "X..x..x...x..x..",
        "snare": "....X.......X...",
        "ghost": ".......o.o.....o",
        "hat": "XoxoXoxoXoxoXoxo",
    },
    "half": {"kick": "X.....x...x.....", "snare": "........X.......", "hat": "x.x.x.x.x.xox.xo"},
    "break": {
        "kick": "X.x.......xx....",
        "snare": "....X.......X...",
        "ghost": ".......o.o.....o",
        "ride": "X.x.X.x.X.x.X.x.",
    },
    "ballad": {"kick": "X.........x.....", "rim": "....X.......X...", "hat": "x...x...x...x..."},
    "latin": {
        "kick": "X..xX..xX..xX..x",
        "rim": "x..x..x...x.x...",
        "shaker": "XoxoXoxoXoxoXoxo",
        "mid_tom": "..............xx",
    },
    "tribal": {
        "kick": "X...X...X...X...",
        "low_tom": "...x..x....x..x.",
        "high_tom": "..............x.",
        "snare": "............X...",
        "shaker": "x.x.x.x.x.x.x.x.",
    },
}
"""One bar of sixteenths per drum and style: X accented, x plain, o soft."""
VELOCITY = {"X": 1.0, "x": 0.72, "o": 0.4}
DRUM_LEVEL = {"kick": 0.9, "snare": 0.9, "ghost": 0.4, "rim": 0.6, "hat": 0.35, "open": 0.35}
DRUM_LEVEL |= {"ride": 0.35, "crash": 0.5, "shaker": 0.35}
DRUM_LEVEL |= dict.fromkeys(("low_tom", "mid_tom", "high_tom"), 0.75)


def play_drums(song: Song) -> Samples:
    """The drums [2, N]: a pattern made its own by added hits, fills every four bars, crashes."""
    rng = song.rng("drums")
    kit = Kit.draw(rng)
    pan = {name: float(rng.uniform(-0.5, 0.5)) for name in sound.DRUMS}
    pan |= {"kick": 0.0, "snare": 0.1 * pan["snare"], "ghost": 0.1 * pan["snare"]}
    level = {name: DRUM_LEVEL[name] * rng.uniform(0.7, 1.4) for name in sound.DRUMS}

    @cache
    def takes(name: str) -> list[Samples]:
        stream = song.rng("drum " + name)
        return [sound.DRUMS[name](kit, song.sample_rate, stream) for _ in range(3)]

    jitter = 0.001 if kit.electronic else rng.uniform(0.003, 0.008)
    pattern = dict(PATTERNS[song.style])
    kicks = list(pattern["kick"])
    for step in rng.integers(1, 16, 2):
        kicks[step] = "." if kicks[step] == "x" else "x"
    pattern["kick"] = "".join(kicks)
    fill_every = int(pick(rng, (2, 4, 4)))
    stem = song.silence()
    for bar in song.bars("drums"):
        has_fill = bar % fill_every == fill_every - 1
        hits = [
            (name, step, VELOCITY[mark])
            for name, marks in pattern.items()
            for step, mark in enumerate(marks)
            if mark != "." and not (has_fill and step >= 12) and rng.random() > 0.03
        ]
        if has_fill:
            names = ("snare", "high_tom", "mid_tom", "low_tom")
            order = sorted(int(voice) for voice in rng.integers(0, 4, 4))
            hits += [(names[order[i]], 12 + i, rng.uniform(0.6, 1.0)) for i in range(4)]
        if bar % fill_every == 0 and rng.random() < 0.7:
            hits.append(("crash", 0, 0.9))
        for name, step, velocity in hits:
            start = song.time(bar, step) + jitter * rng.standard_normal()
            gain = level[name] * velocity * rng.uniform(0.85, 1.1)
            place(
                stem,
                pick(rng, tuple(takes(name))),
                round(start * song.sample_rate),
                gain,
                pan[name],
            )
    return np.tanh(stem)


BASS_LINES = {
    "eighths": (
        (0, 2, 0),
        (2, 2, 0),
        (4, 2, 0),
        (6, 2, 0),
        (8, 2, 0),
        (10, 2, 0),
        (12, 2, 4),
        (14, 2, 4),
    ),
    "octaves": (
        (0, 2, 0),
        (2, 2, 7),
        (4, 2, 0),
        (6, 2, 7),
        (8, 2, 0),
        (10, 2, 7),
        (12, 2, 0),
        (14, 2, 7),
    ),
    "walking": ((0, 4, 0), (4, 4, 2), (8, 4, 4), (12, 4, 5)),
    "long": ((0, 10, 0), (10, 6, 0)),
    "funky": ((0, 3, 0), (3, 2, 0), (6, 1, 7), (7, 3, 0), (10, 2, 4), (13, 1, 6), (14, 2, 7)),
    "push": ((0, 5, 0), (6, 4, 0), (10, 2, 4), (12, 4, 0)),
}
"""One bar each: (first sixteenth, length in sixteenths, steps of the scale above the root)."""


def play_bass(song: Song) -> Samples:
    """The bass [2, N]: a synthesiser with a glide, or a plucked electric bass; centre."""
    rng = song.rng("bass")
    line = pick(rng, tuple(BASS_LINES.values()))
    length = rng.uniform(0.6, 0.98)
    notes: list[tuple[float, float, float, float]] = []
    for bar in song.bars("bass"):
        root = song.chord(bar)[0]
        for first, count, step in line:
            if first > 0 and rng.random() < 0.08:
                continue
            pitch = song.pitch(root + step) - 12
            pitch = pitch - 12 if pitch > 43 else pitch
            start = song.time(bar, first) + 0.003 * rng.standard_normal()
            notes.append((start, count * song.beat / 4 * length, pitch, rng.uniform(0.75, 1.0)))
    voice = _electric_bass if rng.random() < 0.5 else _synth_bass
    return np.tile(voice(song, notes, rng), (2, 1)) * np.sqrt(0.5)


def _synth_bass(song: Song, notes: list[Note], rng: np.random.Generator) -> Samples:
    rate, n = song.sample_rate, song.num_samples
    pitch, level, bite = np.full(n, 36.0), np.zeros(n), np.zeros(n)
    for start, seconds, note, velocity in notes:
        first, last = (int(np.clip(at * rate, 0, n)) for at in (start, start + seconds))
        pitch[first:] = note
        if rng.random() < 0.12:
            pitch[first : first + round(0.05 * rate)] = note - pick(rng, (2, 5, 12))
        t = np.arange(last - first) / rate
        level[first:last] = velocity * (0.7 + 0.3 * np.exp(-t / 0.15))
        bite[first:last] = velocity * np.exp(-t / 0.12)
    pitch = sound.smoothed(pitch, pick(rng, (0.002, 0.008, 0.03)), rate)
    order = np.arange(1, 51)
    shape = order**-1.0 if rng.random() < 0.5 else (order % 2) / order
    cycles = np.cumsum(440 * 2 ** ((pitch - 69) / 12)) / rate
    tone = sound.look_up(sound.wavetable(shape), cycles)
    tone += 0.6 * np.sin(2 * np.pi * cycles)
    dark = sound.filtered(tone, "low", rng.uniform(250, 500), rate)
    bright = sound.filtered(tone, "low", rng.uniform(1200, 3500), rate)
    level, bite = sound.smoothed(np.stack([level, bite]), 0.004, rate)
    return np.tanh(1.2 * (dark * level + rng.uniform(0.3, 0.9) * bright * bite))


def _electric_bass(song: Song, notes: list[Note], rng: np.random.Generator) -> Samples:
    rate = song.sample_rate
    brightness = rng.uniform(0.05, 0.3)

    @cache
    def string(pitch: float) -> Samples:
        return sound.pluck(pitch, 2.5, 3.0, brightness, rate, song.rng(f"string {pitch}"))

    stem = song.silence()
    knock = sound.noise_band(round(0.02 * rate), 700, 4000, rate, rng)
    knock *= np.exp(-np.arange(len(knock)) / (0.004 * rate))
    for start, seconds, pitch, velocity in notes:
        tone = held(string(pitch), seconds, 0.03, rate)
        place(stem, tone, round(start * rate), velocity)
        place(stem, knock, round(start * rate), velocity * rng.uniform(0.0, 0.3))
    return np.tanh(1.5 * sound.filtered(stem[0], "low", rng.uniform(900, 3000), rate))
