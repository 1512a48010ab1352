"""`bsrnn report`: where its scores come from, which models it shows together, where it goes."""

import dataclasses
import json
import logging
import math
from pathlib import Path

import pytest
import torch
from rich.progress import Progress

from bsrnn_core import BSRNN, BadInput, BsrnnConfig, ModelConfig, StftConfig
from bsrnn_core.audio_files import write_audio
from bsrnn_core.checkpoint import load, save
from data_prep.tracks import Track
from pipelines import evaluate, report
from pipelines.cli import main
from pipelines.evaluate import EvaluateConfig
from pipelines.report import ReportConfig
from pipelines.scoring import Evaluation, ScoringOptions, score_track

RATE = 8000
STEMS = ("drums", "bass")


def save_model(folder: Path, seed: int, **metadata: str) -> str:
    torch.manual_seed(seed)
    config = BsrnnConfig(
        stft=StftConfig(sample_rate=RATE, n_fft=256),
        model=ModelConfig(band_schema="v1", feature_dim=4, num_blstm_layers=1, mlp_dim=4),
        stems=("drums",),
        crop_seconds=0.5,
    )
    save(folder, BSRNN(config), dict(metadata))
    return str(folder)


@pytest.fixture
def home(tmp_path: Path) -> Path:
    """Songs ``one`` and ``silent``, in which there are no drums."""
    generator = torch.Generator().manual_seed(0)
    for song, level in (("one", 0.1), ("silent", 0.0)):
        for stem, gain in zip(STEMS, (level, 0.1), strict=True):
            samples = gain * torch.randn(1, 2 * RATE, generator=generator)
            file = tmp_path / "songs" / "test" / song / f"{stem}.wav"
            write_audio(file, samples, RATE, subtype="FLOAT")
    return tmp_path


def score_here(config: EvaluateConfig, bars: Progress | None = None) -> Evaluation:
    """What `evaluate` does, without Ray."""
    options = ScoringOptions(
        stem_names=STEMS,
        lengths="refuse",
        protocol="single",
        separation=config.separation,
        full_museval=False,
    )
    model = load(config.checkpoint_fp)
    songs = sorted(Path(str(config.source.musdbhq_location)).glob("test/*"))
    tracks = tuple(score_track(model, Track(s.name, "test", str(s)), options) for s in songs)
    return Evaluation(
        subset="test", protocol="single", stems=model.stems, tracks=tracks, skipped={}
    )


