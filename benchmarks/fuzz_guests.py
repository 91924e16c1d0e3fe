"""What guests say, mutated: agents, consoles, HTTP answers, status files, cloud-init, boot facts.

Each case checks besides that what would be shown or stored can be: no control characters, no
lone surrogates, bounded. See :mod:`benchmarks.fuzz`.
"""

from __future__ import annotations

import base64
import contextlib
import http.client
import json
import random
import socket
import tempfile
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path

from pytest_vmss.clock import Deadline
from pytest_vmss.errors import HypervisorError
from pytest_vmss.guest.agent import guest_time, read_file
from pytest_vmss.guest.boot_facts import parse_facts
from pytest_vmss.guest.cloud_init import read_verdict
from pytest_vmss.guest.console import Console
from pytest_vmss.guest.console_log import LogReader
from pytest_vmss.guest.extensions.command import read_outcome
from pytest_vmss.guest.extensions.report import described
from pytest_vmss.guest.in_guest.application_health import document
from pytest_vmss.guest.listening import parse_listening
from pytest_vmss.health import parse_custom_metrics, read_report
from pytest_vmss.host.http import read_status
from pytest_vmss.model import ApplicationHealthSettings, Extension
from pytest_vmss.model.extension_result import ExtensionResult
from pytest_vmss.untrusted import UnreadableError, clean, shown

__all__ = ["ALLOWED", "PARSERS", "cases"]

#: What parsers raise that others turn into an instance's trouble.
ALLOWED = (UnreadableError,)

_NOW = 1_700_000_000_000_000_000
_SETTINGS = ApplicationHealthSettings.model_validate({"protocol": "tcp", "port": 1})
_EXTENSION = Extension(
    name="health", publisher="Microsoft.Azure.Extensions", type="CustomScript",
    type_handler_version="2.1",
)  # fmt: skip
_LAST = ExtensionResult(name="health", type="t", status="success")
_MARK = "=== pytest-vmss ===\n"
_METRICS = '{"rollingUpgrade": {"PhaseOrderingNumber": 3, "SkipUpgrade": "false"}}'

_STATUS = document("Healthy", "ok", _METRICS, "0f1e2d3c-0000", _NOW)
_FILE = json.dumps({"return": {"buf-b64": base64.b64encode(_STATUS.encode()).decode()}})
_VERDICT = (
    '{"v1": {"errors": []}}\n' + _MARK + '{"v1": {"init": {"recoverable_errors": '
    '{"WARNING": ["x"]}}}}\n' + _MARK + "[WARNING]: odd\n"
)
_CONSOLE = (
    "SeaBIOS\nGRUB\nerror: file `/vmlinuz' not found.\nerror: you need to load the kernel first.\n"
    "[    1.234567] Linux version 6.1\n[  OK  ] Reached target\nKernel panic - not syncing: x\n"
    "Cloud-init v. 22.4 finished at now\n\x1b[0;32mweb login: \x1b]0;title\x07"
)
_HTTP = "HTTP/1.1 100 Continue\r\n\r\nHTTP/1.1 200 OK\r\nContent-Length: 2\r\nA: b\r\n\r\nok"
_FACTS = "0f1e2d3c-aaaa-bbbb-cccc-000000000000\n6.1.0\n1.2.3\n"
_TABLE = "  0: 00000000:0016 00000000:0000 0A 00000000:00000000 00:00000000 00000000 0\n"

#: What breaks parsers, terminals, stores and tables.
_NASTY = (
    b"\x00", b"\xff\xfe", b"\xed\xa0\x80", b"\\ud800", b"\x1b[2J", b"\x1b]0;x", b"\x1b]8;;http://e\x07",
    b"\xc2\x9b31m", b"\xe2\x80\xae", b"[/x]", b"[link=http://e]", b"NaN", b"Infinity", b"1e999",
    b"9" * 30, b"9" * 5000, b"-0", b"null", b"true", b"{}", b"[]", b"[" * 200, b"[" * 100_000,
    b'{"a":' * 2000, b'"' * 3, b"\r", b"\r\n", b"\n" * 50, b"error: ", b" not found.", b" " * 1000,
    b"=== pytest-vmss ===\n", b"[WARNING]: ", b"Cloud-init v. ", b"=" * 5, b"HTTP/1.1 100 x\r\n\r\n",
)  # fmt: skip


