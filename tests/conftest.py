"""What tests of several packages share: one Ray, and small songs on disk."""

import logging
import shutil
import subprocess
import uuid
import zlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import pytest
import soundfile

from bsrnn_core.config import STEMS

if TYPE_CHECKING:
    from selenium.webdriver import Chrome

BROWSER_FLAGS = (
    *("--headless", "--no-sandbox", "--disable-gpu", "--disable-dev-shm-usage"),
    *("--disable-quic", "--no-first-run", "--disable-background-networking"),
    *("--disable-component-update", "--disable-sync", "--no-proxy-server"),
    # A page must show without the internet too.
    "--host-resolver-rules=MAP * ~NOTFOUND, EXCLUDE 127.0.0.1",
    # Wide and high, because pages leave out the rows and columns that are out of sight.
    "--window-size=2400,3000",
)


@pytest.fixture(scope="session")
def object_store(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """The address of an S3 server on the loopback interface.

    The environment names it, with credentials and a cache folder, for all that starts after it.
    """
    from moto.server import ThreadedMotoServer

    # Every request would be a line on the terminal.
    logging.getLogger("werkzeug").setLevel(logging.ERROR)
    server = ThreadedMotoServer("127.0.0.1", 0, verbose=False)
    server.start()
    host, port = server.get_host_and_port()
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("AWS_ENDPOINT_URL", f"http://{host}:{port}")
        patch.setenv("AWS_ACCESS_KEY_ID", "tests")
        patch.setenv("AWS_SECRET_ACCESS_KEY", "tests")
        patch.setenv("AWS_DEFAULT_REGION", "us-east-1")
        # Nobody is to ask the address at which a cloud tells its machines who they are.
        patch.setenv("AWS_EC2_METADATA_DISABLED", "true")
        patch.setenv("BSRNN_CACHE", str(tmp_path_factory.mktemp("cache")))
        yield f"http://{host}:{port}"
    server.stop()


@pytest.fixture
def bucket(object_store: str) -> str:
    """The URI of a new bucket there."""
    from pyarrow.fs import FileSystem

    uri = f"s3://bucket-{uuid.uuid4().hex[:12]}"
    filesystem, name = FileSystem.from_uri(f"{uri}?allow_bucket_creation=true")
    filesystem.create_dir(name)
    return uri


@pytest.fixture(scope="session")
def ray_cluster(object_store: str) -> Iterator[str]:
    """The address of one local Ray with four logical CPUs, on the loopback interface only."""
    import ray

    ray.init(
        num_cpus=4,
        include_dashboard=False,
        log_to_driver=False,
        object_store_memory=500_000_000,
        _node_ip_address="127.0.0.1",
    )
    yield ray.get_runtime_context().gcs_address
    ray.shutdown()


@pytest.fixture(scope="module")
def browser(tmp_path_factory: pytest.TempPathFactory) -> Iterator["Chrome"]:
    """Chromium without a window, which reaches files and 127.0.0.1 only; skipped without it."""
    chromium, driver = shutil.which("chromium"), shutil.which("chromedriver")
    if chromium is None or driver is None:
        pytest.skip("chromium or chromedriver is missing: run make chromium")
    from selenium import webdriver

    options = webdriver.ChromeOptions()
    options.binary_location = chromium
    options.ignore_local_proxy_environment_variables()
    for flag in (*BROWSER_FLAGS, f"--user-data-dir={tmp_path_factory.mktemp('browser')}"):
        options.add_argument(flag)
    # A driver that is named is not looked for, nor downloaded.
    service = webdriver.ChromeService(executable_path=driver)
    chrome = webdriver.Chrome(options=options, service=service)
    yield chrome
    chrome.quit()


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Callable[[int], Path]]:
    """``small_disk(megabytes)`` mounts a file system of that size; skipped where one may not."""
    mounted: list[Path] = []

    def mount(megabytes: int) -> Path:
        folder = tmp_path / f"disk{len(mounted)}"
        folder.mkdir()
        options = ["-t", "tmpfs", "-o", f"size={megabytes}m", "tmpfs", str(folder)]
        try:
            subprocess.run(["mount", *options], check=True, capture_output=True)
        except (OSError, subprocess.CalledProcessError):
            pytest.skip("only root may mount a small file system")
        mounted.append(folder)
        return folder

    yield mount
    for folder in mounted:
        subprocess.run(["umount", "--lazy", str(folder)], check=True)


@pytest.fixture
def write_songs() -> Callable[..., Path]:
    """``write_songs(root, {"train": ["a", "b"]}, ...)`` writes a folder of multi-track songs.

    Every stem is noise whose level swells and ebbs, different for each song and stem.
    """

    def write(
        root: Path,
        names: Mapping[str, Sequence[str]],
        *,
        stems: Sequence[str] = STEMS,
        num_samples: int = 16000,
        sample_rate: int = 8000,
        channels: int = 2,
        ending: str = "wav",
        mixture: bool = False,
    ) -> Path:
        for split, songs in names.items():
            for song in songs:
                folder = root / split / song
                folder.mkdir(parents=True)
                total = np.zeros((num_samples, channels))
                for stem in stems:
                    random = np.random.default_rng(zlib.crc32(f"{song}/{stem}".encode()))
                    level = 0.05 * (1 + np.sin(np.linspace(random.uniform(0, 6), 20, num_samples)))
                    samples = level[:, None] * random.standard_normal((num_samples, channels))
                    total += samples
                    soundfile.write(folder / f"{stem}.{ending}", samples, sample_rate)
                if mixture:
                    soundfile.write(folder / f"mixture.{ending}", total, sample_rate)
        return root

    return write
