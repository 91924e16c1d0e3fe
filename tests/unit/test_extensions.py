"""H2, H3, H5, M5: settings, order, downloads, the blob store and redaction."""

from __future__ import annotations

import base64
import contextlib
import gzip
import hashlib
import http.client
import http.server
import json
import socket
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any, ClassVar
from urllib.parse import urlsplit

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pytest_vmss.engine import preflight as resources
from pytest_vmss.errors import HostError, ModelProblem, NotFoundError
from pytest_vmss.file_server.blobs import GUEST_VIEW, Blobs
from pytest_vmss.guest.extensions import (
    CustomScript,
    RunCommandLinux,
    Target,
    find_handler,
    redact,
)
from pytest_vmss.guest.extensions.checked import checked_result, checked_words
from pytest_vmss.guest.extensions.command import broken_handler, read_outcome
from pytest_vmss.guest.extensions.registry import guarded
from pytest_vmss.guest.in_guest import download
from pytest_vmss.health import probe_once
from pytest_vmss.model import Extension, Probe, load_document, stages_of_extensions
from pytest_vmss.model.extension_result import ExtensionResult, Substatus
from pytest_vmss.model.sequencing import check_sequence
from pytest_vmss.simulation.clock import VirtualClock
from pytest_vmss.store import Store
from tests.models import LOAD_BALANCER, web_model


def extension(name: str = "x", *after: str, **fields: Any) -> Extension:
    return Extension(
        name=name,
        publisher="Microsoft.Azure.Extensions",
        type="CustomScript",
        type_handler_version="2.1",
        provision_after_extensions=list(after),
        **{"settings": {"commandToExecute": "true"}, **fields},
    )


def encode(content: bytes) -> str:
    return base64.b64encode(content).decode()


@pytest.mark.parametrize("kind", ["ServiceFabricNode", "ServiceFabricLinuxNode"])
def test_the_service_fabric_extension_is_a_stand_in(kind: str) -> None:
    """C7: it does nothing in the guest, and says so."""
    node = extension("fabric", settings={"durabilityLevel": "silver", "nodeTypeRef": "nt0"})
    node = node.model_copy(update={"publisher": "microsoft.azure.servicefabric", "type": kind})
    handler = find_handler(node.publisher, node.type)
    nobody: Any = None  # whatever is asked of it fails
    result = handler.run(Target(nobody, VirtualClock(), 1.0), node, run="1")
    assert (result.status, result.type) == ("success", f"microsoft.azure.servicefabric.{kind}")
    assert "a stand-in: no Service Fabric node was installed" in result.message
    assert handler.check(node) == []
    wrong = node.model_copy(update={"settings": {"durabilityLevel": "Iron", "nodeTypeRef": 1}})
    assert handler.check(wrong) == [
        "durabilityLevel must be Bronze, Silver or Gold; given 'Iron'",
        "nodeTypeRef must be a node type's name; given 1",
    ]


# Settings of CustomScript.


def problems(protected: dict[str, Any] | None = None, **settings: Any) -> str:
    made = extension(settings=settings, protected_settings=protected)
    return "; ".join(find_handler("microsoft.azure.extensions", "CUSTOMSCRIPT").check(made))


def test_what_custom_script_takes() -> None:
    """H2."""
    assert isinstance(find_handler("Microsoft.Azure.Extensions", "CustomScript"), CustomScript)
    assert problems(commandToExecute="true", timestamp=1, skipDos2Unix=True) == ""
    assert problems({"commandToExecute": "true", "fileUris": ["https://a/b.sh?sig=1"]}) == ""
    assert problems(script=encode(b"#!/bin/sh\n")) == ""
    assert problems(script=encode(gzip.compress(b"#!/bin/sh\n"))) == ""


