"""Steps that save an instance into a checkpoint, and restore it or another from one."""

from __future__ import annotations

import filecmp
import shutil
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar

from pytest_vmss.checkpoints import (
    CheckpointFiles,
    Manifest,
    SavedInstance,
    Seals,
    with_backing_files,
)
from pytest_vmss.environment.environment import InstanceContext
from pytest_vmss.errors import CheckpointError, GuestCommandError
from pytest_vmss.host.files import PART, settle, sync, sync_folder
from pytest_vmss.hypervisor import Machine
from pytest_vmss.model.image_version import ImageVersionRef
from pytest_vmss.steps.step import Conclusion
from pytest_vmss.store import CheckpointRecord, GenerationRecord

__all__ = [
    "DropRestored",
    "FreezeDisks",
    "RestoreDisks",
    "RestoreMemory",
    "SaveMemory",
    "SyncFiles",
    "Wake",
    "copy_private",
    "files_of",
    "seals_of",
]


def files_of(context: InstanceContext, checkpoint: str) -> CheckpointFiles:
    """The files of a checkpoint in the instance's lab."""
    return CheckpointFiles(context.environment.paths.checkpoint(checkpoint))


def seals_of(context: InstanceContext, checkpoint: str) -> Seals:
    """What is recorded of a checkpoint's files.

    Raises:
        CheckpointError: Its manifest is damaged.
    """
    files = files_of(context, checkpoint)
    own = context.environment.store.get(CheckpointRecord, context.key[0], checkpoint)
    if own is not None:
        return Seals(files.folder, own.sizes, own.heads, known=bool(own.sizes))
    if not files.manifest.exists():
        return Seals(files.folder, known=False)  # it is just being made
    manifest = files.read()
    return Seals(files.folder, manifest.sizes, manifest.heads)


@dataclass(frozen=True)
class SaveMemory:
    """Saves the memory of the running machine, which is then off."""

    name: ClassVar[str] = "save memory"
    timed: ClassVar[bool] = True
    durable: ClassVar[bool] = True

    checkpoint: str

    def apply(self, context: InstanceContext) -> None:
        context.leave()  # no connection survives
        hypervisor, files = context.environment.hypervisor, files_of(context, self.checkpoint)
        files.folder.mkdir(parents=True, exist_ok=True, mode=0o700)
        running = hypervisor.running_generation(context.domain)
        if running is not None:  # else it was saved before a crash
            context.environment.store.amend(
                context.existing(running), saved_on=hypervisor.host_boot
            )
        hypervisor.save(context.domain, files.memory(context.instance_id))


@dataclass(frozen=True)
class FreezeDisks:
    """Freezes the disks of the saved machine, and puts layers on them in their place.

    What the files of a set's own checkpoint are is recorded, with those on which they are based.

    Attributes:
        movable: Whether other labs are to use them: the OS disk must then be based on nothing
            but its image. One that was restored is based on another frozen disk.
    """

    name: ClassVar[str] = "freeze disks"
    timed: ClassVar[bool] = False
    durable: ClassVar[bool] = True

    checkpoint: str
    generation: int
    movable: bool = True

    def apply(self, context: InstanceContext) -> Conclusion | None:
        environment, number = context.environment, context.instance_id
        files, generation = files_of(context, self.checkpoint), context.existing(self.generation)
        place = (context.scale_set, number, self.generation)
        disks: list[tuple[Path, Path, str | None]] = [
            (disk.path, files.data_disk(number, disk.lun), None)
            for disk in context.machine(self.generation).data_disks
        ]
        image = files.image(generation.digest) if self.movable else None
        disks.append((environment.paths.os_disk(*place), files.os_disk(number), image))
        for path, frozen, base in disks:
            environment.hypervisor.freeze_disk(path, frozen, base)
            environment.hypervisor.create_layer(path, frozen)
        copy_private(environment.paths.seed(*place), files.seed(number))
        copy_private(environment.paths.console(*place), files.console(number))
        copy_private(environment.paths.nvram(*place), files.nvram(number))
        if environment.store.get(CheckpointRecord, context.key[0], self.checkpoint) is None:
            return None
        chains = {path for _, frozen, _ in disks for path in with_backing_files(frozen)}
        seals = Seals.of(files.folder, {*_files(context, files), *chains})
        return lambda: self._record(context, seals)

    def _record(self, context: InstanceContext, seals: Seals) -> None:
        store = context.environment.store
        own = store.get(CheckpointRecord, context.key[0], self.checkpoint)
        if own is not None:
            sizes, heads = {**own.sizes, **seals.sizes}, {**own.heads, **seals.heads}
            store.amend(own, sizes=sizes, heads=heads)


