"""What holds for every text file that is kept: code, documents, settings, the lock."""

import re
from pathlib import Path

ROOT = Path(__file__).parents[1]
KEPT_FOLDERS = (
    *("bsrnn_core", "data_prep", "pipelines", "tests", "benchmarks", "clusters", "docs"),
    *(".ci", ".github"),
)
KEPT_ENDINGS = {".py", ".md", ".toml", ".yaml", ".yml", ".lock", ".sh", ".txt", ""}


def kept_files() -> list[Path]:
    """Text files at the root and in the project's own folders, without this one."""
    paths = [path for path in ROOT.iterdir() if path.is_file()]
    for folder in KEPT_FOLDERS:
        paths += [path for path in (ROOT / folder).rglob("*") if path.is_file()]
    return [
        p for p in paths if p.suffix in KEPT_ENDINGS and p != Path(__file__) and p.name != ".git"
    ]


def files_matching(pattern: str) -> list[str]:
    expression = re.compile(pattern)
    return [
        path.relative_to(ROOT).as_posix()
        for path in kept_files()
        if expression.search(path.read_text(encoding="utf-8", errors="ignore"))
    ]


def test_the_kept_files_are_found():
    names = {path.name for path in kept_files()}
    assert {"pyproject.toml", "Makefile", "requirements.lock", "model.py", "run"} <= names


def test_nothing_is_left_to_do():
    assert files_matching(r"\b(TODO|FIXME|XXX)\b") == []


def test_nothing_is_called_utils():
    assert [
        p.name for p in kept_files() if re.fullmatch(r"(utils?|helpers?|misc)\.py", p.name)
    ] == []


def test_no_file_says_where_packages_come_from():
    """Names, versions and hashes are locked, addresses are not: a mirror must do as well."""
    hosts = r"pypi\.org|pythonhosted\.org|download\.pytorch\.org|--(extra-)?index-url|--find-links"
    assert files_matching(hosts) == []
    assert not (ROOT / "uv.lock").exists()


def test_every_locked_package_has_a_hash():
    lock = (ROOT / "requirements.lock").read_text()
    pins = re.findall(r"^[A-Za-z0-9].*?(?=^[A-Za-z0-9]|\Z)", lock, re.M | re.S)
    assert len(pins) > 100
    assert [pin.split()[0] for pin in pins if "--hash=sha256:" not in pin] == []
