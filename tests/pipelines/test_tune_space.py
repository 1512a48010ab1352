"""What may be varied: lists and distributions as they are written, and what is refused."""

import json
import re

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from bsrnn_core.errors import BadInput
from pipelines.tune_space import Axis, as_words, parse_axis, parse_space, varies_shards


@pytest.mark.parametrize(
    ("text", "values"),
    [
        ("feature_dim=[32,64,128]", (32, 64, 128)),
        ("feature_dim = [32, 64]", (32, 64)),
        ("lr=[1e-4,0.001,1]", (1e-4, 1e-3, 1.0)),
        ("band_schema=[v7,generic,joint57]", ("v7", "generic", "joint57")),
        ("hidden_dim=[null,64]", (None, 64)),
        ("reduce_size=[true,false]", (True, False)),
        ("precision=[bf16]", ("bf16",)),
        ("stem_weights=[[1,2],[2,1]]", ((1.0, 2.0), (2.0, 1.0))),
        ("splits=[[[1000,100],[8000,1000]]]", (((1000.0, 100.0), (8000.0, 1000.0)),)),
    ],
)
def test_lists_are_read_in_the_types_of_their_options(text: str, values: tuple[object, ...]):
    axis = parse_axis(text)
    assert axis.is_list
    assert axis.values == axis.extremes == values
    assert [type(value) for value in axis.values] == [type(value) for value in values]


@pytest.mark.parametrize(
    ("text", "ends", "kind"),
    [
        ("lr=loguniform(1e-4,3e-3)", (1e-4, 3e-3), float),
        ("drop_probability=uniform(0, 0.5)", (0.0, 0.5), float),
        ("num_blstm_layers=randint(2,9)", (2, 9), int),
        ("feature_dim=lograndint(16,129)", (16, 129), int),
        ("hidden_dim=randint(8,64)", (8, 64), int),
        ("crop_seconds=randint(1,4)", (1, 4), int),
    ],
)
def test_distributions_draw_between_their_ends(text: str, ends: tuple[float, float], kind: type):
    axis = parse_axis(text)
    assert not axis.is_list
    assert axis.ends == axis.extremes == ends
    chance = np.random.RandomState(0)
    drawn = [axis.value(axis.domain.sample(random_state=chance)) for _ in range(300)]
    assert {type(value) for value in drawn} == {kind}
    assert min(drawn) >= ends[0]
    # Of whole numbers the upper end is not drawn, as in Ray Tune.
    assert max(drawn) < ends[1]
    if kind is int and ends[1] - ends[0] < 10:
        assert set(drawn) == set(range(int(ends[0]), int(ends[1])))
    if text.startswith("lr"):
        assert 0.3 < sum(value < (ends[0] * ends[1]) ** 0.5 for value in drawn) / 300 < 0.7


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("feature_dim", "must read NAME=[VALUE,VALUE,...]"),
        ("feature_dim=32", "must read NAME=[VALUE,VALUE,...]"),
        ("=[1]", "must read NAME=[VALUE,VALUE,...]"),
        ("feature_dims=[32]", "there is no option feature_dims; did you mean feature_dim?"),
        ("part=[drums]", "all trials of a sweep share part"),
        ("musdbhq_location=[a,b]", "all trials of a sweep share musdbhq_location"),
        ("num_workers=[1,2]", "all trials of a sweep share num_workers"),
        ("feature_dim=[]", "must list at least one value"),
        ("feature_dim=[32,32]", "lists a value twice"),
        ("lr=[1e-3,0.001]", "lists a value twice"),
        ("feature_dim=[32", "is no list of values"),
        ("feature_dim=[small]", "feature_dim"),
        ("feature_dim=[1.5]", "feature_dim"),
        ("feature_dim=[[1,2]]", "feature_dim takes one value, not a list"),
        ("reduce_size=[1]", "reduce_size takes true or false"),
        ("precision=[float64]", "float64"),
        ("lr=[null]", "lr has no value"),
        ("lr=lognormal(1,2)", "there is no distribution lognormal; did you mean loguniform?"),
        ("lr=uniform(1)", "takes two numbers"),
        ("lr=uniform(a,b)", "takes two numbers"),
        ("lr=uniform(2,1)", "rising numbers"),
        ("lr=uniform(nan,1)", "rising numbers"),
        ("lr=loguniform(0,1)", "rising numbers above 0"),
        ("feature_dim=uniform(1,9)", "does not suit feature_dim, use randint or lograndint"),
        ("band_schema=uniform(1,9)", "does not suit band_schema, use a list"),
        ("feature_dim=randint(1.5,9)", "takes whole numbers"),
    ],
)
def test_what_means_nothing_is_refused(text: str, said: str):
    with pytest.raises(BadInput, match=re.escape(said)):
        parse_axis(text)


def test_a_space_names_each_option_once_and_at_least_one():
    axes = parse_space(["lr=[1e-3]", "feature_dim=[8,16]", "n_fft=[2048,4096]"])
    assert [axis.name for axis in axes] == ["lr", "feature_dim", "n_fft"]
    assert [axis.name for axis in varies_shards(axes)] == ["n_fft"]
    with pytest.raises(BadInput, match="names lr twice"):
        parse_space(["lr=[1e-3]", "lr=uniform(0,1)"])
    with pytest.raises(BadInput, match="say what to vary"):
        parse_space([])


VALUES = st.one_of(
    st.none(), st.booleans(), st.integers(), st.text(), st.lists(st.integers()).map(tuple)
)


@given(st.lists(VALUES, min_size=1, unique_by=json.dumps), st.data())
def test_a_value_comes_back_from_what_is_drawn(values: list[object], data: st.DataObject):
    axis = Axis(name="anything", values=tuple(values))
    value = data.draw(st.sampled_from(values))
    assert axis.value(axis.drawn(value)) is value
    # Also once the ledger has been read again.
    assert axis.value(axis.drawn(json.loads(json.dumps(value)))) is value


def test_values_are_shown_shortly():
    values = {"lr": 0.00123456, "band_schema": "v7", "hidden_dim": None, "feature_dim": 64}
    assert as_words(values) == "lr 0.001235, band_schema v7, hidden_dim None, feature_dim 64"
