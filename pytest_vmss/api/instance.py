"""One VM of a scale set, as tests use it."""

from __future__ import annotations

import secrets
from collections.abc import Iterable, Iterator
from contextlib import AbstractContextManager
from dataclasses import replace
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pytest_vmss.api.faults import Faults
from pytest_vmss.api.instance_view import instance_view, status_of, virtual_machine
from pytest_vmss.clock import wait_for
from pytest_vmss.environment.environment import Environment, InstanceContext
from pytest_vmss.environment.health import HealthSources, observe_health
from pytest_vmss.errors import GuestUnreachableError, ModelError, ModelProblem, NotFoundError
from pytest_vmss.guest import Guest, Shell
from pytest_vmss.guest.console import Console
from pytest_vmss.guest.extensions import RunCommandLinux
from pytest_vmss.guest.logs import LOGS, GuestLog
from pytest_vmss.guest.testinfra_host import testinfra_host
from pytest_vmss.health import Observation, worst
from pytest_vmss.hypervisor import PowerState
from pytest_vmss.model import Extension, Health
from pytest_vmss.model.arguments import (
    check_choice,
    check_choices,
    check_flag,
    check_port,
    check_script,
    check_seconds,
)
from pytest_vmss.model.extension_result import ExtensionResult
from pytest_vmss.operations.revisions import has_latest_model
from pytest_vmss.store import GenerationRecord, InstanceRecord
from pytest_vmss.store.queries import instances_of

if TYPE_CHECKING:
    from testinfra.host import Host

__all__ = ["Instance"]

#: Seconds between two looks at an instance's health.
_LOOK_S = 0.5


