"""The loop that one worker runs: steps, validation on whole songs, checkpoints.

It knows nothing of Ray: torch.distributed is used when it is initialised, and a callback is told
what happens. worker.py runs it in Ray Train's workers; a test or a benchmark may run it bare.
"""

import gc
import json
import math
import time
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

import torch
import torch.distributed as dist
from torch import Tensor, nn

from bsrnn_core import BSRNN, checkpoint
from bsrnn_core.losses import separation_loss
from bsrnn_core.precision import autocast
from data_prep.atomic import write_text
from data_prep.batches import Batch, RemixedBatches
from data_prep.shards import ShardDataset
from data_prep.storage import Location
from pipelines.config import VALID_MEAN, TrainConfig
from pipelines.devices import settle_buckets
from pipelines.events import Events
from pipelines.meters import LossMeter, peak_memory_gb, reset_peak_memory
from pipelines.run_files import COSTS_FILE
from pipelines.stopping import Interrupted, Stop, agree
from pipelines.training_state import TrainingState, initial_model
from pipelines.validation import score_tracks, stem_scores

T = TypeVar("T")

STOP_CHECK_STEPS_ON_GPU = 10
"""Steps between two looks at whether to stop on a GPU, where each makes the CPU wait."""


@dataclass(kw_only=True)
class TrainingJob:
    """One training: what to train on what, and where its results go."""

    config: TrainConfig
    folder: Path
    shards: Location
    metadata: dict[str, Any]
    """Saved with every checkpoint: manifest hash, git commit, MLflow run id ..."""


