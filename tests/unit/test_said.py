"""R2: whatever a guest says is bounded, read tolerantly, and commands no terminal."""

from __future__ import annotations

import errno
import io
import json
import os
import random
import socket
import threading
import time
import unicodedata
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from rich.console import Console as Screen

from benchmarks import fuzz_guests
from benchmarks.fuzz import Subject, fuzz, load
from pytest_vmss import untrusted
from pytest_vmss.clock import SystemClock
from pytest_vmss.errors import CloudInitError, HypervisorError, VmssError
from pytest_vmss.guest.agent import read_file, within
from pytest_vmss.guest.boot_facts import BootFacts
from pytest_vmss.guest.cloud_init import read_verdict
from pytest_vmss.guest.console import Console
from pytest_vmss.guest.console_log import HEAD_BYTES, TAIL_BYTES, LogKeeper, LogReader, cap_log
from pytest_vmss.guest.listening import parse_listening
from pytest_vmss.health import parse_custom_metrics, probe_once
from pytest_vmss.host.http import http_status
from pytest_vmss.model import Probe
from pytest_vmss.report import LiveView
from pytest_vmss.store import Store
from pytest_vmss.untrusted import (
    UnreadableError,
    clean,
    ending,
    one_line,
    read_json,
    read_json_file,
    read_whole,
    shown,
)

_HOSTILE = (
    "ok\n\x1b]0;title\x07\x1b[31mred\x1b[0m \u009b31mC1 \u009d \u202eRTL \x1bP1;2|dcs\x1b\\ \x1b[>c "
    '\x1b[?1;2"p \x1b#8\n'
)


# Text.


@given(st.text() | st.text(st.sampled_from("\x1b[]0;\x07\x9b\x9c\r\nm\u202e\ud800a")))
def test_no_text_commands_a_terminal(text: str) -> None:
    told = clean(text)
    told.encode()
    unseen = {"Cc", "Cf", "Cn", "Co", "Cs"}
    assert all(c in "\n\t" or unicodedata.category(c) not in unseen for c in told)
    assert not set(told) & set("\x1b\x9b\u202a\u202b\u202d\u202e\u2066\u2067\u2068\u2069\u200f\r")
    assert clean(told) == told
    assert len(shown(text, 50)) <= 50
    assert "\n" not in one_line(text)


def test_words_stay_and_what_stands_around_them_goes() -> None:
    told = clean(_HOSTILE)
    assert [word for word in ("ok", "red", "C1", "RTL") if word in told] == [
        "ok",
        "red",
        "C1",
        "RTL",
    ]
    assert "title" not in told
    assert "31m" not in told
    assert clean("[  OK  ] Grüße\r\n\tdone\rnext") == "[  OK  ] Grüße\n\tdone\nnext"
    assert shown(b"\xffx" * 10, 5) == "�x�x…"