@pytest.mark.parametrize(
    ("protected", "settings", "told"),
    [
        ({}, {}, "'commandToExecute' is not specified"),
        ({"commandToExecute": "a"}, {"commandToExecute": "a"}, "both in public and protected"),
        ({"script": "YQ=="}, {"script": "YQ=="}, "'script' was specified both in public and"),
        ({"script": "YQ=="}, {"commandToExecute": "a"}, "were both specified, but only one is"),
        ({}, {"commandToExecute": 1}, "commandToExecute must be a str"),
        ({}, {"script": "not base64!"}, "script must be base64"),
        ({}, {"script": encode(b"\x1f\x8bbroken")}, "script must be base64, of a text or of gzip"),
        ({}, {"commandToExecute": "a", "timestamp": "1"}, "timestamp must be a int"),
        ({}, {"commandToExecute": "a", "fileUris": "http://a/b"}, "must be a list of strings"),
        ({}, {"commandToExecute": "a", "fileUris": ["ftp://a/b"]}, "must be an http or https URI"),
        ({}, {"commandToExecute": "a", "fileUris": ["http://a/"]}, "its path names no file"),
        ({"fileUris": ["http://u:p@a/b"]}, {"commandToExecute": "a"}, "a user name or a password"),
        ({}, {"commandToExecute": "a", "fileUris": ["https://tok@a/b"]}, "which is not supported"),
        ({}, {"commandToExecute": "a", "fileUris": ["http://a:p@b:x/b"]}, "not a valid URI"),
        ({}, {"commandToExecute": "a", "storageAccountKey": "k"}, "belongs in protectedSettings"),
        ({"storageAccountKey": "k"}, {"commandToExecute": "a"}, "there is no storage account"),
        ({}, {"commandToExecute": "a", "comand": "b"}, "there is no setting comand"),
    ],
)
def test_what_it_does_not_take(
    protected: dict[str, Any], settings: dict[str, Any], told: str
) -> None:
    """H2: the words of Azure's handler."""
    assert told in problems(protected, **settings)


def test_run_command_takes_lines() -> None:
    def check(**settings: Any) -> str:
        return "; ".join(RunCommandLinux().check(extension(settings=settings)))

    assert check(script=["echo a", "echo b"]) == ""
    assert "must be a list of lines" in check(script="echo a")
    assert "commandId must be RunShellScript" in check(script=["a"], commandId="ifconfig")
    assert "there is no setting" in check(script=["a"], parameters=[])


def test_results_are_told_in_azures_words() -> None:
    """H4."""
    good = read_outcome(extension(), "0\n[stdout]\nhello\n[stderr]\n", 1.0)
    assert (good.status, good.exit_code) == ("success", 0)
    assert good.message == "Enable succeeded: \n[stdout]\nhello\n[stderr]"
    bad = read_outcome(extension(), "7\n[stdout]\n\n[stderr]\noops", 1.0)
    assert bad.exit_code == 7
    assert bad.message.startswith(
        "Enable failed: failed to execute command: command terminated with exit status=7\n[stdout]"
    )
    gone = read_outcome(
        extension(), "download\n[stdout]\n\n[stderr]\nfailed to download file[0]: unexpected", 1.0
    )
    assert (gone.status, gone.exit_code) == ("error", None)
    assert gone.message == (
        "Enable failed: processing file downloads failed: failed to download file[0]: unexpected"
    )
    assert read_outcome(extension(), "timeout\n[stdout]", 1.0).timed_out


# Their order.


def names(extensions: list[Extension]) -> list[list[str]]:
    return [[entry.name for entry in stage] for stage in stages_of_extensions(extensions)]


def told(extensions: list[Extension]) -> list[ModelProblem]:
    return list(check_sequence(extensions))


def test_stages_follow_the_dependencies() -> None:
    """H3: names in any case; what is independent is side by side."""
    extensions = [
        extension("top", "LEFT", "right"),
        extension("left", "base"),
        extension("right", "base"),
        extension("base"),
        extension("alone"),
    ]
    assert told(extensions) == []
    assert names(extensions) == [["base", "alone"], ["left", "right"], ["top"]]
    assert names([]) == []


def test_wrong_orders_are_told() -> None:
    """H3."""
    (cycle,) = told([extension("a", "c"), extension("b", "a"), extension("c", "b")])
    assert cycle.code == "InvalidParameter"
    assert "must not form a cycle" in cycle.message
    assert all(f"'{name}'" in cycle.message for name in "abc")
    (own,) = told([extension("a", "a")])
    assert "cycle" in own.message
    (missing,) = told([extension("a", "b"), extension("c")])
    assert missing.path.endswith("extensions[0].provisionAfterExtensions")
    assert "depends on 'b', which is not defined" in missing.message
    (bare,) = told([extension("a", "b"), extension("b", settings=None)])
    assert "which has no settings" in bare.message


