"""Headers of images, mutated: each is judged, at no cost, or refused in the project's words.

    python -m benchmarks.fuzz images --count 100000 --seed 1

Most are judged as the gallery first judges a file, without QEMU; of those that pass, a few
hundred are given to ``qemu-img`` too, as they would be when they are published.
"""

from __future__ import annotations

import functools
import os
import random as randomness
import struct
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path

from pytest_vmss.gallery.header import HEAD_BYTES, MAGIC, check_head
from pytest_vmss.gallery.qcow2 import inspect
from pytest_vmss.process import run
from pytest_vmss.settings import ImageLimits

__all__ = ["cases"]

#: How many are given to qemu-img where all that come through would be too many.
_WITH_QEMU = 300
#: Offset and struct format of the fields of a header.
_FIELDS = [
    (4, ">I"), (8, ">Q"), (16, ">I"), (20, ">I"), (24, ">Q"), (32, ">I"), (36, ">I"), (40, ">Q"),
    (48, ">Q"), (56, ">I"), (60, ">I"), (64, ">Q"), (72, ">Q"), (80, ">Q"), (88, ">Q"), (96, ">I"),
    (100, ">I"), (104, ">B"), (112, ">I"), (116, ">I"),
]  # fmt: skip
_OPTIONS: tuple[tuple[str, ...], ...] = (
    (),
    ("-o", "compat=0.10"),
    ("-o", "cluster_size=512"),
    ("-o", "cluster_size=2M"),
    ("-o", "extended_l2=on"),
    ("-o", "refcount_bits=64"),
    ("-o", "compression_type=zlib,lazy_refcounts=on"),
    ("-o", "preallocation=metadata"),
)


@functools.cache
def _seeds() -> tuple[bytes, ...]:
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "seed.qcow2"
        seeds = []
        for options in _OPTIONS:
            run(
                ["qemu-img", "create", "-q", "-f", "qcow2", *options, path, "1M"],
                what="making a seed",
            )
            seeds.append(path.read_bytes())
        return tuple(seeds)


def _mutated(random: randomness.Random) -> bytes:
    image = bytearray(random.choice(_seeds()))
    for _ in range(random.choice((1, 1, 1, 2, 3, 8))):
        match random.randrange(6):
            case 0 | 1 | 2:
                at, form = random.choice(_FIELDS)
                bits = 8 * struct.calcsize(form)
                value = random.choice(
                    (
                        random.getrandbits(bits),
                        1 << random.randrange(bits),
                        (1 << bits) - 1 - random.randrange(3),
                        random.randrange(64),
                        random.randrange(0, 1 << 20, 512) & ((1 << bits) - 1),
                    )
                )
                if at + struct.calcsize(form) <= len(image):
                    struct.pack_into(form, image, at, value)
            case 3:
                image[random.randrange(min(len(image), 600))] ^= 1 << random.randrange(8)
            case 4:  # somewhere in the tables
                image[random.randrange(len(image))] = random.getrandbits(8)
            case _:
                del image[random.randrange(len(image)) :]
                image.extend(bytes(8 if not image else 0))
    return bytes(image)


def cases(random: randomness.Random, count: int) -> Iterator[Callable[[], object]]:
    """Makes headers to judge.

    Args:
        random: Where chance comes from.
        count: How many.

    Yields:
        A call each, which raises what the gallery raises for such a file.
    """
    share = min(1.0, _WITH_QEMU / max(count, 1))
    for _ in range(count):
        image = _mutated(random)
        length = random.choice((len(image), len(image), random.getrandbits(50)))
        if random.random() < share:
            yield functools.partial(_inspect, image, raw=random.random() < 0.1)
        else:
            yield functools.partial(_judge, image, length)


def _judge(image: bytes, length: int) -> object:
    if image[:4] != MAGIC:
        image = MAGIC + image[4:]
    return check_head(image[:HEAD_BYTES], length, ImageLimits(), "an image")


def _inspect(image: bytes, *, raw: bool) -> object:
    descriptor, name = tempfile.mkstemp()
    try:
        with os.fdopen(descriptor, "wb") as file:
            file.write(image)
        return inspect(Path(name), raw=raw)
    finally:
        Path(name).unlink()
