"""Shares the host's memory among the labs of a state directory (L4, M7).

A guest takes its memory from the host little by little. So what is free now may have been
promised to guests of another lab that has just started them. Each lab that has instances
writes down how much they may take, in its own folder, and a lab that needs more looks at what
the others have written. What a dead lab has written does not count: a lock tells whether it
lives (Q2).
"""

from __future__ import annotations

import contextlib
import json
import os
from collections.abc import Collection
from dataclasses import dataclass
from pathlib import Path

import psutil

from pytest_vmss.host.capacity import RESERVE_MIB
from pytest_vmss.host.files import write_durably
from pytest_vmss.host.locks import is_locked, wait_for_lock
from pytest_vmss.host.paths import LabPaths
from pytest_vmss.labs.identity import labs_folder
from pytest_vmss.settings import Settings
from pytest_vmss.untrusted import read_json_file

__all__ = ["SharedRoom", "Shortage", "lock_file"]

#: Seconds to wait for other labs that look at what is written, which takes moments.
_LOCK_S = 60.0
_CLAIM_BYTES = 4096
_MIB = 1024**2


@dataclass(frozen=True)
class Shortage:
    """Why a lab does not get the memory that it needs.

    Attributes:
        message: With the numbers.
        hopeless: Whether it would not fit even if no other lab had any instance.
    """

    message: str
    hopeless: bool


@dataclass(frozen=True)
class _Claim:
    """What the instances of a lab may take.

    Attributes:
        lab: Name of the lab.
        lab_id: Part of the names of its machines.
        pid: The process that wrote it, for messages.
        mib: Memory in MiB.
    """

    lab: str
    lab_id: str
    pid: int
    mib: int


class SharedRoom:
    """What one lab has of the host's memory.

    Args:
        settings: Its settings, with the state directory and the limit for all labs.
        paths: Its files.
        lab_id: Its id.
    """

    def __init__(self, settings: Settings, paths: LabPaths, lab_id: str) -> None:
        self._settings, self._paths, self._lab_id = settings, paths, lab_id

    def take(self, needed: int, held: int, *, available: int | None) -> Shortage | None:
        """Claims memory for new instances, if there is enough for them.

        Args:
            needed: For them, in MiB.
            held: What the lab's instances already have.
            available: What the host has available, in MiB; None if that does not matter.

        Returns:
            What is lacking; None once it is claimed.

        Raises:
            ConflictError: Another lab holds the claims for too long.
            OSError: A claim cannot be read or written.
        """
        if available is None and self._settings.memory_mib is None:
            return None
        path = lock_file(self._settings)
        with wait_for_lock(path, what="shares out memory", timeout=_LOCK_S):
            others = self._others()
            shortage = self._over_the_limit(needed, held, others)
            if shortage is None and available is not None:
                shortage = self._over_what_there_is(needed, held, others, available)
            if shortage is None:
                self._write(held + needed)
        return shortage

    @property
    def is_claimed(self) -> bool:
        """Whether the lab has claimed any memory."""
        return self._paths.room.exists()

    def give_back(self, held: int) -> None:
        """Claims no more than what the lab's instances have, now that some are gone."""
        with contextlib.suppress(OSError):  # others then wait until the lab ends
            self._write(held)

    def _over_the_limit(self, needed: int, held: int, others: list[_Claim]) -> Shortage | None:
        limit = self._settings.memory_mib
        claimed = sum(claim.mib for claim in others)
        if limit is None or held + needed + claimed <= limit:
            return None
        return Shortage(
            f"{needed} MiB of memory do not fit: of the {limit} MiB that all labs may have "
            f"(setting memory_mib), this lab has {held} MiB, and {_named(others)}",
            hopeless=held + needed > limit,
        )

    def _over_what_there_is(
        self, needed: int, held: int, others: list[_Claim], available: int
    ) -> Shortage | None:
        own = _Claim("", self._lab_id, 0, held)
        resident = _resident_mib({claim.lab_id for claim in (*others, own)})
        promised = sum(max(0, c.mib - resident.get(c.lab_id, 0)) for c in (*others, own))
        if needed + RESERVE_MIB + promised <= available:
            return None
        theirs = sum(resident.get(claim.lab_id, 0) for claim in others)
        alone = max(0, held - resident.get(self._lab_id, 0))
        return Shortage(
            f"{needed} MiB of memory do not fit: {available} MiB are available, of which "
            f"{promised} MiB are promised to instances that run already and {RESERVE_MIB} MiB are "
            f"left to the host; {_named(others)}",
            hopeless=needed + RESERVE_MIB + alone > available + theirs,
        )

    def _others(self) -> list[_Claim]:
        """The claims of other labs that are in use."""
        found = []
        for folder in sorted(labs_folder(self._settings).iterdir()):
            paths = LabPaths(folder)
            if folder != self._paths.folder and paths.room.exists() and is_locked(paths.in_use):
                found += _read(paths)
        return found

    def _write(self, mib: int) -> None:
        """Writes the lab's claim, whole or not at all: half of one would be none."""
        text = json.dumps({"lab_id": self._lab_id, "pid": os.getpid(), "mib": mib})
        write_durably(self._paths.room, text.encode())


def lock_file(settings: Settings) -> Path:
    """The file that is locked to look at what labs have claimed."""
    return settings.state_dir / "room.lock"


def _read(paths: LabPaths) -> list[_Claim]:
    """The claim of a lab; none if it has none."""
    try:
        told = read_json_file(paths.room, _CLAIM_BYTES)
        claim = _Claim(
            paths.folder.name, str(told["lab_id"]), int(told["pid"]), max(0, int(told["mib"]))
        )
    except (OSError, ValueError, TypeError, KeyError):
        return []
    return [claim] if claim.mib else []


def _named(claims: list[_Claim]) -> str:
    """Says which labs have how much."""
    named = [f"{claim.lab} (process {claim.pid}) {claim.mib} MiB" for claim in claims]
    return f"others have: {', '.join(named)}" if named else "no other lab has any"


def _resident_mib(lab_ids: Collection[str]) -> dict[str, int]:
    """The memory that the machines of labs have taken so far, in MiB, by the labs' ids."""
    found: dict[str, int] = {}
    for process in psutil.process_iter(["name", "cmdline", "memory_info"]):
        if not (process.info["name"] or "").startswith("qemu"):
            continue
        memory, words = process.info["memory_info"], " ".join(process.info["cmdline"] or [])
        for lab_id in lab_ids:
            if memory is not None and f"guest=vmss-{lab_id}-" in words:
                found[lab_id] = found.get(lab_id, 0) + memory.rss // _MIB
    return found
