"""The steps of an instance: small effects that can be taken again after a crash.

A phase is a list of steps. Each step's :meth:`Step.apply` brings one effect
about and may be repeated; the journal tells which are done (M1).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar, Protocol

from pytest_vmss.clock import wait_for
from pytest_vmss.errors import ExtensionError, HypervisorError, UnhealthyError, WaitTimeoutError
from pytest_vmss.guest import keys
from pytest_vmss.guest.console import Console
from pytest_vmss.guest.seed import build_seed
from pytest_vmss.health import ProbeResult, Tracker
from pytest_vmss.hypervisor import PowerState
from pytest_vmss.store import GenerationRecord, VersionRecord
from pytest_vmss.upgrade.world import InstanceContext

__all__ = [
    "Step",
    "create_steps",
    "observe_health",
    "rollback_steps",
    "settle_steps",
    "swap_steps",
]

_HEALTH_INTERVAL = 0.2


class Step(Protocol):
    """One effect on one instance."""

    name: ClassVar[str]

    def apply(self, context: InstanceContext) -> None:
        """Brings the effect about, whether or not it was begun before."""


@dataclass(frozen=True)
class CreateDataDisks:
    """Makes the data disks; the only time the host writes to them (A5)."""

    name: ClassVar[str] = "create data disks"

    def apply(self, context: InstanceContext) -> None:
        world = context.world
        world.paths.instance(context.scale_set, context.instance_id).mkdir(
            parents=True, exist_ok=True, mode=0o700
        )
        for disk in context.model.virtual_machine_profile.storage_profile.data_disks:
            path = world.paths.data_disk(context.scale_set, context.instance_id, disk.lun)
            world.hypervisor.create_data_disk(path, disk.disk_size_gb or 1)


@dataclass(frozen=True)
class PrepareDisk:
    """Makes a generation's OS disk and seed beside the ones in use."""

    name: ClassVar[str] = "prepare OS disk"

    number: int
    version: VersionRecord

    def apply(self, context: InstanceContext) -> None:
        world, model, record = context.world, context.model, context.record
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
    """Stops the machine: asks the guest, and cuts the power after the limit."""

    name: ClassVar[str] = "stop"

    generation: int

    def apply(self, context: InstanceContext) -> None:
        hypervisor = context.world.hypervisor
        if hypervisor.running_generation(context.domain) != self.generation:
            return
        context.leave()
        record = context.generation(self.generation)
        if record is not None and record.boot_id is not None:
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
        generation = _existing(context, self.generation)
        # A later proof of the boot needs to know what was there before it.
        log = machine.console.stat().st_size if machine.console.exists() else 0
        context.world.store.put(
            generation.model_copy(update={"boot_before": generation.boot_id, "console_from": log})
        )
        hypervisor.start(machine)


@dataclass(frozen=True)
class ProveBoot:
    """Proves a new boot of a generation, by its boot id."""

    name: ClassVar[str] = "boot"

    generation: int

    def apply(self, context: InstanceContext) -> None:
        store = context.world.store
        generation = _existing(context, self.generation)
        facts = context.guest(generation).wait_boot(generation.boot_before)
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
                f"the image published as {generation.version} calls itself {facts.image_version}",
            )


@dataclass(frozen=True)
class FinishCloudInit:
    """Waits for cloud-init's own verdict."""

    name: ClassVar[str] = "cloud-init"

    generation: int

    def apply(self, context: InstanceContext) -> None:
        generation = _existing(context, self.generation)
        status = context.guest(generation).wait_cloud_init()
        context.world.store.put(generation.model_copy(update={"cloud_init": status}))


