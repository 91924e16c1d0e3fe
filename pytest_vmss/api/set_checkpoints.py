"""The checkpoints that a scale set has of itself: makes them, and restores the set to one (L1)."""

from __future__ import annotations

import secrets
import shutil

from pytest_vmss.engine.engine import Engine
from pytest_vmss.environment.environment import Environment
from pytest_vmss.errors import CapacityError, CheckpointError, NotFoundError
from pytest_vmss.journal.report import OperationReport
from pytest_vmss.operations import (
    RestoreCheckpoint,
    SaveScaleSet,
    checkpoints_of,
    drop_checkpoints,
    drop_incomplete,
    missing_from,
)
from pytest_vmss.store import CheckpointRecord, Outcome

__all__ = ["SetCheckpoints"]

_MIB = 1024**2


class SetCheckpoints:
    """The checkpoints of one scale set. Call what changes the set with the set locked.

    Args:
        environment: The lab's environment.
        engine: The set's.
    """

    def __init__(self, environment: Environment, engine: Engine) -> None:
        self._environment = environment
        self._engine = engine

    def labels(self) -> list[str]:
        """The names of the checkpoints that there are, the oldest first."""
        return list(dict.fromkeys(entry.label for entry in self._all()))

    def _all(self) -> list[CheckpointRecord]:
        return checkpoints_of(self._environment, self._engine.name)

    def make(self, label: str) -> OperationReport:
        """Makes a checkpoint; it replaces an earlier one of that name.

        Raises:
            CapacityError: The disk has no room for it; nothing was changed.
            ConflictError: An instance cannot be saved; nothing was changed.
            CheckpointError: An instance was not saved, and booted again; no checkpoint was made.
            ProvisioningError: An instance came up neither from what was saved nor by a boot.
            InterruptedOperationError: The host cannot continue for now.
        """
        self._engine.journal.ensure_idle()
        drop_incomplete(self._environment, self._engine.name)
        self._require_disk()
        older = [entry for entry in self._known() if entry.label == label]
        name = f"own.{secrets.token_hex(8)}"
        report = self._engine.perform(SaveScaleSet(name, label))
        unsaved = [n for n, outcome in report.outcomes.items() if outcome is not Outcome.SUCCEEDED]
        if unsaved:
            drop_incomplete(self._environment, self._engine.name)
            report.raise_for_status()
            named = ", ".join(f"{self._engine.name}_{number}" for number in unsaved)
            kept = self._saved_before(label)
            raise CheckpointError(
                f"no checkpoint of {self._engine.name!r} was made: {named} could not be "
                f"saved; the set's events say why, and what became of it{kept}"
            )
        drop_checkpoints(self._environment, older)
        return report

    def _saved_before(self, label: str) -> str:
        """What there still is of a name, in words."""
        earlier = [entry for entry in self._all() if entry.label == label]
        if not earlier:
            return ""
        of_that = "of that name" if label else "without a name"
        return f". The earlier one {of_that}, of {earlier[-1].created:%Y-%m-%d %H:%M} UTC, stays"

    def restore(self, label: str) -> OperationReport:
        """Restores the set to its checkpoint of a name; ends whatever is unfinished.

        Raises:
            NotFoundError: There is none; nothing was changed.
            CapacityError: The host has no room for instances that are to come back; nothing was
                changed.
            HostError: Files of it are not there; nothing was changed.
            ProvisioningError: An instance did not come up.
            InterruptedOperationError: The host cannot continue for now.
        """
        saved = next((entry for entry in reversed(self._all()) if entry.label == label), None)
        if saved is None:
            known = ", ".join(
                repr(name) if name else "one without a name" for name in self.labels()
            )
            which = f" {label!r}" if label else " without a name" if known else ""
            raise NotFoundError(
                f"{self._engine.name!r} has no checkpoint{which} (there are: {known or 'none'}); "
                "make one first (ScaleSet.checkpoint or `vmss checkpoint`)"
            )
        if missing := missing_from(self._environment, saved):
            model = self._environment.revisions.get(saved.set_id, saved.revision).model
            self._environment.require_room(len(missing), model)
        report = self._engine.perform(RestoreCheckpoint(saved))
        with self._engine.journal.outside("restore"):
            drop_incomplete(self._environment, self._engine.name)
        return report

    def _known(self) -> list[CheckpointRecord]:
        """The records of all checkpoints, complete or not."""
        return self._environment.store.select(CheckpointRecord, self._engine.name.lower())

    def _require_disk(self) -> None:
        """Checks that the disk has room for the memory of the instances.

        Raises:
            CapacityError: It has not.
        """
        environment, name = self._environment, self._engine.name
        size = environment.size_of(environment.revisions.current(name).model)
        needed = 2 * size.memory_mib * len(self._engine.instances())  # one more while it is read
        free = shutil.disk_usage(environment.paths.folder).free // _MIB
        if needed > free:
            raise CapacityError(
                f"a checkpoint of {name!r} needs {needed} MiB of disk for the memory of its "
                f"instances, and {free} MiB are free at {environment.paths.folder}; make room, or "
                "use another state directory (VMSS_STATE_DIR)"
            )
