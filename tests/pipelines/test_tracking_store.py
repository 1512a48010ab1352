"""Addresses of stores, and what is said of those that cannot be used."""

import os
import socket
import threading
import time
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path

import pytest

from pipelines import tracking_store
from pipelines.tracking_store import check_reachable, tracking_uri


@pytest.mark.parametrize(
    ("value", "expected"),
    [
        (None, "sqlite:///{cwd}/mlflow.db"),
        ("", "sqlite:///{cwd}/mlflow.db"),
        ("sqlite:///sub/my.db?timeout=9", "sqlite:///{cwd}/sub/my.db?timeout=9"),
        ("sqlite:////data/my.db", "sqlite:////data/my.db"),
        ("./mlruns", "{cwd}/mlruns"),
        ("file:./mlruns", "file://{cwd}/mlruns"),
        ("file:///data/mlruns", "file:///data/mlruns"),
        ("http://head:5000", "http://head:5000"),
        ("postgresql://me@head/runs", "postgresql://me@head/runs"),
        ("databricks", "databricks"),
    ],
)
def test_local_addresses_are_absolute(
    value: str | None, expected: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    if value is None:
        monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    else:
        monkeypatch.setenv("MLFLOW_TRACKING_URI", value)
    assert tracking_uri() == expected.format(cwd=tmp_path)


def test_a_database_that_can_be_made_is_reachable_and_not_made(tmp_path: Path) -> None:
    assert check_reachable(f"sqlite:///{tmp_path / 'new.db'}") is None
    assert not list(tmp_path.iterdir())


def test_databases_that_cannot_be_used(tmp_path: Path) -> None:
    (tmp_path / "text.db").write_text("this is not what you are looking for")
    for uri, part in {
        f"sqlite:///{tmp_path / 'missing' / 'mlflow.db'}": "does not exist: create it",
        f"sqlite:///{tmp_path / 'text.db'}": "text.db is not a sqlite database",
        f"sqlite:///{tmp_path}": "names no database file",
        "sqlite://mlflow.db": "names no database file",
        str(tmp_path): "no longer records runs in a folder",
        tmp_path.as_uri(): "no longer records runs in a folder",
    }.items():
        problem = check_reachable(uri)
        assert problem is not None
        assert part in problem


@pytest.mark.skipif(os.geteuid() == 0, reason="root may write everywhere")
def test_a_folder_that_is_not_writable(tmp_path: Path) -> None:
    tmp_path.chmod(0o500)
    problem = check_reachable(f"sqlite:///{tmp_path / 'mlflow.db'}")
    assert problem is not None
    assert "is not writable" in problem


class Health(BaseHTTPRequestHandler):
    """Answers with the status that the test wants."""

    status = 200
    path_asked = ""

    def do_GET(self) -> None:
        type(self).path_asked = self.path
        self.send_response(self.status)
        self.end_headers()

    def log_message(self, format: str, *args: object) -> None:
        pass


@pytest.fixture
def server() -> Iterator[str]:
    server = HTTPServer(("127.0.0.1", 0), Health)
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    yield f"http://127.0.0.1:{server.server_port}"
    server.shutdown()
    server.server_close()


@pytest.mark.parametrize(
    ("status", "part"),
    [(200, None), (401, None), (404, None), (403, "--allowed-hosts"), (503, "error 503")],
)
def test_what_a_server_answers(
    server: str, status: int, part: str | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(Health, "status", status)
    problem = check_reachable(f"{server}/")
    assert Health.path_asked == "/health"
    if part is None:
        assert problem is None
    else:
        assert problem is not None
        assert part in problem


def test_nobody_answers_and_no_password_is_shown() -> None:
    with socket.socket() as unused:
        unused.bind(("127.0.0.1", 0))
        port = unused.getsockname()[1]
    problem = check_reachable(f"http://me:secret@127.0.0.1:{port}")
    assert problem is not None
    assert f"http://127.0.0.1:{port}" in problem
    assert "start it, or unset MLFLOW_TRACKING_URI" in problem
    assert "secret" not in problem


def test_a_server_that_never_answers_does_not_hang_us() -> None:
    with socket.socket() as silent:
        silent.bind(("127.0.0.1", 0))
        silent.listen()
        start = time.monotonic()
        problem = check_reachable(f"http://127.0.0.1:{silent.getsockname()[1]}", timeout_s=0.3)
        assert time.monotonic() - start < 2
    assert problem is not None
    assert "timed out" in problem


@pytest.mark.parametrize(
    ("recorded", "now", "answers", "expected"),
    [
        ("http://10.0.0.5:5000", "http://10.0.0.9:5000", False, "http://10.0.0.9:5000"),
        ("http://10.0.0.5:5000", "http://10.0.0.9:5000", True, "http://10.0.0.5:5000"),
        ("http://10.0.0.5:5000", "sqlite:////a/mlflow.db", False, "http://10.0.0.5:5000"),
        ("sqlite:////a/mlflow.db", "http://10.0.0.9:5000", False, "sqlite:////a/mlflow.db"),
    ],
)
def test_a_run_moves_with_its_server_only(
    recorded: str, now: str, answers: bool, expected: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("MLFLOW_TRACKING_URI", now)
    answer = None if answers else "no MLflow server answers"
    monkeypatch.setattr(tracking_store, "check_reachable", lambda uri: answer)
    assert tracking_store.current_uri(recorded) == expected