def _mutated(rng: random.Random, seed: str) -> bytes:
    """A text with a few changes; now and then nothing of it is left, or much is repeated."""
    data = bytearray(seed.encode())
    if rng.random() < 0.05:
        data = bytearray(rng.randbytes(rng.randrange(2000)))
    for _ in range(rng.randrange(6)):
        at = rng.randrange(len(data) + 1)
        match rng.randrange(5):
            case 0:
                data[at:at] = rng.choice(_NASTY)
            case 1:
                data[at : at + rng.randrange(1, 20)] = rng.choice(_NASTY)
            case 2:
                del data[at : at + rng.randrange(1, 40)]
            case 3 if data:
                data[at % len(data)] = rng.randrange(256)
            case _:
                data[at:at] = data[at : at + rng.randrange(1, 40)] * rng.randrange(1, 20)
    if rng.random() < 0.002:
        data = data[:100] * 20_000
    return bytes(data)


def _sound(text: str, most: int = 8192) -> None:
    """Fails where a text cannot be shown or stored."""
    text.encode()
    assert text == clean(text), "it has controls"
    assert len(text) <= most, "it has no bound"


def _agent(answer: bytes) -> None:
    text = answer.decode(errors="surrogateescape")
    for look in (partial(read_file, lambda _: text, "/x"), partial(guest_time, lambda _: text)):
        try:
            look()
        except HypervisorError as error:
            _sound(error.message)


def _agent_file(content: bytes) -> None:
    answers = iter((3, {"buf-b64": base64.b64encode(content).decode()}, {}))
    read = read_file(lambda _: json.dumps({"return": next(answers)}), "/x")
    _report(read)


def _report(content: bytes) -> None:
    seen = read_report(content, now=_NOW, settings=_SETTINGS)
    _sound(seen.detail)
    _sound(seen.boot)
    parse_custom_metrics(seen.custom_metrics)
    record = described(_LAST, content, _EXTENSION)
    _sound(record.message)
    record.model_dump_json()
    for part in record.substatuses:
        _sound(part.name + part.status + part.message, 3 * 8192)


def _metrics(content: bytes) -> None:
    phase = parse_custom_metrics(content.decode(errors="surrogateescape")).phase
    assert phase is None or abs(phase) <= 2**63


def _cloud_init(content: bytes) -> None:
    verdict = read_verdict(content.decode(errors="replace"))
    _sound("\n".join(verdict.problems), 32 * 1024)


def _console(path: Path, content: bytes) -> None:
    path.write_bytes(content)
    console = Console(path, len(content) % 7)
    console.trouble()
    _sound(console.milestone())
    _sound(console.tail(), 64 * 1024)
    for text in LogReader(path).read():
        _sound(text, 256 * 1024)


def _http(content: bytes) -> None:
    ours, theirs = socket.socketpair()
    with ours, theirs:
        theirs.setblocking(False)
        try:
            theirs.send(content)
        except BlockingIOError:
            return
        theirs.shutdown(socket.SHUT_WR)
        with contextlib.suppress(OSError, http.client.HTTPException):  # as probes do
            read_status(ours, Deadline(5.0))


def _facts(content: bytes) -> None:
    text = content.decode(errors="replace")
    facts = parse_facts(text)
    for told in (facts.boot_id, facts.kernel, facts.image_version or ""):
        _sound(told, 100)
    assert all(0 <= port < 65536 for port in parse_listening(text))


def _outcome(content: bytes) -> None:
    record = read_outcome(_EXTENSION, content.decode(errors="replace"), 1.0)
    _sound(record.message)
    record.model_dump_json()


def _shown(content: bytes) -> None:
    _sound(shown(content))
    _sound(shown(content.decode(errors="surrogateescape")))


#: What takes bytes alone.
PARSERS = (_agent, _agent_file, _report, _metrics, _cloud_init, _facts, _outcome, _shown, _http)


def cases(random: random.Random, count: int) -> Iterator[Callable[[], object]]:
    """So many answers of guests, of all kinds in turn.

    Args:
        random: Where mutations come from.
        count: How many.
    """
    with tempfile.TemporaryDirectory() as folder:
        kinds: tuple[tuple[Callable[[bytes], None], str], ...] = (
            (_agent, _FILE),
            (_agent_file, _STATUS),
            (_report, _STATUS),
            (_metrics, _METRICS),
            (_cloud_init, _VERDICT),
            (partial(_console, Path(folder) / "console.log"), _CONSOLE),
            (_http, _HTTP),
            (_facts, _FACTS + _TABLE),
            (_outcome, "0\n[stdout]\nhello\n[stderr]\n"),
            (_shown, _CONSOLE),
        )
        for number in range(count):
            take, seed = kinds[number % len(kinds)]
            yield partial(take, _mutated(random, seed))
