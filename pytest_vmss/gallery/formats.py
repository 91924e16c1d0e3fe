"""Recognizes the format of a disk image by its content, never by its name (O5, R3)."""

from __future__ import annotations

import os
from dataclasses import dataclass
from typing import BinaryIO, Literal

from pytest_vmss.errors import ImageError
from pytest_vmss.gallery import header, vhd, vhdx
from pytest_vmss.settings import ImageLimits

__all__ = ["Format", "ImageHead", "recognize"]

Format = Literal["qcow2", "VHD (fixed)", "VHD (dynamic)", "VHDX", "raw"]

_BOOT_SIGNATURE = b"\x55\xaa"
#: What other formats start with, which a user may hand in.
_OTHERS = {b"KDMV": "VMDK", b"# Disk DescriptorFile": "VMDK", b"QED\0": "QED", b"<<< ": "VDI"}
_COMPRESSED = {
    b"\x1f\x8b": "gzip", b"\xfd7zXZ\0": "xz", b"\x28\xb5\x2f\xfd": "zstd", b"BZh": "bzip2",
    b"PK\3\4": "zip", b"7z\xbc\xaf\x27\x1c": "7z",
}  # fmt: skip


@dataclass(frozen=True)
class ImageHead:
    """What the headers of an image say.

    Attributes:
        format: Its format.
        size: Size in bytes of the disk that a guest sees.
    """

    format: Format
    size: int

    @property
    def is_plain(self) -> bool:
        """Whether the file starts with the disk's bytes as they are, without tables."""
        return self.format in ("raw", "VHD (fixed)")


def recognize(name: str, file: int, *, raw: bool = False, limits: ImageLimits) -> ImageHead:
    """Recognizes an image, and rejects one whose headers are not sound; runs no program.

    Args:
        name: The user's name for the file, for messages.
        file: Its descriptor.
        raw: Whether it is a raw disk, whatever it looks like.
        limits: The largest image that may be published.

    Raises:
        ImageError: It is not an image, or rejected; the message says why and what to do.
    """
    length = os.fstat(file).st_size
    try:
        with open(file, "rb", closefd=False, buffering=0) as image:
            return _recognize(name, image, length, raw=raw, limits=limits)
    except OSError as error:
        raise ImageError(f"{name} cannot be read: {error.strerror}") from error


def _recognize(
    name: str, image: BinaryIO, length: int, *, raw: bool, limits: ImageLimits
) -> ImageHead:
    image.seek(0)
    head = image.read(512)
    if not raw:
        if head[:4] == header.MAGIC:
            return ImageHead("qcow2", header.check_header(name, image, length, limits))
        if head[:8] == vhdx.SIGNATURE:
            return ImageHead("VHDX", vhdx.check_vhdx(name, image, length, limits))
        if head[:8] == vhd.COOKIE:
            return ImageHead("VHD (dynamic)", vhd.check_dynamic(name, image, length, limits))
        if length > vhd.FOOTER_BYTES:
            image.seek(length - vhd.FOOTER_BYTES)
            if image.read(8) == vhd.COOKIE:
                return ImageHead("VHD (fixed)", vhd.check_fixed(name, image, length, limits))
    if head[510:512] != _BOOT_SIGNATURE:
        raise _unknown(name, head, raw=raw)
    header.refuse_virtual_size(name, length, limits)
    return ImageHead("raw", length)


def _unknown(name: str, head: bytes, *, raw: bool) -> ImageError:
    if raw:
        return ImageError(f"{name} is not a raw disk image: its first sector is no boot sector")
    for start, other in _OTHERS.items():
        if head.startswith(start):
            return ImageError(
                f"{name} is a {other} image, which is not read here; convert it with: "
                f"qemu-img convert -f {other.lower()} -O qcow2 IN OUT"
            )
    for start, packer in _COMPRESSED.items():
        if head.startswith(start):
            return ImageError(
                f"{name} is compressed by {packer}; expected a disk image: unpack it first"
            )
    return ImageError(
        f"{name} is not a qcow2 image, nor a VHD or VHDX, for it starts with {head[:4]!r}; and not "
        "a raw disk, for its first sector is no boot sector; convert what it is with: "
        "qemu-img convert -O qcow2 IN OUT"
    )
