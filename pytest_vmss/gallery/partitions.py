"""Reads the partition table of a raw disk, and recognizes file systems, without mounting (O5)."""

from __future__ import annotations

import os
import struct
import uuid
from dataclasses import dataclass

__all__ = ["Partition", "PartitionTable", "read_partitions"]

_SECTOR = 512
_MAX_ENTRIES, _ENTRY_BYTES = 128, 128
#: Bytes of a partition in which a file system shows what it is.
_HEAD_BYTES = 68 * 1024

_GPT_TYPES = {
    "c12a7328-f81f-11d2-ba4b-00a0c93ec93b": "EFI system",
    "21686148-6449-6e6f-744e-656564454649": "BIOS boot",
    "0fc63daf-8483-4772-8e79-3d69d8477de4": "Linux",
    "4f68bce3-e8cd-4db1-96e7-fbcaf984b709": "Linux root (x86-64)",
    "b921b045-1df0-41c3-af44-4c6f280d3fae": "Linux root (ARM64)",
    "bc13c2ff-59e6-4262-a352-b275fd6f7172": "Linux boot",
    "0657fd6d-a4ab-43c4-84e5-0933c84b4f4f": "Linux swap",
    "e6d6d379-f507-44c2-a23c-238f2a3df928": "LVM",
    "e3c9e316-0b5c-4db8-817d-f92df00215ae": "Microsoft reserved",
    "ebd0a0a2-b9e5-4433-87c0-68b6b72699c7": "Microsoft basic data",
}
_MBR_TYPES = {0x07: "NTFS", 0x82: "Linux swap", 0x83: "Linux", 0x8E: "LVM", 0xEF: "EFI system"}
_PROTECTIVE = 0xEE
#: Offset in a partition, the bytes there, and what they say.
_FILE_SYSTEMS = (
    (1080, b"\x53\xef", "ext4"),
    (0, b"XFSB", "xfs"),
    (65536 + 64, b"_BHRfS_M", "btrfs"),
    (82, b"FAT32", "vfat"),
    (54, b"FAT1", "vfat"),
    (3, b"NTFS", "ntfs"),
    (512, b"LABELONE", "LVM"),
    (0, b"LUKS\xba\xbe", "LUKS"),
    (0, b"hsqs", "squashfs"),
)


@dataclass(frozen=True)
class Partition:
    """A partition of a disk, or the whole disk if it has no table.

    Attributes:
        number: Its number; 0 for the whole disk.
        offset: Where it starts, in bytes.
        size: Its size in bytes.
        type: What the table says that it is for; empty if that is not known here.
        file_system: What its content is; empty if that is not known here.
    """

    number: int
    offset: int
    size: int
    type: str
    file_system: str


@dataclass(frozen=True)
class PartitionTable:
    """The partitions of a disk.

    Attributes:
        scheme: ``gpt``, ``mbr``, or empty without a table.
        has_boot_code: Whether the first sector holds a program for a BIOS.
        partitions: The partitions, by number.
    """

    scheme: str
    has_boot_code: bool
    partitions: tuple[Partition, ...]

    @property
    def boots_by_bios(self) -> bool:
        """Whether a BIOS finds something to start."""
        if self.scheme == "gpt" and not any(p.type == "BIOS boot" for p in self.partitions):
            return False
        return self.has_boot_code

    @property
    def boots_by_uefi(self) -> bool:
        """Whether UEFI finds a partition to look for a loader on."""
        return any(p.type == "EFI system" for p in self.partitions)


def read_partitions(disk: int, size: int) -> PartitionTable:
    """Reads the partition table of a raw disk; what is not sound in it is left out.

    Args:
        disk: Descriptor of a file that starts with the disk's bytes.
        size: Size of the disk in bytes.

    Raises:
        OSError: The file cannot be read.
    """
    first = os.pread(disk, _SECTOR, 0)
    if len(first) < _SECTOR or first[510:] != b"\x55\xaa":
        return PartitionTable("", False, (_partition(disk, 0, 0, size, ""),))
    has_code = any(first[:440])
    entries = [
        (number, first[start + 4], *struct.unpack_from("<II", first, start + 8))
        for number, start in enumerate(range(446, 510, 16), 1)
    ]
    if any(kind == _PROTECTIVE for _, kind, _, _ in entries):
        return PartitionTable("gpt", has_code, tuple(_read_gpt(disk, size)))
    found = [
        _partition(disk, number, start * _SECTOR, sectors * _SECTOR, _MBR_TYPES.get(kind, ""))
        for number, kind, start, sectors in entries
        if kind and sectors and (start + sectors) * _SECTOR <= size
    ]
    if not found or _file_system(disk, 0) in ("vfat", "ntfs"):  # a boot sector of a file system
        return PartitionTable("", has_code, (_partition(disk, 0, 0, size, ""),))
    return PartitionTable("mbr", has_code, tuple(found))


def _read_gpt(disk: int, size: int) -> list[Partition]:
    header = os.pread(disk, 92, _SECTOR)
    if len(header) < 92 or header[:8] != b"EFI PART":
        return []
    table, count, length = struct.unpack_from("<QII", header, 72)
    if length != _ENTRY_BYTES or not 2 <= table <= size // _SECTOR:
        return []
    count = min(count, _MAX_ENTRIES)
    content = os.pread(disk, count * length, table * _SECTOR)
    found = []
    for number in range(1, len(content) // length + 1):
        entry = content[(number - 1) * length : number * length]
        kind = str(uuid.UUID(bytes_le=entry[:16]))
        first, last = struct.unpack_from("<QQ", entry, 32)
        if any(entry[:16]) and 0 < first <= last < size // _SECTOR:
            length_bytes = (last - first + 1) * _SECTOR
            name = _GPT_TYPES.get(kind, "")
            found.append(_partition(disk, number, first * _SECTOR, length_bytes, name))
    return found


def _partition(disk: int, number: int, offset: int, size: int, type: str) -> Partition:
    return Partition(number, offset, size, type, _file_system(disk, offset))


def _file_system(disk: int, offset: int) -> str:
    head = os.pread(disk, _HEAD_BYTES, offset)
    for place, magic, name in _FILE_SYSTEMS:
        if head[place : place + len(magic)] == magic:
            return name
    return ""
