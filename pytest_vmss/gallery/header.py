"""Validates the header of a qcow2 image before any program of the host opens the file (R3).

What makes ``qemu-img`` open other files or use up memory is in the header: a backing file, an
external data file, tables larger than the disk needs, snapshots, bitmaps. An image with any of
these, or with anything unknown, is rejected by its header alone. The format is described in
QEMU's ``docs/interop/qcow2.txt``; all numbers are big-endian.
"""

from __future__ import annotations

import struct
from collections.abc import Iterator
from dataclasses import dataclass
from typing import BinaryIO

from pytest_vmss.errors import ImageError
from pytest_vmss.settings import GIB, ImageLimits

__all__ = ["MAGIC", "check_header", "refuse_virtual_size"]

MAGIC = b"QFI\xfb"

_V2_LENGTH = 72
_V3_LENGTH = 104
_ENTRY = 8  # bytes of an entry of the L1 and of the refcount table

#: Incompatible features, by bit.
_DIRTY, _CORRUPT, _DATA_FILE, _COMPRESSION, _EXTENDED_L2 = range(5)
_KNOWN = 1 << _DIRTY | 1 << _CORRUPT | 1 << _DATA_FILE | 1 << _COMPRESSION | 1 << _EXTENDED_L2
_COMPRESSIONS = (0, 1)  # zlib and zstd

#: Autoclear features that are rejected: bitmaps, and an external raw data file.
_REFUSED_AUTOCLEAR = 0b11

#: Types of header extensions.
_END = 0
_DATA_FILE_NAME = 0x44415441
_BITMAPS = 0x23852875
_FEATURE_NAMES = 0x6803F857
_MAX_EXTENSIONS = 64

#: Limits of qemu-img itself.
_MAX_L1_BYTES = 32 * 1024**2
_MAX_REFCOUNT_TABLE_BYTES = 8 * 1024**2
_MAX_REFCOUNT_ORDER = 6

#: ``qemu-img check`` counts the references to every cluster of the file in memory: half a second
#: for a million. Allow at least as many as the limit of stored bytes has with usual clusters.
_MAX_CLUSTERS = 1 << 22
_USUAL_CLUSTER = 65536
_MAX_COUNTS_BYTES = 64 * 1024**2

_FLATTEN = "so it is not whole; flatten it with: qemu-img convert -O qcow2 IN OUT"
_REWRITE = "write it anew with: qemu-img convert -O qcow2 IN OUT"


@dataclass(frozen=True)
class _Header:
    """The fields that this module reads, in file order; then those that only version 3 has."""

    version: int
    backing_offset: int
    backing_length: int
    cluster_bits: int
    size: int
    encryption: int
    l1_size: int
    l1_offset: int
    refcount_offset: int
    refcount_clusters: int
    snapshots: int
    snapshots_offset: int
    incompatible: int = 0
    compatible: int = 0
    autoclear: int = 0
    refcount_order: int = 4
    length: int = _V2_LENGTH

    def has(self, feature: int) -> bool:
        return bool(self.incompatible >> feature & 1)


def check_header(name: str, file: BinaryIO, length: int, limits: ImageLimits) -> int:
    """Rejects a qcow2 image that depends on other files, is invalid, or exceeds the limits.

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
    file.seek(0)
    head = file.read(1024)
    if head[:4] != MAGIC:
        raise ImageError(
            f"{name} is not a qcow2 image: it starts with {head[:4]!r}, not {MAGIC!r}; "
            "convert it with: qemu-img convert -O qcow2 IN OUT (or publish a raw disk with raw)"
        )
    header = _parse(name, head)
    _refuse_other_files(name, file, header, length)
    _refuse_features(name, head, header)
    _refuse_sizes(name, header, length, limits)
    return header.size


def _parse(name: str, head: bytes) -> _Header:
    version = int.from_bytes(head[4:8], "big")
    if version not in (2, 3):
        raise _broken(name, f"its version is {version}, and there are 2 and 3")
    if len(head) < (_V2_LENGTH if version == 2 else _V3_LENGTH):
        raise _broken(name, f"it ends within its header, after {len(head)} bytes")
    fields = struct.unpack_from(">IQIIQIIQQIIQ", head, 4)
    if version == 2:
        return _Header(*fields)
    header = _Header(*fields, *struct.unpack_from(">QQQII", head, _V2_LENGTH))
    if len(head) == _V3_LENGTH < header.length:
        raise _broken(name, f"it ends within its header, after {len(head)} bytes")
    return header


def _refuse_other_files(name: str, file: BinaryIO, header: _Header, length: int) -> None:
    """Rejects whatever makes a program open a file other than this one."""
    if header.backing_offset or header.backing_length:
        file.seek(min(header.backing_offset, length))
        backing = ascii(file.read(min(header.backing_length, 200)).decode(errors="replace"))
        raise ImageError(f"{name} has a backing file ({backing}), {_FLATTEN}")
    if not 9 <= header.cluster_bits <= 21:
        raise _broken(name, f"its clusters have 2 to the power of {header.cluster_bits} bytes")
    for kind, content in _extensions(name, file, header):
        if kind == _DATA_FILE_NAME:
            external = ascii(content[:200].decode(errors="replace"))
            raise ImageError(f"{name} keeps its data in another file ({external}), {_FLATTEN}")
        if kind == _BITMAPS:
            # Opening a disk on this image would read all of them: gigabytes, from a few KiB.
            raise ImageError(
                f"{name} holds dirty bitmaps, which a published image has no use for; {_REWRITE}"
            )
        if kind != _FEATURE_NAMES:
            raise _broken(name, f"its header has an extension that is not known here ({kind:#x})")
    if header.has(_DATA_FILE):
        raise ImageError(f"{name} keeps its data in another file, {_FLATTEN}")


def _extensions(name: str, file: BinaryIO, header: _Header) -> Iterator[tuple[int, bytes]]:
    """Yields the header's extensions, which end with the first cluster."""
    end = 1 << header.cluster_bits
    if header.version == 3 and not _V3_LENGTH <= header.length <= end:
        raise _broken(name, f"its header has {header.length} bytes")
    offset = header.length
    for _ in range(_MAX_EXTENSIONS):
        if offset + 8 > end:
            return
        file.seek(offset)
        start = file.read(8)
        if len(start) < 8:
            return
        kind, size = struct.unpack(">II", start)
        if kind == _END:
            return
        offset += 8
        if size > end - offset:
            raise _broken(name, f"an extension of its header has {size} bytes")
        yield kind, file.read(size)
        offset += (size + 7) // 8 * 8
    raise _broken(name, f"its header has more than {_MAX_EXTENSIONS} extensions")


