"""How a training runs: the options of `bsrnn train`, and the presets."""

import dataclasses
import math
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Annotated, Literal

import tyro

from bsrnn_core.config import BsrnnConfig, ModelConfig, Precision, StftConfig
from bsrnn_core.errors import BadInput
from data_prep.config import ChunkConfig, PrepConfig, RemixConfig, SourceConfig

Stage = Literal["base", "mtl", "transfer"]
"""base: one stem; mtl: several heads on one trunk; transfer: new heads on a frozen trunk."""
PARENT_STAGES = ("experiment", "sweep")
"""The stages of MLflow runs that hold trainings together and are none themselves."""

VALID_MEAN = "valid/usdr_mean"
"""The metric that trainings are steered by: validation uSDR, the mean over the stems."""

OF_ONE_RUN = (
    *("name", "part", "stem_weights", "checkpoint_fp", "transfer", "unfreeze_after_epochs"),
    *("out", "resume", "max_minutes"),
)
"""Options that a training does not take over from the run whose checkpoint it starts from."""


@dataclass(frozen=True, kw_only=True, slots=True)
class OptimConfig:
    """Optimiser, schedule and what ends a training."""

    batch_size: int = 95
    """Examples per step over all workers together."""
    lr: float = 1e-3
    """Learning rate of Adam."""
    lr_schedule: Literal["step", "cosine"] = "step"
    """step: x lr_decay per two epochs, as in the paper; cosine: to zero at the last step."""
    lr_decay: float = 0.98
    """step only: factor per two epochs."""
    warmup_steps: int = 0
    """Steps over which the learning rate rises linearly from zero."""
    ema_decay: float = 0.0
    """Decay per step of the averaged weights, which are then validated and kept (0: off)."""
    clip_grad_norm: float = 5.0
    """Gradients are scaled down to this norm (0: never)."""
    max_epochs: int = 500
    """Epochs to train for at most."""
    steps_per_epoch: int | None = None
    """Steps of an epoch (one pass over the stored chunks when not given)."""
    max_minutes: float | None = None
    """Time budget over all invocations of a run: then it stops cleanly."""
    patience: int = 30
    """Epochs without a better validation uSDR after which training stops (0: never)."""
    valid_every_epochs: int = 1
    """Epochs between two validations on whole songs."""
    log_every_steps: int = 50
    """Steps that a logged loss is the mean of."""
    checkpoint_every_steps: int | None = None
    """Steps between two checkpoints to resume from (the end of each epoch only when not given)."""
    max_skipped_steps: int = 10
    """Steps in a row whose loss or gradient is not finite, each left out, that end the training."""
    precision: Precision = "float32"
    """Number format of the network's arithmetic (bf16: autocast; auto: where it is native)."""
    compile: bool = False
    """Compile the model with torch.compile."""

    def __post_init__(self) -> None:
        for name in (
            *("batch_size", "lr", "max_epochs", "valid_every_epochs", "log_every_steps"),
            *("steps_per_epoch", "max_minutes", "checkpoint_every_steps", "max_skipped_steps"),
        ):
            value = getattr(self, name)
            if value is not None and value <= 0:
                raise BadInput(f"{name} must be positive, not {value}")
        if not 0 <= self.ema_decay < 1:
            raise BadInput(f"ema_decay must lie in [0, 1), not {self.ema_decay}")


@dataclass(frozen=True, kw_only=True, slots=True)
class ClusterConfig:
    """Where a training runs."""

    device: Literal["auto", "cpu", "cuda"] = "auto"
    """auto takes the GPU when there is one."""
    num_workers: int = 1
    """Ray Train workers (DDP ranks)."""
    threads_per_worker: int | None = None
    """CPU threads of a worker (the machine's cores / num_workers when not given)."""
    data_loader_workers: int = 1
    """Threads that decode and remix ahead of the step, per worker."""
    max_failures: int = 3
    """Times that Ray restarts the workers from the last checkpoint (those after which a machine had
    been announced to go are not counted; -1: always)."""
    stall_seconds: float = 60.0
    """After so long a worker that waits for data or for others is named in the log (0: never)."""
    wait_minutes: float = 0.0
    """Minutes that an autoscaled cluster is given to grow until it holds the workers."""

    def __post_init__(self) -> None:
        if self.stall_seconds < 0:
            raise BadInput(f"stall_seconds must not be negative, but is {self.stall_seconds:g}")
        if self.num_workers < 1:
            raise BadInput(f"num_workers must be at least 1, not {self.num_workers}")
        if self.data_loader_workers < 1:
            raise BadInput("data_loader_workers must be at least 1")
        if self.wait_minutes < 0:
            raise BadInput(f"wait_minutes must not be negative, not {self.wait_minutes:g}")


