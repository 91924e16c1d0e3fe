"""B4, M5, M6: image files that are broken or hostile cost little, and reach nothing of the host."""

from __future__ import annotations

import contextlib
import hashlib
import itertools
import os
import random
import socket
import struct
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from benchmarks import fuzz_images
from pytest_vmss.clock import SystemClock
from pytest_vmss.errors import HostError, ImageError, ToolError, VmssError
from pytest_vmss.gallery import Gallery, Images, content
from pytest_vmss.gallery.qcow2 import inspect
from pytest_vmss.process import ChildLimits, run
from pytest_vmss.settings import ImageLimits
from pytest_vmss.store import Store

_GIB = 1024**3


@pytest.fixture
def images(tmp_path: Path) -> Iterator[Images]:
    clock = SystemClock()
    store = Store(tmp_path / "vmss.db", clock)
    yield Images(tmp_path / "images", store, clock)
    store.close()


@pytest.fixture
def gallery(images: Images) -> Gallery:
    return images.gallery()


def qcow2(path: Path, size: str = "1M", *options: str) -> Path:
    run(["qemu-img", "create", "-q", "-f", "qcow2", *options, path, size], what="an image")
    return path


def patched(path: Path, *changes: tuple[int, str, int]) -> Path:
    data = bytearray(qcow2(path).read_bytes())
    for offset, form, value in changes:
        struct.pack_into(form, data, offset, value)
    path.write_bytes(data)
    return path


def left_in(images: Images) -> list[str]:
    return [path.name for path in images._folder.glob("*")]


