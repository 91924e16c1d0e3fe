"""E5, R2: how a real guest is asked for its logs after a failure."""

from __future__ import annotations

import base64
import json
import shlex
from pathlib import Path
from typing import Any

import pytest

from pytest_vmss.clock import Deadline
from pytest_vmss.errors import GuestCommandError, GuestUnreachableError, KernelPanicError
from pytest_vmss.guest import LinuxGuest, log_access
from pytest_vmss.guest.connection import Connection
from pytest_vmss.guest.logs import LOG_BYTES, LOGS, QUICK_LOGS, last_lines, read_logs
from pytest_vmss.guest.runner import CommandResult
from pytest_vmss.guest.shell import Shell
from pytest_vmss.host.process import run
from pytest_vmss.simulation.clock import VirtualClock
from tests.linux_guests import linux_guest


def guest(folder: Path, clock: VirtualClock, **options: Any) -> LinuxGuest:
    return linux_guest(
        folder, clock, agent_connected=lambda: "ask" in options, factor=10.0, **options
    )


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
    assert "journalctl" in told[0].text
    problems = {log.name: log.problem for log in told if log.problem}
    assert list(problems) == ["cloud-init-output.log"]
    assert "a command timed out" in problems["cloud-init-output.log"]


def told_by_shell(command: str) -> str:
    return run(["/bin/sh", "-c", command], what="a command").decode()


@pytest.mark.parametrize("text", ["", "a\nb", "a\nb\n", "\n\na\n"])
def test_a_short_log_is_told_whole(text: str) -> None:
    """E5: with blank lines, and without a last line's end."""
    assert told_by_shell(last_lines(f"printf %s {shlex.quote(text)}", 20)) == text


@pytest.mark.parametrize("text", ["0123456789" * 3 + "\nthe next\n", "x" * 99, "é" * 99 + "\n"])
def test_a_log_that_was_cut_off_says_so(text: str) -> None:
    """M5: masking finds the rest of a secret of several lines by that; half a line is left out."""
    told = told_by_shell(last_lines(f"printf %s {shlex.quote(text)}", 20))
    assert told.splitlines() == ["…", *text.splitlines()[1:]]


@pytest.mark.parametrize("over", ["ssh", "agent"])
def test_no_log_begins_within_a_secret(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, over: str
) -> None:
    """M5: the end of a long one begins with a whole line, for half of a secret is not found."""
    log = tmp_path / "cloud-init.log"
    log.write_text("password: Correct-Horse-1\n" * 60_000)
    read = list(read_logs(lambda command, _: command, LOGS, deadline=Deadline(60.0), each=5.0))
    (command,) = (one.text for one in read if one.name == "cloud-init.log")
    if over == "agent":
        asked: list[str] = []
        connection = Connection.__new__(Connection)
        connection.clock = VirtualClock()

        def run_program(_: object, argv: list[str], *__: object, **___: object) -> str:
            asked.append(argv[2])
            return ""

        monkeypatch.setattr(log_access, "run_program", run_program)
        log_access._over_agent(str, connection)(command, 5.0)
        (command,) = asked
    told = told_by_shell(command.replace("/var/log/cloud-init.log", str(log)))
    assert len(told) > 100_000
    assert set(told.splitlines()) == {"…", "password: Correct-Horse-1"}
    for one in read:
        told_by_shell(f"set -n\n{one.text}")


def test_no_extensions_log_begins_within_a_secret(tmp_path: Path) -> None:
    """M5: each log of several."""
    for name in ("one.log", "it's.log"):
        (tmp_path / name).write_text("password: Correct-Horse-1\n" * 6_000)
    read = read_logs(lambda command, _: command, ["extensions.log"], deadline=Deadline(9), each=5.0)
    (command,) = (one.text for one in read)
    lines = told_by_shell(command.replace("/var/log/azure", str(tmp_path))).splitlines()
    heads = {f"==> {tmp_path / name} <==" for name in ("one.log", "it's.log")}
    assert set(lines) == {*heads, "…", "password: Correct-Horse-1"}


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


def test_a_login_that_fails_slowly_is_not_tried_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """E5, R2: a server that drips its bytes costs one login's time."""
    clock = VirtualClock()
    monkeypatch.setattr(Connection, "connect", lambda _: clock.sleep(100.0))
    with pytest.raises(GuestUnreachableError, match="answers neither over SSH nor over a guest"):
        guest(tmp_path, clock).logs(LOGS, timeout=600.0, each=300.0)
    assert clock.monotonic() == 100


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
