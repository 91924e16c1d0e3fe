"""Chooses KVM if it really works, otherwise TCG (A7)."""

from __future__ import annotations

import os
import platform
from dataclasses import dataclass
from pathlib import Path

from pytest_vmss.errors import HostError
from pytest_vmss.host.ownership import account_name
from pytest_vmss.host.qemu_account import QemuAccount
from pytest_vmss.settings import TCG_FACTOR, Accelerator

__all__ = ["SEVERAL_VCPUS", "Choice", "choose_accelerator", "describe_cpu"]

#: The version of QEMU, as libvirt counts, from which emulated guests may have several virtual CPUs.
#: Before 8.1 one may run code that another is just replacing; Linux, which replaces its own code
#: as it boots, then ends now and then with "Oops: int3".
SEVERAL_VCPUS = 8_001_000


@dataclass(frozen=True)
class Choice:
    """The chosen accelerator, and why it was chosen."""

    accelerator: Accelerator
    reason: str

    @property
    def slow_factor(self) -> float:
        """How many times slower guests are than under KVM."""
        return 1.0 if self.accelerator == "kvm" else TCG_FACTOR


def choose_accelerator(
    forced: Accelerator | None = None,
    account: QemuAccount | None = None,
    *,
    cpuinfo: Path = Path("/proc/cpuinfo"),
    device: Path = Path("/dev/kvm"),
) -> Choice:
    """Chooses KVM if the CPU has the flag and the device is writable, like virt-host-validate.

    Being able to open ``/dev/kvm`` proves nothing: on some hosts no guest kernel runs anyway.

    Args:
        forced: The accelerator to use regardless, or None.
        account: What QEMU runs as; None for the account of this process.
        cpuinfo: File with the CPU's flags.
        device: KVM's device.

    Raises:
        HostError: KVM is forced, but its device cannot be opened.
    """
    if forced == "tcg":
        return Choice("tcg", "forced by the user")
    usable, hint, mend = _usable(device, account)
    if forced == "kvm":
        if not usable:
            raise HostError(
                f"KVM was asked for, but {device} cannot be opened for writing; "
                f"{hint}, or leave the choice to the lab",
                mend=mend,
            )
        return Choice("kvm", "forced by the user")
    flags: set[str] = set()
    try:
        for line in cpuinfo.read_text().splitlines():
            if line.startswith("flags"):
                flags = set(line.partition(":")[2].split())
                break
    except OSError:
        pass
    is_x86 = platform.machine() in ("x86_64", "AMD64", "i686")
    if is_x86 and not flags & {"vmx", "svm"}:
        return Choice("tcg", "the CPU offers no hardware virtualization (no vmx or svm)")
    if not device.exists():
        return Choice("tcg", f"there is no {device}; load the module kvm_intel or kvm_amd")
    if not usable:
        return Choice("tcg", f"{device} cannot be written; {hint}")
    return Choice("kvm", f"the CPU offers hardware virtualization and {device} can be written")


def _usable(device: Path, account: QemuAccount | None) -> tuple[bool, str, str]:
    """Whether QEMU may use a device, and what to do if not: in words, and as a command."""
    if account is None:
        usable = os.access(device, os.R_OK | os.W_OK)
        return usable, "add your user to the group kvm", f"adduser {account_name()} kvm"
    mend = f"chgrp kvm {device} && chmod g+rw {device}"
    return account.may_open(device), f"let {account.name} use it, as QEMU runs: {mend}", mend


def describe_cpu(accelerator: Accelerator, *, cpuinfo: Path = Path("/proc/cpuinfo")) -> str:
    """Returns what a running guest depends on besides QEMU: under KVM, the CPU and the kernel.

    Args:
        accelerator: The accelerator in use.
        cpuinfo: File with the CPU's description.
    """
    if accelerator == "tcg":
        return f"tcg {platform.machine()}"
    told = dict.fromkeys(("model name", "microcode", "flags"), "")
    try:
        for line in cpuinfo.read_text().splitlines():
            name, _, value = line.partition(":")
            if told.get(name.strip()) == "":
                told[name.strip()] = value.strip()
    except OSError:
        pass
    return f"kvm {platform.machine()} {platform.release()} {' '.join(told.values())}"
