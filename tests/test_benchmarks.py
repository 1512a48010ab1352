"""The parts of the benchmarks that a wrong number would come from."""

import dataclasses
import importlib.util
import itertools
import sys
from collections.abc import Callable
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
import torch
from torch.utils.flop_counter import FlopCounterMode

from bsrnn_core import BSRNN
from bsrnn_core.config import STEMS, BsrnnConfig, ModelConfig, StftConfig
from data_prep.config import ChunkConfig, SourceConfig
from data_prep.manifest import Manifest
from data_prep.prepare import prepare_track
from data_prep.tracks import Track
from pipelines.config import PRESETS, ClusterConfig, OptimConfig, TrainConfig

FRAMES = 5
BENCHMARKS = Path(__file__).parents[1] / "benchmarks"


def benchmark(name: str) -> ModuleType:
    file = BENCHMARKS / f"{name}.py"
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


def test_an_all_reduce_by_hand() -> None:
    cost = benchmark("step_cost")
    network = cost.Network(name="", bytes_per_second=100.0, hop_seconds=0.5)
    # Four workers: 2 x 3 hops of 0.5 s, and 3/2 of the bytes; a tree has 2 x 2 hops and all twice.
    assert cost.ring_seconds(200, 4, network) == 3 + 3
    assert cost.tree_seconds(200, 4, network) == 2 + 4
    assert cost.all_reduce_seconds(20, 4, network) == 2 + 0.4
    assert cost.all_reduce_seconds(2000, 4, network) == 3 + 30
    assert cost.all_reduce_seconds(200, 2, network) == 1 + 2
    assert cost.ring_seconds(200, 1, network) == 0


def test_what_a_backward_pass_does_not_hide_by_hand() -> None:
    cost = benchmark("step_cost")
    network = cost.Network(name="", bytes_per_second=1.0, hop_seconds=0.0)
    # Between two, a byte takes a second. The first is full after 10 of 40 s, and done after 20.
    assert cost.exposed_seconds([10, 30], 40, 2, network) == 30
    assert cost.exposed_seconds([20, 20], 10, 2, network) == 35
    assert cost.exposed_seconds([20, 20], 0, 2, network) == 40
    assert cost.step_seconds(3, 2, 0.5) == 3.5
    assert cost.step_seconds(3, 4, 0.5) == 4.5
    assert cost.step_seconds(3, 4, 0.5, shared=True) == 7.5


def test_computing_validating_and_saving_by_hand() -> None:
    cost = benchmark("step_cost")
    work = cost.Workload(
        flops=10.0,
        lstm_steps=4,
        gradients=(8, 12),
        bytes_per_example=30.0,
        requests_per_example=2.0,
    )
    gpu = cost.Gpu(name="", flops_per_second=50.0, utilisation=0.1, lstm_step_seconds=1.0)
    # Two seconds of products an example, and never less than four of recurrence.
    assert cost.compute_seconds(work, 3, gpu) == 3 * 6
    assert cost.compute_seconds(work, 1, gpu) == 3 * 4
    assert cost.separation_seconds(work, 8, gpu, batch=4) == 16
    assert cost.separation_seconds(work, 8, gpu, batch=1) == 32
    assert cost.checkpoint_bytes(work) == 4 * 20
    assert work.request_bytes == 15
    assert cost.validation_seconds(14, 8, 3.0) == 6
    assert cost.validation_seconds(14, 512, 3.0) == 3


def test_the_slowest_of_some_is_expected_where_drawing_finds_it() -> None:
    slowest = benchmark("step_cost").slowest
    draws = torch.randn(20_000, 64, generator=torch.Generator().manual_seed(0))
    for workers in (2, 8, 64):
        found = draws[:, :workers].amax(1).mean().item()
        assert slowest(workers, 3.0) == pytest.approx(3 * found, rel=0.06)
    assert slowest(1, 3.0) == 0


@pytest.mark.parametrize("cap", [2, 25])
def test_buckets_are_those_of_ddp(cap: int) -> None:
    cost = benchmark("step_cost")
    model = BSRNN(dataclasses.replace(PRESETS["small"](), part=("drums", "bass")).bsrnn)
    parameters = list(model.parameters())[::-1]
    assign: Any = torch.distributed._compute_bucket_assignment_by_size  # pyright: ignore
    indices, _ = assign(parameters, [cost.FIRST_BUCKET_BYTES, cap * cost.MIB])
    expected = [sum(4 * parameters[index].numel() for index in bucket) for bucket in indices]
    gradients = [4 * parameter.numel() for parameter in model.parameters()]
    assert list(cost.bucket_bytes(gradients, cap * cost.MIB)) == expected
    assert len(expected) > 1


