"""The interface to a hypervisor. Every call is idempotent."""

from __future__ import annotations

from collections.abc import Collection
from contextlib import AbstractContextManager
from dataclasses import dataclass
from enum import StrEnum
from pathlib import Path
from typing import Protocol

from pytest_vmss.guest_platform.config import Platform
from pytest_vmss.guest_platform.virtual_network.config import VirtualNetwork

__all__ = ["Disk", "Forward", "Hypervisor", "Machine", "PowerState", "Seed"]


class PowerState(StrEnum):
    """Azure's power states, as far as they exist here, and one of QEMU's own.

    PAUSED is a VM that QEMU has paused because it cannot write to its disks.
    """

    RUNNING = "running"
    PAUSED = "paused"
    STOPPED = "stopped"
    ABSENT = "absent"


@dataclass(frozen=True)
class Forward:
    """A port on the host's loopback that is forwarded to the guest."""

    address: str
    host_port: int
    guest_port: int


@dataclass(frozen=True)
class Disk:
    """A data disk and its LUN."""

    lun: int
    path: Path


@dataclass(frozen=True)
class Seed:
    """What cloud-init's NoCloud source reads; ``user_data`` is passed unchanged (H1)."""

    meta_data: str
    network_config: str
    vendor_data: str
    user_data: bytes


@dataclass(frozen=True)
class Machine:
    """The VM of one instance, on one generation of its OS disk.

    Attributes:
        name: Domain name, ``vmss-{lab}-{set}_{id}``.
        uuid: UUID of the instance, the same for all generations.
        generation: Number of the OS disk.
        vcpus: Number of virtual CPUs; see :attr:`Hypervisor.most_vcpus`.
        memory_mib: Memory in MiB.
        mac: MAC address of the network card.
        forwards: Ports that are forwarded to the guest.
        os_disk: The copy-on-write disk.
        seed: The NoCloud disk; Azure's provisioning DVD if there is a platform.
        console: This generation's log of the serial console.
        agent: Socket of the guest agent's channel.
        data_disks: The data disks.
        platform: Azure as the guest sees it (O1); None for a guest that reads a NoCloud disk.
        nvram: This generation's UEFI variables; None for a machine that boots by BIOS.
        network: Its place in the private network of its set (A9); None if that has none.
    """

    name: str
    uuid: str
    generation: int
    vcpus: int
    memory_mib: int
    mac: str
    forwards: tuple[Forward, ...]
    os_disk: Path
    seed: Path
    console: Path
    agent: Path
    data_disks: tuple[Disk, ...]
    platform: Platform | None = None
    nvram: Path | None = None
    network: VirtualNetwork | None = None


