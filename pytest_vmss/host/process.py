"""Runs programs of the host, never through a shell, and checks their result."""

from __future__ import annotations

import contextlib
import os
import re
import selectors
import shutil
import signal
import subprocess
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO, cast

from pytest_vmss.clock import Deadline
from pytest_vmss.errors import HostError, ToolError

__all__ = ["Bounds", "require", "run", "search_path"]

#: The Debian and Ubuntu package that contains each program.
PACKAGES: Mapping[str, str] = {
    "qemu-img": "qemu-utils",
    "qemu-system-x86_64": "qemu-system-x86",
    "mmdebstrap": "mmdebstrap",
    "mke2fs": "e2fsprogs",
    "dumpe2fs": "e2fsprogs",
    "debugfs": "e2fsprogs",
    "sfdisk": "fdisk",
    "mformat": "mtools",
    "mcopy": "mtools",
    "mmd": "mtools",
    "grub-mkimage": "grub-common",
    "depmod": "kmod",
    "modprobe": "kmod",
    "fakeroot": "fakeroot",
    "fakechroot": "fakechroot",
    "haproxy": "haproxy",
    "prlimit": "util-linux",
    "tar": "tar",
    "ssh": "openssh-client",
}

# Debian keeps administrators' programs out of a user's PATH.
_EXTRA_PATH = ("/usr/local/sbin", "/usr/sbin", "/sbin")

#: Variables passed to programs: paths, language, proxies, settings of builds, and what fakeroot,
#: fakechroot and Python environments need to work in a child.
_PASSED = re.compile(
    r"PATH|HOME|USER|LOGNAME|SHELL|TERM|TZ|LANG|LANGUAGE|LC_\w+|TMPDIR|TMP|TEMP|XDG_\w+"
    r"|(?i:https?_proxy|ftp_proxy|no_proxy|all_proxy)"
    r"|(NIX_)?SSL_CERT_(FILE|DIR)|CURL_CA_BUNDLE|SOURCE_DATE_EPOCH|DEBIAN_FRONTEND|DEBUG_\w*|GNUPGHOME"
    r"|(VMSS|LIBVIRT|LIBGUESTFS|APT|DPKG|MMDEBSTRAP|MTOOLS|MKE2FS|E2FSPROGS)_\w+"
    r"|LD_PRELOAD|LD_LIBRARY_PATH|GCONV_PATH|LOCALE_ARCHIVE|QEMU_MODULE_DIR|MTOOLSRC|FAKE\w+"
    r"|PYTHON(PATH|HOME|USERBASE|NOUSERSITE|SAFEPATH|PYCACHEPREFIX|DONTWRITEBYTECODE|UTF8"
    r"|IOENCODING)|PERL5LIB|VIRTUAL_ENV|CONDA_PREFIX|COVERAGE_\w+"
)
_TICK_S, _SHORT_TICK_S = 0.05, 0.005
_CHUNK = 65536
_KEPT_ERROR = 65536
_TOLD_CHARS = 2000
_TOO_LONG, _TOO_MUCH = "ran longer than", "wrote more than"

#: glibc otherwise reserves 64 MiB of address space for each thread that allocates, up to eight
#: times as many as there are processors.
_ONE_ARENA = {"MALLOC_ARENA_MAX": "1"}


@dataclass(frozen=True)
class Bounds:
    """Resource limits for a program that reads untrusted files (R3).

    Attributes:
        memory_mib: Address space in MiB, however many processors the host has.
        cpu_s: CPU time in seconds.
        file_mib: Size of any file that it writes, in MiB.
    """

    memory_mib: int
    cpu_s: int
    file_mib: int

    def wrap(self, command: Sequence[str]) -> list[str]:
        """Returns a command that runs another one within these limits.

        Raises:
            HostError: The program that sets them is not installed.
        """
        return [
            require("prlimit"),
            f"--as={self.memory_mib * 1024**2}",
            f"--cpu={self.cpu_s}",
            f"--fsize={self.file_mib * 1024**2}",
            "--core=0",
            "--",
            *command,
        ]


def search_path() -> str:
    """Returns the search path for programs: ``PATH``, and administrators' folders."""
    return os.pathsep.join([os.environ.get("PATH", os.defpath), *_EXTRA_PATH])


