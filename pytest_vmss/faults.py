"""Faults that a test brings about on one instance, and mends again.

Each is a context manager: the fault is there inside the block and mended after it,
also where the block fails. An instance that is swapped, restarted or removed
meanwhile has lost its fault; then there is nothing to mend.
"""

from __future__ import annotations

import contextlib
import re
import shlex
import threading
from collections.abc import Callable, Iterator

from pytest_vmss.errors import HypervisorError, InstanceError
from pytest_vmss.guest import Shell
from pytest_vmss.hypervisor import Hypervisor

__all__ = ["Faults"]

_PERIOD_S = 0.2
_UNIT = re.compile(r"^[A-Za-z0-9:_.@\\-]{1,255}$")

# A sparse disk fills on the host as it fills in the guest: MiB after MiB, and root's reserve too.
_FILL = """\
set -eu
file={path}/.vmss-filled
fallocate -l "$(( $(stat -f -c '%a * %S' {path}) ))" "$file" 2> /dev/null || :
cat /dev/zero >> "$file" 2> /dev/null || :
sync "$file"
"""
_FILL_LIMIT_S = 600.0


class Faults:
    """Faults of one instance.

    Args:
        name: The instance's.
        domain: Its machine's name.
        hypervisor: Gives the connection to the hypervisor.
        shell: Gives an SSH connection to it.
    """

    def __init__(
        self,
        name: str,
        domain: str,
        *,
        hypervisor: Callable[[], Hypervisor],
        shell: Callable[[], Shell],
    ) -> None:
        self.name = name
        self._domain = domain
        self._get_hypervisor = hypervisor
        self._shell = shell

    @property
    def _hypervisor(self) -> Hypervisor:
        return self._get_hypervisor()

    def kill(self) -> None:
        """Cuts its power, as when the machine under it dies; :meth:`ScaleSet.start` mends it."""
        self._hypervisor.power_off(self._domain)

    @contextlib.contextmanager
    def paused(self) -> Iterator[None]:
        """Halts its processors: it is there, and answers nothing.

        Raises:
            HypervisorError: It does not run.
        """
        self._hypervisor.pause(self._domain)
        try:
            yield
        finally:
            with contextlib.suppress(HypervisorError):
                self._hypervisor.unpause(self._domain)

    @contextlib.contextmanager
    def network_cut(self) -> Iterator[None]:
        """Pulls its network cable; the guest agent, which needs none, still answers.

        Raises:
            HypervisorError: It does not run.
        """
        self._hypervisor.set_link(self._domain, up=False)
        try:
            yield
        finally:
            with contextlib.suppress(HypervisorError):
                self._hypervisor.set_link(self._domain, up=True)

    @contextlib.contextmanager
    def slowed(self, share: float = 0.25) -> Iterator[None]:
        """Gives its processors only a share of their time.

        Args:
            share: From 0 to 1.

        Raises:
            ValueError: No such share.
            HypervisorError: It does not run.
        """
        if not 0 < share < 1:
            raise ValueError(f"the share must be between 0 and 1; given {share}")
        end = threading.Event()
        hypervisor = self._hypervisor
        hypervisor.pause(self._domain)  # tells at once where it does not run

        def halt_and_go() -> None:
            with contextlib.suppress(HypervisorError):  # it has gone
                while not end.wait(_PERIOD_S * (1 - share)):
                    hypervisor.unpause(self._domain)
                    if end.wait(_PERIOD_S * share):
                        break
                    hypervisor.pause(self._domain)

        thread = threading.Thread(target=halt_and_go, name=f"slow-{self.name}", daemon=True)
        thread.start()
        try:
            yield
        finally:
            end.set()
            thread.join()
            with contextlib.suppress(HypervisorError):
                hypervisor.unpause(self._domain)

    @contextlib.contextmanager
    def disk_filled(self, path: str = "/") -> Iterator[None]:
        """Fills the file system that holds a folder, to its last byte.

        Mind that it grows the disk's file on the host by as much.

        Args:
            path: A folder of the guest.

        Raises:
            GuestUnreachableError: The instance does not answer.
        """
        folder = shlex.quote(path.rstrip("/"))
        script = _FILL.format(path=folder if folder != "''" else "/")
        self._shell().check(script, sudo=True, timeout=_FILL_LIMIT_S)
        try:
            yield
        finally:
            with contextlib.suppress(InstanceError):
                self._shell().check(f"rm -f {folder}/.vmss-filled", sudo=True)

    @contextlib.contextmanager
    def without(self, unit: str) -> Iterator[None]:
        """Stops a systemd unit, such as the application; starts it again afterwards.

        Args:
            unit: Its name.

        Raises:
            ValueError: No name of a unit.
            GuestCommandError: There is none of that name.
            GuestUnreachableError: The instance does not answer.
        """
        if not _UNIT.match(unit):
            raise ValueError(f"{unit!r} is no name of a systemd unit")
        self._shell().check(f"systemctl stop -- {shlex.quote(unit)}", sudo=True)
        try:
            yield
        finally:
            with contextlib.suppress(InstanceError):
                self._shell().check(f"systemctl start -- {shlex.quote(unit)}", sudo=True)
