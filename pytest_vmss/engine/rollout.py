"""Runs rolling operations on a scale set: the planner decides, this acts (D)."""

from __future__ import annotations

import contextlib
from collections.abc import Mapping, Sequence

from pytest_vmss.clock import run_concurrently, wait_for
from pytest_vmss.engine import planner
from pytest_vmss.engine.approval import Approvals
from pytest_vmss.engine.preflight import UNREACHABLE, file_uris, unreachable
from pytest_vmss.engine.work import Worker
from pytest_vmss.engine.zones import claim_zone
from pytest_vmss.environment.environment import Environment, InstanceContext
from pytest_vmss.environment.observers import Moment, Told
from pytest_vmss.environment.revisions import Revision
from pytest_vmss.environment.set_health import observe_instances
from pytest_vmss.errors import CapacityError, WaitTimeoutError
from pytest_vmss.health import Observation
from pytest_vmss.journal.journal import Journal
from pytest_vmss.journal.report import ENDED, OperationReport
from pytest_vmss.model import ScaleSetModel
from pytest_vmss.operations import kind_of
from pytest_vmss.operations.allocate import allocate_instances
from pytest_vmss.operations.placement import Spot
from pytest_vmss.operations.revisions import disk_problem
from pytest_vmss.store import InstanceRecord, OperationRecord, Outcome
from pytest_vmss.store.queries import instances_of

__all__ = ["Rollout", "allocate_replacements"]

#: Seconds between two looks whether a zone may be begun.
_ZONE_LOOK_S = 1.0


