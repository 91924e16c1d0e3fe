"""H5, M5, M6, R1, R2 on real VMs: what hostile guests reach, and whom they harm.

The tests share a set of two, whose only extension attacks the network, and run in the order
of the file: the last one turns an instance against the lab for good.
"""

from __future__ import annotations

import contextlib
import ipaddress
import json
import socket
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import psutil
import pytest

from pytest_vmss.api.lab import Lab
from pytest_vmss.api.scale_set import ScaleSet
from pytest_vmss.model import Health
from tests.models import application_health, custom_script
from tests.vm.floods import attack, responsive
from tests.vm.start import extensions, start

_ATTACK = Path(__file__).with_name("attack.py")
#: As much as a guest with a fast console would have written by then.
FLOOD_MIB = 500
#: Seconds that an interrupt or another thread may have to wait.
PATIENCE_S = 1.0
MEMORY_MIB = 100
_COMMON = (1, 21, 23, 53, 69, 111, 139, 445, 631, 3306, 5432, 6379, 8000, 8080, 16509, 27017)


class Trap:
    """Listens for TCP and UDP at an address of the host's, answers, and notes who comes."""

    def __init__(self, address: str) -> None:
        family = socket.AF_INET6 if ":" in address else socket.AF_INET
        self.address, self.came = address, 0
        self._tcp = socket.socket(family, socket.SOCK_STREAM)
        self._tcp.bind((address, 0))
        self._tcp.listen(64)
        self.port: int = self._tcp.getsockname()[1]
        self._udp = socket.socket(family, socket.SOCK_DGRAM)
        self._udp.bind((address, self.port))
        for run in (self._take, self._answer):
            threading.Thread(target=run, name="trap", daemon=True).start()

    def _take(self) -> None:
        with contextlib.suppress(OSError):
            while True:
                self._tcp.accept()[0].close()
                self.came += 1

    def _answer(self) -> None:
        with contextlib.suppress(OSError):
            while True:
                _, sender = self._udp.recvfrom(512)
                if sender is None:
                    return  # it was closed
                self.came += 1
                self._udp.sendto(b"trapped", sender)

    def close(self) -> None:
        for link in (self._tcp, self._udp):
            with contextlib.suppress(OSError):
                link.shutdown(socket.SHUT_RDWR)
            link.close()


@pytest.fixture(scope="module")
def traps() -> Iterator[dict[str, Trap]]:
    """By address: the loopback's, of both protocols, and the host's others."""
    addresses = ["127.0.0.1", "127.64.255.254"]
    for entries in psutil.net_if_addrs().values():
        addresses += [
            entry.address
            for entry in entries
            if entry.family == socket.AF_INET and not entry.address.startswith("127.")
        ]
    found = {address: Trap(address) for address in addresses}
    with contextlib.suppress(OSError):  # a host without IPv6
        found["::1"] = Trap("::1")
    yield found
    for trap in found.values():
        trap.close()


def targets(traps: dict[str, Trap], forward: tuple[str, int], blobs: int) -> list[Any]:
    """What is tried: [protocol, address, port]."""
    listening = {
        entry.laddr.port
        for entry in psutil.net_connections("tcp")
        if entry.status == psutil.CONN_LISTEN and entry.laddr
    }
    ports = {*_COMMON, *listening, blobs, 22, *(trap.port for trap in traps.values())}
    tried: list[Any] = [["tcp", "10.0.2.2", port] for port in ports]
    tried += [["tcp", "127.0.0.1", port] for port in ports - {22, 80, 6379}]
    tried += [
        ["udp", "10.0.2.2", port] for port in (53, 69, 123, *(t.port for t in traps.values()))
    ]
    tried += [["tcp", "10.0.2.3", 53], ["udp", "10.0.2.3", 53], ["tcp", *forward]]
    for trap in traps.values():
        addresses = [trap.address] if ":" not in trap.address else ["fec0::2", "fe80::2%2"]
        for address in addresses:
            if address != "127.0.0.1":
                tried += [["tcp", address, trap.port], ["udp", address, trap.port]]
        if ipaddress.ip_address(trap.address).version == 4 and address != "127.0.0.1":
            tried.append(["icmp", trap.address, 0])
    for outside in ("1.1.1.1", "8.8.8.8", "169.254.169.254"):
        tried += [["tcp", outside, 80], ["tcp", outside, 443], ["udp", outside, 53]]
        tried.append(["icmp", outside, 0])
    # What must answer: else the attack proves nothing.
    return [*tried, ["tcp", "127.0.0.1", 22]]


