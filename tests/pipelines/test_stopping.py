"""A training told to stop: at once, after a checkpoint, and gone on with to the same bits."""

import dataclasses
import os
import signal
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch

from pipelines import sigterm
from pipelines.events import Events
from pipelines.stopping import Interrupted, Stop
from pipelines.training import Training, TrainingJob


@pytest.fixture(autouse=True)
def own_handler() -> Iterator[None]:
    """Whatever a test does to SIGTERM ends with it."""
    before = signal.getsignal(signal.SIGTERM)
    yield
    signal.signal(signal.SIGTERM, before)


def make(job: TrainingJob, name: str, wishes: dict[int, Stop] | None = None) -> Training:
    """Two epochs of three steps, in which the n-th look at whether to stop finds a wish."""
    looks = 0

    def wish() -> Stop:
        nonlocal looks
        looks += 1
        return (wishes or {}).get(looks, Stop.NO)

    optim = dataclasses.replace(job.config.optim, steps_per_epoch=3, log_every_steps=2)
    config = dataclasses.replace(job.config, optim=optim)
    job = dataclasses.replace(job, config=config, folder=job.folder / name)
    return Training(job, device=torch.device("cpu"), events=Events(wish=wish))


def weights(training: Training) -> list[torch.Tensor]:
    return list(training.state.model.state_dict().values())


def saved(training: Training) -> dict[str, Any]:
    return torch.load(training.last_folder / "training_state.pt", weights_only=True)


@pytest.mark.parametrize("stop", [Stop.RESTART, Stop.END])
@pytest.mark.parametrize("look", [1, 2, 5])
def test_it_gives_up_after_a_checkpoint_and_goes_on_to_the_same_bits(
    tiny_job: TrainingJob, stop: Stop, look: int
):
    whole = make(tiny_job, "whole")
    whole.run()
    stopped = make(tiny_job, "stopped", {look: stop})
    with pytest.raises(Interrupted) as raised:
        stopped.run()
    assert (raised.value.stop, raised.value.step) == (stop, look - 1)
    assert saved(stopped)["progress"]["step"] == look - 1
    resumed = make(tiny_job, "stopped")
    assert resumed.state.progress.step == look - 1
    resumed.run()
    assert all(map(torch.equal, weights(resumed), weights(whole)))


def test_a_warning_of_what_comes_costs_a_checkpoint_and_nothing_else(
    tiny_job: TrainingJob, monkeypatch: pytest.MonkeyPatch
):
    whole, warned = make(tiny_job, "whole"), make(tiny_job, "warned", {2: Stop.CHECKPOINT})
    steps: list[int] = []
    save = Training.save

    def noting(training: Training, scores: dict[str, float]) -> None:
        steps.append(training.state.progress.step)
        save(training, scores)

    monkeypatch.setattr(Training, "save", noting)
    whole.run()
    # Before the songs are scored and after, each epoch.
    assert steps == [3, 3, 6, 6]
    steps.clear()
    warned.run()
    assert steps == [1, 3, 3, 6, 6]
    assert all(map(torch.equal, weights(warned), weights(whole)))


def test_a_kill_while_songs_are_scored_costs_no_step(
    tiny_job: TrainingJob, monkeypatch: pytest.MonkeyPatch
):
    whole, killed = make(tiny_job, "whole"), make(tiny_job, "killed")
    whole.run()
    with monkeypatch.context() as patch:
        patch.setattr(Training, "validate", lambda _: 1 / 0)
        with pytest.raises(ZeroDivisionError):
            killed.run()
    resumed = make(tiny_job, "killed")
    assert (resumed.state.progress.step, resumed.state.progress.epoch) == (3, 0)
    resumed.run()
    assert all(map(torch.equal, weights(resumed), weights(whole)))
    assert resumed.state.progress.best_usdr == whole.state.progress.best_usdr


def test_sigterm_is_noted_and_not_obeyed():
    sigterm.note_sigterm()
    assert not sigterm.sigterm_noted()
    os.kill(os.getpid(), signal.SIGTERM)
    assert sigterm.sigterm_noted()
    sigterm.note_sigterm()
    assert not sigterm.sigterm_noted()


def test_sigterm_asks_and_the_second_time_interrupts():
    asked: list[bool] = []

    def ask() -> bool:
        asked.append(True)
        return True

    before = signal.getsignal(signal.SIGTERM)
    with sigterm.sigterm_asks(ask):
        os.kill(os.getpid(), signal.SIGTERM)
        assert asked == [True]
        with pytest.raises(KeyboardInterrupt):
            os.kill(os.getpid(), signal.SIGTERM)
    assert asked == [True]
    assert signal.getsignal(signal.SIGTERM) is before


def test_sigterm_interrupts_what_cannot_be_asked():
    with sigterm.sigterm_asks(lambda: False), pytest.raises(KeyboardInterrupt):
        os.kill(os.getpid(), signal.SIGTERM)


def test_in_another_thread_sigterm_stays_what_it_was():
    seen: list[object] = []

    def work() -> None:
        with sigterm.sigterm_asks(lambda: True):
            seen.append(signal.getsignal(signal.SIGTERM))

    thread = threading.Thread(target=work)
    thread.start()
    thread.join()
    assert seen == [signal.getsignal(signal.SIGTERM)]


def test_an_interruption_says_where(tmp_path: Path):
    assert str(Interrupted(Stop.END, 12)) == "stopped at step 12, after a checkpoint"