@given(st.lists(st.lists(st.integers(0, 9), max_size=4), max_size=10))
def test_every_extension_comes_after_what_it_depends_on(edges: list[list[int]]) -> None:
    extensions = [
        extension(f"e{n}", *(f"e{m}" for m in after if m < n)) for n, after in enumerate(edges)
    ]
    place = {name: n for n, stage in enumerate(names(extensions)) for name in stage}
    assert len(place) == len(extensions)
    for entry in extensions:
        assert all(place[name] < place[entry.name] for name in entry.provision_after_extensions)


# What is told of them (M5).


def test_secrets_are_not_told() -> None:
    made = extension(
        settings={"fileUris": ["https://store/a.sh?se=2026&sig=c2VjcmV0LXRva2Vu"]},
        protected_settings={
            "commandToExecute": "deploy --password=hunter22 'correct horse'",
            "nested": [{"key": "deep-secret"}, 123456],
        },
    )
    shown = redact(
        "sh: deploy: hunter22; horse; deep-secret; 123456; GET a.sh?se=2026&sig=c2VjcmV0LXRva2Vu "
        "deploy --password=hunter22 'correct horse'",
        made,
    )
    for secret in ("hunter22", "horse", "deep-secret", "123456", "c2VjcmV0", "correct"):
        assert secret not in shown
    assert redact("sh: 1: not found", made) == "sh: 1: not found"


@pytest.mark.parametrize(
    ("command", "said"),
    [
        ("curl https://u:s3cr3tPass@host/x", "curl: (3) bad: s3cr3tPass@host"),
        ("db u:s3cr3tPass", "auth failed for s3cr3tPass"),
        ("db --creds u,s3cr3tPass", "auth failed for s3cr3tPass"),
        ("db u:s3cr3tPass/web", "auth failed for s3cr3tPass"),
        ("curl https://h/x?sig=s3cr3t%2BPass", "got sig s3cr3t+Pass"),
        ("curl https://h/x?a=b&sig=s3cr3t+Pass", "got sig s3cr3t Pass"),
        ("echo s3cr3t\\$Pass", "s3cr3t$Pass"),
    ],
)
def test_a_secret_is_known_in_whatever_form_it_is_said(command: str, said: str) -> None:
    """M5."""
    made = extension(protected_settings={"commandToExecute": command})
    assert "s3cr3t" not in redact(said, made)


def test_what_public_settings_name_a_secret_is_one() -> None:
    """M5: names and URIs tell it."""
    settings = {
        "password": "s3cr3tPass",
        "env": [{"name": "DB_PASSWORD", "value": "0therSecret"}],
        "repo": "https://u:s3cr3tUser@host/x#access_token=s3cr3tFragment",
        "greeting": "an ordinary word",
    }
    said = "s3cr3tPass 0therSecret s3cr3tUser s3cr3tFragment an ordinary word"
    assert redact(said, extension(settings=settings)) == "*** *** *** *** an ordinary word"


def test_numbers_are_secrets_by_their_digits() -> None:
    """M5: the loaded model shows them as asterisks."""
    body = web_model()
    (entry,) = body["properties"]["virtualMachineProfile"]["extensionProfile"]["extensions"]
    entry["properties"]["settings"] = {"apiKey": 87654321, "port": 808080}
    entry["properties"]["protectedSettings"] = {"pin": 12345678, "f": 1234567.25}
    (made,) = load_document(body, load_balancer=LOAD_BALANCER).model.extensions
    said = "87654321 808080 12345678 1234567.25"
    assert redact(said, made) == "*** 808080 *** ***"


def test_the_labs_own_words_of_a_run_stay() -> None:
    """H4: what is secret is looked for in what the guest says."""
    made = extension(protected_settings={"commandToExecute": "./failed-command status"})
    told = read_outcome(made, "7\n[stdout]\nfailed-command\n[stderr]\n", 1.0).message
    assert told.startswith("Enable failed: failed to execute command: command terminated")
    assert "failed-command" not in told


# The blob store (H5).


@pytest.fixture
def clock() -> VirtualClock:
    return VirtualClock()


@pytest.fixture
def blobs(tmp_path: Path, clock: VirtualClock) -> Iterator[Blobs]:
    made = Blobs(tmp_path / "blobs", Store(tmp_path / "db", clock), clock)
    yield made
    made.close()


