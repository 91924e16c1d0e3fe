"""The lab: the entry point of the plugin and the command line."""

from __future__ import annotations

import contextlib
import os
import secrets
import socket
import stat
from collections.abc import Sequence
from functools import cached_property, partial
from pathlib import Path
from typing import Literal, Self

from pytest_vmss.api.announcement import announce
from pytest_vmss.api.checkpoints import Checkpoints, Sought
from pytest_vmss.api.scale_set import ScaleSet, require_durable
from pytest_vmss.checkpoints import CheckpointCache
from pytest_vmss.clock import SystemClock
from pytest_vmss.controller.controller import Controller
from pytest_vmss.controller.rollouts import Rollouts
from pytest_vmss.engine.engine import Engine
from pytest_vmss.engine.preflight import reach
from pytest_vmss.engine.report import OperationReport
from pytest_vmss.environment.environment import Environment, InstanceContext
from pytest_vmss.errors import (
    ConflictError,
    HypervisorError,
    LabError,
)
from pytest_vmss.file_server.blobs import Blobs, names_server
from pytest_vmss.gallery import Gallery, ImageStore
from pytest_vmss.guest import Check, LinuxGuest, SshAccess
from pytest_vmss.guest.agent import guest_time, read_file, within
from pytest_vmss.guest.console import Console
from pytest_vmss.guest.console_log import LogKeeper
from pytest_vmss.guest.extensions.application_health import STATUS_FILE
from pytest_vmss.guest.keys import lab_key
from pytest_vmss.health import (
    Observation,
    RollingUpgradeMetrics,
    parse_custom_metrics,
    probe_once,
    read_report,
)
from pytest_vmss.host.capacity import check_capacity
from pytest_vmss.host.locks import Lock, wait_for_lock
from pytest_vmss.host.ownership import require_own, require_trusted
from pytest_vmss.host.paths import PROCESS_ROOTS, LabPaths
from pytest_vmss.host.qemu_account import choose_account
from pytest_vmss.hypervisor import Hypervisor
from pytest_vmss.labs.identity import (
    LabIdentity,
    LabNetworks,
    find_lab,
    labs_folder,
    networks_folder,
    open_hypervisor,
    read_identity,
    write_identity,
)
from pytest_vmss.labs.removal import remove_files, remove_machines, remove_unfinished
from pytest_vmss.load_balancer import Balancer, HAProxy, Rule
from pytest_vmss.model import (
    ApplicationHealthSettings,
    Approver,
    Health,
    Parameters,
    Probe,
    Source,
    Supply,
    VmSize,
    application_health,
    find_size,
    load_document,
    nearest_sizes,
    seal_parameters,
)
from pytest_vmss.model.arguments import (
    check_approver,
    check_custom_data,
    check_flag,
    check_health,
    check_instance_count,
    check_name,
    check_ports,
    check_seconds,
    check_text,
)
from pytest_vmss.operations import CreateScaleSet
from pytest_vmss.operations.revisions import check_document
from pytest_vmss.secrecy import seal, seal_text
from pytest_vmss.settings import GIB, Settings
from pytest_vmss.store import (
    GenerationRecord,
    InstanceRecord,
    ModelRecord,
    OperationRecord,
    ScaleSetRecord,
    Store,
)
from pytest_vmss.store.queries import instances_of
from pytest_vmss.untrusted import listed

__all__ = ["DEFAULT_LAB", "Lab", "own_size"]

#: The lab that is used when none is named.
DEFAULT_LAB = "default"
_AS_ROOT = "QEMU runs as root"
_SSH_PORT = 22
_PROBE_TIMEOUT = 5.0
#: Seconds to read a report of the Application Health extension over the guest agent.
_REPORT_S = 10.0
#: Seconds to wait for another process that is creating, opening or removing the lab.
_DOOR_LIMIT = 120.0
#: Seconds to wait for other processes to close a lasting lab that is to be removed.
_ALONE_LIMIT = 1.0


