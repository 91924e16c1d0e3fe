"""Steps that stop a machine, start it, and prove that it has booted."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar, Literal

from pytest_vmss.clock import wait_for
from pytest_vmss.environment.environment import InstanceContext
from pytest_vmss.errors import WaitTimeoutError
from pytest_vmss.hypervisor import PowerState
from pytest_vmss.steps.step import Conclusion

__all__ = ["ProveBoot", "SetPower", "Start", "Stop"]


@dataclass(frozen=True)
class Stop:
    """Stops the machine: asks the guest to shut down, and cuts the power after a timeout.

    Attributes:
        abrupt: Cut the power at once, as Azure's ``skipShutdown``.
    """

    name: ClassVar[str] = "stop"
    timed: ClassVar[bool] = False
    durable: ClassVar[bool] = True

    generation: int
    abrupt: bool = False

    def apply(self, context: InstanceContext) -> None:
        hypervisor = context.environment.hypervisor
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
                    timeout=context.timeouts.stop,
                    clock=context.environment.clock,
                    interval=0.05,
                )
                return
            except WaitTimeoutError as error:
                context.event("warning", f"{error.message}; cutting its power")
        hypervisor.power_off(context.domain)


@dataclass(frozen=True)
class Start:
    """Starts the machine on one of its OS disks."""

    name: ClassVar[str] = "start"
    timed: ClassVar[bool] = False
    durable: ClassVar[bool] = False

    generation: int

    def apply(self, context: InstanceContext) -> None:
        hypervisor = context.environment.hypervisor
        machine = context.machine(self.generation)
        if hypervisor.running_generation(context.domain) == self.generation:
            if machine.platform is not None or machine.network is not None:
                hypervisor.start(machine)  # serves its guest, if a process for that was killed
            return  # started before a crash, or never stopped
        context.await_turn()
        generation = context.existing(self.generation)
        # ProveBoot needs to know what was there before the start.
        log = machine.console.stat().st_size if machine.console.exists() else 0
        store = context.environment.store
        with store.transaction():
            store.amend(
                generation,
                boot_before=generation.boot_id,
                console_from=log,
                started=True,
                started_at=context.environment.clock.now(),
                started_on=hypervisor.host_boot,
            )
            if context.record.power != "running":
                store.amend(context.record, power="running")
        hypervisor.start(machine)


@dataclass(frozen=True)
class ProveBoot:
    """Waits for a new boot from the OS disk, proven by its boot id."""

    name: ClassVar[str] = "boot"
    timed: ClassVar[bool] = True
    durable: ClassVar[bool] = False

    generation: int

    def apply(self, context: InstanceContext) -> Conclusion:
        store = context.environment.store
        generation = context.existing(self.generation)
        try:
            facts = context.guest(generation).wait_boot(generation.boot_before)
        finally:
            context.end_turn()

        def conclude() -> None:
            store.amend(
                generation,
                boot_id=facts.boot_id,
                kernel=facts.kernel,
                found_version=facts.image_version,
                host_key=generation.host_key or facts.host_key,
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
class SetPower:
    """Records the requested power state; an earlier change of power that failed is forgotten."""

    name: ClassVar[str] = "power state"
    timed: ClassVar[bool] = False
    durable: ClassVar[bool] = True

    power: Literal["running", "stopped", "deallocated"]

    def apply(self, context: InstanceContext) -> None:
        record, changes = context.record, dict[str, object]()
        if record.power_failed:  # what had failed was of this kind, and now it is well
            changes = {"provisioning": "Succeeded", "power_failed": False}
        context.environment.store.amend(record, power=self.power, **changes)
