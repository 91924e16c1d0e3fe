"""Scratch folders that other users may pass through, and that are removed whatever happens.

In mmdebstrap's unshare mode the root of the new filesystem is a subordinate id
of the user: it may not enter a home folder of mode 0700, and what it leaves
there the user may not delete.
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
        folder: The user's own, mode 0711: others may pass through and not look
            around, so that they reach only what they know the name of.
        lock: Descriptor that holds its lock. Handed to a program, it keeps the folder
            from being swept as long as that runs, whether or not this process does.
    """

    folder: Path
    lock: int


def places(cache: Path) -> list[Path]:
    """Where a root filesystem may be unpacked, the best first.

    The user's own ``TMPDIR`` first, then the cache, which is known to have room,
    then the folders that every account may enter.
    """
    wanted = os.environ.get("TMPDIR")
    found = [*([Path(wanted)] if wanted else []), cache, Path("/var/tmp"), Path("/tmp")]  # noqa: S108
    return list(dict.fromkeys(path.absolute() for path in found))


@contextlib.contextmanager
def scratch(place: Path) -> Iterator[Scratch]:
    """Makes a scratch folder, and removes it with everything in it.

    What a killed process of the same user left in the place is removed first.

    Args:
        place: The folder to make it in, one of :func:`places` or any of the user's own.

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
    """Locks a folder itself, so that nothing in it is needed; None where another holds it."""
    lock = os.open(folder, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC)
    try:
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        os.close(lock)
        return None
    return lock


def _sweep(place: Path, prefix: str) -> None:
    """Removes the scratch folders of dead processes, as far as that is possible."""
    for folder in place.glob(f"{prefix}*"):
        with contextlib.suppress(OSError):  # it went meanwhile
            if folder.lstat().st_uid != os.geteuid():
                continue  # another's, in a folder that all may write to
            lock = _lock(folder)
            if lock is not None:
                try:
                    _remove(folder)
                finally:
                    os.close(lock)


def _remove(folder: Path) -> None:
    """Removes a scratch folder, as far as that is possible."""
    for entry in folder.iterdir():
        other = entry.lstat().st_uid != os.geteuid()
        if other and entry.is_dir() and not entry.is_symlink():
            # Another id's of the user: emptied as the root of a namespace that has it.
            # The folder's own name is in a folder of ours, so that step is ours.
            with contextlib.suppress(VmssError):
                run(
                    ["mmdebstrap", "--unshare-helper", "find", entry, "-mindepth", "1", "-delete"],
                    what=f"removing {entry}",
                    timeout=_REMOVE_LIMIT,
                    cwd=folder,
                )
    shutil.rmtree(folder, ignore_errors=True)