def test_cleaning_takes_linear_time() -> None:
    begun = time.process_time()
    parts = (
        "\x1b]", "\x1b[0", "\x1b[ ", "\x1bP" + "a" * 511, "\r", "\u202e", "\x9d", "\x9b", "\x90",
        "\x9d" + "a" * 10, "\x98\x9d",
    )  # fmt: skip
    for part in parts:
        clean(part * (200_000 // len(part)))
    assert time.process_time() - begun < 1


@pytest.mark.parametrize("others", ["", "\n", "é", "\x1b[1m"])
def test_what_is_not_seen_goes_whatever_stands_beside_it(others: str) -> None:
    """Bidi and formats of other planes, fillers, variation selectors, private and unassigned."""
    for letter in (
        "\u3164\u115f\u034f\ufe0f\u17b4\u202e\u2066\ufffe\uffff\ue000\U000e0100\U0001d173"
        "\U00013430\U000110bd\U0001bca0\U0010ffff"
    ):
        assert letter not in clean(f"a{letter}{others}b"), ascii(letter)
    assert clean("日本語 Ελληνικά naïve 🚀\u00a0x") == "日本語 Ελληνικά naïve 🚀\u00a0x"


def test_every_character_of_unicode_is_cleaned_in_little_memory() -> None:
    told = clean("".join(map(chr, range(0x110000))))
    assert len(told) > 100_000
    assert len(untrusted._SHOWN) <= untrusted._REMEMBERED


def test_errors_command_no_terminal() -> None:
    """Whatever it was that brought a guest's words into them."""
    error = CloudInitError(
        f"ended: {_HOSTILE}", instance="web_0", errors=[_HOSTILE], console_tail=_HOSTILE
    )
    for told in (str(error), error.message, *error.errors, repr(error)):
        assert not set(told) & set("\x1b\x07\u009b\u202e")


# JSON, and what is read from it.


@pytest.mark.parametrize(
    "text",
    [
        "", "{", "NaN", "[Infinity]", "1e999", "1" + "0" * 400, "9" * 5000, "[" * 100_000,
        "[" * 65 + "]" * 65, '{"a":' * 5000, b"\xff\xfe", " " * 1_048_577,
    ],
    ids=lambda text: repr(text[:12]),
)  # fmt: skip
def test_json_out_of_bounds_is_unreadable(text: str | bytes) -> None:
    with pytest.raises(UnreadableError):
        read_json(text)


def test_a_json_file_is_read_within_bounds(tmp_path: Path) -> None:
    """R2: whoever wrote it, and whatever lies there."""
    path = tmp_path / "file.json"
    path.write_text('{"a": [1]}')
    assert read_json_file(path, 64) == {"a": [1]}
    with pytest.raises(OSError, match="larger than"):
        read_json_file(path, 9)
    for content in (b"{", b"\xff\xfe", b"", b"[" * 60 + b"1" * 30 + b"]" * 60):
        path.write_bytes(content)
        with pytest.raises(UnreadableError):
            read_json_file(path, 1024)
    pipe = tmp_path / "pipe"
    os.mkfifo(pipe)
    for other in (pipe, tmp_path, tmp_path / "missing"):
        with pytest.raises(OSError):  # noqa: PT011 - its words are the system's
            read_json_file(other, 64)


def test_json_holds_nothing_that_cannot_be_stored() -> None:
    value = read_json('{"\\ud800": ["a\\udfff", 1, 2.5, true, null]}')
    json.dumps(value, ensure_ascii=False).encode()
    assert value == {"�": ["a�", 1, 2.5, True, None]}


@pytest.mark.parametrize("value", [None, True, 1.0, 2**63, "1e3", "9" * 21, []])
def test_what_is_no_whole_number_is_said(value: object) -> None:
    with pytest.raises(UnreadableError, match="the age is no whole number"):
        read_whole(value, "the age")


@pytest.mark.parametrize(
    "phase", ["[" * 100_000, "9" * 4000, '"' + "9" * 4301 + '"', "1e999", '"\\ud800"', "[1]"]
)
def test_metrics_that_cannot_be_read_count_as_not_given(phase: str) -> None:
    told = f'{{"rollingUpgrade": {{"PhaseOrderingNumber": {phase}}}}}'
    assert parse_custom_metrics(told).phase is None


def test_questions_to_an_agent_are_bounded_together() -> None:
    asked: list[str] = []

    def slow(command: str) -> str:
        asked.append(command)
        time.sleep(0.2)
        return '{"return": 1}'

    with pytest.raises(HypervisorError, match=r"took more than 0\.1 s"):
        read_file(within(slow, 0.1), "/x")
    assert len(asked) == 1


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        ("", "1 parts in place of 3"),
        ("[]\n=== pytest-vmss ===\n{}\n=== pytest-vmss ===\n", "no object 'v1'"),
        ('{"v1": []}\n=== pytest-vmss ===\n{}\n=== pytest-vmss ===\n', "no object 'v1'"),
        ("[" * 100_000 + "\n=== pytest-vmss ===\n{}\n=== pytest-vmss ===\n", "nested too deep"),
    ],
)
def test_cloud_inits_results_that_cannot_be_read_say_why(text: str, reason: str) -> None:
    with pytest.raises(UnreadableError, match=reason):
        read_verdict(text)


def test_cloud_inits_problems_are_bounded() -> None:
    errors = json.dumps({"v1": {"errors": ["\x1b[2J" + "x" * 5000] * 100}})
    verdict = read_verdict(f"{errors}\n=== pytest-vmss ===\n\n=== pytest-vmss ===\n")
    assert verdict.status == "error"
    assert len(verdict.problems) == 20
    assert verdict.problems[0].startswith("xxx")
    assert len(verdict.problems[0]) == 1000


def test_facts_and_ports_are_bounded() -> None:
    facts = BootFacts("b\x1b[2J", "k" * 1000, "1.0.0\x1b]0;PWNED\x07\nx")
    assert (facts.boot_id, len(facts.kernel), facts.image_version) == ("b", 100, "1.0.0 x")
    assert parse_listening("0: x:zzzz y 0A\n0: 0:-1 y 0A\n1: 00000000:0016 y 0A rest\n") == {22}


