"""A Ray cluster on hosts made of namespaces, by the files that a person would use."""

import json
import os
import shlex
import shutil
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import yaml

from tests.cluster.hosts import Host, Hosts

ROOT = Path(__file__).parents[2]
SYSTEM_PATH = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"
WORKERS = 2
PATIENCE_SECONDS = 300
MLFLOW_PORT = 5000
TINY = (
    "--sample_rate 8000 --n_fft 256 --feature_dim 4 --num_blstm_layers 1 --mlp_dim 8 "
    "--band_schema generic --num_bands 6 --chunk_size_in_seconds 0.5 --crop_seconds 0.4 "
    "--batch_size 2 --log_every_steps 1 --threads_per_worker 1 --num_workers 2"
)
"""Options of a training that is over in seconds, with a worker on each host but the head."""

READ_RUN = """
import json, sys
from mlflow import MlflowClient
client = MlflowClient()
[run] = [
    run for each in client.search_experiments() for run in client.search_runs([each.experiment_id])
    if run.info.run_name == sys.argv[1]
]
curves = {key: [(p.step, p.value) for p in client.get_metric_history(run.info.run_id, key)]
          for key in run.data.metrics}
files = [file.path for file in client.list_artifacts(run.info.run_id)]
print(json.dumps({"status": run.info.status, "curves": curves, "files": files}))
"""


def find_uv() -> Path:
    """The uv that `make setup` uses."""
    named = [ROOT / "build" / "uv" / "bin" / "uv", Path.home() / ".local" / "bin" / "uv"]
    there = [*filter(None, [shutil.which("uv")]), *map(str, named)]
    for file in there:
        # A version manager's shim does not count.
        works = Path(file).exists() and subprocess.run([file, "--version"], capture_output=True)
        if works and works.returncode == 0:
            return Path(file)
    raise FileNotFoundError("uv; run make setup")


def wait_until(happened: Callable[[], Any], seconds: float = PATIENCE_SECONDS) -> float:
    """Seconds that it took."""
    began = time.monotonic()
    while not happened():
        assert time.monotonic() - began < seconds
        time.sleep(0.2)
    return time.monotonic() - began


