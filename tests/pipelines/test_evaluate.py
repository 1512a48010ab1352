"""Scores: what is known of them in advance, how they are summed up, and the command end to end."""

import dataclasses
import json
import logging
import math
from pathlib import Path

import pytest
import torch
from torch import Tensor

from bsrnn_core import BSRNN, BadInput, BsrnnConfig, ModelConfig, StftConfig
from bsrnn_core.audio_files import write_audio
from bsrnn_core.checkpoint import save
from bsrnn_core.config import STEMS, SeparationConfig
from data_prep.config import SourceConfig
from data_prep.tracks import Track
from pipelines import display, evaluate, scoring
from pipelines.cli import main
from pipelines.evaluate import EvaluateConfig
from pipelines.scoring import MEASURES, SYSTEMS, Evaluation, ScoringOptions, TrackScores

RATE = 8000
DRUMS_ONLY = BsrnnConfig(
    stft=StftConfig(sample_rate=RATE, n_fft=256),
    model=ModelConfig(band_schema="v1", feature_dim=4, num_blstm_layers=1, mlp_dim=4),
    stems=("drums",),
    crop_seconds=0.5,
)
OPTIONS = ScoringOptions(
    stem_names=STEMS,
    lengths="refuse",
    protocol="single",
    separation=SeparationConfig(window_seconds=0.5, overlap=0.5),
    full_museval=False,
)


def noise(seed: int, seconds: float = 2.0) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    return 0.1 * torch.randn(2, int(seconds * RATE), generator=generator)


def write_song(folder: Path, seed: int, stems: tuple[str, ...] = STEMS) -> dict[str, Tensor]:
    """Float files, so that the samples read are the samples given."""
    samples = {stem: noise(10 * seed + k) for k, stem in enumerate(stems)}
    for stem, audio in samples.items():
        write_audio(folder / f"{stem}.wav", audio, RATE, subtype="FLOAT")
    return samples


def save_model(folder: Path, config: BsrnnConfig, **metadata: str) -> str:
    torch.manual_seed(0)
    save(folder, BSRNN(config), dict(metadata))
    return str(folder)


# One song


@pytest.mark.parametrize(
    ("factor", "expected_db"),
    [(1.0, math.inf), (0.5, 20 * math.log10(2)), (-1.0, -20 * math.log10(2)), (0.0, math.nan)],
)
def test_known_estimates_get_known_scores(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, factor: float, expected_db: float
) -> None:
    stems = write_song(tmp_path / "song", seed=1)
    rates: list[int] = []

    def scaled(model: BSRNN, mixture: Tensor, rate: int, *_: object) -> dict[str, Tensor]:
        rates.append(rate)
        torch.testing.assert_close(mixture, sum(stems.values()), atol=1e-6, rtol=0)
        return {"drums": factor * stems["drums"]}

    monkeypatch.setattr(scoring, "separate", scaled)
    # A model of another rate: songs are scored at their own.
    stft = StftConfig(sample_rate=RATE * 2, n_fft=256)
    model = BSRNN(dataclasses.replace(DRUMS_ONLY, stft=stft))
    result = scoring.score_track(
        model, Track("song", "test", str(tmp_path / "song")), OPTIONS
    )  # fmt: skip
    assert rates == [RATE]
    assert result.seconds == 2.0
    for measure in MEASURES:
        scores = result.scores[measure]
        assert scores["model"]["drums"] == pytest.approx(expected_db, nan_ok=True, abs=1e-6)
        # Three other stems of the same power: -10 log10(3), and the mask of all four helps.
        assert scores["mixture"]["drums"] == pytest.approx(-10 * math.log10(3), abs=0.3)
        assert 2 < scores["oracle"]["drums"] < 20


def test_the_json_of_a_song_is_musevals(tmp_path: Path) -> None:
    write_song(tmp_path / "song", seed=2)
    model = BSRNN(DRUMS_ONLY).eval()
    track = Track("song", "test", str(tmp_path / "song"))
    fast = scoring.score_track(model, track, OPTIONS).museval
    full = scoring.score_track(
        model, track, dataclasses.replace(OPTIONS, full_museval=True)
    ).museval
    for result in (fast, full):
        (drums,) = result["targets"]
        assert drums["name"] == "drums"
        assert [frame["time"] for frame in drums["frames"]] == [0.0, 1.0]
    fast_db = [frame["metrics"]["SDR"] for frame in fast["targets"][0]["frames"]]
    metrics = [frame["metrics"] for frame in full["targets"][0]["frames"]]
    assert [m["SDR"] for m in metrics] == pytest.approx(fast_db, abs=1e-4)
    assert all(math.isfinite(m[name]) for m in metrics for name in ("ISR", "SAR"))


# Several songs


