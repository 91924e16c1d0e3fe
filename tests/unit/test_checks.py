"""Q3: checks that users hand over count however they end, and never pass in silence."""

from __future__ import annotations

import sys
import threading
import time
import unittest
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from pytest_vmss.api.polling_condition import Always
from pytest_vmss.clock import Interrupted, SystemClock
from pytest_vmss.concurrency import bounded
from pytest_vmss.errors import (
    GuestCommandError,
    GuestUnreachableError,
    HypervisorError,
    ViolationError,
    VmssError,
    error_text,
)
from pytest_vmss.guest.check import judge, run_function_check
from pytest_vmss.store import Store


class _NoBoolean:
    def __bool__(self) -> bool:
        raise ValueError("the truth value is ambiguous")


class _UnprintableError(Exception):
    def __str__(self) -> str:
        raise RuntimeError


async def _nobody_awaits(*_: object) -> bool:
    return True


def _generates(*_: object) -> Iterator[bool]:
    yield True


def _raises(error: BaseException) -> Callable[..., object]:
    def check(*_: object) -> object:
        raise error

    return check


def _interrupted(*_: object) -> object:
    raise KeyboardInterrupt


#: Every way in which a check can fail, and what is told of it.
FAILURES: dict[str, tuple[Callable[..., object], str]] = {
    "assert": (_raises(AssertionError("0 orders")), "AssertionError: 0 orders"),
    "pytest.fail": (lambda *_: pytest.fail("redis is down"), "Failed: redis is down"),
    "pytest.skip": (lambda *_: pytest.skip("not today"), "Skipped: not today"),
    "pytest.exit": (lambda *_: pytest.exit("enough"), "Exit: enough"),
    "sys.exit": (lambda *_: sys.exit(3), "SystemExit: 3"),
    "ctrl-c of its own": (_interrupted, "KeyboardInterrupt"),
    "generator exit": (_raises(GeneratorExit()), "GeneratorExit"),
    "false": (lambda *_: False, "the check returned False"),
    "empty": (lambda *_: [], r"the check returned \[\]"),
    "no truth value": (lambda *_: _NoBoolean(), "the truth value is ambiguous"),
    "unprintable": (_raises(_UnprintableError()), "its text cannot be had: RuntimeError"),
    "async": (_nobody_awaits, "returned a coroutine, so nothing of it has run"),
    "generator": (_generates, "returned a generator, so nothing of it has run"),
}
EACH = pytest.mark.parametrize(("check", "told"), FAILURES.values(), ids=list(FAILURES))


@pytest.fixture
def store(tmp_path: Path) -> Iterator[Store]:
    made = Store(tmp_path / "db", SystemClock())
    yield made
    made.close()


@EACH
def test_always_fails_however_its_check_does(
    store: Store, check: Callable[..., object], told: str
) -> None:
    """It failed at its second look only: a checker that ended then must not pass for one."""
    looked = threading.Event()

    def later() -> object:
        if not looked.is_set():
            looked.set()
            return True
        return check()

    watched = Always(store, "web", later, every=0.005)
    with pytest.raises(ViolationError, match=told), watched:
        _until(lambda: watched.checks >= 4)
    assert len(watched.violations) == watched.checks - 1


def _until(what: Callable[[], bool]) -> None:
    end = time.monotonic() + 10
    while not what():
        assert time.monotonic() < end, "waited in vain"
        time.sleep(0.002)


