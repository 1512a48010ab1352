"""What several tests of the pipelines share: a store to record runs in, a training of a second."""

import dataclasses
import os
import shlex
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import pytest
import torch
from matplotlib.figure import Figure
from mlflow import MlflowClient
from mlflow.entities import Run
from torch import Tensor

from bsrnn_core.config import ModelConfig, StftConfig
from data_prep.chunks import track_chunks
from data_prep.config import ChunkConfig, PrepConfig, RemixConfig, SourceConfig
from data_prep.demo_songs import make_corpus
from data_prep.manifest import Manifest, PreparedTrack, content_config, hash_of
from data_prep.shards import ShardHeader, write_shard
from data_prep.tracks import Split
from pipelines import comparison_plots, plots, tracking
from pipelines.config import OptimConfig, TrainConfig
from pipelines.training import TrainingJob


@pytest.fixture(scope="session")
def migrated_database(tmp_path_factory: pytest.TempPathFactory) -> Path:
    database = tmp_path_factory.mktemp("store") / "mlflow.db"
    tracking.prepare_store(f"sqlite:///{database}")
    return database


@pytest.fixture
def uri(migrated_database: Path, tmp_path: Path) -> str:
    folder = tmp_path / "a store #1"
    folder.mkdir()
    shutil.copy(migrated_database, folder / "mlflow.db")
    return f"sqlite:///{folder / 'mlflow.db'}"


@pytest.fixture
def run_id(uri: str) -> str:
    return tracking.create_run(uri, "tests", "one", {}, {})


@pytest.fixture(scope="session")
def tiny_config() -> TrainConfig:
    """Two epochs of two steps with all that a training may carry along."""
    return TrainConfig(
        part=("vocals", "drums"),
        seed=3,
        crop_seconds=0.2,
        source=SourceConfig(stem_names=("vocals", "drums")),
        stft=StftConfig(sample_rate=8000, n_fft=256),
        chunk=ChunkConfig(chunk_size_in_seconds=0.4),
        model=ModelConfig(
            band_schema="generic", num_bands=6, feature_dim=4, num_blstm_layers=1, mlp_dim=8
        ),
        remix=RemixConfig(pool_chunks=4),
        optim=OptimConfig(
            batch_size=2, lr=1e-3, max_epochs=2, steps_per_epoch=2, ema_decay=0.9, warmup_steps=2
        ),
    )


@pytest.fixture(scope="session")
def tiny_shards(tmp_path_factory: pytest.TempPathFactory, tiny_config: TrainConfig) -> Path:
    """A prepared dataset for it: three songs of a second to train on and two to validate on."""
    folder, prep = tmp_path_factory.mktemp("shards"), tiny_config.prep
    splits: tuple[Split, ...] = ("train", "train", "train", "valid", "valid")
    tracks = tuple(
        _prepared(folder, prep, split, f"song{index}", _song(index))
        for index, split in enumerate(splits)
    )
    Manifest(
        config=dataclasses.asdict(prep),
        config_hash=hash_of(content_config(prep)),
        stems=prep.source.stem_names,
        tracks=tracks,
        left_out={},
    ).write(folder)
    return folder


@pytest.fixture
def figures(monkeypatch: pytest.MonkeyPatch) -> list[Figure]:
    """The figures that are drawn, kept instead of saved."""
    drawn: list[Figure] = []

    def keep(figure: Figure, path: str | Path) -> Path:
        drawn.append(figure)
        return Path(path)

    for drawing in (plots, comparison_plots):
        monkeypatch.setattr(drawing, "save_figure", keep)
    return drawn


@pytest.fixture(scope="session")
def runs_by_name() -> Callable[[MlflowClient, str], dict[str, Run]]:
    """``runs_by_name(client, experiment)``: all runs of an experiment, of which no two share a
    name."""

    def find(client: MlflowClient, experiment: str) -> dict[str, Run]:
        found = client.get_experiment_by_name(experiment)
        assert found is not None
        runs = client.search_runs([found.experiment_id])
        by_name = {str(run.info.run_name): run for run in runs}
        assert len(by_name) == len(runs)
        return by_name

    return find


