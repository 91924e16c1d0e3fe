"""F2: HAProxy and the simulated load balancer behind one protocol; Azure's JSON of it."""

from __future__ import annotations

import contextlib
import http.client
import os
import socket
import subprocess
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import psutil
import pytest

from pytest_vmss.errors import BalancerError, ModelError
from pytest_vmss.load_balancer import Balancer, HAProxy, Member, Rule
from pytest_vmss.load_balancer.runtime_socket import RuntimeSocket
from pytest_vmss.model import Probe, ScaleSetDocument, check_model, load_document
from pytest_vmss.model.load_balancer import served_rules
from pytest_vmss.model.review import review
from pytest_vmss.simulation.clock import VirtualClock
from pytest_vmss.simulation.load_balancer import SimulatedBalancer
from tests.http_server import HttpServer
from tests.models import LOAD_BALANCER, web_model

#: Each process's own, since HAProxy shares a port with any other HAProxy (SO_REUSEPORT): also with
#: one of another suite that is run at the same time.
ADDRESS, PORT = f"127.62.{os.getpid() // 250 % 250}.{os.getpid() % 250 + 1}", 18080
PROBE = Probe(
    name="healthz",
    protocol="Http",
    port=80,
    request_path='/healthz?a="b"&c=$HOME',
    interval_in_seconds=5,
    number_of_probes=2,
)


class Backend(HttpServer):
    """Stands for an instance's application."""

    def __init__(self, name: str) -> None:
        self.name = name
        self.healthy = True
        self.paths: set[str] = set()
        self.slow = threading.Event()
        self.slow.set()
        super().__init__(self._answer)

    def _answer(self, path: str) -> tuple[int, bytes]:
        self.paths.add(path)
        probed = path.startswith("/healthz")
        if not probed:
            self.slow.wait(30)
        return (200 if self.healthy or not probed else 500), self.name.encode()

    @property
    def member(self) -> Member:
        return Member(self.name, "127.0.0.1", {80: self.port})


@pytest.fixture
def backends() -> Iterator[dict[str, Backend]]:
    made = {name: Backend(name) for name in ("web_0", "web_1")}
    yield made
    for backend in made.values():
        backend.close()


@pytest.fixture(params=["simulated", "haproxy"])
def balancer(
    request: pytest.FixtureRequest, tmp_path: Path, backends: dict[str, Backend]
) -> Iterator[Balancer]:
    made: Balancer
    if request.param == "simulated":
        made = SimulatedBalancer(lambda name: backends[name].healthy, VirtualClock())
    else:
        made = HAProxy(tmp_path / "b", [Rule("http", ADDRESS, PORT, 80, PROBE)])
    yield made
    made.stop()


def until(what: Callable[[], bool], timeout: float = 15.0) -> float:
    """Waits, and says how long."""
    start = time.monotonic()
    while not what():
        assert time.monotonic() - start < timeout, "waited in vain"
        time.sleep(0.02)
    return time.monotonic() - start


def test_a_balancers_life(balancer: Balancer, backends: dict[str, Backend]) -> None:
    members = [backend.member for backend in backends.values()]
    balancer.ensure(members)
    balancer.ensure(members)
    until(lambda: balancer.healthy("web_0") is True and balancer.healthy("web_1") is True)
    assert balancer.healthy("web_9") is None
    assert balancer.verdicts() == {"web_0": True, "web_1": True}
    balancer.take_out("web_0")
    balancer.take_out("web_0")
    assert balancer.connections("web_0") == 0
    assert balancer.healthy("web_0") is True
    balancer.put_back("web_0")
    backends["web_1"].healthy = False
    until(lambda: balancer.healthy("web_1") is False)
    assert balancer.verdicts() == {"web_0": True, "web_1": False}
    backends["web_1"].healthy = True
    until(lambda: balancer.healthy("web_1") is True)
    balancer.take_out("web_1")
    balancer.remove("web_1")
    balancer.remove("web_1")
    assert balancer.healthy("web_1") is None
    balancer.add(backends["web_1"].member)
    until(lambda: balancer.healthy("web_1") is True)
    balancer.stop()
    balancer.stop()


