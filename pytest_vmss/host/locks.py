"""Locks between processes: a file that stays locked as long as its holder lives.

The kernel releases such a lock (``flock``) the moment its holder ends, however it ends, and
every process that sees the file sees the lock: also in another container, after the clock was
set, and if process ids are reused (Q2). Beyond what the library filelock does:

- locks may be shared;
- a lock's file may be removed by its holder: waiters notice, and lock the file that has
  replaced it, so that no lock files are left behind;
- a child does not inherit a lock. Programs lose it when they are executed, and after a bare
  fork (multiprocessing, pytest-forked) the child closes its copy: a dead process never looks
  alive because of its children, and a child that ends releases nothing of its parent's.
"""

from __future__ import annotations

import contextlib
import errno
import fcntl
import os
import threading
from pathlib import Path
from types import TracebackType
from typing import Self

from pytest_vmss.clock import SystemClock, wait_for
from pytest_vmss.errors import ConflictError, WaitTimeoutError

__all__ = ["Lock", "is_locked", "remove_if_unused", "try_lock", "wait_for_lock"]

_INTERVAL_S = 0.02

#: Descriptors of this process's locks, which a forked child closes.
_descriptors: set[int] = set()
_forking = threading.RLock()  # reentrant, as a signal handler may fork too


def _close_in_child() -> None:
    for descriptor in _descriptors:
        os.close(descriptor)
    _descriptors.clear()
    _forking.release()


os.register_at_fork(
    before=_forking.acquire, after_in_parent=_forking.release, after_in_child=_close_in_child
)


class Lock:
    """A lock that this process holds until it is released, or the process ends.

    Created by :func:`try_lock` and :func:`wait_for_lock`. As a context manager it releases the
    lock, and removes its file if the lock is exclusive.

    Attributes:
        path: Its file.
    """

    def __init__(self, path: Path, descriptor: int, *, shared: bool) -> None:
        self.path = path
        self._shared = shared
        self._descriptor: int | None = descriptor
        self._owner = os.getpid()

    @property
    def held(self) -> bool:
        """Whether this process still holds it."""
        return self._descriptor is not None and self._owner == os.getpid()

    def write(self, content: bytes, mode: int) -> None:
        """Writes into its file, which is empty, and into no other that has got its name.

        Raises:
            OSError: It cannot be written, or the lock is released.
        """
        if not self.held or self._descriptor is None:
            raise OSError(errno.EBADF, "the lock is released", str(self.path))
        os.fchmod(self._descriptor, mode)
        with open(self._descriptor, "wb", closefd=False) as file:
            file.write(content)

    def release(self) -> None:
        """Releases the lock; does nothing if it is released already, or in a forked child."""
        if self.held and self._descriptor is not None:
            _close(self._descriptor)
        self._descriptor = None

    def remove(self) -> None:
        """Removes the lock's file and releases the lock; others keep their shared locks.

        Raises:
            OSError: The file cannot be removed; the lock is released anyway.
        """
        try:
            if self.held:
                self.path.unlink(missing_ok=True)
        finally:
            self.release()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        if self._shared:
            self.release()
        else:
            with contextlib.suppress(OSError):  # a leftover file that is not locked does no harm
                self.remove()


def try_lock(path: Path, *, shared: bool = False) -> Lock | None:
    """Locks a file without waiting.

    Args:
        path: The file; created with mode 0600 if missing, as is its folder.
        shared: Whether others may hold a shared lock too.

    Returns:
        The lock; None if another process holds it.

    Raises:
        OSError: The file cannot be created or opened.
    """
    path.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
    while True:
        descriptor = _open(path, os.O_CREAT)
        try:
            is_free = _flock(descriptor, fcntl.LOCK_SH if shared else fcntl.LOCK_EX)
            is_there = _is_at(descriptor, path)
        except BaseException:
            _close(descriptor)
            raise
        if is_there and is_free:
            return Lock(path, descriptor, shared=shared)
        if is_there:
            _close(descriptor)
            return None
        _close(descriptor)  # its holder removed it meanwhile; it may have been replaced


def wait_for_lock(path: Path, *, what: str, timeout: float, shared: bool = False) -> Lock:
    """Locks a file, waiting for others to release it.

    Args:
        path: See :func:`try_lock`.
        what: What those others are doing, for the error message.
        timeout: In seconds.
        shared: See :func:`try_lock`.

    Raises:
        ConflictError: It was not released in time; nothing was changed.
        OSError: The file cannot be created or opened.
    """
    try:
        return wait_for(
            f"another process {what}",
            lambda: try_lock(path, shared=shared),
            timeout=timeout,
            clock=SystemClock(),
            interval=_INTERVAL_S,
        )
    except WaitTimeoutError:
        raise ConflictError(
            f"another process {what}, and has not ended within {timeout:.0f} s; wait for it, or "
            f"end it (`fuser -v {path}` tells which it is), and try again"
        ) from None


def is_locked(path: Path) -> bool:
    """Whether some process, including this one, holds a lock on a file.

    During the check, which takes a moment, others find the file locked.

    Raises:
        OSError: The file exists, but cannot be opened.
    """
    try:
        descriptor = _open(path, 0)
    except FileNotFoundError:
        return False
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return True
    finally:
        _close(descriptor)
    return False


def remove_if_unused(path: Path) -> None:
    """Removes a lock's file if a process was killed that held the lock, or waited for it.

    Raises:
        OSError: The file exists, but cannot be opened or removed.
    """
    lock = try_lock(path) if path.exists() else None
    if lock is not None:
        lock.remove()


def _open(path: Path, flags: int) -> int:
    """Opens a lock's file, and nothing that a link leads to: its folder may be another account's."""
    safe = os.O_CLOEXEC | os.O_NOFOLLOW | os.O_NONBLOCK
    with _forking:
        try:
            descriptor = os.open(path, os.O_RDWR | safe | flags, 0o600)
        except PermissionError:  # a read-only file; flock needs write access only over NFS
            descriptor = os.open(path, os.O_RDONLY | safe)
        _descriptors.add(descriptor)
    return descriptor


def _close(descriptor: int) -> None:
    with _forking:
        _descriptors.discard(descriptor)
        os.close(descriptor)


def _flock(descriptor: int, kind: int) -> bool:
    """Locks an open file; returns whether no other lock was in the way."""
    try:
        fcntl.flock(descriptor, kind | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    return True


def _is_at(descriptor: int, path: Path) -> bool:
    with contextlib.suppress(FileNotFoundError):
        return os.path.samestat(os.fstat(descriptor), path.stat())
    return False
