"""Upgrades in this process: awaited, in a thread, or by themselves (C1, C3)."""

from __future__ import annotations

import threading
from collections.abc import Callable
from typing import Literal, TypedDict, Unpack

from pytest_vmss.clock import Interrupted, side_by_side
from pytest_vmss.errors import ConflictError, UpgradeError, VmssError
from pytest_vmss.store import OperationRecord, ScaleSetRecord, VersionRecord
from pytest_vmss.upgrade.due import Rollouts
from pytest_vmss.upgrade.engine import Engine, StartedBy
from pytest_vmss.upgrade.repairs import Repairs
from pytest_vmss.upgrade.watcher import Watcher
from pytest_vmss.upgrade.world import World

__all__ = ["Conductor", "Options"]

_Opened = Callable[[OperationRecord], None]


class Options(TypedDict, total=False):
    """How an upgrade is run.

    Attributes:
        action: To an image version, or to newer extension handlers.
        started_by: Azure's ``startedBy``.
        rollback: Give instances that do not recover their previous OS disk back.
        on_open: Told the operation before its first effect.
        wait: Return when it has ended; else as soon as it has begun.
        target: The version; None for the latest.
    """

    action: Literal["upgrade", "extension-upgrade"]
    started_by: StartedBy
    rollback: bool
    on_open: _Opened
    wait: bool
    target: VersionRecord | None


class Conductor:
    """Runs the upgrades of a lab.

    Args:
        world: Its sets.
        rollouts: Knows which automatic upgrades are due.
        repair_grace: See :class:`~pytest_vmss.settings.Settings`.
    """

    def __init__(
        self, world: World, rollouts: Rollouts, *, repair_grace: float | None = None
    ) -> None:
        self._world = world
        self._grace = repair_grace
        self._rollouts = rollouts
        self._watcher: Watcher | None = None
        self._threads: list[threading.Thread] = []

    def run_upgrade(self, name: str, **options: Unpack[Options]) -> None:
        """Rolls a set to an image version, or to newer extension handlers.

        Args:
            name: The set.
            options: See :class:`Options`; by default an OS upgrade by hand, awaited.

        Raises:
            ConflictError: Another operation is in progress; nothing was changed.
        """
        action = options.get("action", "upgrade")
        version = None
        if action == "upgrade":
            version = options.get("target") or self._world.images.resolve(
                self._rollouts.address(name)
            )
        engine = Engine(self._world, name)

        def go(opened: _Opened) -> None:
            with engine.claim():
                engine.roll(
                    action,
                    version=version,
                    started_by=options.get("started_by", "User"),
                    rollback=options.get("rollback", False),
                    on_open=opened,
                )

        on_open = options.get("on_open", lambda _: None)
        if options.get("wait", True):
            go(on_open)
        else:
            self._in_background(f"upgrade-{name}", go, on_open)

    def _in_background(self, name: str, go: Callable[[_Opened], None], on_open: _Opened) -> None:
        """Runs an upgrade in a thread; returns when it has begun."""
        begun = threading.Event()
        refused: list[VmssError] = []

        def opened(operation: OperationRecord) -> None:
            on_open(operation)
            begun.set()

        def run() -> None:
            try:
                go(opened)
            except VmssError as error:
                refused.append(error)
            except Interrupted:
                pass  # the lab is being closed
            finally:
                begun.set()
                self.wake()

        thread = threading.Thread(target=run, name=name, daemon=True)
        thread.start()
        self._threads.append(thread)
        begun.wait()
        if refused:
            raise refused[0]

    # By themselves.

    def run_due(self) -> None:
        """Runs every automatic upgrade that is due, sets side by side, until none is.

        A set on which something else is being done is left for the next time.
        """
        busy: set[str] = set()

        def run(due: tuple[str, VersionRecord]) -> None:
            name, target = due
            model = self._world.current_revision(name).model
            try:
                self.run_upgrade(
                    name,
                    started_by="Platform",
                    rollback=not model.automatic_os_upgrade.disable_automatic_rollback,
                    target=target,
                )
            except ConflictError as refused:
                busy.add(name)
                self._world.store.event(
                    name, "warning", f"the upgrade to {target.version} waits: {refused.message}"
                )

        while due := {
            name: target for name, target in self._rollouts.due().items() if name not in busy
        }:
            side_by_side(due.items(), run, clock=self._world.clock)

    def run_all(self) -> None:
        """Runs the repairs that are due, and then the upgrades."""
        self.run_repairs()
        self.run_due()

    def repairs(self, name: str) -> Repairs:
        """The automatic repairs of a set."""
        return Repairs(self._world, Engine(self._world, name), grace=self._grace)

    def run_repairs(self) -> None:
        """Looks once at every set whose instances are repaired, and repairs what is due (K1).

        A set on which something else is being done is left for the next time.
        """

        def run(name: str) -> None:
            engine, repairs = Engine(self._world, name), self.repairs(name)
            try:
                if engine.journal.unfinished() is None and repairs.needed():
                    with engine.claim():
                        if engine.journal.unfinished() is None:
                            repairs.repair()
            except ConflictError:
                pass  # someone else is at work on it: another time
            except VmssError as error:
                self._world.store.event(
                    name, "warning", f"automatic repairs cannot look: {error.message}"
                )

        names = [record.name for record in self._world.store.select(ScaleSetRecord)]
        repaired = [name for name in names if self.repairs(name).running]
        side_by_side(repaired, run, clock=self._world.clock)

    def _repairs_run(self) -> bool:
        records = self._world.store.select(ScaleSetRecord)
        return any(self.repairs(record.name).running for record in records)

    def watch(self) -> None:
        """From now on, due upgrades and repairs run by themselves in this process."""
        if self._watcher is None:
            self._watcher = Watcher(self.run_all, self._seconds_to_next, self._repairs_run)
        self._watcher.wake()

    @property
    def idle(self) -> bool:
        """Whether no automatic upgrade runs or is about to in this process.

        Raises:
            UpgradeError: One broke.
        """
        if self._watcher is None:
            return True
        if self._watcher.error is not None:
            raise UpgradeError(
                f"an automatic upgrade broke: {self._watcher.error}"
            ) from self._watcher.error
        return self._watcher.idle

    def _seconds_to_next(self) -> float | None:
        """Seconds until a delayed rollout is due; None where none is coming (C2)."""
        start = self._rollouts.next_start()
        if start is None:
            return None
        return max((start - self._world.clock.now()).total_seconds(), 0.0)

    def wake(self) -> None:
        """Says that an automatic upgrade may be due."""
        if self._watcher is not None:
            self._watcher.wake()

    def close(self) -> None:
        """Ends its threads; close the lab's clock first, so that waits end."""
        if self._watcher is not None:
            self._watcher.close()
        for thread in self._threads:
            thread.join()
