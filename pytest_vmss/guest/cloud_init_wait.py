"""Waits for cloud-init to finish in a guest, and keeps its logs if it failed (H1, E5)."""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path

from pytest_vmss.clock import wait_for
from pytest_vmss.errors import (
    CloudInitError,
    GuestCommandError,
    GuestUnreachableError,
    InstanceError,
    WaitTimeoutError,
)
from pytest_vmss.guest.cloud_init import (
    AGAIN,
    AS_ROOT,
    LOGS,
    CloudInitResult,
    read_verdict,
    wait_script,
)
from pytest_vmss.guest.connection import ANSWER_BYTES, Connection
from pytest_vmss.untrusted import UnreadableError, clean

__all__ = ["save_logs", "wait_cloud_init"]


def wait_cloud_init(connection: Connection, *, timeout: float) -> CloudInitResult:
    """Waits until cloud-init has finished.

    Args:
        connection: The connection to the guest.
        timeout: In seconds.

    Raises:
        CloudInitError: It failed, or did not finish in time.
        GuestUnreachableError: The guest no longer answers.
    """
    answer = _answer(connection, timeout)
    try:
        verdict = read_verdict(answer)
    except UnreadableError as error:
        raise _failure(connection, f"cloud-init's result cannot be read: {error}") from error
    if verdict.status == "error":
        raise _failure(
            connection,
            f"cloud-init ended in error: {'; '.join(verdict.problems)}",
            errors=verdict.problems,
        )
    return verdict


def _answer(connection: Connection, timeout: float) -> str:
    """Waits for the output of :func:`~pytest_vmss.guest.cloud_init.wait_script`."""
    watch, away, as_root = connection.watch, False, False

    def probe() -> str | None:
        nonlocal away, as_root
        watch.check()
        shell = connection.connect()
        away = shell is None
        if shell is None:
            return None
        try:
            result = shell.run(
                wait_script(as_root=as_root),
                sudo=as_root,
                timeout=connection.login_limit,
                most=ANSWER_BYTES,
            )
        except GuestCommandError:
            connection.close()
            return None
        as_root = as_root or result.exit_code == AS_ROOT
        return None if result.exit_code in (AGAIN, AS_ROOT, -1) else result.stdout

    try:
        return wait_for(
            f"cloud-init on {watch.name} to end",
            probe,
            timeout=timeout,
            clock=connection.clock,
            interval=0.05,
            describe=watch.milestone,
        )
    except WaitTimeoutError as error:
        told = f"cloud-init did not end within {timeout:.0f} s"
        kind: type[CloudInitError | GuestUnreachableError] = CloudInitError
        if away:
            kind = GuestUnreachableError
            told += ", and the guest does not answer over SSH"
        raise watch.failure(kind, f"{told}; the boot {watch.milestone()}") from error


def _failure(connection: Connection, message: str, *, errors: Sequence[str] = ()) -> CloudInitError:
    return CloudInitError(
        message,
        instance=connection.name,
        errors=errors,
        console_tail=connection.watch.console.tail(),
        log=save_logs(connection),
    )


def save_logs(connection: Connection) -> Path:
    """Saves cloud-init's logs beside the console's; returns their path, else the console's."""
    console = connection.watch.console.path
    path = console.with_name(console.stem + "-cloud-init.log")
    try:
        done = connection.runner().run(LOGS, sudo=True, timeout=connection.login_limit)
        # An error here, such as a full disk, must not hide cloud-init's failure.
        flags = os.O_CREAT | os.O_WRONLY | os.O_TRUNC | os.O_NOFOLLOW | os.O_CLOEXEC
        with os.fdopen(os.open(path, flags, 0o600), "w", encoding="utf-8") as file:
            file.write(clean(done.stdout))
    except (InstanceError, OSError):
        return console
    return path
