"""Scratch folders that other users may traverse, and that are always removed in the end.

In mmdebstrap's unshare mode the root of the new filesystem is a subordinate id of the user: it
may not enter a home folder of mode 0700, and the user may not delete what it leaves behind.
"""

from __future__ import annotations

import contextlib
import fcntl
import os
import shutil
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from pytest_vmss.errors import HostError, VmssError
from pytest_vmss.host.process import run

__all__ = ["Scratch", "places", "scratch"]

_REMOVE_LIMIT = 120.0


@dataclass(frozen=True)
class Scratch:
    """A folder for the files of one build.

    Attributes:
        folder: The folder; it belongs to the user and has mode 0711, so that others may traverse it
            but not list it, and reach only what they know the name of.
        lock: Descriptor that holds its lock. If a program inherits it, the folder is not swept
            while that runs, even if this process ends.
    """

    folder: Path
    lock: int


def places(cache: Path) -> list[Path]:
    """Returns the folders in which a root filesystem may be unpacked, the best first.

    The user's own ``TMPDIR`` comes first, then the cache, which is known to have room, then the
    folders that every account may enter.
    """
    wanted = os.environ.get("TMPDIR")
    found = [*([Path(wanted)] if wanted else []), cache, Path("/var/tmp"), Path("/tmp")]  # noqa: S108
    return list(dict.fromkeys(path.absolute() for path in found))


@contextlib.contextmanager
def scratch(place: Path) -> Iterator[Scratch]:
    """Creates a scratch folder, and removes it afterwards with everything in it.

    Leftovers of the same user's killed processes are removed first.

    Args:
        place: The folder to create it in: one of :func:`places`, or any other of the user's.

    Raises:
        HostError: The place cannot be written.
    """
    prefix = f"vmss-build-{os.geteuid()}-"
    try:
        place.mkdir(parents=True, exist_ok=True)
        _sweep(place, prefix)
        made = _make(place, prefix)
    except OSError as error:
        raise HostError(
            f"no scratch folder can be made in {place}: {error}; make it writable, or name "
            "another by TMPDIR or VMSS_CACHE_DIR"
        ) from error
    try:
        yield made
    finally:
        _remove(made.folder)
        os.close(made.lock)


def _make(place: Path, prefix: str) -> Scratch:
    while True:
        folder = Path(tempfile.mkdtemp(dir=place, prefix=prefix))
        folder.chmod(0o711)  # whatever the umask
        try:
            lock = _lock(folder)
        except FileNotFoundError:
            continue  # another process swept it before it was locked
        if lock is not None and folder.exists():
            return Scratch(folder, lock)
        if lock is not None:
            os.close(lock)


def _lock(folder: Path) -> int | None:
    """Locks a folder itself, without a lock file; returns None if another process holds it."""
    lock = os.open(folder, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC)
    try:
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        os.close(lock)
        return None
    return lock


def _sweep(place: Path, prefix: str) -> None:
    """Removes the scratch folders of dead processes, as far as possible."""
    for folder in place.glob(f"{prefix}*"):
        with contextlib.suppress(OSError):  # it was removed meanwhile
            if folder.lstat().st_uid != os.geteuid():
                continue  # another user's, in a folder that everyone may write to
            lock = _lock(folder)
            if lock is not None:
                try:
                    _remove(folder)
                finally:
                    os.close(lock)


def _remove(folder: Path) -> None:
    """Removes a scratch folder, as far as possible."""
    for entry in folder.iterdir():
        other = entry.lstat().st_uid != os.geteuid()
        if other and entry.is_dir() and not entry.is_symlink():
            # It belongs to a subordinate id of the user: empty it as root of a namespace with that
            # id. The
            # folder's own entry is in a folder of ours, so we can remove that ourselves.
            with contextlib.suppress(VmssError):
                run(
                    ["mmdebstrap", "--unshare-helper", "find", entry, "-mindepth", "1", "-delete"],
                    what=f"removing {entry}",
                    timeout=_REMOVE_LIMIT,
                    cwd=folder,
                )
    shutil.rmtree(folder, ignore_errors=True)
