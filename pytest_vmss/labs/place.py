"""Opens a lab's folder, or creates it, and keeps it open until the lab is closed or removed."""

from __future__ import annotations

import contextlib
import os
import secrets
import stat
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Literal, TypeVar

from pytest_vmss.errors import ConflictError, LabError
from pytest_vmss.guest.keys import lab_key
from pytest_vmss.host.locks import Lock, wait_for_lock
from pytest_vmss.host.ownership import require_own, require_trusted
from pytest_vmss.host.paths import PROCESS_ROOTS, LabPaths
from pytest_vmss.labs.identity import (
    LabIdentity,
    labs_folder,
    networks_folder,
    read_identity,
    write_identity,
)
from pytest_vmss.labs.removal import remove_files, remove_unfinished
from pytest_vmss.settings import Settings

__all__ = ["LabPlace", "open_place", "session_paths"]

#: Seconds to wait for another process that is creating, opening or removing the lab.
_DOOR_LIMIT = 120.0
#: Seconds to wait for other processes to close a lasting lab that is to be removed.
_ALONE_LIMIT = 1.0

_Kind = Literal["session", "lasting"]
_T = TypeVar("_T")


class LabPlace:
    """A lab's folder that this process has open.

    It holds a shared lock, which shows other processes that the lab is alive; a forked child
    must open the lab again.

    Args:
        settings: Where labs are, and how this one runs.
        paths: The lab's paths.
        identity: Its identity.
        in_use: The shared lock; taken if it is not given.
        is_new: Whether this process has just created it. One of a session is then in use until
            the process exits.

    Raises:
        ConflictError: Another process is removing the lab.
        OSError: The lock's file cannot be created.
    """

    def __init__(
        self,
        settings: Settings,
        paths: LabPaths,
        identity: LabIdentity,
        in_use: Lock | None = None,
        *,
        is_new: bool = False,
    ) -> None:
        self.settings = settings
        self.paths = paths
        self.identity = identity
        self.is_new = is_new
        self._is_maker = is_new and identity.kind == "session"
        self._process = os.getpid()
        self._in_use = in_use or _use(paths)

    def leave(self) -> None:
        """Marks the lab as closed in this process; a session's lab stays in use by its maker."""
        if not self._is_maker:
            self._in_use.release()

    @contextlib.contextmanager
    def removal(self) -> Iterator[None]:
        """Removes the lab's files, after the ``with`` block has removed its machines.

        Other processes can neither open nor remove the lab meanwhile.

        Raises:
            LabError: Something could not be removed, and the message names each; or this
                process is a forked child of the one that opened the lab.
            ConflictError: Another process has this lasting lab open; nothing was changed.
        """
        if self._process != os.getpid():
            raise LabError(
                f"the lab {self.paths.folder.name} was opened by the process {self._process}, of "
                f"which this one ({os.getpid()}) is a fork: it is not this one's to remove"
            )
        try:
            with _door(self.paths):
                self._require_alone()
                yield
                if self.paths.identity.exists():
                    remove_files(self.settings, self.paths, self.identity)
                else:
                    remove_unfinished(self.settings, self.paths)
        except OSError as error:
            raise LabError(
                f"the lab {self.paths.folder.name} cannot be removed: {error}; mend that, then "
                "try again"
            ) from error
        self._in_use.release()

    def _require_alone(self) -> None:
        """Raises if other processes have a lasting lab open; a session's lab is removed anyway."""
        if self.identity.kind == "session":
            return
        self._in_use.release()
        try:
            # A program that this process has just started closes its copy of the lock soon.
            self._in_use = wait_for_lock(
                self.paths.in_use, what="has it open", timeout=_ALONE_LIMIT
            )
        except ConflictError as error:
            self._in_use = _use(self.paths)
            raise ConflictError(
                f"another process has the lab {self.paths.folder.name} open "
                f"(`fuser -v {self.paths.in_use}` tells which); end it, and try again"
            ) from error


def session_paths(settings: Settings) -> LabPaths:
    """The paths of a new lab that lives as long as this process."""
    return LabPaths(labs_folder(settings) / f"s{secrets.token_hex(3)}")