def make_evaluation(drums: list[float], bass: list[float]) -> Evaluation:
    """The floor lies 10 dB below the model, the ceiling 10 dB above it."""
    offset = {"mixture": -10.0, "model": 0.0, "oracle": 10.0}
    tracks = [
        TrackScores(
            track=f"song {k}",
            seconds=1.0,
            scores={
                measure: {s: {"drums": d + offset[s], "bass": b + offset[s]} for s in SYSTEMS}
                for measure in MEASURES
            },
            museval={},
        )
        for k, (d, b) in enumerate(zip(drums, bass, strict=True))
    ]
    return Evaluation(
        subset="test",
        protocol="joint",
        stems=("drums", "bass"),
        tracks=tuple(tracks),
        skipped={"bad": "why"},
    )


def test_usdr_is_a_mean_and_csdr_a_median_and_nan_is_counted() -> None:
    evaluation = make_evaluation([1.0, 2.0, 6.0, math.nan], [4.0, 4.0, 4.0, 4.0])
    usdr = evaluation.aggregate("usdr", "model", "drums")
    assert (usdr.value, usdr.count, usdr.nan) == (3.0, 3, 1)
    assert evaluation.aggregate("csdr", "oracle", "drums").value == 12.0
    assert evaluation.mean("usdr", "mixture") == (3.0 + 4.0) / 2 - 10
    rows = display.summary_rows(evaluation)
    assert rows[0] == ["drums", "uSDR", -7.0, 3.0, 13.0, 10.0, 3, 1]
    assert rows[1] == ["drums", "cSDR", -8.0, 2.0, 12.0, 10.0, 3, 1]
    assert [row[0] for row in rows] == ["drums", "drums", "bass", "bass", "mean", "mean"]
    assert len(display.track_rows(evaluation)) == 8


def test_metrics_have_the_names_that_others_look_for_and_are_finite() -> None:
    metrics = make_evaluation([1.0, 3.0], [math.nan, math.nan]).metrics("test")
    assert metrics["test/usdr_drums"] == 2.0
    assert metrics["test/csdr_drums"] == 2.0
    assert metrics["test/usdr_drums_mixture"] == -8.0
    assert metrics["test/usdr_drums_oracle"] == 12.0
    assert not [name for name in metrics if "bass" in name or "mean" in name]
    complete = make_evaluation([1.0, 3.0], [4.0, 4.0]).metrics("test")
    assert complete["test/usdr_mean"] == complete["test/csdr_mean"] == 3.0
    assert complete["test/csdr_mean_oracle"] == 13.0


def test_the_summary_is_strict_json() -> None:
    values = make_evaluation([1.0, math.nan], [math.inf, 2.0]).to_dict()
    read = json.loads(json.dumps(values, allow_nan=False))
    assert read["aggregates"]["drums"]["usdr"]["model"] == {"value": 1.0, "count": 1, "nan": 1}
    assert read["tracks"]["song 1"]["usdr"]["model"]["drums"] is None
    assert read["tracks"]["song 0"]["usdr"]["model"]["bass"] == "inf"
    assert read["skipped"] == {"bad": "why"}


