"""What a test holds in its hand: a scale set, its instances, an upgrade."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pytest_vmss.clock import wait_for
from pytest_vmss.errors import NotFoundError, UpgradeError, WaitTimeoutError
from pytest_vmss.guest import LinuxGuest, Shell
from pytest_vmss.guest.console import Console
from pytest_vmss.guest.testinfra_host import testinfra_host
from pytest_vmss.hypervisor import PowerState
from pytest_vmss.model import ScaleSetModel
from pytest_vmss.store import (
    ErrorRecord,
    EventRecord,
    ExtensionRecord,
    GenerationRecord,
    InstanceRecord,
    OperationRecord,
    Outcome,
    ScaleSetRecord,
    StepRecord,
)
from pytest_vmss.upgrade.engine import Engine
from pytest_vmss.upgrade.planner import Health
from pytest_vmss.upgrade.steps import observe_health
from pytest_vmss.upgrade.world import InstanceContext

if TYPE_CHECKING:
    from testinfra.host import Host

    from pytest_vmss.lab import Lab

__all__ = ["Instance", "ScaleSet", "Upgrade", "stages_of"]

_UPGRADE_LIMIT = 3600.0


class Instance:
    """One VM of a scale set; it stays the same across swaps of its OS disk."""

    def __init__(self, lab: Lab, scale_set: str, instance_id: int) -> None:
        self._lab = lab
        self._context = InstanceContext(lab.world, scale_set, instance_id, "")
        self._guest: tuple[tuple[int, str], LinuxGuest] | None = None

    def __repr__(self) -> str:
        return f"<Instance {self.name}>"

    @property
    def record(self) -> InstanceRecord:
        """Its record in the store."""
        return self._context.record

    @property
    def generation(self) -> GenerationRecord:
        """The OS disk that it is on.

        Raises:
            NotFoundError: It never came up.
        """
        generation = self._context.generation(self.record.generation)
        if generation is None:
            raise NotFoundError(f"{self.name} has no OS disk yet")
        return generation

    @property
    def name(self) -> str:
        """Azure's name, ``{set}_{id}``."""
        return self._context.name

    @property
    def instance_id(self) -> str:
        """Azure's instance id."""
        return str(self._context.instance_id)

    @property
    def computer_name(self) -> str:
        """The guest's host name."""
        return self.record.computer_name

    @property
    def image_version(self) -> str | None:
        """The version read inside the guest; the published one where it has none (E2)."""
        generation = self._context.generation(self.record.generation)
        return None if generation is None else generation.found_version or generation.version

    @property
    def boot_id(self) -> str | None:
        """The boot id of the last boot that was proved."""
        return self.generation.boot_id

    @property
    def kernel(self) -> str | None:
        """The kernel's release, read inside the guest."""
        return self.generation.kernel

    @property
    def extensions(self) -> tuple[ExtensionRecord, ...]:
        """What came of each extension on this OS disk."""
        return self.generation.extensions

    @property
    def os_disk(self) -> Path:
        """The file of its OS disk."""
        return self._context.machine(self.record.generation).os_disk

    @property
    def data_disks(self) -> dict[int, Path]:
        """The files of its data disks, by LUN; never open one for writing."""
        machine = self._context.machine(self.record.generation)
        return {disk.lun: disk.path for disk in machine.data_disks}

    @property
    def power_state(self) -> PowerState:
        """Whether its machine runs."""
        return self._lab.world.hypervisor.state(self._context.domain)

    @property
    def health(self) -> Health:
        """Its health now."""
        result = observe_health(self._context)
        return Health.HEALTHY if result.healthy else Health.UNHEALTHY

    def address(self, port: int) -> tuple[str, int]:
        """Address and port of the host that lead to a port of the guest.

        Raises:
            NotFoundError: The port is not forwarded.
        """
        record = self.record
        if port not in record.forwards:
            ports = ", ".join(str(known) for known in record.forwards)
            raise NotFoundError(
                f"port {port} of {self.name} is not forwarded; forwarded are: {ports}; "
                "ask for more with create(..., ports=[...])"
            )
        return record.address, record.forwards[port]

    def url(self, port: int = 80) -> str:
        """The instance's own URL."""
        address, host_port = self.address(port)
        return f"http://{address}:{host_port}"

    @property
    def console(self) -> Console:
        """The console of the OS disk that it is on."""
        return Console(self._context.machine(self.record.generation).console)

    def shell(self) -> Shell:
        """An SSH connection as the administrator; made anew after a swap.

        Raises:
            GuestUnreachableError: It does not answer.
        """
        generation = self.generation
        mark = (generation.number, generation.boot_id or "")
        if self._guest is None or self._guest[0] != mark:
            if self._guest is not None:
                self._guest[1].close()
            self._guest = (mark, self._lab.make_guest(self._context, generation))
        return self._guest[1].shell()

    @cached_property
    def host(self) -> Host:
        """A testinfra host that runs everything as root (L6)."""
        return testinfra_host(self.name, self.shell)

    def close(self) -> None:
        """Ends the connection to it."""
        if self._guest is not None:
            self._guest[1].close()
            self._guest = None


