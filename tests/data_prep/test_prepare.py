import contextlib
import dataclasses
import errno
import os
import pickle
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pyarrow.parquet as pq
import pytest
import soundfile

from bsrnn_core.config import STEMS, StftConfig
from bsrnn_core.errors import BadInput
from data_prep import prepare as prepare_module
from data_prep.config import ChunkConfig, PrepConfig, SourceConfig
from data_prep.prepare import carry_out, plan_dataset, prepare, prepare_track
from data_prep.shard_header import read_header
from data_prep.shards import ShardDataset
from data_prep.storage import checksum
from data_prep.tracks import Track

WriteSongs = Callable[..., Path]


def config_of(root: Path, **source: Any) -> PrepConfig:
    return PrepConfig(
        source=SourceConfig(musdbhq_location=str(root), **source),
        stft=StftConfig(sample_rate=8000, n_fft=256),
        chunk=ChunkConfig(chunk_size_in_seconds=0.5),
    )


def written_at(out: Path) -> dict[str, int]:
    """When each file of a dataset was written."""
    return {
        str(path.relative_to(out)): path.stat().st_mtime_ns
        for path in out.rglob("*")
        if path.is_file()
    }


@pytest.fixture
def songs(tmp_path: Path, write_songs: WriteSongs) -> Path:
    names = {"train": ["a", "b", "c"], "valid": ["d"], "test": ["e"]}
    return write_songs(tmp_path / "songs", names)


