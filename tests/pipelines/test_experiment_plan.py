"""Which trainings an experiment consists of."""

import dataclasses
from typing import Any

import pytest

from bsrnn_core.errors import BadInput
from data_prep.config import SourceConfig
from pipelines.config import TrainConfig, tiny
from pipelines.experiment_plan import SCRATCH, ExperimentConfig, Step, plan

STEMS = ("vocals", "drums", "bass", "other")


def config(train: dict[str, Any] | None = None, **options: Any) -> ExperimentConfig:
    values = {"name": "exp", "source": SourceConfig(musdbhq_location="songs"), **(train or {})}
    return ExperimentConfig(train=dataclasses.replace(tiny(), **values), **options)


def names(steps: list[Step]) -> list[str]:
    return [step.name for step in steps]


def test_all_steps_of_one_schema_and_seed():
    steps = plan(config(schemas=("v7",), num_seeds=1))
    assert names(steps) == [
        "v7-base-drums-seed42",
        "v7-base-to-vocals-seed42",
        "v7-base-to-bass-seed42",
        "v7-base-to-other-seed42",
        "v7-mtl-seed42",
        *(f"v7-mtl-to-{stem}-seed42" for stem in STEMS),
        *(f"v7-scratch-{stem}-seed42" for stem in STEMS),
    ]
    by_name = {step.name: step for step in steps}
    assert by_name["v7-base-drums-seed42"].config.part == ("drums",)
    assert by_name["v7-mtl-seed42"].config.part == STEMS
    for step in steps:
        assert step.trunk == (
            "v7-base-drums-seed42" if "base-to" in step.name
            else "v7-mtl-seed42" if "mtl-to" in step.name
            else None
        )  # fmt: skip
        assert step.config.transfer == ("-to-" in step.name)
        assert step.way == (SCRATCH if "scratch" in step.name else None)


@pytest.mark.parametrize(
    ("options", "count"),
    [
        ({}, 2 * 3 * 13),
        ({"transfer_part": ("vocals", "bass", "other"), "num_seeds": 2, "control_seeds": 1}, 38),
        ({"mtl": False, "control_seeds": 0, "transfer_part": ("bass",), "num_seeds": 1}, 4),
        ({"schemas": ("v1", "v2", "joint57"), "num_seeds": 1, "control_seeds": 2}, 3 * (13 + 4)),
    ],
)
def test_number_of_steps(options: dict[str, Any], count: int):
    steps = plan(config(**options))
    assert len(steps) == len(set(names(steps))) == count


def test_a_step_comes_after_the_one_that_it_starts_from_and_shares_its_model_and_seed():
    steps = plan(config())
    before: dict[str, Step] = {}
    for step in steps:
        if step.trunk is not None:
            trunk = before[step.trunk].config
            assert (trunk.model, trunk.seed) == (step.config.model, step.config.seed)
        before[step.name] = step
    assert {step.config.seed for step in steps} == {42, 43, 44}
    assert {step.schema for step in steps} == {"v7", "generic"}


def test_controls_make_as_many_steps_as_transfers_and_stop_no_earlier():
    steps = plan(config(transfer_epochs=2))
    for step in steps:
        short = step.config.transfer or step.way == SCRATCH
        assert step.config.optim.max_epochs == (2 if short else tiny().optim.max_epochs)
        assert step.config.optim.patience == (0 if short else tiny().optim.patience)
    control = next(s.config for s in steps if s.way == SCRATCH and s.config.part == ("bass",))
    transfer = next(s.config for s in steps if s.config.transfer and s.config.part == ("bass",))
    same = {"name": "", "transfer": False}
    assert dataclasses.replace(control, **same) == dataclasses.replace(transfer, **same)


def test_only_its_own_stages_get_stem_weights_and_unfreezing():
    weights = (1.0, 2.0, 3.0, 4.0)
    for step in plan(config({"stem_weights": weights, "unfreeze_after_epochs": 3})):
        assert step.config.stem_weights == (weights if step.config.stage == "mtl" else ())
        assert step.config.unfreeze_after_epochs == (3 if step.config.transfer else None)


def test_a_custom_schema_keeps_its_splits():
    model = dataclasses.replace(tiny().model, band_schema="custom", splits=((1000.0, 100.0),))
    steps = plan(config({"model": model}, schemas=("v7", "custom"), num_seeds=1))
    assert {(s.schema, s.config.model.splits) for s in steps} == {
        ("v7", ()),
        ("custom", ((1000.0, 100.0),)),
    }


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"base_part": "piano"}, "piano is not among the stems vocals, drums, bass, other"),
        ({"transfer_part": ("piano",)}, "piano is not among the stems"),
        ({"train": {"part": ("piano",)}}, "piano is not among the stems"),
        ({"train": {"checkpoint_fp": "x"}}, "checkpoint_fp means nothing to an experiment"),
        ({"train": {"transfer": True}}, "transfer means nothing to an experiment"),
        ({"train": {"stem_weights": (1.0,)}, "mtl": False}, "stem_weights means nothing"),
        ({"train": {"source": SourceConfig()}}, "--musdbhq_location"),
        ({"train": {"seed": -1}}, "not negative"),
        ({"schemas": ("v7", "v8")}, "v8"),
        ({"schemas": ("custom",)}, "splits"),
    ],
)
def test_what_cannot_be_planned_is_refused(options: dict[str, Any], said: str):
    with pytest.raises(BadInput, match=said):
        plan(config(**options))


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"num_seeds": 0}, "num_seeds must be at least 1"),
        ({"transfer_epochs": 0}, "transfer_epochs must be at least 1"),
        ({"max_concurrent": 0}, "max_concurrent must be at least 1"),
        ({"control_seeds": -1}, "control_seeds must not be negative"),
        ({"schemas": ()}, "at least one band schema"),
        ({"schemas": ("v7", "v7")}, "schemas names one twice"),
        ({"transfer_part": ("bass", "bass")}, "transfer_part names one twice"),
    ],
)
def test_impossible_options_are_refused(options: dict[str, Any], said: str):
    with pytest.raises(BadInput, match=said):
        ExperimentConfig(train=TrainConfig(), **options)
