"""A stranger's first hour: prepare, train with two workers, resume, evaluate, infer, transfer;
all of it by flags."""

import json
import shlex
from collections.abc import Callable
from pathlib import Path

import mlflow
import pytest
import soundfile
import torch

from bsrnn_core import load
from bsrnn_core.checkpoint import read_metadata
from pipelines.cli import main
from pipelines.config import TrainConfig
from pipelines.config_files import read_yaml

STEMS = ("voice", "drums", "strings")
SONGS = {"train": ["a", "b", "c"], "valid": ["d"], "test": ["e"]}
SMALL = shlex.split(
    "--sample_rate 8000 --n_fft 256 --band_schema v1 --feature_dim 4 --num_blstm_layers 1 "
    "--mlp_dim 8 --chunk_size_in_seconds 0.5 --crop_seconds 0.4 --batch_size 3 --num_workers 2 "
    "--steps_per_epoch 2 --ema_decay 0.9 --log_every_steps 1"
)

STEM_OF_SHARDS = ("--part", "drums", "--name", "x", "--shards", "s")


@pytest.fixture
def elsewhere(tmp_path: Path, uri: str, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("MLFLOW_TRACKING_URI", uri)
    return tmp_path


@pytest.mark.usefixtures("ray_cluster")
def test_from_songs_to_a_separated_song(
    elsewhere: Path, uri: str, write_songs: Callable[..., Path], capsys: pytest.CaptureFixture[str]
):
    music = str(write_songs(elsewhere / "music", SONGS, stems=STEMS, num_samples=8000))
    words = [
        "--musdbhq_location",
        "music",
        "--stem_names",
        *STEMS,
        "--part",
        "drums",
        "--name",
        "d",
    ]

    assert main(["train", *words, *SMALL, "--max_epochs", "1"]) == 0
    run = elsewhere / "runs" / "d"
    assert load(run / "best").stems == ("drums",)
    # As a transfer that is started in another folder needs it.
    assert read_yaml(run / "config.yaml", TrainConfig)["musdbhq_location"] == music
    assert read_metadata(run / "last")["step"] == 2

    assert main(["train", *words, *SMALL, "--max_epochs", "1"]) == 2  # the name is taken
    assert "take another --name, or give --resume" in capsys.readouterr().err
    assert main(["train", "--name", "d", "--resume", "--feature_dim", "6"]) == 2
    assert "feature_dim is 4 and not 6" in capsys.readouterr().err
    assert main(["train", "--name", "d", "--resume", "--lr", "0.5"]) == 2
    assert "lr is 0.001 and not 0.5" in capsys.readouterr().err
    assert main(["train", "--name", "d", "--resume", "--max_epochs", "2"]) == 0
    last = read_metadata(run / "last")
    assert (last["step"], last["epoch"]) == (4, 2)

    checkpoint = ["--checkpoint_fp", str(run / "best")]
    source = ["--musdbhq_location", music, "--stem_names", *STEMS]
    assert main(["evaluate", *checkpoint, *source]) == 0
    scores = json.loads((run / "evaluation" / "best" / "test" / "e.json").read_text())
    assert [part["name"] for part in scores["targets"]] == ["drums"]

    song = str(Path(music) / "test" / "e" / "strings.wav")
    assert main(["infer", *checkpoint, "--input", song, "--out", str(elsewhere / "out")]) == 0
    separated = soundfile.info(elsewhere / "out" / "strings-drums.wav")
    assert (separated.frames, separated.samplerate, separated.channels) == (8000, 8000, 2)

    client = mlflow.MlflowClient(uri)
    logged = client.get_run(last["mlflow_run_id"])
    assert logged.info.status == "FINISHED"
    assert logged.data.params["feature_dim"] == "4"
    assert logged.data.tags["stage"] == "base"
    assert {"valid/usdr_drums", "test/usdr_drums", "train/loss"} <= set(logged.data.metrics)
    steps = [point.step for point in client.get_metric_history(logged.info.run_id, "train/loss")]
    assert steps == [1, 2, 3, 4]
    artifacts = {file.path for file in client.list_artifacts(logged.info.run_id)}
    assert {"checkpoint", "samples", "config.yaml"} <= artifacts

    # What is not said is as in the run of the checkpoint.
    assert main(["transfer", *checkpoint, "--part", "voice", "--name", "v"]) == 0
    judge_transfer(elsewhere / "runs" / "v", run, client)


def judge_transfer(transfer: Path, trunk: Path, client: mlflow.MlflowClient) -> None:
    """Its trunk is the other run's, and MLflow knows which that was and what the training cost."""
    model, base = load(transfer / "best"), load(trunk / "best")
    assert model.stems == ("voice",)
    for mine, theirs in zip(model.trunk.parameters(), base.trunk.parameters(), strict=True):
        assert torch.equal(mine, theirs)
    logged = client.get_run(read_metadata(transfer / "last")["mlflow_run_id"])
    tags, metrics = logged.data.tags, logged.data.metrics
    assert (tags["stage"], tags["way"]) == ("transfer", "transfer from base")
    assert tags["checkpoint_run_id"] == read_metadata(trunk / "best")["mlflow_run_id"]
    assert logged.data.params["feature_dim"] == "4"
    assert metrics["system/minutes"] > 0
    assert metrics["system/peak_memory_gb"] > 0
    heads = sum(parameter.numel() for parameter in model.heads.parameters())
    assert metrics["system/parameters_trained"] == heads
    epochs, scores = (
        {point.step: point.value for point in client.get_metric_history(logged.info.run_id, name)}
        for name in ("valid/epoch", "valid/usdr_mean")
    )
    assert epochs == {2: 1, 4: 2}
    assert scores.keys() == epochs.keys()


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["--part", "drums", "--name", "x"], "say where the music is"),
        (["--part", "drums", "--musdbhq_location", "nowhere"], "give --name"),
        (["--name", "x", "--musdbhq_location", "nowhere"], "--part drums"),
        (["--part", "drums", "--name", "a/b", "--shards", "s"], "plain folder name"),
        (["--part", "drums", "--part", "drums", "--name", "x", "--shards", "s"], "twice"),
        (["--part", "drums", "--name", "x", "--crop_seconds", "9"], "longer than a stored chunk"),
        (
            ["--part", "drums", "--name", "x", "--batch_size", "3", "--num_workers", "4"],
            "without an example",
        ),
        ([*STEM_OF_SHARDS, "--transfer"], "name its checkpoint folder with --checkpoint_fp"),
        ([*STEM_OF_SHARDS, "--unfreeze_after_epochs", "2"], "goes with --transfer"),
        (
            [*STEM_OF_SHARDS, "--transfer", "--unfreeze_after_epochs", "0"],
            "unfreeze_after_epochs must be at least 1, not 0",
        ),
        (
            [*STEM_OF_SHARDS, "--stem_weights", "1", "2"],
            "stem_weights holds 2 weights for the stems drums: give one for each",
        ),
        ([*STEM_OF_SHARDS, "--stem_weights", "0"], "stem_weights must be positive"),
        ([*STEM_OF_SHARDS, "--stem_weights", "-1"], "stem_weights must be positive"),
    ],
)
def test_what_cannot_be_trained_is_refused_at_once(
    words: list[str], said: str, elsewhere: Path, capsys: pytest.CaptureFixture[str]
):
    assert main(["train", *words]) == 2
    shown = capsys.readouterr().err
    assert said in shown
    assert shown.count("\n") == 1
    assert not (elsewhere / "runs").exists()


@pytest.mark.usefixtures("ray_cluster")
@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["--musdbhq_location", "nowhere"], "nowhere"),
        (["--shards", "nowhere"], "nowhere"),
    ],
)
def test_missing_data_is_named(
    words: list[str], said: str, elsewhere: Path, capsys: pytest.CaptureFixture[str]
):
    assert main(["train", "--part", "drums", "--name", "x", *words]) == 2
    assert said in capsys.readouterr().err
    assert not (elsewhere / "runs" / "x").exists()
