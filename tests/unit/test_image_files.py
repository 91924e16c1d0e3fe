"""R3, B4: an image file is not trusted: what it names, what it costs, what it is changed into."""

from __future__ import annotations

import contextlib
import os
import random
import resource
import socket
import struct
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from benchmarks.fuzz_images import cases
from pytest_vmss.clock import SystemClock
from pytest_vmss.errors import ImageError, LabError, VmssError
from pytest_vmss.gallery import Gallery, ImageStore
from pytest_vmss.gallery import copy as copying
from pytest_vmss.gallery import publication as publishing
from pytest_vmss.gallery.copy import copy_file, digest_of, open_regular
from pytest_vmss.gallery.formats import ImageHead
from pytest_vmss.gallery.qcow2 import convert, inspect
from pytest_vmss.host.process import Bounds, run
from pytest_vmss.hypervisor.disks import create_os_disk
from pytest_vmss.settings import ImageLimits, Settings

SECRET = b"HOST-SECRET"
GIB = 1024**3


@pytest.fixture(autouse=True)
def _here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)


def qcow2(name: str, size: str = "1M", *options: str) -> Path:
    run(["qemu-img", "create", "-q", "-f", "qcow2", *options, name, size], what="an image")
    return Path(name)


def patched(source: Path, name: str, patch: Callable[[bytearray], None]) -> Path:
    content = bytearray(source.read_bytes())
    patch(content)
    Path(name).write_bytes(content)
    return Path(name)


def field(form: str, offset: int, value: int) -> Callable[[bytearray], None]:
    return lambda content: struct.pack_into(f">{form}", content, offset, value)


def evil(folder: Path) -> Path:
    """An image that shows a guest a file of the host."""
    (folder / "secret").write_bytes(SECRET.ljust(65536, b"\n"))
    return qcow2("evil.qcow2", "64k", "-b", str(folder / "secret"), "-F", "raw")


def guest_reads(disk: Path) -> bytes:
    create_os_disk(Path.cwd() / "os.qcow2", disk, None)
    run(["qemu-img", "convert", "-O", "raw", "os.qcow2", "seen.raw"], what="reading it")
    return Path("seen.raw").read_bytes()


def test_a_name_is_a_name(images: ImageStore, tmp_path: Path) -> None:
    """What qemu-img takes for a protocol or for options is a file's name (a_toctou)."""
    good = qcow2("good.qcow2").read_bytes()
    for number, name in enumerate(
        ("file:x", "json:{}", "web-12:30.qcow2", "-x", "a,b,,c", "driver=raw", "nbd://127.0.0.1/x")
    ):
        Path(name).parent.mkdir(parents=True, exist_ok=True)
        Path(name).write_bytes(good)
        record = Gallery(images).publish("web", f"1.0.{number}", name)
        assert images.path_of(record).read_bytes() == good
        assert inspect(Path(name)) == 1024**2
    Path("file:good.qcow2").write_bytes(evil(tmp_path).read_bytes())
    with pytest.raises(ImageError, match="backing file"):
        Gallery(images).publish("web", "2.0.0", "file:good.qcow2")


def test_what_is_checked_is_what_is_published(images: ImageStore, tmp_path: Path) -> None:
    """The file that a link names changes all the while (a_toctou)."""
    evil(tmp_path)
    qcow2("good.qcow2", "64k")
    Path("img.qcow2").symlink_to("good.qcow2")
    ended = threading.Event()

    def flip() -> None:
        while not ended.wait(0.001):
            for target in ("evil.qcow2", "good.qcow2"):
                Path("next").symlink_to(target)
                Path("next").rename("img.qcow2")
                time.sleep(0.002)

    flipping = threading.Thread(target=flip)
    flipping.start()
    published = refused = 0
    try:
        for number in range(40):
            try:
                record = Gallery(images).publish("web", f"1.0.{number}", "img.qcow2")
            except ImageError:
                refused += 1
            else:
                published += 1
                assert SECRET not in guest_reads(images.path_of(record))
    finally:
        ended.set()
        flipping.join()
    # How many of which depends on the host; the test below has the moments one by one.
    assert published + refused == 40


