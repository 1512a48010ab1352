"""Shards in object storage: made, mended, read through the cache of a machine."""

import logging
import multiprocessing
import os
import re
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from types import SimpleNamespace
from typing import Any
from urllib.parse import unquote

import pytest

from bsrnn_core.config import StftConfig
from bsrnn_core.errors import BadInput
from data_prep import cache
from data_prep.cache import local_shard
from data_prep.config import ChunkConfig, PrepConfig, SourceConfig
from data_prep.manifest import MANIFEST_NAME, Manifest
from data_prep.prepare import prepare
from data_prep.shards import ShardDataset
from data_prep.storage import RemotePath
from pipelines.cli import main
from tests.remote import read, write

WriteSongs = Callable[..., Path]
pytestmark = pytest.mark.usefixtures("empty_cache")


def flip_a_bit(remote: RemotePath, position: int) -> None:
    content = bytearray(read(remote))
    content[position] ^= 1
    write(remote, bytes(content))


@pytest.fixture
def config(tmp_path: Path, write_songs: WriteSongs) -> PrepConfig:
    songs = write_songs(tmp_path / "songs", {"train": ["a", "b c#1"], "valid": ["d"], "test": []})
    return PrepConfig(
        source=SourceConfig(musdbhq_location=str(songs)),
        stft=StftConfig(sample_rate=8000, n_fft=256),
        chunk=ChunkConfig(chunk_size_in_seconds=0.5),
    )


@pytest.fixture
def shards(ray_cluster: str, config: PrepConfig, remote: RemotePath) -> RemotePath:
    prepare(config, str(remote))
    return remote


def versions(folder: RemotePath) -> dict[str, str | None]:
    return {name: (folder / name).version() for name in folder.sizes()}


@contextmanager
def counted_reads() -> Iterator[list[str]]:
    """The shards that are read meanwhile from the S3 server in this process."""
    seen: list[str] = []
    log = logging.getLogger("werkzeug")
    handler = logging.Handler()

    def note(record: logging.LogRecord) -> None:
        found = re.search(r"GET \S+/(\S+\.parquet) HTTP", record.getMessage())
        if found:
            seen.append(unquote(found[1]))

    handler.emit = note
    log.addHandler(handler)
    log.setLevel(logging.INFO)
    log.propagate = False
    try:
        yield seen
    finally:
        log.removeHandler(handler)
        log.setLevel(logging.ERROR)
        log.propagate = True


def test_shards_in_storage_are_those_on_a_disk(
    shards: RemotePath, config: PrepConfig, tmp_path: Path
):
    prepare(config, tmp_path / "local")
    there, here = ShardDataset.open(str(shards)), ShardDataset.open(tmp_path / "local")
    assert there.manifest == here.manifest
    for split in ("train", "valid"):
        assert there.rows(split) == here.rows(split)
        for row in here.rows(split):
            for stem in here.stems:
                assert (there.read_stem(row, stem) == here.read_stem(row, stem)).all()
    assert there.track_references("valid", "d").equal(here.track_references("valid", "d"))


def test_a_second_run_does_what_is_missing_and_nothing_else(shards: RemotePath, config: PrepConfig):
    before, manifest = versions(shards), Manifest.read(shards)
    assert prepare(config, str(shards)) == manifest
    assert versions(shards) == before
    # As a killed run leaves it: a shard is missing, and so is the manifest.
    (shards / MANIFEST_NAME).unlink()
    (shards / "train" / "a.parquet").unlink()
    with pytest.raises(BadInput, match="is not a prepared dataset"):
        ShardDataset.open(str(shards))
    time.sleep(1)  # or nothing could tell that an object was written anew
    assert prepare(config, str(shards)) == manifest
    after = versions(shards)
    assert after.keys() == before.keys()
    kept = {name for name in after if after[name] == before[name]}
    assert kept == {"train/b c#1.parquet", "valid/d.parquet"}


def test_shards_of_songs_that_are_gone_are_removed(shards: RemotePath, config: PrepConfig):
    shutil.rmtree(Path(str(config.source.musdbhq_location)) / "train" / "a")
    (shards / "notes.txt").touch()
    prepare(config, str(shards))
    names = {"manifest.json", "notes.txt", "train/b c#1.parquet", "valid/d.parquet"}
    assert set(shards.sizes()) == names


def test_what_is_broken_is_found_and_mended(
    shards: RemotePath, capsys: pytest.CaptureFixture[str], caplog: pytest.LogCaptureFixture
):
    before = {name: read(shards / name) for name in shards.sizes()}
    words = ["prep", "--out", str(shards)]
    assert main([*words, "--verify"]) == 0
    flip_a_bit(shards / "train" / "a.parquet", 5000)
    (shards / "valid" / "d.parquet").unlink()
    assert main([*words, "--verify"]) == 2
    assert "2 of 3 shards" in capsys.readouterr().err
    assert f"{shards}/train/a.parquet: it holds other bytes than were written" in caplog.text
    assert f"{shards}/valid/d.parquet: it is missing" in caplog.text
    assert main([*words, "--repair"]) == 0
    assert {name: read(shards / name) for name in shards.sizes()} == before


