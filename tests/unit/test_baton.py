"""Q4: simulated threads take turns in an order that the seed decides, and die together."""

from __future__ import annotations

import threading
from collections.abc import Callable

import pytest

from pytest_vmss.clock import Interrupted, run_concurrently
from pytest_vmss.simulation.clock import VirtualClock
from pytest_vmss.simulation.scheduler import Killed


def turns(seed: int) -> list[tuple[int, int]]:
    clock, seen = VirtualClock(seed), list[tuple[int, int]]()

    def act(number: int) -> None:
        for turn in range(4):
            seen.append((number, turn))
            clock.preempt()

    run_concurrently(range(3), act, clock=clock)
    return seen


def test_turns_are_interleaved_and_the_same_seed_gives_the_same_order() -> None:
    orders = {tuple(turns(seed)) for seed in range(8)}
    assert len(orders) > 4
    for seed in range(8):
        assert turns(seed) == turns(seed)
    assert any([number for number, _ in order] != sorted(n for n, _ in order) for order in orders)


def test_exactly_one_runs_at_a_time() -> None:
    clock, inside, most = VirtualClock(1), list[int](), list[int]()

    def act(number: int) -> None:
        for _ in range(20):
            inside.append(number)
            most.append(len(inside))
            inside.remove(number)
            clock.sleep(0.5 * number)

    run_concurrently(range(5), act, clock=clock)
    assert max(most) == 1


def test_time_is_that_of_the_longest_and_sleepers_wake_in_order() -> None:
    clock, woke = VirtualClock(3), list[tuple[float, int]]()

    def act(number: int) -> None:
        for _ in range(2):
            clock.sleep(10 - 3 * number)
            woke.append((clock.monotonic(), number))

    run_concurrently(range(3), act, clock=clock)
    assert woke == [(4, 2), (7, 1), (8, 2), (10, 0), (14, 1), (20, 0)]
    assert clock.monotonic() == 20


@pytest.mark.parametrize("threads", [0, 8])
def test_nested_ones(threads: int) -> None:
    clock, seen = VirtualClock(5, threads=threads), list[tuple[int, int, float]]()

    def outer(one: int) -> None:
        clock.sleep(one)

        def inner(other: int) -> None:
            clock.sleep(other)
            seen.append((one, other, clock.monotonic()))

        run_concurrently((1, 2, 3), inner, clock=clock)
        clock.sleep(1)

    run_concurrently((10, 20), outer, clock=clock)
    assert sorted(seen) == [(one, other, one + other) for one in (10, 20) for other in (1, 2, 3)]
    assert clock.monotonic() == 24


def test_many_are_taken_one_after_another_from_the_same_moment() -> None:
    clock, begun = VirtualClock(), list[float]()

    def act(number: int) -> None:
        begun.append(clock.monotonic())
        clock.sleep(number)

    clock.sleep(5)
    run_concurrently(range(100), act, clock=clock)
    assert begun == [5] * 100
    assert clock.monotonic() == 104


@pytest.mark.parametrize("count", [3, 30])
def test_the_others_end_before_the_first_failure_is_raised(count: int) -> None:
    clock, ended = VirtualClock(), set[int]()

    def act(number: int) -> None:
        clock.sleep(count - number)
        if number in (1, 2):
            raise ValueError(number)
        ended.add(number)

    with pytest.raises(ValueError, match="1"):
        run_concurrently(range(count), act, clock=clock)
    assert ended == set(range(count)) - {1, 2}


def test_one_that_is_killed_takes_all_with_it_where_they_are() -> None:
    clock, ended = VirtualClock(), list[int]()

    def act(number: int) -> None:
        def inner(other: int) -> None:
            clock.sleep(1 + other)
            if (number, other) == (1, 1):
                raise Killed
            ended.append(number)

        run_concurrently((0, 1), inner, clock=clock)
        clock.sleep(1)
        ended.append(100 + number)

    with pytest.raises(Killed):
        run_concurrently(range(3), act, clock=clock)
    assert len(ended) < 6
    assert max(ended) < 100
    ended.clear()
    run_concurrently((0, 1), ended.append, clock=clock)  # the next process is another life
    assert sorted(ended) == [0, 1]


def test_closing_ends_every_wait() -> None:
    clock, raised = VirtualClock(), list[int]()

    def act(number: int) -> None:
        try:
            clock.sleep(1 + number)
            clock.close()
            clock.sleep(100)
        except Interrupted:
            raised.append(number)
            raise

    with pytest.raises(Interrupted):
        run_concurrently(range(3), act, clock=clock)
    assert sorted(raised) == [0, 1, 2]
    assert clock.monotonic() < 100


@pytest.mark.parametrize("count", [2, 20])
def test_an_interrupt_from_the_keyboard_closes_the_clock(count: int) -> None:
    clock = VirtualClock()

    def act(number: int) -> None:
        if number == 0:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        run_concurrently(range(count), act, clock=clock)
    with pytest.raises(Interrupted):
        clock.sleep(1)


def test_threads_that_run_freely_beside() -> None:
    clock, ended = VirtualClock(), list[int]()

    def act(number: int) -> None:
        for _ in range(50):
            clock.sleep(1)
        ended.append(number)

    def sleep() -> None:
        for _ in range(50):
            clock.sleep(1)

    run: list[Callable[[], None]] = [
        lambda: run_concurrently(range(3), act, clock=clock),
        lambda: run_concurrently(range(10, 13), act, clock=clock),
        sleep,
    ]
    threads = [threading.Thread(target=each) for each in run]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(20)
    assert sorted(ended) == [0, 1, 2, 10, 11, 12]


def test_whoever_holds_a_lock_is_not_preempted() -> None:
    clock, seen = VirtualClock(2), list[int]()
    held: list[int] = []
    clock.held = lambda: bool(held) and held[0] == threading.get_ident()

    def act(number: int) -> None:
        clock.preempt()
        held.append(threading.get_ident())
        seen.append(number)
        clock.preempt()
        clock.sleep(1)
        seen.append(number)
        held.clear()

    run_concurrently(range(4), act, clock=clock)
    assert [seen[n] for n in range(0, 8, 2)] == [seen[n] for n in range(1, 8, 2)]