@pytest.mark.usefixtures("ray_cluster")
class TestOnRay:
    def test_songs_become_a_dataset_and_a_second_run_does_nothing(
        self, songs: Path, tmp_path: Path
    ) -> None:
        out, told = tmp_path / "out", []
        manifest = prepare(config_of(songs), out, told.append)
        assert [(t.split, t.name) for t in manifest.tracks] == [
            ("train", "a"), ("train", "b"), ("train", "c"), ("valid", "d"), ("test", "e")
        ]  # fmt: skip
        assert {p.track for p in told} == {f"{t.split}/{t.name}" for t in manifest.tracks}
        assert [p.done for p in told] == [1, 2, 3, 4, 5]
        assert told[-1].seconds_done == 10
        dataset = ShardDataset.open(out)
        assert dataset.manifest == manifest
        assert len(dataset.rows("train")) == 15
        for track in manifest.tracks:
            assert checksum(out / track.shard) == track.sha256
        before = written_at(out)
        assert set(before) == {"manifest.json", *(track.shard for track in manifest.tracks)}
        told.clear()
        assert prepare(config_of(songs), out, told.append) == manifest
        assert told == []
        assert written_at(out) == before

    def test_only_what_changed_is_done_again(self, songs: Path, tmp_path: Path) -> None:
        out = tmp_path / "out"
        first = prepare(config_of(songs), out)
        before = written_at(out)
        soundfile.write(songs / "train" / "b" / "bass.wav", np.zeros((16000, 2)), 8000)
        os.utime(songs / "train" / "c" / "bass.wav", ns=(1, 1))  # the same bytes, another time
        (out / "valid" / "d.parquet").write_bytes(b"damaged")
        shutil.rmtree(songs / "test" / "e")
        second = prepare(config_of(songs), out)
        after = written_at(out)
        changed = {name for name in after if after[name] != before.get(name)}
        assert changed == {"manifest.json", "train/b.parquet", "valid/d.parquet"}
        assert set(before) - set(after) == {"test/e.parquet"}
        assert first.hash != second.hash
        bass = ShardDataset.open(out).track_references("train", "b")[STEMS.index("bass")]
        assert bass.abs().max() == 0
        assert plan_dataset(config_of(songs), out).jobs == ()

    def test_a_disk_that_fills_up_meanwhile_costs_what_is_being_written(
        self, songs: Path, small_disk: Callable[[int], Path]
    ) -> None:
        disk, config = small_disk(16), config_of(songs)
        out, filler = disk / "out", disk / "filler"
        plan = plan_dataset(config, out)

        def fill(_: object) -> None:
            with filler.open("ab", buffering=0) as file, contextlib.suppress(OSError):
                while True:
                    file.write(bytes(4096))

        with pytest.raises(BadInput, match=f"the disk of {out} is full: make room"):
            carry_out(plan, fill, num_tasks=1)
        before = written_at(out)
        assert 1 <= len(before) < 5
        assert all(name.endswith(".parquet") for name in before)
        filler.unlink()
        manifest = prepare(config, out)
        after = written_at(out)
        assert set(after) == {"manifest.json", *(track.shard for track in manifest.tracks)}
        assert {name: after[name] for name in before} == before

    def test_another_configuration_replaces_every_shard(self, songs: Path, tmp_path: Path) -> None:
        out, config = tmp_path / "out", config_of(songs)
        before = prepare(config, out)
        wide = dataclasses.replace(config, chunk=dataclasses.replace(config.chunk, dtype="float32"))
        after = prepare(wide, out)
        assert all(
            new.bytes > 1.5 * old.bytes
            for old, new in zip(before.tracks, after.tracks, strict=True)
        )
        ShardDataset.open(out).check(wide, STEMS)

    def test_a_lost_manifest_is_made_again_from_the_shards(
        self, songs: Path, tmp_path: Path
    ) -> None:
        out = tmp_path / "out"
        manifest = prepare(config_of(songs), out)
        before = written_at(out)
        (out / "manifest.json").unlink()
        plan = plan_dataset(config_of(songs), out)
        assert (len(plan.jobs), plan.bytes) == (5, 0)
        assert prepare(config_of(songs), out) == manifest
        del before["manifest.json"]
        assert {name: when for name, when in written_at(out).items() if name in before} == before

    def test_a_bad_track_found_on_reading_ends_the_run_cleanly(
        self, songs: Path, tmp_path: Path
    ) -> None:
        out = tmp_path / "out"
        samples = np.full((16000, 2), np.nan)
        soundfile.write(songs / "train" / "b" / "bass.wav", samples, 8000, subtype="FLOAT")
        with pytest.raises(BadInput, match=r"b/bass\.wav.*NaN.*--skip_bad_tracks"):
            prepare(config_of(songs), out)
        assert not (out / "manifest.json").exists()
        for path in out.rglob("*"):
            assert path.is_dir() or read_header(path)

    def test_skip_bad_tracks_lists_them_and_goes_on(self, songs: Path, tmp_path: Path) -> None:
        out, told = tmp_path / "out", []
        samples = np.full((16000, 2), np.inf)
        soundfile.write(songs / "train" / "b" / "bass.wav", samples, 8000, subtype="FLOAT")
        (songs / "train" / "c" / "bass.wav").unlink()
        (songs / "test" / "e" / "bass.wav").write_bytes(b"no audio")
        manifest = prepare(config_of(songs, skip_bad_tracks=True), out, told.append)
        assert [track.name for track in manifest.tracks] == ["a", "d"]
        assert sorted(manifest.left_out) == ["test/e", "train/b", "train/c"]
        assert "bass.wav" in manifest.left_out["train/b"]
        assert [p.track for p in told if p.error] == ["train/b"]
        assert ShardDataset.open(out).manifest == manifest

    @pytest.mark.proof
    def test_a_killed_run_leaves_nothing_that_looks_whole_and_the_next_completes_it(
        self, ray_cluster: str, tmp_path: Path, write_songs: WriteSongs
    ) -> None:
        names = {"train": [f"song {k:02d}" for k in range(12)]}
        songs = write_songs(tmp_path / "songs", names, num_samples=160_000)
        # Many small rows make a song take its time.
        config = dataclasses.replace(
            config_of(songs, valid_fraction=0), chunk=ChunkConfig(chunk_size_in_seconds=0.02)
        )
        out = tmp_path / "out"
        code = (
            "import pickle, sys, ray; from data_prep.prepare import prepare\n"
            "ray.init(address=sys.argv[1], log_to_driver=False)\n"
            "prepare(pickle.load(sys.stdin.buffer), sys.argv[2])\n"
        )
        command = [sys.executable, "-c", code, ray_cluster, str(out)]
        process = subprocess.Popen(command, stdin=subprocess.PIPE, start_new_session=True)
        try:
            assert process.stdin is not None
            with process.stdin as pipe:
                pipe.write(pickle.dumps(config))
            wait_for(lambda: any(out.glob("train/*.parquet")), process)
        finally:
            os.killpg(process.pid, signal.SIGKILL)
            process.wait()
        wait_for(lambda: not any(writer_lives(path) for path in out.rglob("*.tmp.*")))
        with pytest.raises(BadInput, match="not a prepared dataset"):
            ShardDataset.open(out)
        whole = {path: path.stat().st_mtime_ns for path in out.glob("train/*.parquet")}
        assert 1 <= len(whole) < 12
        for path in whole:
            assert pq.read_table(path, columns=["chunk"]).num_rows > 800
        manifest = prepare(config, out)
        assert len(manifest.tracks) == 12
        assert {path: path.stat().st_mtime_ns for path in whole} == whole
        assert list(out.rglob("*.tmp.*")) == []
        assert len({track.rows for track in manifest.tracks}) == 1
        assert len(ShardDataset.open(out).rows("train")) == sum(t.rows for t in manifest.tracks)


def wait_for(condition: Callable[[], bool], process: subprocess.Popen | None = None) -> None:
    deadline = time.monotonic() + 300
    while not condition():
        assert time.monotonic() < deadline
        assert process is None or process.poll() is None, "ended before it could be killed"
        time.sleep(0.02)


