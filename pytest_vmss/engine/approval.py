"""Asks a Service Fabric cluster for each update domain, before and after (C7, I3).

Durable node types (Silver or Gold) have their cluster approve what is done to an update domain.
Here the suite stands in for the cluster: a function, or an HTTP endpoint on loopback. Each
update domain is one repair task, which is recorded before the cluster hears of it; after a
crash the cluster may be asked or told the same again, with the same task id.
"""

from __future__ import annotations

import contextlib
import http.client
import inspect
import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any, Literal

from pytest_vmss.clock import Interrupted
from pytest_vmss.concurrency import bounded
from pytest_vmss.engine.planner import Stop
from pytest_vmss.environment.environment import Environment
from pytest_vmss.errors import NotFoundError, error_text, is_host_trouble
from pytest_vmss.host.http import post_json
from pytest_vmss.journal.journal import Journal
from pytest_vmss.journal.report import OperationReport
from pytest_vmss.model import RepairTask, ScaleSetModel, is_durable
from pytest_vmss.store import InstanceRecord, OperationRecord, Outcome, RepairTaskRecord
from pytest_vmss.store.queries import instances_of
from pytest_vmss.untrusted import one_line

__all__ = ["NOT_APPROVED", "Approvals"]

#: The code of an upgrade that was stopped because its cluster did not approve.
NOT_APPROVED = "UpdateDomainNotApproved"

#: Seconds between two questions, and that one answer may take.
_EVERY_S = 1.0
_ANSWER_S = 60.0
#: How often an endpoint is told of a result.
_REPORTS = 3
_TOLD_CHARS = 200


@dataclass(frozen=True)
class _Answer:
    """What the cluster said to a question.

    Attributes:
        approved: Whether the update domain may be upgraded now.
        detail: The answer in words.
        final: Whether asking again is useless.
    """

    approved: bool
    detail: str
    final: bool = False


