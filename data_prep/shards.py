"""A shard: the chunks of one track as a parquet file; and reading a whole dataset of them.

A dataset is a folder with ``train/``, ``valid/`` and ``test/`` of shards, and a manifest. A shard
has one row per chunk, each in its own row group; a column ``stft_<stem>`` per stem holds the raw
bytes of an array [T, C, F, 2] (frames, channels, bins, real and imaginary part). Time comes first,
so that a crop is one run of bytes; a column per stem, so that one stem can be read alone. Plain
pyarrow and NumPy read a chunk in two lines:

    table = pyarrow.parquet.ParquetFile("SHARD.parquet").read_row_group(0, ["stft_drums"])
    stft = numpy.frombuffer(table["stft_drums"][0].as_buffer(), table.schema.metadata[b"array"])[0]

Times the column ``std`` it is the STFT at the track's level; divided by the column ``gain`` too, it
is that of the samples as they were.
"""

import math
import threading
from collections import OrderedDict
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Self

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import torch
from jaxtyping import Complex, Float
from torch import Tensor

from bsrnn_core.config import StftConfig
from bsrnn_core.errors import BadInput
from bsrnn_core.stft import istft
from data_prep.cache import fetch_shards, local_shard
from data_prep.chunks import Chunk
from data_prep.config import PrepConfig
from data_prep.manifest import Manifest, PreparedTrack, differences
from data_prep.shard_header import DTYPES, ShardHeader, damaged, open_footer
from data_prep.storage import Location, checksum, location, sizes, whole
from data_prep.tracks import Split

OPEN_SHARDS = 32
"""Shards that a thread keeps open."""
FOOTER_BYTES = 8192
COLUMN_BYTES = 128
"""A little more than a shard takes besides its arrays: once, and per column of every row."""
_ARROW_TYPES = {"float16": pa.float16(), "float32": pa.float32()}


@dataclass(frozen=True, kw_only=True, slots=True)
class ChunkRow:
    """A stored chunk without its STFTs; the fields are those of ``chunks.Chunk``."""

    shard: str
    """Path relative to the dataset's folder."""
    row_group: int
    track: str
    chunk: int
    first_sample: int
    valid_samples: int
    num_frames: int
    gain: float
    mean: complex
    std: float
    activity: tuple[float, ...]


def shard_schema(header: ShardHeader) -> pa.Schema:
    """Column names and types of a shard."""
    return pa.schema(
        [
            ("track", pa.string()),
            ("split", pa.string()),
            ("chunk", pa.int32()),
            ("first_sample", pa.int64()),
            ("valid_samples", pa.int64()),
            ("num_frames", pa.int32()),
            ("gain", pa.float64()),
            ("mean_real", pa.float64()),
            ("mean_imag", pa.float64()),
            ("std", pa.float64()),
            *((f"activity_{stem}", pa.float64()) for stem in header.stems),
            *((f"stft_{stem}", pa.large_binary()) for stem in header.stems),
        ],
        metadata=header.to_metadata(),
    )


def shard_bytes(num_rows: int, num_stems: int, shape: tuple[int, int, int, int], dtype: str) -> int:
    """Size of a shard of ``num_rows`` rows before it is written, a little too high."""
    arrays = num_stems * math.prod(shape) * DTYPES[dtype].itemsize
    columns = len(_PLAIN_FIELDS) + 4 + 2 * num_stems
    return FOOTER_BYTES + num_rows * (arrays + columns * COLUMN_BYTES)


def encode_stft(stft: Complex[Tensor, "C F T"], dtype: str) -> np.ndarray:
    """[T, C, F, 2] real numbers, contiguous, in the stored format."""
    real = torch.view_as_real(stft.permute(2, 0, 1)).to(getattr(torch, dtype)).contiguous()
    return real.numpy().astype(DTYPES[dtype], copy=False)


def decode_stft(array: np.ndarray) -> Complex[Tensor, "C F T"]:
    """complex64 from a stored array [T, C, F, 2]: the inverse of ``encode_stft``."""
    return torch.view_as_complex(torch.from_numpy(array).float()).permute(1, 2, 0)


