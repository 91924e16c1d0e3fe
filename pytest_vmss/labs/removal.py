"""Removes a lab; can be repeated after a kill at any point.

Machines and load balancers are removed first. Then the identity is marked as ending, the
files are removed, and the identity last: while it exists, the next process knows what is
left to remove. What a creation left that was killed before it wrote an identity is recognised
by its layout, because it contains nothing yet.

Nothing here needs the lab's database, which may be what is broken.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

from pytest_vmss.errors import LabError
from pytest_vmss.guest_platform.virtual_network import launcher as virtual_network
from pytest_vmss.guest_platform.virtual_network.config import NetworkFiles
from pytest_vmss.host.addresses import claims, release_network
from pytest_vmss.host.files import PART, sync_folder
from pytest_vmss.host.paths import LabPaths
from pytest_vmss.hypervisor import Hypervisor
from pytest_vmss.labs.identity import LabIdentity, networks_folder, write_ending
from pytest_vmss.load_balancer import HAProxy
from pytest_vmss.settings import Settings

__all__ = ["is_stub", "remove_files", "remove_machines", "remove_unfinished"]

_ROUNDS = 3
_TOLD = 3


def remove_machines(
    paths: LabPaths, identity: LabIdentity, connect: Callable[[], Hypervisor]
) -> None:
    """Removes a lab's machines and load balancers; the door must be locked.

    If something cannot be removed, the rest still is, with the files of removed machines.

    Args:
        paths: The lab's paths.
        identity: The lab's identity.
        connect: Opens the connection to libvirt; only called if there may be machines.

    Raises:
        LabError: Something could not be removed; the message names each.
    """
    if identity.ending:
        return
    # An instance has a folder before it has a machine, and longer.
    folders = {
        f"vmss-{identity.id}-{folder.parent.name}_{folder.name}": folder
        for folder in paths.sets.glob("*/*")
    }
    failures: list[str] = []
    left = set(folders)
    if any(paths.sets.glob("*")):
        with _told(failures, "its machines"):
            hypervisor = connect()
            left = set(hypervisor.machines(f"vmss-{identity.id}-"))
            for machine in sorted(left):
                with _told(failures, machine):
                    hypervisor.remove(machine)
                    left.discard(machine)
    for folder in paths.networks():
        virtual_network.end(NetworkFiles(folder))
    for folder in paths.run.glob("*/"):
        with _told(failures, f"the load balancer in {folder}"):
            HAProxy(folder, []).stop()
    if not failures:
        return
    with _told(failures, "files"):
        _empty(paths.sets, keep={folders[machine] for machine in left if machine in folders})
    raise LabError(
        f"the lab {paths.folder.name} cannot be removed whole: {'; '.join(failures)}; mend that, "
        "then go on with: vmss reap"
    )


@contextmanager
def _told(failures: list[str], what: str) -> Iterator[None]:
    """Collects any failure inside instead of raising it, so that the rest is still removed."""
    try:
        yield
    except Exception as error:  # noqa: BLE001 - see above
        failures.append(f"{what}: {error}")


def remove_files(settings: Settings, paths: LabPaths, identity: LabIdentity) -> None:
    """Removes a lab's files and releases its networks; the door must be locked.

    Args:
        settings: The settings, with the state directory.
        paths: The lab's paths.
        identity: The lab's identity; none of its machines is left.

    Raises:
        LabError: Files cannot be removed. The rest is gone; call this again to continue.
    """
    try:
        if not identity.ending:
            _write_ending(paths, identity)
        _empty(paths.folder, keep={paths.identity})
        for claim in claims(networks_folder(settings)):
            if claim.lab_id == identity.id:
                release_network(networks_folder(settings), claim.network)
        paths.identity.unlink(missing_ok=True)
        _remove_folder(paths)
    except OSError as error:
        raise LabError(
            f"what is left of the lab {paths.folder.name} cannot be removed: {error}; mend "
            "that, then go on with: vmss reap"
        ) from error


def _write_ending(paths: LabPaths, identity: LabIdentity) -> None:
    try:
        write_ending(paths, identity)
    except OSError:
        # Most likely the disk is full, and removing the files makes room for the mark.
        _empty(paths.folder, keep={paths.identity})
        write_ending(paths, identity)


def remove_unfinished(settings: Settings, paths: LabPaths) -> None:
    """Removes what a creation left that has no identity yet; the door must be locked.

    Raises:
        LabError: It cannot be removed.
        OSError: Likewise.
    """
    if paths.identity.exists():
        return
    for claim in claims(networks_folder(settings)):
        if claim.lab == paths.folder.name:
            release_network(networks_folder(settings), claim.network)
    if paths.folder.is_dir() and is_stub(paths):
        _empty(paths.folder)
        _remove_folder(paths)


def is_stub(paths: LabPaths) -> bool:
    """Whether a folder holds only what a creation killed before writing an identity leaves.

    Raises:
        OSError: It cannot be read.
    """
    below = {paths.folder / name for name in ("run", "sets", "locks")}
    parts = f".{paths.identity.name}-*{PART}"
    return all(
        (not any(entry.iterdir()) if entry in below and entry.is_dir() else entry.match(parts))
        for entry in paths.folder.iterdir()
    )


def _empty(folder: Path, *, keep: frozenset[Path] | set[Path] = frozenset()) -> None:
    """Removes everything in a folder; if something cannot be removed, the rest still is.

    Args:
        folder: The folder, which itself stays and is synced. It may be missing.
        keep: Files and folders at any depth to keep, with the folders that contain them.

    Raises:
        LabError: Something could not be removed.
        OSError: The folder cannot be synced.
    """
    failures: list[OSError] = []
    for _ in range(_ROUNDS):  # a process still running may write files meanwhile
        failures = []
        for entry in _entries(folder, failures):
            _remove(entry, keep, failures)
        if not failures:
            if folder.is_dir():
                sync_folder(folder)
            return
    told = "; ".join(str(failure) for failure in failures[:_TOLD])
    more = f" and {len(failures) - _TOLD} more" if len(failures) > _TOLD else ""
    raise LabError(
        f"files under {folder} cannot be removed: {told}{more}; mend that, then go on with: "
        "vmss reap"
    )


def _entries(folder: Path, failures: list[OSError]) -> list[Path]:
    try:
        return list(folder.iterdir())
    except FileNotFoundError:
        return []
    except OSError as error:
        failures.append(error)
        return []


def _remove(path: Path, keep: frozenset[Path] | set[Path], failures: list[OSError]) -> None:
    if path in keep:
        return
    try:
        if path.is_dir() and not path.is_symlink():
            for entry in _entries(path, failures):
                _remove(entry, keep, failures)
            if not any(path in kept.parents for kept in keep):
                path.rmdir()
        else:
            path.unlink(missing_ok=True)
    except FileNotFoundError:
        pass
    except OSError as error:
        failures.append(error)


def _remove_folder(paths: LabPaths) -> None:
    """Removes the empty folder and its in-use lock file."""
    paths.folder.rmdir()
    sync_folder(paths.folder.parent)
    paths.in_use.unlink(missing_ok=True)