@dataclass(frozen=True)
class SyncFiles:
    """Makes the instance's files in a checkpoint durable; libvirt leaves that to the kernel.

    What a crash of the host has lost of them before cannot be told from them.

    Attributes:
        checkpoint: Name of the checkpoint's folder in the lab.
        generation: Number of the OS disk.
    """

    name: ClassVar[str] = "sync checkpoint"
    timed: ClassVar[bool] = False
    durable: ClassVar[bool] = False

    checkpoint: str
    generation: int

    def apply(self, context: InstanceContext) -> None:
        _require_no_crash(context, context.existing(self.generation))
        files = files_of(context, self.checkpoint)
        for file in _files(context, files):
            sync(file)
        sync_folder(files.folder)


@dataclass(frozen=True)
class RestoreDisks:
    """Puts layers on a checkpoint's frozen disks in place of new disks (L1).

    The instance takes over what the guest in the checkpoint knows: its MAC address, SSH host
    key, and the results of its boot.
    """

    name: ClassVar[str] = "restore disks"
    timed: ClassVar[bool] = True
    durable: ClassVar[bool] = True

    checkpoint: str
    number: int
    version: ImageVersionRef
    revision: int

    def apply(self, context: InstanceContext) -> None:
        environment, number = context.environment, context.instance_id
        files = files_of(context, self.checkpoint)
        manifest = files.read()
        saved = _saved(manifest, files, number)
        place = (context.scale_set, number, self.number)
        disks = [(environment.paths.os_disk(*place), files.os_disk(number))]
        disks += [
            (
                environment.paths.data_disk(context.scale_set, number, lun),
                files.data_disk(number, lun),
            )
            for lun in saved.luns
        ]
        needed = [*(frozen for _, frozen in disks), files.seed(number), files.memory(number)]
        Seals(files.folder, manifest.sizes, manifest.heads).check(*needed, files.ssh_key)
        if saved.cloud_init == "degraded" and environment.degraded_is_fatal:
            raise CheckpointError(
                f"in the checkpoint {files.folder} cloud-init ended degraded, which is fatal here"
            )
        version = environment.images.resolve(self.version)
        environment.images.path_of(version)
        with environment.store.transaction():  # before its files exist
            environment.store.amend(context.record, mac=saved.mac)
            environment.store.put(
                GenerationRecord.from_version(
                    version,
                    scale_set=context.scale_set,
                    instance_id=number,
                    number=self.number,
                    revision=self.revision,
                    cloud_instance_id=saved.cloud_instance_id,
                    host_key=saved.host_key,
                    ssh_key=str(files.ssh_key),
                    created=environment.clock.now(),
                    boot_id=saved.boot_id,
                    kernel=saved.kernel,
                    found_version=saved.found_version,
                    cloud_init=saved.cloud_init,
                    extensions=tuple(
                        result.model_copy(
                            update={"revision": self.revision, "operation": context.operation}
                        )
                        for result in saved.extensions
                    ),
                )
            )
        environment.paths.instance(context.scale_set, number).mkdir(
            parents=True, exist_ok=True, mode=0o700
        )
        if environment.hypervisor.running_generation(context.domain) == self.number:
            return  # restored before a crash; its disks are in use
        for path, frozen in disks:
            environment.hypervisor.create_layer(path, frozen)
        copy_private(files.seed(number), environment.paths.seed(*place))
        copy_private(files.console(number), environment.paths.console(*place))