class Upgrade:
    """An upgrade, running or ended; reads the store anew each time."""

    def __init__(self, lab: Lab, scale_set: str, operation: str) -> None:
        self._lab = lab
        self._scale_set = scale_set
        self.id = operation

    def __repr__(self) -> str:
        return f"<Upgrade of {self._scale_set} to {self.target}: {self.status}>"

    @property
    def record(self) -> OperationRecord:
        """Its record in the store."""
        record = self._lab.world.store.get(OperationRecord, self._scale_set.lower(), self.id)
        if record is None:
            raise NotFoundError(f"there is no operation {self.id} of {self._scale_set!r}")
        return record

    @property
    def status(self) -> str:
        """Azure's ``runningStatus.code``."""
        return self.record.status

    @property
    def target(self) -> str:
        """The version that it brings."""
        return self.record.target

    @property
    def ended(self) -> bool:
        """Whether it has ended."""
        return self.record.ended is not None

    @property
    def completed(self) -> bool:
        """Whether it ended Completed."""
        return self.status == "Completed"

    @property
    def faulted(self) -> bool:
        """Whether it ended Faulted."""
        return self.status == "Faulted"

    @property
    def cancelled(self) -> bool:
        """Whether it ended Cancelled."""
        return self.status == "Cancelled"

    @property
    def error(self) -> ErrorRecord | None:
        """Azure's code and message, where it ended Faulted."""
        record = self.record
        if record.error_code is None:
            return None
        return ErrorRecord(code=record.error_code, message=record.error_message or "")

    @property
    def errors(self) -> dict[int, ErrorRecord]:
        """What went wrong on each instance, with the console's tail."""
        return self.record.errors

    @property
    def outcomes(self) -> dict[int, Outcome]:
        """What came of each instance, by number (G3)."""
        return self.record.outcomes

    @property
    def batches(self) -> list[tuple[int, ...]]:
        """The instances of each batch, in order."""
        return [ids for ids, _ in self.record.batches]

    @property
    def stages(self) -> dict[int, dict[str, float]]:
        """Seconds that each step took, by instance and by step."""
        return stages_of(self._lab.world.store.steps(self.id))

    @property
    def events(self) -> list[EventRecord]:
        """Everything that happened in it (J4)."""
        events = self._lab.world.store.events(scale_set=self._scale_set)
        return [event for event in events if event.operation == self.id]

    def explain(self) -> str:
        """What happened and why, for an assertion's message."""
        record = self.record
        lines = [f"upgrade of {self._scale_set} to {record.target}: {record.status}"]
        if record.error_code:
            lines.append(f"  {record.error_code}: {record.error_message}")
        for number, (ids, why) in enumerate(record.batches, 1):
            lines.append(f"  batch {number}: {', '.join(str(i) for i in ids)} — {why}")
        if record.why:
            lines.append(f"  {record.why}")
        for instance, outcome in sorted(record.outcomes.items()):
            lines.append(f"  {self._scale_set}_{instance}: {outcome}")
            if error := record.errors.get(instance):
                lines.append(f"    {error.code}: {error.message}")
                lines += [f"    | {line}" for line in error.console_tail.splitlines()]
                if error.log:
                    lines.append(f"    whole console log: {error.log}")
        return "\n".join(lines)


def stages_of(steps: Iterable[StepRecord]) -> dict[int, dict[str, float]]:
    """Seconds that each step took, by instance and by step."""
    stages: dict[int, dict[str, float]] = {}
    for step in steps:
        if step.seconds is not None and step.phase != "plan":
            phase = "" if step.phase in ("swap", "create") else f"{step.phase}: "
            stages.setdefault(step.instance_id, {})[phase + step.name] = step.seconds
    return stages