@pytest.fixture
def haproxy(tmp_path: Path, backends: dict[str, Backend]) -> Iterator[HAProxy]:
    made = HAProxy(tmp_path / "b", [Rule("http", ADDRESS, PORT, 80, PROBE)])
    made.ensure([backend.member for backend in backends.values()])
    until(lambda: made.healthy("web_0") is True and made.healthy("web_1") is True)
    yield made
    made.stop()


def test_a_kill_between_two_rules_is_mended(tmp_path: Path, backends: dict[str, Backend]) -> None:
    """M1: a member of one rule only is completed, and one of one rule only is removed."""
    rules = [
        Rule("http", ADDRESS, PORT, 80, PROBE),
        Rule("admin", ADDRESS, PORT + 1, 80, PROBE),
    ]
    made = HAProxy(tmp_path / "b", rules)
    members = [backend.member for backend in backends.values()]
    try:
        made.ensure(members)
        made._socket.command("set server admin/web_0 state maint")
        until(lambda: bool(made._deleted("admin/web_0")))
        made.ensure(members)
        assert {(rule.name, name) for rule in rules for name in backends} == made._socket.servers()
        made._socket.command("disable health http/web_1")
        made.ensure(members)
        until(lambda: made.healthy("web_0") is True and made.healthy("web_1") is True)
        made._socket.command("set server http/web_0 state maint")
        until(lambda: bool(made._deleted("http/web_0")))
        made.ensure(members[1:])
        assert {name for _, name in made._socket.servers()} == {"web_1"}
        made._process._pid_file.unlink()  # as where it was killed before that was written
    finally:
        made.stop()
    assert made._process.all() == []


def test_another_interval_needs_another_process(
    haproxy: HAProxy, backends: dict[str, Backend], tmp_path: Path
) -> None:
    before = haproxy._process.current()
    assert before is not None
    slower = PROBE.model_copy(update={"interval_in_seconds": 9})
    other = HAProxy(tmp_path / "b", [Rule("http", ADDRESS, PORT, 80, slower)])
    other.ensure([backend.member for backend in backends.values()])
    after = other._process.current()
    assert after is not None
    assert after.pid != before.pid


def get() -> str:
    link = http.client.HTTPConnection(ADDRESS, PORT, timeout=10)
    try:
        link.request("GET", "/", headers={"Connection": "close"})
        return link.getresponse().read().decode()
    finally:
        link.close()


def served() -> Counter[str]:
    return Counter(get() for _ in range(10))


def test_traffic_goes_to_healthy_members_in_service(
    haproxy: HAProxy, backends: dict[str, Backend]
) -> None:
    assert served() == {"web_0": 5, "web_1": 5}
    assert PROBE.request_path in backends["web_0"].paths  # taken as it is
    haproxy.take_out("web_0")
    assert served() == {"web_1": 10}
    backends["web_0"].healthy = False
    until(lambda: haproxy.healthy("web_0") is False)
    haproxy.put_back("web_0")
    assert served() == {"web_1": 10}  # still sick
    backends["web_0"].healthy = True
    # Quicker than its interval of 5 s: states change at 0.2 s.
    assert until(lambda: haproxy.healthy("web_0") is True) < 2.5
    assert served() == {"web_0": 5, "web_1": 5}


def test_a_member_that_is_taken_out_ends_its_requests(
    haproxy: HAProxy, backends: dict[str, Backend]
) -> None:
    """E1: drained, not cut."""
    for backend in backends.values():
        backend.slow.clear()
    answers: list[str] = []
    clients = [threading.Thread(target=lambda: answers.append(get())) for _ in range(2)]
    for client in clients:
        client.start()
    until(lambda: haproxy.connections("web_0") == 1)
    haproxy.take_out("web_0")
    assert haproxy.connections("web_0") == 1
    for backend in backends.values():
        backend.slow.set()
    until(lambda: haproxy.connections("web_0") == 0)
    for client in clients:
        client.join(10)
    assert sorted(answers) == ["web_0", "web_1"]