@dataclass(frozen=True)
class RunExtensions:
    """Runs each extension once for the generation, in the model's order (E4)."""

    name: ClassVar[str] = "extensions"

    generation: int

    def apply(self, context: InstanceContext) -> None:
        extensions = context.model.extensions
        if not extensions:
            return
        generation = _existing(context, self.generation)
        console = Console(context.machine(self.generation).console)
        for extension in extensions:
            if any(done.name == extension.name for done in generation.extensions):
                continue
            result = context.guest(generation).run_extension(extension)
            generation = generation.model_copy(
                update={"extensions": (*generation.extensions, result)}
            )
            context.world.store.put(generation)
            context.event("extension", f"{extension.name}: {result.status}")
        for result in generation.extensions:
            if result.status == "error":
                ended = (
                    "did not end"
                    if result.exit_code is None
                    else f"ended with exit code {result.exit_code}"
                )
                raise ExtensionError(
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
        probe = context.probe
        tracker = Tracker(1 if probe is None else probe.threshold)
        limit = context.limits.health

        def healthy() -> bool | None:
            return tracker.observe(_observe(context)) or None

        try:
            wait_for(
                f"{context.name} to be healthy",
                healthy,
                limit=limit,
                clock=context.world.clock,
                interval=_HEALTH_INTERVAL,
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
class Commit:
    """Makes a generation the instance's own; the older one is no longer needed."""

    name: ClassVar[str] = "commit"

    generation: int
    provisioning: str = "Succeeded"

    def apply(self, context: InstanceContext) -> None:
        store = context.world.store
        with store.transaction():
            for generation in context.generations():
                if generation.number == self.generation:
                    store.put(generation.model_copy(update={"state": "current"}))
                elif generation.state in ("current", "preparing"):
                    store.put(generation.model_copy(update={"state": "previous"}))
            store.put(
                context.record.model_copy(
                    update={"generation": self.generation, "provisioning": self.provisioning}
                )
            )


@dataclass(frozen=True)
class Discard:
    """Removes the disks of all generations but one; their console logs stay."""

    name: ClassVar[str] = "discard old disk"

    keep: int

    def apply(self, context: InstanceContext) -> None:
        for generation in context.generations():
            if generation.number == self.keep or generation.state == "discarded":
                continue
            machine = context.machine(generation.number)
            for path in (machine.os_disk, machine.seed):
                path.unlink(missing_ok=True)
                _part(path).unlink(missing_ok=True)
            context.world.store.put(generation.model_copy(update={"state": "discarded"}))


def _part(path: Path) -> Path:
    """The name that a disk has while it is written."""
    return path.with_suffix(".part")


def _existing(context: InstanceContext, number: int) -> GenerationRecord:
    generation = context.generation(number)
    if generation is None:
        raise HypervisorError(f"{context.name} has no OS disk number {number}")
    return generation


def observe_health(context: InstanceContext) -> ProbeResult:
    """The instance's health now, after as many looks as its probe asks for (F5)."""
    probe = context.probe
    tracker = Tracker(1 if probe is None else probe.threshold)
    while tracker.observe(result := _observe(context)) is None:
        context.world.clock.sleep(_HEALTH_INTERVAL)
    return result


def _observe(context: InstanceContext) -> ProbeResult:
    """One look at the instance; without a probe: running, extensions succeeded (F1)."""
    if context.world.hypervisor.state(context.domain) is not PowerState.RUNNING:
        return ProbeResult(False, "the machine does not run")
    probe, record = context.probe, context.record
    if probe is not None:
        return context.world.probe(probe, record.address, record.forwards[probe.port])
    running = context.world.hypervisor.running_generation(context.domain)
    generation = None if running is None else context.generation(running)
    for extension in generation.extensions if generation else ():
        if extension.status == "error":
            return ProbeResult(False, f"the extension {extension.name} failed")
    return ProbeResult(True, "running, and every extension succeeded")


def _bring_up(generation: int) -> list[Step]:
    return [
        Start(generation),
        ProveBoot(generation),
        FinishCloudInit(generation),
        RunExtensions(generation),
        AwaitHealth(generation),
    ]


def create_steps(version: VersionRecord) -> Sequence[Step]:
    """A new instance, from nothing to healthy."""
    return [CreateDataDisks(), PrepareDisk(1, version), *_bring_up(1), Commit(1)]


def swap_steps(old: int, new: int, version: VersionRecord) -> Sequence[Step]:
    """A new OS disk in place of the old one (E1); the new one is made before the stop."""
    return [
        PrepareDisk(new, version),
        Stop(old),
        *_bring_up(new),
        Commit(new),
        Discard(new),
    ]


def rollback_steps(old: int, new: int) -> Sequence[Step]:
    """The previous OS disk back: same file, its recovery checked too (G1).

    The new disk is given up first, so that nothing of it is left even if the
    instance does not recover.
    """
    return [
        Stop(new),
        Commit(old),
        Discard(old),
        Start(old),
        ProveBoot(old),
        AwaitHealth(old),
    ]


def settle_steps(stays: int, old: int) -> Sequence[Step]:
    """Without rollback: the instance stays as it is, failed; the old disk is kept.

    Args:
        stays: The OS disk that it is on.
        old: The one from before; where it is still on that, the new one is of no use.
    """
    commit = Commit(stays, provisioning="Failed")
    return [commit, Discard(old)] if stays == old else [commit]
