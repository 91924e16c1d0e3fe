"""Whether what a model names outside the set can be reached (C8)."""

from __future__ import annotations

import http.client
import ssl
from collections.abc import Iterator
from urllib.parse import urlsplit

from pytest_vmss.blobs import GUEST_VIEW
from pytest_vmss.model import ScaleSetModel

__all__ = ["file_uris", "reach"]

_TIMEOUT_S = 10.0
#: Statuses that say that there is something, though not for this token.
_REFUSED = (401, 403)


def file_uris(model: ScaleSetModel) -> Iterator[tuple[str, str]]:
    """The URIs that a model's extensions download from: (extension, URI)."""
    for extension in model.extensions:
        for settings in (extension.settings or {}, extension.protected_settings or {}):
            uris = settings.get("fileUris", [])
            for uri in uris if isinstance(uris, list) else ():
                yield extension.name, str(uri)


def reach(uri: str) -> str:
    """Asks for a URI's head from the host.

    Returns:
        What is wrong, without the URI's token; empty where it can be reached. That a token
        is refused is not: guests find out, as in Azure.
    """
    parts = urlsplit(uri)
    host = "127.0.0.1" if parts.hostname == GUEST_VIEW else parts.hostname or ""
    where = f"{parts.scheme}://{parts.hostname}{parts.path}"
    kind: type[http.client.HTTPConnection] = http.client.HTTPConnection
    if parts.scheme.lower() == "https":
        kind = http.client.HTTPSConnection
    try:
        link = kind(host, parts.port, timeout=_TIMEOUT_S)
        try:
            target = parts.path + (f"?{parts.query}" if parts.query else "")
            link.request("HEAD", target or "/", headers={"Connection": "close"})
            status = link.getresponse().status
        finally:
            link.close()
    except (OSError, http.client.HTTPException, ssl.SSLError) as failed:
        return f"{where} cannot be reached: {failed or type(failed).__name__}"
    if status >= 400 and status not in _REFUSED:
        return f"{where} answers with HTTP status {status}"
    return ""
