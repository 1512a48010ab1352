import subprocess
import sys
from pathlib import Path

import pytest

from data_prep.atomic import AtomicPath, remove_stale


def test_file_appears_only_when_it_is_whole(tmp_path: Path) -> None:
    final = tmp_path / "new" / "file"
    with AtomicPath(final) as temporary:
        temporary.write_text("whole")
        assert not final.exists()
    assert final.read_text() == "whole"
    assert list(final.parent.iterdir()) == [final]


def test_an_error_leaves_the_old_file_and_nothing_else(tmp_path: Path) -> None:
    final = tmp_path / "file"
    final.write_text("old")
    with pytest.raises(RuntimeError), AtomicPath(final) as temporary:
        temporary.write_text("half")
        raise RuntimeError
    assert final.read_text() == "old"
    assert list(tmp_path.iterdir()) == [final]


def test_what_a_killed_process_left_is_removed_and_what_a_living_one_writes_is_not(
    tmp_path: Path,
) -> None:
    code = (
        "import os, sys, pathlib; from data_prep.atomic import AtomicPath\n"
        "with AtomicPath(pathlib.Path(sys.argv[1])) as temporary:\n"
        "    temporary.write_text('half'); os.kill(os.getpid(), 9)"
    )
    killed = subprocess.run([sys.executable, "-c", code, str(tmp_path / "sub" / "file")])
    assert killed.returncode == -9
    assert len(list((tmp_path / "sub").glob("file.tmp.*"))) == 1
    with AtomicPath(tmp_path / "other") as temporary:
        temporary.write_text("in the making")
        remove_stale(tmp_path)
        assert temporary.exists()
    assert list((tmp_path / "sub").iterdir()) == []
