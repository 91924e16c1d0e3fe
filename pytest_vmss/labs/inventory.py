"""What labs there are, what each holds, and what becomes of it.

``vmss lab list`` shows it, and ``vmss reap`` acts on it, so that both agree. Nothing here opens a
lab or asks a hypervisor.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import closing
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime, timedelta
from enum import StrEnum
from pathlib import Path

from pytest_vmss.clock import SystemClock
from pytest_vmss.errors import LabError, NotFoundError
from pytest_vmss.host.locks import is_locked
from pytest_vmss.host.paths import LabPaths
from pytest_vmss.labs.identity import LabIdentity, find_lab, labs_folder, read_identity
from pytest_vmss.model import find_size
from pytest_vmss.settings import Settings, former_state_dir
from pytest_vmss.store import (
    InstanceRecord,
    ModelRecord,
    ScaleSetRecord,
    Store,
    VersionRecord,
)

__all__ = [
    "Holdings",
    "LabState",
    "LabSummary",
    "SetSummary",
    "find_labs",
    "kept_until",
    "lab_state",
    "require_lab",
    "summarise",
]


class LabState(StrEnum):
    """What becomes of a lab.

    Attributes:
        OPEN: A process has it open; nobody else removes it.
        LASTING: It stays until it is deleted.
        KEPT: A session's lab, kept for inspection until a day.
        LEFT: Its session has ended: the next reap removes it.
        UNKNOWN: Whose it is cannot be read; nobody removes it by himself.
    """

    OPEN = "open"
    LASTING = "lasting"
    KEPT = "kept"
    LEFT = "left behind"
    UNKNOWN = "unreadable"


@dataclass(frozen=True)
class SetSummary:
    """A scale set of a lab.

    Attributes:
        name: Its name.
        instances: Number of its instances.
        running: Number of those that are to run.
        memory_mib: Memory of those in MiB; 0 if the size is not known here.
    """

    name: str
    instances: int
    running: int
    memory_mib: int


@dataclass(frozen=True)
class Holdings:
    """What a lab holds, by its records.

    Attributes:
        sets: Its scale sets.
        images: Number of its image versions.
        trouble: Why its records cannot be read; empty if they can.
    """

    sets: tuple[SetSummary, ...] = ()
    images: int = 0
    trouble: str = ""


@dataclass(frozen=True)
class LabSummary:
    """A lab on this host.

    Attributes:
        paths: Its paths.
        state: What becomes of it.
        kept_until: When a kept lab may be removed; None for others.
        disk_bytes: Bytes that its files take up on the disk.
        holdings: What it holds.
        network: First three parts of its loopback addresses; empty if it cannot be read.
    """

    paths: LabPaths
    state: LabState
    kept_until: datetime | None
    disk_bytes: int
    holdings: Holdings = field(default_factory=Holdings)
    network: str = ""

    @property
    def name(self) -> str:
        """The name that ``--lab`` takes."""
        return self.paths.folder.name


def kept_until(settings: Settings, paths: LabPaths) -> datetime | None:
    """Returns when a kept lab may be removed; None if it is not kept.

    Raises:
        OSError: Its marker cannot be read.
    """
    try:
        since = paths.kept.stat().st_mtime
    except FileNotFoundError:
        return None
    return datetime.fromtimestamp(since, UTC) + timedelta(days=settings.kept_days)


def lab_state(settings: Settings, paths: LabPaths, identity: LabIdentity) -> LabState:
    """Returns what becomes of a lab that no process has open."""
    if identity.ending:
        return LabState.LEFT
    if identity.kind == "lasting":
        return LabState.LASTING
    until = kept_until(settings, paths)
    return LabState.LEFT if until is None or until <= datetime.now(UTC) else LabState.KEPT


def find_labs(settings: Settings) -> list[LabSummary]:
    """Returns all labs of this account on this host, by name."""
    former = former_state_dir(settings.state_dir)
    places = [settings] if former is None else [settings, replace(settings, state_dir=former)]
    found = [summarise(place, paths) for place in places for paths in _folders(place)]
    return sorted(found, key=lambda lab: lab.name)


def _folders(settings: Settings) -> list[LabPaths]:
    folder = labs_folder(settings)
    return [LabPaths(entry) for entry in folder.iterdir()] if folder.is_dir() else []


def require_lab(settings: Settings, name: str) -> tuple[Settings, LabPaths]:
    """Finds a lab that exists, lasting or not.

    Returns:
        The settings with its state directory, and its paths.

    Raises:
        NotFoundError: There is none of that name; the message names those that there are.
        LabError: The name is not valid.
    """
    settings, paths = find_lab(settings, name)
    if paths.folder.is_dir():
        return settings, paths
    known = ", ".join(sorted(entry.folder.name for entry in _folders(settings)))
    raise NotFoundError(
        f"there is no lab {name!r}; `vmss create` and `vmss image publish` make one; there are: "
        f"{known or 'none'}"
    )


def summarise(settings: Settings, paths: LabPaths) -> LabSummary:
    """Describes a lab."""
    try:
        identity = read_identity(paths)
        state = lab_state(settings, paths, identity)
        until = kept_until(settings, paths) if state is LabState.KEPT else None
        if is_locked(paths.in_use):
            state = LabState.OPEN
        holdings = _holdings(settings, paths)
        network = identity.network
    except (OSError, ValueError, TypeError, LabError) as error:
        state, until, network = LabState.UNKNOWN, None, ""
        holdings = Holdings(trouble=str(error))
    return LabSummary(paths, state, until, _disk_bytes(paths.folder), holdings, network)


def _holdings(settings: Settings, paths: LabPaths) -> Holdings:
    """Reads a lab's records.

    Raises:
        LabError: They cannot be read.
    """
    if not paths.database.exists():
        return Holdings()
    with closing(Store(paths.database, SystemClock())) as store:
        sets = tuple(_set(settings, store, record) for record in store.select(ScaleSetRecord))
        return Holdings(sets, len(store.select(VersionRecord)))


def _set(settings: Settings, store: Store, record: ScaleSetRecord) -> SetSummary:
    instances = store.select(InstanceRecord, record.name.lower())
    running = sum(each.power == "running" and each.generation > 0 for each in instances)
    if record.own_size is not None:
        memory = record.own_size[2]
    else:
        model = store.get(ModelRecord, record.unique_id, record.revision)
        sku = "" if model is None else model.model.get("sku", {}).get("name", "")
        size = find_size(str(sku), settings.sizes)
        memory = 0 if size is None else size.memory_mib
    return SetSummary(record.name, len(instances), running, running * memory)


def _disk_bytes(folder: Path) -> int:
    """The bytes that files under a folder take up; what vanishes meanwhile counts as nothing."""
    seen: dict[tuple[int, int], int] = {}
    for path in _files(folder):
        try:
            found = path.lstat()
        except OSError:
            continue
        seen[found.st_dev, found.st_ino] = found.st_blocks * 512
    return sum(seen.values())


def _files(folder: Path) -> Iterator[Path]:
    for parent, _, names in os.walk(folder):
        for name in names:
            yield Path(parent) / name