def write_shard(path: Location, header: ShardHeader, chunks: Iterable[Chunk]) -> tuple[int, str]:
    """Write a shard atomically, row by row, holding one chunk at a time; returns its bytes and
    its checksum.

    Neither dictionary encoding nor statistics nor compression: noise-like numbers gain nothing from
    them, and each costs a multiple of the time that plain bytes take.
    """
    schema = shard_schema(header)
    plain = {"compression": "none", "use_dictionary": False, "write_statistics": False}
    with whole(path) as temporary:
        with pq.ParquetWriter(temporary, schema, **plain, write_page_checksum=True) as writer:
            for chunk in chunks:
                arrays = [encode_stft(stft, header.dtype) for stft in chunk.stft]
                assert all(array.shape == header.shape for array in arrays), header.shape
                light = (
                    header.track,
                    header.split,
                    chunk.index,
                    chunk.first_sample,
                    chunk.valid_samples,
                    chunk.num_frames,
                    chunk.gain,
                    chunk.mean.real,
                    chunk.mean.imag,
                    chunk.std,
                    *chunk.activity,
                )
                columns = [pa.array([v], t) for v, t in zip(light, schema.types, strict=False)]
                columns += [_binary_column(array) for array in arrays]
                writer.write_table(pa.Table.from_arrays(columns, schema=schema))
        return temporary.stat().st_size, checksum(temporary)


class _OpenShards(threading.local):
    """A thread's handles, the last used at the end."""

    def __init__(self) -> None:
        self.handles: OrderedDict[str, pq.ParquetFile] = OrderedDict()


