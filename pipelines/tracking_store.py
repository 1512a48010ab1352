"""Which store runs are recorded in, and whether it is there; without importing MLflow."""

import fcntl
import importlib.util
import os
import re
import ssl
import urllib.error
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from bsrnn_core.errors import BadInput


def tracking_uri() -> str:
    """MLFLOW_TRACKING_URI, or mlflow.db in the current folder; local paths are made absolute."""
    uri = os.environ.get("MLFLOW_TRACKING_URI") or "sqlite:///mlflow.db"
    database = database_file(uri)
    if database is not None:
        head, _, rest = uri.partition(":///")
        _, mark, query = rest.partition("?")
        return f"{head}:///{database}{mark}{query}"
    if uri.startswith("file:"):
        return Path(re.sub("^file:(//)?", "", uri)).absolute().as_uri()
    if "://" not in uri and uri != "databricks":
        return str(Path(uri).absolute())
    return uri


def current_uri(recorded: str) -> str:
    """Where a run is now that was recorded at ``recorded``.

    The server of a cluster has another address after the cluster was made anew: where that of the
    run does not answer, it is the one of MLFLOW_TRACKING_URI.
    """
    now = tracking_uri()
    moved = is_http(recorded) and is_http(now) and now != recorded
    return now if moved and check_reachable(recorded) else recorded


def database_file(uri: str) -> Path | None:
    """The absolute path of a sqlite URI's file; None for any other URI."""
    head, separator, rest = uri.partition(":///")
    if not (separator and head.startswith("sqlite")):
        return None
    return Path(rest.partition("?")[0]).absolute()


def is_http(uri: str) -> bool:
    """Whether a store is behind a server."""
    return uri.startswith(("http://", "https://"))


def shown(uri: str) -> str:
    """The URI without a password, for messages."""
    return re.sub(r"//[^/@]*@", "//", uri)


def artifact_location(uri: str) -> str | None:
    """BSRNN_ARTIFACTS, such as s3://bucket/artifacts, or mlartifacts beside the database; None
    where the server decides.

    Raises BadInput where MLflow could not write there.
    """
    if is_http(uri) or uri.startswith("databricks"):
        return None
    named = os.environ.get("BSRNN_ARTIFACTS")
    if named and "://" in named:
        if named.startswith("s3:") and importlib.util.find_spec("boto3") is None:
            raise BadInput(f"BSRNN_ARTIFACTS is {named}, which MLflow needs boto3 for: install it")
        return named
    if named:
        return Path(named).absolute().as_uri()
    database = database_file(uri)
    folder = Path.cwd() if database is None else database.parent
    return (folder / "mlartifacts").as_uri()


@contextmanager
def folder_lock(database: Path | None) -> Iterator[None]:
    """Lock the database's folder itself, which leaves no lock file behind."""
    if database is None:
        yield
        return
    folder = os.open(database.parent, os.O_RDONLY)
    try:
        with suppress(OSError):  # a network file system may lock no folders
            fcntl.flock(folder, fcntl.LOCK_EX)
        yield
    finally:
        os.close(folder)


def check_reachable(uri: str, timeout_s: float = 5) -> str | None:
    """One sentence saying why the store at ``uri`` cannot be used, or None when it can.

    Takes at most about ``timeout_s`` seconds and neither imports MLflow nor writes anything.
    """
    if is_http(uri):
        return _check_server(uri, timeout_s)
    if uri.startswith("sqlite"):
        return _check_database(uri)
    if "://" not in uri or uri.startswith("file:"):
        return (
            f"MLflow no longer records runs in a folder such as {uri}: "
            "set MLFLOW_TRACKING_URI to sqlite:///FILE or to a server's address, or unset it"
        )
    return None


def _check_server(uri: str, timeout_s: float) -> str | None:
    remedy = "start it, or unset MLFLOW_TRACKING_URI to record in a local file"
    address = re.sub(r"//[^/@]*@", "//", uri.rstrip("/")) + "/health"
    try:
        with urllib.request.urlopen(address, timeout=timeout_s):
            return None
    except urllib.error.HTTPError as error:
        if error.code == 403:
            return (
                f"the MLflow server at {shown(uri)} refuses this host (403): "
                "start it with --allowed-hosts naming the host that its address holds"
            )
        if error.code < 500:
            return None  # a proxy may hide /health: the first real request will tell
        return f"the MLflow server at {shown(uri)} answers with error {error.code}: {remedy}"
    except (OSError, ValueError) as error:
        reason = getattr(error, "reason", error)
        if isinstance(reason, ssl.SSLError):
            return None  # it answers; MLflow has settings of its own for certificates
        return f"no MLflow server answers at {shown(uri)} ({reason}): {remedy}"


def _check_database(uri: str) -> str | None:
    database = database_file(uri)
    if database is None or database.is_dir():
        return f"{uri} names no database file: write sqlite:///FILE in MLFLOW_TRACKING_URI"
    if not database.parent.is_dir():
        return f"the folder of {database} does not exist: create it, or unset MLFLOW_TRACKING_URI"
    try:
        with database.open("rb") as file:
            header = file.read(16)
    except FileNotFoundError:
        header = b""
    except OSError as error:
        return f"{database} cannot be read ({error.strerror}): correct its permissions"
    if header and not header.startswith(b"SQLite format 3"):
        return f"{database} is not a sqlite database: name another file in MLFLOW_TRACKING_URI"
    target = database if database.exists() else database.parent
    if not os.access(target, os.W_OK):
        return f"{target} is not writable: correct its permissions, or set MLFLOW_TRACKING_URI"
    return None
