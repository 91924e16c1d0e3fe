"""Opens libvirt connections, runs the event loop, and sets up the embedded driver."""

from __future__ import annotations

import atexit
import contextlib
import ctypes
import hashlib
import os
import re
import shutil
import tempfile
import threading
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import ClassVar

import libvirt

from pytest_vmss.errors import ConflictError, HostError, LabError
from pytest_vmss.host.files import write_durably
from pytest_vmss.host.locks import wait_for_lock
from pytest_vmss.host.ownership import mend_ownership, obstacle, told_obstacle
from pytest_vmss.host.paths import PROCESS_ROOTS, SOCKET_PATH_BYTES
from pytest_vmss.host.qemu_account import QemuAccount

__all__ = ["Connection", "default_uri", "open_connection"]

_SYSTEM_SOCKETS = (Path("/run/libvirt/libvirt-sock"), Path("/run/libvirt/virtqemud-sock"))

#: Longest path of a UNIX socket, without the terminating zero.
#: Maximum length that libvirt adds to the embedded driver's root for a monitor socket.
_MONITOR_SUFFIX = len("/lib/qemu/domain-9999-" + "n" * 20 + "/monitor.sock")

#: Seconds to wait for the embedded driver's folder; reaping locks each for a moment.
_CLAIM_S = 2.0

_PR_SET_CHILD_SUBREAPER = 36


@dataclass
class Connection:
    """An open libvirt connection.

    Attributes:
        libvirt: libvirt's own object.
        uri: The connection's URI.
        run_as: See :func:`~pytest_vmss.hypervisor.domain.domain_xml`.
        shared: Whether it is the process's, and stays open when this is closed.
    """

    libvirt: libvirt.virConnect
    uri: str
    run_as: str | None
    shared: bool = False

    @property
    def alive(self) -> bool:
        """Whether libvirt still responds on it."""
        try:
            return bool(self.libvirt.isAlive())
        except libvirt.libvirtError:
            return False

    def close(self) -> None:
        """Closes the connection; VMs keep running."""
        if self.shared:
            return
        with contextlib.suppress(libvirt.libvirtError):  # its daemon may be gone
            self.libvirt.close()


def default_uri(folder: Path) -> str:
    """Returns the default connection URI for this user and host, as described in DESIGN.md.

    Args:
        folder: Folder for the embedded driver's files.
    """
    if os.geteuid() != 0:
        return "qemu:///session"
    if any(socket.exists() for socket in _SYSTEM_SOCKETS):
        return "qemu:///system"
    return f"qemu:///embed?root={folder}"


def open_connection(
    uri: str | None, *, folder: Path, cache: Path, account: QemuAccount | None = None
) -> Connection:
    """Opens a libvirt connection.

    Args:
        uri: The connection URI; None for the default.
        folder: Folder for the embedded driver's files.
        cache: Folder where what libvirt learns about QEMU is cached across labs.
        account: What machines run as; None for the account of this process.

    Raises:
        HostError: libvirt or its QEMU driver is missing or does not respond.
        ConflictError: Another process uses the embedded driver's folder, or this process uses
            another folder.
        LabError: The folder's path is too long, and its short name is taken.
    """
    _start_event_loop()
    uri = uri or default_uri(folder)
    embedded = None
    if uri.startswith("qemu:///embed"):
        root = Path(uri.partition("root=")[2].partition("&")[0] or folder)
        embedded = _Embedded.claim(root, cache)
        if account is not None:
            embedded.let_in()
        uri = embedded.uri
    try:
        connection = libvirt.open(uri) if embedded is None else embedded.connect()
    except libvirt.libvirtError as error:
        raise _no_answer(uri, error) from error
    # The system daemon's own user has no access to the files of a lab without an account.
    own = "+0:+0" if uri.endswith("/system") and os.geteuid() == 0 else None
    run_as = own if account is None else account.label
    return Connection(connection, uri, run_as, shared=embedded is not None)


def _no_answer(uri: str, refused: libvirt.libvirtError) -> HostError:
    denied = re.search(r"'(/[^']+)': Permission denied", str(refused))
    if denied is not None and os.geteuid() != 0:
        path = Path(denied[1])
        found = obstacle(path)
        return HostError(
            f"libvirt does not answer at {uri}: {refused}{told_obstacle(path)}; "
            "perhaps XDG_RUNTIME_DIR or HOME is another account's",
            mend="" if found is None else mend_ownership(found),
        )
    mend = "apt-get install libvirt-daemon-system qemu-system-x86"
    return HostError(
        f"libvirt does not answer at {uri}: {refused}; install it with: {mend} "
        "(`vmss doctor` looks closer)",
        mend=mend,
    )


