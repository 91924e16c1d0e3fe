"""What a guest says, with the secrets of its set's models masked (M5).

A guest has secrets of the model: custom data, passwords, protected settings. Its own errors may
print them, so nothing that it says reaches a record, an event or an exception by another way.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterable, Iterator
from dataclasses import replace

from pytest_vmss.errors import mask_error
from pytest_vmss.guest import Check, Guest, Shell
from pytest_vmss.guest.boot_facts import BootFacts
from pytest_vmss.guest.cloud_init import CloudInitResult
from pytest_vmss.guest.logs import GuestLog
from pytest_vmss.model import Extension
from pytest_vmss.model.extension_result import ExtensionResult

__all__ = ["MaskedGuest"]


class MaskedGuest:
    """A guest whose answers and errors are masked; implements :class:`~pytest_vmss.guest.Guest`.

    Args:
        guest: The guest.
        mask: Masks a text.
    """

    def __init__(self, guest: Guest, mask: Callable[[str], str]) -> None:
        self._guest = guest
        self._mask = mask

    @contextlib.contextmanager
    def _masked(self) -> Iterator[None]:
        try:
            yield
        except Exception as error:
            mask_error(error, self._mask)
            raise

    def wait_boot(self, previous_boot_id: str | None) -> BootFacts:
        """See :meth:`Guest.wait_boot`."""
        with self._masked():
            facts = self._guest.wait_boot(previous_boot_id)
        version = facts.image_version
        return replace(
            facts,
            boot_id=self._mask(facts.boot_id),
            kernel=self._mask(facts.kernel),
            image_version=version and self._mask(version),
        )

    def wake(self) -> str:
        """See :meth:`Guest.wake`."""
        with self._masked():
            return self._mask(self._guest.wake())

    def wait_cloud_init(self) -> CloudInitResult:
        """See :meth:`Guest.wait_cloud_init`."""
        with self._masked():
            result = self._guest.wait_cloud_init()
        return replace(
            result,
            problems=tuple(map(self._mask, result.problems)),
            datasource=self._mask(result.datasource),
        )

    def run_extension(self, extension: Extension, run: str, timeout: float) -> ExtensionResult:
        """See :meth:`Guest.run_extension`."""
        with self._masked():
            return self._result(self._guest.run_extension(extension, run, timeout))

    def remove_extension(self, extension: Extension, timeout: float) -> str:
        """See :meth:`Guest.remove_extension`."""
        with self._masked():
            return self._mask(self._guest.remove_extension(extension, timeout))

    def report_extension(self, extension: Extension, last: ExtensionResult) -> ExtensionResult:
        """See :meth:`Guest.report_extension`."""
        with self._masked():
            return self._result(self._guest.report_extension(extension, last))

    def _result(self, result: ExtensionResult) -> ExtensionResult:
        substatuses = (
            part.model_copy(
                update={
                    "name": self._mask(part.name),
                    "status": self._mask(part.status),
                    "message": self._mask(part.message),
                }
            )
            for part in result.substatuses
        )
        return result.model_copy(
            update={
                "message": self._mask(result.message),
                "handler": self._mask(result.handler),
                "handler_message": self._mask(result.handler_message),
                "substatuses": tuple(substatuses),
            }
        )

    def sync(self, *, patient: bool = True) -> None:
        """See :meth:`Guest.sync`."""
        with self._masked():
            self._guest.sync(patient=patient)

    def check(self, check: Check) -> tuple[bool, str]:
        """See :meth:`Guest.check`."""
        with self._masked():
            passed, told = self._guest.check(check)
        return passed, self._mask(told)

    def listening(self) -> set[int]:
        """See :meth:`Guest.listening`."""
        with self._masked():
            return self._guest.listening()

    def logs(self, names: Iterable[str], *, timeout: float, each: float) -> Iterator[GuestLog]:
        """See :meth:`Guest.logs`; their texts are masked where they are written."""
        with self._masked():
            logs = self._guest.logs(names, timeout=timeout, each=each)
        return self._each(logs)

    def _each(self, logs: Iterator[GuestLog]) -> Iterator[GuestLog]:
        with self._masked():
            for log in logs:
                yield replace(log, problem=self._mask(log.problem))

    def shell(self) -> Shell:
        """See :meth:`Guest.shell`; what a suite's own commands print, it gets as it is."""
        with self._masked():
            return self._guest.shell()

    def close(self) -> None:
        """See :meth:`Guest.close`."""
        self._guest.close()
