"""The files that describe clusters, without one: Ray's schema, KubeRay's fields, the lock."""

import os
import re
import shlex
import shutil
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest
import yaml
from ray.autoscaler._private.util import prepare_config, validate_config

from pipelines.cli import COMMANDS
from pipelines.config import TrainConfig
from pipelines.flags import parse

ROOT = Path(__file__).parents[1]
AWS, LOCAL = ROOT / "cluster.yaml", ROOT / "clusters" / "local.yaml"
SCRIPTS = sorted((ROOT / "clusters").glob("*.sh"))
ENTRY_POINTS = (
    *("prep", "base", "mtl", "transfer", "tune", "experiment", "evaluate", "compare", "infer"),
)
SAME = (
    *("file_mounts", "rsync_exclude", "setup_commands"),
    *("head_start_ray_commands", "worker_start_ray_commands"),
)
"""What has been tried with clusters/local.yaml, and must hold for AWS too."""

RAY_JOB = {
    "entrypoint": str, "backoffLimit": int, "submissionMode": str, "ttlSecondsAfterFinished": int,
    "shutdownAfterJobFinishes": bool, "rayClusterSpec": dict,
}  # fmt: skip
RAY_CLUSTER = {
    "rayVersion": str, "authOptions": dict, "headGroupSpec": dict, "workerGroupSpecs": list
}  # fmt: skip
HEAD_GROUP = {"rayStartParams": dict, "template": dict}
WORKER_GROUP = {
    **HEAD_GROUP, "groupName": str, "replicas": int, "minReplicas": int, "maxReplicas": int
}  # fmt: skip
"""Fields of KubeRay's RayJob (ray.io/v1) that the manifest uses, with their types."""


def load(path: Path) -> dict[str, Any]:
    return yaml.safe_load(path.read_text())


@pytest.fixture(scope="module")
def documents() -> dict[str, dict[str, Any]]:
    """The Kubernetes objects by kind."""
    found = yaml.safe_load_all((ROOT / "clusters" / "rayjob.yaml").read_text())
    return {document["kind"]: document for document in found}


def locked(package: str) -> str:
    [version] = re.findall(
        rf"^{package}(?:\[.*\])?==(\S+)", (ROOT / "requirements.lock").read_text(), re.M
    )
    return version


@pytest.mark.parametrize("path", [AWS, LOCAL], ids=lambda path: path.name)
def test_rays_schema_accepts_it(path: Path):
    validate_config(prepare_config(load(path)))


@pytest.mark.parametrize(
    "change", [{"provider": {"type": "cloud9"}}, {"max_workers": "many"}, {"setup_command": []}]
)
def test_rays_schema_would_find_a_mistake(change: dict[str, Any]):
    with pytest.raises((Exception, SystemExit)):
        validate_config(prepare_config({**load(AWS), **change}))


@pytest.mark.parametrize("key", SAME)
def test_aws_runs_what_the_hosts_of_the_tests_run(key: str):
    assert load(AWS)[key] == load(LOCAL)[key] != []


def test_what_is_mounted_is_there():
    mounts = load(AWS)["file_mounts"]
    assert mounts.pop("~/.ray/auth_token") == "~/.ray/auth_token"
    assert all((ROOT / local).exists() for local in mounts.values())
    # All that the set-up needs: what is installed, and what pyproject.toml names.
    assert {"pyproject.toml", "requirements.lock", "Makefile", "README.md", "LICENSE"} <= set(
        mounts.values()
    )
    assert {"bsrnn_core", "data_prep", "pipelines", "clusters"} <= set(mounts.values())


@pytest.mark.parametrize("script", SCRIPTS, ids=lambda path: path.name)
def test_scripts_are_of_bash_and_named_in_the_files(script: Path):
    subprocess.run(["bash", "-n", script], check=True)
    assert f"bsrnn/clusters/{script.name}" in LOCAL.read_text()


def test_nodes_ask_for_the_token_and_people_come_through_tunnels():
    environment = (ROOT / "clusters" / "env.sh").read_text()
    assert "export RAY_AUTH_MODE=token" in environment
    for name in ("MALLOC_ARENA_MAX", "THP_MEM_ALLOC_ENABLE"):
        assert f"export {name}" in environment
    config = load(AWS)
    assert any("chmod 600 ~/.ray/auth_token" in line for line in config["setup_commands"])
    [start] = [line for line in config["head_start_ray_commands"] if "ray start" in line]
    assert "--dashboard-host=127.0.0.1" in start and "RAY_enable_autoscaler_v2=0" in start
    # Ray's own rules are ssh and what its nodes need; the same one twice is refused by AWS.
    assert config["provider"]["security_group"] == {"GroupName": "bsrnn"}


def test_the_gpu_machines_are_spot_and_start_from_none():
    gpu = load(AWS)["available_node_types"]["gpu"]
    assert gpu["node_config"]["InstanceMarketOptions"] == {"MarketType": "spot"}
    assert gpu["min_workers"] == 0 < gpu["max_workers"] <= load(AWS)["max_workers"]


@pytest.fixture(scope="module")
def alone(
    tmp_path_factory: pytest.TempPathFactory,
) -> dict[str, subprocess.CompletedProcess[str]]:
    """What became of each script, given an option that there is not."""
    home = tmp_path_factory.mktemp("home")

    def run(name: str) -> subprocess.CompletedProcess[str]:
        # `ray submit` copies the one file, and runs it from the home of the head's user.
        folder = home / name
        folder.mkdir()
        script = shutil.copy(ROOT / "pipelines" / f"{name}.py", folder)
        return subprocess.run(
            [sys.executable, script, "--no_such_option", "1"], cwd=folder, capture_output=True,
            text=True, timeout=120, check=False,
        )  # fmt: skip

    with ThreadPoolExecutor(os.cpu_count()) as executor:
        return dict(zip(ENTRY_POINTS, executor.map(run, ENTRY_POINTS), strict=True))


