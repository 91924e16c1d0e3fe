"""Where a lab keeps what: below its own folder, but for the locks that guard the folder."""

from __future__ import annotations

import secrets
from dataclasses import dataclass
from functools import cache
from pathlib import Path

__all__ = ["PROCESS_ROOTS", "LabPaths", "process_root"]

#: Folder, in the state directory, of the embedded driver's folders of processes.
PROCESS_ROOTS = "embedded"


@cache
def process_root(state_dir: Path) -> Path:
    """The embedded driver's folder for all session labs of this process.

    libvirt's embedded driver serves one folder in each process. It is removed
    when the process ends, unless machines are kept.
    """
    return state_dir / PROCESS_ROOTS / secrets.token_hex(3)


@dataclass(frozen=True)
class LabPaths:
    """The files of one lab.

    Attributes:
        folder: The lab's own folder, mode 0700.
    """

    folder: Path

    @property
    def door(self) -> Path:
        """Held by whoever makes, opens or removes the lab; outside of what it guards."""
        return self._locks / f"{self.folder.name}.lock"

    @property
    def in_use(self) -> Path:
        """Held, shared, by every process that has the lab open: whether it lives (Q2)."""
        return self._locks / f"{self.folder.name}.use"

    @property
    def _locks(self) -> Path:
        return self.folder.parent.parent / "locks"

    @property
    def kept(self) -> Path:
        """Is there where the lab of a session outlives it."""
        return self.folder / "keep"

    @property
    def database(self) -> Path:
        """Records, journal and events."""
        return self.folder / "vmss.db"

    @property
    def identity(self) -> Path:
        """Who made the lab."""
        return self.folder / "lab.json"

    @property
    def key(self) -> Path:
        """The lab's SSH key."""
        return self.folder / "id_ed25519"

    @property
    def images(self) -> Path:
        """Published versions, by digest."""
        return self.folder / "images"

    @property
    def blobs(self) -> Path:
        """Files that guests download."""
        return self.folder / "blobs"

    @property
    def libvirt(self) -> Path:
        """Files of libvirt's embedded driver."""
        return self.folder / "libvirt"

    @property
    def sets(self) -> Path:
        """A folder for each set."""
        return self.folder / "sets"

    @property
    def run(self) -> Path:
        """Sockets, whose paths must be short, and a folder for each load balancer."""
        return self.folder / "run"

    def agent_socket(self, uuid: str) -> Path:
        """The guest agent's channel; short, for sockets' paths are limited."""
        return self.run / f"{uuid[:8]}.ga"

    def scale_set(self, name: str) -> Path:
        """Everything of one set."""
        return self.sets / name

    @property
    def locks(self) -> Path:
        """Locks of the lab's sets; they stay as long as the lab does."""
        return self.folder / "locks"

    def lock(self, name: str) -> Path:
        """Held by whoever changes a set, however that writes its name (M4)."""
        return self.locks / f"{name.lower()}.lock"

    def balancer(self, set_id: str) -> Path:
        """Everything of a set's load balancer; short, for sockets' paths are limited."""
        return self.run / set_id[:8]

    def instance(self, scale_set: str, instance_id: int) -> Path:
        """Everything of one instance."""
        return self.scale_set(scale_set) / str(instance_id)

    def data_disk(self, scale_set: str, instance_id: int, lun: int) -> Path:
        """A data disk."""
        return self.instance(scale_set, instance_id) / f"lun{lun}.qcow2"

    def detached_disk(self, instance: str, uuid: str, lun: int) -> Path:
        """A data disk that outlives its instance."""
        return self.folder / "detached" / f"{instance}-{uuid[:8]}-lun{lun}.qcow2"

    def os_disk(self, scale_set: str, instance_id: int, generation: int) -> Path:
        """A generation's OS disk."""
        return self.instance(scale_set, instance_id) / f"os-{generation}.qcow2"

    def seed(self, scale_set: str, instance_id: int, generation: int) -> Path:
        """A generation's NoCloud disk."""
        return self.instance(scale_set, instance_id) / f"seed-{generation}.iso"

    def console(self, scale_set: str, instance_id: int, generation: int) -> Path:
        """A generation's console log."""
        return self.instance(scale_set, instance_id) / f"console-{generation}.log"
