"""A sweep's trials before any is made: each once, none that cannot be, the same for one seed."""

import dataclasses
from typing import Any

import pytest

from bsrnn_core import BSRNN, checkpoint
from bsrnn_core.errors import BadInput
from data_prep.config import SourceConfig
from pipelines.config import TrainConfig, tiny
from pipelines.tune_plan import TuneConfig, datasets, plan, trial_config


def config(*space: str, train: dict[str, Any] | None = None, **options: Any) -> TuneConfig:
    values = {"part": ("drums",), "source": SourceConfig(musdbhq_location="songs")}
    made = dataclasses.replace(tiny(), **{**values, **(train or {})})
    return TuneConfig(space=space, train=made, **options)


def test_a_grid_is_every_combination_in_order():
    sweep = plan(config("feature_dim=[8,16]", "band_schema=[v7,generic]", "lr=[0.001]"))
    assert sweep.points == tuple(
        {"feature_dim": n, "band_schema": schema, "lr": 0.001}
        for n in (8, 16)
        for schema in ("v7", "generic")
    )
    assert (sweep.num_trials, sweep.remarks) == (4, ())
    assert sweep.values({"point": 2}) == {"feature_dim": 16, "band_schema": "v7", "lr": 0.001}


def test_a_trial_is_the_training_with_its_values():
    asked = config("feature_dim=[8]", workers_per_trial=2)
    trial = trial_config(asked, {"feature_dim": 8, "band_schema": "generic", "lr": 0.01})
    expected = dataclasses.replace(
        asked.train,
        model=dataclasses.replace(asked.train.model, feature_dim=8, band_schema="generic"),
        optim=dataclasses.replace(asked.train.optim, lr=0.01),
        cluster=dataclasses.replace(asked.train.cluster, num_workers=2),
    )
    assert trial == expected


def test_the_same_training_is_made_once():
    sweep = plan(config("band_schema=[v7,generic]", "num_bands=[20,41]", "divisions=[24]"))
    assert sweep.points is not None
    assert [(point["band_schema"], point["num_bands"]) for point in sweep.points] == [
        ("v7", 20),
        ("generic", 20),
        ("generic", 41),
    ]
    (remark,) = sweep.remarks
    assert remark.startswith("1 combinations are the same training as another one: band_schema v7")


def test_combinations_that_cannot_be_are_left_out_and_told():
    sweep = plan(config("chunk_size_in_seconds=[2,6]", "crop_seconds=[1,3]"))
    assert sweep.points is not None
    pairs = [tuple(point.values()) for point in sweep.points]
    assert pairs == [(2.0, 1.0), (6.0, 1.0), (6.0, 3.0)]
    (remark,) = sweep.remarks
    assert remark.startswith("1 of 4 combinations cannot be trained, such as chunk_size_in_seconds")
    assert "longer than a stored chunk" in remark


@pytest.mark.parametrize(
    ("space", "said"),
    [
        (["feature_dim=[8,0]"], "feature_dim 0 cannot be: feature_dim must be positive"),
        (["band_schema=[v7,v99]"], "band_schema v99 cannot be: band_schema 'v99' is unknown"),
        (["lr=uniform(-1,1)"], "lr -1 cannot be: lr must be positive"),
        (["num_bands=[5000]", "band_schema=[generic]"], "num_bands 5000 cannot be: generic cannot"),
        (["chunk_size_in_seconds=[1,6]", "crop_seconds=[3]"], "chunk_size_in_seconds 1 cannot be"),
    ],
)
def test_a_value_that_can_never_be_is_refused(space: list[str], said: str):
    for search in ("grid", "random", "tpe"):
        if search == "grid" and "uniform" in space[0]:
            continue
        with pytest.raises(BadInput) as refused:
            plan(config(*space, search=search))
        assert said in str(refused.value)


