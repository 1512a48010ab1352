"""Train a model: shards when they are missing, then DDP on Ray Train, everything in MLflow.

    bsrnn train --part drums --musdbhq_location musdb18hq --name drums
    ray job submit -- python pipelines/base.py --part drums --shards /data/shards --name drums

The results go to OUT/NAME, on disk or in object storage: `best` and `last` (checkpoint folders),
`config.yaml` (every option, as `--config` takes it), `run.json` (the MLflow run), `metrics.jsonl`
(its curves), `costs.json` and `samples/` (a validation song, separated).
"""

import dataclasses
import json
import logging
import math
import secrets
import subprocess
import sys
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from rich.progress import Progress

from bsrnn_core import BadInput, load, separate
from bsrnn_core.audio_files import write_audio
from bsrnn_core.checkpoint import existing_folder, read_metadata
from data_prep.batches import training_channels
from data_prep.config import PrepConfig
from data_prep.manifest import content_config, hash_of
from data_prep.shards import ShardDataset
from data_prep.storage import Location, absolute, location
from pipelines import display, plots, tracking
from pipelines.config import TrainConfig
from pipelines.config_files import RUN_CONFIG, changes, read_yaml, save_yaml, yaml_values
from pipelines.launch import check_resources, launch_training, start_ray
from pipelines.prep import prepare_shards
from pipelines.remote_checkpoints import local_checkpoint
from pipelines.run_files import RUN_FILE
from pipelines.run_storage import RunStorage, recorded_run
from pipelines.training import TrainingJob
from pipelines.training_state import differences, initial_model
from pipelines.worker import Launch

logger = logging.getLogger(__name__)

FIXED = (
    *("seed", "batch_size", "steps_per_epoch", "lr", "lr_schedule", "lr_decay"),
    *("warmup_steps", "ema_decay", "remix", "gain_db", "drop_probability", "flip_polarity"),
    *("swap_channels", "one_channel", "sad", "pool_chunks", "chunk_reuse"),
    *("transfer", "unfreeze_after_epochs", "stem_weights"),
)
"""Options that a resumed run cannot change, beside its model and its data: the steps already made
stand for them."""
SAMPLE_SECONDS = 30
"""Length of the sample that is kept of a validation song."""


def run(config: TrainConfig) -> Path:
    """Train as ``config`` says, show how it goes, and return the run's folder on this machine.

    Raises BadInput for a name already used, missing data or options that do not fit together.
    """
    launch = train(config, _launch_with_progress)
    _show_summary(launch)
    return launch.job.folder


def train(
    config: TrainConfig,
    launch_with: Callable[[Launch], None] = launch_training,
    *,
    parent_run_id: str | None = None,
    tags: Mapping[str, str] | None = None,
) -> Launch:
    """Train as ``config`` says and record it in MLflow; ``launch_with`` runs the prepared job.

    ``tags`` count for more than the run's own. Raises BadInput as ``run`` does.
    """
    config = complete(config)
    storage = RunStorage(run_folder(config))
    storage.fetch()
    before = _previous_run(config, storage)
    if not before:
        # Refuses impossible bands and a checkpoint that does not fit before anything long begins.
        initial_model(config)
    start_ray(config.cluster.num_workers)
    check_resources(config.cluster)
    dataset = ShardDataset.open(training_shards(config))
    dataset.check(config.prep, config.part)
    training_channels(dataset)
    if before and before["manifest_hash"] != dataset.manifest_hash:
        raise BadInput(
            f"{dataset.folder} is not the dataset that {storage.home} was trained on: give that "
            "one with --shards, or take another --name"
        )
    launch = _launch(config, storage, dataset, before, tags or {}, parent_run_id)
    save_yaml(dataclasses.replace(config, resume=False), storage.folder / RUN_CONFIG)
    storage.send()
    with finishing(launch.run_id, launch.tracking_uri):
        launch_with(launch)
        # The worker that wrote the checkpoints may have been on another machine.
        storage.fetch()
        _keep_samples(launch, dataset)
    return launch


@contextmanager
def finishing(run_id: str, tracking_uri: str) -> Iterator[None]:
    """Mark an MLflow run at the end: as finished, as killed by Ctrl-C, or else as failed."""
    status: tracking.RunStatus = "FAILED"
    try:
        yield
        status = "FINISHED"
    except KeyboardInterrupt:
        status = "KILLED"
        raise
    finally:
        tracking.finish_run(run_id, tracking_uri, status)


def run_folder(config: TrainConfig) -> Location:
    """Where the results go. Raises BadInput when the run has no name, or not that of a folder."""
    if not config.name:
        raise BadInput("the run needs a name: give --name")
    if Path(config.name).name != config.name or config.name == "..":
        raise BadInput(f"the name {config.name} must be a plain folder name")
    return location(absolute(config.out)) / config.name


