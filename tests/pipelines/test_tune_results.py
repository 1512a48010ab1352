"""What a sweep leaves behind: the table, the best configuration, and what MLflow gets."""

import csv
import dataclasses
import io
import json
import math
from pathlib import Path
from typing import Any

import pytest
from mlflow import MlflowClient

from bsrnn_core import BSRNN, checkpoint
from data_prep.config import SourceConfig
from pipelines.config import PRESETS, TrainConfig, tiny
from pipelines.config_files import RUN_CONFIG, save_yaml
from pipelines.flags import parse
from pipelines.parent_run import parent_run
from pipelines.training import COSTS_FILE
from pipelines.tune_plan import Plan, TuneConfig, plan
from pipelines.tune_results import best, best_config, colour_by, csv_text, rows, table, write
from pipelines.tune_trials import Ledger


def config(*space: str, out: str = "runs", **options: Any) -> TuneConfig:
    model = dataclasses.replace(tiny().model, feature_dim=4, num_blstm_layers=1, mlp_dim=8)
    train = dataclasses.replace(
        tiny(),
        name="sweep",
        part=("drums",),
        out=out,
        resume=True,
        experiment="sweeps",
        model=model,
        source=SourceConfig(musdbhq_location="/songs"),
    )
    return TuneConfig(space=space, train=train, **options)


ASKED = config("lr=[0.001,0.002,0.003,0.004]", "band_schema=[v7,generic]")


@pytest.fixture
def space() -> Plan:
    return plan(ASKED)


@pytest.fixture
def ledger(tmp_path: Path, space: Plan) -> Ledger:
    """Trials that ended in every way; the best score is that of one that was stopped."""
    ledger = Ledger(tmp_path / "trials.json")
    assert space.points is not None
    for values in space.points[:5]:
        ledger.add(values, max_epochs=4)
    first, stopped, failed, finished, _ = ledger.trials
    first.state, first.validations = "finished", [(1, 1.0), (4, 2.0)]
    stopped.state, stopped.validations = "stopped early", [(1, 9.0)]
    failed.state, failed.error = "failed", "FloatingPointError: not finite"
    finished.state, finished.validations = "finished", [(1, 3.5), (4, 3.0)]
    costs = {
        "system/parameters_trained": 12_345.0,
        "system/seconds_per_step": 0.25,
        "system/minutes": 1.5,
    }
    model = BSRNN(ASKED.train.bsrnn)
    for trial in (first, stopped, finished):
        checkpoint.save(tmp_path / trial.name / "last", model, {"epoch": trial.epoch})
        (tmp_path / trial.name / COSTS_FILE).write_text(json.dumps(costs))
    return ledger


def test_trials_are_ranked_by_their_highest_validation(ledger: Ledger, tmp_path: Path):
    ranked = rows(ledger, tmp_path)
    assert [row.trial.name for row in ranked][:3] == ["trial-002", "trial-004", "trial-001"]
    assert [row.usdr for row in ranked[:3]] == [9.0, 3.5, 2.0]
    assert [row.epochs for row in ranked[:3]] == [1.0, 4.0, 4.0]
    assert (ranked[0].parameters, ranked[0].seconds_per_step, ranked[0].minutes) == (
        12_345.0,
        0.25,
        1.5,
    )
    assert all(math.isnan(row.usdr) and math.isnan(row.minutes) for row in ranked[3:])


def test_the_best_trial_is_one_that_finished(ledger: Ledger, tmp_path: Path):
    ranked = rows(ledger, tmp_path)
    winner = best(ranked)
    assert winner is not None
    assert winner.trial.name == "trial-004"
    # Where none finished, as after an interruption, all count.
    for trial in ledger.trials:
        trial.state = "stopped early"
    ledger["trial-003"].state, ledger["trial-003"].validations = "failed", [(1, 99.0)]
    fallback = best(rows(ledger, tmp_path))
    assert fallback is not None
    assert fallback.trial.name == "trial-002"
    assert best([row for row in ranked if math.isnan(row.usdr)]) is None


