"""Shards -> remixed training batches for one worker.

Every example is drawn from (seed, epoch, its index in the epoch), never from what was drawn before:
a worker computes just its share of a step's batch, an epoch can be entered at any step, and the
global batches are the same for any number of workers.

The STFT is linear, so stored chunks can be mixed as they are: a stem's gain, polarity, channel swap
and omission, and stems of different songs under one another. Each place of the global batch (lane)
draws from a window of `pool_chunks` chunks that slides over the epoch's permutation of all chunks;
a chunk read once so serves `chunk_reuse` examples per stem on average, from songs that change.
"""

from collections import deque
from collections.abc import Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from functools import lru_cache
from typing import NamedTuple

import numpy as np
import torch
from jaxtyping import Complex, Float
from torch import Tensor

from bsrnn_core.errors import BadInput
from data_prep.config import RemixConfig
from data_prep.shards import ShardDataset

ACTIVE = 0.5
"""A stem plays in a chunk when more than this part of its sub-chunks is above the threshold."""


class Batch(NamedTuple):
    """Mixtures and the references of the stems that are trained."""

    mixture: Complex[Tensor, "B C F T"]
    references: Complex[Tensor, "B S C F T"]

    def to(self, device: torch.device) -> "Batch":
        """On ``device``; to a GPU through pinned memory, without waiting for the copy."""
        if device.type == "cuda":
            return Batch(*(part.pin_memory().to(device, non_blocking=True) for part in self))
        return self


