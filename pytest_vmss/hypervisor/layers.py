"""Reads from a disk's header what it is based on, and whether it holds anything of its own."""

from __future__ import annotations

import os
import struct
from pathlib import Path

from pytest_vmss.errors import HostError

__all__ = ["backing_file", "is_unwritten"]

#: The fields of a qcow2 header up to the place of the L1 table, which maps all that is written.
_HEADER = struct.Struct(">4sIQIIQIIQ")
_MAGIC = b"QFI\xfb"
_L1_ENTRY = 8
#: QEMU's own limits of an L1 table and of the name of a backing file.
_L1_BYTES = 32 * 1024**2
_NAME_BYTES = 1023


def backing_file(path: Path) -> Path | None:
    """The file on which a disk is based, as its header says; None if it is based on none.

    Raises:
        OSError: It cannot be read.
    """
    with path.open("rb") as disk:
        head = disk.read(_HEADER.size)
        if len(head) < _HEADER.size or not head.startswith(_MAGIC):
            return None
        _, _, name_at, length, *_ = _HEADER.unpack(head)
        disk.seek(name_at)
        name = disk.read(min(length, _NAME_BYTES))
    if not name_at or not name:
        return None
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
        if backing_file(path) != frozen:
            return False
        with path.open("rb") as layer:
            *_, entries, table_at = _HEADER.unpack(layer.read(_HEADER.size))
            layer.seek(table_at)
            table = layer.read(min(entries * _L1_ENTRY, _L1_BYTES))
    except PermissionError:  # it became QEMU's own, so a VM was started on it
        return False
    except OSError as error:
        raise HostError(f"{path} cannot be read: {error.strerror}; bring the file back") from error
    return len(table) == entries * _L1_ENTRY and not any(table)
