"""HAProxy: an unprivileged process on loopback, driven through its runtime socket."""

from __future__ import annotations

import contextlib
import csv
import io
import os
import re
import shutil
import signal
import socket
import time
from collections.abc import Sequence
from functools import partial
from itertools import pairwise
from pathlib import Path

import psutil

from pytest_vmss.clock import SystemClock, wait_for
from pytest_vmss.errors import BalancerError, WaitTimeoutError
from pytest_vmss.host.process import require, run
from pytest_vmss.load_balancer.protocol import Member, Rule
from pytest_vmss.model import Probe

__all__ = ["HAProxy"]

_NOBODY = 65534
#: States of servers whose probe succeeds, or that have none.
_IN_HEALTH = ("UP", "DRAIN", "NOLB", "no check")
_SOCKET = "haproxy.sock"
_ANSWER_S = 5.0
_ANSWER_BYTES = 16 * 1024 * 1024
_STOP_S = 5.0
#: HAProxy counts in milliseconds, in 31 bits.
_LONGEST_S = 2_000_000
_START_S = 10.0

_GLOBAL = """\
global
    stats socket unix@{socket} mode 600 level admin
    stats timeout 1h
    maxconn 2000
    hard-stop-after 5s
{identity}
defaults
    mode tcp
    timeout connect 5s
    timeout client 5m
    timeout server 5m
    timeout queue 10s
    timeout check {check}s
    option redispatch 1
    retries 3
"""
_RULE = """
frontend {name}
    bind {address}:{port}
    default_backend {name}
backend {name}
    balance roundrobin
{check}"""
_HTTP_CHECK = """\
    option httpchk
    http-check send meth GET uri {path} ver HTTP/1.1 hdr Host vmss hdr Connection close
    http-check expect status 200
"""


