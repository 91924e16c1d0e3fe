"""J4, L1: the live view on a terminal: it overwrites nothing, fits, and says how far steps are."""

from __future__ import annotations

import io
import json
import re
from collections.abc import Iterator
from datetime import UTC, datetime
from pathlib import Path

import pytest
from rich.console import Console

from pytest_vmss.clock import SystemClock
from pytest_vmss.guest.console import Console as SerialConsole
from pytest_vmss.host.paths import LabPaths
from pytest_vmss.report import LiveView, stage_table
from pytest_vmss.report.step_times import StepTimes
from pytest_vmss.store import GenerationRecord, InstanceRecord, OperationRecord, Store
from tests.terminal import Terminal


@pytest.fixture
def store(tmp_path: Path) -> Iterator[Store]:
    found = Store(tmp_path / "db", SystemClock())
    yield found
    found.close()


def view_on(terminal: Terminal, store: Store, width: int = 80, **options: object) -> LiveView:
    screen = Console(file=terminal, force_terminal=True, width=width, height=30)  # type: ignore[arg-type]
    return LiveView(store, screen, **options)  # type: ignore[arg-type]


def instance(store: Store, scale_set: str = "web", number: int = 0) -> InstanceRecord:
    record = InstanceRecord(
        scale_set=scale_set, instance_id=number, uuid="u", computer_name="c", mac="m",
        address="127.0.0.1", forwards={}, update_domain=0, created=datetime.now(UTC),
    )  # fmt: skip
    store.put(record)
    return record


def catch_up(view: LiveView, store: Store) -> None:
    """What the view's thread does, once."""
    for event in store.events(after=view._last):
        view._last = event.id
        view._take(event)
    view._show()


def begin(store: Store, scale_set: str = "web", what: str = "upgrade to 1.1.0") -> None:
    store.event(scale_set, "upgrade", f"{what} started by Platform", operation=f"op-{scale_set}")


@pytest.mark.parametrize("width", [60, 80, 120, 200])
def test_what_others_write_is_kept(store: Store, width: int) -> None:
    """A FAILED of pytest's was overwritten by the table."""
    terminal = Terminal(width)
    begun = ""
    view = view_on(terminal, store, width, column=lambda: len(begun))

    def write(text: str) -> None:
        nonlocal begun
        with view.writing():
            terminal.write(text)
        begun = (begun + text).rpartition("\n")[2]

    instance(store)
    write("test_a.py::test_one ")
    begin(store)
    store.event("web", "step", "swap: boot", instance_id=0, operation="op-web")
    catch_up(view, store)
    assert "boot" in terminal.text
    write("FAILED")
    write(" [ 50%]\n")
    catch_up(view, store)
    write("test_a.py::test_two ")
    catch_up(view, store)
    store.event("web", "warning", "told in between", operation="op-web")
    catch_up(view, store)
    write("PASSED\n")
    catch_up(view, store)
    view._running.clear()
    view._show()
    lines = terminal.lines
    assert "test_a.py::test_one FAILED [ 50%]" in lines
    assert "test_a.py::test_two" in lines
    assert "PASSED" in lines
    assert "told in between" in terminal.text
    assert "swap" not in terminal.text  # the table is gone
    assert "boot" not in terminal.text


@pytest.mark.parametrize("width", [80, 120, 200])
def test_it_fits(store: Store, width: int) -> None:
    terminal = Terminal(width)
    view = view_on(terminal, store, width)
    name = "a-scale-set-with-a-name-as-long-as-azure-lets-it-have-them-all"
    for number in range(40):
        instance(store, name, number)
    begin(store, name)
    for number in range(40):
        store.event(
            name, "step", "swap: run the extension of a very long name that is long",
            instance_id=number, operation=f"op-{name}",
        )  # fmt: skip
    catch_up(view, store)
    table = [line for line in terminal.lines if line]
    assert max(map(len, table)) <= width
    assert len(table) <= 28
    assert "more" in table[-1]
    assert all(re.search(r" a-sca.*-all_\d+ ", line) for line in table[2:-1])  # a line each
    view._running.clear()
    view._show()
    assert terminal.text == ""


def test_a_long_message_is_wrapped_beside_its_prefix(store: Store) -> None:
    terminal = Terminal(60)
    view = view_on(terminal, store, 60)
    store.event("web", "error", "some words that are more than fit " * 3)
    catch_up(view, store)
    first, second, *_ = terminal.lines
    assert "web" in first
    assert second.startswith(" " * 20)
    assert not terminal.text.replace("\n", " ").count("mor e")


def test_rows_of_what_is_gone_are_dropped(store: Store) -> None:
    terminal = Terminal()
    view = view_on(terminal, store)
    for name in ("web", "other"):
        record = instance(store, name)
        begin(store, name)
        store.event(name, "step", "swap: boot", instance_id=0, operation=f"op-{name}")
    catch_up(view, store)
    assert "web_0" in terminal.text
    store.delete(record)
    catch_up(view, store)
    assert "other_0" not in terminal.text
    store.event("web", "deleted", "deleted")
    store.delete(store.select(InstanceRecord)[0])
    catch_up(view, store)
    assert "web_0" not in terminal.text
    assert "instance" not in terminal.text  # no heading without rows