class Cluster:
    """A launcher (somebody's laptop), a head and workers; and a folder that all of them see."""

    def __init__(self, hosts: Hosts) -> None:
        self.hosts = hosts
        self.shared = hosts.folder / "shared"
        (self.shared / "bin").mkdir(parents=True)
        uv = find_uv()
        shutil.copy(uv, self.shared / "bin" / "uv")
        cache = subprocess.run([uv, "cache", "dir"], check=True, capture_output=True, text=True)
        profile = {name: value for name, value in os.environ.items() if name.startswith("UV_")} | {
            "PATH": f"{self.shared}/bin:{sys.base_prefix}/bin:{SYSTEM_PATH}",
            "BSRNN_PYTHON": f"{sys.base_prefix}/bin/python{sys.version_info.major}",
            # Nothing is there to download from: what is needed, `make setup` has put in the cache.
            "UV_CACHE_DIR": cache.stdout.strip(),
            "UV_OFFLINE": "1",
        }
        self.launcher = hosts.add("laptop", {"PATH": f"{ROOT}/.venv/bin:{SYSTEM_PATH}"})
        # One worker of a training fits on a host, and none on the head.
        self.head = hosts.add("head", {**profile, "RAY_OVERRIDE_RESOURCES": '{"CPU": 0}'})
        self.workers = [
            hosts.add(f"worker{number}", {**profile, "RAY_OVERRIDE_RESOURCES": '{"CPU": 1}'})
            for number in range(1, WORKERS + 1)
        ]
        self.file = self.launcher.home / "cluster.yaml"
        self._write_file()

    @property
    def nodes(self) -> list[Host]:
        """The head and the workers."""
        return [self.head, *self.workers]

    def start_hosts(self) -> None:
        """Switch everything on, as machines are before anybody has installed a thing."""
        # Ray keeps what it knows of a cluster there.
        with (self.launcher.home / ".profile").open("a") as profile:
            profile.write(f"export RAY_TMPDIR={self.launcher.home}/tmp RAY_USAGE_STATS_ENABLED=0\n")
        # The repository may be in /tmp.
        self.launcher.start(own_tmp=False)
        self.launcher.run("(umask 077; ray get-auth-token --generate > /dev/null)")
        for host in self.nodes:
            host.start()
            host.start_sshd()

    def up(self) -> str:
        """Run `ray up`, and wait for the workers; returns what it prints."""
        printed = self.ray(f"up -y --no-config-cache {self.file}").stdout
        wait_until(lambda: self.cpus() == WORKERS)
        return printed

    def cpus(self) -> float:
        """Logical CPUs of the nodes that are in."""
        status = self.head.run("source ~/.bashrc; ray status", check=False).stdout
        found = [
            line.split("/")[1].split()[0] for line in status.splitlines() if line.endswith(" CPU")
        ]
        return float(found[0]) if found else 0.0

    def ray(self, words: str, *, check: bool = True, timeout: float = 600) -> Any:
        """Run a command of Ray at the launcher."""
        return self.launcher.run(f"cd {ROOT} && ray {words}", check=check, timeout=timeout)

    def submit(self, script: str, words: str) -> subprocess.CompletedProcess[str]:
        """Run one of pipelines/ as `ray submit` does."""
        return self.ray(f"submit {self.file} pipelines/{script}.py -- {words}", check=False)

    def submit_in_background(self, script: str, words: str) -> tuple[subprocess.Popen[bytes], Path]:
        """The same without waiting: the process and the file of its output."""
        output = self.launcher.home / f"{script}-{time.monotonic_ns()}.log"
        command = f"cd {ROOT} && ray submit {self.file} pipelines/{script}.py -- {words}"
        return self.launcher.popen(command, output), output

    def mlflow_run(self, name: str) -> dict[str, Any]:
        """Status, curves and artifacts of a run, as the server at the head gives them."""
        script = f"source ~/.bashrc; python -c {shlex.quote(READ_RUN)} {name} 2>/dev/null"
        return json.loads(self.head.run(script).stdout.splitlines()[-1])

    def tunnel(self, port: int, host: str) -> subprocess.Popen[bytes]:
        """Lead a port of the launcher's loopback to one that the head reaches at ``host``."""
        options = "-o StrictHostKeyChecking=no -o UserKnownHostsFile=/dev/null"
        process = self.launcher.popen(
            f"exec ssh -N {options} -i {self.hosts.key} -L {port}:{host}:{port} "
            f"root@{self.head.address}",
            self.launcher.home / "tunnel.log",
        )
        wait_until(lambda: f"127.0.0.1:{port}" in self.launcher.run("ss -ltn").stdout)
        return process

    def processes(self, word: str) -> dict[str, list[str]]:
        """By the node's name: the command lines that contain a word; only of nodes with some."""
        found = {
            node.name: [line for line in node.processes() if word in line] for node in self.nodes
        }
        return {name: lines for name, lines in found.items() if lines}

    @property
    def mlflow_address(self) -> str:
        """Of the server, for programs on the hosts."""
        return f"http://{self.head.address}:{MLFLOW_PORT}"

    def _write_file(self) -> None:
        config = yaml.safe_load((ROOT / "clusters" / "local.yaml").read_text())
        config["cluster_name"] = "bsrnn-hosts"
        config["provider"]["head_ip"] = self.head.address
        config["provider"]["worker_ips"] = [worker.address for worker in self.workers]
        config["auth"] = {"ssh_user": "root", "ssh_private_key": str(self.hosts.key)}
        config["min_workers"] = config["max_workers"] = WORKERS
        self.file.write_text(yaml.safe_dump(config, sort_keys=False))