def ask(url: str, method: str = "GET") -> tuple[int, bytes, dict[str, str]]:
    parts = urlsplit(url)
    assert parts.hostname == GUEST_VIEW
    link = http.client.HTTPConnection("127.0.0.1", parts.port, timeout=10)
    try:
        link.request(method, f"{parts.path}?{parts.query}")
        answer = link.getresponse()
        return answer.status, answer.read(), dict(answer.headers)
    finally:
        link.close()


def test_a_blob_is_read_with_its_token_only(blobs: Blobs, clock: VirtualClock) -> None:
    """H5, M5: nobody reads without a token, or with an expired or another file's one."""
    blobs.put("a.sh", "echo a")
    blobs.put("b.sh", b"echo b")
    url = blobs.url("a.sh", expires_in=60)
    status, body, headers = ask(url)
    assert (status, body) == (200, b"echo a")
    assert headers["Content-MD5"] == encode(hashlib.md5(body).digest())
    assert ask(url, "HEAD")[:2] == (200, b"")
    assert ask(url.replace("a.sh", "b.sh"))[0] == 403
    assert ask(url.replace("se=2026", "se=2036"))[0] == 403
    assert ask(url.partition("?")[0] + "?x=1")[0] == 403
    assert ask(url, "PUT")[0] == 405
    clock.sleep(61)
    status, body, headers = ask(url)
    assert status == 403
    assert headers["x-ms-error-code"] == "AuthenticationFailed"
    assert b"Signature not valid in the specified time" in body
    assert ask(blobs.url("a.sh", expires_in=-1))[0] == 403


@pytest.mark.parametrize(
    ("change", "status"),
    [
        (("/a.sh", "/../.key"), 403),
        (("/a.sh", "/%2ekey"), 403),
        (("/a.sh", "/a.sh%0a/blobs/b"), 403),
        (("/a.sh", "/%ff"), 403),
        (("sig=", "sig=%ff%00"), 403),
        (("se=2", "se=%00%ff2"), 403),
        (("/blobs/", "//[::1/"), 400),
        (("?", "?" + "a=1&" * 100), 400),
    ],
)
def test_what_a_token_does_not_open(
    blobs: Blobs, change: tuple[str, str], status: int, capfd: pytest.CaptureFixture[str]
) -> None:
    """M5, R1: neither the tokens' key nor a traceback."""
    blobs.put("a.sh", "echo a")
    parts = urlsplit(blobs.url("a.sh"))
    target = f"{parts.path}?{parts.query}".replace(*change, 1)
    assert change[1] in target
    link = http.client.HTTPConnection("127.0.0.1", parts.port, timeout=10)
    link.request("GET", target)
    answer = link.getresponse()
    assert answer.status == status
    assert b"echo" not in answer.read()
    link.close()
    assert capfd.readouterr() == ("", "")


def test_blobs_are_the_owners_alone(blobs: Blobs, tmp_path: Path) -> None:
    """M5."""
    blobs.put("a.sh", "secret")
    blobs.url("a.sh")
    for path in (tmp_path / "blobs").iterdir():
        assert path.stat().st_mode & 0o777 == 0o600, path
    assert (tmp_path / "blobs").stat().st_mode & 0o777 == 0o700
    for wrong in ("", "../a", "a/b", ".key", "a b"):
        with pytest.raises(ValueError, match="no name for a blob"):
            blobs.put(wrong, "")
    with pytest.raises(NotFoundError, match=r"there are: a\.sh"):
        blobs.url("b.sh")


def test_urls_outlive_the_process(blobs: Blobs, tmp_path: Path, clock: VirtualClock) -> None:
    blobs.serve_if_used()
    assert blobs._server is None
    blobs.put("a.sh", "echo a")
    url = blobs.url("a.sh")
    blobs.close()
    store = Store(tmp_path / "db", clock)
    later = Blobs(tmp_path / "blobs", store, clock)
    later.serve_if_used()
    assert ask(url)[0] == 200
    later.close()


@pytest.fixture
def left(blobs: Blobs, tmp_path: Path, clock: VirtualClock) -> Iterator[tuple[Blobs, Store]]:
    """Another process of the lab, which stands by to serve its files."""
    blobs.put("a", "of the lab")
    port = urlsplit(blobs.url("a")).port
    store = Store(tmp_path / "db", clock)
    second = Blobs(tmp_path / "blobs", store, clock)
    assert second.serve() == port
    yield second, store
    second.close()
    store.close()


