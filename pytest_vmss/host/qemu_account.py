"""The account that QEMU runs as when this process is root (R4).

It is the one that Debian's and Ubuntu's libvirt package makes for QEMU. All machines of the host
share it, so each lab has a group of its own besides: a number that belongs to nobody, made of the
lab's network. Through the group QEMU uses the files of its lab, and not those of another.
"""

from __future__ import annotations

import grp
import os
import pwd
import re
import stat
from dataclasses import dataclass
from pathlib import Path
from typing import Self

__all__ = ["ACCOUNT", "AccountChoice", "QemuAccount", "choose_account"]

ACCOUNT = "libvirt-qemu"

#: Numbers from here on belong to nobody by convention: containers have those below, up to
#: 0x6fffffff, directory services mostly fewer than 2,000,200,000.
_FIRST_GROUP = 0x7A00_0000
_TEXT = re.compile(r"(\d{1,10}):(\d{1,10})")
_READ_WRITE, _SEARCH = 0o6, 0o1


@dataclass(frozen=True)
class QemuAccount:
    """What a lab's QEMU processes run as.

    Attributes:
        uid: Number of the account.
        gid: Number of the lab's group.
    """

    uid: int
    gid: int

    @classmethod
    def parse(cls, text: str) -> Self | None:
        """Reads ``UID:GID``, as :meth:`__str__` writes it; None for an empty text.

        Raises:
            ValueError: It is something else, or root.
        """
        if not text:
            return None
        match = _TEXT.fullmatch(text)
        if match is None or int(match[1]) == 0 or int(match[2]) == 0:
            raise ValueError(f"{text!r} is no account for QEMU; expected UID:GID, neither 0")
        return cls(int(match[1]), int(match[2]))

    def __str__(self) -> str:
        """Returns ``UID:GID``."""
        return f"{self.uid}:{self.gid}"

    @property
    def label(self) -> str:
        """The account as a label of libvirt's."""
        return f"+{self.uid}:+{self.gid}"

    @property
    def name(self) -> str:
        """The account's name."""
        return pwd.getpwuid(self.uid).pw_name

    def may_open(self, device: Path) -> bool:
        """Whether it may read and write a device; False if there is none."""
        try:
            return self._may(device.stat(), _READ_WRITE)
        except OSError:
            return False

    def barrier(self, folder: Path) -> Path | None:
        """Returns the first folder on the way to a folder that it may not enter; None if none.

        Args:
            folder: The folder; what does not exist yet is made for it to enter.
        """
        real = folder.resolve()
        for component in reversed((real, *real.parents)):
            try:
                about = component.stat()
            except FileNotFoundError:
                return None
            if not self._may(about, _SEARCH):
                return component
        return None

    def _may(self, about: os.stat_result, wanted: int) -> bool:
        """Whether a file's mode gives it a permission; access control lists do not count."""
        mode = stat.S_IMODE(about.st_mode)
        if about.st_uid == self.uid:
            mode >>= 6
        elif about.st_gid in self._groups():
            mode >>= 3
        return mode & wanted == wanted

    def _groups(self) -> set[int]:
        """The groups that libvirt gives QEMU: the account's own, on Debian kvm, and the lab's."""
        entry = pwd.getpwuid(self.uid)
        return {self.gid, *os.getgrouplist(entry.pw_name, entry.pw_gid)}


@dataclass(frozen=True)
class AccountChoice:
    """What the machines of a new lab run as.

    Attributes:
        account: The account; None for the one of this process.
        reason: Why that is root; empty if it is not.
        mend: The command or step that changes that.
        is_shared: Whether other labs have the same group, so that only the account keeps apart.
    """

    account: QemuAccount | None
    reason: str = ""
    mend: str = ""
    is_shared: bool = False


def choose_account(state_dir: Path, number: int = 0) -> AccountChoice:
    """Chooses what the machines of a new lab run as.

    Args:
        state_dir: The folder of all labs.
        number: A small number that no other lab has.
    """
    if os.geteuid() != 0:
        return AccountChoice(None)
    try:
        entry = pwd.getpwnam(ACCOUNT)
    except KeyError:
        mend = "apt-get install libvirt-daemon-system"
        return AccountChoice(None, f"there is no account {ACCOUNT}", mend)
    gid, is_shared = _FIRST_GROUP + number, False
    if not _is_free(gid):
        try:
            gid, is_shared = grp.getgrnam(ACCOUNT).gr_gid, True
        except KeyError:
            return AccountChoice(
                None,
                f"the number {gid} cannot be a lab's group here, and there is no group {ACCOUNT}",
                f"addgroup --system {ACCOUNT}",
            )
    if not _is_mapped(entry.pw_uid, "uid"):
        return AccountChoice(
            None,
            f"this container has no user number {entry.pw_uid} ({ACCOUNT})",
            "give the container 65536 user numbers",
        )
    account = QemuAccount(entry.pw_uid, gid)
    barrier = account.barrier(state_dir)
    if barrier is not None:
        return AccountChoice(
            None,
            f"{ACCOUNT} may not enter {barrier}, and the labs lie in {state_dir}",
            "unset VMSS_STATE_DIR and XDG_STATE_HOME, or name a folder by VMSS_STATE_DIR that "
            "every account may enter (chmod o+x)",
        )
    return AccountChoice(account, is_shared=is_shared)


def _is_free(gid: int) -> bool:
    """Whether a number may be a group, and is not one that has a name."""
    try:
        grp.getgrgid(gid)
    except KeyError:
        return _is_mapped(gid, "gid")
    return False


def _is_mapped(number: int, kind: str) -> bool:
    """Whether this user namespace has a number; a container may have 65536 of them only."""
    try:
        rows = [line.split() for line in Path(f"/proc/self/{kind}_map").read_text().splitlines()]
    except OSError:
        return True
    return any(int(first) <= number < int(first) + int(count) for first, _, count in rows)
