"""Steps that take an instance out of load balancing, and put it back (E1)."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from pytest_vmss.clock import wait_for
from pytest_vmss.environment.environment import InstanceContext
from pytest_vmss.environment.traffic import member_of
from pytest_vmss.errors import UnhealthyError, WaitTimeoutError
from pytest_vmss.load_balancer import Balancer
from pytest_vmss.steps.notice import withdraw_notice
from pytest_vmss.steps.step import Conclusion

__all__ = ["Drain", "LeaveBalancer", "Undrain"]

_LOOK_S = 0.05


@dataclass(frozen=True)
class Drain:
    """Takes the instance out of load balancing, and waits for its connections to end."""

    name: ClassVar[str] = "drain"
    timed: ClassVar[bool] = False
    durable: ClassVar[bool] = True

    def apply(self, context: InstanceContext) -> Conclusion:
        balancer = context.environment.traffic.balancer(context.scale_set)
        if balancer is not None:
            balancer.take_out(context.name)
            self._wait(context, balancer)
        return _in_service(context, False)

    @staticmethod
    def _wait(context: InstanceContext, balancer: Balancer) -> None:
        try:
            wait_for(
                f"the connections of {context.name} to end",
                lambda: balancer.connections(context.name) == 0 or None,
                timeout=context.timeouts.drain,
                clock=context.environment.clock,
                interval=_LOOK_S,
                describe=lambda: f"{balancer.connections(context.name)} are left",
            )
        except WaitTimeoutError as error:
            context.event("warning", f"{error.message}; they will break")


@dataclass(frozen=True)
class Undrain:
    """Puts the instance back into load balancing, and withdraws what its guest was told (O4).

    That also ends what will not be done: a deletion or swap that was given up.

    Attributes:
        wait: Wait until the load balancer finds it healthy, if it has the set's health probe.
    """

    name: ClassVar[str] = "undrain"
    timed: ClassVar[bool] = True
    durable: ClassVar[bool] = True

    wait: bool = True

    def apply(self, context: InstanceContext) -> Conclusion:
        balancer = context.environment.traffic.balancer(context.scale_set)
        if balancer is not None:
            balancer.add(member_of(context.record.model_copy(update={"in_service": True})))
            if self.wait and balancer.judges:
                self._wait(context, balancer)
        withdraw_notice(context)
        return _in_service(context, True)

    @staticmethod
    def _wait(context: InstanceContext, balancer: Balancer) -> None:
        timeout = context.timeouts.health
        try:
            wait_for(
                f"the load balancer to find {context.name} healthy",
                lambda: balancer.healthy(context.name) or None,
                timeout=timeout,
                clock=context.environment.clock,
                interval=_LOOK_S,
            )
        except WaitTimeoutError as error:
            raise UnhealthyError(
                f"its own port answers, but the load balancer's probe did not find it healthy "
                f"within {timeout:.0f} s",
                instance=context.name,
            ) from error


@dataclass(frozen=True)
class LeaveBalancer:
    """Removes an instance that is being deleted from the load balancer."""

    name: ClassVar[str] = "leave load balancer"
    timed: ClassVar[bool] = False
    durable: ClassVar[bool] = True

    def apply(self, context: InstanceContext) -> None:
        balancer = context.environment.traffic.balancer(context.scale_set)
        if balancer is not None:
            balancer.remove(context.name)


def _in_service(context: InstanceContext, value: bool) -> Conclusion:
    """Records whether the load balancer may send the instance traffic from now on."""

    def conclude() -> None:
        context.environment.store.amend(context.record, in_service=value)

    return conclude
