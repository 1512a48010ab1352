"""What several tests of the pipelines share: a store to record runs in."""

import shutil
from pathlib import Path

import pytest

from pipelines import tracking


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
