"""What a disk image really is, before anything is made from it (B4)."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from pytest_vmss.errors import ImageError, ToolError
from pytest_vmss.process import run

__all__ = ["DiskImage", "inspect"]

_MAGIC = b"QFI\xfb"
#: Status of qemu-img check for wasted space: nothing is lost.
_LEAKS_ONLY = 3


@dataclass(frozen=True)
class DiskImage:
    """A disk image that stands on its own.

    Attributes:
        path: The file.
        format: ``qcow2`` or ``raw``.
        virtual_size: Bytes of the disk that a guest sees.
    """

    path: Path
    format: Literal["qcow2", "raw"]
    virtual_size: int


def inspect(path: Path, *, raw: bool = False) -> DiskImage:
    """Checks a file that shall become an image version.

    Args:
        path: The file.
        raw: It is a raw disk image, which has nothing to tell it by.

    Raises:
        ImageError: It cannot be one; the message says why and what to do.
    """
    try:
        with path.open("rb") as file:
            head = file.read(512)
    except OSError as unreadable:
        raise ImageError(f"{path} cannot be read: {unreadable.strerror}") from unreadable
    if raw:
        if head[510:512] != b"\x55\xaa":
            raise ImageError(f"{path} is not a raw disk image: its first sector is no boot sector")
        return DiskImage(path, "raw", path.stat().st_size)
    if head[:4] != _MAGIC:
        raise ImageError(
            f"{path} is not a qcow2 image: it starts with {head[:4]!r}, not {_MAGIC!r}; "
            "convert it with: qemu-img convert -O qcow2 IN OUT (or publish a raw disk with raw)"
        )
    virtual_size = _check_header(path)
    _check_content(path)
    return DiskImage(path, "qcow2", virtual_size)


def _check_header(path: Path) -> int:
    """Refuses an image that is not whole; returns its virtual size in bytes."""
    try:
        info = json.loads(
            run(
                ["qemu-img", "info", "--output=json", "-f", "qcow2", path],
                what=f"reading the header of {path}",
            )
        )
    except ToolError as broken:
        raise ImageError(f"{path} is not a usable qcow2 image: {broken.stderr}") from broken
    data = info.get("format-specific", {}).get("data", {})
    flatten = "so it is not whole; flatten it with: qemu-img convert -O qcow2 IN OUT"
    if backing := info.get("backing-filename"):
        raise ImageError(f"{path} has a backing file ({backing}), {flatten}")
    if external := data.get("data-file"):
        raise ImageError(f"{path} keeps its data in another file ({external}), {flatten}")
    if data.get("corrupt"):
        raise ImageError(f"{path} is marked corrupt; try: qemu-img check -r all IN")
    if info.get("encrypted"):
        raise ImageError(f"{path} is encrypted; guests here cannot be given its key")
    return int(info["virtual-size"])


def _check_content(path: Path) -> None:
    """Refuses an image whose tables do not fit together."""
    try:
        run(["qemu-img", "check", "-q", "-f", "qcow2", path], what=f"checking {path}")
    except ToolError as broken:
        if broken.returncode != _LEAKS_ONLY:
            raise ImageError(
                f"{path} is damaged: {broken.stderr or 'qemu-img check found errors'}; "
                "try: qemu-img check -r all IN"
            ) from broken
