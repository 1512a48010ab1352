from pathlib import Path

import pytest

from data_prep.storage import RemotePath
from tests.remote import remote_at


@pytest.fixture
def remote(bucket: str) -> RemotePath:
    """A folder in a new bucket, whose name a URI could not hold as it is."""
    return remote_at(f"{bucket}/a folder#1?/100%25 ü")


@pytest.fixture
def empty_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, object_store: str) -> Path:
    monkeypatch.setenv("BSRNN_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache"
