"""Band schemas: how the bins of a spectrum are split into the K bands of the model.

A schema is data: pairs (edge_hz, width_hz) meaning "bands of this width up to this edge"; what
remains up to Nyquist is one more band. The schemas v1 .. v7, bass and drums are those of the BSRNN
paper (Luo and Yu, arXiv 2209.15174); joint57 is the finer split that serves all stems at once.
``generic`` follows the notes of equal temperament instead of a table.
"""

import itertools
import math
from collections.abc import Sequence

from bsrnn_core.config import ModelConfig, StftConfig
from bsrnn_core.errors import BadInput

Splits = Sequence[tuple[float, float]]

SCHEMAS: dict[str, tuple[tuple[float, float], ...]] = {
    "v1": ((21000, 1000),),
    "v2": ((16000, 1000), (20000, 2000)),
    "v3": ((8000, 1000), (16000, 2000), (20000, 4000)),
    "v4": ((1000, 100), (8000, 1000), (16000, 2000), (20000, 4000)),
    "v5": ((1000, 100), (16000, 1000), (20000, 2000)),
    "v6": ((1000, 100), (4000, 500), (8000, 1000), (16000, 2000), (20000, 4000)),
    "v7": ((1000, 100), (4000, 250), (8000, 500), (16000, 1000), (20000, 2000)),
    "bass": ((500, 50), (1000, 100), (4000, 500), (8000, 1000), (16000, 2000)),
    "drums": ((1000, 50), (2000, 100), (4000, 250), (8000, 500), (16000, 1000)),
    "joint57": ((1000, 50), (2000, 100), (4000, 250), (8000, 500), (16000, 1000), (20000, 2000)),
}
"""The schemas that are tables. ``generic`` and ``custom`` are built from their options."""

A4_HZ = 440.0
AUDIBLE_HZ = (20.0, 20000.0)


def bands(
    schema: str,
    sample_rate: int,
    n_fft: int,
    *,
    divisions: int = 24,
    num_bands: int = 41,
    splits: Splits = (),
) -> list[tuple[int, int]]:
    """The bands of ``schema`` as half-open ranges of bins: K pairs (first, last + 1).

    The ranges are in order, none is empty, and every bin 0 .. n_fft / 2 is in exactly one. A bin
    belongs to the band that its centre frequency lies in. A table is cut at Nyquist; a band that
    holds no bin's centre merges into the one above (``merged_bands`` counts them).

    ``divisions`` and ``num_bands`` are for ``generic``, ``splits`` (edge_hz, width_hz) for
    ``custom``. Raises BadInput for an unknown schema, one that cannot be met, or an illegal
    sample rate or n_fft.
    """
    stft = StftConfig(sample_rate=sample_rate, n_fft=n_fft)
    if schema == "generic":
        inner = _generic_edges(stft, divisions, num_bands)
    else:
        edges_hz = _table_edges_hz(_table(schema, splits), sample_rate / 2)
        inner = sorted({_first_bin(edge_hz, stft) for edge_hz in edges_hz[1:-1]})
    edges = [0, *inner, stft.num_bins]
    return list(itertools.pairwise(edges))


def merged_bands(schema: str, sample_rate: int, n_fft: int, *, splits: Splits = ()) -> int:
    """How many bands of ``schema`` hold no bin and were merged into the one above.

    Arguments and errors are those of ``bands``. Always 0 for ``generic``, which counts bins first.
    """
    if schema == "generic":
        return 0
    wanted = len(_table_edges_hz(_table(schema, splits), sample_rate / 2)) - 1
    return wanted - len(bands(schema, sample_rate, n_fft, splits=splits))


def model_bands(stft: StftConfig, model: ModelConfig) -> list[tuple[int, int]]:
    """The bands of a model: ``bands`` with the values of its configuration."""
    return bands(
        model.band_schema,
        stft.sample_rate,
        stft.n_fft,
        divisions=model.divisions,
        num_bands=model.num_bands,
        splits=model.splits,
    )


