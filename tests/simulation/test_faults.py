"""Q1: a fault is mended although it failed half-way, and what cannot be mended is told."""

from __future__ import annotations

import warnings
from collections.abc import Callable
from contextlib import AbstractContextManager

import pytest

from pytest_vmss.api.faults import Faults
from pytest_vmss.errors import GuestCommandError, HostError, HypervisorError, ModelError
from pytest_vmss.guest.runner import CommandResult
from tests.simulation.conftest import SimulatedLab


class Guest:
    """Takes commands; those that hold a word break the connection."""

    def __init__(self) -> None:
        self.calls: list[str] = []
        self.breaks_at: tuple[str, ...] = ()

    def check(
        self, command: str, *, stdin: bytes = b"", sudo: bool = False, timeout: float = 60.0
    ) -> str:
        return self.run(command, stdin=stdin, sudo=sudo, timeout=timeout).stdout

    def run(
        self,
        command: str,
        *,
        stdin: bytes = b"",  # noqa: ARG002
        sudo: bool = False,
        timeout: float = 60.0,  # noqa: ARG002
        silence: float | None = None,  # noqa: ARG002
    ) -> CommandResult:
        assert sudo
        self.calls.append(command)
        if any(word in command for word in self.breaks_at):
            raise GuestCommandError(
                "the SSH connection broke", instance="", exit_code=-1, stderr=""
            )
        return CommandResult(0, "", "")


@pytest.fixture
def guest() -> Guest:
    return Guest()


@pytest.fixture
def told() -> list[tuple[str, str]]:
    return []


def warned(told: list[tuple[str, str]]) -> list[str]:
    return [message for kind, message in told if kind == "warning"]


@pytest.fixture
def faults(lab: SimulatedLab, guest: Guest, told: list[tuple[str, str]]) -> Faults:
    web = lab.start_web(1)
    return Faults(
        "web_0", web[0]._context.domain, hypervisor=lambda: lab.simulated, shell=lambda: guest,
        tell=lambda kind, message: told.append((kind, message)),
    )  # fmt: skip


@pytest.mark.parametrize(
    ("fault", "begins", "mends"),
    [
        (lambda f: f.without("nginx"), "systemctl stop -- nginx", "systemctl start -- nginx"),
        (lambda f: f.disk_filled("/data"), "cat /dev/zero", "rm -f /data/.vmss-filled"),
    ],
)
def test_what_was_begun_is_mended_although_it_broke(
    faults: Faults,
    guest: Guest,
    told: list[tuple[str, str]],
    fault: Callable[[Faults], AbstractContextManager[None]],
    begins: str,
    mends: str,
) -> None:
    guest.breaks_at = (begins,)
    with pytest.raises(GuestCommandError, match="the SSH connection broke"), fault(faults):
        raise AssertionError("the fault is not there")
    assert [begins in guest.calls[0], mends in guest.calls[1]] == [True, True]
    assert told == []
    guest.breaks_at = (mends,)
    with pytest.warns(UserWarning, match="mending it failed: GuestCommandError"), fault(faults):
        pass
    assert "web_0 may still be" in warned(told)[0]

    def block() -> None:
        with fault(faults):
            raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError) as raised:
        block()
    assert "mending it failed" in raised.value.__notes__[0]


@pytest.mark.parametrize("error", [HostError("libvirt has gone"), HypervisorError("refused")])
@pytest.mark.parametrize(
    ("fault", "begin", "mend"),
    [
        (Faults.paused, "pause", "unpause"),
        (Faults.slowed, "pause", "unpause"),
        (Faults.network_cut, "set_link", "set_link"),
    ],
)
def test_a_hypervisor_that_fails_half_way(
    lab: SimulatedLab,
    faults: Faults,
    told: list[tuple[str, str]],
    monkeypatch: pytest.MonkeyPatch,
    fault: Callable[[Faults], AbstractContextManager[None]],
    begin: str,
    mend: str,
    error: Exception,
) -> None:
    """It did what it was asked, and its answer was lost."""
    real = getattr(lab.simulated, begin)
    calls = []

    def half(*arguments: object, **named: object) -> None:
        real(*arguments, **named)
        calls.append(named)
        if len(calls) == 1:
            raise error

    with monkeypatch.context() as patched:
        patched.setattr(lab.simulated, begin, half)
        with pytest.raises(type(error)), fault(faults):
            raise AssertionError("the fault is not there")
    assert not lab.simulated.paused
    assert not lab.simulated.cut
    assert told == []

    def gone(*_: object, **__: object) -> None:
        raise error

    with (
        monkeypatch.context() as patched,
        pytest.warns(UserWarning, match="web_0 may still be"),
        fault(faults),
    ):
        patched.setattr(lab.simulated, mend, gone)
    assert [type(error).__name__ in left for left in warned(told)] == [True]


def test_a_machine_that_has_gone_has_lost_its_faults(
    faults: Faults, guest: Guest, told: list[tuple[str, str]]
) -> None:
    guest.breaks_at = ("systemctl start",)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        with faults.paused(), faults.network_cut(), faults.slowed(), faults.without("nginx"):
            faults.kill()
    assert warned(told) == []


@pytest.mark.parametrize("unit", ["nginx\n", "a b", "", "x;reboot", "ä", "u" * 256])
def test_only_units_are_stopped(faults: Faults, guest: Guest, unit: str) -> None:
    """M6."""
    with pytest.raises(ModelError, match="must be the name of a systemd unit"):
        faults.without(unit)
    assert guest.calls == []


def test_a_fault_is_an_event_where_it_begins_and_ends(lab: SimulatedLab) -> None:
    """J4: so that reports show which failures a test caused itself."""
    web = lab.start_web(1)
    with web[0].faults.paused():
        pass
    web[0].faults.kill()
    events = [event for event in lab.store.events(scale_set="web") if event.kind == "fault"]
    assert [(event.instance_id, event.message) for event in events] == [
        (0, "paused: begins"),
        (0, "paused: is over"),
        (0, "killed: its power is cut"),
    ]
