"""Watches a guest's console and machine for reasons why waiting for it is hopeless (E5)."""

from __future__ import annotations

from collections.abc import Callable
from typing import TypeVar

from pytest_vmss.errors import BootError, CloudInitError, KernelPanicError, NoBootError
from pytest_vmss.guest.console import Console
from pytest_vmss.hypervisor import PowerState

__all__ = ["BootWatch"]

_E = TypeVar("_E", bound=BootError | CloudInitError)

#: Power states in which no boot can succeed, with the reason.
_ENDED = {
    PowerState.STOPPED: "the machine ended while it booted",
    PowerState.ABSENT: "the machine ended while it booted, and libvirt has forgotten it",
    PowerState.PAUSED: "QEMU paused the machine, because it cannot write to its disks: make room on "
    "the host",
}


class BootWatch:
    """The state of a guest as it is seen from outside.

    Args:
        name: The instance's name, for messages.
        console: Its console.
        power_state: Returns the power state of its VM.
    """

    def __init__(self, name: str, console: Console, power_state: Callable[[], PowerState]) -> None:
        self.name = name
        self.console = console
        self._power_state = power_state

    def milestone(self) -> str:
        """Returns how far the boot got."""
        return self.console.milestone()

    def check(self) -> None:
        """Checks that the guest may still come up.

        Raises:
            KernelPanicError: The kernel panicked.
            NoBootError: Nothing to boot was found, or the VM stopped.
        """
        trouble = self.console.trouble()
        if trouble == "panic":
            raise self.failure(
                KernelPanicError, f"the kernel panicked; the boot {self.milestone()}"
            )
        what = "found nothing to boot" if trouble == "no boot" else _ENDED.get(self._power_state())
        if what is not None:
            raise self.failure(NoBootError, f"{what}; {self.milestone()}")

    def failure(self, kind: type[_E], message: str) -> _E:
        """Returns an error of the instance, with the end of its console as evidence."""
        return kind(
            message,
            instance=self.name,
            console_tail=self.console.tail(),
            log=self.console.path,
        )