def complete(config: TrainConfig) -> TrainConfig:
    """The options with a seed, and paths that hold in any folder.

    Raises BadInput for what is missing and for options that do not fit together.
    """
    if not config.part:
        raise BadInput("say which stem to train: --part drums (repeatable)")
    if len(set(config.part)) != len(config.part):
        raise BadInput(f"--part names a stem twice: {', '.join(config.part)}")
    if not config.shards and not config.source.musdbhq_location:
        raise BadInput("say where the music is: --musdbhq_location DIR, or --shards DIR")
    unknown = [stem for stem in config.part if stem not in config.source.stem_names]
    if unknown and not config.shards:
        raise BadInput(
            f"--part {unknown[0]} is not among the stems {', '.join(config.source.stem_names)}: "
            "name those of your music with --stem_names"
        )
    if config.transfer and not config.checkpoint_fp:
        raise BadInput("a transfer needs a trunk: name its checkpoint folder with --checkpoint_fp")
    if config.unfreeze_after_epochs is not None and not config.transfer:
        raise BadInput("unfreeze_after_epochs goes with --transfer: nothing else is frozen")
    if config.stem_weights and len(config.stem_weights) != len(config.part):
        raise BadInput(
            f"stem_weights holds {len(config.stem_weights)} weights for the stems "
            f"{', '.join(config.part)}: give one for each"
        )
    seed = config.seed if config.seed >= 0 else secrets.randbelow(2**31)
    # A transfer from this run may be started in another folder.
    music, shards, checkpoint = (
        path and absolute(path)
        for path in (config.source.musdbhq_location, config.shards, config.checkpoint_fp)
    )
    source = dataclasses.replace(config.source, musdbhq_location=music)
    return dataclasses.replace(
        config, seed=seed, source=source, shards=shards, checkpoint_fp=checkpoint
    )


def _previous_run(config: TrainConfig, storage: RunStorage) -> dict[str, Any] | None:
    """What an earlier invocation of this run left, None when there was none."""
    folder = storage.folder
    before = recorded_run(folder)
    if before is None:
        return None
    if not config.resume:
        raise BadInput(f"{storage.home} holds a run already: take another --name, or give --resume")
    last = existing_folder(folder / "last")
    if last is not None:
        trained = load(last)
        changed = differences(trained.config, config.bsrnn)
        if trained.stems != config.part:
            changed.append(f"part is {', '.join(trained.stems)} and not {', '.join(config.part)}")
        saved = read_yaml(folder / RUN_CONFIG, TrainConfig)
        changed += changes(saved, yaml_values(config), [name for name in FIXED if name in saved])
        if changed:
            raise BadInput(
                f"{storage.home} is a run with other options: {'; '.join(changed)}; give --name "
                "and --resume without them, or take another --name"
            )
    return before


def record_run(folder: Path, run_id: str, tracking_uri: str, **more: str) -> None:
    """Note in a run's folder which MLflow run it is recorded in."""
    record = {"run_id": run_id, "tracking_uri": tracking_uri, **more}
    display.write_text(folder / RUN_FILE, json.dumps(record, indent=2) + "\n")


def training_shards(config: TrainConfig) -> Location:
    """The folder of the shards to train on, prepared first where --shards names none."""
    if config.shards:
        return location(config.shards)
    return prepared_shards(config.prep, config.out)


def prepared_shards(prep: PrepConfig, out: str) -> Location:
    """The folder of a dataset among the runs in ``out``; what it lacks is prepared."""
    source = prep.source
    music = str(Path(str(source.musdbhq_location)).resolve())
    choice = [source.portion, source.valid_fraction, source.split_seed, source.lengths]
    identity = hash_of([music, choice, content_config(prep)])[:12]
    folder = location(absolute(out)) / "shards" / f"{Path(music).name}-{identity}"
    prepare_shards(prep, folder)
    return folder


def _tags(config: TrainConfig, dataset: ShardDataset) -> dict[str, str]:
    """What runs are chosen and compared by."""
    tags = {
        "stage": config.stage,
        "way": config.stage,
        "band_schema": config.model.band_schema,
        "stems": ",".join(config.part),
        "git_commit": git_commit(),
        "manifest_hash": dataset.manifest_hash,
    }
    if config.checkpoint_fp:
        trunk = read_metadata(local_checkpoint(config.checkpoint_fp))
        tags["way"] = f"{config.stage} from {trunk.get('stage', 'a checkpoint')}"
        tags["checkpoint_run_id"] = str(trunk.get("mlflow_run_id", ""))
    return tags


