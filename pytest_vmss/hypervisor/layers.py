"""Reads from a disk's header what it is based on, and whether it holds anything of its own."""

from __future__ import annotations

import errno
import os
import struct
from pathlib import Path

from pytest_vmss.errors import HostError

__all__ = ["backing_file", "is_unwritten"]

#: The fields of a qcow2 header up to the place of the L1 table, which maps all that is written.
_HEADER = struct.Struct(">4sIQIIQIIQ")
_MAGIC = b"QFI\xfb"
_L1_ENTRY = 8
#: QEMU's own limits of an L1 table, of the name of a backing file, and of where it may be.
_L1_BYTES = 32 * 1024**2
_NAME_BYTES = 1023
_CLUSTER_BYTES = 2 * 1024**2


def backing_file(path: Path) -> Path | None:
    """The file on which a disk is based, as its header says; None if it is based on none.

    Raises:
        OSError: It cannot be read, or its header is damaged.
    """
    with path.open("rb") as disk:
        head = disk.read(_HEADER.size)
        if len(head) < _HEADER.size or not head.startswith(_MAGIC):
            return None
        _, _, name_at, length, *_ = _HEADER.unpack(head)
        if not name_at or not length:
            return None
        name = b""
        if name_at < _CLUSTER_BYTES and length <= _NAME_BYTES:
            disk.seek(name_at)
            name = disk.read(length)
    if len(name) != length or b"\0" in name:
        raise OSError(errno.EINVAL, "its header is damaged", str(path))
    return path.parent / os.fsdecode(name)


def is_unwritten(path: Path, frozen: Path) -> bool:
    """Whether a layer on a frozen disk was never written to: it maps no cluster of its own.

    Args:
        path: The layer, which no VM may be using.
        frozen: The disk that it was created on; a file that is no layer on it was written.

    Raises:
        HostError: It cannot be read.
    """
    try:
        below = backing_file(path)
        if below is None or below.resolve() != frozen.resolve():
            return False
        size = path.stat().st_size
        with path.open("rb") as layer:
            *_, entries, table_at = _HEADER.unpack(layer.read(_HEADER.size))
            if not entries or table_at > size:
                return False  # no layer that was just created is so
            layer.seek(table_at)
            table = layer.read(min(entries * _L1_ENTRY, _L1_BYTES))
    except PermissionError:  # it became QEMU's own, so a VM was started on it
        return False
    except OSError as error:
        raise HostError(f"{path} cannot be read: {error.strerror}; bring the file back") from error
    return len(table) == entries * _L1_ENTRY and not any(table)