class Lab:
    """One state directory with its gallery, scale sets and journal.

    Use :meth:`open` or :meth:`session`. A process that has the lab open holds a shared lock on
    it; a forked child must open it again.

    Raises:
        LabError: Its database cannot be used.
        ConflictError: Another process is removing it.
        OSError: Its lock file cannot be created.
    """

    def __init__(
        self, settings: Settings, folder: Path, identity: LabIdentity, *, in_use: Lock | None = None
    ) -> None:
        self.settings = settings
        self.identity = identity
        self.paths = LabPaths(folder)
        self._in_use = in_use or _use(self.paths)
        self._is_maker = False
        self._is_closed = False
        self._process = os.getpid()
        self.clock = SystemClock()
        try:
            self.store = Store(self.paths.database, self.clock)
        except BaseException:
            self._in_use.release()
            raise
        self.images = ImageStore(
            self.paths.images,
            self.store,
            self.clock,
            on_publish=lambda _: self.wake(),
            limits=settings.images,
        )
        self.networks = LabNetworks(networks_folder(settings), folder.name, identity, self.store)
        self._consoles = LogKeeper(self.paths.sets)
        self._sets: dict[str, ScaleSet] = {}

    @classmethod
    def open(cls, settings: Settings, name: str = DEFAULT_LAB) -> Self:
        """Opens a lasting lab by name, and creates it if there is none.

        Args:
            settings: Where labs are, and how this one runs.
            name: Up to 32 letters a to z, digits, '-' and '_'; case does not matter.

        Raises:
            LabError: The name is not valid, or the lab's folder cannot be used.
            ConflictError: Another process is creating or removing it, and does not finish.
            CapacityError: All loopback networks of the host are claimed.
        """
        settings, paths = find_lab(settings, name)
        return cls._at(settings, paths.folder, "lasting")

    @classmethod
    def session(cls, settings: Settings) -> Self:
        """Creates a lab that lives as long as this process.

        Raises:
            LabError: Its folder cannot be used.
            CapacityError: All loopback networks of the host are claimed.
        """
        lab = cls._at(settings, labs_folder(settings) / f"s{secrets.token_hex(3)}", "session")
        lab._is_maker = True
        return lab

    @classmethod
    def _at(cls, settings: Settings, folder: Path, kind: Literal["session", "lasting"]) -> Self:
        paths = LabPaths(folder)
        own_size(settings)  # refused before anything is made
        try:
            _require_own(settings, paths)
            with _door(paths):
                return cls._enter(settings, paths, kind)
        except (OSError, ValueError, TypeError) as error:
            raise LabError(
                f"the lab's folder {folder} cannot be used: {error}; "
                "use another state directory (VMSS_STATE_DIR)"
            ) from error

    @classmethod
    def _enter(
        cls, settings: Settings, paths: LabPaths, kind: Literal["session", "lasting"]
    ) -> Self:
        """Opens the lab, or creates it; called with the lab's door locked."""
        require_own(
            paths.folder, paths.key, paths.database, paths.run, paths.sets, paths.locks,
            paths.images, paths.blobs, paths.blobs / ".key",
        )  # fmt: skip
        if paths.identity.exists() and (ending := read_identity(paths)).ending:
            remove_files(settings, paths, ending)  # the removal was killed
        remove_unfinished(settings, paths)
        in_use = _use(paths)
        try:
            paths.folder.mkdir(parents=True, exist_ok=True, mode=0o700)
            _close_to_others(paths.folder)
            for below in (paths.run, paths.sets, paths.locks):
                below.mkdir(exist_ok=True, mode=0o700)
            if not paths.identity.exists():
                write_identity(settings, paths, kind)
            elif not paths.database.exists() and any(paths.sets.iterdir()):
                raise LabError(
                    f"the lab {paths.folder.name} has scale sets under {paths.sets}, and its "
                    f"database {paths.database} is gone; bring it back, or use another lab"
                )
            identity = read_identity(paths)
            lab_key(paths.key)
            return cls(settings, paths.folder, identity, in_use=in_use)
        except BaseException:
            in_use.release()
            with contextlib.suppress(OSError, LabError, ConflictError):  # else `vmss reap` does it
                remove_unfinished(settings, paths)
            raise

    # The environment of operations.

    @cached_property
    def environment(self) -> Environment:
        """The stores and backends that operations use."""
        return Environment(
            lab_id=self.identity.id,
            program=_program(self.paths.folder.name),
            store=self.store,
            clock=self.clock,
            connect=self._connect,
            images=self.images,
            paths=self.paths,
            base_timeouts=self.settings.timeouts,
            lab_key=lab_key(self.paths.key),
            make_guest=self.make_guest,
            probe=_probe,
            sizes=self.settings.sizes,
            own_size=own_size(self.settings),
            unknown_extensions=self.settings.unknown_extensions,
            health_report=self._health_report,
            metrics=self._metrics,
            reach=partial(reach, own_port=lambda: self.blobs.port),
            degraded_is_fatal=self.settings.degraded_is_fatal,
            guest_network=self.settings.guest_network,
            serve_files=self._serve_files,
            free_addresses=self.networks.free_addresses,
            make_balancer=self._make_balancer,
            require_room=self._require_room,
        )

    def _health_report(
        self, context: InstanceContext, settings: ApplicationHealthSettings
    ) -> Observation:
        """F3: reads the extension's report over the guest agent, which needs no network."""
        ask = within(partial(self.environment.hypervisor.agent, context.domain), _REPORT_S)
        try:
            return read_report(read_file(ask, STATUS_FILE), now=guest_time(ask), settings=settings)
        except HypervisorError as error:
            return Observation(Health.UNKNOWN, f"it reports nothing: {error.message}")

    def _metrics(self, context: InstanceContext) -> RollingUpgradeMetrics:
        settings = application_health(context.revision(context.record.revision).model)
        if settings is None:
            return RollingUpgradeMetrics()
        return parse_custom_metrics(
            self.environment.health_report(context, settings).custom_metrics
        )

    @cached_property
    def blobs(self) -> Blobs:
        """Files for guests to download, with tokens that expire (H5)."""
        return Blobs(self.paths.blobs, self.store, self.environment.clock)

    def _serve_files(self, scale_set: str) -> None:
        """H5: starts the file server; fails only for a set whose models use it."""
        port = self.blobs.port
        if port is None:
            return
        record = self.environment.set_record(scale_set)
        instances = instances_of(self.store, record.name)
        numbers = {record.revision, *(instance.revision for instance in instances)}
        models = [self.store.get(ModelRecord, record.unique_id, n) for n in numbers]
        self.blobs.serve_if_used(
            needed=any(names_server(entry.model, port) for entry in models if entry is not None)
        )

    def _require_balancer(self) -> None:
        HAProxy(self.paths.balancer("any-other-set"), []).require()

    def _make_balancer(self, record: ScaleSetRecord, rules: Sequence[Rule]) -> Balancer:
        return HAProxy(self.paths.balancer(record.unique_id), rules)

    @cached_property
    def controller(self) -> Controller:
        """Runs the upgrades of this process."""
        return Controller(self.environment, self.rollouts, repair_grace=self.settings.repair_grace)

    @cached_property
    def rollouts(self) -> Rollouts:
        """Decides when sets upgrade automatically."""
        return Rollouts(self.environment, self.settings)

    @cached_property
    def _checkpoints(self) -> Checkpoints:
        folder = self.settings.cache_dir / "checkpoints"
        cache = CheckpointCache(folder, self.settings.checkpoints_gib * GIB)
        return Checkpoints(self.environment, cache)

    @property
    def hypervisor(self) -> Hypervisor:
        """The connection to libvirt.

        Raises:
            HostError: libvirt does not answer.
        """
        return self.environment.hypervisor

    def _connect(self) -> Hypervisor:
        hypervisor = open_hypervisor(self.settings, self.identity)
        self._consoles.start()
        if os.geteuid() == 0 and not self.identity.account:
            self._tell_as_root()
        return hypervisor

    def _tell_as_root(self) -> None:
        """Records once that the lab's QEMU runs as root, and why (R4)."""
        if any(event.message.startswith(_AS_ROOT) for event in self.store.events()):
            return
        chosen = choose_account(self.settings.state_dir)
        why = f"{chosen.reason}: {chosen.mend}" if chosen.reason else "the lab was made so"
        self.store.event("", "warning", f"{_AS_ROOT}, since {why}")

    def _require_room(self, count: int, size: VmSize) -> None:
        check_capacity(
            count,
            size.memory_mib,
            accelerator=self.hypervisor.accelerator,
            folder=self.paths.folder,
            what=f"room for {count} of {size.name}",
        )

    def make_guest(self, context: InstanceContext, generation: GenerationRecord) -> LinuxGuest:
        """The guest of a generation, over SSH."""
        record, machine = context.record, context.machine(generation.number)
        model = context.revision(generation.revision).model
        hypervisor = self.environment.hypervisor
        return LinuxGuest(
            context.name,
            access=SshAccess(
                address=record.address,
                port=record.forwards[_SSH_PORT],
                user=model.virtual_machine_profile.os_profile.admin_username,
                key=context.ssh_key(generation),
                host_key=generation.host_key,
            ),
            console=Console(machine.console, generation.console_from),
            timeouts=lambda: context.timeouts,
            clock=self.clock,
            power_state=lambda: hypervisor.state(context.domain),
            agent_connected=lambda: hypervisor.agent_connected(context.domain),
            factor=hypervisor.slow_factor,
            files_port=lambda: self.blobs.port,
            dial_files=self._dial_files,
            ask=partial(hypervisor.agent, context.domain),
        )

    def _dial_files(self) -> socket.socket:
        """Connects to the lab's file server, which authenticates itself on the connection."""
        return self.blobs.dial()

    # Galleries.

    def gallery(self, name: str = "gallery") -> Gallery:
        """A gallery by name."""
        check_text(name, "name")
        return self.images.gallery(name)

    # Scale sets.

    def create(
        self,
        source: Source,
        *,
        name: str | None = None,
        capacity: int | None = None,
        parameters: Parameters | None = None,
        supply: Supply | None = None,
        load_balancer: Source | None = None,
        custom_data: str | None = None,
        ports: Sequence[int] = (),
        health_timeout: float | None = None,
        health: Check | None = None,
        approver: Approver | None = None,
        pristine: bool = False,
    ) -> ScaleSet:
        """Creates a scale set and waits until all its instances are healthy.

        Args:
            source: Azure's JSON or YAML: a file or the document itself.
            name: Replaces the model's name; in a template with several sets, chooses one.
            capacity: Replaces the model's capacity.
            parameters: Values for a template's parameters: a parameters file, ``name=value``, an
                object, or a list of these (P1).
            supply: Returns the value of a secure parameter of that name that has none; without it,
                and where it returns None, one is generated.
            load_balancer: Azure's JSON of the load balancer that holds the
                health probe, if the model does not contain it.
            custom_data: Replaces the model's custom data (base64).
            ports: Guest ports to forward besides those of SSH and the probe.
            health_timeout: Seconds to wait for health, in place of Azure's 300.
            health: A custom health source in addition to Azure's (F4): a command that is run
                over SSH and judged by its exit status, or a function that takes a testinfra
                host and asserts. A function applies in this process only.
            approver: Who approves each update domain of a Service Fabric node type of durability
                Silver or Gold, see :meth:`ScaleSet.set_approver`.
            pristine: Restore the instances from a checkpoint of the same set, as it was when it
                was first created on this host; seconds instead of a boot. If there is none, the
                set is booted and the checkpoint made. If there can be none, an event says why.

        Raises:
            ModelError: The model is not valid; nothing was created.
            NotFoundError: There is no such image; nothing was created.
            CapacityError: The host has no room for it; nothing was created.
            HostError: The host cannot run VMs; nothing was created.
            ConflictError: There is already a set of that name.
            ProvisioningError: Instances did not come up; the set was created.
        """
        # Sealed first, so that no error message shows secrets (M5).
        source, load_balancer = seal(source), seal(load_balancer)
        parameters = seal_parameters(parameters)
        custom_data = seal_text(check_custom_data(custom_data))
        name, capacity = check_name(name), check_instance_count(capacity, none=True)
        ports, health = check_ports(ports), check_health(health)
        approver = check_approver(approver)
        health_timeout = check_seconds(health_timeout, "health_timeout", none=True)
        pristine = bool(check_flag(pristine, "pristine"))
        document = load_document(
            source,
            load_balancer=load_balancer,
            name=name,
            capacity=capacity,
            parameters=parameters,
            supply=supply,
            custom_data=custom_data,
        )
        model = document.model
        if self.store.get(ScaleSetRecord, model.name.lower()) is not None:
            raise ConflictError(
                f"there is a scale set {model.name!r} already; delete it first, or take another "
                "name",
                code="Conflict",
            )
        require_durable(model, approver)
        version = check_document(self.environment, document)
        announce(self.environment, document)
        if document.balancer is not None and document.balancer.load_balancing_rules:
            self._require_balancer()
        self.environment.require_room(model.sku.capacity, self.environment.size_of(model))
        with contextlib.ExitStack() as making:
            sought = (
                making.enter_context(self._checkpoints.sought(document, version))
                if pristine
                else Sought()
            )
            kind = CreateScaleSet(
                document,
                version,
                ports=ports,
                health_timeout=health_timeout,
                health_command=health if isinstance(health, str) else None,
                health_function=callable(health),
                approver_url=approver if isinstance(approver, str) else None,
                approver_function=callable(approver),
                checkpoint=sought.name,
            )
            engine = Engine(self.environment, model.name)
            with engine.lock():
                operation = engine.open(kind)
                if sought.obstacle:
                    self.store.event(model.name, "warning", f"boots: {sought.obstacle}")
                set_id = self.environment.set_record(model.name).unique_id
                if health is not None and not isinstance(health, str):
                    self.environment.checks[set_id] = health
                if approver is not None and not isinstance(approver, str):
                    self.environment.approvers[set_id] = approver
                engine.run(operation).raise_for_status()
                if sought.name:
                    self._checkpoints.check(engine, sought)
                elif sought.key:
                    self._checkpoints.make(engine, sought)
        self.wake()
        return self.scale_set(model.name)

    def scale_set(self, name: str) -> ScaleSet:
        """Returns a scale set by name.

        Raises:
            NotFoundError: There is no such set.
        """
        check_text(name, "name")
        record = self.environment.set_record(name)
        known = self._sets.get(record.unique_id)
        if known is None:
            known = ScaleSet(self.environment, self.controller, record.name)
            known = self._sets.setdefault(record.unique_id, known)
        return known

    def scale_sets(self) -> list[ScaleSet]:
        """All scale sets of the lab."""
        return [self.scale_set(record.name) for record in self.store.select(ScaleSetRecord)]

    def delete(self, name: str) -> None:
        """Deletes a scale set, its machines and all their disks.

        Operations of this process on the set are stopped first.

        Raises:
            NotFoundError: There is no such set.
            ConflictError: An operation of another process is in progress on it.
            InterruptedOperationError: The host could not remove everything; call this again,
                or resume.
        """
        self.scale_set(name).delete()

    # Upgrades.

    def finished_upgrades(self) -> list[OperationReport]:
        """Rolling upgrades that have ended, including those of deleted sets, oldest first."""
        records = [
            record
            for record in self.store.select(OperationRecord)
            if record.rolling and record.ended is not None
        ]
        records.sort(key=lambda record: record.started)
        return [OperationReport.of(self.store, record) for record in records]

    def run_due(self) -> None:
        """Runs automatic upgrades, sets concurrently, until none is due."""
        self.controller.run_due()

    def run_repairs(self) -> None:
        """Checks every set with automatic repairs once, and repairs what is due."""
        self.controller.run_repairs()

    def watch(self) -> None:
        """Starts the thread that runs due upgrades and repairs in this process."""
        self.controller.watch()

    def wake(self) -> None:
        """Wakes the control loop: an automatic upgrade may be due."""
        self.controller.wake()

    # The end.

    def close(self) -> None:
        """Closes the lab in this process; its machines keep running.

        The process that made a session's lab keeps it in use until it exits.
        """
        if self._is_closed:
            return
        self._is_closed = True
        with contextlib.ExitStack() as ends:  # each is closed, even if another fails
            if not self._is_maker:
                ends.callback(self._in_use.release)
            ends.callback(self.store.close)
            ends.callback(self.environment.close)
            ends.callback(self._consoles.close)
            for scale_set in self._sets.values():
                ends.callback(scale_set.close)
            ends.callback(self.blobs.close)
            ends.callback(self.controller.close)
            ends.callback(self.clock.close)

    def destroy(self) -> None:
        """Removes the lab: machines, disks, images, records.

        If something cannot be removed, the rest still is. A removal that was killed or failed
        is completed by calling this again, by the next reap, or by opening the lab.

        Raises:
            LabError: Something could not be removed, and the message names each; or this
                process is a forked child of the one that opened the lab.
            ConflictError: Another process has this lasting lab open; nothing was changed.
        """
        if self._process != os.getpid():
            raise LabError(
                f"the lab {self.paths.folder.name} was opened by the process {self._process}, of "
                f"which this one ({os.getpid()}) is a fork: it is not this one's to remove"
            )
        try:
            with _door(self.paths):
                self._require_alone()
                self.clock.close()
                try:
                    self.controller.close()
                    remove_machines(self.paths, self.identity, lambda: self.hypervisor)
                finally:
                    # A lab is removed even if its records cannot be read.
                    with contextlib.suppress(LabError):
                        self.close()
                if self.paths.identity.exists():
                    remove_files(self.settings, self.paths, self.identity)
                else:
                    remove_unfinished(self.settings, self.paths)
        except OSError as error:
            raise LabError(
                f"the lab {self.paths.folder.name} cannot be removed: {error}; mend that, then "
                "try again"
            ) from error
        self._in_use.release()

    def _require_alone(self) -> None:
        """Raises if other processes have a lasting lab open; a session's lab is removed anyway."""
        if self.identity.kind == "session":
            return
        self._in_use.release()
        try:
            # A program that this process has just started closes its copy of the lock soon.
            self._in_use = wait_for_lock(
                self.paths.in_use, what="has it open", timeout=_ALONE_LIMIT
            )
        except ConflictError as error:
            self._in_use = _use(self.paths)
            raise ConflictError(
                f"another process has the lab {self.paths.folder.name} open "
                f"(`fuser -v {self.paths.in_use}` tells which); end it, and try again"
            ) from error


