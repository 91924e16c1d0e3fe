"""The cache of checkpoints, shared by all labs of a user; limited in size."""

from __future__ import annotations

import contextlib
import os
import re
import secrets
import shutil
import stat
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from pytest_vmss.checkpoints.files import CheckpointFiles, Manifest
from pytest_vmss.errors import CheckpointError, ConflictError, HostError
from pytest_vmss.host.files import PART, sync_folder, write_durably
from pytest_vmss.host.locks import Lock, try_lock, wait_for_lock
from pytest_vmss.host.ownership import require_trusted
from pytest_vmss.untrusted import one_line, read_regular

__all__ = ["CheckpointCache", "Entry"]

_KEY = re.compile(r"[0-9a-f]{32}")
#: The same, and the notes of sets that could not be saved, for glob.
_ANY_KEY = "[0-9a-f]" * 32
_REFUSAL = f".{_ANY_KEY}.refused"
#: Seconds to wait for processes that link or remove files, which takes moments.
_LOCK_S = 60.0
_BLOCK = 512
#: Seconds after which a set is saved again that could not be: what refused it may have been mended.
_REFUSED_S = 3600.0
_REFUSAL_BYTES, _TOLD_CHARS = 4096, 300


@dataclass(frozen=True)
class Entry:
    """A checkpoint in the cache.

    Attributes:
        manifest: What it holds; None if that cannot be read.
        key: Its key.
        size: Bytes that it takes up on disk.
        used: When it was last used, in seconds since the epoch.
    """

    manifest: Manifest | None
    key: str
    size: int
    used: float


class CheckpointCache:
    """Checkpoints by key.

    A lab links the files of a checkpoint into its own folder, so it keeps what it uses, whatever
    is removed from the cache.

    Args:
        folder: The folder, in the file system of the labs.
        limit: Size in bytes above which the least recently used ones are removed.
    """

    def __init__(self, folder: Path, limit: int) -> None:
        self._folder = folder
        self._limit = limit

    @contextlib.contextmanager
    def being_made(self, key: str, *, wait: float) -> Iterator[None]:
        """Makes other processes that need the same checkpoint wait until it is made.

        After ``wait`` seconds a process goes on without waiting any longer: both then boot.

        Raises:
            OSError: The lock cannot be created. Its end never fails: the set is there by then.
        """
        self._require_own()
        lock: Lock | None = None
        with contextlib.suppress(ConflictError):
            lock = wait_for_lock(
                self._folder / f".{key}.lock", what=f"makes the checkpoint {key}", timeout=wait
            )
        try:
            yield
        finally:
            if lock is not None:
                with contextlib.suppress(OSError):  # a file that is not locked does no harm
                    lock.remove()

    def take(self, key: str, folder: Path) -> bool:
        """Links a checkpoint into a lab.

        Args:
            key: Its key.
            folder: The folder to create.

        Returns:
            Whether there is such a checkpoint.

        Raises:
            OSError: It cannot be linked, e.g. since the lab is in another file system; or the
                cache is not the user's own.
            HostError: Something is in the way in the folder.
            ConflictError: Another process holds the cache for too long.
        """
        source = self._folder / key
        if not source.exists():
            return False
        with self._locked():
            if not CheckpointFiles(source).manifest.exists():
                return False
            _link(source, folder)
            os.utime(CheckpointFiles(source).manifest)
        return True

    def keep(self, key: str, folder: Path) -> None:
        """Adds a lab's checkpoint; see also :meth:`shrink`.

        Args:
            key: Its key; another of the same key stays as it is.
            folder: The lab's folder of it.

        Raises:
            OSError: It cannot be linked, e.g. since the lab is in another file system; or the
                cache is not the user's own.
            HostError: Something is in the way in the folder.
            ConflictError: Another process holds the cache for too long.
        """
        with self._locked():
            target = self._folder / key
            if not CheckpointFiles(target).manifest.exists():
                self._remove(key)
                _link(folder, target)
            with contextlib.suppress(OSError):  # whoever looks finds the checkpoint first
                self._refusal(key).unlink(missing_ok=True)

    def shrink(self, *, spare: str) -> None:
        """Removes the least recently used checkpoints above the cache's limit.

        Args:
            spare: The key of one that stays: it was just added.

        Raises:
            OSError: One cannot be removed, or the cache is not the user's own.
            ConflictError: Another process holds the cache for too long.
        """
        with self._locked():
            self._shrink(self._limit, spare=spare)

    def note_refusal(self, key: str, why: str) -> None:
        """Notes that a set could not be saved, so that others like it boot without trying or waiting.

        Older notes, which count no more, are removed.

        Raises:
            OSError: It cannot be written, or the cache is not the user's own.
            ConflictError: Another process holds the cache for too long.
        """
        with self._locked():
            for noted in self._folder.glob(_REFUSAL):
                if not _is_recent(noted):
                    _delete(noted)
            write_durably(self._refusal(key), why.encode(errors="replace")[:_REFUSAL_BYTES])

    def refusal(self, key: str) -> str:
        """Why a set could not be saved, if that was tried within the last hour; else empty.

        Raises:
            OSError: The cache is not the user's own.
        """
        require_trusted(self._folder)
        noted = self._refusal(key)
        try:
            if not _is_recent(noted):
                return ""
            return one_line(
                read_regular(noted, _REFUSAL_BYTES).decode(errors="replace"), _TOLD_CHARS
            )
        except OSError:
            return ""

    def _refusal(self, key: str) -> Path:
        return self._folder / f".{key}.refused"

    def discard(self, key: str) -> None:
        """Removes a checkpoint that cannot be restored, so that it is made anew.

        Raises:
            OSError: It cannot be removed, or the cache is not the user's own.
            ConflictError: Another process holds the cache for too long.
        """
        with self._locked():
            self._remove(key)

    def entries(self) -> list[Entry]:
        """The checkpoints, the least recently used first."""
        found = []
        with contextlib.suppress(FileNotFoundError):
            for folder in self._folder.iterdir():
                if _KEY.fullmatch(folder.name) and folder.is_dir():
                    with contextlib.suppress(FileNotFoundError):  # removed just now
                        found.append(_entry(folder))
        return sorted(found, key=lambda entry: (entry.used, entry.key))

    def prune(self, limit: int = 0) -> list[Entry]:
        """Removes the least recently used checkpoints until the rest is within a limit.

        Args:
            limit: In bytes; 0 removes all.

        Returns:
            Those removed. What is noted of sets that could not be saved goes too, and the locks
            that killed processes left.

        Raises:
            OSError: One cannot be removed, or the cache is not the user's own.
            ConflictError: Another process holds the cache for too long.
        """
        try:
            self._folder.stat()
        except FileNotFoundError:
            return []
        with self._locked():
            _sweep(self._folder)
            for noted in self._folder.glob(_REFUSAL):
                _delete(noted)
            for path in self._folder.glob(f".{_ANY_KEY}.lock"):
                if (lock := try_lock(path)) is not None:
                    lock.remove()
            return self._shrink(limit)

    def _shrink(self, limit: int, *, spare: str = "") -> list[Entry]:
        entries = self.entries()
        total = sum(entry.size for entry in entries)
        removed = []
        for entry in entries:
            if total <= limit or entry.key == spare:
                continue
            self._remove(entry.key)
            total -= entry.size
            removed.append(entry)
        return removed

    def _remove(self, key: str) -> None:
        folder = self._folder / key
        if os.path.lexists(folder):
            part = _part(folder)
            folder.rename(part)  # a kill here leaves no half of one
            _delete(part)

    @contextlib.contextmanager
    def _locked(self) -> Iterator[None]:
        self._require_own()
        lock = wait_for_lock(
            self._folder / ".lock", what="changes the cache of checkpoints", timeout=_LOCK_S
        )
        try:
            yield
        finally:
            lock.release()  # its file stays

    def _require_own(self) -> None:
        self._folder.mkdir(parents=True, exist_ok=True, mode=0o700)
        require_trusted(self._folder)


