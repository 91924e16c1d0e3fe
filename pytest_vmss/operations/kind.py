"""The interface of a kind of operation: what it plans, and what it does to one instance.

To add a kind, write a module with a subclass of :class:`Kind`, and list it in
:data:`~pytest_vmss.operations.KINDS`. The engine opens, journals, resumes and ends all
kinds alike and knows none by name.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, ClassVar, Literal

from pytest_vmss.environment.environment import Environment
from pytest_vmss.journal.report import OperationReport
from pytest_vmss.journal.work import Work
from pytest_vmss.store import Outcome, VersionRecord

__all__ = ["Kind", "OnInstances", "Plan", "StartedBy", "at_once"]

StartedBy = Literal["User", "Platform"]


@dataclass(frozen=True)
class Plan:
    """What an operation is going to do.

    Attributes:
        outcomes: Its instances, and the initial outcome of each: in progress, not started
            if batches are still to be formed, or skipped.
        version: The image version that it installs, fixed from now on (C4).
        rolling: Batch by batch, as the policy says; else all instances at once.
        replaced: Instances that are each replaced by a new one.
        details: Other fields of the operation's record.
    """

    outcomes: Mapping[int, Outcome]
    version: VersionRecord | None = None
    rolling: bool = False
    replaced: Sequence[int] = ()
    details: Mapping[str, Any] = field(default_factory=dict)


class Kind(ABC):
    """A kind of operation; an instance of it is a request for one.

    Attributes:
        action: Its name in records, events and messages.
        needs_machine: Whether it starts machines, so that their size and extensions must be
            known before the first is stopped.
        surges: Whether ``maxSurge`` applies to it.
        by_zones: Whether it brings an image version to a region, zone after zone (D4).
        ends_others: The reason recorded when it ends an unfinished operation; empty if an
            unfinished operation is a conflict instead.
    """

    action: ClassVar[str]
    needs_machine: ClassVar[bool] = True
    surges: ClassVar[bool] = False
    by_zones: ClassVar[bool] = False
    ends_others: ClassVar[str] = ""

    @classmethod
    def in_words(cls, version: VersionRecord | None) -> str:
        """What it does, for events."""
        return cls.action if version is None else f"{cls.action} to {version.version}"

    @classmethod
    def remark(cls, report: OperationReport) -> str:  # noqa: ARG003
        """What is to be said of an operation that completes, besides the outcomes; empty for nothing."""
        return ""

    @abstractmethod
    def plan(self, environment: Environment, scale_set: str) -> Plan:
        """Plans the operation, in the transaction that opens it.

        Args:
            environment: The lab's environment.
            scale_set: The set's name.

        Raises:
            VmssError: It is not possible; nothing is written.
        """

    @classmethod
    @abstractmethod
    def run(cls, work: Work) -> None:
        """Runs the operation on one instance until it has an outcome.

        Called again after a crash or an error of the host, and continues from the journal.

        Raises:
            Exception: It could not be finished for now.
        """

    @classmethod
    def roll_back(cls, work: Work) -> None:
        """Rolls a failed instance back, after the operation was stopped by failures.

        Raises:
            Exception: The host could not continue; this can be called again.
        """
        raise NotImplementedError(f"{cls.action} has no way back: {work.context.name}")


@dataclass(frozen=True)
class OnInstances(Kind):
    """A kind of operation that is asked for on instances, and acts on all of them at once.

    Attributes:
        instance_ids: The instances.
        skipped: Instances that a set-wide call leaves out.
        started_by: Azure's ``startedBy``.
    """

    instance_ids: Sequence[int]
    skipped: Sequence[int] = ()
    started_by: StartedBy = "User"

    def plan(self, environment: Environment, scale_set: str) -> Plan:  # noqa: ARG002
        """Plans all its instances at once."""
        return Plan(
            at_once(self.instance_ids, skipped=self.skipped),
            details={"started_by": self.started_by},
        )


def at_once(instance_ids: Iterable[int], *, skipped: Iterable[int] = ()) -> dict[int, Outcome]:
    """The outcomes for instances that an operation starts at once, and those that it skips."""
    return {
        **dict.fromkeys(instance_ids, Outcome.IN_PROGRESS),
        **dict.fromkeys(skipped, Outcome.SKIPPED),
    }
