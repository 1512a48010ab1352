"""On a laptop: nothing listens where others could reach it; nobody gets in without the token."""

import contextlib
import dataclasses
import ipaddress
import os
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

from pipelines.config import TrainConfig
from pipelines.config_files import save_yaml

pytestmark = pytest.mark.proof

PATIENCE_SECONDS = 300
DRIVER = """
import sys
import ray
from pipelines.cli import main
from pipelines.launch import start_ray
start_ray(2, dashboard=True)
context = ray.get_runtime_context()
print(context.gcs_address, ray._private.worker._global_node.webui_url, flush=True)
code = main(sys.argv[1:])
print("trained", flush=True)
sys.stdin.readline()
sys.exit(code)
"""
"""A training of two workers, whose Ray stays until it is told to end."""


@dataclass(kw_only=True)
class Laptop:
    """A training with a Ray of its own that has ended, and that Ray, which has not."""

    gcs_address: str
    dashboard: str
    token_file: Path
    listening: set[tuple[str, str]]
    """(address, process) of all that has listened meanwhile."""


def descendants(root: int) -> set[int]:
    """The ids of a process and of all that it has started, down the line."""
    parents: dict[int, int] = {}
    for status in Path("/proc").glob("[0-9]*/stat"):
        with contextlib.suppress(OSError):
            # After the name, which may hold anything: the state, the parent's id, ...
            parents[int(status.parent.name)] = int(status.read_text().rpartition(")")[2].split()[1])
    family = {root}
    while more := {child for child, parent in parents.items() if parent in family} - family:
        family |= more
    return family


def listening(root: int) -> set[tuple[str, str]]:
    """(address, process) of what a process and its descendants listen on."""
    addresses: dict[str, str] = {}
    for table in ("tcp", "tcp6"):
        for line in Path("/proc/net", table).read_text().splitlines()[1:]:
            _, local, _, state, *_, inode = line.split()[:10]
            if state == "0A":  # LISTEN
                words = bytes.fromhex(local.partition(":")[0])
                # In the machine's own order of bytes, four by four.
                packed = b"".join(words[at : at + 4][::-1] for at in range(0, len(words), 4))
                addresses[f"socket:[{inode}]"] = str(ipaddress.ip_address(packed))
    found: set[tuple[str, str]] = set()
    for pid in descendants(root):
        with contextlib.suppress(OSError):
            name = Path("/proc", str(pid), "comm").read_text().strip()
            links = {os.readlink(file) for file in Path("/proc", str(pid), "fd").iterdir()}
            found |= {(addresses[link], name) for link in links & addresses.keys()}
    return found


def is_loopback(address: str) -> bool:
    """Whether only this machine reaches it; also for IPv4 addresses in IPv6's clothes."""
    parsed = ipaddress.ip_address(address)
    mapped = parsed.ipv4_mapped if isinstance(parsed, ipaddress.IPv6Address) else None
    return (mapped or parsed).is_loopback


@pytest.fixture(scope="module")
def laptop(
    tmp_path_factory: pytest.TempPathFactory, tiny_config: TrainConfig, tiny_shards: Path
) -> Iterator[Laptop]:
    home = tmp_path_factory.mktemp("home")
    cluster = dataclasses.replace(tiny_config.cluster, num_workers=2)
    config = dataclasses.replace(
        tiny_config, cluster=cluster, name="one", shards=str(tiny_shards), out=str(home / "runs")
    )
    save_yaml(config, home / "run.yaml")
    store = {"MLFLOW_TRACKING_URI": f"sqlite:///{home / 'mlflow.db'}"}
    left_out = ("RAY_AUTH_MODE", "RAY_AUTH_TOKEN", "RAY_AUTH_TOKEN_PATH", "RAY_ADDRESS")
    env = {name: value for name, value in os.environ.items() if name not in left_out}
    output = home / "output"
    with output.open("w") as stdout:
        driver = subprocess.Popen(
            [sys.executable, "-c", DRIVER, "mtl", "--config", str(home / "run.yaml")],
            stdin=subprocess.PIPE,
            stdout=stdout,
            env=env | store | {"HOME": str(home)},
            cwd=home,
        )
    assert driver.stdin
    try:
        seen: set[tuple[str, str]] = set()
        deadline = time.monotonic() + PATIENCE_SECONDS
        while "\ntrained\n" not in output.read_text():
            seen |= listening(driver.pid)
            assert driver.poll() is None and time.monotonic() < deadline
            time.sleep(0.1)
        gcs_address, dashboard = output.read_text().splitlines()[0].split()
        token_file = home / ".ray" / "auth_token"
        yield Laptop(
            gcs_address=gcs_address, dashboard=dashboard, token_file=token_file, listening=seen
        )
        driver.stdin.close()
        assert driver.wait(timeout=60) == 0
    finally:
        driver.kill()
        driver.wait()


def test_nothing_listens_on_a_routable_address(laptop: Laptop):
    names = {name for _, name in laptop.listening}
    assert "gcs_server" in names and "raylet" in names
    assert any(name.startswith("ray::RayTrainWo") for name in names)  # gloo, of the workers
    assert [seen for seen in laptop.listening if not is_loopback(seen[0])] == []


@pytest.mark.parametrize("address", ["0.0.0.0", "::", "192.0.2.1", "::ffff:192.0.2.1"])
def test_a_routable_address_would_be_seen(address: str):
    assert not is_loopback(address)


def test_the_token_is_for_its_owner_only(laptop: Laptop):
    assert laptop.token_file.stat().st_mode & 0o777 == 0o600


def test_the_dashboard_refuses_a_request_without_the_token(laptop: Laptop):
    url = f"http://{laptop.dashboard}/api/jobs/"
    with pytest.raises(urllib.error.HTTPError) as refusal:
        urllib.request.urlopen(url, timeout=30)
    assert refusal.value.code in (401, 403)
    bearer = {"Authorization": f"Bearer {laptop.token_file.read_text().strip()}"}
    with urllib.request.urlopen(urllib.request.Request(url, headers=bearer), timeout=30) as answer:
        assert answer.status == 200


@pytest.mark.parametrize("knows_it", [False, True])
def test_ray_refuses_a_program_without_the_token(laptop: Laptop, knows_it: bool, tmp_path: Path):
    ask = (
        "import sys; from ray._raylet import GcsClient; "
        "print(GcsClient(address=sys.argv[1]).internal_kv_keys(b'', None, timeout=30))"
    )
    env = os.environ | {"HOME": str(tmp_path), "RAY_AUTH_MODE": "token", "RAY_AUTH_TOKEN": "a" * 64}
    if knows_it:
        env["RAY_AUTH_TOKEN"] = laptop.token_file.read_text().strip()
    command = [sys.executable, "-c", ask, laptop.gcs_address]
    program = subprocess.run(command, env=env, capture_output=True, text=True, timeout=120)
    assert (program.returncode == 0) == knows_it
    assert knows_it or "AuthenticationError" in program.stderr
