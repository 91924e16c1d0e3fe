"""Finds and removes what a dead run left behind, and only that (L5, Q2).

``python -m pytest_vmss.labs.reap FOLDER`` removes one lab. Each dead lab is removed
by a process of its own, because libvirt's embedded driver serves only one folder per
process. That process locks the lab itself, so that if several processes find the same
lab, one removes it and the others leave it alone.
"""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path

from pytest_vmss.errors import ConflictError, LabError, VmssError
from pytest_vmss.host import boot_turns
from pytest_vmss.host.addresses import claims, clear_claims, release_network
from pytest_vmss.host.locks import is_locked, remove_if_unused, try_lock
from pytest_vmss.host.paths import PROCESS_ROOTS, LabPaths
from pytest_vmss.labs import room
from pytest_vmss.labs.identity import (
    LabIdentity,
    labs_folder,
    networks_folder,
    open_hypervisor,
    read_identity,
)
from pytest_vmss.labs.inventory import LabState, lab_state
from pytest_vmss.labs.removal import is_stub, remove_files, remove_machines, remove_unfinished
from pytest_vmss.settings import Settings, former_state_dir

__all__ = ["reap", "remove_lab"]

_LIMIT = 300.0
_NOT_ALL = "what dead sessions left could not all be removed: {}"
_NOT_OURS = (
    "it holds files, and lab.json, which says whose they are, is not there; remove it by hand if "
    "nobody needs it"
)
#: Exit status of a removal that found the lab in use by another process, or gone.
_NOT_MINE = os.EX_TEMPFAIL


def reap(settings: Settings) -> list[str]:
    """Removes the labs of sessions whose process has ended, and what killed processes left.

    Lasting labs, labs that are still kept and labs that a process has open are not touched.

    Args:
        settings: The settings, with the state directory.

    Returns:
        A line for each lab that was removed or could not be removed.
    """
    former = former_state_dir(settings.state_dir)
    lines = [] if former is None else _reap(replace(settings, state_dir=former))
    return lines + _reap(settings)


def _reap(settings: Settings) -> list[str]:
    lines: list[str] = []
    try:
        for paths in _labs(settings):
            lines += _look(settings, paths)
        _free_networks(settings)
        _remove_locks(settings)
        _remove_roots(settings)
        remove_if_unused(room.lock_file(settings))
    except (VmssError, OSError) as error:
        lines.append(_NOT_ALL.format(error))
    for path in boot_turns.lock_files(settings.state_dir):
        try:
            remove_if_unused(path)
        except OSError as error:
            lines.append(_NOT_ALL.format(error))
    return lines


def _labs(settings: Settings) -> list[LabPaths]:
    folder = labs_folder(settings)
    return [LabPaths(entry) for entry in sorted(folder.iterdir())] if folder.is_dir() else []


@contextmanager
def _dead(paths: LabPaths) -> Iterator[bool]:
    """Whether no process has a lab open or is creating or removing it; locked for the block."""
    door = try_lock(paths.door)
    if door is None:
        yield False
        return
    with door:
        yield not is_locked(paths.in_use)


def _look(settings: Settings, paths: LabPaths) -> list[str]:
    """Removes a lab if it is dead; returns lines to report."""
    what = f"the folder {paths.folder}"
    try:
        with _dead(paths) as dead:
            if not dead:
                return []
            if not paths.identity.exists():
                if not paths.folder.is_dir():
                    return []  # another has just removed it
                if not is_stub(paths):
                    return [f"{what} stays: {_NOT_OURS}"]
                remove_unfinished(settings, paths)
                return [f"removed {what}, whose making was cut short"]
            identity = read_identity(paths)
        if not _is_over(settings, paths, identity):
            return []
        return _remove(settings, paths, identity)
    except (VmssError, OSError, ValueError, TypeError) as error:
        return [f"{what} stays: {error}"]


def _is_over(settings: Settings, paths: LabPaths, identity: LabIdentity) -> bool:
    """Whether a lab that no process has open is to be removed."""
    return lab_state(settings, paths, identity) is LabState.LEFT


