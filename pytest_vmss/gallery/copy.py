"""Copies a user's file privately, and computes the digest of its content (R3, B1).

The file is opened by name only once; everything else uses the descriptor. Changing or replacing
the file meanwhile has no effect on what was copied, and only the copy is checked and used.
"""

from __future__ import annotations

import contextlib
import errno
import fcntl
import hashlib
import os
import stat
from collections.abc import Iterator
from pathlib import Path
from typing import Literal

from pytest_vmss.clock import Deadline
from pytest_vmss.errors import HostError, ImageError
from pytest_vmss.settings import GIB, ImageLimits
from pytest_vmss.untrusted import looked_in

__all__ = [
    "Algorithm",
    "copy_file",
    "digest_of",
    "open_regular",
    "open_source",
    "refuse_stored_size",
    "seen",
    "shown",
]

#: ``sha256``: of all bytes, as in records of earlier versions. ``sha256-data``: of the length and
#: the blocks that are not all zeros, each preceded by its offset; holes cost nothing.
Algorithm = Literal["sha256", "sha256-data"]

_FICLONE = 0x40049409
_PIECE = 1024**2
_ZEROS = bytes(_PIECE)
_COPY_LIMIT_S = 1800.0


@contextlib.contextmanager
def open_regular(path: Path) -> Iterator[int]:
    """Opens a regular file for reading; its name is not used again.

    Links are followed, but must lead to a regular file. Anything else is rejected without waiting
    or reading: opening a pipe without a writer would block, and a device has no end.

    Args:
        path: The file.

    Yields:
        Its descriptor.

    Raises:
        ImageError: It is not a regular file.
        OSError: It cannot be opened.
    """
    descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NONBLOCK | os.O_NOCTTY)
    try:
        if not stat.S_ISREG(os.fstat(descriptor).st_mode):
            raise ImageError(
                f"{shown(path)} cannot be read: it is no regular file; copy what it holds into one"
            )
        yield descriptor
    finally:
        os.close(descriptor)


@contextlib.contextmanager
def open_source(path: Path) -> Iterator[int]:
    """Opens a file that a user named, like :func:`open_regular`.

    Raises:
        ImageError: It cannot be opened, or is not a regular file.
    """
    with contextlib.ExitStack() as opened:
        try:
            descriptor = opened.enter_context(open_regular(path))
        except (OSError, ValueError) as error:  # ValueError: not a valid file name
            reason = getattr(error, "strerror", None) or error
            raise ImageError(f"{shown(path)} cannot be read: {reason}{looked_in(path)}") from error
        yield descriptor


def shown(path: Path) -> str:
    """Formats a path for messages; escaped if it contains unprintable characters."""
    text = str(path)
    return text if text.isprintable() else ascii(text)


def copy_file(source: int, target: Path, *, name: str, limits: ImageLimits) -> None:
    """Copies a file to an existing empty one, sharing blocks if possible.

    Holes stay holes. The copy is made durable and read-only.

    Args:
        source: Descriptor of the file.
        target: Path of the copy.
        name: The user's name for the file, for messages.
        limits: The largest image that may be published.

    Raises:
        ImageError: The file is larger than the limit.
        HostError: It cannot be read completely, or not in time.
        OSError: The copy cannot be written.
    """
    status = os.fstat(source)
    refuse_stored_size(name, status.st_blocks * 512, limits)
    descriptor = os.open(target, os.O_WRONLY | os.O_CLOEXEC | os.O_NOFOLLOW)
    try:
        try:
            fcntl.ioctl(descriptor, _FICLONE, source)
        except OSError:  # another file system, or one that cannot share blocks
            _copy_data(source, descriptor, status.st_size, name=name, limits=limits)
        else:
            refuse_stored_size(name, os.fstat(descriptor).st_blocks * 512, limits)
        os.fchmod(descriptor, 0o444)
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def _copy_data(source: int, target: int, size: int, *, name: str, limits: ImageLimits) -> None:
    deadline = Deadline(_COPY_LIMIT_S)
    os.ftruncate(target, size)
    copied = 0
    for offset, length in _data(source, size):
        # Sparse files need not report their holes, so count what is written.
        done = 0
        while done < length:
            try:
                piece = os.pread(source, min(length - done, _PIECE), offset + done)
            except OSError as error:
                raise HostError(f"{name} cannot be read to its end: {error.strerror}") from error
            if not piece:
                return  # truncated meanwhile, which is fine: the copy is what gets checked
            if piece != _ZEROS[: len(piece)]:
                copied += len(piece)
                refuse_stored_size(name, copied, limits)
                _write_at(target, piece, offset + done)
            done += len(piece)
            if deadline.passed:
                raise HostError(
                    f"copying {name} took longer than its limit of {_COPY_LIMIT_S:.0f} s; "
                    "expected a faster disk or a smaller file"
                )


def _write_at(target: int, piece: bytes, offset: int) -> None:
    rest = memoryview(piece)
    while rest:
        written = os.pwrite(target, rest, offset)
        offset += written
        rest = rest[written:]


def refuse_stored_size(name: str, size: int, limits: ImageLimits) -> None:
    """Rejects a file that takes more room on the disk than is allowed.

    Raises:
        ImageError: It does.
    """
    if size > limits.stored_gib * GIB:
        raise ImageError(
            f"{name} takes {size / GIB:,.1f} GiB on the disk, and {limits.stored_gib:,} GiB are "
            "allowed; publish a smaller one, or raise the limit (--vmss-max-image-file-gib, "
            "VMSS_MAX_IMAGE_FILE_GIB)"
        )


def _data(file: int, size: int) -> Iterator[tuple[int, int]]:
    """Yields the offset and length of a file's parts that are not holes."""
    offset = 0
    while offset < size:
        try:
            start = os.lseek(file, offset, os.SEEK_DATA)
            end = os.lseek(file, start, os.SEEK_HOLE)
        except OSError as error:
            if error.errno == errno.ENXIO:  # a hole to the end
                return
            start, end = offset, size  # the file system does not report holes
        end = min(end, size)
        if start < end:
            yield start, end - start
        offset = max(end, offset + 1)


def digest_of(file: int, algorithm: Algorithm) -> str:
    """Computes the digest of a file's content, in hex.

    Args:
        file: Its descriptor.
        algorithm: The algorithm; files of equal content have equal digests, sparse or not.
    """
    if algorithm == "sha256":
        with open(file, "rb", closefd=False) as whole:
            whole.seek(0)
            return hashlib.file_digest(whole, "sha256").hexdigest()
    size = os.fstat(file).st_size
    state = hashlib.sha256(f"sha256-data\n{size}\n".encode())
    done = 0
    for offset, length in _data(file, size):
        # Whole blocks at fixed offsets, whatever the extents, so that only the content counts.
        position = max(done, offset // _PIECE * _PIECE)
        while position < offset + length:
            piece = os.pread(file, _PIECE, position)
            if piece and piece != _ZEROS[: len(piece)]:
                state.update(position.to_bytes(8, "big"))
                state.update(piece)
            position += _PIECE
        done = position
    return state.hexdigest()


def seen(file: int) -> tuple[int, ...]:
    """Returns the metadata by which to recognize that a file was changed since it was read."""
    status = os.fstat(file)
    return status.st_dev, status.st_ino, status.st_size, status.st_mtime_ns, status.st_ctime_ns