class Instance:
    """One VM of a scale set; its identity survives swaps of its OS disk."""

    def __init__(self, environment: Environment, scale_set: str, instance_id: int) -> None:
        self._environment = environment
        known = InstanceContext(environment, scale_set, instance_id)
        self._context = replace(known, uuid=known.record.uuid)
        self._guest: tuple[tuple[int, str], Guest] | None = None

    def __repr__(self) -> str:
        return f"<Instance {self.name}>"

    @property
    def record(self) -> InstanceRecord:
        """Its record in the store."""
        return self._context.record

    def _own(self) -> InstanceContext:
        """The instance that this handle was created for.

        Raises:
            NotFoundError: It is gone.
        """
        self._context.record  # noqa: B018 - it raises
        return self._context

    @property
    def generation(self) -> GenerationRecord:
        """The record of its current OS disk.

        Raises:
            NotFoundError: It never came up, so it has none.
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
    def private_ip_address(self) -> str | None:
        """Its address in the private network of its set; None if that has none (A9)."""
        network = self._own().network
        return None if network is None else str(network.address)

    @property
    def zone(self) -> str:
        """Its availability zone; empty in a regional set."""
        return self.record.zone

    @property
    def update_domain(self) -> int:
        """Its update domain, within its zone and placement group."""
        return self.record.update_domain

    @property
    def image_version(self) -> str | None:
        """The version read inside the guest, or the published one if the guest names none (E2)."""
        generation = self._context.generation(self.record.generation)
        return None if generation is None else generation.found_version or generation.version

    @property
    def boot_id(self) -> str | None:
        """The boot id of the last proven boot."""
        return self.generation.boot_id

    @property
    def kernel(self) -> str | None:
        """The kernel's release, read inside the guest."""
        return self.generation.kernel

    @property
    def extensions(self) -> tuple[ExtensionResult, ...]:
        """The result of each extension on this OS disk."""
        return self.generation.extensions

    @property
    def os_disk(self) -> Path:
        """The file of its OS disk."""
        return self._context.os_disk(self.generation.number)

    @property
    def data_disks(self) -> dict[int, Path]:
        """The files of its data disks, by LUN; never open one for writing."""
        model = self._context.revision(self.generation.revision).model
        return {disk.lun: disk.path for disk in self._context.data_disks(model)}

    @property
    def latest_model_applied(self) -> bool:
        """Azure's ``latestModelApplied``: whether it has the set's current model (C9)."""
        return has_latest_model(self._environment, self.record)

    def protect(
        self, *, from_scale_in: bool | None = None, from_scale_set_actions: bool | None = None
    ) -> None:
        """Sets or removes the instance's protection; None leaves a flag unchanged (D9).

        As in Azure, an instance that is protected from set-wide actions is also protected
        from scaling in.

        Args:
            from_scale_in: ``protectFromScaleIn``.
            from_scale_set_actions: ``protectFromScaleSetActions``.

        Raises:
            ModelError: Azure does not accept that combination; nothing was changed.
        """
        check_flag(from_scale_in, "from_scale_in", none=True)
        check_flag(from_scale_set_actions, "from_scale_set_actions", none=True)
        record = self.record
        actions = record.protected if from_scale_set_actions is None else from_scale_set_actions
        scale_in = record.protect_from_scale_in if from_scale_in is None else from_scale_in
        if actions and from_scale_in is False:
            problem = ModelProblem(
                "$.protectionPolicy.protectFromScaleIn",
                "InvalidParameter",
                "cannot be false where protectFromScaleSetActions is true",
            )
            raise ModelError([problem], source=f"the protection policy of {self.name}")
        store = self._environment.store
        with store.transaction():
            store.amend(record, protected=actions, protect_from_scale_in=scale_in or actions)
            if actions != record.protected:  # an upgrade that left it out may be due again (C1)
                of = self._environment.set_record(record.scale_set)
                store.amend(of, protections=of.protections + 1)
            self._context.event(
                "protection",
                f"protectFromScaleIn {str(scale_in or actions).lower()}, "
                f"protectFromScaleSetActions {str(actions).lower()}",
            )

    def instance_view(self) -> dict[str, Any]:
        """Azure's instance view; extensions that keep reporting are queried now (H4, J3)."""
        return instance_view(self._context.at(self._context.instance_id))

    def resource(self) -> dict[str, Any]:
        """Azure's ``VirtualMachineScaleSetVM``, with the instance view in its properties (J3).

        What Azure has no name for, such as ``bootId`` and ``imageVersionFound``, is in ``lab``.
        """
        context = self._context.at(self._context.instance_id)
        return virtual_machine(context, latest_model_applied=self.latest_model_applied)

    @property
    def power_state(self) -> PowerState:
        """The state of its machine: running, stopped and so on."""
        return self._environment.hypervisor.state(self._own().domain)

    def health(self) -> Health:
        """Its health now; queries each of its health sources."""
        return worst(self.observations()).health

    def observations(self) -> dict[str, Observation]:
        """What each of its health sources reports now, by the source's name."""
        context = self._context.at(self._context.instance_id)
        applied = context.revision(self.record.revision)
        health_sources = HealthSources.of(self._environment, context.scale_set, applied)
        try:
            return observe_health(context, health_sources)
        finally:
            context.leave()

    def wait_for_health(
        self, wanted: Health | str, *, source: str | None = None, timeout: float | None = None
    ) -> Observation:
        """Waits until the instance is in a state of health; sources change theirs after some looks.

        Args:
            wanted: The state, as ``"Unhealthy"``.
            source: The health source that must report it, by its name in :meth:`observations`; the
                instance as a whole by default.
            timeout: Seconds; ``timeouts.health`` by default.

        Returns:
            What was observed.

        Raises:
            ModelError: There is no such state, or ``timeout`` is no time.
            NotFoundError: The instance has no such source; the message names those that it has.
            WaitTimeoutError: It was not so in time; the message says what was observed last.
        """
        state = check_choice(wanted, "wanted", tuple(Health))
        limit = check_seconds(timeout, "timeout", none=True)
        seen: list[Observation] = []

        def look() -> Observation | None:
            seen[:] = [self._observation(source)]
            return seen[0] if seen[0].health == state else None

        told = f" by its {source}" if source else ""
        return wait_for(
            f"{self.name} to be {state}{told}",
            look,
            timeout=self._context.base_timeouts.health if limit is None else limit,
            clock=self._environment.clock,
            interval=_LOOK_S,
            describe=lambda: f"{seen[0].health}: {seen[0].detail}" if seen else "",
        )

    def _observation(self, source: str | None) -> Observation:
        """What one of its health sources reports, or the worst of all.

        Raises:
            NotFoundError: There is no such source.
        """
        observations = self.observations()
        if source is None:
            return worst(observations)
        if source not in observations:
            raise NotFoundError(
                f"{self.name} has no health source {source!r}; it has: {', '.join(observations)}"
            )
        return observations[source]

    def address(self, port: int) -> tuple[str, int]:
        """The host's address and port that are forwarded to a port of the guest.

        Raises:
            NotFoundError: The port is not forwarded.
        """
        check_port(port)
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
        """The console of its current OS disk."""
        return self._context.console(self.generation)

    def shell(self) -> Shell:
        """An SSH connection as the administrator; a new one after a disk swap or a new boot.

        Raises:
            GuestUnreachableError: The instance does not answer.
        """
        return self._connected().shell()

    def logs(
        self, names: Iterable[str] = LOGS, *, timeout: float = 60.0, each: float = 30.0
    ) -> Iterator[GuestLog]:
        """Yields what the guest tells about itself: its journal, cloud-init's logs, and more.

        Args:
            names: Which of :data:`~pytest_vmss.guest.logs.LOGS`.
            timeout: Seconds for all of them.
            each: Seconds for each.

        Raises:
            ModelError: There is no log of that name, or the seconds are no number.
            GuestUnreachableError: The instance does not answer, or is on another OS disk.
        """
        names = check_choices(names, "names", LOGS)
        check_seconds(timeout, "timeout")
        check_seconds(each, "each")
        guest, disk = self._connected(), self.generation.number
        running = self._context.environment.hypervisor.running_generation(self._context.domain)
        if running not in (disk, None):  # whose guest agent would answer
            raise GuestUnreachableError(
                f"runs on OS disk number {running}, which is not its current one ({disk}) yet; "
                "wait for the operation on it to end",
                instance=self.name,
            )
        return guest.logs(names, timeout=timeout, each=each)

    def _connected(self) -> Guest:
        """The guest of its current OS disk and boot."""
        generation = self.generation
        mark = (generation.number, generation.boot_id or "")
        if self._guest is None or self._guest[0] != mark:
            if self._guest is not None:
                self._guest[1].close()
            self._guest = (mark, self._context.new_guest(generation))
        return self._guest[1]

    @cached_property
    def host(self) -> Host:
        """A testinfra host that runs everything as root (L6)."""
        return testinfra_host(self.name, self.shell)

    def run_command(self, script: str, *, timeout: float = 600.0) -> dict[str, Any]:
        """Runs a script as root, as Azure's Run Command does.

        Args:
            script: A script for ``/bin/sh``.
            timeout: Seconds after which the script is killed.

        Returns:
            Azure's answer: ``value``, a list with one status, whose ``message`` holds the
            output.

        Raises:
            GuestUnreachableError: The instance does not answer.
        """
        check_script(script)
        check_seconds(timeout, "timeout")
        extension = Extension(
            name="runCommand", publisher=RunCommandLinux.publisher, type=RunCommandLinux.type,
            type_handler_version="1.0", settings={"script": script.splitlines()},
        )  # fmt: skip
        guest = self._context.new_guest(self.generation)
        try:
            result = guest.run_extension(extension, secrets.token_hex(8), timeout)
        finally:
            guest.close()
        return {"value": [status_of(result)]}

    @cached_property
    def faults(self) -> Faults:
        """Injects faults into the instance for a test, and repairs them afterwards."""
        context, environment = self._own(), self._environment
        return Faults(
            context.name,
            context.domain,
            hypervisor=lambda: environment.hypervisor,
            shell=self.shell,
            cut=self._cut_off,
            number_of=self._number_of,
            tell=context.event,
        )

    def _number_of(self, other: object) -> int | None:
        """The number of an instance of the same set, which one of that name in another lab is not."""
        if not isinstance(other, Instance):
            return None
        own, others = (each._context.domain.rpartition("_")[0] for each in (self, other))
        return other._context.instance_id if own == others else None

    def _cut_off(self, others: frozenset[int]) -> AbstractContextManager[None]:
        """Cuts it off from other instances of its set for a block, or from all there are or will be.

        Raises:
            NotFoundError: There is no private network, or no such other instance.
        """
        context = self._own()
        network = context.network
        if network is None:
            raise NotFoundError(
                f"{self.name} is in no private network: its model has no subnet in "
                "networkProfile.networkInterfaceConfigurations[].ipConfigurations[]"
            )
        known = instances_of(self._environment.store, context.scale_set)
        there = {record.instance_id for record in known} - {network.instance_id}
        if not others <= there:
            wrong = ", ".join(f"{context.scale_set}_{number}" for number in sorted(others - there))
            raise NotFoundError(f"{self.name} has no other instance {wrong} in its set")
        return self._environment.hypervisor.cut_off(network, others)

    def close(self) -> None:
        """Closes the SSH connection to it."""
        if self._guest is not None:
            self._guest[1].close()
            self._guest = None
