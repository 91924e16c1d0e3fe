"""Decides when a set upgrades automatically, and why it does not (C1, C2)."""

from __future__ import annotations

import hashlib
from collections.abc import Callable
from dataclasses import dataclass
from datetime import datetime, timedelta
from functools import partial

from pytest_vmss.controller.moments import Moments
from pytest_vmss.controller.preconditions import Preconditions
from pytest_vmss.environment.environment import Environment
from pytest_vmss.errors import NotFoundError
from pytest_vmss.gallery.names import version_key
from pytest_vmss.journal.journal import Journal
from pytest_vmss.settings import Settings
from pytest_vmss.store import (
    GenerationRecord,
    InstanceRecord,
    OperationRecord,
    ScaleSetRecord,
    VersionRecord,
)
from pytest_vmss.store.queries import current_disk, instances_of

__all__ = ["Rollout", "Rollouts"]


@dataclass(frozen=True)
class Rollout:
    """A pending automatic upgrade.

    Attributes:
        target: The version to upgrade to.
        start: When it may start.
    """

    target: VersionRecord
    start: datetime


class Rollouts:
    """Decides on the automatic OS upgrades of a lab.

    Args:
        environment: The lab's environment.
        settings: The rollout delays.
    """

    def __init__(self, environment: Environment, settings: Settings) -> None:
        self._environment = environment
        self._settings = settings
        self._moments = Moments(lambda: environment.clock)
        self._preconditions = Preconditions(environment)

    def due(
        self,
        failed: Callable[[str, Exception], None] = lambda _, error: _raise(error),
        *,
        patient: bool = False,
    ) -> dict[str, VersionRecord]:
        """The target versions of the sets whose automatic upgrade is due, by set.

        Args:
            failed: Called with a set that could not be checked, and the error.
            patient: Asked again and again: request the URIs of models less often.
        """
        unmet = partial(self._preconditions.unmet, patient=patient)
        now = self._environment.clock.now()
        return {
            name: rollout.target
            for name, rollout in self._coming(failed, unmet).items()
            if rollout.start <= now
        }

    def next_start(self) -> datetime | None:
        """When the earliest pending rollout may start; None if none is pending."""
        # Errors are reported when due upgrades are run. What waits for a cure has no time yet.
        coming = self._coming(lambda _name, _error: None, lambda _: "it is not cured yet")
        return min((rollout.start for rollout in coming.values()), default=None)

    @property
    def any_automatic(self) -> bool:
        """Whether a set has automatic upgrades: other processes may make one due at any time."""
        revisions = self._environment.revisions
        return any(
            revisions.get(
                record.unique_id, record.revision
            ).model.automatic_os_upgrade.enable_automatic_os_upgrade
            for record in self._environment.store.select(ScaleSetRecord)
        )

    def _coming(
        self,
        failed: Callable[[str, Exception], None],
        unmet: Callable[[OperationRecord], str],
    ) -> dict[str, Rollout]:
        coming = {}
        for record in self._environment.store.select(ScaleSetRecord):
            try:
                rollout = self._look(record.name, unmet)
            except Exception as error:  # noqa: BLE001 - other sets are still checked
                if self._environment.store.get(ScaleSetRecord, *record.key) is not None:
                    failed(record.name, error)
                continue  # else it was deleted meanwhile
            if isinstance(rollout, Rollout):
                coming[record.name] = rollout
        return coming

    def look(self, name: str, *, patient: bool = False) -> Rollout | str:
        """A set's pending automatic upgrade, or why it has none; may observe its health.

        Args:
            name: The set.
            patient: As for :meth:`due`.
        """
        return self._look(name, partial(self._preconditions.unmet, patient=patient))

    def _look(self, name: str, unmet: Callable[[OperationRecord], str]) -> Rollout | str:
        record = self._environment.set_record(name)
        model = self._environment.revisions.get(record.unique_id, record.revision).model
        if record.state != "Succeeded":
            return (
                f"the set's provisioning state is {record.state}; it is Succeeded once every "
                "instance is: mend them (update_instances), or remove them"
            )
        if not model.automatic_os_upgrade.enable_automatic_os_upgrade:
            return "enableAutomaticOSUpgrade is not true in its model"
        try:
            target = self._environment.images.version_for(model.image_reference)
        except NotFoundError as error:
            return error.message
        instances = instances_of(self._environment.store, name)
        left = [instance for instance in instances if not self._has(instance, target)]
        if not left:
            return f"all its instances are on {target.version}, the latest version, or later"
        operations = Journal(self._environment, name).operations()
        for operation in operations:
            if operation.ended is None:
                return (
                    f"an operation on it ({operation.action}) is in progress or was interrupted; "
                    f"in the latter case: {self._environment.program} resume {record.name}"
                )
        tried = [op for op in operations if op.action == "upgrade" and _brings(op, target)]
        if tried and all(instance.protected for instance in left):
            return (
                f"all instances that are not on {target.version} are protected "
                "(protectFromScaleSetActions)"
            )
        if tried and (reason := self._blocked(record, tried[-1], unmet)):
            return reason
        return Rollout(target, self._start(record, target, operations))

    def _blocked(
        self,
        record: ScaleSetRecord,
        tried: OperationRecord,
        unmet: Callable[[OperationRecord], str],
    ) -> str:
        """Why a version is not tried again (C1); empty once something has changed since.

        Any change of the model counts, a capacity and opting in again among them, and any of an
        instance's protection; or the cure of what stopped the upgrade before its first batch.
        """
        if (record.revision, record.protections) != (tried.revision, tried.protections):
            return ""
        told = f"an upgrade to the latest version, {tried.target}, was tried already"
        if not self._preconditions.stopped(tried):
            return (
                f"{told} ({tried.status}), and nothing has changed since; a change of the model or "
                "of an instance's protection makes it due again"
            )
        left = unmet(tried)
        return (
            f"{told} and stopped before its first batch ({tried.error_code}): {left}"
            if left
            else ""
        )

    def why_not(self, name: str) -> str:
        """Why a set does not upgrade automatically now; empty if it does."""
        found = self.look(name)
        if isinstance(found, str):
            return found
        if found.start > self._environment.clock.now():
            return (
                f"the rollout of {found.target.version} waits until {found.start:%Y-%m-%d %H:%M:%S} "
                "UTC (settings first_rollout_delay and rollout_delay)"
            )
        return ""

    def _start(
        self, record: ScaleSetRecord, target: VersionRecord, operations: list[OperationRecord]
    ) -> datetime:
        low, high = self._settings.rollout_delay
        # The same delay in every process, and a different one for each set and version.
        seed = hashlib.sha256(f"{record.unique_id}/{target.digest}".encode()).digest()
        share = int.from_bytes(seed[:4], "big") / 2**32
        start = self._moments.placed(target.published) + timedelta(
            seconds=low + share * (high - low)
        )
        if not any(
            operation.action == "upgrade" and operation.started_by == "Platform"
            for operation in operations
        ):
            enabled = self._moments.placed(record.automatic_since or record.created)
            start = max(start, enabled + timedelta(seconds=self._settings.first_rollout_delay))
        return start

    def _has(self, instance: InstanceRecord, target: VersionRecord) -> bool:
        """Whether an instance already has an image version, or a later one of that image."""
        if instance.version is None:
            return True
        if version_key(instance.version) < version_key(target.version):
            return False
        disk = current_disk(self._environment.store, instance)
        return disk is None or _image(disk) == _image(target)


def _image(record: GenerationRecord | VersionRecord | OperationRecord) -> tuple[str, str]:
    """The image definition of a record: versions of different ones cannot be compared (C3)."""
    return record.image.definition_key


def _brings(operation: OperationRecord, target: VersionRecord) -> bool:
    """Whether an operation installs a version, as it is published now and not an earlier one."""
    same = _image(operation) == _image(target) and operation.target == target.version
    return same and operation.published in (None, target.published)


def _raise(error: Exception) -> None:
    raise error