def test_its_process_is_found_again_and_ended(
    haproxy: HAProxy, tmp_path: Path, backends: dict[str, Backend]
) -> None:
    """L5, M1: it outlives the process that started it, and is never started twice."""
    (pid,) = mine(tmp_path)
    again = HAProxy(tmp_path / "b", [Rule("http", ADDRESS, PORT, 80, PROBE)])
    again.ensure([backends["web_0"].member])
    assert mine(tmp_path) == [pid]
    assert served() == {"web_0": 10}
    psutil.Process(pid).kill()
    until(lambda: mine(tmp_path) == [])
    again.ensure([backend.member for backend in backends.values()])
    until(lambda: set(served()) == {"web_0", "web_1"})
    haproxy.stop()
    assert mine(tmp_path) == []
    assert not (tmp_path / "b").exists()


def mine(folder: Path) -> list[int]:
    found = []
    for process in psutil.process_iter(["name", "status"]):
        if process.info["name"] == "haproxy" and process.info["status"] != "zombie":
            try:
                if str(folder) in " ".join(process.cmdline()):
                    found.append(process.pid)
            except psutil.Error:
                continue
    return found


def test_it_listens_on_loopback_only_and_its_files_are_the_owners(
    haproxy: HAProxy,  # noqa: ARG001 - it runs
    tmp_path: Path,
) -> None:
    """M5."""
    (pid,) = mine(tmp_path)
    process = psutil.Process(pid)
    listening = [link.laddr.ip for link in process.net_connections() if link.status == "LISTEN"]
    assert listening == [ADDRESS]
    assert process.uids().real != 0
    assert (tmp_path / "b").stat().st_mode & 0o777 == 0o700
    for name in ("haproxy.cfg", "haproxy.sock"):
        assert (tmp_path / "b" / name).stat().st_mode & 0o777 == 0o600


def test_a_path_too_long_for_a_socket_does_no_harm(
    tmp_path: Path, backends: dict[str, Backend]
) -> None:
    made = HAProxy(tmp_path / ("x" * 120), [Rule("http", ADDRESS, PORT, 80, PROBE)])
    try:
        made.ensure([backends["web_0"].member])
        until(lambda: made.healthy("web_0") is True)
        assert served() == {"web_0": 10}
    finally:
        made.stop()
    assert mine(tmp_path) == []


def test_azures_json_of_it() -> None:
    document = load_document(web_model(), load_balancer=LOAD_BALANCER)
    assert document.balancer is not None
    (rule,) = document.balancer.load_balancing_rules
    assert (rule.frontend_port, rule.backend_port) == (80, 80)
    assert document.balancer.probe_of(rule) == document.probe
    with pytest.raises(ModelError, match="no load balancer was given"):
        load_document(web_model())
    assert load_document(web_model(), known_balancer=document.balancer).probe == document.probe


@pytest.mark.parametrize("program", ["tail", "haproxy"])
def test_only_this_folders_own_haproxy_is_ended(tmp_path: Path, program: str) -> None:
    """Whoever merely mentions its configuration goes on, as does another folder's HAProxy."""
    folder = tmp_path / "b"
    folder.mkdir()
    mentions = folder / "haproxy.cfg"
    mentions.write_text("x")
    renamed = tmp_path / program
    renamed.symlink_to("/usr/bin/tail")
    impostor = subprocess.Popen([renamed, "-f", mentions], stdout=subprocess.DEVNULL)
    other = HAProxy(tmp_path / "b2", [Rule("http", ADDRESS, PORT, 80, PROBE)])
    try:
        other.ensure([])
        (folder / "haproxy.pid").write_text(f"{impostor.pid}\n")  # used again meanwhile
        made = HAProxy(folder, [Rule("http", ADDRESS, PORT + 1, 80, PROBE)])
        made.stop()
        assert not folder.exists()
        assert impostor.poll() is None
        assert other._process.current() is not None
    finally:
        impostor.kill()
        impostor.wait()
        other.stop()


