"""Training batches: the same for any number of workers, mixed from songs as the options say."""

from collections import Counter
from dataclasses import replace
from itertools import islice
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor

from bsrnn_core.errors import BadInput
from data_prep.batches import Batch, RemixedBatches
from data_prep.config import RemixConfig
from data_prep.manifest import PreparedTrack
from data_prep.shards import ChunkRow, ShardDataset

STEMS = ("vocals", "drums", "bass", "other")
FRAMES, CHANNELS, BINS = 8, 2, 4
CHUNKS = 4
PLAIN = RemixConfig(gain_db=0, drop_probability=0, flip_polarity=False, swap_channels=False)
"""Stems of different songs, otherwise as they are."""


class Songs(ShardDataset):
    """A dataset in memory whose numbers tell where they come from.

    Bin 0 of a stem holds the index of its row, bin 1 the frame, bin 2 the channel, each plus one,
    bin 3 the stem in its imaginary part: after the std is multiplied back.
    """

    def __init__(
        self,
        songs: int = 6,
        last_frames: int = FRAMES,
        channels: dict[str, int] | None = None,
        **fields: object,
    ) -> None:
        self.channels = channels or {}
        self.folder = Path("songs")
        self.stems = STEMS
        self.reads: Counter[tuple[int, str]] = Counter()
        self.train = [
            replace(
                ChunkRow(
                    shard=f"train/song{song}.parquet",
                    row_group=chunk,
                    track=f"song{song}",
                    chunk=chunk,
                    first_sample=0,
                    valid_samples=0,
                    num_frames=FRAMES if chunk < CHUNKS - 1 else last_frames,
                    gain=1.0,
                    mean=0j,
                    std=2.0 ** (chunk - 2),
                    activity=(1.0,) * len(STEMS),
                ),
                **fields,
            )
            for song in range(songs)
            for chunk in range(CHUNKS)
        ]

    def rows(self, split: str) -> list[ChunkRow]:
        return self.train if split == "train" else []

    def tracks(self, split: str) -> list[PreparedTrack]:
        return [
            PreparedTrack(
                name=name,
                split="train",
                num_samples=0,
                channels=self.channels.get(name, CHANNELS),
                shard="",
                rows=CHUNKS,
                bytes=0,
                sha256="",
                inputs={},
            )
            for name in dict.fromkeys(row.track for row in self.rows(split))
        ]

    def read_stem(self, row: ChunkRow, stem: str) -> np.ndarray:
        index = self.train.index(row)
        self.reads[index, stem] += 1
        values = np.zeros((FRAMES, CHANNELS, BINS, 2))
        values[:, :, 0, 0] = index + 1
        values[:, :, 1, 0] = np.arange(FRAMES)[:, None] + 1
        values[:, :, 2, 0] = np.arange(CHANNELS) + 1
        values[:, :, 3, 1] = STEMS.index(stem) + 1
        values = values[:, : self.channels.get(row.track, CHANNELS)]
        return (values / row.std).astype(np.float16)


def batches(
    dataset: ShardDataset | None = None,
    config: RemixConfig = PLAIN,
    *,
    stems: tuple[str, ...] = STEMS,
    crop_frames: int = 3,
    batch_size: int = 6,
    steps_per_epoch: int | None = 5,
    seed: int = 0,
    rank: int = 0,
    world_size: int = 1,
) -> RemixedBatches:
    return RemixedBatches(
        dataset or Songs(),
        config,
        stems=stems,
        crop_frames=crop_frames,
        batch_size=batch_size,
        steps_per_epoch=steps_per_epoch,
        seed=seed,
        rank=rank,
        world_size=world_size,
    )


def same(left: list[Batch], right: list[Batch]) -> bool:
    return len(left) == len(right) and all(
        torch.equal(one.mixture, other.mixture) and torch.equal(one.references, other.references)
        for one, other in zip(left, right, strict=True)
    )


def rows_of(references: Tensor) -> Tensor:
    """[B, S, C, F, T] -> the row that each stem of each example was cut from."""
    rows = references[:, :, 0, 0, 0].real.round().long() - 1
    assert torch.equal(
        references[:, :, :, 0], (rows + 1.0)[..., None, None] + 0 * references[:, :, :, 0]
    )
    return rows


def starts_of(references: Tensor) -> Tensor:
    """[B, S, C, F, T] -> first frame of each crop; its frames must be a run."""
    frames = references[:, :, :, 1].real - 1
    assert torch.equal(frames.diff(), torch.ones_like(frames[..., 1:]))
    return frames[:, :, 0, 0].long()


