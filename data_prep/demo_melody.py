"""The melodic players of a demo song: chords and riffs (`other`) and a sung lead (`vocals`)."""

from collections.abc import Callable
from dataclasses import dataclass
from functools import cache

import numpy as np

from data_prep import demo_instruments as sound
from data_prep.demo_instruments import Samples
from data_prep.demo_score import Song, held, pick, place

Instrument = Callable[[float], Samples]
"""The sound of a MIDI note number, [n] or [2, n]."""

COMPING = {
    "eighths": (0, 2, 4, 6, 8, 10, 12, 14),
    "offbeat": (2, 6, 10, 14),
    "quarters": (0, 4, 8, 12),
    "folk": (0, 4, 6, 10, 12, 14),
    "stabs": (0, 3, 6, 11),
    "halves": (0, 8),
    "backbeat": (0, 4, 7, 12),
}
"""Sixteenths at which a chord is struck."""


def voicing(song: Song, bar: int, centre: float) -> list[int]:
    """The notes of a bar's chord, each in the octave around ``centre``, from low to high."""
    size = 4 if song.entropy[-1] % 3 == 0 else 3
    pitches = [song.pitch(degree) for degree in song.chord(bar, size)]
    return sorted(int(p + 12 * np.round((centre - p) / 12)) for p in pitches)


def _instrument(kind: str, song: Song, rng: np.random.Generator) -> Instrument:
    """A new instrument of this kind, that remembers the notes it has made."""
    rate = song.sample_rate
    bright, decay = rng.uniform(0.2, 1.0), rng.uniform(0.6, 3.0)
    ratio, index = pick(rng, (1, 1, 2, 3)), rng.uniform(0.6, 2.5)
    slope, cents, cutoff_hz = rng.uniform(0.8, 1.8), rng.uniform(4, 16), rng.uniform(900, 4500)

    def note(pitch: float) -> Samples:
        stream = song.rng(f"{kind} {pitch}")
        if kind in ("guitar", "harp"):
            return sound.pluck(pitch, 2.0, decay, bright, rate, stream)
        if kind == "power":
            string = sound.pluck(pitch, 2.0, 3.0, bright, rate, stream)
            fifth = sound.pluck(pitch + 7, 2.0, 3.0, bright, rate, stream)
            return sound.filtered(np.tanh(8 * (string + fifth)), "low", 4500, rate)
        if kind == "keys":
            return sound.electric_piano(pitch, 2.0, ratio, index, rate)
        if kind == "mallet":
            return sound.mallet(pitch, 1.2, rate, stream)
        tone = sound.detuned(pitch, 4.5 if kind == "pad" else 1.0, slope, cents, rate, stream)
        t = np.arange(tone.shape[1]) / rate
        if kind == "pad":
            return sound.filtered(tone, "low", cutoff_hz, rate) * np.minimum(1, t / 0.15)
        body = sound.filtered(tone, "low", 0.5 * cutoff_hz, rate) * np.exp(-t / 0.5)
        return (body + tone * np.exp(-t / 0.06)) * np.minimum(1, t / 0.003)

    return cache(note)


def _strike_chords(song: Song, rng: np.random.Generator) -> Samples:
    """Chords struck in a rhythm; a guitar's strings sound one after another, down or up."""
    kind = pick(rng, ("guitar", "guitar", "power", "keys", "keys", "stab"))
    play = _instrument(kind, song, rng)
    names = ("eighths", "folk", "backbeat", "stabs") if kind in ("guitar", "power") else COMPING
    rhythm = COMPING[pick(rng, tuple(names))]
    spread = rng.uniform(0.006, 0.018) if kind == "guitar" else rng.uniform(0.0, 0.004)
    centre, length = rng.uniform(55, 66), rng.uniform(0.6, 1.1)
    stem = song.silence()
    for bar in song.bars("other"):
        notes = voicing(song, bar, centre)
        if kind == "guitar":
            notes = [notes[0] - 12, *notes, notes[0] + 12]
        if kind == "power":
            notes = [song.pitch(song.chord(bar)[0]) - 12]
        ends = (*rhythm[1:], 16 + rhythm[0])
        for step, end in zip(rhythm, ends, strict=True):
            seconds = (end - step) * song.beat / 4 * length
            velocity = (1.0 if step % 4 == 0 else 0.75) * rng.uniform(0.8, 1.1)
            start = song.time(bar, step) + 0.004 * rng.standard_normal()
            for string, pitch in enumerate(notes if step % 4 == 0 else notes[::-1]):
                tone = held(play(pitch), seconds, 0.05, song.sample_rate)
                at = round((start + spread * string) * song.sample_rate)
                place(stem, tone, at, velocity, 0.5 * (string / max(1, len(notes) - 1) - 0.5))
    return stem


