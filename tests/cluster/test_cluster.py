"""From machines with nothing on them to scores in MLflow, by the commands of docs/cluster.md."""

import ipaddress
import time

import pytest

from tests.cluster.cluster import MLFLOW_PORT, ROOT, TINY, WORKERS, Cluster, wait_until

pytestmark = pytest.mark.cluster

OPEN_PORTS = {
    22,  # sshd
    MLFLOW_PORT,  # asks for the token
    *range(6379, 6386),  # Ray's own, as cluster.yaml sets them; 6385 has metrics without a token
    *(44217, 44227),  # metrics of the head's autoscaler and dashboard, without a token
    *range(10002, 20000),  # Ray's workers
}
ASK_RAY = (
    "import sys; from ray._raylet import GcsClient; "
    "print(GcsClient(address=sys.argv[1]).internal_kv_keys(b'', None, timeout=30))"
)


def test_all_machines_are_in(cluster: Cluster):
    assert cluster.cpus() == WORKERS
    for node in cluster.nodes:
        python = node.run("source ~/.bashrc; command -v python").stdout.strip()
        assert python == f"{node.home}/bsrnn/.venv/bin/python"


def test_mtl_with_a_worker_on_each_host(cluster: Cluster):
    songs, runs = cluster.shared / "songs", cluster.shared / "runs"
    done = cluster.submit(
        "mtl",
        f"--musdbhq_location {songs} --out {runs} --name mtl --steps_per_epoch 4 --max_epochs 2 "
        f"{TINY}",
    )
    assert done.returncode == 0, done.stdout
    # A worker of Ray Train logs under its name on the machine that it ran on.
    logs = "grep -lE 'RayTrainWorker' /tmp/ray/session_latest/logs/worker-*.err | wc -l"
    assert [int(worker.run(logs).stdout) for worker in cluster.workers] == [1, 1]
    run = cluster.mlflow_run("mtl")
    assert run["status"] == "FINISHED"
    assert [step for step, _ in run["curves"]["train/loss"]] == list(range(1, 9))
    assert [step for step, _ in run["curves"]["valid/usdr_mean"]] == [4, 8]
    assert "checkpoint" in run["files"]


def test_scores_of_whole_songs_arrive_in_mlflow(cluster: Cluster):
    songs, best = cluster.shared / "songs", cluster.shared / "runs" / "mtl" / "best"
    done = cluster.submit("evaluate", f"--checkpoint_fp {best} --musdbhq_location {songs}")
    assert done.returncode == 0, done.stdout
    assert "test/usdr_mean" in cluster.mlflow_run("mtl")["curves"]


@pytest.mark.parametrize(
    ("script", "words"),
    [("mtl", "--name mtl --shards nowhere"), ("infer", "--checkpoint_fp nowhere --input a.wav")],
)
def test_a_command_that_fails_says_so(cluster: Cluster, script: str, words: str):
    done = cluster.submit(script, words)
    assert done.returncode != 0
    assert "bsrnn: " in done.stdout and "Traceback" not in done.stdout


@pytest.mark.parametrize(
    ("words", "succeeds"), [("--band_schema v7", True), ("--band_schema v99", False)]
)
def test_jobs_through_the_tunnel(cluster: Cluster, words: str, succeeds: bool):
    tunnel = cluster.tunnel(8265, "localhost")
    try:
        job = cluster.launcher.run(
            f"cd {ROOT}; export RAY_AUTH_MODE=token RAY_ADDRESS=http://localhost:8265; "
            f"ray job submit -- python bsrnn/pipelines/bands.py {words}",
            check=False,
        )
        assert (job.returncode == 0) == succeeds, job.stdout
        stranger = "curl -s -o /dev/null -w '%{http_code}' http://localhost:8265/api/jobs/"
        assert cluster.launcher.run(stranger).stdout in ("401", "403")
    finally:
        tunnel.kill()


def test_the_token_is_for_its_owner_only(cluster: Cluster):
    tokens = {node.run("cat ~/.ray/auth_token").stdout for node in cluster.nodes}
    assert tokens == {cluster.launcher.run("cat ~/.ray/auth_token").stdout}
    for node in cluster.nodes:
        assert node.run("stat -c %a ~/.ray ~/.ray/auth_token").stdout.split() == ["700", "600"]


@pytest.mark.parametrize("token", ["$(cat ~/.ray/auth_token)", "0123456789abcdef" * 4])
def test_only_the_token_lets_in(cluster: Cluster, token: str):
    # From a machine that is no node, in the same network.
    known = token.startswith("$")
    given = f'export RAY_AUTH_MODE=token RAY_AUTH_TOKEN="{token}"'
    ray = f'{given}; python -c "{ASK_RAY}" {cluster.head.address}:6379'
    answer = cluster.launcher.run(ray, check=False)
    assert (answer.returncode == 0) == known
    assert known or "AuthenticationError" in answer.stdout
    mlflow = (
        f'curl -s -o /dev/null -w "%{{http_code}}" -H "Authorization: Bearer {token}" '
        f"{cluster.mlflow_address}/health"
    )
    assert cluster.launcher.run(mlflow).stdout == ("200" if known else "401")


def test_nothing_else_listens_where_others_reach_it(cluster: Cluster):
    # Whatever a training has opened is closed again.
    wait_until(lambda: not cluster.processes("RayTrainWorker"))
    time.sleep(1)
    for node in cluster.nodes:
        local = [line.split()[3] for line in node.run("ss -ltnH").stdout.splitlines()]
        ports = {int(port) for host, _, port in (word.rpartition(":") for word in local)
                 if not is_loopback(host)}  # fmt: skip
        assert 22 in ports and 6380 in ports
        assert ports - OPEN_PORTS == set()


def is_loopback(host: str) -> bool:
    bare = host.strip("[]").partition("%")[0].removeprefix("::ffff:")
    return bare != "*" and ipaddress.ip_address(bare).is_loopback


def test_setting_up_again_does_nothing(cluster: Cluster):
    began = time.monotonic()
    for node in cluster.nodes:
        assert node.run("make --no-print-directory -C ~/bsrnn setup").stdout == ""
    assert time.monotonic() - began < 5 * len(cluster.nodes)
