"""Limits the disk space of serial console logs, keeping their start and end (R2).

QEMU appends whatever the guest writes, possibly without end. So a hole is punched into the
middle of a log that has grown too large: that frees the space, while QEMU keeps appending and
no offset changes.
"""

from __future__ import annotations

import codecs
import contextlib
import ctypes
import errno
import io
import os
import threading
from collections.abc import Iterator
from pathlib import Path

from pytest_vmss.untrusted import clean

__all__ = ["HEAD_BYTES", "TAIL_BYTES", "LogKeeper", "LogPosition", "LogReader", "cap_log"]

#: Bytes kept at each end of a long log.
HEAD_BYTES = 4 * 1024 * 1024
TAIL_BYTES = 4 * 1024 * 1024
#: Bytes on the disk above which a hole is punched.
_CAP_BYTES = 16 * 1024 * 1024
#: Seconds between two checks of a lab's logs.
_EVERY_S = 2.0
_BLOCK = 4096
_CHUNK = 64 * 1024
_KEEP_SIZE, _PUNCH_HOLE = 1, 2  # from linux/falloc.h
_SECTOR = 512
#: Number of last-read bytes by which a log is recognized as unchanged.
_KNOWN_BY = 64

_libc = ctypes.CDLL(None, use_errno=True)
_fallocate = getattr(_libc, "fallocate64", None) or _libc.fallocate
_fallocate.argtypes = (ctypes.c_int, ctypes.c_int, ctypes.c_int64, ctypes.c_int64)


def cap_log(path: Path) -> bool:
    """Punches a hole into the middle of a log that takes up too much disk space.

    Args:
        path: The log.

    Returns:
        Whether a hole was punched.

    Raises:
        OSError: The log cannot be opened, or its file system does not support holes.
    """
    descriptor = os.open(path, os.O_WRONLY | os.O_NOFOLLOW | os.O_CLOEXEC | os.O_NONBLOCK)
    try:
        found = os.fstat(descriptor)
        end = (found.st_size - TAIL_BYTES) // _BLOCK * _BLOCK
        if found.st_blocks * _SECTOR <= _CAP_BYTES or end <= HEAD_BYTES:
            return False
        _punch(descriptor, HEAD_BYTES, end - HEAD_BYTES)
        return True
    finally:
        os.close(descriptor)


def _punch(descriptor: int, offset: int, length: int) -> None:
    """Punches a hole into a file; Python has no function for it."""
    if _fallocate(descriptor, _KEEP_SIZE | _PUNCH_HOLE, offset, length) != 0:
        number = ctypes.get_errno()
        raise OSError(number, os.strerror(number))


class LogPosition:
    """How far a log has been read, and whether it is still the same log.

    A daemon may create a new file or truncate this one, which may have outgrown the old one by
    the next read.

    Args:
        offset: Where reading starts.

    Attributes:
        offset: Offset up to which the log has been read.
    """

    def __init__(self, offset: int = 0) -> None:
        self.offset = offset
        self._file: tuple[int, int] | None = None
        self._last = b""

    def settle(self, descriptor: int) -> bool:
        """Resets the offset to 0 if the log was replaced or truncated.

        Args:
            descriptor: The log as it is open now.

        Returns:
            Whether it was replaced or truncated.

        Raises:
            OSError: It cannot be read.
        """
        about = os.fstat(descriptor)
        known, self._file = self._file, (about.st_dev, about.st_ino)
        is_same = known in (None, self._file) and about.st_size >= self.offset
        if is_same and self._last:
            last = os.pread(descriptor, len(self._last), self.offset - len(self._last))
            # A hole punched there meanwhile reads as zeros.
            is_same = last == self._last or not last.strip(b"\0")
        if not is_same:
            self.move(0)
        return not is_same

    def advance(self, part: bytes) -> None:
        """Advances past a part that was read."""
        self.offset += len(part)
        self._last = (self._last + part[-_KNOWN_BY:])[-_KNOWN_BY:]

    def move(self, offset: int) -> None:
        """Continues at another offset."""
        self.offset, self._last = offset, b""


class LogKeeper:
    """Caps a lab's console logs in a background thread while the lab is open.

    Args:
        folder: The folder of the lab's sets, which contain a folder for each instance.
        every: Seconds between two checks.
    """

    def __init__(self, folder: Path, *, every: float = _EVERY_S) -> None:
        self._folder = folder
        self._every = every
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._run, name="vmss-consoles", daemon=True)

    def start(self) -> None:
        """Starts the thread, unless it has been started."""
        if self._thread.ident is None:
            self._thread.start()

    def close(self) -> None:
        """Stops the thread and waits for it."""
        self._stop.set()
        if self._thread.ident is not None:
            self._thread.join()

    def look(self) -> None:
        """Caps the logs that are too large now; any that cannot be capped are left alone."""
        for path in self._folder.glob("*/*/console-*.log"):
            with contextlib.suppress(OSError):  # gone, another user's, or no support for holes
                if path.lstat().st_blocks * _SECTOR > _CAP_BYTES:
                    cap_log(path)

    def _run(self) -> None:
        while not self._stop.wait(self._every):
            with contextlib.suppress(OSError):  # folders come and go meanwhile
                self.look()


class LogReader:
    """Reads a log as text from its start, as it grows.

    Args:
        path: The log; it need not exist yet.
    """

    def __init__(self, path: Path) -> None:
        self._path = path
        self._position = LogPosition()
        self._newlines = io.IncrementalNewlineDecoder(
            codecs.getincrementaldecoder("utf-8")("replace"), translate=True
        )

    def read(self) -> Iterator[str]:
        """Yields the output since the last call, cleaned, and a note for each part left out."""
        try:
            descriptor = os.open(self._path, os.O_RDONLY | os.O_CLOEXEC | os.O_NONBLOCK)
        except OSError:  # not there yet, or unreadable now
            return
        try:
            with contextlib.suppress(OSError):  # a folder, or a failing disk
                yield from self._read(descriptor)
        finally:
            os.close(descriptor)

    def _read(self, descriptor: int) -> Iterator[str]:
        at = self._position
        if at.settle(descriptor):
            self._newlines.reset()
        # Output that arrives during this call is left to the next one.
        size = os.fstat(descriptor).st_size
        while at.offset < size:
            data = _data_from(descriptor, at.offset, size)
            if data - at.offset >= _CHUNK:
                yield f"\n[... {_told(data - at.offset)} left out ...]\n"
                at.move(data)
                continue
            part = os.pread(descriptor, min(_CHUNK, size - at.offset), at.offset)
            if not part:
                return
            at.advance(part)
            yield clean(self._newlines.decode(part))


def _data_from(descriptor: int, offset: int, size: int) -> int:
    """Returns the offset of the next data at or after an offset."""
    try:
        return min(os.lseek(descriptor, offset, os.SEEK_DATA), size)
    except OSError as error:
        return size if error.errno == errno.ENXIO else offset


def _told(count: int) -> str:
    return f"{count >> 20} MiB" if count >= 1 << 20 else f"{count >> 10} KiB"
