"""Who a lab is, who made it, and the loopback networks that it has claimed."""

from __future__ import annotations

import json
import os
import secrets
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Literal

import psutil

from pytest_vmss.hypervisor.addresses import addresses_in, claim_network, release_network
from pytest_vmss.paths import LabPaths, process_root
from pytest_vmss.settings import Settings
from pytest_vmss.store import InstanceRecord, NetworkRecord, ScaleSetRecord, Store

__all__ = [
    "LabIdentity",
    "LabNetworks",
    "labs_folder",
    "networks_folder",
    "read_identity",
    "write_identity",
]


def labs_folder(settings: Settings) -> Path:
    """Where the folders of all labs are."""
    return settings.state_dir / "labs"


def networks_folder(settings: Settings) -> Path:
    """Where labs claim their loopback networks."""
    return settings.state_dir / "networks"


@dataclass(frozen=True)
class LabIdentity:
    """Who a lab is and who made it.

    Attributes:
        id: Part of every domain's name.
        kind: A ``session`` lab ends with its process; a ``lasting`` one does not.
        network: First three parts of its loopback addresses.
        pid: Process that made it.
        started: When that process started, in seconds since 1970; tells a pid
            that was used again.
        connect: The connection that the user named for its machines.
        embedded: Folder of libvirt's embedded driver, where that is used.
    """

    id: str
    kind: Literal["session", "lasting"]
    network: str
    pid: int
    started: float
    connect: str | None = None
    embedded: str = ""

    @property
    def owner_alive(self) -> bool:
        """Whether the process that made it still runs."""
        try:
            return abs(psutil.Process(self.pid).create_time() - self.started) < 1.0
        except psutil.NoSuchProcess:
            return False


def read_identity(paths: LabPaths) -> LabIdentity:
    """Reads who a lab is.

    Raises:
        OSError: Its folder cannot be read.
        ValueError: The file is not what this version writes.
        TypeError: Likewise.
    """
    return LabIdentity(**json.loads(paths.identity.read_text()))


def write_identity(
    settings: Settings, paths: LabPaths, kind: Literal["session", "lasting"]
) -> None:
    """Makes a new identity, with a network of its own."""
    lab_id = secrets.token_hex(3)
    identity = LabIdentity(
        id=lab_id,
        kind=kind,
        network=claim_network(networks_folder(settings), lab_id),
        pid=os.getpid(),
        started=psutil.Process().create_time(),
        connect=settings.connect,
        embedded=str(paths.libvirt if kind == "lasting" else process_root(settings.state_dir)),
    )
    part = paths.identity.with_suffix(".part")
    part.write_text(json.dumps(asdict(identity)))
    part.replace(paths.identity)


class LabNetworks:
    """The loopback networks of one lab; another is claimed when all addresses are in use.

    Args:
        folder: Where labs claim networks.
        identity: The lab.
        store: Where further networks are recorded.
    """

    def __init__(self, folder: Path, identity: LabIdentity, store: Store) -> None:
        self._folder = folder
        self._identity = identity
        self._store = store

    def all(self) -> list[str]:
        """First three parts of each."""
        further = [record.network for record in self._store.select(NetworkRecord)]
        return [self._identity.network, *further]

    def free_addresses(self, count: int) -> list[str]:
        """Addresses that no instance and no load balancer has.

        Raises:
            CapacityError: All networks of the host are claimed.
        """
        used = {record.address for record in self._store.select(InstanceRecord)}
        used |= {record.frontend or "" for record in self._store.select(ScaleSetRecord)}
        free: list[str] = []
        for network in self.all():
            free += [address for address in addresses_in(network) if address not in used]
        while len(free) < count:
            network = claim_network(self._folder, self._identity.id)
            self._store.put(NetworkRecord(network=network))
            free += addresses_in(network)
        return free[:count]

    def release(self, networks: list[str]) -> None:
        """Gives networks back."""
        for network in networks:
            release_network(self._folder, network)
