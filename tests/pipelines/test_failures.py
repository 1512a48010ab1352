"""Causes are found however Ray has wrapped them."""

import pytest
from ray.exceptions import OutOfMemoryError, RayTaskError
from ray.train import WorkerGroupError  # pyright: ignore[reportPrivateImportUsage]
from ray.train.v2._internal.exceptions import WorkerHealthCheckFailedError

from bsrnn_core.errors import BadInput
from pipelines.failures import bad_input_sentence, reason

SENTENCE = "songs/a.wav is no audio file: remove it"


def wrapped(cause: Exception) -> Exception:
    """As a failed worker's training comes out of Ray Train."""
    task_error = RayTaskError("f", "Traceback\n  of the task", cause).as_instanceof_cause()
    return WorkerGroupError("rank 0 died", {0: task_error})


def test_real_ray_wrappers_are_seen_through():
    task_error = RayTaskError("f", "a traceback", BadInput(SENTENCE)).as_instanceof_cause()
    assert bad_input_sentence(task_error) == SENTENCE
    assert bad_input_sentence(wrapped(BadInput(SENTENCE))) == SENTENCE
    other = RayTaskError("f", "a traceback", KeyError("x")).as_instanceof_cause()
    assert bad_input_sentence(other) is None


@pytest.mark.parametrize(
    ("error", "said"),
    [
        (BadInput(SENTENCE), SENTENCE),
        (wrapped(BadInput(SENTENCE)), SENTENCE),
        (wrapped(FloatingPointError("not finite\nat all")), "FloatingPointError: not finite"),
        (wrapped(MemoryError()), "MemoryError"),
        (WorkerGroupError("rank 0 was killed", {}), "WorkerGroupError: rank 0 was killed"),
        (
            WorkerGroupError(
                "rank 0 failed",
                {0: WorkerHealthCheckFailedError("unhealthy", OutOfMemoryError("Too much\nSee X"))},
            ),
            "OutOfMemoryError: Too much",
        ),
    ],
    ids=["bare", "bad input", "first line", "no words", "Ray's own", "out of memory"],
)
def test_a_reason_is_one_line(error: Exception, said: str):
    assert reason(error) == said