class HAProxy:
    """Implements :class:`~pytest_vmss.load_balancer.protocol.Balancer`.

    The process lives on when this one ends, so that a set is served between two
    commands; its number is in a file of the folder.

    Args:
        folder: Where its files are.
        rules: What it listens to. Not empty.
    """

    def __init__(self, folder: Path, rules: Sequence[Rule]) -> None:
        self._folder = folder
        self._rules = tuple(rules)

    def require(self) -> None:
        """Whether it could run; nothing is made.

        Raises:
            HostError: HAProxy is not installed.
        """
        require("haproxy")

    # The process.

    @property
    def _pid_file(self) -> Path:
        return self._folder / "haproxy.pid"

    @property
    def _configuration(self) -> Path:
        return self._folder / "haproxy.cfg"

    @property
    def _socket(self) -> Path:
        return self._folder / _SOCKET

    def ensure(self, members: Sequence[Member]) -> None:
        """Runs, with these members and no others, each in or out of service as it says.

        Raises:
            BalancerError: It cannot be started; the message is its own.
            HostError: HAProxy is not installed.
        """
        if not self._answers():
            self._start()
        wanted = {member.name for member in members}
        for name in {name for _, name in self._servers()} - wanted:
            self.take_out(name)
            self.remove(name)
        for member in members:
            self.add(member)

    def _answers(self) -> bool:
        if self._process() is None:
            return False
        try:
            return self._configuration.read_text() == self._text() and bool(self._ask("show info"))
        except (OSError, BalancerError):
            return False

    def _start(self) -> None:
        self.stop()
        self._folder.mkdir(parents=True, exist_ok=True, mode=0o700)
        text = self._text()
        self._configuration.write_text(text)
        self._configuration.chmod(0o600)
        run(
            [
                require("haproxy"),
                "-D",
                "-C",
                self._folder,
                "-f",
                self._configuration,
                "-p",
                self._pid_file,
            ],
            what="starting the load balancer",
            daemon=True,
        )
        try:
            wait_for(
                "the load balancer to answer",
                lambda: self._answers() or None,
                timeout=_START_S,
                clock=SystemClock(),
                interval=0.02,
            )
        except WaitTimeoutError as error:
            raise BalancerError(f"the load balancer does not answer: {error.message}") from error

    def stop(self) -> None:
        """Ends; nothing of it is left.

        Raises:
            BalancerError: Its process could not be ended, or its folder not be removed.
        """
        if not self._folder.exists():
            return
        for process in self._processes():
            self._end(process)
        try:
            shutil.rmtree(self._folder)
        except FileNotFoundError:
            pass  # another process of the lab was faster
        except OSError as error:
            raise BalancerError(
                f"the load balancer's folder {self._folder} cannot be removed: {error}"
            ) from error

    def _end(self, process: psutil.Process) -> None:
        """Ends one of its processes, gently at first.

        Raises:
            BalancerError: It goes on.
        """
        try:
            for number in (signal.SIGTERM, signal.SIGKILL):
                # psutil makes sure that its number is not another process's by now.
                process.send_signal(number)
                with contextlib.suppress(psutil.TimeoutExpired):
                    process.wait(_STOP_S)
                    break
        except psutil.NoSuchProcess:
            pass
        except psutil.AccessDenied as error:
            raise BalancerError(
                f"the load balancer's process {process.pid} cannot be ended: it is another "
                f"user's ({error})"
            ) from error
        with contextlib.suppress(ChildProcessError):
            os.waitpid(process.pid, os.WNOHANG)
        if _runs(process):
            raise BalancerError(
                f"the load balancer's process {process.pid} does not end, although it was killed"
            )

    def _processes(self) -> list[psutil.Process]:
        """Its processes, also one that has only begun and has not written its number yet."""
        return [process for process in psutil.process_iter() if self._is_ours(process)]

    def _process(self) -> psutil.Process | None:
        """Its process; None where there is none. A pid that was used again does not count."""
        try:
            process = psutil.Process(int(self._pid_file.read_text().split()[0]))
        except (OSError, ValueError, IndexError, psutil.Error):
            return None
        return process if self._is_ours(process) else None

    def _is_ours(self, process: psutil.Process) -> bool:
        """Whether a process is an HAProxy that runs with this very configuration.

        Others may mention the file: an editor, a pager, a script.
        """
        try:
            arguments = process.cmdline()
            if not arguments or Path(arguments[0]).name != "haproxy":
                return False
            if _program(process) != "haproxy" or not _runs(process):
                return False
            owners = {os.geteuid(), _NOBODY} if os.geteuid() == 0 else {os.geteuid()}
            if process.uids().real not in owners:
                return False
        except psutil.Error:
            return False
        return ("-f", str(self._configuration)) in pairwise(arguments)

    def _text(self) -> str:
        intervals = [rule.probe.interval_in_seconds for rule in self._rules if rule.probe]
        identity = f"    uid {_NOBODY}\n    gid {_NOBODY}\n" if os.geteuid() == 0 else ""
        text = _GLOBAL.format(socket=_SOCKET, identity=identity, check=min([5, *intervals]))
        for rule in self._rules:
            check = ""
            if rule.probe is not None and rule.probe.protocol != "Tcp":
                check = _HTTP_CHECK.format(path=_quoted(rule.probe.request_path or "/"))
            text += _RULE.format(name=rule.name, address=rule.address, port=rule.port, check=check)
            # Servers are added with these at run time; others need another process.
            text += f"    # servers:{_check(rule.probe)}\n"
        return text

    # Its members.

    def add(self, member: Member) -> None:
        """Takes a member in, in service or not."""
        known = self._servers()
        for rule in self._rules:
            server = f"{rule.name}/{member.name}"
            if (rule.name, member.name) not in known:
                port = member.forwards[rule.backend_port]
                checked = "" if rule.probe is None else f" port {member.forwards[rule.probe.port]}"
                self._command(
                    f"add server {server} {member.address}:{port}{_check(rule.probe)}{checked}"
                )
            if rule.probe is not None:
                self._command(f"enable health {server}")
        (self.put_back if member.in_service else self.take_out)(member.name)

    def remove(self, name: str) -> None:
        """Lets a member go, with what connections it still has."""
        known = self._servers()
        for rule in self._rules:
            if (rule.name, name) not in known:
                continue
            server = f"{rule.name}/{name}"
            self._command(f"set server {server} state maint")
            self._command(f"shutdown sessions server {server}")
            try:
                wait_for(
                    f"the connections of {name} to end",
                    partial(self._deleted, server),
                    timeout=_STOP_S,
                    clock=SystemClock(),
                    interval=0.02,
                )
            except WaitTimeoutError as error:
                raise BalancerError(f"{name} cannot be removed: {error.message}") from error

    def _deleted(self, server: str) -> bool | None:
        """Whether a server could be deleted; not while it has connections."""
        return self._command(f"del server {server}", fails=True) or None

    def take_out(self, name: str) -> None:
        """Sends a member no new connections; those that it has go on."""
        self._set_state(name, "drain")

    def put_back(self, name: str) -> None:
        """Sends a member connections again, as soon as it is healthy."""
        self._set_state(name, "ready")

    def _set_state(self, name: str, state: str) -> None:
        known = self._servers()
        for rule in self._rules:
            if (rule.name, name) in known:
                self._command(f"set server {rule.name}/{name} state {state}")

    def connections(self, name: str) -> int:
        """How many connections a member has now."""
        return sum(int(row["scur"] or 0) for row in self._rows() if row["svname"] == name)

    def healthy(self, name: str) -> bool | None:
        """What the probes say of a member; None where nothing is known yet."""
        rows = [row for row in self._rows() if row["svname"] == name]
        if not rows or any(row["check_status"].endswith("INI") for row in rows):
            return None
        # "DOWN 1/2" is on its way up, and still down.
        return all(row["status"].startswith(_IN_HEALTH) for row in rows)

    def _servers(self) -> set[tuple[str, str]]:
        """Each member of each rule; a kill may have come between two rules."""
        return {(row["pxname"], row["svname"]) for row in self._rows()}

    def _rows(self) -> list[dict[str, str]]:
        text = self._ask("show stat").lstrip("# ")
        try:
            return [
                row
                for row in csv.DictReader(io.StringIO(text))
                if row["svname"] not in ("FRONTEND", "BACKEND")
            ]
        except (csv.Error, KeyError) as error:  # it repeats what members answered
            raise BalancerError(f"HAProxy's statistics cannot be read: {error}") from error

    # Its socket.

    def _command(self, command: str, *, fails: bool = False) -> bool:
        """Gives a command; what it answers is a complaint.

        Raises:
            BalancerError: It complains, and that is no answer (``fails``).
        """
        answer = self._ask(command).strip()
        if not answer or "New server registered" in answer or "Server deleted" in answer:
            return True
        if fails:
            return False
        raise BalancerError(f"HAProxy refused {command!r}: {answer}")

    def _ask(self, command: str) -> str:
        # Paths of sockets are limited to 107 characters; those of folders are not.
        try:
            folder = os.open(self._folder, os.O_PATH)
        except OSError as error:
            raise BalancerError(f"the load balancer does not run: {error}") from error
        try:
            with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as link:
                link.settimeout(_ANSWER_S)
                link.connect(f"/proc/self/fd/{folder}/{_SOCKET}")
                link.sendall(command.encode() + b"\n")
                answer = _read(link)
        except OSError as error:
            raise BalancerError(
                f"the load balancer at {self._socket} does not answer: {error}"
            ) from error
        finally:
            os.close(folder)
        return answer.decode(errors="replace")


