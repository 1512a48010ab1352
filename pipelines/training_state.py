"""What a training carries from step to step, and how it is put on disk and taken up again."""

import dataclasses
import math
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.optim import Adam
from torch.optim.lr_scheduler import LambdaLR
from torch.optim.swa_utils import AveragedModel

from bsrnn_core import BSRNN, BadInput, BsrnnConfig, checkpoint
from pipelines.config import OptimConfig, TrainConfig
from pipelines.config_files import changes, leaf_values
from pipelines.remote_checkpoints import local_checkpoint

STATE_FILE = "training_state.pt"


HEAD_OPTIONS = ("mlp_dim", "reduce_size")
"""Options of the model that its trunk does not depend on."""


def differences(was: BsrnnConfig, now: BsrnnConfig) -> list[str]:
    """What makes the weights of two models unlike: "feature_dim is 32 and not 64" ..."""
    before, after = (
        {
            **leaf_values(config.stft),
            "hop_samples": config.stft.hop,
            **leaf_values(config.model),
            "hidden_dim": config.model.hidden,
        }
        for config in (was, now)
    )
    return changes(before, after, before)


def initial_model(config: TrainConfig) -> BSRNN:
    """A fresh model, or one that starts from the weights of ``config.checkpoint_fp``.

    Heads are taken over when the stems are the same, but for a transfer, which begins with fresh
    ones. Raises BadInput, naming the difference, when the checkpoint is of another STFT, band
    schema or size.
    """
    if config.checkpoint_fp is None:
        return BSRNN(config.bsrnn)
    model = checkpoint.load(local_checkpoint(config.checkpoint_fp))
    fresh_heads = config.transfer or model.stems != config.part
    wanted = config.bsrnn
    if fresh_heads:
        heads = {name: getattr(model.config.model, name) for name in HEAD_OPTIONS}
        wanted = dataclasses.replace(wanted, model=dataclasses.replace(wanted.model, **heads))
    changed = differences(model.config, wanted)
    if changed:
        raise BadInput(f"{config.checkpoint_fp} is of another model: {', '.join(changed)}")
    # The length of a crop is this training's own, and so are fresh heads.
    model.config = config.bsrnn
    return model.graft(config.part) if fresh_heads else model


