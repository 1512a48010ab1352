"""Where runs are recorded; beside it tracking_models.py alone knows MLflow.

Nothing here has hidden state: every function takes the tracking URI, and the run's id where there
is a run. What belongs to the start of a run (`prepare_store`, `create_run`) refuses a store that
cannot be used; everything later only warns, so that no training dies of its tracking server.
"""

import logging
import os
import shlex
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Literal, TypeVar

from bsrnn_core.errors import BadInput
from pipelines.tracking_journal import Journal, Point
from pipelines.tracking_params import as_text, flatten, mlflow_key, recordable
from pipelines.tracking_queue import POINTS_PER_BATCH, BackgroundLog, Refused, first_line
from pipelines.tracking_runs import RecordedRun, read_curves, search_runs
from pipelines.tracking_store import (
    artifact_location,
    check_reachable,
    current_uri,
    database_file,
    folder_lock,
    is_http,
    shown,
    tracking_uri,
)

if TYPE_CHECKING:
    from mlflow import MlflowClient

__all__ = [
    "RunStatus",
    "Tracker",
    "check_reachable",
    "connect",
    "create_run",
    "current_uri",
    "find_runs",
    "finish_run",
    "flatten",
    "log_results",
    "metric_curves",
    "prepare_store",
    "reopen_run",
    "run_url",
    "tracking_uri",
]

logger = logging.getLogger(__name__)

RunStatus = Literal["FINISHED", "FAILED", "KILLED"]
T = TypeVar("T")

MAX_PARAMS_PER_BATCH = 100
MAX_PARAM_LENGTH = 6000
MAX_TAG_LENGTH = 8000

_ENVIRONMENT = {
    # MLflow's own retries block for minutes; the Tracker's thread has better ones.
    "MLFLOW_HTTP_REQUEST_MAX_RETRIES": "0",
    "MLFLOW_HTTP_REQUEST_TIMEOUT": "30",
    "MLFLOW_SUPPRESS_PRINTING_URL_TO_STDOUT": "true",
    "MLFLOW_DISABLE_TELEMETRY": "true",
}
"""Set before MLflow is imported, unless the user has set them."""


def _load_mlflow() -> "type[MlflowClient]":
    for name, value in _ENVIRONMENT.items():
        os.environ.setdefault(name, value)
    from mlflow import MlflowClient

    return MlflowClient


def connect(uri: str) -> "MlflowClient":
    """MLflow's own client of a store."""
    return _load_mlflow()(tracking_uri=uri)


def prepare_store(uri: str) -> None:
    """Bring the store's tables up to date: seconds the first time, then next to nothing.

    Call it in the driver before anything runs in parallel. Two programs that start at once in one
    folder wait for each other. Raises BadInput when the store cannot be used.
    """
    problem = check_reachable(uri)
    if problem is not None:
        raise BadInput(problem)
    try:
        with folder_lock(database_file(uri)):
            connect(uri).search_experiments(max_results=1)
    except Exception as error:
        raise BadInput(
            f"the MLflow store at {shown(uri)} cannot be used ({first_line(error)}): "
            "correct that, or set MLFLOW_TRACKING_URI to another one"
        ) from error


def create_run(
    uri: str,
    experiment: str,
    name: str,
    params: Mapping[str, object],
    tags: Mapping[str, str],
    parent_run_id: str | None = None,
) -> str:
    """Start a run and return its id; the experiment is made when there is none.

    Values longer than MLflow takes are cut. Raises BadInput when the store is not reachable or
    refuses the run.
    """
    prepare_store(uri)
    from mlflow.entities import Param

    parameters = [
        Param(mlflow_key(key), as_text(value)[:MAX_PARAM_LENGTH]) for key, value in params.items()
    ]
    run_tags = {mlflow_key(key): str(value)[:MAX_TAG_LENGTH] for key, value in tags.items()}
    if parent_run_id is not None:
        run_tags["mlflow.parentRunId"] = parent_run_id
    client = connect(uri)
    try:
        experiment_id = _experiment(client, uri, experiment)
        run = client.create_run(experiment_id, tags=run_tags, run_name=name)
        run_id: str = run.info.run_id
        for first in range(0, len(parameters), MAX_PARAMS_PER_BATCH):
            batch = parameters[first : first + MAX_PARAMS_PER_BATCH]
            client.log_batch(run_id, params=batch, synchronous=True)
    except BadInput:
        raise
    except Exception as error:
        raise BadInput(
            f"the MLflow store at {shown(uri)} refuses a run in experiment {experiment} "
            f"({first_line(error)}): correct that, or set MLFLOW_TRACKING_URI to another one"
        ) from error
    return run_id


