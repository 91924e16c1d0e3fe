"""What the product does to the world, told one by one, so that a check can kill it or fail it there.

Everything passes here that leaves a trace outside the process or asks for something
there: statements of the database, calls of hypervisor, guest and load balancer, operations
on files of the lab, locks, the blob server, and the host's room.
"""

from __future__ import annotations

import contextlib
import functools
import os
import sqlite3
import sys
import threading
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from pytest_vmss.gallery import ImageStore
from pytest_vmss.simulation.guest import SimulatedGuest
from pytest_vmss.simulation.hypervisor import SimulatedHypervisor
from pytest_vmss.simulation.lab import SimulatedLab
from pytest_vmss.simulation.load_balancer import SimulatedBalancer

__all__ = ["Effect", "Family", "observing"]

Family = Literal["store", "file", "hypervisor", "guest", "balancer", "lab"]


@dataclass(frozen=True)
class Effect:
    """One moment at which something is done, or was.

    Attributes:
        family: What it is done to.
        name: What is done.
        target: To which file, machine or record.
        when: Before it, in the middle of it, or after it.
        reads: It changes nothing.
    """

    family: Family
    name: str
    target: str = ""
    when: Literal["before", "middle", "after"] = "before"
    reads: bool = False

    def __str__(self) -> str:
        return f"{self.when} {self.family} {self.name} {self.target}".rstrip()


_Observe = Callable[[Effect], object]

#: Methods that stand for an effect; those that only look are in the second tuple.
_METHODS: dict[type[Any], tuple[Family, tuple[str, ...], tuple[str, ...]]] = {
    SimulatedHypervisor: (
        "hypervisor",
        (
            "create_data_disk", "create_os_disk", "freeze_disk", "create_layer", "write_seed",
            "start", "save", "restore", "request_stop", "power_off", "remove",
        ),
        ("state", "running_generation", "agent", "is_unwritten"),
    ),
    SimulatedGuest: (
        "guest",
        (
            "wait_boot", "wake", "wait_cloud_init", "run_extension", "remove_extension", "sync",
        ),
        ("report_extension", "check", "listening", "logs"),
    ),
    SimulatedBalancer: (
        "balancer",
        ("ensure", "add", "remove", "take_out", "put_back", "stop"),
        ("connections", "healthy", "verdicts"),
    ),
    ImageStore: ("lab", (), ("path_of",)),
}  # fmt: skip
#: What a world asks of the host by functions of its own.
_WORLD = ("serve_files", "require_room", "metrics", "free_addresses")
_MIDDLES: dict[type[Any], Family] = {SimulatedHypervisor: "hypervisor", SimulatedGuest: "guest"}

#: Audit events of operations on files, with the positions of the path and of its folder.
_FILES: dict[str, tuple[str, int, int | None]] = {
    "os.remove": ("unlink", 0, 1),
    "os.rename": ("rename", 0, 2),
    "os.link": ("link", 1, 3),
    "os.mkdir": ("mkdir", 0, 2),
    "os.rmdir": ("rmdir", 0, 1),
    "os.chmod": ("chmod", 0, 2),
    "open": ("open", 0, None),
}
_WRITES = os.O_WRONLY | os.O_RDWR | os.O_CREAT | os.O_TRUNC


class _Observed(sqlite3.Connection):
    """Tells each statement."""

    def execute(self, sql: str, *parameters: Any) -> sqlite3.Cursor:
        # Before a record is given out unread, SQLite is asked whether it may have changed.
        verb = "SELECT" if sql == "PRAGMA data_version" else sql.partition(" ")[0].upper()
        if _observe is None or verb in ("ROLLBACK", "PRAGMA"):
            return super().execute(sql, *parameters)
        effect = Effect("store", verb.lower(), reads=verb in ("SELECT", "BEGIN"))
        _tell(effect)
        done = super().execute(sql, *parameters)
        if verb == "COMMIT":
            _tell(Effect("store", "commit", when="after"))
        return done


_observe: _Observe | None = None
_folder = ""
_here = threading.local()
_connect, _fsync = sqlite3.connect, os.fsync


def _tell(effect: Effect) -> None:
    if _observe is None or getattr(_here, "busy", False):
        return
    _here.busy = True
    try:
        _observe(effect)
    finally:
        _here.busy = False


def _audit(event: str, arguments: tuple[Any, ...]) -> None:
    """Tells operations on files of the lab before they happen; what it raises, they raise."""
    if _observe is None or event not in _FILES or getattr(_here, "busy", False):
        return
    name, position, folder = _FILES[event]
    path = arguments[position]
    if not isinstance(path, (str, bytes, os.PathLike)):
        return
    path = os.fsdecode(path)
    reads = False
    if event == "open":
        reads = not (arguments[2] or 0) & _WRITES
    if folder is not None and not path.startswith("/") and arguments[folder] >= 0:
        path = f"{os.readlink(f'/proc/self/fd/{arguments[folder]}')}/{path}"  # noqa: PTH115
    if path.startswith(_folder):
        _tell(Effect("file", name, path.removeprefix(_folder), reads=reads))


def _audited_fsync(descriptor: int) -> None:
    path = os.readlink(f"/proc/self/fd/{descriptor}") if _observe else ""  # noqa: PTH115
    if path.startswith(_folder):
        _tell(Effect("file", "fsync", path.removeprefix(_folder)))
    _fsync(descriptor)


def _told(
    original: Callable[..., Any], name: str, family: Family, *, reads: bool
) -> Callable[..., Any]:
    """Tells of a function before it and, where it changes something, after it."""
    middle = name == "_half_done"

    @functools.wraps(original)
    def call(*arguments: Any, **named: Any) -> Any:
        target = next(filter(None, map(_name_of, arguments)), "")
        _tell(Effect(family, name, target, "middle" if middle else "before", reads))
        result = original(*arguments, **named)
        if not reads and not middle:
            _tell(Effect(family, name, target, "after"))
        return result

    return call


def _name_of(argument: Any) -> str:
    """What an argument says of which machine or file it is about."""
    named = argument if isinstance(argument, (str, Path)) else getattr(argument, "name", "")
    return str(named).removeprefix(_folder)


@contextlib.contextmanager
def observing(lab: SimulatedLab, observe: _Observe) -> Iterator[None]:
    """Tells of every effect; what ``observe`` raises, the effect raises.

    Args:
        lab: Whose effects.
        observe: Told in the thread that has the effect. Effects of its own are not told.
    """
    global _observe, _folder  # noqa: PLW0603 - audit hooks cannot be removed
    with contextlib.ExitStack() as undo:

        def wrap(owner: Any, name: str, family: Family, *, reads: bool) -> None:
            original = getattr(owner, name)
            undo.callback(setattr, owner, name, original)
            setattr(owner, name, _told(original, name, family, reads=reads))

        for kind, (family, changes, looks) in _METHODS.items():
            for name in changes:
                wrap(kind, name, family, reads=False)
            for name in looks:
                wrap(kind, name, family, reads=True)
        for kind, family in _MIDDLES.items():
            wrap(kind, "_half_done", family, reads=False)
        for name in _WORLD:
            wrap(lab.environment, name, "lab", reads=True)
        _observe, _folder = observe, f"{lab.paths.folder}/"
        try:
            yield
        finally:
            _observe = None


vars(sqlite3)["connect"] = functools.partial(_connect, factory=_Observed)
vars(os)["fsync"] = _audited_fsync
sys.addaudithook(_audit)
