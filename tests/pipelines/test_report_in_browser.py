"""The page of an evaluation in a browser: it loads, its players play, switch and keep time."""

from collections.abc import Callable

import pytest
from selenium.webdriver import Chrome
from selenium.webdriver.common.by import By
from selenium.webdriver.common.keys import Keys
from selenium.webdriver.support.wait import WebDriverWait

from pipelines import report_page
from tests.pipelines.heard import HOSTILE, SECONDS, SOURCE, excerpt, scored

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
