"""The steps of an instance: small effects that can be taken again after a crash.

Each step's :meth:`Step.apply` brings one effect about and may be repeated; the
journal tells which are done (M1). Lists of them are in
:mod:`pytest_vmss.upgrade.phases`.
"""

from __future__ import annotations

import shutil
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar, Literal, Protocol

from pytest_vmss.clock import wait_for
from pytest_vmss.errors import ExtensionError, UnhealthyError, WaitTimeoutError
from pytest_vmss.guest import keys
from pytest_vmss.guest.console import Console
from pytest_vmss.guest.extensions import find_handler
from pytest_vmss.guest.seed import build_seed
from pytest_vmss.health import Tracker
from pytest_vmss.hypervisor import PowerState
from pytest_vmss.model import Extension
from pytest_vmss.store import (
    DetachedDiskRecord,
    ExtensionRecord,
    GenerationRecord,
    InstanceRecord,
    VersionRecord,
)
from pytest_vmss.upgrade.observe import HEALTH_INTERVAL, look
from pytest_vmss.upgrade.world import InstanceContext

__all__ = [
    "ApplyModel",
    "AwaitHealth",
    "Commit",
    "Conclusion",
    "CreateDataDisks",
    "Discard",
    "FinishCloudInit",
    "Forget",
    "PrepareDisk",
    "ProveBoot",
    "RemoveFiles",
    "RemoveMachine",
    "ReplaceDataDisks",
    "RunExtensions",
    "SetPower",
    "Start",
    "Step",
    "Stop",
]


#: Writes to the store what came of a step.
Conclusion = Callable[[], None]


class Step(Protocol):
    """One effect on one instance."""

    name: ClassVar[str]

    def apply(self, context: InstanceContext) -> Conclusion | None:
        """Brings the effect about, whether or not it was begun before.

        Returns:
            What is to be written together with the journal's note that it is done:
            both are durable, or neither. None for nothing.
        """


@dataclass(frozen=True)
class CreateDataDisks:
    """Makes the data disks that are not there; the only time the host writes to them (A5)."""

    name: ClassVar[str] = "create data disks"

    revision: int

    def apply(self, context: InstanceContext) -> None:
        world = context.world
        world.paths.instance(context.scale_set, context.instance_id).mkdir(
            parents=True, exist_ok=True, mode=0o700
        )
        for disk in context.revision(self.revision).model.data_disks:
            path = world.paths.data_disk(context.scale_set, context.instance_id, disk.lun)
            world.hypervisor.create_data_disk(path, disk.disk_size_gb or 1)


@dataclass(frozen=True)
class ReplaceDataDisks:
    """Makes new, empty data disks in place of the old ones (``reimageall`` only)."""

    name: ClassVar[str] = "replace data disks"

    revision: int

    def apply(self, context: InstanceContext) -> None:
        for disk in context.revision(self.revision).model.data_disks:
            context.world.paths.data_disk(context.scale_set, context.instance_id, disk.lun).unlink(
                missing_ok=True
            )
        CreateDataDisks(self.revision).apply(context)


@dataclass(frozen=True)
class PrepareDisk:
    """Makes a generation's OS disk and seed beside the ones in use."""

    name: ClassVar[str] = "prepare OS disk"

    number: int
    version: VersionRecord
    revision: int

    def apply(self, context: InstanceContext) -> None:
        world, record = context.world, context.record
        model = context.revision(self.revision).model
        host_key = keys.generate(record.computer_name)
        identity = f"{world.lab_id}-{context.name}-{self.number}"
        generation = GenerationRecord(
            scale_set=context.scale_set,
            instance_id=context.instance_id,
            number=self.number,
            gallery=self.version.gallery,
            definition=self.version.definition,
            version=self.version.version,
            digest=self.version.digest,
            revision=self.revision,
            cloud_instance_id=identity,
            host_key=host_key.public,
            created=world.clock.now(),
        )
        world.store.put(generation)  # before its files exist
        image = world.images.path_of(self.version)
        size = model.virtual_machine_profile.storage_profile.os_disk.disk_size_gb
        grow = size is not None and size * 1024**3 > self.version.virtual_size
        machine = context.machine(self.number)
        world.hypervisor.create_os_disk(machine.os_disk, image, size if grow else None)
        seed = build_seed(
            model,
            cloud_instance_id=identity,
            computer_name=record.computer_name,
            mac=record.mac,
            host_key=host_key,
            lab_key=world.lab_key,
            grow=grow,
        )
        world.hypervisor.write_seed(machine.seed, seed)


