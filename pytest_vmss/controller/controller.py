"""Runs this process's upgrades: in the foreground, in a thread, or automatically (C1, C3)."""

from __future__ import annotations

import contextlib
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import Future

from pytest_vmss.clock import Interrupted, is_stopped_by, run_concurrently
from pytest_vmss.controller.failures import EVERY_SET, Failures
from pytest_vmss.controller.loop import ControlLoop
from pytest_vmss.controller.moments import Moments
from pytest_vmss.controller.repairs import Repairs
from pytest_vmss.controller.rollouts import Rollouts
from pytest_vmss.engine.engine import Engine
from pytest_vmss.environment.environment import Environment
from pytest_vmss.errors import (
    ConflictError,
    InterruptedOperationError,
    LabError,
    NotFoundError,
    VmssError,
)
from pytest_vmss.operations import Kind, OSUpgrade
from pytest_vmss.store import ScaleSetRecord, VersionRecord

__all__ = ["Controller"]

#: Seconds for this process's work on a set to stop: as long as the longest call to a guest.
_STOP_S = 120.0
#: Seconds for a lock that is being given back.
_GIVEN_BACK_S = 0.5
#: Called with a set's name, the error, and the id of the operation that failed, if any.
_Failed = Callable[[str, BaseException, str | None], None]