@pytest.mark.parametrize("moment", ["copied", "checked"])
def test_a_source_that_changes_after_its_first_look(
    images: ImageStore, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, moment: str
) -> None:
    """The same file, rewritten in place: before it is copied it is refused, then it is ignored."""
    bad, good = evil(tmp_path).read_bytes(), qcow2("good.qcow2", "64k").read_bytes()
    source = Path("img.qcow2")
    source.write_bytes(good)
    name = "copy_file" if moment == "copied" else "inspect"
    real = getattr(publishing, name)

    def changed(*args: object, **options: object) -> object:
        source.write_bytes(bad)
        return real(*args, **options)

    monkeypatch.setattr(publishing, name, changed)
    if moment == "copied":
        with pytest.raises(ImageError, match="backing file"):
            Gallery(images).publish("web", "1.0.0", source)
    else:
        record = Gallery(images).publish("web", "1.0.0", source)
        assert images.path_of(record).read_bytes() == good


def data_file(name: bytes) -> Callable[[bytearray], None]:
    def patch(content: bytearray) -> None:
        start = content.find(struct.pack(">I", 0x44415441))
        extension = struct.pack(">II", 0x44415441, len(name)) + name + bytes(-len(name) % 8 + 8)
        content[start : start + len(extension)] = extension

    return patch


def backing(name: bytes) -> Callable[[bytearray], None]:
    def patch(content: bytearray) -> None:
        content[0x400 : 0x400 + len(name)] = name
        struct.pack_into(">QI", content, 8, 0x400, len(name))

    return patch


