"""MLflow's model registry: a checkpoint with the code that it runs with, under a name and an alias.

A registered model is loaded by `mlflow.pyfunc.load_model("models:/bsrnn@champion")` in any process
that has the packages of its requirements, this project not among them.
"""

import importlib.metadata
import json
import logging
import re
import tempfile
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import bsrnn_core
from bsrnn_core import checkpoint, prediction
from bsrnn_core.errors import BadInput
from bsrnn_core.model import BSRNN
from pipelines import tracking
from pipelines.tracking_params import mlflow_key
from pipelines.tracking_queue import first_line
from pipelines.tracking_store import shown

if TYPE_CHECKING:
    from mlflow import MlflowClient
    from mlflow.models import ModelSignature

REQUIREMENTS = ("mlflow", "torch", "torchaudio", "numpy", "soundfile", "safetensors", "jaxtyping")
"""What bsrnn_core needs, and what loads it."""

_TYPES = {int: "long", float: "double", str: "string"}
"""MLflow's names of the types of parameters."""


@dataclass(frozen=True, slots=True)
class Registered:
    """A version of a registered model."""

    name: str
    version: str
    run_id: str
    """The MLflow run that it belongs to."""


def check_names(model_name: str, alias: str) -> None:
    """Raise BadInput for a name or an alias that MLflow does not take."""
    if not model_name.strip() or re.search("[/:]", model_name) or model_name.strip(".") == "":
        raise BadInput(
            f"model_name {model_name!r} names no model: give one without / and :, such as bsrnn"
        )
    if not re.fullmatch(r"[A-Za-z0-9_-]{1,255}", alias):
        raise BadInput(
            f"alias {alias!r} is none: give letters, digits, _ and - only, such as champion"
        )
    if alias.lower() == "latest" or re.fullmatch(r"v\d+", alias, re.IGNORECASE):
        raise BadInput(f"alias {alias} is MLflow's own: give another, such as champion")


def existing_run(uri: str, run_id: str | None) -> str | None:
    """``run_id`` where the store holds such a run that is not deleted."""
    from mlflow.exceptions import MlflowException

    if not run_id:
        return None
    try:
        run = tracking.connect(uri).get_run(run_id)
    except MlflowException as error:
        if error.error_code != "RESOURCE_DOES_NOT_EXIST":
            raise
        return None
    return run_id if run.info.lifecycle_stage == "active" else None


def register_model(
    uri: str,
    run_id: str,
    model: BSRNN,
    metadata: dict[str, Any],
    model_name: str,
    alias: str,
    tags: Mapping[str, str],
) -> Registered:
    """Put a model into a run of the store and into its registry, and point the alias to it.

    ``metadata`` is that of the checkpoint, ``tags`` are the version's. Raises BadInput when the
    store refuses it; the alias then stays where it was.
    """
    from mlflow.exceptions import MlflowException

    try:
        client = tracking.connect(uri)
        model_id = _log_model(client, run_id, model, metadata, model_name)
        try:
            client.create_registered_model(model_name)
        except MlflowException as error:
            if error.error_code != "RESOURCE_ALREADY_EXISTS":
                raise
        version = client.create_model_version(
            model_name,
            source=f"models:/{model_id}",
            run_id=run_id,
            model_id=model_id,
            tags={mlflow_key(key): value for key, value in tags.items()},
        )
        client.set_registered_model_alias(model_name, alias, version.version)
        # By this tag MLflow's pages lead from the run and its model to the version.
        versions = json.dumps([{"name": model_name, "version": version.version}])
        client.set_logged_model_tags(model_id, {"mlflow.modelVersions": versions})
    except (MlflowException, OSError) as error:
        raise BadInput(
            f"the MLflow store at {shown(uri)} does not register {model_name} "
            f"({first_line(error)}): correct that, or set MLFLOW_TRACKING_URI to another one"
        ) from error
    return Registered(name=model_name, version=str(version.version), run_id=run_id)


def _log_model(
    client: "MlflowClient", run_id: str, model: BSRNN, metadata: dict[str, Any], name: str
) -> str:
    """Upload the model as one that the run has made; returns its id.

    By the client's own methods: `log_model` needs an active run, and would end that of a training
    anew.
    """
    from mlflow.entities import LoggedModelOutput, LoggedModelStatus

    experiment_id = client.get_run(run_id).info.experiment_id
    logged = client.create_logged_model(
        experiment_id, name=name, source_run_id=run_id, model_type="music source separation"
    )
    try:
        with tempfile.TemporaryDirectory(prefix="bsrnn-model-") as folder:
            files = Path(folder) / "model"
            _save(files, model, metadata, run_id, logged.model_id)
            client.log_model_artifacts(logged.model_id, str(files))
    except BaseException:
        client.finalize_logged_model(logged.model_id, LoggedModelStatus.FAILED)
        raise
    client.finalize_logged_model(logged.model_id, LoggedModelStatus.READY)
    client.log_outputs(run_id, [LoggedModelOutput(logged.model_id, step=0)])
    return logged.model_id


def _save(folder: Path, model: BSRNN, metadata: dict[str, Any], run_id: str, model_id: str) -> None:
    """Write MLflow's folder of a model: the checkpoint, bsrnn_core, and what these need.

    Requirements are named, for MLflow would load the model to find them out; and the signature is
    handed over with the description, for beside it an example is asked for.
    """
    import mlflow.pyfunc
    from mlflow.models import Model

    weights = folder.with_name("checkpoint")
    checkpoint.save(weights, model, metadata)
    assert bsrnn_core.__file__ is not None
    description = Model(
        run_id=run_id, model_id=model_id, model_uuid=model_id, signature=_signature(model)
    )
    # It warns where an environment has no pip, as one that uv made.
    log = logging.getLogger("mlflow.utils.environment")
    level = log.level
    log.setLevel(logging.ERROR)
    try:
        mlflow.pyfunc.save_model(
            str(folder),
            loader_module=prediction.__name__,
            data_path=str(weights),
            code_paths=[str(Path(bsrnn_core.__file__).parent)],
            pip_requirements=requirements(),
            mlflow_model=description,
        )
    finally:
        log.setLevel(level)


def requirements() -> list[str]:
    """What a registered model needs, in the versions installed here: `torch==2.14.1` ..."""
    # Of a build such as 2.14.1+cpu the plain version is what registries have.
    versions = {name: importlib.metadata.version(name).partition("+")[0] for name in REQUIREMENTS}
    return [f"{name}=={version}" for name, version in versions.items()]


def _signature(model: BSRNN) -> "ModelSignature":
    """The parameters of predict; what goes in and out has too many forms for a schema."""
    from mlflow.models import ModelSignature
    from mlflow.types import ParamSchema, ParamSpec

    defaults = prediction.default_params(model)
    specs = [ParamSpec(name, _TYPES[type(value)], value) for name, value in defaults.items()]
    return ModelSignature(params=ParamSchema(specs))
