"""Object storage, played by moto's S3 server on the loopback interface: paths, errors, caches."""

import http.server
import itertools
import logging
import multiprocessing
import os
import re
import shutil
import signal
import socket
import subprocess
import sys
import threading
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
from data_prep import cache, storage
from data_prep.cache import local_shard
from data_prep.config import ChunkConfig, PrepConfig, SourceConfig
from data_prep.manifest import MANIFEST_NAME, Manifest
from data_prep.prepare import prepare
from data_prep.shards import ShardDataset
from data_prep.storage import RemotePath, Unavailable, cache_folder, checksum, location, whole
from pipelines.cli import main

WriteSongs = Callable[..., Path]
CHUNK = ChunkConfig(chunk_size_in_seconds=0.5)


@pytest.fixture
def remote(bucket: str) -> RemotePath:
    """A folder in a new bucket, whose name a URI could not hold as it is."""
    return remote_at(f"{bucket}/a folder#1?/100%25 ü")


@pytest.fixture(autouse=True)
def empty_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, object_store: str) -> Path:
    monkeypatch.setenv("BSRNN_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache"


def remote_at(text: str) -> RemotePath:
    found = location(text)
    assert isinstance(found, RemotePath)
    return found


def write(remote: RemotePath, content: bytes) -> None:
    with whole(remote) as file:
        file.write_bytes(content)


def read(remote: RemotePath) -> bytes:
    with remote.open() as file:
        return file.read()


def flip_a_bit(remote: RemotePath, position: int) -> None:
    content = bytearray(read(remote))
    content[position] ^= 1
    write(remote, bytes(content))


# --- paths and objects ----------------------------------------------------------------------


def test_an_object_is_used_like_a_file(remote: RemotePath, tmp_path: Path, empty_cache: Path):
    file = remote / "b c" / "x.bin"
    assert (file.name, file.parent) == ("x.bin", remote / "b c")
    assert file.size() is file.version() is None
    content = os.urandom(100_000)
    write(file, content)
    assert (file.exists(), file.size(), read(file)) == (True, 100_000, content)
    assert checksum(file) == checksum_of(content, tmp_path)
    assert remote.sizes() == {"b c/x.bin": 100_000}
    file.fetch(tmp_path / "copy")
    assert (tmp_path / "copy").read_bytes() == content
    (remote / "empty").touch()
    assert (remote / "empty").size() == 0
    file.unlink()
    file.unlink(missing_ok=True)
    assert remote.sizes() == {"empty": 0}
    assert [path for path in empty_cache.rglob("*") if path.is_file()] == []


def checksum_of(content: bytes, folder: Path) -> str:
    (folder / "content").write_bytes(content)
    return checksum(folder / "content")


def test_another_content_is_another_version(remote: RemotePath):
    """At once, though the times of objects are whole seconds and the size stays the same."""
    versions = []
    for letter in b"abc":
        write(remote / "x", bytes([letter]) * 1000)
        versions.append((remote / "x").version())
        assert (remote / "x").version() == versions[-1]
    assert len(set(versions)) == 3


def test_a_uri_is_told_from_a_path(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.chdir(tmp_path)
    assert location("runs") == tmp_path / "runs"
    assert str(location("s3://bucket//runs/")) == "s3://bucket/runs"
    assert str(location("gs://bucket")) == "gs://bucket"
    for text in ("s3://", "s3:///runs", "s3://key:secret@bucket/runs", "http://x/y", "file:///x"):
        with pytest.raises(BadInput, match=text):
            location(text)


def test_the_cache_is_where_it_is_asked_for(monkeypatch: pytest.MonkeyPatch, tmp_path: Path):
    assert cache_folder() == tmp_path / "cache"
    monkeypatch.delenv("BSRNN_CACHE")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "xdg"))
    assert cache_folder() == tmp_path / "xdg" / "bsrnn"
    monkeypatch.delenv("XDG_CACHE_HOME")
    monkeypatch.setenv("HOME", str(tmp_path))
    assert cache_folder() == tmp_path / ".cache" / "bsrnn"


# --- what goes wrong ------------------------------------------------------------------------


def test_what_is_missing_is_named(remote: RemotePath):
    with pytest.raises(BadInput, match=r"none: there is no such object"):
        (remote / "none").read_text()
    nowhere = remote_at("s3://no-such-bucket-here/x")
    for action in (nowhere.read_text, nowhere.touch, nowhere.mkdir, nowhere.open):
        with pytest.raises(Unavailable, match=r"s3://no-such-bucket-here/x.*no .*bucket"):
            action()


