"""Synthesised instruments: each function gives the samples of one sound, about 1 at its peak.

Sounds are float64 arrays [n] (mono) or [2, n] (stereo). ``rate`` is the sample rate in Hz, pitches
are MIDI note numbers (69 = A4 = 440 Hz, fractions allowed), times are in seconds.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal

import numpy as np
from numpy.typing import NDArray
from scipy.signal import butter, fftconvolve, lfilter, sosfilt

Samples = NDArray[np.floating]

VOWELS = {
    "a": (800, 1150, 2800, 3700),
    "e": (420, 1950, 2600, 3700),
    "i": (290, 2250, 2950, 3700),
    "o": (460, 820, 2700, 3600),
    "u": (330, 700, 2600, 3600),
    "uh": (620, 1250, 2550, 3500),
}
"""Centre frequencies in Hz of the first four formants of an adult voice."""


def hz(pitch: float) -> float:
    """Frequency of a MIDI note number."""
    return 440.0 * 2.0 ** ((pitch - 69.0) / 12.0)


def seconds_axis(seconds: float, rate: int) -> Samples:
    """Time in seconds of every sample of a sound, at least one sample."""
    return np.arange(max(1, round(seconds * rate))) / rate


def filtered(
    samples: Samples, kind: Literal["low", "high"], cutoff_hz: float, rate: int, order: int = 2
) -> Samples:
    """Butterworth low- or high-pass along the last axis; a cutoff near Nyquist is held below it."""
    sections = butter(order, min(cutoff_hz, 0.45 * rate), kind, fs=rate, output="sos")
    return np.asarray(sosfilt(sections, samples, axis=-1))


def unit_peak(samples: Samples) -> Samples:
    """Scaled so that the largest magnitude is 1."""
    return samples / max(1e-9, float(np.abs(samples).max()))


def noise_band(
    n: int, low_hz: float, high_hz: float, rate: int, rng: np.random.Generator
) -> Samples:
    """White noise [n] between two frequencies, at unit peak."""
    noise = filtered(rng.standard_normal(n), "high", low_hz, rate)
    return unit_peak(filtered(noise, "low", high_hz, rate))


def wavetable(harmonics: Samples, size: int = 4096) -> Samples:
    """One period of the sum of sines with these amplitudes (fundamental first), at unit peak."""
    spectrum = np.zeros(size // 2 + 1, dtype=complex)
    spectrum[1 : len(harmonics) + 1] = -1j * harmonics
    return unit_peak(np.fft.irfft(spectrum, size))


def look_up(table: Samples, cycles: Samples) -> Samples:
    """A wavetable read at these phases, counted in periods."""
    return table[(cycles * len(table)).astype(np.int64) & (len(table) - 1)]


def harmonic_count(frequency_hz: float, rate: int, most: int = 60) -> int:
    """Harmonics of a tone that stay clear of Nyquist."""
    return int(np.clip(0.45 * rate / frequency_hz, 1, most))


# Drums ------------------------------------------------------------------------------------------


@dataclass(frozen=True, kw_only=True, slots=True)
class Kit:
    """What makes one drum kit sound unlike another."""

    electronic: bool
    kick_hz: float
    kick_sweep: float
    kick_decay: float
    kick_click: float
    snare_hz: float
    snare_wires: float
    snare_decay: float
    metal_tune: float
    metal_noise: float
    hat_decay: float
    cymbal_decay: float
    tom_hz: float
    drive: float

    @classmethod
    def draw(cls, rng: np.random.Generator) -> "Kit":
        """A random kit: about one in three is a drum machine."""
        electronic = bool(rng.random() < 0.35)
        return cls(
            electronic=electronic,
            kick_hz=rng.uniform(44, 68),
            kick_sweep=rng.uniform(1.5, 6.0),
            kick_decay=rng.uniform(0.08, 0.22) if electronic else rng.uniform(0.05, 0.12),
            kick_click=rng.uniform(0.1, 0.7),
            snare_hz=rng.uniform(165, 255),
            snare_wires=rng.uniform(0.6, 1.6),
            snare_decay=rng.uniform(0.05, 0.16),
            metal_tune=rng.uniform(0.8, 1.5),
            metal_noise=rng.uniform(0.2, 0.8),
            hat_decay=rng.uniform(0.02, 0.06),
            cymbal_decay=rng.uniform(0.35, 0.8),
            tom_hz=rng.uniform(75, 110),
            drive=rng.uniform(1.0, 2.5),
        )


def _membrane(
    frequency_hz: float,
    sweep: float,
    bend: float,
    decay: float,
    rate: int,
    modes: tuple[float, ...],
) -> Samples:
    """A struck skin: falling pitch, and overtones that die sooner than the fundamental."""
    t = seconds_axis(6 * decay, rate)
    cycles = np.cumsum(frequency_hz * (1 + sweep * np.exp(-t / bend))) / rate
    body = np.zeros_like(t)
    for order, ratio in enumerate(modes):
        body += np.sin(2 * np.pi * ratio * cycles) * np.exp(-t * (1 + order) / decay) / (1 + order)
    return body


def _struck(body: Samples, noise: Samples, drive: float) -> Samples:
    out = body.copy()
    n = min(len(out), len(noise))
    out[:n] += noise[:n]
    return unit_peak(np.tanh(drive * out))


def _kick(kit: Kit, rate: int, rng: np.random.Generator) -> Samples:
    body = _membrane(kit.kick_hz, kit.kick_sweep, 0.025, kit.kick_decay, rate, (1.0, 1.6))
    t = seconds_axis(0.03, rate)
    click = noise_band(len(t), 1200, 7000, rate, rng) * np.exp(-t / 0.005)
    return _struck(body, kit.kick_click * click, kit.drive)


def _snare(kit: Kit, rate: int, rng: np.random.Generator) -> Samples:
    body = _membrane(kit.snare_hz, 0.4, 0.02, 0.6 * kit.snare_decay, rate, (1.0, 1.59, 2.14))
    t = seconds_axis(6 * kit.snare_decay, rate)
    wires = noise_band(len(t), 900, 11000, rate, rng) * np.exp(-t / kit.snare_decay)
    return _struck(np.pad(body, (0, len(t) - min(len(t), len(body)))), kit.snare_wires * wires, 1.3)


def _clap(kit: Kit, rate: int, rng: np.random.Generator) -> Samples:
    t = seconds_axis(0.3, rate)
    envelope = np.exp(-np.maximum(0, t - 0.03) / kit.snare_decay) * (t > 0.03)
    for hand in range(3):
        since = t - 0.011 * hand
        envelope += np.exp(-np.abs(since) / 0.003) * (since >= 0)
    return unit_peak(noise_band(len(t), 800, 4500, rate, rng) * envelope)


def _rim(kit: Kit, rate: int, rng: np.random.Generator) -> Samples:
    t = seconds_axis(0.08, rate)
    tone = np.sin(2 * np.pi * 4.1 * kit.snare_hz * t) + np.sin(2 * np.pi * 7.7 * kit.snare_hz * t)
    return unit_peak((tone + rng.standard_normal(len(t)) * np.exp(-t / 0.003)) * np.exp(-t / 0.012))


def _metal(kit: Kit, decay: float, low_hz: float, rate: int, rng: np.random.Generator) -> Samples:
    """Cymbals and hi-hats: inharmonic square waves and noise through a high-pass."""
    t = seconds_axis(min(5 * decay, 2.5), rate)
    ring = np.zeros_like(t)
    for frequency_hz in (205.3, 304.4, 369.6, 522.7, 540.0, 800.0, 1235.0):
        ring += np.sign(np.sin(2 * np.pi * (kit.metal_tune * frequency_hz * t + rng.random())))
    ring = ring / 3 * (1 - kit.metal_noise) + kit.metal_noise * rng.standard_normal(len(t))
    ring = filtered(ring, "high", low_hz, rate, order=4)
    return unit_peak(ring * np.exp(-t / decay) * np.minimum(1, t / 0.0008))


def _ride(kit: Kit, rate: int, rng: np.random.Generator) -> Samples:
    wash = _metal(kit, kit.cymbal_decay, 3500, rate, rng)
    t = np.arange(len(wash)) / rate
    ping = np.sin(2 * np.pi * 3170 * kit.metal_tune * t) * np.exp(-t / 0.06)
    return unit_peak(0.5 * wash + 0.3 * ping * (3170 * kit.metal_tune < 0.45 * rate))


def _tom(kit: Kit, ratio: float, rate: int, rng: np.random.Generator) -> Samples:
    body = _membrane(ratio * kit.tom_hz, 0.6, 0.05, 0.16, rate, (1.0, 1.5, 1.98))
    t = seconds_axis(0.05, rate)
    return _struck(body, 0.4 * noise_band(len(t), 400, 5000, rate, rng) * np.exp(-t / 0.01), 1.2)


def _shaker(kit: Kit, rate: int, rng: np.random.Generator) -> Samples:
    t = seconds_axis(0.12, rate)
    return noise_band(len(t), 5000, 14000, rate, rng) * np.minimum(t / 0.02, np.exp(-t / 0.03))


DRUMS: dict[str, Callable[[Kit, int, np.random.Generator], Samples]] = {
    "kick": _kick,
    "snare": lambda kit, rate, rng: (_clap if kit.electronic else _snare)(kit, rate, rng),
    "ghost": _snare,
    "rim": _rim,
    "hat": lambda kit, rate, rng: _metal(kit, kit.hat_decay, 6500, rate, rng),
    "open": lambda kit, rate, rng: _metal(kit, 6 * kit.hat_decay, 6000, rate, rng),
    "ride": _ride,
    "crash": lambda kit, rate, rng: _metal(kit, kit.cymbal_decay, 2500, rate, rng),
    "low_tom": lambda kit, rate, rng: _tom(kit, 1.0, rate, rng),
    "mid_tom": lambda kit, rate, rng: _tom(kit, 1.4, rate, rng),
    "high_tom": lambda kit, rate, rng: _tom(kit, 1.9, rate, rng),
    "shaker": _shaker,
}
"""Every drum of a kit, by name."""


# Pitched instruments ----------------------------------------------------------------------------


def pluck(
    pitch: float,
    seconds: float,
    decay: float,
    brightness: float,
    rate: int,
    rng: np.random.Generator,
) -> Samples:
    """A plucked string [n]: a period that loses its highs every time round (Karplus-Strong).

    Every period is the one before it through a two-tap average, here as powers of that filter's
    magnitude: all periods at once, and exactly in tune.
    """
    period = max(8, round(rate / hz(pitch)))
    bins = np.arange(period // 2 + 1)
    spectrum = np.exp(2j * np.pi * rng.random(len(bins)) - bins * hz(pitch) / (9000 * brightness))
    spectrum *= rng.uniform(0.3, 1.0, len(bins)) / np.maximum(1, bins)
    spectrum[0] = 0
    count = int(seconds * rate / period) + 2
    loss = 10 ** (-3 / (decay * hz(pitch))) * np.cos(np.pi * bins / (2 * period)) ** 2
    rounds = np.arange(count)[:, None]
    string = np.fft.irfft(spectrum * loss**rounds, period, axis=1).reshape(-1)
    position = np.arange(round(seconds * rate)) * (hz(pitch) * period / rate)
    return unit_peak(np.interp(position, np.arange(len(string)), string))


def electric_piano(pitch: float, seconds: float, ratio: float, index: float, rate: int) -> Samples:
    """Frequency modulation [n] with a bell-like attack that mellows."""
    t = seconds_axis(seconds, rate)
    cycle = 2 * np.pi * hz(pitch) * t
    tine = np.sin(ratio * cycle) * index * np.exp(-t / 0.25)
    tine += np.sin(14 * cycle) * 0.4 * np.exp(-t / 0.02) * (15 * hz(pitch) < 0.4 * rate)
    return np.sin(cycle + tine) * np.exp(-t / 1.1) * np.minimum(1, t / 0.002)


def mallet(pitch: float, seconds: float, rate: int, rng: np.random.Generator) -> Samples:
    """A struck bar [n] (marimba): partials 1, 4 and 10 and the knock of the stick."""
    t = seconds_axis(seconds, rate)
    out = 0.25 * rng.standard_normal(len(t)) * np.exp(-t / 0.002)
    for ratio, gain, decay in ((1.0, 1.0, 0.35), (3.93, 0.4, 0.09), (9.2, 0.2, 0.03)):
        if ratio * hz(pitch) < 0.45 * rate:
            out += gain * np.sin(2 * np.pi * ratio * hz(pitch) * t) * np.exp(-t / decay)
    return unit_peak(out)


def detuned(
    pitch: float, seconds: float, slope: float, cents: float, rate: int, rng: np.random.Generator
) -> Samples:
    """A stereo synthesiser tone [2, n]: three detuned voices a side; harmonic h at h ** -slope."""
    order = np.arange(1, harmonic_count(1.03 * hz(pitch), rate) + 1)
    table = wavetable(order**-slope)
    n = max(1, round(seconds * rate))
    out = np.zeros((2, n))
    for side in range(2):
        for _ in range(3):
            voice_hz = hz(pitch + rng.uniform(-cents, cents) / 100)
            out[side] += look_up(table, np.arange(n) * (voice_hz / rate) + rng.random()) / 3
    return out


# Voice ------------------------------------------------------------------------------------------


def glottal_table(harmonics: int, open_quotient: float) -> Samples:
    """One period [4096] of the flow derivative of Rosenberg's glottal pulse, band-limited."""
    phase = np.arange(4096) / 4096
    rise, fall = 0.67 * open_quotient, 0.33 * open_quotient
    flow = np.where(phase < rise, 0.5 - 0.5 * np.cos(np.pi * phase / rise), 0.0)
    closing = (phase >= rise) & (phase < rise + fall)
    flow[closing] = np.cos(0.5 * np.pi * (phase[closing] - rise) / fall)
    spectrum = np.fft.rfft(np.diff(flow, append=flow[:1]))
    spectrum[0] = 0
    spectrum[harmonics + 1 :] = 0
    return unit_peak(np.fft.irfft(spectrum, 4096))


