"""Faults that a test brings about on one instance, and mends again.

Each is a context manager: the fault is there inside the block and mended after it,
also where the block fails, or the fault itself failed half-way. An instance that is
swapped, restarted or removed meanwhile has lost its fault; then there is nothing to
mend. Where it cannot be mended that is told: by an event and a warning, or a note on
the error that is on its way.
"""

from __future__ import annotations

import contextlib
import re
import shlex
import threading
import warnings
from collections.abc import Callable, Iterator

from pytest_vmss.errors import error_text
from pytest_vmss.guest.shell import Runner
from pytest_vmss.hypervisor import Hypervisor, PowerState

__all__ = ["Faults"]

_PERIOD_S = 0.2
_UNIT = re.compile(r"[A-Za-z0-9:_.@\\-]{1,255}")

# A sparse disk fills on the host as it fills in the guest: MiB after MiB, and root's reserve too.
# Whoever mends waits for it to end, also where nobody hears of that any more.
_FILL = """\
set -eu
file={path}/.vmss-filled
exec 9> /run/vmss-filled.lock
flock 9
fallocate -l "$(( $(stat -f -c '%a * %S' {path}) ))" "$file" 2> /dev/null || :
cat /dev/zero >> "$file" 2> /dev/null || :
sync "$file"
"""
_EMPTY = """\
exec 9> /run/vmss-filled.lock
flock 9
rm -f {path}/.vmss-filled
"""
_FILL_LIMIT_S = 600.0
#: For the last call of a thread that slows a machine down.
_SLOW_END_S = 120.0


class Faults:
    """Faults of one instance.

    Args:
        name: The instance's.
        domain: Its machine's name.
        hypervisor: Gives the connection to the hypervisor.
        shell: Gives an SSH connection to it.
        tell: Told what could not be mended.
    """

    def __init__(
        self,
        name: str,
        domain: str,
        *,
        hypervisor: Callable[[], Hypervisor],
        shell: Callable[[], Runner],
        tell: Callable[[str], None] = lambda _: None,
    ) -> None:
        self.name = name
        self._domain = domain
        self._get_hypervisor = hypervisor
        self._shell = shell
        self._tell = tell

    @property
    def _hypervisor(self) -> Hypervisor:
        return self._get_hypervisor()

    def kill(self) -> None:
        """Cuts its power, as when the machine under it dies; :meth:`ScaleSet.start` mends it."""
        self._hypervisor.power_off(self._domain)

    @contextlib.contextmanager
    def _fault(
        self, what: str, begin: Callable[[], object], mend: Callable[[], object]
    ) -> Iterator[None]:
        """Brings a fault about for a block, and mends whatever of it has come to pass.

        Args:
            what: The fault in words, for what is told.
            begin: Brings it about; may fail half-way.
            mend: Mends it; harmless where there is nothing to mend.
        """
        try:
            begin()
            yield
        except BaseException as error:
            left = self._mended(what, mend)
            if left:
                error.add_note(left)
            raise
        left = self._mended(what, mend)
        if left:
            warnings.warn(left, stacklevel=3)

    def _mended(self, what: str, mend: Callable[[], object]) -> str:
        """Mends; what is left of the fault, in words."""
        try:
            mend()
        except Exception as error:  # noqa: BLE001 - whatever it is, the fault may be there
            if not self._runs():
                return ""  # it has lost its fault
            left = f"{self.name} may still be {what}, for mending it failed: {error_text(error)}"
            with contextlib.suppress(Exception):
                self._tell(left)
            return left
        return ""

    def _runs(self) -> bool:
        """Whether its machine may run."""
        try:
            state = self._hypervisor.state(self._domain)
        except Exception:  # noqa: BLE001 - nobody knows
            return True
        return state not in (PowerState.STOPPED, PowerState.ABSENT)

    @contextlib.contextmanager
    def paused(self) -> Iterator[None]:
        """Halts its processors: it is there, and answers nothing.

        Raises:
            HypervisorError: It does not run.
        """
        with self._fault(
            "paused",
            lambda: self._hypervisor.pause(self._domain),
            lambda: self._hypervisor.unpause(self._domain),
        ):
            yield

    @contextlib.contextmanager
    def network_cut(self) -> Iterator[None]:
        """Pulls its network cable; the guest agent, which needs none, still answers.

        Raises:
            HypervisorError: It does not run.
        """
        with self._fault(
            "cut off",
            lambda: self._hypervisor.set_link(self._domain, up=False),
            lambda: self._hypervisor.set_link(self._domain, up=True),
        ):
            yield

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

        thread = threading.Thread(
            target=self._halt_and_go, args=(share, end), name=f"slow-{self.name}", daemon=True
        )

        def begin() -> None:
            hypervisor.pause(self._domain)  # tells at once where it does not run
            thread.start()

        def mend() -> None:
            end.set()
            if thread.is_alive():
                thread.join(_SLOW_END_S)
            hypervisor.unpause(self._domain)
            if thread.is_alive():
                raise TimeoutError(f"the hypervisor did not answer within {_SLOW_END_S:.0f} s")

        with self._fault("paused", begin, mend):
            yield

    def _halt_and_go(self, share: float, end: threading.Event) -> None:
        hypervisor = self._hypervisor
        while not end.wait(_PERIOD_S * (1 - share)):
            try:
                hypervisor.unpause(self._domain)
                if end.wait(_PERIOD_S * share):
                    return
                hypervisor.pause(self._domain)
            except Exception:  # noqa: BLE001 - the next turn may succeed; mending tells
                if not self._runs():
                    return  # it has lost its fault

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
        fill = _FILL.format(path=folder if folder != "''" else "/")
        empty = _EMPTY.format(path=folder)
        with self._fault(
            "filled up",
            lambda: self._shell().check(fill, sudo=True, timeout=_FILL_LIMIT_S),
            lambda: self._shell().check(empty, sudo=True, timeout=_FILL_LIMIT_S),
        ):
            yield

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
        if not _UNIT.fullmatch(unit):
            raise ValueError(f"{unit!r} is no name of a systemd unit")
        name = shlex.quote(unit)
        with self._fault(
            f"without {unit}",
            lambda: self._shell().check(f"systemctl stop -- {name}", sudo=True),
            lambda: self._shell().check(f"systemctl start -- {name}", sudo=True),
        ):
            yield