def _require_own(settings: Settings, paths: LabPaths) -> None:
    """Creates the folders that labs trust, and checks that no other account can write them (M5).

    Raises:
        OSError: Another account can, or the folders cannot be created.
    """
    shared = (paths.folder.parent, paths.door.parent, networks_folder(settings))
    require_trusted(settings.state_dir)
    if not settings.state_dir.is_dir():
        settings.state_dir.mkdir(parents=True, exist_ok=True, mode=0o700)
        _open_to_qemu(settings.state_dir)
    for folder in shared:
        folder.mkdir(parents=True, exist_ok=True, mode=0o700)
    require_trusted(settings.state_dir)
    require_own(*shared, settings.state_dir / PROCESS_ROOTS)
    _open_to_qemu(labs_folder(settings))


def _open_to_qemu(folder: Path) -> None:
    """Lets QEMU's account pass through a folder of root's; nobody else can list it (R4)."""
    if os.geteuid() == 0:
        folder.chmod(0o711)


def _close_to_others(folder: Path) -> None:
    """Makes a lab's folder private, but for QEMU's group, which may enter it (R4)."""
    folder.chmod(stat.S_IMODE(folder.stat().st_mode) & 0o710 | 0o700)


def _door(paths: LabPaths) -> Lock:
    """Waits for the lab's door lock, which serialises creating, opening and removing it."""
    return wait_for_lock(
        paths.door, what=f"makes, opens or removes the lab {paths.folder.name}", timeout=_DOOR_LIMIT
    )


def _use(paths: LabPaths) -> Lock:
    """Takes the shared lock that marks the lab as open in this process."""
    return wait_for_lock(
        paths.in_use,
        what=f"removes the lab {paths.folder.name}",
        timeout=_DOOR_LIMIT,
        shared=True,
    )


def _probe(probe: Probe, record: InstanceRecord) -> Observation:
    return probe_once(probe, record.address, record.forwards[probe.port], timeout=_PROBE_TIMEOUT)


def own_size(settings: Settings) -> VmSize | None:
    """The size of every set that is made in the lab; None for the model's own.

    Raises:
        LabError: It is not known.
    """
    if settings.size is None:
        return None
    size = find_size(settings.size, settings.sizes)
    if size is None:
        raise LabError(
            f"the setting size must be a known VM size; given {settings.size[:100]!r}, and the "
            f"nearest are: {listed(nearest_sizes(settings.size, settings.sizes))}; add your own "
            "to the setting sizes"
        )
    return size


def _program(lab: str) -> str:
    """The ``vmss`` command for a lab, as shown in messages."""
    return "vmss" if lab == DEFAULT_LAB else f"vmss --lab {lab}"
