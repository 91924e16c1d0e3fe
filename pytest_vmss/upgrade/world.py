"""What the engine acts on, and one instance's view of it."""

from __future__ import annotations

import threading
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from typing import Protocol

from pytest_vmss.clock import Clock
from pytest_vmss.errors import NotFoundError
from pytest_vmss.gallery import Images
from pytest_vmss.guest import Guest
from pytest_vmss.guest.keys import KeyPair
from pytest_vmss.health import ProbeResult
from pytest_vmss.hypervisor import Disk, Forward, Hypervisor, Machine
from pytest_vmss.model import Probe, ScaleSetModel, VmSize
from pytest_vmss.paths import LabPaths
from pytest_vmss.settings import Limits
from pytest_vmss.store import GenerationRecord, InstanceRecord, ScaleSetRecord, Store

__all__ = ["InstanceContext", "Prober", "World"]

Prober = Callable[[Probe, str, int], ProbeResult]


class GuestFactory(Protocol):
    """Makes the guest of a generation."""

    def __call__(self, context: InstanceContext, generation: GenerationRecord) -> Guest:
        """See the class."""


@dataclass
class World:
    """Everything that an operation touches, real or simulated.

    Attributes:
        lab_id: Part of every domain's name.
        connect: Opens the connection to the hypervisor; called once, when it is needed.
        base_limits: As under KVM.
    """

    lab_id: str
    store: Store
    clock: Clock
    connect: Callable[[], Hypervisor]
    images: Images
    paths: LabPaths
    base_limits: Limits
    lab_key: KeyPair
    make_guest: GuestFactory
    probe: Prober
    find_size: Callable[[str], VmSize]
    _opened: Hypervisor | None = None
    _opening: threading.Lock = field(default_factory=threading.Lock)

    @property
    def hypervisor(self) -> Hypervisor:
        """The connection, opened when something first asks for it.

        Raises:
            HostError: There is no hypervisor.
        """
        with self._opening:
            if self._opened is None:
                self._opened = self.connect()
            return self._opened

    @property
    def limits(self) -> Limits:
        """The limits of waits for guests on this host."""
        return self.base_limits.scaled(self.hypervisor.slow_factor)

    def close(self) -> None:
        """Ends the connection, where there is one; machines run on."""
        with self._opening:
            if self._opened is not None:
                self._opened.close()
                self._opened = None


@dataclass(frozen=True)
class InstanceContext:
    """One instance in one operation; reads the store anew each time."""

    world: World
    scale_set: str
    instance_id: int
    operation: str
    _guests: dict[int, Guest] = field(default_factory=dict, compare=False, repr=False)

    def guest(self, generation: GenerationRecord) -> Guest:
        """The guest of a generation; one connection serves all steps (a login costs seconds)."""
        if generation.number not in self._guests:
            self._guests[generation.number] = self.world.make_guest(self, generation)
        return self._guests[generation.number]

    def leave(self) -> None:
        """Ends the connections to guests."""
        while self._guests:
            self._guests.popitem()[1].close()

    @property
    def set_record(self) -> ScaleSetRecord:
        """The set's record."""
        record = self.world.store.get(ScaleSetRecord, self.scale_set.lower())
        if record is None:
            raise NotFoundError(f"there is no scale set {self.scale_set!r}")
        return record

    @property
    def model(self) -> ScaleSetModel:
        """The set's model."""
        return ScaleSetModel.model_validate(self.set_record.model)

    @property
    def probe(self) -> Probe | None:
        """The load balancer's probe that the model names."""
        raw = self.set_record.probe
        return None if raw is None else Probe.model_validate(raw)

    @property
    def limits(self) -> Limits:
        """The limits of waits on this instance."""
        return replace(self.world.limits, **self.set_record.overrides)

    @property
    def record(self) -> InstanceRecord:
        """The instance's record."""
        record = self.world.store.get(
            InstanceRecord, self.scale_set.lower(), f"{self.instance_id:06d}"
        )
        if record is None:
            raise NotFoundError(f"there is no instance {self.scale_set}_{self.instance_id}")
        return record

    @property
    def name(self) -> str:
        """Azure's name of the instance."""
        return f"{self.scale_set}_{self.instance_id}"

    @property
    def domain(self) -> str:
        """The machine's name on the hypervisor."""
        return f"vmss-{self.world.lab_id}-{self.name}"

    def generation(self, number: int) -> GenerationRecord | None:
        """The record of the n-th OS disk."""
        return self.world.store.get(
            GenerationRecord, self.scale_set.lower(), f"{self.instance_id:06d}", f"{number:06d}"
        )

    def generations(self) -> list[GenerationRecord]:
        """Records of all OS disks so far, oldest first."""
        return self.world.store.select(
            GenerationRecord, self.scale_set.lower(), f"{self.instance_id:06d}"
        )

    def machine(self, generation: int) -> Machine:
        """The machine on a generation."""
        record, model, paths = self.record, self.model, self.world.paths
        size = self.world.find_size(model.sku.name)
        return Machine(
            name=self.domain,
            uuid=record.uuid,
            generation=generation,
            vcpus=size.vcpus,
            memory_mib=size.memory_mib,
            mac=record.mac,
            forwards=tuple(
                Forward(record.address, host, guest) for guest, host in record.forwards.items()
            ),
            os_disk=paths.os_disk(self.scale_set, self.instance_id, generation),
            seed=paths.seed(self.scale_set, self.instance_id, generation),
            console=paths.console(self.scale_set, self.instance_id, generation),
            agent=paths.agent_socket(record.uuid),
            data_disks=tuple(
                Disk(disk.lun, paths.data_disk(self.scale_set, self.instance_id, disk.lun))
                for disk in sorted(
                    model.virtual_machine_profile.storage_profile.data_disks,
                    key=lambda disk: disk.lun,
                )
            ),
        )

    def event(self, kind: str, message: str) -> None:
        """Writes that something happened to the instance."""
        self.world.store.event(
            self.scale_set, kind, message, instance_id=self.instance_id, operation=self.operation
        )
