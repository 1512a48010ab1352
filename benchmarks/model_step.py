"""A training step and a forward pass of the model, beside the floor and the machine's peak.

    python benchmarks/model_step.py --preset small
    python benchmarks/model_step.py --preset paper --repeats 3
    python benchmarks/model_step.py --preset small --profile

Step: forward, loss, backward, Adam. Floor: the model's LSTMs alone, bare nn.LSTMs on data of the
same shapes (two per module: over the frames of every band, over the bands of every frame), with
their backward for a step. Peak: the fastest of several large matrix products in the same
precision. FLOP are counted analytically, from the matrix products alone, a step as three forwards.
Beside them: the model with a plain loop over its bands in the place of the bands computed in
groups, and with bf16 autocast. The contenders take turns; medians over the turns. Aim: a step
within 1.2 times its floor.
"""

import argparse
import contextlib
import dataclasses
from collections.abc import Callable, Iterator
from dataclasses import dataclass

import torch
from timing import median_seconds, seconds
from torch import Tensor, nn
from torch.profiler import ProfilerActivity, profile

from bsrnn_core import BSRNN
from bsrnn_core.band_split import BandSplit
from bsrnn_core.bands import model_bands
from bsrnn_core.config import BsrnnConfig
from bsrnn_core.losses import separation_loss
from bsrnn_core.mask_estimation import MaskEstimation
from pipelines.config import PRESETS

AIM = 1.2
CHANNELS = 2
DTYPES = {"float32": torch.float32, "bf16": torch.bfloat16}
PEAK_SIZE = {"cpu": 3072, "cuda": 8192}
"""Rows and columns of the matrices whose product gives the peak."""


class LoopBandSplit(nn.Module):
    """What BandSplit computes, one band after the other, with the same parameters."""

    def __init__(self, grouped: BandSplit, config: BsrnnConfig) -> None:
        super().__init__()
        self.bands = model_bands(config.stft, config.model)
        weights = [w for group in grouped.weights for w in group.detach()]
        biases = [b for group in grouped.biases for b in group.detach()]
        order = grouped.band_order.tolist()
        self.layers = nn.ModuleList(linear(weights[i], biases[i]) for i in order)

    def forward(self, spectrogram: Tensor) -> Tensor:
        """Spectrogram [B, F, T, 2] -> features [B, K, T, N]."""
        features = []
        for (first, end), layer in zip(self.bands, self.layers, strict=True):
            band = spectrogram[:, first:end].transpose(1, 2).flatten(2)
            features.append(layer(nn.functional.layer_norm(band, band.shape[1:])))
        return torch.stack(features, dim=1)


class LoopMaskEstimation(nn.Module):
    """What MaskEstimation computes, one stem and band after the other, with its parameters."""

    def __init__(self, grouped: MaskEstimation) -> None:
        super().__init__()
        order = grouped.groups.band_order.tolist()
        self.heads = nn.ModuleList()
        for stem in range(len(grouped.hidden_weights[0])):
            layers = [_stem_layers(grouped, stem, part) for part in ("hidden", "output")]
            mlps = [nn.Sequential(h, nn.Tanh(), o) for h, o in zip(*layers, strict=True)]
            self.heads.append(nn.ModuleList(mlps[i] for i in order))

    def forward(self, features: Tensor) -> Tensor:
        """Features [B, K, T, N] -> masks [B, S, F, T, 2]."""
        normed = nn.functional.layer_norm(features, features.shape[2:])
        stems = []
        for mlps in self.heads:
            assert isinstance(mlps, nn.ModuleList)
            masks = [
                nn.functional.glu(mlp(normed[:, band]), dim=-1).unflatten(-1, (-1, 2))
                for band, mlp in enumerate(mlps)
            ]
            stems.append(torch.cat(masks, dim=2).transpose(1, 2))
        return torch.stack(stems, dim=1)


def _stem_layers(grouped: MaskEstimation, stem: int, part: str) -> list[nn.Linear]:
    """The layers of one stem in the groups' order of bands."""
    weights, biases = getattr(grouped, f"{part}_weights"), getattr(grouped, f"{part}_biases")
    return [
        linear(w, b)
        for group_weights, group_biases in zip(weights, biases, strict=True)
        for w, b in zip(group_weights[stem].detach(), group_biases[stem].detach(), strict=True)
    ]


def linear(weight: Tensor, bias: Tensor) -> nn.Linear:
    """A linear layer of a weight [fan_in, fan_out] and a bias [1, fan_out]."""
    layer = nn.Linear(weight.shape[0], weight.shape[1], device=weight.device)
    layer.load_state_dict({"weight": weight.T, "bias": bias[0]})
    return layer


