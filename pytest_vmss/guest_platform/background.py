"""Runs what serves guests in a process of its own, in the background and with few rights (R4)."""

from __future__ import annotations

import ctypes
import os
import resource
import sys
from collections.abc import Callable
from pathlib import Path

from pytest_vmss.errors import VmssError

__all__ = ["drop_rights", "in_background"]

_MEMORY = 512 * 1024**2
_FILE = 1024**2
_NO_NEW_PRIVILEGES = 38  # PR_SET_NO_NEW_PRIVS


def in_background(prepare: Callable[[], Callable[[], object]]) -> int:
    """Serves in a process of its own; returns once it is ready.

    Args:
        prepare: Prepares to serve, in that process, and returns what then serves. What it raises
            is the message on standard error.

    Returns:
        0, or 1 after a message on standard error.
    """
    answer, told = os.pipe()
    if os.fork():
        os.close(told)
        with os.fdopen(answer) as pipe:
            message = pipe.read()
        if message == "ready":
            return 0
        sys.stderr.write(message or "the process ended before the guest was served\n")
        return 1
    os.close(answer)
    status = 1
    try:
        with os.fdopen(told, "w") as pipe:
            try:
                serve = prepare()
                pipe.write("ready")
            except (VmssError, OSError) as error:
                pipe.write(f"{getattr(error, 'message', error)}\n")
                raise SystemExit(1) from error
        _detach()
        serve()
        status = 0
    finally:
        os._exit(status)


def _detach() -> None:
    """Lets go of the caller's pipes, and limits this process."""
    empty = os.open(os.devnull, os.O_RDWR)
    for descriptor in (0, 1, 2):
        os.dup2(empty, descriptor)
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    resource.setrlimit(resource.RLIMIT_FSIZE, (_FILE, _FILE))
    resource.setrlimit(resource.RLIMIT_AS, (_MEMORY, _MEMORY))


def drop_rights() -> None:
    """Becomes the account that owns the current folder, and gives up what it could regain (R4).

    Raises:
        OSError: It cannot.
    """
    owner = Path().stat()
    if os.geteuid() == 0 and owner.st_uid:
        os.setgroups([])
        os.setgid(owner.st_gid)
        os.setuid(owner.st_uid)
    if ctypes.CDLL(None, use_errno=True).prctl(_NO_NEW_PRIVILEGES, 1, 0, 0, 0):
        raise OSError(ctypes.get_errno(), "the process cannot give up rights")
