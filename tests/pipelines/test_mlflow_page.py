"""MLflow's own pages, in a browser: what an experiment records can be seen and compared there."""

import json
import os
import signal
import socket
import struct
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Literal
from urllib.parse import quote

import pytest
import torch
from matplotlib.figure import Figure
from mlflow import MlflowClient
from selenium.common.exceptions import StaleElementReferenceException
from selenium.webdriver import Chrome
from selenium.webdriver.common.by import By
from selenium.webdriver.support.wait import WebDriverWait

from bsrnn_core import BSRNN, BsrnnConfig
from data_prep.config import SourceConfig
from pipelines import report_page, tracking
from pipelines.excerpts import Excerpt, Scored
from pipelines.scoring import MEASURES, SYSTEMS, Evaluation, TrackScores

pytestmark = pytest.mark.proof

START_SECONDS = 120
PAGE_SECONDS = 30
"""How long a server may take to start, and a page to show what it should, on a busy machine."""

WAYS = ("base", "transfer from base", "transfer from mtl")


@dataclass(frozen=True, kw_only=True)
class Server:
    """A running `mlflow server` and the database that it serves."""

    url: str
    database: str


@dataclass(frozen=True, kw_only=True)
class Recorded:
    """An experiment in the store, and what its pages have to show."""

    experiment_id: str
    parent: str
    runs: dict[str, str]
    """Names of the compared runs with their ids."""
    scores: dict[str, list[float]]
    """Of each metric the last value in every run, in the order of ``runs``."""
    figure: Path
    figure_place: str
    """The figure's path among the parent's artifacts."""
    ways: tuple[str, ...]
    """The runs' ways of training."""


def record_experiment(uri: str, name: str, folder: Path) -> Recorded:
    """Three transfers below one parent run, with curves, scores and the parent's figure."""
    parent = tracking.create_run(uri, name, "paper", {}, {"stage": "experiment"})
    runs: dict[str, str] = {}
    scores: dict[str, list[float]] = {"valid/usdr_bass": [], "test/usdr_bass": []}
    for index, way in enumerate(WAYS):
        tags = {
            "stage": "base" if way == "base" else "transfer",
            "band_schema": "v7",
            "way": way,
            "stems": "bass",
            "manifest_hash": "0123abcd",
        }
        params = {"lr": 1e-3, "feature_dim": 16, "seed": 42 + index}
        run = tracking.create_run(uri, name, f"bass-{index}", params, tags, parent)
        curve = [1.125 + index, 2.25 + index, 2.875 + index]
        with tracking.Tracker(run, uri) as tracker:
            for epoch, value in enumerate(curve):
                tracker.log(100 * (epoch + 1), {"valid/usdr_bass": value, "train/loss": 1 / value})
        assert tracking.log_results(run, uri, {"test/usdr_bass": 3.407 + index}, []) is None
        tracking.finish_run(run, uri, "FINISHED")
        runs[f"bass-{index}"] = run
        scores["valid/usdr_bass"].append(curve[-1])
        scores["test/usdr_bass"].append(3.407 + index)
    picture = Figure(figsize=(6.2, 3.4), dpi=100)
    picture.subplots().bar(list(runs), scores["test/usdr_bass"])
    picture.savefig(folder / "scores.png")
    figures = [(folder / "scores.png", "comparison")]
    assert tracking.log_results(parent, uri, {}, figures) is None
    tracking.finish_run(parent, uri, "FINISHED")
    return Recorded(
        experiment_id=MlflowClient(uri).get_run(parent).info.experiment_id,
        parent=parent,
        runs=runs,
        scores=scores,
        figure=folder / "scores.png",
        figure_place="comparison/scores.png",
        ways=WAYS,
    )


def real_experiment(toy) -> Recorded:
    """What `bsrnn experiment` recorded of its transfers, and its figure."""
    runs = tracking.find_runs(toy.database, "toys")
    parent = next(run.run_id for run in runs if run.tags["stage"] == "experiment")
    transfers = [run for run in runs if run.tags["stage"] == "transfer"]
    assert len(transfers) == 2
    return Recorded(
        experiment_id=MlflowClient(toy.database).get_run(parent).info.experiment_id,
        parent=parent,
        runs={run.name: run.run_id for run in transfers},
        scores={
            metric: [run.metrics[metric] for run in transfers]
            for metric in ("valid/usdr_bass", "test/usdr_bass")
        },
        figure=toy.folder / "comparison" / "scores.png",
        figure_place="comparison/scores.png",
        ways=tuple(run.tags["way"] for run in transfers),
    )


