import dataclasses
import json
import pickle
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pyarrow
import pyarrow.parquet
import pytest
import torch

from bsrnn_core.config import StftConfig
from bsrnn_core.errors import BadInput
from bsrnn_core.stft import stft
from data_prep import shards
from data_prep.chunks import Chunk, track_chunks
from data_prep.config import ChunkConfig, PrepConfig, SourceConfig
from data_prep.manifest import Manifest
from data_prep.prepare import prepare_track
from data_prep.shard_header import read_header
from data_prep.shards import ShardDataset, decode_stft, encode_stft, write_shard
from data_prep.tracks import find_tracks, read_references

MakeDataset = Callable[..., ShardDataset]


def home(dataset: ShardDataset) -> Path:
    """The folder of a dataset on this machine's disk."""
    assert isinstance(dataset.folder, Path)
    return dataset.folder


@pytest.fixture
def make_dataset(tmp_path: Path, write_songs: Callable[..., Path]) -> MakeDataset:
    """A dataset of three short songs, prepared without Ray."""

    def make(**chunk: object) -> ShardDataset:
        root = write_songs(tmp_path / "songs", {"train": ["a", "b"], "test": ["c"]})
        config = PrepConfig(
            source=SourceConfig(musdbhq_location=str(root), valid_fraction=0),
            stft=StftConfig(sample_rate=8000, n_fft=256),
            chunk=dataclasses.replace(ChunkConfig(chunk_size_in_seconds=0.5), **chunk),
        )
        tracks = [prepare_track(t, config, tmp_path / "out") for t in find_tracks(config.source)]
        Manifest.of(config, tracks, {}).write(tmp_path / "out")
        return ShardDataset.open(tmp_path / "out")

    return make


@pytest.mark.parametrize(("dtype", "tolerance"), [("float32", 1e-6), ("float16", 1e-3)])
def test_a_song_is_put_together_again_from_its_shard(
    make_dataset: MakeDataset, dtype: str, tolerance: float
) -> None:
    dataset = make_dataset(dtype=dtype)
    track = find_tracks(dataset.prep_config.source)[0]
    references, _ = read_references(track, dataset.stems, sample_rate=8000, lengths="refuse")
    again = dataset.track_references("train", "a")
    expected = references * dataset.rows("train")[0].gain
    assert again.shape == expected.shape == (4, 2, 16000)
    assert (again - expected).abs().max() < tolerance * expected.abs().max()
    assert (again.sum(0) - expected.sum(0)).abs().max() < 4 * tolerance * expected.abs().max()


