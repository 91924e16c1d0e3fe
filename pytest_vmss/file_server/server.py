"""A small HTTP server for files, safe against hostile clients (H5, R1).

One thread serves all clients. It limits the number of connections and the time for a request,
and sends files in pieces as fast as clients receive them, so that no client uses up the
orchestrator's descriptors, memory or CPU. Only a few clients are sent files at a time; those
with the same token share places, so that slow ones keep nobody else waiting.
"""

from __future__ import annotations

import asyncio
import base64
import contextlib
import enum
import errno
import hashlib
import os
import re
import socket
import stat
import threading
import time
from collections import Counter
from collections.abc import AsyncIterator, Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path

import h11

from pytest_vmss.errors import VmssError

__all__ = ["MAX_CONNECTIONS", "Answer", "FileServer"]

#: Maximum number of concurrent connections; one more is accepted only to replace another.
MAX_CONNECTIONS = 32
#: Maximum number of files sent concurrently, in all and to clients of one share.
_PLACES = 16
_SHARE_PLACES = 12

_BACKLOG = 16
#: Maximum size of a request in bytes, with all its headers.
_REQUEST_MAX = 16 << 10
#: Timeout in seconds from the connection to the complete request.
_REQUEST_S = 10.0
_PIECE = 64 << 10
#: Timeout in seconds for sending one piece: a guest may be paused for a while.
_PIECE_S = 60.0
#: Timeout in seconds for a whole file, and the lowest average rate in bytes per second.
_ANSWER_S = 3600.0
_SLOWEST = 64 << 10
#: Seconds for which a client keeps its place, or waits for one, even if others have fewer.
_TURN_S = 5.0
#: Seconds between two checks of whose turn it is.
_LOOK_S = 0.05
#: Seconds in which a new client is never dropped, since slow guests send their requests late.
_GRACE_S = 1.0
#: Seconds without progress after which a response may be dropped to make room.
_STALLED_S = 5.0
#: Seconds to pause accepting after the host failed to accept a connection.
_REFUSED_S = 0.5
#: Maximum number of files whose digests are cached.
_DIGESTS = 64
_RANGE = re.compile(rb"bytes=(\d{0,18})-(\d{0,18})")


@dataclass(frozen=True)
class Answer:
    """The response to a request.

    Attributes:
        status: HTTP status.
        body: The path of a file, which is streamed, or the whole body.
        code: Azure's error code; empty if there is none.
        share: Identifies the token; clients with the same one share places.
        goes_on: Whether the connection accepts one more request afterwards.
    """

    status: int
    body: bytes | Path
    code: str = ""
    share: str = ""
    goes_on: bool = False


class _State(enum.Enum):
    """What a client is doing."""

    IDLE = enum.auto()  # has not sent a request yet, or has its response
    WAITS = enum.auto()  # for its turn to be sent a file
    TAKES = enum.auto()  # is receiving a response
    REFUSED = enum.auto()  # has waited too long for a file


@dataclass(eq=False)
class _Client:
    """A connection.

    Attributes:
        link: Its socket.
        state: What it is doing.
        share: The share of the file that it requested.
        progress: When it last received something, or since when it has been waiting.
        since: Since when it has been sent a file; 0 if it is not.
        task: The task that serves it.
    """

    link: socket.socket
    state: _State = _State.IDLE
    share: str = ""
    progress: float = field(default_factory=time.monotonic)
    since: float = 0.0
    task: asyncio.Task[None] | None = None


