"""How a sweep is fitted to a cluster, what its search is told, and what MLflow is told."""

import dataclasses
import itertools
import json
import math
import shutil
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from mlflow import MlflowClient
from ray.util.state.exception import RayStateApiException

from bsrnn_core.errors import BadInput
from data_prep.config import SourceConfig
from pipelines import base, launch, tracking, tune
from pipelines.config import TrainConfig, tiny
from pipelines.parent_run import parent_run
from pipelines.tracking_journal import Journal, Point
from pipelines.tune_plan import TuneConfig, plan
from pipelines.tune_room import DRIVER_CPUS, fitted_room, trials_that_fit
from pipelines.tune_runs import Setting, close_all, report_end, trial_options
from pipelines.tune_trials import LEDGER_FILE, Ledger


def config(*space: str, train: dict[str, Any] | None = None, **options: Any) -> TuneConfig:
    values = {
        "name": "sweep",
        "part": ("drums",),
        "source": SourceConfig(musdbhq_location="songs"),
        "experiment": "sweeps",
    }
    made = dataclasses.replace(tiny(), **{**values, **(train or {})})
    return TuneConfig(space=space or ("lr=[1e-3,2e-3]",), train=made, **options)


def setting(asked: TuneConfig, folder: Path, uri: str, run_id: str = "parent") -> Setting:
    return Setting(
        config=asked,
        space=plan(asked),
        folder=folder,
        shards={"{}": str(folder / "shards")},
        run_id=run_id,
        tracking_uri=uri,
        threads=3,
        board=None,
    )


@pytest.mark.parametrize(
    ("nodes", "workers", "expected"),
    [
        ([4], 1, 3),
        ([4], 2, 1),
        ([4], 3, 1),
        ([4], 4, 0),
        ([4.5], 4, 1),
        ([2], 1, 1),
        ([1], 1, 0),
        ([], 1, 0),
        ([4, 4], 1, 6),
        ([4, 4], 4, 1),
        ([200], 1, 198),
    ],
)
def test_trials_that_fit(nodes: list[float], workers: int, expected: int):
    assert trials_that_fit(nodes, workers) == expected


def test_what_leads_a_trial_takes_no_gpu():
    assert trials_that_fit([4], 4, "GPU") == 1
    assert trials_that_fit([8, 8], 4, "GPU") == 4


@given(st.lists(st.integers(1, 5), min_size=1, max_size=3), st.integers(1, 4))
def test_trials_that_fit_find_room_wherever_their_leaders_are(nodes: list[int], workers: int):
    trials = trials_that_fit([float(node) for node in nodes], workers)
    assert trials * workers <= sum(nodes)
    for places in itertools.combinations_with_replacement(range(len(nodes)), trials):
        free = list(map(float, nodes))
        for place in places:
            free[place] -= DRIVER_CPUS
        assert sum(math.floor(cpus + 1e-9) for cpus in free) >= trials * workers


@pytest.mark.usefixtures("ray_cluster")
def test_a_sweep_that_does_not_fit_is_refused_with_what_would():
    # The tests' Ray has four logical CPUs.
    with pytest.raises(BadInput) as refused:
        fitted_room(config(workers_per_trial=4))
    assert str(refused.value) == (
        "a trial of 4 workers needs 4.01 CPUs, but the cluster has 4: --workers_per_trial 3 would "
        "fit"
    )
    with pytest.raises(BadInput) as refused:
        fitted_room(config(max_concurrent=4))
    assert str(refused.value) == (
        "4 trials of 1 worker(s) at once need 4.04 CPUs, but the cluster has 4: "
        "--max_concurrent 3 would fit"
    )
    with pytest.raises(BadInput, match="device cuda was asked for"):
        cluster = dataclasses.replace(TrainConfig().cluster, device="cuda")
        fitted_room(config(train={"cluster": cluster}))


@pytest.mark.usefixtures("ray_cluster")
@pytest.mark.parametrize(
    ("num_cores", "workers", "max_concurrent", "expected"),
    [
        (2, 1, None, (2, 1)),
        (8, 1, None, (3, 1)),
        (1, 1, 3, (3, 1)),
        (2, 3, None, (1, 1)),
        (4, 1, 2, (2, 2)),
    ],
)
def test_a_sweep_takes_the_room_that_there_is(
    num_cores: int,
    workers: int,
    max_concurrent: int | None,
    expected: tuple[int, int],
    monkeypatch: pytest.MonkeyPatch,
):
    monkeypatch.setattr(launch, "cores", lambda: num_cores)
    asked = config(workers_per_trial=workers, max_concurrent=max_concurrent)
    assert fitted_room(asked) == expected


