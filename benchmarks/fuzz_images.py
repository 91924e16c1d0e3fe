"""Mutated images for ``python -m benchmarks.fuzz images``: is each judged, by the lab's own error?

Seeds are images of each format that qemu-img made. Checksums are mostly made right after a change,
so that what lies behind them is judged. Most cases are judged by the lab's own reading of
the header, which is what stands between a file and qemu-img; every few hundredth is a file that is
inspected as a publication is, qemu-img's check included.
"""

from __future__ import annotations

import io
import random
import struct
import tempfile
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Literal

from pytest_vmss.gallery import vhdx
from pytest_vmss.gallery.copy import open_source
from pytest_vmss.gallery.formats import recognize
from pytest_vmss.gallery.header import check_header
from pytest_vmss.gallery.qcow2 import inspect
from pytest_vmss.host.process import run
from pytest_vmss.settings import ImageLimits

__all__ = ["cases"]

#: One case of so many is a file, and may start qemu-img.
_FILE_EVERY = 250
#: Options of the seeds; each brings other fields or extensions.
_SEEDS = (
    ("qcow2", "compat=0.10"),
    ("qcow2", "compat=1.1"),
    ("qcow2", "cluster_size=512"),
    ("qcow2", "cluster_size=2M"),
    ("qcow2", "refcount_bits=64"),
    ("qcow2", "compression_type=zstd"),
    ("qcow2", "extended_l2=on"),
    ("qcow2", "lazy_refcounts=on"),
    ("qcow2", "preallocation=metadata"),
    ("vpc", "subformat=dynamic"),
    ("vpc", "subformat=fixed"),
    ("vhdx", "subformat=dynamic"),
    ("vhdx", "subformat=dynamic,block_size=1M"),
)
_KIB, _MIB = 1024, 1024**2


@dataclass(frozen=True)
class _Layout:
    """Where the structures of a format are.

    Attributes:
        head: So much of an image holds its headers and what cases add to them.
        fields: Offset and length in bytes of the headers' fields.
    """

    head: int
    fields: tuple[tuple[int, int], ...]


_FOOTER = ((0, 8), (8, 4), (12, 4), (16, 8), (28, 4), (40, 8), (48, 8), (56, 4), (60, 4), (64, 4))
_LAYOUTS = {
    "qcow2": _Layout(2 * _KIB, (
        (0, 4), (4, 4), (8, 8), (16, 4), (20, 4), (24, 8), (32, 4), (36, 4), (40, 8), (48, 8),
        (56, 4), (60, 4), (64, 8), (72, 8), (80, 8), (88, 8), (96, 4), (100, 4), (104, 8),
        (112, 4), (116, 4),
    )),
    "vpc": _Layout(4 * _KIB, (
        *_FOOTER,
        *((512 + at, size) for at, size in (
            (0, 8), (8, 8), (16, 8), (24, 4), (28, 4), (32, 4), (36, 4), (40, 8),
        )),
        (1536, 4), (1540, 4),
    )),
    "vhdx": _Layout(4 * _MIB, (
        *((at + field, size) for at in (64 * _KIB, 128 * _KIB) for field, size in (
            (0, 4), (4, 4), (8, 8), (48, 8), (64, 2), (66, 2), (68, 4), (72, 8),
        )),
        *((at + field, size) for at in (192 * _KIB, 256 * _KIB) for field, size in (
            (0, 4), (4, 4), (8, 4), (16, 8), (32, 8), (40, 4), (44, 4), (64, 8), (72, 4), (76, 4),
        )),
        *((at, size) for at, size in ((2 * _MIB, 8), (2 * _MIB + 8, 8))),
        *((3 * _MIB + field, size) for field, size in (
            (0, 8), (10, 2), (32, 8), (48, 4), (52, 4), (56, 4), (64, 8), (80, 4), (64 * _KIB, 4),
            (64 * _KIB + 4, 4), (64 * _KIB + 8, 8), (64 * _KIB + 16, 4), (64 * _KIB + 32, 4),
        )),
    )),
}  # fmt: skip
_EXTENSIONS = (0, 0x44415441, 0xE2792ACA, 0x6803F857, 0x23852875, 0x0537BE77)
_LIMITS = ImageLimits(virtual_gib=4095, stored_gib=64)


