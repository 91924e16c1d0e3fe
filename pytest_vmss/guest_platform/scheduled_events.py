"""The scheduled events of one instance, as its guest sees them (O3)."""

from __future__ import annotations

from typing import Any

from pytest_vmss.guest_platform.exchange import Request, Response, json_response
from pytest_vmss.untrusted import UnreadableError, read_json

__all__ = ["ScheduledEvents"]


class ScheduledEvents:
    """Answers requests; an instance has no events yet, so none can be started."""

    def answer(self, request: Request, version: str) -> Response:
        """Returns the response to a request.

        Args:
            request: GET for the events, or POST to approve some.
            version: The api-version.
        """
        if request.method == "GET":
            return json_response({"DocumentIncarnation": 1, "Events": []})
        try:
            unknown = _asked(read_json(request.body.decode()), version)
        except (UnicodeDecodeError, UnreadableError, ValueError) as error:
            return json_response({"error": f"Bad request. {error}"}, 400)
        if unknown:
            return json_response({"error": f"Bad request. There is no event {unknown[0]}"}, 400)
        return Response(200)


def _asked(document: Any, version: str) -> list[str]:
    """The ids of the events that a request approves.

    Raises:
        ValueError: The document is none for this.
    """
    entries = document.get("StartRequests") if isinstance(document, dict) else None
    if not isinstance(entries, list):
        raise ValueError("StartRequests is missing")
    ids = [entry.get("EventId") if isinstance(entry, dict) else None for entry in entries]
    if not all(isinstance(one, str) for one in ids):
        raise ValueError(f"Each of the StartRequests needs an EventId in version {version}")
    return [str(one)[:64] for one in ids]
