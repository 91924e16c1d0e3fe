"""What a lab on this host runs on: libvirt, guests over SSH, HAProxy, the lab's file server."""

from __future__ import annotations

import contextlib
import os
import time
from collections.abc import Callable, Sequence
from functools import partial

from pytest_vmss.clock import Clock, wait_for
from pytest_vmss.engine.preflight import reach
from pytest_vmss.environment.environment import InstanceContext
from pytest_vmss.errors import (
    CapacityError,
    HostError,
    HypervisorError,
    VmssError,
    WaitTimeoutError,
)
from pytest_vmss.file_server.blobs import Blobs, names_server
from pytest_vmss.guest import SSH_PORT, Guest, LinuxGuest, SshAccess
from pytest_vmss.guest.agent import guest_time, read_file, within
from pytest_vmss.guest.console_log import LogKeeper
from pytest_vmss.guest.extensions.application_health import STATUS_FILE
from pytest_vmss.guest_platform.config import PlatformFiles
from pytest_vmss.guest_platform.health_port import read_message
from pytest_vmss.guest_platform.slirp import load
from pytest_vmss.health import (
    Observation,
    RollingUpgradeMetrics,
    parse_custom_metrics,
    probe_once,
    read_report,
)
from pytest_vmss.host.boot_turns import BootTurns, processors
from pytest_vmss.host.capacity import available_mib, check_capacity, memory_of
from pytest_vmss.host.qemu_account import choose_account
from pytest_vmss.hypervisor import Hypervisor
from pytest_vmss.labs.identity import LabNetworks, networks_folder, open_hypervisor
from pytest_vmss.labs.place import LabPlace
from pytest_vmss.labs.room import SharedRoom
from pytest_vmss.load_balancer import Balancer, HAProxy, Rule
from pytest_vmss.model import ApplicationHealthSettings, Health, Probe, VmSize, application_health
from pytest_vmss.store import GenerationRecord, InstanceRecord, ModelRecord, ScaleSetRecord, Store
from pytest_vmss.store.queries import find_scale_set, instances_of

__all__ = ["LocalBackends", "reported_metrics"]

_AS_ROOT = "QEMU runs as root"
_PROBE_TIMEOUT = 5.0
#: Seconds to read a report of the Application Health extension over the guest agent.
_REPORT_S = 10.0
#: Seconds between two looks at what other labs have.
_ROOM_INTERVAL_S = 0.5