@settings(max_examples=60, deadline=None)
@given(st.binary(max_size=500))
def test_every_parser_takes_arbitrary_bytes(content: bytes) -> None:
    for take in fuzz_guests.PARSERS:
        with suppress(VmssError, UnreadableError):
            take(content)


def test_fuzzing_finds_nothing() -> None:
    """A small run of ``python -m benchmarks.fuzz guests``."""
    found = fuzz(load("guests"), count=200, seed=12)
    assert (found.inputs, found.tracebacks, found.slow) == (200, [], [])


def test_fuzzing_would_find_something() -> None:
    def cases(_: random.Random, count: int) -> Iterator[Callable[[], object]]:
        for _number in range(count):
            yield lambda: int("x")
            yield lambda: read_json("{")

    found = fuzz(Subject(cases, (UnreadableError,)), count=1, seed=1)
    assert str(found) == "inputs=2 tracebacks=1 slow=0"


# Consoles.


@pytest.mark.parametrize(
    "text",
    [
        b"error: " * 150_000,
        b"error: x not found." + b"\n" * 1_000_000,
        (b"error: x not found." + b" " * 50) * 15_000,
        b"error: you need to load the kernel" * 30_000,
        b"Cloud-init v. " * 70_000,
        b"Cloud-init v. " + b"x" * 1_000_000,
        b"[    1" * 200_000,
        b"[" + b" " * 1_000_000,
    ],
    ids=lambda text: repr(text[:20]),
)
def test_no_console_freezes_who_reads_it(tmp_path: Path, text: bytes) -> None:
    """One line of 171 KiB took minutes, in which no other thread ran."""
    path = tmp_path / "console.log"
    path.write_bytes(text)
    begun = time.process_time()
    console = Console(path)
    assert console.trouble() is None
    console.milestone()
    assert len(console.tail()) < 25_000
    assert time.process_time() - begun < 1


def test_a_console_is_read_on_as_it_grows(tmp_path: Path) -> None:
    """What was read is not read again, and words may come in two parts."""
    path = tmp_path / "console.log"
    console = Console(path)
    assert console.milestone() == "the console shows nothing"
    with path.open("ab", buffering=0) as log:
        log.write(b"SeaBIOS\nKernel panic - ")
        assert console.milestone() == "reached the firmware"
        assert console.trouble() is None
        log.write(b"not syncing: VFS\n")
        assert console.trouble() == "panic"
        log.write(b"x\n" * 3_000_000)
        assert console.trouble() == "panic"
    path.write_bytes(b"a daemon has begun a new file\nGRUB\n")
    assert console.milestone() == "reached the boot loader"


def test_a_log_without_end_is_capped_in_its_middle(tmp_path: Path) -> None:
    """R2: its beginning and its end stay, and whoever appends goes on."""
    folder = tmp_path / "web" / "0"
    folder.mkdir(parents=True)
    path = folder / "console-1.log"
    short = folder / "console-2.log"
    short.write_bytes(b"x\n" * 100_000)
    with path.open("ab", buffering=0) as log:
        log.write(b"first words\n")
        for _ in range(20):
            log.write(b"y" * (1024 * 1024 - 1) + b"\n")
        log.write(b"last words\n")
        size = path.stat().st_size
        LogKeeper(tmp_path).look()
        if not cap_log(path) and path.stat().st_blocks * 512 > size:
            pytest.skip("this file system knows no holes")
        log.write(b"\x1b[31mgoes on\n")
    assert path.stat().st_size == size + 13
    assert path.stat().st_blocks * 512 < HEAD_BYTES + TAIL_BYTES + 1024 * 1024
    assert short.stat().st_blocks * 512 >= 200_000
    text = "".join(LogReader(path).read())
    assert text.startswith("first words\nyyy")
    assert text.endswith("yyy\nlast words\ngoes on\n")
    assert "\n[... 12 MiB left out ...]\n" in text
    assert Console(path).tail(2) == "last words\ngoes on"


def test_a_reader_goes_on_where_it_was(tmp_path: Path) -> None:
    path = tmp_path / "log"
    reader = LogReader(path)
    assert list(reader.read()) == []
    path.write_bytes(b"one\xc3")
    assert "".join(reader.read()) == "one"
    with path.open("ab") as log:
        log.write(b"\xa9\r")
    assert "".join(reader.read()) == "é"
    with path.open("ab") as log:
        log.write(b"\ntwo")
    assert "".join(reader.read()) == "\ntwo"