class Training:
    """The training of one worker; all workers run the same steps."""

    def __init__(
        self,
        job: TrainingJob,
        *,
        device: torch.device,
        wrap: Callable[[nn.Module], nn.Module] = lambda model: model,
        events: Events | None = None,
    ) -> None:
        """``wrap`` makes the model distributed (DDP), anew when more of it is trained."""
        reset_peak_memory(device)
        self.job, self.config, self.device = job, job.config, device
        self.events = events or Events()
        distributed = dist.is_available() and dist.is_initialized()
        self.rank = dist.get_rank() if distributed else 0
        self.world_size = dist.get_world_size() if distributed else 1
        self.dataset = ShardDataset.open(job.shards)
        optim, bsrnn = self.config.optim, self.config.bsrnn
        self.batches = RemixedBatches(
            self.dataset,
            self.config.remix,
            stems=bsrnn.stems,
            crop_frames=bsrnn.stft.seconds_to_frames(bsrnn.crop_seconds),
            batch_size=optim.batch_size,
            steps_per_epoch=optim.steps_per_epoch,
            seed=self.config.seed,
            rank=self.rank,
            world_size=self.world_size,
        )
        torch.manual_seed(self.config.seed)
        resumed = checkpoint.existing_folder(self.last_folder) is not None
        model = (BSRNN(bsrnn) if resumed else initial_model(self.config)).to(device)
        self.state = TrainingState(model, optim, self.batches.steps_per_epoch)
        self.meter = LossMeter(self.config.part, self.config.loss_weights, device)
        if resumed:
            self._restore()
        self.resumed_at = self.state.progress.step
        if optim.compile:
            model.trunk.compile()
            model.heads.compile()
        if self.config.transfer and not self._trunk_is_due():
            model.freeze_trunk()
        self.wrap = wrap
        self.network = self._wrapped()
        self.loss_weights = torch.tensor(self.config.loss_weights, device=device)
        self.started = time.monotonic() - self.state.progress.elapsed_seconds

    @property
    def last_folder(self) -> Path:
        """The checkpoint that a resumed training goes on from."""
        return self.job.folder / "last"

    @property
    def best_folder(self) -> Path:
        """The checkpoint with the highest validation uSDR."""
        return self.job.folder / "best"

    def run(self) -> None:
        """Train until the epochs, the time budget or the patience are used up.

        Raises Interrupted when a worker is told to stop, and FloatingPointError when the loss or
        its gradient is not finite any more.
        """
        progress = self.state.progress
        while progress.epoch < self.config.optim.max_epochs and not progress.stopped_early:
            finished = self.train_epoch()
            validates = not finished or self._validation_is_due(progress.epoch + 1)
            if validates:
                # Scoring whole songs takes long: a kill meanwhile is not to cost the steps.
                self.save({})
            if finished:
                progress.epoch += 1
            scores = self.validate() if validates else {}
            if self.rank == 0:
                self.events.on_metrics(progress.step, self._costs())
            self.save(scores)
            self.events.on_epoch({"epoch": progress.epoch, "step": progress.step, **scores})
            if not finished:
                return

    def train_epoch(self) -> bool:
        """The (remaining) steps of an epoch; False when the time budget ended before it."""
        progress, optim = self.state.progress, self.config.optim
        epoch = progress.epoch
        first_step = progress.step - epoch * self.batches.steps_per_epoch
        if self.state.model.trunk_is_frozen and self._trunk_is_due():
            self._unfreeze()
        self.network.train()
        began = time.monotonic() - progress.step_seconds
        threads = self.config.cluster.data_loader_workers
        for batch in self._arriving(self.batches.epoch(epoch, first_step, threads)):
            stop = self._agreed_stop()
            if stop is Stop.OUT_OF_TIME:
                self._log_training()
                return False
            if stop:
                self.save({})
            if stop > Stop.OUT_OF_TIME:
                raise Interrupted(stop, progress.step)
            losses, norm = self.train_step(batch.to(self.device))
            if progress.skipped_in_row:
                self._give_up_if_hopeless()
            else:
                self.meter.add(losses, norm)
            progress.step_seconds = time.monotonic() - began
            if self.rank == 0:
                self.events.on_step(self._status())
            if progress.step % optim.log_every_steps == 0:
                self._log_training()
            if self._checkpoint_is_due():
                self.save({})
        self._log_training()
        return True

    def _arriving(self, batches: Iterable[Batch]) -> Iterator[Batch]:
        """The same batches, with the wait for each told."""
        progress = self.state.progress
        last = self.batches.steps_per_epoch * (progress.epoch + 1)
        self.events.on_phase("data", progress.step)
        for batch in batches:
            self.events.on_phase("step", progress.step)
            yield batch
            self.events.on_phase("data" if progress.step < last else "others", progress.step)

    def train_step(self, batch: Batch) -> tuple[Tensor, Tensor]:
        """One step of the optimiser; returns the stems' losses [S] and the gradient's norm.

        It changes nothing where the loss of any worker, or the gradient, is not finite.
        Workers may have unlike shares of the batch: the losses are weighted so that their mean
        over workers, which DDP takes of the gradients, is that over the global batch.
        """
        with autocast(self.config.optim.precision, self.device):
            estimates = self.network(batch.mixture)
        weight = len(batch.mixture) * self.world_size / self.config.optim.batch_size
        losses = weight * separation_loss(
            batch.mixture, batch.references, estimates, self.config.bsrnn.stft
        )
        self.state.optimizer.zero_grad(set_to_none=True)
        loss = (self.loss_weights * losses).sum()
        # A loss that is not finite makes every gradient nan, and so all workers see it.
        (loss * (1 + 0 * loss.detach())).backward()
        norm = self.state.step(self.config.optim.clip_grad_norm or math.inf)
        return losses.detach(), norm

    def validate(self) -> dict[str, float]:
        """uSDR of every stem on the whole validation songs, shared out among the workers.

        Updates the best checkpoint and the early stopping, alike on all ranks.
        """
        model = self.state.scored_model.eval()
        tracks = sorted(track.name for track in self.dataset.tracks("valid"))
        self.events.on_phase("work", self.state.progress.step)
        precision = self.config.optim.precision
        mine = score_tracks(model, self.dataset, tracks[self.rank :: self.world_size], precision)
        scores = {track: of for each in self._gathered(mine) for track, of in each.items()}
        return self._judge(stem_scores(scores, model.stems))

    def _judge(self, metrics: dict[str, float]) -> dict[str, float]:
        progress, optim = self.state.progress, self.config.optim
        mean = metrics[VALID_MEAN]
        # Without validation songs there is nothing to choose by: the newest is the best.
        nothing_known = math.isnan(mean) and progress.best_usdr == -math.inf
        if nothing_known or mean > progress.best_usdr:
            progress.best_usdr = progress.best_usdr if math.isnan(mean) else mean
            progress.best_epoch = progress.epoch
            if self.rank == 0:
                checkpoint.save(self.best_folder, self.state.scored_model, self._metadata(metrics))
        elif optim.patience and progress.epoch - progress.best_epoch >= optim.patience:
            progress.stopped_early = True
        if self.rank == 0:
            self.events.on_metrics(progress.step, {**metrics, "valid/epoch": float(progress.epoch)})
        return metrics

    def save(self, scores: dict[str, float]) -> None:
        """Write the checkpoint to resume from (rank 0, with what all workers carry along).

        ``scores`` of the epoch are noted in it; beside it, what the training has cost so far.
        """
        self.state.progress.elapsed_seconds = time.monotonic() - self.started
        self.events.on_phase("work", self.state.progress.step)
        workers = self._gathered({"rng": torch.get_rng_state(), "meter": self.meter.state()})
        if self.rank == 0:
            self.state.save(self.last_folder, self._metadata(scores), workers)
            write_text(self.job.folder / COSTS_FILE, json.dumps(self._costs(), indent=2) + "\n")
            self.events.on_checkpoint()

    def _restore(self) -> None:
        """Go on from the last checkpoint, to the bit where it is of as many workers."""
        workers = self.state.restore(self.last_folder)
        if len(workers) == self.world_size:
            torch.set_rng_state(workers[self.rank]["rng"])
            self.meter.restore(workers[self.rank]["meter"])

    def _gathered(self, mine: T) -> list[T]:
        """What each worker holds."""
        if self.world_size == 1:
            return [mine]
        gathered = [mine] * self.world_size
        self.events.on_phase("others", self.state.progress.step)
        dist.all_gather_object(gathered, mine)
        self.events.on_phase("work", self.state.progress.step)
        return gathered

    def _trunk_is_due(self) -> bool:
        """Whether a transfer has come to where its trunk is trained too."""
        after = self.config.unfreeze_after_epochs
        return after is not None and self.state.progress.epoch >= after

    def _unfreeze(self) -> None:
        """Train the trunk from now on: DDP knows only what was trained when it was made."""
        self.state.optimizer.zero_grad(set_to_none=True)
        self.state.model.unfreeze_trunk()
        # The old wrapper's hooks go with it, before the new one's are made.
        self.network = self.state.model
        gc.collect()
        self.network = self._wrapped()

    def _wrapped(self) -> nn.Module:
        network = self.wrap(self.state.model)
        # Where nothing repeats itself to the bit, torch.compile is not to meet an odd shape.
        if self.world_size > 1 and self.device.type == "cpu":
            settle_buckets(network, self.config.stft, self.device)
        return network

    def _costs(self) -> dict[str, float]:
        """What the training has taken so far, on rank 0."""
        progress = self.state.progress
        trained = sum(p.numel() for p in self.state.model.parameters() if p.requires_grad)
        return {
            "system/minutes": (time.monotonic() - self.started) / 60,
            "system/peak_memory_gb": peak_memory_gb(self.device),
            "system/parameters_trained": float(trained),
            "system/seconds_per_step": progress.step_seconds / max(1, progress.step),
        }

    def _metadata(self, scores: dict[str, float]) -> dict[str, Any]:
        progress = self.state.progress
        return {
            **self.job.metadata,
            "epoch": progress.epoch,
            "step": progress.step,
            **{name: None if math.isnan(value) else value for name, value in scores.items()},
        }

    def _validation_is_due(self, epoch: int) -> bool:
        optim = self.config.optim
        return epoch % optim.valid_every_epochs == 0 or epoch >= optim.max_epochs

    def _checkpoint_is_due(self) -> bool:
        """Whether to save within an epoch, whose end has a checkpoint anyhow."""
        every, step = self.config.optim.checkpoint_every_steps, self.state.progress.step
        return every is not None and step % every == 0 and step % self.batches.steps_per_epoch != 0

    def _agreed_stop(self) -> Stop:
        """What all workers do before the next step; the time budget is spent by rank 0's clock."""
        if self.device.type == "cuda" and self.state.progress.step % STOP_CHECK_STEPS_ON_GPU:
            return Stop.NO
        wish, budget = self.events.wish(), self.config.optim.max_minutes
        if self.rank == 0 and budget and time.monotonic() - self.started >= 60 * budget:
            wish = max(wish, Stop.OUT_OF_TIME)
        return agree(wish, self.world_size, self.device)

    def _status(self) -> dict[str, float]:
        progress = self.state.progress
        return {
            "epoch": float(progress.epoch),
            "step": float(progress.step),
            "steps_per_epoch": float(self.batches.steps_per_epoch),
            "seconds": time.monotonic() - self.started,
            "best_usdr": progress.best_usdr,
            "steps_per_second": self.meter.steps_per_second,
        }

    def _log_training(self) -> None:
        progress = self.state.progress
        if progress.step == self.resumed_at:
            return  # logged before, or kept in the checkpoint
        metrics = self.meter.take(self.world_size)
        if progress.skipped:
            metrics["train/skipped_steps"] = float(progress.skipped)
        if metrics and self.rank == 0:
            metrics["train/lr"] = self.state.learning_rate
            self.events.on_metrics(progress.step, metrics)

    def _give_up_if_hopeless(self) -> None:
        """End a training of which too many steps in a row were left out, alike on all ranks."""
        progress = self.state.progress
        if progress.skipped_in_row >= self.config.optim.max_skipped_steps:
            raise FloatingPointError(
                f"the loss or its gradient was not finite in {progress.skipped_in_row} steps in a "
                f"row, up to step {progress.step}: lower --lr; the last good checkpoints stay"
            )