def test_a_name_with_a_protocol_is_a_file(
    gallery: Gallery, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """B4: what is judged is the file of that name, not the one that QEMU would read."""
    monkeypatch.chdir(tmp_path)
    qcow2(tmp_path / "good.qcow2")
    overlay = ("-b", str(tmp_path / "good.qcow2"), "-F", "qcow2")
    qcow2(tmp_path / "file:good.qcow2", "1M", *overlay)
    with pytest.raises(ImageError, match="backing file"):
        gallery.publish("a", "1.0.0", "file:good.qcow2")
    for number, name in enumerate(("nbd:x.qcow2", "-x.qcow2", "a,b=c.qcow2", "json:{}")):
        (tmp_path / name).write_bytes((tmp_path / "good.qcow2").read_bytes())
        assert inspect(Path(name)).virtual_size == 1024**2
        gallery.publish("a", f"1.0.{number}", name)


def test_what_flips_is_never_published_unchecked(
    gallery: Gallery, images: Images, tmp_path: Path
) -> None:
    """B4: the file that is checked is the file that is published, whatever its name means then."""
    good = qcow2(tmp_path / "good.qcow2")
    evil = qcow2(tmp_path / "evil.qcow2", "1M", "-b", str(good), "-F", "qcow2")
    link = tmp_path / "img.qcow2"
    link.symlink_to(good)
    done = threading.Event()

    def flip() -> None:
        for target in itertools.cycle((evil, good)):
            if done.wait(0.002):
                return
            other = tmp_path / "other"
            other.symlink_to(target)
            other.replace(link)

    thread = threading.Thread(target=flip)
    thread.start()
    outcomes: set[object] = set()
    try:
        for number in range(30):
            try:
                record = gallery.publish("b", f"1.0.{number}", link)
            except ImageError as refused:
                outcomes.add("backing file" in str(refused) and "refused")
            else:
                assert images.path_of(record).read_bytes() == good.read_bytes()
                outcomes.add("published")
    finally:
        done.set()
        thread.join()
    assert outcomes == {"refused", "published"}


def test_the_copy_is_what_is_checked(
    gallery: Gallery, images: Images, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """B4: a file that is rewritten between the first look and the copy is refused."""
    source = qcow2(tmp_path / "a.qcow2")
    evil = qcow2(tmp_path / "evil.qcow2", "1M", "-b", str(source), "-F", "qcow2").read_bytes()
    copy = content.copy

    def rewrite(file: int, target: int, *, name: Path, limit: int) -> None:
        source.write_bytes(evil)
        copy(file, target, name=name, limit=limit)

    monkeypatch.setattr(content, "copy", rewrite)
    with pytest.raises(ImageError, match="backing file"):
        gallery.publish("a", "1.0.0", source)
    assert left_in(images) == []


@pytest.mark.parametrize("raw", [False, True])
def test_only_regular_files(gallery: Gallery, tmp_path: Path, raw: bool) -> None:
    """B4: and none of these makes anybody wait."""
    os.mkfifo(tmp_path / "fifo")
    for path in (tmp_path / "fifo", Path("/dev/zero"), tmp_path):
        with pytest.raises(ImageError, match="not a regular file"):
            gallery.publish("a", "1.0.0", path, raw=raw)
    for name in ("a\0b", "\ud800"):
        with pytest.raises(ImageError, match="cannot be read"):
            gallery.publish("a", "1.0.0", name, raw=raw)


def test_nothing_that_an_image_names_is_contacted(tmp_path: Path) -> None:
    """M5: backing files and data files by the name of a server, a device, another file."""
    with socket.create_server(("127.0.0.1", 0)) as server:
        server.settimeout(0.05)
        port = server.getsockname()[1]
        names = [
            f"nbd://127.0.0.1:{port}/x",
            f'json:{{"driver":"nbd","server":{{"type":"inet","host":"127.0.0.1","port":"{port}"}}}}',
            "/etc/passwd",
            "\x1b]0;x\x07evil",
        ]
        whole = qcow2(tmp_path / "whole.qcow2").read_bytes()
        for name in names:
            data = bytearray(whole)
            data[0x400 : 0x400 + len(name)] = name.encode()
            struct.pack_into(">Q", data, 8, 0x400)
            struct.pack_into(">I", data, 16, len(name))
            (tmp_path / "backing.qcow2").write_bytes(data)
            with pytest.raises(ImageError, match="has a backing file") as backing:
                inspect(tmp_path / "backing.qcow2")
            assert "\x1b" not in str(backing.value)
            for bit in (0, 4):
                data = bytearray(whole)
                struct.pack_into(">Q", data, 72, bit)
                extension = struct.pack(">II", 0x44415441, len(name)) + name.encode()
                data[112 : 112 + len(extension) + 16] = extension + bytes(16)
                (tmp_path / "data.qcow2").write_bytes(data)
                with pytest.raises(ImageError, match="data in another file"):
                    inspect(tmp_path / "data.qcow2")
        with pytest.raises(TimeoutError):
            server.accept()


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ([(4, ">I", 9)], "version"),
        ([(20, ">I", 63)], "clusters"),
        ([(20, ">I", 8)], "clusters"),
        ([(24, ">Q", 0)], "no bytes"),
        ([(24, ">Q", 1 << 50)], "L1 table"),
        ([(32, ">I", 1)], "encrypted"),
        ([(32, ">I", 2)], "encrypted"),
        ([(36, ">I", 0xFFFFFFFF)], "L1 table"),
        ([(40, ">Q", 0)], "L1 table"),
        ([(40, ">Q", 1 << 62)], "L1 table"),
        ([(48, ">Q", 1 << 40)], "reference count table"),
        ([(56, ">I", 0)], "reference count table"),
        ([(60, ">I", 17)], "snapshots"),
        ([(60, ">I", 1), (64, ">Q", 1 << 40)], "snapshot table"),
        ([(72, ">Q", 2)], "marked corrupt"),
        ([(72, ">Q", 4)], "another file"),
        ([(72, ">Q", 1 << 33)], "not known"),
        ([(96, ">I", 7)], "reference counts"),
        ([(100, ">I", 1 << 31)], "header has"),
        ([(112, ">I", 7), (116, ">I", 0xFFFFFFFF)], "cut off"),
    ],
)
def test_headers_are_refused_without_qemu(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    changes: list[tuple[int, str, int]],
    words: str,
) -> None:
    """B4, M5."""
    path = patched(tmp_path / "a.qcow2", *changes)

    def never(*_: object, **__: object) -> bytes:
        raise AssertionError("qemu-img was started")

    monkeypatch.setattr("pytest_vmss.gallery.qcow2.run", never)
    with pytest.raises(ImageError, match=words):
        inspect(path)


@pytest.mark.parametrize("options", fuzz_images._OPTIONS)
def test_what_qemu_makes_is_taken(tmp_path: Path, options: tuple[str, ...]) -> None:
    """B4: of each version and layout."""
    assert inspect(qcow2(tmp_path / "a.qcow2", "40M", *options)).virtual_size == 40 * 1024**2