def test_a_log_that_is_another_one_is_read_from_its_beginning(tmp_path: Path) -> None:
    """E5: by a daemon that rotates it; by the next look it is longer than the old one was."""
    path = tmp_path / "console.log"
    panic = b"Kernel panic - not syncing: x\n" + b"y" * 20_000

    def replace() -> None:
        (tmp_path / "next").write_bytes(panic)
        (tmp_path / "next").replace(path)

    def overwrite() -> None:
        with path.open("r+b") as log:
            log.truncate(0)
            log.write(panic)

    for change in (replace, overwrite):
        path.write_bytes(b"SeaBIOS\n" + b"x" * 10_000)
        console, reader = Console(path), LogReader(path)
        assert console.trouble() is None
        assert "".join(reader.read()).startswith("SeaBIOS")
        change()
        assert "".join(reader.read()) == panic.decode()
        assert console.trouble() == "panic"
        with path.open("ab") as log:
            log.write(b"more")
        assert "".join(reader.read()) == "more"
    path.write_bytes(b"x" * 100_000)
    console = Console(path, 90_000)
    console.milestone()
    (tmp_path / "next").write_bytes(b"Kernel panic\n" * 10)
    (tmp_path / "next").replace(path)
    assert console.tail().count("Kernel panic") == 10


def test_a_log_that_cannot_be_read_says_nothing(tmp_path: Path) -> None:
    """Q1, R2: that it is a folder, or a pipe, is no error of whatever waits for a boot."""
    (tmp_path / "folder").mkdir()
    os.mkfifo(tmp_path / "pipe")
    for name in ("folder", "pipe", "missing"):
        console = Console(tmp_path / name)
        assert (console.trouble(), console.tail()) == (None, "")
        assert list(LogReader(tmp_path / name).read()) == []


# HTTP.


@contextmanager
def _answering(answer: Callable[[socket.socket], None]) -> Iterator[int]:
    def serve() -> None:
        with suppress(OSError):
            link, _ = listener.accept()
            with link:
                link.recv(4096)
                answer(link)

    with socket.create_server(("127.0.0.1", 0)) as listener:
        threading.Thread(target=serve, daemon=True).start()
        yield listener.getsockname()[1]


def _for_ever(first: bytes, again: bytes, pause: float) -> Callable[[socket.socket], None]:
    def answer(link: socket.socket) -> None:
        link.sendall(first)
        while True:
            link.sendall(again)
            time.sleep(pause)

    return answer


@pytest.mark.parametrize(
    ("first", "again", "pause", "reason"),
    [
        (b"", b"HTTP/1.1 100 Continue\r\n\r\n" * 500, 0.0, "more than 128 KiB|no answer within"),
        (b"HTTP/1.1 200 ", b"x", 0.2, "no answer within 1 s"),
        (b"HTTP/1.1 200 OK\r\n", b"a: b\r\n", 0.2, "no answer within 1 s"),
        (b"HTTP/1.1 200 OK\r\n", (b"a: " + b"b" * 50_000 + b"\r\n"), 0.0, "128 KiB|no answer"),
    ],
)
def test_a_probes_answer_without_end_is_no_answer(
    first: bytes, again: bytes, pause: float, reason: str
) -> None:
    """F2, R2: what was cut off at the limit had counted as healthy."""
    probe = Probe(name="p", protocol="Http", port=80, request_path="/")
    with _answering(_for_ever(first, again, pause)) as port:
        begun = time.monotonic()
        seen = probe_once(probe, "127.0.0.1", port, timeout=1.0)
        assert time.monotonic() - begun < 10
    assert not seen.healthy
    assert any(words in seen.detail for words in reason.split("|")), seen.detail


@pytest.mark.parametrize(
    "headers",
    [
        b'Content-Type: multipart/x; "' + b";" * 64_000 + b"\r\n " + b";" * 60_000,
        b"Content-Type: multipart/x;" + b"".join(b"b*%d*=x;" % n for n in range(6_000)),
        b"Content-Type: multipart/x; boundary*=zzz'en'%ff%fe",
    ],
)
def test_headers_that_are_costly_to_parse_are_not_parsed(headers: bytes) -> None:
    """R2: the standard library took a minute for some, holding up everything, past the limit."""
    probe = Probe(name="p", protocol="Http", port=80, request_path="/")
    answer = b"HTTP/1.1 200 OK\r\n" + headers + b"\r\n\r\n"
    with _answering(lambda link: link.sendall(answer)) as port:
        begun = time.process_time()
        assert probe_once(probe, "127.0.0.1", port, timeout=5.0).healthy
        assert time.process_time() - begun < 0.5


