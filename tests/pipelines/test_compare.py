"""The command `bsrnn compare` on runs in a real sqlite store."""

import csv
from collections.abc import Mapping
from pathlib import Path

import pytest

from bsrnn_core.errors import BadInput
from pipelines import tracking
from pipelines.cli import main
from pipelines.compare import CompareConfig, collect, run, write_comparison

FILES = {"comparison.md", "comparison.csv", "validation.png", "scores.png", "table.png"}


def train(
    uri: str,
    name: str,
    usdr: Mapping[str, float],
    schema: str = "v7",
    way: str = "transfer from base",
    data: str = "d" * 40,
    parent: str | None = None,
) -> str:
    """Record what a training does: two validations by step, the scores, and what it cost."""
    tags = {
        "stage": way.split()[0],
        "way": way,
        "band_schema": schema,
        "stems": ",".join(usdr),
        "manifest_hash": data,
    }
    params = {"seed": name[-1], "feature_dim": 16}
    run_id = tracking.create_run(uri, "bsrnn", name, params, tags, parent)
    with tracking.Tracker(run_id, uri) as tracker:
        for epoch in (1, 2):
            values = {f"valid/usdr_{stem}": value * epoch for stem, value in usdr.items()}
            mean = sum(values.values()) / len(values)
            tracker.log(50 * epoch, {**values, "valid/usdr_mean": mean, "valid/epoch": epoch})
        tracker.log(100, {"system/minutes": 3.0, "system/parameters_trained": 70.0})
        assert tracker.flush(30)
    scores = {f"test/usdr_{stem}": value for stem, value in usdr.items()}
    scores |= {f"test/usdr_{stem}_mixture": -1.0 for stem in usdr}
    assert tracking.log_results(run_id, uri, scores, []) is None
    tracking.finish_run(run_id, uri, "FINISHED")
    return run_id


