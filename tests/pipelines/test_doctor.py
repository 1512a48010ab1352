"""The doctor: what it calls missing, what stops a training, and its exit codes."""

import socket
import subprocess
import sys
import types
from collections.abc import Callable
from pathlib import Path

import pytest

from pipelines import doctor
from pipelines.cli import main
from pipelines.doctor import GIB, DoctorConfig, Finding

CHECKS = [name for name in vars(doctor) if name.startswith("check_")]


def always(finding: Finding) -> Callable[..., Finding]:
    return lambda *_arguments: finding


@pytest.fixture
def healthy(monkeypatch: pytest.MonkeyPatch) -> None:
    """A machine on which every check finds what it looks for."""
    for name in CHECKS:
        monkeypatch.setattr(doctor, name, always(Finding(name, "ok", "all there")))


def fake_torch(monkeypatch: pytest.MonkeyPatch, *, cuda: str | None, gpus: int) -> None:
    """A torch that was built for ``cuda`` and sees ``gpus`` GPUs."""
    torch = types.ModuleType("torch")
    torch.__dict__["version"] = types.SimpleNamespace(cuda=cuda)
    torch.__dict__["cuda"] = types.SimpleNamespace(
        is_available=lambda: gpus > 0,
        device_count=lambda: gpus,
        get_device_name=lambda _index: "Big GPU",
    )
    monkeypatch.setitem(sys.modules, "torch", torch)


@pytest.mark.usefixtures("healthy")
def test_a_healthy_machine_exits_with_0(capsys: pytest.CaptureFixture[str]):
    assert main(["doctor"]) == 0
    shown = capsys.readouterr().out
    assert all(name in shown for name in CHECKS)
    assert "Training can start." in shown