@dataclass(frozen=True)
class RestoreMemory:
    """Starts the machine from the checkpoint's memory.

    The memory fits only the disks as they were frozen. If the machine has been started before, as
    by an attempt that a crash of the host ended, it may have written to them since. Of a machine
    that is made or put back from the checkpoint, they get new layers, and what it had written is
    gone. One that was saved and goes on is as much in service as before: what it has written
    since is kept, and the memory is not restored (A5). Nor is it after a crash of the host, which
    may have lost parts of the memory, and of what the memory takes for written.

    Attributes:
        goes_on: Whether it is the machine that was saved, which goes on from there.
    """

    name: ClassVar[str] = "restore memory"
    timed: ClassVar[bool] = True
    durable: ClassVar[bool] = True

    checkpoint: str
    generation: int
    goes_on: bool = False

    def apply(self, context: InstanceContext) -> None:
        environment, number = context.environment, context.instance_id
        files, generation = files_of(context, self.checkpoint), context.existing(self.generation)
        machine = context.machine(self.generation)
        runs = environment.hypervisor.running_generation(context.domain) == self.generation
        seals = seals_of(context, self.checkpoint)
        if not runs:
            seals.check(files.memory(number))
        if generation.started and not runs:
            layers = {disk.path: files.data_disk(number, disk.lun) for disk in machine.data_disks}
            layers[machine.os_disk] = files.os_disk(number)
            seals.check(*layers.values())
            if self.goes_on:
                _require_no_crash(context, generation)
                self._require_unwritten(context, machine, layers)
            else:
                for path, frozen in layers.items():
                    environment.hypervisor.create_layer(path, frozen)
                if machine.nvram is not None:
                    copy_private(files.nvram(number), machine.nvram)
        environment.store.amend(generation, started=True)
        environment.hypervisor.restore(machine, files.memory(number))

    def _require_unwritten(
        self, context: InstanceContext, machine: Machine, layers: Mapping[Path, Path]
    ) -> None:
        """Checks that a machine that was saved has not written to its disks since.

        Raises:
            CheckpointError: It has.
        """
        variables = files_of(context, self.checkpoint).nvram(context.instance_id)
        hypervisor = context.environment.hypervisor
        written = [
            path.name
            for path, frozen in layers.items()
            if not hypervisor.is_unwritten(path, frozen)
        ]
        if machine.nvram is not None and not filecmp.cmp(machine.nvram, variables, shallow=False):
            written.append(machine.nvram.name)
        if written:
            raise CheckpointError(
                f"{context.name} had gone on and stopped again, and what it has written since to "
                f"{', '.join(sorted(written))} does not fit its saved memory; nothing of it is lost"
            )


@dataclass(frozen=True)
class Wake:
    """Makes the restored guest current, and checks that it continues the saved boot."""

    name: ClassVar[str] = "wake"
    timed: ClassVar[bool] = True
    durable: ClassVar[bool] = True

    generation: int

    def apply(self, context: InstanceContext) -> Conclusion:
        generation = context.existing(self.generation)
        boot_id = context.guest(generation).wake()
        if boot_id != generation.boot_id:
            raise GuestCommandError(
                f"runs boot {boot_id} after its restore, not {generation.boot_id}",
                instance=context.name, exit_code=0, stderr="",
            )  # fmt: skip
        return lambda: context.event("restored", f"restored: goes on with boot {boot_id}")


@dataclass(frozen=True)
class DropRestored:
    """Removes the disks of an instance that could not be restored, so that it can be created.

    They hold nothing but the checkpoint's content: the instance never was in service.
    """

    name: ClassVar[str] = "drop restored disks"
    timed: ClassVar[bool] = False
    durable: ClassVar[bool] = True

    generation: int

    def apply(self, context: InstanceContext) -> Conclusion:
        paths, number = context.environment.paths, context.instance_id
        place = (context.scale_set, number, self.generation)
        for path in (
            paths.os_disk(*place),
            paths.seed(*place),
            paths.console(*place),
            *(
                paths.data_disk(context.scale_set, number, disk.lun)
                for disk in context.revision(context.record.revision).model.data_disks
            ),
        ):
            path.unlink(missing_ok=True)

        def conclude() -> None:
            generation = context.generation(self.generation)
            if generation is not None:
                context.environment.store.delete(generation)

        return conclude


def _require_no_crash(context: InstanceContext, generation: GenerationRecord) -> None:
    """Checks that what was saved is all there, although nothing has synchronized it yet.

    Raises:
        CheckpointError: The host was started again since.
    """
    if generation.saved_on != context.environment.hypervisor.host_boot:
        raise CheckpointError(
            f"the host was started again after {context.name} had been saved, and may have "
            "lost parts of its memory; its disks are as after a power cut"
        )


def _saved(manifest: Manifest, files: CheckpointFiles, instance_id: int) -> SavedInstance:
    """What a checkpoint's manifest says of an instance.

    Raises:
        CheckpointError: It does not have the instance.
    """
    for saved in manifest.instances:
        if saved.instance_id == instance_id:
            return saved
    raise CheckpointError(f"the checkpoint {files.folder} has no instance {instance_id}")


def _files(context: InstanceContext, files: CheckpointFiles) -> list[Path]:
    """The files of the instance in a checkpoint."""
    return sorted(files.folder.glob(f"{context.instance_id}-*"))


def copy_private(path: Path, other: Path) -> None:
    """Copies a log or a seed, if there is one, replacing what is there.

    A seed holds secrets, and a lab's group may read its own: it is no link that labs share.
    """
    if not path.exists():
        return
    part = other.with_name(other.name + PART)
    shutil.copyfile(path, part)
    part.chmod(0o600)
    settle(part, other)
