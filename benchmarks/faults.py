"""In which ways each effect can really fail."""

from __future__ import annotations

import errno
import os
import sqlite3
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass

from benchmarks.effects import Effect
from pytest_vmss.errors import (
    BalancerError,
    GuestCommandError,
    GuestUnreachableError,
    HostError,
    HypervisorError,
)

__all__ = ["Fault", "faults_of"]

_AWAY = "libvirt's daemon went away, and did not come back within 60 s; start it"
_READ_ERRORS = ("disk I/O error",)
_WRITE_ERRORS = ("disk I/O error", "database or disk is full")
_FILE_ERRORS: Mapping[str, tuple[int, ...]] = {
    "open": (errno.EMFILE, errno.EIO, errno.EACCES),
    "mkdir": (errno.ENOSPC, errno.EACCES),
    "link": (errno.ENOSPC, errno.EIO),
    "rename": (errno.ENOSPC, errno.EIO),
    "fsync": (errno.EIO, errno.ENOSPC),
    "unlink": (errno.EIO, errno.EACCES),
    "rmdir": (errno.EIO, errno.EBUSY),
    "chmod": (errno.EPERM,),
}


@dataclass(frozen=True)
class Fault:
    """A way in which an effect fails.

    Attributes:
        label: Tells it from others of the same effect.
        error: Makes what is raised; None where time passes instead.
        spreads: Whether, while it lasts, it befalls another effect too.
        judges: It may be an instance's own, so that the instance may fail by it.
    """

    label: str
    error: Callable[[], Exception] | None
    spreads: Callable[[Effect], bool] = lambda _: False
    judges: bool = False


def faults_of(effect: Effect) -> Iterator[Fault]:
    """Every way in which an effect can really fail.

    Of the hypervisor, the guest and the load balancer that is what their real
    implementations let through, of which the rings of unit tests and of real VMs have tests.
    """
    match effect.family:
        case "store":
            yield from _store_faults(effect)
        case "file":
            for number in _FILE_ERRORS[effect.name]:
                yield _file_fault(effect, number)
        case "hypervisor":
            yield from _hypervisor_faults(effect)
        case "guest":
            yield from _guest_faults(effect)
        case "balancer":
            yield Fault(
                "no answer",
                lambda: BalancerError("HAProxy does not answer on its socket"),
                lambda other: other.family == "balancer",
            )
            if not effect.reads:
                yield Fault(
                    "ENOSPC",
                    lambda: _os_error(errno.ENOSPC, "haproxy.cfg"),
                    lambda other: other.family == "balancer" and not other.reads,
                )
        case "lab":
            yield from _lab_faults(effect)
    if effect.name == "begin" if effect.family == "store" else not effect.reads:
        yield Fault("time passes", None, judges=True)


def _store_faults(effect: Effect) -> Iterator[Fault]:
    locked = effect.name == "begin"
    for text in _READ_ERRORS if effect.name == "select" else _WRITE_ERRORS:
        yield Fault(
            text,
            lambda text=text: sqlite3.OperationalError(text),  # type: ignore[misc]
            lambda other, text=text: (  # type: ignore[misc]
                other.family == "store" and (text == "disk I/O error" or other.name != "select")
            ),
        )
    if locked:
        yield Fault(
            "locked",
            lambda: sqlite3.OperationalError("database is locked"),
            lambda other: other.family == "store" and other.name == "begin",
        )


def _os_error(number: int, path: str) -> OSError:
    return OSError(number, os.strerror(number), path)


def _file_fault(effect: Effect, number: int) -> Fault:
    def spreads(other: Effect) -> bool:
        if other.family != "file":
            return False
        match number:
            case errno.EMFILE:
                return other.name == "open"
            case errno.ENOSPC:
                return other.name in ("mkdir", "link", "rename", "fsync")
            case _:
                return (other.name, other.target) == (effect.name, effect.target)

    return Fault(errno.errorcode[number], lambda: _os_error(number, effect.target), spreads)


def _hypervisor_faults(effect: Effect) -> Iterator[Fault]:
    yield Fault(
        "libvirt away", lambda: HostError(_AWAY), lambda other: other.family == "hypervisor"
    )
    if effect.name in ("create_os_disk", "create_data_disk", "write_seed"):
        yield Fault(
            "ENOSPC",
            lambda: _os_error(errno.ENOSPC, effect.target),
            lambda other: other.name in ("create_os_disk", "create_data_disk", "write_seed"),
        )
    else:
        yield Fault(
            "refused",
            lambda: HypervisorError(f"libvirt refused: {effect.target}: resource busy"),
            lambda other: (other.name, other.target) == (effect.name, effect.target),
            judges=True,
        )


def _guest_faults(effect: Effect) -> Iterator[Fault]:
    def same_guest(other: Effect) -> bool:
        return (other.family, other.target) == ("guest", effect.target)

    yield Fault(
        "unreachable",
        lambda: GuestUnreachableError("no answer over SSH", instance=effect.target),
        same_guest,
        judges=True,
    )
    yield Fault(
        "connection broke",
        lambda: GuestCommandError(
            "the SSH connection broke while a command ran", instance=effect.target, exit_code=-1,
            stderr="",
        ),
        same_guest,
        judges=True,
    )  # fmt: skip
    yield Fault("libvirt away", lambda: HostError(_AWAY), lambda other: other.family == "guest")


def _lab_faults(effect: Effect) -> Iterator[Fault]:
    def same(other: Effect) -> bool:
        return (other.family, other.name) == ("lab", effect.name)

    match effect.name:
        case "free_addresses":
            yield Fault("no claim", lambda: HostError("the claim cannot be written"), same)
        case "path_of":
            yield Fault("cannot be read", lambda: HostError("the image cannot be read"), same)
        case "serve_files":
            yield Fault("port taken", lambda: HostError("the port 41234 is taken"), same)
        case "require_room" | "metrics":
            yield Fault("libvirt away", lambda: HostError(_AWAY), same)
