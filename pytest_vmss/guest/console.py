"""Reads the serial console: how far a boot got, and how it failed (E5)."""

from __future__ import annotations

import contextlib
import os
import re
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Literal

from pytest_vmss.guest.console_log import LogPosition
from pytest_vmss.untrusted import clean, ending

__all__ = ["Console", "Trouble"]

Trouble = Literal["panic", "no boot"]

_TAIL_LINES = 40
_DATASOURCE_LINES = 200
_TAIL_BYTES = 16384
_LINE_CHARS = 500
#: Maximum number of bytes read per call, both at the start and at the end of new output.
_LOOK_BYTES = 1024 * 1024
#: Bytes searched at once; Python's other threads are blocked meanwhile.
_CHUNK = 128 * 1024
#: Bytes searched again with the next chunk, since words may be split between the two.
_OVERLAP = 512

# A guest may write anything, so all searches run in linear time.
_TROUBLE: tuple[tuple[Trouble, tuple[bytes, ...]], ...] = (
    ("panic", (b"Kernel panic - not syncing",)),
    ("no boot", (b"No bootable device", b"grub rescue>", b"Boot failed: not a bootable disk")),
)
#: GRUB's second message; the first, before it, says that a file was "not found".
_NO_KERNEL = b"error: you need to load the kernel"
_NOT_FOUND_BYTES = 400

#: Console output that shows how far a boot got, furthest last.
_MILESTONES: tuple[tuple[str, tuple[bytes | re.Pattern[bytes], ...]], ...] = (
    ("the firmware", (b"SeaBIOS", b"BdsDxe", b"UEFI")),
    ("the boot loader", (b"GRUB", b"ISOLINUX", b"systemd-boot")),
    ("the kernel", (b"Linux version", re.compile(rb"\[ {1,12}+\d{1,12}+\.\d{1,12}+\] "))),
    ("systemd", (b"systemd[1]", b"Welcome to ", b"[  OK  ]", b"Reached target")),
    ("cloud-init", (re.compile(rb"cloud-init\[\d{1,10}+\]"), b"Cloud-init v.")),
    ("a login prompt", (b" login:",)),
    ("the end of cloud-init", (re.compile(rb"Cloud-init v\. \S{1,64}+ finished at"),)),
)

_DATASOURCE = re.compile(
    r"finished at [^\n]{1,80}\. Datasource (DataSource\w{1,40}(?: \[[^\]\n]{1,100}\])?)"
)


class Console:
    """Follows the console log of one generation as it grows.

    Args:
        path: The log; it need not exist yet.
        start: Bytes at the start to ignore, which are from earlier boots.
        mask: Masks the secrets in what is shown of it.
    """

    def __init__(self, path: Path, start: int = 0, *, mask: Callable[[str], str] = str) -> None:
        self.path = path
        self._mask = mask
        self._start = start
        self._lock = threading.Lock()
        self._position = LogPosition(start)
        self._overlap = b""
        self._trouble: Trouble | None = None
        self._reached = -1
        self._blank = True

    def _look(self) -> None:
        """Searches new output; if there is very much, only its start and its end."""
        # Errors mean that it is missing or unreadable now; the next call tries again.
        with self._lock, contextlib.suppress(OSError), self._opened() as descriptor:
            at = self._position
            if at.settle(descriptor):
                self._start, self._overlap = 0, b""
            size = os.fstat(descriptor).st_size
            self._search(descriptor, min(size, at.offset + _LOOK_BYTES))
            if size - _LOOK_BYTES > at.offset:
                at.move(size - _LOOK_BYTES)
                self._overlap = b""
            self._search(descriptor, size)

    @contextlib.contextmanager
    def _opened(self) -> Iterator[int]:
        descriptor = os.open(self.path, os.O_RDONLY | os.O_CLOEXEC | os.O_NONBLOCK)
        try:
            yield descriptor
        finally:
            os.close(descriptor)

    def _search(self, descriptor: int, end: int) -> None:
        at = self._position
        while at.offset < end:
            part = os.pread(descriptor, min(_CHUNK, end - at.offset), at.offset)
            if not part:
                return
            at.advance(part)
            self._take(self._overlap + part)
            self._overlap = part[-_OVERLAP:]

    def _take(self, text: bytes) -> None:
        if self._blank:
            self._blank = not text.strip(b" \t\r\n\0")
        if self._trouble is None:
            self._trouble = _trouble_in(text)
        for index in range(len(_MILESTONES) - 1, self._reached, -1):
            if any(
                sign in text if isinstance(sign, bytes) else sign.search(text)
                for sign in _MILESTONES[index][1]
            ):
                self._reached = index
                return

    def trouble(self) -> Trouble | None:
        """Returns the failure that the console shows for this boot, or None."""
        self._look()
        return self._trouble

    def milestone(self) -> str:
        """Describes how far the boot got, for messages."""
        self._look()
        if self._reached >= 0:
            return f"reached {_MILESTONES[self._reached][0]}"
        return "the console shows nothing" if self._blank else "the console shows no boot"

    def datasource(self) -> str:
        """What cloud-init says near the end that it found, such as ``DataSourceNone``, or nothing."""
        found = _DATASOURCE.findall(self.tail(_DATASOURCE_LINES))
        return found[-1] if found else ""

    def tail(self, lines: int = _TAIL_LINES) -> str:
        """Returns this boot's last lines, without control sequences."""
        self._look()  # the log may have been replaced meanwhile
        text = b""
        with contextlib.suppress(OSError), self._opened() as descriptor:
            size = os.fstat(descriptor).st_size
            begin = max(min(self._start, size), size - _TAIL_BYTES)
            text = os.pread(descriptor, _TAIL_BYTES, begin)
        told = self._mask(ending(clean(text.decode(errors="replace")), _TAIL_BYTES - 1))
        last = [line for line in map(str.rstrip, told.split("\n")) if line][-lines:]
        return "\n".join(line[:_LINE_CHARS] for line in last)


def _trouble_in(text: bytes) -> Trouble | None:
    for trouble, signs in _TROUBLE:
        if any(sign in text for sign in signs):
            return trouble
    at = text.find(_NO_KERNEL)
    while at >= 0:
        line = text[max(0, at - _NOT_FOUND_BYTES) : at].rstrip().rpartition(b"\n")[2]
        if b"error: " in line and line.endswith(b" not found."):
            return "no boot"
        at = text.find(_NO_KERNEL, at + len(_NO_KERNEL))
    return None
