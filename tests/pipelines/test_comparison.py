"""Groups of runs, their numbers worked out by hand."""

import math
from collections.abc import Mapping, Sequence

import pytest

from bsrnn_core.errors import BadInput
from pipelines.comparison import compare_runs
from pipelines.comparison_groups import Comparison, Group, Statistic, mean_curve
from pipelines.tracking_runs import RecordedRun

BY = ("band_schema", "way")
Curves = dict[str, list[tuple[int, float]]]


def recorded(
    name: str,
    schema: str = "v7",
    way: str = "base",
    stems: str = "drums",
    metrics: Mapping[str, float] | None = None,
    **tags: str,
) -> RecordedRun:
    """A finished run; its seed is the last letter of its name."""
    return RecordedRun(
        run_id=f"id of {name}",
        name=name,
        status=tags.pop("status", "FINISHED"),
        tags={
            "stage": "base",
            "band_schema": schema,
            "way": way,
            "stems": stems,
            "manifest_hash": "a" * 64,
            **tags,
        },
        params={"seed": name[-1], "feature_dim": "16"},
        metrics={"test/usdr_drums": 1.0, "test/csdr_drums": 1.0} if metrics is None else metrics,
    )


def scored(name: str, usdr: float, csdr: float = 0.0, **more: str) -> RecordedRun:
    scores = {"test/usdr_drums": usdr, "test/csdr_drums": csdr, "test/usdr_drums_mixture": -1.5}
    return recorded(name, metrics=scores, **more)


def compare(runs: Sequence[RecordedRun], **more: bool) -> Comparison:
    return compare_runs(runs, {}, BY, **more)


def only(comparison: Comparison) -> Group:
    (group,) = comparison.groups
    return group


# Numbers


def test_means_and_spreads_over_seeds() -> None:
    group = only(compare([scored("a0", 1.0, 7.0), scored("b1", 2.0, 7.0), scored("c2", 6.0, 7.0)]))
    assert (group.key, group.stem) == (("v7", "base"), "drums")
    assert group.seeds == ("0", "1", "2")
    assert group.test["usdr"].values == (1.0, 2.0, 6.0)
    assert group.test["usdr"].mean == 3.0
    assert group.test["usdr"].spread == pytest.approx(math.sqrt((4 + 1 + 9) / 2))
    assert (group.test["csdr"].mean, group.test["csdr"].spread) == (7.0, 0.0)
    assert group.gain.values == (2.5, 3.5, 7.5)


def test_one_run_has_no_spread() -> None:
    usdr = only(compare([scored("a0", 1.25)])).test["usdr"]
    assert usdr.mean == 1.25
    assert math.isnan(usdr.spread)


def test_nan_is_counted_and_not_averaged_in() -> None:
    runs = [scored("a0", 1.0), scored("b1", math.nan), scored("c2", 3.0)]
    comparison = compare(runs)
    usdr = only(comparison).test["usdr"]
    assert (usdr.mean, usdr.nan) == (2.0, 1)
    assert usdr.spread == pytest.approx(math.sqrt(2))
    assert comparison.notes == ("b1 has no test usdr of drums: counted as nan.",)
    nothing = Statistic((math.nan, math.nan))
    assert math.isnan(nothing.mean)
    assert nothing.nan == 2


def test_floor_and_oracle_are_those_of_all_runs() -> None:
    ends = {"_mixture": -2.0, "_oracle": 9.0}
    one = {"test/usdr_drums": 1.0, **{f"test/usdr_drums{end}": v for end, v in ends.items()}}
    two = {**one, "test/usdr_drums_mixture": -2.4}
    runs = [recorded("a0", metrics=one), recorded("b0", schema="generic", metrics=two)]
    comparison = compare(runs)
    assert comparison.floor["usdr", "drums"].mean == pytest.approx(-2.2)
    assert comparison.oracle["usdr", "drums"].values == (9.0, 9.0)
    assert math.isnan(comparison.floor["csdr", "drums"].mean)
    assert any("usdr of drums by 0.40 dB" in note for note in comparison.notes)
    same = compare([runs[0], recorded("c0", schema="generic", metrics=one)])
    assert not any("own scores differ" in note for note in same.notes)


def test_costs_are_those_of_the_whole_training() -> None:
    costs = {
        "system/minutes": 12.0, "system/peak_memory_gb": 3.0, "system/parameters_trained": 500.0
    }  # fmt: skip
    scores = {"test/usdr_drums": 1.0, "test/usdr_bass": 2.0}
    run = recorded("a0", stems="drums,bass", metrics=scores | costs)
    for group in compare([run]).groups:
        assert group.minutes.mean == 12.0
        assert group.peak_memory_gb.mean == 3.0
        assert group.parameters_trained.mean == 500.0