def scaling_config(shards: Path, write_songs: Callable[..., Path]) -> TrainConfig:
    """A training of a small model, and its shards of many short songs."""
    tiny = TrainConfig(
        part=("drums",),
        crop_seconds=0.2,
        stft=StftConfig(sample_rate=8000, n_fft=256),
        chunk=ChunkConfig(chunk_size_in_seconds=0.4),
        model=ModelConfig(band_schema="v1", feature_dim=4, num_blstm_layers=1, mlp_dim=8),
        source=SourceConfig(valid_fraction=0),
        optim=OptimConfig(batch_size=2),
        cluster=ClusterConfig(device="cpu", threads_per_worker=1, max_failures=0),
    )
    names = [f"song {number:02d}" for number in range(20)]
    songs = write_songs(shards.parent / "songs", {"train": names})
    tracks = [
        prepare_track(Track(name, "train", str(songs / "train" / name)), tiny.prep, shards)
        for name in names
    ]
    Manifest.of(tiny.prep, tracks, {}).write(shards)
    return tiny


def test_reading_is_what_the_model_foretells(
    tmp_path: Path, write_songs: Callable[..., Path]
) -> None:
    tiny = scaling_config(tmp_path / "shards", write_songs)
    reading = benchmark("scaling").measure_reading(tiny, tmp_path / "shards", 20)
    foretold = benchmark("step_cost").workload(tiny).bytes_per_example
    assert reading.bytes_per_example == pytest.approx(foretold, rel=0.15)
    assert reading.seconds_per_example > 0


@pytest.mark.proof
@pytest.mark.usefixtures("ray_cluster")
def test_workers_and_bare_processes_make_the_steps_of_the_plan(
    tmp_path: Path, write_songs: Callable[..., Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    # The processes find what they run by its name.
    monkeypatch.syspath_prepend(BENCHMARKS)
    scaling = benchmark("scaling")
    tiny = scaling_config(tmp_path / "shards", write_songs)
    bench = scaling.Bench(tiny, tmp_path, scaling.Plan(window=2, windows=3))
    by_name = {contender.name: contender for contender in scaling.contenders(2)}
    turns = {name: [bench.turn(by_name[name])] for name in ("bare DDP, 2 x 2", "Ray Train, 2 x 2")}
    assert set(turns["bare DDP, 2 x 2"][0]) == {"memory", "shards", "deviation"}
    assert all(turn["shards"] > 0 for each in turns.values() for turn in each)
    assert scaling.measure_parts(bench).all_reduce > 0


def test_windows_are_the_means_of_their_steps() -> None:
    plan = benchmark("bare_processes").Plan(window=2, windows=2)
    ends = list(itertools.accumulate([9.0, 9.0, 1.0, 3.0, 5.0, 7.0]))
    assert plan.steps == len(ends)
    assert plan.of(ends) == [2.0, 6.0]


def test_efficiencies_and_predictions_by_hand() -> None:
    scaling = benchmark("scaling")
    shards = {
        "bare, 1 x 3": 4.0,
        "bare, 1 x 6": 8.0,
        "bare, 2 x 3": 5.0,
        "bare DDP, 2 x 3": 5.5,
        "Ray Train, 1 x 3": 4.2,
        "Ray Train, 1 x 6": 8.4,
        "Ray Train, 2 x 3": 6.0,
    }
    turns = {
        name: [{"shards": seconds, "memory": seconds - 1, "deviation": 0.0}]
        for name, seconds in shards.items()
    }
    found = {name: ratios[0] for name, ratios in scaling.efficiencies(turns, 3).items()}
    assert found["weak, Ray Train"] == pytest.approx(0.7)
    assert found["weak, bare"] == pytest.approx(0.8)
    assert found["weak, Ray Train / bare"] == pytest.approx(0.875)
    assert found["strong, Ray Train"] == pytest.approx(0.7)
    assert found["strong, bare"] == pytest.approx(0.8)
    assert found["speed of Ray Train / bare, 2 x 3"] == pytest.approx(5 / 6)
    assert found["speed of bare DDP / bare, 2 x 3"] == pytest.approx(10 / 11)
    parts = scaling.Parts(
        buckets=(10, 20),
        network=scaling.Network(name="", bytes_per_second=100.0, hop_seconds=0.05),
        all_reduce=0.0,
        reading=scaling.Reading(seconds_per_example=0.1, bytes_per_example=0.0),
        song=0.0,
    )
    predicted = scaling.predictions(turns, 3, parts)
    assert predicted["Ray Train, 1 x 3"] == pytest.approx(3)
    assert predicted["Ray Train, 1 x 6"] == pytest.approx(7)
    assert predicted["bare, 2 x 3"] == pytest.approx(4 + 0.3)
    # Two buckets: 0.3 s for their bytes, and two hops each.
    assert predicted["Ray Train, 2 x 3"] == pytest.approx(4 + 0.3 + 0.3 + 0.2)


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
