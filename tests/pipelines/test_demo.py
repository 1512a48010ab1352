import dataclasses

import pytest
import torch

from bsrnn_core.errors import BadInput
from pipelines import demo


@pytest.fixture
def bf16_is_fast(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> bool:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    monkeypatch.setattr(torch.cpu, "_is_avx512_bf16_supported", lambda: request.param)
    return request.param


@pytest.mark.parametrize("bf16_is_fast", [True, False], indirect=True)
def test_hardware_without_bf16_makes_half_the_steps(bf16_is_fast, tmp_path):
    trainings = demo._trainings(demo.DemoConfig(out=str(tmp_path)), tmp_path / "songs")
    optim = trainings.train.optim
    found = (optim.steps_per_epoch, optim.max_epochs, optim.warmup_steps, trainings.transfer_epochs)
    assert found == ((25, 4, 25, 2) if bf16_is_fast else (25, 2, 12, 1))


@pytest.mark.parametrize("bf16_is_fast", [True, False], indirect=True)
def test_epochs_that_are_asked_for_are_made(bf16_is_fast, tmp_path):
    config = demo.DemoConfig(out=str(tmp_path), max_epochs=1, transfer_epochs=3)
    trainings = demo._trainings(config, tmp_path / "songs")
    assert (trainings.train.optim.max_epochs, trainings.transfer_epochs) == (1, 3)


@pytest.mark.parametrize("name", ["max_epochs", "transfer_epochs"])
def test_no_epoch_is_refused(name):
    with pytest.raises(BadInput, match=f"{name} must be at least 1, not 0"):
        dataclasses.replace(demo.DemoConfig(), **{name: 0})