def test_mixture_is_the_sum_of_the_references():
    loader = batches(config=RemixConfig())
    for mixture, references in loader.epoch(0):
        assert mixture.dtype == references.dtype == torch.complex64
        assert mixture.shape == (6, CHANNELS, BINS, 3)
        assert references.shape == (6, len(STEMS), CHANNELS, BINS, 3)
        torch.testing.assert_close(mixture, references.sum(1))


def test_stems_that_are_not_trained_are_in_the_mixture_all_the_same():
    whole = batches(config=RemixConfig()).batch(0, 0)
    part = batches(config=RemixConfig(), stems=("bass", "vocals")).batch(0, 0)
    assert torch.equal(part.mixture, whole.mixture)
    assert torch.equal(part.references, whole.references[:, [2, 0]])


@pytest.mark.parametrize("remix", [True, False])
@pytest.mark.parametrize("world_size", [2, 3, 6])
def test_workers_share_the_batches_of_one_worker(world_size, remix):
    config = RemixConfig(remix=remix)
    whole = list(batches(config=config).epoch(3))
    shares = [
        list(batches(config=config, rank=rank, world_size=world_size).epoch(3))
        for rank in range(world_size)
    ]
    together = [
        Batch(*map(torch.cat, zip(*parts, strict=True))) for parts in zip(*shares, strict=True)
    ]
    assert same(together, whole)


@pytest.mark.parametrize("threads", [1, 3])
def test_epoch_can_be_entered_at_any_step(threads):
    whole = list(batches(config=RemixConfig()).epoch(2))
    assert len(whole) == 5
    for first_step in range(6):
        tail = list(batches(config=RemixConfig()).epoch(2, first_step, threads))
        assert same(tail, whole[first_step:])


def test_same_seed_same_batches_other_seed_or_epoch_others():
    one = list(batches(config=RemixConfig()).epoch(0))
    assert same(one, list(batches(config=RemixConfig()).epoch(0)))
    assert not same(one, list(batches(config=RemixConfig(), seed=1).epoch(0)))
    assert not same(one, list(batches(config=RemixConfig()).epoch(1)))
    assert not same(one[:1], one[1:2])


def test_making_a_batch_again_changes_nothing():
    loader = batches(config=RemixConfig())
    assert same([loader.batch(0, 1)], [loader.batch(0, 1)])


def test_stems_come_from_different_songs():
    dataset = Songs()
    loader = batches(dataset, replace(PLAIN, pool_chunks=len(dataset.train)), steps_per_epoch=20)
    combinations = set()
    for _, references in loader.epoch(0):
        for example in rows_of(references).tolist():
            songs = [dataset.train[row].track for row in example]
            assert len(set(songs)) == len(STEMS)
            combinations.add(tuple(songs))
        assert len(set(starts_of(references).flatten().tolist())) > 1
    assert len(combinations) > 60


def test_one_song_alone_can_be_remixed():
    loader = batches(Songs(songs=1))
    rows = torch.cat([rows_of(references) for _, references in loader.epoch(0)])
    assert rows.unique().tolist() == [0, 1, 2, 3]


def test_levels_are_those_of_the_track():
    """Chunks have different stds: a crop's numbers must not depend on them."""
    for _, references in batches().epoch(0):
        assert torch.equal(
            references[:, :, 0, 2].real, torch.ones_like(references[:, :, 0, 2].real)
        )
        assert torch.equal(references[:, :, 1, 2].real, references[:, :, 0, 2].real * 2)
        assert references[0, :, 0, 3, 0].imag.tolist() == [1, 2, 3, 4]


def test_crops_lie_anywhere_within_the_frames_of_the_song():
    loader = batches(Songs(last_frames=5), steps_per_epoch=60)
    seen: dict[bool, set[int]] = {False: set(), True: set()}
    for _, references in loader.epoch(0):
        rows, starts = rows_of(references), starts_of(references)
        for row, start in zip(rows.flatten().tolist(), starts.flatten().tolist(), strict=True):
            seen[row % CHUNKS == CHUNKS - 1].add(start)
    assert seen[False] == set(range(FRAMES - 3 + 1))
    assert seen[True] == set(range(5 - 3 + 1))