@dataclass(frozen=True)
class Stop:
    """Stops the machine: asks the guest, and cuts the power after the limit.

    Attributes:
        abrupt: Cut the power at once, as Azure's ``skipShutdown``.
    """

    name: ClassVar[str] = "stop"

    generation: int
    abrupt: bool = False

    def apply(self, context: InstanceContext) -> None:
        hypervisor = context.world.hypervisor
        if hypervisor.running_generation(context.domain) != self.generation:
            return
        context.leave()
        record = context.generation(self.generation)
        asks = record is not None and record.boot_id is not None and not self.abrupt
        if asks and hypervisor.state(context.domain) is PowerState.RUNNING:
            hypervisor.request_stop(context.domain)
            try:
                wait_for(
                    f"{context.name} to shut down",
                    lambda: hypervisor.state(context.domain) is not PowerState.RUNNING or None,
                    limit=context.limits.stop,
                    clock=context.world.clock,
                    interval=0.05,
                )
                return
            except WaitTimeoutError as late:
                context.event("warning", f"{late.message}; cutting its power")
        hypervisor.power_off(context.domain)


@dataclass(frozen=True)
class Start:
    """Starts the machine on a generation."""

    name: ClassVar[str] = "start"

    generation: int

    def apply(self, context: InstanceContext) -> None:
        hypervisor = context.world.hypervisor
        if hypervisor.running_generation(context.domain) == self.generation:
            return  # begun before a crash, or never stopped
        machine = context.machine(self.generation)
        generation = context.existing(self.generation)
        # A later proof of the boot needs to know what was there before it.
        log = machine.console.stat().st_size if machine.console.exists() else 0
        context.world.store.put(
            generation.model_copy(
                update={"boot_before": generation.boot_id, "console_from": log, "started": True}
            )
        )
        hypervisor.start(machine)


@dataclass(frozen=True)
class ProveBoot:
    """Proves a new boot of a generation, by its boot id."""

    name: ClassVar[str] = "boot"

    generation: int

    def apply(self, context: InstanceContext) -> Conclusion:
        store = context.world.store
        generation = context.existing(self.generation)
        facts = context.guest(generation).wait_boot(generation.boot_before)

        def conclude() -> None:
            store.put(
                generation.model_copy(
                    update={
                        "boot_id": facts.boot_id,
                        "kernel": facts.kernel,
                        "found_version": facts.image_version,
                    }
                )
            )
            context.event(
                "boot",
                f"booted: image version {facts.image_version or 'unknown'}, kernel {facts.kernel}",
            )
            if facts.image_version not in (None, generation.version):
                context.event(
                    "warning",
                    f"the image published as {generation.version} calls itself "
                    f"{facts.image_version}",
                )

        return conclude


@dataclass(frozen=True)
class FinishCloudInit:
    """Waits for cloud-init's own verdict."""

    name: ClassVar[str] = "cloud-init"

    generation: int

    def apply(self, context: InstanceContext) -> Conclusion:
        generation = context.existing(self.generation)
        status = context.guest(generation).wait_cloud_init()
        concluded = generation.model_copy(update={"cloud_init": status})
        return lambda: context.world.store.put(concluded)


