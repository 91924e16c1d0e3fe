"""Starts, stops, restarts and redeploys instances on their current disks (K1)."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import ClassVar, Literal

from pytest_vmss.environment.environment import Environment
from pytest_vmss.journal.work import Work
from pytest_vmss.operations.disk_swap import prove_steps, undrain
from pytest_vmss.operations.kind import OnInstances, Plan
from pytest_vmss.steps import Drain, ProveBoot, SetPower, Start, Step, Stop, Undrain
from pytest_vmss.store import Outcome

__all__ = ["Deallocate", "PowerChange", "Restart", "StartInstances", "StopInstances"]


#: The phase that starts an instance which was changed while it was stopped.
_PROVE = "first start"


def _start_steps(generation: int) -> list[Step]:
    return [Start(generation), ProveBoot(generation), Undrain(wait=False), SetPower("running")]


class PowerChange(OnInstances):
    """Changes instances' power; one that fails serves again if its probe succeeds.

    Attributes:
        phase: The phase's name.
        starts: Whether the instances run afterwards. One that was changed while it was stopped
            is then proved as after any swap: boot, custom data, extensions and health.
    """

    phase: ClassVar[str]
    starts: ClassVar[bool] = True

    @classmethod
    def steps(cls, work: Work, generation: int) -> Sequence[Step]:
        """The steps for one instance."""
        raise NotImplementedError

    @classmethod
    def run(cls, work: Work) -> None:
        """See the class."""
        plan = work.plan(lambda: False)
        proves = cls.starts and (work.has_begun(_PROVE) or work.context.record.unproven)
        if plan.error is None:
            try:
                if proves:
                    work.run(_PROVE, prove_steps(plan.source))
                else:
                    work.run(cls.phase, cls.steps(work, plan.source))
            except Exception as error:  # noqa: BLE001 - of the instance, else it is raised
                work.fail(error)
            else:
                return
        undrain(work)
        work.end_failed(Outcome.FAILED, power=not proves)


class StartInstances(PowerChange):
    """Starts stopped instances."""

    action = phase = "start"

    @classmethod
    def steps(cls, work: Work, generation: int) -> Sequence[Step]:  # noqa: ARG003
        """See the class."""
        return _start_steps(generation)


class Restart(PowerChange):
    """Stops and starts instances, on the same OS disk."""

    action = phase = "restart"

    @classmethod
    def steps(cls, work: Work, generation: int) -> Sequence[Step]:  # noqa: ARG003
        """See the class."""
        return [Drain(), Stop(generation), *_start_steps(generation)]


@dataclass(frozen=True)
class StopInstances(PowerChange):
    """Stops instances.

    Attributes:
        skip_shutdown: Cut the power instead of asking the guest to shut down.
    """

    skip_shutdown: bool = False
    action = "stop"
    phase = "stop"
    starts = False
    needs_machine = False
    power: ClassVar[Literal["stopped", "deallocated"]] = "stopped"

    def plan(self, environment: Environment, scale_set: str) -> Plan:
        """Plans all its instances at once."""
        plan = super().plan(environment, scale_set)
        return replace(plan, details={**plan.details, "skip_shutdown": self.skip_shutdown})

    @classmethod
    def steps(cls, work: Work, generation: int) -> Sequence[Step]:
        """See the class."""
        return [
            Drain(),
            Stop(generation, abrupt=work.operation.skip_shutdown),
            SetPower(cls.power),
        ]


class Deallocate(StopInstances):
    """Stops and deallocates instances; locally the same as a stop."""

    action = "deallocate"
    power = "deallocated"
