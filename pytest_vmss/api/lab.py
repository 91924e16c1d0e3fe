"""The lab: the entry point of the plugin and the command line, where its parts are put together."""

from __future__ import annotations

import contextlib
from collections.abc import Sequence
from functools import cached_property
from typing import Self

from pytest_vmss.api.backends import LocalBackends
from pytest_vmss.api.checkpoints import Checkpoints
from pytest_vmss.api.creation import create_scale_set
from pytest_vmss.api.custom_data import CustomData, encode_custom_data, located
from pytest_vmss.api.scale_set import ScaleSet
from pytest_vmss.checkpoints import CheckpointCache
from pytest_vmss.clock import Clock, SystemClock
from pytest_vmss.controller.controller import Controller
from pytest_vmss.controller.rollouts import Rollouts
from pytest_vmss.environment.environment import Environment
from pytest_vmss.errors import ConflictError, LabError
from pytest_vmss.file_server.blobs import Blobs
from pytest_vmss.gallery import DEFAULT_GALLERY, Gallery, ImageStore
from pytest_vmss.guest import Check
from pytest_vmss.guest.keys import lab_key
from pytest_vmss.hypervisor import Hypervisor
from pytest_vmss.journal.report import OperationReport
from pytest_vmss.labs.identity import LabNetworks, find_lab
from pytest_vmss.labs.place import LabPlace, open_place, session_paths
from pytest_vmss.labs.removal import remove_machines
from pytest_vmss.model import (
    Approver,
    Parameters,
    Source,
    Supply,
    VmSize,
    find_size,
    load_document,
    nearest_sizes,
    seal_parameters,
)
from pytest_vmss.model.arguments import (
    check_approver,
    check_flag,
    check_health,
    check_instance_count,
    check_name,
    check_ports,
    check_seconds,
    check_text,
    known_arguments,
)
from pytest_vmss.secrecy import seal
from pytest_vmss.settings import GIB, Settings
from pytest_vmss.store import (
    DefinitionRecord,
    OperationRecord,
    ScaleSetRecord,
    Store,
    VersionRecord,
)
from pytest_vmss.untrusted import listed

__all__ = ["DEFAULT_LAB", "Lab", "own_size"]

#: The lab that is used when none is named.
DEFAULT_LAB = "default"