def test_a_list_of_trials_is_in_the_ledger_from_the_start(tmp_path: Path):
    asked = config("lr=[1e-3,2e-3]", "max_epochs=[2,5]")
    ledger = tune._ledger(setting(asked, tmp_path, ""))
    assert [(trial.name, trial.max_epochs) for trial in ledger.trials] == [
        ("trial-001", 2),
        ("trial-002", 5),
        ("trial-003", 2),
        ("trial-004", 5),
    ]
    ledger.trials[0].state = "finished"
    ledger.save()
    again = tune._ledger(setting(asked, tmp_path, ""))
    assert [trial.state for trial in again.trials] == ["finished", *["waiting"] * 3]


def test_values_are_those_of_the_space_again_when_a_sweep_is_resumed(tmp_path: Path):
    asked = config(
        "stem_weights=[[1,2],[2,1]]", "hidden_dim=[null,8]", train={"part": ("drums", "bass")}
    )
    first = tune._ledger(setting(asked, tmp_path, ""))
    assert [trial.values["stem_weights"] for trial in first.trials][::2] == [(1.0, 2.0), (2.0, 1.0)]
    assert tune._ledger(setting(asked, tmp_path, "")).trials == first.trials


def test_more_random_trials_may_be_asked_for(tmp_path: Path):
    space = "lr=loguniform(1e-4,1e-2)"
    few = tune._ledger(setting(config(space, search="random", num_samples=2), tmp_path, ""))
    more = tune._ledger(setting(config(space, search="random", num_samples=5), tmp_path, ""))
    assert len(more.trials) == 5
    assert more.trials[:2] == few.trials


def test_a_trial_gets_what_only_the_sweep_knows(tmp_path: Path):
    here = setting(config("lr=[1e-3,2e-3]"), tmp_path, "")
    options = trial_options("trial-002", {"lr": 2e-3}, here)
    assert (options.name, options.out, options.shards) == (
        "trial-002",
        str(tmp_path),
        str(tmp_path / "shards"),
    )
    assert (options.optim.lr, options.cluster.threads_per_worker, options.resume) == (
        2e-3,
        3,
        False,
    )
    base.record_run(tmp_path / "trial-002", "run", "store")
    assert trial_options("trial-002", {"lr": 2e-3}, here).resume


def test_values_that_do_not_go_together_are_told_so(tmp_path: Path):
    here = setting(config("crop_seconds=[1,3]", "chunk_size_in_seconds=[6]"), tmp_path, "")
    with pytest.raises(BadInput, match="longer than a stored chunk"):
        trial_options("trial-001", {"crop_seconds": 9.0, "chunk_size_in_seconds": 6.0}, here)


def test_tpe_begins_with_what_was_interrupted_and_knows_what_has_ended(tmp_path: Path):
    asked = config(
        "lr=loguniform(1e-4,1e-2)", "band_schema=[v7,generic]", search="tpe", num_samples=9
    )
    ledger = Ledger(tmp_path / LEDGER_FILE)
    states = ("finished", "waiting", "stopped early", "failed")
    for number, state in enumerate(states):
        trial = ledger.add({"lr": (number + 1) * 1e-3, "band_schema": "generic"}, max_epochs=3)
        trial.validations = [(1, float(number)), (2, -1.0)]
        trial.state = state
    search = tune._tpe(ledger, setting(asked, tmp_path, ""))
    assert search.suggest("a") == {"lr": 2e-3, "band_schema": 1}
    other = search.suggest("b")
    assert other is not None
    assert 1e-4 <= other["lr"] <= 1e-2
    assert other["band_schema"] in (0, 1)
    study = search._ot_study
    assert study is not None
    known = {(trial.state.name, trial.value) for trial in study.trials}
    assert known == {("COMPLETE", 0.0), ("COMPLETE", 2.0), ("FAIL", None), ("RUNNING", None)}
    assert len(study.trials) == 5
    # Resumed it draws on, and not once more what it drew before.
    fresh = tune._tpe(Ledger(tmp_path / "none.json"), setting(asked, tmp_path, ""))
    assert fresh.suggest("b") != other


def test_a_ray_that_cannot_clean_up_is_refused(ray_cluster: str, monkeypatch: pytest.MonkeyPatch):
    def fail(address: str, limit: int) -> None:
        assert (address, limit) == (ray_cluster, 1)
        raise RayStateApiException("no answer")

    monkeypatch.setattr(tune, "list_nodes", fail)
    with pytest.raises(BadInput, match="a sweep needs Ray's dashboard"):
        tune._check_dashboard()


@pytest.fixture
def recorded(tmp_path: Path, uri: str, monkeypatch: pytest.MonkeyPatch) -> Setting:
    """A sweep with a parent run in MLflow."""
    monkeypatch.setenv("MLFLOW_TRACKING_URI", uri)
    asked = config("lr=[1e-3,2e-3,3e-3,4e-3,5e-3]")
    run_id, store = parent_run(asked, asked.train, tmp_path, "sweep")
    return setting(asked, tmp_path, store, run_id)


