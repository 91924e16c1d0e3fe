"""The files of a checkpoint: for each instance its disks, seed, console log and memory.

The frozen OS disks name their image by a path relative to the checkpoint's folder, which is the
same in every lab. So the files of one checkpoint can be hard links in the cache and in any
number of labs, and none of them is ever written to.
"""

from __future__ import annotations

import errno
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from typing import Annotated

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from pytest_vmss.errors import CheckpointError, HostError
from pytest_vmss.host.files import write_durably
from pytest_vmss.model.extension_result import ExtensionResult
from pytest_vmss.untrusted import read_regular

__all__ = ["CheckpointFiles", "Manifest", "SavedInstance"]

_MANIFEST_BYTES = 16 * 1024**2
#: What reading fails with where there is no such file, or another thing or too much in its place.
_NO_MANIFEST = {
    errno.ENOENT, errno.ENOTDIR, errno.EISDIR, errno.ELOOP, errno.ENXIO, errno.EINVAL, errno.EFBIG,
}  # fmt: skip
_MAC = r"^[0-9a-f]{2}(:[0-9a-f]{2}){5}$"


class SavedInstance(BaseModel):
    """What is recorded about a saved instance: what its guest knows, and what it reported.

    Attributes:
        instance_id: Number of the instance.
        mac: MAC address of its network card.
        host_key: Its public SSH host key.
        cloud_instance_id: ``instance-id`` of its seed.
        boot_id: Id of the boot in which it was saved.
        kernel: Release of its kernel.
        found_version: ``IMAGE_VERSION`` that was read inside it.
        cloud_init: How cloud-init ended.
        extensions: The results of its extensions.
        luns: The LUNs of its data disks.
    """

    model_config = ConfigDict(frozen=True, extra="forbid", hide_input_in_errors=True)

    instance_id: int
    mac: Annotated[str, Field(pattern=_MAC)]
    host_key: str
    cloud_instance_id: str
    boot_id: str
    kernel: str | None
    found_version: str | None
    cloud_init: str | None
    extensions: tuple[ExtensionResult, ...]
    luns: tuple[int, ...]


class Manifest(BaseModel):
    """What a checkpoint holds.

    Attributes:
        key: The digest of what it depends on.
        scale_set: Name of the set that was saved.
        digest: Digest of the image version.
        created: When it was made.
        instances: The saved instances.
        sizes: The files by their names, with their sizes in bytes. QEMU reads zeros where a disk
            was cut off.
        heads: Digests of their beginnings; see :class:`~pytest_vmss.checkpoints.seals.Seals`.
    """

    model_config = ConfigDict(frozen=True, extra="forbid", hide_input_in_errors=True)

    key: str
    scale_set: str
    digest: str
    created: datetime
    instances: tuple[SavedInstance, ...]
    sizes: dict[str, int] = Field(default_factory=dict)
    heads: dict[str, str] = Field(default_factory=dict)


@dataclass(frozen=True)
class CheckpointFiles:
    """The paths of a checkpoint's files.

    Attributes:
        folder: Its folder, named by its key; a lab's has a suffix after a dot.
    """

    folder: Path

    @property
    def manifest(self) -> Path:
        """The manifest; written last."""
        return self.folder / "checkpoint.json"

    @property
    def ssh_key(self) -> Path:
        """The private SSH key that its guests accept, with mode 0600."""
        return self.folder / "id_ed25519"

    def os_disk(self, instance_id: int) -> Path:
        """The frozen OS disk of an instance."""
        return self.folder / f"{instance_id}-os.qcow2"

    def data_disk(self, instance_id: int, lun: int) -> Path:
        """A frozen data disk of an instance."""
        return self.folder / f"{instance_id}-lun{lun}.qcow2"

    def seed(self, instance_id: int) -> Path:
        """The NoCloud disk of an instance."""
        return self.folder / f"{instance_id}-seed.iso"

    def nvram(self, instance_id: int) -> Path:
        """The UEFI variables of an instance of generation 2, in a checkpoint of its own set."""
        return self.folder / f"{instance_id}-nvram.fd"

    def console(self, instance_id: int) -> Path:
        """The console log of an instance up to the checkpoint."""
        return self.folder / f"{instance_id}-console.log"

    def memory(self, instance_id: int) -> Path:
        """The saved memory of an instance."""
        return self.folder / f"{instance_id}-memory"

    def memories(self) -> list[Path]:
        """The saved memory of all instances of which there is any.

        Raises:
            OSError: The folder cannot be read.
        """
        return sorted(self.folder.glob("*-memory"))

    def image(self, digest: str) -> str:
        """The path of an image in the lab, relative to the folder, for frozen disks."""
        return f"../../images/{digest}.qcow2"

    def write(self, manifest: Manifest) -> None:
        """Writes the manifest durably, with mode 0600.

        Raises:
            HostError: It cannot be written.
        """
        try:
            write_durably(self.manifest, manifest.model_dump_json().encode())
        except OSError as error:
            raise HostError(f"{self.manifest} cannot be written: {error}") from error

    def read(self) -> Manifest:
        """Reads the manifest.

        Raises:
            CheckpointError: It is missing or damaged, or that of another checkpoint.
            HostError: It cannot be read, which says nothing about it.
        """
        try:
            found = Manifest.model_validate_json(read_regular(self.manifest, _MANIFEST_BYTES))
        except (OSError, ValidationError, ValueError) as error:
            if isinstance(error, OSError) and error.errno not in _NO_MANIFEST:
                raise HostError(
                    f"{self.manifest} of a checkpoint cannot be read: {error.strerror}"
                ) from error
            raise CheckpointError(
                f"the checkpoint {self.folder} has no manifest, or a damaged one"
            ) from error
        if found.key != self.folder.name.partition(".")[0]:
            raise CheckpointError(
                f"the checkpoint {self.folder} has the manifest of another: {found.key!r:.40}"
            )
        return found