@pytest.fixture(scope="module")
def server(toy_experiment, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    """The server of the experiment's store."""
    with serving(toy_experiment.database, tmp_path_factory.mktemp("server")) as there:
        yield there


@contextmanager
def serving(database: str, folder: Path) -> Iterator[Server]:
    """`mlflow server` on the loopback interface, in a process group that ends with the tests."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    url = f"http://127.0.0.1:{port}"
    command = [sys.executable, "-m", "mlflow", "server", "--host", "127.0.0.1", "--workers", "1"]
    command += ["--port", str(port), "--backend-store-uri", database]
    command += ["--artifacts-destination", str(folder / "artifacts")]
    settings = {
        "MLFLOW_DISABLE_TELEMETRY": "true",
        "MLFLOW_SERVER_ENABLE_JOB_EXECUTION": "false",  # eight processes that nothing here needs
    }
    log = folder / "server.log"
    with log.open("w") as output:
        process = subprocess.Popen(
            command,
            cwd=folder,
            env=os.environ | settings,
            stdout=output,
            stderr=subprocess.STDOUT,
            start_new_session=True,
        )
    try:
        deadline = time.monotonic() + START_SECONDS
        while tracking.check_reachable(url) is not None:
            assert process.poll() is None and time.monotonic() < deadline, log.read_text()[-3000:]
            time.sleep(0.2)
        yield Server(url=url, database=database)
    finally:
        end_group(process)


def end_group(process: subprocess.Popen[bytes]) -> None:
    """Stop a process that leads a group, then whatever of the group is left."""
    process.terminate()
    with suppress(subprocess.TimeoutExpired):
        process.wait(15)
    with suppress(ProcessLookupError):
        os.killpg(process.pid, signal.SIGKILL)
    process.wait(15)


@pytest.fixture(scope="module", params=["experiment", "server", "file"])
def recorded(
    request: pytest.FixtureRequest,
    server: Server,
    toy_experiment,
    tmp_path_factory: pytest.TempPathFactory,
) -> Recorded:
    """A real experiment; and one recorded through the server as on a cluster, and straight to the
    file."""
    if request.param == "experiment":
        return real_experiment(toy_experiment)
    uri = server.url if request.param == "server" else server.database
    return record_experiment(uri, f"by {request.param}", tmp_path_factory.mktemp("figures"))


def open_page(browser: Chrome, address: str) -> None:
    # Pages of one server differ in what stands after the #, which alone loads nothing anew.
    browser.get("about:blank")
    browser.get(address)


def wait(browser: Chrome) -> "WebDriverWait[Chrome]":
    # The page draws itself anew while it loads.
    return WebDriverWait(browser, PAGE_SECONDS, 0.2, [StaleElementReferenceException])


CELLS = """
return [...document.querySelectorAll("[role=rowgroup] > div")].map(cell => {
    const box = cell.getBoundingClientRect();
    return [box.top, box.left, cell.innerText.trim()];
});
"""


SCROLL = """
const parts = [...document.querySelectorAll(".ReactVirtualized__Grid")];
const end = Math.min(...parts.map(part => part.scrollHeight - part.clientHeight));
const here = Math.min(...parts.map(part => part.scrollTop));
const next = here >= end ? 0 : Math.min(end, here + 140);
parts.forEach(part => { part.scrollTop = next; });
"""
"""A few rows further, with names and values alike, for MLflow's table of metrics holds no rows but
those in sight. By no multiple of a row's height: when one part is late, no wrong rows
are level."""


def row_of(metric: str, num_values: int) -> Callable[[Chrome], list[str] | Literal[False]]:
    """Looks for the texts at the height of a metric's name, once they are ``num_values``.

    MLflow's table of metrics has columns but no rows: places on the page tell what goes together.
    """

    def look(browser: Chrome) -> list[str] | Literal[False]:
        cells: list[tuple[float, float, str]] = browser.execute_script(CELLS)
        heights = {top for top, _, text in cells if text == metric}
        row = sorted((left, text) for top, left, text in cells if top in heights and text)
        if len(row) == num_values + 1:
            return [text for _, text in row[1:]]
        browser.execute_script(SCROLL)
        return False

    return look


def picture(place: str) -> Callable[[Chrome], tuple[int, int] | Literal[False]]:
    """Looks for an artifact's picture on its page; gives width and height once it has loaded."""

    def look(browser: Chrome) -> tuple[int, int] | Literal[False]:
        for image in browser.find_elements(By.CSS_SELECTOR, f'img[alt="{place}"]'):
            width, height = (image.get_property(f"natural{side}") for side in ("Width", "Height"))
            if not (isinstance(width, int) and isinstance(height, int)):
                continue
            if width > 0 and image.is_displayed():
                return width, height
        return False

    return look


def test_runs_can_be_compared(browser: Chrome, server: Server, recorded: Recorded) -> None:
    run_ids = quote(json.dumps(list(recorded.runs.values())))
    experiments = quote(json.dumps([recorded.experiment_id]))
    address = f"{server.url}/#/compare-runs?runs={run_ids}&experiments={experiments}"
    open_page(browser, address)
    for metric, values in recorded.scores.items():
        message = f"the page does not show {metric} of every run"
        row = wait(browser).until(row_of(metric, len(values)), message)
        # The page rounds to four digits, and to three after the point.
        assert [float(text) for text in row] == pytest.approx(values, rel=1e-3, abs=6e-4)
    text = browser.find_element(By.TAG_NAME, "body").text
    lines = [line.strip() for line in text.splitlines()]
    assert [line for line in lines if line in recorded.runs] == list(recorded.runs)
    assert "way " + " ".join(recorded.ways) in lines


def test_the_figure_is_shown(browser: Chrome, server: Server, recorded: Recorded) -> None:
    page = tracking.run_url(recorded.parent, server.url)
    open_page(browser, f"{page}/artifacts/{recorded.figure_place}")
    message = f"the page shows no picture {recorded.figure_place}"
    size = wait(browser).until(picture(recorded.figure_place), message)
    assert size == struct.unpack(">II", recorded.figure.read_bytes()[16:24])


def page_of_a_tone() -> str:
    """The page of one song, whose drums are a tone of -9 dB."""
    drums = (0.5 * torch.sin(2 * torch.pi * 440 * torch.arange(20 * 8000) / 8000)).expand(2, -1)
    song = Excerpt(
        song="a tone",
        reason="",
        first_second=0,
        song_seconds=20.0,
        sample_rate=8000,
        mixture=drums,
        references={"drums": drums},
        estimates={"a": {"drums": 0.1 * drums}},
    )
    frames = [{"time": k, "duration": 1.0, "metrics": {"SDR": 0.92}} for k in range(20)]
    scores = TrackScores(
        track=song.song,
        seconds=song.song_seconds,
        scores={m: {s: {"drums": 0.92} for s in SYSTEMS} for m in MEASURES},
        museval={"targets": [{"name": "drums", "frames": frames}]},
    )
    evaluation = Evaluation(
        subset="test", protocol="single", stems=("drums",), tracks=(scores,), skipped={}
    )
    model = BSRNN(BsrnnConfig(stems=("drums",)))
    scored = Scored(label="a", checkpoint="runs/a/best", model=model, evaluation=evaluation)
    return report_page.page([scored], [song], SourceConfig(musdbhq_location="songs"))


def test_the_page_to_listen_plays_among_the_artifacts(
    browser: Chrome, migrated_database: Path, tmp_path: Path
) -> None:
    """In the frame that MLflow puts pages into, which has no rights but that to run scripts."""
    page = tmp_path / "report.html"
    page.write_text(page_of_a_tone(), encoding="utf-8")
    with serving(f"sqlite:///{migrated_database}", tmp_path) as there:
        run = tracking.create_run(there.url, "pages", "one", {}, {})
        assert tracking.log_results(run, there.url, {}, [(page, "evaluation/test")]) is None
        address = tracking.run_url(run, there.url)
        open_page(browser, f"{address}/artifacts/evaluation/test/report.html")
        frame = wait(browser).until(
            lambda page: page.find_elements(By.CSS_SELECTOR, "iframe[sandbox]"), "no page is shown"
        )
        assert frame[0].get_attribute("sandbox") == "allow-scripts"
        browser.switch_to.frame(frame[0])
        try:
            wait(browser).until(lambda page: page.find_elements(By.CSS_SELECTOR, ".play"))[
                0
            ].click()
            for choice, low, high in (("reference/drums", -11, -8), ("estimate/0/drums", -31, -27)):
                browser.find_element(By.CSS_SELECTOR, f"[data-id='{choice}']").click()
                level = "document.querySelector('meter').value"
                heard = f"return {low} < {level} && {level} < {high}"
                wait(browser).until(
                    lambda page, heard=heard: page.execute_script(heard), f"{choice} is not heard"
                )
        finally:
            browser.switch_to.default_content()