class Approvals:
    """The approvals of one set's rolling operations.

    Args:
        environment: The lab's environment.
        journal: The set's journal.
        scale_set: The set's name.
    """

    def __init__(self, environment: Environment, journal: Journal, scale_set: str) -> None:
        self._environment = environment
        self._store = environment.store
        self._journal = journal
        self._scale_set = scale_set

    def obtain(self, report: OperationReport, instance_ids: Sequence[int]) -> bool | Stop:
        """Obtains the cluster's approval for the update domain of a batch.

        An update domain that was left is reported first.

        Args:
            report: The operation.
            instance_ids: The batch, all in one update domain.

        Returns:
            True if the batch may begin at once; False if time has passed, so that the batch is
            to be decided again; a stop if there will be no approval.

        Raises:
            NotFoundError: The suite's function is not known in this process.
        """
        operation = report.record
        model = self._environment.revisions.current(self._scale_set).model
        if not is_durable(model):
            return True
        records = {entry.instance_id: entry for entry in instances_of(self._store, self._scale_set)}
        place = _place(records[instance_ids[0]], model)
        task = self._task(operation.id)
        if task is not None and (task.place != place or task.state == "Restoring"):
            self.close(operation.id)
            task = None
        if task is None:
            left = [
                number
                for number, result in report.results.items()
                if result.outcome is Outcome.NOT_STARTED
                and number in records
                and not records[number].protected
                and _place(records[number], model) == place
            ]
            task = self._begin(report, place, left)
        return True if task.state == "Executing" else self._wait(task, operation)

    def close(self, operation_id: str) -> None:
        """Reports the update domain that was last asked for, if that is still to be done."""
        task = self._task(operation_id)
        if task is None:
            return
        results = self._journal.report(operation_id).results
        outcomes = {
            number: results[number].outcome for number in task.instance_ids if number in results
        }
        if task.state == "Preparing":
            result: Literal["Succeeded", "Failed", "Cancelled"] = "Cancelled"
        else:
            done = all(outcome is Outcome.SUCCEEDED for outcome in outcomes.values())
            result = "Succeeded" if done else "Failed"
        task = self._store.amend(task, state="Restoring", result=result)
        self._report(task, {self._name(n): str(outcome) for n, outcome in outcomes.items()})
        with self._store.transaction():
            self._store.amend(task, state="Completed", completed=self._environment.clock.now())
            self._event(operation_id, f"{_what(task)} is reported to the cluster: {result}")

    def close_all(self) -> None:
        """Reports what was asked for an operation that the set's deletion ended.

        A process that does not know the suite's function deletes too: that is a warning.
        """
        for task in self._store.select(RepairTaskRecord, self._scale_set.lower()):
            if task.state == "Completed":
                continue
            try:
                self.close(task.operation)
            except NotFoundError as error:
                self._not_told(task, error.message)

    def _task(self, operation_id: str) -> RepairTaskRecord | None:
        """The repair task that is not completed yet; there is one at most."""
        tasks = self._store.select(RepairTaskRecord, self._scale_set.lower(), operation_id)
        return tasks[-1] if tasks and tasks[-1].state != "Completed" else None

    def _begin(
        self, report: OperationReport, place: tuple[str, int, int], instance_ids: Sequence[int]
    ) -> RepairTaskRecord:
        operation_id = report.record.id
        known = self._store.select(RepairTaskRecord, self._scale_set.lower(), operation_id)
        zone, group, domain = place
        task = RepairTaskRecord(
            scale_set=self._scale_set, operation=operation_id, number=len(known) + 1,
            zone=zone, group=group, domain=domain, instance_ids=tuple(instance_ids),
            asked=self._environment.clock.now(),
        )  # fmt: skip
        with self._store.transaction():
            self._store.put(task)
            self._event(operation_id, f"the cluster is asked for {_what(task)}")
        return task

    def _wait(self, task: RepairTaskRecord, operation: OperationRecord) -> bool | Stop:
        clock, limit = self._environment.clock, self._environment.base_timeouts.approval
        end = clock.monotonic() + limit
        said = ""
        while self._journal.operation(operation.id).cancel_requested is None:
            answer = self._ask(task)
            if answer.approved:
                with self._store.transaction():
                    self._store.amend(task, state="Executing", approved=clock.now())
                    self._event(operation.id, f"{_what(task)} is approved: {answer.detail}")
                return False
            if answer.detail != said:
                said = answer.detail
                self._event(operation.id, f"{_what(task)} is not approved yet: {said}")
            if answer.final:
                return _refused(task, f"the approver failed: {said}")
            if clock.monotonic() >= end:
                return _refused(task, f"no approval within {limit:.0f} s; the last answer: {said}")
            clock.sleep(_EVERY_S)
        return False

    # The cluster, as the suite plays it.

    def _ask(self, task: RepairTaskRecord) -> _Answer:
        question = self._told(task, "Preparing")
        function, url = self._approver()
        if function is not None:
            return self._call(partial(function, question))
        if url is not None:
            return self._bounded(partial(_post, url, question))
        return _Answer(approved=True, detail="nobody is asked, for the set has no approver")

    def _report(self, task: RepairTaskRecord, outcomes: Mapping[str, str]) -> None:
        """Reports a result; that it could not be told is a warning."""
        told = self._told(task, "Completed", outcomes)
        function, url = self._approver()
        if function is not None:
            answer = self._call(partial(function, told))
            wrong = answer.detail if answer.final else ""
        elif url is not None:
            wrong = self._post_report(url, told)
        else:
            return
        if wrong:
            self._not_told(task, wrong)

    def _not_told(self, task: RepairTaskRecord, reason: str) -> None:
        self._store.event(
            self._scale_set,
            "warning",
            f"the cluster was not told of {_what(task)}: {reason}",
            operation=task.operation,
        )

    def _post_report(self, url: str, told: RepairTask) -> str:
        wrong = ""
        for attempt in range(_REPORTS):
            if attempt:
                self._environment.clock.sleep(_EVERY_S)
            answer = self._bounded(partial(_post, url, told))
            if not answer.final:
                return ""
            wrong = answer.detail
        return wrong

    def _approver(self) -> tuple[Callable[[RepairTask], object] | None, str | None]:
        """The suite's function, or its endpoint's URL.

        Raises:
            NotFoundError: The set has a function, which this process does not know.
        """
        record = self._environment.set_record(self._scale_set)
        if not record.approver_function:
            return None, record.approver_url
        function = self._environment.approvers.get(record.unique_id)
        if function is None:
            raise NotFoundError(
                f"the function that approves the update domains of {record.name!r} is not known in "
                "this process; give it with set_approver, or another approver "
                f"({self._environment.program} set-approver {record.name})"
            )
        return function, None

    def _call(self, function: Callable[[], object]) -> _Answer:
        """Calls the suite's function; whatever it raises is its failure, never silence (Q3)."""

        def call() -> _Answer:
            try:
                return _judged(function())
            except Interrupted:
                raise
            except BaseException as error:
                if is_host_trouble(error):
                    raise
                return _Answer(approved=False, detail=one_line(error_text(error)), final=True)

        return self._bounded(call)

    def _bounded(self, call: Callable[[], _Answer]) -> _Answer:
        try:
            return bounded(
                call, what="the approver", timeout=_ANSWER_S, pulse=self._environment.clock.check
            )
        except TimeoutError as error:
            return _Answer(approved=False, detail=str(error))

    def _told(
        self,
        task: RepairTaskRecord,
        state: Literal["Preparing", "Completed"],
        outcomes: Mapping[str, str] | None = None,
    ) -> RepairTask:
        operation = self._journal.operation(task.operation)
        return RepairTask(
            task_id=task.task_id,
            state=state,
            scale_set=operation.scale_set,
            action=operation.action,
            target=operation.target,
            update_domain=task.domain,
            placement_group=task.group,
            zone=task.zone,
            instances=tuple(self._name(number) for number in task.instance_ids),
            result_status=task.result,
            outcomes=outcomes or {},
        )

    def _name(self, number: int) -> str:
        return f"{self._scale_set}_{number}"

    def _event(self, operation_id: str, text: str) -> None:
        self._store.event(self._scale_set, "approval", text, operation=operation_id)