def test_an_image_that_names_something_else_opens_nothing(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Backing and data files of all kinds are refused before qemu-img sees them (a_images)."""
    good = qcow2("good.qcow2")
    external = qcow2("df.qcow2", "1M", "-o", "data_file=df.raw")
    with socket.create_server(("127.0.0.1", 0)) as server:
        server.settimeout(0.05)
        port = server.getsockname()[1]
        nbd = (
            f'json:{{"driver":"nbd","server":{{"type":"inet","host":"127.0.0.1","port":"{port}"}}}}'
        )
        monkeypatch.setattr("pytest_vmss.gallery.qcow2.run", None)
        for name in (
            nbd.encode(), f"nbd://127.0.0.1:{port}/x".encode(), b"/etc/shadow", b"../../x",
            b'json:{"driver":"null-co","size":1048576}', b"fat:/etc", b"\x1b]0;x\x07\x9b2J",
        ):  # fmt: skip
            for start, patch, words in (
                (good, backing(name), "backing file"),
                (external, data_file(name), "another file"),
            ):
                with pytest.raises(ImageError, match=words) as refused:
                    inspect(patched(start, "named", patch))
                assert str(refused.value).isprintable()
        with pytest.raises(TimeoutError):
            server.accept()


@pytest.mark.parametrize(
    ("patch", "words"),
    [
        (lambda content: content.__setitem__(slice(4, None), b"\xff" * 600), "its version is"),
        (lambda content: content.__delitem__(slice(4, None)), "its version is 0"),
        (lambda content: content.__delitem__(slice(104, None)), "ends within its header"),
        (lambda content: content.__delitem__(slice(90, None)), "ends within its header"),
        (field("I", 20, 8), "its clusters"),
        (field("I", 20, 40), "its clusters"),
        (field("Q", 24, 0), "0 bytes"),
        (field("Q", 24, 1 << 62), "are allowed"),
        (field("Q", 24, 4000 * GIB), "its first table has 1 entries"),
        (field("I", 32, 1), "encrypted"),
        (field("I", 32, 2), "encrypted"),
        (field("I", 36, 1 << 23), "its first table"),
        (field("Q", 40, 1 << 50), "its first table is at"),
        (field("Q", 40, 8), "its first table is at"),
        (field("Q", 48, 1 << 63), "its table of reference counts is at"),
        (field("I", 56, 0), "its table of reference counts has 0"),
        (field("I", 56, 1 << 20), "its table of reference counts has"),
        (field("I", 60, 60000), "60000 snapshots"),
        (field("I", 60, 1), "1 snapshots"),
        (field("Q", 88, 1), "bitmaps"),
        (field("Q", 88, 2), "another file"),
        (field("I", 112, 0x12345678), "an extension that is not known here"),
        (field("Q", 72, 1 << 1), "marked corrupt"),
        (field("Q", 72, 1 << 2), "another file"),
        (field("Q", 72, 1 << 3), "compression"),
        (field("Q", 72, 1 << 40), "not known"),
        (field("I", 96, 7), "reference counts"),
        (field("I", 100, 1 << 30), "its header has"),
        (field("I", 108 + 8, 1 << 30), "an extension of its header"),
    ],
)
def test_a_header_that_is_not_sound(
    patch: Callable[[bytearray], None], words: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Refused by the header alone, before qemu-img sees it."""
    good = qcow2("good.qcow2")
    monkeypatch.setattr("pytest_vmss.gallery.qcow2.run", None)
    with pytest.raises(ImageError, match=words):
        inspect(patched(good, "bad", patch))


@pytest.mark.parametrize(
    "options",
    ["compat=0.10", "compat=1.1", "cluster_size=512", "cluster_size=2M", "refcount_bits=64",
     "lazy_refcounts=on", "preallocation=metadata", "compression_type=zstd", "extended_l2=on"],
)  # fmt: skip
def test_whatever_qemu_makes_is_an_image(images: ImageStore, options: str) -> None:
    """B6: nothing sound is refused; holes stay holes."""
    source = qcow2("good.qcow2", "64M", "-o", options)
    record = Gallery(images).publish("web", "1.0.0", source)
    assert record.virtual_size == 64 * 1024**2
    assert images.path_of(record).stat().st_blocks <= source.stat().st_blocks + 16
    assert not subprocess.call(["cmp", source, images.path_of(record)])


@pytest.mark.parametrize(
    ("command", "words"),
    [
        (["bitmap", "--add", "--enable", "good.qcow2", "b0"], "dirty bitmaps"),
        (["snapshot", "-c", "one", "good.qcow2"], "1 snapshots"),
    ],
)
def test_what_costs_whoever_opens_it_is_refused(
    images: ImageStore, command: list[str], words: str
) -> None:
    """R3: a bitmap of few KiB takes gigabytes of each QEMU that runs on the image."""
    source = qcow2("good.qcow2", "64M")
    run(["qemu-img", *command], what="a change")
    with pytest.raises(ImageError, match=f"{words}.*qemu-img convert -O qcow2"):
        Gallery(images).publish("web", "1.0.0", source)
    run(["qemu-img", "convert", "-O", "qcow2", source, "flat.qcow2"], what="the way out")
    Gallery(images).publish("web", "1.0.0", "flat.qcow2")


def test_only_regular_files(images: ImageStore) -> None:
    """A pipe without a writer is not waited for, a device is not read (a_images)."""
    os.mkfifo("fifo")
    with contextlib.closing(socket.socket(socket.AF_UNIX)) as listening:
        listening.bind("socket")
        for path in ("fifo", "/dev/zero", "/dev/null", ".", "socket"):
            for raw in (False, True):
                with pytest.raises(ImageError, match="cannot be read"):
                    Gallery(images).publish("web", "1.0.0", path, raw=raw)
    for path in ("nothing", "a\0b", "\udcff", "x" * 5000, "/proc/self/mem", "/proc/self/maps"):
        with pytest.raises(ImageError) as refused:
            Gallery(images).publish("web", "1.0.0", path)
        assert str(refused.value).isprintable()
    good = qcow2("good.qcow2")
    Path("link").symlink_to(good)
    Gallery(images).publish("web", "1.0.0", "link")  # a user's own links are followed


def test_what_an_image_may_cost(
    images: ImageStore, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Bombs of tables and holes are refused by their numbers, and cost nothing (a_bombs)."""
    monkeypatch.setattr("pytest_vmss.gallery.qcow2.run", None)
    huge = qcow2("huge.qcow2", "64T", "-o", "cluster_size=2M")
    with pytest.raises(ImageError, match=r"65,536\.0 GiB, and 4,095 GiB are allowed"):
        inspect(huge)
    tail = qcow2("tail.qcow2", "1M", "-o", "cluster_size=512,refcount_bits=64")
    os.truncate(tail, 32 * GIB)
    with pytest.raises(ImageError, match="clusters of 512 bytes, holes counted"):
        inspect(tail)
    disk = Path("disk.raw")
    disk.write_bytes(bytes(510) + b"\x55\xaa")
    os.truncate(disk, 5000 * GIB)
    with pytest.raises(ImageError, match=r"5,000\.0 GiB"):
        Gallery(images).publish("web", "1.0.0", disk, raw=True)
    small = ImageStore(tmp_path / "i", images._store, SystemClock(), limits=ImageLimits(1, 1))
    with pytest.raises(ImageError, match="and 1 GiB are allowed"):
        Gallery(small).publish("web", "1.0.0", qcow2("two.qcow2", "2G"))


def test_an_image_that_holds_too_much(monkeypatch: pytest.MonkeyPatch) -> None:
    """Counted is what is stored, not the length; also where the file says less."""
    monkeypatch.setattr(copying, "GIB", 1024**2)
    source = qcow2("full.qcow2", "4M")
    run(["qemu-io", "-c", "write 0 3M", source], what="filling it")
    limits = ImageLimits(virtual_gib=100, stored_gib=2)
    Path("copy").touch()
    with open_regular(source) as file:
        with pytest.raises(ImageError, match=r"MAX_IMAGE_FILE_GIB"):
            copy_file(file, Path("copy"), name="x", limits=limits)
        target = os.open("copy", os.O_WRONLY)
        with pytest.raises(ImageError, match=r"MAX_IMAGE_FILE_GIB"):
            copying._copy_data(file, target, 4 * 1024**2, name="x", limits=limits)
        os.close(target)


def test_holes_cost_nothing(images: ImageStore) -> None:
    """They are neither copied nor hashed (g_sparse); an hour's hashing otherwise."""
    source = qcow2("a.qcow2")
    os.truncate(source, 200 * GIB)
    began = time.process_time()
    record = Gallery(images).publish("web", "1.0.0", source)
    path = images.path_of(record)
    assert path.stat().st_size == 200 * GIB
    assert path.stat().st_blocks * 512 < 1024**2
    disk = Path("disk.raw")
    disk.write_bytes(bytes(510) + b"\x55\xaa")
    os.truncate(disk, 100 * GIB)
    assert Gallery(images).publish("web", "1.0.1", disk, raw=True).size < 2 * 1024**2
    assert time.process_time() - began < 2


def test_the_digest_is_of_the_content() -> None:
    """B1: sparse or not, it is the same; another byte, place or length, another."""

    def made(name: str, *parts: tuple[int, bytes], size: int = 3 * 1024**2 + 5) -> str:
        with Path(name).open("wb") as file:
            file.truncate(size)
            for offset, content in parts:
                file.seek(offset)
                file.write(content)
        with open_regular(Path(name)) as descriptor:
            return digest_of(descriptor, "sha256-data")

    sparse = made("a", (1024**2 - 3, b"hello"))
    dense = made("b", (0, bytes(3 * 1024**2 + 5)), (1024**2 - 3, b"hello"))
    assert sparse == dense
    others = {
        made("c", (1024**2 - 3, b"hellp")),
        made("c", (1024**2 - 2, b"hello")),
        made("c", (2 * 1024**2 - 3, b"hello")),
        made("c", (1024**2 - 3, b"hello"), size=3 * 1024**2 + 6),
        made("c"),
    }
    assert len(others | {sparse}) == 6


def test_programs_are_held_to_their_bounds() -> None:
    """What costs more than it may is the image's fault, and said so."""
    with pytest.raises(VmssError, match="failed with status"):
        run(
            ["dd", "if=/dev/zero", "of=/dev/null", "bs=512M", "count=1"],
            what="reading",
            bounds=Bounds(memory_mib=128, cpu_s=5, file_mib=1),
        )
    with pytest.raises(VmssError, match="failed with status"):
        run(
            ["dd", "if=/dev/zero", "of=big", "bs=1M", "count=3", "status=none"],
            what="writing",
            bounds=Bounds(memory_mib=128, cpu_s=5, file_mib=1),
        )
    assert Path("big").stat().st_size <= 1024**2


def test_threads_of_bounded_programs_share_their_memory() -> None:
    """R3: what fits on a host with one processor also fits where glibc would give each thread 64 MiB."""
    code = (
        "import ctypes, threading\n"
        "malloc = ctypes.CDLL(None).malloc\n"
        "together = threading.Barrier(16)\n"
        "def allocate():\n"
        "    together.wait(30)\n"
        "    malloc(ctypes.c_size_t(1000))\n"
        "    together.wait(30)\n"
        "threads = [threading.Thread(target=allocate) for _ in range(16)]\n"
        "for thread in threads: thread.start()\n"
        "for thread in threads: thread.join()\n"
        "print(open('/proc/self/status').read())\n"
    )
    told = run(
        [sys.executable, "-I", "-S", "-c", code],
        what="allocating",
        bounds=Bounds(memory_mib=4096, cpu_s=60, file_mib=1),
    ).decode()
    peak_kib = int(told.split("VmPeak:")[1].split()[0])
    assert peak_kib < 512 * 1024


def test_qemu_img_runs_bounded_on_our_name(monkeypatch: pytest.MonkeyPatch) -> None:
    seen: list[tuple[list[str], Bounds | None]] = []

    def spy(argv: list[object], *, bounds: Bounds | None = None, **_: object) -> bytes:
        seen.append(([str(arg) for arg in argv], bounds))
        return b""

    good = qcow2("good.qcow2")
    monkeypatch.setattr("pytest_vmss.gallery.qcow2.run", spy)
    inspect(good)
    Path("out").touch()
    for kind in ("raw", "VHD (fixed)", "VHD (dynamic)", "VHDX"):
        head = ImageHead(kind, 4096)
        convert(Path("in,put"), Path("out"), head=head, name="x", limits=ImageLimits())
    here = str(Path.cwd())
    for argv, bounds in seen:
        assert bounds is not None
        (options,) = (arg for arg in argv if arg.startswith("driver="))
        assert f"file.driver=file,file.filename={here}/" in options
    assert "in,,put" in seen[1][0][-2]
    assert seen[1][0][-1] == f"{here}/out"


def test_limits_are_settings(monkeypatch: pytest.MonkeyPatch) -> None:
    assert Settings().images == ImageLimits(virtual_gib=4095, stored_gib=64)
    monkeypatch.setenv("VMSS_MAX_IMAGE_GIB", "7")
    monkeypatch.setenv("VMSS_MAX_IMAGE_FILE_GIB", "3")
    assert Settings().images == ImageLimits(virtual_gib=7, stored_gib=3)
    for wrong in ("0", "-1", "x", "1.5", "٣", "9" * 30):
        monkeypatch.setenv("VMSS_MAX_IMAGE_GIB", wrong)
        with pytest.raises(LabError, match="expected a whole number of GiB"):
            Settings()


def test_mutated_images_are_judged() -> None:
    """A part of ``python -m benchmarks.fuzz images``: the project's own errors, quickly."""
    random_ = random.Random(12)
    # The most that any child of this process took, those of earlier tests among them.
    before = resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss
    slowest, refused, accepted, printable = 0.0, 0, 0, True
    for case in cases(random_, 400):
        began = time.monotonic()
        try:
            case()
            accepted += 1
        except ImageError as error:
            printable &= str(error).isprintable()
            refused += 1
        slowest = max(slowest, time.monotonic() - began)
    assert printable
    assert slowest < 2
    assert refused > 100
    assert accepted > 10
    assert resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss <= max(before, 256 * 1024)
