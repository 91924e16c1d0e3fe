"""Opens, runs, resumes and cancels operations on a scale set.

Opening is one transaction; running needs only the operation's id. A first run, a resume after
a kill at any point, and a resume of that resume are the same call (M1).
"""

from __future__ import annotations

import contextlib
import shutil
import threading
from collections.abc import Iterator
from pathlib import Path

from pytest_vmss.clock import Stopped, stoppable
from pytest_vmss.engine.rollout import Rollout, allocate_replacements
from pytest_vmss.engine.work import Worker
from pytest_vmss.environment.environment import Environment
from pytest_vmss.environment.observers import Moment, Told
from pytest_vmss.errors import (
    ConflictError,
    InterruptedOperationError,
    LabError,
    NotFoundError,
)
from pytest_vmss.host.locks import Lock, wait_for_lock
from pytest_vmss.journal.journal import Journal
from pytest_vmss.journal.report import OperationReport
from pytest_vmss.operations import DeleteScaleSet, Kind, drop_incomplete, kind_of
from pytest_vmss.operations.scale import scaling_to
from pytest_vmss.store import (
    CheckpointRecord,
    DetachedDiskRecord,
    InstanceRecord,
    ModelRecord,
    ScaleSetRecord,
)
from pytest_vmss.store.queries import instances_of

__all__ = ["Engine"]