def test_a_flipped_bit_and_a_missing_shard_are_refused_by_name(
    shards: RemotePath, empty_cache: Path
):
    path = shards / "train" / "a.parquet"
    dataset = ShardDataset.open(str(shards))
    flip_a_bit(path, 5000)
    with pytest.raises(BadInput, match=r"train/a\.parquet holds other bytes than were prepared"):
        dataset.rows("train")
    assert not (empty_cache / "shards" / f"{dataset.tracks('train')[0].sha256}.parquet").exists()
    path.unlink()
    with pytest.raises(BadInput, match=r"train/a\.parquet: there is no such object"):
        dataset.rows("train")
    with pytest.raises(BadInput, match=r"train/a\.parquet is missing or not as it was prepared"):
        ShardDataset.open(str(shards))


def test_a_copy_that_spoils_later_is_told_from_its_source(shards: RemotePath):
    dataset = ShardDataset.open(str(shards))
    rows = dataset.rows("valid")
    copy = local_shard(shards, dataset.tracks("valid")[0])
    content = bytearray(copy.read_bytes())
    content[5000] ^= 1
    copy.write_bytes(content)
    with pytest.raises(BadInput, match=rf"{copy}, this machine's copy of .*valid/d\.parquet"):
        for row in rows:
            for stem in dataset.stems:
                ShardDataset.open(str(shards)).read_stem(row, stem)


def test_a_full_cache_is_one_sentence(shards: RemotePath, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(cache.shutil, "disk_usage", lambda path: SimpleNamespace(free=1000))
    with counted_reads() as reads, pytest.raises(BadInput, match=r"0\.00 GB free.*BSRNN_CACHE"):
        ShardDataset.open(str(shards)).rows("train")
    assert reads == []


def read_all(shards: str, start: Any, answers: Any) -> None:
    """What each of the processes does that share a cache."""
    dataset = ShardDataset.open(shards)
    start.wait()
    rows = [row for split in ("train", "valid") for row in dataset.rows(split)]
    answers.put(sum(float(dataset.read_stem(row, "drums").sum()) for row in rows))


def test_processes_share_a_cache_and_each_shard_is_fetched_once(
    shards: RemotePath, empty_cache: Path
):
    fresh = multiprocessing.get_context("spawn")
    start, answers = fresh.Barrier(2), fresh.Queue()
    with pytest.MonkeyPatch.context() as patch, counted_reads() as reads:
        # The processes import this file by its name.
        patch.syspath_prepend(Path(__file__).parents[2])
        workers = [
            fresh.Process(target=read_all, args=(str(shards), start, answers)) for _ in range(2)
        ]
        for worker in workers:
            worker.start()
        sums = [answers.get(timeout=120) for _ in workers]
        for worker in workers:
            worker.join()
    assert sums[0] == sums[1] != 0
    copies = sorted(path.name for path in (empty_cache / "shards").iterdir())
    manifest = Manifest.read(shards)
    assert copies == sorted(f"{track.sha256}.parquet" for track in manifest.tracks)
    assert sorted(reads) == ["a.parquet", "b c#1.parquet", "d.parquet"]
    with counted_reads() as reads:
        ShardDataset.open(str(shards)).rows("train")
    assert reads == []


def test_music_is_not_read_from_storage(capsys: pytest.CaptureFixture[str], tmp_path: Path):
    words = ["prep", "--musdbhq_location", "s3://bucket/music", "--out", str(tmp_path / "out")]
    assert main(words) == 2
    said = capsys.readouterr().err
    assert "--musdbhq_location takes a local file or folder, not s3://bucket/music" in said


@pytest.mark.proof
def test_a_killed_preparation_is_completed_by_the_next(
    ray_cluster: str, remote: RemotePath, tmp_path: Path, write_songs: WriteSongs
):
    names = {"train": [f"song {number:02d}" for number in range(12)]}
    songs = write_songs(tmp_path / "many", names, num_samples=160_000)
    config = PrepConfig(
        source=SourceConfig(musdbhq_location=str(songs), valid_fraction=0),
        stft=StftConfig(sample_rate=8000, n_fft=256),
        # Many small rows make a song take its time.
        chunk=ChunkConfig(chunk_size_in_seconds=0.02),
    )
    code = (
        "import sys, ray; from data_prep.config import *; from bsrnn_core.config import *\n"
        "from data_prep.prepare import prepare\n"
        "ray.init(address=sys.argv[1], log_to_driver=False)\n"
        f"prepare({config!r}, sys.argv[2])\n"
    )
    command = [sys.executable, "-c", code, ray_cluster, str(remote)]
    process = subprocess.Popen(command, start_new_session=True)
    try:
        deadline = time.monotonic() + 300
        while not any(name.endswith(".parquet") for name in remote.sizes()):
            assert process.poll() is None and time.monotonic() < deadline
            time.sleep(0.05)
    finally:
        os.killpg(process.pid, signal.SIGKILL)
        process.wait()
    time.sleep(5)  # for what the dead driver's tasks were at
    before = versions(remote)
    assert MANIFEST_NAME not in before
    shards = {name for name in before if name.endswith(".parquet")}
    assert 1 <= len(shards) < 12
    manifest = prepare(config, str(remote))
    after = versions(remote)
    assert len(manifest.tracks) == 12
    assert {name: after[name] for name in shards} == {name: before[name] for name in shards}
    rows = ShardDataset.open(str(remote)).rows("train")
    assert len(rows) == sum(track.rows for track in manifest.tracks)
