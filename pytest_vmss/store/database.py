"""The lab's database: SQLite with a write-ahead log and full synchronisation."""

from __future__ import annotations

import os
import sqlite3
import threading
from collections.abc import Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from functools import lru_cache
from pathlib import Path
from typing import TypeVar

from pytest_vmss.clock import Clock
from pytest_vmss.errors import LabError, NotFoundError
from pytest_vmss.store.records import EventRecord, Record, StepRecord

__all__ = ["Store"]

_FORMAT = 2

_SCHEMA = """
CREATE TABLE IF NOT EXISTS record (
    kind TEXT NOT NULL, key TEXT NOT NULL, body TEXT NOT NULL, PRIMARY KEY (kind, key)
) WITHOUT ROWID;
CREATE TABLE IF NOT EXISTS step (
    operation TEXT NOT NULL, scale_set TEXT NOT NULL, instance_id INTEGER NOT NULL,
    phase TEXT NOT NULL, sequence INTEGER NOT NULL, name TEXT NOT NULL,
    intended TEXT NOT NULL, done TEXT, error TEXT,
    PRIMARY KEY (operation, instance_id, phase, sequence)
) WITHOUT ROWID;
CREATE TABLE IF NOT EXISTS event (
    id INTEGER PRIMARY KEY, time TEXT NOT NULL, scale_set TEXT NOT NULL, instance_id INTEGER,
    operation TEXT, kind TEXT NOT NULL, message TEXT NOT NULL
);
"""

_R = TypeVar("_R", bound=Record)

_AFTER_ALL = "\U0010ffff"  # sorts after every character of a key


@lru_cache(maxsize=16_384)
def _parse(kind: type[_R], body: str) -> _R:
    """Reads a record; the same text gives the same record, which nobody changes."""
    return kind.model_validate_json(body)


def _key(parts: Sequence[str]) -> str:
    return "".join(f"{part}/" for part in parts)


