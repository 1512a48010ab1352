"""A dataset that is not what was prepared is found out, named, and mended."""

import json
from collections.abc import Callable
from pathlib import Path

import pyarrow.parquet as pq
import pytest

from bsrnn_core.config import StftConfig
from bsrnn_core.errors import BadInput
from data_prep.config import ChunkConfig, PrepConfig, SourceConfig
from data_prep.prepare import prepare
from data_prep.shards import ShardDataset
from data_prep.verify import broken_shards
from pipelines.cli import main

WriteSongs = Callable[..., Path]


@pytest.fixture
def dataset(ray_cluster: str, tmp_path: Path, write_songs: WriteSongs) -> ShardDataset:
    """Three songs, prepared."""
    songs = write_songs(tmp_path / "songs", {"train": ["a"], "valid": ["b"], "test": ["c"]})
    config = PrepConfig(
        source=SourceConfig(musdbhq_location=str(songs)),
        stft=StftConfig(sample_rate=8000, n_fft=256),
        chunk=ChunkConfig(chunk_size_in_seconds=0.5),
    )
    prepare(config, tmp_path / "shards")
    return ShardDataset.open(tmp_path / "shards")


def home(dataset: ShardDataset) -> Path:
    """The folder of a dataset on this machine's disk."""
    assert isinstance(dataset.folder, Path)
    return dataset.folder


def flip_a_bit(file: Path, position: int) -> None:
    content = bytearray(file.read_bytes())
    content[position] ^= 1
    file.write_bytes(content)


def contents(folder: Path) -> dict[str, tuple[int, bytes]]:
    """The shards with their times of change."""
    return {
        path.name: (path.stat().st_mtime_ns, path.read_bytes())
        for path in folder.glob("*/*.parquet")
    }


def test_a_whole_dataset_is_as_prepared(dataset: ShardDataset, caplog: pytest.LogCaptureFixture):
    seen: list[int] = []
    assert broken_shards(home(dataset), seen.append) == []
    assert sorted(seen) == sorted(track.bytes for track in dataset.manifest.tracks)
    caplog.set_level("INFO")
    assert main(["prep", "--verify", "--out", str(home(dataset))]) == 0
    assert f"all 3 shards in {home(dataset)} are as prepared" in caplog.text


def test_one_flipped_bit_a_cut_and_a_missing_shard_are_named(
    dataset: ShardDataset, capsys: pytest.CaptureFixture[str], caplog: pytest.LogCaptureFixture
):
    flip_a_bit(home(dataset) / "train" / "a.parquet", 5000)
    cut = home(dataset) / "valid" / "b.parquet"
    size = cut.stat().st_size
    cut.write_bytes(cut.read_bytes()[:-100])
    (home(dataset) / "test" / "c.parquet").unlink()
    found = [(shard.path.name, shard.why) for shard in broken_shards(home(dataset))]
    assert found == [
        ("a.parquet", "it holds other bytes than were written"),
        ("b.parquet", f"it has {size - 100} bytes and should have {size}"),
        ("c.parquet", "it is missing"),
    ]
    before = contents(home(dataset))
    assert main(["prep", "--verify", "--out", str(home(dataset))]) == 2
    said = capsys.readouterr().err
    assert "3 of 3 shards" in said
    assert "train/a.parquet (it holds other bytes than were written)" in said
    assert all(name in caplog.text for name in ("a.parquet", "b.parquet", "c.parquet"))
    assert contents(home(dataset)) == before


def test_only_what_is_broken_is_written_anew(dataset: ShardDataset):
    before = contents(home(dataset))
    flip_a_bit(home(dataset) / "train" / "a.parquet", 5000)
    (home(dataset) / "test" / "c.parquet").unlink()
    assert main(["prep", "--repair", "--out", str(home(dataset))]) == 0
    after = contents(home(dataset))
    assert {name: content for name, (_, content) in after.items()} == {
        name: content for name, (_, content) in before.items()
    }
    changed = {name for name in after if after[name][0] != before[name][0]}
    assert changed == {"a.parquet", "c.parquet"}
    assert broken_shards(home(dataset)) == []
    assert ShardDataset.open(home(dataset)).manifest == dataset.manifest


def test_nothing_is_removed_when_the_songs_are_away(
    dataset: ShardDataset, tmp_path: Path, capsys: pytest.CaptureFixture[str]
):
    (tmp_path / "songs").rename(tmp_path / "elsewhere")
    flip_a_bit(home(dataset) / "train" / "a.parquet", 5000)
    before = contents(home(dataset))
    assert main(["prep", "--repair", "--out", str(home(dataset))]) == 2
    assert str(tmp_path / "songs") in capsys.readouterr().err
    assert contents(home(dataset)) == before
    words = ["--musdbhq_location", str(tmp_path / "elsewhere")]
    assert main(["prep", "--repair", "--out", str(home(dataset)), *words]) == 0
    assert broken_shards(home(dataset)) == []


def test_a_flipped_bit_is_refused_at_the_first_read(dataset: ShardDataset):
    """Wherever in the arrays it is, without a look at the whole file."""
    path = home(dataset) / "train" / "a.parquet"
    size = path.stat().st_size
    for position in range(2000, size - 4000, size // 7):
        flip_a_bit(path, position)
        opened = ShardDataset.open(home(dataset))
        with pytest.raises(BadInput, match=r"train/a\.parquet is not a whole shard"):
            for row in opened.rows("train"):
                for stem in opened.stems:
                    opened.read_stem(row, stem)
        flip_a_bit(path, position)
    for row in ShardDataset.open(home(dataset)).rows("train"):
        dataset.read_stem(row, dataset.stems[0])


def test_a_flipped_bit_beside_the_arrays_is_refused_at_the_first_read(dataset: ShardDataset):
    """In the page of any column that is read to know a shard's rows."""
    path = home(dataset) / "train" / "a.parquet"
    group = pq.ParquetFile(path).metadata.row_group(0)
    chunks = [group.column(index) for index in range(group.num_columns)]
    light = [chunk for chunk in chunks if not chunk.path_in_schema.startswith("stft_")]
    assert len(light) > 8
    for chunk in light:
        position = chunk.data_page_offset + chunk.total_compressed_size - 1
        flip_a_bit(path, position)
        with pytest.raises(BadInput, match=r"train/a\.parquet is not a whole shard"):
            ShardDataset.open(home(dataset)).rows("train")
        flip_a_bit(path, position)
    assert ShardDataset.open(home(dataset)).rows("train") == dataset.rows("train")


@pytest.mark.parametrize("action", ["--verify", "--repair"])
def test_what_is_no_dataset_is_refused(
    action: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
):
    assert main(["prep", action, "--out", str(tmp_path)]) == 2
    assert "is not a prepared dataset" in capsys.readouterr().err
    (tmp_path / "manifest.json").write_text(json.dumps({"format_version": 99}))
    assert main(["prep", action, "--out", str(tmp_path)]) == 2
    assert "has format version 99" in capsys.readouterr().err
