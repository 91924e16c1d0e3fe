"""Steps that create, commit and remove an instance's disks, and the instance itself."""

from __future__ import annotations

import shutil
import stat
from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar

from pytest_vmss.environment.environment import InstanceContext
from pytest_vmss.errors import HostError, InstanceError, LabError, NotFoundError
from pytest_vmss.guest import keys
from pytest_vmss.guest.seed import build_seed
from pytest_vmss.guest_platform.config import PlatformFiles
from pytest_vmss.guest_platform.provisioning import ovf_env
from pytest_vmss.guest_platform.virtual_network import launcher as virtual_network
from pytest_vmss.host.files import PART, sync_folder
from pytest_vmss.model import DataDisk
from pytest_vmss.model.image_version import ImageVersionRef
from pytest_vmss.steps.step import Conclusion
from pytest_vmss.store import (
    DetachedDiskRecord,
    GenerationRecord,
    InstanceRecord,
    VersionRecord,
)

__all__ = [
    "Commit",
    "CreateDataDisks",
    "Discard",
    "Forget",
    "PrepareDisk",
    "RemoveFiles",
    "RemoveMachine",
    "ReplaceDataDisks",
]


#: Prefix of the names of data disks that are about to replace others.
_FRESH = "fresh-"


@dataclass(frozen=True)
class CreateDataDisks:
    """Creates the data disks that the instance does not have yet (A5).

    The host never writes to them afterwards. A disk whose file has disappeared is never
    replaced by an empty one: the loss of data must be reported. Usually all are there, and
    nothing is changed; else it is written, durably, which ones are about to be made.
    """

    name: ClassVar[str] = "create data disks"
    timed: ClassVar[bool] = True
    durable: ClassVar[bool] = False

    revision: int

    def apply(self, context: InstanceContext) -> None:
        environment, had = context.environment, self._had(context)
        missing: dict[Path, DataDisk] = {}
        for disk in context.revision(self.revision).model.data_disks:
            path = environment.paths.data_disk(context.scale_set, context.instance_id, disk.lun)
            if path.is_file():
                continue
            if disk.lun in had:
                raise HostError(
                    f"{path}, the data disk at LUN {disk.lun} of {context.name}, is not there, and "
                    "no empty one was put in its place: bring the file back (a file system that is "
                    "not mounted?), or ask for empty disks with: "
                    f"{environment.program} reimage {context.scale_set} {context.instance_id} --data-disks"
                )
            missing[path] = disk
        if not missing:
            return
        luns = ", ".join(str(disk.lun) for disk in missing.values())
        context.event("disk", f"makes its data disks at LUN {luns}")
        _make_folder(context)
        for path, disk in missing.items():
            environment.hypervisor.create_data_disk(path, disk.disk_size_gb or 1)

    @staticmethod
    def _had(context: InstanceContext) -> set[int]:
        """The LUNs at which the instance has disks since its last commit."""
        record = context.record
        if not record.generation:
            return set()
        return {disk.lun for disk in context.revision(record.revision).model.data_disks}


@dataclass(frozen=True)
class ReplaceDataDisks:
    """Replaces the data disks by new, empty ones (``reimageall`` only)."""

    name: ClassVar[str] = "replace data disks"
    timed: ClassVar[bool] = True
    durable: ClassVar[bool] = True

    revision: int

    def apply(self, context: InstanceContext) -> None:
        environment = context.environment
        for disk in context.revision(self.revision).model.data_disks:
            path = environment.paths.data_disk(context.scale_set, context.instance_id, disk.lun)
            fresh = path.with_name(_FRESH + path.name)  # so that there always is a disk
            environment.hypervisor.create_data_disk(fresh, disk.disk_size_gb or 1)
            fresh.replace(path)
            sync_folder(path.parent)


def _published(context: InstanceContext, address: ImageVersionRef) -> VersionRecord:
    """The image version that an operation installs on an instance.

    Raises:
        InstanceError: It was deleted since the operation began. A wait would not bring it back.
    """
    try:
        return context.environment.images.resolve(address)
    except NotFoundError as error:
        raise InstanceError(error.message, instance=context.name, code=error.code) from error


