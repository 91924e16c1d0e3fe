"""One libvirt connection for each process and URI, and the event loop behind it."""

from __future__ import annotations

import contextlib
import ctypes
import hashlib
import os
import tempfile
import threading
from dataclasses import dataclass
from functools import cache
from pathlib import Path

import libvirt
from filelock import FileLock, Timeout

from pytest_vmss.errors import ConflictError, HostError, LabError

__all__ = ["Connection", "default_uri", "open_connection"]

_SYSTEM_SOCKETS = (Path("/run/libvirt/libvirt-sock"), Path("/run/libvirt/virtqemud-sock"))

#: Longest path of a UNIX socket, without the terminating zero.
_SOCKET_PATH_MAX = 107
#: What libvirt adds to the embedded driver's root for a monitor's socket, at most.
_MONITOR_SUFFIX = len("/lib/qemu/domain-9999-" + "n" * 20 + "/monitor.sock")

_PR_SET_CHILD_SUBREAPER = 36


@dataclass
class Connection:
    """An open connection.

    Attributes:
        libvirt: libvirt's own object.
        uri: Where it leads.
        run_as: See :func:`~pytest_vmss.hypervisor.domain.domain_xml`.
    """

    libvirt: libvirt.virConnect
    uri: str
    run_as: str | None
    _lock: FileLock | None = None
    _reaper: _Reaper | None = None
    _link: Path | None = None

    def close(self) -> None:
        """Closes it; machines run on."""
        self.libvirt.close()
        if self._reaper is not None:
            self._reaper.stop()
        if self._link is not None:
            self._link.unlink(missing_ok=True)
        if self._lock is not None:
            self._lock.release()


def default_uri(folder: Path) -> str:
    """The connection for this user and host, as DESIGN.md says.

    Args:
        folder: Where the embedded driver may keep its files.
    """
    if os.geteuid() != 0:
        return "qemu:///session"
    if any(socket.exists() for socket in _SYSTEM_SOCKETS):
        return "qemu:///system"
    return f"qemu:///embed?root={folder}"


def open_connection(uri: str | None, *, folder: Path, cache: Path) -> Connection:
    """Opens a connection.

    Args:
        uri: Where to; None for the default.
        folder: Where the embedded driver keeps its files.
        cache: Where what libvirt learns about QEMU is kept between labs.

    Raises:
        HostError: libvirt or its QEMU driver is missing or does not answer.
        ConflictError: Another process uses the embedded driver's folder.
        LabError: The folder's path is too long, and has no short name to use.
    """
    _start_event_loop()
    uri = uri or default_uri(folder)
    lock: FileLock | None = None
    reaper: _Reaper | None = None
    link: Path | None = None
    if uri.startswith("qemu:///embed"):
        root = Path(uri.partition("root=")[2].partition("&")[0] or folder)
        lock = _prepare_embedded(root, cache)
        link = _short_link(root)
        uri = f"qemu:///embed?root={link or root}"
        reaper = _Reaper(root)
    try:
        connection = libvirt.open(uri)
    except libvirt.libvirtError as refused:
        if reaper is not None:
            reaper.stop()
        if link is not None:
            link.unlink()
        if lock is not None:
            lock.release()
        raise HostError(
            f"libvirt does not answer at {uri}: {refused}; install it with: apt-get install "
            "libvirt-daemon-system qemu-system-x86 "
            "(`vmss doctor` looks closer)"
        ) from refused
    # The system daemon's own user cannot reach into root's folders.
    run_as = "+0:+0" if uri.endswith("/system") and os.geteuid() == 0 else None
    return Connection(connection, uri, run_as, lock, reaper, link)


@cache
def _start_event_loop() -> None:
    """Starts the process's one event loop, which must be there before a connection."""
    # Every failure is raised as an exception; nothing needs printing too.
    libvirt.registerErrorHandler(lambda _context, _error: None, None)
    libvirt.virEventRegisterDefaultImpl()

    def loop() -> None:
        while True:
            libvirt.virEventRunDefaultImpl()

    threading.Thread(target=loop, name="libvirt-events", daemon=True).start()