def test_a_search_must_suit_its_space():
    with pytest.raises(BadInput, match="a grid cannot go through all of lr"):
        plan(config("lr=loguniform(1e-4,1e-2)"))
    with pytest.raises(BadInput, match="every n_fft needs shards of its own"):
        plan(config("n_fft=randint(1024,4096)", search="random"))
    with pytest.raises(BadInput, match="--shards holds one n_fft"):
        plan(config("n_fft=[1024,4096]", train={"shards": "shards"}))
    with pytest.raises(BadInput, match="the space holds 4 combinations, and 4 trials are asked"):
        plan(config("lr=[1e-3,2e-3]", "feature_dim=[8,16]", search="tpe", num_samples=4))
    with pytest.raises(BadInput, match="a grid tries every combination"):
        config("lr=[1e-3]", num_samples=3)


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"max_concurrent": 0}, "max_concurrent must be at least 1"),
        ({"workers_per_trial": 0}, "workers_per_trial must be at least 1"),
        ({"search": "tpe", "num_samples": 0}, "num_samples must be at least 1"),
        ({"grace_epochs": 0}, "grace_epochs must be at least 1"),
        ({"time_budget_minutes": 0}, "time_budget_minutes must be positive"),
        ({"reduction_factor": 1}, "reduction_factor must be above 1"),
    ],
)
def test_options_that_cannot_be_are_refused(options: dict[str, Any], said: str):
    with pytest.raises(BadInput, match=said):
        config("lr=[1e-3]", **options)


def test_random_trials_come_from_the_seed_and_more_of_them_begin_alike():
    space = ("lr=loguniform(1e-4,1e-2)", "feature_dim=[8,16,32]", "band_schema=[v7,generic]")
    five, eight = (plan(config(*space, search="random", num_samples=n)) for n in (5, 8))
    assert five.points is not None
    assert eight.points is not None
    assert eight.points[:5] == five.points
    assert len({str(point) for point in eight.points}) == 8
    other = plan(config(*space, search="random", num_samples=5, train={"seed": 7}))
    assert other.points != five.points


def test_a_random_search_of_a_small_space_tries_each_once():
    sweep = plan(config("feature_dim=[8,16]", "lr=[1e-3,2e-3]", search="random", num_samples=9))
    assert sweep.points is not None
    assert len(sweep.points) == sweep.num_trials == 4
    assert sweep.remarks == (
        "4 different trials that can be trained were found, 5 fewer than asked for",
    )


def test_tpe_finds_its_trials_on_the_way():
    sweep = plan(config("lr=loguniform(1e-4,1e-2)", "feature_dim=[8,16]", search="tpe"))
    assert (sweep.points, sweep.num_trials) == (None, 16)
    assert sweep.values({"lr": 0.005, "feature_dim": 1}) == {"lr": 0.005, "feature_dim": 16}


def test_every_dataset_is_named_once():
    asked = config("n_fft=[2048,4096]", "lr=[1e-3,2e-3]", "hop_samples=[1024,2048]")
    sweep = plan(asked)
    found = datasets(asked, sweep)
    # Half an n_fft is the longest hop, so that one of four datasets is for no trial.
    assert list(found) == [
        '{"n_fft": 2048, "hop_samples": 1024}',
        '{"n_fft": 4096, "hop_samples": 1024}',
        '{"n_fft": 4096, "hop_samples": 2048}',
    ]
    assert sweep.points is not None
    for point in sweep.points:
        assert found[sweep.dataset(point)] == trial_config(asked, point).prep


def test_trials_that_share_their_shards_have_one_dataset():
    asked = config("lr=[1e-3,2e-3]")
    assert datasets(asked, plan(asked)) == {"{}": asked.train.prep}


def test_what_a_checkpoint_does_not_fit_is_refused(tmp_path):
    train = tiny()
    base = dataclasses.replace(train.model, feature_dim=8, num_blstm_layers=1, mlp_dim=8)
    made: TrainConfig = dataclasses.replace(train, model=base, part=("drums",))
    checkpoint.save(tmp_path / "best", BSRNN(made.bsrnn), {})
    transfer = {"model": base, "checkpoint_fp": str(tmp_path / "best"), "transfer": True}
    sweep = plan(config("mlp_dim=[8,16]", "lr=[1e-3,2e-3]", train={**transfer, "part": ("bass",)}))
    assert sweep.num_trials == 4
    with pytest.raises(BadInput, match=r"feature_dim 16 cannot be: .* is of another model"):
        plan(config("feature_dim=[8,16]", train={**transfer, "part": ("bass",)}))
