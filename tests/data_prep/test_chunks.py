import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from bsrnn_core.config import StftConfig
from bsrnn_core.normalization import spectrum_statistics
from bsrnn_core.stft import istft, stft
from data_prep.chunks import ACTIVITY_FLOOR, track_activity, track_chunks
from data_prep.config import ChunkConfig, PrepConfig

STFT = StftConfig(sample_rate=8000, n_fft=256)
CONFIG = PrepConfig(
    stft=STFT, chunk=ChunkConfig(chunk_size_in_seconds=0.08, target_rms=0.1, peak=1.0)
)
STEP = CONFIG.chunk_frames * STFT.hop


def noise(*shape: int, seed: int = 0) -> Tensor:
    return 0.3 * torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


@settings(deadline=None, max_examples=60)
@given(num_samples=st.integers(1, 6 * STEP), channels=st.integers(1, 2))
def test_chunks_are_the_frames_of_the_whole_tracks_stft(num_samples: int, channels: int) -> None:
    references = noise(3, channels, num_samples)
    chunks = list(track_chunks(references, CONFIG))
    whole = stft(references, STFT)
    frames = torch.cat([c.stft[..., : c.num_frames] * c.std for c in chunks], -1)
    torch.testing.assert_close(frames, whole * chunks[0].gain, rtol=1e-4, atol=1e-4)
    assert all(c.stft.shape[-1] == CONFIG.chunk_frames for c in chunks)
    assert chunks[-1].stft[..., chunks[-1].num_frames :].abs().sum() == 0
    assert [c.first_sample for c in chunks] == [k * STEP for k in range(len(chunks))]
    assert sum(c.valid_samples for c in chunks) == num_samples
    again = istft(frames, STFT, num_samples) / chunks[0].gain
    torch.testing.assert_close(again, references, rtol=1e-4, atol=1e-5)


def test_one_gain_for_the_track_and_the_mixtures_statistics_per_chunk() -> None:
    references = noise(4, 2, 3 * STEP)
    references[..., STEP:] *= 4
    chunks = list(track_chunks(references, CONFIG))
    mixture = references.sum(0)
    assert len({c.gain for c in chunks}) == 1
    assert chunks[0].gain * mixture.square().mean().sqrt().item() == pytest.approx(0.1)
    for chunk in chunks:
        stored = chunk.stft[..., : chunk.num_frames]
        mean, std = spectrum_statistics(stored.sum(0))
        assert std.item() == pytest.approx(1, rel=1e-4)
        assert mean.item() * chunk.std == pytest.approx(chunk.mean, rel=1e-3, abs=1e-5)


def test_the_peak_holds_the_gain_down() -> None:
    references = torch.zeros(1, 1, 4000)
    references[..., 100] = 0.01
    chunk = next(track_chunks(references, CONFIG))
    assert chunk.gain == pytest.approx(100)


def test_stems_that_cancel_stay_within_float16() -> None:
    stem = noise(2, 2 * STEP)
    for chunk in track_chunks(torch.stack([stem, -stem]), CONFIG):
        stored = torch.view_as_real(chunk.stft).to(torch.float16)
        assert stored.isfinite().all()
        assert stored.abs().max() > 1000
        error = torch.view_as_complex(stored.float()) - chunk.stft
        assert error.abs().max() < 1e-3 * chunk.stft.abs().max()


def test_silence_stays_zero() -> None:
    for chunk in track_chunks(torch.zeros(2, 1, 1000), CONFIG):
        assert chunk.gain == 1
        assert chunk.stft.abs().max() == 0
        assert chunk.activity == (0.0, 0.0)


def test_activity_counts_parts_above_the_quantile_and_the_floor() -> None:
    """Ten parts of 100 samples a chunk: a stem that plays 30 % of the first chunk, a stem too soft
    throughout, and one that is twice as loud in all but 2 of the 20 parts, later 3."""
    references = torch.zeros(3, 1, 2000)
    references[0, 0, :300] = 0.5
    references[1] = 0.5 * ACTIVITY_FLOOR**0.5
    references[2] = 1.0
    references[2, 0, 500:700] = 0.5
    played, soft, loud = zip(*track_activity(references, 1.0, 1000), strict=True)
    assert played == pytest.approx((0.3, 0.0))
    assert soft == (0.0, 0.0)
    # The 15 % quantile of 2 low and 18 high parts is the high level itself.
    assert loud == pytest.approx((0.8, 1.0))
    references[2, 0, 500:800] = 0.5
    references[2, 0, 800:900] = 0.7
    *_, loud = zip(*track_activity(references, 1.0, 1000), strict=True)
    assert loud == pytest.approx((0.7, 1.0))


def test_activity_is_judged_at_the_tracks_gain_and_over_all_channels() -> None:
    references = torch.zeros(1, 2, 1000)
    references[0, 1, :500] = 0.9 * ACTIVITY_FLOOR**0.5
    assert track_activity(references, 1.0, 1000) == [[0.0]]
    assert track_activity(references, 2.0, 1000) == [[0.5]]


def test_a_short_last_chunk_is_judged_by_what_it_has() -> None:
    references = torch.zeros(1, 1, 1250)
    references[..., 1000:1100] = 0.5
    assert track_activity(references, 1.0, 1000) == [[0.0], [pytest.approx(1 / 3)]]