def _prepare_embedded(root: Path, cache: Path) -> FileLock:
    """Readies the embedded driver's folder and claims it for this process."""
    etc = root / "etc"
    etc.mkdir(parents=True, exist_ok=True, mode=0o700)
    lock = FileLock(root.with_suffix(".lock"), is_singleton=False)
    try:
        lock.acquire(timeout=0)
    except Timeout as busy:
        raise ConflictError(
            f"another process works on this lab ({root.parent.name}); libvirt's embedded driver "
            "serves one at a time: wait for it, or use another lab (--lab, VMSS_STATE_DIR)"
        ) from busy
    user = f'user = "+{os.geteuid()}"\ngroup = "+{os.getegid()}"\n' if os.geteuid() == 0 else ""
    (etc / "qemu.conf").write_text(f'{user}stdio_handler = "file"\nremember_owner = 0\n')
    shared = cache / "libvirt"
    shared.mkdir(parents=True, exist_ok=True, mode=0o700)
    link = root / "cache"
    if not link.exists():
        # Asking every QEMU binary what it can do takes seconds; once is enough.
        link.symlink_to(shared)
    return lock


def _short_link(root: Path) -> Path | None:
    """A short name for a folder whose path is too long for QEMU's sockets below it.

    It is there while the connection is open, and made again for the next one.

    Raises:
        LabError: Something else has that name.
    """
    if len(str(root)) + _MONITOR_SUFFIX <= _SOCKET_PATH_MAX:
        return None
    folder = Path("/run") if os.geteuid() == 0 else Path(tempfile.gettempdir())
    link = folder / f"vmss-{hashlib.sha256(str(root).encode()).hexdigest()[:12]}"
    with contextlib.suppress(FileExistsError):
        link.symlink_to(root)
    status = link.lstat()
    if status.st_uid != os.geteuid() or not link.is_symlink() or link.readlink() != root:
        raise LabError(
            f"{root} is too long a path for QEMU's sockets, and its short name {link} is taken; "
            "use a state directory with a shorter path (VMSS_STATE_DIR)"
        )
    return link


class _Reaper:
    """Reaps QEMU processes that this process started through the embedded driver.

    QEMU daemonizes, so it becomes a child of the nearest subreaper. Where that
    is a slow PID 1, libvirt waits up to two seconds for each that ends. Only
    pids that libvirt's own pid files name are reaped, never anyone else's.
    """

    _INTERVAL = 0.05

    def __init__(self, root: Path) -> None:
        self._root = root
        self._ended = threading.Event()
        self._pids: set[int] = set()
        libc = ctypes.CDLL(None, use_errno=True)
        libc.prctl(_PR_SET_CHILD_SUBREAPER, 1, 0, 0, 0)
        self._thread = threading.Thread(target=self._run, name="qemu-reaper", daemon=True)
        self._thread.start()

    def stop(self) -> None:
        self._ended.set()
        self._thread.join()

    def _run(self) -> None:
        while not self._ended.wait(self._INTERVAL):
            # Machines, and the processes that libvirt asks what QEMU can do.
            for path in (
                *self._root.glob("run/qemu/*.pid"),
                *self._root.glob("lib/qemu/qmp-*/qmp.pid"),
            ):
                try:
                    self._pids.add(int(path.read_text()))
                except (OSError, ValueError):
                    continue  # being written, or gone again
            for pid in tuple(self._pids):
                try:
                    reaped, _ = os.waitpid(pid, os.WNOHANG)
                except ChildProcessError:
                    # Not ours (yet): started by an earlier process, or about to be orphaned.
                    if not Path(f"/proc/{pid}").exists():
                        self._pids.discard(pid)
                    continue
                if reaped:
                    self._pids.discard(pid)