@cache
def _start_event_loop() -> None:
    """Starts the process's only event loop, which must run before a connection is opened."""
    # Every failure is raised as an exception; nothing needs to be printed too.
    libvirt.registerErrorHandler(lambda _context, _error: None, None)
    libvirt.virEventRegisterDefaultImpl()

    def loop() -> None:
        while True:
            libvirt.virEventRunDefaultImpl()

    threading.Thread(target=loop, name="libvirt-events", daemon=True).start()


class _Embedded:
    """libvirt's QEMU driver inside this process.

    libvirt can open one folder per process, until the process ends, and only one process at a
    time may use a folder. So it is claimed once and kept. So is the connection: with each one
    that is opened libvirt registers its driver anew, and has room for twenty.
    """

    _claimed: ClassVar[_Embedded | None] = None
    _claiming: ClassVar[threading.Lock] = threading.Lock()

    def __init__(self, root: Path, cache: Path) -> None:
        self.root = root
        self._process = os.getpid()
        try:
            # The lock first: reaping removes folders that are not locked.
            self._lock = wait_for_lock(
                root.with_suffix(".lock"),
                what=f"works on this lab ({root.parent.name}), whose embedded libvirt serves one "
                "at a time",
                timeout=_CLAIM_S,
            )
            try:
                for folder in (root.parent, root):  # 0700 whatever the umask
                    folder.mkdir(parents=True, exist_ok=True, mode=0o700)
                for name in ("etc", "log", "run"):
                    (root / name).mkdir(exist_ok=True, mode=0o700)
                self._write_configuration(cache)
                self._link = _short_link(root)
            except BaseException:
                self._lock.release()
                raise
        except OSError as error:
            raise HostError(
                f"libvirt's embedded driver cannot keep its files in {root}: {error}"
            ) from error
        self.uri = f"qemu:///embed?root={self._link or root}"
        self._connection: libvirt.virConnect | None = None
        self._reaper = _Reaper()
        atexit.register(self._release)

    @classmethod
    def claim(cls, root: Path, cache: Path) -> _Embedded:
        """Returns the process's driver for a folder, claiming the folder first if necessary.

        Raises:
            ConflictError: The process uses another folder, is a fork, or another process holds it.
            HostError: The folder cannot be used.
        """
        with cls._claiming:
            if cls._claimed is None:
                cls._claimed = cls(root, cache)
            if cls._claimed._process != os.getpid():
                raise ConflictError(
                    "libvirt's embedded driver runs in the process of which this one is a fork, "
                    "and cannot be shared; execute a program of its own for the lab"
                )
            if cls._claimed.root != root:
                raise ConflictError(
                    "libvirt's embedded driver serves one folder in each process, and this one "
                    f"has opened {cls._claimed.root}, not {root}; use a process for each lab, or a "
                    "libvirt daemon"
                )
            return cls._claimed

    def connect(self) -> libvirt.virConnect:
        """Returns the process's connection.

        Raises:
            libvirt.libvirtError: It cannot be opened.
        """
        with self._claiming:
            if self._connection is None or not self._connection.isAlive():
                self._connection = libvirt.open(self.uri)
            return self._connection

    def let_in(self) -> None:
        """Lets QEMU's account reach the folders that libvirt makes for each machine (R4).

        The driver's own account stays root, which probes what QEMU can do: libvirt 9.0 does that
        for each start anew if its account may not open a ``/dev/kvm`` that exists.

        Raises:
            HostError: It cannot be done.
        """
        below = (self.root / "lib", self.root / "lib/qemu")
        shared = (self.root.parent,) if self.root.parent.name == PROCESS_ROOTS else ()
        try:
            for folder in below:
                folder.mkdir(exist_ok=True)
            for folder in (*shared, self.root, *below):
                folder.chmod(0o711)
        except OSError as error:
            raise HostError(f"{self.root} cannot be opened to QEMU's account: {error}") from error

    def _write_configuration(self, cache: Path) -> None:
        owner = f'user = "+{os.geteuid()}"\ngroup = "+{os.getegid()}"\n'
        text = (owner if os.geteuid() == 0 else "") + (
            'stdio_handler = "file"\nremember_owner = 0\n'
        )
        write_durably(self.root / "etc/qemu.conf", text.encode())
        shared = cache / "libvirt"
        shared.mkdir(parents=True, exist_ok=True, mode=0o700)
        link = self.root / "cache"
        if not link.exists():
            # Probing every QEMU binary's capabilities takes seconds; once is enough.
            link.symlink_to(shared)

    def _release(self) -> None:
        if self._process != os.getpid():
            return  # a forked child ends; the driver and its folder belong to its parent
        if self._connection is not None:
            with contextlib.suppress(libvirt.libvirtError):
                self._connection.close()
        self._reaper.stop()
        if not any(self.root.glob("etc/qemu/*.xml")):
            # While there are VMs, the driver may write to its folder until the very end.
            if self._link is not None:
                self._link.unlink(missing_ok=True)
            if self.root.parent.name == PROCESS_ROOTS:
                shutil.rmtree(self.root, ignore_errors=True)
                with contextlib.suppress(OSError):  # at exit nothing can be done about it
                    self._lock.remove()
        self._lock.release()


