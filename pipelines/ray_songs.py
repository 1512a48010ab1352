"""Songs mapped through a model with Ray Data: the model is loaded once per worker process."""

import json
import logging
import traceback
import uuid
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import ray
import ray.data
import torch

from bsrnn_core.checkpoint import load
from bsrnn_core.errors import BadInput
from bsrnn_core.model import BSRNN
from pipelines.failures import reason
from pipelines.launch import parallel_tasks, use_gpu
from pipelines.remote_checkpoints import local_checkpoint

logger = logging.getLogger(__name__)

Row = dict[str, Any]


def num_song_workers(
    asked: int | None, device: str, num_songs: int, song_bytes: float
) -> tuple[bool, int]:
    """Whether each worker gets a GPU, and how many workers there are for ``num_songs``.

    On CPUs as many as their memory holds, at ``song_bytes`` each. Raises BadInput when more are
    asked for than the cluster can hold, or a GPU where there is none.
    """
    gpu = use_gpu(device)
    limit = int(ray.cluster_resources().get("GPU" if gpu else "CPU", 1))
    if asked is not None:
        if asked > limit:
            raise BadInput(
                f"num_workers = {asked}, but the cluster has {limit} "
                f"{'GPUs' if gpu else 'CPUs'}: lower it"
            )
        return gpu, min(asked, num_songs)
    limit = limit if gpu else parallel_tasks(song_bytes)
    return gpu, max(1, min(limit, num_songs))


_loaded: dict[str, BSRNN] = {}
"""In a worker process: the model of the call that it works for."""


def _model_of(call: str, checkpoint: str, device: str) -> BSRNN:
    """A checkpoint's model, loaded once per worker process and ``call``."""
    if call not in _loaded:
        _loaded.clear()
        torch.set_num_threads(1)  # a song per core is faster than a core more per song
        _loaded[call] = load(local_checkpoint(checkpoint), device)
    return _loaded[call]


def map_songs(
    songs: Sequence[Row],
    work: Callable[[BSRNN, Row], Row],
    checkpoint: str,
    *,
    gpu: bool,
    num_workers: int,
) -> Iterator[tuple[int, Row | Exception]]:
    """The place of each song in ``songs``, with what ``work`` makes of it or why it fails, as they
    get done.

    Songs and results are plain values, as JSON has them. A failure is BadInput where the song is
    to blame, else RuntimeError; it keeps no other song from being worked on.
    """
    # Workers outlive this call, and the checkpoint may be another one the next time.
    call = uuid.uuid4().hex

    def on_worker(row: Row) -> Row:
        model = _model_of(call, checkpoint, "cuda" if gpu else "cpu")
        outcome = {"place": row["place"], "result": "", "problem": "", "traceback": ""}
        try:
            outcome["result"] = json.dumps(work(model, json.loads(row["song"])))
        except BadInput as error:
            outcome["problem"] = str(error)
        except Exception as error:
            outcome.update(problem=reason(error), traceback=traceback.format_exc())
        return outcome

    rows = ray.data.from_items(
        [{"place": place, "song": json.dumps(song)} for place, song in enumerate(songs)],
        override_num_blocks=len(songs),
    )
    strategy = ray.data.TaskPoolStrategy(size=num_workers)
    done = rows.map(on_worker, compute=strategy, num_cpus=1, num_gpus=1 if gpu else 0)
    with _quiet_ray_data():
        for row in done.iter_rows():
            if row["traceback"]:
                logger.error("a worker failed:\n%s", row["traceback"])
                yield row["place"], RuntimeError(row["problem"])
            elif row["problem"]:
                yield row["place"], BadInput(row["problem"])
            else:
                yield row["place"], json.loads(row["result"])


@contextmanager
def _quiet_ray_data() -> Iterator[None]:
    """Ray Data's own progress bars and reports would stand between ours."""
    context, log = ray.data.DataContext.get_current(), logging.getLogger("ray.data._internal")
    bars, level = context.enable_progress_bars, log.level
    context.enable_progress_bars = False
    log.setLevel(logging.ERROR)
    try:
        yield
    finally:
        context.enable_progress_bars = bars
        log.setLevel(level)
