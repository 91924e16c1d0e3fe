"""L5: Ctrl-C is noticed at once while instances are worked on."""

from __future__ import annotations

import signal
import threading
import time

from pytest_vmss.clock import SystemClock


def test_a_signal_that_another_thread_takes_is_acted_on_at_once() -> None:
    """The kernel gives a process's signal to any thread; Python acts on it in the main one."""
    sent: list[float] = []
    late: list[float] = []
    previous = signal.signal(signal.SIGUSR1, lambda *_: late.append(time.monotonic() - sent[0]))

    def act(number: int) -> None:
        if number == 0:
            sent.append(time.monotonic())
            signal.pthread_kill(threading.get_ident(), signal.SIGUSR1)
        time.sleep(5)

    try:
        SystemClock().run_concurrently([0, 1], act)
    finally:
        signal.signal(signal.SIGUSR1, previous)
    assert len(late) == 1
    assert late[0] < 4