def test_a_process_that_cannot_be_ended_is_told(
    haproxy: HAProxy, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its folder stays: it is what the process is found by."""
    with monkeypatch.context() as patched:
        patched.setattr(psutil.Process, "send_signal", lambda *_: None)
        patched.setattr("pytest_vmss.load_balancer.haproxy_process._STOP_S", 0.05)
        with pytest.raises(BalancerError, match="does not end, although it was killed"):
            haproxy.stop()

        def refuse(*_: object) -> None:
            raise psutil.AccessDenied

        patched.setattr(psutil.Process, "send_signal", refuse)
        with pytest.raises(BalancerError, match="it is another user's"):
            haproxy.stop()
    assert haproxy._process.current() is not None


@pytest.mark.parametrize("drip", [True, False], ids=["byte after byte", "without end"])
def test_an_answer_of_its_socket_is_bounded(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, drip: bool
) -> None:
    """R2: in time and bytes."""
    monkeypatch.setattr("pytest_vmss.load_balancer.runtime_socket._ANSWER_S", 0.5)
    monkeypatch.setattr("pytest_vmss.load_balancer.runtime_socket._ANSWER_BYTES", 1024 * 1024)
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind(str(tmp_path / "haproxy.sock"))
        listener.listen()

        def serve() -> None:
            link, _ = listener.accept()
            with contextlib.suppress(OSError):
                for _number in range(100_000):
                    link.sendall(b"x" if drip else b"x" * 65536)
                    time.sleep(0.05 if drip else 0)

        threading.Thread(target=serve, daemon=True).start()
        begun = time.monotonic()
        words = "has no end after" if drip else "is longer than 1 MiB"
        with pytest.raises(BalancerError, match=words):
            RuntimeSocket(tmp_path).ask("show stat")
        assert time.monotonic() - begun < 5


def test_a_member_that_was_half_added_is_neither_healthy_nor_not(
    tmp_path: Path, backends: dict[str, Backend]
) -> None:
    """F2, Q1: by a process that was killed meanwhile, or one that is about to go on."""
    member = backends["web_0"].member
    port = member.forwards[80]
    haproxy = HAProxy(tmp_path / "b", [Rule("web", ADDRESS, PORT, 80, PROBE)])
    haproxy.ensure([])
    try:
        haproxy._socket.command(f"add server web/web_0 127.0.0.1:{port} check port {port}")
        assert haproxy.verdicts() == {}
        haproxy._socket.command("enable health web/web_0")
        until(lambda: "L7" in haproxy._socket.rows()[0]["check_status"])
        assert haproxy.verdicts() == {}
        haproxy.add(member)
        assert haproxy.verdicts() == {"web_0": True}
    finally:
        haproxy.stop()


def test_an_answer_that_was_cut_off_is_none(tmp_path: Path) -> None:
    """F2, Q1: nobody counts as without connections, gone or healthy because HAProxy ended."""
    whole = (
        "# pxname,svname,scur,status,check_status,\n"
        "web,web_0,3,UP,L7OK,\nweb,web_1,12,DOWN,L4CON,\nweb,BACKEND,15,UP,,\n\n"
    )
    haproxy = HAProxy(tmp_path, [Rule("web", ADDRESS, PORT, 80, PROBE)])
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind(str(tmp_path / "haproxy.sock"))
        listener.listen()

        def answers(text: str, ask: Callable[[], object]) -> object:
            def serve() -> None:
                link, _ = listener.accept()
                with link:
                    link.recv(1024)
                    link.sendall(text.encode())

            server = threading.Thread(target=serve)
            server.start()
            try:
                return ask()
            finally:
                server.join()

        assert answers(whole, haproxy.verdicts) == {"web_0": True, "web_1": False}
        assert answers(whole, lambda: haproxy.connections("web_1")) == 12
        for end in range(len(whole)):
            for ask in (haproxy.verdicts, lambda: haproxy.remove("web_1")):
                with pytest.raises(BalancerError):
                    answers(whole[:end], ask)
        assert answers("\n", lambda: haproxy._socket.command("enable health web/web_0"))
        with pytest.raises(BalancerError, match="does not answer"):
            answers("", lambda: haproxy._socket.command("enable health web/web_0"))


BALANCER_ID = "/subscriptions/0/resourceGroups/g/providers/Microsoft.Network/loadBalancers/web-lb"


def balancer_of(*rules: dict[str, Any], **parts: Any) -> dict[str, Any]:
    """Azure's JSON of a load balancer with an Http and a Tcp probe."""
    tcp = {"name": "ssh", "properties": {"protocol": "Tcp", "port": 22, "intervalInSeconds": 5}}
    probes = [*LOAD_BALANCER["properties"]["probes"], tcp]
    return {
        "name": "web-lb",
        "properties": {"loadBalancingRules": list(rules), "probes": probes, **parts},
    }


def rule_of(name: str, port: int, protocol: str = "Tcp", **parts: Any) -> dict[str, Any]:
    """A rule in Azure's JSON; its probe is the Http one, unless it is to have another, or none."""
    probe = parts.pop("probe", "healthz")
    if probe:
        parts["probe"] = {"id": f"{BALANCER_ID}/probes/{probe}"}
    ports = {"frontendPort": port, "backendPort": port}
    return {"name": name, "properties": {"protocol": protocol, **ports, **parts}}


def frontend_of(name: str) -> dict[str, Any]:
    return {"frontendIPConfiguration": {"id": f"{BALANCER_ID}/frontendIPConfigurations/{name}"}}


def judged(balancer: dict[str, Any], body: dict[str, Any] | None = None) -> ScaleSetDocument:
    """A document that was found to be right."""
    document = load_document(body or web_model(), load_balancer=balancer)
    problems = check_model(
        document.model,
        probe=document.probe,
        sizes={},
        extension_types=frozenset({("microsoft.azure.extensions", "customscript")}),
        balancer=document.balancer,
    )
    assert problems == []
    return document


def served_of(document: ScaleSetDocument) -> dict[str, tuple[int, int]]:
    assert document.balancer is not None
    return {
        rule.name: (rule.frontend_port, rule.backend_port)
        for rule in served_rules(document.balancer, document.model)
    }


def told_of(document: ScaleSetDocument) -> list[str]:
    prefix = "the load balancer web-lb."
    return [
        told.removeprefix(prefix)
        for told in review(document).not_modelled
        if told.startswith(prefix)
    ]


def test_of_ha_ports_the_probes_port_is_served() -> None:
    """F2."""
    document = judged(balancer_of(rule_of("all", 0, "All")))
    assert served_of(document) == {"all": (80, 80)}
    assert told_of(document) == ["loadBalancingRules['all']: of all ports, 80 is served"]
    both = judged(balancer_of(rule_of("all", 0, "All", probe=None), rule_of("http", 80)))
    assert served_of(both) == {"http": (80, 80)}
    (told,) = told_of(both)
    assert told.startswith("loadBalancingRules['all']: it is for all ports, and has no probe")


@pytest.mark.parametrize(("protocol", "port"), [("All", 80), ("Tcp", 0), ("Udp", 0)])
def test_all_protocols_go_with_all_ports(protocol: str, port: int) -> None:
    """F2: as Azure has it."""
    with pytest.raises(AssertionError, match="the protocol All goes with 0 for both"):
        judged(balancer_of(rule_of("odd", port, protocol), rule_of("http", 8080)))


def test_tcp_and_udp_share_a_port() -> None:
    """F2: TCP is served, in either order; UDP is told."""
    for rules in (("dns", "Udp"), ("http", "Tcp")), (("http", "Tcp"), ("dns", "Udp")):
        document = judged(balancer_of(*(rule_of(name, 80, kind) for name, kind in rules)))
        assert served_of(document) == {"http": (80, 80)}
        assert told_of(document) == ["loadBalancingRules['dns']: UDP is not served"]
    with pytest.raises(AssertionError, match="2 rules have the frontend port 80 for Tcp"):
        judged(balancer_of(rule_of("http", 80), rule_of("again", 80)))


def test_several_frontends_may_have_one_port() -> None:
    """F2: the lab has one address, on which the first of them is served."""
    document = judged(
        balancer_of(
            rule_of("one", 80, **frontend_of("outer")), rule_of("two", 80, **frontend_of("inner"))
        )
    )
    assert served_of(document) == {"one": (80, 80)}
    assert told_of(document) == ["loadBalancingRules['two']: another rule serves its port"]


def test_what_else_a_load_balancer_has_is_listed() -> None:
    """F2, A6: pools, NAT and outbound rules."""
    parts = ["backendAddressPools", "inboundNatPools", "inboundNatRules", "outboundRules"]
    document = judged(balancer_of(rule_of("http", 80), **{name: [{"name": "x"}] for name in parts}))
    assert told_of(document) == parts


def in_pool(body: dict[str, Any], pool: str = "web", balancer: str = BALANCER_ID) -> dict[str, Any]:
    """Takes the health probe away, and puts the instances into a backend pool."""
    inner = {"loadBalancerBackendAddressPools": [{"id": f"{balancer}/backendAddressPools/{pool}"}]}
    body["properties"]["virtualMachineProfile"]["networkProfile"] = {
        "networkInterfaceConfigurations": [
            {
                "name": "nic",
                "properties": {"ipConfigurations": [{"name": "ip", "properties": inner}]},
            }
        ]
    }
    return body


def template_of(body: dict[str, Any], *balancers: dict[str, Any]) -> dict[str, Any]:
    set_resource = {"type": "Microsoft.Compute/virtualMachineScaleSets", **body}
    kind = {"type": "Microsoft.Network/loadBalancers"}
    return {"resources": [set_resource, *({**kind, **balancer} for balancer in balancers)]}


def test_a_set_without_a_health_probe_is_behind_the_balancer_of_its_pool() -> None:
    """F2: as in Azure, where a probe of a rule decides on traffic alone."""
    body = in_pool(web_model(automatic=False))
    other = {**balancer_of(rule_of("http", 81)), "name": "other"}
    document = load_document(template_of(body, other, balancer_of(rule_of("http", 80, probe=None))))
    assert document.probe is None
    assert served_of(document) == {"http": (80, 80)}
    given = load_document(body, load_balancer=balancer_of(rule_of("http", 80)))
    assert served_of(given) == {"http": (80, 80)}
    body["properties"]["virtualMachineProfile"].pop("networkProfile")
    assert load_document(template_of(body, other)).balancer is None


def test_load_balancers_of_others_are_not_validated() -> None:
    """F2: neither those that a set with a probe leaves alone, nor those of a set with none."""
    wrong = {"name": "wrong", "properties": {"loadBalancingRules": [{"frontendPort": "x"}]}}
    assert load_document(template_of(web_model(), wrong, LOAD_BALANCER)).probe is not None
    body = in_pool(web_model(automatic=False))
    assert load_document(template_of(body, wrong)).balancer is None
    with pytest.raises(ModelError, match="loadBalancingRules"):
        load_document(template_of(body, {**wrong, "name": "WEB-lb"}))


def test_rules_of_other_pools_send_this_set_nothing() -> None:
    """F2: two sets may share a load balancer."""
    body = in_pool(web_model(automatic=False), "green")
    pools: dict[str, dict[str, Any]] = {
        name: {"backendAddressPool": {"id": f"{BALANCER_ID}/backendAddressPools/{name}"}}
        for name in ("blue", "Green")
    }
    document = judged(
        balancer_of(rule_of("b", 80, **pools["blue"]), rule_of("g", 81, **pools["Green"])), body
    )
    assert served_of(document) == {"g": (81, 81)}
    assert told_of(document) == ["loadBalancingRules['b']: the set is not in its backend pool"]


def test_haproxy_serves_what_the_rules_say(tmp_path: Path, backends: dict[str, Backend]) -> None:
    """F2: a rule without a probe sends to all, and only the set's own probe says who is healthy."""
    other = PROBE.model_copy(update={"name": "other", "request_path": "/missing"})
    made = HAProxy(
        tmp_path / "b",
        [
            Rule("all", ADDRESS, PORT, 80, None, judges=False),
            Rule("own", ADDRESS, PORT + 1, 80, PROBE),
            Rule("other", ADDRESS, PORT + 2, 80, other, judges=False),
        ],
    )
    backends["web_0"].healthy = False
    try:
        made.ensure([backend.member for backend in backends.values()])
        assert made.judges
        until(lambda: made.healthy("web_0") is False and made.healthy("web_1") is True)
        assert served() == {"web_0": 5, "web_1": 5}
        assert HAProxy(tmp_path, [Rule("all", ADDRESS, 1, 80, None, judges=False)]).judges is False
    finally:
        made.stop()
