"""Several workers, killed and gone on with: the same bits; and a step that only one cannot make."""

import math
import os
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.distributed as dist
from torch import Tensor
from torch.multiprocessing.spawn import spawn
from torch.nn.parallel import DistributedDataParallel

from bsrnn_core import checkpoint
from pipelines import training
from pipelines.config import ClusterConfig, TrainConfig
from pipelines.training import Training, TrainingJob

CPU = torch.device("cpu")
KILLED_AT = 5
"""The step after which the training is killed: within its second epoch."""
CHECKPOINT_EVERY = 2


class Killed(Exception):
    """Ends a training where it stands."""


def make(job: TrainingJob) -> Training:
    return Training(job, device=CPU, wrap=DistributedDataParallel)


def train_until_killed(job: TrainingJob) -> None:
    made, steps = make(job), 0
    train_step = made.train_step

    def step(batch: Any) -> Any:
        nonlocal steps
        if steps == KILLED_AT:
            raise Killed
        steps += 1
        return train_step(batch)

    made.train_step = step
    with pytest.raises(Killed):
        made.run()


def poisoned(job: TrainingJob, rank: int) -> dict[str, Any]:
    """A training in which the loss of the last rank is not finite at the second step."""
    real, calls = training.separation_loss, 0

    def loss(*tensors: Any) -> Tensor:
        nonlocal calls
        calls += 1
        spoiled = calls == 2 and rank == dist.get_world_size() - 1
        return real(*tensors) + (math.inf if spoiled else 0.0)

    training.separation_loss = loss
    made = make(job)
    made.run()
    training.separation_loss = real
    progress = made.state.progress
    return {
        "counts": (progress.step, progress.skipped, progress.skipped_in_row),
        "weights": made.state.model.state_dict(),
    }


def work(rank: int, job: TrainingJob) -> None:
    """What each of the processes does."""
    os.environ["GLOO_SOCKET_IFNAME"] = "lo"
    torch.set_num_threads(1)
    workers = job.config.cluster.num_workers
    meeting = f"file://{job.folder}/meeting"
    dist.init_process_group("gloo", init_method=meeting, rank=rank, world_size=workers)
    make(replace(job, folder=job.folder / "whole")).run()
    killed = replace(job, folder=job.folder / "killed")
    train_until_killed(killed)
    dist.barrier()
    resumed = make(killed)
    assert resumed.state.progress.step == KILLED_AT - KILLED_AT % CHECKPOINT_EVERY
    resumed.run()
    notes = poisoned(replace(job, folder=job.folder / "poisoned"), rank)
    torch.save(notes, job.folder / f"rank{rank}.pt")
    dist.destroy_process_group()


@pytest.fixture(scope="module", params=[2, 3])
def folder(
    request: pytest.FixtureRequest,
    tiny_config: TrainConfig,
    tiny_shards: Path,
    tmp_path_factory: pytest.TempPathFactory,
) -> Path:
    """What so many workers left: undisturbed, killed and resumed, poisoned."""
    folder = tmp_path_factory.mktemp("resume")
    options = {"batch_size": 5, "steps_per_epoch": 4, "checkpoint_every_steps": CHECKPOINT_EVERY}
    config = replace(
        tiny_config,
        optim=replace(tiny_config.optim, **options),
        cluster=ClusterConfig(num_workers=request.param),
    )
    job = TrainingJob(config=config, folder=folder, shards=tiny_shards, metadata={})
    with pytest.MonkeyPatch.context() as patch:
        # The processes import this file by its name.
        patch.syspath_prepend(Path(__file__).parents[2])
        spawn(work, (job,), nprocs=request.param)
    return folder


def test_killed_and_resumed_workers_give_the_same_bits(folder: Path):
    for name in ("last", "best"):
        whole, resumed = (folder / run / name for run in ("whole", "killed"))
        for file in ("model.safetensors", "config.json"):
            assert (whole / file).read_bytes() == (resumed / file).read_bytes()
    states = [
        torch.load(folder / run / "last" / "training_state.pt", weights_only=True)
        for run in ("whole", "killed")
    ]
    assert states[0]["progress"]["step"] == states[1]["progress"]["step"] == 8
    for one, other in zip(*(state["workers"] for state in states), strict=True):
        assert torch.equal(one["rng"], other["rng"])


def test_all_leave_out_a_step_that_one_cannot_make(folder: Path):
    ranks = [torch.load(file) for file in sorted(folder.glob("rank*.pt"))]
    assert len(ranks) >= 2
    assert {rank["counts"] for rank in ranks} == {(8, 1, 0)}
    for rank in ranks:
        for name, weight in rank["weights"].items():
            assert weight.isfinite().all()
            assert torch.equal(weight, ranks[0]["weights"][name])
    undisturbed = checkpoint.load(folder / "whole" / "last").state_dict()
    spoiled = checkpoint.load(folder / "poisoned" / "last").state_dict()
    assert any(not torch.equal(undisturbed[name], spoiled[name]) for name in undisturbed)
