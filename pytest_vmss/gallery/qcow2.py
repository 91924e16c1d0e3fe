"""What a disk image really is, before anything is made from it (B4, R3)."""

from __future__ import annotations

import os
from pathlib import Path

from pytest_vmss.errors import ImageError, ToolError
from pytest_vmss.gallery.copy import open_source, shown
from pytest_vmss.gallery.header import check_header, refuse_virtual_size
from pytest_vmss.host.files import sync
from pytest_vmss.host.process import Bounds, run
from pytest_vmss.settings import GIB, ImageLimits

__all__ = ["check_head", "convert", "inspect"]

#: Status of qemu-img check for wasted space: nothing is lost.
_LEAKS_ONLY = 3
_CHECK_LIMIT_S = 300.0
_CONVERT_LIMIT_S = 1800.0
#: Checking writes nothing. Of its address space qemu-img maps 150 MiB before it does anything.
_CHECK_BOUNDS = Bounds(memory_mib=512, cpu_s=120, file_mib=0)


def check_head(name: str, file: int, *, raw: bool, limits: ImageLimits) -> int:
    """Refuses what its first sectors show to be no image; nothing is run for that.

    Args:
        name: What the user calls the file, for messages.
        file: Its descriptor.
        raw: It is a raw disk, which has nothing to tell it by but its boot sector.
        limits: What an image may cost.

    Returns:
        The bytes of the disk that a guest sees.

    Raises:
        ImageError: It cannot be an image; the message says why and what to do.
    """
    size = os.fstat(file).st_size
    try:
        with open(file, "rb", closefd=False, buffering=0) as image:
            if not raw:
                return check_header(name, image, size, limits)
            image.seek(510)
            if image.read(2) != b"\x55\xaa":
                raise ImageError(
                    f"{name} is not a raw disk image: its first sector is no boot sector"
                )
    except OSError as error:
        raise ImageError(f"{name} cannot be read: {error.strerror}") from error
    refuse_virtual_size(name, size, limits)
    return size


def inspect(
    path: Path, *, raw: bool = False, name: str | None = None, limits: ImageLimits | None = None
) -> int:
    """Checks a file that shall become an image version.

    Args:
        path: The file; one that nobody else can change meanwhile.
        raw: It is a raw disk image.
        name: What the user calls it, for messages; its path otherwise.
        limits: What an image may cost.

    Returns:
        The bytes of the disk that a guest sees.

    Raises:
        ImageError: It cannot be one; the message says why and what to do.
    """
    name = name or shown(path)
    with open_source(path) as file:
        virtual_size = check_head(name, file, raw=raw, limits=limits or ImageLimits())
    if not raw:
        _check_content(name, path)
    return virtual_size


def _check_content(name: str, path: Path) -> None:
    """Refuses an image whose tables do not fit together."""
    try:
        run(
            ["qemu-img", "check", "-q", "--image-opts", _options("qcow2", path)],
            what=f"checking {name}",
            timeout=_CHECK_LIMIT_S,
            bounds=_CHECK_BOUNDS,
        )
    except ToolError as error:
        if error.returncode == _LEAKS_ONLY:
            return
        if error.returncode is None or error.returncode < 0:
            raise ImageError(
                f"{name} costs more to check than an image is given ({_CHECK_BOUNDS.cpu_s} s of "
                f"the processor, {_CHECK_BOUNDS.memory_mib} MiB); write it anew with: "
                "qemu-img convert -O qcow2 IN OUT"
            ) from error
        said = error.stderr or "qemu-img check found errors"
        raise ImageError(
            f"{name} is damaged: {ascii(said)[1:-1]}; try: qemu-img check -r all IN"
        ) from error


def convert(disk: Path, target: Path, *, name: str, limits: ImageLimits) -> None:
    """Writes a raw disk as a qcow2, durable and read-only.

    Args:
        disk: The raw disk; one that nobody else can change meanwhile.
        target: A file that is there.
        name: What the user calls the disk, for messages.
        limits: What an image may cost.

    Raises:
        ToolError: It cannot be written.
    """
    run(
        ["qemu-img", "convert", "--image-opts", "-O", "qcow2", _options("raw", disk),
         target.absolute()],
        what=f"converting {name}",
        timeout=_CONVERT_LIMIT_S,
        # Tables come on top of the data.
        bounds=Bounds(memory_mib=1024, cpu_s=int(_CONVERT_LIMIT_S),
                      file_mib=limits.stored_gib * GIB // 1024**2 * 5 // 4 + 64),
    )  # fmt: skip
    target.chmod(0o444)
    sync(target)


def _options(driver: str, path: Path) -> str:
    """How qemu-img takes a path and a format for what they are.

    As a plain name, ``file:x`` and ``json:x`` mean something else, and a format may be guessed.
    """
    filename = str(path.absolute()).replace(",", ",,")
    return f"driver={driver},file.driver=file,file.filename={filename}"
