"""Validates VHDXs before any program of the host opens the file (O5, R3).

Two headers, of which the newer valid one counts, name no log to replay; two copies of a table name
the regions: metadata (sizes), and the block allocation table. All numbers are little-endian; the
format is Microsoft's MS-VHDX.
"""

from __future__ import annotations

import bisect
import itertools
import struct
import uuid
from array import array
from dataclasses import dataclass
from typing import BinaryIO

from pytest_vmss.errors import ImageError
from pytest_vmss.gallery.header import refuse_virtual_size
from pytest_vmss.settings import ImageLimits

__all__ = ["SIGNATURE", "check_vhdx", "crc32c"]

SIGNATURE = b"vhdxfile"

_KIB, _MIB = 1024, 1024**2
_HEADERS = (64 * _KIB, 128 * _KIB)
_HEADER_BYTES = 4 * _KIB
_REGION_TABLES = (192 * _KIB, 256 * _KIB)
_TABLE_BYTES = 64 * _KIB
_MAX_ENTRIES = 2047
#: The log of 1 MiB follows the region tables at the earliest.
_FIRST_REGION = _MIB
_CRC_AT = 4

_BAT = uuid.UUID("2dc27766-f623-4200-9d64-115e9bfd4a08")
_METADATA = uuid.UUID("8b7ca206-4790-4b9a-b8fe-575f050f886e")
_FILE_PARAMETERS = uuid.UUID("caa16737-fa36-4d43-b3b6-33f0aa44e76b")
_DISK_SIZE = uuid.UUID("2fa54224-cd1b-4876-b211-5dbed83bf4b8")
_DISK_ID = uuid.UUID("beca12ab-b2e6-4523-93ef-c309e000c746")
_LOGICAL_SECTOR = uuid.UUID("8141bf1d-a96f-4709-ba47-f233a8faab5f")
_PHYSICAL_SECTOR = uuid.UUID("cda348c7-445d-4471-9cc9-e9885251c556")
_PARENT = uuid.UUID("a8d35f2d-b30b-454d-abf7-d3d84834ab0c")
_KNOWN_ITEMS = {_FILE_PARAMETERS, _DISK_SIZE, _DISK_ID, _LOGICAL_SECTOR, _PHYSICAL_SECTOR, _PARENT}
_IS_USERS, _IS_REQUIRED = 1, 4
_HAS_PARENT = 2

_SECTOR = 512
#: Blocks for which one entry of the table describes the sectors of differencing disks.
_BITMAP_SECTORS = 1 << 23
_NOT_STORED, _FULLY_PRESENT = (0, 1, 2, 3), 6

_REWRITE = "write it anew with: qemu-img convert -f vhdx -O qcow2 IN OUT"


@dataclass(frozen=True)
class _Region:
    offset: int
    length: int

    @property
    def end(self) -> int:
        return self.offset + self.length


def check_vhdx(name: str, file: BinaryIO, length: int, limits: ImageLimits) -> int:
    """Rejects a VHDX that depends on another file, is invalid, or exceeds the limits.

    Args:
        name: The user's name for it, for messages.
        file: The image.
        length: Its length in bytes.
        limits: The largest image that may be published.

    Returns:
        The size in bytes of the disk that a guest sees.

    Raises:
        ImageError: It is rejected; the message says why and what to do.
    """
    log = _check_header(name, file)
    regions = _read_regions(name, file, length)
    if log.offset < _FIRST_REGION or log.offset % _MIB or log.length % _MIB or log.end > length:
        raise _broken(name, f"its log is at {log.offset}, which is no place in the file")
    _refuse_overlap(name, [log, *regions.values()])
    size, block = _read_metadata(name, file, regions[_METADATA])
    refuse_virtual_size(name, size, limits)
    stored = _read_blocks(name, file, regions[_BAT], size, block)
    _refuse_blocks(name, stored, block, [log, *regions.values()], length)
    return size


