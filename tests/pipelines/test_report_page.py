"""The page of an evaluation: its numbers, its names, its sounds."""

import base64
import dataclasses
import hashlib
import html
import json
import math
import re
import tempfile
from html.parser import HTMLParser
from pathlib import Path

import pytest
import torch
from torch import Tensor

from bsrnn_core.audio_files import audio_info, read_audio
from data_prep.config import SourceConfig
from pipelines import display, report_page
from pipelines.scoring import SYSTEMS
from tests.pipelines.heard import HOSTILE, RATE, SECONDS, SOURCE, STEMS, excerpt, scored, tone


class Page(HTMLParser):
    """What a browser would make of a page: its tables' cells, its elements, its JSON."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.tags: list[str] = []
        self.tables: list[list[list[str]]] = []
        self.scripts: list[str] = []
        self._open = ""
        self.feed(text)
        self.data = json.loads(self.scripts[0], parse_constant=pytest.fail)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append(tag)
        self._open = tag
        if tag == "table":
            self.tables.append([])
        elif tag == "tr":
            self.tables[-1].append([])
        elif tag in ("td", "th"):
            self.tables[-1][-1].append("")
        elif tag == "script":
            self.scripts.append("")

    def handle_data(self, data: str) -> None:
        if self._open in ("td", "th", "a") and self.tables and self.tables[-1]:
            self.tables[-1][-1][-1] += data.strip()
        elif self._open == "script":
            self.scripts[-1] += data

    def handle_endtag(self, tag: str) -> None:
        if tag in ("table", "script"):
            self._open = ""


def sound(page: Page, name: str, song: int = 0) -> tuple[Tensor, int]:
    """What a player would play, and its rate as far as the file tells."""
    with tempfile.NamedTemporaryFile(suffix=".mp3") as file:
        file.write(base64.b64decode(page.data["songs"][song]["audio"][name]))
        file.flush()
        return read_audio(file.name), audio_info(file.name).sample_rate


# Content


def test_the_tables_are_those_of_the_terminal() -> None:
    heard = excerpt()
    model = scored(heard, others=("two", "three"))
    summary, tracks = Page(report_page.page([model], [heard], SOURCE)).tables
    evaluation = model.evaluation

    def texts(rows: list[list[display.Cell]]) -> list[list[str]]:
        return [[display.text(cell) for cell in row] for row in rows]

    assert summary == [[*display.SUMMARY_HEADER], *texts(display.summary_rows(evaluation))]
    assert tracks[0] == [*display.TRACK_HEADER]
    assert sorted(tracks[1:]) == sorted(texts(display.track_rows(evaluation)))
    values = evaluation.to_dict()["aggregates"]["drums"]["usdr"]
    assert summary[1][2:5] == [f"{values[system]['value']:.2f}" for system in SYSTEMS]
    # The bass is silent: shown, counted, and no part of any mean.
    assert summary[3][:4] == ["bass", "uSDR", "nan", "nan"]
    assert summary[3][-2:] == ["0", "3"]


def test_models_stand_side_by_side() -> None:
    heard = excerpt(labels=("a", "bcd"))
    models = [scored(heard, "a"), scored(heard, "bcd")]
    page = Page(report_page.page(models, [heard], SOURCE))
    assert page.tables[0][0][:3] == ["stem", "score", "checkpoint"]
    rows = [[*row[:3], row[4]] for row in page.tables[0][1:3]]
    assert rows == [["drums", "uSDR", "a", "4.00"], ["drums", "uSDR", "bcd", "6.00"]]
    assert [row[2] for row in page.tables[1][1:]] == ["a", "a", "bcd", "bcd"]
    assert page.data["models"] == ["a", "bcd"]
    drums, bass = page.data["songs"][0]["stems"]
    assert (drums["name"], bass["name"]) == STEMS
    assert [each["usdr"] for each in drums["estimates"]] == ["4.00", "6.00"]
    for each, factor in zip(drums["estimates"], (0.5, 0.75), strict=True):
        db = round(-20 * math.log10(factor), 2)
        assert each["seconds"] == [None, None, *[db] * (SECONDS - 2)]
    assert [each["seconds"] for each in bass["estimates"]] == [[None] * SECONDS] * 2


def test_the_page_says_what_its_scores_are_of(tmp_path: Path) -> None:
    heard = excerpt()
    model = scored(heard)
    source = SourceConfig(musdbhq_location=str(tmp_path))
    said = html.unescape(report_page.page([model], [heard], source))
    assert f"1 song(s) of the subset valid of {tmp_path}<" in said
    assert "single, each stem by itself" in said
    assert "runs/a/best (band schema v1," in said
    assert "bad: is cut short" in said
    assert "MUSDB" not in said
    (tmp_path / "corpus.json").write_text("{}")
    said = html.unescape(report_page.page([model], [heard], source))
    assert "composed by a program: these are no scores on real music" in said


def test_names_stay_names() -> None:
    heard = excerpt(song=HOSTILE, labels=(HOSTILE,))
    model = dataclasses.replace(scored(heard, HOSTILE), checkpoint=HOSTILE)
    text = report_page.page([model], [heard], SourceConfig(musdbhq_location=HOSTILE))
    page = Page(text)
    assert "img" not in page.tags
    assert page.tags.count("script") == 2
    assert page.data["songs"][0]["name"] == page.data["models"][0] == HOSTILE
    assert HOSTILE in {row[0] for row in page.tables[1]}
    assert "{{data}}" in text


def test_nothing_comes_from_elsewhere_and_no_other_script_may_run() -> None:
    text = report_page.page([scored(excerpt())], [excerpt()], SOURCE)
    code = text.replace(Page(text).scripts[0], "")
    assert not re.search(r"https?:|//[a-z]|url\(|@import", code)
    (policy,) = re.findall(r'Content-Security-Policy" content="([^"]*)"', text)
    assert policy.startswith("default-src 'none'; img-src data:;")
    digest = hashlib.sha256(Page(text).scripts[1].encode()).digest()
    assert f"script-src 'sha256-{base64.b64encode(digest).decode()}'" in policy


@pytest.mark.parametrize(
    ("rate", "channels", "expected_rate", "expected_channels"),
    [(8000, 1, 8000, 1), (44100, 2, 44100, 2), (10000, 2, 11025, 2), (96000, 6, 48000, 1)],
)
def test_what_is_played_is_the_signal(
    rate: int, channels: int, expected_rate: int, expected_channels: int
) -> None:
    drums = tone(440, 0.4, rate, channels)[:, : 2 * rate]
    heard = excerpt(
        sample_rate=rate,
        mixture=2 * drums,
        references={"drums": drums, "bass": 0 * drums},
        estimates={"a": {"drums": 0.5 * drums, "bass": 0 * drums}},
    )
    page = Page(report_page.page([scored(heard)], [heard], SOURCE))
    for name, level in (("mixture", 0.8), ("reference/drums", 0.4), ("estimate/0/drums", 0.2)):
        played, played_rate = sound(page, name)
        assert (played_rate, played.shape[0]) == (expected_rate, expected_channels)
        assert played.shape[1] == 2 * expected_rate
        expected = tone(440, level, expected_rate, expected_channels)[:, : 2 * expected_rate]
        error = (played - expected)[:, 1000:-1000].square().mean() / expected.square().mean()
        assert error < 0.01
    assert sound(page, "reference/bass")[0].abs().max() < 1e-3
    peaks = page.data["songs"][0]["peaks"]
    assert (max(peaks["mixture"]), max(peaks["reference/drums"])) == (100, 50)


def test_what_exceeds_full_scale_is_made_quieter_together_with_the_rest() -> None:
    drums = tone(440, 2.0)
    bass = 0 * drums
    heard = excerpt(
        mixture=drums,
        references={"drums": 0.1 * drums, "bass": bass},
        estimates={"a": {"drums": drums, "bass": bass}},
    )
    page = Page(report_page.page([scored(heard)], [heard], SOURCE))
    assert page.data["songs"][0]["gainDb"] == pytest.approx(20 * math.log10(0.99 / 2), abs=1e-3)
    levels = [sound(page, name)[0].std() for name in ("mixture", "reference/drums")]
    assert levels == pytest.approx([0.7, 0.07], rel=0.03)


def test_every_signal_and_error_has_its_picture() -> None:
    heard = excerpt(labels=("a", "b"))
    page = Page(report_page.page([scored(heard, "a"), scored(heard, "b")], [heard], SOURCE))
    song = page.data["songs"][0]
    per_model = [f"{kind}/{k}/{stem}" for kind in ("estimate", "error") for k in (0, 1)
                 for stem in STEMS]  # fmt: skip
    assert set(song["images"]) == {"mixture", *(f"reference/{s}" for s in STEMS), *per_model}
    assert set(song["audio"]) == {name for name in song["images"] if "error" not in name}
    assert song["hz"] == [40.0, RATE / 2]
    assert len(set(song["images"].values())) > len(STEMS)


@pytest.mark.parametrize("num_samples", [1, 500])
def test_a_song_may_be_next_to_nothing(num_samples: int) -> None:
    audio = 0.1 * torch.ones(1, num_samples)
    heard = excerpt(
        mixture=audio,
        references=dict.fromkeys(STEMS, audio),
        estimates={"a": dict.fromkeys(STEMS, 0.5 * audio)},
        song_seconds=num_samples / RATE,
    )
    page = Page(report_page.page([scored(heard)], [heard], SOURCE))
    assert len(page.data["songs"][0]["peaks"]["mixture"]) == min(num_samples, 700)
