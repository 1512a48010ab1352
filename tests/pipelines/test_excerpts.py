"""Which songs and which seconds of them can be heard, and that they are what was scored."""

import dataclasses
import math
from pathlib import Path

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from bsrnn_core import BSRNN, BadInput, BsrnnConfig, ModelConfig, StftConfig
from bsrnn_core.audio_files import write_audio
from bsrnn_core.config import SeparationConfig
from bsrnn_core.separation import separate
from data_prep.config import SourceConfig
from data_prep.tracks import Track
from pipelines import display, excerpts
from pipelines.excerpts import ExcerptConfig, Scored
from pipelines.report import ReportConfig
from pipelines.scoring import (
    MEASURES,
    SYSTEMS,
    Evaluation,
    ScoringOptions,
    TrackScores,
    score_track,
)

RATE = 8000
STEMS = ("drums", "bass")
SEPARATION = SeparationConfig(window_seconds=1.5, overlap=0.5, precision="float32")


def model(seed: int = 0, stems: tuple[str, ...] = STEMS) -> BSRNN:
    torch.manual_seed(seed)
    config = BsrnnConfig(
        stft=StftConfig(sample_rate=RATE, n_fft=256),
        model=ModelConfig(band_schema="v1", feature_dim=4, num_blstm_layers=1, mlp_dim=4),
        stems=stems,
        crop_seconds=0.5,
    )
    return BSRNN(config).eval()


def noise(seed: int, seconds: float, channels: int = 2) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    return 0.1 * torch.randn(channels, round(seconds * RATE), generator=generator)


def write_song(root: Path, name: str, seconds: float, channels: int = 2) -> Tensor:
    """Returns the stems' samples [S, C, N]."""
    samples = torch.stack([noise(len(name) + k, seconds, channels) for k in range(len(STEMS))])
    for stem, audio in zip(STEMS, samples, strict=True):
        write_audio(root / "test" / name / f"{stem}.wav", audio, RATE, subtype="FLOAT")
    return samples


def scored(network: BSRNN, root: Path, names: list[str]) -> Scored:
    options = ScoringOptions(
        stem_names=STEMS,
        lengths="refuse",
        protocol="single",
        separation=SEPARATION,
        full_museval=False,
    )
    tracks = [Track(name, "test", str(root / "test" / name)) for name in names]
    evaluation = Evaluation(
        subset="test",
        protocol="single",
        stems=network.stems,
        tracks=tuple(score_track(network, track, options) for track in tracks),
        skipped={},
    )
    return Scored(label="a", checkpoint="runs/a/best", model=network, evaluation=evaluation)


def options(root: Path, **excerpt: object) -> ReportConfig:
    return ReportConfig(
        checkpoint_fp=("runs/a/best",),
        separation=SEPARATION,
        source=SourceConfig(musdbhq_location=str(root), stem_names=STEMS),
        excerpts=ExcerptConfig(**excerpt),  # type: ignore[arg-type]
    )


def made(models: list[Scored], config: ReportConfig) -> list[excerpts.Excerpt]:
    return excerpts.make_excerpts(models, config, display.progress(counted=True))


# Which songs


def evaluation_of(scores: dict[str, tuple[float, float]]) -> Evaluation:
    tracks = [
        TrackScores(
            track=name,
            seconds=1.0,
            scores={
                m: {s: dict(zip(STEMS, values, strict=True)) for s in SYSTEMS} for m in MEASURES
            },
            museval={},
        )
        for name, values in scores.items()
    ]
    return Evaluation(
        subset="test", protocol="single", stems=STEMS, tracks=tuple(tracks), skipped={}
    )


def test_the_worst_the_median_and_the_best_song_are_chosen() -> None:
    five = evaluation_of({n: (v, v + 2) for n, v in zip("abcde", (4, 1, 5, 2, 3), strict=True)})
    assert excerpts.choose_songs(five, []) == {"b": "worst", "e": "median", "c": "best"}
    two = evaluation_of({"a": (4.0, 4.0), "b": (1.0, 1.0)})
    assert excerpts.choose_songs(two, []) == {"b": "worst", "a": "best"}
    assert excerpts.choose_songs(evaluation_of({"a": (4.0, 4.0)}), []) == {"a": ""}


def test_a_stem_without_a_score_does_not_count_and_a_song_without_any_is_not_chosen() -> None:
    nan = math.nan
    some = evaluation_of({"a": (nan, 3.0), "b": (2.0, 2.0), "c": (4.0, 4.0), "d": (nan, nan)})
    assert excerpts.choose_songs(some, []) == {"b": "worst", "a": "median", "c": "best"}
    assert excerpts.choose_songs(evaluation_of({"d": (nan, nan)}), []) == {"d": ""}


def test_songs_that_are_named_are_taken_and_unknown_ones_refused() -> None:
    some = evaluation_of(dict.fromkeys("abcdefg", (1.0, 1.0)))
    assert excerpts.choose_songs(some, ["f", "b"]) == {"f": "", "b": ""}
    with pytest.raises(BadInput, match=r"--song x: no such song.*a, b, c, d, e and 2 more"):
        excerpts.choose_songs(some, ["x"])


# Which seconds


@settings(deadline=None, max_examples=60)
@given(
    seconds=st.floats(0.001, 30),
    length=st.integers(1, 20),
    begin=st.floats(0, 1),
    seed=st.integers(0, 99),
)
def test_an_excerpt_lies_within_the_song_and_is_as_long_as_can_be(
    seconds: float, length: int, begin: float, seed: int
) -> None:
    rate = 50
    references = torch.randn(2, 1, max(1, int(seconds * rate)), generator=torch.manual_seed(seed))
    references[0, :, : int(begin * references.shape[-1])] = 0
    config = ExcerptConfig(excerpt_seconds=length)
    first, count = excerpts.choose_excerpt(references, rate, config)
    assert first >= 0 and first * rate + count <= references.shape[-1]
    assert count == min(length * rate, references.shape[-1])


