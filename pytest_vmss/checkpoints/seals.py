"""What is known of a checkpoint's files, by which one that was damaged since is not used (L1).

QEMU takes a disk that was cut off, and reads zeros there; one whose tables were overwritten gives
the guest what is somewhere else. A file's length and its beginning, where qcow2 has its header and
tables and libvirt what it saved, tell that at hardly any cost. What lies behind is not read.
"""

from __future__ import annotations

import contextlib
import hashlib
import os
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Self

from pytest_vmss.errors import CheckpointError, HostError
from pytest_vmss.hypervisor.layers import backing_file

__all__ = ["Seals", "with_backing_files"]

_HEAD_BYTES = 1024**2
#: Layers of a disk; QEMU itself takes no more than 200.
_MOST_LAYERS = 200


@dataclass(frozen=True)
class Seals:
    """What a checkpoint's files were when it was made.

    Attributes:
        folder: The checkpoint's folder.
        sizes: Sizes in bytes, by paths relative to the folder.
        heads: Digests of the beginnings, by the same paths.
        known: Whether anything was recorded; else files need only be there.
    """

    folder: Path
    sizes: Mapping[str, int] = field(default_factory=dict)
    heads: Mapping[str, str] = field(default_factory=dict)
    known: bool = True

    @classmethod
    def of(cls, folder: Path, files: Iterable[Path]) -> Self:
        """Reads what files are now.

        Raises:
            HostError: One cannot be read.
        """
        named = {_name(file, folder): file for file in files}
        return cls(
            folder,
            {name: _size(file) for name, file in named.items()},
            {name: _head(file) for name, file in named.items()},
        )

    def check(self, *files: Path) -> None:
        """Checks that files are there, and as they were where that was recorded.

        Raises:
            CheckpointError: One is not.
            HostError: One cannot be read.
        """
        for file in files:
            with _readable(file):
                is_there = file.is_file()
            if not is_there:
                raise CheckpointError(f"the checkpoint's {file} is not there")
            if not self.known:
                continue
            name, size = _name(file, self.folder), _size(file)
            if name not in self.sizes:
                raise CheckpointError(
                    f"what the checkpoint's {file} was when it was made is not known"
                )
            if self.sizes[name] != size:
                raise CheckpointError(
                    f"the checkpoint's {file} has {size} bytes, not {self.sizes[name]} as when it "
                    "was made"
                )
            if self.heads.get(name) != _head(file):
                raise CheckpointError(
                    f"the checkpoint's {file} is damaged: it begins otherwise than when it was made"
                )

    def below(self) -> list[Path]:
        """The recorded files outside of the folder, on which disks of the checkpoint are based."""
        names = (name for name in self.sizes if os.path.dirname(name))  # noqa: PTH120 - no path yet
        return [Path(os.path.normpath(self.folder.resolve() / name)) for name in names]


def _name(file: Path, folder: Path) -> str:
    """A file's path relative to a folder, the same whatever links lead to them."""
    return os.path.relpath(file.parent.resolve() / file.name, folder.resolve())


def _size(file: Path) -> int:
    with _readable(file):
        return file.stat().st_size


def _head(file: Path) -> str:
    with _readable(file), file.open("rb") as opened:
        return hashlib.sha256(opened.read(_HEAD_BYTES)).hexdigest()


@contextlib.contextmanager
def _readable(file: Path) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        raise HostError(f"{file} of a checkpoint cannot be read: {error.strerror}") from error


def with_backing_files(disk: Path) -> list[Path]:
    """A disk, and all on which it is based.

    Raises:
        HostError: One is not there, or cannot be read.
    """
    chain: list[Path] = [disk]
    try:
        while (below := backing_file(chain[-1])) is not None and len(chain) < _MOST_LAYERS:
            chain.append(below.resolve(strict=True))  # as the kernel finds it
    except OSError as error:
        raise HostError(
            f"what {chain[-1]} is based on cannot be read: {error}; bring the file back"
        ) from error
    return chain