@dataclass(frozen=True, kw_only=True, slots=True)
class TrainConfig:
    """Options of one training."""

    name: str = ""
    """Name of the run; its results go to OUT/NAME."""
    part: Annotated[tuple[str, ...], tyro.conf.UseAppendAction] = ()
    """Stem to estimate; repeat it for several heads on one trunk."""
    out: str = "runs"
    """Folder that holds the runs, or s3://bucket/folder."""
    checkpoint_fp: str | None = None
    """Checkpoint folder whose weights to start from; heads for other stems start anew. What is not
    given is as in the run that it comes from, unless a --preset or --config is named."""
    transfer: bool = False
    """Freeze the trunk of --checkpoint_fp and train fresh heads on it."""
    unfreeze_after_epochs: int | None = None
    """transfer only: epochs after which the trunk is trained too (never when not given)."""
    stem_weights: tuple[float, ...] = ()
    """Weights of the stems' losses in their sum, in the order of --part (1 each when not given)."""
    shards: str | None = None
    """Folder of prepared shards, or s3://bucket/folder (prepared from --musdbhq_location when not
    given)."""
    experiment: str = "bsrnn"
    """MLflow experiment."""
    resume: bool = False
    """Go on with the run of this name."""
    seed: int = 42
    """Seed of everything random (-1: a random one)."""
    crop_seconds: float = 1.0
    """Length of a training example; at most a chunk."""
    source: SourceConfig = field(default_factory=SourceConfig)
    stft: StftConfig = field(default_factory=StftConfig)
    chunk: ChunkConfig = field(default_factory=ChunkConfig)
    model: ModelConfig = field(default_factory=ModelConfig)
    remix: RemixConfig = field(default_factory=RemixConfig)
    optim: OptimConfig = field(default_factory=OptimConfig)
    cluster: ClusterConfig = field(default_factory=ClusterConfig)

    def __post_init__(self) -> None:
        if self.crop_seconds > self.chunk.chunk_size_in_seconds:
            raise BadInput(
                f"crop_seconds = {self.crop_seconds:g} is longer than a stored chunk of "
                f"{self.chunk.chunk_size_in_seconds:g} s"
            )
        if self.optim.batch_size < self.cluster.num_workers:
            raise BadInput(
                f"batch_size = {self.optim.batch_size} leaves some of the "
                f"num_workers = {self.cluster.num_workers} without an example"
            )
        if self.unfreeze_after_epochs is not None and self.unfreeze_after_epochs < 1:
            raise BadInput(
                f"unfreeze_after_epochs must be at least 1, not {self.unfreeze_after_epochs}"
            )
        if not all(0 < weight < math.inf for weight in self.stem_weights):
            raise BadInput("stem_weights must be positive numbers")

    @property
    def stage(self) -> Stage:
        """What kind of training this is."""
        if self.transfer:
            return "transfer"
        return "base" if len(self.part) == 1 else "mtl"

    @property
    def loss_weights(self) -> tuple[float, ...]:
        """The weight of each stem's loss in their sum."""
        return self.stem_weights or (1.0,) * len(self.part)

    @property
    def prep(self) -> PrepConfig:
        """The dataset that this training needs."""
        return PrepConfig(source=self.source, stft=self.stft, chunk=self.chunk)

    @property
    def bsrnn(self) -> BsrnnConfig:
        """The model that this training makes."""
        return BsrnnConfig(
            stft=self.stft, model=self.model, stems=self.part, crop_seconds=self.crop_seconds
        )


def original() -> TrainConfig:
    """The original Refined BSRNN system: one second at a time, 32 features, 6 modules."""
    return TrainConfig(remix=RemixConfig(pool_chunks=4))


def tiny() -> TrainConfig:
    """Learns in minutes on two CPU cores: the demo."""
    return TrainConfig(
        crop_seconds=3.0,
        stft=StftConfig(n_fft=4096, hop_samples=1024),
        chunk=ChunkConfig(chunk_size_in_seconds=6.0),
        model=ModelConfig(feature_dim=48, num_blstm_layers=2, mlp_dim=64),
        remix=RemixConfig(one_channel=True),
        optim=OptimConfig(
            batch_size=6,
            lr=5e-3,
            lr_schedule="cosine",
            warmup_steps=50,
            ema_decay=0.99,
            precision="auto",
            max_epochs=6,
            steps_per_epoch=50,
            valid_every_epochs=3,
        ),
    )


def small() -> TrainConfig:
    """64 features x 8 modules: the size of most ablations in the field."""
    return TrainConfig(
        crop_seconds=3.0,
        chunk=ChunkConfig(chunk_size_in_seconds=6.0),
        model=ModelConfig(feature_dim=64, num_blstm_layers=8),
        optim=OptimConfig(batch_size=16, max_epochs=200, steps_per_epoch=1000),
    )


def paper() -> TrainConfig:
    """The paper's: 128 features x 12 modules, hidden 256, mask MLP 512, schema v7."""
    return dataclasses.replace(
        small(),
        model=ModelConfig(feature_dim=128, num_blstm_layers=12, hidden_dim=256, mlp_dim=512),
        remix=RemixConfig(sad=True),
        optim=OptimConfig(batch_size=16, max_epochs=100, steps_per_epoch=10_000, patience=10),
    )


PRESETS: dict[str, Callable[[], TrainConfig]] = {
    "original": original,
    "tiny": tiny,
    "small": small,
    "paper": paper,
}
"""Named configurations; `original` is the one when none is named."""