@pytest.mark.parametrize("begin", [0, 7, 26])
def test_an_excerpt_is_where_all_stems_sound(begin: int) -> None:
    references = torch.zeros(3, 2, 30 * 50)
    references[0] = 1.0  # everywhere
    references[1, :, begin * 50 : (begin + 4) * 50] = 0.01
    # A stem that is silent throughout is no reason to listen elsewhere.
    assert excerpts.choose_excerpt(references, 50, ExcerptConfig(excerpt_seconds=4)) == (begin, 200)


def test_one_loud_second_does_not_outweigh_steady_music() -> None:
    references = torch.zeros(1, 1, 20 * 50)
    references[..., 2 * 50 : 3 * 50] = 1.0
    references[..., 10 * 50 : 14 * 50] = 0.9
    assert excerpts.choose_excerpt(references, 50, ExcerptConfig(excerpt_seconds=4))[0] == 10


def test_silence_and_a_song_that_is_too_short_are_taken_from_the_start() -> None:
    assert excerpts.choose_excerpt(torch.zeros(1, 1, 500), 50, ExcerptConfig()) == (0, 500)
    assert excerpts.choose_excerpt(torch.ones(1, 1, 7), 50, ExcerptConfig()) == (0, 7)


def test_a_start_can_be_asked_for() -> None:
    references = torch.ones(1, 1, 10 * 50 + 20)
    for start, count in ((0, 200), (4, 200), (8, 120), (10, 20)):
        config = ExcerptConfig(excerpt_seconds=4, start_seconds=start)
        assert excerpts.choose_excerpt(references, 50, config) == (start, count)
    with pytest.raises(BadInput, match=r"start_seconds = 11, but the song lasts 10\.4 s"):
        excerpts.choose_excerpt(references, 50, ExcerptConfig(start_seconds=11))


@pytest.mark.parametrize("wrong", [{"excerpt_seconds": 0}, {"start_seconds": -1}])
def test_illegal_options_are_refused(wrong: dict[str, int]) -> None:
    with pytest.raises(BadInput, match=next(iter(wrong))):
        ExcerptConfig(**wrong)  # type: ignore[arg-type]


# What is heard


@pytest.mark.parametrize("channels", [1, 2])
def test_what_is_heard_is_what_was_scored(tmp_path: Path, channels: int) -> None:
    samples = write_song(tmp_path, "song", 5.3, channels)
    one = scored(model(), tmp_path, ["song"])
    (excerpt,) = made([one], options(tmp_path, excerpt_seconds=2, start_seconds=3))
    part = slice(3 * RATE, 5 * RATE)
    torch.testing.assert_close(excerpt.mixture, samples.sum(0)[:, part])
    whole = separate(one.model, samples.sum(0), RATE, SEPARATION)
    for k, stem in enumerate(STEMS):
        assert torch.equal(excerpt.references[stem], samples[k][:, part])
        assert torch.equal(excerpt.estimates["a"][stem], whole[stem][:, part])
    assert (excerpt.first_second, excerpt.song_seconds) == (3, 5.3)


def test_models_of_different_stems_share_an_excerpt(tmp_path: Path) -> None:
    write_song(tmp_path, "song", 2.5)
    both = scored(model(0), tmp_path, ["song"])
    drums = dataclasses.replace(scored(model(1, ("bass",)), tmp_path, ["song"]), label="b")
    (excerpt,) = made([drums, both], options(tmp_path))
    assert list(excerpt.references) == list(STEMS)
    assert {label: set(found) for label, found in excerpt.estimates.items()} == {
        "a": set(STEMS),
        "b": {"bass"},
    }
    assert excerpt.mixture.shape == (2, 2.5 * RATE)


@pytest.mark.parametrize(("seconds", "start"), [(0.3, 0), (2.5, 2)])
def test_parts_of_less_than_a_second_can_be_heard(
    tmp_path: Path, seconds: float, start: int
) -> None:
    write_song(tmp_path, "song", seconds)
    one = scored(model(), tmp_path, ["song"])
    (excerpt,) = made([one], options(tmp_path, start_seconds=start))
    assert excerpt.mixture.shape[-1] == round((seconds - start) * RATE)


def test_a_model_that_was_trained_on_since_is_refused(tmp_path: Path) -> None:
    write_song(tmp_path, "song", 3)
    before = scored(model(0), tmp_path, ["song"])
    trained = model(0)
    for weight in trained.parameters():
        weight.data *= 3
    since = dataclasses.replace(before, model=trained)
    with pytest.raises(BadInput, match=r"song: what runs/a/best makes of its drums.*--rescore"):
        made([since], options(tmp_path))


def test_songs_that_are_not_there_any_more_are_named(tmp_path: Path) -> None:
    write_song(tmp_path / "then", "song", 1)
    write_song(tmp_path / "now", "other", 1)
    one = scored(model(), tmp_path / "then", ["song"])
    with pytest.raises(BadInput, match="has no song song in test"):
        made([one], options(tmp_path / "now"))


def test_a_start_beyond_the_end_names_the_song(tmp_path: Path) -> None:
    write_song(tmp_path, "brief", 1)
    one = scored(model(), tmp_path, ["brief"])
    with pytest.raises(BadInput, match="brief: start_seconds = 9"):
        made([one], options(tmp_path, start_seconds=9))
