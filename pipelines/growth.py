"""Waiting for an autoscaled cluster to grow to what a training needs."""

import logging
import time

import ray
from ray.autoscaler.sdk import request_resources

from pipelines.config import ClusterConfig

logger = logging.getLogger(__name__)

POLL_SECONDS = 2.0


def wait_for_workers(cluster: ClusterConfig) -> None:
    """Ask for machines that hold all workers, and wait ``wait_minutes`` at most until they are in.

    GPUs are asked for with --device cuda only: a cluster without any may never have some.
    """
    kind = "GPU" if cluster.device == "cuda" else "CPU"
    if not cluster.wait_minutes or _there(kind) >= cluster.num_workers:
        return
    logger.info(
        "waiting for %d %ss, %g min at most", cluster.num_workers, kind, cluster.wait_minutes
    )
    deadline = time.monotonic() + 60 * cluster.wait_minutes
    request_resources(bundles=[{kind: 1}] * cluster.num_workers)
    try:
        while _there(kind) < cluster.num_workers and time.monotonic() < deadline:
            time.sleep(POLL_SECONDS)
    finally:
        # From here on the trainings themselves say what they need; idle machines are given back.
        request_resources(bundles=[])


def _there(kind: str) -> float:
    return ray.cluster_resources().get(kind, 0)
