"""O5, R3: VHD, VHDX, raw and compressed disks are published as they are, and not trusted."""

from __future__ import annotations

import os
import struct
import tempfile
import uuid
from collections.abc import Callable
from functools import cache
from pathlib import Path

import pytest

from pytest_vmss.errors import ImageError
from pytest_vmss.gallery import Gallery, ImageStore, vhd, vhdx
from pytest_vmss.gallery import publication as publishing
from pytest_vmss.gallery.copy import open_source
from pytest_vmss.gallery.formats import ImageHead, recognize
from pytest_vmss.host.process import run
from pytest_vmss.settings import ImageLimits

MIB, GIB = 1024**2, 1024**3
#: Two pieces of data, and a hole between them; the disk ends with one.
SIZE = 5 * MIB


@pytest.fixture(autouse=True)
def _here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)


@cache
def _made(driver: str, options: str) -> tuple[bytes, bytes]:
    """A disk, and an image of it."""
    with tempfile.TemporaryDirectory() as name:
        disk, image = Path(name, "disk"), Path(name, "image")
        with disk.open("wb") as file:
            file.write(os.urandom(510) + b"\x55\xaa")
            file.seek(3 * MIB + 512)
            file.write(os.urandom(4096))
            file.seek(SIZE - 512)
            file.write(os.urandom(512))
        extra = ["-c"] if options == "-c" else ["-o", options] if options else []
        run(["qemu-img", "convert", "-f", "raw", "-O", driver, *extra, disk, image], what="one")
        return disk.read_bytes(), image.read_bytes()


def made(driver: str, options: str = "", name: str = "image") -> Path:
    path = Path(name)
    path.write_bytes(_made(driver, options)[1])
    return path


def head_of(path: Path, limits: ImageLimits | None = None) -> ImageHead:
    with open_source(path) as file:
        return recognize(path.name, file, limits=limits or ImageLimits())


@pytest.mark.parametrize(
    ("driver", "options", "expected"),
    [
        ("vpc", "subformat=fixed,force_size=on", "VHD (fixed)"),
        ("vpc", "subformat=dynamic,force_size=on", "VHD (dynamic)"),
        ("vhdx", "subformat=dynamic", "VHDX"),
        ("vhdx", "subformat=fixed", "VHDX"),
        ("vhdx", "subformat=dynamic,block_size=1048576", "VHDX"),
        ("raw", "", "raw"),
        ("qcow2", "-c", "qcow2"),
    ],
)
@pytest.mark.parametrize("name", ["image.qcow2", "image.vhd"])
def test_each_format_is_published_as_it_is(
    images: ImageStore, driver: str, options: str, expected: str, name: str
) -> None:
    """O5: recognized by content, whatever its name; the guest sees the same bytes."""
    source = made(driver, options, name)
    head = head_of(source)
    assert head.format == expected
    told: list[float] = []
    record = Gallery(images).publish("web", "1.0.0", source, progress=told.append)
    assert record.virtual_size == head.size >= SIZE
    path = images.path_of(record)
    assert path.read_bytes()[:4] == b"QFI\xfb"
    assert path.stat().st_blocks * 512 <= 2 * MIB  # holes stay holes
    run(["qemu-img", "convert", "-f", "qcow2", "-O", "raw", path, "seen"], what="reading it")
    assert Path("seen").read_bytes()[:SIZE] == _made(driver, options)[0]
    if expected != "qcow2":
        assert told == sorted(told)
        assert told[-1] == 1.0
    assert [each.name for each in path.parent.iterdir()] == [path.name]


def test_a_vhd_has_the_size_that_it_names(images: ImageStore) -> None:
    """O5: QEMU would take the smaller geometry of a creator that it does not know."""
    source = made("vpc", "subformat=dynamic,force_size=on")
    content = bytearray(source.read_bytes())
    for at in (0, len(content) - 512):
        content[at + 28 : at + 32] = b"vbox"
        struct.pack_into(">HBB", content, at + 56, 10, 4, 17)
        _seal_vhd(content, at)
    source.write_bytes(content)
    assert Gallery(images).publish("web", "1.0.0", source).virtual_size == SIZE


def test_a_fixed_vhd_is_read_once_and_its_holes_not_at_all(images: ImageStore) -> None:
    """R3, O5: 200 GiB of nothing cost nothing."""
    source = made("vpc", "subformat=fixed,force_size=on")
    footer = bytearray(source.read_bytes()[-512:])
    struct.pack_into(">Q", footer, 48, 200 * GIB)
    _seal_vhd(footer, 0)
    with source.open("r+b") as file:
        file.truncate(200 * GIB)
        file.seek(200 * GIB)
        file.write(footer)
    record = Gallery(images).publish("web", "1.0.0", source)
    assert record.virtual_size == 200 * GIB
    assert record.size < 2 * MIB


def _seal_vhd(content: bytearray, at: int) -> None:
    struct.pack_into(">I", content, at + 64, 0)
    struct.pack_into(">I", content, at + 64, ~sum(content[at : at + 512]) & 0xFFFFFFFF)


