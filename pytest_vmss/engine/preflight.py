"""Checks before the first instance is touched (C8, D1)."""

from __future__ import annotations

import contextlib
import http.client
import ipaddress
import re
import socket
import ssl
from collections.abc import Callable, Iterator
from functools import partial
from urllib.parse import urlsplit

from pytest_vmss.concurrency import bounded
from pytest_vmss.engine.planner import Member, Policy, Progress, Stop, next_batch
from pytest_vmss.environment.environment import Environment
from pytest_vmss.environment.set_health import observe_instances
from pytest_vmss.errors import NotFoundError
from pytest_vmss.file_server.blobs import GUEST_VIEW
from pytest_vmss.guest.extensions import is_known
from pytest_vmss.guest.in_guest.download import encoded
from pytest_vmss.host.http import http_status
from pytest_vmss.model import Health, ScaleSetModel, respelled
from pytest_vmss.secrecy import mask
from pytest_vmss.store import OperationRecord
from pytest_vmss.store.queries import instances_of

__all__ = ["UNREACHABLE", "file_uris", "reach", "require_known", "too_unhealthy", "unreachable"]

#: The code of an upgrade whose model names what cannot be reached (C8).
UNREACHABLE = "ExternalResourceUnreachable"

#: Seconds for checking all URIs of a model, and how many problems are reported.
_REACH_S = 120.0
_TOLD_URIS = 20
_TIMEOUT_S = 10.0
#: Seconds for one URI: resolving its name and all its requests.
_LIMIT_S = 25.0
_SHOWN_CHARS = 200
_LOOPBACK = "127.0.0.1"
#: In place of an HTTP status: no request was sent.
_NOT_ASKED = 0
#: Statuses for a missing file; with any other, a guest may get a different answer.
_GONE = (404, 410)
_NO_SUCH_HOST = (socket.EAI_NONAME, getattr(socket, "EAI_NODATA", socket.EAI_NONAME))


def file_uris(model: ScaleSetModel) -> Iterator[tuple[str, str]]:
    """The URIs that a model's extensions download from: (extension, URI)."""
    for extension in model.extensions:
        for settings in (extension.settings or {}, extension.protected_settings or {}):
            uris = respelled(settings, ["fileUris"]).get("fileUris", [])
            for uri in uris if isinstance(uris, list) else ():
                yield extension.name, str(uri)


def require_known(environment: Environment, operation: OperationRecord) -> None:
    """Checks, before an instance is stopped, that this process could start it again.

    On a resume, the settings and the registered extensions may differ.

    Raises:
        NotFoundError: The size, an extension or the health function is not known here.
    """
    model = environment.revisions.get(operation.set_id, operation.revision).model
    environment.size_of(model)
    record = environment.set_record(operation.scale_set)
    if record.health_function and record.unique_id not in environment.checks:
        environment.store.event(
            record.name,
            "warning",
            "the suite's own health function is not known in this process, and is not asked; "
            "give it with set_health_check",
            operation=operation.id,
        )
    for extension in model.extensions:
        if not is_known(extension) and extension.name.lower() not in record.left_out:
            raise NotFoundError(
                f"the extension {extension.name!r} ({extension.handler_name}) is not registered "
                "in this process; register its handler, as the process did that began"
            )


def too_unhealthy(environment: Environment, scale_set: str) -> str:
    """Why the set's health would stop an upgrade before its first batch now; empty if not (D1)."""
    records = instances_of(environment.store, scale_set)
    running = [record for record in records if record.power == "running"]
    seen = observe_instances(environment, scale_set, running)
    members = [
        Member(
            record.instance_id,
            seen[record.instance_id].health if record.power == "running" else Health.UNKNOWN,
            on_target=False,
            stopped=record.power != "running",
        )
        for record in records
    ]
    policy = environment.revisions.current(scale_set).model.rolling_policy
    percent = policy.max_unhealthy_instance_percent
    first = next_batch(members, Policy(max_unhealthy_instance_percent=percent), Progress())
    return first.reason if isinstance(first, Stop) else ""