def _place(record: InstanceRecord, model: ScaleSetModel) -> tuple[str, int, int]:
    """Zone, placement group and update domain, as batches are cut by them."""
    across = model.rolling_policy.enable_cross_zone_upgrade
    return ("" if across else record.zone, record.placement_group, record.update_domain)


def _what(task: RepairTaskRecord) -> str:
    zone = f" of zone {task.zone}" if task.zone else ""
    group = f" of placement group {task.group}" if task.group else ""
    return f"update domain {task.domain}{group}{zone}"


def _refused(task: RepairTaskRecord, reason: str) -> Stop:
    return Stop(
        NOT_APPROVED,
        f"Rolling Upgrade was stopped before {_what(task)}, whose {len(task.instance_ids)} "
        f"instances were not touched: {reason}",
        f"{_what(task)} was not approved",
    )


def _judged(answer: object) -> _Answer:
    """What a function's answer means: only True approves."""
    if inspect.isawaitable(answer):
        if inspect.iscoroutine(answer):
            answer.close()  # else Python warns that it was never awaited
        told = "it returned something to await, so nothing of it has run; use a plain function"
        return _Answer(approved=False, detail=told, final=True)
    return _Answer(approved=answer is True, detail=f"it returned {answer!r}"[:_TOLD_CHARS])


def _post(url: str, task: RepairTask) -> _Answer:
    """Posts a task to an endpoint; the reply ``{"State": "Approved"}`` approves."""
    try:
        status, content = post_json(url, task.wire(), timeout=_ANSWER_S)
    except (OSError, http.client.HTTPException) as error:
        if is_host_trouble(error):
            raise
        detail = f"the endpoint does not answer: {one_line(error_text(error))}"
        return _Answer(approved=False, detail=detail[:_TOLD_CHARS], final=task.state == "Completed")
    if not 200 <= status < 300:
        detail = f"the endpoint answers with HTTP status {status}"
        return _Answer(approved=False, detail=detail, final=task.state == "Completed")
    state = _state(content)
    told = f"its state is {one_line(state)}" if state else "the answer names no state"
    return _Answer(approved=state.lower() == "approved", detail=told[:_TOLD_CHARS])


def _state(content: bytes) -> str:
    with contextlib.suppress(ValueError, RecursionError):
        answer: Any = json.loads(content)
        if isinstance(answer, dict) and isinstance(answer.get("State"), str):
            return str(answer["State"])
    return ""
