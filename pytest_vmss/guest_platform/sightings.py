"""What the platform has seen of a guest, kept in a file that outlives the processes (O2)."""

from __future__ import annotations

import contextlib
import json
import threading
from pathlib import Path
from typing import Any

from pytest_vmss.guest_platform.wire_server import HealthReport
from pytest_vmss.host.files import write_durably
from pytest_vmss.untrusted import UnreadableError, one_line, read_json_file, shown

__all__ = ["Recorder", "Sightings", "read_sightings"]

#: Reports of progress that are kept of one OS disk; a guest may send as many as it likes.
_REPORTS = 100
_CHARS = 4096
_BYTES = 64 * 1024

_WAY = ("dhcp", "lease", "metadata", "goal state")
_ELSEWHERE = "another cloud"
_ALL = (*_WAY, _ELSEWHERE)
_HINTS = {
    "dhcp": "it never asked for an address by DHCP: does its network come up, and has it a DHCP "
    "client?",
    "lease": "it was offered an address by DHCP, and never took it",
    "metadata": "it has an address, and never asked the metadata service: did cloud-init find "
    "Azure as its data source, with the chassis asset tag and the provisioning DVD?",
    _ELSEWHERE: "it asked the metadata service for what another cloud has, and never for what "
    "Azure has: is Azure in cloud-init's datasource_list?",
    "goal state": "it asked the metadata service, and never the wire server for its goal state",
}


class Sightings:
    """What was seen of a guest on one OS disk.

    Attributes:
        seen: What it has done, of ``dhcp``, ``lease``, ``metadata``, ``goal state`` and
            ``another cloud``: it asked the metadata service for what Azure has not.
        health: Its report about how provisioning ended, or its last one until then; None if
            there is none.
    """

    def __init__(
        self, seen: frozenset[str] = frozenset(), health: HealthReport | None = None
    ) -> None:
        self.seen = seen
        self.health = health

    def hint(self, datasource: str = "") -> str:
        """How far the guest got on its way to a report, in words.

        Args:
            datasource: What cloud-init says that it found; empty if it has not said so.
        """
        if self.health is not None and self.health.is_verdict:
            return f"it reported {self.health.state}"
        if self.health is not None:
            begun = one_line(self.health.description)
            return f"it reported that provisioning has begun ({begun}), and never how it ended"
        if datasource.startswith("DataSourceAzure") and "metadata" not in self.seen:
            # It asks with a lease of its own, before the guest's network is up.
            return (
                f"cloud-init found Azure ({datasource}), and never asked the metadata service: is "
                "a DHCP client for cloud-init in the image (dhcpcd, dhclient or udhcpc)?"
            )
        hint = self._hint()
        return f"{hint} It found {datasource}." if datasource else hint

    def _hint(self) -> str:
        for name in _WAY:
            if name == "metadata" and name not in self.seen and _ELSEWHERE in self.seen:
                return _HINTS[_ELSEWHERE]
            if name not in self.seen:
                return _HINTS[name]
        return "it fetched its goal state, and never reported whether it is ready"


def read_sightings(path: Path, generation: int) -> Sightings:
    """Reads the file; whatever it lacks was not seen.

    Args:
        path: The file.
        generation: Number of the OS disk; sightings on another one do not count.
    """
    try:
        document = read_json_file(path, _BYTES)
        if document["generation"] != generation:
            return Sightings()
        health = document["health"]
        return Sightings(
            frozenset(name for name in _ALL if name in document["seen"]),
            None
            if health is None
            else HealthReport(*(shown(str(part), _CHARS) for part in health)),
        )
    except (OSError, UnreadableError, ValueError, KeyError, TypeError):
        return Sightings()


class Recorder:
    """Keeps a file of sightings; its methods may be called by several threads.

    Args:
        path: The file.
        generation: Number of the OS disk.
    """

    def __init__(self, path: Path, generation: int) -> None:
        self._path = path
        self._generation = generation
        found = read_sightings(path, generation)
        self._seen, self._health = set(found.seen), found.health
        self._left = _REPORTS
        self._lock = threading.Lock()

    def saw(self, what: str) -> None:
        """Records that the guest did something, once."""
        if what not in self._seen:
            with self._lock:
                self._seen.add(what)
                if what == "lease":
                    self._seen.add("dhcp")
                with contextlib.suppress(OSError):  # a full disk: the next one may be kept
                    self._write(self._health)

    def report(self, health: HealthReport) -> None:
        """Records the guest's report, unless one has said how provisioning ended (O2).

        That is final, as in Azure: an image may have several agents, and each of them reports.

        Raises:
            OSError: It cannot be written; the guest should report again.
        """
        with self._lock:
            if self._health is not None and self._health.is_verdict:
                return
            if health != self._health and (health.is_verdict or self._left > 0):
                self._write(health)
                self._left -= 1
                self._health = health

    def _write(self, health: HealthReport | None) -> None:
        document: dict[str, Any] = {
            "generation": self._generation,
            "seen": sorted(self._seen),
            "health": health and [health.state, health.sub_status, health.description],
        }
        # At most 4 bytes a character, so that all of it can be read.
        body = json.dumps(document, ensure_ascii=False)
        write_durably(self._path, body.encode(errors="replace"))
