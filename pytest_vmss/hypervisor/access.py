"""Lets QEMU's own account use a machine's files, and nothing else of the lab (R4).

All files stay root's; a lab's group is given what its machines need. Consoles and sockets are
opened by libvirt, which hands them to QEMU.
"""

from __future__ import annotations

import contextlib
import stat
from collections.abc import Iterator
from dataclasses import dataclass
from os import chown
from pathlib import Path

from pytest_vmss.host.paths import LabPaths
from pytest_vmss.host.qemu_account import QemuAccount
from pytest_vmss.hypervisor.protocol import Machine

__all__ = ["Access"]

_ENTER, _READ, _WRITE = 0o710, 0o640, 0o660
#: Of the folder in which QEMU makes a socket.
_FILL = 0o770
#: Of frozen disks, which are links that labs share: whoever may enter the folder reads them.
_READ_BY_ALL = 0o444


@dataclass(frozen=True)
class Access:
    """What the machines of a lab run as, and where their files are.

    Attributes:
        account: The account.
        lab: The lab's folder.
    """

    account: QemuAccount
    lab: Path

    def grant(self, machine: Machine) -> None:
        """Gives the account a machine's files; repeating it changes nothing.

        No file is opened. A missing one is left to libvirt, which names it.

        Raises:
            OSError: A mode or a group cannot be changed.
        """
        self._give(machine.seed, _READ)
        if machine.nvram is not None:
            self._give(machine.nvram, _WRITE)
        for path in (machine.os_disk, *(disk.path for disk in machine.data_disks)):
            self._give(path, _WRITE)
        if machine.platform is not None or machine.network is not None:
            self._give(LabPaths(self.lab).run, _ENTER)
        if machine.network is not None:
            # Of the process that carries the guests' frames too: it must not be root's either.
            folder = machine.network.files.folder
            chown(folder, self.account.uid, self.account.gid, follow_symlinks=False)
        if machine.platform is not None:
            files = machine.platform.files
            self._give(files.nic.parent, _FILL)
            # Of the process that reads the guest's frames: it must not be root's either.
            for path in (*files.folder.iterdir(), files.folder):
                chown(path, self.account.uid, self.account.gid, follow_symlinks=False)
            machine.platform.write()
        for folder in (
            *machine.os_disk.parents, LabPaths(self.lab).images, *self._checkpoints(),
        ):  # fmt: skip
            if folder.is_relative_to(self.lab):
                self._give(folder, _ENTER)

    def _checkpoints(self) -> Iterator[Path]:
        """Opens the frozen disks on which machines may be based; yields the folders on the way."""
        top = LabPaths(self.lab).checkpoint("-").parent
        yield top
        for folder in top.glob("[!.]*/"):
            yield folder
            for disk in folder.glob("*.qcow2"):
                self._set_mode(disk, _READ_BY_ALL)

    def _give(self, path: Path, mode: int) -> None:
        with contextlib.suppress(FileNotFoundError):
            if path.stat().st_gid != self.account.gid:
                chown(path, -1, self.account.gid)
            self._set_mode(path, mode)

    @staticmethod
    def _set_mode(path: Path, mode: int) -> None:
        with contextlib.suppress(FileNotFoundError):
            if stat.S_IMODE(path.stat().st_mode) != mode:
                path.chmod(mode)