class Lab:
    """One state directory with its gallery, scale sets and journal.

    Use :meth:`open` or :meth:`session`. The constructor is the one place where the parts of a
    lab are put together.

    Args:
        place: The lab's folder, open in this process.
        clock: The clock of all waits and records; the host's by default.
        store: The lab's database, on that clock.
        backends: The hypervisor, guests and load balancers; those of this host by default.

    Raises:
        LabError: Its database cannot be used.
    """

    def __init__(
        self,
        place: LabPlace,
        *,
        clock: Clock | None = None,
        store: Store | None = None,
        backends: LocalBackends | None = None,
    ) -> None:
        self._place = place
        self.settings, self.paths, self.identity = place.settings, place.paths, place.identity
        self.clock = clock or SystemClock()
        self.store = store or Store(self.paths.database, self.clock)
        self.backends = backends or LocalBackends(place, self.store, self.clock)
        self.images = ImageStore(
            self.paths.images,
            self.store,
            self.clock,
            on_publish=lambda _: self.wake(),
            limits=self.settings.images,
        )
        self.environment = Environment(
            lab_id=self.identity.id,
            program=_program(self.paths.folder.name),
            store=self.store,
            clock=self.clock,
            connect=self.backends.connect,
            images=self.images,
            paths=self.paths,
            base_timeouts=self.settings.timeouts,
            lab_key=lab_key(self.paths.key),
            make_guest=self.backends.make_guest,
            probe=self.backends.probe,
            sizes=self.settings.sizes,
            own_size=own_size(self.settings),
            unknown_extensions=self.settings.unknown_extensions,
            health_report=self.backends.health_report,
            metrics=self.backends.metrics,
            reach=self.backends.reach,
            degraded_is_fatal=self.settings.degraded_is_fatal,
            guest_network=self.settings.guest_network,
            serve_files=self.backends.serve_files,
            boot_turns=self.backends.boot_turns,
            free_addresses=self.networks.free_addresses,
            make_balancer=self.backends.make_balancer,
            check_room=self.backends.check_room,
            give_back_room=self.backends.give_back_room,
        )
        self._is_closed = False
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
        own_size(settings)  # refused before anything is made
        settings, paths = find_lab(settings, name)
        return open_place(settings, paths, "lasting", cls)

    @classmethod
    def session(cls, settings: Settings) -> Self:
        """Creates a lab that lives as long as this process.

        Raises:
            LabError: Its folder cannot be used.
            CapacityError: All loopback networks of the host are claimed.
        """
        own_size(settings)  # refused before anything is made
        return open_place(settings, session_paths(settings), "session", cls)

    @property
    def networks(self) -> LabNetworks:
        """The lab's loopback networks."""
        return self.backends.networks

    @property
    def blobs(self) -> Blobs:
        """Files for guests to download, with tokens that expire (H5)."""
        return self.backends.blobs

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

    # Galleries.

    def gallery(self, name: str = DEFAULT_GALLERY) -> Gallery:
        """A gallery by name."""
        check_text(name, "name")
        return Gallery(self.images, name)

    # Scale sets.

    @known_arguments
    def create(
        self,
        source: Source,
        *,
        name: str | None = None,
        capacity: int | None = None,
        parameters: Parameters | None = None,
        supply: Supply | None = None,
        load_balancer: Source | None = None,
        custom_data: CustomData | None = None,
        ports: Sequence[int] = (),
        health_timeout: float | None = None,
        health: Check | None = None,
        approver: Approver | None = None,
        pristine: bool = False,
    ) -> ScaleSet:
        """Creates a scale set and waits until all its instances are healthy.

        Args:
            source: Azure's JSON or YAML: a file (beside the running test first), bytes, or the
                document itself.
            name: Replaces the model's name; in a template with several sets, chooses one.
            capacity: Replaces the model's capacity.
            parameters: Values for a template's parameters: a parameters file, ``name=value``, an
                object, or a list of these (P1).
            supply: Returns the value of a secure parameter of that name that has none; without it,
                and where it returns None, one is generated.
            load_balancer: Azure's JSON of the load balancer, if the document does not contain it:
                the one that holds the health probe, or that stands before a set whose health the
                Application Health extension reports.
            custom_data: Replaces the model's custom data: a file, bytes, text, base64, or an object
                for cloud-config; see
                :func:`~pytest_vmss.api.custom_data.encode_custom_data`.
            ports: Guest ports to forward besides those of SSH, the probe, the load balancer's
                rules and the Application Health extension.
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
        folder = self.environment.folder()
        source, load_balancer = located(seal(source), folder), located(seal(load_balancer), folder)
        encoded = custom_data = encode_custom_data(custom_data, folder)
        parameters = seal_parameters(parameters)
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
            custom_data=encoded,
        )
        create_scale_set(
            self.environment,
            self.backends,
            self._checkpoints,
            document,
            ports=ports,
            health_timeout=health_timeout,
            check=health,
            approver=approver,
            pristine=pristine,
        )
        self.wake()
        return self.scale_set(document.model.name)

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

    @property
    def is_empty(self) -> bool:
        """Whether it has no scale set, image or blob, and never had a set."""
        kinds = (ScaleSetRecord, OperationRecord, DefinitionRecord, VersionRecord)
        return not any(self.store.select(kind) for kind in kinds) and not self.blobs.names()

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
            ends.callback(self._place.leave)
            ends.callback(self.store.close)
            ends.callback(self.environment.close)
            ends.callback(self.backends.close_consoles)
            for scale_set in self._sets.values():
                ends.callback(scale_set.close)
            ends.callback(self.backends.close_files)
            ends.callback(self.controller.close)
            ends.callback(self.clock.close)

    def destroy(self, *, if_unused: bool = False) -> None:
        """Removes the lab: machines, disks, images, records.

        If something cannot be removed, the rest still is. A removal that was killed or failed
        is completed by calling this again, by the next reap, or by opening the lab.

        Args:
            if_unused: Leave the lab alone unless this object has created it, and it is still empty.

        Raises:
            LabError: Something could not be removed, and the message names each; or this
                process is a forked child of the one that opened the lab.
            ConflictError: Another process has this lasting lab open; nothing was changed.
        """
        if if_unused and not self._place.is_new:
            return
        with self._place.removal():
            # Only now can no other process put anything into it.
            if if_unused and not self.is_empty:
                raise ConflictError(f"the lab {self.paths.folder.name} is not empty any more")
            self.clock.close()
            try:
                self.controller.close()
                remove_machines(self.paths, self.identity, lambda: self.hypervisor)
            finally:
                # A lab is removed even if its records cannot be read.
                with contextlib.suppress(LabError):
                    self.close()


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
