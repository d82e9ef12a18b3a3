"""Files written whole or not at all, and the directories that are made for them."""

from __future__ import annotations

import os
import sys
from pathlib import Path

import pytest

from ouro_edge.system.files import atomic_write, parent_directories

MODES = pytest.mark.skipif(sys.platform == "win32", reason="no modes")


def names(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


def test_readers_see_the_old_content_until_the_block_ends(tmp_path: Path) -> None:
    path = tmp_path / "a"
    path.write_bytes(b"old")
    with atomic_write(path) as file:
        file.write(b"new")
        file.flush()
        assert path.read_bytes() == b"old"
        assert Path(file.name).parent == tmp_path and Path(file.name).read_bytes() == b"new"
    assert path.read_bytes() == b"new" and names(tmp_path) == ["a"]


@pytest.mark.parametrize("problem", [OSError, ValueError, KeyboardInterrupt, SystemExit, GeneratorExit])
def test_any_failure_keeps_the_old_content_and_nothing_else(tmp_path: Path, problem: type[BaseException]) -> None:
    path = tmp_path / "a"
    path.write_bytes(b"old")
    with pytest.raises(problem), atomic_write(path) as file:
        file.write(b"new")
        raise problem
    assert path.read_bytes() == b"old" and names(tmp_path) == ["a"]


def test_a_failing_rename_leaves_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Windows refuses to replace a file that is open elsewhere."""

    def refuse(old: Path, new: Path) -> None:
        raise PermissionError(13, "Access is denied")

    monkeypatch.setattr(os, "replace", refuse)
    with pytest.raises(PermissionError), atomic_write(tmp_path / "a") as file:
        file.write(b"new")
    assert names(tmp_path) == []


def test_the_file_is_closed_before_the_rename(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    real, closed = os.replace, []
    with atomic_write(tmp_path / "a") as file:
        monkeypatch.setattr(os, "replace", lambda old, new: (closed.append(file.closed), real(old, new)))
    assert closed == [True]


@pytest.mark.parametrize(("options", "synced"), [({}, 1), ({"sync": False}, 0)])
def test_the_disk_has_the_content_before_the_rename(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, options: dict[str, bool], synced: int
) -> None:
    seen: list[int] = []
    monkeypatch.setattr(os, "fsync", lambda handle: seen.append(os.fstat(handle).st_size))
    with atomic_write(tmp_path / "a", **options) as file:
        file.write(b"new")
    assert seen == [3] * synced


@MODES
@pytest.mark.parametrize(("private", "mode"), [(True, 0o600), (False, 0o640)])
def test_who_may_read_it(tmp_path: Path, private: bool, mode: int) -> None:
    before = os.umask(0o027)
    try:
        with atomic_write(tmp_path / "a", private=private) as file:
            assert Path(file.name).stat().st_mode & 0o777 == mode
    finally:
        os.umask(before)
    assert (tmp_path / "a").stat().st_mode & 0o777 == mode


def test_a_name_as_long_as_a_file_system_takes(tmp_path: Path) -> None:
    with atomic_write(tmp_path / ("ä" * 127)) as file:
        file.write(b"new")
    assert names(tmp_path) == ["ä" * 127]


def test_parents_that_are_missing_are_made_and_empty_ones_removed(tmp_path: Path) -> None:
    path = tmp_path / "a" / "b" / "c"
    with pytest.raises(KeyError), parent_directories(path):
        assert path.parent.is_dir()
        raise KeyError
    assert names(tmp_path) == []
    with parent_directories(path):
        path.write_bytes(b"")
    assert path.is_file()


def test_parents_that_were_there_stay(tmp_path: Path) -> None:
    (tmp_path / "a").mkdir()
    with pytest.raises(KeyError), parent_directories(tmp_path / "a" / "b" / "c"):
        raise KeyError
    assert names(tmp_path) == ["a"] and names(tmp_path / "a") == []
