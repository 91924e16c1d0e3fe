"""E4, Q1: an extension's command runs once and whole, whatever becomes of the connection.

The text that guests are given runs here, in a folder of the test's.
"""

from __future__ import annotations

import errno
import os
import shlex
import signal
import subprocess
import threading
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from pytest_vmss.clock import Clock, SystemClock
from pytest_vmss.errors import (
    BootError,
    GuestCommandError,
    GuestUnreachableError,
    NoBootError,
    is_verdict,
)
from pytest_vmss.guest.extensions import Command, Handler, Target, register, run_command
from pytest_vmss.guest.extensions import command as command_module
from pytest_vmss.guest.extensions.registry import guarded
from pytest_vmss.guest.runner import CommandResult
from pytest_vmss.model import Extension
from pytest_vmss.model.extension_result import ExtensionResult
from pytest_vmss.simulation.clock import VirtualClock
from tests.processes import wait_until_ended

EXTENSION = Extension(
    name="register",
    publisher="Microsoft.Azure.Extensions",
    type="CustomScript",
    type_handler_version="2.1",
    settings={"commandToExecute": "x"},
)


def broke() -> GuestCommandError:
    return GuestCommandError("the SSH connection broke", instance="", exit_code=-1, stderr="")


def away() -> GuestUnreachableError:
    return GuestUnreachableError("does not answer over SSH", instance="web_0")


class Here:
    """A guest that is this host; what befalls its calls is told before."""

    def __init__(self, *fates: Callable[[str, bytes], CommandResult]) -> None:
        self.fates = list(fates)
        self.calls = 0

    def run(
        self,
        command: str,
        *,
        stdin: bytes = b"",
        sudo: bool = False,  # noqa: ARG002
        timeout: float = 60.0,  # noqa: ARG002
        silence: float | None = None,  # noqa: ARG002
    ) -> CommandResult:
        self.calls += 1
        return (self.fates.pop(0) if self.fates else really)(command, stdin)

    def check(
        self, command: str, *, stdin: bytes = b"", sudo: bool = False, timeout: float = 60.0
    ) -> str:
        return self.run(command, stdin=stdin, sudo=sudo, timeout=timeout).stdout


def really(command: str, stdin: bytes) -> CommandResult:
    done = subprocess.run(
        ["/bin/sh", "-c", command], input=stdin, capture_output=True, timeout=60, check=False
    )
    return CommandResult(done.returncode, done.stdout.decode(), done.stderr.decode())


def then_broken(command: str, stdin: bytes) -> CommandResult:
    """The guest did it all, and nobody heard of it."""
    really(command, stdin)
    raise broke()


def cut(at: int) -> Callable[[str, bytes], CommandResult]:
    """The connection breaks while the command is still being sent."""

    def fate(command: str, stdin: bytes) -> CommandResult:
        done = really(command, stdin[:at])
        assert done.exit_code != 0
        raise broke()

    return fate


def fails(error: Exception) -> Callable[[str, bytes], CommandResult]:
    def fate(*_: object) -> CommandResult:
        raise error

    return fate


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    made = tmp_path / "runs"
    monkeypatch.setattr(command_module, "_folder", lambda _: str(made))
    return made


