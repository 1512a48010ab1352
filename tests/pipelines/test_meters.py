"""What a worker measures: mean losses, and the most memory that it held."""

import sys

import pytest
import torch

from pipelines.meters import LossMeter, peak_memory_gb, reset_peak_memory

CPU = torch.device("cpu")


def test_losses_are_means_over_steps_and_their_sum_is_weighted():
    meter = LossMeter(("vocals", "drums"), (0.5, 3.0), CPU)
    assert meter.take(1) == {}
    meter.add(torch.tensor([1.0, 2.0]), torch.tensor(5.0))
    meter.add(torch.tensor([3.0, 6.0]), torch.tensor(7.0))
    metrics = meter.take(1)
    assert metrics.pop("train/steps_per_second") > 0
    assert metrics == {
        "train/loss": 0.5 * 2 + 3 * 4,
        "train/loss_vocals": 2,
        "train/loss_drums": 4,
        "train/grad_norm": 6,
    }
    assert meter.take(1) == {}


@pytest.mark.skipif(sys.platform != "linux", reason="only Linux tells")
def test_peak_memory_is_that_since_the_last_reset():
    reset_peak_memory(CPU)
    before = peak_memory_gb(CPU)
    # 0.4 GB, all of it written to.
    held = torch.ones(100_000_000)
    assert peak_memory_gb(CPU) - before == pytest.approx(0.4, abs=0.1)
    del held
    assert peak_memory_gb(CPU) - before > 0.3
    reset_peak_memory(CPU)
    assert peak_memory_gb(CPU) - before < 0.1