def test_last_chunk_that_is_shorter_than_a_crop_is_taken_from_its_start():
    loader = batches(Songs(last_frames=2), crop_frames=6, steps_per_epoch=20)
    for _, references in loader.epoch(0):
        rows, starts = rows_of(references), starts_of(references)
        assert (starts[rows % CHUNKS == CHUNKS - 1] == 0).all()
        assert references.shape[-1] == 6


def test_without_remix_the_songs_are_as_they_are():
    dataset = Songs()
    loader = batches(dataset, RemixConfig(remix=False), steps_per_epoch=None)
    assert loader.steps_per_epoch == len(dataset.train) // 6
    seen = []
    for mixture, references in loader.epoch(0):
        rows, starts = rows_of(references), starts_of(references)
        assert torch.equal(rows, rows[:, :1].expand_as(rows))
        assert torch.equal(starts, starts[:, :1].expand_as(starts))
        assert (references[:, :, 0, 2] == 1).all()
        assert (references[:, :, 1, 2] == 2).all()
        assert torch.equal(mixture, references.sum(1))
        seen += rows[:, 0].tolist()
    # One pass: every chunk once, in an order of its own for every epoch.
    assert sorted(seen) == list(range(len(dataset.train)))
    again = [row for _, references in loader.epoch(1) for row in rows_of(references)[:, 0].tolist()]
    assert sorted(again) == sorted(seen)
    assert again != seen


def factors(config: RemixConfig, steps: int = 100) -> Tensor:
    """[M, C] what was done to each channel of 24 ``steps`` stems: bin 2 holds 1 and 2 untouched."""
    loader = batches(config=config, steps_per_epoch=steps)
    parts = [references[:, :, :, 2, 0].real for _, references in loader.epoch(0)]
    return torch.cat(parts).flatten(0, 1)


def test_gains_lie_within_their_range_and_fill_it():
    gains_db = 20 * factors(replace(PLAIN, gain_db=10.0))[:, 0].log10()
    assert gains_db.abs().max() <= 10
    assert gains_db.abs().max() > 9.9
    # Uniform in decibels: mean 0, std 20 / sqrt(12), each to 5 standard errors of 2400 draws.
    assert abs(gains_db.mean()) < 0.6
    assert gains_db.std().item() == pytest.approx(5.77, abs=0.3)


@pytest.mark.parametrize("probability", [0.1, 0.5])
def test_stems_are_dropped_as_often_as_asked(probability):
    dropped = (factors(replace(PLAIN, drop_probability=probability)) == 0).all(dim=1)
    error = (probability * (1 - probability) / len(dropped)) ** 0.5
    assert dropped.float().mean().item() == pytest.approx(probability, abs=4 * error)


def test_polarity_and_channels_turn_half_of_the_time_each():
    both = factors(replace(PLAIN, flip_polarity=True, swap_channels=True))
    flipped, swapped = both[:, 0] < 0, both[:, 0].abs() == 2
    expected = torch.tensor([1.0, 2.0])
    assert torch.equal(both.abs().sort(dim=1).values, expected.expand_as(both))
    for turned in (flipped, swapped, flipped ^ swapped):
        assert turned.float().mean().item() == pytest.approx(0.5, abs=0.05)


def test_switches_turn_each_of_it_off():
    untouched = torch.tensor([1.0, 2.0])
    plain = factors(PLAIN, steps=20)
    assert torch.equal(plain, untouched.expand_as(plain))
    flipped = factors(replace(PLAIN, flip_polarity=True), steps=20)
    assert torch.equal(flipped.abs(), untouched.expand_as(flipped))
    assert (flipped[:, 0] < 0).any()
    swapped = factors(replace(PLAIN, swap_channels=True), steps=20)
    assert (swapped > 0).all()
    assert (swapped[:, 0] == 2).any()


@pytest.mark.parametrize("remix", [True, False])
def test_one_channel_takes_the_same_of_all_stems(remix):
    config = replace(PLAIN, remix=remix, one_channel=True)
    seen = []
    for mixture, references in batches(config=config, steps_per_epoch=20).epoch(0):
        assert mixture.shape == (6, 1, BINS, 3)
        assert references.shape == (6, len(STEMS), 1, BINS, 3)
        assert torch.equal(mixture, references.sum(1))
        channels = references[:, :, 0, 2, 0].real
        assert torch.equal(channels, channels[:, :1].expand_as(channels))
        seen += channels[:, 0].tolist()
    assert 0.3 < seen.count(1) / len(seen) < 0.7
    assert seen.count(1) + seen.count(2) == len(seen)


