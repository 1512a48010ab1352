"""``manifest.json``: what a dataset of shards holds, and how to compare it with what is wanted."""

import dataclasses
import hashlib
import json
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any, Self

from bsrnn_core.config import StftConfig
from bsrnn_core.errors import BadInput
from data_prep.config import ChunkConfig, PrepConfig, SourceConfig
from data_prep.storage import Location, Unavailable, size_of, whole
from data_prep.tracks import SPLITS, FileStamp, Split

FORMAT_VERSION = 1
MANIFEST_NAME = "manifest.json"


@dataclass(frozen=True, kw_only=True, slots=True)
class PreparedTrack:
    """A track and its shard."""

    name: str
    split: Split
    num_samples: int
    """Length at the dataset's sample rate."""
    channels: int
    shard: str
    """Path of the shard, relative to the dataset's folder."""
    rows: int
    bytes: int
    sha256: str
    """Checksum of the shard."""
    inputs: dict[str, FileStamp]
    """The audio files that it was made from."""

    @classmethod
    def from_dict(cls, values: dict[str, Any]) -> Self:
        """The inverse of ``dataclasses.asdict``. Raises KeyError or TypeError on other values."""
        inputs = {name: FileStamp(**stamp) for name, stamp in values["inputs"].items()}
        return cls(**{**values, "inputs": inputs})


@dataclass(frozen=True, kw_only=True, slots=True)
class Manifest:
    """What a dataset holds. It is written last: a folder with a manifest is a whole dataset."""

    format_version: int = FORMAT_VERSION
    config: dict[str, Any]
    """The full PrepConfig, as nested plain values."""
    config_hash: str
    stems: tuple[str, ...]
    tracks: tuple[PreparedTrack, ...]
    left_out: dict[str, str]
    """Tracks that could not be used ("split/name"), and why."""

    @classmethod
    def of(
        cls, config: PrepConfig, tracks: Iterable[PreparedTrack], left_out: dict[str, str]
    ) -> Self:
        """The manifest of a dataset made with ``config``; tracks by split and name."""
        return cls(
            config=json.loads(json.dumps(dataclasses.asdict(config))),
            config_hash=hash_of(content_config(config)),
            stems=config.source.stem_names,
            tracks=tuple(sorted(tracks, key=lambda t: (SPLITS.index(t.split), t.name))),
            left_out=left_out,
        )

    @property
    def hash(self) -> str:
        """Names the content: the same songs prepared in the same way, wherever and whenever."""
        inputs = [
            [t.split, t.name, sorted((n, stamp.sha256) for n, stamp in t.inputs.items())]
            for t in self.tracks
        ]
        return hash_of([self.format_version, self.config_hash, sorted(inputs)])

    @property
    def prep_config(self) -> PrepConfig:
        """The configuration that the dataset was made with. Raises BadInput if it is damaged."""
        try:
            source = {**self.config["source"], "stem_names": self.stems}
            return PrepConfig(
                source=SourceConfig(**source),
                stft=StftConfig(**self.config["stft"]),
                chunk=ChunkConfig(**self.config["chunk"]),
            )
        except (KeyError, TypeError) as error:
            raise BadInput(
                f"the dataset's configuration is of another version of this program ({error}): "
                "prepare it again"
            ) from error

    def write(self, folder: Location) -> None:
        """Write ``manifest.json`` into ``folder``, atomically."""
        text = json.dumps(dataclasses.asdict(self), indent=1, ensure_ascii=False)
        with whole(folder / MANIFEST_NAME) as temporary:
            temporary.write_text(text + "\n", encoding="utf-8")

    @classmethod
    def read_if_there(cls, folder: Location) -> Self | None:
        """The manifest of ``folder``, or None where there is none that can be used."""
        try:
            return cls.read(folder)
        except Unavailable:
            raise
        except BadInput:
            return None

    @classmethod
    def read(cls, folder: Location) -> Self:
        """Raises BadInput when there is none, or one that is damaged or of another version."""
        path = folder / MANIFEST_NAME
        if size_of(path) is None:
            raise BadInput(
                f"{folder} is not a prepared dataset, for it has no {MANIFEST_NAME}: make or "
                "finish it with `bsrnn prep`"
            )
        try:
            values = json.loads(path.read_text(encoding="utf-8"))
            version = values["format_version"]
            if version != FORMAT_VERSION:
                raise BadInput(
                    f"{path} has format version {version}, this program reads {FORMAT_VERSION}: "
                    "prepare the dataset again"
                )
            tracks = tuple(PreparedTrack.from_dict(track) for track in values["tracks"])
            return cls(**{**values, "stems": tuple(values["stems"]), "tracks": tracks})
        except (json.JSONDecodeError, UnicodeDecodeError, KeyError, TypeError) as error:
            raise BadInput(f"{path} is damaged ({error}): prepare the dataset again") from error


def content_config(config: PrepConfig) -> dict[str, Any]:
    """The options that decide what a shard holds, by the names they have on the command line.

    Which songs are taken and how they are split is no part of it, nor is ``lengths``, which matters
    to odd tracks only and is kept in their own shards.
    """
    return {
        "stem_names": list(config.source.stem_names),
        "sample_rate": config.stft.sample_rate,
        "n_fft": config.stft.n_fft,
        "hop_samples": config.stft.hop,
        **dataclasses.asdict(config.chunk),
    }


def hash_of(values: Any) -> str:
    """SHA-256 of plain values in JSON."""
    return hashlib.sha256(json.dumps(values, sort_keys=True).encode()).hexdigest()


def differences(stored: PrepConfig, wanted: PrepConfig) -> list[str]:
    """Where two configurations call for other shards, stem names aside: one phrase per option."""
    ours, theirs = content_config(stored), content_config(wanted)
    return [
        f"{name} is {ours[name]} there and {theirs[name]} here"
        for name in ours
        if name != "stem_names" and ours[name] != theirs[name]
    ]