def _seal_header(content: bytearray) -> None:
    struct.pack_into(">I", content, 512 + 36, 0)
    struct.pack_into(">I", content, 512 + 36, ~sum(content[512:1536]) & 0xFFFFFFFF)


def footer(form: str, offset: int, value: int) -> Callable[[bytearray], None]:
    def patch(content: bytearray) -> None:
        struct.pack_into(f">{form}", content, offset, value)
        _seal_vhd(content, 0)

    return patch


def sparse(form: str, offset: int, value: int) -> Callable[[bytearray], None]:
    def patch(content: bytearray) -> None:
        struct.pack_into(f">{form}", content, 512 + offset, value)
        _seal_header(content)

    return patch


def entry(number: int, value: int) -> Callable[[bytearray], None]:
    return lambda content: struct.pack_into(">I", content, 1536 + 4 * number, value)


def _same_block(content: bytearray) -> None:
    content[1540:1544] = content[1536:1540]


def refused_once_patched(source: Path, patch: Callable[[bytearray], None], words: str) -> None:
    """R3: refused by its headers and tables, before any program sees it."""
    content = bytearray(source.read_bytes())
    patch(content)
    source.write_bytes(content)
    with pytest.raises(ImageError, match=words) as refused:
        head_of(source)
    assert str(refused.value).isprintable()


@pytest.mark.parametrize(
    ("patch", "words"),
    [
        (lambda content: content.__setitem__(70, content[70] ^ 1), "its footer does not have"),
        (lambda content: content.__setitem__(600, content[600] ^ 1), "its header does not have"),
        (lambda content: content.__delitem__(slice(300, None)), "ends within its footer"),
        (lambda content: content.__delitem__(slice(1540, None)), "its table is at"),
        (footer("I", 12, 2 << 16), "its version is 2"),
        (footer("I", 60, 4), "differencing"),
        (footer("I", 60, 2), "its type is 2"),
        (footer("I", 60, 77), "its type is 77"),
        (footer("Q", 48, 0), "0 bytes"),
        (footer("Q", 48, 511), "no whole sectors"),
        (footer("Q", 48, 5000 * GIB), "are allowed"),
        (footer("Q", 48, 2000 * GIB), "its table has 3 entries"),
        (footer("Q", 16, 1 << 62), "its header is at"),
        (footer("Q", 16, 0), "its header is at"),
        (footer("Q", 16, 1024), "no header for its blocks"),
        (sparse("I", 24, 9 << 16), "its header's version"),
        (sparse("I", 32, 3), "its blocks have 3 bytes"),
        (sparse("I", 32, 1 << 31), "its blocks have"),
        (sparse("I", 28, 1), "its table has 1 entries"),
        (sparse("I", 28, 1 << 31), "its table has"),
        (sparse("Q", 16, 1 << 63), "its table is at"),
        (sparse("Q", 16, 7), "its table is at"),
        (entry(0, 1 << 30), "stores a block at sector"),
        (entry(0, 0), "stores a block at sector 0"),
        (_same_block, "stores a block at sector"),
        (entry(0, 1), "stores a block at sector 1, which"),  # its header
        (entry(0, 3), "stores a block at sector 3, which"),  # its table
        (sparse("Q", 16, 1024), "its header and its table overlap"),
    ],
)
def test_a_dynamic_vhd_that_is_not_sound(patch: Callable[[bytearray], None], words: str) -> None:
    """R3: refused by its headers and table, before any program sees it."""
    source = made("vpc", "subformat=dynamic,force_size=on")
    refused_once_patched(source, patch, words)


def test_a_fixed_vhd_that_is_cut_off() -> None:
    """R3."""
    source = made("vpc", "subformat=fixed,force_size=on")
    content = source.read_bytes()
    source.write_bytes(content[: 2 * MIB] + content[-512:])
    with pytest.raises(ImageError, match="and holds 2097152"):
        head_of(source)
    source.write_bytes(content[:-1])  # its footer is no footer any more
    assert head_of(source).format == "raw"


def _seal_vhdx(content: bytearray) -> None:
    for offset, size in ((65536, 4096), (131072, 4096), (196608, 65536), (262144, 65536)):
        content[offset + 4 : offset + 8] = bytes(4)
        crc = vhdx.crc32c(bytes(content[offset : offset + size]))
        struct.pack_into("<I", content, offset + 4, crc)


def at(form: str, *offsets: int, value: int) -> Callable[[bytearray], None]:
    def patch(content: bytearray) -> None:
        for offset in offsets:
            struct.pack_into(f"<{form}", content, offset, value)
        _seal_vhdx(content)

    return patch


def item(kind: uuid.UUID, form: str, value: int, inside: int = 0) -> Callable[[bytearray], None]:
    """Changes an item of metadata, found by its id as a reader does."""

    def patch(content: bytearray) -> None:
        region = content.index(b"metadata")
        place = content.index(kind.bytes_le, region)
        offset = region + struct.unpack_from("<I", content, place + 16)[0] + inside
        struct.pack_into(f"<{form}", content, offset, value)

    return patch


