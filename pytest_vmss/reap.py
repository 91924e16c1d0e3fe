"""Finding and removing what a dead run left behind, and only that (L5)."""

from __future__ import annotations

import json
from pathlib import Path

from filelock import FileLock, Timeout

from pytest_vmss.errors import VmssError
from pytest_vmss.lab import Lab, LabIdentity, labs_folder
from pytest_vmss.settings import Settings

__all__ = ["reap"]


def reap(settings: Settings) -> list[str]:
    """Removes the labs of sessions whose process has ended.

    Lasting labs, and sessions that still run, are not touched.

    Args:
        settings: Where the labs are.

    Returns:
        A line for each lab that was removed, or that could not be.
    """
    lines = []
    folder = labs_folder(settings)
    for entry in sorted(folder.iterdir()) if folder.is_dir() else ():
        identity = _identity(entry)
        if identity is None or identity.kind != "session" or identity.owner_alive:
            continue
        if (entry / "keep").exists():
            continue
        lock = FileLock(entry / "reap.lock", is_singleton=False)
        try:
            lock.acquire(timeout=0)
        except Timeout:
            continue  # another run is at it
        try:
            Lab(settings, entry, identity).destroy()
            lines.append(f"removed the lab {entry.name} of the dead process {identity.pid}")
        except (VmssError, OSError) as error:
            lines.append(f"the lab {entry.name} of the dead process {identity.pid} stays: {error}")
        finally:
            lock.release()
    return lines


def _identity(folder: Path) -> LabIdentity | None:
    try:
        return LabIdentity(**json.loads((folder / "lab.json").read_text()))
    except (OSError, ValueError, TypeError):
        return None
