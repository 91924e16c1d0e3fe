"""The scheduled events of one instance: written by the lab, approved by the guest (O4).

Both files outlive the processes, so an event that is pending when the lab is killed is the same
afterwards.
"""

from __future__ import annotations

import contextlib
import json
from dataclasses import dataclass
from datetime import UTC, datetime
from email.utils import format_datetime, parsedate_to_datetime
from pathlib import Path
from typing import Any, Literal

from pytest_vmss.guest_platform.config import PlatformFiles
from pytest_vmss.host.files import write_durably
from pytest_vmss.untrusted import UnreadableError, read_json_file

__all__ = [
    "Approvals",
    "EventType",
    "ScheduledEvent",
    "has_started",
    "is_approved",
    "publish",
    "published",
    "read_events",
]

_BYTES = 64 * 1024
#: Approvals that are kept; a guest may send as many as it likes, of events that it has.
_APPROVALS = 100

EventType = Literal["Reimage", "Terminate"]
_DESCRIPTIONS: dict[EventType, str] = {
    "Reimage": "The OS disk is replaced by that of another image version.",
    "Terminate": "The virtual machine is deleted.",
}


@dataclass(frozen=True)
class ScheduledEvent:
    """An event.

    Attributes:
        event_id: Its id.
        event_type: What is about to be done.
        instance: Azure's name of the instance that it is about.
        not_before: When it begins unless it is approved before.
        started: Whether it has begun.
    """

    event_id: str
    event_type: EventType
    instance: str
    not_before: datetime
    started: bool = False

    def wire(self) -> dict[str, Any]:
        """The event in Azure's form."""
        begins = format_datetime(self.not_before.astimezone(UTC), usegmt=True)
        return {
            "EventId": self.event_id,
            "EventStatus": "Started" if self.started else "Scheduled",
            "EventType": self.event_type,
            "ResourceType": "VirtualMachine",
            "Resources": [self.instance],
            "NotBefore": "" if self.started else begins,
            "Description": _DESCRIPTIONS[self.event_type],
            "EventSource": "Platform",
            "DurationInSeconds": -1,
        }


def read_events(path: Path) -> dict[str, Any]:
    """The document that the metadata service answers with; without events if there is none."""
    with contextlib.suppress(OSError, UnreadableError):
        document = read_json_file(path, _BYTES)
        if isinstance(document, dict):
            return document
    return {"DocumentIncarnation": 1, "Events": []}


def publish(files: PlatformFiles, *events: ScheduledEvent) -> None:
    """Replaces the instance's events; a change is a new incarnation of the document.

    Raises:
        OSError: The file cannot be written.
    """
    before = read_events(files.events)
    wire = [event.wire() for event in events]
    if wire == before["Events"]:
        return
    document = {"DocumentIncarnation": before["DocumentIncarnation"] + 1, "Events": wire}
    files.write(files.events, json.dumps(document).encode())


def published(files: PlatformFiles, event_id: str) -> datetime | None:
    """When an event that is published already begins; None if there is no such event."""
    for event in read_events(files.events)["Events"]:
        if event["EventId"] == event_id and event["NotBefore"]:
            return parsedate_to_datetime(event["NotBefore"])
    return None


def has_started(files: PlatformFiles, event_id: str) -> bool:
    """Whether the guest is told that an event has begun."""
    events = read_events(files.events)["Events"]
    return any(one["EventId"] == event_id and one["EventStatus"] == "Started" for one in events)


def is_approved(files: PlatformFiles, event_id: str) -> bool:
    """Whether the guest has approved an event."""
    return event_id in _approved(files.approvals)


def _approved(path: Path) -> list[str]:
    """The ids in the file, which the guest's process writes."""
    try:
        found = read_json_file(path, _BYTES)
    except (OSError, UnreadableError):
        return []
    return [str(one) for one in found] if isinstance(found, list) else []


class Approvals:
    """Keeps what the guest approves.

    Args:
        path: The file.
    """

    def __init__(self, path: Path) -> None:
        self._path = path

    def add(self, event_id: str) -> None:
        """Records an approval; one that is recorded already stays.

        Raises:
            OSError: The file cannot be written.
        """
        known = _approved(self._path)
        if event_id not in known:
            body = [*known, event_id][-_APPROVALS:]
            write_durably(self._path, json.dumps(body).encode())
