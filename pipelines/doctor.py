"""Show what this machine has for training and what it lacks.

    bsrnn doctor

Nothing is started and nothing is written. The exit code is 0 when training can start.
"""

import importlib
import os
import platform
import shutil
import socket
import subprocess
import sys
from dataclasses import dataclass
from importlib import metadata
from pathlib import Path
from typing import Literal

from rich.console import Console
from rich.table import Table
from rich.text import Text

from bsrnn_core.errors import BadInput

State = Literal["ok", "limited", "missing"]

STYLES: dict[State, str] = {"ok": "green", "limited": "yellow", "missing": "bold red"}
GIB = 2**30
LITTLE_DISK_GIB = 20
"""Below this a dataset of whole songs hardly fits."""
LITTLE_MEMORY_GIB = 4
"""Below this, Ray and one worker leave nothing to spare."""
SMALL_SHARED_MEMORY_GIB = 1


@dataclass(frozen=True, kw_only=True, slots=True)
class DoctorConfig:
    """Look at this machine: what is there for training, and what is missing."""

    out: str = "runs"
    """Folder that is to hold the runs, or s3://bucket/folder; its disk is looked at, or whether
    the bucket can be reached."""
    device: Literal["auto", "cpu", "cuda"] = "auto"
    """Device that is to train; cuda makes a usable GPU a condition."""


@dataclass(frozen=True, slots=True)
class Finding:
    """One line of the table."""

    subject: str
    state: State
    found: str
    advice: str = ""
    blocks: bool = False
    """Training cannot start like this."""


def run(config: DoctorConfig) -> int:
    """Print the table; returns 0 when training can start, 1 when it cannot."""
    findings = [
        check_python(),
        check_ffmpeg(),
        check_torch(),
        check_gpu(config.device),
        check_cores(),
        check_memory(),
        *places_of_runs(config.out),
        check_mlflow(),
        check_ray(),
        check_shared_memory(),
    ]
    console = Console()
    console.print(as_table(findings))
    in_the_way = [finding.subject for finding in findings if finding.blocks]
    if in_the_way:
        console.print(f"Training cannot start: {', '.join(in_the_way)}.")
        return 1
    console.print("Training can start.")
    return 0


def as_table(findings: list[Finding]) -> Table:
    """The findings, one a row."""
    table = Table("", "state", "found", "what to do")
    for finding in findings:
        state = Text(finding.state, style=STYLES[finding.state])
        table.add_row(finding.subject, state, Text(finding.found), Text(finding.advice))
    return table


def check_python() -> Finding:
    """The interpreter; one that is too old does not get as far as this."""
    return Finding("Python", "ok", f"{platform.python_version()}, {sys.executable}")


def check_ffmpeg() -> Finding:
    """The programs that .stem.mp4 files and museval's full metrics need; wav does without."""
    absent = [name for name in ("ffmpeg", "ffprobe") if shutil.which(name) is None]
    if absent:
        return Finding(
            "ffmpeg",
            "missing",
            f"no {' and no '.join(absent)} on the PATH",
            "install ffmpeg to read .stem.mp4 and for museval's full metrics",
        )
    return Finding("ffmpeg", "ok", str(shutil.which("ffmpeg")))


def check_torch() -> Finding:
    """PyTorch and torchaudio: whether they load together."""
    for name in ("torch", "torchaudio"):
        fault = _import_fault(name)
        if fault:
            return Finding("PyTorch", "missing", fault, "run make setup", blocks=True)
    import torch

    build = f"CUDA {torch.version.cuda}" if torch.version.cuda else "CPU only"
    found = f"torch {torch.__version__} ({build}), torchaudio {metadata.version('torchaudio')}"
    return Finding("PyTorch", "ok", found)


def check_gpu(device: str) -> Finding:
    """The GPU as PyTorch sees it, against what the driver says."""
    needed = device == "cuda"
    if _import_fault("torch"):
        return Finding("GPU", "missing", "PyTorch does not load", blocks=needed)
    import torch

    if torch.cuda.is_available():
        names = [torch.cuda.get_device_name(index) for index in range(torch.cuda.device_count())]
        return Finding("GPU", "ok", f"{len(names)} x {names[0]}, driver {driver_version()}")
    driver = driver_version()
    if driver is None:
        advice = "install NVIDIA's driver, or use --device cpu" if needed else ""
        return Finding("GPU", "missing", "none; training runs on the CPU", advice, blocks=needed)
    build = torch.version.cuda
    if build is None:
        found, advice = f"driver {driver}, but torch is built for the CPU", "run make setup"
    else:
        found = f"driver {driver} does not serve torch's CUDA {build}"
        advice = "update the driver, or use --device cpu"
    return Finding("GPU", "limited", found, advice, blocks=needed)


def driver_version() -> str | None:
    """NVIDIA's driver version, or None when there is no working driver."""
    command = ["nvidia-smi", "--query-gpu=driver_version", "--format=csv,noheader"]
    try:
        answer = subprocess.run(command, capture_output=True, text=True, timeout=20, check=True)
    except (OSError, subprocess.SubprocessError):
        return None
    return answer.stdout.strip().splitlines()[0] if answer.stdout.strip() else None