def cases(random: random.Random, count: int) -> Iterator[Callable[[], object]]:
    """The cases, one after another; the files are gone at the end.

    Args:
        random: Where they come from; the same seed makes the same.
        count: How many.
    """
    with tempfile.TemporaryDirectory(prefix="fuzz-images-") as name:
        seeds = _seeds(Path(name))
        path = Path(name) / "case.image"
        for number in range(count):
            driver, seed = random.choice(seeds)
            is_qcow2 = driver == "qcow2"
            whole = not is_qcow2 or number % _FILE_EVERY == 0
            layout = _LAYOUTS[driver]
            content = bytearray(seed if whole else seed[: layout.head])
            for _ in range(random.choice((1, 1, 1, 2, 3, 8))):
                random.choice(_MUTATIONS)(random, content, layout)
            if random.random() < 0.9:
                _seal(driver, content)
            if whole:
                path.write_bytes(content)
                raw = random.random() < 0.1
                judge = inspect if is_qcow2 else _recognize
                yield partial(judge, path, raw=raw, limits=_LIMITS)
            else:
                head = bytes(content)
                length = random.choice((len(seed), len(seed), random.getrandbits(44)))
                yield lambda head=head, length=length: check_header(  # type: ignore[misc]
                    "case", io.BytesIO(head), length, _LIMITS
                )


def _recognize(path: Path, *, raw: bool, limits: ImageLimits) -> object:
    with open_source(path) as file:
        return recognize("case", file, raw=raw, limits=limits)


def _seeds(folder: Path) -> list[tuple[str, bytes]]:
    made = []
    for driver, options in _SEEDS:
        path = folder / "seed"
        run(["qemu-img", "create", "-q", "-f", driver, "-o", options, path, "4M"], what="a seed")
        if driver == "vhdx":
            run(["qemu-io", "-f", driver, "-c", "write 0 3M", path], what="filling a seed")
        made.append((driver, path.read_bytes()))
        path.unlink()
    return made


def _seal(driver: str, content: bytearray) -> None:
    """Makes the checksums right, so that a reader goes on to what they cover."""
    if driver == "vpc":
        for start, size, at in ((0, 512, 64), (512, 1024, 36), (len(content) - 512, 512, 64)):
            if start >= 0 and len(content) >= start + size:
                content[start + at : start + at + 4] = bytes(4)
                total = ~sum(content[start : start + size]) & 0xFFFFFFFF
                struct.pack_into(">I", content, start + at, total)
    if driver == "vhdx":
        for start, size in ((64, 4), (128, 4), (192, 64), (256, 64)):
            part = content[start * _KIB : (start + size) * _KIB]
            if len(part) == size * _KIB:
                part[4:8] = bytes(4)
                struct.pack_into("<I", content, start * _KIB + 4, vhdx.crc32c(part))


def _number(random: random.Random, size: int) -> int:
    """A number of so many bytes; more often one at an edge."""
    top = 1 << size * 8
    edges = (0, 1, top - 1, top >> 1, (top >> 1) - 1, 1 << random.randrange(size * 8))
    wild = random.getrandbits(size * 8), random.getrandbits(12), random.randrange(64) * 65536
    return random.choice((*edges, *wild)) % top


def _change_field(random: random.Random, content: bytearray, layout: _Layout) -> None:
    offset, size = random.choice(layout.fields)
    order: Literal["big", "little"] = "little" if layout is _LAYOUTS["vhdx"] else "big"
    content[offset : offset + size] = _number(random, size).to_bytes(size, order)


def _flip_bit(random: random.Random, content: bytearray, layout: _Layout) -> None:
    if content:
        content[random.randrange(min(len(content), layout.head // 4))] ^= 1 << random.randrange(8)


def _flip_table_bit(random: random.Random, content: bytearray, _: _Layout) -> None:
    """Changes a table of references, or the data."""
    if content:
        content[random.randrange(len(content))] ^= 1 << random.randrange(8)


def _add_extension(random: random.Random, content: bytearray, _: _Layout) -> None:
    name = random.randbytes(random.choice((0, 1, 7, 40, 300)))
    size = random.choice((len(name), _number(random, 4)))
    start = random.choice((72, 104, 112))
    extension = struct.pack(">II", random.choice(_EXTENSIONS), size) + name
    content[start : start + len(extension)] = extension


def _cut(random: random.Random, content: bytearray, _: _Layout) -> None:
    del content[random.choice((random.randrange(200), random.randrange(len(content) + 1))) :]


def _splice(random: random.Random, content: bytearray, _: _Layout) -> None:
    noise = random.randbytes(random.randrange(1, 64))
    start = random.randrange(256)
    content[start : start + len(noise)] = noise


_MUTATIONS = (
    _change_field, _change_field, _change_field, _flip_bit, _flip_table_bit, _add_extension, _cut,
    _splice,
)  # fmt: skip
