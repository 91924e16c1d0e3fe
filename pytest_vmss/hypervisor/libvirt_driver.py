"""The real hypervisor: QEMU through libvirt."""

from __future__ import annotations

import contextlib
import functools
import json
import threading
from collections.abc import Callable, Collection
from contextlib import AbstractContextManager
from dataclasses import replace
from pathlib import Path
from typing import Concatenate, ParamSpec, TypeVar

import libvirt
import libvirt_qemu

from pytest_vmss.clock import SystemClock, wait_for
from pytest_vmss.errors import HostError, HypervisorError, WaitTimeoutError
from pytest_vmss.guest_platform import launcher
from pytest_vmss.guest_platform.virtual_network import launcher as virtual_network
from pytest_vmss.guest_platform.virtual_network.config import VirtualNetwork
from pytest_vmss.guest_platform.virtual_network.launcher import partitioned
from pytest_vmss.host.accelerator import (
    SEVERAL_VCPUS,
    Choice,
    choose_accelerator,
    describe_cpu,
)
from pytest_vmss.hypervisor import disks
from pytest_vmss.hypervisor.access import Access
from pytest_vmss.hypervisor.connection import Connection, open_connection
from pytest_vmss.hypervisor.domain import (
    NIC,
    PRIVATE_NIC,
    agent_connected_in,
    domain_xml,
    generation_in,
)
from pytest_vmss.hypervisor.firmware import create_nvram, find_firmware
from pytest_vmss.hypervisor.layers import is_unwritten
from pytest_vmss.hypervisor.protocol import Machine, PowerState, Seed
from pytest_vmss.hypervisor.saved import copy_for, is_complete
from pytest_vmss.settings import Settings

__all__ = ["LibvirtHypervisor"]

_AGENT_TIMEOUT_S = 5
#: Where libvirt's daemons keep logs of domains.
_LOGS = {
    "qemu:///session": Path("~/.cache/libvirt/qemu/log"),
    "qemu:///system": Path("/var/log/libvirt/qemu"),
}
_HOST_BOOT = Path("/proc/sys/kernel/random/boot_id")
#: Seconds in which a restarted daemon must respond again.
_RECONNECT_S = 60.0
#: QEMU's error for a network card that a machine does not have.
_NO_DEVICE = "DeviceNotFound"
_DOMAIN_GONE = (libvirt.VIR_ERR_NO_DOMAIN, libvirt.VIR_ERR_OPERATION_INVALID)

_P = ParamSpec("_P")
_T = TypeVar("_T")


def _through_restarts(
    call: Callable[Concatenate[LibvirtHypervisor, _P], _T],
) -> Callable[Concatenate[LibvirtHypervisor, _P], _T]:
    """Retries a call on a new connection if libvirt's daemon went away meanwhile.

    All calls of the protocol are idempotent, and QEMU keeps running without libvirt.
    """

    @functools.wraps(call)
    def again(self: LibvirtHypervisor, /, *arguments: _P.args, **named: _P.kwargs) -> _T:
        used = self.connection
        try:
            return call(self, *arguments, **named)
        except (HostError, HypervisorError, libvirt.libvirtError):
            if used.alive:
                raise
            self.reconnect(used)
            return call(self, *arguments, **named)

    return again


def _unanswered(error: libvirt.libvirtError) -> HostError:
    """Returns the error for a failed query, which says nothing about the VM."""
    return HostError(f"libvirt does not answer: {error}; `vmss doctor` looks closer")


