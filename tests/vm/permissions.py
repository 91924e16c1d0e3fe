"""Who may open the files of a lab."""

from __future__ import annotations

from pathlib import Path

from pytest_vmss.api.lab import Lab
from pytest_vmss.host.qemu_account import QemuAccount

__all__ = ["permissions"]


def permissions(lab: Lab, path: Path) -> tuple[int, bool]:
    """The owner's and the group's permissions, and whether the group is that of the lab's QEMU.

    Raises:
        AssertionError: If others have any, or a group that is not QEMU's.
    """
    account = QemuAccount.parse(lab.identity.account)
    about = path.stat()
    theirs = account is not None and about.st_gid == account.gid
    assert about.st_mode & 0o007 == 0, path
    assert theirs or about.st_mode & 0o070 == 0, path
    return about.st_mode & 0o770, theirs
