"""M1: what is committed is there, what is rolled back is not."""

from __future__ import annotations

import contextlib
import os
import sqlite3
import subprocess
import sys
import threading
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Annotated, Any, get_args, get_origin, get_type_hints

import pytest
from pydantic import BaseModel

from pytest_vmss.errors import LabError, NotFoundError
from pytest_vmss.simulation.clock import VirtualClock
from pytest_vmss.store import (
    DefinitionRecord,
    InstanceRecord,
    ModelRecord,
    ScaleSetRecord,
    StepKey,
    Store,
)
from pytest_vmss.store.record import FrozenMapping, Record

STEP = StepKey("op", 0, "swap", 0)


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


def _levels(store: Store, name: str) -> list[int]:
    """The levels of synchronization of a transaction that need not be durable, and of the next."""

    def level() -> int:
        found: int = store._db.execute("PRAGMA synchronous").fetchone()[0]
        return found

    levels = []
    with store.transaction(durable=False):
        levels.append(level())
        with store.transaction():
            store.put(definition(name))
        levels.append(level())
    with store.transaction():
        levels.append(level())
        store.event("web", "test", name)
    return levels


def test_a_commit_that_need_not_be_durable_leaves_the_next_ones_so(
    tmp_path: Path, broken: type[Broken]
) -> None:
    """M1: whatever fails meanwhile, whichever thread is next."""
    store = Store(tmp_path / "db", VirtualClock())
    assert _levels(store, "a") == [1, 1, 2]
    for failing in ("PRAGMA synchronous=NORMAL", "PRAGMA synchronous=FULL", "BEGIN", "COMMIT"):
        broken.failing = (failing,)
        with pytest.raises(LabError, match="cannot be written"):
            _levels(store, "a")
        broken.failing = ()
        assert _levels(store, "a") == [1, 1, 2]
    with ThreadPoolExecutor(4) as pool:
        assert set(map(tuple, pool.map(_levels, [store] * 40, "ab" * 20))) == {(1, 1, 2)}
    assert [record.name for record in store.select(DefinitionRecord)] == ["a", "b"]
    store.close()