class FileServer:
    """Serves GET and HEAD requests until :meth:`close`.

    Args:
        address: Address to listen on; with port 0 the host chooses one.
        answer: Returns the response for a request's target. Called in the server's thread.

    Raises:
        OSError: It cannot listen there.
    """

    def __init__(self, address: tuple[str, int], answer: Callable[[str], Answer]) -> None:
        self._answer = answer
        self._clients: list[_Client] = []
        self._digests: dict[tuple[int, ...], tuple[str, str]] = {}
        self._readings: dict[tuple[int, ...], asyncio.Task[None]] = {}
        self._listener = socket.socket(socket.AF_INET, socket.SOCK_STREAM)
        try:
            self._listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            self._listener.setblocking(False)
            self._listener.bind(address)
            self._listener.listen(_BACKLOG)
            self._loop = asyncio.new_event_loop()
            # The default handler would log what clients send, with tracebacks, on standard error.
            self._loop.set_exception_handler(lambda _loop, _context: None)
        except BaseException:
            self._listener.close()
            raise
        self._thread: threading.Thread | None = None
        self._work: asyncio.Task[None] | None = None

    @property
    def port(self) -> int:
        """The port it listens on."""
        port: int = self._listener.getsockname()[1]
        return port

    def start(self) -> None:
        """Starts serving, in a thread."""
        self._work = self._loop.create_task(self._accept())
        self._thread = threading.Thread(
            target=self._run, args=[self._work], name="vmss-blobs", daemon=True
        )
        self._thread.start()

    def close(self) -> None:
        """Stops listening, and drops all connections."""
        if self._thread is not None and self._work is not None:
            self._loop.call_soon_threadsafe(self._work.cancel)
            self._thread.join()
        else:
            self._loop.close()
        self._listener.close()

    def _run(self, work: asyncio.Task[None]) -> None:
        try:
            with contextlib.suppress(asyncio.CancelledError):
                self._loop.run_until_complete(work)
        finally:
            self._loop.close()

    async def _accept(self) -> None:
        try:
            while True:
                try:
                    link, _ = await self._loop.sock_accept(self._listener)
                except OSError:  # no descriptors, or the client is gone again
                    await asyncio.sleep(_REFUSED_S)
                    continue
                link.setblocking(False)
                client = _Client(link)
                self._clients.append(client)
                client.task = self._loop.create_task(self._serve(client))
                await asyncio.sleep(0)  # lets the task read what it has already sent
                while len(self._clients) > MAX_CONNECTIONS:
                    await self._make_room()
        finally:
            for client in list(self._clients):
                await _drop(client)
            for reading in list(self._readings.values()):
                reading.cancel()
                await asyncio.wait([reading])

    async def _make_room(self) -> None:
        """Drops the slowest client, or refuses one that waits for a file; otherwise pauses."""
        now = time.monotonic()
        grace = {_State.IDLE: _GRACE_S, _State.TAKES: _STALLED_S}
        slow = [
            client
            for client in self._clients[:-1]  # the last is the newcomer
            if client.state in grace and now - client.progress > grace[client.state]
        ]
        if slow:
            await _drop(min(slow, key=lambda c: (c.state is _State.TAKES, c.progress)))
            return
        waiting = [
            client
            for client in self._clients
            if client.state is _State.WAITS and now - client.progress > _TURN_S
        ]
        if waiting:
            held = Counter(client.share for client in self._clients)
            max(waiting, key=lambda c: (held[c.share], c.progress)).state = _State.REFUSED
        await asyncio.sleep(_LOOK_S)

    @contextlib.asynccontextmanager
    async def _turn(self, client: _Client) -> AsyncIterator[bool]:
        """Waits for a place to be sent a file; yields whether the client got one."""
        client.state, client.progress = _State.WAITS, time.monotonic()
        while client.state is _State.WAITS and not self._is_next(client):
            await self._make_way(client)
            await asyncio.sleep(_LOOK_S)
        is_served = client.state is _State.WAITS
        client.state, client.progress = _State.TAKES, time.monotonic()
        client.since = client.progress if is_served else 0.0
        try:
            yield is_served
        finally:
            client.since = 0.0

    def _served(self) -> list[_Client]:
        return [client for client in self._clients if client.since]

    def _is_next(self, client: _Client) -> bool:
        """Whether a place is free and it is this client's turn: shares with fewest go first."""
        served = self._served()
        held = Counter(other.share for other in served)
        if len(served) >= _PLACES or held[client.share] >= _SHARE_PLACES:
            return False
        waiting = [other for other in self._clients if other.state is _State.WAITS]
        return client is min(waiting, key=lambda other: (held[other.share], other.progress))

    async def _make_way(self, client: _Client) -> None:
        """Drops a client that is stalled, or whose share has too many places, if that is needed."""
        served, now = self._served(), time.monotonic()
        held = Counter(other.share for other in served)
        if len(served) < _PLACES and held[client.share] < _SHARE_PLACES:
            return
        stalled = [other for other in served if now - other.progress > _STALLED_S]
        if not stalled and len(served) >= _PLACES:
            most = max(held.values())
            stalled = [
                other
                for other in served
                if held[other.share] == most > held[client.share] + 1
                and now - other.since > _TURN_S
            ]
        if stalled:
            await _drop(min(stalled, key=lambda other: (other.progress, other.since)))

    async def _serve(self, client: _Client) -> None:
        try:
            connection = h11.Connection(h11.SERVER, max_incomplete_event_size=_REQUEST_MAX)
            for may_go_on in (True, False):
                async with asyncio.timeout(_REQUEST_S):
                    request = await self._request(client, connection)
                if request is None:
                    return
                client.state, client.progress = _State.TAKES, time.monotonic()
                answer = self._decide(request)
                if may_go_on and answer.goes_on and isinstance(answer.body, bytes):
                    await self._send_one_of_two(client, connection, answer, answer.body)
                    client.state = _State.IDLE
                    continue
                await self._respond(client, connection, request, answer)
                await self._take_leave(client)
                return
        except (OSError, TimeoutError, h11.ProtocolError):
            pass  # the client is gone, too slow, or does not speak HTTP
        finally:
            self._clients.remove(client)
            client.link.close()

    async def _request(self, client: _Client, connection: h11.Connection) -> h11.Request | None:
        """Reads a request; returns None if the client is gone."""
        while True:
            try:
                event = connection.next_event()
            except h11.RemoteProtocolError as error:
                if connection.our_state in (h11.IDLE, h11.SEND_RESPONSE):
                    refusal = Answer(error.error_status_hint, b"")
                    await self._send_head(client, connection, refusal, 0, [])
                return None
            if isinstance(event, h11.Request):
                return event
            if isinstance(event, h11.ConnectionClosed):
                return None
            connection.receive_data(await self._loop.sock_recv(client.link, 4096))

    async def _send_one_of_two(
        self, client: _Client, connection: h11.Connection, answer: Answer, body: bytes
    ) -> None:
        """Sends a response after which the connection accepts another request.

        Raises:
            h11.ProtocolError: The client wants to close, or sent more with this request.
        """
        headers = [("Content-Length", str(len(body)))]
        await self._send(
            client,
            connection.send(h11.Response(status_code=answer.status, headers=headers))
            + connection.send(h11.Data(body))
            + connection.send(h11.EndOfMessage()),
        )
        connection.next_event()
        connection.start_next_cycle()

    async def _respond(
        self, client: _Client, connection: h11.Connection, request: h11.Request, answer: Answer
    ) -> None:
        body = answer.body
        if isinstance(body, Path):
            client.share = answer.share
            async with self._turn(client) as is_served:
                if not is_served:
                    answer = Answer(503, b"", "ServerBusy")
                else:
                    try:
                        file = _open(body)
                    except OSError:
                        answer = Answer(500, b"", "InternalError")
                    else:
                        with os.fdopen(file, "rb", buffering=0):
                            await self._send_file(client, connection, request, answer, file)
                        return
            body = b""
        await self._send_head(client, connection, answer, len(body), [])
        if request.method == b"GET":
            await self._send(client, connection.send(h11.Data(body)))

    def _decide(self, request: h11.Request) -> Answer:
        if request.method not in (b"GET", b"HEAD"):
            return Answer(405, b"", "UnsupportedHttpVerb")
        try:
            return self._answer(request.target.decode("latin-1"))
        except ValueError:  # not a URL
            return Answer(400, b"", "InvalidUri")
        except (OSError, VmssError):  # the host's errors, which do not concern guests
            return Answer(500, b"", "InternalError")

    async def _send_file(
        self,
        client: _Client,
        connection: h11.Connection,
        request: h11.Request,
        answer: Answer,
        file: int,
    ) -> None:
        about = os.fstat(file)
        md5, sha256 = await self._digests_of(client, file, about)
        headers = [("ETag", f'"{sha256}"'), ("Accept-Ranges", "bytes")]
        first, end = 0, about.st_size
        # Ranges apply only to GET (RFC 9110, 14.2).
        wanted = _range(request, about.st_size) if request.method == b"GET" else None
        if wanted is None:
            headers.append(("Content-MD5", md5))
        elif not wanted:
            answer = Answer(416, b"", "InvalidRange")
            headers.append(("Content-Range", f"bytes */{about.st_size}"))
            first = end
        else:
            first, end = wanted.start, wanted.stop
            answer = Answer(206, b"")
            headers.append(("Content-Range", f"bytes {first}-{end - 1}/{about.st_size}"))
        await self._send_head(client, connection, answer, end - first, headers)
        async with asyncio.timeout(min(_ANSWER_S, _PIECE_S + (end - first) / _SLOWEST)):
            while first < end and request.method == b"GET":
                piece = os.pread(file, min(_PIECE, end - first), first)
                if not piece:
                    return  # the file was truncated; the client notices that the body is too short
                first += len(piece)
                await self._send(client, connection.send(h11.Data(piece)))

    async def _send_head(
        self,
        client: _Client,
        connection: h11.Connection,
        answer: Answer,
        length: int,
        headers: list[tuple[str, str]],
    ) -> None:
        headers = [("Content-Length", str(length)), ("Connection", "close"), *headers]
        if answer.code:
            headers.append(("x-ms-error-code", answer.code))
        head = h11.Response(status_code=answer.status, headers=headers)
        await self._send(client, connection.send(head))

    async def _send(self, client: _Client, data: bytes | None) -> None:
        async with asyncio.timeout(_PIECE_S):
            await self._loop.sock_sendall(client.link, data or b"")
        client.progress = time.monotonic()

    async def _take_leave(self, client: _Client) -> None:
        """Waits for the client to close: closing first could destroy data it has not read yet."""
        client.link.shutdown(socket.SHUT_WR)
        client.state = _State.IDLE  # its response is sent, so it may be dropped first
        async with asyncio.timeout(_STALLED_S):
            while await self._loop.sock_recv(client.link, 4096):
                pass

    async def _digests_of(
        self, client: _Client, file: int, about: os.stat_result
    ) -> tuple[str, str]:
        """Returns a file's MD5, in Azure's format, and SHA-256; cached by content.

        A file is read once, however many ask for it, and also if they all leave. Who waits for
        that does not stall.
        """
        key = (about.st_dev, about.st_ino, about.st_size, about.st_mtime_ns)
        if key not in self._digests:
            reading = self._readings.get(key) or self._begin_reading(key, os.dup(file), about)
            while not reading.done():
                client.progress = client.since = time.monotonic()
                await asyncio.wait([reading], timeout=_LOOK_S)
            await reading  # raises what it raised
        return self._digests[key]

    def _begin_reading(
        self, key: tuple[int, ...], file: int, about: os.stat_result
    ) -> asyncio.Task[None]:
        """Begins to compute the digests of a file, which is closed at the end."""

        def ended(_: asyncio.Task[None]) -> None:  # also if it was cancelled before it began
            os.close(file)
            del self._readings[key]

        reading = self._loop.create_task(self._read(key, file, about))
        reading.add_done_callback(ended)
        self._readings[key] = reading
        return reading

    async def _read(self, key: tuple[int, ...], file: int, about: os.stat_result) -> None:
        md5, sha256 = hashlib.md5(usedforsecurity=False), hashlib.sha256()
        for piece in _pieces(file, about):
            md5.update(piece)
            sha256.update(piece)
            await asyncio.sleep(0)  # others are served meanwhile
        while len(self._digests) >= _DIGESTS:
            del self._digests[next(iter(self._digests))]
        self._digests[key] = base64.b64encode(md5.digest()).decode(), sha256.hexdigest()


