"""Put a checkpoint into MLflow's model registry, where programs find it by name and alias.

bsrnn register --checkpoint_fp runs/demo/best --alias champion
"""

import math
import sys
from dataclasses import dataclass
from typing import Any

from bsrnn_core.checkpoint import load, read_metadata
from bsrnn_core.model import BSRNN
from pipelines import tracking
from pipelines.config import VALID_MEAN
from pipelines.remote_checkpoints import local_checkpoint
from pipelines.tracking_models import Registered, check_names, existing_run, register_model
from pipelines.tracking_store import shown


@dataclass(frozen=True, kw_only=True, slots=True)
class RegisterConfig:
    """Options of `bsrnn register`."""

    checkpoint_fp: str
    """Folder of the checkpoint, or s3://bucket/runs/NAME/best."""
    model_name: str = "bsrnn"
    """Name of the registered model, of which this becomes the next version."""
    alias: str = "champion"
    """Alias that is moved to this version: it is then models:/MODEL_NAME@ALIAS."""
    experiment: str = "bsrnn"
    """MLflow experiment of a run of its own, where the store does not hold that of the training."""

    def __post_init__(self) -> None:
        check_names(self.model_name, self.alias)


def run(config: RegisterConfig) -> Registered:
    """Register the checkpoint in the store of MLFLOW_TRACKING_URI, and say how to load it.

    It belongs to the training's run where the store holds that, otherwise to one of its own.
    Raises BadInput where there is no checkpoint, or the store refuses it.
    """
    folder = local_checkpoint(config.checkpoint_fp)
    model, metadata = load(folder), read_metadata(folder)
    uri = tracking.tracking_uri()
    tracking.prepare_store(uri)
    tags = version_tags(model, metadata)
    names = (config.model_name, config.alias)
    run_id = existing_run(uri, metadata.get("mlflow_run_id"))
    if run_id is not None:
        registered = register_model(uri, run_id, model, metadata, *names, tags)
    else:
        params = {"checkpoint_fp": config.checkpoint_fp}
        name = f"register {config.model_name}"
        run_id = tracking.create_run(
            uri, config.experiment, name, params, {"stage": "registration"}
        )
        try:
            registered = register_model(uri, run_id, model, metadata, *names, tags)
        except BaseException:
            tracking.finish_run(run_id, uri, "FAILED")
            raise
        tracking.finish_run(run_id, uri, "FINISHED")
    print(f"{registered.name} version {registered.version}: {', '.join(model.stems)}")
    print(f"in {shown(uri)}, MLflow run {run_id}")
    print(f'load it with mlflow.pyfunc.load_model("models:/{registered.name}@{config.alias}")')
    return registered


def version_tags(model: BSRNN, metadata: dict[str, Any]) -> dict[str, str]:
    """What the registry says of a version; of the training only what its checkpoint knows."""
    tags = {
        "stems": ",".join(model.stems),
        "band_schema": model.config.model.band_schema,
        "training_run_id": metadata.get("mlflow_run_id"),
        "git_commit": metadata.get("git_commit"),
        "manifest_hash": metadata.get("manifest_hash"),
    }
    score = metadata.get(VALID_MEAN)
    if isinstance(score, int | float) and math.isfinite(score):
        tags[VALID_MEAN] = f"{score:.4f}"
    return {key: str(value) for key, value in tags.items() if value}


if __name__ == "__main__":
    from pipelines.cli import main

    sys.exit(main(["register", *sys.argv[1:]]))
