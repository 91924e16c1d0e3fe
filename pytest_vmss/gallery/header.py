"""The header of a qcow2 file, judged before QEMU reads it: it may be hostile (B4, M5)."""

from __future__ import annotations

import struct
from dataclasses import dataclass

from pytest_vmss.errors import ImageError
from pytest_vmss.settings import ImageLimits

__all__ = ["HEAD_BYTES", "MAGIC", "check_head", "check_size"]

MAGIC = b"QFI\xfb"
#: The beginning of a file that :func:`check_head` wants to see, in bytes.
HEAD_BYTES = 64 * 1024

_GIB = 1024**3
_MIB = 1024**2
_V2 = struct.Struct(">4sIQIIQIIQQIIQ")
_V3 = struct.Struct(">QQQII")
_DIRTY, _CORRUPT, _DATA_FILE, _COMPRESSION, _EXTENDED_L2 = (1 << bit for bit in range(5))
_KNOWN = _DIRTY | _CORRUPT | _DATA_FILE | _COMPRESSION | _EXTENDED_L2
_END, _DATA_FILE_NAME = 0, 0x44415441
# What QEMU itself refuses beyond.
_MAX_L1_BYTES = 32 * _MIB
_MAX_REFCOUNT_TABLE_BYTES = 8 * _MIB
#: Snapshots inside an image are read whole into memory; a published image needs none.
_MAX_SNAPSHOTS = 16
#: ``qemu-img check`` counts each cluster of the file in memory.
_MAX_COUNTERS_BYTES = 128 * _MIB
_FLATTEN = "so it is not whole; flatten it with: qemu-img convert -O qcow2 IN OUT"


