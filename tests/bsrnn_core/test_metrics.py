"""Scores: equal to museval's, silent stretches included, and nan never averaged in."""

import json
import math

import museval
import museval.aggregate
import numpy as np
import pytest
import torch

from bsrnn_core.errors import BadInput
from bsrnn_core.metrics import (
    Aggregate,
    aggregate,
    csdr,
    frame_sdr,
    full_museval,
    track_csdr,
    track_json,
    track_usdr,
    usdr,
)

SAMPLE_RATE = 2000  # a second of 2000 samples keeps museval fast
STEMS = ("vocals", "drums", "bass")


def generator(seed=0):
    return torch.Generator().manual_seed(seed)


def noise_song(channels=2, num_samples=5 * SAMPLE_RATE + 321):
    """Three random stems and estimates of them, [3, channels, N]."""
    references = torch.randn(3, channels, num_samples, generator=generator())
    noise = torch.randn(3, channels, num_samples, generator=generator(1))
    scale = torch.tensor([0.01, 0.3, 2.0])[:, None, None]
    return references, 0.9 * references + scale * noise


def musical_song():
    """Decaying notes, clicks and a bass with silent stretches, in estimates that leak; 6.3 s."""
    num_samples = int(6.3 * SAMPLE_RATE)
    time = torch.arange(num_samples) / SAMPLE_RATE
    beat = time % 0.5
    vocals = torch.sin(2 * math.pi * (330 * time + 2 * torch.sin(30 * time)))
    drums = torch.randn(num_samples, generator=generator()) * torch.exp(-30 * beat)
    bass = torch.sin(2 * math.pi * 55 * time) * torch.exp(-4 * beat)
    pans = torch.tensor([[0.7, 0.6], [0.5, 0.8], [0.9, 0.3]])
    references = torch.stack([vocals, drums, bass])[:, None] * pans[:, :, None]
    references += 1e-3 * torch.randn(references.shape, generator=generator(1))
    estimates = 0.8 * references + 0.1 * references.roll(1, dims=0)
    estimates += 0.01 * torch.randn(references.shape, generator=generator(2))
    references[0, :, : int(1.5 * SAMPLE_RATE)] = 0  # silent in the whole of the first second only
    estimates[1, :, 2 * SAMPLE_RATE : 3 * SAMPLE_RATE] = 0
    references[2, 0, 4 * SAMPLE_RATE : 5 * SAMPLE_RATE] = -references[
        2, 1, 4 * SAMPLE_RATE : 5 * SAMPLE_RATE
    ]  # antiphase
    return references, estimates


def museval_sdr(references, estimates, protocol, window):
    """museval's SDR [S, frames], computed by itself (with short filters, to be quick)."""
    reference, estimate = (x.double().numpy().swapaxes(1, 2) for x in (references, estimates))
    stems = range(len(reference))
    groups = [list(stems)] if protocol == "joint" else [[stem] for stem in stems]
    scores = [
        museval.metrics.bss_eval(
            reference[group], estimate[group], window=window, hop=window, filters_len=64
        )[0]
        for group in groups
    ]
    return torch.from_numpy(np.concatenate(scores))


@pytest.mark.parametrize("protocol", ["joint", "single"])
@pytest.mark.parametrize("channels", [1, 2])
def test_random_audio_scores_as_in_museval(protocol, channels):
    song = noise_song(channels)
    ours = frame_sdr(*song, SAMPLE_RATE, protocol)
    theirs = museval_sdr(*song, protocol, SAMPLE_RATE)
    assert ours.shape == (3, 5)
    assert ours.dtype == torch.float64
    torch.testing.assert_close(ours, theirs, rtol=0, atol=1e-6)
    whole = museval_sdr(*song, protocol, np.inf)[:, 0]
    torch.testing.assert_close(track_usdr(*song, protocol), whole, rtol=0, atol=1e-6)


