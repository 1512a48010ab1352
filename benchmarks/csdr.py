"""Time of cSDR against museval's on one synthetic stereo song of four stems, in the same run.

    python benchmarks/csdr.py --seconds 180

museval takes one to four minutes for a song of three. Prints the seconds of each, how many times
faster ours is, and the largest difference of any stem and frame in dB.
"""

import argparse
import time

import museval.metrics
import numpy as np
import torch

from bsrnn_core.metrics import frame_sdr

SAMPLE_RATE = 44100


def song(seconds: int) -> tuple[torch.Tensor, torch.Tensor]:
    """References and estimates [4, 2, N], float32: coloured noise, one stem at first silent."""
    generator = torch.Generator().manual_seed(0)
    shape = (4, 2, seconds * SAMPLE_RATE)
    references = 0.1 * torch.randn(shape, generator=generator)
    for stem in range(1, 4):
        references[stem, :, 1:] += 0.3 * stem * references[stem, :, :-1].clone()
    references[0, :, : 2 * SAMPLE_RATE] = 0
    leak = 0.2 * references.roll(1, dims=0)
    return references, references + leak + 0.01 * torch.randn(shape, generator=generator)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--seconds", type=int, default=180, help="length of the song")
    seconds = parser.parse_args().seconds
    references, estimates = song(seconds)

    start = time.perf_counter()
    ours = frame_sdr(references, estimates, SAMPLE_RATE).numpy()
    our_seconds = time.perf_counter() - start

    reference, estimate = (x.double().numpy().swapaxes(1, 2) for x in (references, estimates))
    start = time.perf_counter()
    theirs = museval.metrics.bss_eval(reference, estimate, window=SAMPLE_RATE, hop=SAMPLE_RATE)[0]
    museval_seconds = time.perf_counter() - start

    np.testing.assert_array_equal(np.isnan(ours), np.isnan(theirs))
    print(f"song           {seconds} s, 4 stems, stereo, {torch.get_num_threads()} thread(s)")
    print(f"museval        {museval_seconds:.2f} s")
    print(f"bsrnn_core     {our_seconds:.3f} s")
    print(f"times faster   {museval_seconds / our_seconds:.0f}")
    print(f"max difference {np.nanmax(np.abs(ours - theirs)):.1e} dB")


if __name__ == "__main__":
    main()
