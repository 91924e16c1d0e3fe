"""Looks into a disk image: what it is, what is in it, and what the lab would do with it (O5, B6).

Nothing is mounted and nothing is changed. What an image says is never trusted: it is bounded, and
shown without control characters.
"""

from __future__ import annotations

import tempfile
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

from pytest_vmss.errors import ImageError
from pytest_vmss.gallery.cloud_config import CloudConfig, read_cloud_config, read_version
from pytest_vmss.gallery.copy import copy_file, open_regular, open_source, shown
from pytest_vmss.gallery.file_system import ExtFileSystem, Patience
from pytest_vmss.gallery.formats import ImageHead, recognize
from pytest_vmss.gallery.partitions import PartitionTable, read_partitions
from pytest_vmss.gallery.qcow2 import first_part_to_raw, to_raw
from pytest_vmss.settings import ImageLimits
from pytest_vmss.untrusted import one_line

__all__ = ["Contents", "Inspection", "boots_only_by_uefi", "inspect_file", "inspect_stored"]

_MIB = 1024**2
_RELEASE_BYTES = 256 * 1024
_MOST_KERNELS = 20
#: The data sources that the lab serves.
_SERVED = ("NoCloud", "Azure")
_X86_64, _MACHINES = 62, {62: "x86_64", 183: "aarch64", 3: "i386", 243: "riscv64"}
_PROGRAMS = ("/usr/sbin", "/usr/bin", "/sbin", "/bin")
_AGENTS = ("qemu-ga", "waagent", "azure-init")


@dataclass(frozen=True)
class Contents:
    """What was found in the file system that holds a distribution.

    Attributes:
        distribution: Its name and version.
        architecture: What its programs are for; empty if that was not found out.
        kernels: Releases of the kernels in it.
        cloud_init: cloud-init's version; None if there is none, empty if it was not found out.
        config: What cloud-init is told.
        ssh: Whether there is an SSH server.
        agents: The agents in it: ``qemu-ga``, ``waagent``, ``azure-init``.
    """

    distribution: str = ""
    architecture: str = ""
    kernels: tuple[str, ...] = ()
    cloud_init: str | None = None
    config: CloudConfig = field(default_factory=CloudConfig)
    ssh: bool = False
    agents: tuple[str, ...] = ()

    @property
    def data_sources(self) -> tuple[str, ...]:
        """The data sources that cloud-init may look for; empty for all that it knows."""
        return self.config.data_sources

    def looks_for(self, *sources: str) -> bool:
        """Whether cloud-init is told to look for one of some data sources, in any case."""
        return bool({s.lower() for s in sources} & {s.lower() for s in self.data_sources})