class Store:
    """Records, steps and events of one lab; safe for threads and processes.

    Args:
        path: The database; made with mode 0600 where there is none.
        clock: Where times come from.

    Raises:
        LabError: The file is not a database of this version.
    """

    def __init__(self, path: Path, clock: Clock) -> None:
        self._clock = clock
        self._path = path
        self._lock = threading.RLock()
        self._owner: int | None = None
        os.close(os.open(path, os.O_CREAT | os.O_RDWR, 0o600))
        try:
            self._db = sqlite3.connect(
                path, timeout=30.0, isolation_level=None, check_same_thread=False
            )
            self._db.execute("PRAGMA journal_mode=WAL")
            self._db.execute("PRAGMA synchronous=FULL")
            version = self._db.execute("PRAGMA user_version").fetchone()[0]
            if version not in (0, _FORMAT):
                raise LabError(
                    f"{path} was written by another version of pytest-vmss (format {version}, "
                    f"this one reads {_FORMAT}); use another state directory"
                )
            self._db.executescript(_SCHEMA)
            self._db.execute(f"PRAGMA user_version={_FORMAT}")
        except sqlite3.DatabaseError as broken:
            raise LabError(f"{path} cannot be used as the lab's database: {broken}") from broken

    def close(self) -> None:
        """Closes the database."""
        with self._lock:
            self._db.close()

    def transaction(self) -> AbstractContextManager[None]:
        """Makes everything written inside durable at once, or not at all.

        Raises:
            LabError: The host's disk is full, or the file cannot be written.
        """
        if self._owner == threading.get_ident():
            return nullcontext()  # a part of the one that this thread is in
        return self._transaction()

    @contextmanager
    def _transaction(self) -> Iterator[None]:
        with self._lock:
            self._begin()
            self._owner = threading.get_ident()
            try:
                yield
                self._commit()
            except BaseException as error:
                if self._db.in_transaction:
                    self._db.execute("ROLLBACK")
                if isinstance(error, sqlite3.OperationalError):
                    raise self._unwritable(error) from error
                raise
            finally:
                self._owner = None

    def _begin(self) -> None:
        try:
            self._db.execute("BEGIN IMMEDIATE")
        except sqlite3.OperationalError as error:
            raise self._unwritable(error) from error

    def _unwritable(self, error: sqlite3.OperationalError) -> LabError:
        return LabError(
            f"the lab's database {self._path} cannot be written: {error}; make room on its disk "
            "or free the database"
        )

    def _commit(self) -> None:
        self._db.execute("COMMIT")

    def put(self, record: Record) -> None:
        """Writes a record, in place of an older one with the same key."""
        with self.transaction():
            self._db.execute(
                "INSERT OR REPLACE INTO record VALUES (?, ?, ?)",
                (record.kind, _key(record.key), record.model_dump_json()),
            )

    def delete(self, record: Record) -> None:
        """Forgets a record."""
        with self.transaction():
            self._db.execute(
                "DELETE FROM record WHERE kind = ? AND key = ?", (record.kind, _key(record.key))
            )

    def get(self, kind: type[_R], *key: str) -> _R | None:
        """Reads one record by its whole key."""
        with self._lock:
            row = self._db.execute(
                "SELECT body FROM record WHERE kind = ? AND key = ?", (kind.kind, _key(key))
            ).fetchone()
        return None if row is None else _parse(kind, row[0])

    def select(self, kind: type[_R], *prefix: str) -> list[_R]:
        """Reads the records whose key starts so, in the order of their keys."""
        start = _key(prefix)
        with self._lock:
            rows = self._db.execute(
                "SELECT body FROM record WHERE kind = ? AND key >= ? AND key < ? ORDER BY key",
                (kind.kind, start, start + _AFTER_ALL),
            ).fetchall()
        return [_parse(kind, row[0]) for row in rows]

    def amend(self, record: _R, **changes: object) -> _R:
        """Changes fields of a record as it stands now, whoever wrote it last.

        Args:
            record: Which record; only its key matters.
            changes: New values by field.

        Raises:
            NotFoundError: It was deleted.
            ValidationError: A value does not fit its field; nothing was changed.
            TypeError: There is no such field; nothing was changed.
        """
        if unknown := changes.keys() - type(record).model_fields.keys():
            raise TypeError(f"the record {record.kind} has no fields {', '.join(sorted(unknown))}")
        with self.transaction():
            current = self.get(type(record), *record.key)
            if current is None:
                raise NotFoundError(f"the {record.kind} {'/'.join(record.key)} is gone")
            changed = type(record).model_validate({**dict(current), **changes})
            self.put(changed)
        return changed

    def intend(
        self, operation: str, scale_set: str, instance_id: int, phase: str, sequence: int, name: str
    ) -> StepRecord:
        """Journals that a step is about to be taken; an earlier entry is taken up again."""
        with self.transaction():
            self._db.execute(
                "INSERT INTO step VALUES (?, ?, ?, ?, ?, ?, ?, NULL, NULL) "
                "ON CONFLICT DO UPDATE SET intended = excluded.intended, done = NULL, error = NULL",
                (operation, scale_set, instance_id, phase, sequence, name,
                 self._clock.now().isoformat()),
            )  # fmt: skip
        return StepRecord(
            operation=operation, scale_set=scale_set, instance_id=instance_id, phase=phase,
            sequence=sequence, name=name, intended=self._clock.now(),
        )  # fmt: skip

    def done(self, step: StepRecord, *, error: str | None = None) -> None:
        """Journals that a step has ended, well or with an error."""
        with self.transaction():
            self._db.execute(
                "UPDATE step SET done = ?, error = ? WHERE operation = ? AND instance_id = ? "
                "AND phase = ? AND sequence = ?",
                (self._clock.now().isoformat(), error, step.operation, step.instance_id,
                 step.phase, step.sequence),
            )  # fmt: skip

    def steps(self, operation: str, instance_id: int | None = None) -> list[StepRecord]:
        """The journal of an operation (of one instance), in the order in which steps were begun."""
        columns = "operation, scale_set, instance_id, phase, sequence, name, intended, done, error"
        one = "" if instance_id is None else " AND instance_id = ?"
        with self._lock:
            rows = self._db.execute(
                f"SELECT {columns} FROM step WHERE operation = ?{one} "  # noqa: S608 - constants
                "ORDER BY intended, sequence",
                (operation,) if instance_id is None else (operation, instance_id),
            ).fetchall()
        names = columns.split(", ")
        return [StepRecord.model_validate(dict(zip(names, row, strict=True))) for row in rows]

    def event(
        self,
        scale_set: str,
        kind: str,
        message: str,
        *,
        instance_id: int | None = None,
        operation: str | None = None,
    ) -> None:
        """Writes that something happened; the message must hold no secret."""
        with self.transaction():
            self._db.execute(
                "INSERT INTO event (time, scale_set, instance_id, operation, kind, message) "
                "VALUES (?, ?, ?, ?, ?, ?)",
                (self._clock.now().isoformat(), scale_set, instance_id, operation, kind, message),
            )

    def events(self, *, after: int = 0, scale_set: str | None = None) -> list[EventRecord]:
        """Events with a higher number, oldest first."""
        columns = "id, time, scale_set, instance_id, operation, kind, message"
        with self._lock:
            rows = self._db.execute(
                f"SELECT {columns} FROM event WHERE id > ? AND (? IS NULL OR scale_set = ?) "  # noqa: S608
                "ORDER BY id",
                (after, scale_set, scale_set),
            ).fetchall()
        names = columns.split(", ")
        return [EventRecord.model_validate(dict(zip(names, row, strict=True))) for row in rows]

    def last_events(self, scale_set: str, count: int) -> list[EventRecord]:
        """The last events of a set, oldest first."""
        columns = "id, time, scale_set, instance_id, operation, kind, message"
        with self._lock:
            rows = self._db.execute(
                f"SELECT {columns} FROM event WHERE scale_set = ? ORDER BY id DESC LIMIT ?",  # noqa: S608
                (scale_set, count),
            ).fetchall()
        names = columns.split(", ")
        found = [EventRecord.model_validate(dict(zip(names, row, strict=True))) for row in rows]
        return found[::-1]