def bat(number: int, value: int) -> Callable[[bytearray], None]:
    def patch(content: bytearray) -> None:
        place = content.index(vhdx._BAT.bytes_le) + 16
        offset = struct.unpack_from("<Q", content, place)[0] + 8 * number
        struct.pack_into("<Q", content, offset, value)

    return patch


@pytest.mark.parametrize(
    ("patch", "words"),
    [
        (lambda content: content.__setitem__(slice(65536, 262144), bytes(196608)), "valid header"),
        (lambda content: content.__delitem__(slice(70000, None)), "valid table of regions"),
        (at("Q", 65536 + 48, 131072 + 48, value=1), "its log is still to be replayed"),
        (at("H", 65536 + 66, 131072 + 66, value=2), "its version is 2"),
        (at("Q", 65536 + 72, 131072 + 72, value=1 << 60), "its log is at"),
        (at("I", 196608 + 8, 262144 + 8, value=1 << 31), "regions"),
        (at("I", 196608 + 8, 262144 + 8, value=1), "lacks the region"),
        (at("Q", 196608 + 32, 262144 + 32, value=1 << 60), "a region is at"),
        (at("Q", 196608 + 32, 262144 + 32, value=7), "a region is at"),
        (at("Q", 196608 + 32, 262144 + 32, value=3 * MIB), "overlap"),
        (at("Q", 196608 + 16, 262144 + 16, value=7), "lacks the region"),
        (item(vhdx._FILE_PARAMETERS, "I", 3), "its blocks have 3"),
        (item(vhdx._FILE_PARAMETERS, "I", 2, inside=4), "differencing"),
        (item(vhdx._LOGICAL_SECTOR, "I", 4096), "sectors of 4096"),
        (item(vhdx._DISK_SIZE, "Q", 0), "0 bytes"),
        (item(vhdx._DISK_SIZE, "Q", 511), "no whole sectors"),
        (item(vhdx._DISK_SIZE, "Q", 5000 * GIB), "are allowed"),
        (bat(0, 6 | 1 << 40), "beyond its end"),
        (bat(0, 6), "in its header"),
        (bat(0, 6 | 1 << 20), "overlaps a region"),
        (bat(0, 7), "in the state 7"),
    ],
)
def test_a_vhdx_that_is_not_sound(patch: Callable[[bytearray], None], words: str) -> None:
    """R3: refused by its headers and tables, before any program sees it."""
    source = made("vhdx", "subformat=dynamic")
    refused_once_patched(source, patch, words)


def test_a_vhdx_whose_blocks_overlap() -> None:
    """R3: a small file that would be a large disk."""
    source = made("vhdx", "subformat=dynamic,block_size=1048576")
    content = bytearray(source.read_bytes())
    place = struct.unpack_from("<Q", content, content.index(vhdx._BAT.bytes_le) + 16)[0]
    content[place + 8 : place + 16] = content[place : place + 8]
    source.write_bytes(content)
    with pytest.raises(ImageError, match="overlap"):
        head_of(source)


@pytest.mark.parametrize(
    ("content", "words"),
    [
        (b"KDMV" + bytes(1024), "VMDK image.*-f vmdk"),
        (b"# Disk DescriptorFile\n" + bytes(600), "VMDK"),
        (b"", "starts with b''"),
        (b"#!/bin/sh\n" * 100, "no boot sector"),
        (b"vhdxfile" + bytes(1 << 20), "not a usable VHDX"),
        (b"conectix" + bytes(1 << 20), "not a usable VHD"),
        (bytes(1 << 20) + b"conectix" + bytes(504), "not a usable VHD"),
    ],
)
def test_what_is_no_image_is_told(content: bytes, words: str) -> None:
    """B4: and what to do."""
    Path("file").write_bytes(content)
    with pytest.raises(ImageError, match=words):
        head_of(Path("file"))


@pytest.mark.parametrize("moment", ["copied", "checked"])
def test_a_vhdx_that_changes_while_it_is_read(
    images: ImageStore, monkeypatch: pytest.MonkeyPatch, moment: str
) -> None:
    """R3: what a program interprets is the private copy that was checked."""
    source, other = made("vhdx"), made("vpc", name="other")
    real = getattr(publishing, "copy_file" if moment == "copied" else "convert")

    def changed(*args: object, **options: object) -> object:
        source.write_bytes(other.read_bytes())
        return real(*args, **options)

    monkeypatch.setattr(publishing, real.__name__, changed)
    if moment == "copied":
        with pytest.raises(ImageError, match="changed while it was read"):
            Gallery(images).publish("web", "1.0.0", source)
    else:
        Gallery(images).publish("web", "1.0.0", source)


def test_the_checksum_of_vhdx() -> None:
    """The check value that RFC 3720 gives for CRC-32C."""
    assert vhdx.crc32c(b"123456789") == 0xE3069283
    assert vhd.FOOTER_BYTES == 512
