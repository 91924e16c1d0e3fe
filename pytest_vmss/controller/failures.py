"""Failures of background work, kept to be raised where it is awaited (Q1, C1)."""

from __future__ import annotations

import contextlib
import threading
from dataclasses import dataclass

from pytest_vmss.environment.environment import Environment
from pytest_vmss.errors import InterruptedOperationError, NotFoundError, UpgradeError, error_text
from pytest_vmss.store import OperationRecord

__all__ = ["EVERY_SET", "Failures"]

#: In place of a set's name: the failure concerns all sets.
EVERY_SET = ""


@dataclass(frozen=True)
class _Failure:
    set_id: str
    operation: str | None
    error: BaseException


class Failures:
    """The latest failure of each set, and of the lab as a whole.

    A failure that left an operation unfinished is raised until that operation has ended; any
    other is raised once. Neither outlives its set, nor a later success.

    Args:
        environment: The lab's environment.
    """

    def __init__(self, environment: Environment) -> None:
        self._environment = environment
        self._lock = threading.Lock()
        self._kept: dict[str, _Failure] = {}

    def add(self, name: str, error: BaseException, operation: str | None = None) -> None:
        """Keeps a failure, and writes an event about it.

        Args:
            name: The set; :data:`EVERY_SET` if it concerns no single one.
            error: What went wrong.
            operation: The operation that failed; None if none was opened.
        """
        if isinstance(error, InterruptedOperationError):
            operation = error.operation
        failure = _Failure(self._set_id(name), operation, error)
        with self._lock:
            before = self._kept.get(name.lower())
            self._kept[name.lower()] = failure
        if before is not None and error_text(before.error) == error_text(error):
            return  # a retry failed the same way: one event is enough
        with contextlib.suppress(Exception):  # the store itself may have failed
            self._environment.store.event(
                name, "warning", f"failed in the background: {error_text(error)}",
                operation=operation or "",
            )  # fmt: skip

    def drop(self, name: str) -> None:
        """Forgets a set's failure, after a success or before a retry."""
        with self._lock:
            self._kept.pop(name.lower(), None)

    def check(self, name: str) -> None:
        """Raises the kept failure of a set, or of all sets.

        Raises:
            InterruptedOperationError: Its operation was interrupted, and can be resumed.
            UpgradeError: Any other failure, which is its cause.
        """
        for key in (name.lower(), EVERY_SET):
            failure = self._taken(key)
            if failure is None:
                continue
            if isinstance(failure.error, InterruptedOperationError):
                raise failure.error
            raise UpgradeError(
                f"{self._what(key, failure)} failed: {error_text(failure.error)}"
            ) from failure.error

    def _what(self, name: str, failure: _Failure) -> str:
        """What failed, in words: an operation by its kind, or what was to become one."""
        if name == EVERY_SET:
            return "the control loop of this lab"
        record = self._record(name, failure)
        if record is None:
            return f"an automatic upgrade or repair of {name!r}"
        by = "automatic " if record.started_by == "Platform" else ""
        return f"the {by}{record.action} of {record.scale_set!r}"

    def _record(self, name: str, failure: _Failure) -> OperationRecord | None:
        if failure.operation is None:
            return None
        return self._environment.store.get(OperationRecord, name, failure.operation)

    def _taken(self, key: str) -> _Failure | None:
        with self._lock:
            failure = self._kept.get(key)
        if failure is None:
            return None
        if failure.set_id == self._set_id(key):
            record = self._record(key, failure)
            if record is not None and record.ended is None:
                return failure
        with self._lock:
            if self._kept.get(key) is failure:
                del self._kept[key]
        stale = failure.operation is not None or failure.set_id != self._set_id(key)
        return None if stale else failure

    def _set_id(self, name: str) -> str:
        """The set's unique id, which a later set of that name does not share; empty if unknown."""
        if name == EVERY_SET:
            return ""
        try:
            return self._environment.set_record(name).unique_id
        except NotFoundError:
            return ""
