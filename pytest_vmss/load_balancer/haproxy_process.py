"""The HAProxy process of one load balancer: found by its configuration file, started, ended."""

from __future__ import annotations

import contextlib
import os
import signal
from itertools import pairwise
from pathlib import Path

import psutil

from pytest_vmss.errors import BalancerError
from pytest_vmss.host.process import require, run
from pytest_vmss.load_balancer.configuration import NOBODY

__all__ = ["HAProxyProcess"]

#: Seconds for it to end after each signal.
_STOP_S = 5.0


class HAProxyProcess:
    """An unprivileged HAProxy that outlives the process that starts it.

    Its process id is in a file in the folder.

    Args:
        folder: Folder of its files.
    """

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self.configuration = folder / "haproxy.cfg"
        self._pid_file = folder / "haproxy.pid"

    def start(self, text: str) -> None:
        """Starts it.

        Args:
            text: The content of its configuration file.

        Raises:
            HostError: HAProxy is not installed.
            ToolError: HAProxy refuses to start; the message is its own.
        """
        self._folder.mkdir(parents=True, exist_ok=True, mode=0o700)
        self.configuration.write_text(text)
        self.configuration.chmod(0o600)
        run(
            [
                require("haproxy"),
                "-D",
                "-C",
                self._folder,
                "-f",
                self.configuration,
                "-p",
                self._pid_file,
            ],
            what="starting the load balancer",
            daemon=True,
        )

    def current(self) -> psutil.Process | None:
        """Returns its process, or None; a reused process id does not count."""
        try:
            process = psutil.Process(int(self._pid_file.read_text().split()[0]))
        except (OSError, ValueError, IndexError, psutil.Error):
            return None
        return process if self._is_ours(process) else None

    def end(self) -> None:
        """Ends all its processes.

        Raises:
            BalancerError: One does not end, or belongs to another user.
        """
        for process in self.all():
            _end(process)

    def all(self) -> list[psutil.Process]:
        """Returns its processes, including one that has just started and not written its id yet."""
        return [process for process in psutil.process_iter() if self._is_ours(process)]

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
            owners = {os.geteuid(), NOBODY} if os.geteuid() == 0 else {os.geteuid()}
            if process.uids().real not in owners:
                return False
        except psutil.Error:
            return False
        return ("-f", str(self.configuration)) in pairwise(arguments)


def _end(process: psutil.Process) -> None:
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
