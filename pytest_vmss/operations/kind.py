"""What a kind of operation is: what it plans, and what it does to one instance.

To add one: a module with a subclass of :class:`Kind`, and its name in
:data:`~pytest_vmss.operations.KINDS`. The engine opens, journals, resumes and ends every
kind alike and knows none by name.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, ClassVar, Literal, Protocol

from pytest_vmss.environment.environment import Environment, InstanceContext
from pytest_vmss.steps import Step
from pytest_vmss.store import OperationRecord, Outcome, OutcomeRecord, VersionRecord

__all__ = ["Kind", "Plan", "StartedBy", "Work", "at_once"]

StartedBy = Literal["User", "Platform"]


@dataclass(frozen=True)
class Plan:
    """What an operation is going to do.

    Attributes:
        outcomes: Its instances, and where each stands: in progress from the start, not
            started where batches are still to be formed, or skipped.
        version: The image version that it brings, fixed from now on (C4).
        rolling: Batch after batch, as the policy says; else all instances at once.
        replaced: Instances each of which gets a new one in its place.
        details: Other fields of the operation's record.
    """

    outcomes: Mapping[int, Outcome]
    version: VersionRecord | None = None
    rolling: bool = False
    replaced: Sequence[int] = ()
    details: Mapping[str, Any] = field(default_factory=dict)


class Work(Protocol):
    """One instance in one operation, as the kind of the operation works on it.

    Attributes:
        environment: The backends.
        operation: The operation's record.
        context: The instance.
    """

    environment: Environment
    operation: OperationRecord
    context: InstanceContext

    @property
    def result(self) -> OutcomeRecord:
        """Where the instance stands."""

    def plan(self, new_disk: Callable[[], bool]) -> OutcomeRecord:
        """From which OS disk to which, and from which model; the same after a resume.

        Args:
            new_disk: Whether the instance gets a new OS disk; asked once, before the first step.
        """

    def run(self, phase: str, steps: Sequence[Step], outcome: Outcome = Outcome.SUCCEEDED) -> None:
        """Runs a phase that must end in time (G4), and with which the instance is done.

        Raises:
            Exception: What a step raised.
        """

    def run_untimed(
        self, phase: str, steps: Sequence[Step], outcome: Outcome | None = None
    ) -> None:
        """Runs a phase that has no limit of its own; the instance is done where an outcome is given.

        Raises:
            Exception: What a step raised.
        """

    def run_on(
        self, instance: InstanceContext, phase: str, steps: Sequence[Step], *, timed: bool = True
    ) -> None:
        """Runs a phase of this operation on another instance."""

    def has_begun(self, phase: str) -> bool:
        """Whether a step of a phase was begun."""

    def fail(self, error: Exception) -> None:
        """Records what went wrong; from now on the instance goes the way back.

        Raises:
            Exception: The very error, where it says nothing about the instance (Q1).
        """

    def end(self, outcome: Outcome) -> None:
        """Records what came of the instance, with which the operation is done."""

    def end_failed(self, outcome: Outcome) -> None:
        """Likewise; its provisioning has failed."""

    def begin_rollback(self) -> None:
        """Records that the instance is being rolled back."""


class Kind(ABC):
    """A kind of operation; an object of it is a request for one.

    Attributes:
        action: Its name in records, events and messages.
        needs_machine: Whether it starts machines, so that their size and extensions must be
            known before the first is stopped.
        surges: Whether ``maxSurge`` applies to it.
        ends_others: Why an unfinished operation ends when it begins; empty where that keeps it
            from beginning.
    """

    action: ClassVar[str]
    needs_machine: ClassVar[bool] = True
    surges: ClassVar[bool] = False
    ends_others: ClassVar[str] = ""

    @classmethod
    def in_words(cls, version: VersionRecord | None) -> str:
        """What it does, for events."""
        return cls.action if version is None else f"{cls.action} to {version.version}"

    @abstractmethod
    def plan(self, environment: Environment, scale_set: str) -> Plan:
        """Plans it, in the transaction that opens it: what it writes is durable with it.

        Args:
            environment: Where the set is.
            scale_set: The set's name.

        Raises:
            VmssError: It cannot be; nothing is written.
        """

    @classmethod
    @abstractmethod
    def run(cls, work: Work) -> None:
        """Brings one instance to its end, forward or back.

        Called again after a crash or an error of the host, and goes on where the journal ends.

        Raises:
            Exception: It could not be brought to an end now.
        """

    @classmethod
    def roll_back(cls, work: Work) -> None:
        """Gives a failed instance back what it had, where the operation stops for it.

        Raises:
            Exception: The host could not go on; it can be called again.
        """
        raise NotImplementedError(f"{cls.action} has no way back: {work.context.name}")


def at_once(instance_ids: Iterable[int], *, skipped: Iterable[int] = ()) -> dict[int, Outcome]:
    """The instances that an operation begins with at once, and those that it leaves out."""
    return {
        **dict.fromkeys(instance_ids, Outcome.IN_PROGRESS),
        **dict.fromkeys(skipped, Outcome.SKIPPED),
    }
