"""Seconds of music per second through the network: PyTorch against onnxruntime, on the CPU.

    python benchmarks/onnx_speed.py --presets tiny small --seconds 12 --threads 1

Both get the spectrogram of one stereo excerpt and give the estimates of one stem, with random
weights and as many threads; STFT and inverse STFT are left out. The two take turns.
"""

import argparse
import dataclasses
import tempfile
import warnings
from pathlib import Path

import torch
from timing import median_seconds

from bsrnn_core import BSRNN
from bsrnn_core.onnx_network import OnnxNetwork, largest_deviation, write_onnx
from pipelines import display
from pipelines.config import PRESETS

HEADER = ("preset", "PyTorch", "onnxruntime", "ratio", "deviation")


def measure(preset: str, seconds: float, repeats: int) -> list[display.Cell]:
    """A row of the table: seconds of music per second, and onnxruntime's over PyTorch's."""
    config = dataclasses.replace(PRESETS[preset](), part=("drums",)).bsrnn
    torch.manual_seed(0)
    model = BSRNN(config).eval()
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder) / "model.onnx"
        write_onnx(model, file)
        network = OnnxNetwork(file)
    frames = config.stft.seconds_to_frames(seconds)
    mixture = torch.randn(1, 2, config.stft.num_bins, frames, 2)

    def pytorch() -> None:
        with torch.inference_mode():
            model(torch.view_as_complex(mixture))

    runs = {"PyTorch": pytorch, "onnxruntime": lambda: network(mixture)}
    taken = median_seconds(runs, "cpu", repeats)
    speed = {name: seconds / of_one for name, of_one in taken.items()}
    ratio = speed["onnxruntime"] / speed["PyTorch"]
    deviation = largest_deviation(model, network, [mixture])
    return [preset, *speed.values(), ratio, f"{deviation:.1e}"]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--presets", nargs="+", default=["tiny", "small"], choices=list(PRESETS))
    parser.add_argument("--seconds", type=float, default=12.0, help="length of the excerpt")
    parser.add_argument("--threads", type=int, default=1, help="of both")
    parser.add_argument("--repeats", type=int, default=5, help="timed calls of each")
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    warnings.simplefilter("ignore")
    rows = [measure(preset, options.seconds, options.repeats) for preset in options.presets]
    title = f"seconds of music per second: {options.seconds:g} s, stereo, {options.threads} thread"
    display.show(title + ("s" if options.threads > 1 else ""), HEADER, rows)


if __name__ == "__main__":
    main()