@pytest.mark.parametrize("protocol", ["joint", "single"])
def test_music_with_silent_stretches_scores_as_in_museval(protocol):
    song = musical_song()
    ours = frame_sdr(*song, SAMPLE_RATE, protocol)
    theirs = museval_sdr(*song, protocol, SAMPLE_RATE)
    torch.testing.assert_close(ours, theirs, rtol=0, atol=1e-6, equal_nan=True)
    silent = torch.zeros(3, 6, dtype=torch.bool)
    silent[0, 0] = silent[1, 2] = silent[2, 4] = True
    expected = silent.any(dim=0).expand(3, 6) if protocol == "joint" else silent
    assert torch.equal(ours.isnan(), expected)
    medians = torch.from_numpy(np.nanmedian(theirs.numpy(), axis=1))
    torch.testing.assert_close(track_csdr(*song, SAMPLE_RATE, protocol), medians, rtol=0, atol=1e-6)
    whole = museval_sdr(*song, protocol, np.inf)[:, 0]
    torch.testing.assert_close(track_usdr(*song, protocol), whole, rtol=0, atol=1e-6)


@pytest.mark.parametrize("num_samples", [1, 100, SAMPLE_RATE, SAMPLE_RATE + 1, 2 * SAMPLE_RATE - 1])
def test_short_songs_are_one_frame_as_in_museval(num_samples):
    # museval's filters need a signal longer than they are, so it is compared from 100 samples on.
    song = noise_song(num_samples=num_samples)
    ours = frame_sdr(*song, SAMPLE_RATE)
    assert ours.shape == (3, 1)
    assert ours.isfinite().all()
    if num_samples >= 100:
        theirs = museval_sdr(*song, "joint", SAMPLE_RATE)
        torch.testing.assert_close(ours, theirs, rtol=0, atol=1e-6)


def test_scores_of_one_stem_are_those_of_the_protocol_single():
    references, estimates = musical_song()
    usdrs = track_usdr(references, estimates, "single")
    csdrs = track_csdr(references, estimates, SAMPLE_RATE, "single")
    for stem in range(3):
        assert usdr(references[stem], estimates[stem]) == usdrs[stem]
        assert csdr(references[stem], estimates[stem], SAMPLE_RATE) == csdrs[stem]
    assert usdr(references[1].numpy(), estimates[1].numpy()) == usdrs[1]


def test_usdr_by_hand():
    reference = torch.tensor([[3.0, 0.0], [0.0, 1.0]])
    assert usdr(reference, reference - 0.5) == pytest.approx(10.0)
    assert usdr(reference, reference) == math.inf
    assert math.isnan(usdr(torch.zeros(2, 5), torch.ones(2, 5)))


def test_usdr_of_a_song_of_many_pieces():
    references = torch.randn(2, 2, 300_001, generator=generator())
    references[0, :, 100_000:] = 0  # silent for whole pieces, but not throughout
    estimates = references + 0.1
    signal, error = references.double().square(), (estimates.double() - references).square()
    expected = 10 * torch.log10(signal.sum(dim=(1, 2)) / error.sum(dim=(1, 2)))
    torch.testing.assert_close(track_usdr(references, estimates), expected, rtol=0, atol=1e-9)


def test_csdr_is_the_median_of_the_frames_that_have_a_score():
    reference = torch.ones(1, 5 * 10)
    error = torch.tensor([0.1, 0.01, 1.0, 0.001, 0.0]).repeat_interleave(10)
    assert csdr(reference, reference + error, 10) == pytest.approx(40, abs=1e-3)
    reference[:, 40:] = 0
    # 0, 20, 40 and 60 dB: between the middle two.
    assert csdr(reference, reference + error, 10) == pytest.approx(30, abs=1e-3)
    assert math.isnan(csdr(torch.zeros(1, 50), torch.zeros(1, 50), 10))


def test_half_precision_and_gradients_do_not_matter():
    reference = torch.full((1, 100_000), 300.0, dtype=torch.float16)
    estimate = (reference / 2).requires_grad_()
    assert usdr(reference, estimate) == pytest.approx(20 * math.log10(2))


def test_a_silent_stem_leaves_its_song_without_scores_in_joint():
    references, estimates = noise_song()
    references[1] = 0
    assert track_usdr(references, estimates, "joint").isnan().all()
    assert track_csdr(references, estimates, SAMPLE_RATE, "joint").isnan().all()
    single = track_usdr(references, estimates, "single")
    assert single.isnan().tolist() == [False, True, False]