def _program(process: psutil.Process) -> str:
    """Name of the file that a process executes, whatever it calls itself."""
    try:
        # A file that was replaced since is marked so by the kernel.
        return Path(process.exe().removesuffix(" (deleted)")).name
    except psutil.AccessDenied:  # in a container, of one that has become another user's
        return process.name()


def _runs(process: psutil.Process) -> bool:
    try:
        return process.is_running() and process.status() != psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        return False


def _read(link: socket.socket) -> bytes:
    """Reads an answer to its end.

    Raises:
        OSError: It is too long, or takes too long.
    """
    end, size = time.monotonic() + _ANSWER_S, 0
    parts: list[bytes] = []
    while size <= _ANSWER_BYTES:
        link.settimeout(max(end - time.monotonic(), 0.001))
        try:
            part = link.recv(65536)
        except TimeoutError as error:
            raise TimeoutError(f"its answer has no end after {_ANSWER_S:g} s") from error
        if not part:
            return b"".join(parts)
        parts.append(part)
        size += len(part)
    raise OSError(f"its answer is longer than {_ANSWER_BYTES >> 20} MiB")


def _check(probe: Probe | None) -> str:
    """How a server is checked; as often as the probe says, and quickly while its state changes."""
    if probe is None:
        return ""
    ssl = " check-ssl verify none" if probe.protocol == "Https" else ""
    return (
        f" check inter {min(probe.interval_in_seconds, _LONGEST_S)}s fastinter 200ms downinter 500ms "
        f"rise {probe.threshold} fall {probe.threshold}{ssl}"
    )


def _quoted(text: str) -> str:
    """A path as one word of the configuration, in which HAProxy finds nothing to interpret.

    Raises:
        BalancerError: It holds what no path of a URL does.
    """
    if not re.fullmatch("[!-~]{0,1024}", text):
        raise BalancerError(
            "a probe's path holds spaces, control characters or letters beyond ASCII"
        )
    # HAProxy expands variables in double quotes; "uri", unlike "uri-lf", takes % as it is.
    return '"' + text.replace("\\", "\\\\").replace('"', '\\"').replace("$", "\\$") + '"'
