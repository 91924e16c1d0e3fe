"""The lab: the one door that plugin and command line go through."""

from __future__ import annotations

import json
import os
import secrets
import shutil
import threading
import uuid
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, replace
from functools import cached_property, partial
from pathlib import Path
from typing import Literal, Self

import psutil

from pytest_vmss.clock import Interrupted, SystemClock, side_by_side
from pytest_vmss.errors import (
    ConflictError,
    LabError,
    ModelError,
    ModelProblem,
    NotFoundError,
    ProvisioningError,
    UpgradeError,
    VmssError,
)
from pytest_vmss.gallery import Gallery, ImageAddress, Images
from pytest_vmss.gallery.gallery import version_key
from pytest_vmss.guest import LinuxGuest, SshAccess
from pytest_vmss.guest.console import Console
from pytest_vmss.guest.extensions import check_settings, known_types
from pytest_vmss.guest.keys import lab_key
from pytest_vmss.health import probe_once
from pytest_vmss.hypervisor import Hypervisor, PowerState
from pytest_vmss.hypervisor.addresses import (
    claim_network,
    host_port,
    instance_address,
    release_network,
)
from pytest_vmss.hypervisor.capacity import check_capacity
from pytest_vmss.model import (
    ScaleSetDocument,
    ScaleSetModel,
    Source,
    VmSize,
    check_model,
    find_size,
    load_document,
)
from pytest_vmss.paths import LabPaths, process_root
from pytest_vmss.scale_set import ScaleSet
from pytest_vmss.settings import Settings
from pytest_vmss.store import (
    GenerationRecord,
    InstanceRecord,
    OperationRecord,
    ScaleSetRecord,
    Store,
    VersionRecord,
)
from pytest_vmss.upgrade.engine import Engine
from pytest_vmss.upgrade.watcher import Watcher
from pytest_vmss.upgrade.world import InstanceContext, World

__all__ = ["Lab", "LabIdentity", "labs_folder", "networks_folder"]

_SSH_PORT = 22
_UPDATE_DOMAINS = 5  # Azure's default in each placement group
_PROBE_TIMEOUT = 5.0


def labs_folder(settings: Settings) -> Path:
    """Where the folders of all labs are."""
    return settings.state_dir / "labs"


def networks_folder(settings: Settings) -> Path:
    """Where labs claim their loopback networks."""
    return settings.state_dir / "networks"


@dataclass(frozen=True)
class LabIdentity:
    """Who a lab is and who made it.

    Attributes:
        id: Part of every domain's name.
        kind: A ``session`` lab ends with its process; a ``lasting`` one does not.
        network: First three parts of its loopback addresses.
        pid: Process that made it.
        started: When that process started, in seconds since 1970; tells a pid
            that was used again.
        connect: The connection that the user named for its machines.
        embedded: Folder of libvirt's embedded driver, where that is used.
    """

    id: str
    kind: Literal["session", "lasting"]
    network: str
    pid: int
    started: float
    connect: str | None = None
    embedded: str = ""

    @property
    def owner_alive(self) -> bool:
        """Whether the process that made it still runs."""
        try:
            return abs(psutil.Process(self.pid).create_time() - self.started) < 1.0
        except psutil.NoSuchProcess:
            return False