def test_the_operation_that_ended_is_named(store: Store) -> None:
    out = io.StringIO()
    view = LiveView(store, Console(file=out, width=80))
    begin(store)
    store.event("web", "end", "Completed: no instance is left", operation="op-web")
    store.put(
        OperationRecord(
            id="earlier",
            scale_set="web",
            set_id="x",
            action="reimage",
            status="Completed",
            started=datetime.now(UTC),
        )
    )
    store.event("web", "end", "Completed", operation="earlier")
    catch_up(view, store)
    told = out.getvalue()
    assert "upgrade to 1.1.0: Completed: no instance is left" in told
    assert "reimage: Completed" in told


def test_piped_it_is_plain_lines(store: Store) -> None:
    out = io.StringIO()
    view = LiveView(store, Console(file=out, width=80))
    instance(store)
    begin(store)
    store.event("web", "step", "swap: boot " + "x" * 100, instance_id=0, operation="op-web")
    store.event("web", "end", "Completed", operation="op-web")
    catch_up(view, store)
    lines = out.getvalue().splitlines()
    assert len(lines) == 3
    assert "x" * 100 in lines[1]
    assert "\x1b" not in out.getvalue()


def test_a_step_shows_how_far_it_is(store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    terminal, times, now = Terminal(), StepTimes(), [1000.0]
    monkeypatch.setattr("pytest_vmss.report.live.time.monotonic", lambda: now[0])
    for seconds in (38.0, 40.0, 90.0):
        times.learn("swap: boot", seconds)
    view = view_on(terminal, store, times=times)
    instance(store)
    begin(store)
    store.event("web", "step", "swap: boot", instance_id=0, operation="op-web")
    catch_up(view, store)
    now[0] += 10
    catch_up(view, store)
    assert "10 s, 30 s left" in terminal.text
    now[0] += 50
    catch_up(view, store)
    assert "60 s, 20 s over" in terminal.text
    store.event("web", "step", "swap: never seen", instance_id=0, operation="op-web")
    catch_up(view, store)
    assert "left" not in terminal.text


def test_the_slowest_instances_console_is_shown(store: Store, tmp_path: Path) -> None:
    terminal, times, paths = Terminal(), StepTimes(), LabPaths(tmp_path / "lab")
    times.learn("swap: boot", 600.0)
    times.learn("swap: cloud-init", 0.0)
    view = view_on(
        terminal,
        store,
        times=times,
        serial=lambda each: SerialConsole(
            paths.console(each.scale_set, each.instance_id, each.number)
        ),
    )
    begin(store)
    for number, step in enumerate(("boot", "cloud-init")):
        instance(store, "web", number)
        store.put(
            GenerationRecord(
                scale_set="web",
                instance_id=number,
                number=1,
                digest="d",
                gallery="gallery",
                definition="web",
                revision=1,
                cloud_instance_id="i",
                host_key="k",
                created=datetime.now(UTC),
                version="1.0.0",
            )
        )
        log = paths.console("web", number, 1)
        log.parent.mkdir(parents=True)
        log.write_text(f"first\nlast of {number} \x1b[31mred\x1b[0m {'x' * 200}\n")
        store.event("web", "step", f"swap: {step}", instance_id=number, operation="op-web")
    catch_up(view, store)
    assert "web_1: last of 1" in terminal.text
    assert "last of 0" not in terminal.text
    assert max(map(len, terminal.lines)) <= 80


def test_what_steps_took_is_learnt_and_remembered(store: Store, tmp_path: Path) -> None:
    path = tmp_path / "cache" / "step-times.json"
    view = LiveView(store, Console(file=io.StringIO()), times=StepTimes(path))
    with view:
        begin(store)
        for step in ("boot", "cloud-init"):
            store.event("web", "step", f"swap: {step}", instance_id=0, operation="op-web")
        store.event("web", "outcome", "succeeded", instance_id=0, operation="op-web")
    known = StepTimes(path)
    assert known.expected("swap: boot") is not None
    assert known.expected("swap: cloud-init") is not None
    assert known.expected("swap: health") is None
    other = StepTimes(path)
    for seconds in range(20):
        other.learn("swap: health", float(seconds))
    assert other.save() == ""
    assert len(json.loads(path.read_text())["swap: health"]) == 9
    assert StepTimes(path).expected("swap: boot") is not None


@pytest.mark.parametrize("text", ["", "{", "[]", '{"a": 1}', '{"a": ["x"]}', '{"a": []}'])
def test_a_damaged_memory_counts_as_none(tmp_path: Path, text: str) -> None:
    path = tmp_path / "times.json"
    path.write_text(text)
    times = StepTimes(path)
    assert times.expected("a") is None
    times.learn("a", 2.0)
    assert times.save() == ""
    assert StepTimes(path).expected("a") == 2.0


def test_no_heading_without_steps() -> None:
    record = OperationRecord(
        id="x", scale_set="web", set_id="x", action="upgrade", status="Completed",
        started=datetime.now(UTC),
    )  # fmt: skip
    out = io.StringIO()
    Console(file=out).print(stage_table(record, []))
    assert out.getvalue() == ""
