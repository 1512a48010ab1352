"""What cannot be transferred from is refused, with the difference."""

from dataclasses import replace
from pathlib import Path

import pytest

from bsrnn_core import BSRNN, checkpoint
from pipelines.cli import main
from pipelines.config import TrainConfig
from pipelines.config_files import RUN_CONFIG, save_yaml


@pytest.fixture
def run_to_start_from(tiny_config: TrainConfig, tiny_shards: Path, tmp_path: Path, monkeypatch):
    """The folder of a run with a checkpoint and its options, seen from an empty folder."""
    run = tmp_path / "base"
    config = replace(tiny_config, part=("vocals",), name="base", shards=str(tiny_shards))
    checkpoint.save(run / "best", BSRNN(config.bsrnn), {})
    save_yaml(config, run / RUN_CONFIG)
    (tmp_path / "elsewhere").mkdir()
    monkeypatch.chdir(tmp_path / "elsewhere")
    return run


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["--band_schema", "v1"], "band_schema is generic and not v1"),
        (["--num_bands", "7"], "num_bands is 6 and not 7"),
        (["--sample_rate", "16000"], "sample_rate is 8000 and not 16000"),
        (["--n_fft", "512"], "n_fft is 256 and not 512"),
        (["--hop_samples", "32"], "hop_samples is 64 and not 32"),
        (["--feature_dim", "5"], "feature_dim is 4 and not 5"),
        (["--hidden_dim", "9"], "hidden_dim is 8 and not 9"),
        (["--num_blstm_layers", "2"], "num_blstm_layers is 1 and not 2"),
    ],
    ids=str,
)
@pytest.mark.parametrize("command", [["train", "--transfer"], ["transfer"]], ids=str)
def test_a_checkpoint_of_another_kind_is_refused_before_anything_is_written(
    command, words, said, run_to_start_from, capsys
):
    best = str(run_to_start_from / "best")
    assert main([*command, "--checkpoint_fp", best, "--part", "drums", "--name", "x", *words]) == 2
    shown = capsys.readouterr().err
    assert f"{best} is of another model: " in shown
    assert said in shown
    assert shown.count("\n") == 1
    assert list(Path.cwd().iterdir()) == []


def test_a_checkpoint_that_is_not_there_is_named(run_to_start_from, capsys):
    words = ["--checkpoint_fp", str(run_to_start_from / "none"), "--part", "drums", "--name", "x"]
    assert main(["transfer", *words]) == 2
    assert f"{run_to_start_from / 'none'}: there is no such checkpoint" in capsys.readouterr().err
    assert list(Path.cwd().iterdir()) == []