def check_cores() -> Finding:
    """The CPU cores that this process may use."""
    from pipelines.devices import cores

    if cores() < 2:
        return Finding("cores", "limited", "1", "training and decoding share it: expect half speed")
    return Finding("cores", "ok", str(cores()))


def check_memory() -> Finding:
    """Memory that can be had now, a container's limit included."""
    free = available_memory_bytes()
    if free is None:
        return Finding("memory", "limited", "this system does not tell")
    found = f"{free / GIB:.1f} GiB available"
    if free < LITTLE_MEMORY_GIB * GIB:
        return Finding("memory", "limited", found, "close programs, or train with one worker")
    return Finding("memory", "ok", found)


def available_memory_bytes(
    meminfo: Path = Path("/proc/meminfo"), cgroup: Path = Path("/sys/fs/cgroup")
) -> int | None:
    """What may still be allocated, in bytes; None where the system has no such files."""
    try:
        lines = meminfo.read_text().splitlines()
        free = next(int(line.split()[1]) * 1024 for line in lines if "MemAvailable" in line)
    except (OSError, StopIteration):
        return None
    try:
        limit = int((cgroup / "memory.max").read_text())
        return min(free, limit - int((cgroup / "memory.current").read_text()))
    except (OSError, ValueError):  # no limit reads as "max"
        return free


def places_of_runs(out: str) -> list[Finding]:
    """Where the runs go; of object storage, also the disk with this machine's copies."""
    from data_prep.storage import RemotePath, cache_folder, location

    try:
        place = location(out)
        if not isinstance(place, RemotePath):
            return [check_disk(place)]
        # Raises where there is no such bucket.
        place.mkdir()
        storage = Finding("storage", "ok", f"{place} can be reached")
    except BadInput as error:
        storage = Finding("storage", "missing", str(error), "see --out", blocks=True)
    return [storage, check_disk(cache_folder())]


def check_disk(folder: Path) -> Finding:
    """The disk that ``folder`` is or will be on, and whether it may be written."""
    place = folder.absolute()
    while not place.exists():
        place = place.parent
    free = shutil.disk_usage(place).free
    found = f"{free / GIB:.0f} GiB free under {place}"
    if not os.access(place, os.W_OK):
        return Finding("disk", "missing", f"{place} cannot be written", "choose --out", blocks=True)
    if free < GIB:
        return Finding("disk", "missing", found, "make room, or choose --out", blocks=True)
    if free < LITTLE_DISK_GIB * GIB:
        return Finding("disk", "limited", found, "MUSDB18-HQ takes 102 GB of shards")
    return Finding("disk", "ok", found)


def check_mlflow() -> Finding:
    """The place where runs are recorded."""
    fault = _import_fault("pipelines.tracking")
    if fault:
        return Finding("MLflow", "missing", fault, "run make setup", blocks=True)
    from pipelines.tracking import check_reachable, tracking_uri

    uri = tracking_uri()
    fault = check_reachable(uri)
    if fault:
        return Finding("MLflow", "missing", fault, "see MLFLOW_TRACKING_URI", blocks=True)
    return Finding("MLflow", "ok", f"mlflow {metadata.version('mlflow')}, {uri}")


def check_ray() -> Finding:
    """Ray: whether it loads and may open ports; it is not started."""
    fault = _import_fault("ray") or _import_fault("ray.train") or _import_fault("ray.data")
    if fault:
        return Finding("Ray", "missing", fault, "run make setup", blocks=True)
    try:
        with socket.socket() as listener:
            listener.bind(("127.0.0.1", 0))
            listener.listen(1)
    except OSError as error:
        fault = f"no port can be opened on 127.0.0.1: {error.strerror}"
        return Finding("Ray", "missing", fault, "allow loopback connections", blocks=True)
    address = os.environ.get("RAY_ADDRESS")
    cluster = f"RAY_ADDRESS is {address}" if address else "starts on this machine when needed"
    return Finding("Ray", "ok", f"ray {metadata.version('ray')}, {cluster}")


def check_shared_memory(folder: Path = Path("/dev/shm")) -> Finding:
    """The memory file system in which Ray keeps its objects."""
    if not folder.exists():
        return Finding("shared memory", "limited", f"no {folder}", "Ray will use the disk instead")
    free = shutil.disk_usage(folder).free
    found = f"{free / GIB:.1f} GiB free in {folder}"
    if free < SMALL_SHARED_MEMORY_GIB * GIB:
        advice = "Ray uses the disk instead; in a container, raise --shm-size"
        return Finding("shared memory", "limited", found, advice)
    return Finding("shared memory", "ok", found)


def _import_fault(module: str) -> str:
    """What keeps ``module`` from being imported, on one line; empty when nothing does."""
    try:
        importlib.import_module(module)
    except Exception as error:  # a broken installation may raise anything at import
        return f"{module}: {(str(error) or type(error).__name__).splitlines()[0]}"
    return ""


if __name__ == "__main__":
    from pipelines.cli import main

    sys.exit(main(["doctor", *sys.argv[1:]]))
