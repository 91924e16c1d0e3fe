"""Fault injection: faults that a test causes on one instance.

Each is a context manager: the fault lasts for the block and is repaired after it, even if
the block fails or the fault itself failed half-way. An instance that is swapped, restarted
or removed in the meantime has lost its fault, and there is nothing to repair; a partition is
the network's, and stays. A fault that
cannot be repaired is reported by an event and a warning, or by a note on the exception that
is being raised.
"""

from __future__ import annotations

import contextlib
import shlex
import threading
import warnings
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager
from typing import Protocol

from pytest_vmss.errors import error_text
from pytest_vmss.guest.runner import Runner
from pytest_vmss.hypervisor import Hypervisor, PowerState
from pytest_vmss.model.arguments import check_folder, check_share, check_siblings, check_unit

__all__ = ["Faults"]

_PERIOD_S = 0.2

# cat fills what fallocate leaves, including root's reserve; what is written grows the sparse
# file on the host too. The lock makes the repair wait for a fill whose connection was lost.
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
#: Seconds for the last call of a thread that slows a machine down.
_SLOW_END_S = 120.0


class Sibling(Protocol):
    """Another instance of the set."""

    @property
    def name(self) -> str:
        """Azure's name, ``{set}_{id}``."""

    @property
    def instance_id(self) -> str:
        """Azure's instance id."""


