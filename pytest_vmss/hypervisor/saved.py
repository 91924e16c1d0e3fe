"""Prepares saved memory for a VM of another name and UUID.

libvirt restores a VM only under the name and the UUID that its XML had when it was saved, and
lets everything else in the XML be replaced that the guest does not see. That XML is stored as
text at the beginning of the file; values of the same length can be replaced in place.
"""

from __future__ import annotations

import os
import re
import shutil
from pathlib import Path

from pytest_vmss.errors import HypervisorError

__all__ = ["copy_for", "is_complete"]

#: How a file begins to which libvirt has saved everything; until then it has another word there.
_COMPLETE = b"LibvirtQemudSave"
#: The elements come first in the XML that libvirt writes; more need not be read.
_HEAD_BYTES = 4096
_NAME = re.compile(rb"<name>([^<]*)</name>")
_UUID = re.compile(rb"<uuid>([^<]*)</uuid>")


def copy_for(name: str, uuid: str, memory: Path, copy: Path) -> None:
    """Copies saved memory and puts another name and UUID into the copy.

    Args:
        name: The name, of the same length in bytes as the saved VM's.
        uuid: The UUID.
        memory: The file as libvirt saved it.
        copy: The file to create, with mode 0600; an older one is replaced.

    Raises:
        HypervisorError: The file has no XML, or the name is of another length.
        OSError: The copy cannot be written.
    """
    copy.unlink(missing_ok=True)
    os.close(os.open(copy, os.O_CREAT | os.O_EXCL | os.O_WRONLY, 0o600))
    shutil.copyfile(memory, copy)  # within the kernel
    with copy.open("r+b") as target:
        head = target.read(_HEAD_BYTES)
        for pattern, value in ((_NAME, name), (_UUID, uuid)):
            found = pattern.search(head)
            if found is None:
                raise HypervisorError(f"{memory} cannot be restored: it was not saved by libvirt")
            if len(found[1]) != len(value.encode()):
                raise HypervisorError(
                    f"{memory} cannot be restored as {name}: it was saved from "
                    f"{found[1].decode(errors='replace')}, a name of another length"
                )
            target.seek(found.start(1))
            target.write(value.encode())


def is_complete(memory: Path) -> bool:
    """Whether there is a file, which can be read, to which libvirt has saved all of a VM's memory."""
    try:
        with memory.open("rb") as file:
            return file.read(len(_COMPLETE)) == _COMPLETE
    except OSError:
        return False
