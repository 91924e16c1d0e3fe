"""Files that are there whole or not at all, also after a power cut.

A new file is written under another name beside its own, synchronised, renamed,
and its folder synchronised: without the last the name may be gone after a crash
although the journal says that it is there.
"""

from __future__ import annotations

import os
import secrets
from pathlib import Path

__all__ = ["PART", "settle", "sync", "sync_folder", "write_durably"]

#: How the names end of files that are still being written.
PART = ".part"


def write_durably(path: Path, data: bytes, *, mode: int = 0o600, replace: bool = True) -> None:
    """Writes a file, whole and durable, or not at all.

    Args:
        path: The file; its folder must exist.
        data: All of it.
        mode: Its permissions from the beginning, whatever the umask.
        replace: Whether it may take the place of an older file.

    Raises:
        FileExistsError: There is one already, and it may not be replaced.
        OSError: The host refused; nothing is left of the attempt.
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
    """Gives a finished file its name, durably.

    Args:
        part: The file under the name that it was written by.
        path: Its own name, in the same file system.
        replace: Whether it may take the place of an older file.

    Raises:
        FileExistsError: There is one already, and it may not be replaced.
    """
    sync(part)
    if replace:
        part.replace(path)
    else:
        os.link(part, path)
        part.unlink()
    sync_folder(path.parent)


def sync(path: Path) -> None:
    """Makes a file's content durable."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def sync_folder(folder: Path) -> None:
    """Makes names that came to a folder, or left it, durable."""
    descriptor = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
