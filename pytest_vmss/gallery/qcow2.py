"""What a disk image really is, before anything is made from it (B4)."""

from __future__ import annotations

import json
import os
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from pytest_vmss.errors import ImageError, ToolError
from pytest_vmss.gallery.content import open_regular
from pytest_vmss.gallery.header import HEAD_BYTES, MAGIC, check_head, check_size
from pytest_vmss.process import ChildLimits, run
from pytest_vmss.settings import ImageLimits

__all__ = ["DiskImage", "check_file", "inspect", "source_options"]

#: Status of qemu-img check for wasted space: nothing is lost.
_LEAKS_ONLY = 3
#: For programs that only read an image.
_READS = ChildLimits(memory=1024**3, cpu=60, file=0)


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


def inspect(
    path: Path,
    *,
    raw: bool = False,
    limits: ImageLimits | None = None,
    name: Path | None = None,
) -> DiskImage:
    """Checks a file that shall become an image version.

    Args:
        path: The file; where it is not trusted, a private copy of it.
        raw: It is a raw disk image, which has nothing to tell it by.
        limits: What an image may cost; None for the usual.
        name: What to call the file in messages; None for its path.

    Raises:
        ImageError: It cannot be one; the message says why and what to do.
    """
    name = name or path
    with open_regular(path) as descriptor:
        virtual_size = check_file(descriptor, raw=raw, limits=limits or ImageLimits(), name=name)
    if raw:
        return DiskImage(path, "raw", virtual_size)
    told = _check_info(path, name)
    if told != virtual_size:
        raise ImageError(
            f"{name} is not a usable qcow2 image: its header says {virtual_size} bytes, and "
            f"qemu-img {told}"
        )
    _check_content(path, name)
    return DiskImage(path, "qcow2", virtual_size)


def check_file(descriptor: int, *, raw: bool, limits: ImageLimits, name: Path) -> int:
    """Refuses what an open file's beginning and length tell to be unfit; starts no program.

    Returns:
        The size in bytes of the disk that a guest sees.

    Raises:
        ImageError: The message says why and what to do.
    """
    try:
        head = os.pread(descriptor, HEAD_BYTES, 0)
    except OSError as unreadable:
        raise ImageError(f"{name} cannot be read: {unreadable.strerror}") from unreadable
    size = os.fstat(descriptor).st_size
    if raw:
        if head[510:512] != b"\x55\xaa":
            raise ImageError(f"{name} is not a raw disk image: its first sector is no boot sector")
        check_size(size, limits, name)
        return size
    if head[:4] != MAGIC:
        raise ImageError(
            f"{name} is not a qcow2 image: it starts with {head[:4]!r}, not {MAGIC!r}; "
            "convert it with: qemu-img convert -O qcow2 IN OUT (or publish a raw disk with raw)"
        )
    return check_head(head, size, limits, name)


def source_options(path: Path, driver: Literal["qcow2", "raw"]) -> str:
    """A file for ``qemu-img --image-opts``: of this format, and a file whatever its name.

    Without these, ``qemu-img`` takes names such as ``nbd:…`` and ``json:…`` for other things.
    """
    filename = str(path.absolute()).replace(",", ",,")
    return f"driver={driver},file.driver=file,file.filename={filename}"


def _check_info(path: Path, name: Path) -> int:
    """Refuses an image that is not whole; returns its virtual size in bytes."""
    try:
        info = json.loads(
            run(
                [
                    "qemu-img",
                    "info",
                    "--output=json",
                    "--image-opts",
                    source_options(path, "qcow2"),
                ],
                what=f"reading the header of {name}",
                timeout=60.0,
                limits=_READS,
            )
        )
    except ToolError as broken:
        raise ImageError(f"{name} is not a usable qcow2 image: {_why(broken)}") from broken
    data = info.get("format-specific", {}).get("data", {})
    if info.get("backing-filename") or data.get("data-file") or info.get("encrypted"):
        raise ImageError(f"{name} is not a usable qcow2 image: it needs another file or a key")
    if data.get("corrupt"):
        raise ImageError(f"{name} is marked corrupt; try: qemu-img check -r all IN")
    return int(info["virtual-size"])


def _check_content(path: Path, name: Path) -> None:
    """Refuses an image whose tables do not fit together."""
    try:
        run(
            ["qemu-img", "check", "-q", "--image-opts", source_options(path, "qcow2")],
            what=f"checking {name}",
            timeout=120.0,
            limits=_READS,
        )
    except ToolError as broken:
        if broken.returncode != _LEAKS_ONLY:
            raise ImageError(
                f"{name} is damaged: {_why(broken)}; try: qemu-img check -r all IN"
            ) from broken


def _why(broken: ToolError) -> str:
    """What a program said of an image; else how it ended, e.g. at one of its limits."""
    return broken.stderr or str(broken)