def _check_header(name: str, file: BinaryIO) -> _Region:
    """Checks the current header, and returns the place of the log, which must be empty."""
    valid: list[bytes] = []
    for offset in _HEADERS:
        header = _read(file, offset, _HEADER_BYTES)
        if header[:4] == b"head" and _is_sound(header):
            valid.append(header)
    if not valid:
        raise _broken(name, "it has no valid header")
    newest = max(valid, key=lambda header: int(struct.unpack_from("<Q", header, 8)[0]))
    log_version, version, log_length, log_offset = struct.unpack_from("<HHIQ", newest, 64)
    if (log_version, version) != (0, 1):
        raise _broken(name, f"its version is {version} and its log's {log_version}; there are 1, 0")
    if any(newest[48:64]):
        raise ImageError(
            f"{name} was not closed: its log is still to be replayed; mount and detach it where it "
            "comes from, or on a copy: qemu-img check -f vhdx -r all IN"
        )
    return _Region(log_offset, log_length)


def _read_regions(name: str, file: BinaryIO, length: int) -> dict[uuid.UUID, _Region]:
    table = next(
        (
            table
            for offset in _REGION_TABLES
            if (table := _read(file, offset, _TABLE_BYTES))[:4] == b"regi" and _is_sound(table)
        ),
        None,
    )
    if table is None:
        raise _broken(name, "it has no valid table of regions")
    count = struct.unpack_from("<I", table, 8)[0]
    if count > _MAX_ENTRIES:
        raise _broken(name, f"it has {count} regions")
    regions: dict[uuid.UUID, _Region] = {}
    for number in range(count):
        start = 16 + 32 * number
        kind = uuid.UUID(bytes_le=table[start : start + 16])
        offset, size, required = struct.unpack_from("<QII", table, start + 16)
        if kind not in (_BAT, _METADATA):
            if required & 1:
                raise _broken(name, f"it has a region that is not known here ({kind})")
            continue
        region = _Region(offset, size)
        if kind in regions:
            raise _broken(name, f"it has a region twice ({kind})")
        if not size or offset % _MIB or size % _MIB or offset < _FIRST_REGION or (
            region.end > length
        ):  # fmt: skip
            raise _broken(name, f"a region is at {offset}, which is no place in the file")
        regions[kind] = region
    if len(regions) < 2:
        raise _broken(name, "it lacks the region of metadata or of blocks")
    return regions


def _refuse_overlap(name: str, regions: list[_Region]) -> None:
    ordered = sorted((region for region in regions if region.length), key=lambda one: one.offset)
    for before, after in itertools.pairwise(ordered):
        if after.offset < before.end:
            raise _broken(name, f"its regions at {before.offset} and {after.offset} overlap")


def _read_metadata(name: str, file: BinaryIO, region: _Region) -> tuple[int, int]:
    """Returns the size of the disk and of a block, in bytes."""
    found = _read_items(name, file, region)
    parameters = _numbers(name, found, _FILE_PARAMETERS, "<II")
    if _PARENT in found or parameters[1] & _HAS_PARENT:
        raise ImageError(
            f"{name} is a differencing VHDX, so it is not whole; merge it with its parent first "
            "(Merge-VHD)"
        )
    (size,) = _numbers(name, found, _DISK_SIZE, "<Q")
    (sector,) = _numbers(name, found, _LOGICAL_SECTOR, "<I")
    block = parameters[0]
    if sector != _SECTOR:
        raise ImageError(
            f"{name} has sectors of {sector} bytes, and disks here have {_SECTOR}; create it with "
            f"New-VHD -LogicalSectorSizeBytes {_SECTOR}"
        )
    if block & (block - 1) or not _MIB <= block <= 256 * _MIB:
        raise _broken(name, f"its blocks have {block} bytes")
    if size % _SECTOR:
        raise _broken(name, f"it is a disk of {size} bytes, which are no whole sectors")
    return size, block