class Rollout:
    """Runs operations batch by batch on one set.

    Args:
        environment: The lab's environment.
        journal: The set's journal.
        worker: Works on the instances of a batch.
        scale_set: The set's name.
    """

    def __init__(
        self, environment: Environment, journal: Journal, worker: Worker, scale_set: str
    ) -> None:
        self._environment = environment
        self._store = environment.store
        self._journal = journal
        self._worker = worker
        self._scale_set = scale_set
        self.approvals = Approvals(environment, journal, scale_set)

    def run(self, operation_id: str) -> None:
        """Runs an operation batch by batch to its end, from wherever it stands.

        Raises:
            Exception: It cannot continue for now.
        """
        begun = self._environment.clock.monotonic() - self._journal.operation(operation_id).elapsed
        if not self._may_begin(operation_id):
            return
        self._read_metrics(operation_id)
        # A killed process may have left some in progress.
        busy: Sequence[int] | None = self._journal.report(operation_id).busy
        while busy is not None:
            self._tell(Moment.BEFORE_BATCH, operation_id, busy)
            self._worker.run(operation_id, busy)
            self._journal.update(
                operation_id,
                elapsed=self._environment.clock.monotonic() - begun,
                batch_ended=self._environment.clock.now(),
            )
            self._tell(Moment.AFTER_BATCH, operation_id, busy)
            busy = self._next(operation_id)

    def _tell(self, moment: Moment, operation_id: str, ids: Sequence[int]) -> None:
        if ids:
            self._environment.observers.tell(
                Told(moment, self._scale_set, operation_id, tuple(ids))
            )

    def _may_begin(self, operation_id: str) -> bool:
        """Whether the image fits and the model's URIs can be reached; if not, ends the operation.

        Checked only before the first batch; after that, instances find out themselves (B4, C8).
        """
        report = self._journal.report(operation_id)
        model = self._environment.revisions.get(report.record.set_id, report.record.revision).model
        if report.batch_records or report.record.error_code is not None:
            return True
        wrong, code = self._misfit(report.record, model)
        if not wrong and any(file_uris(model)):
            self._environment.serve_files(self._scale_set)
            wrong, code = unreachable(self._environment, model), UNREACHABLE
        if not wrong:
            return True
        self._journal.end(
            operation_id,
            "Faulted",
            code=code,
            message="What the model names was checked before the first batch, and no instance was "
            f"touched: {'; '.join(wrong)}",
        )
        return False

    def _misfit(
        self, operation: OperationRecord, model: ScaleSetModel
    ) -> tuple[list[str], str | None]:
        """What is wrong if the operation's image does not fit the model's OS disk, and its code."""
        if not operation.target:
            return [], None
        problem = disk_problem(model, self._environment.images.resolve(operation.image))
        return (
            ([], None) if problem is None else ([f"{problem.path} {problem.message}"], problem.code)
        )

    def _read_metrics(self, operation_id: str) -> None:
        """Reads the applications' custom metrics, once, at the start (D5)."""
        report = self._journal.report(operation_id)
        if report.record.metrics_read:
            return

        def read(number: int) -> None:
            context = self._context(operation_id, number)
            if context.record.power != "running":
                return
            metrics = self._environment.metrics(context)
            if metrics.skip:
                self._journal.note(context, outcome=Outcome.SKIPPED)
            elif metrics.phase is not None:
                self._journal.note(context, phase=metrics.phase)

        run_concurrently(report.results, read, clock=self._environment.clock)
        self._journal.update(operation_id, metrics_read=True)

    def _next(self, operation_id: str) -> Sequence[int] | None:
        """Makes one decision and acts on it.

        Returns:
            The instances of the next batch; None if the upgrade has ended.
        """
        report = self._journal.report(operation_id)
        if report.record.error_code is not None:  # decided before a crash
            self._stop(report)
            return None
        decision = self._settled(report)
        match decision:
            case None:
                self.approvals.close(operation_id)
                self._journal.end(
                    operation_id, "Cancelled", reason="cancelled after the current batch"
                )
            case planner.Complete(reason=reason, skipped=skipped):
                self.approvals.close(operation_id)
                with self._store.transaction():
                    for number in skipped:
                        self._journal.note(
                            self._context(operation_id, number), outcome=Outcome.SKIPPED
                        )
                    self._journal.end(operation_id, "Completed", reason=reason)
            case planner.Stop():
                self._halt(operation_id, decision)
            case planner.Batch(instance_ids=ids, reason=reason):
                self._take(report, ids, reason)
                return ids
        return None

    def _settled(self, report: OperationReport) -> planner.Decision | None:
        """Decides, and waits until a batch may begin; None if the upgrade was cancelled."""
        # Before the first batch, whether anything is left to do needs no look at their health. After
        # the last one it does: what was upgraded may have sickened meanwhile (D7).
        seen = bool(report.batch_records)
        decision = self._decide(report, self._members(report, observed=seen))
        if isinstance(decision, planner.Batch) and self._pause(report):
            seen = False
        while isinstance(decision, planner.Batch):
            if self._is_cancelled(report.record.id):
                return None
            clear = self._is_clear(report, decision) if seen else False
            if isinstance(clear, planner.Stop):
                return clear
            if clear:
                break
            # Some may have been protected meanwhile, or have sickened.
            decision = self._decide(report, self._members(report, observed=True))
            seen = True
        return decision

    def _is_clear(self, report: OperationReport, batch: planner.Batch) -> bool | planner.Stop:
        """Waits until a batch may begin: for its zone (D4), and for its cluster's approval (I3).

        Returns:
            True if it may begin at once; False if it had to wait, so that the decision is to be
            made again; a stop if it may not begin.
        """
        if self._wait_for_zone(report, batch):
            return False
        return self.approvals.obtain(report, batch.instance_ids)

    def _halt(self, operation_id: str, stop: planner.Stop) -> None:
        """Records why an upgrade stops, and then stops it."""
        self._journal.update(
            operation_id, error_code=stop.code, error_message=stop.message, reason=stop.reason
        )
        self._stop(self._journal.report(operation_id))

    def _take(self, report: OperationReport, ids: tuple[int, ...], reason: str) -> None:
        """Records a batch, with its replacements if the upgrade surges (D9).

        Their memory may be waited for, with the store free for whoever is to give some back.
        """
        operation, replaced = report.record, self._to_replace(report, ids)
        if replaced:
            try:
                self._environment.require_room(len(replaced), self._revision().model)
            except CapacityError as error:
                reason += f"; in place, for there is no room for more: {error.message}"
                replaced = []
        with self._store.transaction():
            self._journal.add_batch(report, ids, reason)
            if replaced:
                allocate_replacements(self._environment, self._journal, operation.id, replaced)

    def _to_replace(self, report: OperationReport, ids: tuple[int, ...]) -> list[int]:
        """The instances of a batch that are to get a replacement first: those that run (D9)."""
        surges = self._revision().model.rolling_policy.max_surge
        if not surges or not kind_of(report.record.action).surges:
            return []
        running = {r.instance_id for r in self._instances() if r.power == "running"}
        return [number for number in ids if number in running]

    def _pause(self, report: OperationReport) -> bool:
        """Waits between two batches (D8); a cancellation ends the wait.

        Returns:
            Whether there is a pause in the policy.
        """
        pause = self._revision().model.rolling_policy.pause_time_between_batches.total_seconds()
        last = report.record.batch_ended
        if not report.batch_records or last is None or pause <= 0:
            return False
        clock = self._environment.clock
        self._store.event(
            self._scale_set, "pause", f"pause of {pause:.0f} s between batches",
            operation=report.record.id,
        )  # fmt: skip
        # After a resume only the time of day tells how much has passed; it may have been set back.
        passed = max((clock.now() - last).total_seconds(), 0.0)
        with contextlib.suppress(WaitTimeoutError):
            wait_for(
                "a cancellation during the pause",
                lambda: self._is_cancelled(report.record.id) or None,
                timeout=max(pause - passed, 0.0),
                clock=clock,
                interval=1.0,
            )
        return True

    def _stop(self, report: OperationReport) -> None:
        """Ends an upgrade as Faulted; first rolls failed instances back if the policy says so."""
        record = report.record
        if self._revision().model.rolling_policy.rollback_failed_instances_on_policy_breach:
            failed = [
                number
                for number, result in report.results.items()
                if result.outcome is Outcome.FAILED and result.source and not result.replacement
            ]
            # They may serve although they failed, so no more at once than in a batch.
            at_once = planner.batch_limit(
                len(self._instances()), self._policy().max_batch_instance_percent
            )
            for start in range(0, len(failed), at_once):
                self._worker.roll_back(record, failed[start : start + at_once])
        self.approvals.close(record.id)
        self._journal.end(
            record.id, "Faulted", code=record.error_code, message=record.error_message,
            reason=record.reason,
        )  # fmt: skip

    def _decide(
        self, report: OperationReport, members: Sequence[planner.Member]
    ) -> planner.Decision:
        outcomes = report.outcomes
        attempted = {number for number, outcome in outcomes.items() if outcome in ENDED}
        failed = {n for n in attempted if outcomes[n] is not Outcome.SUCCEEDED}
        skipped = {n for n, outcome in outcomes.items() if outcome is Outcome.SKIPPED}
        progress = planner.Progress(
            attempted=frozenset(attempted),
            failed=frozenset(failed),
            replaced={
                number: result.replacement
                for number, result in report.results.items()
                if result.replacement is not None
            },
            skipped=frozenset(skipped),
            elapsed=report.record.elapsed,
        )
        return planner.next_batch(members, self._policy(), progress)

    def _members(self, report: OperationReport, *, observed: bool) -> list[planner.Member]:
        """The set's instances for the planner.

        Args:
            report: The operation.
            observed: Observe the health of those that run now; else they are assumed to be healthy.
        """
        records = self._instances()
        if not observed:
            return _members(report, records, {})
        running = [record for record in records if record.power == "running"]
        seen = observe_instances(self._environment, self._scale_set, running)
        return _members(report, records, seen)

    def _is_cancelled(self, operation_id: str) -> bool:
        return self._journal.operation(operation_id).cancel_requested is not None

    def _wait_for_zone(self, report: OperationReport, batch: planner.Batch) -> bool:
        """Waits until no other set rolls the same version through another zone (D4).

        It is bounded, because the other upgrade is: one that was interrupted is not waited for. A
        cancellation ends the wait.

        Returns:
            Whether it had to wait; then the decision is to be made again.
        """
        operation = report.record
        if not kind_of(operation.action).by_zones:
            return False
        if self._policy().enable_cross_zone_upgrade:
            return False
        zones = {self._context(operation.id, n).record.zone for n in batch.instance_ids}
        if len(zones) != 1 or zones == {""}:
            return False
        (zone,) = zones
        in_the_way = claim_zone(self._environment, operation, zone)
        if not in_the_way:
            return False
        self._store.event(
            self._scale_set, "zone", f"zone {zone} waits for {in_the_way}", operation=operation.id
        )
        while in_the_way and not self._is_cancelled(operation.id):
            self._environment.clock.sleep(_ZONE_LOOK_S)
            in_the_way = claim_zone(self._environment, operation, zone)
        return True

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

    def _instances(self) -> list[InstanceRecord]:
        return instances_of(self._store, self._scale_set)

    def _revision(self) -> Revision:
        return self._environment.revisions.current(self._scale_set)

    def _context(self, operation: str, number: int) -> InstanceContext:
        return InstanceContext(self._environment, self._scale_set, number, operation)


