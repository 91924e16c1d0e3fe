"""A lab's identity, its owner, and the loopback networks that it has claimed."""

from __future__ import annotations

import json
import os
import re
import secrets
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Literal

from pytest_vmss.errors import ConflictError, HostError, LabError
from pytest_vmss.host.addresses import addresses_in, claim_network, claims, number_of
from pytest_vmss.host.files import write_durably
from pytest_vmss.host.ownership import require_own
from pytest_vmss.host.paths import LabPaths, process_root
from pytest_vmss.host.qemu_account import QemuAccount, choose_account
from pytest_vmss.hypervisor import Hypervisor
from pytest_vmss.settings import Settings, former_state_dir
from pytest_vmss.store import InstanceRecord, NetworkRecord, ScaleSetRecord, Store
from pytest_vmss.untrusted import read_json_file

__all__ = [
    "LabIdentity",
    "LabNetworks",
    "find_lab",
    "lab_paths",
    "labs_folder",
    "networks_folder",
    "open_hypervisor",
    "read_identity",
    "write_ending",
    "write_identity",
]

_NAME = re.compile(r"[a-z0-9_-]{1,32}")
_ID = re.compile(r"[0-9A-Za-z_-]{1,64}")
_NETWORK = re.compile(r"\d{1,3}(\.\d{1,3}){2}")
_IDENTITY_BYTES = 65536
#: The fields of a lab's identity file, with the types that their values may have.
_KINDS: Mapping[str, tuple[type, ...]] = {
    "id": (str,), "kind": (str,), "network": (str,), "pid": (int,),
    "connect": (str, type(None)), "embedded": (str,), "ending": (bool,), "account": (str,),
}  # fmt: skip


def labs_folder(settings: Settings) -> Path:
    """The folder that holds the folders of all labs."""
    return settings.state_dir / "labs"


def networks_folder(settings: Settings) -> Path:
    """The folder where labs claim their loopback networks."""
    return settings.state_dir / "networks"


def lab_paths(settings: Settings, name: str) -> LabPaths:
    """The paths of a lasting lab; the case of its name does not matter.

    Raises:
        LabError: The name is not valid, or its folder cannot be looked up.
        ConflictError: Labs of an earlier version differ only by case.
    """
    wanted = name.lower()
    if not _NAME.fullmatch(wanted):
        raise LabError(
            f"{name!r} cannot name a lab; use up to 32 letters of a to z, digits, '-' and '_'"
        )
    folder = labs_folder(settings)
    try:
        known = [entry.name for entry in folder.iterdir() if entry.name.lower() == wanted]
    except FileNotFoundError:
        known = []
    except OSError as error:
        raise LabError(
            f"the folder of labs {folder} cannot be read: {error}; "
            "use another state directory (VMSS_STATE_DIR)"
        ) from error
    if len(known) > 1 and name not in known:
        raise ConflictError(
            f"{name!r} may mean any of the labs {', '.join(sorted(known))}; write one of these"
        )
    return LabPaths(folder / (name if name in known else known[0] if known else wanted))


def find_lab(settings: Settings, name: str) -> tuple[Settings, LabPaths]:
    """Finds a lasting lab, or where a new one is to be.

    Root's labs of earlier versions stay in root's home, where their machines' files are.

    Returns:
        The settings with the state directory of the lab, and the lab's paths.

    Raises:
        LabError: See :func:`lab_paths`.
        ConflictError: Likewise.
    """
    paths = lab_paths(settings, name)
    former = former_state_dir(settings.state_dir)
    if former is not None and not paths.folder.is_dir():
        there = replace(settings, state_dir=former)
        earlier = lab_paths(there, name)
        if earlier.folder.is_dir():
            return there, earlier
    return settings, paths


@dataclass(frozen=True)
class LabIdentity:
    """A lab's identity, as written to its folder.

    Attributes:
        id: Part of every domain's name.
        kind: A ``session`` lab ends with its process; a ``lasting`` one does not.
        network: First three parts of its loopback addresses.
        pid: The process that created it, for messages only: it does not prove that the owner
            is alive (Q2).
        connect: The libvirt connection that the user chose for its machines.
        embedded: Folder of libvirt's embedded driver, if that is used.
        ending: Whether its machines are gone and only its files are left to be removed.
        account: What its machines run as, see :class:`~pytest_vmss.host.qemu_account.QemuAccount`;
            empty for the account of the lab's processes.
        folder: See :class:`~pytest_vmss.host.paths.LabPaths`.
    """

    id: str
    kind: Literal["session", "lasting"]
    network: str
    pid: int
    connect: str | None = None
    embedded: str = ""
    ending: bool = False
    account: str = ""
    folder: Path = field(default=Path(), compare=False)


