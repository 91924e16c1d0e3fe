"""The files of published versions: written aside, renamed when finished, checked before use (B1)."""

from __future__ import annotations

import contextlib
import os
import secrets
import threading
from collections.abc import Iterator
from pathlib import Path

from pytest_vmss.errors import HostError, ImageError, VmssError
from pytest_vmss.gallery.copy import digest_of, open_regular, seen
from pytest_vmss.host.files import PART, sync_folder
from pytest_vmss.host.locks import try_lock, wait_for_lock
from pytest_vmss.store import CheckpointRecord, GenerationRecord, Store, VersionRecord

__all__ = ["ImageFiles"]

_LOCK_LIMIT_S = 10.0
#: Suffix of the temporary hard link by which a part is renamed.
_LINK = ".link"


class ImageFiles:
    """The folder of a lab's image files, each named by its digest.

    Args:
        folder: The folder.
        store: Tells which files are recorded.
    """

    def __init__(self, folder: Path, store: Store) -> None:
        self.folder = folder.absolute()
        self._store = store
        self._verified: dict[str, tuple[int, ...]] = {}
        self._lock = threading.Lock()

    def prepare(self) -> None:
        """Creates the folder, and removes leftovers of killed publications."""
        self.folder.mkdir(parents=True, exist_ok=True, mode=0o700)
        self._sweep()

    def path_of(self, record: VersionRecord) -> Path:
        """Returns the version's file, after verifying its digest (B1).

        Raises:
            ImageError: The file is missing or was changed.
            HostError: It cannot be read now.
        """
        path = self.folder / f"{record.digest}.qcow2"
        try:
            self._verify(record, path)
        except FileNotFoundError as error:
            raise ImageError(
                f"the file of {record.definition} {record.version} is gone: {path}; publish it again"
            ) from error
        except OSError as error:
            raise HostError(
                f"the file of {record.definition} {record.version} cannot be read: {error}"
            ) from error
        return path

    def _verify(self, record: VersionRecord, path: Path) -> None:
        with open_regular(path) as file, self._lock:
            state = seen(file)
            if self._verified.get(record.digest) != state:
                if digest_of(file, record.algorithm) != record.digest:
                    raise ImageError(
                        f"the file of {record.definition} {record.version} was changed after it "
                        f"was published: {path} no longer has the digest {record.digest}"
                    )
                self._verified[record.digest] = state

    @contextlib.contextmanager
    def part(self) -> Iterator[Path]:
        """Creates a locked, empty part file in the folder, and removes it afterwards."""
        part = self.folder / f"{secrets.token_hex(8)}{PART}"
        writing = wait_for_lock(part, what=f"writes {part}", timeout=_LOCK_LIMIT_S)
        try:
            yield part
        finally:
            with contextlib.suppress(VmssError, OSError):  # otherwise the next publication does it
                self._clear(part)
            writing.release()

    def keep(self, part: Path, digest: str) -> None:
        """Gives a finished part its name; call it in the transaction that records the version.

        The part stays until the commit: if that fails, it identifies the file to remove.
        """
        link = part.with_suffix(_LINK)
        os.link(part, link)
        link.replace(self.folder / f"{digest}.qcow2")
        sync_folder(self.folder)

    def remove_unused(self) -> None:
        """Removes files of deleted versions on which no OS disk or checkpoint is based any more."""
        with self._store.transaction():  # so that none is recorded meanwhile
            used = {record.digest for record in self._store.select(VersionRecord)}
            used |= {
                record.digest
                for record in self._store.select(GenerationRecord)
                if record.state != "discarded"
            }
            used |= {
                disk.digest
                for checkpoint in self._store.select(CheckpointRecord)
                for disk in checkpoint.disks
            }
            for path in self.folder.glob("*.qcow2"):
                if path.stem not in used and path.stat().st_nlink == 1:
                    path.unlink()

    def _sweep(self) -> None:
        """Removes leftovers of killed publications; those in progress are locked."""
        for part in self.folder.glob(f"*{PART}"):
            lock = try_lock(part)
            if lock is not None:
                with lock:
                    self._clear(part)

    def _clear(self, part: Path) -> None:
        """Removes a publication's part, and the file that it became unless that is recorded.

        Raises:
            LabError: The database cannot be read; the part stays, for the next publication to
                clear.
        """
        part.with_suffix(_LINK).unlink(missing_ok=True)
        if part.stat().st_nlink > 1:
            with self._store.transaction():  # so that it is not recorded meanwhile
                recorded = {record.digest for record in self._store.select(VersionRecord)}
                for path in self.folder.glob("*.qcow2"):
                    if path.stem not in recorded and path.samefile(part):
                        path.unlink()
        part.unlink()
        sync_folder(self.folder)
