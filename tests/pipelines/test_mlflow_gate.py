"""Who gets through to the MLflow server of a cluster."""

import asyncio
import base64
from collections.abc import MutableMapping
from pathlib import Path
from typing import Any

import pytest

from pipelines.mlflow_gate import TokenGate, ray_token

TOKEN = "0123456789abcdef"


async def everything(scope: MutableMapping[str, Any], receive: Any, send: Any) -> None:
    await send({"type": "http.response.start", "status": 200, "headers": []})


def answer(authorization: bytes | None, kind: str = "http") -> MutableMapping[str, Any]:
    sent: list[MutableMapping[str, Any]] = []

    async def send(message: MutableMapping[str, Any]) -> None:
        sent.append(message)

    headers = [] if authorization is None else [(b"authorization", authorization)]
    gate = TokenGate(everything, TOKEN)
    asyncio.run(gate({"type": kind, "headers": headers}, None, send))  # type: ignore[arg-type]
    return sent[0]


def basic(text: str) -> bytes:
    return b"Basic " + base64.b64encode(text.encode())


@pytest.mark.parametrize("given", [b"Bearer " + TOKEN.encode(), basic(f"me:{TOKEN}")])
def test_the_token_lets_in(given: bytes):
    assert answer(given)["status"] == 200


@pytest.mark.parametrize(
    "given",
    [
        None,
        b"",
        b"Bearer",
        b"Bearer ",
        b"Bearer 0123456789abcdeF",
        TOKEN.encode(),
        b"Digest " + TOKEN.encode(),
        b"Basic " + TOKEN.encode(),
        b"Basic \xff",
        basic(f"{TOKEN}:"),
        basic("me:"),
    ],
)
def test_nothing_else_does(given: bytes | None):
    refusal = answer(given)
    assert refusal["status"] == 401
    # So that a browser asks.
    assert dict(refusal["headers"])[b"www-authenticate"].startswith(b"Basic")


def test_a_websocket_is_closed():
    assert answer(None, "websocket")["type"] == "websocket.close"


def test_an_empty_token_is_none():
    with pytest.raises(ValueError, match="empty"):
        TokenGate(everything, "")


def test_the_token_is_rays_own(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.delenv("RAY_AUTH_TOKEN", raising=False)
    with pytest.raises(OSError):
        ray_token()
    (tmp_path / ".ray").mkdir()
    (tmp_path / ".ray" / "auth_token").write_text(f"{TOKEN}\n")
    assert ray_token() == TOKEN
    monkeypatch.setenv("RAY_AUTH_TOKEN", "another")
    assert ray_token() == "another"


def test_mlflow_finds_the_gate():
    from mlflow.server import _find_app

    assert _find_app("bsrnn") == "pipelines.mlflow_gate:create_app"
