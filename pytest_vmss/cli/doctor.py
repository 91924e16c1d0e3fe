"""``vmss doctor``: what the host lacks, and the command that fixes it (L2)."""

from __future__ import annotations

import contextlib
import os
import shutil
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Literal

import psutil
from platformdirs import user_cache_path, user_config_path

from pytest_vmss.errors import HostError, VmssError
from pytest_vmss.guest_platform.slirp import LIBRARY, load
from pytest_vmss.host.accelerator import choose_accelerator
from pytest_vmss.host.ownership import account_name, mend_ownership, obstacle
from pytest_vmss.host.paths import LabPaths
from pytest_vmss.host.process import PACKAGES, require
from pytest_vmss.host.qemu_account import choose_account
from pytest_vmss.hypervisor.firmware import find_firmware
from pytest_vmss.image_builder.bootstrap import choose_way
from pytest_vmss.labs.identity import labs_folder, read_identity
from pytest_vmss.settings import Settings, former_state_dir

__all__ = ["Finding", "examine"]

_RUN = ("qemu-system-x86_64", "qemu-img")
_BUILD = ("mmdebstrap", "mke2fs", "sfdisk", "mformat", "grub-mkimage", "depmod")
_BUILD_FILES = {
    Path("/usr/lib/grub/i386-pc/boot.img"): "grub-pc-bin",
    Path("/usr/lib/grub/x86_64-efi/kernel.img"): "grub-efi-amd64-bin",
    Path("/usr/share/keyrings/debian-archive-keyring.gpg"): "debian-archive-keyring",
}
_MEMORY_MIB = 2048
_DISK_GIB = 4


@dataclass(frozen=True)
class Finding:
    """The result of one check.

    Attributes:
        level: ``lacking`` keeps the product from working.
        what: What was found, in words.
        mend: The command or step that fixes it.
    """

    level: Literal["ok", "note", "lacking"]
    what: str
    mend: str = ""


def examine(settings: Settings) -> list[Finding]:
    """Checks everything that a lab needs from its host; makes no lasting change."""
    return [
        *_folders(settings),
        *_programs(_RUN, "to run VMs"),
        *_libvirt(settings),
        *_confinement(settings),
        *_accelerator(settings),
        *_room(settings),
        *_uefi(),
        *_programs(("haproxy",), "by scale sets behind a load balancer"),
        *_platform(),
        *_programs(_BUILD, "to build images"),
        *_files(),
        *_root_filesystems(settings),
    ]


def _programs(programs: tuple[str, ...], purpose: str) -> Iterator[Finding]:
    if os.geteuid() != 0 and purpose == "to build images":
        programs = (*programs, "fakeroot")
    for program in programs:
        try:
            yield Finding("ok", f"{program}: {require(program)}")
        except HostError:
            yield Finding(
                "lacking",
                f"{program} is not installed (needed {purpose})",
                f"apt-get install {PACKAGES.get(program, program)}",
            )


def _platform() -> Iterator[Finding]:
    """What guests that look for Azure need (O1)."""
    try:
        load()
    except HostError as error:
        yield Finding(
            "lacking", f"{LIBRARY} is not installed (needed by images made for Azure)", error.mend
        )
    else:
        yield Finding("ok", f"{LIBRARY} is there, for images made for Azure")


def _uefi() -> Iterator[Finding]:
    try:
        yield Finding("ok", f"UEFI firmware: {find_firmware().code}")
    except HostError as error:
        yield Finding("lacking", f"{error} (needed by images of generation 2)", error.mend)


def _files() -> Iterator[Finding]:
    for path, package in _BUILD_FILES.items():
        if not path.exists():
            yield Finding(
                "lacking",
                f"{path} is not there (needed to build images)",
                f"apt-get install {package}",
            )


def _root_filesystems(settings: Settings) -> Iterator[Finding]:
    """Creates an empty root filesystem, the same way as for images."""
    try:
        way = choose_way(settings.cache_dir)
    except HostError as error:
        yield Finding("lacking", f"images cannot be built: {error}", error.mend)
        return
    told = f"images are built in mmdebstrap's {way.mode} mode, unpacked in {way.place} (tried)"
    if way.reason:
        yield Finding(
            "note", f"{told}; it takes twice the time of unshare mode: {way.reason}", way.mend
        )
    else:
        yield Finding("ok", told)


def _folders(settings: Settings) -> Iterator[Finding]:
    """Checks for folders that this account cannot use, as after a run as root."""
    for folder, variable in _own_folders(settings):
        found = obstacle(folder) or next(filter(None, map(obstacle, _below(folder))), None)
        if found is None:
            continue
        if folder.is_relative_to(Path.home()) and obstacle(Path.home()) is None:
            mend = mend_ownership(found)
        else:
            mend = f"unset {variable}, or name a folder of this account's by it"
        yield Finding(
            "lacking",
            f"{found} belongs to {account_name(found.stat().st_uid)}, and this is "
            f"{account_name()}, who must be able to write it",
            mend,
        )


