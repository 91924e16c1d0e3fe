"""The lab's database: SQLite with a write-ahead log and full synchronization."""

from __future__ import annotations

import os
import sqlite3
import threading
from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext, suppress
from functools import lru_cache
from pathlib import Path
from typing import Any, TypeVar

from pydantic import ValidationError

from pytest_vmss.clock import Clock, SystemClock, wait_for
from pytest_vmss.errors import LabError, NotFoundError, WaitTimeoutError
from pytest_vmss.host.files import sync_folder
from pytest_vmss.secrecy import SecretText
from pytest_vmss.store.memory import Memory
from pytest_vmss.store.operation_records import EventRecord, StepKey, StepRecord
from pytest_vmss.store.record import Record
from pytest_vmss.untrusted import clean

__all__ = ["Store"]

_FORMAT = 2

#: SQLite's own cache; enough for the lab of a set of a thousand instances.
_CACHE_KIB = 16_384

#: Makes a commit wait until it, and all before it, are on the disk; or only makes it.
_SYNCHRONIZE = "PRAGMA synchronous=FULL"
_DO_NOT_SYNCHRONIZE = "PRAGMA synchronous=NORMAL"

#: Seconds to wait for another process that is writing.
_BUSY_S = 30.0

_SCHEMA = (
    """
CREATE TABLE IF NOT EXISTS record (
    kind TEXT NOT NULL, key TEXT NOT NULL, body TEXT NOT NULL, PRIMARY KEY (kind, key)
) WITHOUT ROWID
""",
    """
CREATE TABLE IF NOT EXISTS step (
    operation TEXT NOT NULL, scale_set TEXT NOT NULL, instance_id INTEGER NOT NULL,
    phase TEXT NOT NULL, sequence INTEGER NOT NULL, name TEXT NOT NULL,
    intended TEXT NOT NULL, done TEXT, error TEXT,
    PRIMARY KEY (operation, instance_id, phase, sequence)
) WITHOUT ROWID
""",
    """
CREATE TABLE IF NOT EXISTS event (
    id INTEGER PRIMARY KEY, time TEXT NOT NULL, scale_set TEXT NOT NULL, instance_id INTEGER,
    operation TEXT, kind TEXT NOT NULL, message TEXT NOT NULL
)
""",
)

_R = TypeVar("_R", bound=Record)

_AFTER_ALL = "\U0010ffff"  # sorts after every character of a key

#: What a transaction inside another one is: nothing of its own.
_JOINED = nullcontext()


class _Forks:
    """Counts the forks between the process that loaded this module and this one.

    A connection must not cross a fork, and asking the kernel for the process's id at each
    statement costs as much as some statements.
    """

    count = 0

    @classmethod
    def add(cls) -> None:
        """Counts one; called in the child."""
        cls.count += 1


os.register_at_fork(after_in_child=_Forks.add)


def _parse(kind: type[_R], body: SecretText) -> _R:
    """Parses a record.

    Raises:
        LabError: It is not a record of this version.
    """
    try:
        return kind.model_validate_json(body)
    except ValidationError as error:
        where = "; ".join(".".join(map(str, entry["loc"])) for entry in error.errors())
        raise LabError(
            f"the lab's database holds a {kind.kind} that this version of pytest-vmss cannot read "
            f"({where}); use the version that wrote it, or another state directory"
        ) from None


def _code(error: BaseException) -> int | None:
    """Returns SQLite's primary result code; None for other errors."""
    code = getattr(error, "sqlite_errorcode", None)
    return None if code is None else code & 0xFF


@lru_cache(maxsize=16_384)
def _key(parts: tuple[str | int, ...]) -> str:
    """A key as text; numbers sort by their value."""
    return "".join(f"{part:06d}/" if isinstance(part, int) else f"{part}/" for part in parts)


