"""Separate and score whole songs, in parallel on Ray, beside the floor and the ceiling.

bsrnn evaluate --checkpoint_fp runs/demo/best --musdbhq_location musdb18hq
"""

import json
import logging
import sys
import time
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, Literal

from rich.progress import Progress

from bsrnn_core.audio_files import AudioInfo
from bsrnn_core.checkpoint import load, read_metadata
from bsrnn_core.config import SeparationConfig
from bsrnn_core.errors import BadInput
from bsrnn_core.metrics import Protocol
from bsrnn_core.model import BSRNN
from data_prep.config import SourceConfig
from data_prep.storage import Location, RemotePath, is_remote, location
from data_prep.tracks import Track, find_tracks, inspect_track
from pipelines import display, tracking
from pipelines.excerpts import ExcerptConfig, load_scored
from pipelines.launch import start_ray
from pipelines.ray_songs import map_songs, num_song_workers
from pipelines.remote_checkpoints import local_checkpoint
from pipelines.report_page import write_page
from pipelines.run_storage import working_copy
from pipelines.scoring import Evaluation, ScoringOptions, TrackScores, score_track

logger = logging.getLogger(__name__)

MAX_TRACK_ROWS = 40
"""Rows of the table per song; with more songs than fit it is left to the files."""
SUMMARY, PAGE = "summary.json", "report.html"
"""Files among the results."""


@dataclass(frozen=True, kw_only=True, slots=True)
class EvaluateConfig:
    """Options of `bsrnn evaluate`."""

    checkpoint_fp: str
    """Folder of the checkpoint, or s3://bucket/runs/NAME/best."""
    subset: Literal["test", "valid", "train"] = "test"
    """The songs to score."""
    protocol: Literal["auto", "joint", "single"] = "auto"
    """Which seconds count. joint: those in which no stem and no estimate is silent, as published;
    single: each stem by itself; auto: joint when the model estimates all stems."""
    device: Literal["auto", "cpu", "cuda"] = "auto"
    """auto takes the GPUs when there are any."""
    num_workers: int | None = None
    """Songs scored at once (one per core or GPU when not given, as far as memory reaches)."""
    out: str | None = None
    """Folder for the results (evaluation/CHECKPOINT/SUBSET in the run's when not given)."""
    full_museval: bool = False
    """museval's ISR, SIR and SAR too, in the files per song: about a minute of work per song."""
    # Scores of two machines are the same only in the same numbers.
    separation: SeparationConfig = field(
        default_factory=lambda: SeparationConfig(precision="float32")
    )
    source: SourceConfig = field(default_factory=SourceConfig)
    report: bool = True
    """Make the page to listen, report.html, too."""
    excerpts: ExcerptConfig = field(default_factory=ExcerptConfig)

    def __post_init__(self) -> None:
        if self.num_workers is not None and self.num_workers < 1:
            raise BadInput(f"num_workers must be at least 1, not {self.num_workers}")

    @property
    def out_folder(self) -> Location:
        """Where the results go."""
        if self.out is not None:
            return location(self.out) if is_remote(self.out) else Path(self.out)
        checkpoint = location(self.checkpoint_fp)
        return checkpoint.parent / "evaluation" / checkpoint.name / self.subset


def run(config: EvaluateConfig) -> Evaluation:
    """Score the songs, print the tables, write the files, and log to the training's MLflow run.

    Raises BadInput when there is nothing to score, or a song cannot be (unless those are skipped).
    """
    with display.progress(counted=True) as bars:
        evaluation = evaluate(config, bars)
    files = write_results(evaluation, config)
    show(evaluation)
    print(f"scores written to {config.out_folder}")
    # What goes wrong with the page is not to cost the record of the scores.
    try:
        if config.report:
            model = load_scored(config.checkpoint_fp, evaluation, config.device)
            files.append(write_page([model], config, config.out_folder / PAGE))
    finally:
        log_to_training_run(evaluation, config, files)
    return evaluation


def evaluate(config: EvaluateConfig, bars: Progress) -> Evaluation:
    """The scores of ``config.subset``, computed on Ray; nothing is printed or written.

    How it goes is shown as a bar among ``bars``.

    Raises BadInput as ``run`` does.
    """
    stems = load(local_checkpoint(config.checkpoint_fp)).stems
    protocol = choose_protocol(config, stems)
    tracks, skipped = _usable_tracks(config)
    longest = max((info for _, info in tracks), key=lambda info: info.num_samples * info.channels)
    start_ray()
    # Stems, estimates and the oracle's spectrograms, in units of a stem's 4 bytes a sample.
    song_bytes = (
        4 * longest.num_samples * longest.channels * 8 * (len(config.source.stem_names) + 1)
    )
    gpu, num_workers = num_song_workers(config.num_workers, config.device, len(tracks), song_bytes)
    options = ScoringOptions(
        stem_names=config.source.stem_names,
        lengths=config.source.lengths,
        protocol=protocol,
        separation=config.separation,
        full_museval=config.full_museval,
    )
    checkpoint = str(location(config.checkpoint_fp))
    names = [track for track, _ in tracks]

    def score(model: BSRNN, track: dict[str, Any]) -> dict[str, Any]:
        return asdict(score_track(model, Track(**track), options))

    results: list[TrackScores] = []
    title = f"scoring {config.subset}"
    rows = [asdict(track) for track in names]
    outcomes = map_songs(rows, score, checkpoint, gpu=gpu, num_workers=num_workers)
    with display.bar_among(bars, title, len(names)) as bar:
        started, song_seconds = time.perf_counter(), 0.0
        for place, outcome in outcomes:
            if isinstance(outcome, Exception):
                if not (config.source.skip_bad_tracks and isinstance(outcome, BadInput)):
                    raise outcome
                skipped[names[place].name] = str(outcome)
            else:
                results.append(TrackScores(**outcome))
                song_seconds += results[-1].seconds
            speed = display.times_real_time(song_seconds, time.perf_counter() - started)
            bars.update(bar, advance=1, rate=speed)
    if not results:
        raise BadInput(f"no song of {config.subset} could be scored: {_first(skipped)}")
    return Evaluation(
        subset=config.subset,
        protocol=protocol,
        stems=stems,
        tracks=tuple(sorted(results, key=lambda scores: scores.track)),
        skipped=skipped,
    )


