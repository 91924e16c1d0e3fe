"""Loopback addresses: a /24 of 127.0.0.0/8 for each lab, one address for each instance."""

from __future__ import annotations

import contextlib
import os
import zlib
from pathlib import Path

from pytest_vmss.errors import CapacityError
from pytest_vmss.model import host_port

__all__ = ["addresses_in", "claim_network", "host_port", "release_network"]

_FIRST, _COUNT = 64, 64 * 256  # 127.64.0.0 to 127.127.255.0


def claim_network(folder: Path, lab_id: str) -> str:
    """Claims a network for a lab, for as long as it lives.

    Args:
        folder: Where the claims of this user's labs are kept.
        lab_id: Whose claim it is.

    Returns:
        The first three parts, e.g. ``127.64.7``.

    Raises:
        CapacityError: All are claimed.
    """
    folder.mkdir(parents=True, exist_ok=True, mode=0o700)
    # Users cannot see each other's claims: start somewhere else for each.
    start = zlib.crc32(f"{os.getuid()}/{lab_id}".encode())
    for offset in range(_COUNT):
        number = (start + offset) % _COUNT
        network = f"127.{_FIRST + number // 256}.{number % 256}"
        with contextlib.suppress(FileExistsError):
            descriptor = os.open(folder / network, os.O_CREAT | os.O_EXCL | os.O_WRONLY, 0o600)
            with os.fdopen(descriptor, "w") as file:
                file.write(lab_id)
            return network
    raise CapacityError(
        f"all {_COUNT} loopback networks are claimed under {folder}; "
        "remove dead labs with: vmss reap"
    )


def release_network(folder: Path, network: str) -> None:
    """Gives a lab's network back."""
    (folder / network).unlink(missing_ok=True)


def addresses_in(network: str) -> list[str]:
    """All addresses of a network that instances can have."""
    return [f"{network}.{number}" for number in range(1, 255)]
