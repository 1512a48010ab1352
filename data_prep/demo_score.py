"""What the players of a demo song agree on: key, chords, tempo, form; and how a note is placed."""

from dataclasses import dataclass
from typing import TypeVar

import numpy as np

from data_prep.demo_instruments import Samples

T = TypeVar("T")

MODES = {
    "major": (0, 2, 4, 5, 7, 9, 11),
    "minor": (0, 2, 3, 5, 7, 8, 10),
    "dorian": (0, 2, 3, 5, 7, 9, 10),
    "mixolydian": (0, 2, 4, 5, 7, 9, 10),
}
PROGRESSIONS = (
    (0, 4, 5, 3),
    (0, 5, 3, 4),
    (0, 3, 4, 3),
    (0, 6, 5, 6),
    (0, 2, 3, 5),
    (5, 3, 0, 4),
    (0, 3, 0, 4),
    (0, 5, 1, 4),
)
"""Chords of four bars, as degrees of the scale."""

TEMPI = {
    "rock": (95, 150),
    "four": (112, 132),
    "funk": (88, 112),
    "half": (125, 160),
    "break": (120, 168),
    "ballad": (68, 92),
    "latin": (96, 126),
    "tribal": (98, 128),
}
"""Drum styles, and the tempi in bpm that suit each."""


def pick(rng: np.random.Generator, choices: tuple[T, ...]) -> T:
    """One of the choices, all equally likely."""
    return choices[int(rng.integers(len(choices)))]


@dataclass(frozen=True, kw_only=True, slots=True)
class Song:
    """What the players of a song agree on."""

    entropy: tuple[int, ...]
    """Seeds of everything random in it."""
    sample_rate: int
    num_samples: int
    tonic: int
    """MIDI note number of the key, in the octave below middle C."""
    mode: str
    progression: tuple[int, ...]
    tempo_bpm: float
    swing: float
    """How late the off-beat sixteenths are, as a fraction of a sixteenth."""
    style: str
    rests: dict[str, tuple[int, int]]
    """Bars (first, last + 1) in which a stem does not play."""

    @classmethod
    def draw(cls, entropy: tuple[int, ...], seconds: float, sample_rate: int) -> "Song":
        """The song of this seed."""
        rng = np.random.default_rng(entropy)
        style = pick(rng, tuple(TEMPI))
        tempo_bpm = float(rng.uniform(*TEMPI[style]))
        num_bars = int(seconds * tempo_bpm / 240)
        rests = {}
        if num_bars >= 6:
            for stem, chance in (("drums", 0.25), ("bass", 0.25), ("other", 0.15), ("vocals", 0.6)):
                first = int(rng.integers(0, num_bars - 1))
                if rng.random() < chance:
                    rests[stem] = (first, first + int(rng.integers(1, 3)))
        return cls(
            entropy=entropy,
            sample_rate=sample_rate,
            num_samples=round(seconds * sample_rate),
            tonic=int(rng.integers(43, 55)),
            mode=pick(rng, tuple(MODES)),
            progression=pick(rng, PROGRESSIONS),
            tempo_bpm=tempo_bpm,
            swing=float(pick(rng, (0.0, 0.0, 0.15, 0.33))),
            style=style,
            rests=rests,
        )

    @property
    def beat(self) -> float:
        """Length of a beat in seconds."""
        return 60 / self.tempo_bpm

    @property
    def num_bars(self) -> int:
        """Bars of four beats that have begun by the end."""
        return int(np.ceil(self.num_samples / self.sample_rate / (4 * self.beat)))

    def bars(self, stem: str) -> list[int]:
        """Bars in which a stem plays."""
        first, last = self.rests.get(stem, (0, 0))
        return [bar for bar in range(self.num_bars) if not first <= bar < last]

    def time(self, bar: int, sixteenth: float) -> float:
        """When a sixteenth of a bar sounds, in seconds, with the swing."""
        late = self.swing if sixteenth % 2 == 1 else 0.0
        return 0.02 + self.beat * (4 * bar + (sixteenth + late) / 4)

    def pitch(self, degree: int) -> int:
        """MIDI note number of a degree of the scale, 0 the tonic, 7 the tonic above it."""
        return self.tonic + 12 * (degree // 7) + MODES[self.mode][degree % 7]

    def chord(self, bar: int, size: int = 3) -> list[int]:
        """Degrees of a bar's chord, root first."""
        root = self.progression[bar % len(self.progression)]
        return [root + 2 * third for third in range(size)]

    def rng(self, player: str) -> np.random.Generator:
        """A player's own stream of random numbers."""
        return np.random.default_rng((*self.entropy, *player.encode()))

    def silence(self) -> Samples:
        """An empty stem [2, num_samples]."""
        return np.zeros((2, self.num_samples))


def place(stem: Samples, tone: Samples, start: int, gain: float, pan: float = 0.0) -> None:
    """Adds a tone [n] or [2, n] to a stem [2, N] in place, cut at both ends of the stem.

    ``pan`` goes from -1 (left) to 1 (right) at constant power.
    """
    tone = tone[..., max(0, -start) :]
    start = max(0, start)
    room = max(0, stem.shape[1] - start)
    sides = tone if tone.ndim == 2 else np.broadcast_to(tone, (2, len(tone)))
    sides = sides[:, :room]
    angle = (pan + 1) * np.pi / 4
    stem[0, start : start + sides.shape[1]] += gain * np.cos(angle) * sides[0]
    stem[1, start : start + sides.shape[1]] += gain * np.sin(angle) * sides[1]


def held(tone: Samples, seconds: float, release: float, rate: int) -> Samples:
    """A tone let go after ``seconds``."""
    n = min(tone.shape[-1], round((seconds + release) * rate))
    fade = np.clip((seconds + release - np.arange(n) / rate) / release, 0, 1)
    return tone[..., :n] * fade
