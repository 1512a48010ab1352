"""The trials of a sweep while it runs: their ledger, and what Ray Tune tells about them.

The ledger is the truth about a sweep: it outlives the process, so that a sweep is gone on with
from it, whatever Ray Tune remembers.
"""

import contextlib
import json
import math
import pickle
from collections.abc import Callable, Collection, Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from types import SimpleNamespace
from typing import Any, Literal

from ray import tune
from ray.tune.schedulers import ASHAScheduler, TrialScheduler

from pipelines import base, display
from pipelines.config import VALID_MEAN
from pipelines.failures import reason

State = Literal["waiting", "running", "finished", "stopped early", "failed"]

LEDGER_FILE = "trials.json"
EPOCH, BEST, FINISHED = "epoch", "best_usdr", "finished"
"""What a trial reports beside the uSDR of an epoch: which it is, the highest uSDR so far, and at
last that it is over."""


@dataclass(kw_only=True)
class Trial:
    """What is known of one trial."""

    name: str
    """Of its run and its folder."""
    values: dict[str, Any]
    max_epochs: int
    state: State = "waiting"
    error: str = ""
    """Why it failed."""
    validations: list[tuple[int, float]] = field(default_factory=list)
    """Epoch and uSDR, rising."""

    @property
    def ended(self) -> bool:
        """Whether nothing is left to do."""
        return self.state not in ("waiting", "running")

    @property
    def epoch(self) -> int:
        """The last epoch that was validated."""
        return self.validations[-1][0] if self.validations else 0

    def add_validation(self, epoch: int, usdr: float) -> None:
        """Take a validation in. One of an epoch that is known counts where it is better, as when
        time was up within the next one; a worker that was restarted tells older ones again."""
        if not self.validations or epoch > self.epoch:
            self.validations.append((epoch, usdr))
        elif epoch == self.epoch and not usdr <= self.validations[-1][1]:
            self.validations[-1] = epoch, usdr

    @property
    def best_usdr(self) -> float:
        """The highest validation uSDR; nan before the first."""
        known = [usdr for _, usdr in self.validations if math.isfinite(usdr)]
        return max(known, default=math.nan)


class Ledger:
    """All trials of a sweep in the order of their numbers, on disk whenever one changes."""

    def __init__(self, file: Path) -> None:
        """What an earlier invocation left in ``file`` is taken up.

        What it ran waits again, and so does what failed without ever having had an MLflow run.
        """
        self.file = file
        self.trials: list[Trial] = []
        if file.exists():
            for saved in json.loads(file.read_text()):
                saved["validations"] = [tuple(pair) for pair in saved["validations"]]
                trial = Trial(**saved)
                began = (file.parent / trial.name / base.RUN_FILE).exists()
                if trial.state == "failed" and not began:
                    trial.state, trial.error = "waiting", ""
                self.trials.append(trial)
        self.halt()

    def halt(self) -> None:
        """Nothing runs any more."""
        for trial in self.trials:
            if trial.state == "running":
                trial.state = "waiting"

    def __getitem__(self, name: str) -> Trial:
        return next(trial for trial in self.trials if trial.name == name)

    def find(self, values: Mapping[str, Any], taken: Collection[str]) -> Trial | None:
        """The trial with these values that waits and is not ``taken``."""
        wanted = _key(values)
        for trial in self.trials:
            waits = trial.state == "waiting" and trial.name not in taken
            if waits and _key(trial.values) == wanted:
                return trial
        return None

    def add(self, values: Mapping[str, Any], max_epochs: int) -> Trial:
        """A new trial."""
        name = f"trial-{len(self.trials) + 1:03d}"
        self.trials.append(Trial(name=name, values=dict(values), max_epochs=max_epochs))
        self.save()
        return self.trials[-1]

    def save(self) -> None:
        """Write all to the disk."""
        text = json.dumps([asdict(trial) for trial in self.trials], indent=1)
        display.write_text(self.file, text + "\n")


def _key(values: Mapping[str, Any]) -> str:
    # As JSON gives them back: its lists were tuples.
    return json.dumps(dict(values), sort_keys=True)


