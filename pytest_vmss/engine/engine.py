"""Carries operations out: batch after batch, or all instances at once.

The planner decides and the engine acts. Whatever is killed at any point, a
later :meth:`Engine.resume` goes on from the journal (M1).
"""

from __future__ import annotations

import contextlib
import threading
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, Literal

from filelock import FileLock, Timeout

from pytest_vmss.clock import Stopped, run_concurrently, stoppable
from pytest_vmss.engine import planner
from pytest_vmss.engine.journal import ENDED, Journal, OperationReport, describe
from pytest_vmss.engine.preflight import file_uris
from pytest_vmss.engine.work import Worker
from pytest_vmss.environment.environment import Environment, InstanceContext, Revision
from pytest_vmss.environment.health import HealthSources, observe_health
from pytest_vmss.errors import (
    CapacityError,
    ConflictError,
    InterruptedOperationError,
    LabError,
    NotFoundError,
)
from pytest_vmss.guest.extensions import handler_versions, is_known
from pytest_vmss.health import Observation, worst
from pytest_vmss.operations.allocate import allocate_instances
from pytest_vmss.store import (
    Action,
    GenerationRecord,
    InstanceRecord,
    OperationRecord,
    Outcome,
    ScaleSetRecord,
    VersionRecord,
)

__all__ = ["Engine", "StartedBy", "parts"]

StartedBy = Literal["User", "Platform"]
_Opened = Callable[[OperationRecord], None]
#: Seconds for asking for all that a model names, and how much of it is told.
_REACH_S = 120.0
_TOLD_URIS = 20


