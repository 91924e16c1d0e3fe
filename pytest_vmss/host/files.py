"""Writes files atomically and durably: whole or not at all, even after a power failure.

A new file is written under a temporary name beside its own, synced and renamed, and its
folder synced: without that the name may be gone after a crash although the journal says
that the file exists.
"""

from __future__ import annotations

import os
import secrets
from pathlib import Path

__all__ = ["PART", "settle", "sync", "sync_folder", "write_durably"]

#: Suffix of files that are still being written.
PART = ".part"


def write_durably(path: Path, data: bytes, *, mode: int = 0o600, replace: bool = True) -> None:
    """Writes a file durably: whole or not at all.

    Args:
        path: The file; its folder must exist.
        data: The whole content.
        mode: Its permissions, whatever the umask.
        replace: Whether an existing file may be replaced.

    Raises:
        FileExistsError: The file exists and may not be replaced.
        OSError: It cannot be written; nothing is left behind.
    """
    part = path.with_name(f".{path.name}-{secrets.token_hex(4)}{PART}")
    try:
        with os.fdopen(os.open(part, os.O_CREAT | os.O_EXCL | os.O_WRONLY, 0o600), "wb") as file:
            file.write(data)
            os.fchmod(file.fileno(), mode)
        settle(part, path, replace=replace)
    except BaseException:
        part.unlink(missing_ok=True)
        raise


def settle(part: Path, path: Path, *, replace: bool = True) -> None:
    """Syncs a finished file and renames it durably.

    Args:
        part: The file under its temporary name.
        path: Its final name, in the same file system.
        replace: Whether an existing file may be replaced.

    Raises:
        FileExistsError: The file exists and may not be replaced.
    """
    sync(part)
    if replace:
        part.replace(path)
    else:
        os.link(part, path)
        part.unlink()
    sync_folder(path.parent)


def sync(path: Path) -> None:
    """Makes a file's content durable, by fsync."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def sync_folder(folder: Path) -> None:
    """Makes additions and removals of a folder's entries durable, by fsync."""
    descriptor = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