def _read_items(name: str, file: BinaryIO, region: _Region) -> dict[uuid.UUID, bytes]:
    """Returns the first bytes of each known item of metadata."""
    table = _read(file, region.offset, _TABLE_BYTES)
    count = int.from_bytes(table[10:12], "little")
    if len(table) < _TABLE_BYTES or table[:8] != b"metadata" or count > _MAX_ENTRIES:
        raise _broken(name, "its table of metadata is damaged")
    found: dict[uuid.UUID, bytes] = {}
    for number in range(count):
        start = 32 + 32 * number
        kind = uuid.UUID(bytes_le=table[start : start + 16])
        offset, size, flags = struct.unpack_from("<III", table, start + 16)
        if flags & _IS_USERS or kind not in _KNOWN_ITEMS:
            if flags & _IS_REQUIRED:
                raise _broken(name, f"it has metadata that is not known here ({kind})")
            continue
        if kind in found:
            raise _broken(name, f"it has an item of metadata twice ({kind})")
        if size and not _TABLE_BYTES <= offset <= region.length - size:
            raise _broken(name, f"an item of its metadata is at {offset}, which is no place for it")
        found[kind] = _read(file, region.offset + offset, min(size, 8))
    return found


def _numbers(
    name: str, found: dict[uuid.UUID, bytes], kind: uuid.UUID, form: str
) -> tuple[int, ...]:
    content = found.get(kind, b"")
    if len(content) < struct.calcsize(form):
        raise _broken(name, f"its metadata lack an item ({kind})")
    return struct.unpack_from(form, content)


def _read_blocks(name: str, file: BinaryIO, bat: _Region, size: int, block: int) -> list[int]:
    """Returns the places of the stored blocks, in MiB, lowest first."""
    blocks, ratio = -(-size // block), _BITMAP_SECTORS * _SECTOR // block
    entries = blocks + (blocks - 1) // ratio
    if entries * 8 > bat.length:
        raise _broken(name, f"its table has room for {bat.length // 8} entries, not for {entries}")
    table = array("Q")
    content = _read(file, bat.offset, entries * 8)
    if len(content) < entries * 8:
        raise _broken(name, "it ends within its table")
    table.frombytes(content)  # QEMU's hosts are little-endian
    stored: list[int] = []
    for number, entry in enumerate(table):
        if number % (ratio + 1) == ratio:  # of differencing disks only
            continue
        state = entry & 7
        if state == _FULLY_PRESENT:
            stored.append(entry >> 20)
        elif state not in _NOT_STORED:
            raise _broken(name, f"a block of it is in the state {state}")
    return sorted(stored)


def _refuse_blocks(
    name: str, stored: list[int], block: int, regions: list[_Region], length: int
) -> None:
    """Rejects blocks outside the file, and those that overlap: few bytes would be a large disk."""
    if stored and (stored[0] < 1 or stored[-1] * _MIB + block > length):
        raise _broken(name, "it stores a block beyond its end or in its header")
    for before, after in itertools.pairwise(stored):
        if (after - before) * _MIB < block:
            raise _broken(name, f"its blocks at {before} and {after} MiB overlap")
    for region in regions:
        place = bisect.bisect_right(stored, (region.offset - block) // _MIB)
        if region.length and place < len(stored) and stored[place] * _MIB < region.end:
            raise _broken(name, f"its block at {stored[place]} MiB overlaps a region")


def _read(file: BinaryIO, offset: int, size: int) -> bytes:
    file.seek(offset)
    return file.read(size)


def _is_sound(content: bytes) -> bool:
    """Whether a header or table has the checksum that it names (CRC-32C)."""
    named: int = struct.unpack_from("<I", content, _CRC_AT)[0] if len(content) >= 8 else -1
    return crc32c(content[:_CRC_AT] + bytes(4) + content[_CRC_AT + 4 :]) == named


def _crc_table() -> list[int]:
    table = []
    for value in range(256):
        for _ in range(8):
            value = value >> 1 ^ (0x82F63B78 if value & 1 else 0)  # noqa: PLW2901
        table.append(value)
    return table


_CRC_TABLE = _crc_table()


def crc32c(content: bytes | bytearray) -> int:
    """Returns the CRC-32C (Castagnoli) of some bytes."""
    state = 0xFFFFFFFF
    for byte in content:
        state = _CRC_TABLE[(state ^ byte) & 0xFF] ^ state >> 8
    return state ^ 0xFFFFFFFF


def _broken(name: str, reason: str) -> ImageError:
    return ImageError(f"{name} is not a usable VHDX: {reason}; {_REWRITE}")
