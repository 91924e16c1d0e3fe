"""Running the host's programs: never through a shell, never unchecked."""

from __future__ import annotations

import os
import shutil
import subprocess
from collections.abc import Mapping, Sequence
from pathlib import Path

from pytest_vmss.errors import HostError, ToolError

__all__ = ["require", "run"]

#: The Debian and Ubuntu package that brings each program.
PACKAGES: Mapping[str, str] = {
    "qemu-img": "qemu-utils",
    "qemu-system-x86_64": "qemu-system-x86",
    "mmdebstrap": "mmdebstrap",
    "mke2fs": "e2fsprogs",
    "sfdisk": "fdisk",
    "mformat": "mtools",
    "mcopy": "mtools",
    "mmd": "mtools",
    "grub-mkimage": "grub-common",
    "depmod": "kmod",
    "modprobe": "kmod",
    "fakeroot": "fakeroot",
    "haproxy": "haproxy",
    "tar": "tar",
    "ssh": "openssh-client",
}

# Debian keeps administrators' programs out of a user's PATH.
_EXTRA_PATH = ("/usr/local/sbin", "/usr/sbin", "/sbin")


def require(program: str) -> str:
    """Finds a program of the host.

    Args:
        program: Its name, e.g. ``qemu-img``.

    Returns:
        Its absolute path.

    Raises:
        HostError: It is not installed; the message names the package.
    """
    path = os.pathsep.join([os.environ.get("PATH", os.defpath), *_EXTRA_PATH])
    found = shutil.which(program, path=path)
    if found is None:
        package = PACKAGES.get(program, program)
        raise HostError(
            f"the program {program!r} is not installed; install it with: apt-get install {package}"
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
) -> bytes:
    """Runs a program of the host and returns its standard output.

    Args:
        argv: Program and arguments; the program is looked up by name.
        what: What it is run for, in words, for the error message.
        timeout: Limit in seconds.
        cwd: Working directory.
        env: Variables on top of this process's own.
        stdin: What the program reads.

    Raises:
        HostError: The program is not installed.
        ToolError: It failed, or ran past its limit.
    """
    command = [require(str(argv[0])), *(str(arg) for arg in argv[1:])]
    try:
        done = subprocess.run(
            command,
            input=stdin,
            stdin=subprocess.DEVNULL if stdin is None else None,
            capture_output=True,
            timeout=timeout,
            cwd=cwd,
            env={**os.environ, **(env or {})},
            check=False,
        )
    except subprocess.TimeoutExpired as expired:
        raise ToolError(
            f"{what}: {command[0]} ran longer than its limit of {timeout:.0f} s",
            argv=command,
            returncode=None,
            stderr=(expired.stderr or b"").decode(errors="replace")[-2000:],
        ) from expired
    if done.returncode != 0:
        stderr = done.stderr.decode(errors="replace")[-2000:].strip()
        raise ToolError(
            f"{what}: {command[0]} failed with status {done.returncode}: {stderr or 'no message'}",
            argv=command,
            returncode=done.returncode,
            stderr=stderr,
        )
    return done.stdout
