"""An instance's place in the private network of its set, and where the network's files are."""

from __future__ import annotations

import shutil
from dataclasses import dataclass
from ipaddress import IPv4Address
from pathlib import Path

from pytest_vmss.guest_platform.private_addresses import private_ip_address, private_mac

__all__ = ["GUEST_END", "SWITCH_END", "NetworkFiles", "VirtualNetwork"]

#: Suffixes of the sockets at the two ends of an instance's cable.
GUEST_END, SWITCH_END = ".q", ".s"


@dataclass(frozen=True)
class NetworkFiles:
    """The files of a set's network: sockets, locks, and the partitions that tests cause.

    Attributes:
        folder: Their folder, mode 0700; its path is short, since socket paths are limited.
    """

    folder: Path

    @property
    def lock(self) -> Path:
        """Locked by the process that carries the frames."""
        return self.folder / "lock"

    @property
    def starting(self) -> Path:
        """Locked by who makes or removes the network; beside the folder, since that may go."""
        return self.folder.with_name(f"{self.folder.name}.lock")

    @property
    def control(self) -> Path:
        """The socket at which that process is told to look again, or to end."""
        return self.folder / "control"

    def guest_end(self, instance_id: int) -> Path:
        """The socket at which an instance's frames go in."""
        return self.folder / f"{instance_id}{GUEST_END}"

    def switch_end(self, instance_id: int) -> Path:
        """The socket to which an instance's frames are sent."""
        return self.folder / f"{instance_id}{SWITCH_END}"

    @property
    def instances(self) -> list[int]:
        """The numbers of the instances that have been started."""
        found = (path.stem for path in self.folder.glob(f"*{GUEST_END}"))
        return sorted(int(stem) for stem in found if stem.isdecimal())

    def remove(self) -> None:
        """Removes them all, whoever uses them."""
        shutil.rmtree(self.folder, ignore_errors=True)


@dataclass(frozen=True)
class VirtualNetwork:
    """An instance's place in the private network of its set.

    Attributes:
        files: The network's files.
        instance_id: The instance's number.
        prefix: The set's ``computerNamePrefix``, with which all names in the network begin.
    """

    files: NetworkFiles
    instance_id: int
    prefix: str

    @property
    def address(self) -> IPv4Address:
        """Its private address."""
        return private_ip_address(self.instance_id)

    @property
    def mac(self) -> str:
        """The MAC address of its network card, with colons."""
        return private_mac(self.instance_id)

    @property
    def guest_end(self) -> Path:
        """The socket at which its frames go in."""
        return self.files.guest_end(self.instance_id)

    @property
    def switch_end(self) -> Path:
        """The socket to which its frames are sent."""
        return self.files.switch_end(self.instance_id)
