"""Recorded runs as those see them that compare runs.

Knows MLflow's client only by the methods that it calls: `pipelines.tracking` supplies one.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

from bsrnn_core.errors import BadInput
from pipelines.config_files import nearest
from pipelines.tracking_params import mlflow_key
from pipelines.tracking_queue import first_line

RUNS_PER_PAGE = 500


@dataclass(frozen=True, kw_only=True, slots=True)
class RecordedRun:
    """What the store holds of one run, curves and files left out."""

    run_id: str
    name: str
    status: str
    """As MLflow has it: RUNNING, FINISHED, FAILED, KILLED or SCHEDULED."""
    tags: Mapping[str, str]
    params: Mapping[str, str]
    metrics: Mapping[str, float]
    """The last value of each metric; nan where that was no finite number."""


class Reader(Protocol):
    """The part of an MLflow client that reads."""

    def get_experiment_by_name(self, name: str) -> Any:
        """An experiment or None."""
        ...

    def search_experiments(self) -> Sequence[Any]:
        """The active experiments."""
        ...

    def search_runs(
        self,
        experiment_ids: list[str],
        filter_string: str = "",
        *,
        max_results: int,
        order_by: list[str] | None,
        page_token: str | None,
    ) -> Any:
        """One page of runs, with the token of the next."""
        ...

    def get_metric_history(self, run_id: str, key: str) -> Sequence[Any]:
        """All values of a metric."""
        ...


def search_runs(
    client: Reader, store: str, experiment: str, filter_string: str, max_results: int
) -> list[RecordedRun]:
    """See `pipelines.tracking.find_runs`; ``store`` is what messages call the store."""
    found: list[Any] = []
    token: str | None = ""
    try:
        experiment_id = _experiment_id(client, store, experiment)
        while token is not None and len(found) <= max_results:
            page = client.search_runs(
                [experiment_id],
                filter_string,
                max_results=RUNS_PER_PAGE,
                order_by=["attributes.start_time ASC"],
                page_token=token or None,
            )
            found += page
            token = page.token or None
    except BadInput:
        raise
    except Exception as error:
        if filter_string and getattr(error, "error_code", "") == "INVALID_PARAMETER_VALUE":
            raise BadInput(
                f"MLflow does not understand the filter {filter_string} ({_reason(error)}): write "
                "it as in tags.stage = 'transfer' and params.seed = '1'"
            ) from error
        raise BadInput(f"{store} cannot be searched for runs ({_reason(error)})") from error
    if len(found) > max_results:
        raise BadInput(f"more than {max_results} runs of {experiment} are chosen: filter them")
    return [_recorded(run) for run in found]


def _experiment_id(client: Reader, store: str, name: str) -> str:
    found = client.get_experiment_by_name(name)
    if found is not None and found.lifecycle_stage == "active":
        return found.experiment_id
    known = [experiment.name for experiment in client.search_experiments()]
    hint = nearest(name, known) or f"; there are {', '.join(known)}"
    raise BadInput(f"{store} holds no experiment {name}{hint}")


def _recorded(run: Any) -> RecordedRun:
    return RecordedRun(
        run_id=run.info.run_id,
        name=run.info.run_name or run.info.run_id,
        status=run.info.status,
        tags=run.data.tags,
        params=run.data.params,
        metrics=run.data.metrics,
    )


def read_curves(
    client: Reader, store: str, run_id: str, names: Sequence[str]
) -> dict[str, list[tuple[int, float]]]:
    """See `pipelines.tracking.metric_curves`; ``store`` is what messages call the store."""
    try:
        histories = {name: client.get_metric_history(run_id, mlflow_key(name)) for name in names}
    except Exception as error:
        raise BadInput(
            f"the curves of run {run_id} cannot be read from {store} ({_reason(error)})"
        ) from error
    # The store gives them in the order in which they were recorded.
    return {
        name: sorted({point.step: point.value for point in history}.items())
        for name, history in histories.items()
    }


def _reason(error: Exception) -> str:
    return first_line(error).removeprefix("INVALID_PARAMETER_VALUE: ").rstrip(".")
