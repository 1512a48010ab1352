"""What a model is: its sample rate, STFT, band schema and sizes, as frozen dataclasses.

Defaults are those of the original Refined BSRNN system; the command line and the checkpoints are
generated from these classes, so a default lives here and nowhere else.
"""

import dataclasses
import math
from dataclasses import dataclass, field
from typing import Any, Literal, Self

from bsrnn_core.errors import BadInput

STEMS = ("vocals", "drums", "bass", "other")
"""The stems of MUSDB18, in the order that every array of this project keeps."""


Precision = Literal["float32", "bf16", "auto"]
"""In which numbers the network computes."""


def _require(condition: bool, sentence: str) -> None:
    if not condition:
        raise BadInput(sentence)


@dataclass(frozen=True, kw_only=True, slots=True)
class StftConfig:
    """Sample rate and short-time Fourier transform."""

    sample_rate: int = 44100
    """Samples per second that the model works at; other audio is resampled."""
    n_fft: int = 2048
    """Length of the Hann window and of the transform, in samples."""
    hop_samples: int | None = None
    """Samples between two frames (n_fft / 4 when not given)."""

    def __post_init__(self) -> None:
        _require(
            0 < self.sample_rate <= 1_000_000,
            f"sample_rate must be positive and at most 1000000, not {self.sample_rate}",
        )
        _require(
            16 <= self.n_fft <= 2**20 and self.n_fft % 2 == 0,
            f"n_fft must be even, at least 16 and at most {2**20}, not {self.n_fft}",
        )
        _require(
            0 < self.hop <= self.n_fft // 2,
            f"hop_samples must lie between 1 and n_fft / 2 = {self.n_fft // 2}, not {self.hop}",
        )

    @property
    def hop(self) -> int:
        """Samples between two frames."""
        return self.n_fft // 4 if self.hop_samples is None else self.hop_samples

    @property
    def num_bins(self) -> int:
        """Frequency bins of a frame (F)."""
        return self.n_fft // 2 + 1

    def num_frames(self, num_samples: int) -> int:
        """Frames (T) of the STFT of a signal of ``num_samples`` samples."""
        return math.ceil(num_samples / self.hop) + 1

    def seconds_to_frames(self, seconds: float) -> int:
        """The number of frames nearest to ``seconds``, at least one."""
        return max(1, round(seconds * self.sample_rate / self.hop))


LARGEST = {
    "feature_dim": 2**14,
    "hidden_dim": 2**14,
    "mlp_dim": 2**16,
    "num_blstm_layers": 1000,
    "num_bands": 2**19,
    "divisions": 10_000,
}
"""Beyond these a model is a slip of the keyboard, or meant to take all memory."""


@dataclass(frozen=True, kw_only=True, slots=True)
class ModelConfig:
    """Band schema and sizes of the network."""

    band_schema: str = "v7"
    """v1 .. v7, bass, drums, joint57, generic, or custom (with --splits)."""
    divisions: int = 24
    """generic only: equal divisions of the octave whose grid gives the band edges (even)."""
    num_bands: int = 41
    """generic only: bands wanted (K)."""
    splits: tuple[tuple[float, float], ...] = ()
    """custom only: pairs of (edge_hz, width_hz): bands of that width below that edge."""
    feature_dim: int = 32
    """Features per band and frame (N)."""
    num_blstm_layers: int = 6
    """Band-and-sequence modules: each a BLSTM over time, then one over bands."""
    hidden_dim: int | None = None
    """Hidden width of a BLSTM per direction (2 x feature_dim when not given)."""
    mlp_dim: int = 256
    """Hidden width of a band's mask MLP."""
    reduce_size: bool = False
    """Use 3 x (widest band - this band's width + 1) as the hidden width of a band's mask MLP."""

    def __post_init__(self) -> None:
        for name, most in LARGEST.items():
            value = getattr(self, name)
            _require(
                value is None or 0 < value <= most,
                f"{name} must be positive and at most {most}, not {value}",
            )
        _require(self.divisions % 2 == 0, f"divisions must be even, not {self.divisions}")
        _require(
            (self.band_schema == "custom") == bool(self.splits),
            "splits go with band_schema=custom, and custom needs them",
        )

    @property
    def hidden(self) -> int:
        """Hidden width of a BLSTM per direction."""
        return 2 * self.feature_dim if self.hidden_dim is None else self.hidden_dim


