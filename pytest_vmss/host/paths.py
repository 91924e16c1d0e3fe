"""Paths of a lab's files: all in its own folder, except the locks that guard that folder."""

from __future__ import annotations

import secrets
from dataclasses import dataclass
from functools import cache, cached_property, lru_cache
from pathlib import Path

__all__ = ["PROCESS_ROOTS", "SOCKET_PATH_BYTES", "LabPaths", "process_root"]

#: Folder in the state directory for the embedded driver's folders, one per process.
PROCESS_ROOTS = "embedded"
#: What the path of a Unix socket may have.
SOCKET_PATH_BYTES = 107

#: Suffix of the folder of a set's private network.
_NETWORK = ".vn"


@cache
def process_root(state_dir: Path) -> Path:
    """Returns the embedded driver's folder for all session labs of this process.

    libvirt's embedded driver can use one folder per process. It is removed when the process
    ends, unless VMs are kept.
    """
    return state_dir / PROCESS_ROOTS / secrets.token_hex(3)


@lru_cache(maxsize=4096)
def _instance(sets: Path, scale_set: str, instance_id: int) -> Path:
    return sets / scale_set / str(instance_id)


@dataclass(frozen=True)
class LabPaths:
    """The files of one lab.

    Attributes:
        folder: The lab's own folder, mode 0700.
    """

    folder: Path

    @property
    def door(self) -> Path:
        """Lock held to create, open or remove the lab; outside the folder that it guards."""
        return self._locks / f"{self.folder.name}.lock"

    @property
    def in_use(self) -> Path:
        """Shared lock of every process that has the lab open; shows that the lab is alive (Q2)."""
        return self._locks / f"{self.folder.name}.use"

    @property
    def _locks(self) -> Path:
        return self.folder.parent.parent / "locks"

    @property
    def kept(self) -> Path:
        """Marker file: a session's lab outlives the session."""
        return self.folder / "keep"

    @property
    def database(self) -> Path:
        """The database of records, journal and events."""
        return self.folder / "vmss.db"

    @property
    def identity(self) -> Path:
        """The file that says who created the lab."""
        return self.folder / "lab.json"

    @property
    def room(self) -> Path:
        """The file that says how much memory the lab's instances may take."""
        return self.folder / "room.json"

    @property
    def key(self) -> Path:
        """The lab's private SSH key."""
        return self.folder / "id_ed25519"

    @property
    def images(self) -> Path:
        """The folder of published image versions, by digest."""
        return self.folder / "images"

    def checkpoint(self, key: str) -> Path:
        """The folder of a checkpoint's files, beside the images on which its disks are based."""
        return self.folder / "checkpoints" / key

    @property
    def linking(self) -> Path:
        """Lock held, shared, while a checkpoint is linked into the lab that no operation names yet."""
        return self.locks / "checkpoints"  # a set's name would have a suffix

    @property
    def blobs(self) -> Path:
        """The folder of files that guests download."""
        return self.folder / "blobs"

    @property
    def libvirt(self) -> Path:
        """The folder of libvirt's embedded driver."""
        return self.folder / "libvirt"

    @cached_property
    def sets(self) -> Path:
        """The folder that has a folder for each scale set."""
        return self.folder / "sets"

    @cached_property
    def run(self) -> Path:
        """The folder of sockets, whose paths must be short, and of each load balancer's folder."""
        return self.folder / "run"

    def agent_socket(self, uuid: str) -> Path:
        """The guest agent's socket; short, since socket paths are limited in length."""
        return self.run / f"{uuid[:8]}.ga"

    def platform(self, uuid: str) -> Path:
        """The folder of Azure as one guest sees it; short, since socket paths are limited."""
        return self.run / f"{uuid[:8]}.az"

    def network(self, set_id: str) -> Path:
        """The folder of a set's private network; short, since socket paths are limited."""
        return self.run / f"{set_id[:8]}{_NETWORK}"

    def networks(self) -> list[Path]:
        """The folders of all sets' private networks."""
        return sorted(self.run.glob(f"*{_NETWORK}/"))

    def scale_set(self, name: str) -> Path:
        """The folder of one scale set."""
        return self.sets / name

    @property
    def locks(self) -> Path:
        """The folder of the scale sets' locks, which stay as long as the lab does."""
        return self.folder / "locks"

    def lock(self, name: str) -> Path:
        """Lock held to change a scale set; the case of its name does not matter (M4)."""
        return self.locks / f"{name.lower()}.lock"

    def balancer(self, set_id: str) -> Path:
        """The folder of a set's load balancer; short, since socket paths are limited in length."""
        return self.run / set_id[:8]

    def instance(self, scale_set: str, instance_id: int) -> Path:
        """The folder of one instance."""
        return _instance(self.sets, scale_set, instance_id)

    def data_disk(self, scale_set: str, instance_id: int, lun: int) -> Path:
        """The file of a data disk."""
        return self.instance(scale_set, instance_id) / f"lun{lun}.qcow2"

    def detached_disk(self, instance: str, uuid: str, lun: int) -> Path:
        """The file of a data disk that outlives its instance."""
        return self.folder / "detached" / f"{instance}-{uuid[:8]}-lun{lun}.qcow2"

    def os_disk(self, scale_set: str, instance_id: int, generation: int) -> Path:
        """The file of a generation's OS disk."""
        return self.instance(scale_set, instance_id) / f"os-{generation}.qcow2"

    def seed(self, scale_set: str, instance_id: int, generation: int) -> Path:
        """The file of a generation's NoCloud disk."""
        return self.instance(scale_set, instance_id) / f"seed-{generation}.iso"

    def nvram(self, scale_set: str, instance_id: int, generation: int) -> Path:
        """The file of a generation's UEFI variables, if it boots by UEFI."""
        return self.instance(scale_set, instance_id) / f"nvram-{generation}.fd"

    def console(self, scale_set: str, instance_id: int, generation: int) -> Path:
        """The file of a generation's console log."""
        return self.instance(scale_set, instance_id) / f"console-{generation}.log"

    def guest_logs(self, scale_set: str, instance_id: int, generation: int) -> Path:
        """The folder of what the guest of a generation told when that had failed."""
        return self.instance(scale_set, instance_id) / f"guest-{generation}"