class RemixedBatches:
    """The batches of one worker, of ``world_size`` that share each global batch."""

    def __init__(
        self,
        dataset: ShardDataset,
        config: RemixConfig,
        *,
        stems: tuple[str, ...],
        crop_frames: int,
        batch_size: int,
        steps_per_epoch: int | None,
        seed: int,
        rank: int = 0,
        world_size: int = 1,
    ) -> None:
        """``stems`` are those trained; ``batch_size`` counts the examples of all workers.

        ``steps_per_epoch`` is one pass over the stored chunks when not given. Raises BadInput when
        the training split is empty, or its songs' channels do not go together.
        """
        self.channels = training_channels(dataset)
        """Channels of a batch: a mono song among stereo ones sounds alike on both."""
        self.rows = dataset.rows("train")
        assert batch_size >= world_size
        self.dataset = dataset
        self.config = config
        self.stems = stems
        self.crop_frames = crop_frames
        self.batch_size = batch_size
        self.steps_per_epoch = steps_per_epoch or max(1, len(self.rows) // batch_size)
        self.seed = seed
        self.lanes = range(rank * batch_size // world_size, (rank + 1) * batch_size // world_size)
        self._permutation = lru_cache(maxsize=2)(self._draw_permutation)
        self._stem = lru_cache(maxsize=len(self.lanes) * config.pool_chunks * len(dataset.stems))(
            self._read_stem
        )

    def epoch(self, epoch: int, first_step: int = 0, threads: int = 1) -> Iterator[Batch]:
        """The batches of an epoch from ``first_step`` on, made ahead by ``threads`` threads."""
        steps = iter(range(first_step, self.steps_per_epoch))
        with ThreadPoolExecutor(threads, thread_name_prefix="batches") as executor:
            ahead: deque[Future[Batch]] = deque()
            try:
                for step in steps:
                    ahead.append(executor.submit(self.batch, epoch, step))
                    if len(ahead) > threads + 1:
                        yield ahead.popleft().result()
                while ahead:
                    yield ahead.popleft().result()
            finally:
                for future in ahead:
                    future.cancel()

    def batch(self, epoch: int, step: int) -> Batch:
        """This worker's share of the global batch of a step."""
        examples = [self.example(epoch, step, lane) for lane in self.lanes]
        mixture, references = (torch.stack(parts) for parts in zip(*examples, strict=True))
        return Batch(_as_complex(mixture), _as_complex(references))

    def example(
        self, epoch: int, step: int, lane: int
    ) -> tuple[Float[Tensor, "T C F 2"], Float[Tensor, "S T C F 2"]]:
        """Mixture and references of one example, at the level that the draw gives them."""
        random = np.random.default_rng([self.seed, epoch, step * self.batch_size + lane])
        rows = self._draw_rows(random, epoch, step, lane)
        played: dict[str, Tensor] = {}
        start: int | None = None
        for stem, row_index in rows.items():
            row = self.rows[row_index]
            if start is None or self.config.remix:
                start = int(random.integers(max(0, row.num_frames - self.crop_frames) + 1))
            frames = self._stem(row_index, stem)[start : start + self.crop_frames]
            samples = torch.from_numpy(frames).expand(-1, self.channels, -1, -1)
            samples = samples.to(torch.float32, copy=True)
            samples *= row.std
            played[stem] = self._augment(samples, random) if self.config.remix else samples
        if self.config.one_channel:
            channel = int(random.integers(next(iter(played.values())).shape[1]))
            played = {stem: samples[:, [channel]] for stem, samples in played.items()}
        mixture = torch.stack(list(played.values())).sum(0)
        return mixture, torch.stack([played[stem] for stem in self.stems])

    def _augment(
        self, samples: Float[Tensor, "T C F 2"], random: np.random.Generator
    ) -> Float[Tensor, "T C F 2"]:
        gain_db, drop, flip, swap = random.random(4)
        gain = 10 ** (self.config.gain_db * (2 * gain_db - 1) / 20)
        if self.config.flip_polarity and flip < 0.5:
            gain = -gain
        samples *= 0.0 if drop < self.config.drop_probability else gain
        return samples.flip(1) if self.config.swap_channels and swap < 0.5 else samples

    def _draw_rows(
        self, random: np.random.Generator, epoch: int, step: int, lane: int
    ) -> dict[str, int]:
        """Stem -> index of the chunk that it is taken from."""
        order = self._permutation(epoch)
        if not self.config.remix:
            index = int(order[(step * self.batch_size + lane) % len(order)])
            return dict.fromkeys(self.dataset.stems, index)
        first = lane * len(order) // self.batch_size + step // self.config.chunk_reuse
        window = [int(order[(first + i) % len(order)]) for i in range(self.config.pool_chunks)]
        rows: dict[str, int] = {}
        songs: set[str] = set()
        for position, stem in enumerate(self.dataset.stems):
            playing = [i for i in window if self._plays(i, position)] or window
            other_songs = [i for i in playing if self.rows[i].track not in songs]
            rows[stem] = int(random.choice(other_songs or playing))
            songs.add(self.rows[rows[stem]].track)
        return rows

    def _plays(self, row_index: int, stem_position: int) -> bool:
        return not self.config.sad or self.rows[row_index].activity[stem_position] > ACTIVE

    def _draw_permutation(self, epoch: int) -> np.ndarray:
        return np.random.default_rng([self.seed, epoch]).permutation(len(self.rows))

    def _read_stem(self, row_index: int, stem: str) -> np.ndarray:
        return self.dataset.read_stem(self.rows[row_index], stem)


def training_channels(dataset: ShardDataset) -> int:
    """The channels of the training batches of a dataset.

    Raises BadInput when it has no training songs, or their channels do not go together.
    """
    channels = {track.channels for track in dataset.tracks("train")}
    if not channels:
        raise BadInput(f"{dataset.folder}: there is no training song in this dataset")
    if len(channels - {1}) > 1:
        counts = ", ".join(map(str, sorted(channels)))
        raise BadInput(
            f"{dataset.folder}: its songs have {counts} channels; prepare mono and stereo only"
        )
    return max(channels)


def _as_complex(values: Float[Tensor, "*batch T C F 2"]) -> Complex[Tensor, "*batch C F T"]:
    return torch.view_as_complex(values).movedim(-3, -1)
