"""A file that is checked, whole or not there, and used by programs that know NumPy only."""

import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from bsrnn_core import BSRNN, BsrnnConfig, ModelConfig, StftConfig, separate
from bsrnn_core.checkpoint import save
from bsrnn_core.onnx_network import OnnxNetwork
from pipelines import export
from pipelines.cli import main

DOCS = Path(__file__).parents[2] / "docs" / "export.md"
CONFIG = BsrnnConfig(
    stft=StftConfig(sample_rate=8000, n_fft=256, hop_samples=100),
    model=ModelConfig(band_schema="v1", feature_dim=4, num_blstm_layers=1, mlp_dim=4),
    stems=("drums", "bass"),
)


@pytest.fixture(scope="module")
def model() -> BSRNN:
    torch.manual_seed(0)
    return BSRNN(CONFIG).eval()


@pytest.fixture(scope="module")
def words(model: BSRNN, tmp_path_factory: pytest.TempPathFactory) -> list[str]:
    folder = tmp_path_factory.mktemp("run") / "best"
    save(folder, model, {})
    return ["export", "--checkpoint_fp", str(folder), "--onnx"]


@pytest.fixture(scope="module")
def file(words: list[str], tmp_path_factory: pytest.TempPathFactory) -> Path:
    file = tmp_path_factory.mktemp("export") / "new folder" / "model.onnx"
    assert main([*words, str(file)]) == 0
    return file


def test_the_largest_deviation_is_told(
    words: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main([*words, str(tmp_path / "model.onnx")]) == 0
    printed = re.search(r"deviation from PyTorch: (\S+) of", capsys.readouterr().out)
    assert printed is not None
    assert 0 < float(printed[1]) < export.TOLERANCE
    assert [path.name for path in tmp_path.iterdir()] == ["model.onnx"]


def test_a_file_is_replaced_only_when_that_is_asked_for(
    words: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    file = tmp_path / "model.onnx"
    file.write_text("mine")
    assert main([*words, str(file)]) == 2
    assert "is there already; name another file, or give --overwrite" in capsys.readouterr().err
    assert file.read_text() == "mine"
    assert main([*words, str(file), "--overwrite"]) == 0
    OnnxNetwork(file)


def test_a_file_that_deviates_is_not_kept(
    words: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    file = tmp_path / "model.onnx"
    file.write_text("mine")

    class Wrong(OnnxNetwork):
        def __call__(self, mixture: torch.Tensor) -> torch.Tensor:
            return 1.001 * super().__call__(mixture)

    monkeypatch.setattr(export, "OnnxNetwork", Wrong)
    assert main([*words, str(file), "--overwrite"]) == 1
    assert file.read_text() == "mine"
    assert [path.name for path in tmp_path.iterdir()] == ["model.onnx"]


@pytest.mark.parametrize(
    ("name", "sentence"),
    [
        ("", "is a folder; name a file with --onnx"),
        ("file/model.onnx", "cannot be written"),
        ("s3://bucket/model.onnx", "--onnx takes a local file or folder"),
    ],
)
def test_a_place_that_cannot_be_written_is_refused(
    words: list[str],
    name: str,
    sentence: str,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    (tmp_path / "file").write_text("no folder")
    assert main([*words, name if ":" in name else str(tmp_path / name)]) == 2
    assert sentence in capsys.readouterr().err
    assert [path.name for path in tmp_path.iterdir()] == ["file"]


@pytest.mark.parametrize(("channels", "num_samples"), [(2, 8000), (1, 801), (2, 400), (1, 1)])
def test_the_example_of_the_docs_separates_without_this_project(
    model: BSRNN, file: Path, channels: int, num_samples: int
) -> None:
    block = re.search(r"```python\n(import json\n.+?)```", DOCS.read_text(), re.DOTALL)
    assert block is not None
    code = block[1]
    assert not re.search("torch|bsrnn_core|pipelines", code)
    example: dict[str, Any] = {}
    exec(code.replace('"model.onnx"', repr(str(file))), example)
    song = np.random.default_rng(0).normal(size=(channels, num_samples)).astype(np.float32)
    stems = example["separate"](song)
    expected = separate(model, torch.from_numpy(song))
    assert list(stems) == ["drums", "bass"]
    for stem, samples in expected.items():
        assert stems[stem].shape == song.shape
        np.testing.assert_allclose(stems[stem], samples.numpy(), atol=1e-4)
