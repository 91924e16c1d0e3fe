"""M3: files are there whole and durable, or not at all."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from pytest_vmss.host.files import write_durably


@pytest.mark.parametrize("replace", [True, False])
def test_content_name_and_folder_are_synchronised_in_this_order(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, replace: bool
) -> None:
    target, order = tmp_path / "file", list[str]()
    fsync = os.fsync

    def noted(descriptor: int) -> None:
        path = Path(f"/proc/self/fd/{descriptor}").readlink()
        there = "there" if target.exists() else "not there"
        order.append(f"{'folder' if path == tmp_path else 'file'}, {there}")
        fsync(descriptor)

    monkeypatch.setattr(os, "fsync", noted)
    write_durably(target, b"all of it", replace=replace)
    assert order == ["file, not there", "folder, there"]
    assert target.read_bytes() == b"all of it"
    assert [path.name for path in tmp_path.iterdir()] == ["file"]


@pytest.mark.parametrize("moment", [1, 2])
def test_nothing_is_left_of_an_attempt_that_fails(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, moment: int
) -> None:
    """Q1: nor of the older file's content, where it is not replaced."""
    target, calls = tmp_path / "file", list[int]()
    write_durably(target, b"old")

    def refuse(descriptor: int) -> None:
        calls.append(descriptor)
        if len(calls) == moment:
            raise OSError(5, "Input/output error")

    monkeypatch.setattr(os, "fsync", refuse)
    with pytest.raises(OSError, match="Input/output"):
        write_durably(target, b"new")
    assert [path.name for path in tmp_path.iterdir()] == ["file"]
    assert target.read_bytes() in ((b"old", b"new") if moment == 2 else (b"old",))


def test_an_older_file_stays_where_it_may_not_be_replaced(tmp_path: Path) -> None:
    write_durably(tmp_path / "file", b"old")
    with pytest.raises(FileExistsError):
        write_durably(tmp_path / "file", b"new", replace=False)
    assert (tmp_path / "file").read_bytes() == b"old"
    assert len(list(tmp_path.iterdir())) == 1