def allocate_replacements(
    environment: Environment, journal: Journal, operation_id: str, instance_ids: Sequence[int]
) -> None:
    """Allocates a new instance for each given instance that an operation replaces, in its place.

    The new one has the same zone, placement group and update domain (D9).
    """
    scale_set = journal.operation(operation_id).scale_set
    old = [InstanceContext(environment, scale_set, number).record for number in instance_ids]
    spots = [Spot(r.zone, r.placement_group, r.update_domain) for r in old]
    new = allocate_instances(environment, scale_set, len(instance_ids), spots)
    for number, replacement in zip(instance_ids, new, strict=True):
        context = InstanceContext(environment, scale_set, number, operation_id)
        record = context.record
        journal.note(
            context,
            source=record.generation,
            result=record.generation,
            source_revision=record.revision,
            replacement=replacement,
        )


def _members(
    report: OperationReport,
    records: Sequence[InstanceRecord],
    seen: Mapping[int, Observation],
) -> list[planner.Member]:
    """The set's instances for the planner; those that were not observed count as healthy."""
    members = []
    for record in records:
        result = report.results.get(record.instance_id)
        observation = seen.get(record.instance_id)
        members.append(
            planner.Member(
                instance_id=record.instance_id,
                health=planner.Health.HEALTHY if observation is None else observation.health,
                on_target=result is None,  # it was not behind at the start (C4)
                domain=record.update_domain,
                group=record.placement_group,
                zone=record.zone,
                phase=None if result is None else result.phase,
                protected=record.protected,
                stopped=record.power != "running",
            )
        )
    return members