@pytest.mark.parametrize(
    ("answer", "detail"),
    [
        (b"HTTP/1.1 100 Continue\r\n\r\nHTTP/1.1 200 OK\r\n\r\n", "HTTP status 200"),
        (b"HTTP/1.1 103 x\r\na: b\r\n\r\nHTTP/1.0 404\n\n", "HTTP status 404"),
        (b"HTTP/1.1 200 OK\n", "HTTP status 200"),
        (b"HTTP/1.1 -200 x\r\n\r\n", "HTTP/1.1 -200 x"),
        (b"HTTP/1.1 2_00 x\r\n\r\n", "HTTP/1.1 2_00 x"),
        (b"HTTP/1.1 \xb2\xb2\xb2 x\r\n\r\n", "HTTP/1.1 "),
        (b"HTTP/1.1 \x1b[31m\xc2\x9d\xe2\x80\xae[/x]\r\n\r\n", "HTTP/1.1 [/x]"),
        (b"", "without an answer"),
    ],
)
def test_what_is_an_answer_and_what_is_not(answer: bytes, detail: str) -> None:
    probe = Probe(name="p", protocol="Http", port=80, request_path="/")
    with _answering(lambda link: link.sendall(answer)) as port:
        seen = probe_once(probe, "127.0.0.1", port, timeout=5.0)
    assert detail in seen.detail
    assert seen.healthy == ("200" in detail and "status" in detail)


def test_an_answer_is_read_to_its_body_and_no_further() -> None:
    probe = Probe(name="p", protocol="Http", port=80, request_path="/")
    body = b"HTTP/1.1 200 OK\r\nContent-Length: 99999999\r\n\r\n"
    with _answering(_for_ever(body, b"x" * 65536, 0.0)) as port:
        assert probe_once(probe, "127.0.0.1", port, timeout=10.0).healthy


@pytest.mark.parametrize("trouble", [errno.ENETUNREACH, errno.EHOSTUNREACH, errno.ETIMEDOUT])
def test_an_address_that_leads_nowhere_does_not_hide_the_next(
    trouble: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """C8: no IPv6 on a host is no ConnectionError; and no address uses up the others' time."""
    given: list[float] = []
    connect = socket.create_connection

    def dial(address: tuple[str, int], timeout: float) -> socket.socket:
        given.append(timeout)
        if address[0] != "127.0.0.1":
            raise OSError(trouble, os.strerror(trouble))
        return connect(address, timeout)

    monkeypatch.setattr(socket, "create_connection", dial)
    with _answering(lambda link: link.sendall(b"HTTP/1.1 204 x\r\n\r\n")) as port:
        addresses = ["2001:db8::1", "192.0.2.1", "127.0.0.1"]
        status = http_status("GET", "x", port, "/", tls=None, timeout=9, addresses=addresses)
    assert status == 204
    assert given == [pytest.approx(shared, abs=1) for shared in (3.0, 4.5, 9.0)]


# What is shown.


def test_the_live_view_shows_words_not_markup(tmp_path: Path) -> None:
    """J4: a MarkupError ended its thread."""
    store = Store(tmp_path / "db", SystemClock())
    screen = Screen(file=io.StringIO(), force_terminal=True, width=200)
    view = LiveView(store, screen)
    store.event("web", "warning", "\x1b]0;PWNED\x07said [/x]", instance_id=0)
    store.event("web", "step", "boot[/]: [link=http://e]x[/link]", instance_id=0)
    store.event("web", "outcome", "[/nothing]", instance_id=1)
    for event in store.events():
        view._take(event)
    screen.print(view._table())
    told = screen.file.getvalue()  # type: ignore[attr-defined]
    assert "said [/x]" in told
    assert "[link=http://e]" in told
    assert "[/nothing]" in told
    assert "\x1b]" not in told
    store.close()


@pytest.mark.parametrize(
    ("text", "told"),
    [
        (" short \n", "short"),
        ("s3cr3tpassword was wrong", "… was wrong"),
        ("wrong password:\ns3cr3t is not it", "…\ns3cr3t is not it"),
        ("x" * 50, "…"),
    ],
)
def test_a_long_text_ends_without_a_part_of_a_word(text: str, told: str) -> None:
    """M5: masking would not recognize half of a secret."""
    assert ending(text, 21) == told
