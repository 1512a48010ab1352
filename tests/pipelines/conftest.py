"""What several tests of the pipelines share: a store to record runs in, a training of a second."""

import dataclasses
import shutil
from pathlib import Path

import pytest
import torch
from torch import Tensor

from bsrnn_core.config import ModelConfig, StftConfig
from data_prep.chunks import track_chunks
from data_prep.config import ChunkConfig, PrepConfig, RemixConfig, SourceConfig
from data_prep.manifest import Manifest, PreparedTrack, content_config, hash_of
from data_prep.shards import ShardHeader, write_shard
from data_prep.tracks import Split
from pipelines import tracking
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
    write_shard(folder / shard, header, chunks)
    return PreparedTrack(
        name=name,
        split=split,
        num_samples=num_samples,
        channels=channels,
        shard=shard,
        rows=len(chunks),
        bytes=(folder / shard).stat().st_size,
        sha256="",
        inputs={},
    )