def choose_protocol(config: EvaluateConfig, stems: tuple[str, ...]) -> Protocol:
    """The protocol that the scores follow. Raises BadInput when the songs lack a stem of the model,
    or the model one that protocol joint needs."""
    in_songs = config.source.stem_names
    missing = [stem for stem in stems if stem not in in_songs]
    if missing:
        raise BadInput(
            f"{config.checkpoint_fp} estimates {', '.join(missing)}, but the songs are said to "
            f"hold {', '.join(in_songs)}: name their stems with --stem_names"
        )
    lacking = [stem for stem in in_songs if stem not in stems]
    if config.protocol == "joint" and lacking:
        raise BadInput(
            f"protocol joint needs all stems, but {config.checkpoint_fp} does not estimate "
            f"{', '.join(lacking)}: use --protocol single"
        )
    if config.protocol == "auto":
        return "single" if lacking else "joint"
    return config.protocol


def _usable_tracks(
    config: EvaluateConfig,
) -> tuple[list[tuple[Track, AudioInfo]], dict[str, str]]:
    """The subset's songs as their headers describe them, and those left out with the reason."""
    tracks = [track for track in find_tracks(config.source) if track.split == config.subset]
    if not tracks:
        raise BadInput(
            f"{config.source.musdbhq_location} has no songs for the subset {config.subset}: put "
            f"them in {config.subset}/, or choose another --subset"
        )
    usable: list[tuple[Track, AudioInfo]] = []
    skipped: dict[str, str] = {}
    for track in tracks:
        try:
            info = inspect_track(track, config.source.stem_names, config.source.lengths)
            usable.append((track, info))
        except BadInput as error:
            if not config.source.skip_bad_tracks:
                raise
            skipped[track.name] = str(error)
    if not usable:
        raise BadInput(f"no song of {config.subset} can be used: {_first(skipped)}")
    return usable, skipped


def _first(skipped: dict[str, str]) -> str:
    return next(iter(skipped.values()))


def show(evaluation: Evaluation) -> None:
    """Print the scores, those per song when they are few, and the songs that were left out."""
    rows = display.track_rows(evaluation)
    if len(rows) <= MAX_TRACK_ROWS:
        display.show("per song, dB", display.TRACK_HEADER, rows)
    display.show(
        display.evaluation_title(evaluation),
        display.SUMMARY_HEADER,
        display.summary_rows(evaluation),
    )
    for name, reason in evaluation.skipped.items():
        print(f"left out: {name}: {reason}")


def write_results(evaluation: Evaluation, config: EvaluateConfig) -> list[Path]:
    """A JSON file per song in museval's format, summary.json and scores.md; returns the files on
    this machine."""
    out = working_copy(config.out_folder)
    files = []
    for track in evaluation.tracks:
        files.append(out / f"{track.track}.json")
        display.write_text(files[-1], json.dumps(track.museval, indent=2) + "\n")
    summary = {"checkpoint": config.checkpoint_fp, **evaluation.to_dict()}
    files.append(out / SUMMARY)
    display.write_text(files[-1], json.dumps(summary, indent=2, ensure_ascii=False) + "\n")
    files.append(out / "scores.md")
    sections = {
        "Summary": (display.SUMMARY_HEADER, display.summary_rows(evaluation)),
        "Per song": (display.TRACK_HEADER, display.track_rows(evaluation)),
    }
    display.write_markdown(files[-1], display.evaluation_title(evaluation), sections)
    if isinstance(config.out_folder, RemotePath):
        for file in files:
            (config.out_folder / file.name).send(file)
    return files


def log_to_training_run(
    evaluation: Evaluation | None, config: EvaluateConfig, files: list[Path]
) -> None:
    """Add scores, if any, and files to the MLflow run named in the checkpoint; warns where that
    fails."""
    metadata = read_metadata(local_checkpoint(config.checkpoint_fp))
    run_id, uri = metadata.get("mlflow_run_id"), metadata.get("mlflow_tracking_uri")
    if not run_id or not uri:
        logger.warning("the checkpoint names no MLflow run, so the scores are in the files only")
        return
    uri = tracking.current_uri(uri)
    # Training logs valid/... itself.
    prefix = "test" if config.subset == "test" else f"evaluate_{config.subset}"
    metrics = evaluation.metrics(prefix) if evaluation else {}
    artifacts = [(file, f"evaluation/{config.subset}") for file in files]
    problem = tracking.log_results(run_id, uri, metrics, artifacts)
    if problem is not None:
        logger.warning("%s", problem)


if __name__ == "__main__":
    from pipelines.cli import main

    sys.exit(main(["evaluate", *sys.argv[1:]]))