def _sustain_chords(song: Song, rng: np.random.Generator) -> Samples:
    """A pad that holds each bar's chord."""
    play = _instrument("pad", song, rng)
    centre = rng.uniform(56, 68)
    stem = song.silence()
    for bar in song.bars("other"):
        for pitch in voicing(song, bar, centre):
            tone = held(play(pitch), 4 * song.beat, 0.3, song.sample_rate)
            place(stem, tone, round(song.time(bar, 0) * song.sample_rate), 0.6)
    return stem


def _arpeggio(song: Song, rng: np.random.Generator) -> Samples:
    """A figure over the chord's notes, the same in every bar, with echoes on the other side."""
    play = _instrument(pick(rng, ("harp", "mallet", "stab", "keys")), song, rng)
    centre, every = rng.uniform(62, 76), pick(rng, (1, 2, 2, 2))
    figure = rng.integers(0, 6, 16)
    rest = rng.random(16) < 0.2
    pan, echo = rng.uniform(-0.7, 0.7), rng.uniform(0.0, 0.4)
    stem = song.silence()
    for bar in song.bars("other"):
        notes = voicing(song, bar, centre)
        for step in range(0, 16, every):
            if rest[step]:
                continue
            octave, index = divmod(int(figure[step]), len(notes))
            tone = held(
                play(notes[index] + 12 * octave), every * song.beat / 4, 0.15, song.sample_rate
            )
            velocity = rng.uniform(0.6, 1.0)
            start = song.time(bar, step) + 0.003 * rng.standard_normal()
            place(stem, tone, round(start * song.sample_rate), velocity, pan)
            later = round((start + 0.75 * song.beat) * song.sample_rate)
            place(stem, tone, later, echo * velocity, -pan)
    return stem


def play_other(song: Song) -> Samples:
    """Chords [2, N], and in most songs an arpeggio or a pad or both."""
    rng = song.rng("other")
    layers = [_strike_chords(song, rng)]
    if rng.random() < 0.6:
        layers.append(_arpeggio(song, rng))
    if rng.random() < 0.5 or len(layers) == 1:
        layers.append(_sustain_chords(song, rng))
    stem = song.silence()
    for layer in layers:
        loudness = max(1e-9, float(np.sqrt(np.mean(layer**2))))
        stem += layer * (rng.uniform(0.4, 1.0) / loudness)
    if rng.random() < 0.5:
        stem = sound.chorus(stem, rng.uniform(0.3, 0.8), rng.uniform(0.3, 1.2), song.sample_rate)
    return stem


@dataclass(frozen=True, kw_only=True, slots=True)
class Syllable:
    """One sung note."""

    start: float
    seconds: float
    pitch: int
    vowel: str
    consonant: str
    opens_phrase: bool


def melody(song: Song, rng: np.random.Generator) -> list[Syllable]:
    """Sung phrases of about two bars with pauses between, chord notes on the strong beats."""
    low = int(rng.integers(-4, 1)) + (7 if rng.random() < 0.5 else 0)
    vowels = tuple(rng.permutation(list(sound.VOWELS))[:4].tolist())
    consonants = ("", "", "s", "t", "k", "f", "h", "ch")
    motifs = ((2, 2, 4, 2, 2, 4), (4, 2, 2, 6, 2), (3, 3, 2, 4, 4), (2, 1, 1, 4, 2, 6), (6, 2, 8))
    bars = song.bars("vocals")
    degree = low + 4
    begin = 16 * bars[0] + int(rng.integers(4, 9))
    syllables: list[Syllable] = []
    while begin < 16 * song.num_bars:
        motif = pick(rng, motifs) + pick(rng, motifs)[: int(rng.integers(1, 5))]
        step = begin
        for count in motif:
            bar, sixteenth = divmod(step, 16)
            if bar in bars:
                degree = int(np.clip(degree + rng.integers(-2, 3), low, low + 9))
                if sixteenth % 4 == 0:
                    tones = {chord + 7 * o for chord in song.chord(bar) for o in (-2, -1, 0, 1)}
                    degree = min(tones, key=lambda tone: (abs(tone - degree), tone))
                start = song.time(bar, sixteenth) + 0.012 * rng.standard_normal()
                seconds = count * song.beat / 4
                sung = (pick(rng, vowels), pick(rng, consonants), step == begin)
                pitch = song.pitch(degree)
                syllables.append(
                    Syllable(
                        start=start,
                        seconds=seconds,
                        pitch=pitch,
                        vowel=sung[0],
                        consonant=sung[1],
                        opens_phrase=sung[2],
                    )
                )
            step += count
        begin = step + int(rng.integers(3, 9)) + (16 if rng.random() < 0.25 else 0)
    return syllables


