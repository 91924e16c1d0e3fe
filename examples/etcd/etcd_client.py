"""A client of an etcd cluster that keeps writing, and remembers what was acknowledged."""

from __future__ import annotations

import base64
import contextlib
import http.client
import json
import threading
import time
from types import TracebackType
from typing import Any, Self

__all__ = ["Writer", "read_all"]

#: Seconds for one request; a member without a quorum holds it until then.
_REQUEST_S = 10.0


class Writer:
    """Writes new keys to the members in turn, until the block ends.

    Args:
        members: Addresses and ports of the members' clients.

    Attributes:
        acknowledged: Key and value of each write that the cluster acknowledged.
        failed: How many writes it did not acknowledge; each may have been done or not.
    """

    def __init__(self, members: list[tuple[str, int]]) -> None:
        self._members = members
        self._ended = threading.Event()
        self._thread = threading.Thread(target=self._write, name="writer", daemon=True)
        self.acknowledged: dict[str, str] = {}
        self.failed = 0

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._ended.set()
        self._thread.join(3 * _REQUEST_S)

    def wait_for(self, more: int, *, timeout: float = 180.0) -> None:
        """Waits until so many more writes were acknowledged.

        Raises:
            TimeoutError: They were not, in so many seconds.
        """
        wanted, end = len(self.acknowledged) + more, time.monotonic() + timeout
        while len(self.acknowledged) < wanted:
            if time.monotonic() > end:
                raise TimeoutError(
                    f"{wanted - len(self.acknowledged)} of {more} writes were not acknowledged "
                    f"within {timeout:.0f} s"
                )
            time.sleep(0.2)

    def _write(self) -> None:
        number = member = 0
        while not self._ended.wait(0.05):
            number += 1
            key, value = f"key{number:08}", f"value {number}"
            try:
                _ask(self._members[member], "/v3/kv/put", {"key": _in(key), "value": _in(value)})
            except (OSError, http.client.HTTPException, ValueError):
                self.failed += 1
                member = (member + 1) % len(self._members)
            else:
                self.acknowledged[key] = value


def read_all(member: tuple[str, int]) -> dict[str, str]:
    """Reads all keys as the cluster agrees on them, by way of one member.

    Raises:
        OSError: The member does not answer, or has no quorum.
    """
    found = _ask(member, "/v3/kv/range", {"key": _in("key"), "range_end": _in("kez")})
    return {_out(entry["key"]): _out(entry["value"]) for entry in found.get("kvs", [])}


def _ask(member: tuple[str, int], path: str, body: dict[str, str]) -> dict[str, Any]:
    link = http.client.HTTPConnection(*member, timeout=_REQUEST_S)
    with contextlib.closing(link):
        link.request("POST", path, json.dumps(body), {"Content-Type": "application/json"})
        answer = link.getresponse()
        text = answer.read()
        if answer.status != http.client.OK:
            raise OSError(f"{member} answers {answer.status}: {text[:200]!r}")
        result: dict[str, Any] = json.loads(text)
        return result


def _in(text: str) -> str:
    return base64.b64encode(text.encode()).decode()


def _out(text: str) -> str:
    return base64.b64decode(text).decode()
