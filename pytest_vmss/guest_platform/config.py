"""What the platform of one VM needs to know, and where its files are."""

from __future__ import annotations

import json
import os
import shutil
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from pytest_vmss.errors import HostError
from pytest_vmss.guest_platform.virtual_network.config import VirtualNetwork
from pytest_vmss.host.files import write_durably
from pytest_vmss.untrusted import UnreadableError, read_json_file

__all__ = ["Platform", "PlatformFiles", "read_config"]

_BYTES = 1024 * 1024


@dataclass(frozen=True)
class PlatformFiles:
    """The files of a VM's platform.

    Attributes:
        folder: Its folder, mode 0700.
    """

    folder: Path

    @staticmethod
    def any_in(folder: Path) -> bool:
        """Whether any VM has a platform whose folder is in this one."""
        return any(folder.glob("*.json"))

    @property
    def nic(self) -> Path:
        """The socket at which QEMU gives and takes frames; in a folder that QEMU may write to."""
        return self.folder.with_suffix(".q") / "nic"

    @property
    def config(self) -> Path:
        """The description of the platform, which holds user data."""
        return self.folder.with_suffix(".json")

    @property
    def sightings(self) -> Path:
        """What was seen of the guest."""
        return self.folder / "seen.json"

    @property
    def health_port(self) -> Path:
        """The socket of the guest's health port, which libvirt makes."""
        return self.folder.with_suffix(".h")

    @property
    def health(self) -> Path:
        """The last message from that port, on this start of the VM."""
        return self.folder / "health.json"

    @property
    def events(self) -> Path:
        """The instance's scheduled events."""
        return self.folder.with_suffix(".events")

    @property
    def approvals(self) -> Path:
        """The events that the guest has approved."""
        return self.folder / "approved.json"

    @property
    def lock(self) -> Path:
        """Locked by the process that serves the guest."""
        return self.folder / "lock"

    def write(self, path: Path, data: bytes) -> None:
        """Writes a file that the process may read and not change.

        Raises:
            OSError: It cannot be written.
        """
        self.folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        group = self.folder.stat().st_gid
        write_durably(path, data)
        if os.geteuid() == 0 and group:  # the process is of the account that has the folder
            os.chown(path, -1, group)
            path.chmod(0o640)

    def remove(self) -> None:
        """Removes them; the VM must be gone."""
        for folder in (self.folder, self.nic.parent):
            shutil.rmtree(folder, ignore_errors=True)
        for path in (self.config, self.events, self.health_port):
            path.unlink(missing_ok=True)


@dataclass(frozen=True)
class Platform:
    """What a guest that looks for Azure is given.

    Attributes:
        files: Where its files are.
        generation: Number of the OS disk.
        instance_id: Number of the instance in its set.
        mac: MAC address of the guest's network card.
        forwards: The host's addresses and ports that lead to ports of the guest.
        outbound: Whether the guest reaches what the host reaches.
        names: Names of the VM (``container``), of the instance and of the set (``service``).
        document: What the metadata service knows, with ``compute`` and ``network``, as JSON.
        network: Its place in the private network of its set (A9); None if that has none.
    """

    files: PlatformFiles
    generation: int
    instance_id: int
    mac: str
    forwards: tuple[tuple[str, int, int], ...]
    outbound: bool
    names: dict[str, str] = field(hash=False)
    document: str = field(repr=False)
    network: VirtualNetwork | None = None

    def write(self) -> None:
        """Writes the description for the process that serves the guest.

        Raises:
            HostError: It cannot be written.
        """
        body = {
            "generation": self.generation,
            "instanceId": self.instance_id,
            "mac": self.mac,
            "forwards": self.forwards,
            "outbound": self.outbound,
            "names": self.names,
            "instance": json.loads(self.document),
            "network": self.network
            and {"folder": str(self.network.files.folder), "prefix": self.network.prefix},
        }
        try:
            self.files.write(self.files.config, json.dumps(body).encode())
        except OSError as error:
            raise HostError(f"{self.files.config} cannot be written: {error.strerror}") from error


def read_config(path: Path) -> dict[str, Any]:
    """Reads the description that :meth:`Platform.write` wrote.

    Raises:
        HostError: It cannot be read.
    """
    try:
        document: dict[str, Any] = read_json_file(path, _BYTES)
    except (OSError, UnreadableError) as error:
        raise HostError(f"{path} cannot be read: {error}") from error
    return document
