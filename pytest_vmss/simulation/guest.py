"""A guest in memory, with the behaviour of its image version (simulation ring)."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Iterator
from enum import StrEnum
from pathlib import Path

from pytest_vmss.clock import Clock
from pytest_vmss.errors import (
    CloudInitError,
    GuestUnreachableError,
    KernelPanicError,
    NoBootError,
    NotProvisionedError,
)
from pytest_vmss.guest.boot_facts import BootFacts
from pytest_vmss.guest.check import Check, run_function_check
from pytest_vmss.guest.cloud_init import CloudInitResult
from pytest_vmss.guest.extensions import find_handler, timed_out
from pytest_vmss.guest.extensions.application_health import STATUS_FILE
from pytest_vmss.guest.extensions.report import described
from pytest_vmss.guest.logs import GuestLog
from pytest_vmss.guest.shell import Shell
from pytest_vmss.model import Extension, is_application_health
from pytest_vmss.model.extension_result import ExtensionResult
from pytest_vmss.simulation.clock import preempt
from pytest_vmss.simulation.hypervisor import SimulatedDisk, SimulatedHypervisor

__all__ = ["Behaviour", "SimulatedGuest"]

_EXIT = re.compile(r"exit (\d+)")
_BOOT_S = 30.0
_SILENT_S = 270.0
_CLOUD_INIT_S = 8.0
_EXTENSION_S = 1.0
_SYNC_S = 0.1
_WAKE_S = 0.5
_LOGS_S = 0.5
#: Seconds of real time after which a health function counts as hanging.
_CHECK_S = 60.0


class Behaviour(StrEnum):
    """How the instances of an image version behave."""

    GOOD = "good"
    PANICS = "panics"
    CLOUD_INIT_FAILS = "cloud-init fails"
    CLOUD_INIT_DEGRADED = "cloud-init is degraded"
    NOT_READY = "reports NotReady to Azure's wire server"
    SILENT = "reports nothing to Azure's wire server"
    DVD_UNREADABLE = "cannot read Azure's provisioning DVD"
    EXTENSION_FAILS = "extension fails"
    UNHEALTHY = "unhealthy"


class SimulatedGuest:
    """Implements :class:`~pytest_vmss.guest.Guest`.

    Args:
        name: The instance's name.
        domain: Its machine's name.
        generation: Number of the OS disk that is expected to run.
        version: Its image version.
        behaviour: Returns how it behaves.
        hypervisor: The hypervisor on which its machine runs.
        clock: The clock on which its actions take time.
        runs: Counts every execution of custom data and of extensions: by instance, number
            of the OS disk, and what was run.
        listening: Returns the ports on which it listens.
    """

    def __init__(
        self,
        name: str,
        *,
        domain: str,
        generation: int,
        version: str,
        behaviour: Callable[[], Behaviour],
        hypervisor: SimulatedHypervisor,
        clock: Clock,
        runs: dict[tuple[str, int, str], int],
        listening: Callable[[], set[int]] = lambda: {22},
    ) -> None:
        self.name = name
        self._domain = domain
        self._generation = generation
        self._version = version
        self._behaviour = behaviour
        self._hypervisor = hypervisor
        self._clock = clock
        self._runs = runs
        self._listening = listening

    def _alive(self) -> None:
        preempt(self._clock)
        if self._hypervisor.running_generation(self._domain) != self._generation:
            raise NoBootError("the machine ended while it booted", instance=self.name)

    @property
    def _disk(self) -> SimulatedDisk:
        """The disk that the machine runs on, which holds all of the guest's state."""
        return self._hypervisor.disks[str(self._hypervisor.defined[self._domain].os_disk)]

    def _once(self, what: str, run: str = "") -> None:
        """Runs something, unless a record on the disk says that this run was started."""
        if (what, run) in self._disk.ran:
            return
        self._disk.ran.add((what, run))
        self._count(what if run in ("", "1") else f"{what} {run}")

    def _count(self, what: str) -> None:
        key = (self.name, self._generation, what)
        self._runs[key] = self._runs.get(key, 0) + 1

    def _half_done(self) -> None:
        """Called when an effect is half done: a place for tests to simulate a kill."""

    def wait_boot(self, previous_boot_id: str | None) -> BootFacts:
        """Boots, or panics."""
        self._alive()
        self._clock.sleep(_BOOT_S)
        self._alive()
        if self._behaviour() is Behaviour.PANICS:
            raise KernelPanicError(
                "the kernel panicked",
                instance=self.name,
                console_tail="Kernel panic - not syncing: Attempted to kill init!",
                log=Path("console.log"),
            )
        self._report()
        boot_id = f"boot-{self._hypervisor.boots[self._domain]}"
        if boot_id == previous_boot_id:
            raise NoBootError("it is still the boot before", instance=self.name)
        return BootFacts(boot_id, f"kernel-{self._version}", self._version)

    def _report(self) -> None:
        """Reports to Azure's wire server that it is ready, or not, or never does (O2)."""
        match self._behaviour():
            case Behaviour.NOT_READY:
                raise NotProvisionedError(
                    "the guest reported that it could not be provisioned: ProvisioningFailed",
                    instance=self.name,
                )
            case Behaviour.SILENT:
                self._clock.sleep(_SILENT_S)
                raise GuestUnreachableError(
                    "did not report that it is provisioned", instance=self.name
                )

    def wake(self) -> str:
        """Only takes time; returns the id of its boot."""
        self._alive()
        self._clock.sleep(_WAKE_S)
        self._alive()
        return f"boot-{self._hypervisor.boots[self._domain]}"

    def wait_cloud_init(self) -> CloudInitResult:
        """Runs the custom data, once for the OS disk."""
        self._alive()
        self._clock.sleep(_CLOUD_INIT_S)
        if self._behaviour() is Behaviour.CLOUD_INIT_FAILS:
            raise CloudInitError("cloud-init ended in error", instance=self.name)
        if self._behaviour() is Behaviour.DVD_UNREADABLE:
            return CloudInitResult("done", datasource="DataSourceAzure [seed=IMDS]")
        self._once("custom data")
        self._half_done()
        if self._behaviour() is Behaviour.CLOUD_INIT_DEGRADED:
            return CloudInitResult("degraded", ("Failed to mount",))
        return CloudInitResult("done")

    def logs(self, names: Iterable[str], *, timeout: float, each: float) -> Iterator[GuestLog]:
        """Yields its journal: what runs, and what was run on its disk; it has no other logs."""
        self._alive()
        if self._behaviour() in (Behaviour.PANICS, Behaviour.SILENT):
            raise GuestUnreachableError("does not answer over SSH", instance=self.name)
        self._clock.sleep(min(_LOGS_S, timeout, each))
        self._alive()
        ran = sorted({what for what, _ in self._disk.ran})
        lines = [f"image version {self._version}: {self._behaviour()}", *(f"ran {w}" for w in ran)]
        texts = {"journal.log": "\n".join((*lines, ""))}
        return iter([GuestLog(name, texts.get(name, "")) for name in names])

    def shell(self) -> Shell:
        """Always raises: a simulated guest has no shell.

        Raises:
            GuestUnreachableError: Always.
        """
        raise GuestUnreachableError(
            f"{self.name} is simulated, and has no shell; take real VMs for tests that log in",
            instance=self.name,
        )

    def run_extension(self, extension: Extension, run: str, timeout: float) -> ExtensionResult:
        """Runs an extension once per run; the command ``hang`` never ends."""
        self._alive()
        self._once(extension.name, run)
        if (extension.settings or {}).get("commandToExecute") == "hang":
            self._clock.sleep(timeout)
            return timed_out(extension)
        self._clock.sleep(_EXTENSION_S)
        self._alive()
        self._half_done()
        code = self._exit_code(extension)
        return ExtensionResult.of(
            extension,
            version=find_handler(extension.publisher, extension.type).version,
            status="error" if code else "success",
            exit_code=code,
        )

    def remove_extension(self, extension: Extension, timeout: float) -> str:  # noqa: ARG002
        """Forgets its runs; returns its setting ``cannot be removed`` as the error, if any."""
        self._alive()
        self._clock.sleep(_EXTENSION_S)
        self._alive()
        disk = self._disk
        disk.ran = {(what, run) for what, run in disk.ran if what != extension.name}
        mine = [key for key in self._runs if key[:2] == (self.name, self._generation)]
        number = 1 + sum(what.startswith(f"no {extension.name} ") for _, _, what in mine)
        for key in mine:
            what = key[2]
            if what.partition(" ")[0] == extension.name and " before " not in what:
                self._runs[*key[:2], f"{what} before {number}"] = self._runs.pop(key)
        self._count(f"no {extension.name} {number}")
        self._half_done()
        return str((extension.settings or {}).get("cannot be removed", ""))

    def report_extension(self, extension: Extension, last: ExtensionResult) -> ExtensionResult:
        """What its status file reports, if it writes one."""
        self._alive()
        text = self._hypervisor.read_file(self._domain, STATUS_FILE)
        if text is None or not is_application_health(extension):
            return last
        return described(last, text, extension)

    def _exit_code(self, extension: Extension) -> int:
        """The exit code of its command: N for ``exit N``, else 0."""
        if self._behaviour() is Behaviour.EXTENSION_FAILS:
            return 1
        return _exit_code(str((extension.settings or {}).get("commandToExecute", "")))

    def sync(self, *, patient: bool = True) -> None:  # noqa: ARG002
        """Only takes time."""
        self._alive()
        self._clock.sleep(_SYNC_S)

    def check(self, check: Check) -> tuple[bool, str]:
        """Runs a command as :meth:`run_extension` does, or calls a function with this guest."""
        self._alive()
        if isinstance(check, str):
            code = _exit_code(check)
            return code == 0, f"`{check}` ended with status {code}"
        return run_function_check(check, self, timeout=_CHECK_S)

    def listening(self) -> set[int]:
        """The ports of the constructor's ``listening``."""
        self._alive()
        return self._listening()

    def close(self) -> None:
        """Does nothing."""


def _exit_code(command: str) -> int:
    """The exit code of a command: N for ``exit N``, else 0."""
    found = _EXIT.fullmatch(command)
    return int(found[1]) if found else 0