@pytest.fixture(scope="module")
def lonely(vmss: Lab, built: Callable[[str], Path], traps: dict[str, Trap]) -> Iterator[ScaleSet]:
    """A set of two whose health is told from inside too; the other extension attacks."""
    vmss.blobs.put("attack.py", _ATTACK)
    lenient = {"maxUnhealthyInstancePercent": 100, "maxUnhealthyUpgradedInstancePercent": 100}
    created = start(
        vmss, built("1.0.0"), gallery="lonely", health_timeout=60, automatic=False, policy=lenient
    )
    tried = targets(traps, created[1].address(22), vmss.blobs.serve())
    vmss.blobs.put("targets.json", json.dumps(tried))
    settings = {
        "fileUris": [vmss.blobs.url("attack.py"), vmss.blobs.url("targets.json")],
        "commandToExecute": "python3 attack.py targets.json /var/lib/found.json",
    }
    health = application_health("1.0", requestPath="/healthz")
    created.update(extensions([custom_script("attack", settings=settings), health]))
    created.update_instances()
    vmss.gallery("lonely").publish("web", "1.1.0", built("1.1.0"))
    yield created
    created.delete()


def test_a_hostile_guest_reaches_the_labs_files_alone(
    lonely: ScaleSet, vmss: Lab, traps: dict[str, Trap]
) -> None:
    """M6: neither the host's loopback and its other addresses, nor the outside; in either protocol."""
    assert vmss.settings.guest_network == "isolated"
    for instance in lonely:
        extension = instance.extensions[0]
        assert extension.status == "success", extension.message
        found = json.loads(instance.host.check_output("sudo cat /var/lib/found.json"))
        reached = {(kind, address, port) for kind, address, port in found}
        assert reached == {("tcp", "127.0.0.1", 22), ("tcp", "127.0.0.1", vmss.blobs.port)}
    assert {trap.address: trap.came for trap in traps.values()} == dict.fromkeys(traps, 0)


def test_the_traps_hold(traps: dict[str, Trap]) -> None:
    """Each listener of the test above answers whoever does reach it."""
    for trap in traps.values():
        before = trap.came
        with socket.create_connection((trap.address, trap.port), 5) as link:
            assert link.recv(1) == b""
        family = socket.AF_INET6 if ":" in trap.address else socket.AF_INET
        with socket.socket(family, socket.SOCK_DGRAM) as link:
            link.settimeout(5)
            link.sendto(b"x", (trap.address, trap.port))
            assert link.recv(16) == b"trapped"
        assert trap.came > before


def test_nothing_waits_for_names(lonely: ScaleSet) -> None:
    """M6: a name that nobody can resolve is refused at once, not waited for."""
    ask = "date +%s%N; getent hosts nothing.example || true; date +%s%N"
    begun, ended = map(int, lonely[0].host.check_output(ask).split())
    assert ended - begun < 3e9, "20 s where the guest believes in a way out"


def test_a_hostile_instance_harms_no_other(lonely: ScaleSet) -> None:
    """R2: the other's update completes, this process stays well, and the reason is told."""
    victim, hostile = lonely
    hostile.protect(from_scale_set_actions=True)
    attack(hostile)
    log = hostile.console.path
    with log.open("ab") as console:  # what a faster console would have brought by now
        for _ in range(FLOOD_MIB):
            console.write(b"error: x not found. \x1b[31m" * 40330)
    with responsive() as seen:
        upgrade = lonely.upgrade()
        views = lonely.virtual_machines()
        observations = hostile.observations()
        told = [hostile.console.tail(), hostile.console.milestone(), str(hostile.console.trouble())]
        told += [observation.detail for observation in observations.values()]
        told += [event.message for event in lonely._environment.store.events(scale_set=lonely.name)]
    print(seen)
    assert upgrade.completed, upgrade.explain()
    assert victim.image_version == "1.1.0"
    assert victim.health() is Health.HEALTHY
    assert hostile.image_version == "1.0.0"
    assert {seen.health for seen in observations.values()} <= {Health.UNHEALTHY, Health.UNKNOWN}
    assert all(observation.detail for observation in observations.values())
    assert [view["lab"]["imageVersionFound"] for view in views] == ["1.1.0", "1.0.0"]
    for text in told:
        assert "\x1b" not in text
        assert not any(0x80 <= ord(letter) < 0xA0 for letter in text)
        assert len(text) < 100_000
    assert seen.interrupts > 10
    assert seen.late < PATIENCE_S
    assert seen.longest < PATIENCE_S
    assert seen.grown < MEMORY_MIB