def test_the_table_of_a_few_songs_shows_each_and_that_of_many_does_not(
    capsys: pytest.CaptureFixture[str],
) -> None:
    evaluate.show(make_evaluation([1.0], [2.0]))
    few = capsys.readouterr().out
    assert "song 0" in few
    assert "protocol joint" in few
    assert "left out: bad: why" in few
    many = [1.0] * (evaluate.MAX_TRACK_ROWS // 2 + 1)
    evaluate.show(make_evaluation(many, many))
    assert "song 0" not in capsys.readouterr().out


# Options


@pytest.mark.parametrize(
    ("asked", "stems", "expected"),
    [
        ("auto", STEMS, "joint"),
        ("auto", tuple(reversed(STEMS)), "joint"),
        ("auto", ("drums",), "single"),
        ("single", STEMS, "single"),
        ("joint", STEMS, "joint"),
    ],
)
def test_protocol(asked: str, stems: tuple[str, ...], expected: str) -> None:
    config = EvaluateConfig(checkpoint_fp="best", protocol=asked)  # type: ignore[arg-type]
    assert evaluate.choose_protocol(config, stems) == expected


def test_stems_that_do_not_fit_the_songs_are_refused() -> None:
    with pytest.raises(BadInput, match="joint needs all stems"):
        evaluate.choose_protocol(EvaluateConfig(checkpoint_fp="x", protocol="joint"), ("drums",))
    with pytest.raises(BadInput, match=r"estimates piano.*--stem_names"):
        evaluate.choose_protocol(EvaluateConfig(checkpoint_fp="x"), ("drums", "piano"))


def test_results_go_beside_the_checkpoint_unless_told_otherwise(tmp_path: Path) -> None:
    config = EvaluateConfig(checkpoint_fp=str(tmp_path / "drums" / "best"), subset="valid")
    assert config.out_folder == tmp_path / "drums" / "evaluation" / "best" / "valid"
    assert dataclasses.replace(config, out="here").out_folder == Path("here")


@pytest.mark.parametrize("wrong", [{"num_workers": 0}])
def test_illegal_options_are_refused(wrong: dict[str, float]) -> None:
    with pytest.raises(BadInput, match=next(iter(wrong))):
        EvaluateConfig(checkpoint_fp="c", **wrong)  # type: ignore[arg-type]


def test_bad_music_ends_with_one_sentence_and_code_2(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    checkpoint = save_model(tmp_path / "run" / "best", DRUMS_ONLY)
    write_song(tmp_path / "music" / "test" / "song", 1, ("drums", "vocals"))
    words = ["evaluate", "--checkpoint_fp", checkpoint, "--musdbhq_location"]
    assert main([*words, str(tmp_path / "music")]) == 2
    assert "no file for the stem 'bass'" in capsys.readouterr().err
    assert main([*words, str(tmp_path / "music"), "--subset", "train"]) == 2
    assert "no songs for the subset train" in capsys.readouterr().err
    assert not (tmp_path / "run" / "evaluation").exists()


# MLflow


def test_without_a_tracking_server_there_is_a_warning_and_no_error(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    evaluation = make_evaluation([1.0], [2.0])
    nowhere = save_model(tmp_path / "a", DRUMS_ONLY)
    away = save_model(
        tmp_path / "b", DRUMS_ONLY, mlflow_run_id="1", mlflow_tracking_uri="http://127.0.0.1:9"
    )
    with caplog.at_level(logging.WARNING):
        evaluate.log_to_training_run(evaluation, EvaluateConfig(checkpoint_fp=nowhere), [])
        assert "names no MLflow run" in caplog.text
        evaluate.log_to_training_run(evaluation, EvaluateConfig(checkpoint_fp=away), [])
        assert "127.0.0.1:9" in caplog.text


# End to end


@pytest.mark.usefixtures("ray_cluster")
def test_evaluate_on_ray(
    tmp_path: Path, uri: str, run_id: str, capsys: pytest.CaptureFixture[str]
) -> None:
    """Two good songs, one that its header gives away, and one that only its samples do."""
    from mlflow import MlflowClient

    music = tmp_path / "music" / "test"
    write_song(music / "one", 1)
    write_song(music / "two", 2)
    write_song(music / "lacking", 3, ("drums", "bass"))
    write_song(music / "spoilt", 4)
    with (music / "spoilt" / "bass.wav").open("r+b") as file:
        file.seek(-4, 2)
        file.write(b"\x00\x00\xc0\x7f")  # NaN as the last float
    config = dataclasses.replace(DRUMS_ONLY, stems=STEMS)
    checkpoint = save_model(
        tmp_path / "run" / "best", config, mlflow_run_id=run_id, mlflow_tracking_uri=uri
    )
    evaluation = evaluate.run(
        EvaluateConfig(
            checkpoint_fp=checkpoint,
            num_workers=2,
            source=SourceConfig(musdbhq_location=str(music.parent), skip_bad_tracks=True),
        )
    )
    assert [track.track for track in evaluation.tracks] == ["one", "two"]
    assert set(evaluation.skipped) == {"lacking", "spoilt"}
    assert "NaN" in evaluation.skipped["spoilt"]
    assert evaluation.protocol == "joint"
    printed = capsys.readouterr().out
    assert "oracle" in printed
    out = tmp_path / "run" / "evaluation" / "best" / "test"
    assert {file.name for file in out.iterdir()} == {
        "one.json", "two.json", "summary.json", "scores.md", "report.html",
    }  # fmt: skip
    summary = json.loads((out / "summary.json").read_text())
    logged = MlflowClient(uri).get_run(run_id).data.metrics
    for stem in STEMS:
        for system in SYSTEMS:
            ending = "" if system == "model" else f"_{system}"
            value = summary["aggregates"][stem]["usdr"][system]["value"]
            assert logged[f"test/usdr_{stem}{ending}"] == pytest.approx(value)
            assert value == pytest.approx(evaluation.aggregate("usdr", system, stem).value)
    assert "test/csdr_mean" in logged
    with pytest.raises(BadInput, match=r"spoilt.*bass\.wav.*NaN"):
        evaluate.evaluate(
            EvaluateConfig(
                checkpoint_fp=checkpoint,
                source=SourceConfig(musdbhq_location=_only(music, "spoilt")),
            ),
            display.progress(counted=True),
        )


def _only(music: Path, name: str) -> str:
    """A folder of music that holds one song."""
    folder = music.parent.parent / f"only {name}" / "test"
    folder.mkdir(parents=True)
    (folder / name).symlink_to(music / name)
    return str(folder.parent)
