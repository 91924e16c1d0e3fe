"""Reads the partition table of a raw disk, and recognizes file systems, without mounting (O5)."""

from __future__ import annotations

import os
import struct
import uuid
from collections.abc import Iterator
from dataclasses import dataclass, replace

__all__ = ["Partition", "PartitionTable", "read_partitions"]

_SECTOR = 512
#: Sectors of disks whose partition tables no machine here could read, as none in Azure could.
_LARGE_SECTOR = 4096
_MAX_ENTRIES, _MAX_ENTRY_BYTES = 128, 4096
_MAX_LOGICAL = 60
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
_EXTENDED = (0x05, 0x0F, 0x85)
_MBR_TYPES = {
    0x07: "NTFS", 0x82: "Linux swap", 0x83: "Linux", 0x8E: "LVM", 0xEF: "EFI system",
    **dict.fromkeys(_EXTENDED, "extended"),
}  # fmt: skip
_PROTECTIVE = 0xEE
_SIGNATURE, _GPT = b"\x55\xaa", b"EFI PART"
#: Attributes of a partition of a GPT: extlinux and its like start it by a BIOS.
_LEGACY_BOOT = 1 << 2
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
    (32769, b"CD001", "iso9660"),
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
        legacy_boot: Whether the table says that a BIOS may start it.
    """

    number: int
    offset: int
    size: int
    type: str
    file_system: str
    legacy_boot: bool = False


@dataclass(frozen=True)
class PartitionTable:
    """The partitions of a disk.

    Attributes:
        scheme: ``gpt``, ``mbr``, or empty without a table.
        has_boot_code: Whether the first sector holds a program for a BIOS.
        partitions: The partitions, by number.
        sector: Size in bytes of the sectors for which the table was made.
    """

    scheme: str
    has_boot_code: bool
    partitions: tuple[Partition, ...]
    sector: int = _SECTOR

    @property
    def is_for_other_disks(self) -> bool:
        """Whether it was made for disks with sectors that machines here have not."""
        return self.sector != _SECTOR

    @property
    def boots_by_bios(self) -> bool:
        """Whether a BIOS finds something to start."""
        if self.scheme == "gpt" and not any(
            p.type == "BIOS boot" or p.legacy_boot for p in self.partitions
        ):
            return False
        return self.has_boot_code and not self.is_for_other_disks

    @property
    def boots_by_uefi(self) -> bool:
        """Whether UEFI finds a partition to look for a loader on."""
        return not self.is_for_other_disks and any(p.type == "EFI system" for p in self.partitions)


def read_partitions(disk: int, size: int) -> PartitionTable:
    """Reads the partition table of a raw disk; what is not sound in it is left out.

    Args:
        disk: Descriptor of a file that starts with the disk's bytes.
        size: Size of the disk in bytes.

    Raises:
        OSError: The file cannot be read.
    """
    first = os.pread(disk, _SECTOR, 0)
    if len(first) < _SECTOR or first[510:] != _SIGNATURE:
        return PartitionTable("", False, (_partition(disk, 0, 0, size, ""),))
    has_code = any(first[:440])
    entries = [(number, *entry) for number, entry in enumerate(_entries(first), 1)]
    if any(kind == _PROTECTIVE for _, kind, _, _ in entries):
        is_small = os.pread(disk, 8, _SECTOR) == _GPT or os.pread(disk, 8, _LARGE_SECTOR) != _GPT
        sector = _SECTOR if is_small else _LARGE_SECTOR
        return PartitionTable("gpt", has_code, tuple(_read_gpt(disk, size, sector)), sector)
    for _, kind, start, _ in list(entries):
        if kind in _EXTENDED:
            entries += _logical(disk, start)
    found = [
        _partition(disk, number, start * _SECTOR, sectors * _SECTOR, _MBR_TYPES.get(kind, ""))
        for number, kind, start, sectors in entries
        if kind and sectors and (start + sectors) * _SECTOR <= size
    ]
    if not found or _file_system(disk, 0) in ("vfat", "ntfs"):  # a boot sector of a file system
        return PartitionTable("", has_code, (_partition(disk, 0, 0, size, ""),))
    return PartitionTable("mbr", has_code, tuple(found))


def _entries(sector: bytes) -> list[tuple[int, int, int]]:
    """Returns type, first sector and number of sectors of a boot record's four entries."""
    return [
        (sector[start + 4], *struct.unpack_from("<II", sector, start + 8))
        for start in range(446, 510, 16)
    ]


def _logical(disk: int, base: int) -> Iterator[tuple[int, int, int, int]]:
    """Yields number and entry of the logical partitions in an extended one.

    Each has a boot record of its own, which names the next one.

    Args:
        disk: Descriptor of the disk.
        base: The extended partition's first sector.
    """
    record = base
    for number in range(5, 5 + _MAX_LOGICAL):
        sector = os.pread(disk, _SECTOR, record * _SECTOR)
        if len(sector) < _SECTOR or sector[510:] != _SIGNATURE:
            return
        (kind, start, sectors), (_, following, _) = _entries(sector)[:2]
        yield number, kind, record + start, sectors
        if not following:
            return
        record = base + following


def _read_gpt(disk: int, size: int, sector: int) -> Iterator[Partition]:
    header = os.pread(disk, 92, sector)
    if len(header) < 92 or header[:8] != _GPT:
        return
    table, count, length = struct.unpack_from("<QII", header, 72)
    if length % 128 or not 128 <= length <= _MAX_ENTRY_BYTES or not 2 <= table <= size // sector:
        return
    content = os.pread(disk, min(count, _MAX_ENTRIES) * length, table * sector)
    for number in range(1, len(content) // length + 1):
        entry = content[(number - 1) * length : number * length]
        kind = str(uuid.UUID(bytes_le=entry[:16]))
        first, last, attributes = struct.unpack_from("<QQQ", entry, 32)
        if any(entry[:16]) and 0 < first <= last < size // sector:
            found = _partition(
                disk, number, first * sector, (last - first + 1) * sector, _GPT_TYPES.get(kind, "")
            )
            yield replace(found, legacy_boot=bool(attributes & _LEGACY_BOOT))


def _partition(disk: int, number: int, offset: int, size: int, type: str) -> Partition:
    return Partition(number, offset, size, type, _file_system(disk, offset))


def _file_system(disk: int, offset: int) -> str:
    head = os.pread(disk, _HEAD_BYTES, offset)
    for place, magic, name in _FILE_SYSTEMS:
        if head[place : place + len(magic)] == magic:
            return name
    return ""
