"""A folder of artifacts: private, masked, and bounded in size."""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import re
import shutil
import threading
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

from pytest_vmss.errors import error_text
from pytest_vmss.guest.console_log import LogReader
from pytest_vmss.untrusted import clean

__all__ = ["ArtifactFolder", "folder_name", "make_root"]

#: The name of the file by which a folder is known to be of this module.
_MARKER = "summary.txt"
_NAME_CHARS = 120
_MIB = 1024 * 1024
#: The most that one file may hold, and all files of a test.
_FILE_BYTES = 4 * _MIB
_FOLDER_BYTES = 64 * _MIB
_SAFE = re.compile(r"[^\w.-]+", re.ASCII)


def folder_name(test: str) -> str:
    """Returns the name of a test's folder; different tests have different ones.

    Args:
        test: The test's node id: ``tests/test_web.py::test_upgrade[1.1.0]``.
    """
    path = test.replace("/", "-").replace("::", "--")
    name = _SAFE.sub("_", path).strip(".-_")[:_NAME_CHARS]
    if name == path:
        return name
    return f"{name}-{hashlib.sha256(test.encode()).hexdigest()[:6]}"


def make_root(root: Path) -> None:
    """Creates the folder of all tests' folders, with a ``.gitignore`` of its own.

    Raises:
        OSError: It cannot be created.
    """
    if not root.is_dir():
        root.mkdir(parents=True, mode=0o700, exist_ok=True)
        (root / ".gitignore").write_text("# What pytest-vmss keeps of failed tests.\n*\n")


class ArtifactFolder:
    """The folder of one test; one that an earlier run of the test left is replaced.

    Args:
        path: The folder.
        masked: Masks the secrets in a text.

    Attributes:
        masked: Masks the secrets in a text.
        notes: What could not be collected, and why.

    Raises:
        OSError: It cannot be created.
    """

    def __init__(self, path: Path, masked: Callable[[str], str]) -> None:
        if (path / _MARKER).is_file() and not path.is_symlink():
            shutil.rmtree(path)
        path.mkdir(mode=0o700)
        self.path = path
        self.notes: list[str] = []
        self.masked = masked
        self._left = _FOLDER_BYTES
        self._lock = threading.Lock()
        self._closed = False
        (path / _MARKER).touch(0o600)

    def text(self, name: str, text: str) -> Path | None:
        """Writes a text; of a long one the start and the end.

        Args:
            name: Its path in the folder.
            text: The text, which may be a guest's.

        Returns:
            The file; None if it could not be written, of which there is a note.
        """
        return self._write(name, _cut(self.masked(clean(text))))

    def page(self, name: str, page: str) -> Path | None:
        """Writes a page whose maker has cleaned and masked it; never a part of one."""
        return self._write(name, page)

    def _write(self, name: str, text: str) -> Path | None:
        data = text.encode(errors="replace")
        with self._lock:
            if self._closed:
                return None  # a straggler: the summary is written
            if len(data) > self._left:
                self.notes.append(f"{name}: left out, for the folder is full")
                return None
            try:
                path = self.path / name
                path.parent.mkdir(parents=True, mode=0o700, exist_ok=True)
                flags = os.O_CREAT | os.O_WRONLY | os.O_TRUNC | os.O_NOFOLLOW | os.O_CLOEXEC
                with os.fdopen(os.open(path, flags, 0o600), "wb") as file:
                    file.write(data)
            except OSError as error:
                self.notes.append(f"{name}: {error_text(error)}")
                return None
            self._left -= len(data)
        return path

    def json(self, name: str, value: Any) -> Path | None:
        """Writes a JSON value."""
        return self.text(name, json.dumps(value, indent=2, default=str) + "\n")

    def json_lines(self, name: str, values: Iterable[Any]) -> Path | None:
        """Writes JSON values, a line each."""
        return self.text(name, "".join(f"{json.dumps(value, default=str)}\n" for value in values))

    def copy(self, name: str, source: Path) -> Path | None:
        """Copies a log, if it is there and readable; of a long one the start and the end."""
        if not source.is_file():
            return None
        with contextlib.suppress(OSError):
            parts = list(_bounded(LogReader(source).read()))
            return self.text(name, "".join(parts))
        return None

    def close(self, summary: str) -> None:
        """Writes the summary; whatever comes later is not written."""
        notes = "".join(f"\n  {clean(note)}" for note in self.notes)
        self.text(_MARKER, summary + (f"\nNot collected:{notes}\n" if notes else ""))
        with self._lock:
            self._closed = True


def _cut(text: str) -> str:
    """The start and the end of a text that is too long, with a note between."""
    if len(text) <= _FILE_BYTES:
        return text
    half = _FILE_BYTES // 2
    left = len(text) - _FILE_BYTES
    return f"{text[:half]}\n[... {left} characters left out ...]\n{text[-half:]}"


def _bounded(parts: Iterable[str]) -> Iterable[str]:
    """Parts of a text, from whose middle those are dropped that would be cut anyway."""
    head: list[str] = []
    tail: list[str] = []
    size, rest = 0, 0
    for part in parts:
        if size < _FILE_BYTES:
            head.append(part)
            size += len(part)
            continue
        tail.append(part)
        rest += len(part)
        while rest - len(tail[0]) > _FILE_BYTES:
            rest -= len(tail.pop(0))
    return [*head, *tail]
