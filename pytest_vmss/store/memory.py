"""The records that a store has parsed, so that it need not read and parse them again."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple, TypeVar

from pytest_vmss.secrecy import SecretText
from pytest_vmss.store.record import Record

__all__ = ["Memory"]

_R = TypeVar("_R", bound=Record)

#: The most records that are remembered.
_MOST = 16_384


class _Parsed(NamedTuple):
    """A stored record's text, and the record that was parsed from it; both are immutable.

    Attributes:
        age: The memory's age when the text was last known to be the stored one.
    """

    body: SecretText
    record: Any
    age: int


class Memory:
    """What one connection to the database knows of its records.

    A record is current, and need not be read, as long as these three hold since it was read or
    written over this connection: no other connection has committed anything, no transaction of
    this one was rolled back, and the connection is the same. SQLite tells the first by its
    ``data_version``. A record that is not current is read, but parsed only if its text is
    another than it was.

    Call it with the store locked.
    """

    def __init__(self) -> None:
        self._parsed: dict[tuple[str, str], _Parsed] = {}
        self._age = 0
        self._version: int | None = None

    def doubt(self) -> None:
        """Makes every record be read again."""
        self._age += 1

    def see(self, version: int) -> None:
        """Doubts all records if the database's ``data_version`` is another than it was."""
        if version != self._version:
            self._version = version
            self.doubt()

    def current(self, kind: type[_R], key: str) -> _R | None:
        """Returns a record that need not be read, or None."""
        entry = self._parsed.get((kind.kind, key))
        if entry is None or entry.age != self._age:
            return None
        record: _R = entry.record
        return record

    def all_current(self, kind: type[_R], keys: Sequence[tuple[str]]) -> list[_R] | None:
        """Returns the records with these keys if none of them need be read, or None."""
        parsed, name, age = self._parsed, kind.kind, self._age
        known = [
            entry.record
            for (key,) in keys
            if (entry := parsed.get((name, key))) is not None and entry.age == age
        ]
        return known if len(known) == len(keys) else None

    def of_text(self, kind: type[_R], key: str, body: str) -> _R | None:
        """Returns the record that was parsed from a text that was just read, or None."""
        entry = self._parsed.get((kind.kind, key))
        if entry is None or entry.body != body:
            return None
        if entry.age != self._age:
            self._parsed[kind.kind, key] = entry._replace(age=self._age)
        record: _R = entry.record
        return record

    def keep(self, key: str, body: SecretText, record: Record) -> None:
        """Remembers a record with its stored text; it must be as it would be parsed from that.

        One with mutable parts is not remembered: who changes these changes a copy of their own.
        """
        if record.mutable:
            return
        if len(self._parsed) >= _MOST:
            self._parsed.clear()
        self._parsed[record.kind, key] = _Parsed(body, record, self._age)

    def forget(self, kind: str, key: str) -> None:
        """Forgets a record; call this before it is written."""
        self._parsed.pop((kind, key), None)