def test_ctrl_c_in_the_stead_of_a_rollback(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """M1: what the transaction wrote is never read, nor committed with the next one."""
    store = Store(tmp_path / "db", VirtualClock())
    store.put(definition("a"))

    def interrupted() -> None:
        monkeypatch.undo()
        raise KeyboardInterrupt

    def write() -> None:
        with store.transaction(durable=False):
            store.change(DefinitionRecord, "g", "a", offer="undone")
            monkeypatch.setattr(store, "_roll_back", interrupted)
            raise LabError("undone")

    with pytest.raises(KeyboardInterrupt):
        write()
    assert store.get(DefinitionRecord, "g", "a") == definition("a")
    assert store.select(DefinitionRecord) == [definition("a")]
    assert _levels(store, "b") == [1, 1, 2]
    store.close()


def test_the_journal(tmp_path: Path) -> None:
    store = Store(tmp_path / "db", VirtualClock())
    store.intend(STEP, "web", "stop")
    assert [entry.done for entry in store.steps("op")] == [None]
    store.done(STEP, error="broke")
    assert [(entry.name, entry.error) for entry in store.steps("op")] == [("stop", "broke")]
    store.intend(STEP, "web", "stop")
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


def test_a_record_is_parsed_once_but_always_read(tmp_path: Path) -> None:
    """M1, M4: what another process has written counts, and what was rolled back does not."""
    store, other = (Store(tmp_path / "db", VirtualClock()) for _ in range(2))
    store.put(definition("a"))
    first = store.get(DefinitionRecord, "g", "a")
    assert first is not None
    assert store.get(DefinitionRecord, "g", "a") is first
    assert store.select(DefinitionRecord)[0] is first
    other.amend(first, offer="other")
    assert store.get(DefinitionRecord, "g", "a") == first.model_copy(update={"offer": "other"})

    def undone() -> None:
        with store.transaction():
            store.amend(first, offer="undone")
            raise RuntimeError

    with pytest.raises(RuntimeError):
        undone()
    seen = store.get(DefinitionRecord, "g", "a")
    assert seen is not None
    assert seen.offer == "other"
    store.delete(first)
    assert store.get(DefinitionRecord, "g", "a") is None
    with pytest.raises(NotFoundError, match=r"the definition g/a is gone"):
        store.change(DefinitionRecord, "g", "a", offer="new")
    for each in (store, other):
        each.close()


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


OPEN = """
import sys, time
from pathlib import Path
from pytest_vmss.clock import SystemClock
from pytest_vmss.store import Store

folder, me = Path(sys.argv[1]), sys.argv[2]
for attempt in range(20):
    (folder / f"{attempt}-{me}").touch()
    while len(list(folder.glob(f"{attempt}-*"))) < 3:
        pass
    store = Store(folder / f"db{attempt}", SystemClock())
    store.event("", "kind", me)
    store.close()
"""


def test_three_processes_make_one_database(tmp_path: Path) -> None:
    """Q1: SQLite fails at once where two switch to its write-ahead log."""
    command = [sys.executable, "-c", OPEN, str(tmp_path)]
    processes = [subprocess.Popen([*command, me], stderr=subprocess.PIPE) for me in "abc"]
    for process in processes:
        _, err = process.communicate(timeout=120)
        assert process.returncode == 0, err.decode()
    for attempt in range(20):
        store = Store(tmp_path / f"db{attempt}", VirtualClock())
        assert sorted(event.message for event in store.events()) == ["a", "b", "c"]
        store.close()


class Broken(sqlite3.Connection):
    """A connection on which statements fail that start so."""

    failing: tuple[str, ...] = ()

    def execute(self, statement: str, *arguments: Any) -> sqlite3.Cursor:
        if statement.startswith(self.failing):
            raise sqlite3.OperationalError("disk I/O error")
        return super().execute(statement, *arguments)


@pytest.fixture
def broken(monkeypatch: pytest.MonkeyPatch) -> type[Broken]:
    """What a store's connections are made of."""

    class Connection(Broken):
        pass

    connect = sqlite3.connect
    monkeypatch.setattr(
        sqlite3, "connect", lambda *path, **options: connect(*path, **options, factory=Connection)
    )
    return Connection


@pytest.mark.parametrize("failing", ["BEGIN", "INSERT", "COMMIT", "UPDATE", "DELETE"])
@pytest.mark.parametrize("undo", [True, False])
def test_a_write_that_fails_does_not_poison_the_next(
    tmp_path: Path, broken: type[Broken], failing: str, undo: bool
) -> None:
    """Q1: also where what was written cannot be rolled back."""
    store = Store(tmp_path / "db", VirtualClock())
    store.put(definition("a"))
    store.intend(STEP, "web", "stop")
    broken.failing = (failing,) if undo else (failing, "ROLLBACK")

    def write() -> None:
        with store.transaction():
            store.put(definition("b"))
            store.done(STEP)
            store.delete(definition("a"))

    with pytest.raises(LabError, match=r"cannot be written: disk I/O error.*free the database"):
        write()
    assert store.get(DefinitionRecord, "g", "b") is None
    broken.failing = ()
    assert store.get(DefinitionRecord, "g", "a") is not None
    write()
    assert [record.name for record in store.select(DefinitionRecord)] == ["b"]
    store.close()


def test_nothing_is_written_outside_of_a_transaction_that_failed(
    tmp_path: Path, broken: type[Broken]
) -> None:
    """Q1: SQLite rolls back by itself on some errors; what follows would stand alone."""
    store = Store(tmp_path / "db", VirtualClock())

    def write() -> None:
        with store.transaction():
            store.put(definition("a"))
            store._db.execute("ROLLBACK")
            store.put(definition("b"))

    assert broken.failing == ()
    with pytest.raises(LabError, match="cannot be written"):
        write()
    assert store.select(DefinitionRecord) == []
    store.close()


def test_nothing_is_read_in_a_transaction_that_was_rolled_back(tmp_path: Path) -> None:
    """M1: what was changed before SQLite rolled back by itself was never committed."""
    store = Store(tmp_path / "db", VirtualClock())
    store.put(definition("a"))

    def write() -> None:
        with store.transaction():
            store.change(DefinitionRecord, "g", "a", offer="undone")
            store._db.execute("ROLLBACK")
            for read in (
                lambda: store.get(DefinitionRecord, "g", "a"),
                lambda: store.select(DefinitionRecord),
                store.events,
            ):
                with pytest.raises(LabError, match="the transaction was rolled back"):
                    read()

    with pytest.raises(LabError, match="cannot be written"):
        write()
    assert store.get(DefinitionRecord, "g", "a") == definition("a")
    store.close()


def test_no_part_of_a_record_that_is_shared_can_be_changed(tmp_path: Path) -> None:
    """M1: who has a record cannot change what others see, nor what is written next."""
    store, now = Store(tmp_path / "db", VirtualClock()), VirtualClock().now()
    store.put(
        InstanceRecord(
            scale_set="web", instance_id=0, uuid="u", computer_name="c", mac="m", address="a",
            forwards={22: 10022}, update_domain=0, created=now,
        )
    )  # fmt: skip
    store.put(ScaleSetRecord(name="web", unique_id="s", created=now))
    overrides = {"health": 1.0}
    changed = store.change(ScaleSetRecord, "web", overrides=overrides)
    overrides["health"] = 2.0
    instance = store.get(InstanceRecord, "web", 0)
    assert instance is not None
    for mapping in (changed.overrides, instance.forwards):
        with pytest.raises(TypeError):
            mapping[22] = 0  # type: ignore[index]
    assert dict(changed.overrides) == {"health": 1.0}
    store.put(ModelRecord(set_id="s", revision=1, created=now, model={"a": [1]}, probe=None))
    model = store.get(ModelRecord, "s", 1)
    assert model is not None
    model.model["a"].append(2)
    again = store.get(ModelRecord, "s", 1)
    assert again is not None
    assert again.model == {"a": [1]}
    store.close()


def _changeable(kind: Any) -> bool:
    """Whether values of a type have parts that can be changed."""
    parts = get_args(kind)
    if get_origin(kind) is Annotated:
        return get_args(FrozenMapping)[1] not in parts and _changeable(parts[0])
    if isinstance(kind, type) and issubclass(kind, BaseModel):
        return not kind.model_config.get("frozen") or any(
            _changeable(hint)
            for name, hint in get_type_hints(kind, include_extras=True).items()
            if name in kind.model_fields
        )
    if kind is Any or (get_origin(kind) or kind) in (dict, list, set, Mapping, Sequence):
        return True
    return any(_changeable(part) for part in parts if part is not ...)


@pytest.mark.parametrize("kind", Record.__subclasses__(), ids=lambda kind: kind.kind)
def test_only_records_that_say_so_can_be_changed(kind: type[Record]) -> None:
    """M1: the others are remembered, and so shared."""
    assert kind.mutable == _changeable(kind)


class Counting(sqlite3.Connection):
    """A connection that counts the queries of records."""

    selects = 0

    def execute(self, statement: str, *arguments: Any) -> sqlite3.Cursor:
        type(self).selects += statement.startswith("SELECT key, body")
        return super().execute(statement, *arguments)


@pytest.fixture
def pair(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[tuple[Store, Store]]:
    """Two stores of one file, as two processes have; the queries of the first are counted."""
    connect = sqlite3.connect
    monkeypatch.setattr(Counting, "selects", 0)
    with monkeypatch.context() as patch:
        patch.setattr(
            sqlite3, "connect", lambda *path, **how: connect(*path, **how, factory=Counting)
        )
        store = Store(tmp_path / "db", VirtualClock())
    other = Store(tmp_path / "db", VirtualClock())
    yield store, other
    store.close()
    other.close()


def test_a_current_record_is_not_read_again(pair: tuple[Store, Store]) -> None:
    """M4: whatever another connection commits, to this record or any other, ends that."""
    store, other = pair
    store.put(definition("a"))
    written = store.change(DefinitionRecord, "g", "a", offer="mine")
    Counting.selects = 0
    assert store.get(DefinitionRecord, "g", "a") is written
    assert store.select(DefinitionRecord)[0] is written
    with store.transaction():
        assert store.get(DefinitionRecord, "g", "a") is written
    assert Counting.selects == 0
    other.put(definition("b"))
    assert store.get(DefinitionRecord, "g", "a") is written
    assert [record.name for record in store.select(DefinitionRecord)] == ["a", "b"]
    assert Counting.selects == 2
    other.amend(definition("a"), offer="theirs")
    assert [record.offer for record in store.select(DefinitionRecord)] == ["theirs", "o"]
    other.delete(definition("a"))
    assert store.get(DefinitionRecord, "g", "a") is None
    assert [record.name for record in store.select(DefinitionRecord)] == ["b"]


def test_what_another_process_commits_counts_inside_a_transaction_too(
    pair: tuple[Store, Store],
) -> None:
    """M4: in a transaction nobody else can commit, but somebody may have just before."""
    store, other = pair
    store.put(definition("a"))
    store.change(DefinitionRecord, "g", "a", offer="mine")
    other.change(DefinitionRecord, "g", "a", offer="theirs")
    with store.transaction():
        seen = store.get(DefinitionRecord, "g", "a")
        assert seen is not None
        assert seen.offer == "theirs"
        assert store.change(DefinitionRecord, "g", "a", sku="mine").offer == "theirs"


def test_what_another_process_commits_while_records_are_selected_is_seen_whole_or_not_at_all(
    pair: tuple[Store, Store], monkeypatch: pytest.MonkeyPatch
) -> None:
    """M4: a removal and a change of one transaction are never seen one without the other."""
    store, other = pair
    for name in ("a", "b"):
        store.put(definition(name))
        store.change(DefinitionRecord, "g", name, offer="before")
    real = store._see_unless_writing

    def see() -> None:
        real()
        monkeypatch.undo()
        with other.transaction():
            other.delete(definition("a"))
            other.change(DefinitionRecord, "g", "b", offer="after")

    monkeypatch.setattr(store, "_see_unless_writing", see)
    seen = [(record.name, record.offer) for record in store.select(DefinitionRecord)]
    assert seen in ([("a", "before"), ("b", "before")], [("b", "after")])
    assert [record.offer for record in store.select(DefinitionRecord)] == ["after"]


@pytest.mark.parametrize("failing", ["", "COMMIT"])
def test_a_transaction_that_is_undone_leaves_nothing_in_memory(
    tmp_path: Path, broken: type[Broken], failing: str
) -> None:
    """M1: what was changed, created or deleted in it is as it was."""
    store = Store(tmp_path / "db", VirtualClock())
    for name in ("a", "b"):
        store.put(definition(name))
        store.change(DefinitionRecord, "g", name, offer="kept")

    def undone() -> None:
        with store.transaction():
            store.change(DefinitionRecord, "g", "a", offer="undone")
            store.delete(definition("b"))
            store.put(definition("c"))
            store.change(DefinitionRecord, "g", "c", offer="undone")
            assert [record.name for record in store.select(DefinitionRecord)] == ["a", "c"]
            if not failing:
                raise LabError("undone")

    if failing:
        broken.failing = (failing,)
    with pytest.raises(LabError):
        undone()
    broken.failing = ()
    assert store.get(DefinitionRecord, "g", "c") is None
    kept = [definition(name).model_copy(update={"offer": "kept"}) for name in ("a", "b")]
    assert [store.get(DefinitionRecord, "g", name) for name in ("a", "b")] == kept
    assert store.select(DefinitionRecord) == kept
    store.close()


def test_a_thread_does_not_see_what_another_has_not_committed(tmp_path: Path) -> None:
    """M1: it waits for the end of the transaction."""
    store = Store(tmp_path / "db", VirtualClock())
    store.put(definition("a"))
    before = store.change(DefinitionRecord, "g", "a", offer="before")
    seen: list[DefinitionRecord | None] = []
    reader = threading.Thread(target=lambda: seen.append(store.get(DefinitionRecord, "g", "a")))

    def undone() -> None:
        with store.transaction():
            store.change(DefinitionRecord, "g", "a", offer="undone")
            reader.start()
            reader.join(0.2)
            assert not seen
            raise LabError("undone")

    with pytest.raises(LabError):
        undone()
    reader.join(10)
    assert seen == [before]
    store.close()


def spoil(path: Path) -> None:
    """Writes nonsense into every record, as another program might."""
    with contextlib.closing(sqlite3.connect(path)) as database, database:
        database.execute("UPDATE record SET body = '{}'")


def test_a_read_that_fails(tmp_path: Path, broken: type[Broken]) -> None:
    """Q1: is the lab's error too, and the next one succeeds."""
    store = Store(tmp_path / "db", VirtualClock())
    store.put(definition("a"))
    broken.failing = ("SELECT",)
    for read in (
        lambda: store.get(DefinitionRecord, "g", "a"),
        lambda: store.select(DefinitionRecord),
        lambda: store.steps("op"),
        store.events,
        lambda: store.last_events("web", 1),
    ):
        with pytest.raises(LabError, match=r"cannot be read: disk I/O error.*free the database"):
            read()
    broken.failing = ()
    assert store.get(DefinitionRecord, "g", "a") == definition("a")
    broken.failing = ("PRAGMA data_version",)
    with pytest.raises(LabError, match=r"cannot be read: disk I/O error"):
        store.get(DefinitionRecord, "g", "a")
    broken.failing = ()
    spoil(tmp_path / "db")
    with pytest.raises(LabError, match=r"holds a definition that this version.*gallery"):
        store.select(DefinitionRecord)
    store.close()
    with pytest.raises(LabError, match="was closed"):
        store.events()


def test_a_fork_does_not_share_it(tmp_path: Path) -> None:
    """Q1: two processes on one connection corrupt the file."""
    store = Store(tmp_path / "db", VirtualClock())
    pid = os.fork()
    if pid == 0:
        told = 0
        for act in (store.events, lambda: store.put(definition("a"))):
            try:
                act()
            except LabError as error:
                told += "is a fork" in error.message
        store.close()
        os._exit(told)
    assert os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) == 2
    store.put(definition("b"))
    assert [record.name for record in store.select(DefinitionRecord)] == ["b"]
    store.close()