@contextlib.contextmanager
def impostor(port: int, says: bytes) -> Iterator[None]:
    """Another program that has got the lab's port."""
    listener = socket.socket()
    listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    deadline = time.monotonic() + 10
    while True:
        try:
            listener.bind(("127.0.0.1", port))
            break
        except OSError:
            assert time.monotonic() < deadline
    listener.listen()

    def serve() -> None:
        with contextlib.suppress(OSError):
            while True:
                link, _ = listener.accept()
                with link:
                    link.recv(4096)
                    link.sendall(says)

    threading.Thread(target=serve, daemon=True).start()
    try:
        yield
    finally:
        listener.shutdown(socket.SHUT_RDWR)
        listener.close()


@pytest.mark.parametrize(
    "says",
    [
        b"HTTP/1.1 200 OK\r\nContent-Length: 64\r\n\r\n" + b"0" * 64,
        b"HTTP/1.1 200 OK\r\n\r\n" + b"x" * 10_000,
        b"",
    ],
)
def test_who_takes_the_port_meanwhile_is_not_taken_for_the_lab(
    blobs: Blobs, left: tuple[Blobs, Store], says: bytes, monkeypatch: pytest.MonkeyPatch
) -> None:
    """H5, M5: between the end of one process and the next look of another."""
    second, store = left
    monkeypatch.setattr(store, "select", lambda *_: [SimpleNamespace(name="web")])
    port = second.port
    assert port is not None
    with contextlib.ExitStack() as occupied:
        with second._lock:  # it does not look now
            blobs.close()
            occupied.enter_context(impostor(port, says))
        with pytest.raises((HostError, ConnectionError)):
            second.dial()
        deadline = time.monotonic() + 10
        while not store.events() and time.monotonic() < deadline:
            time.sleep(0.05)
        (event,) = store.events()
        assert (event.scale_set, event.kind) == ("web", "warning")
        assert f"the port {port} of 127.0.0.1" in event.message
        assert "is taken by another program" in event.message
    monkeypatch.undo()
    while True:
        try:
            second.dial().close()
            break
        except (HostError, OSError):
            assert time.monotonic() < deadline + 10
    assert len(store.events()) == 1


@pytest.mark.parametrize("stand_by", [False, True])
def test_a_connection_is_proved_and_then_used(
    blobs: Blobs, left: tuple[Blobs, Store], stand_by: bool
) -> None:
    """H5: on the very connection that a guest's requests go through; once."""
    url = urlsplit(blobs.url("a"))
    with (left[0] if stand_by else blobs).dial() as link:
        link.sendall(f"GET {url.path}?{url.query} HTTP/1.1\r\nHost: x\r\n\r\n".encode())
        with link.makefile("rb") as answer:
            assert answer.read().endswith(b"\r\n\r\nof the lab")
    with blobs.dial() as link, link.makefile("rb") as answer:
        link.sendall(b"GET /lab/" + b"0" * 32 + b" HTTP/1.1\r\nHost: x\r\n\r\n")
        assert b"Connection: close" in answer.read()


