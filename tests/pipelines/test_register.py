"""Registered models: what another process loads by their alias gives the command line's samples."""

import json
import os
import subprocess
import sys
from pathlib import Path
from urllib.parse import unquote

import numpy as np
import pytest
import torch
from mlflow import MlflowClient

from bsrnn_core import BSRNN, BadInput, BsrnnConfig, ModelConfig, StftConfig, separate
from bsrnn_core.audio_files import read_audio, write_audio
from bsrnn_core.checkpoint import load, save
from pipelines import tracking, tracking_models
from pipelines.cli import main
from pipelines.register import RegisterConfig, run
from pipelines.tracking_models import requirements

ROOT = Path(__file__).parents[2]
CONFIG = BsrnnConfig(
    stft=StftConfig(sample_rate=8000, n_fft=256),
    model=ModelConfig(band_schema="v1", feature_dim=4, num_blstm_layers=1, mlp_dim=4),
    stems=("drums", "bass"),
)

ELSEWHERE = """
import importlib.util
import sys

repository, song = sys.argv[1:]
# As where this project is not installed.
sys.meta_path = [finder for finder in sys.meta_path if "editable" not in repr(finder).lower()]
sys.path = [path for path in sys.path if path != repository]
assert importlib.util.find_spec("bsrnn_core") is None
assert importlib.util.find_spec("pipelines") is None

import mlflow
import numpy as np

model = mlflow.pyfunc.load_model("models:/bsrnn@champion")
print("loaded", file=sys.stderr)
stems = model.predict(song)
np.savez("stems.npz", **stems)
np.savez("windows.npz", **model.predict([song], params={"window_seconds": 0.5, "overlap": 0.5})[0])
samples = np.load("samples.npy")
np.savez("samples.npz", **model.predict(samples, params={"sample_rate": 16000}))
import bsrnn_core

assert not bsrnn_core.__file__.startswith(repository), bsrnn_core.__file__
"""


@pytest.fixture
def checkpoint(tmp_path: Path) -> Path:
    return make_checkpoint(tmp_path / "run" / "best", {})


@pytest.fixture
def store(uri: str, monkeypatch: pytest.MonkeyPatch) -> MlflowClient:
    monkeypatch.setenv("MLFLOW_TRACKING_URI", uri)
    return MlflowClient(uri)


def make_checkpoint(folder: Path, metadata: dict[str, object], seed: int = 0) -> Path:
    torch.manual_seed(seed)
    save(folder, BSRNN(CONFIG), metadata)
    return folder


def register(checkpoint: Path, **options: str) -> tracking_models.Registered:
    return run(RegisterConfig(checkpoint_fp=str(checkpoint), **options))


def version_of(store: MlflowClient, alias: str) -> int:
    return int(store.get_model_version_by_alias("bsrnn", alias).version)