def _experiment(client: "MlflowClient", uri: str, name: str) -> str:
    """The experiment's id; when several programs create it at once, all get the same one."""
    from mlflow.exceptions import MlflowException

    found = client.get_experiment_by_name(name)
    if found is None:
        try:
            return client.create_experiment(name, artifact_location=artifact_location(uri))
        except MlflowException:
            found = client.get_experiment_by_name(name)
            if found is None:
                raise
    if found.lifecycle_stage != "active":
        raise BadInput(
            f"experiment {name} at {shown(uri)} is deleted: take another name, or bring it back "
            f"with `mlflow experiments restore --experiment-id {found.experiment_id}`"
        )
    return found.experiment_id


def reopen_run(run_id: str, uri: str) -> None:
    """Mark a run that is resumed as running. Warns when the store is away."""
    _or_warn(run_id, uri, lambda client: client.update_run(run_id, status="RUNNING"))


def finish_run(
    run_id: str, uri: str, status: RunStatus, tags: Mapping[str, str] | None = None
) -> None:
    """Mark a run as ended, with more ``tags``. Warns when the store is away: the run then looks as
    if it ran on."""

    def finish(client: "MlflowClient") -> None:
        for key, value in (tags or {}).items():
            client.set_tag(run_id, mlflow_key(key), value[:MAX_TAG_LENGTH])
        client.set_terminated(run_id, status)

    _or_warn(run_id, uri, finish)


def _or_warn(run_id: str, uri: str, action: "Callable[[MlflowClient], None]") -> None:
    try:
        _Run(run_id, uri).call(action)
    except Exception as error:
        logger.warning("the state of MLflow run %s is not updated: %s", run_id, first_line(error))


def log_results(
    run_id: str, uri: str, metrics: Mapping[str, float], artifacts: Sequence[tuple[Path, str]]
) -> str | None:
    """Add scores and files (path, folder in the run) to a run, at once.

    Returns None, or one sentence saying why not everything was recorded.
    """
    try:
        run = _Run(run_id, uri)
        now_ms = int(time.time() * 1000)
        points = [Point(key, value, now_ms, 0) for key, value in recordable(metrics).items()]
        for first in range(0, len(points), POINTS_PER_BATCH):
            run.send(points[first : first + POINTS_PER_BATCH])
        for path, folder in artifacts:
            run.upload(Path(path), folder)
    except Exception as error:
        return f"not all results are in MLflow run {run_id}: {first_line(error)}"
    return None


def find_runs(
    uri: str, experiment: str, filter_string: str = "", max_results: int = 10_000
) -> list[RecordedRun]:
    """The runs of an experiment, oldest first, that ``filter_string`` (MLflow's own) lets through.

    Raises BadInput when the store cannot be used, holds no such experiment, does not understand
    the filter, or finds more than ``max_results`` runs.
    """
    client = _client_to_read(uri)
    return search_runs(client, _called(uri), experiment, filter_string, max_results)


def metric_curves(
    uri: str, run_id: str, names: Sequence[str]
) -> dict[str, list[tuple[int, float]]]:
    """The (step, value) pairs of a run's metrics by step; of a step recorded twice the last value.

    A metric that was never recorded has none. Raises BadInput when the store cannot be read.
    """
    return read_curves(_client_to_read(uri), _called(uri), run_id, names)


