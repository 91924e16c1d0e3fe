"""Q2: what a lock tells about the life of its holder."""

from __future__ import annotations

import errno
import os
import subprocess
import sys
from pathlib import Path
from unittest.mock import Mock

import pytest

from pytest_vmss.errors import ConflictError
from pytest_vmss.host.locks import is_locked, try_lock, wait_for_lock


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "locks/a"


def test_one_holder_or_many_that_share(path: Path) -> None:
    assert not is_locked(path)
    assert not path.exists()
    one, two = try_lock(path, shared=True), try_lock(path, shared=True)
    assert one is not None
    assert two is not None
    assert is_locked(path)
    assert try_lock(path) is None
    one.release()
    assert try_lock(path) is None
    two.release()
    assert not is_locked(path)
    assert path.stat().st_mode & 0o777 == 0o600
    with wait_for_lock(path, what="works", timeout=1):
        assert try_lock(path, shared=True) is None
        with pytest.raises(ConflictError, match=r"another process works.*within 0 s.*fuser"):
            wait_for_lock(path, what="works", timeout=0)
    assert not path.exists()


def test_a_file_that_was_removed_is_nobodys_lock(path: Path) -> None:
    """Who waited for it locks the file that is there now; never two at once."""
    first = try_lock(path)
    assert first is not None
    path.unlink()
    second = try_lock(path)
    assert second is not None
    first.release()
    assert try_lock(path) is None
    second.remove()
    assert not path.exists()
    assert not second.held


def test_who_holds_it_writes_into_its_file(path: Path) -> None:
    """R4: whatever has got the name meanwhile; who holds it no longer writes nothing."""
    with wait_for_lock(path, what="works", timeout=1) as lock:
        lock.write(b"mine", 0o640)
        assert (path.read_bytes(), path.stat().st_mode & 0o777) == (b"mine", 0o640)
        path.unlink()
        path.write_text("other")
        lock.write(b"mine", 0o640)
        assert path.read_text() == "other"
    with pytest.raises(OSError, match="the lock is released"):
        lock.write(b"mine", 0o640)


def test_no_lock_is_reached_by_a_link(path: Path) -> None:
    """R4: its folder may be another account's."""
    path.parent.mkdir()
    other = path.parent / "other"
    other.touch()
    path.symlink_to(other)
    for ask in (is_locked, try_lock):
        with pytest.raises(OSError, match="symbolic links"):
            ask(path)


def test_a_fork_neither_holds_nor_frees_it(path: Path) -> None:
    lock = try_lock(path)
    assert lock is not None
    read, write = os.pipe()
    begun, begins = os.pipe()
    pid = os.fork()
    if pid == 0:
        lock.release()
        lock.remove()
        os.close(write)
        os.write(begins, b"x")
        os.read(read, 1)  # lives on, after the parent has freed it
        os._exit(0 if not lock.held else 1)
    assert os.read(begun, 1) == b"x"
    assert is_locked(path)
    lock.release()
    assert not is_locked(path)
    for descriptor in (write, read, begun, begins):
        os.close(descriptor)
    assert os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) == 0
    assert path.exists()


def test_a_program_does_not_inherit_it(path: Path) -> None:
    lock = try_lock(path)
    assert lock is not None
    program = subprocess.Popen(
        [sys.executable, "-c", "import sys; sys.stdin.read()"],
        stdin=subprocess.PIPE,
        close_fds=False,
    )
    lock.release()
    # Being executed, it closes its copy a moment after we are told that it runs.
    wait_for_lock(path, what="holds it", timeout=5).release()
    program.communicate(timeout=60)


def test_a_failed_look_at_a_locked_file_leaves_no_descriptor(
    path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Whoever polls it would use up all descriptors."""
    lock = try_lock(path)
    assert lock is not None
    with lock:
        before = len(list(Path("/proc/self/fd").iterdir()))
        with monkeypatch.context() as patched:
            patched.setattr(os, "fstat", Mock(side_effect=OSError(errno.EIO, "broken")))
            with pytest.raises(OSError, match="broken"):
                try_lock(path)
        assert len(list(Path("/proc/self/fd").iterdir())) == before
