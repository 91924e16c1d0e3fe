"""The benchmarks' own instruments: what they print must be true."""

from __future__ import annotations

import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from itertools import pairwise
from pathlib import Path

import pytest

from benchmarks.open_loop import Load, get
from benchmarks.overhead import order, summary
from benchmarks.overhead_azure import AzureBare
from pytest_vmss.guest.keys import lab_key
from pytest_vmss.guest_platform.provisioning import ASSET_TAG
from tests.http_server import HttpServer

RATE = 100.0
STALL_S = 0.4


class Application(HttpServer):
    """Answers, unless it is stalled or broken."""

    def __init__(self) -> None:
        self.flows = threading.Event()
        self.flows.set()
        self.status = 200
        super().__init__(self._answer)

    def _answer(self, _path: str) -> tuple[int, bytes]:
        self.flows.wait(10)
        return self.status, b"1.0.0"

    def send(self) -> None:
        get(f"http://127.0.0.1:{self.port}/version")


@pytest.fixture
def application() -> Iterator[Application]:
    made = Application()
    yield made
    made.close()


def test_requests_go_out_while_none_is_answered(application: Application) -> None:
    """F2: a stall is met by all who would have met it, each for as long as was left of it."""
    with Load(application.send, RATE) as load:
        time.sleep(0.1)
        application.flows.clear()
        before, begun = load.sent, time.monotonic()
        while load.sent - before < 20 or time.monotonic() - begun < STALL_S:
            assert time.monotonic() - begun < 60, "nothing is sent while nothing is answered"
            time.sleep(0.01)
        stalled = time.monotonic() - begun
        application.flows.set()
        time.sleep(0.1)
    slow = [took for _, took in load.answered if took > stalled / 10]
    assert len(slow) > 5, "the stall is not one slow answer, but many"
    assert load.slowest > stalled / 2
    assert load.longest_gap > stalled / 2
    assert load.failures == []
    assert len(load.answered) == load.sent
    assert f"requests={load.sent} rate=100/s failed=0 " in load.report()


def test_an_answers_time_counts_from_when_its_request_was_due() -> None:
    """Not from when it went out: a sender that was held up must not hide it."""
    ready = threading.Event()

    def wait() -> None:
        ready.wait(10)

    with Load(wait, RATE) as load:
        time.sleep(0.2)
        ready.set()
        time.sleep(0.1)
    waits = sorted(moment - took for moment, took in load.answered)
    gaps = [after - before for before, after in pairwise(waits)]
    assert gaps == pytest.approx([1 / RATE] * len(gaps), abs=1e-6)


def test_failures_are_counted_and_told(application: Application) -> None:
    application.status = 503
    with Load(application.send, RATE) as load:
        time.sleep(0.1)
    assert load.answered == []
    assert len(load.failures) == load.sent > 0
    assert "HTTP status 503" in load.explain()[0]
    assert load.longest_gap >= 0.1, "without an answer, all of it was a gap"

    application.close()
    with Load(application.send, RATE) as load:
        time.sleep(0.05)
    assert "refused" in load.explain()[0]
    assert len(load.explain(most=2)) <= 2


def test_who_goes_first_alternates() -> None:
    first = [order(number) for number in range(4)]
    assert [names[0] for names in first] == ["bare", "product"] * 2
    assert {frozenset(names) for names in first} == {frozenset({"bare", "product"})}


def test_medians_of_the_rounds_and_of_their_ratios() -> None:
    """One slow round moves neither much."""
    rounds = [
        {"bare": 40.0, "product": 42.0},
        {"bare": 50.0, "product": 50.0},
        {"bare": 40.0, "product": 80.0},
        {"bare": 50.0, "product": 51.0},
    ]
    told = summary(rounds)
    assert "rounds=4 bare=45.0s product=50.5s ratio_of_medians=1.122" in told
    assert "median_ratio=1.035 ratios=1.000..2.000" in told


def test_the_bare_script_gives_a_guest_what_azure_has(tmp_path: Path) -> None:
    """O1: by a relay for each connection, as QEMU starts it."""
    image = tmp_path / "image.qcow2"
    subprocess.run(["qemu-img", "create", "-q", "-f", "qcow2", image, "1M"], check=True)
    bare = AzureBare(tmp_path, "tcg", 1, lab_key(tmp_path / "id"))
    bare.prepare(image)

    def ask(server: str, request: str) -> str:
        relay = [sys.executable, "-S", "-E", f"{tmp_path}/relay.py", f"{tmp_path}/{server}-1"]
        return subprocess.run(
            relay, input=request, capture_output=True, text=True, timeout=30, check=True
        ).stdout

    try:
        arguments = " ".join(map(str, bare.arguments()))
        assert ASSET_TAG in arguments
        assert "-smp 1" in arguments
        assert f"168.63.129.16:80-cmd:{sys.executable}" in arguments
        assert "<Incarnation>1" in ask("wire", "GET /machine/?comp=goalstate HTTP/1.0\r\n\r\n")
        told = ask("metadata", "GET /metadata/instance HTTP/1.0\r\nMetadata: true\r\n\r\n")
        assert bare.key.public in told
        with pytest.raises(TimeoutError, match="report"):
            bare.await_guest(0.0)
        state = "<State>Ready</State>"
        report = (
            "<Health><Container><RoleInstanceList><Role><Health>"
            f"{state}</Health></Role></RoleInstanceList></Container></Health>"
        )
        head = f"POST /machine?comp=health HTTP/1.0\r\nContent-Length: {len(report)}\r\n\r\n"
        ask("wire", head + report)
        bare.await_guest(0.0)
    finally:
        bare.close()