class ScaleSet:
    """A scale set; a sequence of its instances."""

    def __init__(self, lab: Lab, name: str) -> None:
        self._lab = lab
        self.name = name
        self._engine = Engine(lab.world, name)
        self._instances: dict[int, Instance] = {}
        self._seen = {upgrade.id for upgrade in self.history(limit=None)}

    def __repr__(self) -> str:
        return f"<ScaleSet {self.name}: {len(self)} instances>"

    def __iter__(self) -> Iterator[Instance]:
        return iter(self.instances)

    def __len__(self) -> int:
        return len(self._records())

    def __getitem__(self, index: int) -> Instance:
        return self.instances[index]

    def _records(self) -> list[InstanceRecord]:
        return self._lab.world.store.select(InstanceRecord, self.name.lower())

    @property
    def record(self) -> ScaleSetRecord:
        """Its record in the store.

        Raises:
            NotFoundError: It was deleted.
        """
        record = self._lab.world.store.get(ScaleSetRecord, self.name.lower())
        if record is None:
            raise NotFoundError(f"there is no scale set {self.name!r} in this lab")
        return record

    @property
    def model(self) -> ScaleSetModel:
        """Its model."""
        return ScaleSetModel.model_validate(self.record.model)

    @property
    def instances(self) -> list[Instance]:
        """Its instances, by number."""
        return [
            self._instances.setdefault(
                record.instance_id, Instance(self._lab, self.name, record.instance_id)
            )
            for record in self._records()
        ]

    @property
    def capacity(self) -> int:
        """Number of its instances."""
        return len(self)

    @property
    def healthy(self) -> bool:
        """Whether all its instances are healthy now."""
        members = self._engine.observe("")
        return all(not member.unhealthy for member in members)

    def upgrade(self, *, wait: bool = True) -> Upgrade:
        """Starts an OS upgrade by hand, to the latest version (C3).

        As in Azure there is no automatic rollback, and instances on that
        version are not touched.

        Args:
            wait: Return when it has ended; else a thread goes on with it.

        Raises:
            ConflictError: Another operation is in progress; nothing was changed.
        """
        opened: list[OperationRecord] = []
        self._lab.run_upgrade(
            self.name, started_by="User", rollback=False, on_open=opened.append, wait=wait
        )
        return self._taken(opened[0].id)

    def resume(self) -> Upgrade | None:
        """Goes on with an upgrade that a killed process left (M1).

        Raises:
            ConflictError: Another operation is in progress.
        """
        with self._engine.claim():
            operation = self._engine.resume()
        return None if operation is None else self._taken(operation.id)

    def cancel(self) -> None:
        """Lets the running upgrade end after its current batch (D8).

        Raises:
            ConflictError: None is running.
        """
        self._engine.cancel()

    def wait_for_upgrade(self, *, limit: float = _UPGRADE_LIMIT) -> Upgrade:
        """Waits for the automatic upgrade that a publication brought about.

        Args:
            limit: Seconds.

        Returns:
            The oldest upgrade that no earlier call returned, ended.

        Raises:
            UpgradeError: None is due; the message says why.
            WaitTimeoutError: It did not end in time.
        """

        def probe() -> Upgrade | None:
            idle = self._lab.watcher_idle
            fresh = [entry for entry in self.history(limit=None) if entry.id not in self._seen]
            if fresh:
                return fresh[-1] if fresh[-1].ended else None
            if idle:
                raise UpgradeError(
                    f"no upgrade of {self.name!r} is due: {self._lab.why_not_due(self.name)}"
                )
            return None

        try:
            upgrade = wait_for(
                f"the upgrade of {self.name} to end",
                probe,
                limit=limit,
                clock=self._lab.world.clock,
            )
        except WaitTimeoutError as late:
            running = [entry.explain() for entry in self.history(limit=None) if not entry.ended]
            raise WaitTimeoutError(late.what, limit=limit, last="\n".join(running)) from late
        return self._taken(upgrade.id)

    def _taken(self, operation: str) -> Upgrade:
        self._seen.add(operation)
        return Upgrade(self._lab, self.name, operation)

    def history(self, *, limit: int | None = 5) -> list[Upgrade]:
        """Upgrades of the set, newest first; Azure keeps five (J2)."""
        operations = self._lab.world.store.select(OperationRecord, self.name.lower())
        upgrades = [entry for entry in operations if entry.action == "upgrade"]
        return [Upgrade(self._lab, self.name, entry.id) for entry in reversed(upgrades)][:limit]

    def delete(self) -> None:
        """Deletes the set, its machines and all their disks.

        Raises:
            ConflictError: An operation is in progress on it.
        """
        for instance in self.instances:
            instance.close()
        self._lab.delete(self.name)

    def instance_view(self) -> list[dict[str, Any]]:
        """What is known of each instance, for people and programs (J3)."""
        return [_view(instance) for instance in self.instances]


def _view(instance: Instance) -> dict[str, Any]:
    record = instance.record
    view: dict[str, Any] = {
        "instanceId": instance.instance_id,
        "name": instance.name,
        "computerName": record.computer_name,
        "provisioningState": record.provisioning,
        "platformUpdateDomain": record.update_domain,
        "address": record.address,
        "forwards": {str(guest): host for guest, host in record.forwards.items()},
    }
    try:
        generation = instance.generation
    except NotFoundError:
        return view
    return {
        **view,
        "osDisk": {"generation": generation.number, "image": generation.version},
        "imageVersionFound": generation.found_version,
        "kernel": generation.kernel,
        "bootId": generation.boot_id,
        "cloudInit": generation.cloud_init,
        "extensions": [entry.model_dump(mode="json") for entry in generation.extensions],
    }
