"""Runs HAProxy as an unprivileged process on loopback, controlled by its runtime socket."""

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
#: States of servers whose health check succeeds, or that have none.
_IN_HEALTH = ("UP", "DRAIN", "NOLB", "no check")
_SOCKET = "haproxy.sock"
_ANSWER_S = 5.0
_ANSWER_BYTES = 16 * 1024 * 1024
_STOP_S = 5.0
#: HAProxy counts milliseconds in 31 bits.
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

    The HAProxy process outlives this one, so that a set is served between two commands; its
    process id is in a file in the folder.

    Args:
        folder: Folder of its files.
        rules: The load-balancing rules; at least one.
    """

    def __init__(self, folder: Path, rules: Sequence[Rule]) -> None:
        self._folder = folder
        self._rules = tuple(rules)

    def require(self) -> None:
        """Checks that HAProxy is installed; creates nothing.

        Raises:
            HostError: HAProxy is not installed.
        """
        require("haproxy")

    @property
    def judges(self) -> bool:
        """Whether it has the set's own health probe, and so knows what is healthy."""
        return any(rule.judges and rule.probe is not None for rule in self._rules)

    # Process.

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
        """Ensures that it runs with exactly these members, in or out of service as specified.

        Raises:
            BalancerError: It cannot be started; the message is HAProxy's.
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
        """Stops the load balancer, and removes all of its files.

        Raises:
            BalancerError: Its process could not be ended, or its folder could not be removed.
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
        """Ends one of its processes, by SIGTERM and then SIGKILL.

        Raises:
            BalancerError: It does not end, or belongs to another user.
        """
        try:
            for number in (signal.SIGTERM, signal.SIGKILL):
                # psutil makes sure that the process id was not reused.
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
        """Returns its processes, including one that has just started and not written its id yet."""
        return [process for process in psutil.process_iter() if self._is_ours(process)]

    def _process(self) -> psutil.Process | None:
        """Returns its process, or None; a reused process id does not count."""
        try:
            process = psutil.Process(int(self._pid_file.read_text().split()[0]))
        except (OSError, ValueError, IndexError, psutil.Error):
            return None
        return process if self._is_ours(process) else None

    def _is_ours(self, process: psutil.Process) -> bool:
        """Whether a process is an HAProxy that runs with this configuration file.

        Other processes may have the file on their command line: an editor, a pager, a script.
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
            # Servers are added with these options at run time; other options need another process.
            text += f"    # servers:{_check(rule.probe)}\n"
        return text

    # Members.

    def add(self, member: Member) -> None:
        """Adds a member, in or out of service."""
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
        """Removes a member, closing the connections it still has."""
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
        """Deletes a server; returns None while it still has connections."""
        return self._command(f"del server {server}", fails=True) or None

    def take_out(self, name: str) -> None:
        """Stops sending new connections to a member; existing ones continue."""
        self._set_state(name, "drain")

    def put_back(self, name: str) -> None:
        """Sends connections to a member again, as soon as it is healthy."""
        self._set_state(name, "ready")

    def _set_state(self, name: str, state: str) -> None:
        known = self._servers()
        for rule in self._rules:
            if (rule.name, name) in known:
                self._command(f"set server {rule.name}/{name} state {state}")

    def connections(self, name: str) -> int:
        """Returns the number of a member's current connections."""
        return sum(int(row["scur"] or 0) for row in self._rows() if row["svname"] == name)

    def healthy(self, name: str) -> bool | None:
        """Whether a member is healthy by the set's own probe; None if that is not known yet."""
        return self.verdicts().get(name)

    def verdicts(self) -> dict[str, bool]:
        """Whether each member is healthy, by its name; without those of which it is not known yet."""
        judging = {rule.name for rule in self._rules if rule.judges and rule.probe is not None}
        known: dict[str, bool] = {}
        unknown = set()
        for row in self._rows():
            if row["pxname"] not in judging:
                continue
            name = row["svname"]
            if row["check_status"].endswith("INI"):
                unknown.add(name)
            # "DOWN 1/2" is on its way up, but still down.
            known[name] = known.get(name, True) and row["status"].startswith(_IN_HEALTH)
        return {name: healthy for name, healthy in known.items() if name not in unknown}

    def report(self) -> str:
        """Returns HAProxy's ``show stat``: also when and why each check failed.

        Raises:
            BalancerError: It does not answer.
        """
        return self._ask("show stat")

    def _servers(self) -> set[tuple[str, str]]:
        """Returns (rule, member) of every server; after a kill some may be missing."""
        return {(row["pxname"], row["svname"]) for row in self._rows()}

    def _rows(self) -> list[dict[str, str]]:
        text = self._ask("show stat").lstrip("# ")
        try:
            return [
                row
                for row in csv.DictReader(io.StringIO(text))
                if row["svname"] not in ("FRONTEND", "BACKEND")
            ]
        except (csv.Error, KeyError) as error:  # it repeats what members responded
            raise BalancerError(f"HAProxy's statistics cannot be read: {error}") from error

    # Socket.

    def _command(self, command: str, *, fails: bool = False) -> bool:
        """Sends a command whose output, if any, is an error.

        Args:
            command: The command.
            fails: Whether to return False on an error, instead of raising.

        Raises:
            BalancerError: HAProxy refused the command.
        """
        answer = self._ask(command).strip()
        if not answer or "New server registered" in answer or "Server deleted" in answer:
            return True
        if fails:
            return False
        raise BalancerError(f"HAProxy refused {command!r}: {answer}")

    def _ask(self, command: str) -> str:
        # The length of socket paths is limited to 107 characters; that of folders is not.
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
    """Returns the name of the file that a process executes, whatever name it displays."""
    try:
        # The kernel adds this suffix if the file was replaced meanwhile.
        return Path(process.exe().removesuffix(" (deleted)")).name
    except psutil.AccessDenied:  # in a container, if the process has changed its user
        return process.name()


def _runs(process: psutil.Process) -> bool:
    try:
        return process.is_running() and process.status() != psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        return False


def _read(link: socket.socket) -> bytes:
    """Reads a response to its end.

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
    """Returns the options of a server's check: at the probe's interval, faster during changes."""
    if probe is None:
        return ""
    ssl = " check-ssl verify none" if probe.protocol == "Https" else ""
    return (
        f" check inter {min(probe.interval_in_seconds, _LONGEST_S)}s fastinter 200ms downinter 500ms "
        f"rise {probe.threshold} fall {probe.threshold}{ssl}"
    )


def _quoted(text: str) -> str:
    """Quotes a path for the configuration, so that HAProxy interprets nothing in it.

    Raises:
        BalancerError: It contains characters that are invalid in a URL's path.
    """
    if not re.fullmatch("[!-~]{0,1024}", text):
        raise BalancerError(
            "a probe's path holds spaces, control characters or letters beyond ASCII"
        )
    # HAProxy expands variables in double quotes; "uri", unlike "uri-lf", does not interpret %.
    return '"' + text.replace("\\", "\\\\").replace('"', '\\"').replace("$", "\\$") + '"'
