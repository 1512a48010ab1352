"""What a step of a training costs on many workers, on paper: the model and its plan.

    python benchmarks/step_cost.py
    python benchmarks/step_cost.py --preset small --batch_size 4

A step takes the longer of computing and reading, then the part of the all-reduce that the backward
pass does not hide. `scaling.py` compares these functions with what it measures; run as a script,
this file applies them to 8, 64 and 512 GPUs. Every number of a GPU, a network or a store below is
an assumption from public data sheets, nothing here was measured on a GPU; docs/scaling.md tells
how to read the tables.
"""

import argparse
import dataclasses
import math
from collections.abc import Sequence
from dataclasses import dataclass
from statistics import NormalDist

from model_step import forward_flops

from bsrnn_core import BSRNN
from bsrnn_core.bands import model_bands
from bsrnn_core.config import STEMS
from pipelines.config import PRESETS, TrainConfig

MIB = 1024 * 1024
FIRST_BUCKET_BYTES = MIB
"""DDP's first bucket, which is the first to be full."""
BACKWARD_SHARE = 2 / 3
"""Of a step's computing: a backward pass multiplies two matrices where a forward multiplies one."""
STATE_COPIES = 4
"""Of the weights, in a checkpoint: the weights twice, and Adam's two means."""


@dataclass(frozen=True, kw_only=True)
class Network:
    """What joins the workers."""

    name: str
    bytes_per_second: float
    """Of a node to the next, over all its network adapters."""
    hop_seconds: float
    """From one worker to the next, for a message without content."""


@dataclass(frozen=True, kw_only=True)
class Gpu:
    """What computes."""

    name: str
    flops_per_second: float
    """In dense bf16 products that fit it well: the data sheet's."""
    utilisation: float
    """The share of it that this network reaches."""
    lstm_step_seconds: float
    """One step of a recurrence: no batch is small enough to take less."""


@dataclass(frozen=True, kw_only=True)
class Workload:
    """What a training asks of a worker for every example, and of the network for every step."""

    flops: float
    """Of the forward pass of one example."""
    lstm_steps: int
    """One after the other, in a forward pass."""
    gradients: tuple[int, ...]
    """Bytes of every parameter's gradient, in the model's order."""
    bytes_per_example: float
    """Read from the shards."""
    requests_per_example: float

    @property
    def request_bytes(self) -> float:
        """Of a stem of a chunk."""
        return self.bytes_per_example / self.requests_per_example


def ring_seconds(num_bytes: float, workers: int, network: Network) -> float:
    """An all-reduce in a ring: every worker sends and receives each part of it twice but once."""
    sent = 2 * (workers - 1) / workers * num_bytes
    return sent / network.bytes_per_second + 2 * (workers - 1) * network.hop_seconds


def tree_seconds(num_bytes: float, workers: int, network: Network) -> float:
    """An all-reduce up a binary tree and down again: fewer hops than a ring, some more bytes."""
    hops = 2 * math.ceil(math.log2(workers))
    return 2 * num_bytes / network.bytes_per_second + hops * network.hop_seconds


def all_reduce_seconds(num_bytes: float, workers: int, network: Network) -> float:
    """The better of the two, as NCCL chooses by size; with two workers they are one."""
    ring = ring_seconds(num_bytes, workers, network)
    return ring if workers <= 2 else min(ring, tree_seconds(num_bytes, workers, network))


def bucket_bytes(
    gradients: Sequence[int], cap: int, first: int = FIRST_BUCKET_BYTES
) -> tuple[int, ...]:
    """Sizes of DDP's buckets in the order in which the backward pass fills them.

    The last layer's gradients come first. A bucket is closed by the one that reaches its limit.
    """
    buckets, held, limit = [], 0, first
    for gradient in reversed(gradients):
        held += gradient
        if held >= limit:
            buckets.append(held)
            held, limit = 0, cap
    return (*buckets, held) if held else tuple(buckets)


