"""Two workers: processes joined by gloo that train as one does, unfreeze and stop together."""

import os
import weakref
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
import torch.distributed as dist
from torch.multiprocessing.spawn import spawn
from torch.nn.parallel import DistributedDataParallel

from bsrnn_core import BSRNN, checkpoint
from pipelines import training
from pipelines.config import ClusterConfig
from pipelines.events import Events
from pipelines.training import Training, TrainingJob

CPU = torch.device("cpu")


def train(job: TrainingJob, distributed: bool) -> dict[str, Any]:
    """Run a training and note what it did."""
    notes: dict[str, Any] = {"batches": [], "gradients": [], "metrics": [], "epochs": []}
    events = Events(
        on_metrics=lambda step, metrics: notes["metrics"].append((step, metrics)),
        on_epoch=notes["epochs"].append,
    )
    notes["wrapped"], notes["left_over"] = 0, 0
    wrappers: list[weakref.ref[DistributedDataParallel]] = []

    def wrap(model: Any) -> Any:
        notes["wrapped"] += 1
        notes["left_over"] += sum(wrapper() is not None for wrapper in wrappers)
        if not distributed:
            return model
        wrapper = DistributedDataParallel(model)
        wrappers.append(weakref.ref(wrapper))
        return wrapper

    made = Training(job, device=CPU, wrap=wrap, events=events)
    train_step = made.train_step

    def noting(batch: Any) -> Any:
        outcome = train_step(batch)
        notes["batches"].append(tuple(batch))
        notes["gradients"].append([p.grad for p in made.state.model.parameters()])
        return outcome

    made.train_step = noting
    made.run()
    return {**notes, "weights": made.state.model.state_dict()}


def train_until_rank_0_says_stop(job: TrainingJob) -> int:
    """The step at which a budget of two and a half steps ended, by rank 0's clock alone."""
    # Only rank 0 hears of steps: the other rank's clock stands still.
    clock = SimpleNamespace(now=0.0)
    training.time = SimpleNamespace(monotonic=lambda: clock.now)  # type: ignore[assignment]

    def minute(_: object) -> None:
        clock.now += 60

    made = Training(job, device=CPU, wrap=DistributedDataParallel, events=Events(on_step=minute))
    made.run()
    return made.state.progress.step


def work(rank: int, job: TrainingJob, transfer: TrainingJob) -> None:
    """What each of two processes does."""
    os.environ["GLOO_SOCKET_IFNAME"] = "lo"
    torch.set_num_threads(1)
    meeting = f"file://{job.folder}/meeting"
    dist.init_process_group("gloo", init_method=meeting, rank=rank, world_size=2)
    notes = train(replace(job, folder=job.folder / "whole"), distributed=True)
    budget = replace(job.config, optim=replace(job.config.optim, max_minutes=2.5))
    notes["stopped_at"] = train_until_rank_0_says_stop(
        replace(job, config=budget, folder=job.folder / "short")
    )
    notes["transfer"] = train(transfer, distributed=True)
    torch.save(notes, job.folder / f"rank{rank}.pt")
    dist.destroy_process_group()


@pytest.fixture(scope="module")
def notes(
    tiny_config, tiny_shards, tmp_path_factory
) -> tuple[dict[str, Any], list[dict[str, Any]]]:
    """What one worker and each of two note of the same training."""
    folder = tmp_path_factory.mktemp("workers")
    # Three examples: the workers' shares of a batch are unlike.
    optim = replace(tiny_config.optim, log_every_steps=1, batch_size=3)
    config = replace(tiny_config, optim=optim)
    job = TrainingJob(config=config, folder=folder / "one", shards=tiny_shards, metadata={})
    alone = train(job, distributed=False)
    trunk = BSRNN(replace(config, part=("vocals",)).bsrnn)
    checkpoint.save(folder / "trunk", trunk, {})
    unfreezing = {
        "transfer": True,
        "checkpoint_fp": str(folder / "trunk"),
        "unfreeze_after_epochs": 1,
    }
    transfer = replace(
        job, folder=folder / "one-transfer", config=replace(config, part=("drums",), **unfreezing)
    )
    alone["transfer"] = train(transfer, distributed=False)
    alone["trunk"] = trunk.trunk.state_dict()

    two = ClusterConfig(num_workers=2)
    job = replace(job, config=replace(config, cluster=two), folder=folder)
    transfer = replace(
        transfer, config=replace(transfer.config, cluster=two), folder=folder / "transfer"
    )
    with pytest.MonkeyPatch.context() as patch:
        # The processes import this file by its name.
        patch.syspath_prepend(Path(__file__).parents[2])
        spawn(work, (job, transfer), nprocs=2)
    return alone, [torch.load(folder / f"rank{rank}.pt") for rank in range(2)]


