"""The serial console: how far a boot got, and what went wrong (E5)."""

from __future__ import annotations

import os
import re
from pathlib import Path
from typing import Literal

__all__ = ["Console", "Trouble"]

Trouble = Literal["panic", "no boot"]

_TAIL_LINES = 40
_TAIL_BYTES = 16384
#: What is looked at of a boot that writes much: its beginning and its end.
_LOOK_BYTES = 1024 * 1024

_TROUBLE: tuple[tuple[Trouble, re.Pattern[bytes]], ...] = (
    ("panic", re.compile(rb"Kernel panic - not syncing")),
    ("no boot", re.compile(rb"No bootable device|grub rescue>|Boot failed: not a bootable disk")),
    ("no boot", re.compile(rb"error: [^\n]*\bnot found\.\s*error: you need to load the kernel")),
)

#: Signs on the console of how far a boot got, furthest last.
_MILESTONES: tuple[tuple[str, re.Pattern[bytes]], ...] = (
    ("the firmware", re.compile(rb"SeaBIOS|BdsDxe|UEFI")),
    ("the boot loader", re.compile(rb"GRUB|ISOLINUX|systemd-boot")),
    ("the kernel", re.compile(rb"Linux version|\[ +\d+\.\d+\] ")),
    ("systemd", re.compile(rb"systemd\[1\]|Welcome to |\[  OK  \]|Reached target")),
    ("cloud-init", re.compile(rb"cloud-init\[\d+\]|Cloud-init v\.")),
    ("a login prompt", re.compile(rb" login: ?")),
    ("the end of cloud-init", re.compile(rb"Cloud-init v\. \S+ finished at")),
)

_CONTROL = re.compile(r"\x1b\[[0-9;?]*[A-Za-z]|\x1b[=>()][0-9A-B]?|[\x00-\x08\x0b-\x1f\x7f]")


class Console:
    """The console log of one generation.

    Args:
        path: The log; it need not exist yet.
        start: Bytes of earlier boots, which do not count.
    """

    def __init__(self, path: Path, start: int = 0) -> None:
        self.path = path
        self._start = start

    def _read(self, count: int, *, end: bool = False) -> bytes:
        """So many bytes of this boot, from its beginning or up to its end.

        What earlier boots wrote is not read: logs grow as long as instances live.
        """
        try:
            with self.path.open("rb") as file:
                size = file.seek(0, os.SEEK_END)
                file.seek(max(self._start, size - count) if end else self._start)
                return file.read(count)
        except FileNotFoundError:
            return b""

    def _look(self) -> bytes:
        beginning = self._read(_LOOK_BYTES)
        if len(beginning) < _LOOK_BYTES:
            return beginning
        return beginning + self._read(_LOOK_BYTES, end=True)

    def trouble(self) -> Trouble | None:
        """What the console says went wrong in this boot, if anything."""
        text = self._look()
        for trouble, pattern in _TROUBLE:
            if pattern.search(text):
                return trouble
        return None

    def milestone(self) -> str:
        """How far the boot got, in words."""
        text = self._look()
        for milestone, pattern in reversed(_MILESTONES):
            if pattern.search(text):
                return f"reached {milestone}"
        return "the console shows nothing" if not text.strip() else "the console shows no boot"

    def tail(self, lines: int = _TAIL_LINES) -> str:
        """This boot's last lines, as a person would have read them."""
        text = self._read(_TAIL_BYTES, end=True).decode(errors="replace")
        clean = [line.rstrip() for line in _CONTROL.sub("", text).splitlines()]
        return "\n".join([line for line in clean if line][-lines:])