def with_loops(model: BSRNN) -> BSRNN:
    """A model that computes the same, with plain loops over its bands."""
    device = next(model.parameters()).device
    looped = BSRNN(model.config).to(device)
    looped.load_state_dict(model.state_dict())
    looped.trunk.add_module("band_split", LoopBandSplit(model.trunk.band_split, model.config))
    looped.add_module("heads", LoopMaskEstimation(model.heads))
    return looped


def forward_flops(config: BsrnnConfig, batch: int, frames: int) -> int:
    """Floating-point operations of a forward pass on ``batch`` stereo examples.

    A product of matrices [a, b] and [b, c] counts 2 a b c; nothing else counts.
    """
    model = config.model
    features, hidden = model.feature_dim, model.hidden
    widths = [end - first for first, end in model_bands(config.stft, model)]
    per_frame = sum(2 * width * features for width in widths)
    # Two directions of four gates that see the input and the last output, then the layer behind.
    blstm = 2 * 4 * hidden * (features + hidden) + 2 * hidden * features
    per_frame += 2 * model.num_blstm_layers * len(widths) * blstm
    for width in widths:
        mlp = 3 * (max(widths) - width + 1) if model.reduce_size else model.mlp_dim
        per_frame += len(config.stems) * mlp * (features + 4 * width)
    return 2 * per_frame * batch * CHANNELS * frames