def test_aggregate_counts_nan_and_leaves_it_out():
    scores = [1.0, math.nan, 2.0, 9.0, math.nan]
    assert aggregate(scores, "usdr") == Aggregate(value=4.0, count=3, nan=2)
    assert aggregate(scores, "csdr") == Aggregate(value=2.0, count=3, nan=2)
    assert aggregate(torch.tensor([1.0, 2.0]).tolist(), "csdr").value == 1.5
    for score in ("usdr", "csdr"):
        nothing = aggregate([math.nan], score)
        assert math.isnan(nothing.value)
        assert (nothing.count, nothing.nan) == (0, 1)
        assert math.isnan(aggregate([], score).value)


def museval_json(references, estimates):
    """What museval itself writes for a track."""
    store = museval.aggregate.TrackStore(win=1, hop=1, track_name="song")
    reference, estimate = (x.double().numpy().swapaxes(1, 2) for x in (references, estimates))
    scores = museval.evaluate(reference, estimate, win=SAMPLE_RATE, hop=SAMPLE_RATE)
    for stem, name in enumerate(STEMS):
        values = dict(zip(("SDR", "ISR", "SIR", "SAR"), scores, strict=True))
        store.add_target(name, {metric: v[stem].tolist() for metric, v in values.items()})
    return json.loads(store.json)


def flat(scores):
    """All numbers of a museval JSON by (target, time, duration, metric)."""
    return {
        (target["name"], frame["time"], frame["duration"], metric): value
        for target in scores["targets"]
        for frame in target["frames"]
        for metric, value in frame["metrics"].items()
    }


def test_json_is_the_one_that_museval_writes():
    song = musical_song()
    theirs = flat(museval_json(*song))
    full = flat(json.loads(json.dumps(full_museval(STEMS, *song, SAMPLE_RATE))))
    assert full == pytest.approx(theirs, abs=1.1e-5, nan_ok=True)
    assert any(math.isfinite(value) for (_, _, _, metric), value in full.items() if metric == "SIR")
    quick = track_json(STEMS, *song, SAMPLE_RATE)
    assert quick["protocol"] == "joint"
    for key, value in flat(quick).items():
        expected = theirs[key] if key[-1] == "SDR" else math.nan
        assert value == pytest.approx(expected, abs=1.1e-5, nan_ok=True)
    assert flat(quick).keys() == theirs.keys()


def test_json_is_read_by_museval():
    scores = json.loads(json.dumps(track_json(STEMS, *musical_song(), SAMPLE_RATE, "single")))
    table = museval.aggregate.json2df(scores, "song")
    sdr = table[(table.metric == "SDR") & (table.target == "drums")].score.to_numpy()
    expected = frame_sdr(*musical_song(), SAMPLE_RATE, "single")[1].numpy()
    np.testing.assert_allclose(sdr, expected, rtol=0, atol=1e-5)


def test_perfect_frames_are_infinite_but_nan_in_json():
    references, _ = noise_song()
    assert frame_sdr(references, references, SAMPLE_RATE).eq(math.inf).all()
    sdr = [
        v
        for k, v in flat(track_json(STEMS, references, references, SAMPLE_RATE)).items()
        if k[-1] == "SDR"
    ]
    assert np.isnan(sdr).all()


def test_full_museval_of_a_song_with_a_silent_stem():
    references, estimates = noise_song()
    estimates[2] = 0
    joint = full_museval(STEMS, references, estimates, SAMPLE_RATE, "joint")
    assert np.isnan(list(flat(joint).values())).all()
    single = flat(full_museval(STEMS, references, estimates, SAMPLE_RATE, "single"))
    expected = frame_sdr(references, estimates, SAMPLE_RATE, "single")
    for (name, second, _, metric), value in single.items():
        assert math.isnan(value) == (name == "bass") or metric == "SIR"
        if metric == "SDR":
            assert value == pytest.approx(
                expected[STEMS.index(name), int(second)].item(), abs=1e-5, nan_ok=True
            )


@pytest.mark.parametrize(
    ("reference", "estimate", "message"),
    [
        (torch.ones(2, 10), torch.ones(2, 9), "differ in shape"),
        (torch.ones(2, 0), torch.ones(2, 0), "not empty"),
        (torch.ones(10), torch.ones(10), r"\[channels, samples\]"),
    ],
)
def test_bad_shapes_are_refused(reference, estimate, message):
    with pytest.raises(BadInput, match=message):
        usdr(reference, estimate)
    with pytest.raises(BadInput, match=message):
        csdr(reference, estimate, 10)
