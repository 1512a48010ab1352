"""One cluster of three hosts for all tests of this folder, made by `ray up`."""

from collections.abc import Iterator
from pathlib import Path

import pytest

from data_prep.demo_songs import make_corpus
from tests.cluster.cluster import Cluster
from tests.cluster.hosts import Hosts, why_not


@pytest.fixture(scope="session")
def cluster() -> Iterator[Cluster]:
    """A running cluster, with songs in its shared folder."""
    reason = why_not()
    if reason:
        pytest.skip(reason)
    hosts = Hosts()
    try:
        made = Cluster(hosts)
        make_songs(made.shared / "songs")
        made.start_hosts()
        made.up()
        yield made
    finally:
        hosts.close()


def make_songs(folder: Path) -> None:
    """Songs that are prepared and trained on in seconds."""
    make_corpus(folder, num_train=3, num_valid=1, num_test=1, seconds=4, sample_rate=8000)