def open_place(
    settings: Settings, paths: LabPaths, kind: _Kind, make: Callable[[LabPlace], _T]
) -> _T:
    """Opens a lab's folder, creates it if there is none, and makes the lab in it.

    Args:
        settings: Where labs are, and how this one runs.
        paths: The lab's paths.
        kind: Its kind, if it is created.
        make: Makes the lab; no other process creates, opens or removes it meanwhile.

    Raises:
        LabError: The folder cannot be used.
        ConflictError: Another process is creating or removing the lab, and does not finish.
        CapacityError: All loopback networks of the host are claimed.
    """
    try:
        _require_own(settings, paths)
        with _door(paths):
            return _enter(settings, paths, kind, make)
    except (OSError, ValueError, TypeError) as error:
        raise LabError(
            f"the lab's folder {paths.folder} cannot be used: {error}; "
            "use another state directory (VMSS_STATE_DIR)"
        ) from error


def _enter(settings: Settings, paths: LabPaths, kind: _Kind, make: Callable[[LabPlace], _T]) -> _T:
    """Opens the lab, or creates it; the lab's door must be locked."""
    require_own(
        paths.folder, paths.key, paths.database, paths.run, paths.sets, paths.locks,
        paths.images, paths.blobs, paths.blobs / ".key",
    )  # fmt: skip
    if paths.identity.exists() and (ending := read_identity(paths)).ending:
        remove_files(settings, paths, ending)  # the removal was killed
    remove_unfinished(settings, paths)
    in_use = _use(paths)
    try:
        paths.folder.mkdir(parents=True, exist_ok=True, mode=0o700)
        _close_to_others(paths.folder)
        for below in (paths.run, paths.sets, paths.locks):
            below.mkdir(exist_ok=True, mode=0o700)
        is_new = not paths.identity.exists()
        if is_new:
            write_identity(settings, paths, kind)
        elif not paths.database.exists() and any(paths.sets.iterdir()):
            raise LabError(
                f"the lab {paths.folder.name} has scale sets under {paths.sets}, and its "
                f"database {paths.database} is gone; bring it back, or use another lab"
            )
        lab_key(paths.key)
        return make(LabPlace(settings, paths, read_identity(paths), in_use, is_new=is_new))
    except BaseException:
        in_use.release()
        with contextlib.suppress(OSError, LabError, ConflictError):  # else `vmss reap` does it
            remove_unfinished(settings, paths)
        raise


def _require_own(settings: Settings, paths: LabPaths) -> None:
    """Creates the folders that labs trust, and checks that no other account can write them (M5).

    Raises:
        OSError: Another account can, or the folders cannot be created.
    """
    shared = (paths.folder.parent, paths.door.parent, networks_folder(settings))
    require_trusted(settings.state_dir)
    if not settings.state_dir.is_dir():
        settings.state_dir.mkdir(parents=True, exist_ok=True, mode=0o700)
        _open_to_qemu(settings.state_dir)
    for folder in shared:
        folder.mkdir(parents=True, exist_ok=True, mode=0o700)
    require_trusted(settings.state_dir)
    require_own(*shared, settings.state_dir / PROCESS_ROOTS)
    _open_to_qemu(labs_folder(settings))


def _open_to_qemu(folder: Path) -> None:
    """Lets QEMU's account pass through a folder of root's; nobody else can list it (R4)."""
    if os.geteuid() == 0:
        folder.chmod(0o711)


def _close_to_others(folder: Path) -> None:
    """Makes a lab's folder private, but for QEMU's group, which may enter it (R4)."""
    folder.chmod(stat.S_IMODE(folder.stat().st_mode) & 0o710 | 0o700)


def _door(paths: LabPaths) -> Lock:
    """Waits for the lab's door lock, which serialises creating, opening and removing it."""
    return wait_for_lock(
        paths.door, what=f"makes, opens or removes the lab {paths.folder.name}", timeout=_DOOR_LIMIT
    )


def _use(paths: LabPaths) -> Lock:
    """Takes the shared lock that marks the lab as open in this process."""
    return wait_for_lock(
        paths.in_use,
        what=f"removes the lab {paths.folder.name}",
        timeout=_DOOR_LIMIT,
        shared=True,
    )