TOY_EXPERIMENT = shlex.split(
    "--musdbhq_location songs --schemas v1 v7 --transfer_part bass --mtl false --num_seeds 1 "
    "--control_seeds 0 --max_concurrent 1 --experiment toys --sample_rate 8000 --n_fft 256 "
    "--feature_dim 4 --num_blstm_layers 1 --mlp_dim 8 --chunk_size_in_seconds 0.5 "
    "--crop_seconds 0.4 --batch_size 2 --steps_per_epoch 2 --max_epochs 3 --transfer_epochs 2 "
    "--log_every_steps 1"
)
EXPERIMENT_SECONDS = 600
"""How long one invocation of it may take on a busy machine."""


@dataclass(frozen=True, kw_only=True)
class ToyExperiment:
    """A small experiment whose process was killed in its second training, then gone on with."""

    folder: Path
    database: str
    """The MLflow store."""
    statuses_when_killed: dict[str, str]
    """Of the runs in the store: name -> status."""
    files_when_killed: dict[Path, int]
    """The files of the first, finished training, with their times of change."""


@pytest.fixture(scope="session")
def toy_experiment(tmp_path_factory: pytest.TempPathFactory) -> ToyExperiment:
    """By the command line, in processes of its own: killed with -9, then --resume."""
    home = tmp_path_factory.mktemp("experiment")
    make_corpus(home / "songs", num_train=3, num_valid=1, num_test=1, seconds=4, sample_rate=8000)
    uri = f"sqlite:///{home / 'mlflow.db'}"
    command = [sys.executable, "-m", "pipelines.cli", "experiment", "--name", "toy"]
    options = {"cwd": home, "env": os.environ | {"MLFLOW_TRACKING_URI": uri}}
    folder = home / "runs" / "toy"
    first, second = folder / "v1-base-drums-seed42", folder / "v1-base-to-bass-seed42"
    driver = subprocess.Popen([*command, *TOY_EXPERIMENT], **options)
    try:
        deadline = time.monotonic() + EXPERIMENT_SECONDS
        while not (second / "last").exists():
            assert driver.poll() is None and time.monotonic() < deadline
            time.sleep(0.05)
    finally:
        driver.send_signal(signal.SIGKILL)
        driver.wait()
    runs = tracking.find_runs(uri, "toys")
    killed = ToyExperiment(
        folder=folder,
        database=uri,
        statuses_when_killed={run.name: run.status for run in runs},
        files_when_killed={file: file.stat().st_mtime_ns for file in first.rglob("*.*")},
    )
    subprocess.run([*command, "--resume"], check=True, timeout=EXPERIMENT_SECONDS, **options)
    return killed


@pytest.fixture
def tiny_job(tiny_config: TrainConfig, tiny_shards: Path, tmp_path: Path) -> TrainingJob:
    """That training, in a new folder."""
    return TrainingJob(
        config=tiny_config, folder=tmp_path, shards=tiny_shards, metadata={"git_commit": "abc"}
    )


def _song(index: int) -> Tensor:
    """A second of a warbling tone and of clicks, in stereo: [S, C, N]."""
    random = torch.Generator().manual_seed(index)
    time = torch.arange(8000) / 8000
    tone = 0.3 * torch.sin(2 * torch.pi * (200 + 50 * index) * time + torch.sin(9 * time))
    clicks = 0.5 * torch.randn(2, 8000, generator=random) * (time % 0.25 < 0.02)
    return torch.stack([torch.stack([tone, 0.5 * tone]), clicks])


def _prepared(
    folder: Path, prep: PrepConfig, split: Split, name: str, references: Tensor
) -> PreparedTrack:
    """A song's shard, written as `bsrnn prep` does but without Ray."""
    _, channels, num_samples = references.shape
    shard = f"{split}/{name}.parquet"
    header = ShardHeader(
        config_hash=hash_of(content_config(prep)),
        track=name,
        split=split,
        stems=prep.source.stem_names,
        dtype=prep.chunk.dtype,
        shape=(prep.chunk_frames, channels, prep.stft.num_bins, 2),
        num_samples=num_samples,
        lengths="equal",
        inputs={},
    )
    chunks = list(track_chunks(references, prep))
    size, sha256 = write_shard(folder / shard, header, chunks)
    return PreparedTrack(
        name=name,
        split=split,
        num_samples=num_samples,
        channels=channels,
        shard=shard,
        rows=len(chunks),
        bytes=size,
        sha256=sha256,
        inputs={},
    )