def test_a_checker_that_ended_early_fails_the_block(
    store: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    def closed() -> object:
        raise Interrupted

    watched = Always(store, "web", closed, every=0.01)
    with pytest.raises(ViolationError, match="ended before the block did: Interrupted"), watched:
        watched._thread.join(5)
    monkeypatch.setattr("pytest_vmss.api.polling_condition.judge", _raises(MemoryError("no room")))
    watched = Always(store, "web", lambda: True, every=0.01)
    with pytest.raises(ViolationError, match="MemoryError: no room"), watched:
        watched._thread.join(5)


def test_a_violation_is_kept_where_the_store_cannot_be_read(store: Store) -> None:
    watched = Always(store, "web", lambda: False, every=10.0)
    store.close()
    with pytest.raises(ViolationError, match=r"the check returned False\n    web unknown"), watched:
        _until(lambda: watched.checks == 1)


def test_a_check_that_hangs_is_told_and_bounded(store: Store) -> None:
    """With what was wrong before."""
    go, inside = threading.Event(), threading.Event()

    def hangs() -> object:
        if watched.checks == 0:
            return False
        inside.set()
        return go.wait(20)

    watched = Always(store, "web", hangs, every=0.0, timeout=0.2)
    begun = time.monotonic()
    with pytest.raises(ViolationError) as violated, watched:
        assert inside.wait(10)
    assert time.monotonic() - begun < 15
    assert "did not return within 0.2 s of the block's end (it stands in" in violated.value.message
    assert "the check returned False" in violated.value.message
    go.set()


def test_while_a_check_takes_too_long_nothing_is_watched(store: Store) -> None:
    """It holds in the end, and says nothing of the time between."""

    def slow() -> bool:
        time.sleep(0.15)
        return True

    watched = Always(store, "web", slow, every=0.0, timeout=0.1)
    with pytest.raises(ViolationError, match="the check took 0 s; nothing was watched"), watched:
        _until(lambda: watched.checks >= 1)


@pytest.mark.parametrize("skip", [pytest.skip.Exception("later"), unittest.SkipTest("later")])
def test_a_block_that_skips_the_test_does_not_hide_a_violation(
    store: Store, skip: BaseException
) -> None:
    def block() -> None:
        watched = Always(store, "web", lambda: False, every=0.01)
        with watched:
            _until(lambda: watched.checks >= 1)
            raise skip

    with pytest.raises(ViolationError, match="the check returned False"):
        block()


def test_ctrl_c_and_the_labs_end_are_no_answers() -> None:
    """Only the main thread gets Ctrl-C; in another it is a check's own doing."""
    with pytest.raises(KeyboardInterrupt):
        judge(_interrupted)
    with pytest.raises(Interrupted):
        judge(_raises(Interrupted()))
    with pytest.raises(Interrupted):
        bounded(lambda: judge(_raises(Interrupted())), what="it", timeout=5)
    assert error_text(ValueError()) == "ValueError"


@EACH
def test_a_health_function_that_fails_speaks_against_health(
    check: Callable[..., object], told: str
) -> None:
    """F4, Q3: Unhealthy, with its own words."""
    with pytest.raises(AssertionError, match=told):
        _assert_well(run_function_check(check, "host", timeout=10))
    _assert_well(run_function_check(lambda _: None, "host", timeout=10))
    _assert_well(run_function_check(lambda host: host == "host", "host", timeout=10))


def _assert_well(answer: tuple[bool, str]) -> None:
    assert answer[0], answer[1]


def _unreachable() -> GuestUnreachableError:
    return GuestUnreachableError("does not answer", instance="web_0")


def _command(code: int) -> GuestCommandError:
    return GuestCommandError("it ended", instance="web_0", exit_code=code, stderr="")


@pytest.mark.parametrize("error", [_unreachable(), _command(-1), HypervisorError("gone")])
def test_a_guest_that_does_not_answer_is_not_the_functions_failure(error: VmssError) -> None:
    with pytest.raises(type(error)):
        run_function_check(_raises(error), "host", timeout=10)
    well, told = run_function_check(_raises(_command(3)), "host", timeout=10)
    assert (well, "it ended" in told) == (False, True)


def test_a_health_function_that_hangs_is_told_and_bounded() -> None:
    go = threading.Event()

    def redis_answers(_: Any) -> object:
        return go.wait(30)

    begun = time.monotonic()
    well, told = run_function_check(redis_answers, "host", timeout=0.2)
    assert not well
    assert time.monotonic() - begun < 15
    assert "redis_answers: the function did not return within 0.2 s" in told
    assert "threading.py" in told or "test_checks.py" in told
    with pytest.raises(Interrupted):  # the lab is closed meanwhile
        run_function_check(redis_answers, "host", timeout=60, pulse=_raises(Interrupted()))
    go.set()
