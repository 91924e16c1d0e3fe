"""Answers for the scheduled events of one instance, as its guest sees them (O3, O4)."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from pytest_vmss.guest_platform.exchange import Request, Response, json_response
from pytest_vmss.untrusted import UnreadableError, read_json

__all__ = ["ScheduledEvents"]

#: The first version that has each of these properties of an event.
_SINCE = {
    "Description": "2019-04-01",
    "EventSource": "2019-08-01",
    "DurationInSeconds": "2020-07-01",
}


class ScheduledEvents:
    """Answers requests.

    Args:
        document: Returns the instance's events now.
        approve: Called with the id of an event that the guest lets begin.
    """

    def __init__(
        self, document: Callable[[], dict[str, Any]], approve: Callable[[str], None]
    ) -> None:
        self._document = document
        self._approve = approve

    def answer(self, request: Request, version: str) -> Response:
        """Returns the response to a request.

        Args:
            request: GET for the events, or POST to approve some.
            version: The api-version.
        """
        document = self._document()
        if request.method == "GET":
            events = [
                {name: value for name, value in event.items() if _SINCE.get(name, "") <= version}
                for event in document["Events"]
            ]
            return json_response({**document, "Events": events})
        try:
            asked = _asked(read_json(request.body.decode()))
        except (UnreadableError, ValueError) as error:
            return json_response({"error": f"Bad request. {error}"}, 400)
        known = {event["EventId"] for event in document["Events"]}
        for event_id in asked:
            if event_id not in known:
                return json_response({"error": f"Bad request. There is no event {event_id}"}, 400)
        for event_id in asked:
            self._approve(event_id)
        return Response(200)


def _asked(document: Any) -> list[str]:
    """The ids of the events that a request approves.

    Raises:
        ValueError: The document is none for this.
    """
    entries = document.get("StartRequests") if isinstance(document, dict) else None
    if not isinstance(entries, list):
        raise ValueError("StartRequests is missing")
    ids = [entry.get("EventId") if isinstance(entry, dict) else None for entry in entries]
    if not all(isinstance(one, str) for one in ids):
        raise ValueError("Each of the StartRequests needs an EventId")
    return [str(one)[:64] for one in ids]
