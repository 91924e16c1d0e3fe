"""Whether what a model names outside the set can be reached (C8)."""

from __future__ import annotations

import http.client
import re
import socket
import ssl
from collections.abc import Iterator
from functools import partial
from urllib.parse import urlsplit

from pytest_vmss.blobs import GUEST_VIEW
from pytest_vmss.checks import bounded
from pytest_vmss.guest.in_guest.download import encoded
from pytest_vmss.http_status import http_status
from pytest_vmss.model import ScaleSetModel

__all__ = ["file_uris", "reach"]

_TIMEOUT_S = 10.0
#: For all requests, and for the name's resolution.
_LIMIT_S = 25.0
_SHOWN_CHARS = 200
#: Statuses that say that there is nothing; any other may be another answer for a guest.
_GONE = (404, 410)
_NO_SUCH_HOST = (socket.EAI_NONAME, getattr(socket, "EAI_NODATA", socket.EAI_NONAME))


def file_uris(model: ScaleSetModel) -> Iterator[tuple[str, str]]:
    """The URIs that a model's extensions download from: (extension, URI)."""
    for extension in model.extensions:
        for settings in (extension.settings or {}, extension.protected_settings or {}):
            uris = settings.get("fileUris", [])
            for uri in uris if isinstance(uris, list) else ():
                yield extension.name, str(uri)


def reach(uri: str) -> str:
    """Asks for a URI from the host.

    Only what is certainly wrong is told; guests find out the rest, as in Azure: whether
    a token is good, a certificate is theirs to trust, or a busy server recovers.

    Returns:
        What is wrong, without the URI's token; empty where nothing certainly is.
    """
    where = re.split(r"[?#]", uri, maxsplit=1)[0][:_SHOWN_CHARS]
    where = re.sub(r"//[^/@]*@", "//", where)
    where = "".join(letter if letter.isprintable() else "?" for letter in where)
    try:
        parts = urlsplit(encoded(uri))
        tls = parts.scheme.lower() == "https"
        host, port = parts.hostname or "", parts.port or (443 if tls else 80)
        host.encode("idna")
    except ValueError as wrong:  # UnicodeError is one
        return f"{where!r} is no URI: {wrong}"
    if parts.scheme.lower() not in ("http", "https") or not host:
        return f"{where!r} is no URI: it must begin with http:// or https:// and name a host"
    target = f"{parts.path or '/'}{'?' if parts.query else ''}{parts.query}"
    ask = partial(
        _ask, "127.0.0.1" if host == GUEST_VIEW else host, port, target, tls=tls
    )  # fmt: skip
    try:
        return _judge(where, bounded(ask, what="the server", limit=_LIMIT_S))
    except (TimeoutError, ssl.SSLError, socket.gaierror) as failed:
        certain = isinstance(failed, socket.gaierror) and failed.errno in _NO_SUCH_HOST
        return f"{where} cannot be reached: {failed}" if certain else ""
    except http.client.InvalidURL as wrong:
        return f"{where!r} is no URI: {wrong}"
    except http.client.HTTPException:
        return ""  # it answers, and a guest may understand it
    except OSError as failed:
        return f"{where} cannot be reached: {failed or type(failed).__name__}"


def _ask(host: str, port: int, target: str, *, tls: bool) -> int:
    context = ssl.create_default_context() if tls else None
    ask = partial(http_status, host=host, port=port, target=target, tls=context, timeout=_TIMEOUT_S)
    status = ask("HEAD")
    if status < 400:
        return status
    # Many servers and signed URLs take GET alone; of it no more than a byte.
    return ask("GET", headers={"Range": "bytes=0-0"})


def _judge(where: str, status: int) -> str:
    return f"{where} answers with HTTP status {status}" if status in _GONE else ""
