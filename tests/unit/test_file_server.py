"""What clients of the blob store may cost, whatever they do (H5, R1)."""

from __future__ import annotations

import contextlib
import http.client
import os
import socket
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import psutil
import pytest

from pytest_vmss.errors import HostError
from pytest_vmss.file_server.server import MAX_CONNECTIONS, Answer, FileServer

BIG = 64 << 20
#: Descriptors of the server: each client's socket and file, and its own few.
DESCRIPTORS = 2 * (MAX_CONNECTIONS + 1) + 4


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    (tmp_path / "a").write_bytes(b"0123456789")
    with (tmp_path / "big").open("wb") as file:
        file.truncate(BIG)
    return tmp_path


@pytest.fixture
def server(folder: Path) -> Iterator[FileServer]:
    def answer(target: str) -> Answer:
        if target == "/no-url":
            raise ValueError(target)
        if target == "/host":
            raise HostError("/secret/path is full")
        path, _, share = target.partition("?")
        return Answer(200, folder / path.removeprefix("/"), share=share)

    made = FileServer(("127.0.0.1", 0), answer)
    made.start()
    yield made
    made.close()


def ask(
    server: FileServer, target: str, method: str = "GET", **headers: str
) -> tuple[int, bytes, http.client.HTTPMessage]:
    link = http.client.HTTPConnection("127.0.0.1", server.port, timeout=20)
    try:
        named = {name.replace("_", "-"): value for name, value in headers.items()}
        link.request(method, target, headers=named)
        answer = link.getresponse()
        return answer.status, answer.read(), answer.headers
    finally:
        link.close()


@contextlib.contextmanager
def crowd(server: FileServer, number: int, says: bytes = b"") -> Iterator[list[socket.socket]]:
    """Clients that say something, or nothing, and wait; none of them reads."""
    with contextlib.ExitStack() as stack:
        clients = []
        for _ in range(number):
            client = stack.enter_context(socket.socket())
            client.setblocking(False)
            client.connect_ex(("127.0.0.1", server.port))
            clients.append(client)
        time.sleep(0.3)
        for client in clients:
            with contextlib.suppress(OSError):
                client.send(says)
        yield clients


@pytest.mark.parametrize(
    ("asked", "status", "body", "told"),
    [
        ("bytes=0-0", 206, b"0", "bytes 0-0/10"),
        ("bytes=2-4", 206, b"234", "bytes 2-4/10"),
        ("bytes=7-", 206, b"789", "bytes 7-9/10"),
        ("bytes=-2", 206, b"89", "bytes 8-9/10"),
        ("bytes=-20", 206, b"0123456789", "bytes 0-9/10"),
        ("bytes=8-100", 206, b"89", "bytes 8-9/10"),
        ("bytes=10-", 416, b"", "bytes */10"),
        ("bytes=-0", 416, b"", "bytes */10"),
        ("bytes=4-2", 416, b"", "bytes */10"),
        ("bytes=0-1,4-5", 200, b"0123456789", None),
        ("bytes=-", 200, b"0123456789", None),
        ("lines=0-1", 200, b"0123456789", None),
        ("bytes=" + "9" * 40 + "-", 200, b"0123456789", None),
    ],
)
def test_parts_of_a_file(
    server: FileServer, asked: str, status: int, body: bytes, told: str | None
) -> None:
    """H5: as HTTP has it; what a server need not know it answers with everything."""
    got = ask(server, "/a", Range=asked)
    assert (got[0], got[1], got[2]["Content-Range"]) == (status, body, told)
    assert ask(server, "/a", x_ms_range=asked)[0] == status


def test_a_range_is_for_get_alone(server: FileServer) -> None:
    """RFC 9110, 14.2."""
    for asked in ("bytes=2-4", "bytes=50-"):
        status, _, headers = ask(server, "/a", "HEAD", Range=asked)
        assert (status, headers["Content-Length"], headers["Content-Range"]) == (200, "10", None)


def test_only_regular_files_of_the_folder_are_opened(server: FileServer, folder: Path) -> None:
    """R2: a pipe would hold up everyone, and a link leads out of the folder."""
    os.mkfifo(folder / "pipe")
    (folder / "link").symlink_to("/etc/hostname")
    (folder / "folder").mkdir()
    for name in ("pipe", "link", "folder"):
        begun = time.monotonic()
        assert ask(server, f"/{name}")[0] == 500
        assert time.monotonic() - begun < 2