@dataclass(frozen=True)
class PrepareDisk:
    """Creates a new OS disk, its seed and UEFI variables beside the ones in use."""

    name: ClassVar[str] = "prepare OS disk"
    timed: ClassVar[bool] = True
    durable: ClassVar[bool] = False

    number: int
    version: ImageVersionRef
    revision: int

    def apply(self, context: InstanceContext) -> None:
        environment, record = context.environment, context.record
        version = _published(context, self.version)
        model = context.revision(self.revision).model
        # A guest that looks for Azure makes its own; the first login shows it.
        has_platform = version.provisioning == "Azure"
        host_key = None if has_platform else keys.generate(record.computer_name)
        identity = f"{environment.lab_id}-{context.name}-{self.number}"
        generation = GenerationRecord.from_version(
            version,
            scale_set=context.scale_set,
            instance_id=context.instance_id,
            number=self.number,
            revision=self.revision,
            cloud_instance_id=record.uuid if host_key is None else identity,
            host_key="" if host_key is None else host_key.public,
            created=environment.clock.now(),
        )
        environment.store.put(generation)  # before its files exist
        _make_folder(context)  # a failed creation may not have made it
        for part in _parts(context):
            part.unlink(missing_ok=True)
        image = environment.images.path_of(version)
        size = model.virtual_machine_profile.storage_profile.os_disk.disk_size_gb
        grow = size is not None and size * 1024**3 > version.virtual_size
        place = (context.scale_set, context.instance_id, self.number)
        environment.hypervisor.create_os_disk(
            environment.paths.os_disk(*place), image, size if grow else None
        )
        if generation.hyper_v_generation == "V2":
            environment.hypervisor.create_nvram(environment.paths.nvram(*place))
        if host_key is None:
            environment.hypervisor.write_provisioning_dvd(
                environment.paths.seed(*place),
                ovf_env(model, computer_name=record.computer_name),
            )
            return
        seed = build_seed(
            model,
            cloud_instance_id=identity,
            computer_name=record.computer_name,
            mac=record.mac,
            host_key=host_key,
            lab_key=environment.lab_key,
            grow=grow,
            outbound=environment.guest_network == "outbound",
            private=record.instance_id if model.has_subnet else None,
        )
        environment.hypervisor.write_seed(environment.paths.seed(*place), seed)


@dataclass(frozen=True)
class Commit:
    """Commits an OS disk as the instance's current one; the older ones can go.

    Attributes:
        provisioning: The instance's provisioning state from then on.
        stopped: Whether the instance stays stopped, so that nothing is proved about it yet.
    """

    name: ClassVar[str] = "commit"
    timed: ClassVar[bool] = False
    durable: ClassVar[bool] = False

    generation: int
    provisioning: str = "Succeeded"
    stopped: bool = False

    def apply(self, context: InstanceContext) -> Conclusion:
        _require_disk(context, self.generation)
        return lambda: self._commit(context)

    def _commit(self, context: InstanceContext) -> None:
        store, kept = context.environment.store, context.existing(self.generation)
        for generation in context.generations():
            if generation.number == self.generation:
                store.amend(generation, state="current")
            elif generation.state in ("current", "preparing"):
                store.amend(generation, state="previous")
        record = context.record
        store.amend(
            record,
            generation=self.generation,
            version=kept.version,
            revision=kept.revision,
            power=record.power if self.stopped else "running",
            provisioning=self.provisioning,
            power_failed=False,
            unproven=self.stopped,
        )


@dataclass(frozen=True)
class Discard:
    """Removes all OS disks but one, with what belongs to them; their console logs stay.

    Only if that one is the instance's current generation by its record and its disk exists:
    no earlier failure may cost an instance its last disk (Q1).

    Attributes:
        keep: Number of the generation to keep; 0 for an instance that never had one.
    """

    name: ClassVar[str] = "discard old disk"
    timed: ClassVar[bool] = False
    durable: ClassVar[bool] = True

    keep: int

    def apply(self, context: InstanceContext) -> Conclusion:
        if context.record.generation != self.keep:
            raise LabError(
                f"{context.name} is on its OS disk number {context.record.generation} by its "
                f"record, not on {self.keep}: no disk of it was removed"
            )
        if self.keep:
            _require_disk(context, self.keep)
        gone = [
            generation
            for generation in context.generations()
            if generation.number != self.keep and generation.state != "discarded"
        ]
        for generation in gone:
            place = (context.scale_set, context.instance_id, generation.number)
            for path in (
                context.environment.paths.os_disk(*place),
                context.environment.paths.seed(*place),
                context.environment.paths.nvram(*place),
            ):
                path.unlink(missing_ok=True)
        for part in _parts(context):
            part.unlink(missing_ok=True)

        def conclude() -> None:
            for generation in gone:
                context.environment.store.amend(generation, state="discarded")

        return conclude