class ShardDataset:
    """A prepared dataset, read in any order and from any thread; it can be pickled.

    Shards are opened when they are first needed; every thread has its own handles. Of a dataset in
    object storage the shards that are needed are copied to this machine, once for all processes.
    """

    def __init__(self, folder: Location, manifest: Manifest) -> None:
        self.folder = folder
        self.manifest = manifest
        self.manifest_hash = manifest.hash
        self.stems = manifest.stems
        self.config = manifest.config
        self.prep_config = manifest.prep_config
        self._by_shard = {track.shard: track for track in manifest.tracks}
        self._footers: dict[str, tuple[pq.FileMetaData, ShardHeader]] = {}
        self._of_thread = _OpenShards()

    @classmethod
    def open(cls, folder: str | Location) -> Self:
        """Raises BadInput when ``folder`` has no readable manifest, or a shard is missing or has
        another size than the manifest says."""
        root = location(folder)
        manifest = Manifest.read(root)
        there = sizes(root, ".parquet")
        for track in manifest.tracks:
            if there.get(track.shard) != track.bytes:
                raise BadInput(
                    f"{root / track.shard} is missing or not as it was prepared: run `bsrnn prep` "
                    "again, which replaces what is damaged"
                )
        return cls(root, manifest)

    def __reduce__(self) -> tuple[type[Self], tuple[Location, Manifest]]:
        return type(self), (self.folder, self.manifest)

    @property
    def stft_config(self) -> StftConfig:
        """The STFT that the chunks are made of."""
        return self.prep_config.stft

    def check(self, wanted: PrepConfig, stems_needed: Sequence[str]) -> None:
        """Raises BadInput, naming all that differs, unless the dataset holds ``stems_needed`` in
        the STFT, chunks and levels of ``wanted``."""
        problems = differences(self.prep_config, wanted)
        missing = [stem for stem in stems_needed if stem not in self.stems]
        if missing:
            problems.append(f"it holds {', '.join(self.stems)} and not {', '.join(missing)}")
        if problems:
            raise BadInput(
                f"the shards in {self.folder} do not fit: {'; '.join(problems)}. Change these "
                "options, or prepare another dataset"
            )

    def tracks(self, split: Split) -> list[PreparedTrack]:
        """The tracks of a split, in the manifest's order."""
        return [track for track in self.manifest.tracks if track.split == split]

    def rows(self, split: Split) -> list[ChunkRow]:
        """All chunks of a split, in the order of tracks and of time."""
        fetch_shards(self.folder, self.tracks(split))
        return [row for track in self.tracks(split) for row in self.track_rows(track)]

    def track_rows(self, track: PreparedTrack) -> list[ChunkRow]:
        """The chunks of a track, in order of time. Raises BadInput when its shard is damaged."""
        with self._damage_named(track.shard):
            file = self._file(track.shard)
            light = [n for n in file.schema_arrow.names if not n.startswith("stft_")]
            rows = file.read(columns=light, use_threads=False).to_pylist()
        return [
            ChunkRow(
                shard=track.shard,
                row_group=group,
                mean=complex(row["mean_real"], row["mean_imag"]),
                activity=tuple(row[f"activity_{stem}"] for stem in self.stems),
                **{name: row[name] for name in _PLAIN_FIELDS},
            )
            for group, row in enumerate(rows)
        ]

    def read_stem(self, row: ChunkRow, stem: str) -> np.ndarray:
        """A stem of a chunk: [T, C, F, 2] in the stored format, divided by ``row.std``.

        One column of one row group is read, and the array lies in Arrow's own memory (it may be
        written to). Raises BadInput when the shard is damaged.
        """
        with self._damage_named(row.shard):
            table = self._file(row.shard).read_row_group(
                row.row_group, [f"stft_{stem}"], use_threads=False
            )
            buffer = table.column(0)[0].as_buffer()
            header = self._footers[row.shard][1]
            size = len(buffer) // DTYPES[header.dtype].itemsize
            # Through DLPack, for NumPy's own view of an Arrow buffer is read-only.
            flat = pa.Array.from_buffers(_ARROW_TYPES[header.dtype], size, [None, buffer])
            return torch.from_dlpack(flat).numpy().reshape(header.shape)

    def track_references(self, split: Split, track: str) -> Float[Tensor, "S C N"]:
        """The stems of the song named ``track``, put together again from its chunks, at its gain.

        One stem's spectrogram is held at a time. Raises KeyError for a song that is not there.
        """
        prepared = {t.name: t for t in self.tracks(split)}[track]
        rows = self.track_rows(prepared)
        songs = []
        for stem in self.stems:
            runs = [
                decode_stft(self.read_stem(row, stem)[: row.num_frames]) * row.std for row in rows
            ]
            songs.append(istft(torch.cat(runs, -1), self.stft_config, prepared.num_samples))
        return torch.stack(songs)

    def _file(self, shard: str) -> pq.ParquetFile:
        """This thread's handle of a shard; the one unused for longest is closed for a new one."""
        handles = self._of_thread.handles
        if shard not in handles:
            path = self._local(shard)
            if shard not in self._footers:
                footer, header = open_footer(path)
                if header.config_hash != self.manifest.config_hash:
                    raise damaged(self.folder / shard)
                self._footers[shard] = footer, header
            if len(handles) >= OPEN_SHARDS:
                handles.popitem(last=False)[1].close()
            handles[shard] = pq.ParquetFile(
                path,
                metadata=self._footers[shard][0],
                memory_map=True,
                page_checksum_verification=True,
            )
        handles.move_to_end(shard)
        return handles[shard]

    def _local(self, shard: str) -> Path:
        return local_shard(self.folder, self._by_shard[shard])

    @contextmanager
    def _damage_named(self, shard: str) -> Iterator[None]:
        """Turn what a damaged shard has pyarrow raise into BadInput."""
        try:
            yield
        except (OSError, pa.ArrowException) as error:
            source = self.folder / shard
            if isinstance(source, Path):
                raise damaged(source) from error
            # It was whole when it came here.
            raise BadInput(
                f"{self._local(shard)}, this machine's copy of {source}, is damaged: remove it"
            ) from error


_PLAIN_FIELDS = ("track", "chunk", "first_sample", "valid_samples", "num_frames", "gain", "std")


def _binary_column(array: np.ndarray) -> pa.Array:
    """One binary value over an array's own memory."""
    offsets = pa.py_buffer(np.array([0, array.nbytes], np.int64))
    return pa.Array.from_buffers(pa.large_binary(), 1, [None, offsets, pa.py_buffer(array)])
