"""What the lab asks of a hypervisor. Every call can be repeated without harm."""

from __future__ import annotations

from dataclasses import dataclass
from enum import StrEnum
from pathlib import Path
from typing import Protocol

__all__ = ["Disk", "Forward", "Hypervisor", "Machine", "PowerState", "Seed"]


class PowerState(StrEnum):
    """Azure's power states, as far as they exist here, and one of QEMU's own.

    PAUSED is a machine that QEMU has stopped because it cannot write to its disks.
    """

    RUNNING = "running"
    PAUSED = "paused"
    STOPPED = "stopped"
    ABSENT = "absent"


@dataclass(frozen=True)
class Forward:
    """A port of the host's loopback that leads into the guest."""

    address: str
    host_port: int
    guest_port: int


@dataclass(frozen=True)
class Disk:
    """A data disk by its LUN."""

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
    """One instance on one generation of its OS disk.

    Attributes:
        name: Domain name, ``vmss-{lab}-{set}_{id}``.
        uuid: Lasting, the instance's own.
        generation: Number of the OS disk.
        vcpus: Number of virtual CPUs.
        memory_mib: Memory in MiB.
        mac: Address of the network card.
        forwards: Ports that lead into the guest.
        os_disk: The copy-on-write disk.
        seed: The NoCloud disk.
        console: Log of the serial console, of this generation.
        agent: Socket of the guest agent's channel.
        data_disks: By LUN.
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


class Hypervisor(Protocol):
    """Runs machines."""

    @property
    def accelerator(self) -> str:
        """``kvm`` or ``tcg``."""

    @property
    def slow_factor(self) -> float:
        """By how much guests are slower than under KVM."""

    def create_data_disk(self, path: Path, size_gib: int) -> None:
        """Makes an empty data disk unless there is one; never touches one that exists."""

    def create_os_disk(self, path: Path, image: Path, size_gib: int | None) -> None:
        """Makes a fresh copy-on-write disk on an image, in place of an older file."""

    def write_seed(self, path: Path, seed: Seed) -> None:
        """Writes a NoCloud disk with mode 0600."""

    def start(self, machine: Machine) -> None:
        """Runs a machine; nothing happens where it runs already on that generation."""

    def state(self, name: str) -> PowerState:
        """Whether a machine runs."""

    def running_generation(self, name: str) -> int | None:
        """The generation that a machine runs on; None where it does not run."""

    def agent_connected(self, name: str) -> bool:
        """Whether the guest agent has opened its channel: the guest's services start."""

    def agent(self, name: str, command: str) -> str:
        """Asks the guest agent something, and waits a few seconds for its answer.

        Args:
            name: The machine.
            command: The agent's JSON.

        Returns:
            The agent's JSON.

        Raises:
            HypervisorError: The agent does not answer in time, or refuses.
        """

    def pause(self, name: str) -> None:
        """Halts a machine's processors; what it answered until now it no longer answers."""

    def unpause(self, name: str) -> None:
        """Lets a machine's processors go on."""

    def set_link(self, name: str, *, up: bool) -> None:
        """Plugs a machine's network cable in, or pulls it."""

    def request_stop(self, name: str) -> None:
        """Asks the guest to shut down, over its agent and by ACPI; returns at once."""

    def power_off(self, name: str) -> None:
        """Cuts a machine's power."""

    def remove(self, name: str) -> None:
        """Cuts a machine's power and forgets it."""

    def machines(self, prefix: str) -> list[str]:
        """Names of all machines that start so."""

    def close(self) -> None:
        """Ends the connection; machines run on."""