@dataclass(frozen=True)
class Inspection:
    """What was found out about an image.

    Attributes:
        head: Its format and size.
        table: Its partitions.
        contents: What is in it; None if no file system in it could be read.
    """

    head: ImageHead
    table: PartitionTable
    contents: Contents | None

    @property
    def generations(self) -> tuple[str, ...]:
        """The ``hyperVGeneration`` as which it can boot."""
        able = {"V1": self.table.boots_by_bios, "V2": self.table.boots_by_uefi}
        return tuple(generation for generation, is_able in able.items() if is_able)

    @property
    def provisioning(self) -> Literal["NoCloud", "Azure"]:
        """What ``provisioning: auto`` makes of it."""
        found = self.contents
        if found is not None and found.looks_for("Azure") and not found.looks_for("NoCloud"):
            return "Azure"
        return "NoCloud"

    def plan(self) -> list[str]:
        """Says what the lab will do with it."""
        kept = self.head.format == "qcow2"
        told = [
            "it is stored as it is" if kept else "it is converted to qcow2 when it is published"
        ]
        if self.generations == ("V2",):
            told.append("it boots by UEFI alone (V2, the default for it)")
        elif self.generations:
            firmware = {"V1": "BIOS (V1, the default)", "V2": "UEFI (V2)"}
            told.append(f"it boots by {' or '.join(firmware[each] for each in self.generations)}")
        if self.contents is not None:
            told.append(
                "it looks for Azure: publish it with --provisioning Azure (or auto)"
                if self.provisioning == "Azure"
                else "it is provisioned by a NoCloud disk"
            )
        return told

    def hindrances(self) -> list[str]:
        """Says what would keep it from coming up, or from being told how it fares."""
        told = []
        if self.table.is_for_other_disks:
            told.append(
                f"its partition table is made for sectors of {self.table.sector} bytes, and disks "
                "here have 512, as Azure's OS disks have: build it with those"
            )
        elif not self.generations:
            told.append(
                "nothing to boot was found: neither a BIOS boot loader nor an EFI partition"
            )
        if any(each.file_system == "ntfs" for each in self.table.partitions):
            told.append("it seems to be Windows, which cannot be run here")
        if self.head.size % _MIB:
            told.append(
                f"its size of {self.head.size} bytes is no whole number of MiB: Azure refuses such "
                "an image, the lab does not"
            )
        if self.contents is None:
            kinds = sorted({p.file_system for p in self.table.partitions if p.file_system})
            told.append(
                "no distribution was found in it: an os-release in ext4 is looked for, nothing else "
                f"is read, and it holds {', '.join(kinds) or 'nothing that is known'}; cloud-init "
                "cannot be checked, and provisioning auto means NoCloud"
            )
            return told
        return [*told, *_hindrances_in(self.contents)]

    def to_wire(self) -> dict[str, Any]:
        """Returns everything as JSON's values."""
        contents = self.contents or Contents()
        return {
            "format": self.head.format,
            "sizeBytes": self.head.size,
            "partitionTable": self.table.scheme or None,
            "partitions": [
                {
                    "number": each.number,
                    "offsetBytes": each.offset,
                    "sizeBytes": each.size,
                    "type": each.type or None,
                    "fileSystem": each.file_system or None,
                }
                for each in self.table.partitions
            ],
            "hyperVGenerations": list(self.generations),
            "distribution": contents.distribution or None,
            "architecture": contents.architecture or None,
            "kernels": list(contents.kernels),
            "cloudInit": None
            if contents.cloud_init is None
            else {
                "version": contents.cloud_init or None,
                "disabled": bool(contents.config.disabled_by),
                "dataSources": list(contents.data_sources) or None,
            },
            "agents": list(contents.agents),
            "sshServer": contents.ssh if self.contents else None,
            "provisioning": self.provisioning,
            "plan": self.plan(),
            "hindrances": self.hindrances(),
        }


def _hindrances_in(contents: Contents) -> Iterator[str]:
    if contents.architecture not in ("", _MACHINES[_X86_64]):
        yield f"its programs are for {contents.architecture}, and machines here are x86_64"
    if not contents.kernels:
        yield "no kernel was found in it"
    if contents.cloud_init is None:
        yield "cloud-init is not in it: nothing gives a guest its name, keys and custom data"
    elif by := contents.config.disabled_by:
        yield f"cloud-init is switched off ({by})"
    elif contents.data_sources and not contents.looks_for(*_SERVED):
        yield (
            f"cloud-init looks for {', '.join(contents.data_sources)} alone, and the lab has "
            f"{' and '.join(_SERVED)}: add one of them to datasource_list"
        )
    for name in contents.config.unreadable:
        yield f"{name} cannot be parsed, by the lab at least"
    if not contents.ssh:
        yield "no SSH server was found in it: the lab cannot look inside"


def inspect_file(path: Path, *, raw: bool = False, limits: ImageLimits, work: Path) -> Inspection:
    """Looks into a disk image.

    Args:
        path: The image, of any format that can be published.
        raw: Whether it is a raw disk, whatever it looks like.
        limits: The largest image that may be published.
        work: Folder for a temporary raw copy, which other formats than raw and fixed VHD need.

    Raises:
        ImageError: It is no image, or cannot be published.
        HostError: A program or room on the disk is missing.
    """
    name = shown(path)
    with open_source(path) as file:
        head = recognize(name, file, raw=raw, limits=limits)
        if head.is_plain:
            return _inspect_raw(head, file)
        with tempfile.TemporaryDirectory(dir=work, prefix="inspect-") as folder:
            copy = Path(folder) / "image"  # a program interprets it, so it must be what was checked
            copy.touch(mode=0o600)
            copy_file(file, copy, name=name, limits=limits)
            disk = Path(folder) / "disk"
            disk.touch(mode=0o600)
            return _inspect_private(copy, disk, name, limits)


