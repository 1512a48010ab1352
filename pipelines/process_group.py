"""How the workers of a training on one machine find each other: through a file.

torch's own store listens on all network interfaces, whatever address it is given, and lets
everybody in. On a cluster it has to be reached from other machines; here it has not.
"""

import os
import socket
import tempfile
import uuid
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import ray
from ray.train.backend import BackendConfig
from ray.train.torch import TorchConfig
from ray.train.torch import config as rays

from pipelines.sigterm import NotingBackend, SigtermNoted

LOOPBACK = "127.0.0.1"


def loopback_interface() -> str:
    """The name of the network interface that leads to this machine only."""
    return next(name for _, name in socket.if_nameindex() if name.startswith("lo"))


def torch_config() -> TorchConfig:
    """Those of a cluster, or of one machine where Ray keeps to it; workers note SIGTERM."""
    if ray.util.get_node_ip_address() != LOOPBACK:
        return SigtermNoted()
    return OneMachineConfig()


@dataclass
class OneMachineConfig(TorchConfig):
    """Settings of a process group that uses no network but the loopback interface."""

    @property
    def backend_cls(self) -> Any:
        """What starts and ends the process group."""
        return _OneMachineBackend


class _OneMachineBackend(NotingBackend):
    store: Path | None = None
    """The file that the workers find each other through."""

    def on_start(self, worker_group: Any, backend_config: TorchConfig) -> None:
        """Connect the workers: nccl where they have a GPU each, else gloo."""
        gpus = worker_group.get_resources_per_worker().get("GPU", 0)
        # A new one for every start: what workers that were killed have left must not be read.
        self._forget()
        self.store = Path(tempfile.gettempdir()) / f"bsrnn-{uuid.uuid4().hex}"
        worker_group.execute(rays._set_torch_distributed_env_vars)
        setups = [
            worker_group.execute_single_async(
                rank,
                _join,
                backend="nccl" if gpus else "gloo",
                world_rank=rank,
                world_size=len(worker_group),
                init_method=self.store.as_uri(),
                timeout_s=backend_config.timeout_s,
            )
            for rank in range(len(worker_group))
        ]
        ray.get(setups)

    def on_shutdown(self, worker_group: Any, backend_config: BackendConfig) -> None:
        """End the process group."""
        super().on_shutdown(worker_group, backend_config)
        self._forget()

    def _forget(self) -> None:
        if self.store:
            self.store.unlink(missing_ok=True)


def _join(**process_group: Any) -> None:
    # Where the host's name stands for an address of its network, gloo would listen there.
    for library in ("GLOO", "NCCL"):
        os.environ.setdefault(f"{library}_SOCKET_IFNAME", loopback_interface())
    rays._setup_torch_process_group(**process_group)
