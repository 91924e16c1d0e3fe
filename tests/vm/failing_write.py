"""The ``vmss`` command, on a host whose disk fails once, at the worst moment.

The first write of the journal after the one that commits an instance to its second OS
disk fails, in the thread that works on that instance, as SQLite tells of a disk that
does not take a write. Run as a program: ``python failing_write.py resume shop``.
"""

from __future__ import annotations

import sqlite3
import threading
from unittest import mock

from pytest_vmss.api import lab
from pytest_vmss.cli import main
from pytest_vmss.secrecy import SecretText
from pytest_vmss.store import GenerationRecord, Store
from pytest_vmss.store.record import Record


class FailingStore(Store):
    """A store one of whose transactions is not made durable, once."""

    _victim: int | None = None
    _writes_left = 1

    def _put(self, record: Record) -> SecretText:
        """Writes a record, and notes the thread that commits a second OS disk."""
        body = super()._put(record)
        if (
            isinstance(record, GenerationRecord)
            and (record.number, record.state) == (2, "current")
            and self._victim is None
        ):
            self._victim = threading.get_ident()
        return body

    def _commit(self) -> None:
        if self._victim == threading.get_ident():
            if self._writes_left == 0:
                self._victim = 0  # no thread's number
                raise sqlite3.OperationalError("disk I/O error")
            self._writes_left -= 1
        super()._commit()


if __name__ == "__main__":
    with mock.patch.object(lab, "Store", FailingStore):
        main()