def boots_only_by_uefi(image: Path, part: Path, *, size: int, name: str) -> bool:
    """Whether a stored image has an EFI system partition and nothing that a BIOS could start.

    Args:
        image: The qcow2, which nobody else may be able to change.
        part: An existing file, which becomes a copy of the disk's beginning.
        size: Size of its disk in bytes.
        name: The user's name for the image, for messages.
    """
    first_part_to_raw(image, part, size=size, name=name)
    with open_regular(part) as disk:
        table = read_partitions(disk, size)
    return table.boots_by_uefi and not table.boots_by_bios


def _inspect_private(image: Path, disk: Path, name: str, limits: ImageLimits) -> Inspection:
    """Looks into an image that nobody else may be able to change.

    Args:
        image: The image.
        disk: An existing file, which becomes a raw copy.
        name: The user's name for the image, for messages.
        limits: The largest image that may be published.
    """
    with open_regular(image) as file:
        head = recognize(name, file, limits=limits)
        to_raw(file, disk, head=head, name=name, limits=limits)
    with open_regular(disk) as opened:
        return _inspect_raw(head, opened)


def inspect_stored(image: Path, disk: Path, *, name: str, limits: ImageLimits) -> Inspection:
    """Looks into a stored image, for ``provisioning: auto``.

    Args:
        image: The image, which nobody else may be able to change.
        disk: An existing file, which becomes a raw copy.
        name: The user's name for the image, for messages.
        limits: The largest image that may be published.
    """
    return _inspect_private(image, disk, name, limits)


def _inspect_raw(head: ImageHead, disk: int) -> Inspection:
    try:
        table = read_partitions(disk, head.size)
    except OSError as error:
        raise ImageError(f"the image cannot be read: {error.strerror}") from error
    patience = Patience()
    readable = [
        ExtFileSystem(disk, each.offset, patience)
        for each in table.partitions
        if each.file_system == "ext4"
    ]
    for found in readable:
        release = found.read("/usr/lib/os-release") or found.read("/etc/os-release")
        if release:
            return Inspection(head, table, _look_inside(found, release, readable))
    return Inspection(head, table, None)


def _look_inside(root: ExtFileSystem, release: bytes, readable: list[ExtFileSystem]) -> Contents:
    programs = {name for folder in _PROGRAMS for name in root.names(folder)}
    boots = [(root, "/boot"), *((each, "") for each in readable)]
    return Contents(
        distribution=_distribution(release),
        architecture=_architecture(root),
        kernels=_kernels(root, boots),
        cloud_init=read_version(root) if "cloud-init" in programs else None,
        config=read_cloud_config(root, boots),
        ssh="sshd" in programs,
        agents=tuple(name for name in _AGENTS if name in programs),
    )


def _distribution(release: bytes) -> str:
    fields = dict(
        line.split("=", 1)
        for line in release[:_RELEASE_BYTES].decode(errors="replace").splitlines()
        if "=" in line
    )
    name = fields.get("PRETTY_NAME") or f"{fields.get('ID', '')} {fields.get('VERSION_ID', '')}"
    return one_line(name.strip().strip("\"'"), 100)


def _architecture(root: ExtFileSystem) -> str:
    for path in ("/usr/bin/env", "/usr/bin/true", "/bin/true"):
        head = root.read(path)[:20]
        if head[:4] == b"\x7fELF" and len(head) == 20:
            machine = int.from_bytes(head[18:20], "little")
            return _MACHINES.get(machine, f"ELF machine {machine}")
    return ""


def _kernels(root: ExtFileSystem, boots: list[tuple[ExtFileSystem, str]]) -> tuple[str, ...]:
    """Finds kernels in /boot, or in a file system of their own that is mounted there."""
    found = {
        name.removeprefix("vmlinuz-")
        for place, folder in boots
        for name in place.names(folder or "/")
        if name.startswith("vmlinuz-")
    }
    return tuple(sorted(found or root.names("/usr/lib/modules"))[:_MOST_KERNELS])
