"""Runs, removes and queries extensions in a guest by their handlers (H2)."""

from __future__ import annotations

import socket
from collections.abc import Callable

from pytest_vmss.errors import error_text
from pytest_vmss.guest.connection import Connection, ReconnectingRunner
from pytest_vmss.guest.extensions import Target, broken_handler, find_handler, guarded, redact
from pytest_vmss.guest.extensions.checked import checked_result, checked_words
from pytest_vmss.guest.shell import Shell
from pytest_vmss.model import Extension
from pytest_vmss.model.extension_result import ExtensionResult

__all__ = ["ExtensionRunner"]

#: Maximum output in bytes of a handler's command; handlers may be a suite's own.
_HANDLER_BYTES = 8 * 1024 * 1024


class ExtensionRunner:
    """Calls the handlers of a guest's extensions, whatever they raise or return.

    Args:
        connection: The connection to the guest.
        factor: How many times slower the guest is than under KVM.
        files_port: Returns the current port of the lab's file server; None if it is not running.
        dial_files: Connects to that server, verifying that it is the lab's.
        warn: Told why a guest's downloads may fail, from any thread.
    """

    def __init__(
        self,
        connection: Connection,
        *,
        factor: float = 1.0,
        files_port: Callable[[], int | None] = lambda: None,
        dial_files: Callable[[], socket.socket] | None = None,
        warn: Callable[[str], None] = lambda _: None,
    ) -> None:
        self._connection = connection
        self._factor = factor
        self._files_port = files_port
        self._dial_files = dial_files
        self._warn = warn

    def run(self, extension: Extension, run: str, timeout: float) -> ExtensionResult:
        """Runs an extension, once per run id; see :meth:`Guest.run_extension`.

        Raises:
            GuestUnreachableError: The guest no longer answers.
        """
        handler = find_handler(extension.publisher, extension.type)
        self._connection.wait()  # if the guest does not answer, fail early
        return guarded(
            lambda: checked_result(
                handler.run(self._target(self._with_files, timeout), extension, run=run), extension
            ),
            lambda failure: broken_handler(extension, failure),
        )

    def remove(self, extension: Extension, timeout: float) -> str:
        """Removes an extension that the model no longer contains; returns what went wrong.

        Raises:
            GuestUnreachableError: The guest no longer answers.
            GuestCommandError: The connection broke.
        """
        handler = find_handler(extension.publisher, extension.type)
        return guarded(
            lambda: checked_words(
                handler.remove(self._target(self._connection.wait, timeout), extension), extension
            ),
            lambda failure: redact(error_text(failure), extension),
        )

    def report(self, extension: Extension, last: ExtensionResult) -> ExtensionResult:
        """Returns an extension's current status; see :meth:`Guest.report_extension`.

        Raises:
            GuestUnreachableError: The guest does not answer over SSH now.
            GuestCommandError: The connection broke.
        """
        handler = find_handler(extension.publisher, extension.type)
        if not handler.reports:
            return last
        target = self._target(self._connection.require, self._connection.login_limit)
        return guarded(
            lambda: checked_result(
                handler.report(target, extension, last), extension, is_running=True
            ),
            lambda _: last,
        )

    def _target(self, connect: Callable[[], Shell], timeout: float) -> Target:
        runner = ReconnectingRunner(connect, most=_HANDLER_BYTES)
        return Target(runner, self._connection.clock, timeout, self._factor, self._files_port())

    def _with_files(self) -> Shell:
        """Returns the connection, with the tunnel to the lab's file server open.

        Raises:
            GuestUnreachableError: The guest does not answer.
        """
        shell, port = self._connection.wait(), self._files_port()
        if port is not None:
            # If it cannot be opened, downloads fail and say so, or use another process's tunnel.
            shell.lead_to(port, self._dial_files, self._warn)
        return shell
