"""The environment that operations act on, and one instance's view of it."""

from __future__ import annotations

import contextlib
import threading
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from pathlib import Path
from typing import Protocol

from pytest_vmss.clock import Clock
from pytest_vmss.environment.masked_guest import MaskedGuest
from pytest_vmss.environment.masking import masker
from pytest_vmss.environment.observers import Observers
from pytest_vmss.environment.revisions import Revision, Revisions
from pytest_vmss.environment.traffic import Traffic
from pytest_vmss.errors import NotFoundError, VmssError, WaitTimeoutError
from pytest_vmss.gallery import ImageStore
from pytest_vmss.guest import Check, Guest
from pytest_vmss.guest.console import Console
from pytest_vmss.guest.keys import KeyPair
from pytest_vmss.guest_platform import launcher
from pytest_vmss.guest_platform.config import Platform, PlatformFiles
from pytest_vmss.guest_platform.description import describe
from pytest_vmss.guest_platform.sightings import Sightings, read_sightings
from pytest_vmss.guest_platform.virtual_network import launcher as virtual_network
from pytest_vmss.guest_platform.virtual_network.config import NetworkFiles, VirtualNetwork
from pytest_vmss.health import Observation, RollingUpgradeMetrics
from pytest_vmss.host.boot_turns import BootTurns
from pytest_vmss.host.locks import Lock
from pytest_vmss.host.paths import LabPaths
from pytest_vmss.hypervisor import Disk, Forward, Hypervisor, Machine
from pytest_vmss.load_balancer import Balancer, Rule
from pytest_vmss.model import (
    ApplicationHealthSettings,
    Extension,
    Probe,
    RepairTask,
    ScaleSetModel,
    VmSize,
    application_health,
    find_size,
)
from pytest_vmss.model.extension_result import ExtensionResult
from pytest_vmss.settings import GuestNetwork, Timeouts, UnknownExtensions
from pytest_vmss.store import GenerationRecord, InstanceRecord, ScaleSetRecord, Store
from pytest_vmss.store.queries import find_scale_set, instances_of

__all__ = ["Environment", "InstanceContext", "Prober"]

#: The share of the time for a boot that a guest waits at most for its turn.
_TURN_SHARE = 0.2
#: The share of what is left for an instance that its guest waits at most.
_TURN_OF_REST = 0.25

#: Probes an instance once.
Prober = Callable[[Probe, InstanceRecord], Observation]


class GuestFactory(Protocol):
    """Creates the guest of a generation."""

    def __call__(self, context: InstanceContext, generation: GenerationRecord) -> Guest:
        """See the class."""