class LocalBackends:
    """The backends of a lab on this host; a simulated lab overrides what it simulates.

    Args:
        place: The lab's folder.
        store: Its database.
        clock: The clock on which guests and the file server wait.

    Attributes:
        networks: The lab's loopback networks.
        listeners: Called with what the lab waits for.
        blobs: The files that guests download (H5).
    """

    def __init__(self, place: LabPlace, store: Store, clock: Clock) -> None:
        self._place = place
        self._paths = place.paths
        self._store = store
        self._clock = clock
        self._consoles = LogKeeper(place.paths.sets)
        self.networks = LabNetworks(
            networks_folder(place.settings), place.paths.folder.name, place.identity, store
        )
        self.listeners: list[Callable[[str], object]] = []
        self._room = SharedRoom(place.settings, place.paths, place.identity.id)
        self._room_clock: Clock = clock
        self.blobs = Blobs(place.paths.blobs, store, clock)

    def connect(self) -> Hypervisor:
        """Opens the connection to libvirt, and starts to cap the console logs.

        Raises:
            HostError: libvirt does not answer.
        """
        hypervisor = open_hypervisor(self._place.settings, self._place.identity)
        self._consoles.start()
        if os.geteuid() == 0 and not self._place.identity.account:
            self._tell_as_root()
        return hypervisor

    def _tell_as_root(self) -> None:
        """Records once that the lab's QEMU runs as root, and why (R4)."""
        if any(event.message.startswith(_AS_ROOT) for event in self._store.events()):
            return
        chosen = choose_account(self._place.settings.state_dir)
        why = f"{chosen.reason}: {chosen.mend}" if chosen.reason else "the lab was made so"
        self._store.event("", "warning", f"{_AS_ROOT}, since {why}")

    def check_room(
        self, count: int, size: VmSize, hypervisor: Hypervisor, memory: Sequence[int]
    ) -> None:
        """Claims the memory for so many instances of a size, and checks that they fit on the host.

        Waits for other labs if it is they who have the memory, and says so.

        Raises:
            CapacityError: They do not fit, or other labs did not make room in time.
            HostError: What labs have cannot be read or written.
        """
        accelerator = hypervisor.accelerator

        def check() -> None:
            check_capacity(
                count,
                size.memory_mib,
                accelerator=accelerator,
                folder=self._paths.folder,
                what=f"room for {count} of {size.name}",
            )

        held = sum(memory_of(mib, accelerator) for mib in memory)
        needed = count * memory_of(size.memory_mib, accelerator)
        self._take_room(needed, held, available=available_mib, hopeless=check)
        try:
            check()
        except CapacityError:
            self._room.give_back(held)
            raise

    def _take_room(
        self,
        needed: int,
        held: int,
        *,
        available: Callable[[], int | None],
        hopeless: Callable[[], None] = lambda: None,
    ) -> None:
        """Claims memory, and waits for other labs to give some back if need be.

        Args:
            needed: For new instances, in MiB.
            held: What the lab's instances have.
            available: Returns what the host has available; None if that does not matter.
            hopeless: Called where waiting cannot help; may raise an error that says more.

        Raises:
            CapacityError: There is not enough, or other labs did not make room in time.
            HostError: What labs have cannot be read or written.
        """
        last = ""

        def attempt() -> bool | None:
            nonlocal last
            try:
                shortage = self._room.take(needed, held, available=available())
            except OSError as error:
                raise HostError(f"the memory that labs have cannot be told: {error}") from error
            if shortage is None:
                return True
            if shortage.hopeless:
                hopeless()
                raise CapacityError(f"{shortage.message}; use a smaller size or fewer instances")
            if not last:
                limit = self._place.settings.timeouts.room
                self.tell(f"waits for room, up to {limit:.0f} s: {shortage.message}")
            last = shortage.message
            return None

        try:
            wait_for(
                "other labs to give back memory",
                attempt,
                timeout=self._place.settings.timeouts.room,
                clock=self._room_clock,
                interval=_ROOM_INTERVAL_S,
            )
        except WaitTimeoutError as error:
            raise CapacityError(
                f"other labs gave no memory back within {error.timeout:.0f} s (timeouts.room): "
                f"{last}; end some, run fewer workers, or use a smaller size or fewer instances"
            ) from error
        if last:
            self.tell("has found room")

    def tell(self, message: str) -> None:
        """Reports a wait for other labs: as an event, and to whoever listens in this process."""
        self._store.event("", "warning", message)
        for listener in self.listeners:
            listener(message)

    def give_back_room(self, hypervisor: Hypervisor, memory: Callable[[], Sequence[int]]) -> None:
        """Claims no more memory than for the instances that are left, if any was claimed."""
        if self._room.is_claimed:
            left = sum(memory_of(mib, hypervisor.accelerator) for mib in memory())
            self._room.give_back(left)

    def boot_turns(self, hypervisor: Hypervisor) -> BootTurns | None:
        """As many turns to boot as there are processors; under KVM none is needed."""
        if hypervisor.accelerator == "kvm":
            return None
        return BootTurns(self._place.settings.state_dir, processors())

    def make_guest(self, context: InstanceContext, generation: GenerationRecord) -> Guest:
        """Returns the guest of a generation, over SSH."""
        record, machine = context.record, context.machine(generation.number)
        platform = machine.platform
        model = context.revision(generation.revision).model
        hypervisor = context.environment.hypervisor
        return LinuxGuest(
            context.name,
            access=SshAccess(
                address=record.address,
                port=record.forwards[SSH_PORT],
                user=model.virtual_machine_profile.os_profile.admin_username,
                key=context.ssh_key(generation),
                host_key=generation.host_key,
                server=None if platform is None else lambda: platform.files.folder.stat().st_uid,
            ),
            console=context.console(generation, generation.console_from),
            timeouts=lambda: context.timeouts,
            clock=self._clock,
            power_state=lambda: hypervisor.state(context.domain),
            agent_connected=lambda: hypervisor.agent_connected(context.domain),
            factor=hypervisor.slow_factor,
            files_port=lambda: self.blobs.port,
            dial_files=self.blobs.dial,
            warn=partial(self._warn, context),
            ask=partial(hypervisor.agent, context.domain),
            sightings=lambda: context.sightings(generation),
            serve=context.keep_served,
            mask=context.mask,
        )

    @staticmethod
    def _warn(context: InstanceContext, message: str) -> None:
        with contextlib.suppress(VmssError):  # the store has failed: its next use will tell
            context.event("warning", message)

    def require_balancer(self) -> None:
        """Checks that load balancers can run here.

        Raises:
            HostError: HAProxy is not installed.
        """
        HAProxy(self._paths.balancer("any-other-set"), []).require()

    def require_platform(self) -> None:
        """Checks that guests that look for Azure can be served here (O1).

        Raises:
            HostError: libslirp is not installed.
        """
        load()

    def make_balancer(self, record: ScaleSetRecord, rules: Sequence[Rule]) -> Balancer:
        """Returns the load balancer of a set."""
        return HAProxy(self._paths.balancer(record.unique_id), rules)

    def probe(self, probe: Probe, record: InstanceRecord) -> Observation:
        """Probes an instance once (F2)."""
        return probe_once(
            probe, record.address, record.forwards[probe.port], timeout=_PROBE_TIMEOUT
        )

    def health_report(
        self, context: InstanceContext, settings: ApplicationHealthSettings
    ) -> Observation:
        """F3: reads the extension's report without a network.

        Over the guest agent, or for a guest that looks for Azure from its health port.
        """
        platform = context.running_platform()
        if platform is not None:
            return _from_port(platform.files, settings)
        ask = within(partial(context.environment.hypervisor.agent, context.domain), _REPORT_S)
        try:
            return read_report(read_file(ask, STATUS_FILE), now=guest_time(ask), settings=settings)
        except HypervisorError as error:
            return Observation(Health.UNKNOWN, f"it reports nothing: {error.message}")

    def metrics(self, context: InstanceContext) -> RollingUpgradeMetrics:
        """Reads an application's custom metrics (D5)."""
        return reported_metrics(context)

    def reach(self, uri: str) -> str:
        """Returns what is wrong with a URI; empty if it can be reached (C8)."""
        return reach(uri, own_port=lambda: self.blobs.port)

    def serve_files(self, scale_set: str) -> None:
        """H5: starts the file server; fails only for a set whose models use it."""
        port = self.blobs.port
        if port is None:
            return
        record = find_scale_set(self._store, scale_set)
        instances = instances_of(self._store, record.name)
        numbers = {record.revision, *(instance.revision for instance in instances)}
        models = [self._store.get(ModelRecord, record.unique_id, n) for n in numbers]
        self.blobs.serve_if_used(
            needed=any(names_server(entry.model, port) for entry in models if entry is not None)
        )

    def close_consoles(self) -> None:
        """Stops capping the console logs."""
        self._consoles.close()

    def close_files(self) -> None:
        """Stops the file server of this process."""
        self.blobs.close()


def _from_port(files: PlatformFiles, settings: ApplicationHealthSettings) -> Observation:
    message = read_message(files.health)
    if message is None:
        return Observation(Health.UNKNOWN, "it reports nothing at its health port")
    return read_report(
        message.text, now=time.time_ns(), settings=settings, received=message.received
    )


def reported_metrics(context: InstanceContext) -> RollingUpgradeMetrics:
    """The custom metrics in the report of an instance's Application Health extension (D5)."""
    settings = application_health(context.revision(context.record.revision).model)
    if settings is None:
        return RollingUpgradeMetrics()
    return parse_custom_metrics(context.environment.health_report(context, settings).custom_metrics)
