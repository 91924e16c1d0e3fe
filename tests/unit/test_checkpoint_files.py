"""L1: a checkpoint's files are those that were made."""

from __future__ import annotations

import errno
import os
import struct
import subprocess
from pathlib import Path

import pytest

from pytest_vmss.checkpoints import CheckpointFiles, Seals, with_backing_files
from pytest_vmss.errors import CheckpointError, HostError
from pytest_vmss.hypervisor import disks


@pytest.fixture
def chain(tmp_path: Path) -> list[Path]:
    """A frozen disk on another, on an image."""
    folders = [tmp_path / name for name in ("own.2", "own.1", "images")]
    for folder in folders:
        folder.mkdir()
    top, middle, image = (folder / "0-os.qcow2" for folder in folders)
    disks.create_data_disk(image, 1)
    disks.create_layer(middle, image)
    disks.create_layer(top, middle)
    return [top, middle, image]


def test_a_disk_is_known_with_all_on_which_it_is_based(chain: list[Path]) -> None:
    assert with_backing_files(chain[0]) == chain
    seals = Seals.of(chain[0].parent, chain)
    assert seals.below() == chain[1:]
    seals.check(*chain)


@pytest.mark.parametrize("which", [0, 1, 2])
@pytest.mark.parametrize("at", [0, 8, 0x10000, 0x30000], ids=["magic", "backing", "counts", "map"])
def test_damage_that_leaves_a_disk_as_long_as_it_was_is_found(
    chain: list[Path], which: int, at: int
) -> None:
    """Of the disks, and of those on which they are based."""
    write = ["qemu-io", "-f", "qcow2", "-c", "write 0 64k"]
    subprocess.run([*write, chain[which]], check=True, stdout=subprocess.DEVNULL)
    seals = Seals.of(chain[0].parent, chain)
    with chain[which].open("r+b") as disk:
        disk.seek(at)
        disk.write(b"\xff" * 8)
    with pytest.raises(CheckpointError, match=r"is damaged: it begins otherwise"):
        seals.check(*chain)


def test_what_is_missing_cut_off_or_unknown_is_told(chain: list[Path]) -> None:
    seals = Seals.of(chain[0].parent, chain[:2])
    with pytest.raises(CheckpointError, match=r"images/0-os.qcow2 was .* is not known"):
        seals.check(chain[2])
    os.truncate(chain[1], 100)
    with pytest.raises(CheckpointError, match="has 100 bytes, not 1966"):
        seals.check(*chain)
    chain[2].unlink()
    unknown = Seals(chain[0].parent, known=False)
    unknown.check(*chain[:2])
    with pytest.raises(CheckpointError, match="is not there"):
        unknown.check(chain[2])
    chain[1].unlink()
    with pytest.raises(
        HostError, match=r"what .*own.2/0-os.qcow2 is based on cannot be read: .*; bring the"
    ):
        with_backing_files(chain[0])


def test_a_file_that_cannot_be_read_is_the_hosts_trouble(
    chain: list[Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Q1: it is no verdict, and in words."""
    seals = Seals.of(chain[0].parent, chain)

    def refuse(*_: object, **__: object) -> None:
        raise OSError(errno.EIO, "Input/output error")

    monkeypatch.setattr(Path, "open", refuse)
    told = "0-os.qcow2 of a checkpoint cannot be read: Input/output error"
    with pytest.raises(HostError, match=told):
        seals.check(*chain)
    with pytest.raises(HostError, match=told):
        Seals.of(chain[0].parent, chain)


@pytest.mark.parametrize("made_by_link", [False, True])
def test_a_lab_is_the_same_by_whatever_path_it_is_opened(
    chain: list[Path], tmp_path: Path, made_by_link: bool
) -> None:
    """Q1: a state directory may be a link, and its target be named the next time."""
    link = tmp_path / "link"
    link.symlink_to(tmp_path)
    by_link = link / "own.2"
    folders = (by_link, chain[0].parent)
    first, then = folders if made_by_link else folders[::-1]
    made = Seals.of(first, with_backing_files(first / "0-os.qcow2"))
    seals = Seals(then, made.sizes, made.heads)
    assert seals.below() == chain[1:]
    seals.check(*seals.below(), then / "0-os.qcow2")


@pytest.mark.parametrize(
    ("name", "at", "length"),
    [(b"/a\0b", 104, 4), (b"", 104, 9), (b"/a", 2**64 - 1, 2), (b"a" * 1024, 104, 1024)],
    ids=["NUL", "cut off", "far away", "long"],
)
def test_a_header_that_names_no_file_is_damaged(
    tmp_path: Path, name: bytes, at: int, length: int
) -> None:
    """Q1: it is told in words, and never taken for a disk that is based on nothing."""
    disk = tmp_path / "0-os.qcow2"
    header = struct.pack(">4sIQIIQIIQ", b"QFI\xfb", 3, at, length, 16, 2**20, 0, 1, 4096)
    disk.write_bytes(header.ljust(104, b"\0") + name)
    with pytest.raises(HostError, match="its header is damaged"):
        with_backing_files(disk)


def test_a_manifest_that_cannot_be_read_now_is_not_told_as_damaged(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Q1: what has no descriptor left says nothing about the file."""
    files = CheckpointFiles(tmp_path / "key")
    with pytest.raises(CheckpointError, match="has no manifest, or a damaged one"):
        files.read()
    files.manifest.mkdir(parents=True)
    with pytest.raises(CheckpointError, match="has no manifest, or a damaged one"):
        files.read()

    def refuse(*_: object) -> int:
        raise OSError(errno.EMFILE, "Too many open files")

    monkeypatch.setattr("pytest_vmss.untrusted.os.open", refuse)
    with pytest.raises(HostError, match=r"checkpoint.json .* cannot be read: Too many open files"):
        files.read()