@dataclass(frozen=True, kw_only=True, slots=True)
class BsrnnConfig:
    """Everything that rebuilds a model: saved beside its weights."""

    stft: StftConfig = field(default_factory=StftConfig)
    model: ModelConfig = field(default_factory=ModelConfig)
    stems: tuple[str, ...] = STEMS
    """Stems that the model estimates, one head each, in this order."""
    crop_seconds: float = 3.0
    """Length of a training example."""

    def __post_init__(self) -> None:
        _require(len(self.stems) > 0, "a model needs at least one stem")
        _require(len(set(self.stems)) == len(self.stems), f"stems are repeated: {self.stems}")
        _require(
            0 < self.crop_seconds < math.inf,
            f"crop_seconds must be positive, not {self.crop_seconds}",
        )

    def to_dict(self) -> dict[str, Any]:
        """As nested plain values, for JSON."""
        return dataclasses.asdict(self)

    @classmethod
    def from_dict(cls, values: dict[str, Any]) -> Self:
        """The inverse of ``to_dict``. Raises BadInput on unknown or illegal fields."""
        try:
            model = dict(values["model"])
            model["splits"] = tuple((float(e), float(w)) for e, w in model.get("splits", ()))
            _check_types(StftConfig, values["stft"])
            _check_types(ModelConfig, model)
            stems, crop_seconds = values["stems"], values["crop_seconds"]
            if not isinstance(stems, (list, tuple)) or not all(isinstance(s, str) for s in stems):
                raise TypeError(f"stems must be a list of names, not {stems!r}")
            if not isinstance(crop_seconds, (int, float)):
                raise TypeError(f"crop_seconds must be a number, not {crop_seconds!r}")
            return cls(
                stft=StftConfig(**values["stft"]),
                model=ModelConfig(**model),
                stems=tuple(stems),
                crop_seconds=crop_seconds,
            )
        except BadInput:
            raise
        except (KeyError, TypeError, ValueError, OverflowError) as error:
            raise BadInput(f"not a model configuration: {error}") from error


def _check_types(config_class: type, values: dict[str, Any]) -> None:
    """Raises TypeError for a value, as JSON has it, that is not of its field's type."""
    kinds: dict[str, Any] = {
        field.name: field.type
        for field in dataclasses.fields(config_class)  # pyright: ignore[reportArgumentType]
        if field.name != "splits"
    }
    for name, value in values.items():
        if name in kinds and not isinstance(value, kinds[name]):
            raise TypeError(f"{name} must not be {value!r}")


@dataclass(frozen=True, kw_only=True, slots=True)
class SeparationConfig:
    """How a whole song is cut into windows, and in which numbers they are computed.

    The defaults were measured (docs/speed.md). The paper's procedure is ``window_seconds=3,
    overlap=5/6, precision="float32"``: every second of a song is computed six times.
    """

    window_seconds: float = 12.0
    """Length of a window; a song that is no longer is computed at once."""
    overlap: float = 0.1
    """Fraction of a window that the next one covers again: more is slower, and smoother."""
    batch_size: int = 0
    """Windows computed at a time; 0 for what was measured to be best: 8 on a GPU, 1 on a CPU."""
    precision: Precision = "auto"
    """Number format; auto takes bf16 where the hardware computes in it."""

    def __post_init__(self) -> None:
        _require(
            0 < self.window_seconds < math.inf,
            f"window_seconds must be positive, not {self.window_seconds}",
        )
        _require(0 <= self.overlap < 1, f"overlap must lie in [0, 1), not {self.overlap}")
        _require(self.batch_size >= 0, f"batch_size must not be negative, not {self.batch_size}")