@pytest.fixture
def store(uri: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    """Runs of an experiment, in the store that commands take."""
    monkeypatch.setenv("MLFLOW_TRACKING_URI", uri)
    monkeypatch.chdir(tmp_path)
    parent = tracking.create_run(uri, "bsrnn", "parent", {}, {"stage": "experiment"})
    train(uri, "v7-base-0", {"drums": 9.0}, way="base", parent=parent)
    train(uri, "v7-to-bass-0", {"bass": 1.0}, parent=parent)
    train(uri, "v7-to-bass-1", {"bass": 2.0}, parent=parent)
    train(uri, "generic-to-bass-0", {"bass": 4.0}, "generic", parent=parent)
    tags = {"stage": "transfer", "stems": "bass", "band_schema": "v7"}
    tracking.create_run(uri, "bsrnn", "unfinished", {}, tags, parent)
    return uri


def records(path: Path) -> list[dict[str, str]]:
    with path.open() as file:
        return list(csv.DictReader(file))


def test_the_literal_command_writes_and_prints_the_comparison(
    store: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["compare", "--filter", "tags.stage='transfer'", "--by", "band_schema"]) == 0
    out = tmp_path / "comparison"
    assert {file.name for file in out.iterdir()} == FILES
    found = records(out / "comparison.csv")
    assert [(row["band_schema"], row["stem"], row["runs"]) for row in found] == [
        ("v7", "bass", "2"),
        ("generic", "bass", "1"),
    ]
    assert [float(row["test_usdr"]) for row in found] == [1.5, 4.0]
    assert float(found[0]["test_usdr_spread"]) == pytest.approx(0.5**0.5)
    assert found[1]["test_usdr_spread"] == ""
    assert [float(row["valid_usdr"]) for row in found] == [3.0, 8.0]
    assert [float(row["gain"]) for row in found] == [2.5, 5.0]
    assert [float(row["parameters_trained"]) for row in found] == [70.0, 70.0]
    printed = capsys.readouterr().out
    assert "1.50 ± 0.71" in printed
    assert "unfinished is left out: it has no scores (it is RUNNING)." in printed
    assert "written to comparison" in printed
    text = (out / "comparison.md").read_text()
    assert text.startswith("# bsrnn: band schema where tags.stage='transfer'\n")
    assert "| v7 | 1.50 ± 0.71 | 2 |" in text
    assert "- unfinished is left out: it has no scores (it is RUNNING).\n" in text
    assert "9.00" not in text


def test_without_options_schemas_and_ways_of_all_trainings_are_compared(
    store: str, tmp_path: Path
) -> None:
    assert main(["compare"]) == 0
    found = records(tmp_path / "comparison" / "comparison.csv")
    assert [(row["band_schema"], row["way"], row["stem"]) for row in found] == [
        ("v7", "base", "drums"),
        ("v7", "transfer from base", "bass"),
        ("generic", "transfer from base", "bass"),
    ]
    assert "parent" not in (tmp_path / "comparison" / "comparison.md").read_text()


def test_several_names_follow_one_flag(store: str, tmp_path: Path) -> None:
    assert main(["compare", "--by", "feature_dim", "way", "--out", "elsewhere"]) == 0
    found = records(tmp_path / "elsewhere" / "comparison.csv")
    assert [(row["feature_dim"], row["way"], row["runs"]) for row in found] == [
        ("16", "base", "1"),
        ("16", "transfer from base", "3"),
    ]


def refusal(capsys: pytest.CaptureFixture[str], *words: str) -> str:
    """The sentence of a command that ends in exit code 2, having written nothing."""
    before = set(Path().iterdir())
    assert main(["compare", *words]) == 2
    assert set(Path().iterdir()) == before
    line = capsys.readouterr().err.strip().splitlines()[-1]
    assert line.startswith("bsrnn: ")
    return line


def test_what_is_wrong_is_one_sentence(store: str, capsys: pytest.CaptureFixture[str]) -> None:
    sentence = refusal(capsys, "--filter", "stage is transfer")
    assert "MLflow does not understand the filter stage is transfer" in sentence
    assert "tags.stage = 'transfer'" in sentence
    sentence = refusal(capsys, "--filter", "tags.stage = 'mtl'")
    assert "no training in experiment bsrnn matches the filter tags.stage = 'mtl'" in sentence
    assert f"mlflow ui --backend-store-uri '{store}'" in sentence
    assert "holds no experiment bsrn; did you mean bsrnn?" in refusal(
        capsys, "--experiment", "bsrn"
    )
    sentence = refusal(capsys, "--by", "schema")
    assert "no run has a tag or parameter schema; did you mean band_schema?" in sentence
    sentence = refusal(capsys, "--filter", "run_name = 'parent'")
    assert "no training in experiment bsrnn matches" in sentence


def test_runs_on_different_data_are_compared_only_when_allowed(
    store: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    train(store, "v7-to-bass-2", {"bass": 6.0}, data="e" * 40)
    sentence = refusal(capsys)
    assert "v7-base-0 and v7-to-bass-2 were trained on different datasets" in sentence
    assert f"{'d' * 12} and {'e' * 12}" in sentence
    assert main(["compare", "--allow_different_data"]) == 0
    found = records(tmp_path / "comparison" / "comparison.csv")
    assert found[1]["test_usdr_values"] == "1.0;2.0;6.0"
    assert "trained on 2 datasets" in capsys.readouterr().out


def test_no_store_is_refused_and_none_is_made(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    assert f"there is no {tmp_path / 'mlflow.db'}" in refusal(capsys)


def test_a_store_without_runs_is_refused(uri: str, monkeypatch: pytest.MonkeyPatch) -> None:
    parent = tracking.create_run(uri, "bsrnn", "parent", {}, {"stage": "experiment"})
    monkeypatch.setenv("MLFLOW_TRACKING_URI", uri)
    with pytest.raises(BadInput, match="no training in experiment bsrnn is recorded"):
        run(CompareConfig())
    assert parent


def test_other_programs_collect_and_write_without_a_word(
    store: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    runs = tracking.find_runs(store, "bsrnn", "tags.stage = 'transfer'")
    comparison = collect(store, runs, ("band_schema",))
    assert comparison.groups[0].curve.epochs == (1.0, 2.0)
    assert comparison.groups[0].curve.mean == (1.5, 3.0)
    files = write_comparison(comparison, tmp_path / "new" / "out", "a title")
    assert {file.name for file in files} == FILES
    assert all(file.stat().st_size > 0 for file in files)
    assert capsys.readouterr().out == ""