def _refuse_features(name: str, head: bytes, header: _Header) -> None:
    if header.encryption:
        raise ImageError(f"{name} is encrypted; guests here cannot be given its key")
    if header.has(_CORRUPT):
        raise ImageError(f"{name} is marked corrupt; try: qemu-img check -r all IN")
    if unknown := header.incompatible & ~_KNOWN:
        raise _broken(name, f"it has features that are not known here (bits {unknown:#x})")
    compression = head[_V3_LENGTH] if header.length > _V3_LENGTH else 0
    if compression not in _COMPRESSIONS or bool(compression) != header.has(_COMPRESSION):
        raise _broken(name, f"its kind of compression is {compression}, or is not said")
    if features := header.autoclear & _REFUSED_AUTOCLEAR:
        raise _broken(name, f"it says that it has bitmaps or another file (bits {features:#x})")
    if header.refcount_order > _MAX_REFCOUNT_ORDER:
        raise _broken(name, f"its reference counts have 2 to the {header.refcount_order} bits")


def _refuse_sizes(name: str, header: _Header, length: int, limits: ImageLimits) -> None:
    """Rejects tables that do not fit the disk or the file, and disks beyond the limits."""
    cluster = 1 << header.cluster_bits
    refuse_virtual_size(name, header.size, limits)
    entry = 16 if header.has(_EXTENDED_L2) else _ENTRY
    needed = -(-header.size // (cluster * (cluster // entry)))
    if header.l1_size < needed or header.l1_size * _ENTRY > _MAX_L1_BYTES:
        raise _broken(
            name,
            f"its first table has {header.l1_size} entries; a disk of {header.size} bytes "
            f"takes {needed}, and no disk more than {_MAX_L1_BYTES // _ENTRY}",
        )
    refcounts = header.refcount_clusters * cluster
    if not 0 < refcounts <= _MAX_REFCOUNT_TABLE_BYTES:
        raise _broken(name, f"its table of reference counts has {refcounts} bytes")
    if header.snapshots:
        raise ImageError(
            f"{name} holds {header.snapshots} snapshots, and a published image has no use for any; "
            f"{_REWRITE}"
        )
    for what, offset, size in (
        ("first table", header.l1_offset, header.l1_size * _ENTRY),
        ("table of reference counts", header.refcount_offset, refcounts),
    ):
        # The host reads whole sectors, with zeros past the end of the file.
        if size and (offset % cluster or offset == 0 or offset + size > length + 511):
            raise _broken(name, f"its {what} is at {offset}, which is no place in the file")
    clusters = -(-length // cluster)
    most = max(_MAX_CLUSTERS, limits.stored_gib * GIB // _USUAL_CLUSTER)
    if clusters > most or clusters << header.refcount_order > _MAX_COUNTS_BYTES * 8:
        raise ImageError(
            f"{name} has {clusters} clusters of {cluster} bytes, holes counted, which takes more "
            f"memory to check than an image is given; {_REWRITE}"
        )


def refuse_virtual_size(name: str, size: int, limits: ImageLimits) -> None:
    """Rejects a disk that is empty or larger than the limit.

    Raises:
        ImageError: The disk is rejected.
    """
    if size == 0:
        raise ImageError(f"{name} is a disk of 0 bytes; expected one that a guest can boot from")
    if size > limits.virtual_gib * GIB:
        raise ImageError(
            f"{name} is a disk of {size / GIB:,.1f} GiB, and {limits.virtual_gib:,} GiB are allowed; "
            "publish a smaller one, or raise the limit (--vmss-max-image-gib, VMSS_MAX_IMAGE_GIB)"
        )


def _broken(name: str, reason: str) -> ImageError:
    return ImageError(f"{name} is not a usable qcow2 image: {reason}; {_REWRITE}")