def test_rows_say_where_every_chunk_lies_and_read_stem_gives_it(make_dataset: MakeDataset) -> None:
    dataset = make_dataset(dtype="float32")
    config, rows = dataset.prep_config, dataset.rows("train")
    assert [(r.track, r.chunk, r.row_group) for r in rows] == [
        (name, k, k) for name in "ab" for k in range(5)
    ]
    track = find_tracks(config.source)[1]
    references, _ = read_references(track, dataset.stems, sample_rate=8000, lengths="refuse")
    chunks = list(track_chunks(references, config))
    for row, chunk in zip(rows[5:], chunks, strict=True):
        for field in dataclasses.fields(Chunk):
            if field.name not in ("index", "stft"):
                assert getattr(row, field.name) == getattr(chunk, field.name), field.name
        for position, stem in enumerate(dataset.stems):
            array = dataset.read_stem(row, stem)
            assert array.shape == (config.chunk_frames, 2, 129, 2)
            assert array.dtype == np.float32
            torch.testing.assert_close(decode_stft(array), chunk.stft[position], rtol=0, atol=0)
    whole = stft(references, config.stft)
    second = decode_stft(dataset.read_stem(rows[6], "drums")) * rows[6].std / rows[6].gain
    frames = slice(config.chunk_frames, 2 * config.chunk_frames)
    torch.testing.assert_close(second, whole[1, ..., frames], rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("dtype", ["float16", "float32"])
def test_decoding_undoes_encoding(dtype: str) -> None:
    spectrogram = torch.randn(2, 5, 7, dtype=torch.complex64)
    array = encode_stft(spectrogram, dtype)
    assert array.shape == (7, 2, 5, 2)
    assert array.flags.c_contiguous
    tolerance = {"float16": 1e-3, "float32": 0}[dtype]
    torch.testing.assert_close(decode_stft(array), spectrogram, rtol=tolerance, atol=tolerance)


@pytest.mark.parametrize("dtype", ["float16", "float32"])
def test_the_two_documented_lines_read_a_chunk(make_dataset: MakeDataset, dtype: str) -> None:
    dataset = make_dataset(dtype=dtype)
    row = dataset.rows("train")[0]
    lines = [li.strip() for li in (shards.__doc__ or "").splitlines() if li.startswith("    ")]
    assert len(lines) == 2
    code = "\n".join(lines).replace("SHARD.parquet", str(home(dataset) / row.shard))
    names: dict[str, object] = {"pyarrow": pyarrow, "numpy": np}
    exec(code, names)
    np.testing.assert_array_equal(names["stft"], dataset.read_stem(row, "drums"))


def test_a_row_per_row_group_without_dictionary_statistics_or_compression(
    make_dataset: MakeDataset,
) -> None:
    dataset = make_dataset()
    footer = pyarrow.parquet.read_metadata(home(dataset) / "train" / "a.parquet")
    assert footer.num_row_groups == footer.num_rows == 5
    for group in range(footer.num_row_groups):
        for column in range(footer.num_columns):
            part = footer.row_group(group).column(column)
            assert part.compression == "UNCOMPRESSED"
            assert not part.has_dictionary_page
            assert not part.is_stats_set


def test_an_array_read_is_the_callers_own(make_dataset: MakeDataset) -> None:
    dataset = make_dataset()
    row = dataset.rows("train")[0]
    array = dataset.read_stem(row, "bass")
    before = array.copy()
    array[:] = 0
    np.testing.assert_array_equal(dataset.read_stem(row, "bass"), before)


def test_threads_and_processes_read_the_same(
    make_dataset: MakeDataset, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(shards, "OPEN_SHARDS", 1)  # every change of song closes and opens a file
    dataset = make_dataset()
    wanted = [(row, stem) for row in dataset.rows("train")[::2] for stem in dataset.stems] * 5
    expected = [dataset.read_stem(row, stem) for row, stem in wanted]
    copy = pickle.loads(pickle.dumps(dataset))
    assert copy.manifest_hash == dataset.manifest_hash
    for reader in (dataset, copy):
        with ThreadPoolExecutor(4) as pool:
            arrays = list(pool.map(lambda w, r=reader: r.read_stem(*w), wanted))
        for array, reference in zip(arrays, expected, strict=True):
            np.testing.assert_array_equal(array, reference)


def test_an_error_while_writing_leaves_nothing(make_dataset: MakeDataset, tmp_path: Path) -> None:
    dataset = make_dataset()
    header = read_header(home(dataset) / "train" / "a.parquet")
    references = torch.randn(4, 2, 8000)

    def failing() -> Iterator[Chunk]:
        yield next(track_chunks(references, dataset.prep_config))
        raise RuntimeError("in the middle")

    with pytest.raises(RuntimeError, match="in the middle"):
        write_shard(tmp_path / "new" / "x.parquet", header, failing())
    assert list((tmp_path / "new").iterdir()) == []


def test_a_folder_without_manifest_is_no_dataset(tmp_path: Path) -> None:
    with pytest.raises(BadInput, match=r"no manifest\.json.*bsrnn prep"):
        ShardDataset.open(tmp_path)


@pytest.mark.parametrize("text", ["{", "{}", '{"format_version": 1}', "[]"])
def test_a_damaged_manifest_is_refused(tmp_path: Path, text: str) -> None:
    (tmp_path / "manifest.json").write_text(text)
    with pytest.raises(BadInput, match="damaged"):
        ShardDataset.open(tmp_path)


def test_another_format_version_is_refused(make_dataset: MakeDataset) -> None:
    dataset = make_dataset()
    path = home(dataset) / "manifest.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), "format_version": 99}))
    with pytest.raises(BadInput, match="format version 99"):
        ShardDataset.open(home(dataset))


@pytest.mark.parametrize("kept_bytes", [None, 0, 1000, -1])
def test_missing_and_truncated_shards_are_refused(
    make_dataset: MakeDataset, kept_bytes: int | None
) -> None:
    dataset = make_dataset()
    path = home(dataset) / "train" / "a.parquet"
    content = path.read_bytes()
    path.unlink()
    if kept_bytes is not None:
        path.write_bytes(content[:kept_bytes])
    for attempt in (lambda: ShardDataset.open(home(dataset)), lambda: read_header(path)):
        with pytest.raises(BadInput, match=r"train/a\.parquet"):
            attempt()


def test_a_shard_of_another_preparation_is_refused(make_dataset: MakeDataset) -> None:
    dataset = make_dataset()
    stranger = dataclasses.replace(dataset.manifest, config_hash="another")
    with pytest.raises(BadInput, match=r"train/a\.parquet"):
        ShardDataset(home(dataset), stranger).rows("train")


def test_check_names_all_that_differs(make_dataset: MakeDataset) -> None:
    dataset = make_dataset()
    stored = dataset.prep_config
    dataset.check(stored, ("drums", "bass"))
    elsewhere = dataclasses.replace(
        stored, source=SourceConfig(musdbhq_location="/elsewhere", portion=0.5, lengths="pad")
    )
    dataset.check(elsewhere, ("drums",))
    other = dataclasses.replace(
        stored,
        stft=StftConfig(sample_rate=8000, n_fft=512),
        chunk=dataclasses.replace(stored.chunk, dtype="float32"),
    )
    with pytest.raises(BadInput) as caught:
        dataset.check(other, ("drums", "piano"))
    sentence = str(caught.value)
    assert "n_fft is 256 there and 512 here" in sentence
    assert "hop_samples is 64 there and 128 here" in sentence
    assert "dtype is float16 there and float32 here" in sentence
    assert "piano" in sentence
    assert "sample_rate" not in sentence


def test_the_manifest_is_read_as_it_was_written(make_dataset: MakeDataset) -> None:
    dataset = make_dataset()
    track = dataset.manifest.tracks[0]
    assert (track.name, track.split, track.shard) == ("a", "train", "train/a.parquet")
    assert (track.num_samples, track.channels, track.rows) == (16000, 2, 5)
    assert track.bytes == (home(dataset) / track.shard).stat().st_size
    again = Manifest.of(dataset.prep_config, dataset.manifest.tracks[::-1], {})
    assert again == dataset.manifest == Manifest.read(home(dataset))


def test_the_hash_names_the_content_and_not_the_place_or_time(make_dataset: MakeDataset) -> None:
    manifest = make_dataset().manifest
    first, *others = manifest.tracks
    touched = {n: dataclasses.replace(s, mtime_ns=1) for n, s in first.inputs.items()}
    changed = {n: dataclasses.replace(s, sha256="x") for n, s in first.inputs.items()}

    def with_inputs(inputs: dict) -> str:
        tracks = (dataclasses.replace(first, inputs=inputs), *others)
        return dataclasses.replace(manifest, tracks=tracks).hash

    assert with_inputs(touched) == manifest.hash
    assert with_inputs(changed) != manifest.hash
    assert dataclasses.replace(manifest, tracks=tuple(others)).hash != manifest.hash