def test_a_stem_is_found_under_the_name_that_the_store_gave_it() -> None:
    run = recorded("a0", stems="my (own) stem", metrics={"test/usdr_my _own_ stem": 4.0})
    group = only(compare([run]))
    assert (group.stem, group.test["usdr"].mean) == ("my (own) stem", 4.0)


# Validation


def curves_of(name: str, drums: list[float], bass: list[float] | None = None) -> dict[str, Curves]:
    """A validation at the end of each epoch of 10 steps."""
    steps = [10 * (k + 1) for k in range(len(drums))]
    of_stems = {"drums": drums} | ({} if bass is None else {"bass": bass})
    means = [sum(values) / len(values) for values in zip(*of_stems.values(), strict=True)]
    curves: Curves = {
        "valid/epoch": [(step, step / 10) for step in steps],
        "valid/usdr_mean": list(zip(steps, means, strict=True)),
    }
    for stem, values in of_stems.items():
        curves[f"valid/usdr_{stem}"] = list(zip(steps, values, strict=True))
    return {f"id of {name}": curves}


def test_the_validation_that_counts_is_that_of_the_kept_epoch() -> None:
    run = recorded("a0", stems="drums,bass")
    # The means are 2, 3 and 2.5, and drums are best when the training as a whole is not.
    curves = curves_of("a0", [1.0, 2.0, 4.0], [3.0, 4.0, 1.0])
    drums, bass = compare_runs([run], curves, BY).groups
    assert (drums.valid.values, bass.valid.values) == ((2.0,), (4.0,))


def test_of_equal_validations_the_first_is_kept() -> None:
    run = recorded("a0", stems="drums,bass")
    drums, _ = compare_runs([run], curves_of("a0", [1.0, 3.0], [3.0, 1.0]), BY).groups
    assert drums.valid.values == (1.0,)


def test_curves_are_averaged_by_epoch_and_not_by_step() -> None:
    curves = curves_of("a0", [1.0, 2.0, 3.0]) | curves_of("b1", [3.0, 4.0, 8.0])
    for name, points in curves["id of b1"].items():
        curves["id of b1"][name] = [(3 * step, value) for step, value in points]
    curve = only(compare_runs([recorded("a0"), recorded("b1")], curves, BY)).curve
    assert curve.epochs == (1.0, 2.0, 3.0)
    assert curve.mean == (2.0, 3.0, 5.5)
    assert curve.low == (1.0, 2.0, 3.0)
    assert curve.high == (3.0, 4.0, 8.0)
    assert (curve.complete_until, curve.final) == (3.0, 5.5)


def test_a_run_that_ended_counts_on_with_its_last_value() -> None:
    curve = mean_curve([{1: 1.0, 2: 5.0}, {1: 3.0, 2: 4.0, 3: 7.0}])
    assert curve.mean == (2.0, 4.5, 6.0)
    assert (curve.low[-1], curve.high[-1]) == (5.0, 7.0)
    assert curve.complete_until == 2


def test_a_run_does_not_count_where_it_has_no_value_yet() -> None:
    curve = mean_curve([{2: 1.0, 4: 2.0}, {1: 3.0, 2: math.nan, 4: 4.0}])
    assert curve.epochs == (1, 2, 4)
    assert curve.mean == (3.0, 1.0, 3.0)
    assert math.isnan(mean_curve([{}, {1: math.nan}]).final)


def test_validations_without_epochs_are_mentioned_and_not_drawn() -> None:
    curves = curves_of("a0", [1.0, 2.0])
    del curves["id of a0"]["valid/epoch"]
    comparison = compare_runs([recorded("a0")], curves, BY)
    assert only(comparison).curve.epochs == ()
    assert only(comparison).valid.mean == 2.0
    assert comparison.notes == ("a0 has no valid/epoch: its validations are not drawn.",)


# Which runs, and in what order


def test_groups_come_in_the_order_in_which_they_were_first_recorded() -> None:
    mtl = {"test/usdr_zither": 1.0}
    runs = [
        recorded("a0", "v7", "base"),
        recorded("b0", "v7", "mtl", "zither,bass,drums,vocals", mtl),
        recorded("c0", "generic", "mtl", "drums", None),
        recorded("d0", "generic", "base"),
        recorded("e1", "v7", "base"),
    ]
    comparison = compare(runs)
    assert comparison.values == (("v7", "generic"), ("base", "mtl"))
    assert comparison.stems == ("vocals", "drums", "bass", "zither")
    assert [(*group.key, group.stem) for group in comparison.groups] == [
        ("v7", "base", "drums"),
        *(("v7", "mtl", stem) for stem in ("vocals", "drums", "bass", "zither")),
        ("generic", "base", "drums"),
        ("generic", "mtl", "drums"),
    ]
    assert comparison.groups[0].runs == ("a0", "e1")
    assert comparison.keys[-1] == ("generic", "mtl")
    assert comparison.group(("v7", "base"), "bass") is None


