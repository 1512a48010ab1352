"""What tests of several packages share: one Ray, and small songs on disk."""

import zlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path

import numpy as np
import pytest
import soundfile

from bsrnn_core.config import STEMS


@pytest.fixture(scope="session")
def ray_cluster() -> Iterator[str]:
    """The address of one local Ray with four logical CPUs, on the loopback interface only."""
    import ray

    ray.init(
        num_cpus=4,
        include_dashboard=False,
        log_to_driver=False,
        object_store_memory=500_000_000,
        _node_ip_address="127.0.0.1",
    )
    yield ray.get_runtime_context().gcs_address
    ray.shutdown()


@pytest.fixture
def write_songs() -> Callable[..., Path]:
    """``write_songs(root, {"train": ["a", "b"]}, ...)`` writes a folder of multi-track songs.

    Every stem is noise whose level swells and ebbs, different for each song and stem.
    """

    def write(
        root: Path,
        names: Mapping[str, Sequence[str]],
        *,
        stems: Sequence[str] = STEMS,
        num_samples: int = 16000,
        sample_rate: int = 8000,
        channels: int = 2,
        ending: str = "wav",
        mixture: bool = False,
    ) -> Path:
        for split, songs in names.items():
            for song in songs:
                folder = root / split / song
                folder.mkdir(parents=True)
                total = np.zeros((num_samples, channels))
                for stem in stems:
                    random = np.random.default_rng(zlib.crc32(f"{song}/{stem}".encode()))
                    level = 0.05 * (1 + np.sin(np.linspace(random.uniform(0, 6), 20, num_samples)))
                    samples = level[:, None] * random.standard_normal((num_samples, channels))
                    total += samples
                    soundfile.write(folder / f"{stem}.{ending}", samples, sample_rate)
                if mixture:
                    soundfile.write(folder / f"mixture.{ending}", total, sample_rate)
        return root

    return write
