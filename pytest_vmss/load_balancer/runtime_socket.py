"""Talks to a running HAProxy by its runtime socket."""

from __future__ import annotations

import csv
import io
import os
import socket
from pathlib import Path

from pytest_vmss.clock import Deadline
from pytest_vmss.errors import BalancerError
from pytest_vmss.load_balancer.configuration import SOCKET

__all__ = ["RuntimeSocket"]

_ANSWER_S = 5.0
_ANSWER_BYTES = 16 * 1024 * 1024
#: How statistics end: with an empty line.
_END = "\n\n"


class RuntimeSocket:
    """The socket by which a running HAProxy is queried and changed.

    Args:
        folder: HAProxy's folder.
    """

    def __init__(self, folder: Path) -> None:
        self._folder = folder

    def servers(self) -> set[tuple[str, str]]:
        """Returns (rule, member) of every server; after a kill some may be missing."""
        return {(row["pxname"], row["svname"]) for row in self.rows()}

    def rows(self) -> list[dict[str, str]]:
        """Returns HAProxy's statistics of every server, by column.

        Raises:
            BalancerError: It does not answer.
        """
        text = self.ask("show stat").lstrip("# ")
        if not text.endswith(_END):  # it ended meanwhile: of the last servers nothing is known
            raise BalancerError("HAProxy's statistics have no end")
        try:
            return [
                row
                for row in csv.DictReader(io.StringIO(text))
                if row["svname"] not in ("FRONTEND", "BACKEND")
            ]
        except (csv.Error, KeyError) as error:  # it repeats what members responded
            raise BalancerError(f"HAProxy's statistics cannot be read: {error}") from error

    def command(self, command: str, *, fails: bool = False) -> bool:
        """Sends a command whose output, if any, is an error.

        Args:
            command: The command.
            fails: Whether to return False on an error, instead of raising.

        Raises:
            BalancerError: HAProxy refused the command.
        """
        answer = self.ask(command).strip()
        if not answer or "New server registered" in answer or "Server deleted" in answer:
            return True
        if fails:
            return False
        raise BalancerError(f"HAProxy refused {command!r}: {answer}")

    def ask(self, command: str) -> str:
        """Sends a command, and returns the response.

        Raises:
            BalancerError: HAProxy does not run, or does not answer.
        """
        # The length of socket paths is limited to 107 characters; that of folders is not.
        try:
            folder = os.open(self._folder, os.O_PATH)
        except OSError as error:
            raise BalancerError(f"the load balancer does not run: {error}") from error
        try:
            with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as link:
                link.settimeout(_ANSWER_S)
                link.connect(f"/proc/self/fd/{folder}/{SOCKET}")
                link.sendall(command.encode() + b"\n")
                answer = _read(link)
        except OSError as error:
            raise BalancerError(
                f"the load balancer at {self._folder / SOCKET} does not answer: {error}"
            ) from error
        finally:
            os.close(folder)
        if not answer:  # even to a command that has no output, it answers by a line
            raise BalancerError(
                f"the load balancer at {self._folder / SOCKET} does not answer: it hung up"
            )
        return answer.decode(errors="replace")


def _read(link: socket.socket) -> bytes:
    """Reads a response to its end.

    Raises:
        OSError: It is too long, or takes too long.
    """
    deadline, size = Deadline(_ANSWER_S), 0
    parts: list[bytes] = []
    while size <= _ANSWER_BYTES:
        link.settimeout(max(deadline.left(), 0.001))
        try:
            part = link.recv(65536)
        except TimeoutError as error:
            raise TimeoutError(f"its answer has no end after {_ANSWER_S:g} s") from error
        if not part:
            return b"".join(parts)
        parts.append(part)
        size += len(part)
    raise OSError(f"its answer is longer than {_ANSWER_BYTES >> 20} MiB")