def _link(source: Path, target: Path) -> None:
    """Links all files of a folder into a new one: all of them, or none.

    Whatever else lies there, such as folders and symbolic links, is no part of a checkpoint.
    """
    target.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
    _sweep(target.parent)
    made = part = _part(target)
    part.mkdir(mode=0o700)
    try:
        for file in source.iterdir():
            if stat.S_ISREG(file.lstat().st_mode) and not file.name.endswith(PART):
                os.link(file, part / file.name)
        sync_folder(part)
        if target.exists():
            raise HostError(f"{target} is in the way of a checkpoint; remove it")
        made = part.rename(target)
        sync_folder(target.parent)
    except BaseException:
        shutil.rmtree(made, ignore_errors=True)
        raise


def _is_recent(noted: Path) -> bool:
    """Whether a note still counts; one that the clock was set back behind does not."""
    return 0 <= time.time() - noted.stat().st_mtime < _REFUSED_S


def _part(folder: Path) -> Path:
    """A name for a folder that is being made or removed."""
    return folder.with_name(f"{folder.name}-{secrets.token_hex(4)}{PART}")


def _sweep(folder: Path) -> None:
    """Removes what killed processes left half made or removed; others would hold the cache's lock."""
    for left in folder.glob(f"*{PART}"):
        _delete(left)


def _delete(path: Path) -> None:
    """Removes a folder with everything in it, or whatever else there is."""
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path)
    else:
        path.unlink()


def _entry(folder: Path) -> Entry:
    files = CheckpointFiles(folder)
    manifest = None
    with contextlib.suppress(CheckpointError, HostError):
        manifest = files.read()
    size = sum(file.lstat().st_blocks * _BLOCK for file in folder.iterdir())
    used = files.manifest if os.path.lexists(files.manifest) else folder
    return Entry(manifest, folder.name, size, used.lstat().st_mtime)
