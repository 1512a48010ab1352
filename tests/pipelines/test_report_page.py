"""The page of an evaluation: its numbers, its names, its sounds; and in a browser, its players."""

import base64
import dataclasses
import hashlib
import html
import json
import math
import re
import tempfile
from collections.abc import Callable
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import pytest
import torch
from selenium.webdriver import Chrome
from selenium.webdriver.common.by import By
from selenium.webdriver.common.keys import Keys
from selenium.webdriver.support.wait import WebDriverWait
from torch import Tensor

from bsrnn_core import BSRNN, BsrnnConfig, ModelConfig, StftConfig
from bsrnn_core.audio_files import audio_info, read_audio
from bsrnn_core.metrics import track_json
from data_prep.config import SourceConfig
from pipelines import display, report_page
from pipelines.excerpts import Excerpt, Scored
from pipelines.scoring import MEASURES, SYSTEMS, Evaluation, TrackScores

RATE = 8000
SECONDS = 10
STEMS = ("drums", "bass")
HOSTILE = "<img src=x onerror=\"document.title='broken'\"></script><script>{{data}}&'"
SOURCE = SourceConfig(musdbhq_location="songs")


def tone(hz: float, level: float, rate: int = RATE, channels: int = 2) -> Tensor:
    time = torch.arange(SECONDS * rate) / rate
    return (level * torch.sin(2 * torch.pi * hz * time)).expand(channels, -1).clone()


def excerpt(song: str = "one", labels: tuple[str, ...] = ("a",), **changes: Any) -> Excerpt:
    """Drums that begin after two seconds, and a silent bass."""
    drums = tone(440, 0.5)
    drums[:, : 2 * RATE] = 0
    references = {"drums": drums, "bass": torch.zeros_like(drums)}
    estimates = {
        label: {"drums": 0.5 / (k + 1) * drums, "bass": tone(100, 0.01)}
        for k, label in enumerate(labels)
    }
    values = {
        "song": song,
        "reason": "worst",
        "first_second": 0,
        "song_seconds": float(SECONDS),
        "sample_rate": RATE,
        "mixture": drums + tone(900, 0.1),
        "references": references,
        "estimates": estimates,
    }
    return Excerpt(**(values | changes))


def scored(heard: Excerpt, label: str = "a", others: tuple[str, ...] = ()) -> Scored:
    """The scores of a model on the song that is heard, and made-up ones on other songs."""
    references = torch.stack(list(heard.references.values()))
    estimates = torch.stack(list(heard.estimates[label].values()))
    museval = track_json(STEMS, references, estimates, heard.sample_rate, "single")
    tracks = []
    for k, song in enumerate((heard.song, *others)):
        scores = {
            measure: {
                system: {"drums": 2.0 + 3 * k + j + len(label), "bass": math.nan}
                for j, system in enumerate(SYSTEMS)
            }
            for measure in MEASURES
        }
        tracks.append(TrackScores(track=song, seconds=SECONDS, scores=scores, museval=museval))
    config = BsrnnConfig(
        stft=StftConfig(sample_rate=RATE, n_fft=256),
        model=ModelConfig(band_schema="v1", feature_dim=4, num_blstm_layers=1, mlp_dim=4),
        stems=STEMS,
        crop_seconds=0.5,
    )
    return Scored(
        label=label,
        checkpoint=f"runs/{label}/best",
        model=BSRNN(config),
        evaluation=Evaluation(
            subset="valid",
            protocol="single",
            stems=STEMS,
            tracks=tuple(tracks),
            skipped={"bad": "is cut short"},
        ),
    )


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


# In a browser

PAGE_SECONDS = 60
STARTS = """
window.starts = [];
const start = AudioBufferSourceNode.prototype.start;
AudioBufferSourceNode.prototype.start = function (when, offset) {
  window.starts.push([when, offset, this.buffer.duration]);
  return start.call(this, when, offset);
};
"""
"""Notes what is started, and when."""


@pytest.fixture(scope="module")
def opened(browser: Chrome, tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Chrome]:
    """``opened(text)``: the browser, showing this page as a file."""
    folder = tmp_path_factory.mktemp("pages")
    browser.execute_cdp_cmd("Page.addScriptToEvaluateOnNewDocument", {"source": STARTS})

    def show(text: str) -> Chrome:
        file = folder / f"page {len(list(folder.iterdir()))}.html"
        file.write_text(text, encoding="utf-8")
        browser.get("about:blank")
        browser.get_log("browser")
        browser.get(file.as_uri())
        return browser

    return show


@pytest.fixture(scope="module")
def page_of_two() -> str:
    """Two models and two songs."""
    heard = [excerpt(song, ("a", "b")) for song in ("one", "two")]
    return report_page.page([scored(heard[0], k, ("two",)) for k in ("a", "b")], heard, SOURCE)


@pytest.fixture
def player(opened: Callable[[str], Chrome], page_of_two: str) -> Chrome:
    """That page, newly opened."""
    return opened(page_of_two)


def press(browser: Chrome, selector: str) -> None:
    browser.find_element(By.CSS_SELECTOR, selector).click()


def wait_for(browser: Chrome, script: str, message: str) -> None:
    waiting = WebDriverWait(browser, PAGE_SECONDS, 0.05)
    waiting.until(lambda page: page.execute_script(f"return {script}"), message)


