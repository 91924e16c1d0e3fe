"""Reads files from an ext4 file system in a disk, without mounting it and without root (R3, O5)."""

from __future__ import annotations

import re
from dataclasses import dataclass, field

from pytest_vmss.clock import Deadline
from pytest_vmss.errors import ImageError, ToolError
from pytest_vmss.host.process import Bounds, run

__all__ = ["ExtFileSystem", "Patience"]

#: For the whole program, which reads what nobody has checked.
_BOUNDS = Bounds(memory_mib=512, cpu_s=20, file_mib=0)
_LIMIT_S = 60.0
_OUTPUT_MIB = 16
#: For all that is read from one image. A usual one takes a second or two.
_WHOLE_LIMIT_S = 120.0
#: Paths are the lab's own, or names that it has read and these allow.
_NAME = re.compile(r"[A-Za-z0-9@._+~-]{1,200}")
_TARGET = re.compile(r"[A-Za-z0-9@._+~/-]{1,1000}")
_SHORT_LINK = re.compile(rb'^Fast link dest: "([^"\n]*)"', re.M)
_MOST_LINKS = 8


@dataclass(frozen=True)
class Patience:
    """How long an image may be looked into; how often, its own names and partitions decide."""

    deadline: Deadline = field(default_factory=lambda: Deadline(_WHOLE_LIMIT_S))

    def left(self) -> float:
        """Returns the seconds that are left.

        Raises:
            ImageError: None are.
        """
        left = self.deadline.left()
        if left <= 0:
            raise ImageError(
                f"looking into the image took longer than its limit of {_WHOLE_LIMIT_S:.0f} s: its "
                "file systems are damaged, or made to cost time; try: e2fsck on a copy of it, or "
                "say how it is provisioned instead of auto"
            )
        return left


@dataclass(frozen=True)
class ExtFileSystem:
    """An ext2, ext3 or ext4 file system inside a file.

    Attributes:
        disk: Descriptor of the file.
        offset: Where the file system starts in it, in bytes.
        patience: How long all file systems of the disk may be read; ends with ImageError.
    """

    disk: int
    offset: int
    patience: Patience

    def read(self, path: str) -> bytes:
        """Returns a file's content; empty if there is none, or it cannot be read.

        Symbolic links are followed, inside the file system.

        Args:
            path: Its absolute path.
        """
        for _ in range(_MOST_LINKS):
            found = self._ask(f"stat {path}")
            if (link := self._link(path, found)) is None:
                return self._ask(f"cat {path}") if b" Type: regular " in found else b""
            if not _TARGET.fullmatch(link):
                return b""
            near = link if link.startswith("/") else f"{path.rpartition('/')[0]}/{link}"
            path = re.sub("/+", "/", near)  # debugfs takes none twice
        return b""

    def _link(self, path: str, found: bytes) -> str | None:
        """What a symbolic link leads to; None if the file that was found is none."""
        if b" Type: symlink " not in found:
            return None
        short = _SHORT_LINK.search(found)
        return (short[1] if short else self._ask(f"cat {path}")).decode(errors="replace")

    def names(self, folder: str) -> list[str]:
        """Returns the names in a folder, sorted; empty if there is none.

        Names that a configuration or a program would not have are left out.

        Args:
            folder: Its absolute path.
        """
        listed = self._ask(f"ls -p {folder}").decode(errors="replace")
        names = (line.split("/")[5] for line in listed.splitlines() if line.count("/") > 5)
        return sorted(name for name in names if _NAME.fullmatch(name) and name not in (".", ".."))

    def has(self, *paths: str) -> bool:
        """Whether one of some absolute paths exists, as a file, folder or link."""
        return any(
            path.rpartition("/")[2] in self.names(path.rpartition("/")[0] or "/") for path in paths
        )

    def _ask(self, request: str) -> bytes:
        try:
            return run(
                ["debugfs", "-R", request, f"/proc/self/fd/{self.disk}?offset={self.offset}"],
                what="reading the image's file system",
                timeout=min(_LIMIT_S, self.patience.left()),
                pass_fds=(self.disk,),
                bounds=_BOUNDS,
                output_mib=_OUTPUT_MIB,
            )
        except ToolError:
            return b""  # whatever is wrong with it, nothing was found