def test_one_worker_equals_two(notes):
    alone, ranks = notes
    assert len(alone["batches"]) == len(ranks[0]["batches"]) == len(ranks[1]["batches"]) == 4
    for whole, *shares in zip(alone["batches"], *(rank["batches"] for rank in ranks), strict=True):
        for part, *part_shares in zip(whole, *shares, strict=True):
            assert torch.equal(torch.cat(part_shares), part)
    for expected, *both in zip(*(n["gradients"][0] for n in (alone, *ranks)), strict=True):
        assert torch.equal(*both)
        torch.testing.assert_close(both[0], expected, rtol=1e-4, atol=1e-7)
    for name, weight in alone["weights"].items():
        assert torch.equal(ranks[0]["weights"][name], ranks[1]["weights"][name])
        torch.testing.assert_close(ranks[0]["weights"][name], weight, rtol=0, atol=1e-5)


def without_costs(metrics: dict[str, float]) -> dict[str, float]:
    """All but times and memory, which no two runs share."""
    return {
        name: value
        for name, value in metrics.items()
        if name
        not in (
            "train/steps_per_second",
            "system/minutes",
            "system/peak_memory_gb",
            "system/seconds_per_step",
        )
    }


def test_rank_0_logs_what_one_worker_does(notes):
    alone, ranks = notes
    assert ranks[1]["metrics"] == []
    assert ranks[0]["epochs"] == ranks[1]["epochs"]
    for (step, metrics), (expected_step, expected) in zip(
        ranks[0]["metrics"], alone["metrics"], strict=True
    ):
        assert step == expected_step
        assert without_costs(metrics) == pytest.approx(without_costs(expected), rel=1e-3, abs=1e-5)


def test_two_workers_unfreeze_as_one_does(notes):
    alone, *ranks = (each["transfer"] for each in (notes[0], *notes[1]))
    names = list(alone["weights"])
    # Wrapped at the start, and once more when the trunk joins: by then the first is gone, whose
    # hooks would reduce the gradients of the heads a second time.
    assert [each["wrapped"] for each in (alone, *ranks)] == [2, 2, 2]
    assert [each["left_over"] for each in ranks] == [0, 0]
    assert len(alone["gradients"]) == 4
    for step, steps in enumerate(zip(*(n["gradients"] for n in (alone, *ranks)), strict=True)):
        for name, expected, *both in zip(names, *steps, strict=True):
            if name.startswith("trunk.") and step < 2:
                assert [expected, *both] == [None, None, None]
                continue
            assert torch.equal(*both), (step, name)
            torch.testing.assert_close(both[0], expected, rtol=1e-3, atol=1e-6)
    for name in names:
        assert torch.equal(ranks[0]["weights"][name], ranks[1]["weights"][name])
        torch.testing.assert_close(
            ranks[0]["weights"][name], alone["weights"][name], rtol=0, atol=1e-5
        )
    for name, weight in notes[0]["trunk"].items():
        assert not torch.equal(ranks[0]["weights"][f"trunk.{name}"], weight), name


def test_all_ranks_stop_at_the_same_step(notes):
    assert [rank["stopped_at"] for rank in notes[1]] == [3, 3]
