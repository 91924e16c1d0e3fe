"""Writes a root filesystem to a bootable disk, without root or loop devices.

The disk has a GPT with a BIOS boot partition (GRUB's core image), an EFI system partition and
an ext4 root partition. The same disk boots from BIOS and UEFI.
"""

from __future__ import annotations

import os
import re
import struct
from pathlib import Path

from pytest_vmss.errors import ImageError
from pytest_vmss.host.process import run

__all__ = ["ROOT_LABEL", "write_disk"]

ROOT_LABEL = "cloudimg-rootfs"

_SECTOR = 512
_MIB = 1024 * 1024
_BIOS_MIB = 1, 1  # start, length
_ESP_MIB = 2, 6
_ROOT_MIB = 8

_UUID = "7d1c0a5e-0000-4000-8000-{:012d}"
_HASH_SEED = _UUID.format(9)

_INODES = re.compile(r"^Inode count: +(\d+)$", re.MULTILINE)
_FREE_INODES = re.compile(r"^  Free inodes: (.*)$", re.MULTILINE)

_GRUB_MODULES = ("part_gpt", "ext2", "normal", "linux", "configfile", "search", "search_label",
                 "serial", "terminal", "echo", "test")  # fmt: skip

_GRUB_EARLY = f"""\
serial --unit=0 --speed=115200
terminal_input serial
terminal_output serial
search --no-floppy --label {ROOT_LABEL} --set=root
configfile /boot/grub/grub.cfg
"""


def write_disk(root: Path, out: Path, *, size_mib: int, timestamp: int, work: Path) -> None:
    """Writes an uncompressed qcow2 disk from a root filesystem.

    Args:
        root: The finished root filesystem, with ``/boot/grub/grub.cfg``.
        out: The qcow2 file to write.
        size_mib: Virtual size in MiB.
        timestamp: Time for every file on the disk, in seconds since 1970.
        work: Folder for temporary files.

    Raises:
        ToolError: A tool failed, e.g. because the files do not fit.
    """
    raw = work / "disk.raw"
    with raw.open("wb") as file:
        file.truncate(size_mib * _MIB)
    _partition(raw)
    _write_root(root, raw, size_mib=size_mib, timestamp=timestamp)
    early = work / "early.cfg"
    early.write_text(_GRUB_EARLY)
    _install_bios(raw, early, work)
    _install_efi(raw, early, work, timestamp)
    run(
        ["qemu-img", "convert", "-f", "raw", "-O", "qcow2", "-m", "1", raw, out],
        what="converting the disk to qcow2",
    )
    raw.unlink()


def _partition(raw: Path) -> None:
    table = f"""\
label: gpt
label-id: {_UUID.format(1)}
first-lba: 34
start={_BIOS_MIB[0]}MiB, size={_BIOS_MIB[1]}MiB, type=21686148-6449-6E6F-744E-656564454649, uuid={_UUID.format(2)}
start={_ESP_MIB[0]}MiB, size={_ESP_MIB[1]}MiB, type=C12A7328-F81F-11D2-BA4B-00A0C93EC93B, uuid={_UUID.format(3)}
start={_ROOT_MIB}MiB, type=4F68BCE3-E8CD-4DB1-96E7-FBCAF984B709, uuid={_UUID.format(4)}
"""
    run(["sfdisk", "--quiet", raw], what="partitioning the disk", stdin=table.encode())


def _write_root(root: Path, raw: Path, *, size_mib: int, timestamp: int) -> None:
    blocks = (size_mib - _ROOT_MIB - 1) * 256  # of 4 KiB; the last MiB holds the backup GPT
    run(
        [
            "mke2fs", "-q", "-F", "-t", "ext4", "-b", "4096", "-L", ROOT_LABEL,
            "-U", _UUID.format(5), "-m", "0", "-O", "^metadata_csum_seed",
            "-E", f"offset={_ROOT_MIB * _MIB},hash_seed={_HASH_SEED},root_owner=0:0",
            "-d", root, raw, str(blocks),
        ],
        what="writing the root filesystem",
        env={"E2FSPROGS_FAKE_TIME": str(timestamp), "SOURCE_DATE_EPOCH": str(timestamp)},
    )  # fmt: skip
    _level_times(raw, timestamp)


