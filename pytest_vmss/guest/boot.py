"""Waits for a guest's boot, and proves it by a new boot id (E1, E5, O2)."""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import replace

from pytest_vmss.clock import wait_for
from pytest_vmss.errors import (
    GuestCommandError,
    GuestUnreachableError,
    NotProvisionedError,
    WaitTimeoutError,
)
from pytest_vmss.guest.boot_facts import FACTS, BootFacts, parse_facts
from pytest_vmss.guest.connection import ANSWER_BYTES, Connection
from pytest_vmss.guest_platform.sightings import Sightings

__all__ = ["Boot"]

_BOOT_ID = re.compile(r"[0-9a-f-]{8,64}")
#: Seconds between two attempts to log in while a guest boots.
_PATIENCE_S = 6.0
#: The same once a guest has reported that it is ready; its SSH server starts later.
_AFTER_READY_S = 0.5


class Boot:
    """The boot of a guest, from its start until SSH answers.

    Args:
        connection: The connection to the guest.
        agent_connected: Whether its guest agent has connected.
        sightings: Returns what Azure's platform saw of it; None if it has no platform.
    """

    def __init__(
        self,
        connection: Connection,
        *,
        agent_connected: Callable[[], bool],
        sightings: Callable[[], Sightings | None] = lambda: None,
    ) -> None:
        self._connection = connection
        self._agent_connected = agent_connected
        self._sightings = sightings
        self._clock = connection.clock
        self._next_try = self._clock.monotonic() + _PATIENCE_S

    def wait(self, previous_boot_id: str | None, *, timeout: float) -> BootFacts:
        """Waits until SSH answers from a new boot.

        Args:
            previous_boot_id: Id of the previous boot, which does not count.
            timeout: In seconds.

        Returns:
            What the guest reports about itself.

        Raises:
            KernelPanicError: The kernel panicked.
            NoBootError: Nothing to boot was found, or the VM stopped.
            NotProvisionedError: The guest reported that it could not be provisioned (O2).
            GuestUnreachableError: SSH did not answer in time, or the guest did not report that
                it is ready.
        """
        watch = self._connection.watch

        def probe() -> BootFacts | None:
            watch.check()
            if not self._is_provisioned(previous_boot_id) or not self._is_worth_trying():
                return None
            return self._facts(previous_boot_id)

        try:
            return wait_for(
                f"{watch.name} to boot and answer over SSH",
                probe,
                timeout=timeout,
                clock=self._clock,
                describe=watch.milestone,
            )
        except WaitTimeoutError as error:
            raise watch.failure(
                GuestUnreachableError,
                f"{self._missing(previous_boot_id)} within {timeout:.0f} s; the boot "
                f"{watch.milestone()}",
            ) from error

    def _facts(self, previous_boot_id: str | None) -> BootFacts | None:
        """Asks the guest what it is; None if it does not answer from a new boot."""
        shell = self._connection.connect()
        if shell is None:
            return None
        try:
            told = shell.check(FACTS, timeout=self._connection.login_limit, most=ANSWER_BYTES)
        except GuestCommandError:
            self._connection.close()
            return None
        facts = parse_facts(told)
        if not _BOOT_ID.fullmatch(facts.boot_id):
            self._connection.close()  # it proves no boot yet, so try again
            return None
        if facts.boot_id == previous_boot_id:
            self._connection.close()  # the old boot, on its way down
            return None
        return replace(facts, host_key=shell.host_key)

    def _is_provisioned(self, previous_boot_id: str | None) -> bool:
        """Whether the guest has reported to Azure's wire server that it is ready (O2).

        It does so at the first boot of an OS disk only; other guests never do.

        Raises:
            NotProvisionedError: It has reported that it is not.
        """
        seen = self._sightings()
        if seen is None or previous_boot_id is not None:
            return True
        if seen.health is None or not seen.health.is_verdict:
            return False
        if seen.health.state == "Ready":
            # Its network is up, so its kernel refuses what comes too early, at no cost.
            self._next_try = min(self._next_try, self._clock.monotonic() + _AFTER_READY_S)
            return True
        told = " ".join(filter(None, (seen.health.sub_status, seen.health.description)))
        raise self._connection.watch.failure(
            NotProvisionedError,
            f"the guest reported that it could not be provisioned: {told or 'without a reason'}",
        )

    def _missing(self, previous_boot_id: str | None) -> str:
        """What did not happen at a boot, in words."""
        seen = self._sightings()
        if seen is None or previous_boot_id is not None:
            return "did not answer over SSH"
        if seen.health is not None and seen.health.is_verdict:
            return "did not answer over SSH"
        found = self._connection.watch.console.datasource()
        return f"did not report that it is provisioned ({seen.hint(found)})"

    def _is_worth_trying(self) -> bool:
        """Whether to try SSH now: always once the agent has connected, rarely before.

        QEMU's user network accepts connections before the guest does, and each of them costs it
        an sshd process later, in the middle of its boot. As not every image has an agent, try
        occasionally anyway.
        """
        if self._agent_connected():
            return True
        if self._clock.monotonic() < self._next_try:
            return False
        self._next_try = self._clock.monotonic() + _PATIENCE_S
        return True