def _consonant(name: str, rate: int, rng: np.random.Generator) -> Samples:
    """The noise of a consonant [n]."""
    low_hz, high_hz, seconds, attack = {
        "s": (4500, 11000, 0.11, 0.03),
        "ch": (2000, 7000, 0.09, 0.004),
        "t": (2500, 9000, 0.03, 0.001),
        "k": (1200, 4500, 0.035, 0.001),
        "f": (1500, 12000, 0.08, 0.03),
        "h": (600, 4000, 0.08, 0.03),
        "breath": (800, 7000, 0.25, 0.15),
    }[name]
    n = round(seconds * rate)
    t = np.arange(n) / rate
    noise = sound.noise_band(n, min(low_hz, 0.3 * rate), high_hz, rate, rng)
    return noise * np.minimum(1, t / attack) * np.minimum(1, (seconds - t) / (0.5 * seconds))


def _pitch_curve(song: Song, syllables: list[Syllable], rng: np.random.Generator) -> Samples:
    """Sung pitch [N] as a MIDI number: glides between notes, vibrato that grows, a little drift."""
    rate, n = song.sample_rate, song.num_samples
    pitch, depth = np.full(n, float(syllables[0].pitch)), np.zeros(n)
    width = rng.uniform(0.15, 0.5)
    starts = [int(np.clip(note.start * rate, 0, n)) for note in syllables]
    for note, first, last in zip(syllables, starts, [*starts[1:], n], strict=True):
        pitch[first:last] = note.pitch
        if note.opens_phrase:
            pitch[first : first + round(0.04 * rate)] -= 0.7
        depth[first:last] = width * np.clip((np.arange(last - first) / rate - 0.18) / 0.3, 0, 1)
    glide = rng.uniform(0.012, 0.035)
    pitch = sound.smoothed(sound.smoothed(pitch, glide, rate), glide, rate)
    drift = sound.smoothed(rng.standard_normal(n), 0.15, rate) * np.sqrt(0.15 * rate)
    speed_hz = rng.uniform(4.8, 6.2) * (1 + 0.03 * drift)
    vibrato = np.sin(2 * np.pi * np.cumsum(speed_hz) / rate)
    return pitch + sound.smoothed(depth, 0.05, rate) * vibrato + 0.06 * drift


def play_vocals(song: Song) -> Samples:
    """The lead [2, N]: a glottal pulse train through the vowels of its syllables, and noises."""
    rng = song.rng("vocals")
    rate, n = song.sample_rate, song.num_samples
    syllables = melody(song, rng)
    high = np.mean([note.pitch for note in syllables]) > 60
    tract = rng.uniform(1.05, 1.2) if high else rng.uniform(0.88, 1.02)
    used = sorted({note.vowel for note in syllables})
    mouth = np.zeros(n, dtype=np.int8)
    level, noises = np.zeros(n), song.silence()
    for note in syllables:
        first, last = (
            int(np.clip(at * rate, 0, n)) for at in (note.start, note.start + note.seconds)
        )
        mouth[max(0, first - round(0.03 * rate)) :] = used.index(note.vowel)
        t = np.arange(last - first) / rate
        level[first:last] = rng.uniform(0.75, 1.0) * (0.8 + 0.2 * np.sin(np.pi * t / note.seconds))
        level[max(0, last - round(rng.uniform(0.01, 0.07) * rate)) : last] *= 0.25
        noise = note.consonant or ("breath" if note.opens_phrase else "")
        if noise:
            burst = _consonant(noise, rate, rng)
            gain = rng.uniform(0.15, 0.3) if noise == "breath" else rng.uniform(0.5, 1.4)
            place(noises, burst, first - len(burst) + round(0.01 * rate), gain)
            level[max(0, first - round(0.05 * rate)) : first] = 0
    curve = _pitch_curve(song, syllables, rng)
    top_hz = sound.hz(float(curve.max()))
    table = sound.glottal_table(sound.harmonic_count(top_hz, rate), rng.uniform(0.5, 0.75))
    cycles = np.cumsum(440 * 2 ** ((curve - 69) / 12)) / rate
    breathy = rng.uniform(0.02, 0.08) * rng.standard_normal(n)
    source = sound.look_up(table, cycles) + breathy
    voice = rng.uniform(0.3, 1.0) * sound.filtered(source, "high", 3500, rate)
    for index, name in enumerate(used):
        openness = sound.smoothed((mouth == index).astype(float), 0.02, rate)
        voice += sound.vowel(source, name, tract, rate) * openness
    voice *= sound.smoothed(sound.smoothed(level, 0.008, rate), 0.012, rate)
    return np.tile(voice, (2, 1)) * np.sqrt(0.5) + noises