def _table(schema: str, splits: Splits) -> Splits:
    """The (edge_hz, width_hz) pairs of a named schema, or the user's own once they are checked."""
    if schema != "custom":
        if schema not in SCHEMAS:
            known = ", ".join([*SCHEMAS, "generic", "custom"])
            raise BadInput(f"band_schema {schema!r} is unknown: use one of {known}")
        return SCHEMAS[schema]
    if not splits:
        raise BadInput("band_schema custom needs splits: pairs of (edge_hz, width_hz)")
    below_hz = 0.0
    for edge_hz, width_hz in splits:
        # Written so that NaN fails too.
        if not below_hz < edge_hz < math.inf:
            raise BadInput(f"splits: edges must be positive, finite and rising, not {edge_hz} Hz")
        if not 1 <= width_hz <= edge_hz - below_hz:
            raise BadInput(
                f"splits: a width of {width_hz} Hz is below 1 Hz or wider than the space between "
                f"{below_hz} and {edge_hz} Hz"
            )
        below_hz = edge_hz
    return splits


def _table_edges_hz(splits: Splits, nyquist_hz: float) -> list[float]:
    """Edges of all bands from 0 to Nyquist, both included; a short remainder joins the band below.

    A remainder is what a width leaves over below its edge, below Nyquist, or above the last edge.
    It is short when it is narrower than half that width.
    """
    edges_hz = [0.0]
    last_width_hz = splits[-1][1]
    for edge_hz, width_hz in (*splits, (math.inf, last_width_hz)):
        low_hz, top_hz = edges_hz[-1], min(edge_hz, nyquist_hz)
        if low_hz >= top_hz:
            break
        # The small number keeps a remainder of exactly half a band from being lost to rounding.
        count = math.floor((top_hz - low_hz) / width_hz + 0.5 + 1e-9)
        if edge_hz == math.inf:
            count = min(count, 1)
        if count == 0 and len(edges_hz) > 1:
            edges_hz[-1] = top_hz
        else:
            edges_hz += [low_hz + i * width_hz for i in range(1, count)] + [top_hz]
    return edges_hz


def _generic_edges(stft: StftConfig, divisions: int, num_bands: int) -> list[int]:
    """First bins of all bands but the lowest: ``num_bands`` - 1 distinct ones, rising.

    The octave is divided into ``divisions`` equal steps from A4 = 440 Hz. Even steps are notes; the
    odd ones between them are the possible edges, so that no note lies on an edge. They are thinned
    from the bottom up: each band takes an equal share, in octaves, of what is left of the audible
    range, and at least one bin. So the low bands, where a bin is wider than a note, do not collide.
    """
    if divisions < 2 or divisions % 2:
        raise BadInput(f"divisions must be even and positive, not {divisions}")
    low_hz, high_hz = AUDIBLE_HZ
    high_hz = min(high_hz, stft.sample_rate / 2)
    first_step = math.ceil(divisions * math.log2(low_hz / A4_HZ)) | 1
    last_step = math.floor(divisions * math.log2(high_hz / A4_HZ))
    grid_hz = [A4_HZ * 2 ** (i / divisions) for i in range(first_step, last_step + 1, 2)]
    # Where several grid frequencies fall to the same bin, the last is the nearest below it.
    candidates = {_first_bin(hz, stft): math.log2(hz) for hz in grid_hz if hz < high_hz}
    bins, octaves = list(candidates), list(candidates.values())
    if not 1 <= num_bands <= len(bins) + 1:
        raise BadInput(
            f"generic cannot make num_bands={num_bands} bands: with divisions={divisions}, "
            f"sample_rate={stft.sample_rate} and n_fft={stft.n_fft} it makes 1 to {len(bins) + 1}; "
            "change num_bands, or raise n_fft or divisions"
        )
    chosen: list[int] = []
    position, following = math.log2(low_hz), 0
    for bands_left in range(num_bands, 1, -1):
        ideal = position + (math.log2(high_hz) - position) / bands_left
        # Leave a candidate for each of the edges still to come.
        allowed = range(following, len(bins) - bands_left + 2)
        nearest = min(allowed, key=lambda i: abs(octaves[i] - ideal))
        chosen.append(bins[nearest])
        position, following = octaves[nearest], nearest + 1
    return chosen


def _first_bin(frequency_hz: float, stft: StftConfig) -> int:
    """The lowest bin whose centre is at or above ``frequency_hz``."""
    # Rounding must not push an edge that falls on a bin's centre to the next bin.
    return math.ceil(frequency_hz * stft.n_fft / stft.sample_rate * (1 - 1e-12))