class Lab:
    """One state directory with its gallery, scale sets and journal.

    Use :meth:`open` or :meth:`session`.
    """

    def __init__(self, settings: Settings, folder: Path, identity: LabIdentity) -> None:
        self.settings = settings
        self.identity = identity
        self.paths = LabPaths(folder)
        self.clock = SystemClock()
        self.store = Store(self.paths.database, self.clock)
        self.images = Images(
            self.paths.images, self.store, self.clock, on_publish=lambda _: self._wake()
        )
        self._watcher: Watcher | None = None
        self._threads: list[threading.Thread] = []
        self._create_lock = threading.Lock()
        self._sets: dict[str, ScaleSet] = {}
        self._deleted_upgrades: list[OperationRecord] = []

    @classmethod
    def open(cls, settings: Settings, name: str = "default") -> Self:
        """Opens a lasting lab by name, made where there is none.

        Raises:
            LabError: Its folder cannot be used.
        """
        if not name or not all(char.isalnum() or char in "-_" for char in name) or len(name) > 32:
            raise LabError(f"{name!r} is no name for a lab; use letters, digits, '-' and '_'")
        return cls._at(settings, labs_folder(settings) / name, "lasting")

    @classmethod
    def session(cls, settings: Settings) -> Self:
        """Makes a lab that lives as long as this process."""
        return cls._at(settings, labs_folder(settings) / f"s{secrets.token_hex(3)}", "session")

    @classmethod
    def _at(cls, settings: Settings, folder: Path, kind: Literal["session", "lasting"]) -> Self:
        paths = LabPaths(folder)
        try:
            folder.mkdir(parents=True, exist_ok=True, mode=0o700)
            folder.chmod(0o700)
            for below in ("run", "sets"):
                (folder / below).mkdir(exist_ok=True, mode=0o700)
            if not paths.identity.exists():
                _write_identity(settings, paths, kind)
            identity = LabIdentity(**json.loads(paths.identity.read_text()))
        except (OSError, ValueError, TypeError) as unusable:
            raise LabError(
                f"the lab's folder {folder} cannot be used: {unusable}; "
                "use another state directory (VMSS_STATE_DIR)"
            ) from unusable
        return cls(settings, folder, identity)

    # What operations act on.

    @cached_property
    def world(self) -> World:
        """Everything that an operation touches."""
        return World(
            lab_id=self.identity.id,
            store=self.store,
            clock=self.clock,
            connect=self._connect,
            images=self.images,
            paths=self.paths,
            base_limits=self.settings.limits,
            lab_key=lab_key(self.paths.key),
            make_guest=self.make_guest,
            probe=partial(probe_once, timeout=_PROBE_TIMEOUT),
            find_size=self._find_size,
        )

    @property
    def hypervisor(self) -> Hypervisor:
        """The connection to libvirt.

        Raises:
            HostError: libvirt does not answer.
        """
        return self.world.hypervisor

    def _connect(self) -> Hypervisor:
        # libvirt-python is a compiled library; whoever only reads does without it.
        from pytest_vmss.hypervisor.libvirt_driver import LibvirtHypervisor

        settings = replace(self.settings, connect=self.settings.connect or self.identity.connect)
        return LibvirtHypervisor(settings, Path(self.identity.embedded))

    def _find_size(self, name: str) -> VmSize:
        size = find_size(name, self.settings.sizes)
        if size is None:
            raise NotFoundError(f"the size {name!r} is not known here")
        return size

    def make_guest(self, context: InstanceContext, generation: GenerationRecord) -> LinuxGuest:
        """The guest of a generation, over SSH."""
        record, machine = context.record, context.machine(generation.number)
        hypervisor = self.world.hypervisor
        return LinuxGuest(
            context.name,
            access=SshAccess(
                address=record.address,
                port=record.forwards[_SSH_PORT],
                user=context.model.virtual_machine_profile.os_profile.admin_username,
                key=self.paths.key,
                host_key=generation.host_key,
            ),
            console=Console(machine.console, generation.console_from),
            limits=context.limits,
            clock=self.clock,
            is_running=lambda: hypervisor.state(context.domain) is PowerState.RUNNING,
            agent_connected=lambda: hypervisor.agent_connected(context.domain),
            factor=hypervisor.slow_factor,
        )

    # Galleries.

    def gallery(self, name: str = "gallery") -> Gallery:
        """A gallery by name."""
        return self.images.gallery(name)

    # Scale sets.

    def create(
        self,
        source: Source,
        *,
        name: str | None = None,
        capacity: int | None = None,
        load_balancer: Source | None = None,
        custom_data: str | None = None,
        ports: Sequence[int] = (),
        health_timeout: float | None = None,
    ) -> ScaleSet:
        """Creates a scale set and waits until all its instances are healthy.

        Args:
            source: Azure's JSON or YAML: a file or the document itself.
            name: Replaces the model's name.
            capacity: Replaces the model's capacity.
            load_balancer: Azure's JSON of the load balancer that holds the
                health probe, where the model does not.
            custom_data: Replaces the model's custom data (base64).
            ports: Guest ports to forward besides SSH's and the probe's.
            health_timeout: Seconds to wait for health, in place of Azure's 300.

        Raises:
            ModelError: The model is not valid; nothing was created.
            NotFoundError: There is no such image; nothing was created.
            CapacityError: It does not fit; nothing was created.
            HostError: The host cannot run VMs; nothing was created.
            ConflictError: There is a set of that name.
            ProvisioningError: Instances did not come up; the set is there.
        """
        document = load_document(
            source,
            load_balancer=load_balancer,
            name=name,
            capacity=capacity,
            custom_data=custom_data,
        )
        version = self._check(document)
        model = document.model
        size = self._find_size(model.sku.name)
        check_capacity(
            model.sku.capacity,
            size.memory_mib,
            accelerator=self.hypervisor.accelerator,
            folder=self.paths.folder,
            what=f"the scale set {model.name!r}",
        )
        forwarded = {_SSH_PORT, *ports}
        if document.probe is not None:
            forwarded.add(document.probe.port)
        engine = Engine(self.world, model.name)
        with engine.claim():
            with self._create_lock, self.store.transaction():
                ids = self._record(document, sorted(forwarded), health_timeout)
            operation = engine.provision(ids, version)
            record = self._set_record(model.name)
            state: Literal["Succeeded", "Failed"] = (
                "Succeeded" if operation.status == "Completed" else "Failed"
            )
            self.store.put(record.model_copy(update={"state": state}))
        if state == "Failed":
            raise ProvisioningError(
                f"the scale set {model.name!r} did not come up: "
                f"{len(operation.errors)} of {len(ids)} instances failed",
                scale_set=model.name,
                evidence="\n".join(
                    f"{model.name}_{number}: {error.code}: {error.message}\n"
                    f"{error.console_tail}\nwhole console log: {error.log}"
                    for number, error in sorted(operation.errors.items())
                ),
                code=operation.error_code or "VMProvisioningFailed",
            )
        self._wake()
        return self.scale_set(model.name)

    def _check(self, document: ScaleSetDocument) -> VersionRecord:
        """Everything that can be known to be wrong before anything is touched."""
        model = document.model
        problems = check_model(
            model,
            probe=document.probe,
            sizes=self.settings.sizes,
            extension_types=known_types(),
        )
        problems += check_settings(model.extensions)
        if problems:
            raise ModelError(problems, source=document.source)
        if self.store.get(ScaleSetRecord, model.name.lower()) is not None:
            raise ConflictError(
                f"there is a scale set {model.name!r} already; delete it first, or take another name",
                code="Conflict",
            )
        storage = model.virtual_machine_profile.storage_profile
        version = self.images.resolve(self.images.address_of(storage.image_reference))
        self.images.path_of(version)
        gib = storage.os_disk.disk_size_gb
        if gib is not None and gib * 1024**3 < version.virtual_size:
            problem = ModelProblem(
                "$.virtualMachineProfile.storageProfile.osDisk.diskSizeGB",
                "InvalidParameter",
                f"is {gib} GiB, smaller than the image's {version.virtual_size / 1024**3:.1f} GiB",
            )
            raise ModelError([problem], source=document.source)
        return version

    def _record(
        self, document: ScaleSetDocument, ports: Sequence[int], health_timeout: float | None
    ) -> list[int]:
        """Records a set and its instances, before anything of them exists."""
        model = document.model
        if self.store.get(ScaleSetRecord, model.name.lower()) is not None:
            raise ConflictError(f"there is a scale set {model.name!r} already", code="Conflict")
        used = {record.address for record in self.store.select(InstanceRecord)}
        free = (
            address
            for number in range(255)
            if (address := instance_address(self.identity.network, number)) not in used
        )
        ids = list(range(model.sku.capacity))
        self.store.put(
            ScaleSetRecord(
                name=model.name,
                model=model.full(),
                probe=None if document.probe is None else document.probe.wire(),
                created=self.clock.now(),
                next_instance_id=len(ids),
                overrides={} if health_timeout is None else {"health": health_timeout},
            )
        )
        prefix = model.virtual_machine_profile.os_profile.computer_name_prefix
        for number in ids:
            unique = uuid.uuid4()
            self.store.put(
                InstanceRecord(
                    scale_set=model.name,
                    instance_id=number,
                    uuid=str(unique),
                    computer_name=f"{prefix}{_base36(number):0>6}".lower(),
                    mac="52:54:00:" + ":".join(f"{byte:02x}" for byte in unique.bytes[-3:]),
                    address=next(free),
                    forwards={port: host_port(port) for port in ports},
                    update_domain=number % _UPDATE_DOMAINS,
                )
            )
        return ids

    def _set_record(self, name: str) -> ScaleSetRecord:
        record = self.store.get(ScaleSetRecord, name.lower())
        if record is None:
            known = ", ".join(entry.name for entry in self.store.select(ScaleSetRecord))
            raise NotFoundError(
                f"there is no scale set {name!r} in this lab; there are: {known or 'none'}"
            )
        return record

    def scale_set(self, name: str) -> ScaleSet:
        """A scale set by name.

        Raises:
            NotFoundError: There is none.
        """
        record = self._set_record(name)
        return self._sets.setdefault(record.name, ScaleSet(self, record.name))

    def scale_sets(self) -> list[ScaleSet]:
        """All scale sets of the lab."""
        return [self.scale_set(record.name) for record in self.store.select(ScaleSetRecord)]

    def delete(self, name: str) -> None:
        """Deletes a scale set, its machines and all their disks.

        Raises:
            NotFoundError: There is none.
            ConflictError: An operation is in progress on it.
        """
        record = self._set_record(name)
        with Engine(self.world, record.name).claim():
            self._delete(record)
        self.paths.lock(record.name).unlink(missing_ok=True)

    def _delete(self, record: ScaleSetRecord) -> None:
        self.store.put(record.model_copy(update={"state": "Deleting"}))
        instances = self.store.select(InstanceRecord, record.name.lower())
        for instance in instances:
            self.hypervisor.remove(f"vmss-{self.identity.id}-{instance.name}")
            self.paths.agent_socket(instance.uuid).unlink(missing_ok=True)
        shutil.rmtree(self.paths.scale_set(record.name), ignore_errors=True)
        self._deleted_upgrades += self._ended_upgrades(record.name)
        with self.store.transaction():
            for kind in (InstanceRecord, GenerationRecord, OperationRecord):
                for entry in self.store.select(kind, record.name.lower()):
                    self.store.delete(entry)
            self.store.delete(record)
            self.store.event(record.name, "deleted", f"deleted {len(instances)} instances")
        self._sets.pop(record.name, None)

    # Upgrades.

    def _ended_upgrades(self, *scale_set: str) -> list[OperationRecord]:
        operations = self.store.select(OperationRecord, *(name.lower() for name in scale_set))
        return [entry for entry in operations if entry.action == "upgrade" and entry.ended]

    def finished_upgrades(self) -> list[OperationRecord]:
        """Upgrades that ended, also of sets that this process has deleted, oldest first."""
        return sorted(
            [*self._deleted_upgrades, *self._ended_upgrades()], key=lambda entry: entry.started
        )

    def run_upgrade(
        self,
        name: str,
        *,
        started_by: Literal["User", "Platform"],
        rollback: bool,
        on_open: Callable[[OperationRecord], None] = lambda _: None,
        wait: bool = True,
        target: VersionRecord | None = None,
    ) -> None:
        """Rolls a set to a version.

        Args:
            name: The set.
            started_by: Azure's ``startedBy``.
            rollback: Give instances that do not recover their previous OS disk back.
            on_open: Told the operation before its first effect.
            wait: Return when it has ended; else as soon as it has begun.
            target: The version; None for the latest.

        Raises:
            ConflictError: Another operation is in progress; nothing was changed.
        """
        version = target or self.images.resolve(self._address(name))
        engine = Engine(self.world, name)
        if wait:
            with engine.claim():
                engine.upgrade(version, started_by=started_by, rollback=rollback, on_open=on_open)
            return
        begun = threading.Event()
        refused: list[VmssError] = []

        def opened(operation: OperationRecord) -> None:
            on_open(operation)
            begun.set()

        def go_on() -> None:
            try:
                with engine.claim():
                    engine.upgrade(
                        version, started_by=started_by, rollback=rollback, on_open=opened
                    )
            except VmssError as error:
                refused.append(error)
            except Interrupted:
                pass  # the lab is being closed
            finally:
                begun.set()

        thread = threading.Thread(target=go_on, name=f"upgrade-{name}", daemon=True)
        thread.start()
        self._threads.append(thread)
        begun.wait()
        if refused:
            raise refused[0]

    def _address(self, name: str) -> ImageAddress:
        model = ScaleSetModel.model_validate(self._set_record(name).model)
        return self.images.address_of(model.virtual_machine_profile.storage_profile.image_reference)

    def due(self, name: str) -> VersionRecord | None:
        """The version to which a set is due to upgrade by itself (C1)."""
        return None if self.why_not_due(name) else self.images.resolve(self._address(name))

    def why_not_due(self, name: str) -> str:
        """Why a set does not upgrade by itself now; empty where it does."""
        record = self._set_record(name)
        model = ScaleSetModel.model_validate(record.model)
        if record.state != "Succeeded":
            return f"the set's provisioning state is {record.state}"
        if not model.automatic_os_upgrade.enable_automatic_os_upgrade:
            return "enableAutomaticOSUpgrade is not true in its model"
        target = self.images.resolve(self._address(name))
        engine = Engine(self.world, name)
        versions = [
            engine.version_of(instance)
            for instance in self.store.select(InstanceRecord, name.lower())
        ]
        if all(
            version is None or version_key(version) >= version_key(target.version)
            for version in versions
        ):
            return f"all its instances are on {target.version}, the latest version, or later"
        for operation in self.store.select(OperationRecord, name.lower()):
            if operation.action == "upgrade" and operation.digest == target.digest:
                return (
                    f"an upgrade to the latest version, {target.version}, was tried already "
                    f"({operation.status})"
                )
        return ""

    def run_due(self) -> None:
        """Runs every upgrade that is due, sets side by side, until none is."""
        while due := {
            record.name: target
            for record in self.store.select(ScaleSetRecord)
            if (target := self.due(record.name)) is not None
        }:
            side_by_side(due.items(), self._run_automatic, clock=self.clock)

    def _run_automatic(self, due: tuple[str, VersionRecord]) -> None:
        name, target = due
        model = ScaleSetModel.model_validate(self._set_record(name).model)
        self.run_upgrade(
            name,
            started_by="Platform",
            rollback=not model.automatic_os_upgrade.disable_automatic_rollback,
            target=target,
        )

    def watch(self) -> None:
        """From now on, due upgrades run by themselves in this process."""
        if self._watcher is None:
            self._watcher = Watcher(self.run_due)
        self._watcher.wake()

    @property
    def watcher_idle(self) -> bool:
        """Whether no automatic upgrade runs or is about to in this process.

        Raises:
            UpgradeError: The watcher failed.
        """
        if self._watcher is None:
            return True
        if self._watcher.error is not None:
            raise UpgradeError(
                f"an automatic upgrade broke: {self._watcher.error}"
            ) from self._watcher.error
        return self._watcher.idle

    def _wake(self) -> None:
        if self._watcher is not None:
            self._watcher.wake()

    # The end.

    def close(self) -> None:
        """Ends this process's work on the lab; machines run on."""
        self.clock.close()
        if self._watcher is not None:
            self._watcher.close()
        for thread in self._threads:
            thread.join()
        for scale_set in self._sets.values():
            for instance in scale_set.instances:
                instance.close()
        self.world.close()
        self.store.close()

    def destroy(self) -> None:
        """Removes the lab: machines, disks, images, records."""
        self.clock.close()
        if self._watcher is not None:
            self._watcher.close()
        for thread in self._threads:
            thread.join()
        records = self.store.select(ScaleSetRecord)
        if records:
            prefix = f"vmss-{self.identity.id}-"
            for machine in self.hypervisor.machines(prefix):
                self.hypervisor.remove(machine)
        self.close()
        shutil.rmtree(self.paths.folder)
        release_network(networks_folder(self.settings), self.identity.network)


def _write_identity(
    settings: Settings, paths: LabPaths, kind: Literal["session", "lasting"]
) -> None:
    lab_id = secrets.token_hex(3)
    identity = LabIdentity(
        id=lab_id,
        kind=kind,
        network=claim_network(networks_folder(settings), lab_id),
        pid=os.getpid(),
        started=psutil.Process().create_time(),
        connect=settings.connect,
        embedded=str(paths.libvirt if kind == "lasting" else process_root(settings.state_dir)),
    )
    part = paths.identity.with_suffix(".part")
    part.write_text(json.dumps(asdict(identity)))
    part.replace(paths.identity)


def _base36(number: int) -> str:
    digits = "0123456789abcdefghijklmnopqrstuvwxyz"
    text = ""
    while number:
        number, digit = divmod(number, 36)
        text = digits[digit] + text
    return text or "0"
