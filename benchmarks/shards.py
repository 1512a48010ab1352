"""Shards -> batches in MB/s of one core, and why the STFTs are raw bytes.

    python benchmarks/shards.py --songs 8 --seconds 60

One thread reads stems of chunks in random order, then reads and decodes them, then draws remixed
batches. MB are those of the stored numbers (float16). The files lie in the page cache, so this is
the work of the processor and not of the disk. The second table writes and reads the same chunks
with the STFT as raw bytes and as a fixed-shape tensor column, both in plain pyarrow.
"""

import argparse
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import torch

from bsrnn_core.config import STEMS
from data_prep.batches import RemixedBatches
from data_prep.chunks import track_chunks
from data_prep.config import ChunkConfig, PrepConfig, RemixConfig
from data_prep.manifest import Manifest, PreparedTrack, content_config, hash_of
from data_prep.shards import (
    ChunkRow,
    ShardDataset,
    ShardHeader,
    decode_stft,
    encode_stft,
    write_shard,
)

SAMPLE_RATE = 44100
ROUNDS = 3


def make_dataset(folder: Path, songs: int, seconds: float, config: PrepConfig) -> ShardDataset:
    """A dataset of noise."""
    tracks = []
    for song in range(songs):
        generator = torch.Generator().manual_seed(song)
        references = 0.1 * torch.randn(4, 2, round(seconds * SAMPLE_RATE), generator=generator)
        header = ShardHeader(
            config_hash=hash_of(content_config(config)),
            track=f"song {song}",
            split="train",
            stems=STEMS,
            dtype=config.chunk.dtype,
            shape=(config.chunk_frames, 2, config.stft.num_bins, 2),
            num_samples=references.shape[-1],
            lengths="equal",
            inputs={},
        )
        path = folder / "train" / f"song {song}.parquet"
        write_shard(path, header, track_chunks(references, config))
        tracks.append(
            PreparedTrack(
                name=header.track,
                split="train",
                num_samples=header.num_samples,
                channels=2,
                shard=f"train/{path.name}",
                rows=pq.read_metadata(path).num_rows,
                bytes=path.stat().st_size,
                sha256="",
                inputs={},
            )
        )
    Manifest.of(config, tracks, {}).write(folder)
    return ShardDataset.open(folder)


def best_seconds(action: Callable[[], object]) -> float:
    """Shortest wall time of a few rounds."""
    times = []
    for _ in range(ROUNDS):
        started = time.perf_counter()
        action()
        times.append(time.perf_counter() - started)
    return min(times)


def show(name: str, megabytes: float, seconds: float, note: str = "") -> None:
    print(f"{name:44}{megabytes / seconds:9.0f} MB/s   {note}")


def measure_reading(dataset: ShardDataset, remix: RemixConfig, batch_size: int) -> None:
    """The first table."""
    rows = dataset.rows("train")
    random = np.random.default_rng(0)
    wanted = [(rows[i], stem) for i in random.permutation(len(rows)) for stem in STEMS]
    stem_bytes = dataset.read_stem(*wanted[0]).nbytes
    megabytes = len(wanted) * stem_bytes / 1e6

    def each(use: Callable[[np.ndarray], object]) -> Callable[[], None]:
        def action() -> None:
            for row, stem in wanted:
                use(dataset.read_stem(row, stem))

        return action

    started = time.perf_counter()
    dataset.rows("train")
    seconds = time.perf_counter() - started
    print(f"listing {len(rows)} chunks of {len(dataset.manifest.tracks)} songs: {seconds:.3f} s\n")
    show("read a stem of a chunk, at random", megabytes, best_seconds(each(lambda array: array)))
    show("read, decode to complex64", megabytes, best_seconds(each(decode_stft)))

    batches = RemixedBatches(
        dataset,
        remix,
        stems=("drums",),
        crop_frames=dataset.prep_config.chunk_frames // 2,
        batch_size=batch_size,
        steps_per_epoch=None,
        seed=0,
    )
    examples = batches.steps_per_epoch * batch_size
    epochs: Iterator[int] = iter(range(ROUNDS))

    def one_epoch() -> None:
        epoch = next(epochs)
        for step in range(batches.steps_per_epoch):
            batches.batch(epoch, step)

    seconds = best_seconds(one_epoch)
    used = examples * len(STEMS) * stem_bytes / 2 / 1e6
    show("read, decode, remix: crops of half a chunk", used, seconds, f"{examples / seconds:.0f}/s")


def measure_columns(dataset: ShardDataset, folder: Path) -> None:
    """The second table."""
    rows: list[ChunkRow] = dataset.rows("train")[:200]
    arrays = [encode_stft(decode_stft(dataset.read_stem(r, "drums")), "float16") for r in rows]
    megabytes = len(arrays) * arrays[0].nbytes / 1e6

    def as_bytes(array: np.ndarray) -> pa.Array:
        offsets = pa.py_buffer(np.array([0, array.nbytes], np.int64))
        return pa.Array.from_buffers(pa.large_binary(), 1, [None, offsets, pa.py_buffer(array)])

    def as_tensor(array: np.ndarray) -> pa.Array:
        return pa.FixedShapeTensorArray.from_numpy_ndarray(array.reshape(1, *array.shape))

    def of_bytes(column: pa.ChunkedArray) -> np.ndarray:
        return np.frombuffer(column[0].as_buffer(), np.float16).reshape(arrays[0].shape)

    def of_tensor(column: pa.ChunkedArray) -> np.ndarray:
        return column.chunk(0).to_numpy_ndarray()[0]

    for name, encode, decode in (
        ("raw bytes (large_binary)", as_bytes, of_bytes),
        ("fixed-shape tensor", as_tensor, of_tensor),
    ):
        path = folder / "column.parquet"
        schema = pa.schema([("stft", encode(arrays[0]).type)])

        def write(path: Path = path, schema: pa.Schema = schema, encode: Callable = encode) -> None:
            with pq.ParquetWriter(
                path, schema, compression="none", use_dictionary=False, write_statistics=False
            ) as writer:
                for array in arrays:
                    writer.write_table(pa.Table.from_arrays([encode(array)], schema=schema))

        def read(path: Path = path, decode: Callable = decode) -> None:
            file = pq.ParquetFile(path, memory_map=True)
            for group in range(len(arrays)):
                decode(file.read_row_group(group, use_threads=False).column(0))

        show(f"write {name}", megabytes, best_seconds(write))
        show(f"read {name}", megabytes, best_seconds(read))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--songs", type=int, default=8)
    parser.add_argument("--seconds", type=float, default=60, help="length of a song")
    parser.add_argument("--chunk_size_in_seconds", type=float, default=6)
    parser.add_argument("--batch_size", type=int, default=4)
    options = parser.parse_args()
    torch.set_num_threads(1)
    pa.set_cpu_count(1)
    chunk = ChunkConfig(chunk_size_in_seconds=options.chunk_size_in_seconds)
    with tempfile.TemporaryDirectory(prefix="shards-") as folder:
        dataset = make_dataset(
            Path(folder), options.songs, options.seconds, PrepConfig(chunk=chunk)
        )
        measure_reading(dataset, RemixConfig(), options.batch_size)
        print()
        measure_columns(dataset, Path(folder))


if __name__ == "__main__":
    main()
