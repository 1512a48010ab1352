"""How music becomes shards (PrepConfig) and shards become training batches (RemixConfig)."""

from dataclasses import dataclass, field
from typing import Literal

from bsrnn_core.config import STEMS, StftConfig
from bsrnn_core.errors import BadInput


@dataclass(frozen=True, kw_only=True, slots=True)
class ChunkConfig:
    """What is stored: a change of any of these needs new shards (besides the StftConfig)."""

    chunk_size_in_seconds: float = 1.0
    """Length of a stored chunk."""
    dtype: Literal["float16", "float32"] = "float16"
    """Number format of the stored STFT."""
    target_rms: float = 0.1
    """Root mean square that a track's mixture is brought to."""
    peak: float = 1.0
    """No sample of the mixture exceeds this after the gain."""

    def __post_init__(self) -> None:
        if self.chunk_size_in_seconds <= 0:
            raise BadInput(
                f"chunk_size_in_seconds must be positive, not {self.chunk_size_in_seconds}"
            )
        if self.target_rms <= 0 or self.peak <= 0:
            raise BadInput("target_rms and peak must be positive")


@dataclass(frozen=True, kw_only=True, slots=True)
class SourceConfig:
    """Which music is read and how it is split."""

    musdbhq_location: str | None = None
    """Folder of MUSDB18-HQ, of MUSDB18 (.stem.mp4), or of stems: train/ valid/ test/ of tracks."""
    stem_names: tuple[str, ...] = STEMS
    """Stems of a track: file names without the ending."""
    portion: float = 1.0
    """Fraction of the training tracks to use."""
    valid_fraction: float = 0.14
    """Fraction of train that validates, where neither valid/ nor musdb's own list applies."""
    split_seed: int = 42
    """Seed of the drawn validation split and portion."""
    lengths: Literal["refuse", "pad", "trim"] = "refuse"
    """What to do with stems of different length within a track."""
    skip_bad_tracks: bool = False
    """Leave out tracks that cannot be used, list them, and go on."""

    def __post_init__(self) -> None:
        if not 0 < self.portion <= 1:
            raise BadInput(f"portion must lie in (0, 1], not {self.portion}")
        if not 0 <= self.valid_fraction < 1:
            raise BadInput(f"valid_fraction must lie in [0, 1), not {self.valid_fraction}")
        if not self.stem_names or len(set(self.stem_names)) != len(self.stem_names):
            raise BadInput(f"stem_names must be one or more different names: {self.stem_names}")


@dataclass(frozen=True, kw_only=True, slots=True)
class PrepConfig:
    """Everything that decides what a dataset of shards holds."""

    source: SourceConfig = field(default_factory=SourceConfig)
    stft: StftConfig = field(default_factory=StftConfig)
    chunk: ChunkConfig = field(default_factory=ChunkConfig)

    @property
    def chunk_frames(self) -> int:
        """Frames (T) of a stored chunk."""
        return self.stft.seconds_to_frames(self.chunk.chunk_size_in_seconds)


@dataclass(frozen=True, kw_only=True, slots=True)
class RemixConfig:
    """How training examples are mixed from stored chunks."""

    remix: bool = True
    """Draw each stem of an example from another song (off: the songs as they are)."""
    gain_db: float = 10.0
    """Each stem's gain is drawn from [-gain_db, gain_db]."""
    drop_probability: float = 0.1
    """Probability that a stem is left out of an example."""
    flip_polarity: bool = True
    """Turn a stem's sign with probability 1/2."""
    swap_channels: bool = True
    """Exchange a stem's left and right with probability 1/2."""
    one_channel: bool = False
    """Train on one channel of each example, drawn anew: half the work of a stereo example."""
    sad: bool = False
    """Source-activity detection: draw only chunks in which the stem plays."""
    pool_chunks: int = 8
    """Decoded chunks that the stems of one example are drawn from."""
    chunk_reuse: int = 2
    """Times that a decoded stem of a chunk is used before it leaves the pool, on average."""

    def __post_init__(self) -> None:
        if self.gain_db < 0:
            raise BadInput(f"gain_db must not be negative, not {self.gain_db}")
        if not 0 <= self.drop_probability < 1:
            raise BadInput(f"drop_probability must lie in [0, 1), not {self.drop_probability}")
        if self.pool_chunks < 1 or self.chunk_reuse < 1:
            raise BadInput("pool_chunks and chunk_reuse must be at least 1")