def _own_folders(settings: Settings) -> Iterator[tuple[Path, str]]:
    """The folders that are written, and the environment variables that set them."""
    yield settings.state_dir, "VMSS_STATE_DIR (or XDG_STATE_HOME, HOME)"
    yield settings.cache_dir, "VMSS_CACHE_DIR (or XDG_CACHE_HOME, HOME)"
    if os.geteuid() != 0:  # libvirt's own folder, for qemu:///session
        yield user_config_path("libvirt"), "XDG_CONFIG_HOME (or HOME)"
        yield user_cache_path("libvirt"), "XDG_CACHE_HOME (or HOME)"
        runtime = os.environ.get("XDG_RUNTIME_DIR")
        if runtime:
            yield Path(runtime) / "libvirt", "XDG_RUNTIME_DIR"


def _below(folder: Path) -> Iterator[Path]:
    """What is written inside a folder: its subfolders and lock files, two levels deep."""
    for path in (*folder.glob("*"), *folder.glob("*/*")):
        if path.suffix == ".lock" or os.path.isdir(path):  # noqa: PTH112, Path.is_dir may raise
            yield path


def _libvirt(settings: Settings) -> Iterator[Finding]:
    from pytest_vmss.api.lab import Lab

    try:
        lab = Lab.session(settings)
    except VmssError as error:
        yield Finding("lacking", str(error), "export VMSS_STATE_DIR=/a/folder/you/may/write")
        return
    try:
        from pytest_vmss.hypervisor.libvirt_driver import LibvirtHypervisor

        hypervisor = lab.hypervisor
        if isinstance(hypervisor, LibvirtHypervisor):
            yield Finding("ok", f"libvirt answers at {hypervisor.uri}")
            if hypervisor.most_vcpus is not None:
                yield Finding(
                    "note",
                    f"guests have {hypervisor.most_vcpus} virtual CPU, whatever their size: QEMU "
                    "before 8.1 cannot emulate more without crashing some of them",
                )
    except (VmssError, ImportError) as error:
        mend = error.mend if isinstance(error, HostError) else ""
        yield Finding("lacking", str(error), mend or "apt-get install libvirt-daemon-system")
    finally:
        lab.destroy()


def _confinement(settings: Settings) -> Iterator[Finding]:
    """What a guest that broke out of QEMU could do (R4)."""
    chosen = choose_account(settings.state_dir)
    if chosen.reason:
        yield Finding(
            "note",
            "QEMU runs as root with root's capabilities, kept by its seccomp filter alone: what "
            f"breaks out of it is root on this host; {chosen.reason}",
            chosen.mend or "run vmss as an ordinary account (docs/how-to.md)",
        )
    else:
        told = f"QEMU runs as {account_name()}"
        if chosen.account is not None:
            group = "a group of all labs" if chosen.is_shared else "a group of each lab's own"
            told = f"QEMU runs as {chosen.account.name}, in {group}"
        yield Finding("ok", f"{told}, without capabilities, behind its seccomp filter")
    if chosen.is_shared:
        yield Finding(
            "note",
            "all labs have the same group, for this container has no numbers for more: what "
            "breaks out of QEMU reaches the disks of root's other labs",
            "give the container more group numbers, or each lab a container",
        )
    made_so = [] if chosen.account is None else _labs_as_root(settings)
    if made_so:
        yield Finding(
            "note",
            f"QEMU runs as root for labs that were made so: {', '.join(map(str, made_so))}",
            "delete their scale sets, then the folders; labs made now are confined",
        )


def _labs_as_root(settings: Settings) -> list[Path]:
    """The folders of root's labs that an earlier version made, or that lay out of QEMU's reach."""
    former = former_state_dir(settings.state_dir)
    places = [settings] if former is None else [settings, replace(settings, state_dir=former)]
    found = []
    for folder in (folder for place in places for folder in labs_folder(place).glob("*")):
        with contextlib.suppress(OSError, ValueError, TypeError):  # no lab, or nobody's to open
            if not read_identity(LabPaths(folder)).account:
                found.append(folder)
    return found


def _accelerator(settings: Settings) -> Iterator[Finding]:
    try:
        account = choose_account(settings.state_dir).account
        choice = choose_accelerator(settings.accelerator, account)
    except HostError as error:
        yield Finding("lacking", str(error), error.mend)
        return
    if choice.accelerator == "kvm":
        yield Finding("ok", f"accelerator: KVM, since {choice.reason}")
    else:
        yield Finding(
            "note",
            f"accelerator: TCG, since {choice.reason}; guests are 10 to 20 times slower, "
            f"limits are multiplied by {choice.slow_factor:g}",
        )


def _room(settings: Settings) -> Iterator[Finding]:
    memory = psutil.virtual_memory().available // 1024**2
    level: Literal["ok", "note"] = "ok" if memory >= _MEMORY_MIB else "note"
    yield Finding(level, f"memory available: {memory} MiB (the demo needs {_MEMORY_MIB})")
    for folder in {settings.state_dir, settings.cache_dir}:
        # Not Path.exists: it raises if a parent folder may not be entered.
        existing = next(path for path in (folder, *folder.parents) if os.path.exists(path))  # noqa: PTH110
        free = shutil.disk_usage(existing).free // 1024**3
        level = "ok" if free >= _DISK_GIB else "note"
        yield Finding(level, f"disk free at {folder}: {free} GiB (the demo needs {_DISK_GIB})")
