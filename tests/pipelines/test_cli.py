"""The program: what it does with a command line, and how it fails."""

import dataclasses
import os
import subprocess
import sys
import types
from pathlib import Path

import pytest

from bsrnn_core.errors import BadInput
from pipelines import cli
from pipelines.config import TrainConfig, original
from pipelines.config_files import (
    leaf_values,
    leaves,
)

LARGE_TENSOR = """
from pipelines.cli import main
assert main(["--help"]) == 0
import pipelines.infer, torch
tensor = torch.zeros(2**24)
print(any(line.startswith("VmFlags") and " hg" in line for line in open("/proc/self/smaps")))
"""
"""A program that says whether torch has asked the kernel for huge pages."""


@pytest.fixture
def trained(monkeypatch: pytest.MonkeyPatch) -> list[TrainConfig]:
    """Has `bsrnn train` note its configuration in this list instead of training."""
    seen: list[TrainConfig] = []
    module = types.ModuleType("fake_train")
    module.__dict__["run"] = seen.append
    monkeypatch.setitem(sys.modules, "fake_train", module)
    command = dataclasses.replace(cli.COMMANDS["train"], run="fake_train:run")
    monkeypatch.setitem(cli.COMMANDS, "train", command)
    return seen


def failing_command(monkeypatch: pytest.MonkeyPatch, error: BaseException) -> None:
    """Has `bsrnn train` raise ``error``."""

    def run(_config: TrainConfig) -> None:
        raise error

    module = types.ModuleType("fake_failure")
    module.__dict__["run"] = run
    monkeypatch.setitem(sys.modules, "fake_failure", module)
    command = dataclasses.replace(cli.COMMANDS["train"], run="fake_failure:run")
    monkeypatch.setitem(cli.COMMANDS, "train", command)


@pytest.mark.parametrize("name", cli.COMMANDS)
def test_every_command_exists_and_its_names_are_unique_and_no_alias(name: str):
    command = cli.COMMANDS[name]
    assert callable(cli._load(command.run))
    known = leaves(cli._load(command.config))  # asserts that they are unique
    assert not {"preset", "config", "help", "generic_bands"} & set(known)
    assert not {f"no_{one}" for one in known} & set(known)


OLD_COMMAND_LINE = (
    "--device cpu --seed 1 train --part drums --musdbhq_location D --generic_bands true --name X"
    " --sample_rate 44100 --chunk_size_in_seconds 1 --n_fft 2048 --feature_dim 32"
    " --num_blstm_layers 6 --mlp_dim 256 --batch_size 95 --reduce_size false --portion 1.0"
    " --clip_grad_norm 5 --max_epochs 500 --lr 0.001 --data_loader_workers 1"
)


def test_an_old_command_line_works_as_it_stands(trained: list[TrainConfig]):
    assert cli.main(OLD_COMMAND_LINE.split()) == 0
    expected = {
        "device": "cpu", "seed": 1, "part": ("drums",), "musdbhq_location": "D",
        "band_schema": "generic", "name": "X",
    }  # fmt: skip
    assert leaf_values(trained[0]) == leaf_values(original()) | expected


def test_global_flags_may_follow_the_command_which_then_wins(trained: list[TrainConfig]):
    assert cli.main(["--seed=1", "train", "--seed", "2", "--device", "cpu"]) == 0
    assert (trained[0].seed, trained[0].cluster.device) == (2, "cpu")


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["trian"], "did you mean train?"),
        (["--lr", "1", "train"], "--lr stands before the command"),
        (["--seed"], "--seed takes one value"),
        (["--seed", "1"], "no command"),
        (["train", "--lrr"], "did you mean --lr?"),
    ],
)
def test_bad_input_is_one_sentence_and_exit_code_2(
    words: list[str], said: str, capsys: pytest.CaptureFixture[str]
):
    assert cli.main(words) == 2
    shown = capsys.readouterr()
    assert shown.out == ""
    assert said in shown.err
    assert shown.err.count("\n") == 1


