"""Decides when a set upgrades automatically, and why it does not (C1, C2)."""

from __future__ import annotations

import hashlib
from collections.abc import Callable
from dataclasses import dataclass
from datetime import datetime, timedelta

from pytest_vmss.controller.moments import Moments
from pytest_vmss.environment.environment import Environment
from pytest_vmss.errors import NotFoundError
from pytest_vmss.gallery.gallery import version_key
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

    def due(
        self, failed: Callable[[str, Exception], None] = lambda _, error: _raise(error)
    ) -> dict[str, VersionRecord]:
        """The target versions of the sets whose automatic upgrade is due, by set.

        Args:
            failed: Called with a set that could not be checked, and the error.
        """
        now = self._environment.clock.now()
        return {
            name: rollout.target
            for name, rollout in self._coming(failed).items()
            if rollout.start <= now
        }

    def next_start(self) -> datetime | None:
        """When the earliest pending rollout may start; None if none is pending."""
        coming = self._coming(lambda _name, _error: None)  # reported when due upgrades are run
        return min((rollout.start for rollout in coming.values()), default=None)

    def _coming(self, failed: Callable[[str, Exception], None]) -> dict[str, Rollout]:
        coming = {}
        for record in self._environment.store.select(ScaleSetRecord):
            try:
                rollout = self.look(record.name)
            except Exception as error:  # noqa: BLE001 - other sets are still checked
                if self._environment.store.get(ScaleSetRecord, *record.key) is not None:
                    failed(record.name, error)
                continue  # else it was deleted meanwhile
            if isinstance(rollout, Rollout):
                coming[record.name] = rollout
        return coming

    def look(self, name: str) -> Rollout | str:
        """A set's pending automatic upgrade, or why it has none."""
        record = self._environment.set_record(name)
        model = self._environment.revisions.get(record.unique_id, record.revision).model
        if record.state != "Succeeded":
            return f"the set's provisioning state is {record.state}"
        if not model.automatic_os_upgrade.enable_automatic_os_upgrade:
            return "enableAutomaticOSUpgrade is not true in its model"
        try:
            target = self._environment.images.version_for(model.image_reference)
        except NotFoundError as error:
            return error.message
        instances = instances_of(self._environment.store, name)
        if all(self._has(instance, target) for instance in instances):
            return f"all its instances are on {target.version}, the latest version, or later"
        operations = Journal(self._environment, name).operations()
        for operation in operations:
            if operation.ended is None:
                return (
                    f"an operation on it ({operation.action}) is in progress or was interrupted; "
                    f"in the latter case: {self._environment.program} resume {record.name}"
                )
            if operation.action == "upgrade" and _brings(operation, target):
                return (
                    f"an upgrade to the latest version, {target.version}, was tried already "
                    f"({operation.status})"
                )
        return Rollout(target, self._start(record, target, operations))

    def why_not(self, name: str) -> str:
        """Why a set does not upgrade automatically now; empty if it does."""
        found = self.look(name)
        if isinstance(found, str):
            return found
        if found.start > self._environment.clock.now():
            return (
                f"the rollout of {found.target.version} waits until {found.start:%Y-%m-%d %H:%M:%S}"
                " (settings first_rollout_delay and rollout_delay)"
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
        disk = current_disk(self._environment.store, instance)
        if disk is not None and _image(disk) != _image(target):
            return False
        return version_key(instance.version) >= version_key(target.version)


def _image(record: GenerationRecord | VersionRecord | OperationRecord) -> tuple[str, str]:
    """The image definition of a record: versions of different ones cannot be compared (C3)."""
    return record.gallery.lower(), record.definition.lower()


def _brings(operation: OperationRecord, target: VersionRecord) -> bool:
    return _image(operation) == _image(target) and operation.target == target.version


def _raise(error: Exception) -> None:
    raise error
