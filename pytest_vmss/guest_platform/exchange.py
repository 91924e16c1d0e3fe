"""An HTTP request of a guest, and the response to it."""

from __future__ import annotations

import json
from dataclasses import dataclass, field
from typing import Any
from urllib.parse import parse_qsl, urlsplit

__all__ = ["Request", "Response", "json_response"]


@dataclass(frozen=True)
class Request:
    """A request.

    Attributes:
        method: In upper case.
        target: Path and query.
        headers: By their name in lower case; of several, the last.
        body: The whole body.
    """

    method: str
    target: str
    headers: dict[str, str] = field(default_factory=dict)
    body: bytes = b""

    @property
    def path(self) -> list[str]:
        """The parts of its path."""
        return [part for part in urlsplit(self.target).path.split("/") if part]

    @property
    def query(self) -> dict[str, str]:
        """Its query, by names in lower case."""
        return dict(self._fields)

    @property
    def repeats_itself(self) -> bool:
        """Whether its query has a name more than once."""
        return len(self.query) < len(self._fields)

    @property
    def _fields(self) -> list[tuple[str, str]]:
        pairs = parse_qsl(urlsplit(self.target).query, keep_blank_values=True, max_num_fields=50)
        return [(name.lower(), value) for name, value in pairs]


@dataclass(frozen=True)
class Response:
    """A response."""

    status: int
    body: bytes = b""
    content_type: str = "text/plain; charset=utf-8"


def json_response(document: Any, status: int = 200) -> Response:
    """A response that is JSON."""
    body = json.dumps(document, separators=(",", ":")).encode()
    return Response(status, body, "application/json; charset=utf-8")
