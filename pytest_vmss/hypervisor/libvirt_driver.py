"""The real hypervisor: QEMU through libvirt."""

from __future__ import annotations

import contextlib
import threading
from pathlib import Path

import libvirt
import libvirt_qemu

from pytest_vmss.errors import HypervisorError
from pytest_vmss.hypervisor import disks
from pytest_vmss.hypervisor.accelerator import Choice, choose_accelerator
from pytest_vmss.hypervisor.connection import Connection, open_connection
from pytest_vmss.hypervisor.domain import agent_connected_in, domain_xml, generation_in
from pytest_vmss.hypervisor.protocol import Machine, PowerState, Seed
from pytest_vmss.settings import Settings

__all__ = ["LibvirtHypervisor"]

_AGENT_TIMEOUT_S = 5
#: Where daemons keep their logs of domains.
_LOGS = {
    "qemu:///session": Path("~/.cache/libvirt/qemu/log"),
    "qemu:///system": Path("/var/log/libvirt/qemu"),
}
_DOMAIN_GONE = (libvirt.VIR_ERR_NO_DOMAIN, libvirt.VIR_ERR_OPERATION_INVALID)


class LibvirtHypervisor:
    """Implements :class:`~pytest_vmss.hypervisor.protocol.Hypervisor`.

    Args:
        settings: Which connection and accelerator to use.
        folder: Where the embedded driver keeps its files.

    Raises:
        HostError: libvirt does not answer; nothing was changed.
    """

    def __init__(self, settings: Settings, folder: Path) -> None:
        self.choice: Choice = choose_accelerator(settings.accelerator)
        self._factor = settings.timeout_factor or self.choice.slow_factor
        self._connection: Connection = open_connection(
            settings.connect, folder=folder, cache=settings.cache_dir
        )
        self._define_lock = threading.Lock()

    @property
    def uri(self) -> str:
        """The connection's URI."""
        return self._connection.uri

    @property
    def accelerator(self) -> str:
        """``kvm`` or ``tcg``."""
        return self.choice.accelerator

    @property
    def slow_factor(self) -> float:
        """By how much guests are slower than under KVM."""
        return self._factor

    def create_data_disk(self, path: Path, size_gib: int) -> None:
        """Makes an empty data disk unless there is one."""
        disks.create_data_disk(path, size_gib)

    def create_os_disk(self, path: Path, image: Path, size_gib: int | None) -> None:
        """Makes a fresh copy-on-write disk on an image."""
        disks.create_os_disk(path, image, size_gib)

    def write_seed(self, path: Path, seed: Seed) -> None:
        """Writes a NoCloud disk with mode 0600."""
        disks.write_seed(path, seed)

    def start(self, machine: Machine) -> None:
        """Defines the domain anew and starts it.

        Raises:
            HypervisorError: libvirt refused; the message is its own.
        """
        running = self.running_generation(machine.name)
        if running == machine.generation:
            return
        if running is not None:
            self.power_off(machine.name)
        xml = domain_xml(
            machine, accelerator=self.choice.accelerator, run_as=self._connection.run_as
        )
        machine.agent.unlink(missing_ok=True)
        try:
            with self._define_lock:
                domain = self._connection.libvirt.defineXML(xml)
            domain.create()
        except libvirt.libvirtError as refused:
            raise HypervisorError(f"{machine.name} cannot be started: {refused}") from refused

    def state(self, name: str) -> PowerState:
        """Whether a machine runs."""
        domain = self._find(name)
        if domain is None:
            return PowerState.ABSENT
        return PowerState.RUNNING if self._is_active(domain) else PowerState.STOPPED

    def running_generation(self, name: str) -> int | None:
        """The generation that a machine runs on; None where it does not run."""
        domain = self._find(name)
        if domain is None or not self._is_active(domain):
            return None
        try:
            return generation_in(domain.XMLDesc())
        except libvirt.libvirtError:
            return None  # it has just ended

    def agent_connected(self, name: str) -> bool:
        """Whether the guest agent has opened its channel."""
        domain = self._find(name)
        if domain is None or not self._is_active(domain):
            return False
        try:
            return agent_connected_in(domain.XMLDesc())
        except libvirt.libvirtError:
            return False  # it has just ended

    def request_stop(self, name: str) -> None:
        """Asks the guest to shut down: over its agent, and by ACPI where that fails."""
        domain = self._find(name)
        if domain is None:
            return
        try:
            domain.agentSetResponseTimeout(_AGENT_TIMEOUT_S)
            domain.shutdownFlags(libvirt.VIR_DOMAIN_SHUTDOWN_GUEST_AGENT)
        except libvirt.libvirtError as silent:
            if silent.get_error_code() in _DOMAIN_GONE and not self._is_active(domain):
                return
            with contextlib.suppress(libvirt.libvirtError):  # it may end this very moment
                domain.shutdownFlags(libvirt.VIR_DOMAIN_SHUTDOWN_ACPI_POWER_BTN)

    def power_off(self, name: str) -> None:
        """Cuts a machine's power.

        Raises:
            HypervisorError: libvirt could not end its process.
        """
        domain = self._find(name)
        if domain is None:
            return
        try:
            domain.destroy()
        except libvirt.libvirtError as refused:
            if refused.get_error_code() not in _DOMAIN_GONE:
                raise HypervisorError(f"{name} cannot be powered off: {refused}") from refused

    def remove(self, name: str) -> None:
        """Cuts a machine's power and forgets it.

        Raises:
            HypervisorError: libvirt refused.
        """
        self.power_off(name)
        domain = self._find(name)
        if domain is None:
            return
        try:
            domain.undefine()
        except libvirt.libvirtError as refused:
            if refused.get_error_code() != libvirt.VIR_ERR_NO_DOMAIN:
                raise HypervisorError(f"{name} cannot be undefined: {refused}") from refused
        self._remove_log(name)

    def machines(self, prefix: str) -> list[str]:
        """Names of all machines that start so."""
        return sorted(
            domain.name()
            for domain in self._connection.libvirt.listAllDomains()
            if domain.name().startswith(prefix)
        )

    def agent(self, name: str, command: str, *, timeout: int = _AGENT_TIMEOUT_S) -> str:
        """Asks the guest agent something.

        Args:
            name: The machine.
            command: The agent's JSON.
            timeout: Limit in seconds.

        Returns:
            The agent's JSON.

        Raises:
            HypervisorError: The agent does not answer in time, or refuses.
        """
        domain = self._find(name)
        if domain is None:
            raise HypervisorError(f"there is no machine {name}")
        try:
            answer: str = libvirt_qemu.qemuAgentCommand(domain, command, timeout, 0)
        except libvirt.libvirtError as silent:
            raise HypervisorError(f"the guest agent of {name} failed: {silent}") from silent
        return answer

    def close(self) -> None:
        """Ends the connection; machines run on."""
        self._connection.close()

    def _find(self, name: str) -> libvirt.virDomain | None:
        try:
            return self._connection.libvirt.lookupByName(name)
        except libvirt.libvirtError as missing:
            if missing.get_error_code() == libvirt.VIR_ERR_NO_DOMAIN:
                return None
            raise HypervisorError(f"libvirt does not answer: {missing}") from missing

    @staticmethod
    def _is_active(domain: libvirt.virDomain) -> bool:
        try:
            return bool(domain.isActive())
        except libvirt.libvirtError:
            return False

    def _remove_log(self, name: str) -> None:
        """Removes a daemon's log of a domain, which would outlive it."""
        folder = _LOGS.get(self.uri)
        if folder is not None:
            with contextlib.suppress(PermissionError):
                (folder.expanduser() / f"{name}.log").unlink(missing_ok=True)