def test_runs_without_scores_are_left_out_with_the_reason() -> None:
    parent = recorded("parent", stems="", stage="experiment", metrics={})
    no_training = recorded("upload", stems="", metrics={"test/usdr_drums": 9.0})
    running = recorded("new1", metrics={"train/loss": 1.0}, status="RUNNING")
    comparison = compare([parent, scored("a0", 1.0), no_training, running])
    assert comparison.left_out == (
        ("upload", "it has no tag stems, as every training has"),
        ("new1", "it has no scores (it is RUNNING)"),
    )
    assert only(comparison).runs == ("a0",)


def test_validation_alone_is_enough_to_be_compared() -> None:
    run = recorded("a0", metrics={}, status="RUNNING")
    comparison = compare_runs([run], curves_of("a0", [1.0, 2.0]), BY)
    assert only(comparison).test["usdr"].nan == 1
    assert only(comparison).valid.mean == 2.0
    assert comparison.notes == (
        "a0 is RUNNING.",
        "a0 has no test usdr of drums, csdr of drums: counted as nan.",
    )


def test_nothing_to_compare_is_refused() -> None:
    with pytest.raises(BadInput, match=r"none of the 1 runs .*new0: it has no scores"):
        compare([recorded("new0", metrics={})])
    with pytest.raises(BadInput, match="none of the 1 runs"):
        compare([recorded("parent", stage="experiment")])


def test_different_data_are_refused_unless_allowed() -> None:
    runs = [
        recorded("a0"),
        recorded("b1"),
        recorded("c2", manifest_hash="b" * 64),
    ]
    with pytest.raises(BadInput) as refusal:
        compare(runs)
    sentence = str(refusal.value)
    assert f"a0 and c2 were trained on different datasets ({'a' * 12} and {'b' * 12})" in sentence
    assert "--allow_different_data" in sentence
    assert compare(runs[:2]).notes == ()
    comparison = compare(runs, allow_different_data=True)
    assert only(comparison).runs == ("a0", "b1", "c2")
    assert f"2 datasets: {'a' * 12}, {'b' * 12}" in comparison.notes[0]


def test_the_data_of_runs_that_are_left_out_do_not_matter() -> None:
    other = recorded("c2", manifest_hash="b" * 64, metrics={})
    assert only(compare([recorded("a0"), other])).runs == ("a0",)


def test_runs_are_compared_by_tags_and_failing_that_by_parameters() -> None:
    runs = [recorded("a0"), recorded("b1"), recorded("c1", feature_dim="a tag")]
    comparison = compare_runs(runs, {}, ("feature_dim", "seed"))
    assert [group.key for group in comparison.groups] == [("16", "0"), ("16", "1"), ("a tag", "1")]


@pytest.mark.parametrize(
    ("by", "sentence"),
    [
        (("band_shema",), "no run has a tag or parameter band_shema; did you mean band_schema?"),
        (("feature_dims",), "feature_dims; did you mean feature_dim?"),
        (("?",), "; there are band_schema, manifest_hash, stage, stems, way"),
        (("way", "way"), "different names, not way way"),
        ((), "not none"),
    ],
)
def test_names_that_no_run_has_are_refused(by: tuple[str, ...], sentence: str) -> None:
    with pytest.raises(BadInput, match=sentence.replace("?", r"\?")):
        compare_runs([recorded("a0")], {}, by)


def test_a_name_that_some_runs_lack_is_a_value_of_its_own() -> None:
    comparison = compare_runs([recorded("a0"), recorded("b0", note="x")], {}, ("note",))
    assert [(group.key, group.runs) for group in comparison.groups] == [
        (("",), ("a0",)),
        (("x",), ("b0",)),
    ]


def test_a_seed_that_occurs_twice_is_mentioned() -> None:
    comparison = compare([recorded("a0"), recorded("again0"), recorded("b1")])
    assert comparison.notes == ("v7 base, drums: 2 runs have seed 0, and each counts.",)
    assert compare([recorded("a0"), recorded("b0", "generic")]).notes == ()