def test_limits_of_size(images: Images, tmp_path: Path) -> None:
    """M5: settings, and what is refused costs nothing."""
    huge = qcow2(tmp_path / "huge.qcow2", "1P", "-o", "cluster_size=2M")
    long = qcow2(tmp_path / "long.qcow2", "1M", "-o", "cluster_size=512,refcount_bits=64")
    os.truncate(long, 32 * _GIB)
    started = time.monotonic()
    with pytest.raises(ImageError, match="vmss_image_virtual_gib"):
        inspect(huge)
    with pytest.raises(ImageError, match="for a disk of"):
        inspect(long)
    assert time.monotonic() - started < 2
    small = Images(
        images._folder, images._store, images._clock, limits=ImageLimits(1 << 20, 1 << 16)
    ).gallery()
    with pytest.raises(ImageError, match="vmss_image_allocated_gib"):
        small.publish("a", "1.0.0", qcow2(tmp_path / "a.qcow2"))
    with pytest.raises(ImageError, match="vmss_image_virtual_gib"):
        small.publish("a", "1.0.0", qcow2(tmp_path / "b.qcow2", "2M"))
    assert left_in(images) == []


def test_limits_by_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("VMSS_IMAGE_VIRTUAL_GIB", "3")
    assert ImageLimits().virtual == 3 * _GIB
    monkeypatch.setenv("VMSS_IMAGE_ALLOCATED_GIB", "many")
    with pytest.raises(HostError, match="VMSS_IMAGE_ALLOCATED_GIB is 'many'"):
        ImageLimits()


def test_a_child_is_held_to_its_limits() -> None:
    """M5: memory, processor and files."""
    generous = ChildLimits(memory=_GIB, cpu=60, file=1 << 20)
    assert run(["tar", "--version"], what="t", limits=generous)
    with pytest.raises(ToolError, match="status"):
        run(["qemu-img", "--version"], what="t", limits=ChildLimits(1 << 20, 60, 0))


def test_holes_stay_holes_and_cost_nothing(images: Images, tmp_path: Path) -> None:
    """B1, M5."""
    path = qcow2(tmp_path / "a.qcow2", "100G")
    os.truncate(path, 90 * _GIB)
    raw = tmp_path / "r.raw"
    raw.write_bytes(bytes(510) + b"\x55\xaa")
    os.truncate(raw, 90 * _GIB)
    started = time.monotonic()
    record = images.gallery().publish("a", "1.0.0", path)
    stored = images.path_of(record)
    assert stored.stat().st_size == 90 * _GIB
    assert stored.stat().st_blocks * 512 < 1 << 20
    images.gallery().publish("b", "1.0.0", raw, raw=True)
    assert time.monotonic() - started < 10
    assert not list(images._folder.glob("*.raw"))


def test_a_digest_is_of_the_content_alone(tmp_path: Path) -> None:
    """B1: the same with and without holes, another for any other byte, length or place."""
    data = b"a" * 70_000 + bytes(1_000_000) + b"b" * 10
    dense, sparse, other = (tmp_path / name for name in ("dense", "sparse", "other"))
    dense.write_bytes(data)
    with sparse.open("wb") as file:
        file.write(data[:70_000])
        file.seek(1_070_000)
        file.write(data[1_070_000:])
    digest = content.digest(dense)
    assert content.digest(sparse) == digest
    for changed in (
        data + b"\0",
        data[:-1],
        b"\0" + data[:-1],
        data[:500_000] + b"x" + data[500_001:],
    ):
        other.write_bytes(changed)
        assert content.digest(other) != digest


def test_records_of_older_versions_stay_good(images: Images, tmp_path: Path) -> None:
    """B1: those hold the SHA-256 of all bytes."""
    source = qcow2(tmp_path / "a.qcow2")
    record = images.gallery().publish("a", "1.0.0", source)
    old = record.model_copy(update={"digest": hashlib.sha256(source.read_bytes()).hexdigest()})
    images.path_of(record).rename(images._folder / f"{old.digest}.qcow2")
    images._store.put(old)
    assert images.path_of(old).exists()
    assert images.gallery().publish("a", "1.0.0", source).digest == old.digest
    assert left_in(images) == [f"{old.digest}.qcow2"]
    path = images.path_of(old)
    path.chmod(0o600)
    path.write_bytes(path.read_bytes()[:-1] + b"x")
    with pytest.raises(ImageError, match="was changed"):
        images.path_of(old)


def test_random_headers(monkeypatch: pytest.MonkeyPatch) -> None:
    """B4, M5: a part of the nightly fuzzing."""
    monkeypatch.setattr(fuzz_images, "_WITH_QEMU", 8)
    refused = 0
    case: Callable[[], object]
    for case in fuzz_images.cases(random.Random(12), 1000):
        started = time.monotonic()
        with contextlib.suppress(VmssError):
            case()
            refused -= 1
        refused += 1
        assert time.monotonic() - started < 5
    assert 300 < refused < 1000
