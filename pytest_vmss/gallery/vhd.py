"""Validates VHDs before any program of the host opens the file (O5, R3).

A fixed VHD is a raw disk with a footer; Azure's images are of this kind. A dynamic one has a copy
of the footer at its start, and a table of the blocks that are stored. A differencing one depends
on another file. All numbers are big-endian; the format is Microsoft's "Virtual Hard Disk Image
Format Specification".
"""

from __future__ import annotations

import struct
from array import array
from dataclasses import dataclass
from typing import BinaryIO

from pytest_vmss.errors import ImageError
from pytest_vmss.gallery.header import refuse_virtual_size
from pytest_vmss.settings import ImageLimits

__all__ = ["COOKIE", "FOOTER_BYTES", "check_dynamic", "check_fixed"]

COOKIE = b"conectix"
FOOTER_BYTES = 512

_FIXED, _DYNAMIC, _DIFFERENCING = 2, 3, 4
_CHECKSUM_AT = 64

_HEADER_COOKIE = b"cxsparse"
_HEADER_BYTES = 1024
_HEADER_CHECKSUM_AT = 36
_MIN_BLOCK, _MAX_BLOCK = 64 * 1024, 256 * 1024**2
#: 2040 GiB, the most that the format allows, in blocks of 512 KiB, the smallest in use.
_MAX_ENTRIES = 2040 * 2048
#: A table may have more entries than the disk has blocks; so many are never used.
_SPARE_ENTRIES = 65536
_NOT_STORED = 0xFFFFFFFF

_REWRITE = "write it anew with: qemu-img convert -f vpc -O qcow2 IN OUT"


@dataclass(frozen=True)
class _Footer:
    data_offset: int
    size: int
    kind: int


def check_fixed(name: str, file: BinaryIO, length: int, limits: ImageLimits) -> int:
    """Rejects a fixed VHD that is cut off, invalid, or exceeds the limits.

    Args:
        name: The user's name for it, for messages.
        file: The image.
        length: Its length in bytes.
        limits: The largest image that may be published.

    Returns:
        The size in bytes of the disk that a guest sees; its content starts with the file.

    Raises:
        ImageError: It is rejected; the message says why and what to do.
    """
    footer = _read_footer(name, file, length - FOOTER_BYTES)
    if footer.kind != _FIXED:
        raise _broken(name, f"only its end has a footer, and its type is {footer.kind}, not fixed")
    if footer.size > length - FOOTER_BYTES:
        raise _broken(
            name, f"it is a disk of {footer.size} bytes, and holds {length - FOOTER_BYTES}"
        )
    refuse_virtual_size(name, footer.size, limits)
    return footer.size