def _open(path: Path) -> int:
    """Opens a regular file in a folder, following no links.

    Raises:
        OSError: It does not exist, or is a link, a pipe, or anything else but a regular file.
    """
    folder = os.open(path.parent, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC)
    try:
        # Opening a pipe without a writer would block.
        flags = os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC
        file = os.open(path.name, flags, dir_fd=folder)
    finally:
        os.close(folder)
    if not stat.S_ISREG(os.fstat(file).st_mode):
        os.close(file)
        raise FileNotFoundError(errno.ENOENT, "not a regular file", path.name)
    return file


def _pieces(file: int, about: os.stat_result) -> Iterator[bytes]:
    for start in range(0, about.st_size, _PIECE):
        yield os.pread(file, _PIECE, start)


async def _drop(client: _Client) -> None:
    if client.task is not None:
        client.task.cancel()
        await asyncio.wait([client.task])
    client.link.close()  # in case it was dropped before its task started


def _range(request: h11.Request, size: int) -> range | None:
    """Returns the requested byte range; None for all, an empty range if it is not satisfiable."""
    headers = dict(request.headers)
    asked = _RANGE.fullmatch(headers.get(b"x-ms-range", headers.get(b"range", b"")))
    if asked is None or asked.groups() == (b"", b"") or b"if-range" in headers:
        return None  # no range, several, or conditional: a server may always send everything
    first, last = asked.groups()
    if not first:
        return range(max(size - int(last), 0), size)
    end = size if not last else min(int(last) + 1, size)
    return range(min(int(first), size), end)