class Denied(http.server.BaseHTTPRequestHandler):
    """Answers as S3 does to those whom it does not know."""

    def do_GET(self) -> None:
        body = b"<Error><Code>AccessDenied</Code><Message>Access Denied</Message></Error>"
        self.send_response(403)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(body)

    do_HEAD = do_PUT = do_POST = do_GET  # noqa: N815

    def log_message(self, format: str, *args: Any) -> None:
        """Nothing."""


def test_missing_credentials_are_one_sentence(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
):
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), Denied) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        monkeypatch.setenv("AWS_ENDPOINT_URL", f"http://127.0.0.1:{server.server_port}")
        monkeypatch.setenv("HOME", str(tmp_path))
        for name in ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY"):
            monkeypatch.delenv(name)
        words = ["mtl", "--shards", "s3://private/shards", "--name", "x", "--out", str(tmp_path)]
        assert main(words) == 2
        assert main(["prep", "--out", "s3://private-too/shards", "--verify"]) == 2
        server.shutdown()
    said = capsys.readouterr().err
    assert said.count("access is denied: set credentials") == 2
    assert "s3://private/shards/manifest.json" in said
    assert "Traceback" not in said


def test_a_storage_that_is_away_is_one_sentence(monkeypatch: pytest.MonkeyPatch):
    with socket.socket() as closed:
        closed.bind(("127.0.0.1", 0))
        monkeypatch.setenv("AWS_ENDPOINT_URL", f"http://127.0.0.1:{closed.getsockname()[1]}")
        with pytest.raises(Unavailable, match=r"s3://away/x cannot be used: the storage cannot"):
            remote_at("s3://away/x").size()


def test_a_full_disk_is_one_sentence(remote: RemotePath):
    write(remote / "x", b"something")
    with pytest.raises(BadInput, match=r"x cannot be copied, for the disk of .* is full.*BSRNN_C"):
        (remote / "x").fetch(Path("/dev/full"))


@contextmanager
def cut_line(to: str, after_bytes: int) -> Iterator[str]:
    """The address of a line to a server that is cut for good after so many bytes to it."""
    host, _, port = to.removeprefix("http://").partition(":")
    sent = itertools.count()
    total, lock = [0], threading.Lock()

    def pump(source: socket.socket, sink: socket.socket, counted: bool) -> None:
        try:
            while block := source.recv(65536):
                if counted:
                    with lock:
                        total[0] += len(block)
                if total[0] > after_bytes:
                    break
                sink.sendall(block)
        except OSError:
            pass
        for end in (source, sink):
            end.close()

    with socket.create_server(("127.0.0.1", 0)) as listener:

        def serve() -> None:
            try:
                while True:
                    client, _ = listener.accept()
                    next(sent)
                    server = socket.create_connection((host, int(port)))
                    for args in ((client, server, True), (server, client, False)):
                        threading.Thread(target=pump, args=args, daemon=True).start()
            except OSError:
                return

        threading.Thread(target=serve, daemon=True).start()
        yield f"http://127.0.0.1:{listener.getsockname()[1]}"


@pytest.mark.proof
def test_an_upload_that_is_cut_short_changes_nothing(
    remote: RemotePath, object_store: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    write(remote / "x", b"before")
    (tmp_path / "new").write_bytes(os.urandom(30_000_000))
    with cut_line(object_store, 15_000_000) as address, monkeypatch.context() as patch:
        patch.setenv("AWS_ENDPOINT_URL", address)
        storage._filesystem.cache_clear()
        with pytest.raises(Unavailable, match="cannot be reached"):
            (remote / "x").send(tmp_path / "new")
    storage._filesystem.cache_clear()
    assert read(remote / "x") == b"before"
    (remote / "x").send(tmp_path / "new")
    assert (remote / "x").size() == 30_000_000


def test_an_error_while_writing_changes_nothing(remote: RemotePath, empty_cache: Path):
    write(remote / "x", b"before")
    with pytest.raises(RuntimeError), whole(remote / "x") as file:
        file.write_bytes(b"half")
        raise RuntimeError
    assert read(remote / "x") == b"before"
    assert list((empty_cache / "unsent").iterdir()) == []


# --- shards ---------------------------------------------------------------------------------


@pytest.fixture
def config(tmp_path: Path, write_songs: WriteSongs) -> PrepConfig:
    songs = write_songs(tmp_path / "songs", {"train": ["a", "b c#1"], "valid": ["d"], "test": []})
    return PrepConfig(
        source=SourceConfig(musdbhq_location=str(songs)),
        stft=StftConfig(sample_rate=8000, n_fft=256),
        chunk=CHUNK,
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
