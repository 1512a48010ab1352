"""From machines with nothing on them to scores in MLflow, by the commands of docs/cluster.md."""


import pytest

from tests.cluster.cluster import Cluster

pytestmark = pytest.mark.cluster

TINY = (
    "--sample_rate 8000 --n_fft 256 --feature_dim 4 --num_blstm_layers 1 --mlp_dim 8 "
    "--band_schema generic --num_bands 6 --chunk_size_in_seconds 0.5 --crop_seconds 0.4 "
    "--batch_size 2 --log_every_steps 1 --threads_per_worker 1"
)


def test_mtl_with_a_worker_on_each_host(cluster: Cluster):
    done = cluster.submit(
        "mtl",
        f"--musdbhq_location {cluster.shared}/songs --out {cluster.shared}/runs --name mtl "
        f"--num_workers 2 --steps_per_epoch 4 --max_epochs 2 {TINY}",
    )
    assert done.returncode == 0, done.stdout