def exposed_seconds(
    buckets: Sequence[float], backward: float, workers: int, network: Network
) -> float:
    """Seconds of the buckets' all-reduces after the end of a backward pass of ``backward`` seconds.

    A bucket is full after its share of the backward pass, and waits for the one before it. Where
    the cores that compute also carry the bytes, nothing is hidden: ``backward`` is then zero.
    """
    filled, end = 0.0, 0.0
    for size in buckets:
        filled += size
        ready = backward * filled / sum(buckets)
        end = max(end, ready) + all_reduce_seconds(size, workers, network)
    return end - backward


def compute_seconds(work: Workload, examples: int, gpu: Gpu) -> float:
    """Forward and backward, bound by the products or by the recurrences; three times a forward."""
    products = work.flops * examples / (gpu.flops_per_second * gpu.utilisation)
    return 3 * max(products, work.lstm_steps * gpu.lstm_step_seconds)


def reads_per_example(stems: int, pool_chunks: int, chunk_reuse: int) -> float:
    """Stored stems of a chunk that are read for one example, on average.

    Every ``chunk_reuse`` steps a chunk comes into the window of ``pool_chunks``, and stays for
    pool_chunks * chunk_reuse draws: each of its stems is read unless no draw takes it.
    """
    taken = 1 - (1 - 1 / pool_chunks) ** (pool_chunks * chunk_reuse)
    return stems * taken / chunk_reuse


def slowest(workers: int, deviation: float) -> float:
    """By how much the slowest of ``workers`` is expected to exceed their mean.

    Of times with this standard deviation, normally distributed; Blom's approximation.
    """
    return deviation * NormalDist().inv_cdf((workers - 0.375) / (workers + 0.25))


def step_seconds(compute: float, reading: float, exposed: float, *, shared: bool = False) -> float:
    """A step; ``shared``: reading and computing take turns on the same core."""
    return (compute + reading if shared else max(compute, reading)) + exposed


def validation_seconds(songs: int, workers: int, song_seconds: float) -> float:
    """A worker takes whole songs: of more workers than songs, some only wait."""
    return math.ceil(songs / workers) * song_seconds


def separation_seconds(work: Workload, crops: int, gpu: Gpu, batch: int = 4) -> float:
    """Forward passes of a song's windows, some at once, bound as a step's are."""
    products = work.flops * crops / (gpu.flops_per_second * gpu.utilisation)
    return max(products, math.ceil(crops / batch) * work.lstm_steps * gpu.lstm_step_seconds)


def checkpoint_bytes(work: Workload) -> int:
    """What rank 0 writes while all others wait; without averaged weights."""
    return STATE_COPIES * sum(work.gradients)


def workload(config: TrainConfig) -> Workload:
    """Of a training on stereo songs."""
    bsrnn, stft = config.bsrnn, config.stft
    frames = stft.seconds_to_frames(config.crop_seconds)
    bands = len(model_bands(stft, config.model))
    stem_bytes = config.prep.chunk_frames * 2 * stft.num_bins * 2 * 2
    reads = reads_per_example(len(STEMS), config.remix.pool_chunks, config.remix.chunk_reuse)
    return Workload(
        flops=forward_flops(bsrnn, 1, frames),
        lstm_steps=config.model.num_blstm_layers * (frames + bands),
        gradients=tuple(4 * parameter.numel() for parameter in BSRNN(bsrnn).parameters()),
        bytes_per_example=reads * stem_bytes,
        requests_per_example=reads,
    )


