"""The interface of a step."""

from __future__ import annotations

from collections.abc import Callable
from typing import ClassVar, Protocol

from pytest_vmss.environment.environment import InstanceContext

__all__ = ["Conclusion", "Step"]

#: Writes a step's result to the store.
Conclusion = Callable[[], None]


class Step(Protocol):
    """One effect on one instance.

    Attributes:
        name: Its name in the journal, which a resume compares.
        timed: Whether it is not started once the instance's deadline has passed. Steps that
            tidy up disks, and those after the commit, run at any time.
        durable: Whether its intent must be synchronized to the disk before it is applied. Not
            where it changes nothing outside the store, or where it first writes, durably, what
            it is about to do.
    """

    name: ClassVar[str]
    timed: ClassVar[bool]
    durable: ClassVar[bool]

    def apply(self, context: InstanceContext) -> Conclusion | None:
        """Carries out the effect, whether or not it was started before.

        Returns:
            A function that writes the result, in the transaction in which the journal
            records the step as done; None for nothing.
        """