@pytest.fixture
def without(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[..., None]:
    """Makes the guest one that lacks some programs."""

    def remove(*missing: str) -> None:
        small = tmp_path / "bin"
        small.mkdir()
        for place in ("/usr/bin", "/bin"):
            for program in Path(place).iterdir():
                link = small / program.name
                if program.name not in missing and not link.is_symlink():
                    link.symlink_to(program)
        monkeypatch.setenv("PATH", str(small))

    return remove


def run(
    guest: Here, folder: Path, *, timeout: float = 20.0, text: str = "", clock: Clock | None = None
) -> ExtensionResult:
    command = Command(text or f"echo once >> {folder}/log; echo fine", files={"a b.sh": b"data"})
    target = Target(guest, clock or SystemClock(), timeout)
    return run_command(target, EXTENSION, command, run="1")


def closed_without_status(*_: object) -> CommandResult:
    return CommandResult(-1, "", "")


@pytest.mark.parametrize(
    "fates",
    [
        (),
        (fails(broke()),),
        (then_broken,),
        (then_broken, fails(away()), fails(away()), closed_without_status),
        (cut(3), cut(0), then_broken),
    ],
    ids=["no fault", "broken before", "broken after", "away for long", "cut short"],
)
def test_a_broken_connection_is_taken_up_again(
    folder: Path, fates: tuple[Callable[[str, bytes], CommandResult], ...]
) -> None:
    result = run(Here(*fates), folder)
    assert (result.status, result.exit_code) == ("success", 0), result.message
    assert "fine" in result.message
    assert (folder / "log").read_text() == "once\n"
    assert (folder / "1/a b.sh").read_bytes() == b"data"
    assert not list((folder / "1").glob("parts.*"))


def test_two_that_begin_at_once_run_it_once(folder: Path) -> None:
    """The first one's connection broke when all was sent; the second came before it began."""
    results: list[ExtensionResult] = []
    threads = [
        threading.Thread(target=lambda: results.append(run(Here(), folder))) for _ in range(4)
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(30)
    assert [result.status for result in results] == ["success"] * 4, results
    assert (folder / "log").read_text() == "once\n"


def test_a_guest_that_cannot_be_reached_within_the_limit_is_an_error(folder: Path) -> None:
    clock = VirtualClock()
    guest = Here(*[fails(away())] * 10_000)
    result = run_command(Target(guest, clock, 30.0), EXTENSION, Command("true"), run="1")
    assert (result.status, result.timed_out) == ("error", False)
    assert result.message == (
        "the guest could not be asked how it ended within 30 s; does not answer over SSH"
    )
    assert 30 <= clock.monotonic() < 40
    assert not folder.exists()


@pytest.mark.parametrize(
    "text",
    [
        "echo $$ > ../child; sleep 600",
        "set -m; sleep 600 & echo $! > ../child; wait",  # in a process group of its own
        "kill -KILL $PPID; echo $$ > ../child; sleep 600",  # without the shell that waits for it
    ],
)
def test_what_takes_too_long_is_killed_and_told_so(
    folder: Path, text: str, without: Callable[..., None]
) -> None:
    """Also in an image so small that it has no pkill."""
    without("pkill", "pgrep", "killall")
    result = run(Here(), folder, timeout=1.0, text=text)
    assert (result.status, result.timed_out) == ("error", True)
    wait_until_ended(int((folder / "child").read_text()))
    assert (folder / "1/status").read_text() == "timeout\n"


def test_what_ended_just_before_it_was_killed_is_told_as_it_ended(folder: Path) -> None:
    """The guest's own word is asked for last."""
    guest = Here(then_broken, *[fails(broke())] * 2)
    result = run(guest, folder, timeout=0.07, clock=VirtualClock())
    assert guest.calls == 4
    assert (result.status, result.timed_out) == ("success", False), result.message


def test_what_a_command_leaves_running_does_not_hold_it_up(folder: Path) -> None:
    """It is done when it ends, as in Azure."""
    start = time.monotonic()
    result = run(Here(), folder, text="sleep 15 > /dev/null 2>&1 & echo $! > left; echo fine")
    assert time.monotonic() - start < 10
    assert result.status == "success"
    os.kill(int((folder / "1/left").read_text()), signal.SIGKILL)


@pytest.mark.parametrize("shell", ["sh", "bash"])
def test_a_session_that_is_killed_has_started_nothing_or_all(
    folder: Path, tmp_path: Path, shell: str
) -> None:
    """At any of its programs, and at the start of the command's own shell."""
    programs, real = tmp_path / "bin", os.environ["PATH"]
    programs.mkdir()
    for name in ("mkdir", "head", "wc", "chmod", "flock", "mv", "setsid", "timeout"):
        kill = (
            f"[ -e {programs}/{name}.done ] || {{ : > {programs}/{name}.done; kill -KILL $PPID; }}"
        )
        text = f'#!/bin/sh\n{kill}\nPATH="{real}" exec {name} "$@"\n'
        (programs / name).write_text(text)
        (programs / name).chmod(0o755)

    def killed(command: str, stdin: bytes) -> CommandResult:
        done = subprocess.run(
            [shell, "-c", f'PATH="{programs}:$PATH"; {command}'],
            input=stdin, capture_output=True, timeout=60, check=False,
        )  # fmt: skip
        if done.returncode < 0:
            raise broke()
        return CommandResult(done.returncode, done.stdout.decode(), done.stderr.decode())

    result = run(Here(*[killed] * 20), folder)
    assert (result.status, result.exit_code) == ("success", 0), result.message
    assert (folder / "log").read_text() == "once\n"
    assert len(list(programs.glob("*.done"))) == 8


@pytest.mark.parametrize("name", ["-w.sh", "--help", "--", ".hidden", "*", "a'b", 'a"b'])
@pytest.mark.usefixtures("folder")
def test_files_have_any_name(name: str) -> None:
    command = Command(f"cat ./{shlex.quote(name)}", files={name: b"fine"})
    result = run_command(Target(Here(), SystemClock(), 20.0), EXTENSION, command, run="1")
    assert (result.status, result.exit_code) == ("success", 0), result.message
    assert "fine" in result.message


def test_the_number_of_a_command_that_a_restart_has_ended_may_be_anothers(folder: Path) -> None:
    (folder / "1").mkdir(parents=True)
    (folder / "1/started").touch()
    with subprocess.Popen(["sleep", "60"], start_new_session=True) as other:
        (folder / "1/pid").write_text(f"{other.pid} of-the-boot-before\n")
        assert run(Here(), folder, timeout=0.5).timed_out
        assert other.poll() is None
        other.kill()


def test_a_session_that_comes_after_a_command_timed_out_starts_nothing(folder: Path) -> None:
    (folder / "1").mkdir(parents=True)
    (folder / "1/status").write_text("timeout\n")  # before any session had begun
    assert run(Here(), folder).timed_out
    assert not (folder / "log").exists()


@pytest.mark.parametrize("missing", ["timeout", "sleep"])
def test_without_a_program_the_end_is_noticed(
    folder: Path, missing: str, without: Callable[..., None]
) -> None:
    without(missing)
    guest = Here()
    result = run(guest, folder, text="echo fine")
    assert (result.status, result.exit_code) == ("success", 0), result.message
    assert guest.calls <= 5


def test_one_that_a_restart_of_its_guest_has_ended_is_asked_for_once_a_second(
    folder: Path,
) -> None:
    """Its lock is gone with it, and nothing tells how it ended."""
    (folder / "1").mkdir(parents=True)
    (folder / "1/started").touch()
    guest = Here()
    result = run(guest, folder, timeout=2.5)
    assert result.timed_out
    assert guest.calls <= 5  # and one that ends it


def test_a_machine_that_has_ended_is_not_waited_for(folder: Path) -> None:
    guest = Here(fails(NoBootError("the machine ended", instance="web_0")))
    with pytest.raises(BootError, match="the machine ended"):
        run(guest, folder)


def test_what_may_be_run_again_is_insisted_on() -> None:
    target = Target(Here(fails(broke()), closed_without_status), SystemClock(), 20.0)
    assert target.insist("cat; exit 4", stdin=b"data") == CommandResult(4, "data", "")
    never = Target(Here(*[fails(away())] * 1000), VirtualClock(), 20.0)
    with pytest.raises(GuestCommandError, match="within 20 s: does not answer over SSH"):
        never.insist("true")


@pytest.mark.parametrize("failure", [SystemExit(3), KeyError("x"), pytest.fail.Exception("no")])
def test_a_handler_that_fails_itself_is_a_failed_extension(failure: BaseException) -> None:
    """Q3: a suite's own handler may raise what it likes."""

    class Own(Handler):
        publisher, type, version = "Contoso", "Own", "1.0"

        def run(self, target: Target, extension: Extension, *, run: str) -> ExtensionResult:  # noqa: ARG002
            raise failure

    handler = Own()
    register(handler)
    mine = EXTENSION.model_copy(update={"publisher": "Contoso", "type": "Own"})
    target = Target(Here(), SystemClock(), 1.0)
    result = guarded(
        lambda: handler.run(target, mine, run="1"),
        lambda failed: command_module.broken_handler(mine, failed),
    )
    assert result.status == "error"
    assert result.message.startswith(f"its handler failed: {type(failure).__name__}: ")
    with pytest.raises(GuestUnreachableError):
        guarded(fails(away()), lambda _: result)  # type: ignore[arg-type]


@pytest.mark.parametrize(
    "trouble",
    [
        MemoryError(),
        RuntimeError("can't start new thread"),
        OSError(errno.EMFILE, "Too many open files"),
        OSError(errno.ENOSPC, "No space left on device"),
    ],
)
def test_what_the_host_has_run_out_of_is_no_failure_of_an_extension(trouble: Exception) -> None:
    """Q1."""
    with pytest.raises(type(trouble)):
        guarded(fails(trouble), lambda _: pytest.fail("it was judged"))  # type: ignore[arg-type]
    assert not is_verdict(trouble)


@pytest.mark.usefixtures("folder")
def test_a_long_output_ends_without_half_of_a_secret() -> None:
    """M5: the guest sends the end of what the command printed, from the start of a word."""
    secret = "s3cr3t" * 8
    protected = EXTENSION.model_copy(
        update={"settings": {}, "protected_settings": {"commandToExecute": f"login {secret}"}}
    )
    long = f"echo x {secret} {'y' * 2024} >&2; exit 3"
    result = run_command(Target(Here(), SystemClock(), 20.0), protected, Command(long), run="1")
    assert (result.exit_code, "s3cr" in result.message) == (3, False)
    assert result.message.endswith(f"[stderr]\n… {'y' * 2024}")
