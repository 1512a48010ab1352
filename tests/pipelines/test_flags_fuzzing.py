"""Whatever a command line says: a configuration or one sentence, for every option there is."""

from collections.abc import Iterator

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from bsrnn_core.errors import BadInput
from pipelines.cli import COMMANDS, _load
from pipelines.config_files import leaves
from pipelines.flags import parse

VALUES = ("-1", "0", "1.5", "nan", "-inf", "1e308", "9" * 30, "", "abc", "\0", "[1,2]", "None")


def options() -> Iterator[tuple[str, str]]:
    for command in COMMANDS:
        for name in leaves(_load(COMMANDS[command].config)):
            yield command, name


def outcome(command: str, words: list[str]) -> object:
    """The configuration, or the sentence."""
    known = COMMANDS[command]
    presets = _load("pipelines.config:PRESETS") if known.presets else None
    try:
        return parse(_load(known.config), words, prog="bsrnn", presets=presets)
    except BadInput as error:
        return str(error)


def required(command: str, but: str) -> list[str]:
    known = leaves(_load(COMMANDS[command].config))
    return [f"--{name}=x" for name, leaf in known.items() if leaf.required and name != but]


@settings(max_examples=50, deadline=None)
@given(st.sampled_from(list(options())), st.sampled_from(VALUES) | st.text(max_size=8))
def test_any_value_of_any_option_is_taken_or_refused(option: tuple[str, str], value: str) -> None:
    command, name = option
    result = outcome(command, [*required(command, name), f"--{name}={value}"])
    if isinstance(result, str):
        assert result.strip()
        assert "Traceback" not in result
    else:
        assert isinstance(result, _load(COMMANDS[command].config))


@settings(max_examples=30, deadline=None)
@given(st.sampled_from(["infer", "prep", "bands"]), st.lists(st.text(max_size=6), max_size=5))
def test_any_words_are_taken_or_refused(command: str, words: list[str]) -> None:
    assert outcome(command, [word for word in words if word not in ("-h", "--help")])


@pytest.mark.parametrize(
    ("words", "sentence"),
    [
        (["--lr", "nan"], "--lr takes a finite number, not nan"),
        (["--gain_db", "inf"], "--gain_db takes a finite number, not inf"),
        (["--seed", "9" * 30], "--seed is out of reach"),
        (["--feature_dim", "9999999"], "feature_dim must be positive and at most 16384"),
        (["--sample_rate", "9" * 12], "sample_rate must be positive and at most 1000000"),
        (["--n_fft", str(2**40)], "n_fft must be even, at least 16 and at most"),
    ],
)
def test_numbers_beyond_all_use_are_refused(words: list[str], sentence: str) -> None:
    result = outcome("train", words)
    assert isinstance(result, str)
    assert sentence in result