@pytest.fixture
def scorings(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """The checkpoints that are scored during the test."""
    done: list[str] = []

    def score(config: EvaluateConfig, bars: Progress) -> Evaluation:
        done.append(config.checkpoint_fp)
        return score_here(config, bars)

    monkeypatch.setattr(evaluate, "evaluate", score)
    return done


def words(home: Path, *checkpoints: str) -> list[str]:
    songs = ["--musdbhq_location", str(home / "songs"), "--stem_names", *STEMS]
    return ["report", "--checkpoint_fp", *checkpoints, *songs]


def test_a_page_of_two_models_is_made_and_logged(
    home: Path, scorings: list[str], uri: str, run_id: str, capsys: pytest.CaptureFixture[str]
) -> None:
    """Scored where there are no scores, and with the numbers of the summary where there are."""
    from mlflow import MlflowClient

    a = save_model(home / "runs" / "a" / "best", 0, mlflow_run_id=run_id, mlflow_tracking_uri=uri)
    b = save_model(home / "runs" / "b" / "best", 1)
    assert main([*words(home, a, b), "--excerpt_seconds", "1", "--song", "one"]) == 0
    assert scorings == [a, b]
    folder = home / "runs" / "a" / "evaluation" / "best" / "test"
    page = folder / "report-a-b.html"
    assert f"page to listen written to {page} (" in capsys.readouterr().out
    client = MlflowClient(uri)
    assert f"evaluation/test/{page.name}" in {
        file.path for file in client.list_artifacts(run_id, "evaluation/test")
    }
    text = page.read_text()
    summary = json.loads((folder / "summary.json").read_text())
    usdr = summary["aggregates"]["drums"]["usdr"]["model"]
    assert usdr["count"] == usdr["nan"] == 1
    assert f'<td class="number">{usdr["value"]:.2f}</td>' in text
    assert '<td class="number">nan</td>' in text

    assert main(words(home, a)) == 0
    assert scorings == [a, b]
    again = (folder / "report.html").read_text()
    assert f'<td class="number">{usdr["value"]:.2f}</td>' in again
    assert main([*words(home, a), "--rescore", "true", "--out", str(home / "x.html")]) == 0
    assert scorings == [a, b, a]
    assert (home / "x.html").is_file()


def test_an_evaluation_makes_and_logs_the_page_unless_told_otherwise(
    home: Path, scorings: list[str], uri: str, run_id: str
) -> None:
    from mlflow import MlflowClient

    a = save_model(home / "runs" / "a" / "best", 0, mlflow_run_id=run_id, mlflow_tracking_uri=uri)
    evaluation = ["evaluate", *words(home, a)[1:]]
    folder = home / "runs" / "a" / "evaluation" / "best" / "test"

    def logged() -> set[str]:
        files = MlflowClient(uri).list_artifacts(run_id, "evaluation/test")
        return {file.path.removeprefix("evaluation/test/") for file in files}

    scores = {"one.json", "silent.json", "summary.json", "scores.md"}
    assert main([*evaluation, "--report", "false"]) == 0
    assert logged() == {file.name for file in folder.iterdir()} == scores
    # What the page cannot do is said, and costs no scores.
    assert main([*evaluation, "--song", "other", "--out", str(home / "out")]) == 2
    assert {file.name for file in (home / "out").iterdir()} == scores
    assert main([*evaluation, "--song", "one"]) == 0
    assert logged() == {file.name for file in folder.iterdir()} == {*scores, "report.html"}


def test_what_was_written_is_read_again(home: Path) -> None:
    checkpoint = save_model(home / "runs" / "a" / "best", 0)
    config = EvaluateConfig(
        checkpoint_fp=checkpoint,
        source=dataclasses.replace(
            EvaluateConfig(checkpoint_fp="").source, musdbhq_location=str(home / "songs")
        ),
    )
    evaluation = score_here(config)
    evaluation.tracks[0].scores["usdr"]["oracle"]["drums"] = math.inf
    assert report.read_results(config.out_folder) is None
    evaluate.write_results(evaluation, config)
    read = report.read_results(config.out_folder)
    assert read is not None
    # As text, for nan is unlike itself.
    assert json.dumps(read.to_dict()) == json.dumps(evaluation.to_dict())
    assert read.aggregate("usdr", "oracle", "drums").value == math.inf
    assert str(read.tracks[0].museval) == str(evaluation.tracks[0].museval)


@pytest.mark.parametrize("damage", ["summary", "song", "key"])
def test_damaged_scores_are_refused(
    home: Path, scorings: list[str], damage: str, capsys: pytest.CaptureFixture[str]
) -> None:
    checkpoint = save_model(home / "runs" / "a" / "best", 0)
    assert main(words(home, checkpoint)) == 0
    folder = home / "runs" / "a" / "evaluation" / "best" / "test"
    if damage == "song":
        (folder / "one.json").unlink()
    else:
        (folder / "summary.json").write_text("{" if damage == "summary" else "{}")
    capsys.readouterr()
    assert main(words(home, checkpoint)) == 2
    said = capsys.readouterr().err
    assert "does not hold the scores of an evaluation" in said and "--rescore true" in said
    assert main([*words(home, checkpoint), "--rescore", "true"]) == 0
    assert len(scorings) == 2


def test_another_protocol_is_scored_anew(home: Path, scorings: list[str]) -> None:
    checkpoint = save_model(home / "runs" / "a" / "best", 0)
    for protocol, count in (("auto", 1), ("single", 1), ("joint", 2)):
        assert main([*words(home, checkpoint), "--protocol", protocol]) == 0
        assert len(scorings) == count


def test_models_of_other_songs_or_another_protocol_are_not_compared(
    home: Path, scorings: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    a, b = (save_model(home / "runs" / name / "best", 0) for name in "ab")
    assert main(words(home, a, b)) == 0
    summary = home / "runs" / "b" / "evaluation" / "best" / "test" / "summary.json"
    values = json.loads(summary.read_text())
    summary.write_text(json.dumps(values | {"protocol": "joint"}))
    assert main(words(home, a, b)) == 2
    assert "add --protocol single" in capsys.readouterr().err
    del values["tracks"]["silent"]
    summary.write_text(json.dumps(values))
    assert main(words(home, a, b)) == 2
    assert "were scored on different songs: add --rescore true" in capsys.readouterr().err


def test_models_are_called_by_what_tells_them_apart() -> None:
    assert report.labels(["runs/a/best", "runs/b/best"]) == {
        "runs/a/best": "a",
        "runs/b/best": "b",
    }
    assert list(report.labels(["r/a/best", "r/a/last"]).values()) == ["a/best", "a/last"]
    assert list(report.labels(["x/a/best", "y/a/best"]).values()) == ["x/a/best", "y/a/best"]
    assert list(report.labels(["s3://bucket/runs/a/best"]).values()) == ["a"]


def test_pages_of_different_models_do_not_replace_each_other() -> None:
    config = ReportConfig(checkpoint_fp=("runs/a/best", "runs/b/best"), subset="valid")
    folder = Path.cwd() / "runs/a/evaluation/best/valid"
    assert config.page(["a"]) == folder / "report.html"
    assert config.page(["a/best", "b"]) == folder / "report-a-best-b.html"
    assert dataclasses.replace(config, out="x.html").page(["a"]) == Path("x.html")


@pytest.mark.parametrize("checkpoints", [(), ("a", "a")])
def test_no_checkpoint_and_one_twice_are_refused(checkpoints: tuple[str, ...]) -> None:
    with pytest.raises(BadInput, match="checkpoint_fp"):
        ReportConfig(checkpoint_fp=checkpoints)


def test_without_a_run_to_add_it_to_the_page_is_there_all_the_same(
    home: Path, scorings: list[str], caplog: pytest.LogCaptureFixture
) -> None:
    checkpoint = save_model(home / "runs" / "a" / "best", 0)
    with caplog.at_level(logging.WARNING):
        assert main(words(home, checkpoint)) == 0
    assert "names no MLflow run" in caplog.text
    assert (home / "runs" / "a" / "evaluation" / "best" / "test" / "report.html").is_file()