NVLINK = Network(name="NVLink", bytes_per_second=300e9, hop_seconds=3e-6)
NETWORKS = (
    Network(name="3200 Gb/s", bytes_per_second=300e9, hop_seconds=10e-6),
    Network(name="400 Gb/s", bytes_per_second=40e9, hop_seconds=10e-6),
    Network(name="25 Gb/s", bytes_per_second=2.5e9, hop_seconds=30e-6),
)
"""Between nodes: eight adapters of 400 Gb/s, one of them, plain Ethernet; a little below the wire
for what a library loses."""
GPUS = (
    Gpu(name="A100", flops_per_second=312e12, utilisation=0.05, lstm_step_seconds=20e-6),
    Gpu(name="H100", flops_per_second=989e12, utilisation=0.20, lstm_step_seconds=5e-6),
)
"""The two ends of what may be true: the faster a GPU, the more it asks of network and store."""
WORKERS = (8, 64, 512)
GPUS_PER_NODE = 8
DEVIATION = 0.02
"""Of a worker's step, as a part of it."""
NFS_BYTES_PER_SECOND = 2e9
"""One file server for all."""
NVME_BYTES_PER_SECOND = 3e9
"""The disk of a node; what fits into its memory is read once."""
S3_BYTES_PER_SECOND = 80e6
S3_LATENCY_SECONDS = 0.1
"""Of one request, of which every thread has one at a time."""
S3_REQUESTS_PER_SECOND = 5500
"""That one prefix takes."""
REMIX_SECONDS = 1 / 85
"""One core's, per example (benchmarks/README.md: shards.py)."""
EPOCH_EXAMPLES = 160_000
"""10,000 steps of 16: the paper's epoch."""
VALID_SONGS, SONG_SECONDS = 14, 240.0
OVERLAP = 0.25
SONG_OVERHEAD = 0.022
"""Seconds per second of a song that validation takes one thread besides the network: measured by
scaling.py."""
DISK_BYTES_PER_SECOND = 1e9
"""Of the one process that writes a checkpoint."""
CHECKPOINTS = 2
"""In an epoch with a validation: before the songs are scored, and after."""


def row(*cells: object) -> None:
    """A line of a table in Markdown."""
    print("| " + " | ".join(str(cell) for cell in cells) + " |")


def header(*cells: str) -> None:
    """Its first two lines."""
    row(*cells)
    print("|" + "---|" * len(cells))


def links() -> list[tuple[int, Network]]:
    """GPUs, and what their all-reduce goes over: the slowest link counts."""
    return [
        (workers, network)
        for workers in WORKERS
        for network in ((NVLINK,) if workers <= GPUS_PER_NODE else NETWORKS)
    ]


def plan_step(work: Workload, examples: int, gpu: Gpu) -> None:
    """What an all-reduce adds to a step: buckets of 25 MiB (torch's default) and of 4 MiB."""
    compute = compute_seconds(work, examples, gpu)
    print(f"\n{gpu.name}, {examples} examples per GPU: {1e3 * compute:.0f} ms to compute\n")
    choices = [(cap, bits) for cap in (25, 4) for bits in (32, 16)]
    named = [f"exposed ms, {cap} MiB, {'bf16' if bits == 16 else 'f32'}" for cap, bits in choices]
    header("GPUs", "network", "batch", "all-reduce ms", *named, "step ms", "efficiency")
    for workers, network in links():
        exposed = [
            exposed_seconds(
                [size * bits / 32 for size in bucket_bytes(work.gradients, cap * MIB)],
                BACKWARD_SHARE * compute,
                workers,
                network,
            )
            for cap, bits in choices
        ]
        whole = sum(
            all_reduce_seconds(size, workers, network)
            for size in bucket_bytes(work.gradients, 25 * MIB)
        )
        step = step_seconds(compute, 0, exposed[0]) + slowest(workers, DEVIATION * compute)
        row(
            *(workers, network.name, workers * examples, f"{1e3 * whole:.1f}"),
            *(f"{1e3 * seconds:.1f}" for seconds in exposed),
            *(f"{1e3 * step:.0f}", f"{compute / step:.2f}"),
        )


