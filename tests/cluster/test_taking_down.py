"""`ray down` leaves nothing that runs. This file is the last: its test ends the cluster."""

import logging

import pytest

from tests.cluster.cluster import Cluster, wait_until

pytestmark = pytest.mark.cluster
logger = logging.getLogger(__name__)


def test_nothing_is_left_running(cluster: Cluster):
    assert set(cluster.processes("raylet")) == {node.name for node in cluster.nodes}
    assert set(cluster.processes("mlflow server")) == {cluster.head.name}
    down = cluster.ray(f"down -y {cluster.file}")
    assert "No nodes remaining" in down.stdout
    # Within the minute after which Ray would end a part of it by itself.
    seconds = wait_until(lambda: not cluster.processes(""), 55)
    logger.info("down: nothing is left %.0f s after ray down", seconds)