def _short_link(root: Path) -> Path | None:
    """Creates a short symlink to a folder whose path is too long for QEMU's sockets.

    It exists while the process lives, and as long as the folder has VMs.

    Raises:
        LabError: The link's name is taken.
    """
    if len(str(root)) + _MONITOR_SUFFIX <= SOCKET_PATH_BYTES:
        return None
    folder = Path("/run") if os.geteuid() == 0 else Path(tempfile.gettempdir())
    link = folder / f"vmss-{hashlib.sha256(str(root).encode()).hexdigest()[:12]}"
    if link.is_dir() and not link.is_symlink() and link.lstat().st_uid == os.geteuid():
        shutil.rmtree(link)  # a driver wrote to it after its process had removed the link
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
    """Reaps QEMU processes that libvirt's embedded driver started in this process.

    QEMU daemonizes, so it becomes a child of the nearest subreaper. If that is a slow PID 1,
    libvirt waits for each that ends: up to two seconds for a VM, forty for a process that it
    starts to probe QEMU's capabilities.

    Only a child named qemu-system-… is reaped, in a session led neither by this process nor by
    itself, which is true only of daemonized ones. All other children are left alone.
    """

    _INTERVAL = 0.05

    def __init__(self) -> None:
        self._ended = threading.Event()
        libc = ctypes.CDLL(None, use_errno=True)
        libc.prctl(_PR_SET_CHILD_SUBREAPER, 1, 0, 0, 0)
        self._thread = threading.Thread(target=self._run, name="qemu-reaper", daemon=True)
        self._thread.start()

    def stop(self) -> None:
        self._ended.set()
        self._thread.join()

    def _run(self) -> None:
        while not self._ended.wait(self._INTERVAL):
            # There is no child, or no descriptor to look at them: the next look may succeed.
            with contextlib.suppress(OSError):
                while (pid := self._peek()) and self._reap(pid):
                    pass

    @staticmethod
    def _peek() -> int:
        """Returns the id of an ended child that is not reaped yet; 0 if there is none."""
        found = os.waitid(os.P_ALL, 0, os.WEXITED | os.WNOHANG | os.WNOWAIT)
        return 0 if found is None else found.si_pid

    def _reap(self, pid: int) -> bool:
        """Reaps a child if it is libvirt's, else any behind it; returns whether to continue."""
        if _is_daemonized_qemu(pid):
            os.waitpid(pid, os.WNOHANG)
            return True
        # A child of other code, not waited for yet, hides those that ended after it.
        for child in _children():
            if _is_daemonized_qemu(child):
                with contextlib.suppress(ChildProcessError):
                    os.waitpid(child, os.WNOHANG)
        return False


def _children() -> list[int]:
    """Ids of this process's children, among them at least all that it adopted as a subreaper."""
    try:
        # Its main thread adopts; those of other threads were started by code that waits for them.
        own = os.getpid()
        return [int(pid) for pid in Path(f"/proc/{own}/task/{own}/children").read_text().split()]
    except OSError:  # a kernel without that list
        return [int(entry.name) for entry in Path("/proc").iterdir() if entry.name.isdigit()]


def _is_daemonized_qemu(pid: int) -> bool:
    """Whether a process is a daemonized QEMU and a child of this one, and has ended."""
    try:
        head, _, tail = Path(f"/proc/{pid}/stat").read_text().rpartition(")")
    except OSError:
        return False
    state, parent, _, session = tail.split()[:4]
    return (
        head.partition("(")[2].startswith("qemu-system")
        and state == "Z"
        and int(parent) == os.getpid()
        and int(session) not in (pid, os.getsid(0))
    )