class Engine:
    """Operations on one scale set. Call what changes it with the set claimed.

    Args:
        environment: What it acts on.
        scale_set: The set's name.
    """

    def __init__(self, environment: Environment, scale_set: str) -> None:
        self._environment = environment
        self._store = environment.store
        known = environment.store.get(ScaleSetRecord, scale_set.lower())
        self.name = scale_set if known is None else known.name  # in the case that it was made in
        self._set_id = None if known is None else known.unique_id
        self.journal = Journal(environment, self.name)
        self._worker = Worker(environment, self.journal)

    @contextlib.contextmanager
    def lock(self, *, wait: float = 0.0) -> Iterator[None]:
        """Claims the set for this thread: one orchestrator at a time, across processes (M4).

        Args:
            wait: Seconds of the host in which somebody else may end.

        Raises:
            ConflictError: Someone else works on it; nothing was changed.
            NotFoundError: It is gone.
            LabError: Its lock cannot be had; nothing was changed.
            InterruptedOperationError: What is done inside was stopped.
        """
        lock = FileLock(self._environment.paths.lock(self.name), is_singleton=False)
        signal, working = threading.Event(), self._environment.working
        try:
            self._acquire(lock, wait)
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

    def _acquire(self, lock: FileLock, wait: float) -> None:
        try:
            Path(lock.lock_file).parent.mkdir(parents=True, exist_ok=True, mode=0o700)
            lock.acquire(timeout=wait)
        except Timeout as error:
            raise ConflictError(
                f"Operation is not allowed on the scale set {self.name!r}, since another "
                "operation is in progress on it; wait for it to end, or cancel it"
            ) from error
        except OSError as error:
            raise LabError(
                f"the scale set {self.name!r} cannot be locked, and nothing was changed: "
                f"{error}; mend that, and repeat the command"
            ) from error

    def require_own(self) -> None:
        """Refuses to work on another set than the one that it was made for.

        Raises:
            NotFoundError: That is gone.
        """
        known = self._store.get(ScaleSetRecord, self.name.lower())
        if self._set_id is not None and (known is None or known.unique_id != self._set_id):
            raise NotFoundError(
                f"the scale set {self.name!r} that was meant is gone"
                + ("" if known is None else "; another has its name: ask the lab for it")
            )

    # All at once.

    def at_once(
        self,
        action: Action,
        prepare: Callable[[], Mapping[int, Outcome]],
        *,
        version: VersionRecord | None = None,
        **details: Any,
    ) -> OperationReport:
        """Does something to instances, side by side.

        Args:
            action: What.
            prepare: Tells to which, see :func:`parts`; what it writes is durable together
                with the operation, or not at all.
            version: The image version that it brings, where it brings one.
            details: Other fields of the operation's record.

        Raises:
            UpgradeError: An earlier operation was interrupted; nothing was changed.
            InterruptedOperationError: The host cannot go on just now; see :meth:`resume`.
        """
        with self._store.transaction():
            operation = self.journal.open(
                action, prepare(), what=_in_words(action, version), version=version, **details
            )
        return self._finish(operation.id)

    def replace(
        self,
        ids: Sequence[int],
        *,
        version: VersionRecord,
        started_by: StartedBy,
        prepare: Callable[[], object] = lambda: None,
    ) -> OperationReport:
        """Makes new instances in place of others, which go once those are healthy.

        Args:
            ids: Which.
            version: The image version of the new ones.
            started_by: Azure's ``startedBy``.
            prepare: What it writes is durable together with the operation, or not at all.

        Raises:
            UpgradeError: An earlier operation was interrupted; nothing was changed.
            InterruptedOperationError: The host cannot go on just now; see :meth:`resume`.
        """
        with self._store.transaction():
            prepare()
            operation = self.journal.open(
                "replace",
                parts(ids),
                what=_in_words("replace", version),
                version=version,
                started_by=started_by,
            )
            self._allocate_replacements(operation.id, ids)
        return self._finish(operation.id)

    def _finish(self, operation_id: str) -> OperationReport:
        with self.journal.resumable(operation_id):
            self._work(operation_id, self.journal.report(operation_id).busy)
            report = self.journal.report(operation_id)
            if report.errors:
                first = report.errors[min(report.errors)]
                self.journal.end(operation_id, "Faulted", code=first.code, message=first.message)
            else:
                self.journal.end(operation_id, "Completed")
        return self.journal.report(operation_id)

    def _work(self, operation_id: str, instance_ids: Sequence[int]) -> None:
        """Works on instances side by side."""
        self._require_known(operation_id, instance_ids)
        self._environment.serve(self.name)
        self._environment.serve_files(self.name)
        operation = self.journal.operation(operation_id)

        def act(number: int) -> None:
            context = self._context(operation_id, number)
            try:
                self._worker.act(context, operation)
            except Exception as error:
                with contextlib.suppress(LabError):  # of several, each is told here
                    context.event("error", f"cannot go on just now: {describe(error)[1]}")
                raise
            finally:
                context.leave()

        run_concurrently(instance_ids, act, clock=self._environment.clock)

    def _require_known(self, operation_id: str, instance_ids: Sequence[int]) -> None:
        """Finds out before an instance is stopped whether it could be started again.

        Settings, and the extensions that are registered, may be others on a resume.

        Raises:
            NotFoundError: The size, or an extension of the model, is not known here.
        """
        operation = self.journal.operation(operation_id)
        if not instance_ids or operation.action in ("stop", "deallocate", "delete"):
            return
        model = self._environment.revision(operation.set_id, operation.revision).model
        self._environment.find_size(model.sku.name)
        record = self._environment.set_record(self.name)
        if record.health_function and self.name.lower() not in self._environment.checks:
            self._store.event(
                self.name,
                "warning",
                "the suite's own health function is not known in this process, and is not asked; "
                "give it with check_health",
                operation=operation_id,
            )
        for extension in model.extensions:
            if not is_known(extension):
                raise NotFoundError(
                    f"the extension {extension.name!r} ({extension.handler_name}) is not registered "
                    "in this process; register its handler, as the process did that began"
                )

    # Rolling.

    def roll(
        self,
        action: Literal["upgrade", "extension-upgrade", "update"],
        *,
        version: VersionRecord | None,
        started_by: StartedBy,
        rollback: bool,
        on_open: _Opened = lambda _: None,
        prepare: Callable[[], object] = lambda: None,
    ) -> OperationReport:
        """Rolls something through the set, batch after batch.

        Args:
            action: An OS upgrade, an extension upgrade, or the set's model.
            version: The target, fixed from now on (C4).
            started_by: Azure's ``startedBy``.
            rollback: Give an instance that does not recover its previous state back.
            on_open: Told the operation before its first effect.
            prepare: What it writes is durable together with the operation, or not at all.

        Raises:
            UpgradeError: An earlier operation was interrupted; nothing was changed.
            InterruptedOperationError: The host cannot go on just now; see :meth:`resume`.
        """
        with self._store.transaction():
            prepare()
            operation = self.journal.open(
                action,
                {
                    record.instance_id: Outcome.NOT_STARTED
                    for record in self.instances()
                    if not self._is_on_target(action, record, version)
                },
                what=_in_words(action, version),
                version=version,
                rolling=True,
                started_by=started_by,
                rollback=rollback,
            )
        on_open(operation)
        return self._roll(operation.id)

    def _reach_resources(self, operation_id: str) -> bool:
        """Whether what the model names can be reached; else the operation ends (C8).

        Only before the first batch: once it has begun, instances find out themselves.
        """
        report = self.journal.report(operation_id)
        model = self._environment.revision(report.record.set_id, report.record.revision).model
        uris = list(file_uris(model))
        if not uris or report.batch_records or report.record.error_code is not None:
            return True
        self._environment.serve_files(self.name)
        end = self._environment.clock.monotonic() + _REACH_S
        wrong: list[str] = []
        for name, uri in uris:
            if self._environment.clock.monotonic() > end or len(wrong) >= _TOLD_URIS:
                break  # the rest is the guests' to find out
            if reason := self._environment.reach(uri):
                wrong.append(f"the extension {name!r}: {reason}")
        if not wrong:
            return True
        self.journal.end(
            operation_id,
            "Faulted",
            code="ExternalResourceUnreachable",
            message="What the model names was checked before the first batch, and no instance was "
            f"touched: {'; '.join(wrong)}",
        )
        return False

    def _read_metrics(self, operation_id: str) -> None:
        """Reads the applications' custom metrics, once, at the start (D5)."""
        report = self.journal.report(operation_id)
        if report.record.metrics_read:
            return

        def read(number: int) -> None:
            context = self._context(operation_id, number)
            metrics = self._environment.metrics(context)
            if metrics.skip:
                self.journal.note(context, outcome=Outcome.SKIPPED)
            elif metrics.phase is not None:
                self.journal.note(context, phase=metrics.phase)

        run_concurrently(report.results, read, clock=self._environment.clock)
        self.journal.update(operation_id, metrics_read=True)

    def _roll(self, operation_id: str) -> OperationReport:
        with self.journal.resumable(operation_id):
            begun = (
                self._environment.clock.monotonic() - self.journal.operation(operation_id).elapsed
            )
            if not self._reach_resources(operation_id):
                return self.journal.report(operation_id)
            self._read_metrics(operation_id)
            # A killed process may have left some in the middle.
            busy: Sequence[int] | None = self.journal.report(operation_id).busy
            while busy is not None:
                self._work(operation_id, busy)
                self.journal.update(
                    operation_id,
                    elapsed=self._environment.clock.monotonic() - begun,
                    batch_ended=self._environment.clock.now(),
                )
                busy = self._next(operation_id)
        return self.journal.report(operation_id)

    def _next(self, operation_id: str) -> Sequence[int] | None:
        """Takes one decision and acts on it.

        Returns:
            The instances of the next batch; None where the upgrade has ended.
        """
        report = self.journal.report(operation_id)
        if report.record.error_code is not None:  # decided before a crash
            self._stop(report)
            return None
        # Whether anything is left does not depend on health, and looking takes a moment.
        decision = self._decide(report, _members(report, self.instances()))
        if isinstance(decision, planner.Batch):
            self._pause(report)
            records = self.instances()  # some may have been protected meanwhile
            members = _members(report, records)
            if self.journal.operation(operation_id).cancel_requested is not None:
                self.journal.end(
                    operation_id, "Cancelled", reason="cancelled after the current batch"
                )
                return None
            decision = self._decide(report, self._observe(members, records))
        match decision:
            case planner.Complete(reason=reason, skipped=skipped):
                with self._store.transaction():
                    for number in skipped:
                        self.journal.note(
                            self._context(operation_id, number), outcome=Outcome.SKIPPED
                        )
                    self.journal.end(operation_id, "Completed", reason=reason)
            case planner.Stop(code=code, message=message, reason=reason):
                self.journal.update(
                    operation_id, error_code=code, error_message=message, reason=reason
                )
                self._stop(self.journal.report(operation_id))
            case planner.Batch(instance_ids=ids, reason=reason):
                self._take(report, ids, reason)
                return ids
        return None

    def _take(self, report: OperationReport, ids: tuple[int, ...], reason: str) -> None:
        """Writes a batch down, with its replacements where it surges (D9)."""
        operation = report.record
        with self._store.transaction():
            if self._revision().model.rolling_policy.max_surge and self._surges(operation):
                size = self._environment.find_size(self._revision().model.sku.name)
                try:
                    self._environment.require_room(len(ids), size)
                except CapacityError as error:
                    reason += f"; in place, for there is no room for more: {error.message}"
                else:
                    self.journal.add_batch(report, ids, reason)
                    self._allocate_replacements(operation.id, ids)
                    return
            self.journal.add_batch(report, ids, reason)

    def _allocate_replacements(self, operation_id: str, ids: Sequence[int]) -> None:
        new = allocate_instances(self._environment, self.name, len(ids))
        for number, replacement in zip(ids, new, strict=True):
            context = self._context(operation_id, number)
            record = context.record
            self.journal.note(
                context,
                source=record.generation,
                result=record.generation,
                source_revision=record.revision,
                replacement=replacement,
            )

    @staticmethod
    def _surges(operation: OperationRecord) -> bool:
        return operation.action != "extension-upgrade"

    def _pause(self, report: OperationReport) -> None:
        """Waits between two batches (D8); a cancellation ends the wait."""
        pause = self._revision().model.rolling_policy.pause_time_between_batches.total_seconds()
        last = report.record.batch_ended
        if not report.batch_records or last is None or pause <= 0:
            return
        clock = self._environment.clock
        self._store.event(
            self.name, "pause", f"pause of {pause:.0f} s between batches",
            operation=report.record.id,
        )  # fmt: skip
        # What has passed of it before a resume, the time of day tells; it may be set back.
        passed = max((clock.now() - last).total_seconds(), 0.0)
        end = clock.monotonic() + pause - passed
        while (left := end - clock.monotonic()) > 0:
            if self.journal.operation(report.record.id).cancel_requested is not None:
                return
            clock.sleep(min(left, 1.0))

    def _stop(self, report: OperationReport) -> None:
        """Ends an upgrade Faulted, after failed instances were rolled back where that is asked."""
        record = report.record
        if self._revision().model.rolling_policy.rollback_failed_instances_on_policy_breach:
            failed = [
                number
                for number, result in report.results.items()
                if result.outcome is Outcome.FAILED and result.source and not result.replacement
            ]

            def roll_back(number: int) -> None:
                context = self._context(record.id, number)
                try:
                    self._worker.roll_back(context, record)
                finally:
                    context.leave()

            # They may serve although they failed: no more of them at once than in a batch.
            at_once = planner.batch_limit(
                len(self.instances()), self._policy().max_batch_instance_percent
            )
            for start in range(0, len(failed), at_once):
                run_concurrently(
                    failed[start : start + at_once], roll_back, clock=self._environment.clock
                )
        self.journal.end(
            record.id, "Faulted", code=record.error_code, message=record.error_message,
            reason=record.reason,
        )  # fmt: skip

    # Going on, and giving up.

    def resume(self) -> OperationReport | None:
        """Goes on with an operation that a killed process, or a failing host, left.

        Returns:
            The operation as it ended; None where there was none to go on with.

        Raises:
            InterruptedOperationError: The host cannot go on just now either.
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
        return self._roll(operation.id) if operation.rolling else self._finish(operation.id)

    def cancel(self) -> None:
        """Asks the running upgrade to end after its current batch (D8).

        Raises:
            ConflictError: None is running.
        """
        with self._store.transaction():
            operation = self.journal.unfinished()
            if operation is None or not operation.rolling:
                raise ConflictError("There is no ongoing Rolling Upgrade to cancel.")
            self.journal.update(operation.id, cancel_requested=self._environment.clock.now())
        with contextlib.suppress(ConflictError), self.lock():
            # Nobody is at it: it was interrupted. Between two batches it can end at once.
            report = self.journal.report(operation.id)
            decided = report.record.ended is not None or report.record.error_code is not None
            if not decided and not report.unsettled:
                self.journal.end(
                    operation.id, "Cancelled", reason="cancelled while it was interrupted"
                )

    # What the planner needs to know.

    def _decide(
        self, report: OperationReport, members: Sequence[planner.Member]
    ) -> planner.Decision:
        outcomes = report.outcomes
        attempted = {number for number, outcome in outcomes.items() if outcome in ENDED}
        failed = {n for n in attempted if outcomes[n] is not Outcome.SUCCEEDED}
        skipped = {n for n, outcome in outcomes.items() if outcome is Outcome.SKIPPED}
        progress = planner.Progress(
            frozenset(attempted), frozenset(failed), frozenset(skipped), report.record.elapsed
        )
        return planner.next_batch(members, self._policy(), progress)

    def _is_on_target(
        self, action: Action, record: InstanceRecord, version: VersionRecord | None
    ) -> bool:
        """Whether an instance has what an upgrade brings already."""
        if action == "update":
            return not self.is_behind(record)
        generation = self._store.get(GenerationRecord, *record.key, f"{record.generation:06d}")
        if action == "upgrade":
            return generation is not None and version is not None and generation.is_of(version)
        versions = {f"{p}.{t}": v for (p, t), v in handler_versions().items()}
        return generation is None or all(
            entry.version == versions.get(entry.type.lower(), entry.version)
            for entry in generation.extensions
        )

    def is_behind(self, record: InstanceRecord) -> bool:
        """Whether the set's model is still to be brought to an instance, or failed on it."""
        return not self.has_latest_model(record) or record.provisioning != "Succeeded"

    def has_latest_model(self, record: InstanceRecord) -> bool:
        """Azure's ``latestModelApplied``."""
        return record.revision >= self._environment.set_record(self.name).profile_revision

    def members(self) -> list[planner.Member]:
        """All instances with their health, asked for side by side."""
        records = self.instances()
        members = [
            planner.Member(record.instance_id, planner.Health.HEALTHY, on_target=True)
            for record in records
        ]
        return self._observe(members, records)

    def _observe(
        self, members: Sequence[planner.Member], records: Sequence[InstanceRecord]
    ) -> list[planner.Member]:
        seen = self.observe(records)
        return [
            member
            if seen[member.instance_id].healthy
            else replace(member, health=seen[member.instance_id].health)
            for member in members
        ]

    def observe(self, records: Sequence[InstanceRecord]) -> dict[int, Observation]:
        """Looks at instances side by side, and writes down whose health is another than it was."""
        set_id = self._environment.set_record(self.name).unique_id
        health_sources = {
            number: HealthSources.of(
                self._environment, self.name, self._environment.revision(set_id, number)
            )
            for number in {record.revision for record in records}
        }
        seen: dict[int, Observation] = {}

        def look(record: InstanceRecord) -> None:
            context = self._context("", record.instance_id)
            try:
                told = observe_health(context, health_sources[record.revision])
            finally:
                context.leave()
            seen[record.instance_id] = worst(told)

        run_concurrently(records, look, clock=self._environment.clock)
        changed = [entry for entry in records if entry.health != seen[entry.instance_id].health]
        if changed:
            with self._store.transaction():
                for record in changed:
                    now = seen[record.instance_id]
                    with contextlib.suppress(NotFoundError):  # it has gone meanwhile
                        self._store.amend(record, health=now.health, health_detail=now.detail)
        return seen

    def _policy(self) -> planner.Policy:
        policy = self._revision().model.rolling_policy
        return planner.Policy(
            max_batch_instance_percent=policy.max_batch_instance_percent,
            max_unhealthy_instance_percent=policy.max_unhealthy_instance_percent,
            max_unhealthy_upgraded_instance_percent=policy.max_unhealthy_upgraded_instance_percent,
            prioritize_unhealthy_instances=policy.prioritize_unhealthy_instances,
            enable_cross_zone_upgrade=policy.enable_cross_zone_upgrade,
            max_surge=policy.max_surge,
            time_limit=self._environment.base_timeouts.upgrade,
        )

    def instances(self) -> list[InstanceRecord]:
        """The set's instances, by number."""
        return self._store.select(InstanceRecord, self.name.lower())

    def _revision(self) -> Revision:
        return self._environment.current_revision(self.name)

    def _context(self, operation: str, number: int) -> InstanceContext:
        return InstanceContext(self._environment, self.name, number, operation)


def parts(instance_ids: Iterable[int], *, skipped: Iterable[int] = ()) -> dict[int, Outcome]:
    """The instances that an operation begins with at once, and those that it leaves out."""
    return {
        **dict.fromkeys(instance_ids, Outcome.IN_PROGRESS),
        **dict.fromkeys(skipped, Outcome.SKIPPED),
    }


def _members(report: OperationReport, records: Sequence[InstanceRecord]) -> list[planner.Member]:
    """The set's instances for the planner, taken for healthy."""
    members = []
    for record in records:
        result = report.results.get(record.instance_id)
        members.append(
            planner.Member(
                instance_id=record.instance_id,
                health=planner.Health.HEALTHY,
                on_target=result is None,  # it was not behind when this started (C4)
                domain=record.update_domain,
                group=record.placement_group,
                zone=record.zone,
                phase=None if result is None else result.phase,
                protected=record.protected,
            )
        )
    return members


def _in_words(action: Action, version: VersionRecord | None) -> str:
    if action == "upgrade" and version is not None:
        return f"upgrade to {version.version}"
    return {
        "update": "update to the latest model",
        "extension-upgrade": "upgrade of extensions",
        "create": "creation" if version is None else f"creation on {version.version}",
    }.get(action, action)