def test_mlflow_ends_up_with_what_became_of_the_trials(recorded: Setting):
    ledger = tune._ledger(recorded)
    uri = recorded.tracking_uri
    for trial, state in zip(
        ledger.trials, ("finished", "stopped early", "failed", "running", "waiting"), strict=True
    ):
        trial.state = state
        run_id = ""
        if state not in ("failed", "waiting"):
            run_id = tracking.create_run(uri, "sweeps", trial.name, {}, {}, recorded.run_id)
            base.record_run(recorded.folder / trial.name, run_id, uri)
        if state == "finished":
            tracking.finish_run(run_id, uri, "FINISHED")
    # One failed before it had a run, and its error is longer than MLflow takes.
    ledger.trials[2].error = "FloatingPointError: " + "no" * 5000
    ledger.halt()
    close_all(ledger, recorded)
    runs = {run.name: run for run in tracking.find_runs(uri, "sweeps", "tags.outcome != ''")}
    assert {name: (run.status, run.tags["outcome"]) for name, run in runs.items()} == {
        "trial-001": ("FINISHED", "finished"),
        "trial-002": ("KILLED", "stopped early"),
        "trial-003": ("FAILED", "failed"),
        "trial-004": ("KILLED", "unfinished"),
    }
    failed = runs["trial-003"]
    assert failed.tags["error"].startswith("FloatingPointError: nono")
    assert failed.tags["mlflow.parentRunId"] == recorded.run_id
    assert failed.params == {"lr": "0.003"}
    assert (failed.tags["stems"], failed.tags["stage"]) == ("drums", "base")
    everyone = tracking.find_runs(uri, "sweeps")
    assert len(everyone) == 5
    close_all(ledger, recorded)
    assert tracking.find_runs(uri, "sweeps") == everyone
    # As after a kill in the middle: its training has closed it, but nobody says why it failed.
    client = MlflowClient(uri)
    client.delete_tag(failed.run_id, "outcome")
    client.delete_tag(failed.run_id, "error")
    close_all(ledger, recorded)
    assert tracking.find_runs(uri, "sweeps") == everyone


def test_the_last_points_of_a_stopped_trial_arrive(recorded: Setting):
    ledger = tune._ledger(recorded)
    uri, trial = recorded.tracking_uri, ledger.trials[0]
    run_id = tracking.create_run(uri, "sweeps", trial.name, {}, {}, recorded.run_id)
    base.record_run(recorded.folder / trial.name, run_id, uri)
    points = [Point("train/loss", 1 / step, 1000 * step, step) for step in range(1, 4)]
    Journal(recorded.folder / trial.name / "metrics.jsonl").write(points)
    trial.state = "stopped early"
    for _ in range(2):
        close_all(ledger, recorded)
        history = MlflowClient(uri).get_metric_history(run_id, "train/loss")
        assert [(point.step, point.value) for point in history] == [(1, 1), (2, 1 / 2), (3, 1 / 3)]
    (run,) = tracking.find_runs(uri, "sweeps", "tags.outcome = 'stopped early'")
    assert run.status == "KILLED"


def test_a_store_that_is_away_at_the_end_is_no_failure(
    recorded: Setting, tmp_path: Path, caplog: pytest.LogCaptureFixture
):
    away = dataclasses.replace(recorded, tracking_uri=f"sqlite:///{tmp_path / 'gone' / 'm.db'}")
    ledger = tune._ledger(recorded)
    close_all(ledger, away)
    assert "the states of the trials are not checked" in caplog.text
    ledger.trials[0].state = "failed"
    report_end(ledger.trials[0], away)
    assert "trial-001 has no MLflow run" in caplog.text


@pytest.mark.parametrize(
    ("train", "said"),
    [
        ({"part": ()}, "say which stem to train"),
        ({"source": SourceConfig()}, "say where the music is"),
        ({"transfer": True}, "a transfer needs a trunk"),
    ],
)
def test_a_sweep_without_what_a_training_needs_is_refused(train: dict[str, Any], said: str):
    with pytest.raises(BadInput, match=said):
        tune.run(config(train=train))


@pytest.mark.usefixtures("ray_cluster")
def test_trials_need_their_stem_and_songs_to_be_judged_by(
    tiny_config: TrainConfig, tiny_shards: Path, tmp_path: Path
):
    def asked(**changed: Any) -> TuneConfig:
        train = dataclasses.replace(tiny_config, shards=str(tiny_shards), **changed)
        return TuneConfig(space=("lr=[1e-3]",), train=train)

    space = plan(asked())
    assert tune._shards(asked(), space) == {"{}": str(tiny_shards)}
    with pytest.raises(BadInput, match="piano"):
        tune._shards(asked(part=("piano",)), space)
    without = tmp_path / "without"
    shutil.copytree(tiny_shards, without)
    manifest = json.loads((without / "manifest.json").read_text())
    manifest["tracks"] = [track for track in manifest["tracks"] if track["split"] == "train"]
    (without / "manifest.json").write_text(json.dumps(manifest))
    config_without = dataclasses.replace(asked().train, shards=str(without))
    with pytest.raises(BadInput, match="has no validation songs"):
        tune._shards(TuneConfig(space=("lr=[1e-3]",), train=config_without), space)
