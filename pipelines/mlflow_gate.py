"""The MLflow server of a cluster, which answers nobody without the token that Ray asks for too.

    mlflow server --app-name bsrnn --host 10.0.0.5 ...

Programs send it as MLFLOW_TRACKING_TOKEN; a browser asks for a password (any user name will do).
"""

import base64
import binascii
import hmac
import os
from collections.abc import Awaitable, Callable, Mapping, MutableMapping
from pathlib import Path
from typing import Any

Scope = MutableMapping[str, Any]
Receive = Callable[[], Awaitable[MutableMapping[str, Any]]]
Send = Callable[[MutableMapping[str, Any]], Awaitable[None]]
App = Callable[[Scope, Receive, Send], Awaitable[None]]

TOKEN_FILE = Path("~/.ray/auth_token")


def create_app() -> "TokenGate":
    """MLflow's own application behind the gate. Raises OSError without a token."""
    from mlflow.server.fastapi_app import app

    return TokenGate(app, ray_token())


def ray_token() -> str:
    """The token of this user's Ray."""
    given = os.environ.get("RAY_AUTH_TOKEN")
    return given or TOKEN_FILE.expanduser().read_text(encoding="ascii").strip()


class TokenGate:
    """An ASGI application that passes on to another what comes with the token."""

    def __init__(self, app: App, token: str) -> None:
        if not token:
            raise ValueError("an empty token would let everybody in")
        self.app, self.token = app, token.encode()

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer with 401 to what has no token, or another one."""
        if scope["type"] == "lifespan" or self._is_known(dict(scope["headers"])):
            await self.app(scope, receive, send)
        elif scope["type"] == "websocket":
            await send({"type": "websocket.close", "code": 1008})
        else:
            headers = [
                (b"content-type", b"text/plain"),
                (b"www-authenticate", b'Basic realm="the password is the token of Ray"'),
            ]
            await send({"type": "http.response.start", "status": 401, "headers": headers})
            await send({"type": "http.response.body", "body": b"this needs Ray's token\n"})

    def _is_known(self, headers: Mapping[bytes, bytes]) -> bool:
        kind, _, credentials = headers.get(b"authorization", b"").partition(b" ")
        if kind.lower() == b"basic":
            try:
                credentials = base64.b64decode(credentials, validate=True).partition(b":")[2]
            except binascii.Error:
                return False
        elif kind.lower() != b"bearer":
            return False
        return hmac.compare_digest(credentials.strip(), self.token)