def test_downloads(blobs: Blobs, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """H2: as the guest does it; texts get Unix line ends unless they are to stay."""
    monkeypatch.setattr(time, "sleep", lambda _: None)
    blobs.put("a.sh", b"\xef\xbb\xbf#!/bin/sh\r\necho\r\n")
    blobs.put("b.bin", b"\0\r\n")
    here = {GUEST_VIEW: "127.0.0.1"}
    urls = [blobs.url(name).replace(GUEST_VIEW, here[GUEST_VIEW]) for name in ("a.sh", "b.bin")]
    wanted = tmp_path / "wanted.json"

    def fetch(folder: str, uris: list[str], *, skip: bool = False) -> Path:
        into = tmp_path / folder
        into.mkdir()
        wanted.write_text(json.dumps({"fileUris": uris, "skipDos2Unix": skip}))
        download.main(str(wanted), str(into))
        return into

    done = fetch("one", urls)
    assert (done / "a.sh").read_bytes() == b"#!/bin/sh\necho\n"
    assert (done / "a.sh").stat().st_mode & 0o777 == 0o500
    assert (done / "b.bin").read_bytes() == b"\0\r\n"
    assert not wanted.exists(), "it holds tokens"
    kept = fetch("two", urls, skip=True)
    assert (kept / "a.sh").read_bytes().startswith(b"\xef\xbb\xbf")


@pytest.mark.parametrize(
    "uri",
    [
        "http://deploy:s3cr3tPass@127.0.0.1:1/x.sh",
        "http://deploy:s3cr3tPass@[::1/x.sh",
        "http://deploy:s3cr3tPass/x.sh",
        "s3cr3tPass:x/y",
        "http://127.0.0.1\x7f:1/x.sh?sig=s3cr3tPass",
        f"http://{'s3cr3tPass' * 9}/x.sh",
        "http://127.0.0.1:1/s3cr3tPass%00",
        f"http://127.0.0.1:1/{'s3cr3tPass' * 99}",
    ],
)
def test_no_download_shows_a_uri(
    uri: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    """M5: what Python says of a URI that it does not take quotes it."""
    monkeypatch.setattr(time, "sleep", lambda _: None)
    wanted = tmp_path / "wanted.json"
    wanted.write_text(json.dumps({"fileUris": [uri], "skipDos2Unix": False}))
    with pytest.raises(SystemExit):
        download.main(str(wanted), str(tmp_path))
    said = capsys.readouterr().err
    assert said.startswith("failed to download file[0]: ")
    assert "s3cr3tPass" not in said


def test_a_download_that_cannot_be_stored_says_so(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """H2: no guest program ends with a traceback."""
    monkeypatch.setattr(download, "fetch", lambda _: b"x")
    (tmp_path / "x.sh").mkdir()
    for name in ("x.sh", "%00", "n" * 300):
        wanted = tmp_path / "wanted.json"
        wanted.write_text(json.dumps({"fileUris": [f"http://a/{name}"], "skipDos2Unix": False}))
        with pytest.raises(SystemExit):
            download.main(str(wanted), str(tmp_path))
        assert "failed to download file[0]: it cannot be written: " in capsys.readouterr().err


def test_a_download_survives_a_server_that_is_away_for_a_while(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """H2: the pauses are those of the CustomScript extension, three minutes in all."""
    pauses: list[float] = []
    monkeypatch.setattr(time, "sleep", pauses.append)
    with socket.create_server(("127.0.0.1", 0)) as server:

        def answer() -> None:
            for _ in range(6):
                server.accept()[0].close()
            with server.accept()[0] as link:
                link.recv(9999)
                link.sendall(b"HTTP/1.0 200 OK\r\nContent-Length: 4\r\n\r\ndone")

        serving = threading.Thread(target=answer, name="answer")
        serving.start()
        try:
            port = server.getsockname()[1]
            assert download.fetch(f"http://127.0.0.1:{port}/x") == b"done"
        finally:
            serving.join(10)
    assert pauses == [3, 6, 12, 24, 48, 96]


def test_a_server_that_does_not_speak_http_is_told_of(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(time, "sleep", lambda _: None)
    with socket.create_server(("127.0.0.1", 0)) as server:

        def answer() -> None:
            for _ in range(7):
                with server.accept()[0] as link:
                    link.recv(9999)
                    link.sendall(b"s3cr3tPass\r\n\r\n")

        speaker = threading.Thread(target=answer)
        speaker.start()
        with pytest.raises(ValueError, match="did not answer as HTTP has it") as failed:
            download.fetch(f"http://127.0.0.1:{server.getsockname()[1]}/x")
        speaker.join()
    assert "s3cr3tPass" not in str(failed.value)


def test_a_download_that_fails_says_so_without_its_token(
    blobs: Blobs,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.setattr(time, "sleep", lambda _: None)
    blobs.put("a.sh", "echo")
    expired = blobs.url("a.sh", expires_in=-1).replace(GUEST_VIEW, "127.0.0.1")
    blobs_port = urlsplit(expired).port
    dead = "http://127.0.0.1:1/x.sh?sig=secret-token"
    for uri, words in (
        (expired, "unexpected status code: actual=403 expected=200"),
        (dead, "http request failed"),
    ):
        wanted = tmp_path / "wanted.json"
        wanted.write_text(json.dumps({"fileUris": [uri], "skipDos2Unix": False}))
        with pytest.raises(SystemExit):
            download.main(str(wanted), str(tmp_path))
        said = capsys.readouterr().err
        assert f"failed to download file[0]: {words}" in said
        assert "sig" not in said
        assert str(blobs_port) not in said


def reach(uri: str) -> str:
    """Asks as a lab does whose own server has the port that a URI names."""
    with contextlib.suppress(ValueError):
        port = urlsplit(uri).port
        return resources.reach(uri, own_port=lambda: port)
    return resources.reach(uri)


def test_what_the_host_can_reach(blobs: Blobs) -> None:
    """C8: a refused token is the guests' to find out; what is not there is told before."""
    blobs.put("a.sh", "echo")
    url = blobs.url("a.sh")
    assert reach(url) == ""
    assert reach(blobs.url("a.sh", expires_in=-1)) == ""
    assert "cannot be reached" in reach("http://127.0.0.1:1/a.sh?sig=secret")
    assert "sig" not in reach("http://127.0.0.1:1/a.sh?sig=secret")
    (blobs._folder / "a.sh").unlink()
    assert "answers with HTTP status 404" in reach(url)


class _Picky(http.server.BaseHTTPRequestHandler):
    """A server that does not take every method."""

    head = 501
    get = 206
    seen: ClassVar[list[str]] = []

    def do_HEAD(self) -> None:
        self.seen.append(f"HEAD {self.path}")
        if self.head == 0:
            self.connection.shutdown(socket.SHUT_RDWR)
            return
        self.send_response(self.head)
        self.end_headers()

    def do_GET(self) -> None:
        self.seen.append(f"GET {self.path} {self.headers['Range']}")
        self.send_response(self.get)
        self.end_headers()

    def log_message(self, *_: object) -> None:
        pass


@pytest.fixture
def picky() -> Iterator[tuple[type[_Picky], str]]:
    class Mine(_Picky):
        seen: ClassVar[list[str]] = []

    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Mine)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    yield Mine, f"http://127.0.0.1:{server.server_port}"
    server.shutdown()
    server.server_close()


@pytest.mark.parametrize("status", [0, 400, 401, 403, 404, 405, 500, 501])
def test_a_server_that_refuses_head_is_asked_by_a_ranged_get(
    picky: tuple[type[_Picky], str], status: int
) -> None:
    """C8."""
    server, url = picky
    server.head = status
    assert reach(f"{url}/x.sh?sig=s") == ""
    assert server.seen == ["HEAD /x.sh?sig=s", "GET /x.sh?sig=s bytes=0-0"]
    server.get = 404
    assert reach(f"{url}/x.sh?sig=s") == f"{url}/x.sh answers with HTTP status 404"


@pytest.mark.parametrize("status", [301, 401, 403, 416, 429, 500, 503])
def test_what_a_guest_may_fare_better_with_stops_no_upgrade(
    picky: tuple[type[_Picky], str], status: int
) -> None:
    """C8: only what is certainly wrong does."""
    server, url = picky
    server.head = server.get = status
    assert reach(f"{url}/x.sh") == ""


@pytest.mark.parametrize(
    ("uri", "told"),
    [
        ("http://127.0.0.1:99999/x.sh?sig=s", "'http://127.0.0.1:99999/x.sh' is no URI: Port"),
        ("http://127.0.0.1:x/x.sh", "is no URI: it is malformed"),
        ("http://[::1/x?sig=s", "'http://[::1/x' is no URI: Invalid IPv6 URL"),
        ("http:///x.sh", "is no URI: it must begin with http:// or https:// and name a host"),
        ("ftp://a/x.sh", "is no URI: it must begin with http"),
        ("", "is no URI: it must begin with http"),
        (f"http://{'a' * 70}.example/x", "is no URI: encoding with 'idna' codec failed"),
        ("http://nobody.invalid/x?sig=s", "http://nobody.invalid/x cannot be reached: "),
        ("http://user:secret@127.0.0.1:1/x", "http://127.0.0.1:1/x cannot be reached: "),
        ("http://127.0.0.1:1/\x1b[31m", "cannot be reached"),
    ],
)
def test_odd_uris_are_told_and_never_raise(
    uri: str, told: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """C8, M5."""
    real = socket.getaddrinfo

    def look(host: str, *arguments: Any, **options: Any) -> Any:
        if host.endswith(".invalid"):  # nothing is asked of the network
            raise socket.gaierror(socket.EAI_NONAME, "Name or service not known")
        return real(host, *arguments, **options)

    monkeypatch.setattr(socket, "getaddrinfo", look)
    answer = reach(uri)
    assert told in answer
    assert not any(secret in answer for secret in ("sig=", "secret", "\x1b"))


def test_a_uri_that_is_not_encoded_is_encoded_as_guests_do(
    picky: tuple[type[_Picky], str],
) -> None:
    server, url = picky
    server.head = 200
    assert reach(f"{url}/ä b%20c.sh?x=ö") == ""
    assert server.seen == ["HEAD /%C3%A4%20b%20c.sh?x=%C3%B6"]
    assert download.encoded(f"{url}/ä b%20c.sh?x=ö#part") == f"{url}/%C3%A4%20b%20c.sh?x=%C3%B6"


def test_a_server_that_drips_its_answer_lets_nobody_wait(monkeypatch: pytest.MonkeyPatch) -> None:
    """C8, F2, R2: byte after byte, each well within a socket's own limit."""
    monkeypatch.setattr(resources, "_TIMEOUT_S", 0.4)
    with socket.create_server(("127.0.0.1", 0)) as listener:
        ended = threading.Event()

        def serve() -> None:
            while not ended.is_set():
                link, _ = listener.accept()
                with contextlib.suppress(OSError):
                    for _number in range(200):
                        link.sendall(b"H")
                        time.sleep(0.05)

        threading.Thread(target=serve, daemon=True).start()
        port = listener.getsockname()[1]
        begun = time.monotonic()
        assert reach(f"http://127.0.0.1:{port}/x.sh") == ""  # nothing is certain
        probe = Probe(name="p", protocol="Http", port=80, request_path="/")
        seen = probe_once(probe, "127.0.0.1", port, timeout=0.4)
        assert (seen.healthy, "no answer within 0.4 s" in seen.detail) == (False, True)
        assert not probe_once(
            probe.model_copy(update={"protocol": "Https"}), "127.0.0.1", port, timeout=0.4
        ).healthy
        assert time.monotonic() - begun < 5
        ended.set()


SECRETIVE = Extension(
    name="mine",
    publisher="Microsoft.Azure.Extensions",
    type="CustomScript",
    type_handler_version="2.1",
    protected_settings={"password": "hunter2secret"},
)


async def _later() -> ExtensionResult:
    return ExtensionResult.of(SECRETIVE)


@pytest.mark.parametrize(
    "returned",
    [
        lambda: None,
        lambda: "success",
        lambda: {"status": "success"},
        _later,
        lambda: (ExtensionResult.of(SECRETIVE) for _ in range(1)),
        lambda: ExtensionResult.of(SECRETIVE).model_copy(update={"status": "hurray"}),
        lambda: ExtensionResult.of(SECRETIVE).model_copy(update={"seconds": float("nan")}),
        lambda: ExtensionResult.of(SECRETIVE).model_copy(update={"exit_code": "x"}),
        lambda: ExtensionResult.of(SECRETIVE).model_copy(update={"status": "transitioning"}),
        lambda: ExtensionResult.of(SECRETIVE).model_copy(update={"message": 5}),
    ],
)
def test_what_is_no_result_is_the_handlers_failure(returned: Callable[[], Any]) -> None:
    """Q3: a forgotten return, a coroutine, values that no record could hold."""
    result = guarded(
        lambda: checked_result(returned(), SECRETIVE),
        lambda failure: broken_handler(SECRETIVE, failure),
    )
    assert (result.name, result.status) == ("mine", "error")
    assert "its handler failed" in result.message
    assert ExtensionResult.model_validate_json(result.model_dump_json()) == result


def test_a_result_is_of_its_extension_short_clean_and_without_secrets() -> None:
    """M5, R2."""
    told = ExtensionResult(
        name="OTHER",
        type="Another.Type",
        version="9",
        status="error",
        message="\ud800 login hunter2secret \x1b[31m" + "x" * 10**6,
        handler_message="hunter2secret",
        substatuses=tuple(
            Substatus(name="a", status="error", message="hunter2secret" * 10**4)
            for _ in range(1000)
        ),
    )
    result = checked_result(told, SECRETIVE)
    assert (result.name, result.type) == ("mine", SECRETIVE.handler_name)
    assert result.version == find_handler(SECRETIVE.publisher, SECRETIVE.type).version
    text = result.model_dump_json()
    assert "hunter2secret" not in text
    assert "\\u001b" not in text
    assert len(text) < 10**6
    assert checked_words("cannot remove hunter2secret", SECRETIVE) == "cannot remove ***"
    with pytest.raises(TypeError, match="NoneType"):
        checked_words(None, SECRETIVE)
