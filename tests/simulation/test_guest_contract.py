"""The simulated guest does what every guest does."""

from __future__ import annotations

from pytest_vmss.environment.environment import InstanceContext
from pytest_vmss.guest import Guest
from tests.guest_contract import check_guest
from tests.simulation.conftest import SimulatedLab


def test_the_contract(lab: SimulatedLab) -> None:
    web = lab.start_web(1)
    context = InstanceContext(lab.environment, "web", 0)

    def make() -> Guest:
        return lab.environment.make_guest(context, web[0].generation)

    check_guest(
        make,
        command="true",
        hang="hang",
        count=lambda: sum(
            times for (_, _, what), times in lab.runs.items() if what.startswith("contract")
        ),
        power_off=lambda: lab.simulated.power_off(context.domain),
    )