def test_another_process_gets_the_samples_of_the_command_line(
    store: MlflowClient, checkpoint: Path, tmp_path: Path, uri: str
) -> None:
    song, elsewhere = tmp_path / "a song.wav", tmp_path / "elsewhere"
    elsewhere.mkdir()
    write_audio(song, 0.1 * torch.randn(2, 20_000), 16000, subtype="FLOAT")
    np.save(elsewhere / "samples.npy", read_audio(song).numpy())
    assert main(["register", "--checkpoint_fp", str(checkpoint)]) == 0
    # -I: neither PYTHONPATH nor the current folder; as many threads as here.
    done = subprocess.run(
        [sys.executable, "-I", "-c", ELSEWHERE, str(ROOT), str(song)],
        cwd=elsewhere,
        env={
            **os.environ,
            "MLFLOW_TRACKING_URI": uri,
            "OMP_NUM_THREADS": str(torch.get_num_threads()),
            "CUDA_VISIBLE_DEVICES": "",
        },
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    assert "warning" not in done.stderr.lower()
    words = ["--checkpoint_fp", str(checkpoint), "--input", str(song), "--device", "cpu"]
    windows = ["--window_seconds", "0.5", "--overlap", "0.5"]
    assert main(["infer", *words, "--out", str(tmp_path / "stems")]) == 0
    assert main(["infer", *words, *windows, "--out", str(tmp_path / "windows")]) == 0
    expected = separate(load(checkpoint), song)
    for name in ("stems", "windows", "samples"):
        found = np.load(elsewhere / f"{name}.npz")
        assert found.files == ["drums", "bass"]
        for stem in found.files:
            if name != "samples":
                heard = read_audio(tmp_path / name / f"a song-{stem}.wav").numpy()
                np.testing.assert_array_equal(found[stem], heard)
            if name != "windows":
                np.testing.assert_array_equal(found[stem], expected[stem].numpy())
    apart = np.load(elsewhere / "windows.npz")["drums"] != expected["drums"].numpy()
    assert apart.any()


def test_the_alias_moves_with_the_next_version(store: MlflowClient, checkpoint: Path) -> None:
    first = register(checkpoint)
    assert (first.name, first.version) == ("bsrnn", "1")
    assert version_of(store, "champion") == 1
    register(checkpoint, alias="challenger")
    assert version_of(store, "champion") == 1
    assert version_of(store, "challenger") == 2
    register(checkpoint)
    assert version_of(store, "champion") == 3
    other = register(checkpoint, model_name="drums only")
    assert (other.name, other.version) == ("drums only", "1")


def test_a_version_belongs_to_the_run_of_its_training_which_stays_as_it_was(
    store: MlflowClient, tmp_path: Path, uri: str
) -> None:
    training = tracking.create_run(uri, "tests", "drums", {"lr": 1}, {"stage": "base"})
    tracking.finish_run(training, uri, "KILLED")
    before = store.get_run(training)
    metadata = {
        "mlflow_run_id": training,
        "git_commit": "0123abc",
        "manifest_hash": "f00",
        "valid/usdr_mean": 3.14159,
    }
    registered = register(make_checkpoint(tmp_path / "best", metadata))
    version = store.get_model_version("bsrnn", "1")
    assert registered.run_id == version.run_id == training
    assert version.tags == {
        "stems": "drums,bass",
        "band_schema": "v1",
        "training_run_id": training,
        "git_commit": "0123abc",
        "manifest_hash": "f00",
        "valid/usdr_mean": "3.1416",
    }
    after = store.get_run(training)
    assert after.info.status == "KILLED"
    assert after.info.end_time == before.info.end_time
    assert after.outputs is not None
    model_ids = [output.model_id for output in after.outputs.model_outputs]
    assert version.source == f"models:/{model_ids[0]}"
    versions = json.loads(store.get_logged_model(model_ids[0]).tags["mlflow.modelVersions"])
    assert [(each["name"], int(each["version"])) for each in versions] == [("bsrnn", 1)]
    assert len(store.search_runs([before.info.experiment_id])) == 1


@pytest.mark.parametrize("run_is", ["unnamed", "unknown", "deleted"])
def test_without_the_run_of_its_training_it_gets_one_of_its_own(
    store: MlflowClient, tmp_path: Path, uri: str, run_is: str
) -> None:
    metadata: dict[str, object] = {"valid/usdr_mean": None}
    if run_is == "unknown":
        metadata["mlflow_run_id"] = "0" * 32
    if run_is == "deleted":
        metadata["mlflow_run_id"] = tracking.create_run(uri, "tests", "drums", {}, {})
        store.delete_run(str(metadata["mlflow_run_id"]))
    registered = register(make_checkpoint(tmp_path / "best", metadata), experiment="models")
    own = store.get_run(registered.run_id)
    assert own.info.status == "FINISHED"
    assert own.info.run_name == "register bsrnn"
    assert own.data.tags["stage"] == "registration"
    found = store.get_experiment_by_name("models")
    assert found is not None and found.experiment_id == own.info.experiment_id
    assert "valid/usdr_mean" not in store.get_model_version("bsrnn", "1").tags


def test_what_is_kept_names_all_that_it_needs_and_holds_no_pickle(
    store: MlflowClient, checkpoint: Path, caplog: pytest.LogCaptureFixture
) -> None:
    (checkpoint / "training_state.pt").write_bytes(b"optimiser")
    source = store.get_model_version("bsrnn", register(checkpoint).version).source
    assert "warning" not in caplog.text.lower()
    location = store.get_logged_model(str(source).removeprefix("models:/")).artifact_location
    folder = Path(unquote(location.removeprefix("file://")))
    names = {path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.is_file()}
    assert not [name for name in names if name.endswith((".pkl", ".pt", ".pyc"))]
    assert {name for name in names if name.startswith("data/")} == {
        "data/checkpoint/config.json",
        "data/checkpoint/model.safetensors",
    }
    packed = {path.name for path in (ROOT / "bsrnn_core").glob("*.py")}
    assert {Path(name).name for name in names if name.startswith("code/")} == packed
    assert (folder / "requirements.txt").read_text().split() == requirements()
    assert f"torch=={torch.__version__.partition('+')[0]}" in requirements()


@pytest.mark.parametrize(
    ("words", "sentence"),
    [
        (["--model_name", "a/b"], "model_name 'a/b' names no model"),
        (["--model_name", "a:1"], "model_name 'a:1' names no model"),
        (["--model_name", ".."], "model_name '..' names no model"),
        (["--model_name="], "model_name '' names no model"),
        (["--alias", "the best"], "alias 'the best' is none"),
        (["--alias="], "alias '' is none"),
        (["--alias", "Latest"], "alias Latest is MLflow's own"),
        (["--alias", "v12"], "alias v12 is MLflow's own"),
    ],
)
def test_names_that_mlflow_does_not_take_are_refused_beforehand(
    words: list[str],
    sentence: str,
    store: MlflowClient,
    checkpoint: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    assert main(["register", "--checkpoint_fp", str(checkpoint), *words]) == 2
    assert sentence in capsys.readouterr().err
    assert not store.search_registered_models()
    assert [found.name for found in store.search_experiments()] == ["Default"]


def test_no_checkpoint_and_no_store_are_refused(
    store: MlflowClient, checkpoint: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with pytest.raises(BadInput, match="there is no such checkpoint folder"):
        register(tmp_path / "nothing")
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "http://127.0.0.1:9")
    with pytest.raises(BadInput, match="no MLflow server answers"):
        register(checkpoint)


def test_what_the_store_refuses_leaves_alias_and_a_failed_run(
    store: MlflowClient, checkpoint: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    register(checkpoint)

    def full(self: MlflowClient, model_id: str, local_dir: str) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(MlflowClient, "log_model_artifacts", full)
    with pytest.raises(BadInput, match=r"does not register bsrnn .*No space left on device"):
        register(checkpoint)
    assert version_of(store, "champion") == 1
    experiment = store.get_experiment_by_name("bsrnn")
    assert experiment is not None
    statuses = [found.info.status for found in store.search_runs([experiment.experiment_id])]
    assert sorted(statuses) == ["FAILED", "FINISHED"]