@pytest.mark.usefixtures("healthy")
@pytest.mark.parametrize("name", CHECKS)
def test_only_what_blocks_changes_the_exit_code(name: str, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(doctor, name, always(Finding(name, "missing", "gone")))
    assert doctor.run(DoctorConfig()) == 0
    monkeypatch.setattr(doctor, name, always(Finding(name, "missing", "gone", blocks=True)))
    assert doctor.run(DoctorConfig()) == 1


def test_this_machine_is_described(capsys: pytest.CaptureFixture[str], tmp_path: Path):
    """Not replaced by anything: the real checks run, and name each thing once."""
    assert main(["doctor", "--out", str(tmp_path / "new" / "runs")]) in (0, 1)
    shown = capsys.readouterr().out
    for subject in ("ffmpeg", "PyTorch", "GPU", "cores", "memory", "disk", "MLflow", "Ray"):
        assert f" {subject} " in shown
    assert not (tmp_path / "new").exists()


def test_no_ffmpeg_is_shown_but_wav_trains_without(monkeypatch: pytest.MonkeyPatch, tmp_path: Path):
    monkeypatch.setenv("PATH", str(tmp_path))
    finding = doctor.check_ffmpeg()
    assert (finding.state, finding.blocks) == ("missing", False)
    assert "no ffmpeg and no ffprobe" in finding.found
    (tmp_path / "ffmpeg").touch(mode=0o755)
    assert doctor.check_ffmpeg().found.startswith("no ffprobe")


@pytest.mark.parametrize(
    ("cuda", "gpus", "driver", "device", "state", "blocks", "said"),
    [
        ("13.0", 2, "580.1", "cuda", "ok", False, "2 x Big GPU, driver 580.1"),
        ("13.0", 0, None, "auto", "missing", False, "CPU"),
        ("13.0", 0, None, "cuda", "missing", True, "CPU"),
        ("13.0", 0, "470.2", "auto", "limited", False, "470.2 does not serve torch's CUDA 13.0"),
        ("13.0", 0, "470.2", "cuda", "limited", True, "470.2 does not serve torch's CUDA 13.0"),
        (None, 0, "580.1", "auto", "limited", False, "built for the CPU"),
    ],
)
def test_gpu(monkeypatch, cuda, gpus, driver, device, state, blocks, said):
    fake_torch(monkeypatch, cuda=cuda, gpus=gpus)
    monkeypatch.setattr(doctor, "driver_version", lambda: driver)
    finding = doctor.check_gpu(device)
    assert (finding.state, finding.blocks) == (state, blocks)
    assert said in finding.found


@pytest.mark.parametrize(("printed", "version"), [("580.1\n580.1\n", "580.1"), ("", None)])
def test_driver_version(monkeypatch: pytest.MonkeyPatch, printed: str, version: str | None):
    answer = subprocess.CompletedProcess([], 0, stdout=printed)
    monkeypatch.setattr(subprocess, "run", lambda *_words, **_options: answer)
    assert doctor.driver_version() == version


def test_no_driver(monkeypatch: pytest.MonkeyPatch, tmp_path: Path):
    monkeypatch.setenv("PATH", str(tmp_path))
    assert doctor.driver_version() is None


@pytest.mark.parametrize(
    ("limit", "used", "expected"), [("max", "5", 8 * GIB), (str(3 * GIB), str(GIB), 2 * GIB)]
)
def test_memory_respects_a_containers_limit(tmp_path: Path, limit: str, used: str, expected: int):
    meminfo = tmp_path / "meminfo"
    meminfo.write_text(f"MemTotal: 1 kB\nMemAvailable: {8 * GIB // 1024} kB\n")
    (tmp_path / "memory.max").write_text(limit)
    (tmp_path / "memory.current").write_text(used)
    assert doctor.available_memory_bytes(meminfo, tmp_path) == expected
    assert doctor.available_memory_bytes(meminfo, tmp_path / "none") == 8 * GIB
    assert doctor.available_memory_bytes(tmp_path / "none", tmp_path) is None


@pytest.mark.parametrize(
    ("free_gib", "state", "blocks"),
    [(500, "ok", False), (5, "limited", False), (0.5, "missing", True)],
)
def test_disk(monkeypatch, tmp_path: Path, free_gib: float, state: str, blocks: bool):
    usage = types.SimpleNamespace(free=free_gib * GIB)
    monkeypatch.setattr(doctor.shutil, "disk_usage", lambda _place: usage)
    finding = doctor.check_disk(tmp_path / "not" / "yet")
    assert (finding.state, finding.blocks) == (state, blocks)
    assert str(tmp_path) in finding.found


def test_a_disk_that_cannot_be_written_blocks(monkeypatch: pytest.MonkeyPatch, tmp_path: Path):
    monkeypatch.setattr(doctor.os, "access", lambda _place, _mode: False)
    finding = doctor.check_disk(tmp_path)
    assert finding.blocks
    assert "cannot be written" in finding.found


def test_a_tracking_server_that_is_away_blocks(monkeypatch: pytest.MonkeyPatch):
    with socket.socket() as unused:
        unused.bind(("127.0.0.1", 0))
        monkeypatch.setenv("MLFLOW_TRACKING_URI", f"http://127.0.0.1:{unused.getsockname()[1]}")
        finding = doctor.check_mlflow()
    assert (finding.state, finding.blocks) == ("missing", True)
    assert "127.0.0.1" in finding.found


def test_mlflow_in_a_local_file_is_fine(monkeypatch: pytest.MonkeyPatch, tmp_path: Path):
    monkeypatch.setenv("MLFLOW_TRACKING_URI", f"sqlite:///{tmp_path}/mlflow.db")
    assert doctor.check_mlflow().state == "ok"
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("check", "module"), [("check_torch", "torchaudio"), ("check_ray", "ray.train")]
)
def test_a_library_that_does_not_load_blocks(
    monkeypatch: pytest.MonkeyPatch, check: str, module: str
):
    def load(name: str) -> None:
        if name == module:
            raise OSError("libsomething.so is not there\nand more")

    monkeypatch.setattr(doctor.importlib, "import_module", load)
    finding = getattr(doctor, check)()
    assert (finding.state, finding.blocks) == ("missing", True)
    assert finding.found == f"{module}: libsomething.so is not there"


def test_ray_needs_a_port(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(doctor.importlib, "import_module", lambda _name: None)

    def refuse(_listener: socket.socket, _address: object) -> None:
        raise OSError(1, "not permitted")

    monkeypatch.setattr(doctor.socket.socket, "bind", refuse, raising=False)
    finding = doctor.check_ray()
    assert finding.blocks
    assert "not permitted" in finding.found


def test_little_shared_memory_is_said(monkeypatch: pytest.MonkeyPatch, tmp_path: Path):
    usage = types.SimpleNamespace(free=GIB // 16)
    monkeypatch.setattr(doctor.shutil, "disk_usage", lambda _place: usage)
    assert doctor.check_shared_memory(tmp_path).state == "limited"
    assert doctor.check_shared_memory(tmp_path / "none").state == "limited"


def test_a_bucket_for_the_runs_is_looked_at(bucket: str):
    (storage, disk) = doctor.places_of_runs(f"{bucket}/runs")
    assert (storage.state, storage.blocks) == ("ok", False)
    assert disk.subject == "disk"
    (storage, _) = doctor.places_of_runs("s3://no-such-bucket-here/runs")
    assert (storage.state, storage.blocks) == ("missing", True)
    assert "there is no bucket no-such-bucket-here" in storage.found
