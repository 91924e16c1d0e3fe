"""What a step is."""

from __future__ import annotations

from collections.abc import Callable
from typing import ClassVar, Protocol

from pytest_vmss.environment.environment import InstanceContext

__all__ = ["Conclusion", "Step"]

#: Writes to the store what came of a step.
Conclusion = Callable[[], None]


class Step(Protocol):
    """One effect on one instance.

    Attributes:
        name: In the journal; a resume compares it.
        timed: Whether it is not begun once the instance's time is over. What puts the disks
            in order, and what comes after the commit, is done at any time.
    """

    name: ClassVar[str]
    timed: ClassVar[bool]

    def apply(self, context: InstanceContext) -> Conclusion | None:
        """Brings the effect about, whether or not it was begun before.

        Returns:
            What is to be written together with the journal's note that it is done:
            both are durable, or neither. None for nothing.
        """