@dataclass
class Environment:
    """The stores and backends that operations use, real or simulated.

    Attributes:
        lab_id: Part of every domain's name.
        connect: Opens the connection to the hypervisor; called once, when first needed.
        base_timeouts: The timeouts under KVM.
        probe: Probes an instance once.
        health_report: Reads the current report of an instance's Application Health extension.
        degraded_is_fatal: Whether an instance fails if its cloud-init ended degraded (H1).
        reach: Returns what is wrong with a URI; empty if it can be reached (C8).
        guest_network: What guests may reach (M6).
        serve_files: Makes the lab's own files available to a set's guests (H5).
        checks: The suite's health functions, by the set's unique id (F4).
        approvers: The suite's functions that approve update domains, likewise (I3).
        working: Events that stop the operations of this process, by set.
        program: The ``vmss`` command for this lab, as shown in messages.
        sizes: VM sizes besides the built-in ones.
        own_size: The size of every set that is made, whatever its model says (A3).
        observers: Functions that are called while operations of this process run.
        folder: The folder in which files that are named relatively are looked for first.
        unknown_extensions: What becomes of extensions that nobody registered (P4).
        metrics: Reads the custom metrics that an instance's health extension reports now (D5).
        boot_turns: Returns what lets guests boot a few at a time; None where all may boot at once.
        free_addresses: Returns a given number of unused loopback addresses.
        make_balancer: Creates the load balancer of a set, from its rules.
        check_room: Claims memory for so many instances of a size; waits for other labs to give some
            back, and raises CapacityError if they do not fit on the host. It is told the memory
            of each instance that there is.
        give_back_room: Called once instances are gone, with what returns the same of the others.
    """

    lab_id: str
    store: Store
    clock: Clock
    connect: Callable[[], Hypervisor]
    images: ImageStore
    paths: LabPaths
    base_timeouts: Timeouts
    lab_key: KeyPair
    make_guest: GuestFactory
    probe: Prober
    health_report: Callable[[InstanceContext, ApplicationHealthSettings], Observation]
    reach: Callable[[str], str]
    serve_files: Callable[[str], None]
    sizes: Mapping[str, tuple[int, int]]
    metrics: Callable[[InstanceContext], RollingUpgradeMetrics]
    check_room: Callable[[int, VmSize, Hypervisor, Sequence[int]], None]
    give_back_room: Callable[[Hypervisor, Callable[[], Sequence[int]]], None]
    boot_turns: Callable[[Hypervisor], BootTurns | None]
    free_addresses: Callable[[int], list[str]]
    make_balancer: Callable[[ScaleSetRecord, Sequence[Rule]], Balancer]
    own_size: VmSize | None = None
    folder: Callable[[], Path | None] = lambda: None
    unknown_extensions: UnknownExtensions = "refuse"
    degraded_is_fatal: bool = False
    guest_network: GuestNetwork = "isolated"
    checks: dict[str, Check] = field(default_factory=dict)
    approvers: dict[str, Callable[[RepairTask], object]] = field(default_factory=dict)
    working: dict[str, threading.Event] = field(default_factory=dict)
    observers: Observers = field(default_factory=Observers)
    program: str = "vmss"
    _opened: Hypervisor | None = None
    _opening: threading.Lock = field(default_factory=threading.Lock)

    @property
    def hypervisor(self) -> Hypervisor:
        """The connection to the hypervisor, opened on first use.

        Raises:
            HostError: The hypervisor does not answer.
        """
        with self._opening:
            if self._opened is None:
                self._opened = self.connect()
            return self._opened

    @property
    def timeouts(self) -> Timeouts:
        """The timeouts for guests on this host."""
        return self.base_timeouts.scaled(self.hypervisor.slow_factor)

    @property
    def serves_guests(self) -> bool:
        """Whether processes of the lab's serve guests; a look at one's health starts them again."""
        return PlatformFiles.any_in(self.paths.run) or bool(self.paths.networks())

    def instance_limit(self, *models: ScaleSetModel, timeouts: Timeouts | None = None) -> float:
        """Seconds for everything that an operation does to one instance of a model (G4).

        Args:
            models: The model, or several of which the most generous counts.
            timeouts: The instance's timeouts; the lab's otherwise.
        """
        factor = self.hypervisor.slow_factor
        budgets = max(_budgets(model, factor) for model in models)
        return (timeouts or self.timeouts).limit_of_instance(budgets)

    @cached_property
    def revisions(self) -> Revisions:
        """The models of the lab's sets."""
        return Revisions(self.store)

    @cached_property
    def traffic(self) -> Traffic:
        """The load balancers in front of the lab's sets."""
        return Traffic(self.store, self.revisions, self._new_balancer)

    def _new_balancer(self, record: ScaleSetRecord, rules: Sequence[Rule]) -> Balancer:
        return self.make_balancer(record, rules)

    def set_record(self, scale_set: str) -> ScaleSetRecord:
        """A set's record.

        Raises:
            NotFoundError: There is no such set.
        """
        return find_scale_set(self.store, scale_set)

    def domain(self, instance: str) -> str:
        """The name of an instance's machine on the hypervisor."""
        return f"vmss-{self.lab_id}-{instance}"

    def stop(self, scale_set: str) -> None:
        """Stops this process's operation on a set, as a kill would; it can be resumed."""
        signal = self.working.get(scale_set.lower())
        if signal is not None:
            signal.set()

    def size_of(self, model: ScaleSetModel) -> VmSize:
        """Returns the size of a set's instances: the lab's own, if the set is made in one (A3).

        Raises:
            NotFoundError: The model's size is not known.
        """
        record = self.store.get(ScaleSetRecord, model.name.lower())
        if record is not None and record.own_size is not None:
            return VmSize(*record.own_size)
        if record is None and self.own_size is not None:
            return self.own_size
        size = find_size(model.sku.name, self.sizes)
        if size is None:
            raise NotFoundError(f"the size {model.sku.name!r} is not known here")
        return size

    def require_room(self, count: int, model: ScaleSetModel) -> None:
        """Checks that so many more instances of a model fit on the host, beside other labs'.

        Raises:
            CapacityError: They do not, or other labs did not make room in time.
            NotFoundError: Their size is not known.
        """
        self.check_room(count, self.size_of(model), self.hypervisor, self._memory())

    def room_is_free(self) -> None:
        """Lets other labs have the memory of instances that are gone."""
        self.give_back_room(self.hypervisor, self._memory)

    def _memory(self) -> list[int]:
        """The memory of each of the lab's instances, in MiB."""
        found = []
        for record in self.store.select(ScaleSetRecord):
            model = self.revisions.get(record.unique_id, record.revision).model
            count = len(instances_of(self.store, record.name))
            found += [self.size_of(model).memory_mib] * count
        return found

    def close(self) -> None:
        """Closes the connection to the hypervisor, if open; machines keep running."""
        with self._opening:
            if self._opened is not None:
                self._opened.close()
                self._opened = None