def test_an_integer_result_is_the_exit_code(trained: list[TrainConfig], monkeypatch):
    monkeypatch.setattr(sys.modules["fake_train"], "run", lambda _config: 1)
    assert cli.main(["train"]) == 1
    monkeypatch.setattr(sys.modules["fake_train"], "run", lambda _config: "a result")
    assert cli.main(["train"]) == 0


class RayLike(Exception):
    """Looks like one of Ray's wrappers, in the ways that count."""

    __module__ = "ray.exceptions"

    def __init__(self, message: str = "", **attributes: object) -> None:
        super().__init__(message)
        self.__dict__.update(attributes)


def caused(outer: BaseException, cause: BaseException) -> BaseException:
    outer.__cause__ = cause
    return outer


SENTENCE = "x.wav is empty; leave it out"


@pytest.mark.parametrize(
    "error",
    [
        BadInput(SENTENCE),
        BadInput("x.wav is empty;\nleave it out"),
        caused(RuntimeError("a"), caused(RuntimeError("b"), BadInput(SENTENCE))),
        RayLike(cause=BadInput(SENTENCE)),
        RayLike(worker_failures={0: RayLike(cause=BadInput(SENTENCE))}),
        RayLike(controller_failure=BadInput(SENTENCE)),
        RayLike(f"ray::Map()\nbsrnn_core.errors.BadInput: {SENTENCE}\n\nray: UDF failed"),
        RayLike(worker_failures={1: RayLike(f"bsrnn_core.errors.BadInput: {SENTENCE}")}),
    ],
    ids=["bare", "lines", "caused", "task", "worker", "controller", "text", "worker text"],
)
def test_bad_input_is_recognised_however_it_is_wrapped(
    error: BaseException, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
):
    failing_command(monkeypatch, error)
    assert cli.main(["train"]) == 2
    assert capsys.readouterr().err == f"bsrnn: {SENTENCE}\n"


@pytest.mark.parametrize(
    "error",
    [
        RuntimeError("boom"),
        RuntimeError(f"bsrnn_core.errors.BadInput: {SENTENCE}"),
        caused(BrokenPipeError("boom"), KeyError("x")),
    ],
)
def test_any_other_failure_logs_its_traceback_and_exits_with_1(
    error: BaseException, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
):
    failing_command(monkeypatch, error)
    assert cli.main(["train"]) == 1
    assert "Traceback" in caplog.text


def test_an_interrupt_exits_with_1(monkeypatch: pytest.MonkeyPatch):
    failing_command(monkeypatch, KeyboardInterrupt())
    assert cli.main(["train"]) == 1


def test_the_overview_is_shown_without_loading_anything_heavy():
    script = (
        "import sys; from pipelines.cli import main; code = main(['--help']);"
        "heavy = {'torch', 'ray', 'mlflow', 'tyro', 'numpy'} & set(sys.modules);"
        "sys.exit(f'loaded {heavy}' if heavy else code)"
    )
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert all(name in done.stdout for name in cli.COMMANDS)


def test_no_command_shows_the_overview_and_is_an_error(capsys: pytest.CaptureFixture[str]):
    assert cli.main([]) == 2
    assert "usage: bsrnn" in capsys.readouterr().err


def test_a_reader_that_leaves_is_no_failure_to_tell_of():
    command = f"{sys.executable} -m pipelines.cli --help | true; echo ${{PIPESTATUS[0]}}"
    done = subprocess.run(["bash", "-c", command], capture_output=True, text=True)
    assert done.stderr == ""
    assert done.stdout == "1\n"


@pytest.mark.skipif(not Path("/proc/self/smaps").exists(), reason="the system has no /proc/*/smaps")
@pytest.mark.parametrize(
    ("given", "huge"), [({}, "True"), ({"THP_MEM_ALLOC_ENABLE": "0"}, "False")]
)
def test_large_tensors_lie_in_huge_pages_unless_told_otherwise(given: dict[str, str], huge: str):
    environment = {name: value for name, value in os.environ.items() if "THP" not in name} | given
    said = subprocess.run(
        [sys.executable, "-c", LARGE_TENSOR],
        env=environment, check=True, capture_output=True, text=True,
    )  # fmt: skip
    assert said.stdout.splitlines()[-1] == huge
