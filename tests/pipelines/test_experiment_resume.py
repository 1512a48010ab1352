"""A real experiment, killed in the middle and gone on with: nothing is done or recorded twice."""

import os
from pathlib import Path

import pytest
from mlflow import MlflowClient
from mlflow.entities import Run

from pipelines.cli import main

pytestmark = pytest.mark.proof

STEPS = {
    "v1-base-drums-seed42": ("base", "v1", "drums", 3),
    "v1-base-to-bass-seed42": ("transfer from base", "v1", "bass", 2),
    "v7-base-drums-seed42": ("base", "v7", "drums", 3),
    "v7-base-to-bass-seed42": ("transfer from base", "v7", "bass", 2),
}
"""Name of the run -> way of training, schema, stem and epochs."""
STEPS_PER_EPOCH = 2


@pytest.fixture(scope="module")
def client(toy_experiment) -> MlflowClient:
    return MlflowClient(toy_experiment.database)


@pytest.fixture(scope="module")
def runs(client: MlflowClient, runs_by_name) -> dict[str, Run]:
    """All runs of the store by name, each once."""
    return runs_by_name(client, "toys")


def test_it_was_killed_in_the_second_training(toy_experiment):
    assert toy_experiment.statuses_when_killed == {
        "toy": "RUNNING",
        "v1-base-drums-seed42": "FINISHED",
        "v1-base-to-bass-seed42": "RUNNING",
    }


def test_what_was_finished_is_not_touched_again(toy_experiment):
    files = toy_experiment.files_when_killed
    assert any(file.name == "model.safetensors" for file in files)
    assert {file: file.stat().st_mtime_ns for file in files} == files


def test_every_training_is_one_finished_child_of_one_run(runs: dict[str, Run]):
    assert set(runs) == {"toy", *STEPS}
    parent = runs["toy"]
    assert (parent.info.status, parent.data.tags["stage"]) == ("FINISHED", "experiment")
    for name, (way, schema, stem, _) in STEPS.items():
        tags = runs[name].data.tags
        assert runs[name].info.status == "FINISHED"
        assert tags["mlflow.parentRunId"] == parent.info.run_id
        assert (tags["way"], tags["band_schema"], tags["stems"]) == (way, schema, stem)
        assert f"test/usdr_{stem}" in runs[name].data.metrics
    assert runs["v7-base-to-bass-seed42"].data.tags["checkpoint_run_id"] == (
        runs["v7-base-drums-seed42"].info.run_id
    )


@pytest.mark.parametrize("name", STEPS)
def test_curves_have_every_step_once(name: str, client: MlflowClient, runs: dict[str, Run]):
    *_, stem, epochs = STEPS[name]
    run_id = runs[name].info.run_id
    ends = [STEPS_PER_EPOCH * epoch for epoch in range(1, epochs + 1)]
    for metric, expected in {
        "train/loss": list(range(1, ends[-1] + 1)),
        f"valid/usdr_{stem}": ends,
        "valid/epoch": ends,
    }.items():
        steps = [point.step for point in client.get_metric_history(run_id, metric)]
        assert steps == expected


def test_trunks_are_the_bases(toy_experiment):
    from bsrnn_core import load

    for schema in ("v1", "v7"):
        base, transfer = (
            load(toy_experiment.folder / f"{schema}-{name}-seed42" / "best").trunk.state_dict()
            for name in ("base-drums", "base-to-bass")
        )
        assert all(value.equal(base[name]) for name, value in transfer.items())


def test_the_comparison_is_among_the_files_and_in_mlflow(
    toy_experiment, client: MlflowClient, runs: dict[str, Run]
):
    files = {file.name for file in (toy_experiment.folder / "comparison").iterdir()}
    assert {"comparison.md", "comparison.csv", "validation.png", "scores.png"} <= files
    logged = client.list_artifacts(runs["toy"].info.run_id, "comparison")
    assert {Path(file.path).name for file in logged} == files
    table = (toy_experiment.folder / "comparison" / "comparison.md").read_text()
    assert "transfer from base" in table


def test_the_name_is_taken(
    toy_experiment, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
):
    home = toy_experiment.folder.parents[1]
    monkeypatch.chdir(home)
    before = sorted(os.listdir(toy_experiment.folder))
    words = ["experiment", "--musdbhq_location", "songs", "--name", "toy"]
    assert main(words) == 2
    assert "holds an experiment already" in capsys.readouterr().err
    assert main([*words, "--resume", "--num_seeds", "2"]) == 2
    assert "num_seeds is 1 and not 2" in capsys.readouterr().err
    assert sorted(os.listdir(toy_experiment.folder)) == before