@dataclass(frozen=True)
class RunExtensions:
    """Runs the extensions that are due on the generation, in the model's order (E4).

    Each is run once on a new OS disk. On one that has been in use, those run
    again whose definition has changed or whose last run failed.

    Attributes:
        newer: Run those again, too, whose handler has got a higher version since.
    """

    name: ClassVar[str] = "extensions"

    generation: int
    newer: bool = False

    def apply(self, context: InstanceContext) -> None:
        generation = context.existing(self.generation)
        revision = generation.revision
        extensions = context.revision(revision).model.extensions
        if not extensions and not generation.extensions:
            return
        known = {result.name: result for result in generation.extensions}
        for extension in extensions:
            earlier = known.get(extension.name)
            if earlier is not None and not self._due(context, extension, earlier, revision):
                continue
            run = "1" if earlier is None else f"{context.operation}-{revision}"
            result = context.guest(generation).run_extension(extension, run)
            known[extension.name] = result.model_copy(
                update={"revision": revision, "operation": context.operation}
            )
            with context.world.store.transaction():
                generation = self._keep(context, generation, extensions, known)
                context.event("extension", f"{extension.name}: {result.status}")
        for result in self._keep(context, generation, extensions, known).extensions:
            if result.status == "error":
                raise self._failure(context, result)

    def _due(
        self,
        context: InstanceContext,
        extension: Extension,
        earlier: ExtensionRecord,
        revision: int,
    ) -> bool:
        if (earlier.operation, earlier.revision) == (context.operation, revision):
            return False  # this very operation ran it
        if earlier.status == "error":
            return True
        if extension not in context.revision(earlier.revision).model.extensions:
            return True
        version = find_handler(extension.publisher, extension.type).version
        return self.newer and version != earlier.version

    @staticmethod
    def _keep(
        context: InstanceContext,
        generation: GenerationRecord,
        extensions: list[Extension],
        known: dict[str, ExtensionRecord],
    ) -> GenerationRecord:
        """Records what came of the model's extensions, and forgets those no longer in it."""
        results = tuple(known[entry.name] for entry in extensions if entry.name in known)
        if results == generation.extensions:
            return generation
        changed = generation.model_copy(update={"extensions": results})
        context.world.store.put(changed)
        return changed

    def _failure(self, context: InstanceContext, result: ExtensionRecord) -> ExtensionError:
        console = Console(context.machine(self.generation).console)
        ended = (
            "did not end"
            if result.exit_code is None
            else f"ended with exit code {result.exit_code}"
        )
        return ExtensionError(
            f"VM has reported a failure when processing extension {result.name!r} "
            f"(type {result.type}): its command {ended}: {result.message or 'no output'}",
            instance=context.name,
            extension=result.name,
            exit_code=result.exit_code,
            console_tail=console.tail(),
            log=console.path,
        )


@dataclass(frozen=True)
class AwaitHealth:
    """Waits until the application is healthy on the current boot (F6)."""

    name: ClassVar[str] = "health"

    generation: int

    def apply(self, context: InstanceContext) -> None:
        probe = context.revision(context.existing(self.generation).revision).probe
        tracker = Tracker(1 if probe is None else probe.threshold)
        limit = context.limits.health

        def healthy() -> bool | None:
            return tracker.observe(look(context.world, context.record, probe)) or None

        try:
            wait_for(
                f"{context.name} to be healthy",
                healthy,
                limit=limit,
                clock=context.world.clock,
                interval=HEALTH_INTERVAL,
                describe=lambda: tracker.detail,
            )
        except WaitTimeoutError as late:
            console = Console(context.machine(self.generation).console)
            raise UnhealthyError(
                f"the application did not become healthy within {limit:.0f} s: {tracker.detail}",
                instance=context.name,
                console_tail=console.tail(),
                log=console.path,
            ) from late


@dataclass(frozen=True)
class ApplyModel:
    """Gives an OS disk that is in use another revision of the model."""

    name: ClassVar[str] = "apply model"

    generation: int
    revision: int

    def apply(self, context: InstanceContext) -> None:
        generation = context.existing(self.generation)
        context.world.store.put(generation.model_copy(update={"revision": self.revision}))