def _remove(settings: Settings, paths: LabPaths, identity: LabIdentity) -> list[str]:
    what = f"the lab {paths.folder.name} of the dead process {identity.pid}"
    environment = {
        **os.environ,
        "VMSS_STATE_DIR": str(settings.state_dir),
        "VMSS_CACHE_DIR": str(settings.cache_dir),
    }
    try:
        done = subprocess.run(
            [sys.executable, "-m", "pytest_vmss.labs.reap", paths.folder],
            env=environment,
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            timeout=_LIMIT,
            check=False,
        )
    except subprocess.TimeoutExpired:
        return [f"{what} stays: its removal took longer than {_LIMIT:.0f} s"]
    if done.returncode == _NOT_MINE:
        return []
    if done.returncode != 0:
        return [f"{what} stays: {done.stderr.strip()[-1000:]}"]
    return [f"removed {what}"]


def _free_networks(settings: Settings) -> None:
    """Frees the networks of labs that are gone."""
    folder = networks_folder(settings)
    for claim in claims(folder):
        paths = LabPaths(labs_folder(settings) / (claim.lab or "-"))
        with _dead(paths) as dead:
            # Claims of earlier versions do not name their lab.
            known = _identities([paths] if claim.lab else _labs(settings))
            if dead and known is not None and claim.lab_id not in {lab.id for lab in known}:
                release_network(folder, claim.network)
    clear_claims(folder)


def _identities(labs: list[LabPaths]) -> list[LabIdentity] | None:
    """The identities of labs; None if one cannot be read, as it could then be any lab."""
    found = []
    for paths in labs:
        try:
            found.append(read_identity(paths))
        except (FileNotFoundError, NotADirectoryError):
            continue
        except (OSError, ValueError, TypeError):
            return None
    return found


def _remove_locks(settings: Settings) -> None:
    """Removes the lock files of labs that are gone."""
    for path in (settings.state_dir / "locks").glob("*"):
        paths = LabPaths(labs_folder(settings) / path.stem)
        with _dead(paths) as dead:
            if dead and not paths.folder.exists():
                paths.in_use.unlink(missing_ok=True)


def _remove_roots(settings: Settings) -> None:
    """Removes folders of the embedded driver that no process and no lab uses."""
    known = _identities(_labs(settings))
    if known is None:
        return
    used = {lab.embedded for lab in known}
    for entry in (settings.state_dir / PROCESS_ROOTS).glob("*"):
        root = entry.with_suffix("")
        if str(root) in used:
            continue
        lock = try_lock(root.with_suffix(".lock"))
        if lock is None:
            continue  # its process is alive
        with lock:
            if root.exists():
                shutil.rmtree(root)


def _remove_here(paths: LabPaths) -> bool:
    """Removes a lab in this process; False if it is in use by another process, or gone."""
    settings = Settings()
    with _dead(paths) as dead:
        if not dead or not paths.identity.exists():
            return False
        identity = read_identity(paths)
        if not _is_over(settings, paths, identity):
            return False
        remove_machines(paths, identity, lambda: open_hypervisor(settings, identity))
        remove_files(settings, paths, identity)
    return True


def remove_lab(settings: Settings, paths: LabPaths) -> None:
    """Removes a lab of any kind that no process has open; its database need not be readable.

    Args:
        settings: The settings, with the lab's state directory.
        paths: Its paths.

    Raises:
        ConflictError: A process has it open; nothing was changed.
        LabError: It is not a lab's folder, or something could not be removed.
    """
    name = paths.folder.name
    try:
        with _dead(paths) as dead:
            if not dead:
                raise ConflictError(
                    f"another process has the lab {name} open (`fuser -v {paths.in_use}` tells "
                    "which); end it, and try again"
                )
            if not paths.identity.exists():
                if not is_stub(paths):
                    raise LabError(f"the folder {paths.folder} stays: {_NOT_OURS}")
                remove_unfinished(settings, paths)
                return
            identity = read_identity(paths)
            remove_machines(paths, identity, lambda: open_hypervisor(settings, identity))
            remove_files(settings, paths, identity)
    except (OSError, ValueError, TypeError) as error:
        raise LabError(
            f"the lab {name} cannot be removed: {error}; mend that, then try again"
        ) from error


def main() -> None:
    """Entry point: removes the lab whose folder is the first argument."""
    try:
        removed = _remove_here(LabPaths(Path(sys.argv[1])))
    except (VmssError, OSError, ValueError, TypeError) as error:
        sys.exit(str(error))
    sys.exit(os.EX_OK if removed else _NOT_MINE)


if __name__ == "__main__":
    main()