class LibvirtHypervisor:
    """Implements :class:`~pytest_vmss.hypervisor.protocol.Hypervisor`.

    Args:
        settings: Which connection and accelerator to use.
        folder: Folder for the embedded driver's files.
        access: What machines run as; None for the account of this process.

    Raises:
        HostError: libvirt does not respond; nothing was changed.
    """

    def __init__(self, settings: Settings, folder: Path, access: Access | None = None) -> None:
        account = None if access is None else access.account
        self.choice: Choice = choose_accelerator(settings.accelerator, account)
        self._access = access
        self._folder = folder
        self._factor = settings.timeout_factor or self.choice.slow_factor
        self._guest_network = settings.guest_network
        self._open = functools.partial(
            open_connection, settings.connect, folder=folder, cache=settings.cache_dir,
            account=account,
        )  # fmt: skip
        self.connection: Connection = self._open()
        self._define_lock = threading.Lock()
        self._reconnecting = threading.Lock()

    def reconnect(self, broken: Connection) -> None:
        """Replaces a broken connection by a new one, once for all threads.

        Raises:
            HostError: libvirt does not respond again in time.
        """
        with self._reconnecting:
            if self.connection is not broken:
                return  # another thread has reconnected

            def probe() -> Connection | None:
                try:
                    return self._open()
                except HostError:
                    return None

            try:
                self.connection = wait_for(
                    f"libvirt at {broken.uri} to answer again",
                    probe,
                    timeout=_RECONNECT_S,
                    clock=SystemClock(),
                )
            except WaitTimeoutError as error:
                raise HostError(
                    f"libvirt's daemon at {broken.uri} went away, and did not come back within "
                    f"{_RECONNECT_S:.0f} s; its machines run on: start it (`vmss doctor` looks "
                    "closer)"
                ) from error
            broken.close()

    @property
    def uri(self) -> str:
        """The connection's URI."""
        return self.connection.uri

    @property
    def accelerator(self) -> str:
        """``kvm`` or ``tcg``."""
        return self.choice.accelerator

    @property
    def slow_factor(self) -> float:
        """How many times slower guests are than under KVM."""
        return self._factor

    @property
    def most_vcpus(self) -> int | None:
        """One where QEMU cannot emulate several soundly.

        Raises:
            HostError: libvirt does not answer.
        """
        try:
            return self._most_vcpus
        except libvirt.libvirtError as error:
            raise _unanswered(error) from error

    @functools.cached_property
    def _most_vcpus(self) -> int | None:
        if self.accelerator == "kvm":
            return None
        return None if self.connection.libvirt.getVersion() >= SEVERAL_VCPUS else 1

    @property
    def host_boot(self) -> str:
        """The kernel's boot id, which all containers of a host share."""
        return _HOST_BOOT.read_text().strip()

    @property
    def fingerprint(self) -> str:
        """Versions of QEMU and libvirt, the accelerator, and under KVM the CPU and the kernel.

        Raises:
            HostError: libvirt does not answer.
        """
        try:
            versions = (self.connection.libvirt.getVersion(), libvirt.getVersion())
        except libvirt.libvirtError as error:
            raise _unanswered(error) from error
        return f"{versions} {describe_cpu(self.choice.accelerator)}"

    def create_data_disk(self, path: Path, size_gib: int) -> None:
        """Creates an empty data disk unless it exists."""
        disks.create_data_disk(path, size_gib)

    def create_os_disk(self, path: Path, image: Path, size_gib: int | None) -> None:
        """Creates a new copy-on-write disk on an image."""
        disks.create_os_disk(path, image, size_gib)

    def require_uefi(self) -> None:
        """Checks that the host has UEFI firmware."""
        find_firmware()

    def create_nvram(self, path: Path) -> None:
        """Creates the UEFI variables of a new OS disk."""
        create_nvram(path, find_firmware())

    def freeze_disk(self, path: Path, frozen: Path, image: str | None) -> None:
        """Gives a disk that no VM uses a second, read-only name."""
        disks.freeze_disk(path, frozen, image)

    def create_layer(self, path: Path, frozen: Path) -> None:
        """Creates a new copy-on-write disk on a frozen one."""
        disks.create_layer(path, frozen)

    def is_unwritten(self, path: Path, frozen: Path) -> bool:
        """Whether a layer on a frozen disk was never written to."""
        return is_unwritten(path, frozen)

    def write_seed(self, path: Path, seed: Seed) -> None:
        """Writes a NoCloud disk with mode 0600."""
        disks.write_seed(path, seed)

    def write_provisioning_dvd(self, path: Path, ovf_env: bytes) -> None:
        """Writes Azure's provisioning DVD with mode 0600."""
        disks.write_provisioning_dvd(path, ovf_env)

    @_through_restarts
    def start(self, machine: Machine) -> None:
        """Defines the domain anew and starts it, and the process that serves its platform.

        Raises:
            HypervisorError: libvirt refused; the message is its own.
            HostError: Its platform cannot be served.
        """
        running = self.running_generation(machine.name)
        if running != machine.generation:
            if running is not None:
                self.power_off(machine.name)
            self._start(machine)
        self._serve(machine)

    @staticmethod
    def _prepare(machine: Machine) -> None:
        """Prepares the networks of a VM that does not run."""
        if machine.platform is not None:
            launcher.prepare(machine.platform)
        if machine.network is not None:
            virtual_network.prepare(machine.network)

    @staticmethod
    def _serve(machine: Machine) -> None:
        """Serves the networks of a running VM, unless that is done already."""
        if machine.platform is not None:
            launcher.ensure(machine.platform)
        if machine.network is not None:  # last, since it sees at once which cables there are
            virtual_network.ensure(machine.network)

    def _start(self, machine: Machine) -> None:
        machine.agent.unlink(missing_ok=True)
        self._prepare(machine)
        try:
            self._grant(machine)
            self._define(self._xml(machine)).create()
        except (libvirt.libvirtError, OSError) as error:
            raise HypervisorError(f"{machine.name} cannot be started: {error}") from error

    def _grant(self, machine: Machine) -> None:
        if self._access is not None:
            self._access.grant(machine)

    def _xml(self, machine: Machine) -> str:
        vcpus = min(machine.vcpus, self._most_vcpus or machine.vcpus)
        return domain_xml(
            replace(machine, vcpus=vcpus),
            accelerator=self.choice.accelerator,
            run_as=self.connection.run_as,
            guest_network=self._guest_network,
            firmware=find_firmware() if machine.nvram else None,
        )

    def _define(self, xml: str) -> libvirt.virDomain:
        with self._define_lock:
            return self.connection.libvirt.defineXML(xml)

    @_through_restarts
    def save(self, name: str, memory: Path) -> None:
        """Saves a running VM's memory and devices into a file, and powers it off.

        Raises:
            HypervisorError: It is not running, or libvirt refused; it keeps running then.
        """
        domain, part = self._existing(name), memory.with_suffix(".part")
        if self._is_active(domain):
            try:
                domain.save(str(part))
            except libvirt.libvirtError as error:
                part.unlink(missing_ok=True)
                raise HypervisorError(f"{name} cannot be saved: {error}") from error
        elif memory.exists():
            return
        elif not is_complete(part):  # libvirt's daemon goes on if its caller is killed
            raise HypervisorError(f"{name} cannot be saved: it does not run")
        part.replace(memory)

    @_through_restarts
    def restore(self, machine: Machine, memory: Path) -> None:
        """Defines the domain anew and starts it from saved memory.

        Raises:
            HypervisorError: libvirt refused; the message is its own.
        """
        if self.running_generation(machine.name) != machine.generation:
            self.power_off(machine.name)
            machine.agent.unlink(missing_ok=True)
            self._prepare(machine)
            self._restore(machine, memory)
        self._memory_of(machine).unlink(missing_ok=True)  # of a process killed since it runs
        self._serve(machine)

    @staticmethod
    def _memory_of(machine: Machine) -> Path:
        """The copy of saved memory from which a VM is restored."""
        return machine.os_disk.with_name("memory.part")

    def _restore(self, machine: Machine, memory: Path) -> None:
        copy = self._memory_of(machine)
        try:
            self._grant(machine)
            copy_for(machine.name, machine.uuid, memory, copy)
            xml = self._xml(machine)
            self._define(xml)
            self.connection.libvirt.restoreFlags(str(copy), xml, libvirt.VIR_DOMAIN_SAVE_RUNNING)
        except OSError as error:
            raise HostError(f"{machine.name} cannot be restored: {error}") from error
        except libvirt.libvirtError as error:
            raise HypervisorError(f"{machine.name} cannot be restored: {error}") from error
        finally:
            copy.unlink(missing_ok=True)

    @_through_restarts
    def state(self, name: str) -> PowerState:
        """Returns the power state of a VM."""
        domain = self._find(name)
        if domain is None:
            return PowerState.ABSENT
        try:
            state, reason = domain.state()
        except libvirt.libvirtError as error:
            if error.get_error_code() in _DOMAIN_GONE:
                return PowerState.STOPPED
            raise _unanswered(error) from error
        if (state, reason) == (libvirt.VIR_DOMAIN_PAUSED, libvirt.VIR_DOMAIN_PAUSED_IOERROR):
            return PowerState.PAUSED
        return PowerState.RUNNING if self._is_active(domain) else PowerState.STOPPED

    @_through_restarts
    def running_generation(self, name: str) -> int | None:
        """Returns the generation that a VM is running on; None if it is not running."""
        xml = self._running_xml(name)
        return None if xml is None else generation_in(xml)

    @_through_restarts
    def agent_connected(self, name: str) -> bool:
        """Whether the guest agent has opened its channel."""
        xml = self._running_xml(name)
        return xml is not None and agent_connected_in(xml)

    @_through_restarts
    def request_stop(self, name: str) -> None:
        """Asks the guest to shut down: over its agent, or by ACPI if that fails."""
        domain = self._find(name)
        if domain is None:
            return
        try:
            domain.agentSetResponseTimeout(_AGENT_TIMEOUT_S)
            domain.shutdownFlags(libvirt.VIR_DOMAIN_SHUTDOWN_GUEST_AGENT)
        except libvirt.libvirtError as error:
            if not self.connection.alive:
                raise
            if error.get_error_code() in _DOMAIN_GONE and not self._is_active(domain):
                return
            with contextlib.suppress(libvirt.libvirtError):  # it may stop just now
                domain.shutdownFlags(libvirt.VIR_DOMAIN_SHUTDOWN_ACPI_POWER_BTN)

    @_through_restarts
    def power_off(self, name: str) -> None:
        """Powers a VM off.

        Raises:
            HypervisorError: libvirt could not end its process.
        """
        domain = self._find(name)
        if domain is None:
            return
        try:
            domain.destroy()
        except libvirt.libvirtError as error:
            if error.get_error_code() not in _DOMAIN_GONE:
                raise HypervisorError(f"{name} cannot be powered off: {error}") from error

    @_through_restarts
    def remove(self, name: str) -> None:
        """Powers a VM off and undefines it.

        Raises:
            HypervisorError: libvirt refused.
        """
        self.power_off(name)
        domain = self._find(name)
        if domain is None:
            return
        try:
            # Of UEFI variables, which are removed with their OS disk.
            domain.undefineFlags(libvirt.VIR_DOMAIN_UNDEFINE_KEEP_NVRAM)
        except libvirt.libvirtError as error:
            if error.get_error_code() != libvirt.VIR_ERR_NO_DOMAIN:
                raise HypervisorError(f"{name} cannot be undefined: {error}") from error
        self._remove_log(name)

    @_through_restarts
    def machines(self, prefix: str) -> list[str]:
        """Returns the names of all VMs with a prefix."""
        try:
            names = [domain.name() for domain in self.connection.libvirt.listAllDomains()]
        except libvirt.libvirtError as error:
            raise _unanswered(error) from error
        return sorted(name for name in names if name.startswith(prefix))

    @_through_restarts
    def agent(self, name: str, command: str) -> str:
        """Sends a command to the guest agent.

        Raises:
            HypervisorError: The agent does not respond in time, or refuses.
        """
        domain = self._existing(name)
        try:
            domain.agentSetResponseTimeout(_AGENT_TIMEOUT_S)
            answer: str = libvirt_qemu.qemuAgentCommand(domain, command, _AGENT_TIMEOUT_S, 0)
        except libvirt.libvirtError as error:
            raise HypervisorError(f"the guest agent of {name} failed: {error}") from error
        except UnicodeDecodeError as error:  # libvirt passes on what the guest wrote
            raise HypervisorError(
                f"the guest agent of {name} answers in another encoding than UTF-8: {error}"
            ) from error
        return answer

    @_through_restarts
    def pause(self, name: str) -> None:
        """Pauses a VM's CPUs.

        Raises:
            HypervisorError: It is not running.
        """
        try:
            self._existing(name).suspend()
        except libvirt.libvirtError as error:
            raise HypervisorError(f"{name} cannot be paused: {error}") from error

    @_through_restarts
    def unpause(self, name: str) -> None:
        """Resumes a VM's CPUs.

        Raises:
            HypervisorError: It is not running.
        """
        domain = self._existing(name)
        if not self._is_active(domain):
            raise HypervisorError(f"{name} cannot go on: it does not run")
        try:
            if domain.state()[0] == libvirt.VIR_DOMAIN_PAUSED:
                domain.resume()
        except libvirt.libvirtError as error:
            raise HypervisorError(f"{name} cannot go on: {error}") from error

    @_through_restarts
    def set_link(self, name: str, *, up: bool) -> None:
        """Plugs a VM's network cable in, or pulls it.

        Raises:
            HypervisorError: It is not running.
        """
        domain = self._existing(name)
        for card in (NIC, PRIVATE_NIC):
            command = {"execute": "set_link", "arguments": {"name": card, "up": up}}
            try:
                answer = json.loads(libvirt_qemu.qemuMonitorCommand(domain, json.dumps(command), 0))
            except libvirt.libvirtError as error:
                raise HypervisorError(f"the link of {name} cannot be set: {error}") from error
            if "error" in answer and (card, answer["error"]["class"]) != (PRIVATE_NIC, _NO_DEVICE):
                told = answer["error"]["desc"]
                raise HypervisorError(f"the link of {name} cannot be set: {told}")

    def cut_off(
        self, network: VirtualNetwork, others: Collection[int]
    ) -> AbstractContextManager[None]:
        """Returns a context manager that cuts an instance off from others of its set."""
        return partitioned(network, others)

    @_through_restarts
    def describe(self, name: str) -> str:
        """Returns the XML of a VM as it runs, or as it is defined; empty if there is none."""
        domain = self._find(name)
        if domain is None:
            return ""
        try:
            xml: str = domain.XMLDesc()
        except libvirt.libvirtError as error:
            if error.get_error_code() in _DOMAIN_GONE:
                return ""
            raise _unanswered(error) from error
        return xml

    def log(self, name: str) -> Path | None:
        """Returns the path of QEMU's log of a VM, whether or not this account can read it."""
        if self.uri.startswith("qemu:///embed"):
            return self._folder / "log" / "qemu" / f"{name}.log"
        folder = _LOGS.get(self.uri)
        return None if folder is None else folder.expanduser() / f"{name}.log"

    def close(self) -> None:
        """Closes the connection; VMs keep running."""
        self.connection.close()

    def _existing(self, name: str) -> libvirt.virDomain:
        domain = self._find(name)
        if domain is None:
            raise HypervisorError(f"there is no machine {name}")
        return domain

    def _find(self, name: str) -> libvirt.virDomain | None:
        try:
            return self.connection.libvirt.lookupByName(name)
        except libvirt.libvirtError as error:
            if error.get_error_code() == libvirt.VIR_ERR_NO_DOMAIN:
                return None
            raise _unanswered(error) from error

    def _running_xml(self, name: str) -> str | None:
        """Returns the XML of a running VM; None if it is not running."""
        domain = self._find(name)
        if domain is None or not self._is_active(domain):
            return None
        try:
            xml: str = domain.XMLDesc()
        except libvirt.libvirtError as error:
            if error.get_error_code() in _DOMAIN_GONE:
                return None  # it has just stopped
            raise _unanswered(error) from error
        return xml

    @staticmethod
    def _is_active(domain: libvirt.virDomain) -> bool:
        try:
            return bool(domain.isActive())
        except libvirt.libvirtError as error:
            if error.get_error_code() in _DOMAIN_GONE:
                return False
            raise _unanswered(error) from error

    def _remove_log(self, name: str) -> None:
        """Removes a daemon's log of a domain, which would outlive it."""
        folder = _LOGS.get(self.uri)
        if folder is not None:
            with contextlib.suppress(PermissionError):
                (folder.expanduser() / f"{name}.log").unlink(missing_ok=True)
