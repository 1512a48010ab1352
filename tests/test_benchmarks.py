"""The parts of the benchmarks that a wrong number would come from."""

import importlib.util
import sys
from pathlib import Path
from types import ModuleType

import pytest
import torch
from torch.utils.flop_counter import FlopCounterMode

from bsrnn_core import BSRNN
from bsrnn_core.config import STEMS, BsrnnConfig, ModelConfig, StftConfig
from data_prep.config import ChunkConfig
from pipelines.config import OptimConfig, TrainConfig

FRAMES = 5


def benchmark(name: str) -> ModuleType:
    file = Path(__file__).parents[1] / "benchmarks" / f"{name}.py"
    spec = importlib.util.spec_from_file_location(f"benchmark_{name}", file)
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module
    with pytest.MonkeyPatch.context() as patch:
        # Where a script finds its neighbours.
        patch.syspath_prepend(file.parent)
        spec.loader.exec_module(module)
    return module


def config(*, reduce_size: bool = False) -> BsrnnConfig:
    model = ModelConfig(
        feature_dim=6, num_blstm_layers=2, hidden_dim=7, mlp_dim=10, reduce_size=reduce_size
    )
    return BsrnnConfig(stft=StftConfig(n_fft=512), model=model, stems=("drums", "bass"))


@pytest.mark.parametrize("reduce_size", [False, True])
def test_loops_over_bands_compute_what_the_groups_do(reduce_size: bool) -> None:
    torch.manual_seed(0)
    model = BSRNN(config(reduce_size=reduce_size))
    mixture = torch.randn(2, 2, 257, FRAMES, dtype=torch.complex64)
    looped = benchmark("model_step").with_loops(model)
    torch.testing.assert_close(looped(mixture), model(mixture), rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("reduce_size", [False, True])
def test_flops_are_those_that_torch_counts(reduce_size: bool) -> None:
    model = BSRNN(config(reduce_size=reduce_size))
    mixture = torch.randn(3, 2, 257, FRAMES, dtype=torch.complex64)
    # Without oneDNN the LSTMs are made of matrix products that the counter sees.
    with torch.backends.mkldnn.flags(enabled=False), FlopCounterMode(display=False) as counter:
        model(mixture)
    counted = counter.get_total_flops()
    assert benchmark("model_step").forward_flops(model.config, 3, FRAMES) == counted


def test_a_real_job_is_divided_by_the_bare_loops_around_it() -> None:
    loop = benchmark("training_loop")
    assert loop.rate([100.0, 0.5, 0.25, 0.25], 3) == 3.0
    assert loop.ratios([4.0, 6.0, 2.0], [5.0, 2.0]) == [1.0, 0.5]


def test_stages_take_the_steps_that_they_are_said_to(tmp_path: Path) -> None:
    stages = benchmark("stages")
    tiny = TrainConfig(
        crop_seconds=0.2,
        stft=StftConfig(sample_rate=8000, n_fft=256),
        chunk=ChunkConfig(chunk_size_in_seconds=0.4),
        model=ModelConfig(band_schema="v1", feature_dim=4, num_blstm_layers=1, mlp_dim=8),
        optim=OptimConfig(batch_size=2),
    )
    trainings = stages.make_trainings(tiny, tmp_path, "cpu")
    stems = {name: [each.config.part for each in of_one] for name, of_one in trainings.items()}
    assert stems == {
        "base": [("vocals",)],
        "transfer": [("vocals",)],
        "mtl": [STEMS],
        "four bases": [(stem,) for stem in STEMS],
    }
    for name, of_one in trainings.items():
        models = [training.state.model for training in of_one]
        before = [{n: w.clone() for n, w in model.state_dict().items()} for model in models]
        step = stages.step_of(of_one)
        step()
        assert all(training.state.progress.step > 0 for training in of_one)
        for model, was in zip(models, before, strict=True):
            stays = [
                weight
                for weight, value in model.state_dict().items()
                if torch.equal(value, was[weight])
            ]
            trunk = [weight for weight in was if weight.startswith("trunk.")]
            assert stays == (trunk if name == "transfer" else [])


def test_the_ratios_of_stages_are_those_of_their_names() -> None:
    taken = {"base": 2.0, "transfer": 1.0, "mtl": 3.0, "four bases": 8.0}
    expected = {"transfer / base": 0.5, "mtl / base": 1.5, "mtl / four bases": 0.375}
    assert benchmark("stages").ratios(taken) == expected


def test_openunmix_trains_and_separates(monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("openunmix")
    module = benchmark("against_openunmix")
    for name, value in {"BATCH": 2, "EXCERPT_SECONDS": 0.5, "HIDDEN": 16}.items():
        monkeypatch.setattr(module, name, value)
    songs = [0.1 * torch.randn(4, 2, 60_000) for _ in range(2)]
    training = module.OpenUnmixTraining(songs, songs[:1], "bass", 0)
    magnitude = torch.cat([training.magnitude(song.sum(0)[None])[0].mean(0) for song in songs], -1)
    mean, std = training.statistics()
    torch.testing.assert_close(mean.float(), magnitude.mean(-1))
    torch.testing.assert_close(std.float(), magnitude.std(-1, correction=0), rtol=1e-3, atol=1e-5)
    before = training.model.fc1.weight.detach().clone()
    trained = training.run(minutes=0.01)
    assert trained.steps > 0
    assert not torch.equal(training.model.fc1.weight, before)
    estimate = trained.estimate(songs[0].sum(0))
    assert estimate.shape == (2, 60_000)
    assert estimate.isfinite().all()