@dataclass(frozen=True)
class _Header:
    """The fields of a header, as the format names them."""

    version: int
    backing_offset: int
    backing_length: int
    cluster_bits: int
    virtual_size: int
    encryption: int
    l1_entries: int
    l1_offset: int
    refcount_offset: int
    refcount_clusters: int
    snapshots: int
    snapshots_offset: int
    incompatible: int
    refcount_order: int
    length: int

    @property
    def cluster(self) -> int:
        return 1 << self.cluster_bits

    @property
    def l1_entries_needed(self) -> int:
        entry = 16 if self.incompatible & _EXTENDED_L2 else 8
        covered = self.cluster * (self.cluster // entry)
        return -(-self.virtual_size // covered)


def check_head(head: bytes, size: int, limits: ImageLimits, name: object) -> int:
    """Refuses a qcow2 file that its header tells to be unfit.

    Args:
        head: The first :data:`HEAD_BYTES` of the file, or all of a shorter one.
        size: Bytes of the whole file.
        limits: What an image may cost.
        name: What to call the file in messages.

    Returns:
        The size in bytes of the disk that a guest sees.

    Raises:
        ImageError: The message says why, and what to do.
    """
    header = _parse(head, name)
    _check_whole(header, head, name)
    _check_fields(header, size, name)
    check_size(header.virtual_size, limits, name)
    # Preallocated files are as long as the disk, with their tables besides.
    if size > header.virtual_size * 9 // 8 + 64 * _MIB:
        raise _unusable(name, f"it is {size} bytes long, for a disk of {header.virtual_size} bytes")
    counters = (size // header.cluster + 1) * max(1, (1 << header.refcount_order) // 8)
    if counters > _MAX_COUNTERS_BYTES:
        raise _unusable(
            name, f"its clusters of {header.cluster} bytes are too small for {size} bytes"
        )
    return header.virtual_size


def check_size(virtual_size: int, limits: ImageLimits, name: object) -> None:
    """Refuses a disk without content or larger than the limit.

    Raises:
        ImageError: It is.
    """
    if virtual_size == 0:
        raise _unusable(name, "its disk has no bytes")
    if virtual_size > limits.virtual:
        raise ImageError(
            f"{name} is a disk of {virtual_size / _GIB:.1f} GiB; an image may have "
            f"{limits.virtual / _GIB:.1f} GiB; make it smaller, or allow more: "
            "vmss_image_virtual_gib"
        )


def _parse(head: bytes, name: object) -> _Header:
    if len(head) < _V2.size:
        raise _unusable(name, "its header is cut off")
    _, version, *fields = _V2.unpack_from(head)
    if version == 2:
        values: tuple[int, ...] = (version, *fields, 0, 4, _V2.size)
        return _Header(*values)
    if version != 3:
        raise _unusable(name, f"its version is {version}; expected 2 or 3")
    if len(head) < _V2.size + _V3.size:
        raise _unusable(name, "its header is cut off")
    incompatible, _, _, order, length = _V3.unpack_from(head, _V2.size)
    values = (version, *fields, incompatible, order, length)
    return _Header(*values)


def _check_whole(header: _Header, head: bytes, name: object) -> None:
    """Refuses a file that needs another file, a key or a newer QEMU, or is marked corrupt."""
    if header.backing_offset or header.backing_length:
        begin = header.backing_offset
        backing = head[begin : begin + min(header.backing_length, 1023)]
        raise ImageError(f"{name} has a backing file ({_text(backing)}), {_FLATTEN}")
    if header.encryption:
        raise ImageError(f"{name} is encrypted; guests here cannot be given its key")
    if header.incompatible & _CORRUPT:
        raise ImageError(f"{name} is marked corrupt; try: qemu-img check -r all IN")
    external = _data_file(header, head, name)
    if external is not None or header.incompatible & _DATA_FILE:
        raise ImageError(
            f"{name} keeps its data in another file ({_text(external or b'unnamed')}), {_FLATTEN}"
        )
    if unknown := header.incompatible & ~_KNOWN:
        raise _unusable(name, f"it uses features that are not known here ({unknown:#x})")


def _data_file(header: _Header, head: bytes, name: object) -> bytes | None:
    """The name of the file with the data, from the header's extensions."""
    if not 9 <= header.cluster_bits <= 21:
        raise _unusable(name, f"its clusters have 2^{header.cluster_bits} bytes; expected 2^9-2^21")
    # What a newer QEMU adds to the header is a multiple of 8, and small.
    if header.version == 3 and not (
        104 <= header.length <= min(header.cluster, 4096) and header.length % 8 == 0
    ):
        raise _unusable(name, f"its header has {header.length} bytes")
    end, at = min(header.cluster, len(head)), header.length
    while at + 8 <= end:
        kind, length = struct.unpack_from(">II", head, at)
        if kind == _END:
            return None
        if length > end - at - 8:
            raise _unusable(name, "an extension of its header is cut off")
        if kind == _DATA_FILE_NAME:
            return head[at + 8 : at + 8 + length]
        at += 8 + (length + 7) // 8 * 8
    return None


def _check_fields(header: _Header, size: int, name: object) -> None:
    """Refuses tables that are too large, or are not within the file."""
    if header.refcount_order > 6:
        raise _unusable(name, f"its reference counts have 2^{header.refcount_order} bits")
    l1_bytes = header.l1_entries * 8
    if l1_bytes > _MAX_L1_BYTES or header.l1_entries < header.l1_entries_needed:
        raise _unusable(
            name,
            f"its L1 table has {header.l1_entries} entries; the disk's size needs "
            f"{header.l1_entries_needed}",
        )
    refcount_bytes = header.refcount_clusters * header.cluster
    if not 0 < refcount_bytes <= _MAX_REFCOUNT_TABLE_BYTES:
        raise _unusable(name, f"its reference count table has {refcount_bytes} bytes")
    if header.snapshots > _MAX_SNAPSHOTS:
        raise ImageError(
            f"{name} has {header.snapshots} snapshots inside; an image may have {_MAX_SNAPSHOTS}; "
            "leave them out with: qemu-img convert -O qcow2 IN OUT"
        )
    whole = -(-size // header.cluster) * header.cluster  # the last cluster may be cut short
    tables = [
        ("L1 table", header.l1_offset, l1_bytes),
        ("reference count table", header.refcount_offset, refcount_bytes),
    ]
    if header.snapshots:
        tables.append(("snapshot table", header.snapshots_offset, header.snapshots * 40))
    for what, offset, length in tables:
        if offset % header.cluster or not header.cluster <= offset <= whole - length:
            raise _unusable(
                name, f"its {what}, {length} bytes at {offset}, is not within its {size} bytes"
            )


def _unusable(name: object, why: str) -> ImageError:
    return ImageError(
        f"{name} is not a usable qcow2 image: {why}; make it anew with: "
        "qemu-img convert -O qcow2 IN OUT"
    )


def _text(name: bytes) -> str:
    """A name out of a file, fit to be shown."""
    return ascii(name.rstrip(b"\0").decode(errors="replace"))[1:-1][:200]