def open_hypervisor(settings: Settings, identity: LabIdentity) -> Hypervisor:
    """Opens the connection to libvirt that a lab's machines are on.

    Raises:
        HostError: libvirt does not answer.
    """
    # libvirt-python is a compiled library; code that only reads records does not need it.
    from pytest_vmss.hypervisor.access import Access
    from pytest_vmss.hypervisor.libvirt_driver import LibvirtHypervisor

    settings = replace(settings, connect=settings.connect or identity.connect)
    account = QemuAccount.parse(identity.account)
    access = None if account is None else Access(account, identity.folder)
    return LibvirtHypervisor(settings, Path(identity.embedded), access)


def read_identity(paths: LabPaths) -> LabIdentity:
    """Reads a lab's identity.

    Raises:
        OSError: Its folder cannot be read, or belongs to another account.
        ValueError: The file is not what this version writes.
        TypeError: Likewise.
    """
    require_own(paths.folder, paths.identity)
    written = read_json_file(paths.identity, _IDENTITY_BYTES)
    if not isinstance(written, dict):
        raise ValueError(f"{paths.identity} must hold an object, holds {type(written).__name__}")
    kinds = {name: kind for name, kind in _KINDS.items() if name in written}
    for name, kind in kinds.items():
        if type(written[name]) not in kind:
            raise ValueError(f"{paths.identity}: {name} cannot be {type(written[name]).__name__}")
    if written.get("kind") not in ("session", "lasting"):
        raise ValueError(f"{paths.identity}: kind must be session or lasting")
    if not _ID.fullmatch(str(written.get("id"))) or not _NETWORK.fullmatch(
        str(written.get("network"))
    ):
        raise ValueError(f"{paths.identity}: id and network are not those of a lab")
    QemuAccount.parse(written.get("account", ""))
    return LabIdentity(**{name: written[name] for name in kinds}, folder=paths.folder)


def write_identity(
    settings: Settings, paths: LabPaths, kind: Literal["session", "lasting"]
) -> None:
    """Creates a new identity, with a network of its own; the door must be locked.

    Raises:
        CapacityError: All loopback networks of the host are claimed.
        OSError: It cannot be written.
    """
    lab_id = secrets.token_hex(3)
    network = claim_network(networks_folder(settings), lab_id, paths.folder.name)
    account = choose_account(settings.state_dir, number_of(network)).account
    identity = LabIdentity(
        id=lab_id,
        kind=kind,
        network=network,
        pid=os.getpid(),
        connect=settings.connect,
        embedded=str(paths.libvirt if kind == "lasting" else process_root(settings.state_dir)),
        account="" if account is None else str(account),
    )
    _write(paths, identity)


def write_ending(paths: LabPaths, identity: LabIdentity) -> None:
    """Marks a lab as ending: its machines are gone, and its files are to be removed.

    Raises:
        OSError: It cannot be written.
    """
    _write(paths, replace(identity, ending=True))


def _write(paths: LabPaths, identity: LabIdentity) -> None:
    written = asdict(identity)
    del written["folder"]
    write_durably(paths.identity, json.dumps(written).encode())


class LabNetworks:
    """The loopback networks of one lab; another is claimed when all addresses are in use.

    Args:
        folder: The folder where labs claim networks.
        lab: Name of the lab's folder.
        identity: The lab's identity.
        store: The store that records further networks.
    """

    def __init__(self, folder: Path, lab: str, identity: LabIdentity, store: Store) -> None:
        self._folder = folder
        self._lab = lab
        self._identity = identity
        self._store = store

    def all(self) -> list[str]:
        """The first three parts of each network's addresses."""
        further = [record.network for record in self._store.select(NetworkRecord)]
        return [self._identity.network, *further]

    def free_addresses(self, count: int) -> list[str]:
        """Returns addresses that no instance and no load balancer uses.

        Raises:
            CapacityError: All networks of the host are claimed.
            HostError: A claim cannot be written.
        """
        used = {record.address for record in self._store.select(InstanceRecord)}
        used |= {record.frontend or "" for record in self._store.select(ScaleSetRecord)}
        free: list[str] = []
        for network in self.all():
            free += [address for address in addresses_in(network) if address not in used]
        while len(free) < count:
            network = self._another()
            self._store.put(NetworkRecord(network=network))
            free += addresses_in(network)
        return free[:count]

    def _another(self) -> str:
        """Claims another network, or takes one that a killed process claimed but did not record."""
        known = self.all()
        try:
            for claim in claims(self._folder):
                if claim.lab_id == self._identity.id and claim.network not in known:
                    return claim.network
            return claim_network(self._folder, self._identity.id, self._lab)
        except OSError as error:
            raise HostError(
                f"no loopback network can be claimed under {self._folder}: {error}"
            ) from error