def _client_to_read(uri: str) -> "MlflowClient":
    """A client of a store that is there: to look at one makes no database."""
    database = database_file(uri)
    if database is not None and not database.exists():
        raise BadInput(
            f"there is no {database}: go to the folder that runs were recorded from, or set "
            "MLFLOW_TRACKING_URI"
        )
    prepare_store(uri)
    return connect(uri)


def _called(uri: str) -> str:
    return f"the MLflow store at {shown(uri)}"


def run_url(run_id: str, uri: str) -> str:
    """Where a person can look at the run: its page, for a local file with the command to serve it.

    Falls back on the start page when the store is away.
    """
    page = ""
    try:
        info = _Run(run_id, uri).call(lambda client: client.get_run(run_id)).info
        page = f"/#/experiments/{info.experiment_id}/runs/{run_id}"
    except Exception as error:
        logger.warning("MLflow run %s cannot be looked up: %s", run_id, first_line(error))
    if is_http(uri):
        return shown(uri).rstrip("/") + page
    command = f"mlflow ui --backend-store-uri {shlex.quote(shown(uri))}"
    return f"http://127.0.0.1:5000{page} after `{command}`"


class Tracker(BackgroundLog):
    """Curves and files of one run, for the worker of rank 0: no call waits for the store.

    Open for as long as the training; it makes a store that is away a warning, nothing more.
    Points are sent every ``every_s`` seconds, and a step that was recorded before is left out.
    ``journal`` is a file that keeps them all, for a process that is killed before they are sent.
    """

    def __init__(
        self,
        run_id: str,
        uri: str,
        *,
        journal: Path | None = None,
        every_s: float = 2.0,
        max_points: int = 100_000,
    ) -> None:
        super().__init__(
            _Run(run_id, uri),
            f"MLflow run {run_id} at {shown(uri)}",
            journal=Journal(journal) if journal else None,
            every_s=every_s,
            max_points=max_points,
        )

    def log(self, step: int, metrics: Mapping[str, float]) -> None:
        """Record one value per metric at a step of the training. Returns at once."""
        super().log(step, recordable(metrics))


class _Run:
    """One run as the store that a BackgroundLog writes to."""

    def __init__(self, run_id: str, uri: str) -> None:
        _load_mlflow()  # takes seconds: here, not beside the first steps of a training
        self._run_id = run_id
        self._uri = uri
        self._client: MlflowClient | None = None

    def problem(self) -> str | None:
        database = database_file(self._uri)
        if database is not None and not database.exists():
            return (
                f"{database} is not on this machine: for several machines "
                "run an MLflow server and set MLFLOW_TRACKING_URI to its address"
            )
        return check_reachable(self._uri)

    def last_steps(self) -> dict[str, int]:
        run = self.call(lambda client: client.get_run(self._run_id))
        return {metric.key: metric.step for metric in run.data.to_proto().metrics}

    def send(self, points: Sequence[Point]) -> None:
        from mlflow.entities import Metric

        metrics = [Metric(*point) for point in points]
        self.call(lambda client: client.log_batch(self._run_id, metrics, synchronous=True))

    def upload(self, path: Path, folder: str) -> None:
        def copy(client: "MlflowClient") -> None:
            log = client.log_artifacts if path.is_dir() else client.log_artifact
            log(self._run_id, str(path), folder or None)

        self.call(copy)

    def call(self, action: "Callable[[MlflowClient], T]") -> T:
        """Act on the store. Raises Refused when trying again cannot help, else OSError or
        MlflowException."""
        from mlflow.exceptions import MlflowException, RestException

        if self._client is None or not is_http(self._uri):
            problem = self.problem()
            if problem is not None:
                raise OSError(problem)  # a sqlite file that is away would be made anew, empty
        self._client = self._client or connect(self._uri)
        try:
            return action(self._client)
        except MlflowException as error:
            # A proxy's own 404 is no RestException, and passes.
            final = not is_http(self._uri) or isinstance(error, RestException)
            if final and error.error_code in ("INVALID_PARAMETER_VALUE", "RESOURCE_DOES_NOT_EXIST"):
                raise Refused(first_line(error)) from error
            raise