def learning_rate_factor(step: int, optim: OptimConfig, steps_per_epoch: int) -> float:
    """The factor on ``optim.lr`` at a step: linear warm-up, then the schedule.

    step: the paper's, lr_decay to the power of the number of whole pairs of epochs. cosine: half a
    cosine from one to zero over max_epochs epochs.
    """
    warmup = min(1.0, (step + 1) / (optim.warmup_steps + 1))
    if optim.lr_schedule == "step":
        return warmup * optim.lr_decay ** (step // steps_per_epoch // 2)
    done = min(1.0, step / (optim.max_epochs * steps_per_epoch))
    return warmup * 0.5 * (1 + math.cos(math.pi * done))


def averaged_model(model: BSRNN, decay: float) -> AveragedModel:
    """An exponential moving average of a model's weights that forgets its first steps quickly.

    After n steps the decay is min(decay, (1 + n) / (10 + n)).
    """

    def average(averaged: Any, current: Any, count: Tensor | int) -> None:
        # As a tensor: a GPU is not waited for.
        number = torch.as_tensor(count)
        weight = 1 - ((1 + number) / (10 + number)).clamp_max(decay)
        for mean, value in zip(averaged, current, strict=True):
            mean.lerp_(value, weight.to(mean.dtype))

    return AveragedModel(model, multi_avg_fn=average)


@dataclass(kw_only=True)
class Progress:
    """Where a training stands; ``step`` counts optimiser steps over all epochs."""

    epoch: int = 0
    step: int = 0
    elapsed_seconds: float = 0.0
    step_seconds: float = 0.0
    """Of them, what the steps took: validation and checkpoints left out."""
    skipped: int = 0
    """Steps left out because their loss or gradient was not finite."""
    skipped_in_row: int = 0
    best_usdr: float = -math.inf
    best_epoch: int = -1
    stopped_early: bool = False


class TrainingState:
    """Model, optimiser, schedule, averaged weights and progress of one training."""

    def __init__(self, model: BSRNN, optim: OptimConfig, steps_per_epoch: int) -> None:
        self.model = model
        # A frozen trunk too: it may be trained later, and Adam passes over what has no gradient.
        self.optimizer = Adam(model.parameters(), lr=optim.lr, foreach=True)
        self.scheduler = LambdaLR(
            self.optimizer, lambda step: learning_rate_factor(step, optim, steps_per_epoch)
        )
        self.averaged = averaged_model(model, optim.ema_decay) if optim.ema_decay else None
        self.progress = Progress()
        self.learning_rate = 0.0
        """Of the last step."""

    @property
    def scored_model(self) -> BSRNN:
        """The model that is validated and kept: the averaged one where there is one."""
        averaged: nn.Module | None = self.averaged.module if self.averaged else None
        return averaged if isinstance(averaged, BSRNN) else self.model

    def step(self, clip_norm: float) -> Tensor:
        """A step of the optimiser; returns the gradient's norm before it was scaled down to
        ``clip_norm``.

        Where the norm is not finite the step is left out: the weights stay as they are.
        """
        norm = nn.utils.clip_grad_norm_(self.model.parameters(), clip_norm)
        # A GPU is waited for here: Adam could not take a step back.
        if norm.isfinite():
            self.optimizer.step()
            self.after_step()
            self.progress.skipped_in_row = 0
        else:
            self._count_step()
            self.progress.skipped += 1
            self.progress.skipped_in_row += 1
        return norm.detach()

    def after_step(self) -> None:
        """Let the schedule and the averaged weights follow a step of the optimiser."""
        self._count_step()
        if self.averaged:
            self.averaged.update_parameters(self.model)

    def _count_step(self) -> None:
        self.learning_rate = float(self.scheduler.get_last_lr()[0])
        self.scheduler.step()
        self.progress.step += 1

    def save(self, folder: Path, metadata: dict[str, Any], workers: list[dict[str, Any]]) -> None:
        """Write a checkpoint that a training resumes from, atomically.

        ``workers`` is what each worker carries along beside it, by rank.
        """
        state = {
            "model": self.model.state_dict(),
            "optimizer": self.optimizer.state_dict(),
            "scheduler": self.scheduler.state_dict(),
            "averaged": self.averaged.state_dict() if self.averaged else None,
            "progress": dataclasses.asdict(self.progress),
            "workers": workers,
        }

        def write(new: Path) -> None:
            checkpoint.write_model(new, self.scored_model, metadata)
            torch.save(state, new / STATE_FILE)

        checkpoint.replace_folder(folder, write)

    def restore(self, folder: Path) -> list[dict[str, Any]]:
        """Take up the state of ``folder``; returns the ``workers`` that it was saved with.

        Raises BadInput if it is damaged or of another model.
        """
        found = checkpoint.existing_folder(folder) or folder
        try:
            state = torch.load(found / STATE_FILE, weights_only=True, map_location="cpu")
        except Exception as error:
            # Damaged bytes make torch raise whatever there is, IndexError among it.
            raise BadInput(
                f"{folder}: cannot go on from this checkpoint, its {STATE_FILE} is missing or "
                "damaged; remove the folder to begin anew, or give another name"
            ) from error
        try:
            self.model.load_state_dict(state["model"])
            self.optimizer.load_state_dict(state["optimizer"])
            self.scheduler.load_state_dict(state["scheduler"])
            if self.averaged:
                self.averaged.load_state_dict(state["averaged"])
            self.progress = Progress(**state["progress"])
            return state["workers"]
        except (KeyError, TypeError, ValueError, RuntimeError) as error:
            raise BadInput(
                f"{folder}: cannot go on from this checkpoint ({error}); was it trained with "
                f"other options?"
            ) from error