class Engine:
    """Runs operations on one scale set. Call what changes the set with the set locked.

    Args:
        environment: The lab's environment.
        scale_set: The set's name.
    """

    def __init__(self, environment: Environment, scale_set: str) -> None:
        self._environment = environment
        self._store = environment.store
        known = environment.store.get(ScaleSetRecord, scale_set.lower())
        self.name = scale_set if known is None else known.name  # in the case it was created with
        self._set_id = None if known is None else known.unique_id
        self.journal = Journal(environment, self.name)
        self._worker = Worker(environment, self.journal, self.name)
        self._rollout = Rollout(environment, self.journal, self._worker, self.name)

    @contextlib.contextmanager
    def lock(self, *, wait: float = 0.0) -> Iterator[None]:
        """Locks the set for this thread: one orchestrator at a time, across processes (M4).

        Args:
            wait: Seconds of real time to wait for the lock.

        Raises:
            ConflictError: Another thread or process has it locked; nothing was changed.
            NotFoundError: It was deleted.
            LabError: Its lock cannot be taken; nothing was changed.
            InterruptedOperationError: The operation inside was stopped.
        """
        lock = self._acquire(wait)
        signal, working = threading.Event(), self._environment.working
        try:
            self.require_own()
            working[self.name.lower()] = signal
            with stoppable(signal):
                yield
        except Stopped as error:
            unfinished = self.journal.unfinished()
            raise InterruptedOperationError(
                f"what was done to {self.name!r} was stopped",
                scale_set=self.name,
                operation="" if unfinished is None else unfinished.id,
            ) from error
        finally:
            if working.get(self.name.lower()) is signal:
                del working[self.name.lower()]
            lock.release()

    def _acquire(self, wait: float) -> Lock:
        try:
            return wait_for_lock(
                self._environment.paths.lock(self.name), what="changes the set", timeout=wait
            )
        except ConflictError:  # its words would blame another process
            raise ConflictError(
                f"Operation is not allowed on the scale set {self.name!r}, since another "
                "operation is in progress on it; wait for it to end, or cancel it"
            ) from None
        except OSError as error:
            raise LabError(
                f"the scale set {self.name!r} cannot be locked, and nothing was changed: "
                f"{error}; mend that, and repeat the command"
            ) from error

    def require_own(self) -> None:
        """Checks that the set is still the one that this engine was created for.

        Raises:
            NotFoundError: That set was deleted.
        """
        known = self._store.get(ScaleSetRecord, self.name.lower())
        if self._set_id is not None and (known is None or known.unique_id != self._set_id):
            raise NotFoundError(
                f"the scale set {self.name!r} that was meant is gone"
                + ("" if known is None else "; another has its name: ask the lab for it")
            )

    # Operations.

    def open(self, kind: Kind) -> str:
        """Opens an operation, durably, before its first effect.

        What it plans is committed together with it, or not at all. Do not plan an open
        operation again: :meth:`run` continues from the journal.

        Args:
            kind: The requested operation.

        Returns:
            The operation's id.

        Raises:
            UpgradeError: An earlier operation was interrupted; nothing was changed.
            VmssError: It cannot be planned; nothing was changed.
        """
        unfinished = None
        with self._store.transaction():
            if kind.ends_others and (unfinished := self.journal.unfinished()) is not None:
                self.journal.abandon(unfinished.id, kind.ends_others)
            plan = kind.plan(self._environment, self.name)
            operation = self.journal.open(
                kind.action,
                plan.outcomes,
                what=kind.in_words(plan.version),
                version=plan.version,
                rolling=plan.rolling,
                **plan.details,
            )
            if plan.replaced:
                allocate_replacements(self._environment, self.journal, operation.id, plan.replaced)
        if unfinished is not None and not isinstance(kind, DeleteScaleSet):
            self._rollout.approvals.close(unfinished.id)
        return operation.id

    def run(self, operation_id: str) -> OperationReport:
        """Runs an operation to its end, from wherever it stands.

        Args:
            operation_id: As returned by :meth:`open`.

        Returns:
            The operation as it ended.

        Raises:
            InterruptedOperationError: The host cannot continue for now; see :meth:`resume`.
        """
        observers = self._environment.observers
        with observers.running(operation_id):
            with self.journal.resumable(operation_id):
                if self.journal.operation(operation_id).rolling:
                    self._rollout.run(operation_id)
                else:
                    self._run_at_once(operation_id)
            observers.tell(Told(Moment.OPERATION_ENDED, self.name, operation_id))
        return self.journal.report(operation_id)

    def _run_at_once(self, operation_id: str) -> None:
        self._worker.run(operation_id, self.journal.report(operation_id).busy)
        report = self.journal.report(operation_id)
        if report.errors:
            first = report.errors[min(report.errors)]
            self.journal.end(operation_id, "Faulted", code=first.code, message=first.message)
        else:
            remark = kind_of(report.record.action).remark(report)
            self.journal.end(operation_id, "Completed", reason=remark)

    def perform(self, kind: Kind) -> OperationReport:
        """Opens an operation and runs it; raises as both do."""
        return self.run(self.open(kind))

    def resume(self) -> OperationReport | None:
        """Resumes the operation that a killed process, or a failing host, left unfinished.

        Returns:
            The operation as it ended; None if there was none to resume.

        Raises:
            InterruptedOperationError: The host still cannot continue.
        """
        operation = self.journal.unfinished()
        if operation is None:
            return None
        self._store.event(
            self.name,
            operation.action,
            "resumed after an interruption",
            operation=operation.id,
        )
        return self.run(operation.id)

    def recover(self) -> OperationReport | None:
        """Resumes an operation, and then does what a kill cut off after it.

        That is the end of a deletion, the removal of a checkpoint that was not made, or the scaling
        that belongs to an update of the model.
        Locks the set itself.

        Returns:
            The operation as it ended; None if there was none to resume.

        Raises:
            ConflictError: Another operation is in progress.
            ProvisioningError: New instances did not come up.
            InterruptedOperationError: The host still cannot continue.
        """
        with self.journal.outside("resume"):
            with self.lock():
                report = self.resume()
                record = self._environment.set_record(self.name)
                if record.state == "Deleting":
                    return self._finish_deletion(record) or report
                drop_incomplete(self._environment, self.name)
                self._environment.traffic.serve(self.name)
                capacity = self._environment.revisions.current(self.name).model.sku.capacity
                scaling = scaling_to(self._environment, self.name, capacity)
                sized = None if scaling is None else self.perform(scaling)
            if sized is not None:
                sized.raise_for_status()
            return report or sized

    def delete(self) -> None:
        """Deletes the set, its machines and all their disks; its history stays.

        Raises:
            ProvisioningError: An instance could not be removed.
            InterruptedOperationError: The host could not remove everything; call this again,
                or resume.
        """
        record = self._environment.set_record(self.name)
        self.perform(DeleteScaleSet()).raise_for_status()
        self._forget(record)

    def _finish_deletion(self, record: ScaleSetRecord) -> OperationReport | None:
        report = None
        if self.instances():
            report = self.perform(DeleteScaleSet())
            report.raise_for_status()
        self._forget(record)
        return report

    def _forget(self, record: ScaleSetRecord) -> None:
        """Removes what is left of a set whose instances are gone."""
        folder = self._environment.paths.scale_set(record.name)
        with self.journal.outside("deletion"):
            self._rollout.approvals.close_all()
            for gone in (folder, *self._checkpoints(record)):
                if gone.exists():
                    shutil.rmtree(gone)
            self._environment.traffic.stop(record)
            with self._store.transaction():
                for revision in self._store.select(ModelRecord, record.unique_id):
                    self._store.delete(revision)
                for checkpoint in self._store.select(CheckpointRecord, record.name.lower()):
                    self._store.delete(checkpoint)
                self._store.delete(record)
                self._store.event(record.name, "deleted", "deleted")
        self._environment.checks.pop(record.unique_id, None)
        self._environment.approvers.pop(record.unique_id, None)

    def _checkpoints(self, record: ScaleSetRecord) -> list[Path]:
        """The folders of a set's checkpoints, unless data disks that outlive it are based on them."""
        detached = {disk.scale_set.lower() for disk in self._store.select(DetachedDiskRecord)}
        if record.name.lower() in detached:
            return []
        names = {entry.checkpoint for entry in self.journal.operations() if entry.checkpoint}
        return [self._environment.paths.checkpoint(name) for name in sorted(names)]

    def cancel(self) -> None:
        """Cancels the running upgrade; it ends after its current batch (D8).

        Raises:
            ConflictError: No upgrade is running.
        """
        with self._store.transaction():
            self.require_own()
            operation = self.journal.unfinished()
            if operation is None or not operation.rolling:
                raise ConflictError("There is no ongoing Rolling Upgrade to cancel.")
            # A clock that was set back does not put it before the start.
            moment = max(self._environment.clock.now(), operation.started)
            self.journal.update(operation.id, cancel_requested=moment)
        with contextlib.suppress(ConflictError), self.lock():
            # No process runs it: it was interrupted. Between two batches it can end at once.
            report = self.journal.report(operation.id)
            decided = report.record.ended is not None or report.record.error_code is not None
            if not decided and not report.unsettled:
                self._rollout.approvals.close(operation.id)
                self.journal.end(
                    operation.id, "Cancelled", reason="cancelled while it was interrupted"
                )

    def instances(self) -> list[InstanceRecord]:
        """The set's instances, by number."""
        known = self._store.get(ScaleSetRecord, self.name.lower())
        if known is not None:
            self.require_own()
        return instances_of(self._store, self.name)