def require(program: str) -> str:
    """Finds a program of the host.

    Args:
        program: Its name, e.g. ``qemu-img``.

    Returns:
        Its absolute path.

    Raises:
        HostError: It is not installed; the message names the package.
    """
    found = shutil.which(program, path=search_path())
    if found is None:
        mend = f"apt-get install {PACKAGES.get(program, program)}"
        raise HostError(
            f"the program {program!r} is not installed; install it with: {mend}", mend=mend
        )
    return found


def run(
    argv: Sequence[str | Path],
    *,
    what: str,
    timeout: float = 300.0,
    cwd: Path | None = None,
    env: Mapping[str, str] | None = None,
    stdin: bytes | None = None,
    stdout: BinaryIO | None = None,
    grace: float = 0.0,
    pass_fds: Sequence[int] = (),
    bounds: Bounds | None = None,
    output_mib: int = 64,
    daemon: bool = False,
    on_output: Callable[[bytes], None] | None = None,
) -> bytes:
    """Runs a program of the host and returns its standard output.

    However this call ends, the program has ended too, with everything in its process group. What
    it has put into a group or session of its own, as a shell with job control does, lives on.

    Args:
        argv: Program and arguments; the program is looked up by name.
        what: What it is run for, for the error message.
        timeout: In seconds.
        cwd: Working directory.
        env: Variables added to those of this process that are passed on.
        stdin: Its standard input.
        stdout: A file for its standard output; then nothing is returned.
        grace: Seconds in which it may clean up, if it is stopped, before it is killed with
            everything it has started.
        pass_fds: Descriptors that it inherits.
        bounds: Its resource limits; it fails if it exceeds them.
        output_mib: Maximum size of its standard output, in MiB.
        daemon: Whether processes that it started keep running if it succeeds.
        on_output: Called with each part of its standard output, as it is written; must not fail.

    Raises:
        HostError: The program is not installed.
        ToolError: It cannot be started, failed, timed out, or wrote too much.
    """
    command = [require(str(argv[0])), *(str(arg) for arg in argv[1:])]
    try:
        process = subprocess.Popen(
            command if bounds is None else bounds.wrap(command),
            stdin=subprocess.DEVNULL if stdin is None else subprocess.PIPE,
            stdout=subprocess.PIPE if stdout is None else stdout,
            stderr=subprocess.PIPE,
            cwd=cwd,
            env={**_environment(), **(_ONE_ARENA if bounds else {}), **(env or {})},
            start_new_session=True,
            pass_fds=pass_fds,
        )
    except (OSError, ValueError) as error:  # ValueError: a NUL in an argument
        raise ToolError(
            f"{what}: {command[0]} cannot be started: {error}",
            argv=command, returncode=None, stderr="",
        ) from error  # fmt: skip
    lives_on = False
    with process:
        try:
            with contextlib.closing(
                _Talk(process, stdin or b"", output_mib * 1024**2, on_output)
            ) as talk:
                wrong = _exchange(process, talk, Deadline(timeout), grace)
            lives_on = daemon and not wrong and _status(process) == 0
        finally:  # also after a second Ctrl-C
            if not lives_on:
                _signal(process, signal.SIGKILL)  # with what it has left running
                process.wait()
    stderr = bytes(talk.error).decode(errors="replace")[-_TOLD_CHARS:].strip()
    if wrong:
        limit = f"{timeout:.0f} s" if wrong is _TOO_LONG else f"{output_mib} MiB of output"
        raise ToolError(
            f"{what}: {command[0]} {wrong} its limit of {limit}",
            argv=command, returncode=None, stderr=stderr,
        )  # fmt: skip
    if process.returncode != 0:
        raise ToolError(
            f"{what}: {command[0]} failed with status {process.returncode}: "
            f"{stderr or 'no message'}",
            argv=command, returncode=process.returncode, stderr=stderr,
        )  # fmt: skip
    return bytes(talk.output)


def _environment() -> dict[str, str]:
    """Returns the variables of this process that programs need; others may hold secrets (M5)."""
    return {name: value for name, value in os.environ.items() if _PASSED.fullmatch(name)}