class Controller:
    """Runs the upgrades of a lab.

    Args:
        environment: The lab's environment.
        rollouts: Decides which automatic upgrades are due.
        repair_grace: See :class:`~pytest_vmss.settings.Settings`.
    """

    def __init__(
        self, environment: Environment, rollouts: Rollouts, *, repair_grace: float | None = None
    ) -> None:
        self._environment = environment
        self._grace = repair_grace
        self.rollouts = rollouts
        self._loop: ControlLoop | None = None
        self._threads: list[threading.Thread] = []
        self._moments = Moments(lambda: environment.clock)
        #: Sets that will be retried automatically.
        self._again: set[str] = set()
        #: Automatic upgrades that this process had to leave unfinished: operation by set.
        self._left: dict[str, str] = {}
        self._woken = threading.Event()
        self._troubled: dict[str, str] = {}
        self.failures = Failures(environment)

    def run(self, engine: Engine, kind: Kind, *, wait: bool = True) -> str:
        """Opens an operation on a set and runs it.

        Args:
            engine: The set's, whose very set it must still be.
            kind: The requested operation.
            wait: Return when it has ended; if false, return once it is open, and a thread runs
                it. A later failure is kept and raised where the set's upgrade is awaited.

        Returns:
            The operation's id.

        Raises:
            ConflictError: Another operation is in progress; nothing was changed.
            VmssError: It cannot be planned; nothing was changed.
            InterruptedOperationError: The host cannot continue for now.
        """
        if not wait:
            return self._in_background(engine, kind)
        with engine.lock():
            operation = engine.open(kind)
            engine.run(operation)
        return operation

    def _in_background(self, engine: Engine, kind: Kind) -> str:
        opened: Future[str] = Future()

        def run() -> None:
            operation = None
            try:
                with engine.lock():
                    operation = engine.open(kind)
                    opened.set_result(operation)
                    engine.run(operation)
            except BaseException as error:  # noqa: BLE001 - raised where it is awaited
                if operation is None:
                    opened.set_exception(error)
                elif not isinstance(error, Interrupted):
                    self.failures.add(engine.name, error, operation)
            finally:
                self.wake()

        thread = threading.Thread(target=run, name=f"{kind.action}-{engine.name}", daemon=True)
        thread.start()
        self._threads = [other for other in self._threads if other.is_alive()]
        self._threads.append(thread)
        return opened.result()

    def delete(self, engine: Engine) -> None:
        """Stops this process's work on a set, and deletes it, its machines and all their disks.

        Raises:
            NotFoundError: There is no such set.
            ConflictError: An operation of another process is in progress on it.
            InterruptedOperationError: The host could not remove everything; call this again,
                or resume.
        """
        with self.stopped(engine):
            engine.delete()

    @contextlib.contextmanager
    def stopped(self, engine: Engine) -> Iterator[None]:
        """Stops this process's work on a set, and locks the set.

        Raises:
            ConflictError: Another process is working on it, or the work does not stop in time.
        """
        with contextlib.ExitStack() as stack:
            try:
                stack.enter_context(engine.lock())
            except ConflictError:
                signal = self._environment.working.get(engine.name.lower())
                if signal is None:  # another process has it, or it is given back just now
                    stack.enter_context(engine.lock(wait=_GIVEN_BACK_S))
                    yield
                    return
                if is_stopped_by(signal):
                    raise  # this call runs inside it
                self._environment.stop(engine.name)
                self._environment.store.event(
                    engine.name, "warning", "what is done to it is stopped"
                )
                stack.enter_context(engine.lock(wait=_STOP_S))
            yield

    def latest(self, name: str) -> VersionRecord:
        """The latest version of the image that a set's model refers to.

        Raises:
            NotFoundError: There is no version.
        """
        model = self._environment.revisions.current(name).model
        return self._environment.images.version_for(model.image_reference)

    # Automatic upgrades and repairs.

    def run_due(self) -> None:
        """Runs automatic upgrades, sets concurrently, until none is due.

        A set on which another operation is in progress is left for the next time.

        Raises:
            Exception: The first set's failure, after all have ended.
        """
        unseen: list[BaseException] = []

        def failed(_: str, error: BaseException, operation: str | None) -> None:
            if operation is not None or isinstance(error, Interrupted):
                raise error  # in the set's own thread; the others continue
            unseen.append(error)

        self._roll_due(failed)
        if unseen:
            raise unseen[0]

    def _roll_due(self, failed: _Failed, *, patient: bool = False) -> None:
        left: set[str] = set()

        def run(due: tuple[str, VersionRecord]) -> None:
            name, target = due
            operation = None
            try:
                engine = Engine(self._environment, name)
                with engine.lock():
                    # Somebody may have opted out, or tried the version, before it was locked.
                    found = self.rollouts.look(name, patient=patient)
                    if isinstance(found, str) or found.start > self._environment.clock.now():
                        left.add(name)
                        return
                    target = found.target
                    policy = self._environment.revisions.current(name).model.automatic_os_upgrade
                    rollback = not policy.disable_automatic_rollback
                    operation = engine.open(OSUpgrade(target, "Platform", rollback))
                    self.failures.drop(name)
                    engine.run(operation)
            except ConflictError as error:
                left.add(name)
                self._environment.store.event(
                    name, "warning", f"the upgrade to {target.version} waits: {error.message}"
                )
            except BaseException as error:  # noqa: BLE001 - it is this set's alone
                left.add(name)
                if not self._is_nobodys(name, error):
                    failed(name, error, operation)

        while due := {
            name: target
            for name, target in self.rollouts.due(
                lambda name, e: failed(name, e, None), patient=patient
            ).items()
            if name not in left
        }:
            run_concurrently(due.items(), run, clock=self._environment.clock)

    def _is_nobodys(self, name: str, error: BaseException) -> bool:
        """Whether to ignore a failure: the set is or is being deleted, or its operation stopped."""
        if isinstance(error, NotFoundError | InterruptedOperationError):
            try:
                record = self._environment.store.get(ScaleSetRecord, name.lower())
            except LabError:
                return False  # report the failure rather than lose it to an unreadable store
            return record is None or record.state == "Deleting"
        return isinstance(error, Interrupted) and not self._closing()

    def _closing(self) -> bool:
        """Whether the lab is being closed."""
        try:
            self._environment.clock.sleep(0.0)
        except Interrupted:
            return True
        return False

    def _keep(self, name: str, error: BaseException, operation: str | None) -> None:
        """Keeps a failure to raise where that set is awaited; it is tried again later.

        Raises:
            Interrupted: The lab is being closed.
        """
        if isinstance(error, Interrupted):
            raise error
        self.failures.add(name, error, operation)
        if operation is None:
            self._again.add(name)
        else:
            self._left[name] = operation

    def run_all(self) -> bool:
        """Runs the repairs that are due, and then the upgrades; keeps failures.

        Returns:
            Whether something is to be retried after a while.
        """
        self._again.clear()
        if self._woken.is_set():
            self._woken.clear()
            self._go_on()
        self._repair_due(self._keep)
        self._roll_due(self._keep, patient=True)
        return bool(self._again)

    def _go_on(self) -> None:
        """Resumes, once, what this process had to leave unfinished: the host may have recovered.

        A publication triggers this, so that one failure does not block later versions.
        """
        left, self._left = self._left, {}

        def resume(entry: tuple[str, str]) -> None:
            name, operation = entry
            try:
                engine = Engine(self._environment, name)
                with engine.lock():
                    unfinished = engine.journal.unfinished()
                    if unfinished is not None and unfinished.id == operation:
                        engine.resume()
            except ConflictError:
                pass  # another process or thread has resumed it
            except BaseException as error:  # noqa: BLE001 - it is this set's alone
                if not self._is_nobodys(name, error):
                    self._keep(name, error, operation)

        run_concurrently(left.items(), resume, clock=self._environment.clock)

    def repairs(self, name: str) -> Repairs:
        """The automatic repairs of a set."""
        return Repairs(
            self._environment,
            Engine(self._environment, name),
            grace=self._grace,
            moments=self._moments,
        )

    def run_repairs(self) -> None:
        """Checks every set with automatic repairs once, and repairs what is due (K1).

        A set on which another operation is in progress is left for the next time; a check or
        repair that fails is recorded in an event of the set.
        """
        self._repair_due(_raise)

    def _repair_due(self, failed: _Failed) -> None:
        def run(name: str) -> None:
            try:
                self._repair(name)
                self._troubled.pop(name, None)
            except ConflictError:
                pass  # another operation is in progress: next time
            except InterruptedOperationError as error:
                if not self._is_nobodys(name, error):
                    failed(name, error, error.operation or None)
            except VmssError as error:
                if not self._is_nobodys(name, error):
                    self._tell_trouble(name, error.message)
            except BaseException as error:  # noqa: BLE001 - it is this set's alone
                if not self._is_nobodys(name, error):
                    failed(name, error, None)

        run_concurrently(self._sets(), run, clock=self._environment.clock)

    def _repair(self, name: str) -> None:
        engine, repairs = Engine(self._environment, name), self.repairs(name)
        if not repairs.running or engine.journal.unfinished() is not None or not repairs.needed():
            return
        with engine.lock():
            if engine.journal.unfinished() is None:
                repairs.repair()

    def _tell_trouble(self, name: str, message: str) -> None:
        """Writes an event, unless its message is the same as last time: checks are frequent."""
        if self._troubled.get(name) != message:
            self._troubled[name] = message
            self._environment.store.event(
                name, "warning", f"automatic repairs cannot look: {message}"
            )

    def _sets(self) -> list[str]:
        return [record.name for record in self._environment.store.select(ScaleSetRecord)]

    def _wants_looks(self) -> bool:
        """Whether a set's health, or what other processes do, may make something due."""
        return self.rollouts.any_automatic or any(map(self._are_repaired, self._sets()))

    def _are_repaired(self, name: str) -> bool:
        try:
            return self.repairs(name).running
        except NotFoundError:
            return False  # it was deleted meanwhile

    def watch(self) -> None:
        """Starts the thread that runs due upgrades and repairs in this process."""
        if self._loop is None:
            self._loop = ControlLoop(
                self.run_all,
                self._seconds_to_next,
                self._wants_looks,
                failed=lambda error: self._keep(EVERY_SET, error, None),
                closing=self._closing,
            )
        self._loop.wake()

    @property
    def watching(self) -> bool:
        """Whether this process runs due upgrades by itself; see :meth:`watch`."""
        return self._loop is not None

    @property
    def idle(self) -> bool:
        """Whether no automatic upgrade is running or about to run in this process."""
        return self._loop is None or self._loop.idle

    def is_idle(self, name: str) -> bool:
        """The same for one set; one that failed to start is retried, so it is not idle."""
        return self.idle and not self._again & {name, EVERY_SET}

    def _seconds_to_next(self) -> float | None:
        """Seconds until a delayed rollout is due; None if there is none (C2)."""
        start = self.rollouts.next_start()
        if start is None:
            return None
        return max((start - self._environment.clock.now()).total_seconds(), 0.0)

    def wake(self) -> None:
        """Wakes the control loop: an automatic upgrade may be due."""
        for name in list(self._left):
            self.failures.drop(name)  # it is resumed now
        self._woken.set()
        if self._loop is not None:
            self._loop.wake()

    def close(self) -> None:
        """Joins its threads; close the lab's clock first, so that waits end."""
        if self._loop is not None:
            self._loop.close()
        for thread in self._threads:
            thread.join()


def _raise(_: str, error: BaseException, __: str | None) -> None:
    raise error
