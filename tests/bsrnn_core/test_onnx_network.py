"""What onnxruntime computes of an exported file is what PyTorch computes of the model."""

import json
from collections.abc import Callable
from pathlib import Path

import numpy as np
import onnx
import pytest
import torch

from bsrnn_core import BSRNN, BadInput, BsrnnConfig, ModelConfig, StftConfig, onnx_network
from bsrnn_core.bands import model_bands
from bsrnn_core.onnx_network import OnnxNetwork, RealNetwork, largest_deviation, write_onnx

CONFIG = BsrnnConfig(
    stft=StftConfig(sample_rate=8000, n_fft=256, hop_samples=100),
    model=ModelConfig(
        band_schema="generic", num_bands=9, feature_dim=5, num_blstm_layers=2, mlp_dim=6
    ),
    stems=("drums", "my (own) stem"),
)
SHAPES = [(1, 2, 1), (1, 1, 1), (2, 2, 3), (1, 1, 50), (3, 2, 8), (1, 6, 5), (1, 2, 2000)]
"""Batch, channels, frames."""


@pytest.fixture(scope="module")
def model() -> BSRNN:
    torch.manual_seed(0)
    return BSRNN(CONFIG).eval()


@pytest.fixture(scope="module")
def file(model: BSRNN, tmp_path_factory: pytest.TempPathFactory) -> Path:
    file = tmp_path_factory.mktemp("export") / "model.onnx"
    write_onnx(model, file)
    return file


@pytest.fixture(scope="module")
def network(file: Path) -> OnnxNetwork:
    return OnnxNetwork(file)


def noise(batch: int, channels: int, frames: int) -> torch.Tensor:
    shape = (batch, channels, CONFIG.stft.num_bins, frames, 2)
    return torch.randn(shape, generator=torch.Generator().manual_seed(frames)) + 0.3


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("level", [1e-4, 1.0, 1e3])
def test_onnxruntime_computes_what_pytorch_does(
    model: BSRNN, network: OnnxNetwork, shape: tuple[int, int, int], level: float
) -> None:
    mixture = level * noise(*shape)
    batch, channels, frames = shape
    assert network(mixture).shape == (batch, 2, channels, CONFIG.stft.num_bins, frames, 2)
    assert largest_deviation(model, network, [mixture]) < 1e-5


def test_items_of_a_batch_and_channels_do_not_mix_more_than_in_pytorch(
    network: OnnxNetwork,
) -> None:
    mixture = noise(3, 2, 8) * torch.tensor([1.0, 100.0, 0.01])[:, None, None, None, None]
    alone = torch.cat([network(mixture[item : item + 1]) for item in range(3)])
    torch.testing.assert_close(network(mixture), alone, rtol=1e-4, atol=1e-5)


def test_silence_stays_silent(model: BSRNN, network: OnnxNetwork) -> None:
    silence = torch.zeros_like(noise(1, 2, 7))
    assert network(silence).abs().max() == 0
    assert largest_deviation(model, network, [silence]) == 0


def test_a_deviation_is_in_units_of_the_loudest_estimate(model: BSRNN) -> None:
    mixture = 1e3 * noise(1, 1, 4)

    class Wrong(OnnxNetwork):
        def __init__(self) -> None:
            pass

        def __call__(self, mixture: torch.Tensor) -> torch.Tensor:
            return 1.01 * RealNetwork(model)(mixture)

    with torch.inference_mode():
        deviation = largest_deviation(model, Wrong(), [0.1 * mixture, mixture])
    assert deviation == pytest.approx(0.01, rel=1e-3)


def test_time_is_not_unrolled(file: Path) -> None:
    nodes = [node.op_type for node in onnx.load(file).graph.node]
    # One over time and one over the bands in each of the two modules.
    assert nodes.count("LSTM") == 4
    assert "Loop" not in nodes and "Scan" not in nodes


def test_the_file_says_what_one_must_know(file: Path) -> None:
    written = onnx.load(file)
    found = {prop.key: prop.value for prop in written.metadata_props}
    assert json.loads(found["stems"]) == ["drums", "my (own) stem"]
    assert {name: int(found[name]) for name in ("sample_rate", "n_fft", "hop_samples")} == {
        "sample_rate": 8000,
        "n_fft": 256,
        "hop_samples": 100,
    }
    assert found["window"].startswith("hann, periodic")
    assert found["padding"].startswith("reflect")
    assert found["band_schema"] == "generic"
    ranges = [tuple(pair) for pair in json.loads(found["bands"])]
    assert ranges == model_bands(CONFIG.stft, CONFIG.model)
    axes = {
        value.name: [axis.dim_param or axis.dim_value for axis in value.type.tensor_type.shape.dim]
        for value in (*written.graph.input, *written.graph.output)
    }
    assert axes == {
        "mixture": ["batch", "channels", 129, "frames", 2],
        "estimates": ["batch", 2, "channels", 129, "frames", 2],
    }


def test_the_model_itself_is_as_before(model: BSRNN, tmp_path: Path) -> None:
    mixture = torch.view_as_complex(noise(1, 2, 5))
    with torch.inference_mode():
        before = model(mixture)
    write_onnx(model, tmp_path / "again.onnx")
    with torch.inference_mode():
        assert torch.equal(model(mixture), before)
    assert not model.training


@pytest.mark.parametrize("schema", ["v1", "v7"])
def test_masks_with_hidden_layers_by_width_and_other_schemas(schema: str, tmp_path: Path) -> None:
    torch.manual_seed(1)
    sizes = ModelConfig(
        band_schema=schema, feature_dim=4, num_blstm_layers=1, hidden_dim=3, reduce_size=True
    )
    model = BSRNN(BsrnnConfig(stft=StftConfig(n_fft=512), model=sizes, stems=("bass",))).eval()
    write_onnx(model, tmp_path / "model.onnx")
    mixture = torch.from_numpy(np.random.default_rng(0).normal(size=(1, 2, 257, 9, 2))).float()
    assert largest_deviation(model, OnnxNetwork(tmp_path / "model.onnx"), [mixture]) < 1e-5


def test_a_missing_package_is_named(
    model: BSRNN, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    there: Callable[[str], object] = onnx_network.importlib.util.find_spec

    def find(name: str) -> object:
        return None if name == "onnxruntime" else there(name)

    monkeypatch.setattr(onnx_network.importlib.util, "find_spec", find)
    with pytest.raises(BadInput, match=r"pip install onnxruntime$"):
        write_onnx(model, tmp_path / "model.onnx")
    assert not list(tmp_path.iterdir())