class Hypervisor(Protocol):
    """Runs VMs."""

    @property
    def accelerator(self) -> str:
        """``kvm`` or ``tcg``."""

    @property
    def slow_factor(self) -> float:
        """How many times slower guests are than under KVM."""

    @property
    def most_vcpus(self) -> int | None:
        """How many virtual CPUs a guest gets at most, whatever its machine says; None for any.

        Raises:
            HostError: The hypervisor cannot be asked.
        """

    @property
    def fingerprint(self) -> str:
        """Identifies the host's CPU and the programs that can restore what was saved on it."""

    @property
    def host_boot(self) -> str:
        """Identifies the boot of the host: another one has only what was synchronized to disks."""

    def create_data_disk(self, path: Path, size_gib: int) -> None:
        """Creates an empty data disk unless it exists; never touches an existing one."""

    def create_os_disk(self, path: Path, image: Path, size_gib: int | None) -> None:
        """Creates a new copy-on-write disk on an image, replacing an older file."""

    def require_uefi(self) -> None:
        """Checks that machines with UEFI variables can be run here.

        Raises:
            HostError: The host has no UEFI firmware; the message says how to get it.
        """

    def create_nvram(self, path: Path) -> None:
        """Creates the UEFI variables of a new OS disk, replacing an older file.

        Raises:
            HostError: The host has no UEFI firmware, or the file cannot be written.
        """

    def freeze_disk(self, path: Path, frozen: Path, image: str | None) -> None:
        """Gives a disk that no VM uses a second, read-only name; for :meth:`create_layer`.

        Args:
            path: The disk; to be replaced by a layer on the frozen one.
            frozen: Its second name, in the same file system.
            image: Path of the image that it is based on, relative to the folder of ``frozen``;
                None if it has none.
        """

    def create_layer(self, path: Path, frozen: Path) -> None:
        """Creates a new copy-on-write disk on a frozen one, replacing an older file."""

    def is_unwritten(self, path: Path, frozen: Path) -> bool:
        """Whether a layer on a frozen disk, which no VM uses, was never written to.

        What a guest has flushed to it counts, also where the host crashed afterwards.

        Raises:
            HostError: It cannot be read.
        """

    def write_seed(self, path: Path, seed: Seed) -> None:
        """Writes a NoCloud disk with mode 0600."""

    def write_provisioning_dvd(self, path: Path, ovf_env: bytes) -> None:
        """Writes Azure's provisioning DVD with mode 0600 (O1)."""

    def start(self, machine: Machine) -> None:
        """Starts a VM; if it is already running on that generation, only sees that it is served.

        Raises:
            HypervisorError: It cannot be started.
            HostError: Its platform cannot be served.
        """

    def save(self, name: str, memory: Path) -> None:
        """Saves a running VM's memory and devices into a file, and powers it off.

        Does nothing if the VM is not running and the file exists.

        Raises:
            HypervisorError: The VM is not running, or cannot be saved; it keeps running then.
        """

    def restore(self, machine: Machine, memory: Path) -> None:
        """Starts a VM from saved memory; does nothing if it is running on that generation.

        The VM may have another name, UUID, and paths and forwards than the saved one; all else
        must be the same, its disks' content too.

        Raises:
            HypervisorError: It cannot be restored here; the VM does not run.
        """

    def state(self, name: str) -> PowerState:
        """Returns the power state of a VM."""

    def running_generation(self, name: str) -> int | None:
        """Returns the generation that a VM is running on; None if it is not running."""

    def agent_connected(self, name: str) -> bool:
        """Whether the guest agent has opened its channel, so the guest's services are starting."""

    def agent(self, name: str, command: str) -> str:
        """Sends a command to the guest agent, and waits a few seconds for its response.

        Args:
            name: Name of the VM.
            command: The command, as JSON.

        Returns:
            The agent's response, as JSON.

        Raises:
            HypervisorError: The agent does not respond in time, or refuses.
        """

    def pause(self, name: str) -> None:
        """Pauses a VM's CPUs, so that it stops responding."""

    def unpause(self, name: str) -> None:
        """Resumes a VM's CPUs."""

    def set_link(self, name: str, *, up: bool) -> None:
        """Plugs a VM's network cable in, or pulls it."""

    def cut_off(
        self, network: VirtualNetwork, others: Collection[int]
    ) -> AbstractContextManager[None]:
        """Returns a context manager that cuts an instance off from others of its set (A9).

        Args:
            network: The instance's place in their network.
            others: Numbers of the others; of none, it is all that there are, now or later.

        Raises:
            HostError: On entry: the network cannot be served.
        """

    def request_stop(self, name: str) -> None:
        """Asks the guest to shut down, over its agent or by ACPI; returns at once."""

    def power_off(self, name: str) -> None:
        """Powers a VM off."""

    def remove(self, name: str) -> None:
        """Powers a VM off and undefines it."""

    def machines(self, prefix: str) -> list[str]:
        """Returns the names of all VMs with a prefix."""

    def describe(self, name: str) -> str:
        """Returns the libvirt XML of a VM, without secrets; empty if there is no such VM."""

    def log(self, name: str) -> Path | None:
        """Returns the path of QEMU's own log of a VM; None if this connection has none."""

    def close(self) -> None:
        """Closes the connection; VMs keep running."""
