"""Finding and removing what a dead run left behind, and only that (L5).

``python -m pytest_vmss.reap FOLDER`` removes one lab. Each dead lab is removed
by a process of its own, because libvirt's embedded driver serves one folder in
each process.
"""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path

from filelock import FileLock, Timeout

from pytest_vmss.errors import VmssError
from pytest_vmss.identity import LabIdentity, labs_folder, read_identity
from pytest_vmss.lab import Lab
from pytest_vmss.paths import PROCESS_ROOTS, LabPaths
from pytest_vmss.settings import Settings

__all__ = ["reap"]

_LIMIT = 300.0


def reap(settings: Settings) -> list[str]:
    """Removes the labs of sessions whose process has ended.

    Lasting labs, kept ones, and sessions that still run, are not touched.

    Args:
        settings: Where the labs are.

    Returns:
        A line for each lab that was removed, or that could not be.
    """
    lines = []
    for folder, identity in _labs(settings):
        if identity.kind != "session" or identity.owner_alive or (folder / "keep").exists():
            continue
        lock = FileLock(folder / "reap.lock", is_singleton=False)
        try:
            lock.acquire(timeout=0)
        except Timeout:
            continue  # another run is at it
        try:
            lines.append(_remove(settings, folder, identity))
        finally:
            lock.release()
    _remove_roots(settings)
    return lines


def _remove(settings: Settings, folder: Path, identity: LabIdentity) -> str:
    what = f"the lab {folder.name} of the dead process {identity.pid}"
    environment = {
        **os.environ,
        "VMSS_STATE_DIR": str(settings.state_dir),
        "VMSS_CACHE_DIR": str(settings.cache_dir),
    }
    try:
        done = subprocess.run(
            [sys.executable, "-m", "pytest_vmss.reap", folder],
            env=environment,
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            timeout=_LIMIT,
            check=False,
        )
    except subprocess.TimeoutExpired:
        return f"{what} stays: its removal took longer than {_LIMIT:.0f} s"
    if done.returncode != 0:
        return f"{what} stays: {done.stderr.strip()[-1000:]}"
    return f"removed {what}"


def _remove_roots(settings: Settings) -> None:
    """Removes folders of the embedded driver that no process and no lab uses."""
    folder = settings.state_dir / PROCESS_ROOTS
    used = {identity.embedded for _, identity in _labs(settings)}
    for root in folder.iterdir() if folder.is_dir() else ():
        if root.suffix == ".lock" or str(root) in used:
            continue
        lock = FileLock(root.with_suffix(".lock"), is_singleton=False)
        try:
            lock.acquire(timeout=0)
        except Timeout:
            continue  # its process lives
        shutil.rmtree(root, ignore_errors=True)
        Path(lock.lock_file).unlink(missing_ok=True)
        lock.release()


def _labs(settings: Settings) -> list[tuple[Path, LabIdentity]]:
    folder = labs_folder(settings)
    found = []
    for entry in sorted(folder.iterdir()) if folder.is_dir() else ():
        try:
            identity = read_identity(LabPaths(entry))
        except (OSError, ValueError, TypeError):
            continue  # being made, or not ours
        found.append((entry, identity))
    return found


def main() -> None:
    """Removes the lab whose folder the command line names."""
    folder = Path(sys.argv[1])
    identity = read_identity(LabPaths(folder))
    try:
        Lab(Settings(), folder, identity).destroy()
    except (VmssError, OSError) as error:
        sys.exit(str(error))


if __name__ == "__main__":
    main()