@pytest.mark.parametrize("name", ENTRY_POINTS)
def test_a_script_runs_alone_where_the_package_is_installed(name: str, alone):
    done = alone[name]
    assert done.returncode == 2
    assert "no_such_option" in done.stderr and "Traceback" not in done.stderr


def check(value: dict[str, Any], fields: dict[str, type], path: str) -> None:
    unknown = value.keys() - fields.keys()
    assert not unknown, f"{path} has no field {sorted(unknown)}"
    for name, kind in fields.items():
        assert type(value.get(name)) is kind, f"{path}.{name} must be a {kind.__name__}"


def test_the_ray_job_has_kuberays_fields(documents: dict[str, dict[str, Any]]):
    job = documents["RayJob"]
    assert job["apiVersion"] == "ray.io/v1"
    spec = job["spec"]
    check(spec, RAY_JOB, "spec")
    cluster = spec["rayClusterSpec"]
    check(cluster, RAY_CLUSTER, "rayClusterSpec")
    check(cluster["headGroupSpec"], HEAD_GROUP, "headGroupSpec")
    [workers] = cluster["workerGroupSpecs"]
    check(workers, WORKER_GROUP, "workerGroupSpecs[0]")
    assert workers["minReplicas"] <= workers["replicas"] <= workers["maxReplicas"]
    assert spec["submissionMode"] in ("K8sJobMode", "HTTPMode", "SidecarMode", "InteractiveMode")
    assert spec["shutdownAfterJobFinishes"] and spec["backoffLimit"] == 0
    assert cluster["authOptions"] == {"mode": "token"}
    assert cluster["rayVersion"] == locked("ray")
    # All of these are strings, or the operator refuses them.
    for group in (cluster["headGroupSpec"], workers):
        assert all(isinstance(value, str) for value in group["rayStartParams"].values())


def test_the_ray_job_trains_with_options_that_exist(documents: dict[str, dict[str, Any]]):
    python, script, *words = shlex.split(documents["RayJob"]["spec"]["entrypoint"])
    assert (python, script) == ("python", "pipelines/mtl.py") and (ROOT / script).exists()
    assert "mtl" in COMMANDS
    config = parse(TrainConfig, words, prog="mtl")
    [workers] = documents["RayJob"]["spec"]["rayClusterSpec"]["workerGroupSpecs"]
    assert config.cluster.num_workers == workers["replicas"]
    assert (
        workers["template"]["spec"]["containers"][0]["resources"]["limits"]["nvidia.com/gpu"] == "1"
    )


def pods(documents: dict[str, dict[str, Any]]) -> list[dict[str, Any]]:
    cluster = documents["RayJob"]["spec"]["rayClusterSpec"]
    groups = [
        cluster["headGroupSpec"],
        *cluster["workerGroupSpecs"],
        documents["Deployment"]["spec"],
    ]
    return [group["template"]["spec"] for group in groups]


def test_pods_are_whole(documents: dict[str, dict[str, Any]]):
    for pod in pods(documents):
        volumes = {volume["name"] for volume in pod["volumes"]}
        assert pod["securityContext"]["runAsNonRoot"]
        for container in pod["containers"]:
            assert {mount["name"] for mount in container["volumeMounts"]} <= volumes
            assert container["image"] == pods(documents)[0]["containers"][0]["image"]
            assert not container["securityContext"]["allowPrivilegeEscalation"]
            # Quantities and values of variables are strings.
            assert all(type(v.get("value", "")) is str for v in container["env"])
            for amounts in container["resources"].values():
                assert all(re.fullmatch(r"\d+(m|Mi|Gi)?", amount) for amount in amounts.values())


def test_the_runs_of_kubernetes_reach_mlflow(documents: dict[str, dict[str, Any]]):
    service, claim = documents["Service"], documents["PersistentVolumeClaim"]
    address = f"http://{service['metadata']['name']}:{service['spec']['ports'][0]['port']}"
    head, worker, server = pods(documents)
    for pod in (head, worker):
        env = {variable["name"]: variable.get("value") for variable in pod["containers"][0]["env"]}
        assert env["MLFLOW_TRACKING_URI"] == address and "MLFLOW_TRACKING_TOKEN" in env
    labels = documents["Deployment"]["spec"]["template"]["metadata"]["labels"]
    assert service["spec"]["selector"].items() <= labels.items()
    command = server["containers"][0]["command"]
    assert address.removeprefix("http://") in command[command.index("--allowed-hosts") + 1].split(
        ","
    )
    claims = {
        volume["persistentVolumeClaim"]["claimName"]
        for pod in (head, worker, server)
        for volume in pod["volumes"]
        if "persistentVolumeClaim" in volume
    }
    assert claims == {claim["metadata"]["name"]}


def test_the_image_is_made_from_the_lock_and_small():
    image = (ROOT / "clusters" / "Dockerfile").read_text()
    assert "uv pip sync --quiet --require-hashes --compile-bytecode requirements.lock" in image
    ignored = (ROOT / ".dockerignore").read_text().splitlines()
    assert "*" in ignored
    kept = {line[1:] for line in ignored if line.startswith("!")}
    assert all((ROOT / name).exists() for name in kept)
    assert {"bsrnn_core", "data_prep", "pipelines", "requirements.lock", "pyproject.toml"} <= kept
