"""What a shard says of itself: enough to tell, without a manifest, whether it is still right."""

import dataclasses
import json
from dataclasses import dataclass
from typing import Self

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from bsrnn_core.errors import BadInput
from data_prep.manifest import FORMAT_VERSION
from data_prep.storage import Location, RemotePath, Unavailable
from data_prep.tracks import FileStamp, Split

DTYPES = {"float16": np.dtype("<f2"), "float32": np.dtype("<f4")}


@dataclass(frozen=True, kw_only=True, slots=True)
class ShardHeader:
    """What a shard says of itself in its footer: enough to tell, without the manifest, whether it
    is what would be written now."""

    config_hash: str
    track: str
    split: Split
    stems: tuple[str, ...]
    dtype: str
    """float16 or float32."""
    shape: tuple[int, int, int, int]
    """[T, C, F, 2] of every array in the shard."""
    num_samples: int
    """Length of the track at the dataset's sample rate."""
    lengths: str
    """How differing lengths of its stems were handled, "equal" when there were none."""
    inputs: dict[str, FileStamp]
    format_version: int = FORMAT_VERSION

    def to_metadata(self) -> dict[bytes, bytes]:
        """As parquet key-value metadata."""
        array = f"{self.shape}{DTYPES[self.dtype].str}"
        return {b"array": array.encode(), b"shard": json.dumps(dataclasses.asdict(self)).encode()}

    @classmethod
    def from_metadata(cls, metadata: dict[bytes, bytes]) -> Self:
        """The inverse. Raises KeyError, TypeError or ValueError when it is none of ours."""
        values = json.loads(metadata[b"shard"])
        if values["format_version"] != FORMAT_VERSION:
            raise ValueError(f"format version {values['format_version']}")
        values["stems"], values["shape"] = tuple(values["stems"]), tuple(values["shape"])
        values["inputs"] = {n: FileStamp(**stamp) for n, stamp in values["inputs"].items()}
        return cls(**values)


def read_header(path: Location) -> ShardHeader:
    """The header of a shard. Raises BadInput unless ``path`` is a whole shard of this version."""
    return open_footer(path)[1]


def open_footer(path: Location) -> tuple[pq.FileMetaData, ShardHeader]:
    """A shard's footer; of one in object storage little more is fetched.

    Raises BadInput as ``read_header`` does.
    """
    try:
        if isinstance(path, RemotePath):
            with path.open() as file:
                footer = pq.read_metadata(file)
        else:
            footer = pq.read_metadata(path)
        return footer, ShardHeader.from_metadata(footer.metadata or {})
    except Unavailable:
        raise
    except (OSError, pa.ArrowException, KeyError, TypeError, ValueError) as error:
        raise damaged(path) from error


def damaged(path: Location) -> BadInput:
    """What to raise for a shard that is not what it should be."""
    return BadInput(f"{path} is not a whole shard of its dataset: run `bsrnn prep` again")