class _Talk:
    """Exchanges input and output with a program, in bounded memory.

    Args:
        process: The program, with pipes.
        stdin: Its standard input.
        limit: Maximum size of its standard output, in bytes.
        on_output: Called with each part of its standard output.
    """

    def __init__(
        self,
        process: subprocess.Popen[bytes],
        stdin: bytes,
        limit: int,
        on_output: Callable[[bytes], None] | None = None,
    ) -> None:
        self._on_output = on_output
        self.output, self.error = bytearray(), bytearray()
        self._process = process
        self._left = memoryview(stdin)
        self._limit = limit
        self._selector = selectors.DefaultSelector()
        for pipe, event in (
            (process.stdin, selectors.EVENT_WRITE),
            (process.stdout, selectors.EVENT_READ),
            (process.stderr, selectors.EVENT_READ),
        ):
            if pipe is not None:
                os.set_blocking(pipe.fileno(), False)
                self._selector.register(pipe, event)

    def close(self) -> None:
        """Closes the pipes, even if other processes still hold them."""
        self._selector.close()
        for pipe in (self._process.stdin, self._process.stdout, self._process.stderr):
            if pipe is not None:
                with contextlib.suppress(OSError):
                    pipe.close()

    def until(self, deadline: Deadline) -> str:
        """Exchanges data until the program has ended, even if others still hold its pipes.

        Args:
            deadline: Its time limit.

        Returns:
            Which limit it exceeded; empty if it has ended.
        """
        while True:
            ended = _status(self._process) is not None
            while self._selector.get_map() and self._turn(0.0 if ended else _TICK_S):
                if len(self.output) > self._limit:
                    return _TOO_MUCH
                if deadline.passed:
                    return _TOO_LONG
            if ended:
                return ""
            if deadline.passed:
                return _TOO_LONG
            if not self._selector.get_map():
                time.sleep(_SHORT_TICK_S)

    def drain(self, deadline: Deadline) -> None:
        """Takes what a program still says, so that it can end; its output is dropped.

        Args:
            deadline: Its time limit.
        """
        while _status(self._process) is None and not deadline.passed:
            if self._selector.get_map():
                self._turn(_TICK_S)
                del self.output[self._limit :]
            else:
                time.sleep(_TICK_S)

    def _turn(self, patience: float) -> bool:
        """Transfers what can be transferred now; returns whether anything was."""
        ready = self._selector.select(patience)
        for key, _ in ready:
            pipe = cast("BinaryIO", key.fileobj)
            if pipe is self._process.stdin:
                self._say(pipe)
                continue
            part = os.read(key.fd, _CHUNK)
            if not part:
                self._selector.unregister(pipe)
            elif pipe is self._process.stdout:
                self.output += part
                if self._on_output is not None:
                    self._on_output(part)
            else:
                self.error += part
                del self.error[:-_KEPT_ERROR]
        return bool(ready)

    def _say(self, pipe: BinaryIO) -> None:
        try:
            self._left = self._left[os.write(pipe.fileno(), self._left[:_CHUNK]) :]
        except BlockingIOError:
            return
        except BrokenPipeError:
            self._left = self._left[:0]
        if not self._left:
            self._selector.unregister(pipe)
            with contextlib.suppress(BrokenPipeError):
                pipe.close()


def _exchange(
    process: subprocess.Popen[bytes], talk: _Talk, deadline: Deadline, grace: float
) -> str:
    """Exchanges data with a program; if it is stopped, gives it time to clean up.

    Returns:
        Which limit it exceeded; empty if it has ended.
    """
    wrong = "interrupted"
    try:
        wrong = talk.until(deadline)
    finally:
        if wrong and grace > 0:
            _signal(process, signal.SIGTERM)  # to the whole group, like a terminal's Ctrl-C
            talk.drain(Deadline(grace))
    return wrong


def _status(process: subprocess.Popen[bytes]) -> int | None:
    """Returns a program's exit status, or None while it runs.

    The process is not reaped, so that its id, which is used to signal its group, is not reused.
    """
    try:
        ended = os.waitid(os.P_PID, process.pid, os.WEXITED | os.WNOHANG | os.WNOWAIT)
    except ChildProcessError:  # where SIGCHLD is ignored, the kernel reaps it and drops its status
        return 0
    return None if ended is None else int(ended.si_status)


def _signal(process: subprocess.Popen[bytes], number: signal.Signals) -> None:
    with contextlib.suppress(ProcessLookupError, PermissionError):
        os.killpg(process.pid, number)
