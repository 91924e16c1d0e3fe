"""L1: a checkpoint's files are those that were made."""

from __future__ import annotations

import errno
import os
import subprocess
from pathlib import Path

import pytest

from pytest_vmss.checkpoints import Seals, with_backing_files
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
    with pytest.raises(CheckpointError, match="bytes, not None"):
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
