"""`ray down` leaves nothing that runs. This file is the last: its test ends the cluster."""

import pytest

from tests.cluster.cluster import Cluster, wait_until

pytestmark = pytest.mark.cluster


def test_nothing_is_left_running(cluster: Cluster):
    assert set(cluster.processes("raylet")) == {node.name for node in cluster.nodes}
    assert set(cluster.processes("mlflow server")) == {cluster.head.name}
    down = cluster.ray(f"down -y {cluster.file}")
    assert "No nodes remaining" in down.stdout
    wait_until(lambda: not any(node.processes() for node in cluster.nodes), 90)
