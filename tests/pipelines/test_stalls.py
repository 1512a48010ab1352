"""Who is named when a training waits, and that a training says what it is at."""

import dataclasses
import threading
import time

import pytest
import torch

from pipelines.events import Events
from pipelines.stalls import At, Beat, Pulse, StallReport
from pipelines.training import Training, TrainingJob


def beat(at: At, seconds: float, step: int = 7, host: str = "a") -> Beat:
    return Beat(host=host, at=at, step=step, seconds=seconds)


def test_nobody_is_named_while_all_goes_well():
    beats = {0: (1.0, beat("step", 9)), 1: (2.0, beat("data", 10)), 2: (3.0, beat("work", 500))}
    assert StallReport(10).sentences(beats) == []


def test_who_waits_for_data_is_named_and_not_those_who_wait_for_it():
    beats = {0: (1.0, beat("step", 40)), 1: (1.0, beat("data", 42, host="b"))}
    (sentence,) = StallReport(30).sentences(beats)
    assert sentence.startswith("rank 1 on b has waited 42 s for the data of step 7")


def test_who_is_gone_is_named():
    beats = {0: (1.0, beat("step", 40)), 1: (35.0, beat("step", 2, step=6, host="b"))}
    (sentence,) = StallReport(30).sentences(beats)
    assert sentence == "rank 1 on b has not been heard of for 35 s, since step 6"


def test_who_works_is_named_when_others_wait_for_it():
    beats = {0: (1.0, beat("work", 50)), 1: (1.0, beat("others", 40)), 2: (1.0, beat("work", 9))}
    (sentence,) = StallReport(30).sentences(beats)
    assert sentence.startswith("rank 0 on a has scored songs or written a checkpoint at step 7")


@pytest.mark.parametrize("at", ["step", "others"])
def test_where_nobody_is_late_those_that_wait_are_named(at: At):
    beats = {0: (1.0, beat(at, 31)), 1: (1.0, beat("work", 5)), 2: (1.0, beat(at, 29))}
    (sentence,) = StallReport(30).sentences(beats)
    assert sentence.startswith("rank 0 on a has been in step 7, or waiting for the others")


def test_a_stall_is_told_once_and_again_after_it_was_over():
    report = StallReport(10)
    stalled, well = {0: (0.0, beat("data", 11))}, {0: (0.0, beat("data", 1))}
    told = [len(report.sentences(beats)) for beats in (stalled, stalled, well, stalled, stalled)]
    assert told == [1, 0, 0, 1, 0]


def test_a_pulse_says_what_goes_on_and_for_how_long():
    beats: list[Beat] = []
    enough = threading.Event()

    def send(beat: Beat) -> None:
        beats.append(beat)
        if len(beats) == 3:
            enough.set()

    with Pulse(send, every_s=0.05) as pulse:
        pulse.at("data", 12)
        assert enough.wait(30)
    told = len(beats)
    assert {(beat.at, beat.step) for beat in beats} == {("data", 12)}
    assert beats[0].seconds < beats[1].seconds < beats[2].seconds
    time.sleep(0.2)
    assert len(beats) == told


def test_a_training_says_what_it_is_at(tiny_job: TrainingJob):
    phases: list[tuple[At, int]] = []
    optim = dataclasses.replace(tiny_job.config.optim, max_epochs=1)
    job = dataclasses.replace(tiny_job, config=dataclasses.replace(tiny_job.config, optim=optim))
    events = Events(on_phase=lambda at, step: phases.append((at, step)))
    Training(job, device=torch.device("cpu"), events=events).run()
    steps = [("data", 0), ("step", 0), ("data", 1), ("step", 1), ("others", 2)]
    assert phases[:5] == steps
    # Its checkpoint before the songs are scored, their scores, and the one of the epoch.
    assert phases[5:] == [("work", 2)] * 3