def writer_lives(temporary: Path) -> bool:
    return Path("/proc", temporary.name.rpartition(".")[2]).exists()


def test_headers_show_bad_tracks_before_anything_is_written(songs: Path, tmp_path: Path) -> None:
    (songs / "train" / "b" / "bass.wav").unlink()
    (songs / "train" / "c" / "drums.wav").unlink()
    with pytest.raises(BadInput, match=r"'bass'.*1 more cannot be used either"):
        plan_dataset(config_of(songs), tmp_path / "out")
    assert not (tmp_path / "out").exists()
    plan = plan_dataset(config_of(songs, skip_bad_tracks=True), tmp_path / "out")
    assert sorted(plan.left_out) == ["train/b", "train/c"]
    assert len(plan.jobs) == 3


def test_all_tracks_bad_is_refused_even_when_skipping(songs: Path, tmp_path: Path) -> None:
    for path in songs.rglob("bass.wav"):
        path.unlink()
    with pytest.raises(BadInput, match="none of the 5 tracks"):
        plan_dataset(config_of(songs, skip_bad_tracks=True), tmp_path / "out")


@pytest.mark.parametrize("dtype", ["float16", "float32"])
@pytest.mark.parametrize("rate", [6000, 8000])
def test_the_size_is_told_before(
    tmp_path: Path, write_songs: WriteSongs, dtype: str, rate: int
) -> None:
    root = write_songs(tmp_path / "songs", {"train": ["a"]}, num_samples=12345, sample_rate=rate)
    config = config_of(root)
    chunk = ChunkConfig(chunk_size_in_seconds=2.0, dtype=dtype)  # type: ignore[arg-type]
    config = dataclasses.replace(config, chunk=chunk)
    plan = plan_dataset(config, tmp_path / "out")
    prepared = prepare_track(plan.jobs[0].track, config, tmp_path / "out")
    assert prepared.bytes <= plan.bytes < 1.02 * prepared.bytes
    assert plan.seconds == pytest.approx(12345 / rate)


def test_a_disk_without_room_is_refused_before_anything_is_written(
    songs: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    class Usage(NamedTuple):
        free: int

    needed = plan_dataset(config_of(songs), tmp_path / "out").bytes
    monkeypatch.setattr(prepare_module.shutil, "disk_usage", lambda _: Usage(needed - 1))
    with pytest.raises(BadInput, match=r"GB free: make room"):
        prepare(config_of(songs), tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_a_full_disk_is_no_songs_fault(
    songs: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(*_: object) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(prepare_module, "write_shard", full)
    config = config_of(songs, skip_bad_tracks=True)
    row = {"index": 3, "name": "a", "split": "train", "path": str(songs / "train" / "a")}
    out, stop = tmp_path / "out", tmp_path / "stop"
    answer = prepare_module._task(row, config, out, stop)
    assert "is full: make room" in answer["full"]
    assert (answer["error"], answer["result"], answer["index"]) == ("", "", 3)

    stop.touch()
    assert prepare_module._task(row, config, out, stop) == {**answer, "full": ""}


def test_changing_lengths_touches_only_the_tracks_that_it_matters_to(
    songs: Path, tmp_path: Path
) -> None:
    out, padded = tmp_path / "out", config_of(songs, lengths="pad")
    soundfile.write(songs / "train" / "b" / "bass.wav", np.zeros((9000, 2)), 8000)
    for job in plan_dataset(padded, out).jobs:
        prepare_track(job.track, padded, out)
    trimmed = dataclasses.replace(padded, source=dataclasses.replace(padded.source, lengths="trim"))
    to_write = [job.track.name for job in plan_dataset(trimmed, out).jobs if job.bytes]
    assert to_write == ["b"]
    assert (
        prepare_track(Track("b", "train", str(songs / "train" / "b")), trimmed, out).num_samples
        == 9000
    )


def test_a_file_in_place_of_the_folder_is_refused(songs: Path, tmp_path: Path) -> None:
    (tmp_path / "out").touch()
    with pytest.raises(BadInput, match="is a file"):
        plan_dataset(config_of(songs), tmp_path / "out")


def test_foreign_files_are_left_alone(songs: Path, tmp_path: Path) -> None:
    out, config = tmp_path / "out", config_of(songs)
    (out / "train").mkdir(parents=True)
    (out / "train" / "mine.parquet").write_bytes(b"something else")
    tracks = [prepare_track(job.track, config, out) for job in plan_dataset(config, out).jobs]
    plan = plan_dataset(config, out)
    manifest = prepare_module._finish(plan, tracks, {})
    assert len(manifest.tracks) == 5
    assert (out / "train" / "mine.parquet").exists()
