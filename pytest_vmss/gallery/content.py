"""The bytes of an image file: opened once, copied with their holes, and their digest."""

from __future__ import annotations

import contextlib
import errno
import fcntl
import hashlib
import os
import stat
from collections.abc import Iterator
from pathlib import Path

from pytest_vmss.errors import ImageError

__all__ = ["copy", "digest", "has_digest", "open_regular"]

#: ``ioctl`` that lets two files share their blocks.
_FICLONE = 0x40049409
_BLOCK = 64 * 1024
_ZEROS = bytes(_BLOCK)
_CHUNK = 64 * 1024 * 1024
_GIB = 1024**3
#: What a file system says that cannot copy from file to file by itself.
_CANNOT = (errno.EXDEV, errno.EINVAL, errno.ENOSYS, errno.EOPNOTSUPP, errno.EPERM)


@contextlib.contextmanager
def open_regular(path: Path) -> Iterator[int]:
    """Opens a file for reading by its descriptor; whatever the name means later, it stays that.

    Raises:
        ImageError: It cannot be opened, or is a folder, a pipe or a device.
    """
    try:
        # A pipe without a writer would make the opening itself wait.
        descriptor = os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_NOCTTY | os.O_CLOEXEC)
    except OSError as unreadable:
        raise ImageError(f"{path} cannot be read: {unreadable.strerror}") from unreadable
    except ValueError as unspeakable:  # a NUL, a lone surrogate
        raise ImageError(f"{str(path)!r} cannot be read: {unspeakable}") from unspeakable
    try:
        if not stat.S_ISREG(os.fstat(descriptor).st_mode):
            raise ImageError(f"{path} cannot be read as an image: it is not a regular file")
        yield descriptor
    finally:
        os.close(descriptor)


def copy(source: int, target: int, *, name: Path, limit: int) -> None:
    """Copies an open file into an empty one; holes stay holes, blocks are shared where possible.

    Args:
        source: Descriptor of the file.
        target: Descriptor of the empty file.
        name: What to call the source in messages.
        limit: Bytes of data, without holes, that are copied at most.

    Raises:
        ImageError: The file has more data than that.
        OSError: The host cannot read or write it.
    """
    status = os.fstat(source)
    if status.st_blocks * 512 > limit:
        raise _too_large(name, status.st_blocks * 512, limit)
    try:
        fcntl.ioctl(target, _FICLONE, source)
    except OSError:  # the file system has no shared blocks
        os.ftruncate(target, 0)
    else:
        if (taken := os.fstat(target).st_blocks * 512) > limit:  # it grew meanwhile
            raise _too_large(name, taken, limit)
        return
    copied = 0
    for begin, end in _extents(source, status.st_size):
        copied += end - begin
        if copied > limit:
            raise _too_large(name, copied, limit)
        if not _copy_extent(source, target, begin, end):
            break  # it was cut meanwhile; the checks of the copy judge what there is
    os.ftruncate(target, status.st_size)


def _copy_extent(source: int, target: int, begin: int, end: int) -> bool:
    by_kernel = True
    while begin < end:
        length = min(end - begin, _CHUNK)
        if by_kernel:
            try:
                done = os.copy_file_range(source, target, length, begin, begin)
            except OSError as refused:
                if refused.errno not in _CANNOT:
                    raise
                by_kernel = False
                continue
        else:
            data = os.pread(source, min(length, 1024 * 1024), begin)
            done = os.pwrite(target, data, begin) if data else 0
        if done == 0:
            return False
        begin += done
    return True


def digest(path: Path) -> str:
    """The SHA-256 of a file's content, by which it is addressed.

    It is taken over the file's length and its blocks of 64 KiB that are not all zeros, each
    with its offset: equal for equal content, however sparse, and holes cost nothing.
    """
    with path.open("rb", buffering=0) as file:
        size = os.fstat(file.fileno()).st_size
        total = hashlib.sha256(b"pytest-vmss blocks 1\0" + size.to_bytes(8, "big"))
        next_block = 0
        for begin, end in _extents(file.fileno(), size):
            start = max(next_block, begin - begin % _BLOCK)
            for offset in range(start, end, _BLOCK):
                block = os.pread(file.fileno(), _BLOCK, offset)
                if block != _ZEROS[: len(block)]:
                    total.update(offset.to_bytes(8, "big"))
                    total.update(block)
                next_block = offset + _BLOCK
    return total.hexdigest()


def has_digest(path: Path, wanted: str) -> bool:
    """Whether a file's content has a digest, also one that an older version recorded.

    Those recorded the SHA-256 of all bytes, zeros included.
    """
    if digest(path) == wanted:
        return True
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest() == wanted


def _extents(descriptor: int, size: int) -> Iterator[tuple[int, int]]:
    """Where a file has data, from and to, in bytes."""
    end = 0
    while end < size:
        try:
            begin = os.lseek(descriptor, end, os.SEEK_DATA)
        except OSError as refused:
            if refused.errno == errno.ENXIO:  # a hole up to the end
                return
            raise
        end = min(os.lseek(descriptor, begin, os.SEEK_HOLE), size)
        if begin < end:
            yield begin, end
        else:
            return


def _too_large(name: Path, taken: int, limit: int) -> ImageError:
    return ImageError(
        f"{name} has {taken / _GIB:.1f} GiB of data; an image may have {limit / _GIB:.1f} GiB; "
        "make it smaller, or allow more: vmss_image_allocated_gib"
    )