class Faults:
    """Faults of one instance.

    Args:
        name: The instance's name.
        domain: The name of its libvirt domain.
        hypervisor: Returns the connection to the hypervisor.
        shell: Returns an SSH connection to the instance.
        cut: Cuts it off from the instances of the numbers given, or from all if there is none.
        number_of: The number of an instance of its set; None for anything else.
        tell: Called with the kind of an event and its message: ``fault`` where a fault begins and
            ends, ``warning`` for one that could not be repaired.
    """

    def __init__(
        self,
        name: str,
        domain: str,
        *,
        hypervisor: Callable[[], Hypervisor],
        shell: Callable[[], Runner],
        cut: Callable[[frozenset[int]], AbstractContextManager[None]] = lambda _others: (
            contextlib.nullcontext()
        ),
        number_of: Callable[[object], int | None] = lambda _other: None,
        tell: Callable[[str, str], None] = lambda _kind, _message: None,
    ) -> None:
        self.name = name
        self._domain = domain
        self._get_hypervisor = hypervisor
        self._shell = shell
        self._cut = cut
        self._number_of = number_of
        self._tell = tell

    @property
    def _hypervisor(self) -> Hypervisor:
        return self._get_hypervisor()

    def partitioned(self, *others: Sibling) -> AbstractContextManager[None]:
        """Cuts it off from other instances of its set; the lab and clients still reach it (A9).

        The partition stays when an instance on either side is swapped, restarted or restored. It
        is over at the end of the block, and when the test's process ends, however that ends.

        Args:
            others: The instances that it is cut off from; if none is given, all others of its set,
                those that are added meanwhile too.

        Raises:
            ModelError: One of the others is no instance, or one of another set.
            NotFoundError: The set has no private network, or an instance is not one of its others.
            HostError: The frames of the set's instances cannot be carried.
        """
        scale_set = self.name.rpartition("_")[0]
        numbers = check_siblings(others, "others", scale_set, self._number_of)
        return self._partitioned(frozenset(numbers))

    @contextlib.contextmanager
    def _partitioned(self, others: frozenset[int]) -> Iterator[None]:
        cut = self._cut(others)
        heal = contextlib.ExitStack()
        with self._fault("partitioned", lambda: heal.enter_context(cut), heal.close):
            yield

    def kill(self) -> None:
        """Cuts its power, as if its host failed; :meth:`ScaleSet.start` brings it back."""
        self._hypervisor.power_off(self._domain)
        self._report("fault", "killed: its power is cut")

    @contextlib.contextmanager
    def _fault(
        self, what: str, begin: Callable[[], object], mend: Callable[[], object]
    ) -> Iterator[None]:
        """Causes a fault for a block, and then repairs it, however much of it took effect.

        Args:
            what: The fault in words, for messages.
            begin: Causes it; may fail half-way.
            mend: Repairs it; harmless if there is nothing to repair.
        """
        begun, left = False, ""
        try:
            begin()
            begun = True
            self._report("fault", f"{what}: begins")
            yield
        except BaseException as error:
            left = self._mended(what, mend)
            if left:
                error.add_note(left)
            raise
        else:
            left = self._mended(what, mend)
            if left:
                warnings.warn(left, stacklevel=3)
        finally:
            if begun and not left:
                self._report("fault", f"{what}: is over")

    def _mended(self, what: str, mend: Callable[[], object]) -> str:
        """Repairs the fault; returns what may be left of it, in words, or an empty string."""
        try:
            mend()
        except Exception as error:  # noqa: BLE001 - whatever failed, the fault may remain
            if not self._runs():
                return ""  # it has lost its fault
            left = f"{self.name} may still be {what}, for mending it failed: {error_text(error)}"
            self._report("warning", left)
            return left
        return ""

    def _report(self, kind: str, message: str) -> None:
        """Writes an event; a store that refuses it must not end a fault or hide its failure."""
        with contextlib.suppress(Exception):
            self._tell(kind, message)

    def _runs(self) -> bool:
        """Whether its machine may be running; True if that is unknown."""
        try:
            state = self._hypervisor.state(self._domain)
        except Exception:  # noqa: BLE001 - unknown: assume that it runs
            return True
        return state not in (PowerState.STOPPED, PowerState.ABSENT)

    @contextlib.contextmanager
    def paused(self) -> Iterator[None]:
        """Pauses its virtual CPUs: the machine exists, but answers nothing.

        Raises:
            HypervisorError: It is not running.
        """
        with self._fault(
            "paused",
            lambda: self._hypervisor.pause(self._domain),
            lambda: self._hypervisor.unpause(self._domain),
        ):
            yield

    @contextlib.contextmanager
    def network_cut(self) -> Iterator[None]:
        """Takes its network link down; the guest agent, which needs no network, still answers.

        Raises:
            HypervisorError: It is not running.
        """
        with self._fault(
            "cut off",
            lambda: self._hypervisor.set_link(self._domain, up=False),
            lambda: self._hypervisor.set_link(self._domain, up=True),
        ):
            yield

    def slowed(self, share: float = 0.25) -> AbstractContextManager[None]:
        """Slows it down: its virtual CPUs run only for a share of the time.

        Args:
            share: The share, between 0 and 1, both excluded.

        Raises:
            ModelError: The share is no such number.
            HypervisorError: It is not running.
        """
        return self._slowed(check_share(share, "share"))

    @contextlib.contextmanager
    def _slowed(self, share: float) -> Iterator[None]:
        end = threading.Event()
        hypervisor = self._hypervisor

        thread = threading.Thread(
            target=self._halt_and_go, args=(share, end), name=f"slow-{self.name}", daemon=True
        )

        def begin() -> None:
            hypervisor.pause(self._domain)  # raises at once if it is not running
            thread.start()

        def mend() -> None:
            end.set()
            if thread.is_alive():
                thread.join(_SLOW_END_S)
            hypervisor.unpause(self._domain)
            if thread.is_alive():
                raise TimeoutError(f"the hypervisor did not answer within {_SLOW_END_S:.0f} s")

        with self._fault("slowed down or paused", begin, mend):
            yield

    def _halt_and_go(self, share: float, end: threading.Event) -> None:
        hypervisor = self._hypervisor
        while not end.wait(_PERIOD_S * (1 - share)):
            try:
                hypervisor.unpause(self._domain)
                if end.wait(_PERIOD_S * share):
                    return
                hypervisor.pause(self._domain)
            except Exception:  # noqa: BLE001 - the next try may succeed; else the repair reports it
                if not self._runs():
                    return  # it has lost its fault

    def disk_filled(self, path: str = "/") -> AbstractContextManager[None]:
        """Fills the file system that holds a folder, to its last byte.

        The disk's file on the host may grow by as much.

        Args:
            path: A folder of the guest.

        Raises:
            ModelError: The path is no absolute one.
            GuestUnreachableError: The instance does not answer.
        """
        return self._disk_filled(check_folder(path, "path"))

    @contextlib.contextmanager
    def _disk_filled(self, path: str) -> Iterator[None]:
        folder = shlex.quote(path.rstrip("/"))
        fill = _FILL.format(path=folder if folder != "''" else "/")
        empty = _EMPTY.format(path=folder)
        with self._fault(
            "filled up",
            lambda: self._shell().check(fill, sudo=True, timeout=_FILL_LIMIT_S),
            lambda: self._shell().check(empty, sudo=True, timeout=_FILL_LIMIT_S),
        ):
            yield

    def without(self, unit: str) -> AbstractContextManager[None]:
        """Stops a systemd unit, such as the application; starts it again afterwards.

        Args:
            unit: The unit's name.

        Raises:
            ModelError: No unit can have the name.
            GuestCommandError: There is no such unit.
            GuestUnreachableError: The instance does not answer.
        """
        return self._without(check_unit(unit, "unit"))

    @contextlib.contextmanager
    def _without(self, unit: str) -> Iterator[None]:
        name = shlex.quote(unit)
        with self._fault(
            f"without {unit}",
            lambda: self._shell().check(f"systemctl stop -- {name}", sudo=True),
            lambda: self._shell().check(f"systemctl start -- {name}", sudo=True),
        ):
            yield