def _level_times(raw: Path, timestamp: int) -> None:
    """Overwrites the times that files got from the host's clock while the disk was written.

    A file's change time cannot be set in a folder, and mke2fs copies it.
    """
    place = f"{raw}?offset={_ROOT_MIB * _MIB}"
    shown = run(["dumpe2fs", place], what="listing the files of the root filesystem").decode()
    count = _INODES.search(shown)
    if count is None:
        raise ImageError(f"dumpe2fs did not tell how many inodes there are: {shown[:200]!r}")
    inodes = set(range(1, int(count[1]) + 1))
    for ranges in _FREE_INODES.findall(shown):
        for piece in filter(None, ranges.replace(" ", "").split(",")):
            first, _, last = piece.partition("-")
            inodes -= set(range(int(first), int(last or first) + 1))
    commands = "".join(
        f"set_inode_field <{inode}> {field} @{timestamp}\n"
        for inode in sorted(inodes)
        for field in ("atime", "ctime")
    )
    run(
        ["debugfs", "-w", "-f", "-", place],
        what="setting the times of the root filesystem",
        env={"E2FSPROGS_FAKE_TIME": str(timestamp)},
        stdin=commands.encode(),
    )


def _install_bios(raw: Path, early: Path, work: Path) -> None:
    """Writes GRUB's boot sector and core image, like grub-bios-setup."""
    core = work / "core.img"
    run(
        ["grub-mkimage", "-O", "i386-pc", "-p", "/boot/grub", "-c", early, "-o", core,
         "biosdisk", "linux16", *_GRUB_MODULES],
        what="making GRUB's image for BIOS",
    )  # fmt: skip
    lba = _BIOS_MIB[0] * _MIB // _SECTOR
    image = bytearray(core.read_bytes())
    # diskboot.S: the block list at the end of the first sector locates the rest.
    struct.pack_into("<Q", image, 0x1F4, lba + 1)
    boot = bytearray(Path("/usr/lib/grub/i386-pc/boot.img").read_bytes())
    struct.pack_into("<Q", boot, 0x5C, lba)  # boot.S: GRUB_BOOT_MACHINE_KERNEL_SECTOR
    # boot.S: GRUB_BOOT_MACHINE_DRIVE_CHECK, a jump that trusts the BIOS's drive number.
    boot[0x66:0x68] = b"\x90\x90"
    with raw.open("r+b") as disk:
        # Bytes from 440 on belong to the protective MBR's partition table.
        disk.write(boot[:440])
        disk.seek(lba * _SECTOR)
        disk.write(image)


def _install_efi(raw: Path, early: Path, work: Path, timestamp: int) -> None:
    loader = work / "BOOTX64.EFI"
    run(
        ["grub-mkimage", "-O", "x86_64-efi", "-p", "/boot/grub", "-c", early, "-o", loader,
         *_GRUB_MODULES],
        what="making GRUB's image for UEFI",
    )  # fmt: skip
    os.utime(loader, (timestamp, timestamp))
    esp = work / "esp.img"
    with esp.open("wb") as file:
        file.truncate(_ESP_MIB[1] * _MIB)
    env = {"SOURCE_DATE_EPOCH": str(timestamp), "MTOOLS_SKIP_CHECK": "1"}
    what = "writing the EFI system partition"
    run(["mformat", "-i", esp, "-N", "7d1c0a5e", "-v", "ESP", "::"], what=what, env=env)
    run(["mmd", "-i", esp, "::/EFI", "::/EFI/BOOT"], what=what, env=env)
    run(["mcopy", "-m", "-i", esp, loader, "::/EFI/BOOT/BOOTX64.EFI"], what=what, env=env)
    with raw.open("r+b") as disk:
        disk.seek(_ESP_MIB[0] * _MIB)
        disk.write(esp.read_bytes())
