"""The network between STFT and inverse STFT as an ONNX file, for programs without PyTorch.

Complex numbers have no place in ONNX, so real and imaginary parts are a last axis of two. The
packages onnx and onnxruntime are needed here only, and imported where they are.
"""

import importlib.util
import json
import os
import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor, nn

from bsrnn_core.bands import model_bands
from bsrnn_core.config import BsrnnConfig
from bsrnn_core.errors import BadInput
from bsrnn_core.model import BSRNN
from bsrnn_core.normalization import STD_FLOOR

INPUT, OUTPUT = "mixture", "estimates"
TOLERANCE = 1e-4
"""How far, in units of the loudest value of the estimates, onnxruntime may be from PyTorch."""
OPSET = 18
"""The oldest version of ONNX's operators in which a mean takes its axes as an input."""


def check_packages() -> None:
    """Raise BadInput, with the command to install them, where onnx or onnxruntime is missing."""
    missing = [name for name in ("onnx", "onnxruntime") if importlib.util.find_spec(name) is None]
    if missing:
        names = " ".join(missing)
        raise BadInput(f"an ONNX file needs {names}, which are not installed: pip install {names}")


class RealNetwork(nn.Module):
    """BSRNN.forward without complex numbers: [B, C, F, T, 2] -> [B, S, C, F, T, 2]."""

    def __init__(self, model: BSRNN) -> None:
        super().__init__()
        self.trunk, self.heads = model.trunk, model.heads

    def forward(self, mixture: Float[Tensor, "B C F T 2"]) -> Float[Tensor, "B S C F T 2"]:
        """Estimates at the level of the mixture, whose statistics run over its C, F and T."""
        batch, channels = mixture.shape[:2]
        deviation = mixture - mixture.mean(dim=(1, 2, 3), keepdim=True)
        # As in spectrum_statistics: the mean of |x|^2, real and imaginary parts together.
        variance = deviation.square().sum(-1, keepdim=True).mean(dim=(1, 2, 3), keepdim=True)
        items = (deviation / variance.sqrt().clamp_min(STD_FLOOR)).flatten(0, 1)
        masks = self.heads(self.trunk(items)).unflatten(0, (batch, channels)).transpose(1, 2)
        mask_real, mask_imag = masks.unbind(-1)
        real, imag = mixture.unsqueeze(1).unbind(-1)
        estimates = (mask_real * real - mask_imag * imag, mask_real * imag + mask_imag * real)
        return torch.stack(estimates, dim=-1)


def metadata(config: BsrnnConfig) -> dict[str, str]:
    """What a program must know of a model to use its file, as the texts that ONNX keeps."""
    stft = config.stft
    return {
        "stems": json.dumps(config.stems),
        "sample_rate": str(stft.sample_rate),
        "n_fft": str(stft.n_fft),
        "hop_samples": str(stft.hop),
        "window": "hann, periodic, n_fft samples",
        "padding": "reflect, n_fft / 2 samples and up to a whole hop at the end",
        "band_schema": config.model.band_schema,
        "bands": json.dumps(model_bands(config.stft, config.model)),
    }


def write_onnx(model: BSRNN, file: str | os.PathLike[str]) -> None:
    """Write the network of ``model`` with its ``metadata``; any B, C and T can be put in.

    Raises BadInput where the packages are missing, OSError where the file cannot be written.
    """
    check_packages()
    import onnx

    network = RealNetwork(model).eval()
    device = next(model.parameters()).device
    example = torch.randn(2, 2, model.config.stft.num_bins, 3, 2, device=device)
    # The newer exporter (dynamo=True) gives a file that computes the same, with LSTMs as LSTM nodes
    # too, but takes minutes for its symbolic shapes where this one takes seconds.
    with _norms_of_any_length(), warnings.catch_warnings(), torch.no_grad():
        # That this exporter is the older one, and that initial states may fix the batch: ours are
        # made from its shape.
        warnings.simplefilter("ignore")
        torch.onnx.export(
            network,
            (example,),
            os.fspath(file),
            dynamo=False,
            opset_version=OPSET,
            input_names=[INPUT],
            output_names=[OUTPUT],
            dynamic_axes={
                INPUT: {0: "batch", 1: "channels", 3: "frames"},
                OUTPUT: {0: "batch", 2: "channels", 4: "frames"},
            },
        )
    written = onnx.load(file)
    written.producer_name = "bsrnn"
    onnx.helper.set_model_props(written, metadata(model.config))
    onnx.checker.check_model(written, full_check=True)
    onnx.save(written, file)


@contextmanager
def _norms_of_any_length() -> Iterator[None]:
    """Let the exporter take layer_norm over frames and features, whose number it wants to fix.

    The model's norms run over the last two axes, without a gain or an offset.
    """
    from torch.onnx import symbolic_helper

    @symbolic_helper.parse_args("v", "none", "none", "none", "f", "none")
    def layer_norm(g: Any, features: Any, _s: Any, _w: Any, _b: Any, eps: float, _c: Any) -> Any:
        axes = g.op("Constant", value_t=torch.tensor([-2, -1]))
        deviation = g.op("Sub", features, g.op("ReduceMean", features, axes))
        variance = g.op("ReduceMean", g.op("Mul", deviation, deviation), axes)
        floored = g.op("Add", variance, g.op("Constant", value_t=torch.tensor(eps)))
        return g.op("Div", deviation, g.op("Sqrt", floored))

    # PyTorch documents both, but leaves them out of torch.onnx.__all__.
    torch.onnx.register_custom_op_symbolic(  # pyright: ignore[reportPrivateImportUsage]
        "aten::layer_norm", layer_norm, OPSET
    )
    try:
        yield
    finally:
        torch.onnx.unregister_custom_op_symbolic(  # pyright: ignore[reportPrivateImportUsage]
            "aten::layer_norm", OPSET
        )


class OnnxNetwork:
    """A file of ``write_onnx`` on the CPU, with as many threads as PyTorch has."""

    def __init__(self, file: str | os.PathLike[str]) -> None:
        import onnxruntime

        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = torch.get_num_threads()
        self._session = onnxruntime.InferenceSession(
            Path(file).read_bytes(), options, providers=["CPUExecutionProvider"]
        )

    def __call__(self, mixture: Float[Tensor, "B C F T 2"]) -> Float[Tensor, "B S C F T 2"]:
        """The estimates."""
        return torch.from_numpy(self._session.run([OUTPUT], {INPUT: mixture.numpy()})[0])


def largest_deviation(
    model: BSRNN, network: OnnxNetwork, mixtures: Sequence[Float[Tensor, "B C F T 2"]]
) -> float:
    """The largest difference to the estimates of ``model``, in units of the loudest of these."""
    largest = 0.0
    for mixture in mixtures:
        with torch.inference_mode():
            expected = torch.view_as_real(model(torch.view_as_complex(mixture)))
        difference = (network(mixture) - expected).abs().max().item()
        # Of a silent mixture the loudest estimate is zero, and so is the difference.
        largest = max(largest, difference / max(expected.abs().max().item(), STD_FLOOR))
    return largest