def plan_reading(work: Workload, examples: int, gpu: Gpu) -> None:
    """What the shards must deliver, and how long a step waits for each store."""
    compute = compute_seconds(work, examples, gpu)
    request = S3_LATENCY_SECONDS + work.request_bytes / S3_BYTES_PER_SECOND
    print(f"\n{gpu.name}, {examples} examples per GPU every {1e3 * compute:.0f} ms\n")
    header(
        *("GPUs", "MB/s per GPU", "GB/s in all", "NFS: ms per step", "S3: threads per GPU"),
        *("S3: requests/s in all", "NVMe: share of a node's", "remixing: cores per GPU"),
    )
    for workers in WORKERS:
        rate = examples / compute
        needed = rate * work.bytes_per_example
        of_all = workers * examples * work.bytes_per_example
        row(
            *(workers, f"{needed / 1e6:.0f}", f"{workers * needed / 1e9:.1f}"),
            f"{1e3 * of_all / NFS_BYTES_PER_SECOND:.0f}",
            math.ceil(rate * work.requests_per_example * request),
            f"{workers * rate * work.requests_per_example:.0f}",
            f"{GPUS_PER_NODE * needed / NVME_BYTES_PER_SECOND:.2f}",
            f"{rate * REMIX_SECONDS:.2f}",
        )


def plan_epoch(config: TrainConfig, work: Workload, examples: int, gpu: Gpu) -> None:
    """An epoch of as many examples on any number of GPUs, and what does not shrink with them."""
    crops = math.ceil(SONG_SECONDS / config.crop_seconds / (1 - OVERLAP))
    song = separation_seconds(work, crops, gpu) + SONG_OVERHEAD * SONG_SECONDS
    saving = CHECKPOINTS * checkpoint_bytes(work) / DISK_BYTES_PER_SECOND
    compute = compute_seconds(work, examples, gpu)
    print(f"\n{gpu.name}, {examples} examples per GPU, {song:.1f} s to validate a song\n")
    header(
        *("GPUs", "batch", "steps", "training s", "validation s", "GPUs without a song"),
        *("checkpoints s", "training's share"),
    )
    for workers in WORKERS:
        steps = math.ceil(EPOCH_EXAMPLES / (workers * examples))
        training = steps * (compute + slowest(workers, DEVIATION * compute))
        validation = validation_seconds(VALID_SONGS, workers, song)
        row(
            *(workers, workers * examples, steps, f"{training:.0f}", f"{validation:.1f}"),
            *(max(0, workers - VALID_SONGS), f"{saving:.1f}"),
            f"{training / (training + validation + saving):.0%}",
        )


def plan_strong(config: TrainConfig, work: Workload, gpu: Gpu) -> None:
    """The preset's own batch on more and more GPUs of a node."""
    batch = config.optim.batch_size
    alone = compute_seconds(work, batch, gpu)
    print(f"\n{gpu.name}\n")
    header("GPUs", "examples per GPU", "compute ms", "times as fast as one", "efficiency")
    for workers in (2**exponent for exponent in range(batch.bit_length())):
        compute = compute_seconds(work, math.ceil(batch / workers), gpu)
        row(
            *(workers, math.ceil(batch / workers), f"{1e3 * compute:.0f}"),
            *(f"{alone / compute:.1f}", f"{alone / compute / workers:.2f}"),
        )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--preset", choices=PRESETS, default="paper")
    parser.add_argument("--part", nargs="+", default=list(STEMS), help="stems that are trained")
    parser.add_argument("--batch_size", type=int, default=2, help="examples of a GPU's step")
    options = parser.parse_args()
    config = dataclasses.replace(PRESETS[options.preset](), part=tuple(options.part))
    work = workload(config)
    print(
        f"{options.preset}, {' '.join(config.part)}: {sum(work.gradients) / 1e6:.1f} MB of "
        f"gradients, {work.flops / 1e9:.0f} GFLOP forward and {work.lstm_steps} steps of "
        f"recurrence, {work.bytes_per_example / 1e6:.2f} MB read per example, "
        f"{checkpoint_bytes(work) / 1e6:.0f} MB of a checkpoint"
    )
    for title, plan in (("A step", plan_step), ("Reading", plan_reading)):
        print(f"\n{title}")
        for gpu in GPUS:
            plan(work, options.batch_size, gpu)
    print(f"\nThe same global batch of {config.optim.batch_size}")
    for gpu in GPUS:
        plan_strong(config, work, gpu)
    print(f"\nAn epoch of {EPOCH_EXAMPLES} examples")
    for gpu in GPUS:
        plan_epoch(config, work, options.batch_size, gpu)


if __name__ == "__main__":
    main()
