"""Running the host's programs: never through a shell, never unchecked."""

from __future__ import annotations

import contextlib
import os
import shutil
import signal
import subprocess
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO

from pytest_vmss.errors import HostError, ToolError

__all__ = ["Bounds", "require", "run", "search_path"]

#: The Debian and Ubuntu package that brings each program.
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


@dataclass(frozen=True)
class Bounds:
    """What a program may cost that reads files which are not trusted (R3).

    Attributes:
        memory_mib: Address space.
        cpu_s: Seconds of the processor.
        file_mib: Length of any file that it writes.
    """

    memory_mib: int
    cpu_s: int
    file_mib: int

    def wrap(self, command: Sequence[str]) -> list[str]:
        """The command that runs another within these bounds.

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
    """Where programs are looked for: ``PATH``, and the folders of administrators' programs."""
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
) -> bytes:
    """Runs a program of the host and returns its standard output.

    However this ends, the program has ended too.

    Args:
        argv: Program and arguments; the program is looked up by name.
        what: What it is run for, in words, for the error message.
        timeout: Limit in seconds.
        cwd: Working directory.
        env: Variables on top of this process's own.
        stdin: What the program reads.
        stdout: A file that takes its standard output instead; nothing is returned then.
        grace: For a program that cleans up after itself: seconds that it gets for that,
            where it is stopped, before it is killed with all that it has started.
        pass_fds: Descriptors that it inherits.
        bounds: What it may cost; it fails where it takes more.

    Raises:
        HostError: The program is not installed.
        ToolError: It failed, or ran past its limit.
    """
    command = [require(str(argv[0])), *(str(arg) for arg in argv[1:])]
    with subprocess.Popen(
        command if bounds is None else bounds.wrap(command),
        stdin=subprocess.DEVNULL if stdin is None else subprocess.PIPE,
        stdout=subprocess.PIPE if stdout is None else stdout,
        stderr=subprocess.PIPE,
        cwd=cwd,
        env={**os.environ, **(env or {})},
        start_new_session=grace > 0,
        pass_fds=pass_fds,
    ) as process:
        try:
            output, error = process.communicate(stdin, timeout)
        except subprocess.TimeoutExpired as expired:
            _stop(process, grace)
            raise ToolError(
                f"{what}: {command[0]} ran longer than its limit of {timeout:.0f} s",
                argv=command,
                returncode=None,
                stderr=(expired.stderr or b"").decode(errors="replace")[-2000:],
            ) from expired
        except BaseException:
            _stop(process, grace)
            raise
    if process.returncode != 0:
        stderr = error.decode(errors="replace")[-2000:].strip()
        raise ToolError(
            f"{what}: {command[0]} failed with status {process.returncode}: "
            f"{stderr or 'no message'}",
            argv=command,
            returncode=process.returncode,
            stderr=stderr,
        )
    return output or b""


def _stop(process: subprocess.Popen[bytes], grace: float) -> None:
    """Ends a program; one with grace leads a session of its own, which ends with it."""
    if grace > 0:
        with contextlib.suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGTERM)  # all, as from a terminal's Ctrl-C
        with contextlib.suppress(subprocess.TimeoutExpired):
            process.wait(grace)
        with contextlib.suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)
    process.kill()
    process.wait()