class Asha(ASHAScheduler):
    """Asynchronous successive halving (Li et al., 2018) over validated epochs, as a sweep needs it.

    A trial in its last epoch is not stopped, for there is nothing to save; what earlier invocations
    of the sweep have validated counts.
    """

    def __init__(
        self, ledger: Ledger, *, max_epochs: int, grace_epochs: int, reduction_factor: float
    ) -> None:
        """``max_epochs`` is that of the longest trial."""
        super().__init__(
            time_attr=EPOCH,
            metric=VALID_MEAN,
            mode="max",
            max_t=max(max_epochs, grace_epochs),
            grace_period=grace_epochs,
            reduction_factor=reduction_factor,
        )
        self.ledger = ledger
        self.knows_earlier_trials = False

    def on_trial_add(self, tune_controller: Any, trial: Any) -> None:
        """Take a trial in, with what earlier invocations know of it and of others."""
        if not self.knows_earlier_trials:
            self.knows_earlier_trials = True
            for earlier in self.ledger.trials:
                if earlier.ended:
                    self._replay(SimpleNamespace(trial_id=earlier.name), earlier, tune_controller)
        self._replay(trial, self.ledger[str(trial)], tune_controller)

    def _replay(self, trial: Any, known: Trial, tune_controller: Any) -> None:
        super().on_trial_add(tune_controller, trial)
        for epoch, usdr in known.validations:
            super().on_trial_result(tune_controller, trial, {EPOCH: epoch, VALID_MEAN: usdr})

    def on_trial_result(self, tune_controller: Any, trial: Any, result: dict[str, Any]) -> str:
        """STOP for a trial that lags behind, CONTINUE for others."""
        if FINISHED in result:
            return TrialScheduler.CONTINUE
        decision = super().on_trial_result(tune_controller, trial, result)
        known = self.ledger[str(trial)]
        if decision != TrialScheduler.STOP:
            return decision
        if result[EPOCH] >= known.max_epochs:
            return TrialScheduler.CONTINUE
        known.state = "stopped early"
        return decision


class LedgerKeeper(tune.Callback):
    """Writes into the ledger what Ray Tune tells."""

    def __init__(self, ledger: Ledger, on_end: Callable[[Trial], None]) -> None:
        """``on_end`` is called with each trial that ends or fails."""
        self.ledger = ledger
        self.on_end = on_end

    def __reduce__(self) -> tuple[Any, ...]:
        # Ray Tune keeps a copy of all that it is given, which nobody reads.
        return tune.Callback, ()

    def on_trial_start(self, iteration: int, trials: Any, trial: Any, **info: Any) -> None:
        """It runs."""
        self.ledger[str(trial)].state = "running"
        self.ledger.save()

    def on_trial_result(
        self, iteration: int, trials: Any, trial: Any, result: dict[str, Any], **info: Any
    ) -> None:
        """An epoch was validated, or the training is over."""
        known = self.ledger[str(trial)]
        if result.get(FINISHED):
            known.state = "finished"
        else:
            known.add_validation(int(result[EPOCH]), float(result[VALID_MEAN]))
        self.ledger.save()

    def on_trial_complete(self, iteration: int, trials: Any, trial: Any, **info: Any) -> None:
        """It is over, or was stopped."""
        known = self.ledger[str(trial)]
        self.ledger.save()
        if known.ended:
            self.on_end(known)

    def on_trial_error(self, iteration: int, trials: Any, trial: Any, **info: Any) -> None:
        """It failed, for a reason that its process has left or for none that is known."""
        known = self.ledger[str(trial)]
        known.state, known.error = "failed", _last_words(trial)
        self.ledger.save()
        self.on_end(known)


def _last_words(trial: Any) -> str:
    """Why a trial failed, as far as Ray Tune's files tell."""
    pickled, printed = trial.pickled_error_file, trial.error_file
    # Whatever is in these files, the other trials go on.
    with contextlib.suppress(Exception):
        return reason(pickle.loads(Path(pickled).read_bytes()))
    with contextlib.suppress(Exception):
        return Path(printed).read_text().strip().splitlines()[-1]
    return "it died without a word"
