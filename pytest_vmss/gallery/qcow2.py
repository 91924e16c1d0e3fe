"""Validates disk images before anything is made from them (B4, R3)."""

from __future__ import annotations

import json
import os
import re
import shutil
from collections.abc import Callable, Mapping
from pathlib import Path

from pytest_vmss.errors import HostError, ImageError, ToolError
from pytest_vmss.gallery.copy import open_source, refuse_stored_size, shown
from pytest_vmss.gallery.formats import Format, ImageHead
from pytest_vmss.gallery.header import check_header, refuse_virtual_size
from pytest_vmss.host.files import sync
from pytest_vmss.host.process import Bounds, run
from pytest_vmss.settings import GIB, ImageLimits

__all__ = ["Progress", "check_head", "convert", "inspect"]

#: Told the fraction of a conversion that is done, from 0 to 1.
Progress = Callable[[float], None]

#: Exit status of qemu-img check if there are only leaked clusters, which do no harm.
_LEAKS_ONLY = 3
_CHECK_LIMIT_S = 300.0
_CONVERT_LIMIT_S = 1800.0
#: How QEMU is told each format that is converted. A VHD's size is the one that it names: QEMU
#: would compute it from the geometry for creators that it does not know, and cut the disk off.
_DRIVERS: Mapping[Format, str] = {
    "qcow2": "driver=qcow2",
    "raw": "driver=raw",
    "VHD (fixed)": "driver=raw,size={size}",
    "VHD (dynamic)": "driver=vpc,force_size_calc=current_size",
    "VHDX": "driver=vhdx",
}
_FRACTION = re.compile(rb"\(\s*(\d{1,3}\.\d+)/100%\)")
_SAID_BYTES = 4096
#: Checking writes nothing. qemu-img maps 150 MiB of address space before it does anything.
_CHECK_BOUNDS = Bounds(memory_mib=512, cpu_s=120, file_mib=0)


def check_head(name: str, file: int, *, raw: bool, limits: ImageLimits) -> int:
    """Rejects a file whose first sectors show that it is not an image, without running a program.

    Args:
        name: The user's name for the file, for messages.
        file: Its descriptor.
        raw: Whether it is a raw disk, which is recognized only by its boot sector.
        limits: The largest image that may be published.

    Returns:
        The size in bytes of the disk that a guest sees.

    Raises:
        ImageError: It is not an image; the message says why and what to do.
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
    """Validates a file that is to become an image version.

    Args:
        path: The file, which nobody else may be able to change meanwhile.
        raw: Whether it is a raw disk image.
        name: The user's name for it, for messages; the default is its path.
        limits: The largest image that may be published.

    Returns:
        The size in bytes of the disk that a guest sees.

    Raises:
        ImageError: It is invalid; the message says why and what to do.
    """
    name = name or shown(path)
    with open_source(path) as file:
        virtual_size = check_head(name, file, raw=raw, limits=limits or ImageLimits())
    if not raw:
        _check_content(name, path)
    return virtual_size


def _check_content(name: str, path: Path) -> None:
    """Rejects an image whose tables are inconsistent, with ``qemu-img check``."""
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


def convert(
    source: Path | int,
    target: Path,
    *,
    head: ImageHead,
    name: str,
    limits: ImageLimits,
    progress: Progress | None = None,
) -> None:
    """Converts an image of another format to qcow2, durable and read-only.

    Args:
        source: Path of a private copy, which nobody else may be able to change meanwhile. For a
            plain format also the descriptor of the user's own file: no program interprets it, so
            that a change meanwhile only changes what the guest sees.
        target: An existing file to overwrite.
        head: What its headers say.
        name: The user's name for the image, for messages.
        limits: The largest image that may be published.
        progress: Told the fraction that is done.

    Raises:
        ToolError: The conversion failed.
    """
    kept = (source,) if isinstance(source, int) else ()
    path = source if isinstance(source, Path) else _inherited(source)
    run(
        ["qemu-img", "convert", *(["-p"] if progress else []), "--image-opts", "-O", "qcow2",
         f"{_DRIVERS[head.format].format(size=head.size)},{_file_options(path)}",
         target.absolute()],
        what=f"converting {name}",
        timeout=_CONVERT_LIMIT_S,
        pass_fds=kept,
        on_output=_Fractions(progress) if progress else None,
        # Tables come on top of the data.
        bounds=Bounds(memory_mib=1024, cpu_s=int(_CONVERT_LIMIT_S),
                      file_mib=limits.stored_gib * GIB // 1024**2 * 5 // 4 + 64),
    )  # fmt: skip
    target.chmod(0o444)
    sync(target)


def to_raw(source: int, target: Path, *, head: ImageHead, name: str, limits: ImageLimits) -> None:
    """Writes an image's disk to a raw file, in which holes stay holes, to look into it.

    Args:
        source: Descriptor of the image.
        target: An existing file to overwrite.
        head: What its headers say.
        name: The user's name for it, for messages.
        limits: The largest image that may be published.

    Raises:
        ImageError: It holds more than an image may.
        HostError: The host's disk has no room for it.
        ToolError: It cannot be read.
    """
    disk = f"{_DRIVERS[head.format].format(size=head.size)},{_file_options(_inherited(source))}"
    measured = run(
        ["qemu-img", "measure", "--output=json", "-O", "qcow2", "--image-opts", disk],
        what=f"measuring {name}", timeout=_CHECK_LIMIT_S, pass_fds=(source,), bounds=_CHECK_BOUNDS,
    )  # fmt: skip
    needed = int(json.loads(measured)["required"])
    refuse_stored_size(name, needed, limits)
    free = shutil.disk_usage(target.parent).free
    if needed > free:
        raise HostError(
            f"looking into {name} takes {needed // 1024**2} MiB of disk at {target.parent}, and "
            f"{free // 1024**2} MiB are free"
        )
    run(
        ["qemu-img", "convert", "--image-opts", "-O", "raw", disk, target.absolute()],
        what=f"looking into {name}",
        timeout=_CONVERT_LIMIT_S,
        pass_fds=(source,),
        # The file is as long as the disk; what it takes was measured.
        bounds=Bounds(memory_mib=1024, cpu_s=int(_CONVERT_LIMIT_S),
                      file_mib=head.size // 1024**2 + 64),
    )  # fmt: skip


def _inherited(descriptor: int) -> Path:
    """The path by which a program opens a file whose descriptor it inherits."""
    return Path(f"/proc/self/fd/{descriptor}")


class _Fractions:
    """Reads the progress that qemu-img writes, such as ``(12.50/100%)``.

    Args:
        progress: Told the fraction that is done.
    """

    def __init__(self, progress: Progress) -> None:
        self._progress = progress
        self._rest = b""

    def __call__(self, part: bytes) -> None:
        said = (self._rest + part)[-_SAID_BYTES:]
        if found := _FRACTION.findall(said):
            self._progress(min(float(found[-1]) / 100, 1.0))
        self._rest = said.rpartition(b")")[2]


def _options(driver: str, path: Path) -> str:
    """Returns qemu-img options that take a path and a format literally.

    In a plain file name, ``file:x`` and ``json:x`` would be interpreted, and the format guessed.
    """
    return f"driver={driver},{_file_options(path)}"


def _file_options(path: Path) -> str:
    filename = str(path.absolute()).replace(",", ",,")
    return f"file.driver=file,file.filename={filename}"