def vowel(source: Samples, name: str, tract: float, rate: int) -> Samples:
    """A voice source [n] through four resonators in a row; ``tract`` scales the formants."""
    out = source
    for formant_hz, width_hz in zip(VOWELS[name], (80, 95, 130, 180), strict=True):
        if tract * formant_hz < 0.45 * rate:
            radius = np.exp(-np.pi * width_hz / rate)
            angle = 2 * np.pi * tract * formant_hz / rate
            poles = np.array([1.0, -2 * radius * np.cos(angle), radius**2])
            out = np.asarray(lfilter([poles.sum()], poles, out))
    return out / max(1e-9, float(np.sqrt(np.mean(out**2))))


# Effects ----------------------------------------------------------------------------------------


def smoothed(samples: Samples, seconds: float, rate: int) -> Samples:
    """One-pole smoothing along the last axis; starts at the first value."""
    keep = np.exp(-1 / (seconds * rate))
    first = samples[..., :1]
    return first + np.asarray(lfilter([1 - keep], [1, -keep], samples - first, axis=-1))


def chorus(stereo: Samples, depth: float, speed_hz: float, rate: int) -> Samples:
    """Adds to [2, n] a copy whose delay swings, opposite on the two sides."""
    at = np.arange(stereo.shape[1])
    swing = np.sin(2 * np.pi * speed_hz / rate * at)
    out = stereo.copy()
    for side, sign in enumerate((1, -1)):
        delay = (0.008 + 0.003 * sign * swing) * rate
        out[side] += depth * np.interp(at - delay, at, stereo[side], left=0.0)
    return out


def room(seconds: float, damping_hz: float, rate: int, rng: np.random.Generator) -> Samples:
    """Impulse response [2, n] of a room: dying noise after a short gap, of unit energy a side."""
    t = seconds_axis(seconds, rate)
    tail = rng.standard_normal((2, len(t))) * 10 ** (-3 * t / seconds) * (t > 0.012)
    tail = filtered(filtered(tail, "low", damping_hz, rate, order=1), "high", 200, rate)
    return tail / np.maximum(1e-9, np.sqrt(np.sum(tail**2, axis=1, keepdims=True)))


def reverberated(stereo: Samples, response: Samples, amount: float) -> Samples:
    """[2, n] with its reverberation added, cut at the same length."""
    if amount == 0:
        return stereo
    tail = fftconvolve(stereo.astype(np.float32), response.astype(np.float32), axes=1)
    return stereo + amount * tail[:, : stereo.shape[1]]
