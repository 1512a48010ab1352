"""A run that was killed lacks no point: what had not left is sent when it is gone on with."""

import math
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from mlflow import MlflowClient

from pipelines import tracking
from pipelines.tracking_journal import Journal, Point

POINTS = [Point("train/loss", 0.5, 1_700_000_000_000, 1), Point("valid/usdr", math.nan, 3, 2)]


def history(uri: str, run_id: str, key: str) -> list[tuple[int, float]]:
    return [(m.step, m.value) for m in MlflowClient(uri).get_metric_history(run_id, key)]


def same(one: list[Point], other: list[Point]) -> bool:
    return [str(point) for point in one] == [str(point) for point in other]


def test_points_are_read_as_they_were_written(tmp_path: Path):
    journal = Journal(tmp_path / "metrics.jsonl")
    assert list(journal.read()) == []
    journal.write(POINTS[:1])
    journal.write(POINTS[1:])
    # Before it is closed, as after a kill.
    assert same(list(Journal(journal.file).read()), POINTS)
    journal.close()
    again = Journal(journal.file)
    again.write(POINTS)
    again.close()
    assert same(list(again.read()), POINTS * 2)


@pytest.mark.parametrize("rest", ['["train/loss", 0.', "\x00\x00", "{}\n", "[1, 2]\n", "\n"])
def test_what_was_cut_off_is_passed_over(tmp_path: Path, rest: str):
    journal = Journal(tmp_path / "metrics.jsonl")
    journal.write(POINTS)
    journal.close()
    with journal.file.open("a") as file:
        file.write(rest)
    again = Journal(journal.file)
    again.write(POINTS)
    again.close()
    assert same(list(again.read()), POINTS * 2)


def test_a_disk_that_is_full_is_a_warning(caplog: pytest.LogCaptureFixture):
    journal = Journal(Path("/dev/full"))
    for _ in range(3):
        journal.write(POINTS)
    journal.close()
    assert [record.getMessage() for record in caplog.records] == [
        "/dev/full is kept no further: No space left on device"
    ]


KILLED = """
import sys, time
from pathlib import Path
from pipelines import tracking
uri, run_id, journal = sys.argv[1:]
tracker = tracking.Tracker(run_id, uri, journal=Path(journal), every_s=0.2)
for step in range(1, 6):
    tracker.log(step, {"train/loss": 1 / step})
assert tracker.flush(60)
tracker._every_s = 1000
time.sleep(0.5)
for step in range(6, 21):
    tracker.log(step, {"train/loss": 1 / step, "train/lr": 0.1})
print("logged", flush=True)
time.sleep(1000)
"""


def test_a_killed_run_lacks_no_point(uri: str, run_id: str, tmp_path: Path):
    file = tmp_path / "metrics.jsonl"
    process = subprocess.Popen(
        [sys.executable, "-c", KILLED, uri, run_id, str(file)], stdout=subprocess.PIPE, text=True
    )
    assert process.stdout is not None
    assert process.stdout.readline() == "logged\n"
    os.kill(process.pid, signal.SIGKILL)
    process.wait()
    assert [step for step, _ in history(uri, run_id, "train/loss")] == list(range(1, 6))
    # From a checkpoint of step 16.
    with tracking.Tracker(run_id, uri, journal=file) as tracker:
        for step in range(17, 26):
            tracker.log(step, {"train/loss": 1 / step, "train/lr": 0.1})
    assert history(uri, run_id, "train/loss") == [(step, 1 / step) for step in range(1, 26)]
    assert history(uri, run_id, "train/lr") == [(step, 0.1) for step in range(6, 26)]
    times = [m.timestamp for m in MlflowClient(uri).get_metric_history(run_id, "train/loss")]
    assert times == sorted(times)
    assert times[10] < 1000 * time.time()