def test_what_is_no_request_gets_an_error_and_nothing_of_the_host(
    server: FileServer, capfd: pytest.CaptureFixture[str]
) -> None:
    """R1, R2: no traceback, and not a word of the host."""
    for raw, status in (
        (b"GET " + b"A" * 70000 + b" HTTP/1.1\r\n\r\n", b"431"),
        (b"\x16\x03\x01\x02\x00\x01\r\n\r\n", b"400"),
        (b"GET /no-url HTTP/1.1\r\nHost: x\r\n\r\n", b"400"),
        (b"GET /host HTTP/1.1\r\nHost: x\r\n\r\n", b"500"),
        (b"GET /missing HTTP/1.1\r\nHost: x\r\n\r\n", b"500"),
        (b"PUT /a HTTP/1.1\r\nHost: x\r\nContent-Length: 9\r\n\r\n", b"405"),
    ):
        with socket.create_connection(("127.0.0.1", server.port), timeout=10) as client:
            with contextlib.suppress(OSError):  # it may have read enough
                client.sendall(raw)
            answer = client.recv(4096)
        assert answer.startswith(b"HTTP/1.1 " + status), (raw[:30], answer)
        assert b"secret" not in answer
    assert ask(server, "/a")[1] == b"0123456789"
    assert capfd.readouterr() == ("", "")


def test_idle_clients_cost_few_descriptors_and_no_processor(server: FileServer) -> None:
    """R1: hundreds of them, and files are served all the same."""
    me = psutil.Process()
    before, threads = me.num_fds(), threading.active_count()
    with crowd(server, 300) as clients:
        assert me.num_fds() - before - len(clients) <= DESCRIPTORS
        assert threading.active_count() <= threads  # those of earlier tests may end meanwhile
        used, since = time.process_time(), time.monotonic()
        time.sleep(1)
        assert (time.process_time() - used) / (time.monotonic() - since) < 0.2
        assert ask(server, "/a")[1] == b"0123456789"
    deadline = time.monotonic() + 20
    while me.num_fds() > before and time.monotonic() < deadline:
        time.sleep(0.05)
    assert me.num_fds() <= before