class LstmFloor:
    """The LSTMs of a model by themselves."""

    def __init__(self, config: BsrnnConfig, batch: int, frames: int, device: str) -> None:
        model = config.model
        items, bands = batch * CHANNELS, len(model_bands(config.stft, model))
        shapes = [(items * bands, frames), (items * frames, bands)] * model.num_blstm_layers
        self.lstms = [
            nn.LSTM(model.feature_dim, model.hidden, batch_first=True, bidirectional=True).to(
                device
            )
            for _ in shapes
        ]
        self.inputs = [
            torch.randn(*shape, model.feature_dim, device=device, requires_grad=True)
            for shape in shapes
        ]
        self.gradients = [torch.randn(*s, 2 * model.hidden, device=device) for s in shapes[:2]]

    def forward(self) -> list[Tensor]:
        """Every LSTM on an input of its own."""
        return [lstm(features)[0] for lstm, features in zip(self.lstms, self.inputs, strict=True)]

    def step(self) -> None:
        """All forwards, then all backwards down to weights and inputs."""
        outputs = self.forward()
        gradients = self.gradients * (len(outputs) // 2)
        for index in reversed(range(len(outputs))):
            outputs[index].backward(gradients[index].to(outputs[index].dtype))
            outputs[index] = outputs[index].detach()
        for lstm, features in zip(self.lstms, self.inputs, strict=True):
            lstm.zero_grad(set_to_none=True)
            features.grad = None


class ModelStep:
    """A model with its optimiser and a random example."""

    def __init__(self, model: BSRNN, batch: int, frames: int) -> None:
        self.model = model
        self.optimizer = torch.optim.Adam(model.parameters(), foreach=True)
        device = next(model.parameters()).device
        stems = len(model.stems)
        shape = (batch, stems + 1, CHANNELS, model.config.stft.num_bins, frames)
        parts = torch.randn(*shape, dtype=torch.complex64, device=device)
        self.references, self.mixture = parts[:, :stems], parts.sum(1)

    def forward(self) -> Tensor:
        """The estimates."""
        return self.model(self.mixture)

    def step(self, forward: contextlib.AbstractContextManager[object]) -> None:
        """Forward within ``forward``, loss, backward, Adam."""
        with forward:
            estimates = self.forward()
        stft = self.model.config.stft
        loss = separation_loss(self.mixture, self.references, estimates, stft)
        self.optimizer.zero_grad(set_to_none=True)
        loss.sum().backward()
        self.optimizer.step()


@dataclass(frozen=True)
class Contender:
    """Something that is timed."""

    name: str
    run: Callable[[], object]
    precision: str
    flops: int = 0
    floor: str = ""
    """Name of the contender that is its floor."""


def autocast(device: str, precision: str) -> contextlib.AbstractContextManager[object]:
    """The arithmetic of ``precision``."""
    return torch.autocast(device, dtype=torch.bfloat16, enabled=precision == "bf16")


def contenders(
    config: BsrnnConfig, batch: int, frames: int, device: str, precision: str
) -> Iterator[Contender]:
    """What is compared."""
    floor = LstmFloor(config, batch, frames, device)
    grouped = ModelStep(BSRNN(config).to(device), batch, frames)
    looped = ModelStep(with_loops(grouped.model), batch, frames)
    other = "bf16" if precision == "float32" else "float32"
    flops = forward_flops(config, batch, frames)

    def floor_step() -> None:
        with autocast(device, precision):
            floor.step()

    def step(of: ModelStep, number_format: str) -> Callable[[], None]:
        return lambda: of.step(autocast(device, number_format))

    def forward(of: ModelStep | LstmFloor, number_format: str) -> Callable[[], None]:
        @torch.inference_mode()
        def run() -> None:
            with autocast(device, number_format):
                of.forward()

        return run

    for kind, times, floor_run, run in (
        ("step", 3, floor_step, step),
        ("forward", 1, forward(floor, precision), forward),
    ):
        alone = f"{kind}: {precision} LSTMs alone"
        loops = f"{kind}: {precision}, loop over bands"
        yield Contender(alone, floor_run, precision)
        yield Contender(
            f"{kind}: {precision}", run(grouped, precision), precision, times * flops, alone
        )
        yield Contender(loops, run(looped, precision), precision, times * flops, alone)
        yield Contender(f"{kind}: {other}", run(grouped, other), other, times * flops)


def matmul_peak(device: str, precision: str, repeats: int = 8) -> float:
    """FLOP per second of the fastest of some large square matrix products."""
    size = PEAK_SIZE[device]
    a, b = torch.randn(2, size, size, device=device).to(DTYPES[precision])
    best = min(seconds(lambda: a @ b, device) for _ in range(repeats + 1))
    return 2 * size**3 / best


def show(all_of: list[Contender], taken: dict[str, float], peaks: dict[str, float]) -> None:
    """One line each: time, times its floor, rate and share of the peak of its precision."""
    print(f"{'':<32}{'ms':>10}{'x floor':>10}{'GFLOP/s':>10}{'of peak':>10}")
    for contender in all_of:
        time_s = taken[contender.name]
        line = f"{contender.name:<32}{1000 * time_s:>10.1f}"
        line += f"{time_s / taken[contender.floor]:>10.2f}" if contender.floor else " " * 10
        if contender.flops:
            rate = contender.flops / time_s
            line += f"{rate / 1e9:>10.1f}{rate / peaks[contender.precision]:>10.1%}"
        print(line)


def show_profile(run: Callable[[], object], device: str) -> None:
    """The operators that take most of a run's time, from torch's profiler."""
    activities = [ProfilerActivity.CPU]
    if device == "cuda":
        activities.append(ProfilerActivity.CUDA)
    seconds(run, device)
    with profile(activities=activities) as profiler:
        seconds(run, device)
    table = profiler.key_averages().table(sort_by=f"self_{device}_time_total", row_limit=25)
    print(table)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--preset", choices=PRESETS, default="small")
    parser.add_argument("--batch", type=int, default=1, help="stereo examples of a step")
    parser.add_argument("--crop_seconds", type=float, help="their length (default: the preset's)")
    parser.add_argument("--precision", choices=DTYPES, default="float32")
    parser.add_argument("--device", choices=PEAK_SIZE, default="cpu")
    parser.add_argument("--threads", type=int, help="CPU threads (default: torch's own choice)")
    parser.add_argument("--repeats", type=int, default=5, help="turns")
    parser.add_argument("--profile", action="store_true", help="list the operators of one step")
    options = parser.parse_args()
    if options.threads:
        torch.set_num_threads(options.threads)
    torch.manual_seed(0)
    preset = dataclasses.replace(PRESETS[options.preset](), part=("vocals",))
    frames = preset.stft.seconds_to_frames(options.crop_seconds or preset.crop_seconds)
    all_of = list(
        contenders(preset.bsrnn, options.batch, frames, options.device, options.precision)
    )
    by_name = {contender.name: contender for contender in all_of}
    if options.profile:
        show_profile(by_name[f"step: {options.precision}"].run, options.device)
        return
    peaks = {precision: matmul_peak(options.device, precision) for precision in DTYPES}
    taken = median_seconds({c.name: c.run for c in all_of}, options.device, options.repeats)
    print(
        f"{options.preset}, {options.batch} x {frames} frames, stereo, {options.precision}, "
        f"{options.device}, {torch.get_num_threads()} threads, torch {torch.__version__}"
    )
    for precision, peak in peaks.items():
        print(f"matmul peak {peak / 1e9:.0f} GFLOP/s in {precision}")
    show(all_of, taken, peaks)
    step = by_name[f"step: {options.precision}"]
    ratio = taken[step.name] / taken[step.floor]
    print(f"aim: a step within {AIM} x its floor: {ratio:.2f}, {'met' if ratio <= AIM else 'not'}")


if __name__ == "__main__":
    main()