def test_the_best_configuration_is_what_bsrnn_train_takes(ledger: Ledger, tmp_path: Path):
    winner = best(rows(ledger, tmp_path))
    assert winner is not None
    wanted = best_config(ASKED, winner)
    save_yaml(wanted, tmp_path / "best.yaml")
    words = ["--config", str(tmp_path / "best.yaml"), "--name", "long", "--max_epochs", "50"]
    read = parse(TrainConfig, words, prog="bsrnn train", presets=PRESETS)
    expected = dataclasses.replace(
        ASKED.train,
        name="long",
        resume=False,
        model=dataclasses.replace(ASKED.train.model, band_schema="generic"),
        optim=dataclasses.replace(ASKED.train.optim, lr=0.002, max_epochs=50),
    )
    assert read == expected


def test_the_table_shows_what_is_known(ledger: Ledger, tmp_path: Path, space: Plan):
    header, lines = table(rows(ledger, tmp_path), space)
    assert header == [
        *("trial", "lr", "band_schema", "outcome"),
        *("epochs", "uSDR", "million trained", "s/step", "min"),
    ]
    assert lines[0] == [
        *("trial-002", "0.001", "generic", "stopped early"),
        *("1", "9.00", "0.012", "0.250", "1.5"),
    ]
    failed = next(line for line in lines if line[0] == "trial-003")
    assert failed[3:] == ["failed: FloatingPointError: not finite", "", "", "", "", ""]


def test_machines_get_all_digits(ledger: Ledger, tmp_path: Path, space: Plan):
    lines = list(csv.DictReader(io.StringIO(csv_text(rows(ledger, tmp_path), space))))
    assert len(lines) == 5
    assert lines[0] == {
        "trial": "trial-002",
        "lr": "0.001",
        "band_schema": "generic",
        "outcome": "stopped early",
        "error": "",
        "epochs": "1.0",
        "usdr": "9.0",
        "parameters": "12345.0",
        "seconds_per_step": "0.25",
        "minutes": "1.5",
    }
    assert (lines[-1]["usdr"], lines[-2]["outcome"]) in {("", "failed"), ("", "waiting")}


def test_figures_tell_trials_apart_by_schema_if_they_can():
    assert colour_by(plan(config("lr=[1e-3,2e-3]", "band_schema=[v7,v6,generic]"))) == "band_schema"
    assert colour_by(plan(config("lr=[1e-3,2e-3,3e-3]", "feature_dim=[4,8]"))) == "feature_dim"
    assert colour_by(plan(config("lr=uniform(1e-3,2e-3)", search="random"))) == ""


def test_everything_is_written_and_in_mlflow(
    ledger: Ledger,
    tmp_path: Path,
    space: Plan,
    uri: str,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
):
    monkeypatch.setenv("MLFLOW_TRACKING_URI", uri)
    run_id, _ = parent_run(ASKED, ASKED.train, tmp_path, "sweep")
    out = write(ASKED, space, tmp_path, ledger, run_id, uri)
    names = {"best.yaml", "sweep.md", "sweep.csv", "parallel.png", "tradeoffs.png"}
    assert {file.name for file in out.iterdir()} == names
    client = MlflowClient(uri)
    assert {Path(f.path).name for f in client.list_artifacts(run_id, "sweep")} == names
    assert RUN_CONFIG in {file.path for file in client.list_artifacts(run_id)}
    assert client.get_run(run_id).data.metrics == {"best/usdr_mean": 3.5}
    told = capsys.readouterr().out
    assert "best: trial-004 (lr 0.002, band_schema generic) with 3.50 dB" in told
    assert f"--config {out / 'best.yaml'}" in told.replace("\n", "")
    assert "| trial-004 | 0.002 | generic | finished | 4 | 3.50 |" in (out / "sweep.md").read_text()


def test_a_sweep_without_a_score_says_why(tmp_path: Path, space: Plan):
    ledger = Ledger(tmp_path / "trials.json")
    with pytest.raises(RuntimeError, match=r"no trial has a score \(they are not"):
        write(ASKED, space, tmp_path, ledger, "run", "store")
    trial = ledger.add({"lr": 1.0, "band_schema": "v7"}, max_epochs=2)
    trial.state, trial.error = "failed", "FloatingPointError: not finite"
    with pytest.raises(RuntimeError, match="FloatingPointError: not finite"):
        write(ASKED, space, tmp_path, ledger, "run", "store")
