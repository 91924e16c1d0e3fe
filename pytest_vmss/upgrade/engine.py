"""Carries operations out: batch after batch, step after journalled step.

The planner decides and the engine acts. Whatever is killed at any point, a
later :meth:`Engine.resume` goes on from the journal (M1).
"""

from __future__ import annotations

import contextlib
import secrets
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from typing import Literal

from filelock import FileLock, Timeout

from pytest_vmss.clock import side_by_side
from pytest_vmss.errors import ConflictError, InstanceError, NotFoundError, UpgradeError, VmssError
from pytest_vmss.store import (
    ErrorRecord,
    InstanceRecord,
    OperationRecord,
    Outcome,
    VersionRecord,
)
from pytest_vmss.upgrade import planner
from pytest_vmss.upgrade.steps import (
    Step,
    create_steps,
    observe_health,
    rollback_steps,
    settle_steps,
    swap_steps,
)
from pytest_vmss.upgrade.world import InstanceContext, World

__all__ = ["Engine"]

_Phase = Literal["create", "swap", "rollback", "settle"]


class Engine:
    """Operations on one scale set.

    Args:
        world: What it acts on.
        scale_set: The set's name.
    """

    def __init__(self, world: World, scale_set: str) -> None:
        self._world = world
        self._store = world.store
        self._name = scale_set

    # Locking: one orchestrator at a time for a set, across processes (M4).

    @contextlib.contextmanager
    def claim(self) -> Iterator[None]:
        """Claims the set for this thread.

        Raises:
            ConflictError: Someone else works on it; nothing was changed.
        """
        path = self._world.paths.lock(self._name)
        path.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
        lock = FileLock(path, is_singleton=False)
        try:
            lock.acquire(timeout=0)
        except Timeout as busy:
            raise ConflictError(
                f"Operation is not allowed on the scale set {self._name!r}, since another "
                "operation is in progress on it; wait for it to end, or cancel it"
            ) from busy
        try:
            yield
        finally:
            lock.release()

    # Creating instances.

    def provision(self, instance_ids: Sequence[int], version: VersionRecord) -> OperationRecord:
        """Brings recorded instances up, all side by side; call with the set claimed."""
        operation = self._open("create", version, started_by="User", rollback=False)
        outcomes = dict.fromkeys(instance_ids, Outcome.IN_PROGRESS)
        self._update(operation.id, outcomes=outcomes)
        with self._ending(operation.id):
            self._on_instances(operation.id, instance_ids, version, self._create)
            done = self._operation(operation.id)
            failed = [n for n, outcome in done.outcomes.items() if outcome is Outcome.FAILED]
            if failed:
                first = done.errors[min(failed)]
                self._end(operation.id, "Faulted", code=first.code, message=first.message)
            else:
                self._end(operation.id, "Completed")
        return self._operation(operation.id)

    def _create(self, context: InstanceContext, version: VersionRecord) -> None:
        try:
            self._run_phase(context, "create", create_steps(version))
        except VmssError as error:
            self._failed(context, error, Outcome.FAILED)
            self._store.put(context.record.model_copy(update={"provisioning": "Failed"}))
        else:
            self._outcome(context, Outcome.SUCCEEDED)

    # Upgrading.

    def upgrade(
        self,
        version: VersionRecord,
        *,
        started_by: Literal["User", "Platform"],
        rollback: bool,
        on_open: Callable[[OperationRecord], None] = lambda _: None,
    ) -> OperationRecord:
        """Rolls the set to a version; call with the set claimed.

        Args:
            version: The target, fixed from now on (C4).
            started_by: Azure's ``startedBy``.
            rollback: Give an instance that does not recover its previous OS disk back.
            on_open: Told the operation before its first effect.
        """
        operation = self._open("upgrade", version, started_by=started_by, rollback=rollback)
        on_open(operation)
        return self._roll(operation.id)

    def resume(self) -> OperationRecord | None:
        """Goes on with an upgrade that a killed process left; call with the set claimed.

        Returns:
            The operation as it ended; None where there was none to go on with.
        """
        for operation in self._store.select(OperationRecord, self._name.lower()):
            if operation.action == "upgrade" and operation.ended is None:
                self._store.event(
                    self._name, "upgrade", "resumed after an interruption", operation=operation.id
                )
                return self._roll(operation.id)
        return None

    def cancel(self) -> None:
        """Asks the running upgrade to end after its current batch (D8).

        Raises:
            ConflictError: None is running.
        """
        for operation in self._store.select(OperationRecord, self._name.lower()):
            if operation.action == "upgrade" and operation.ended is None:
                self._update(operation.id, cancel_requested=True)
                return
        raise ConflictError("There is no ongoing Rolling Upgrade to cancel.")

    def _roll(self, operation_id: str) -> OperationRecord:
        with self._ending(operation_id):
            operation = self._operation(operation_id)
            version = self._target(operation)
            under_way = [
                number
                for number, outcome in operation.outcomes.items()
                if outcome is Outcome.IN_PROGRESS
            ]
            self._on_instances(operation_id, under_way, version, self._swap)
            while not self._next(operation_id, version):
                pass
        return self._operation(operation_id)

    def _next(self, operation_id: str, version: VersionRecord) -> bool:
        """Takes one decision and acts on it; True where it ended the upgrade."""
        operation = self._operation(operation_id)
        if operation.cancel_requested:
            self._end(operation_id, "Cancelled", why="cancelled after the current batch")
            return True
        # Whether anything is left does not depend on health, and looking takes a moment.
        decision = self._decide(operation, self._members(version.version))
        if isinstance(decision, planner.Batch):
            decision = self._decide(operation, self.observe(version.version))
        match decision:
            case planner.Complete(why=why, skipped=skipped):
                outcomes = {**operation.outcomes, **dict.fromkeys(skipped, Outcome.SKIPPED)}
                self._update(operation_id, outcomes=outcomes)
                self._end(operation_id, "Completed", why=why)
                return True
            case planner.Stop(code=code, message=message, why=why):
                self._end(operation_id, "Faulted", code=code, message=message, why=why)
                return True
            case planner.Batch(instance_ids=ids, why=why):
                with self._store.transaction():
                    self._update(
                        operation_id,
                        batches=(*operation.batches, (ids, why)),
                        outcomes={**operation.outcomes, **dict.fromkeys(ids, Outcome.IN_PROGRESS)},
                    )
                    self._store.event(
                        self._name,
                        "batch",
                        f"batch {len(operation.batches) + 1}: instances "
                        f"{', '.join(str(number) for number in ids)} ({why})",
                        operation=operation_id,
                    )
                self._on_instances(operation_id, ids, version, self._swap)
                return False

    def _on_instances(
        self,
        operation_id: str,
        ids: Sequence[int],
        version: VersionRecord,
        act: Callable[[InstanceContext, VersionRecord], None],
    ) -> None:
        """Acts on instances side by side."""

        def act_on(number: int) -> None:
            context = self._context(operation_id, number)
            try:
                act(context, version)
            finally:
                context.leave()

        side_by_side(ids, act_on, clock=self._world.clock)

    def _swap(self, context: InstanceContext, version: VersionRecord) -> None:
        """Swaps one instance's OS disk, and rolls it back where that fails."""
        operation_id = context.operation
        old, new = self._generations(context)
        if context.instance_id not in self._operation(operation_id).errors:
            try:
                self._run_phase(context, "swap", swap_steps(old, new, version))
            except Exception as error:  # noqa: BLE001 - whatever it is, nothing stays half done
                self._failed(context, error, Outcome.IN_PROGRESS)
            else:
                self._outcome(context, Outcome.SUCCEEDED)
                return
        if not self._operation(operation_id).rollback:
            running = self._world.hypervisor.running_generation(context.domain)
            # Never given up, e.g. because the new disk could not be made: it stays on the old.
            self._run_phase(context, "settle", settle_steps(old if running == old else new, old))
            self._outcome(context, Outcome.FAILED)
            return
        self._update(operation_id, status="RollingBack")
        try:
            self._run_phase(context, "rollback", rollback_steps(old, new))
        except Exception as error:  # noqa: BLE001 - as above
            context.event("error", f"the rollback failed too: {_describe(error)[1]}")
            self._store.put(context.record.model_copy(update={"provisioning": "Failed"}))
            self._outcome(context, Outcome.ROLLBACK_FAILED)
        else:
            self._outcome(context, Outcome.ROLLED_BACK)
        self._update(operation_id, status="RollingForward")

    def _generations(self, context: InstanceContext) -> tuple[int, int]:
        """Numbers of the old and the new OS disk, the same after a resume."""
        for step in self._store.steps(context.operation, context.instance_id):
            if step.name.startswith("plan "):
                first, second = step.name.removeprefix("plan ").split(">")
                return int(first), int(second)
        old = context.record.generation
        new = max(generation.number for generation in context.generations()) + 1
        step = self._store.intend(
            context.operation, self._name, context.instance_id, "plan", 0, f"plan {old}>{new}"
        )
        self._store.done(step)
        return old, new

    # What the planner needs to know.

    def _decide(
        self, operation: OperationRecord, members: Sequence[planner.Member]
    ) -> planner.Decision:
        return planner.next_batch(members, self._policy(), _progress(operation))

    def _members(self, target: str) -> list[planner.Member]:
        """All instances, taken for healthy."""
        return [
            planner.Member(
                instance_id=record.instance_id,
                health=planner.Health.HEALTHY,
                on_target=self.version_of(record) == target,
                domain=record.update_domain,
                zone=record.zone,
                protected=record.protected,
            )
            for record in self._instances()
        ]

    def observe(self, target: str) -> list[planner.Member]:
        """All instances with their health, asked for side by side."""
        members = self._members(target)
        health = {member.instance_id: member.health for member in members}

        def look(number: int) -> None:
            healthy = observe_health(self._context("", number)).healthy
            health[number] = planner.Health.HEALTHY if healthy else planner.Health.UNHEALTHY

        side_by_side(health, look, clock=self._world.clock)
        return [replace(member, health=health[member.instance_id]) for member in members]

    def version_of(self, record: InstanceRecord) -> str | None:
        """Version of the image that an instance's OS disk was made from."""
        generation = self._context("", record.instance_id).generation(record.generation)
        return None if generation is None else generation.version

    def _policy(self) -> planner.Policy:
        policy = self._context("", 0).model.rolling_policy
        return planner.Policy(
            max_batch_instance_percent=policy.max_batch_instance_percent,
            max_unhealthy_instance_percent=policy.max_unhealthy_instance_percent,
            max_unhealthy_upgraded_instance_percent=policy.max_unhealthy_upgraded_instance_percent,
            prioritize_unhealthy_instances=policy.prioritize_unhealthy_instances,
            enable_cross_zone_upgrade=policy.enable_cross_zone_upgrade,
        )

    def _target(self, operation: OperationRecord) -> VersionRecord:
        for version in self._world.images.versions(operation.gallery, operation.definition):
            if version.version == operation.target:
                return version
        raise NotFoundError(
            f"the version {operation.target} of {operation.definition!r}, to which this upgrade "
            "goes, is no longer in the gallery"
        )

    # Journal and bookkeeping.

    def _run_phase(self, context: InstanceContext, phase: _Phase, steps: Sequence[Step]) -> None:
        """Runs the steps of a phase that the journal does not know as done."""
        done = {
            step.sequence
            for step in self._store.steps(context.operation, context.instance_id)
            if step.phase == phase and step.done is not None and step.error is None
        }
        for sequence, step in enumerate(steps):
            if sequence in done:
                continue
            with self._store.transaction():
                entry = self._store.intend(
                    context.operation, self._name, context.instance_id, phase, sequence, step.name
                )
                context.event("step", f"{phase}: {step.name}")
            try:
                step.apply(context)
            except Exception as error:
                self._store.done(entry, error=_describe(error)[1])
                raise
            self._store.done(entry)

    def _failed(self, context: InstanceContext, error: Exception, outcome: Outcome) -> None:
        code, message = _describe(error)
        tail, log = "", ""
        if isinstance(error, InstanceError):
            tail, log = error.console_tail, str(error.log or "")
        with self._store.transaction():
            operation = self._operation(context.operation)
            record = ErrorRecord(code=code, message=message, console_tail=tail, log=log)
            self._update(
                context.operation,
                errors={**operation.errors, context.instance_id: record},
                outcomes={**operation.outcomes, context.instance_id: outcome},
            )
            context.event("error", message)

    def _outcome(self, context: InstanceContext, outcome: Outcome) -> None:
        with self._store.transaction():
            operation = self._operation(context.operation)
            self._update(
                context.operation, outcomes={**operation.outcomes, context.instance_id: outcome}
            )
            context.event("outcome", str(outcome))

    def _open(
        self,
        action: Literal["create", "upgrade"],
        version: VersionRecord,
        *,
        started_by: Literal["User", "Platform"],
        rollback: bool,
    ) -> OperationRecord:
        now = self._world.clock.now()
        unfinished = [
            operation.id
            for operation in self._store.select(OperationRecord, self._name.lower())
            if operation.ended is None and operation.action == "upgrade"
        ]
        if unfinished:
            raise UpgradeError(
                f"an upgrade of {self._name!r} was interrupted; go on with it first: vmss resume "
                f"{self._name}",
                code="OperationNotAllowed",
            )
        versions = {self.version_of(record) for record in self._instances()} - {None}
        operation = OperationRecord(
            id=f"{now:%Y%m%dT%H%M%S%f}-{secrets.token_hex(3)}",
            scale_set=self._name,
            action=action,
            status="RollingForward",
            started_by=started_by,
            started=now,
            gallery=version.gallery,
            definition=version.definition,
            source_versions=tuple(sorted(str(found) for found in versions)),
            target=version.version,
            digest=version.digest,
            rollback=rollback,
            outcomes={
                record.instance_id: Outcome.NOT_STARTED
                for record in self._instances()
                if action == "upgrade" and self.version_of(record) != version.version
            },
        )
        with self._store.transaction():
            self._store.put(operation)
            self._store.event(
                self._name,
                action,
                f"{action} to {version.version} started by {started_by}",
                operation=operation.id,
            )
        return operation

    @contextlib.contextmanager
    def _ending(self, operation_id: str) -> Iterator[None]:
        """Sees to it that an operation ends, whatever happens on the way (G4)."""
        try:
            yield
        except Exception as error:
            code, message = _describe(error)
            self._end(operation_id, "Faulted", code=code, message=message)
            raise

    def _end(
        self,
        operation_id: str,
        status: Literal["Completed", "Cancelled", "Faulted"],
        *,
        code: str | None = None,
        message: str | None = None,
        why: str = "",
    ) -> None:
        with self._store.transaction():
            self._update(
                operation_id,
                status=status,
                ended=self._world.clock.now(),
                error_code=code,
                error_message=message,
                why=why,
            )
            text = f"{status}: {message or why}" if message or why else status
            self._store.event(self._name, "end", text, operation=operation_id)

    def _update(self, operation_id: str, **changes: object) -> None:
        with self._store.transaction():
            self._store.put(self._operation(operation_id).model_copy(update=changes))

    def _operation(self, operation_id: str) -> OperationRecord:
        operation = self._store.get(OperationRecord, self._name.lower(), operation_id)
        if operation is None:
            raise NotFoundError(f"there is no operation {operation_id} of {self._name!r}")
        return operation

    def _instances(self) -> list[InstanceRecord]:
        return self._store.select(InstanceRecord, self._name.lower())

    def _context(self, operation: str, number: int) -> InstanceContext:
        return InstanceContext(self._world, self._name, number, operation)


def _describe(error: Exception) -> tuple[str, str]:
    """Code and words of an error."""
    if isinstance(error, VmssError):
        return error.code, error.message
    return "InternalExecutionError", f"{type(error).__name__}: {error}"


def _progress(operation: OperationRecord) -> planner.Progress:
    ended = {
        Outcome.SUCCEEDED, Outcome.FAILED, Outcome.ROLLED_BACK, Outcome.ROLLBACK_FAILED,
    }  # fmt: skip
    attempted = {number for number, outcome in operation.outcomes.items() if outcome in ended}
    failed = {n for n in attempted if operation.outcomes[n] is not Outcome.SUCCEEDED}
    return planner.Progress(frozenset(attempted), frozenset(failed))