@dataclass(frozen=True)
class RemoveMachine:
    """Powers off and undefines the machine of an instance that is being deleted."""

    name: ClassVar[str] = "remove machine"
    timed: ClassVar[bool] = False
    durable: ClassVar[bool] = True

    def apply(self, context: InstanceContext) -> None:
        context.leave()
        context.environment.hypervisor.remove(context.domain)
        record = context.environment.store.get(InstanceRecord, *context.key)
        if record is not None:
            context.environment.paths.agent_socket(record.uuid).unlink(missing_ok=True)
            PlatformFiles(context.environment.paths.platform(record.uuid)).remove()
            network = context.network
            if network is not None:
                virtual_network.leave(network)


@dataclass(frozen=True)
class RemoveFiles:
    """Removes an instance's files; data disks with ``deleteOption: Detach`` are kept (A2)."""

    name: ClassVar[str] = "remove files"
    timed: ClassVar[bool] = False
    durable: ClassVar[bool] = True

    revision: int

    def apply(self, context: InstanceContext) -> None:
        environment, uuid = context.environment, context.record.uuid
        for disk in context.revision(self.revision).model.data_disks:
            path = environment.paths.data_disk(context.scale_set, context.instance_id, disk.lun)
            if disk.delete_option == "Detach" and path.exists():
                kept = _unused(environment.paths.detached_disk(context.name, uuid, disk.lun))
                environment.store.put(
                    DetachedDiskRecord(
                        scale_set=context.scale_set,
                        instance_id=context.instance_id,
                        lun=disk.lun,
                        path=str(kept),
                        detached=environment.clock.now(),
                    )
                )
                kept.parent.mkdir(exist_ok=True, mode=0o700)
                path.rename(kept)
                sync_folder(kept.parent)
                context.event("disk", f"data disk {disk.lun} is kept: {kept}")
        folder = environment.paths.instance(context.scale_set, context.instance_id)
        if folder.exists():
            shutil.rmtree(folder)


@dataclass(frozen=True)
class Forget:
    """Removes the records of a deleted instance."""

    name: ClassVar[str] = "forget"
    timed: ClassVar[bool] = False
    durable: ClassVar[bool] = True

    def apply(self, context: InstanceContext) -> None:
        store = context.environment.store
        with store.transaction():
            for generation in context.generations():
                store.delete(generation)
            record = store.get(InstanceRecord, *context.key)
            if record is not None:
                store.delete(record)
        context.environment.room_is_free()


def _unused(path: Path) -> Path:
    """A path of which there is no file: with a number, if need be.

    An instance that was deleted, restored from a checkpoint and deleted again leaves two disks.
    """
    unused, number = path, 1
    while unused.exists():
        number += 1
        unused = path.with_stem(f"{path.stem}-{number}")
    return unused


def _make_folder(context: InstanceContext) -> None:
    folder = context.environment.paths.instance(context.scale_set, context.instance_id)
    folder.mkdir(parents=True, exist_ok=True, mode=0o700)


def _parts(context: InstanceContext) -> list[Path]:
    """Partly written files that an interrupted run left."""
    folder = context.environment.paths.instance(context.scale_set, context.instance_id)
    try:
        paths = list(folder.iterdir())
    except FileNotFoundError:
        return []
    return sorted(
        path for path in paths if path.name.endswith(PART) or path.name.startswith(_FRESH)
    )


def _require_disk(context: InstanceContext, number: int) -> None:
    """Checks that a generation's OS disk, seed and UEFI variables exist and are not empty.

    Raises:
        HostError: One of them is missing or empty.
    """
    place, paths = (context.scale_set, context.instance_id, number), context.environment.paths
    has_variables = context.existing(number).hyper_v_generation == "V2"
    variables = [paths.nvram(*place)] if has_variables else []
    for path in (paths.os_disk(*place), paths.seed(*place), *variables):
        if not _is_there(path):
            raise HostError(
                f"{path}, which {context.name} is to run on, is not there; nothing was removed, "
                "and its record is as it was: bring the file back"
            )


def _is_there(path: Path) -> bool:
    """Whether there is a file, and not an empty one."""
    try:
        found = path.stat()
    except (FileNotFoundError, NotADirectoryError):
        return False
    return stat.S_ISREG(found.st_mode) and found.st_size > 0