def check_dynamic(name: str, file: BinaryIO, length: int, limits: ImageLimits) -> int:
    """Rejects a dynamic VHD that depends on another file, is invalid, or exceeds the limits.

    Args and result are those of :func:`check_fixed`.

    Raises:
        ImageError: It is rejected; the message says why and what to do.
    """
    footer = _read_footer(name, file, 0)
    if footer.kind == _DIFFERENCING:
        raise ImageError(
            f"{name} is a differencing VHD, so it is not whole; merge it with its parent first "
            "(Merge-VHD, or qemu-img convert where the parent is)"
        )
    if footer.kind != _DYNAMIC:
        raise _broken(name, f"its type is {footer.kind}, and it starts with a footer")
    refuse_virtual_size(name, footer.size, limits)
    table_offset, entries, block = _read_header(name, file, footer, length)
    needed = -(-footer.size // block)
    if not needed <= entries <= min(needed + _SPARE_ENTRIES, _MAX_ENTRIES):
        raise _broken(
            name,
            f"its table has {entries} entries; a disk of {footer.size} bytes takes {needed}, and "
            f"no disk more than {_MAX_ENTRIES}",
        )
    if table_offset % 512 or table_offset < FOOTER_BYTES or table_offset + entries * 4 > length:
        raise _broken(name, f"its table is at {table_offset}, which is no place in the file")
    held = [(footer.data_offset, _HEADER_BYTES), (table_offset, -(-entries * 4 // 512) * 512)]
    if held[0][0] < sum(held[1]) and held[1][0] < sum(held[0]):
        raise _broken(name, "its header and its table overlap")
    _refuse_blocks(name, _read_table(name, file, table_offset, entries), block, length, held)
    return footer.size


def _read_footer(name: str, file: BinaryIO, offset: int) -> _Footer:
    file.seek(offset)
    footer = file.read(FOOTER_BYTES)
    if len(footer) < FOOTER_BYTES or footer[:8] != COOKIE:
        raise _broken(name, "it ends within its footer")
    if _checksum(footer, _CHECKSUM_AT) != struct.unpack_from(">I", footer, _CHECKSUM_AT)[0]:
        raise _broken(name, "its footer does not have the checksum that it names")
    version, data_offset = struct.unpack_from(">IQ", footer, 12)
    if version >> 16 != 1:
        raise _broken(name, f"its version is {version >> 16}, and there is 1")
    size, _, kind = struct.unpack_from(">QII", footer, 48)
    if size % 512:
        raise _broken(name, f"it is a disk of {size} bytes, which are no whole sectors")
    return _Footer(data_offset, size, kind)


def _read_header(name: str, file: BinaryIO, footer: _Footer, length: int) -> tuple[int, int, int]:
    """Returns the table's offset, its number of entries, and the size of a block."""
    offset = footer.data_offset
    if offset % 512 or not FOOTER_BYTES <= offset <= length - _HEADER_BYTES:
        raise _broken(name, f"its header is at {offset}, which is no place in the file")
    file.seek(offset)
    header = file.read(_HEADER_BYTES)
    if len(header) < _HEADER_BYTES or header[:8] != _HEADER_COOKIE:
        raise _broken(name, "it has no header for its blocks")
    checksum = struct.unpack_from(">I", header, _HEADER_CHECKSUM_AT)[0]
    if _checksum(header, _HEADER_CHECKSUM_AT) != checksum:
        raise _broken(name, "its header does not have the checksum that it names")
    table_offset, version, entries, block = struct.unpack_from(">QIII", header, 16)
    if version >> 16 != 1:
        raise _broken(name, f"its header's version is {version >> 16}, and there is 1")
    if block & (block - 1) or not _MIN_BLOCK <= block <= _MAX_BLOCK:
        raise _broken(name, f"its blocks have {block} bytes")
    return table_offset, entries, block


def _read_table(name: str, file: BinaryIO, offset: int, entries: int) -> array[int]:
    """Returns the sectors at which blocks are stored, in the order of the disk."""
    table = array("I")
    file.seek(offset)
    content = file.read(entries * table.itemsize)
    if len(content) < entries * 4:
        raise _broken(name, "it ends within its table")
    table.frombytes(content)
    table.byteswap()  # QEMU's hosts are little-endian
    return table


def _refuse_blocks(
    name: str, table: array[int], block: int, length: int, held: list[tuple[int, int]]
) -> None:
    """Rejects blocks outside the file, and those that overlap: few bytes would be a large disk.

    Args:
        name: The user's name for the image, for messages.
        table: The sectors at which blocks are stored.
        block: Size of a block in bytes.
        length: The file's length in bytes.
        held: Offset and length of its header and its table.
    """
    bitmap = -(-(block // 512) // 8 // 512) * 512
    stored = len(table) - table.count(_NOT_STORED)
    if stored * (block + bitmap) > length:
        raise _broken(name, f"its table names {stored} blocks, more than the file has room for")
    last_end = FOOTER_BYTES // 512
    step = (block + bitmap) // 512
    for sector in sorted(entry for entry in table if entry != _NOT_STORED):
        start, end = sector * 512, (sector + step) * 512
        if sector < last_end or end > length or any(
            start < at + size and at < end for at, size in held
        ):  # fmt: skip
            raise _broken(name, f"it stores a block at sector {sector}, which is no place for one")
        last_end = sector + step


def _checksum(content: bytes, at: int) -> int:
    """The one's complement of the sum of all bytes but the checksum's own."""
    return ~(sum(content) - sum(content[at : at + 4])) & 0xFFFFFFFF


def _broken(name: str, reason: str) -> ImageError:
    return ImageError(f"{name} is not a usable VHD: {reason}; {_REWRITE}")
