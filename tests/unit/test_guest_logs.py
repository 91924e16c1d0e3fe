"""E5, R2: how a real guest is asked for its logs after a failure."""

from __future__ import annotations

import base64
import json
from pathlib import Path
from typing import Any

import pytest

from pytest_vmss.clock import Deadline
from pytest_vmss.errors import GuestCommandError, GuestUnreachableError, KernelPanicError
from pytest_vmss.guest import LinuxGuest
from pytest_vmss.guest.connection import Connection
from pytest_vmss.guest.logs import LOG_BYTES, LOGS, QUICK_LOGS, read_logs
from pytest_vmss.guest.runner import CommandResult
from pytest_vmss.guest.shell import Shell
from pytest_vmss.simulation.clock import VirtualClock
from tests.linux_guests import linux_guest


def guest(folder: Path, clock: VirtualClock, **options: Any) -> LinuxGuest:
    return linux_guest(
        folder, clock, agent_connected=lambda: "ask" in options, factor=10.0, **options
    )


def test_a_log_that_was_cut_off_says_so_and_begins_with_a_whole_line() -> None:
    """M5: half of a secret would not be masked."""
    text = "s3cr3t is told\nthe next line\n"

    def run(command: str, timeout: float) -> str:
        assert timeout <= 1
        return text.ljust(1_000_000 if "cloud-init.log" in command else 999_999)

    deadline = Deadline(10)
    cut, whole = read_logs(
        run, ["cloud-init.log", "cloud-init-output.log"], deadline=deadline, each=1
    )
    assert cut.text.rstrip() == "…\nthe next line"
    assert whole.text.startswith(text)


def test_over_ssh_one_log_that_fails_costs_no_other(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """E5, R2: each within its time, and none longer than it may be."""
    monkeypatch.setattr(Connection, "connect", lambda _: Shell.__new__(Shell))

    def run(_: Shell, command: str, **options: Any) -> CommandResult:
        assert options["sudo"]
        assert options["most"] == LOG_BYTES
        assert options["timeout"] <= 5.0
        if "cloud-init-output" in command:
            raise GuestCommandError(
                "a command timed out", instance="web_0", exit_code=-1, stderr=""
            )
        return CommandResult(1, f"of {command}", "")

    monkeypatch.setattr(Shell, "run", run)
    told = list(guest(tmp_path, VirtualClock()).logs(QUICK_LOGS, timeout=60.0, each=5.0))
    assert tuple(log.name for log in told) == QUICK_LOGS
    assert "cloud-init-analyze.txt" not in QUICK_LOGS
    assert told[0].text.startswith("of journalctl")
    problems = {log.name: log.problem for log in told if log.problem}
    assert list(problems) == ["cloud-init-output.log"]
    assert "a command timed out" in problems["cloud-init-output.log"]


def test_when_the_time_is_up_the_rest_is_left_out() -> None:
    """E5."""
    told = list(read_logs(lambda *_: "text", LOGS, deadline=Deadline(0.0), each=5.0))
    assert {(log.text, log.problem) for log in told} == {("", "there was no time left for it")}


def test_without_ssh_the_guest_agent_is_asked(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """E5: of an image whose account nobody can log in to, the journal tells why."""
    monkeypatch.setattr(Connection, "connect", lambda _: None)
    asked: list[dict[str, Any]] = []

    def ask(text: str) -> str:
        command = json.loads(text)
        asked.append(command)
        if command["execute"] == "guest-exec":
            return json.dumps({"return": {"pid": len(asked)}})
        data = base64.b64encode(b"the journal").decode()
        return json.dumps({"return": {"exited": True, "exitcode": 0, "out-data": data}})

    clock = VirtualClock()
    made = guest(tmp_path, clock, ask=ask)
    (log,) = made.logs(["journal.log"], timeout=60.0, each=5.0)
    assert (log.text, log.problem) == ("the journal", "")
    assert asked[0]["arguments"]["path"] == "/bin/sh"
    assert "journalctl" in asked[0]["arguments"]["arg"][1]
    assert clock.monotonic() == 0.0


def test_a_guest_that_answers_neither_way_is_given_up_soon(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """E5: within seconds, ten times as many where it is emulated."""
    monkeypatch.setattr(Connection, "connect", lambda _: None)
    clock = VirtualClock()
    with pytest.raises(GuestUnreachableError, match="answers neither over SSH nor over a guest"):
        guest(tmp_path, clock).logs(LOGS, timeout=600.0, each=300.0)
    assert 20 <= clock.monotonic() < 21


def test_a_guest_that_panicked_is_not_asked(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """E5."""
    monkeypatch.setattr(Connection, "connect", lambda _: pytest.fail("it cannot answer"))
    (tmp_path / "console.log").write_text("[    3.2] Kernel panic - not syncing: VFS\n")
    clock = VirtualClock()
    with pytest.raises(KernelPanicError, match="the kernel panicked"):
        guest(tmp_path, clock).logs(LOGS, timeout=600.0, each=300.0)
    assert clock.monotonic() == 0.0