def test_a_client_that_asks_late_is_not_dropped_at_once(
    server: FileServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    """H5: slow guests of one batch do not push each other out."""
    monkeypatch.setattr("pytest_vmss.file_server.server._GRACE_S", 60.0)
    with crowd(server, MAX_CONNECTIONS + 1) as clients:
        for client in clients:
            client.settimeout(10)
            client.sendall(b"GET /a HTTP/1.1\r\nHost: x\r\n\r\n")
        for client in clients:
            with client.makefile("rb") as answer:
                assert answer.read().endswith(b"0123456789")
            client.close()


def test_readers_that_do_not_read_cost_no_memory(
    server: FileServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    """R1: nor do they keep others away for long."""
    monkeypatch.setattr("pytest_vmss.file_server.server._STALLED_S", 0.5)
    assert ask(server, "/big", "HEAD")[0] == 200
    before = psutil.Process().memory_info().rss
    with crowd(server, MAX_CONNECTIONS, b"GET /big HTTP/1.1\r\nHost: x\r\n\r\n"):
        time.sleep(0.5)
        assert psutil.Process().memory_info().rss - before < 16 << 20
        assert ask(server, "/a")[1] == b"0123456789"


@contextlib.contextmanager
def steady_readers(
    server: FileServer, number: int, share: str, pause: float = 0.02
) -> Iterator[list[int]]:
    """Clients that take a piece now and then, and come again where they are sent away.

    Gives how many of them were answered with which status.
    """
    ended, statuses = threading.Event(), list[int]()

    def read() -> None:
        while not ended.is_set():
            with contextlib.suppress(OSError), socket.socket() as link:
                link.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
                link.settimeout(10)
                link.connect(("127.0.0.1", server.port))
                link.sendall(b"GET /big?" + share.encode() + b" HTTP/1.1\r\nHost: x\r\n\r\n")
                part = link.recv(4096)
                statuses.append(int(part[9:12] or b"0"))
                while part and not ended.wait(pause):
                    part = link.recv(4096)

    threads = [threading.Thread(target=read, daemon=True) for _ in range(number)]
    for thread in threads:
        thread.start()
    time.sleep(1)
    yield statuses
    ended.set()
    for thread in threads:
        thread.join()


def test_readers_that_take_their_time_keep_nobody_else_away(
    server: FileServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    """R2: however many they are, by one token; others are served, also where they are many."""
    monkeypatch.setattr("pytest_vmss.file_server.server._TURN_S", 0.3)
    assert ask(server, "/big", "HEAD")[0] == 200
    with steady_readers(server, MAX_CONNECTIONS + 8, "slow") as statuses:
        assert 200 in statuses
        for _ in range(3):
            begun = time.monotonic()
            assert ask(server, "/a?honest")[:2] == (200, b"0123456789")
            assert time.monotonic() - begun < 5
        with steady_readers(server, 8, "slow too"):
            begun = time.monotonic()
            assert ask(server, "/a?honest")[:2] == (200, b"0123456789")
            assert time.monotonic() - begun < 5
    assert set(statuses) <= {0, 200, 503}


def test_a_few_readers_of_one_token_are_all_served(server: FileServer) -> None:
    """H5: the machines of a set download the same file at once; nobody else is there."""
    got: list[int] = []

    def read() -> None:
        with contextlib.closing(
            http.client.HTTPConnection("127.0.0.1", server.port, timeout=60)
        ) as link:
            link.request("GET", "/big?same")
            answer, size = link.getresponse(), 0
            while part := answer.read(1 << 20):  # not all of it in memory
                size += len(part)
            got.append(size)

    threads = [threading.Thread(target=read) for _ in range(MAX_CONNECTIONS - 8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert got == [BIG] * len(threads)


def test_a_file_is_read_once_for_its_digests_however_many_wait(
    server: FileServer, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """H5: whoever waits for the host does not stall, and is not dropped for others."""
    read: list[int] = []

    def slowly(file: int, _: os.stat_result) -> Iterator[bytes]:
        read.append(file)
        for _number in range(200):
            time.sleep(0.02)
            yield b""

    monkeypatch.setattr("pytest_vmss.file_server.server._pieces", slowly)
    for limit in ("_STALLED_S", "_TURN_S"):
        monkeypatch.setattr(f"pytest_vmss.file_server.server.{limit}", 1.5)
    statuses: list[int] = []
    clients = [
        threading.Thread(target=lambda: statuses.append(ask(server, "/a?token")[0]))
        for _ in range(20)
    ]
    for client in clients:
        client.start()
    for client in clients:
        client.join(30)
    assert statuses == [200] * 20
    assert len(read) == 1
    monkeypatch.undo()
    (folder / "b").write_bytes(b"b" * (8 << 20))
    descriptors = psutil.Process().num_fds()
    with crowd(server, 4, b"GET /b HTTP/1.1\r\nHost: x\r\n\r\n"):
        pass  # all leave at once; the file is read all the same, and closed
    deadline = time.monotonic() + 20
    while (server._readings or psutil.Process().num_fds() > descriptors) and (
        time.monotonic() < deadline
    ):
        time.sleep(0.05)
    assert psutil.Process().num_fds() <= descriptors
    assert ask(server, "/b")[1] == b"b" * (8 << 20)


def test_an_answer_has_its_time(server: FileServer, monkeypatch: pytest.MonkeyPatch) -> None:
    """R2: in all, however steadily it is taken."""
    monkeypatch.setattr("pytest_vmss.file_server.server._ANSWER_S", 0.5)
    assert ask(server, "/big", "HEAD")[0] == 200
    begun = time.monotonic()
    with steady_readers(server, 1, "slow", 0.002) as statuses:
        while len(statuses) < 2 and time.monotonic() - begun < 20:
            time.sleep(0.05)
    assert len(statuses) >= 2


def test_a_request_has_its_time(server: FileServer, monkeypatch: pytest.MonkeyPatch) -> None:
    """R1: in all, and not for each byte."""
    monkeypatch.setattr("pytest_vmss.file_server.server._REQUEST_S", 1.0)
    began = time.monotonic()
    with socket.create_connection(("127.0.0.1", server.port)) as client:
        client.settimeout(0.2)
        while True:
            assert time.monotonic() - began < 10, "it is still listened to"
            try:
                client.send(b"G")
                if not client.recv(1):
                    break
            except TimeoutError:
                continue
            except OSError:
                break


def test_a_whole_big_file(server: FileServer, folder: Path) -> None:
    """H5: in pieces; one that is replaced meanwhile is sent as it was."""
    status, body, headers = ask(server, "/big")
    assert (status, len(body), body.count(0)) == (200, BIG, BIG)
    tag = headers["ETag"]
    (folder / "new").write_bytes(b"new")
    (folder / "new").replace(folder / "big")
    status, body, headers = ask(server, "/big")
    assert (status, body) == (200, b"new")
    assert headers["ETag"] != tag


def test_a_port_that_is_taken(server: FileServer) -> None:
    """H5: and what was opened for the attempt is closed."""
    before = psutil.Process().num_fds()
    with pytest.raises(OSError, match="in use"):
        FileServer(("127.0.0.1", server.port), lambda _: Answer(200, b""))
    assert psutil.Process().num_fds() == before
