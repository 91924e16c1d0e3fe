"""Mutated images for ``python -m benchmarks.fuzz images``: is each judged, by the lab's own error?

Seeds are headers of images that qemu-img made. Most cases are judged by the lab's own reading of
the header, which is what stands between a file and qemu-img; every few hundredth is a file that is
inspected as a publication is, qemu-img's check included.
"""

from __future__ import annotations

import io
import random
import struct
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path

from pytest_vmss.gallery.header import check_header
from pytest_vmss.gallery.qcow2 import inspect
from pytest_vmss.host.process import run
from pytest_vmss.settings import ImageLimits

__all__ = ["cases"]

#: One case of so many is a file, and may start qemu-img.
_FILE_EVERY = 250
#: So much of an image holds its header, its extensions and what cases add to them.
_HEAD = 2048
#: Options of the seeds; each brings other fields or extensions.
_SEEDS = (
    "compat=0.10",
    "compat=1.1",
    "cluster_size=512",
    "cluster_size=2M",
    "refcount_bits=64",
    "compression_type=zstd",
    "extended_l2=on",
    "lazy_refcounts=on",
    "preallocation=metadata",
)
#: Offset and length in bytes of the header's fields.
_FIELDS = (
    (0, 4), (4, 4), (8, 8), (16, 4), (20, 4), (24, 8), (32, 4), (36, 4), (40, 8), (48, 8), (56, 4),
    (60, 4), (64, 8), (72, 8), (80, 8), (88, 8), (96, 4), (100, 4), (104, 8), (112, 4), (116, 4),
)  # fmt: skip
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
        path = Path(name) / "case.qcow2"
        for number in range(count):
            seed, whole = random.choice(seeds), number % _FILE_EVERY == 0
            content = bytearray(seed if whole else seed[:_HEAD])
            for _ in range(random.choice((1, 1, 1, 2, 3, 8))):
                random.choice(_MUTATIONS)(random, content)
            if whole:
                path.write_bytes(content)
                raw = random.random() < 0.1
                yield lambda raw=raw: inspect(path, raw=raw, limits=_LIMITS)  # type: ignore[misc]
            else:
                head = bytes(content)
                length = random.choice((len(seed), len(seed), random.getrandbits(44)))
                yield lambda head=head, length=length: check_header(  # type: ignore[misc]
                    "case", io.BytesIO(head), length, _LIMITS
                )


def _seeds(folder: Path) -> list[bytes]:
    made = []
    for options in _SEEDS:
        path = folder / "seed.qcow2"
        run(["qemu-img", "create", "-q", "-f", "qcow2", "-o", options, path, "4M"], what="a seed")
        made.append(path.read_bytes())
        path.unlink()
    return made


def _number(random: random.Random, size: int) -> int:
    """A number of so many bytes; more often one at an edge."""
    top = 1 << size * 8
    edges = (0, 1, top - 1, top >> 1, (top >> 1) - 1, 1 << random.randrange(size * 8))
    wild = random.getrandbits(size * 8), random.getrandbits(12), random.randrange(64) * 65536
    return random.choice((*edges, *wild)) % top


def _change_field(random: random.Random, content: bytearray) -> None:
    offset, size = random.choice(_FIELDS)
    content[offset : offset + size] = _number(random, size).to_bytes(size, "big")


def _flip_bit(random: random.Random, content: bytearray) -> None:
    if content:
        content[random.randrange(min(len(content), 512))] ^= 1 << random.randrange(8)


def _flip_table_bit(random: random.Random, content: bytearray) -> None:
    """Changes a table of references, or the data."""
    if content:
        content[random.randrange(len(content))] ^= 1 << random.randrange(8)


def _add_extension(random: random.Random, content: bytearray) -> None:
    name = random.randbytes(random.choice((0, 1, 7, 40, 300)))
    size = random.choice((len(name), _number(random, 4)))
    start = random.choice((72, 104, 112))
    extension = struct.pack(">II", random.choice(_EXTENSIONS), size) + name
    content[start : start + len(extension)] = extension


def _cut(random: random.Random, content: bytearray) -> None:
    del content[random.choice((random.randrange(200), random.randrange(len(content) + 1))) :]


def _splice(random: random.Random, content: bytearray) -> None:
    noise = random.randbytes(random.randrange(1, 64))
    start = random.randrange(256)
    content[start : start + len(noise)] = noise


_MUTATIONS = (
    _change_field, _change_field, _change_field, _flip_bit, _flip_table_bit, _add_extension, _cut,
    _splice,
)  # fmt: skip
