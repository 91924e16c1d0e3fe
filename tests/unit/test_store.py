"""M1: what is committed is there, what is rolled back is not."""

from __future__ import annotations

import sqlite3
from pathlib import Path

import pytest

from pytest_vmss.clock import VirtualClock
from pytest_vmss.errors import LabError, NotFoundError
from pytest_vmss.store import DefinitionRecord, Store


def definition(name: str) -> DefinitionRecord:
    return DefinitionRecord(gallery="g", name=name, offer="o", sku="s")


def test_records(tmp_path: Path) -> None:
    store = Store(tmp_path / "db", VirtualClock())
    assert (tmp_path / "db").stat().st_mode & 0o777 == 0o600
    store.put(definition("b"))
    store.put(definition("a"))
    store.put(definition("a"))
    assert [record.name for record in store.select(DefinitionRecord)] == ["a", "b"]
    assert store.get(DefinitionRecord, "g", "a") == definition("a")
    assert store.select(DefinitionRecord, "gg") == []
    store.delete(definition("a"))
    assert store.get(DefinitionRecord, "g", "a") is None
    store.close()


def test_a_transaction_is_all_or_nothing(tmp_path: Path) -> None:
    store = Store(tmp_path / "db", VirtualClock())

    def half() -> None:
        with store.transaction():
            store.put(definition("a"))
            with store.transaction():
                store.put(definition("b"))
            raise RuntimeError

    with pytest.raises(RuntimeError):
        half()
    assert store.select(DefinitionRecord) == []
    with store.transaction():
        store.put(definition("c"))
    other = Store(tmp_path / "db", VirtualClock())
    assert [record.name for record in other.select(DefinitionRecord)] == ["c"]
    other.close()
    store.close()


def test_full_synchronisation(tmp_path: Path) -> None:
    """M1."""
    store = Store(tmp_path / "db", VirtualClock())
    assert store._db.execute("PRAGMA synchronous").fetchone() == (2,)
    assert store._db.execute("PRAGMA journal_mode").fetchone() == ("wal",)
    store.close()


def test_the_journal(tmp_path: Path) -> None:
    store = Store(tmp_path / "db", VirtualClock())
    step = store.intend("op", "web", 0, "swap", 0, "stop")
    assert [entry.done for entry in store.steps("op")] == [None]
    store.done(step, error="broke")
    assert [(entry.name, entry.error) for entry in store.steps("op")] == [("stop", "broke")]
    store.intend("op", "web", 0, "swap", 0, "stop")
    assert len(store.steps("op")) == 1
    store.event("web", "step", "hello", instance_id=0)
    (event,) = store.events()
    assert (event.message, event.instance_id) == ("hello", 0)
    assert store.events(after=event.id) == []
    store.close()


def test_a_file_that_is_no_database(tmp_path: Path) -> None:
    path = tmp_path / "db"
    path.write_text("this is no database, and long enough to be seen as such" * 20)
    with pytest.raises(LabError, match="cannot be used"):
        Store(path, VirtualClock())
    other = tmp_path / "newer"
    with sqlite3.connect(other) as newer:
        newer.execute("PRAGMA user_version=99")
    with pytest.raises(LabError, match="format 99"):
        Store(other, VirtualClock())


def test_a_record_is_amended_as_it_stands_now(tmp_path: Path) -> None:
    """M4: what another process wrote meanwhile is not overwritten."""
    store, other = (Store(tmp_path / "db", VirtualClock()) for _ in range(2))
    mine = definition("a")
    store.put(mine)
    other.amend(definition("a"), offer="theirs")
    amended = store.amend(mine, sku="mine")
    assert (amended.offer, amended.sku) == ("theirs", "mine")
    assert other.get(DefinitionRecord, "g", "a") == amended
    with pytest.raises(NotFoundError, match="definition g/b is gone"):
        store.amend(definition("b"), sku="x")
    other.close()
    store.close()


def test_a_full_disk_is_a_clear_error_and_nothing_is_half_written(tmp_path: Path) -> None:
    """M1."""
    store = Store(tmp_path / "db", VirtualClock())
    store.put(definition("a"))
    pages = store._db.execute("PRAGMA page_count").fetchone()[0]
    store._db.execute(f"PRAGMA max_page_count={pages}")

    def fill() -> None:
        with store.transaction():
            for number in range(1000):
                store.put(definition(f"b{number}"))

    with pytest.raises(LabError, match=r"cannot be written: database or disk is full.*make room"):
        fill()
    assert [record.name for record in store.select(DefinitionRecord)] == ["a"]
    store._db.execute("PRAGMA max_page_count=100000")
    fill()
    assert len(store.select(DefinitionRecord)) == 1001
    store.close()