def unreachable(environment: Environment, model: ScaleSetModel) -> list[str]:
    """The problems of a model's URIs; empty if nothing is certainly wrong (C8)."""
    end = environment.clock.monotonic() + _REACH_S
    wrong: list[str] = []
    for name, uri in file_uris(model):
        if environment.clock.monotonic() > end or len(wrong) >= _TOLD_URIS:
            break  # guests will find out the rest
        if reason := environment.reach(uri):
            wrong.append(f"the extension {name!r}: {reason}")
    return wrong


def reach(uri: str, *, own_port: Callable[[], int | None] = lambda: None) -> str:
    """Requests a URI from the host, to find out whether it can be reached.

    Only what is certainly wrong is reported; guests find out the rest, as in Azure: whether
    a token is valid, a certificate is trusted, or a busy server recovers. Loopback and
    link-local addresses of this host are never requested (R3), except the lab's own server.
    Redirects are not followed.

    Args:
        uri: The URI that a model names.
        own_port: Returns the port of the lab's file server; None if there is none.

    Returns:
        What is wrong, without the URI's token; empty if nothing is certainly wrong.
    """
    where = re.sub(r"[?#].*", "", mask(uri), flags=re.DOTALL).replace("//***@", "//")
    where = where[:_SHOWN_CHARS]
    quiet = "@" in uri or "***" in where  # Python's messages would quote such a URI
    where = "".join(letter if letter.isprintable() else "?" for letter in where)
    try:
        parts = urlsplit(encoded(uri))
        tls = parts.scheme.lower() == "https"
        host, port = parts.hostname or "", parts.port or (443 if tls else 80)
        host.encode("idna")
    except ValueError as error:  # includes UnicodeError
        return f"{where!r} is no URI: {'it is malformed' if quiet else error}"
    if parts.scheme.lower() not in ("http", "https") or not host:
        return f"{where!r} is no URI: it must begin with http:// or https:// and name a host"
    target = f"{parts.path or '/'}{'?' if parts.query else ''}{parts.query}"
    ask = partial(_ask, host, port, target, tls=tls, own_port=own_port())
    try:
        return _judge(where, bounded(ask, what="the server", timeout=_LIMIT_S))
    except (TimeoutError, ssl.SSLError, socket.gaierror) as error:
        certain = isinstance(error, socket.gaierror) and error.errno in _NO_SUCH_HOST
        return f"{where} cannot be reached: {error}" if certain else ""
    except http.client.InvalidURL as error:
        return f"{where!r} is no URI: {'it is malformed' if quiet else error}"
    except http.client.HTTPException:
        return ""  # it answers, and a guest may understand the answer
    except OSError as error:
        return f"{where} cannot be reached: {error or type(error).__name__}"


def _ask(host: str, port: int, target: str, *, tls: bool, own_port: int | None) -> int:
    addresses = _addresses(host, port, own_port)
    if not addresses:
        return _NOT_ASKED
    context = ssl.create_default_context() if tls else None
    ask = partial(
        http_status, host=host, port=port, target=target, tls=context, timeout=_TIMEOUT_S,
        addresses=addresses,  # resolved once: a name may resolve differently next time
    )  # fmt: skip
    with contextlib.suppress(ConnectionError, http.client.HTTPException):
        status = ask("HEAD")
        if status < 400:
            return status
    # Many servers and signed URLs accept only GET; ask for a single byte.
    return ask("GET", headers={"Range": "bytes=0-0"})


def _addresses(host: str, port: int, own_port: int | None) -> list[str]:
    """Resolves a name; empty if it resolves to an address that must not be requested.

    Raises:
        OSError: It cannot be resolved.
    """
    if host == GUEST_VIEW:
        return [_LOOPBACK] if port == own_port else []
    # getaddrinfo also accepts spellings such as 127.1 and 0x7f.1.
    found = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)
    addresses = list(dict.fromkeys(str(entry[4][0]) for entry in found))
    for text in addresses:
        address = ipaddress.ip_address(text.partition("%")[0])
        if isinstance(address, ipaddress.IPv6Address):
            address = address.ipv4_mapped or address.sixtofour or address
        if address.is_loopback and port == own_port:
            continue
        if (
            address.is_loopback or address.is_unspecified or address.is_link_local
            or address.is_multicast or str(address) == GUEST_VIEW
        ):  # fmt: skip
            return []
    return addresses


def _judge(where: str, status: int) -> str:
    return f"{where} answers with HTTP status {status}" if status in _GONE else ""