class Store:
    """The records, steps and events of one lab; safe for threads and processes.

    Args:
        path: The database file; created with mode 0600 if missing.
        clock: The source of timestamps.

    Raises:
        LabError: The file is not a database of this version.
    """

    def __init__(self, path: Path, clock: Clock) -> None:
        self._clock = clock
        self._path = path
        self._lock = threading.RLock()
        self._owner: int | None = None
        self._process = os.getpid()
        self._forks = _Forks.count
        self._closed = False
        self._memory = Memory()
        self._synchronizes: bool | None = None  # whether the connection's commits do; None: unknown
        try:
            if not path.exists():
                os.close(os.open(path, os.O_CREAT | os.O_RDWR | os.O_CLOEXEC, 0o600))
                sync_folder(path.parent)
            self._connection: sqlite3.Connection | None = self._open()
        except (OSError, sqlite3.Error) as error:
            raise LabError(
                f"{path} cannot be used as the lab's database: {error}; mend that, or use "
                "another state directory (VMSS_STATE_DIR)"
            ) from error

    @property
    def _db(self) -> sqlite3.Connection:
        """The connection; reopened if one was closed because its rollback failed."""
        if self._closed:
            raise LabError(f"the lab's database {self._path} was closed; open the lab again")
        if self._connection is None:
            self._connection = self._open()
        return self._connection

    @property
    def _live(self) -> sqlite3.Connection:
        """The connection, in this thread's transaction or in none; with the store locked.

        Raises:
            sqlite3.OperationalError: SQLite ended the transaction by itself.
        """
        database, is_writing = self._connection or self._db, self._owner is not None
        if database.in_transaction == is_writing:
            return database
        if is_writing:
            raise sqlite3.OperationalError("the transaction was rolled back by an error in it")
        self._roll_back()  # Ctrl-C came in its stead
        return self._db

    def _open(self) -> sqlite3.Connection:
        """Opens the file, creating the schema if it is empty.

        Raises:
            LabError: It is a database of another version.
            sqlite3.Error: It cannot be used.
        """
        busy: list[sqlite3.Error] = []

        def try_once() -> sqlite3.Connection | None:
            database = sqlite3.connect(
                self._path, timeout=_BUSY_S, isolation_level=None, check_same_thread=False
            )
            try:
                self._prepare(database)
            except BaseException as error:
                database.close()
                # If two processes switch to WAL at once, SQLite fails instead of waiting.
                if _code(error) in (sqlite3.SQLITE_BUSY, sqlite3.SQLITE_LOCKED):
                    busy[:] = [error]  # type: ignore[list-item]
                    return None
                raise
            return database

        try:
            return wait_for(
                "the lab's database",
                try_once,
                timeout=_BUSY_S,
                clock=SystemClock(),
                interval=0.02,
            )
        except WaitTimeoutError as error:
            raise busy[0] from error

    def _prepare(self, database: sqlite3.Connection) -> None:
        database.execute("PRAGMA journal_mode=WAL")
        database.execute(f"PRAGMA cache_size=-{_CACHE_KIB}")
        self._synchronize(database, True)
        version = database.execute("PRAGMA user_version").fetchone()[0]
        if version == _FORMAT:
            return
        # Several processes may get here at once; one creates the schema, whole or not at all.
        database.execute("BEGIN IMMEDIATE")
        version = database.execute("PRAGMA user_version").fetchone()[0]
        if version not in (0, _FORMAT):
            raise LabError(
                f"{self._path} was written by another version of pytest-vmss (format {version}, "
                f"this one reads {_FORMAT}); use another state directory"
            )
        for table in _SCHEMA:
            database.execute(table)
        database.execute(f"PRAGMA user_version={_FORMAT}")
        database.execute("COMMIT")

    def close(self) -> None:
        """Closes the database; does nothing in a forked child."""
        if self._forks == _Forks.count:
            with self._lock:
                self._closed = True
                self._drop()

    def _drop(self) -> None:
        if self._connection is not None:
            with suppress(sqlite3.Error):
                self._connection.close()
            self._connection = None
            self._memory.doubt()

    @property
    def in_transaction(self) -> bool:
        """Whether this thread is in a transaction, so that what it reads may be undone."""
        return self._owner == threading.get_ident()

    def transaction(self, *, durable: bool = True) -> AbstractContextManager[None]:
        """Returns a context manager whose writes become durable together, or not at all.

        Args:
            durable: Synchronize them to the disk at the end. If false, they survive the end of
                this process at once, and a crash of the host as soon as any later transaction
                has been synchronized: for what no effect follows before that.

        Raises:
            LabError: The host's disk is full, or the file cannot be written.
        """
        self._require_own()
        if self.in_transaction:
            return _JOINED  # part of the transaction that this thread is in
        return self._transaction(durable)

    @contextmanager
    def _transaction(self, durable: bool) -> Iterator[None]:
        self._let_others_run()
        with self._lock:
            try:
                self._begin(durable)
                self._owner = threading.get_ident()
                yield
                self._commit()
            except BaseException as error:
                self._roll_back()
                if isinstance(error, sqlite3.Error):
                    raise self._unusable("written", error) from error
                raise
            finally:
                self._owner = None
        self._let_others_run()

    def _let_others_run(self) -> None:
        """Called before and after each transaction, with nothing locked, for simulations."""

    def _begin(self, durable: bool) -> None:
        database = self._live
        if durable is not self._synchronizes:
            self._synchronize(database, durable)
        database.execute("BEGIN IMMEDIATE")
        self._see(database)

    def _synchronize(self, database: sqlite3.Connection, durable: bool) -> None:
        """Decides whether commits wait for the disk; what fails or is interrupted is asked again."""
        self._synchronizes = None
        database.execute(_SYNCHRONIZE if durable else _DO_NOT_SYNCHRONIZE)
        self._synchronizes = durable

    def _commit(self) -> None:
        self._db.execute("COMMIT")

    def _roll_back(self) -> None:
        """Rolls a transaction back; if that fails, closes the connection."""
        self._memory.doubt()
        connection = self._connection
        try:
            if connection is not None and connection.in_transaction:
                connection.execute("ROLLBACK")
        except sqlite3.Error:
            self._drop()

    def _require_own(self) -> None:
        if self._forks != _Forks.count:
            raise LabError(
                f"the lab's database {self._path} was opened by the process {self._process}, of "
                f"which this one ({os.getpid()}) is a fork, and cannot be shared; open the lab in "
                "this process (Lab.open)"
            )

    def _unusable(self, what: str, error: sqlite3.Error) -> LabError:
        return LabError(
            f"the lab's database {self._path} cannot be {what}: {error}; make room on its disk "
            "or free the database"
        )

    def _write(self, statement: str, *values: object) -> None:
        """Runs a statement in this thread's transaction, or in one of its own.

        Raises:
            LabError: It failed, or an earlier error rolled back the transaction.
        """
        self._require_own()
        if not self.in_transaction:
            with self._transaction(durable=True):
                self._live.execute(statement, values)
            return
        try:
            self._live.execute(statement, values)
        except sqlite3.Error as error:
            raise self._unusable("written", error) from error

    def _read(self, statement: str, *values: object) -> list[tuple[Any, ...]]:
        """Runs a query.

        Raises:
            LabError: It failed.
        """
        self._require_own()
        try:
            with self._lock:
                return self._live.execute(statement, values).fetchall()
        except sqlite3.Error as error:
            raise self._unusable("read", error) from error

    def _see(self, database: sqlite3.Connection) -> None:
        """Notices what other connections have committed."""
        (version,) = database.execute("PRAGMA data_version").fetchone()
        self._memory.see(version)

    def _see_unless_writing(self) -> None:
        """The same with the store locked; within a transaction, nobody else can commit.

        Raises:
            LabError: The database cannot be read, or an earlier error rolled back the transaction.
        """
        try:
            database = self._live
            if self._owner is None:
                self._see(database)
        except sqlite3.Error as error:
            raise self._unusable("read", error) from error

    def put(self, record: Record) -> None:
        """Writes a record, replacing any with the same key."""
        with self.transaction():
            self._put(record)

    def _put(self, record: Record) -> SecretText:
        """Writes a record, and returns its stored form."""
        key, body = _key(record.key), SecretText(record.model_dump_json(), f"<a {record.kind}>")
        self._memory.forget(record.kind, key)
        self._write("INSERT OR REPLACE INTO record VALUES (?, ?, ?)", record.kind, key, body)
        return body

    def delete(self, record: Record) -> None:
        """Deletes a record."""
        key = _key(record.key)
        with self.transaction():
            self._memory.forget(record.kind, key)
            self._write("DELETE FROM record WHERE kind = ? AND key = ?", record.kind, key)

    def get(self, kind: type[_R], *key: str | int) -> _R | None:
        """Returns the record with a key, or None."""
        text = _key(key)
        self._require_own()
        with self._lock:
            self._see_unless_writing()
            known = self._memory.current(kind, text)
            if known is not None:
                return known
            rows = self._read(
                "SELECT key, body FROM record WHERE kind = ? AND key = ?", kind.kind, text
            )
            return next(iter(self._records(kind, rows)), None)

    def select(self, kind: type[_R], *prefix: str | int) -> list[_R]:
        """Returns the records whose keys start with a prefix, ordered by key."""
        start = _key(prefix)
        where = "FROM record WHERE kind = ? AND key >= ? AND key < ? ORDER BY key"
        values = (kind.kind, start, start + _AFTER_ALL)
        self._require_own()
        with self._lock:
            keys = self._read(f"SELECT key {where}", *values)
            self._see_unless_writing()  # after the keys, so that both are of one moment
            known = self._memory.all_current(kind, keys)
            if known is not None:
                return known
            return self._records(kind, self._read(f"SELECT key, body {where}", *values))

    def _records(self, kind: type[_R], rows: list[tuple[str, str]]) -> list[_R]:
        """Returns the records of rows; only those that changed since the last time are parsed.

        Args:
            kind: Their kind.
            rows: Their keys and stored forms. These hold secrets, so the list is emptied before
                anything can fail: no error shows them.
        """
        known = [self._memory.of_text(kind, key, body) for key, body in rows]
        sealed = [(key, SecretText(body, f"<a {kind.kind}>")) for key, body in rows]
        rows.clear()
        return [
            self._parse(kind, key, body) if record is None else record
            for record, (key, body) in zip(known, sealed, strict=True)
        ]

    def _parse(self, kind: type[_R], key: str, body: SecretText) -> _R:
        record = _parse(kind, body)
        self._memory.keep(key, body, record)
        return record

    def amend(self, record: _R, **changes: object) -> _R:
        """Changes fields of a record as it is stored now, and returns the result.

        Args:
            record: The record to change; only its key matters.
            changes: New values by field.

        Raises:
            NotFoundError: It was deleted.
            ValidationError: A value is invalid for its field; nothing was changed.
            TypeError: There is no such field; nothing was changed.
        """
        return self.change(type(record), *record.key, **changes)

    def change(self, kind: type[_R], *key: str | int, **changes: object) -> _R:
        """Changes fields of the record with a key; see :meth:`amend`."""
        if unknown := changes.keys() - kind.model_fields.keys():
            raise TypeError(f"the record {kind.kind} has no fields {', '.join(sorted(unknown))}")
        with self.transaction():
            current = self.get(kind, *key)
            if current is None:
                raise NotFoundError(f"the {kind.kind} {'/'.join(map(str, key))} is gone")
            changed = kind.model_validate({**current.__dict__, **changes})
            self._memory.keep(_key(changed.key), self._put(changed), changed)
        return changed

    def intend(self, step: StepKey, scale_set: str, name: str) -> None:
        """Journals that a step is about to start; an existing entry is reset."""
        self._write(
            "INSERT INTO step VALUES (?, ?, ?, ?, ?, ?, ?, NULL, NULL) "
            "ON CONFLICT DO UPDATE SET intended = excluded.intended, done = NULL, error = NULL",
            step.operation, scale_set, step.instance_id, step.phase, step.sequence, name,
            self._clock.now().isoformat(),
        )  # fmt: skip

    def done(self, step: StepKey, *, error: str | None = None) -> None:
        """Journals that a step has finished, or failed with an error."""
        self._write(
            "UPDATE step SET done = ?, error = ? WHERE operation = ? AND instance_id = ? "
            "AND phase = ? AND sequence = ?",
            self._clock.now().isoformat(), error, *step,
        )  # fmt: skip

    def steps(self, operation: str, instance_id: int | None = None) -> list[StepRecord]:
        """Returns the journal of an operation, or of one instance in it, in order of start."""
        columns = "operation, scale_set, instance_id, phase, sequence, name, intended, done, error"
        one = "" if instance_id is None else " AND instance_id = ?"
        rows = self._read(
            f"SELECT {columns} FROM step WHERE operation = ?{one} "  # noqa: S608 - constants
            "ORDER BY intended, sequence",
            *((operation,) if instance_id is None else (operation, instance_id)),
        )
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
        """Records an event; the message must not contain secrets."""
        self._write(
            "INSERT INTO event (time, scale_set, instance_id, operation, kind, message) "
            "VALUES (?, ?, ?, ?, ?, ?)",
            self._clock.now().isoformat(), scale_set, instance_id, operation, kind, clean(message),
        )  # fmt: skip

    def events(
        self, *, after: int = 0, scale_set: str | None = None, operation: str | None = None
    ) -> list[EventRecord]:
        """Returns events, oldest first.

        Args:
            after: Only those with higher ids.
            scale_set: Only those of this set.
            operation: Only those of this operation.
        """
        columns = "id, time, scale_set, instance_id, operation, kind, message"
        rows = self._read(
            f"SELECT {columns} FROM event WHERE id > ? AND (? IS NULL OR scale_set = ?) "  # noqa: S608
            "AND (? IS NULL OR operation = ?) ORDER BY id",
            after, scale_set, scale_set, operation, operation,
        )  # fmt: skip
        names = columns.split(", ")
        return [EventRecord.model_validate(dict(zip(names, row, strict=True))) for row in rows]

    def last_events(self, scale_set: str | None, count: int) -> list[EventRecord]:
        """Returns the last events of a set, or of the lab, oldest first."""
        columns = "id, time, scale_set, instance_id, operation, kind, message"
        rows = self._read(
            f"SELECT {columns} FROM event WHERE ? IS NULL OR scale_set = ? "  # noqa: S608
            "ORDER BY id DESC LIMIT ?",
            scale_set,
            scale_set,
            count,
        )
        names = columns.split(", ")
        found = [EventRecord.model_validate(dict(zip(names, row, strict=True))) for row in rows]
        return found[::-1]