def test_sad_draws_chunks_in_which_the_stem_plays():
    dataset = Songs()
    # Vocals play in the second half of each song; a half is not enough.
    dataset.train = [
        replace(row, activity=(1.0 if row.chunk >= 2 else 0.5, 1.0, 1.0, 1.0))
        for row in dataset.train
    ]
    everywhere = replace(PLAIN, pool_chunks=len(dataset.train))
    chunks: dict[bool, set[int]] = {}
    for sad in (False, True):
        loader = batches(dataset, replace(everywhere, sad=sad), steps_per_epoch=20)
        rows = torch.cat([rows_of(references) for _, references in loader.epoch(0)])
        chunks[sad] = set((rows[:, 0] % CHUNKS).tolist())
        assert set((rows[:, 1] % CHUNKS).tolist()) == {0, 1, 2, 3}
    assert chunks == {False: {0, 1, 2, 3}, True: {2, 3}}


def test_sad_takes_what_there_is_when_a_stem_never_plays():
    loader = batches(Songs(activity=(0.0,) * len(STEMS)), replace(PLAIN, sad=True))
    assert len(list(loader.epoch(0))) == 5


@pytest.mark.parametrize(("pool_chunks", "chunk_reuse"), [(8, 2), (8, 4), (1, 3)])
def test_a_chunk_is_read_once_for_several_examples(pool_chunks, chunk_reuse):
    dataset = Songs(songs=100)
    config = replace(PLAIN, pool_chunks=pool_chunks, chunk_reuse=chunk_reuse)
    steps, batch_size = 120, 2
    loader = batches(dataset, config, batch_size=batch_size, steps_per_epoch=steps)
    for _ in loader.epoch(0):
        pass
    draws = steps * batch_size * len(STEMS)
    pools = batch_size * len(STEMS) * pool_chunks
    # A tenth more than one read for `chunk_reuse` draws: a chunk rarely used may be read again.
    assert dataset.reads.total() <= 1.1 * (draws / chunk_reuse + pools)


def test_an_epoch_comes_past_all_chunks():
    dataset = Songs(songs=50)
    loader = batches(dataset, batch_size=2, steps_per_epoch=200)
    for _ in loader.epoch(0):
        pass
    # Two lanes, half of the chunks apart, move on by a chunk in two steps.
    assert {row for row, _ in dataset.reads} == set(range(200))


@pytest.mark.parametrize("remix", [True, False])
def test_mono_song_among_stereo_ones_sounds_alike_on_both_channels(remix):
    dataset = Songs(channels={"song2": 1})
    loader = batches(dataset, replace(PLAIN, remix=remix), steps_per_epoch=4)
    seen = set()
    for mixture, references in loader.epoch(0):
        assert torch.equal(mixture, references.sum(1))
        rows = rows_of(references).flatten().tolist()
        for row, example in zip(rows, references.flatten(0, 1), strict=True):
            mono = dataset.train[row].track == "song2"
            assert example[:, 2, 0].tolist() == ([1, 1] if mono else [1, 2])
            seen.add(mono)
    assert seen == {True, False}


def test_all_mono_and_other_channels():
    songs = {f"song{i}": 1 for i in range(6)}
    assert batches(Songs(channels=songs)).batch(0, 0).mixture.shape[1] == 1
    with pytest.raises(BadInput, match="1, 2, 6 channels"):
        batches(Songs(channels={"song0": 6, "song1": 1}))


def test_batches_are_not_made_far_ahead_and_end_when_left():
    dataset = Songs(songs=50)
    loader = batches(dataset, replace(PLAIN, pool_chunks=50), steps_per_epoch=200)
    epoch = loader.epoch(0, threads=2)
    assert len(list(islice(epoch, 1))) == 1
    del epoch
    assert dataset.reads.total() <= 5 * 6 * len(STEMS)


def test_an_epoch_is_one_pass_when_nothing_is_asked():
    assert batches(steps_per_epoch=None).steps_per_epoch == 4
    assert batches(steps_per_epoch=None, batch_size=95).steps_per_epoch == 1
    assert len(list(batches(steps_per_epoch=None, batch_size=95).epoch(0))) == 1


def test_dataset_without_training_chunks_is_refused():
    with pytest.raises(BadInput, match="songs: there is no training song"):
        batches(Songs(songs=0))


def test_to_the_cpu_is_the_batch_itself():
    batch = batches().batch(0, 0)
    assert batch.to(torch.device("cpu")) is batch
