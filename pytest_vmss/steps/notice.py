"""The step that tells a guest what is about to be done to it, and waits (O4)."""

from __future__ import annotations

import uuid
from collections.abc import Sequence
from dataclasses import dataclass, replace
from datetime import timedelta
from typing import ClassVar

from pytest_vmss.clock import wait_for
from pytest_vmss.environment.environment import InstanceContext
from pytest_vmss.errors import HostError, WaitTimeoutError
from pytest_vmss.guest_platform.config import PlatformFiles
from pytest_vmss.guest_platform.events_file import (
    EventType,
    ScheduledEvent,
    has_started,
    is_approved,
    publish,
    published,
)

__all__ = ["GiveNotice", "notice_steps", "withdraw_notice"]

_NAMESPACE = uuid.UUID("6d9e4c52-6d3c-4a9e-8a8b-0f8d7a5d2c11")
_LOOK_S = 0.5


def notice_steps(
    event: EventType, context: InstanceContext, generation: int, revision: int
) -> Sequence[GiveNotice]:
    """The steps by which a guest is told first; none if nobody is to be told.

    Args:
        event: What is about to be done.
        context: The instance.
        generation: Number of the OS disk that it is on; 0 if it has none.
        revision: Revision of the model that is applied to it.
    """
    disk = context.generation(generation)
    if disk is None or disk.provisioning != "Azure":
        return ()
    if _seconds(event, context, revision) is None:
        return ()
    return (GiveNotice(revision, event),)


def _seconds(event: EventType, context: InstanceContext, revision: int) -> float | None:
    """How long a guest may take to approve an event; None if it is not told of it."""
    model = context.revision(revision).model
    return model.os_image_notice if event == "Reimage" else model.terminate_notice


def withdraw_notice(context: InstanceContext) -> None:
    """Ends whatever a guest was told of.

    Raises:
        HostError: That cannot be written.
    """
    try:
        publish(PlatformFiles(context.environment.paths.platform(context.record.uuid)))
    except OSError as error:
        raise _unwritable(context, error) from error


def _unwritable(context: InstanceContext, error: OSError) -> HostError:
    return HostError(f"the scheduled events of {context.name} cannot be written: {error}")


@dataclass(frozen=True)
class GiveNotice:
    """Schedules the event, and waits until the guest approves it or its time has come.

    Attributes:
        revision: Revision of the model that says how long the guest may take.
        event: What is about to be done.
    """

    name: ClassVar[str] = "scheduled event"
    timed: ClassVar[bool] = True
    durable: ClassVar[bool] = True

    revision: int
    event: EventType

    def apply(self, context: InstanceContext) -> None:
        platform, clock = context.running_platform(), context.environment.clock
        notice = _seconds(self.event, context, self.revision)
        if platform is None or notice is None:
            return  # it does not run, so there is nobody to tell
        # The same after a crash, with the same end.
        event_id = str(uuid.uuid5(_NAMESPACE, f"{context.operation} {context.record.uuid}"))
        if has_started(platform.files, event_id):
            return  # it was killed after that; the guest has had its time
        begins = published(platform.files, event_id)
        latest = clock.now() + timedelta(seconds=notice)  # also if the clock was set back since
        event = ScheduledEvent(event_id, self.event, context.name, min(begins or latest, latest))
        try:
            publish(platform.files, event)
            if begins is None:
                self._say(context, f"the guest may approve it within {notice:.0f} s")
            self._wait(context, event)
            publish(platform.files, replace(event, started=True))
        except OSError as error:
            raise _unwritable(context, error) from error

    def _wait(self, context: InstanceContext, event: ScheduledEvent) -> None:
        platform, clock = context.running_platform(), context.environment.clock
        if platform is None:
            return
        files, left = platform.files, (event.not_before - clock.now()).total_seconds()

        def approved() -> bool | None:
            context.keep_served()
            return is_approved(files, event.event_id) or None

        try:
            wait_for(
                f"{context.name} to approve its scheduled event",
                approved,
                timeout=max(left, 0.0),
                clock=clock,
                interval=_LOOK_S,
            )
        except WaitTimeoutError:
            self._say(context, "not approved in time; it begins anyway")
        else:
            self._say(context, "approved by the guest")

    def _say(self, context: InstanceContext, what: str) -> None:
        context.event("scheduled event", f"{self.event}: {what}")