def level(browser: Chrome) -> float:
    """What is heard of the first song, in dB, as its meter shows it."""
    return browser.execute_script("return document.querySelector('meter').value")


def level_is(low: float, high: float) -> str:
    meter = "document.querySelector('meter').value"
    return f"{meter} > {low} && {meter} < {high}"


def test_the_page_loads_without_a_complaint(player: Chrome) -> None:
    assert player.get_log("browser") == []
    assert player.title == "a and b: scores and songs"
    assert len(player.find_elements(By.CSS_SELECTOR, ".song")) == 2
    pictures = player.find_elements(By.CSS_SELECTOR, "#song-0 img")
    assert len(pictures) == 6
    assert [picture.get_property("naturalHeight") for picture in pictures] == [128] * 6
    player.execute_script("console.error('a complaint')")
    assert "a complaint" in player.get_log("browser")[0]["message"]


def test_all_signals_start_together_and_switching_is_heard(player: Chrome) -> None:
    # Two seconds in, where the drums play: at 0.5, so -9 dB, beside the mixture's own tone.
    player.execute_script("document.querySelector('.time-line').focus()")
    keys = player.switch_to.active_element
    keys.send_keys(Keys.ARROW_RIGHT * 2)
    keys.send_keys(" ")
    wait_for(player, level_is(-10, -7), "the mixture is not heard")
    starts = player.execute_script("return window.starts")
    # The mixture, two references, and two estimates of two models.
    assert len(starts) == 7
    assert len({tuple(start[:2]) for start in starts}) == 1
    assert starts[0][1] == pytest.approx(2)
    assert {round(start[2], 1) for start in starts} == {SECONDS}

    pressed = "[...document.querySelectorAll('#song-0 [aria-pressed=true]')].map(b => b.innerText)"
    for key, low, high in (("3", -17, -13), ("2", -10.5, -8), ("4", -23, -19), ("1", -10, -7)):
        keys.send_keys(" ")
        keys.send_keys(Keys.ARROW_LEFT * SECONDS + Keys.ARROW_RIGHT * 2)
        keys.send_keys(" ")
        keys.send_keys(key)
        wait_for(player, level_is(low, high), f"after {key} something else is heard")
        stem, choice = player.execute_script(f"return {pressed}")
        assert (stem, choice[0]) == ("drums", key)
    before = len(player.execute_script("return window.starts"))
    press(player, "#song-0 [data-stem=bass]")
    press(player, "#song-0 [data-id='reference/bass']")
    wait_for(player, level_is(-100, -59), "a silent stem is heard")
    assert len(player.execute_script("return window.starts")) == before
    assert player.get_log("browser") == []


def test_sound_and_pictures_keep_time(player: Chrome) -> None:
    """What browsers decode begins where the samples begin, whatever mp3 puts before them."""
    onset = player.execute_async_script(
        """
        const done = arguments[arguments.length - 1];
        const text = JSON.parse(document.getElementById("data").textContent)
            .songs[0].audio["reference/drums"];
        const bytes = Uint8Array.from(atob(text), letter => letter.charCodeAt(0));
        new OfflineAudioContext(1, 1, 44100).decodeAudioData(bytes.buffer).then(sound =>
            done(sound.getChannelData(0).findIndex(sample => Math.abs(sample) > 0.2) / 44100));
        """
    )
    assert onset == pytest.approx(2, abs=0.01)


def test_a_click_into_a_picture_is_heard_from_there(player: Chrome) -> None:
    picture = player.find_element(By.CSS_SELECTOR, "#song-0 .plot.picture")
    picture.click()  # in its middle
    wait_for(player, "window.starts.length", "nothing is played")
    assert player.execute_script("return window.starts[0][1]") == pytest.approx(
        SECONDS / 2, abs=0.05
    )
    press(player, "#song-1 .play")
    wait_for(player, "window.starts.length == 14", "the other song is not played")
    names = "[...document.querySelectorAll('.play')].map(button => button.innerText)"
    assert player.execute_script(f"return {names}") == ["▶ Play", "❚❚ Pause"]


def test_the_worst_second_can_be_gone_to(player: Chrome) -> None:
    player.find_element(By.TAG_NAME, "body").send_keys("w")
    wait_for(player, "window.starts.length", "nothing is played")
    # The first two have no score.
    assert player.execute_script("return window.starts[0][1]") == 2


def test_the_end_is_the_beginning(player: Chrome) -> None:
    player.find_element(By.TAG_NAME, "body").send_keys(Keys.ARROW_RIGHT * (SECONDS - 1) + " ")
    wait_for(player, "window.starts.length", "nothing is played")
    ended = "document.querySelector('.clock').innerText.startsWith('0.0')"
    wait_for(player, ended, "the player does not stop")
    assert player.find_element(By.CSS_SELECTOR, ".play").text == "▶ Play"


def test_hostile_names_are_only_names_in_a_browser_too(opened: Callable[[str], Chrome]) -> None:
    heard = excerpt(song=HOSTILE, labels=(HOSTILE,))
    browser = opened(report_page.page([scored(heard, HOSTILE)], [heard], SOURCE))
    assert browser.title == f"{HOSTILE}: scores and songs"
    assert browser.find_element(By.CSS_SELECTOR, ".song h3").text == HOSTILE
    assert browser.find_elements(By.CSS_SELECTOR, "[onerror]") == []
    assert browser.get_log("browser") == []