def _launch(
    config: TrainConfig,
    storage: RunStorage,
    dataset: ShardDataset,
    before: dict[str, Any] | None,
    tags: Mapping[str, str],
    parent_run_id: str | None,
) -> Launch:
    """The job with its MLflow run: a new one, or that of the earlier invocation."""
    folder = storage.folder
    folder.mkdir(parents=True, exist_ok=True)
    if before:
        run_id, uri = before["run_id"], tracking.current_uri(before["tracking_uri"])
        tracking.reopen_run(run_id, uri)
    else:
        uri = tracking.tracking_uri()
        params, all_tags = tracking.flatten(config), {**_tags(config, dataset), **tags}
        run_id = tracking.create_run(
            uri, config.experiment, config.name, params, all_tags, parent_run_id
        )
        record_run(folder, run_id, uri, manifest_hash=dataset.manifest_hash)
    metadata = {
        "stage": config.stage,
        "git_commit": git_commit(),
        "manifest_hash": dataset.manifest_hash,
        "mlflow_run_id": run_id,
        "mlflow_tracking_uri": uri,
        "run": config.name,
    }
    job = TrainingJob(config=config, folder=folder, shards=dataset.folder, metadata=metadata)
    return Launch(job=job, run_id=run_id, tracking_uri=uri, home=storage.home)


def git_commit() -> str:
    """The commit that the code is at, with "-dirty" after changes; "unknown" outside a checkout."""
    command = ["git", "-C", str(Path(__file__).parent), "describe", "--always", "--dirty"]
    try:
        described = subprocess.run(command, capture_output=True, text=True, timeout=10, check=True)
    except (OSError, subprocess.SubprocessError):
        return "unknown"
    return described.stdout.strip()


def _launch_with_progress(launch: Launch) -> None:
    with display.progress(counted=True) as bars:
        launch_with_bar(launch, bars)


def launch_with_bar(launch: Launch, bars: Progress) -> None:
    """Run a training, which a bar among ``bars`` shows."""
    optim, name = launch.job.config.optim, launch.job.config.name

    def show(status: dict[str, float]) -> None:
        total = optim.max_epochs * status["steps_per_epoch"]
        rate = status["steps_per_second"]
        if optim.max_minutes:
            left = 60 * optim.max_minutes - status["seconds"]
            total = min(total, status["step"] + rate * max(0.0, left))
        best = status["best_usdr"]
        usdr = f", best uSDR {best:.2f} dB" if math.isfinite(best) else ""
        bars.update(
            bar,
            description=f"{name}: epoch {status['epoch'] + 1:.0f}{usdr}",
            completed=int(status["step"]),
            total=max(1, round(total)),
            rate=f"{rate:.2f} steps/s",
        )

    with display.bar_among(bars, f"{name}: starting workers") as bar:
        launch_training(launch, show)


def _keep_samples(launch: Launch, dataset: ShardDataset) -> None:
    """Separate a stretch of a validation song: files, a picture, and both in MLflow."""
    best, folder = launch.job.folder / "best", launch.job.folder / "samples"
    artifacts = [(best, "checkpoint"), (launch.job.folder / RUN_CONFIG, "")]
    tracks = dataset.tracks("valid")
    if tracks:
        model = load(best)
        stft = model.config.stft
        references = dataset.track_references("valid", tracks[0].name)
        references = references[..., : SAMPLE_SECONDS * stft.sample_rate]
        mixture = references.sum(0)
        estimates = separate(model, mixture, stft.sample_rate)
        write_audio(folder / "mixture.wav", mixture, stft.sample_rate)
        for stem, estimate in estimates.items():
            reference = references[dataset.stems.index(stem)]
            write_audio(folder / f"{stem}-reference.wav", reference, stft.sample_rate)
            write_audio(folder / f"{stem}-estimate.wav", estimate, stft.sample_rate)
            panels = {"mixture": mixture, "reference": reference, "estimate": estimate}
            plots.plot_spectrograms(panels, stft.sample_rate, stem, folder / f"{stem}.png")
        artifacts.append((folder, "samples"))
        launch.storage.send_folder(folder.name)
    problem = tracking.log_results(launch.run_id, launch.tracking_uri, {}, artifacts)
    if problem:
        logger.warning(problem)


def _show_summary(launch: Launch) -> None:
    folder = launch.job.folder
    best, last = read_metadata(folder / "best"), read_metadata(folder / "last")
    scores = {key: value for key, value in best.items() if key.startswith("valid/")}
    rows: list[list[display.Cell]] = [
        ["steps", last["step"]],
        ["epochs", last["epoch"]],
        ["best epoch", best["epoch"]],
        *([key, math.nan if value is None else value] for key, value in scores.items()),
        ["best checkpoint", str(launch.storage.home / "best")],
        ["MLflow", tracking.run_url(launch.run_id, launch.tracking_uri)],
    ]
    display.show(f"{launch.job.config.name} is trained", ("", ""), rows)


if __name__ == "__main__":
    from pipelines.cli import main

    sys.exit(main(["train", *sys.argv[1:]]))