@dataclass(frozen=True)
class SetPower:
    """Records which power state was asked for."""

    name: ClassVar[str] = "power state"

    power: Literal["running", "stopped", "deallocated"]

    def apply(self, context: InstanceContext) -> None:
        context.world.store.amend(context.record, power=self.power)


@dataclass(frozen=True)
class Commit:
    """Makes a generation the instance's own; the older one is no longer needed."""

    name: ClassVar[str] = "commit"

    generation: int
    provisioning: str = "Succeeded"

    def apply(self, context: InstanceContext) -> Conclusion:
        return lambda: self._commit(context)

    def _commit(self, context: InstanceContext) -> None:
        store = context.world.store
        for generation in context.generations():
            if generation.number == self.generation:
                version, revision = generation.version, generation.revision
                store.put(generation.model_copy(update={"state": "current"}))
            elif generation.state in ("current", "preparing"):
                store.put(generation.model_copy(update={"state": "previous"}))
        store.amend(
            context.record,
            generation=self.generation,
            version=version,
            revision=revision,
            power="running",
            provisioning=self.provisioning,
        )


@dataclass(frozen=True)
class Discard:
    """Removes the disks of all generations but one; their console logs stay."""

    name: ClassVar[str] = "discard old disk"

    keep: int

    def apply(self, context: InstanceContext) -> Conclusion:
        gone = [
            generation
            for generation in context.generations()
            if generation.number != self.keep and generation.state != "discarded"
        ]
        for generation in gone:
            machine = context.machine(generation.number)
            for path in (machine.os_disk, machine.seed):
                path.unlink(missing_ok=True)
                _part(path).unlink(missing_ok=True)

        def conclude() -> None:
            for generation in gone:
                context.world.store.put(generation.model_copy(update={"state": "discarded"}))

        return conclude


def _part(path: Path) -> Path:
    """The name that a disk has while it is written."""
    return path.with_suffix(".part")


@dataclass(frozen=True)
class RemoveMachine:
    """Cuts the power of an instance that goes, and forgets its machine."""

    name: ClassVar[str] = "remove machine"

    def apply(self, context: InstanceContext) -> None:
        context.leave()
        context.world.hypervisor.remove(context.domain)
        record = context.world.store.get(InstanceRecord, *context.key)
        if record is not None:
            context.world.paths.agent_socket(record.uuid).unlink(missing_ok=True)


@dataclass(frozen=True)
class RemoveFiles:
    """Removes an instance's files; data disks with ``deleteOption: Detach`` are kept (A2)."""

    name: ClassVar[str] = "remove files"

    revision: int

    def apply(self, context: InstanceContext) -> None:
        world, uuid = context.world, context.record.uuid
        for disk in context.revision(self.revision).model.data_disks:
            path = world.paths.data_disk(context.scale_set, context.instance_id, disk.lun)
            if disk.delete_option == "Detach" and path.exists():
                kept = world.paths.detached_disk(context.name, uuid, disk.lun)
                world.store.put(
                    DetachedDiskRecord(
                        scale_set=context.scale_set,
                        instance_id=context.instance_id,
                        lun=disk.lun,
                        path=str(kept),
                        detached=world.clock.now(),
                    )
                )
                kept.parent.mkdir(exist_ok=True, mode=0o700)
                path.rename(kept)
                context.event("disk", f"data disk {disk.lun} is kept: {kept}")
        folder = world.paths.instance(context.scale_set, context.instance_id)
        if folder.exists():
            shutil.rmtree(folder)


@dataclass(frozen=True)
class Forget:
    """Removes the records of an instance that is gone."""

    name: ClassVar[str] = "forget"

    def apply(self, context: InstanceContext) -> None:
        store = context.world.store
        with store.transaction():
            for generation in context.generations():
                store.delete(generation)
            record = store.get(InstanceRecord, *context.key)
            if record is not None:
                store.delete(record)
