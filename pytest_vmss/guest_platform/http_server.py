"""A small HTTP server on Unix sockets, safe against hostile clients (R2)."""

from __future__ import annotations

import asyncio
import contextlib
import os
from collections.abc import Callable
from pathlib import Path

import h11

from pytest_vmss.errors import VmssError
from pytest_vmss.guest_platform.exchange import Request, Response

__all__ = ["HttpServer"]

#: Maximum number of concurrent connections; more are closed at once.
_CONNECTIONS = 32
_REQUEST_HEAD = 16 << 10
_BODY = 256 << 10
#: Seconds from the connection to the end of the response.
_EXCHANGE_S = 60.0
#: Seconds in which a guest must have received the response, once all of it was handed over.
_CLOSE_S = 5.0
_CHUNK = 16 << 10


class HttpServer:
    """Serves requests on Unix sockets; one request for each connection.

    Args:
        answers: What answers the requests at each path.
    """

    def __init__(self, answers: dict[str, Callable[[Request], Response]]) -> None:
        self._answers = answers
        self._open = 0

    async def listen(self) -> None:
        """Listens at all paths, in place of what a killed process left there.

        Raises:
            OSError: It cannot listen at one of them.
        """
        for path, answer in self._answers.items():
            Path(path).unlink(missing_ok=True)

            async def serve(
                reader: asyncio.StreamReader,
                writer: asyncio.StreamWriter,
                answer: Callable[[Request], Response] = answer,
            ) -> None:
                await self._serve(reader, writer, answer)

            mask = os.umask(0o177)
            try:
                await asyncio.start_unix_server(serve, path, limit=_CHUNK)
            finally:
                os.umask(mask)

    async def _serve(
        self,
        reader: asyncio.StreamReader,
        writer: asyncio.StreamWriter,
        answer: Callable[[Request], Response],
    ) -> None:
        self._open += 1
        try:
            if self._open <= _CONNECTIONS:
                async with asyncio.timeout(_EXCHANGE_S):
                    await _exchange(reader, writer, answer)
        except (OSError, TimeoutError, h11.ProtocolError):
            pass  # the guest is gone, too slow, or does not speak HTTP
        finally:
            try:
                await _close(writer)
            finally:
                self._open -= 1


async def _close(writer: asyncio.StreamWriter) -> None:
    """Closes a connection, also if the guest does not receive what it asked for."""
    writer.close()
    with contextlib.suppress(OSError, TimeoutError):
        async with asyncio.timeout(_CLOSE_S):
            await writer.wait_closed()
    writer.transport.abort()


async def _exchange(
    reader: asyncio.StreamReader,
    writer: asyncio.StreamWriter,
    answer: Callable[[Request], Response],
) -> None:
    connection = h11.Connection(h11.SERVER, max_incomplete_event_size=_REQUEST_HEAD)
    method = ""
    try:
        request = await _request(reader, writer, connection)
    except h11.RemoteProtocolError as error:
        response = Response(error.error_status_hint)
    else:
        if request is None:
            return
        method = request.method
        try:
            response = answer(request)
        except ValueError:  # not a URL
            response = Response(400)
        except (OSError, VmssError):  # something of the host's cannot be read or kept now
            response = Response(503)
    head = h11.Response(
        status_code=response.status,
        headers=[
            ("Content-Type", response.content_type),
            ("Content-Length", str(len(response.body))),
            ("Connection", "close"),
        ],
    )
    writer.write(connection.send(head) or b"")
    if method != "HEAD":
        writer.write(connection.send(h11.Data(response.body)) or b"")
    await writer.drain()


async def _request(
    reader: asyncio.StreamReader, writer: asyncio.StreamWriter, connection: h11.Connection
) -> Request | None:
    """Reads a request with its body; None if the guest is gone.

    Raises:
        h11.RemoteProtocolError: It is malformed, or too large.
    """
    head: h11.Request | None = None
    body = bytearray()
    while True:
        event = connection.next_event()
        if event is h11.NEED_DATA:
            if connection.they_are_waiting_for_100_continue:
                proceed = h11.InformationalResponse(status_code=100, headers=[])
                writer.write(connection.send(proceed) or b"")
            connection.receive_data(await reader.read(_CHUNK))
        elif isinstance(event, h11.Request):
            head = event
        elif isinstance(event, h11.Data):
            body += event.data
            if len(body) > _BODY:
                raise h11.RemoteProtocolError("the body is too large", error_status_hint=413)
        elif isinstance(event, h11.EndOfMessage) and head is not None:
            return Request(
                head.method.decode("latin-1").upper(),
                head.target.decode("latin-1"),
                {n.decode("latin-1").lower(): v.decode("latin-1") for n, v in head.headers},
                bytes(body),
            )
        else:
            return None
