"""Claims loopback addresses: a /24 of 127.0.0.0/8 per lab, an address per instance."""

from __future__ import annotations

import contextlib
import os
import zlib
from dataclasses import dataclass
from pathlib import Path

from pytest_vmss.errors import CapacityError
from pytest_vmss.host.files import PART, sync_folder, write_durably
from pytest_vmss.host.locks import Lock, try_lock, wait_for_lock
from pytest_vmss.model import host_port

__all__ = [
    "Claim",
    "addresses_in",
    "claim_network",
    "claims",
    "clear_claims",
    "host_port",
    "number_of",
    "release_network",
]

_FIRST, _COUNT = 64, 64 * 256  # 127.64.0.0 to 127.127.255.0
_LIMIT_S = 60.0
_LOCK = ".lock"


@dataclass(frozen=True)
class Claim:
    """A loopback network that a lab has claimed.

    Attributes:
        network: Its first three octets, e.g. ``127.64.7``.
        lab_id: Id of the lab.
        lab: Name of the lab's folder; empty in claims of earlier versions.
    """

    network: str
    lab_id: str
    lab: str


def claim_network(folder: Path, lab_id: str, lab: str) -> str:
    """Claims a network for a lab, until it is released.

    Args:
        folder: Folder of the claims of this user's labs.
        lab_id: Id of the lab.
        lab: Name of the lab's folder, by which others see whether it is still being created.

    Returns:
        The first three octets, e.g. ``127.64.7``.

    Raises:
        CapacityError: All networks are claimed.
        ConflictError: Another process is claiming, and does not finish in time.
        OSError: The claim cannot be written; nothing is left behind.
    """
    # Users cannot see each other's claims, so each lab starts its search elsewhere.
    start = zlib.crc32(f"{os.getuid()}/{lab_id}".encode())
    with _claiming(folder):
        _remove_parts(folder)
        taken = {entry.name for entry in folder.iterdir()}
        for offset in range(_COUNT):
            number = (start + offset) % _COUNT
            network = f"127.{_FIRST + number // 256}.{number % 256}"
            if network not in taken:
                write_durably(folder / network, f"{lab_id} {lab}".encode(), replace=False)
                return network
    raise CapacityError(
        f"all {_COUNT} loopback networks are claimed under {folder}; "
        "remove dead labs with: vmss reap"
    )


def claims(folder: Path) -> list[Claim]:
    """Returns all claims, by network; one left empty by an earlier version belongs to no lab."""
    found = []
    for entry in sorted(folder.iterdir()) if folder.is_dir() else ():
        if not entry.name.startswith("."):
            with contextlib.suppress(FileNotFoundError):  # released just now
                lab_id, _, lab = entry.read_text().partition(" ")
                found.append(Claim(entry.name, lab_id, lab))
    return found


def release_network(folder: Path, network: str) -> None:
    """Releases a lab's network."""
    with _claiming(folder):
        (folder / network).unlink(missing_ok=True)
        sync_folder(folder)


def clear_claims(folder: Path) -> None:
    """Removes leftovers of processes killed while claiming, unless one is claiming now."""
    if folder.is_dir() and any(folder.glob(".*")):
        lock = try_lock(folder / _LOCK)
        if lock is not None:
            with lock:
                _remove_parts(folder)


def _remove_parts(folder: Path) -> None:
    for part in folder.glob(f".*{PART}"):
        part.unlink(missing_ok=True)  # we hold the lock, so its writer was killed


def _claiming(folder: Path) -> Lock:
    """Locks the claims, so that one process at a time claims or releases."""
    folder.mkdir(parents=True, exist_ok=True, mode=0o700)
    return wait_for_lock(folder / _LOCK, what="claims a loopback network", timeout=_LIMIT_S)


def number_of(network: str) -> int:
    """Returns a network's number among those that labs claim, counted from 0."""
    _, second, third = network.split(".")
    return (int(second) - _FIRST) * 256 + int(third)


def addresses_in(network: str) -> list[str]:
    """Returns all addresses of a network that instances can have."""
    return [f"{network}.{number}" for number in range(1, 255)]
