"""A page to see an evaluation's scores and hear its songs; models side by side.

bsrnn report --checkpoint_fp runs/v7/best runs/generic/best --musdbhq_location musdb18hq
"""

import json
import sys
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

from bsrnn_core.config import SeparationConfig
from bsrnn_core.errors import BadInput
from data_prep.config import SourceConfig
from data_prep.storage import Location, is_remote, location
from pipelines import display, evaluate
from pipelines.evaluate import PAGE, SUMMARY, EvaluateConfig
from pipelines.excerpts import ExcerptConfig, Scored, load_scored
from pipelines.report_page import write_page
from pipelines.scoring import Evaluation


@dataclass(frozen=True, kw_only=True, slots=True)
class ReportConfig:
    """Options of `bsrnn report`."""

    checkpoint_fp: tuple[str, ...]
    """Folders of the checkpoints to show side by side, or s3://bucket/runs/NAME/best."""
    subset: Literal["test", "valid", "train"] = "test"
    """The songs that were scored."""
    protocol: Literal["auto", "joint", "single"] = "auto"
    """Which seconds count, as in `bsrnn evaluate`; auto takes what was scored."""
    rescore: bool = False
    """Score the songs anew; otherwise only where there is no evaluation yet."""
    device: Literal["auto", "cpu", "cuda"] = "auto"
    """auto takes the GPUs when there are any."""
    num_workers: int | None = None
    """Songs scored at once (one per core or GPU when not given, as far as memory reaches)."""
    out: str | None = None
    """The page (when not given: report.html, or report-NAMES.html of several models, in the first
    one's evaluation/CHECKPOINT/SUBSET)."""
    separation: SeparationConfig = field(
        default_factory=lambda: SeparationConfig(precision="float32")
    )
    source: SourceConfig = field(default_factory=SourceConfig)
    excerpts: ExcerptConfig = field(default_factory=ExcerptConfig)

    def __post_init__(self) -> None:
        for checkpoint in self.checkpoint_fp:
            if self.checkpoint_fp.count(checkpoint) > 1:
                raise BadInput(f"checkpoint_fp names {checkpoint} twice")
        if not self.checkpoint_fp:
            raise BadInput("checkpoint_fp must name at least one checkpoint")

    def evaluation_of(self, checkpoint: str) -> EvaluateConfig:
        """The options of the evaluation that a checkpoint's scores are from."""
        return EvaluateConfig(
            checkpoint_fp=checkpoint,
            subset=self.subset,
            protocol=self.protocol,
            device=self.device,
            num_workers=self.num_workers,
            separation=self.separation,
            source=self.source,
        )

    def page(self, names: Sequence[str]) -> Location:
        """Where the page of the models called so goes."""
        if self.out is not None:
            return location(self.out) if is_remote(self.out) else Path(self.out)
        folder = self.evaluation_of(self.checkpoint_fp[0]).out_folder
        several = "-".join(name.replace("/", "-") for name in names)
        return folder / (PAGE if len(names) == 1 else f"report-{several}.html")


def run(config: ReportConfig) -> Path:
    """Write the page, scoring first what has no scores yet, and add it to the models' MLflow runs;
    returns it.

    Raises BadInput when a model cannot be scored, or models were scored on different songs.
    """
    names = labels(config.checkpoint_fp)
    models = [
        load_scored(checkpoint, _evaluation(checkpoint, config), config.device, name)
        for checkpoint, name in names.items()
    ]
    check_comparable(models)
    page = write_page(models, config, config.page(list(names.values())))
    for checkpoint in config.checkpoint_fp:
        evaluate.log_to_training_run(None, config.evaluation_of(checkpoint), [page])
    return page


def labels(checkpoints: Sequence[str]) -> dict[str, str]:
    """A short name for each checkpoint: its run's where these differ, else longer ones."""
    places = {checkpoint: location(checkpoint) for checkpoint in checkpoints}
    by_run = {checkpoint: place.parent.name for checkpoint, place in places.items()}
    longer = {c: f"{place.parent.name}/{place.name}" for c, place in places.items()}
    for names in (by_run, longer):
        if len(set(names.values())) == len(names) and all(names.values()):
            return names
    return dict(zip(checkpoints, checkpoints, strict=True))


def check_comparable(models: Sequence[Scored]) -> None:
    """Raises BadInput when two models were scored on different songs or by different protocols."""
    first, *others = models
    for other in others:
        a, b = first.evaluation, other.evaluation
        if a.protocol != b.protocol:
            raise BadInput(
                f"{first.checkpoint} was scored by protocol {a.protocol}, {other.checkpoint} by "
                f"{b.protocol}: add --protocol single"
            )
        if {t.track for t in a.tracks} != {t.track for t in b.tracks}:
            raise BadInput(
                f"{first.checkpoint} and {other.checkpoint} were scored on different songs: add "
                "--rescore true"
            )


def _evaluation(checkpoint: str, config: ReportConfig) -> Evaluation:
    """The scores of an evaluation that was made before, or of one that is made now."""
    options = config.evaluation_of(checkpoint)
    found = None if config.rescore else read_results(options.out_folder)
    if found and config.protocol in ("auto", found.protocol):
        return found
    with display.progress(counted=True) as bars:
        evaluation = evaluate.evaluate(options, bars)
    files = evaluate.write_results(evaluation, options)
    evaluate.log_to_training_run(evaluation, options, files)
    return evaluation


def read_results(folder: Location) -> Evaluation | None:
    """What `bsrnn evaluate` left in its folder; None when it was never there.

    Raises BadInput for files that are damaged or incomplete.
    """
    summary = folder / SUMMARY
    if not summary.exists():
        return None
    try:
        values = json.loads(summary.read_text(encoding="utf-8"))
        museval = {
            song: json.loads((folder / f"{song}.json").read_text(encoding="utf-8"))
            for song in values["tracks"]
        }
        return Evaluation.from_dict(values, museval)
    except (OSError, KeyError, TypeError, ValueError) as error:
        raise BadInput(
            f"{folder} does not hold the scores of an evaluation ({type(error).__name__}: {error})"
            ": score again with --rescore true"
        ) from error


if __name__ == "__main__":
    from pipelines.cli import main

    sys.exit(main(["report", *sys.argv[1:]]))