@dataclass(frozen=True)
class InstanceContext:
    """One instance in one operation; every property is read from the store.

    Attributes:
        deadline: Time on the lab's monotonic clock by which the instance must be done; no
            timeout extends beyond it.
        uuid: Of the instance that is meant, where a later set may have one of that name; empty
            for whichever there is.
    """

    environment: Environment
    scale_set: str
    instance_id: int
    operation: str = ""
    deadline: float | None = None
    uuid: str = ""
    _guests: dict[int, Guest] = field(default_factory=dict, compare=False, repr=False)
    _turns: list[Lock] = field(default_factory=list, compare=False, repr=False)

    def guest(self, generation: GenerationRecord) -> Guest:
        """The guest of a generation; one connection serves all steps (a login costs seconds)."""
        if generation.number not in self._guests:
            self._guests[generation.number] = self.new_guest(generation)
        return self._guests[generation.number]

    def new_guest(self, generation: GenerationRecord) -> Guest:
        """The guest of a generation, with a connection of its own."""
        return MaskedGuest(self.environment.make_guest(self, generation), self.mask)

    def console(self, generation: GenerationRecord, start: int = 0) -> Console:
        """The console of a generation.

        Args:
            generation: The generation.
            start: Bytes at its start to ignore.
        """
        path = self.environment.paths.console(self.scale_set, self.instance_id, generation.number)
        return Console(path, start, mask=self.mask)

    def mask(self, text: str) -> str:
        """Masks the secrets of the set's models in a text that its guest may have written (M5)."""
        if not text:
            return text
        try:
            newest = self.environment.set_record(self.scale_set).revision
            mask = self.environment.revisions.masker(self.set_id, newest)
        except VmssError:  # the set is gone, or cannot be read
            mask = masker(revision.model for revision in self.environment.revisions.known())
        return mask(text)

    def leave(self) -> None:
        """Closes the connections to guests, and gives back a turn to boot."""
        self.end_turn()
        while self._guests:
            self._guests.popitem()[1].close()

    def await_turn(self) -> None:
        """Waits until few enough guests boot on this host, for a limited time.

        It keeps its turn until :meth:`end_turn`. A guest that gets none boots all the same, after
        a fifth of the time that a boot may take, or a quarter of what is left for the instance.
        """
        turns = self.environment.boot_turns(self.environment.hypervisor)
        if turns is None or self._turns:
            return
        clock, limit = self.environment.clock, self.base_timeouts.boot * _TURN_SHARE
        if self.deadline is not None:
            limit = max(min(limit, (self.deadline - clock.monotonic()) * _TURN_OF_REST), 0.0)
        told = f"waits for others to have booted, up to {limit:.0f} s"
        with contextlib.suppress(OSError, WaitTimeoutError):
            self._turns.append(turns.wait(limit, clock, waits=lambda: self.event("turn", told)))

    def end_turn(self) -> None:
        """Lets another guest boot."""
        while self._turns:
            with contextlib.suppress(OSError):  # it is released anyway
                self._turns.pop().remove()

    def at(self, instance_id: int) -> InstanceContext:
        """Another instance in the same operation."""
        return replace(
            self,
            instance_id=instance_id,
            uuid=self.uuid if instance_id == self.instance_id else "",
            _guests={},
            _turns=[],
        )

    @cached_property
    def set_id(self) -> str:
        """The set's ``unique_id``."""
        return self.environment.set_record(self.scale_set).unique_id

    def revision(self, number: int) -> Revision:
        """A revision of the set's model."""
        return self.environment.revisions.get(self.set_id, number)

    def as_run(self, result: ExtensionResult) -> Extension | None:
        """An extension as defined by the model from which it was last run."""
        known = self.revision(result.revision).model.extensions
        return next((entry for entry in known if entry.name == result.name), None)

    @cached_property
    def base_timeouts(self) -> Timeouts:
        """The timeouts for this instance, without regard to the deadline."""
        overrides = self.environment.set_record(self.scale_set).overrides
        timeouts = self.environment.timeouts
        return replace(timeouts, **overrides) if overrides else timeouts

    @cached_property
    def limit(self) -> float:
        """Seconds for everything that the operation does to the instance (G4).

        The models that it goes from and to both count: a rollback has the same limit.
        """
        numbers = {self.record.revision, self.environment.set_record(self.scale_set).revision}
        models = [self.revision(number).model for number in numbers]
        return self.environment.instance_limit(*models, timeouts=self.base_timeouts)

    @property
    def timeouts(self) -> Timeouts:
        """The timeouts for this instance, cut off at the deadline."""
        if self.deadline is None:
            return self.base_timeouts
        return self.base_timeouts.clipped(self.deadline - self.environment.clock.monotonic())

    @cached_property
    def key(self) -> tuple[str, int]:
        """The key of the instance's record."""
        return (self.scale_set.lower(), self.instance_id)

    @property
    def record(self) -> InstanceRecord:
        """The instance's record."""
        record = self.environment.store.get(InstanceRecord, *self.key)
        if record is None:
            raise NotFoundError(f"there is no instance {self.scale_set}_{self.instance_id}")
        if self.uuid and record.uuid != self.uuid:
            raise NotFoundError(
                f"the instance {self.name} that was meant is gone; another has its name: ask the "
                "scale set for it"
            )
        return record

    @property
    def name(self) -> str:
        """Azure's name of the instance."""
        return f"{self.scale_set}_{self.instance_id}"

    @property
    def domain(self) -> str:
        """The machine's name on the hypervisor."""
        return self.environment.domain(self.name)

    def generation(self, number: int) -> GenerationRecord | None:
        """The record of the n-th OS disk."""
        return self.environment.store.get(GenerationRecord, *self.key, number)

    def generations(self) -> list[GenerationRecord]:
        """Records of all OS disks so far, oldest first."""
        return self.environment.store.select(GenerationRecord, *self.key)

    def existing(self, number: int) -> GenerationRecord:
        """The record of the n-th OS disk, which must exist.

        Raises:
            NotFoundError: There is no such disk.
        """
        generation = self.generation(number)
        if generation is None:
            raise NotFoundError(f"{self.name} has no OS disk number {number}")
        return generation

    def ssh_key(self, generation: GenerationRecord) -> Path:
        """The private SSH key that the guest of a generation accepts."""
        return Path(generation.ssh_key or self.environment.paths.key)

    def os_disk(self, number: int) -> Path:
        """The file of the n-th OS disk."""
        return self.environment.paths.os_disk(self.scale_set, self.instance_id, number)

    def data_disks(self, model: ScaleSetModel) -> tuple[Disk, ...]:
        """The data disks that a model gives it, by LUN."""
        paths = self.environment.paths
        return tuple(
            Disk(disk.lun, paths.data_disk(self.scale_set, self.instance_id, disk.lun))
            for disk in sorted(model.data_disks, key=lambda disk: disk.lun)
        )

    def machine(self, number: int) -> Machine:
        """The machine on the n-th OS disk, by the model that is applied to it.

        Raises:
            NotFoundError: There is no such disk.
        """
        record, paths = self.record, self.environment.paths
        generation = self.existing(number)
        model = self.revision(generation.revision).model
        nvram = paths.nvram(self.scale_set, self.instance_id, number)
        size = self.environment.size_of(model)
        return Machine(
            name=self.domain,
            uuid=record.uuid,
            generation=number,
            vcpus=size.vcpus,
            memory_mib=size.memory_mib,
            mac=record.mac,
            forwards=tuple(
                Forward(record.address, host, guest) for guest, host in record.forwards.items()
            ),
            os_disk=self.os_disk(number),
            seed=paths.seed(self.scale_set, self.instance_id, number),
            console=paths.console(self.scale_set, self.instance_id, number),
            agent=paths.agent_socket(record.uuid),
            data_disks=self.data_disks(model),
            platform=self._platform(generation, model),
            nvram=nvram if generation.hyper_v_generation == "V2" else None,
            network=self._network(model),
        )

    def _network(self, model: ScaleSetModel) -> VirtualNetwork | None:
        """The instance's place in the private network of its set; None if that has none (A9)."""
        if not model.has_subnet:
            return None
        files = NetworkFiles(self.environment.paths.network(self.set_id))
        return VirtualNetwork(files, self.instance_id, model.computer_name_prefix)

    @property
    def network(self) -> VirtualNetwork | None:
        """Its place in the private network, by the model that is applied to it."""
        return self._network(self.revision(self.record.revision).model)

    def _platform(self, generation: GenerationRecord, model: ScaleSetModel) -> Platform | None:
        """Azure as the guest of a generation sees it; None if it reads a NoCloud disk (O1)."""
        if generation.provisioning != "Azure":
            return None
        record, environment = self.record, self.environment
        return Platform(
            files=PlatformFiles(environment.paths.platform(record.uuid)),
            generation=generation.number,
            instance_id=record.instance_id,
            mac=record.mac,
            forwards=tuple(
                (record.address, host, guest) for guest, host in record.forwards.items()
            ),
            outbound=environment.guest_network == "outbound",
            names={"container": record.uuid, "instance": self.name, "service": record.scale_set},
            network=self._network(model),
            document=describe(
                model, record, generation,
                lab=environment.paths.folder.name,
                lab_key=environment.lab_key.public,
            ),
        )  # fmt: skip

    def keep_served(self) -> None:
        """Serves the running guest again, if a process for that was killed (A9, O1).

        Raises:
            HostError: It cannot be served.
        """
        self._keep_in_network()
        files = PlatformFiles(self.environment.paths.platform(self.record.uuid))
        if not files.config.exists() or launcher.is_served(files):
            return
        platform = self.running_platform()
        if platform is not None:
            launcher.ensure(platform)

    def _keep_in_network(self) -> None:
        files = NetworkFiles(self.environment.paths.network(self.set_id))
        if not files.folder.is_dir() or virtual_network.is_carried(files):
            return
        network = self.network
        if network is not None:
            virtual_network.ensure(network)

    def running_platform(self) -> Platform | None:
        """Azure as the running guest sees it; None if it reads a NoCloud disk, or none runs."""
        running = self.environment.hypervisor.running_generation(self.domain)
        if running is None or self.generation(running) is None:
            return None
        return self.machine(running).platform

    def sightings(self, generation: GenerationRecord) -> Sightings | None:
        """What the platform saw of a generation's guest; None if it has none (O2)."""
        if generation.provisioning != "Azure":
            return None
        files = PlatformFiles(self.environment.paths.platform(self.record.uuid))
        return read_sightings(files.sightings, generation.number)

    def event(self, kind: str, message: str) -> None:
        """Writes an event about the instance."""
        self.environment.store.event(
            self.scale_set, kind, message, instance_id=self.instance_id, operation=self.operation
        )


def _budgets(model: ScaleSetModel, factor: float) -> float:
    """Seconds that a model gives its instances: for extensions, as grace period, as notice."""
    application = application_health(model)
    grace = 0.0 if application is None else application.grace_seconds
    notice = model.os_image_notice or 0.0
    return factor * model.extensions_time_budget.total_seconds() + grace + notice
