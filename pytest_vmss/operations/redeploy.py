"""Redeploys instances: stops them, and starts new machines on the same disks."""

from __future__ import annotations

from collections.abc import Sequence

from pytest_vmss.journal.work import Work
from pytest_vmss.operations.power import PowerChange
from pytest_vmss.steps import AwaitHealth, Drain, ProveBoot, SetPower, Start, Step, Stop, Undrain

__all__ = ["Redeploy"]


class Redeploy(PowerChange):
    """Azure's ``redeploy``: a new machine on the same OS disk and data disks."""

    action = phase = "redeploy"

    @classmethod
    def steps(cls, work: Work, generation: int) -> Sequence[Step]:  # noqa: ARG003
        """See the class."""
        return [
            Drain(),
            Stop(generation),
            Start(generation),
            ProveBoot(generation),
            AwaitHealth(generation),
            Undrain(),
            SetPower("running"),
        ]
