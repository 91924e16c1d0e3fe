"""A9: addresses, names, the switch and its process, and what hostile guests send."""

from __future__ import annotations

import contextlib
import json
import os
import resource
import secrets
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import AbstractContextManager
from ipaddress import IPv4Address
from pathlib import Path

import psutil
import pytest
from hypothesis import given
from hypothesis import strategies as st

from pytest_vmss.clock import SystemClock, wait_for
from pytest_vmss.errors import HostError
from pytest_vmss.guest.keys import KeyPair
from pytest_vmss.guest.seed import build_seed
from pytest_vmss.guest_platform import background
from pytest_vmss.guest_platform.addresses import GATEWAY_MAC
from pytest_vmss.guest_platform.frames import (
    BROADCAST,
    Datagram,
    arp_target,
    ethernet,
    ipv4_target,
    read_datagram,
    source_mac,
    udp_frame,
)
from pytest_vmss.guest_platform.private_addresses import (
    GATEWAY,
    computer_name,
    number_in_name,
    private_ip_address,
    private_mac,
)
from pytest_vmss.guest_platform.virtual_network import launcher, names, process
from pytest_vmss.guest_platform.virtual_network.config import NetworkFiles, VirtualNetwork
from pytest_vmss.guest_platform.virtual_network.partitions import read_partitions, write_partition
from pytest_vmss.guest_platform.virtual_network.switch import LARGEST, Switch
from pytest_vmss.host.locks import Lock, is_locked, try_lock
from pytest_vmss.model import load_document
from tests.models import LOAD_BALANCER, web_model, with_subnet


def mac(number: int) -> bytes:
    return bytes.fromhex(private_mac(number).replace(":", ""))


def frame(
    source: int, target: int | IPv4Address, payload: bytes = b"hello", *, port: int = 9
) -> bytes:
    """A datagram from one instance to another."""
    to = private_ip_address(target) if isinstance(target, int) else target
    sent = Datagram(private_ip_address(source), 7, to, port, payload)
    return udp_frame(sent, source_mac=mac(source), target_mac=GATEWAY_MAC)


def arp(source: int, target: IPv4Address, *, sender: IPv4Address | None = None) -> bytes:
    body = bytes.fromhex("0001080006040001") + mac(source)
    body += (sender or private_ip_address(source)).packed + bytes(6) + target.packed
    return ethernet(BROADCAST, mac(source), 0x0806, body)


def question(name: str, kind: int = 1) -> bytes:
    labels = b"".join(bytes([len(part)]) + part.encode() for part in name.split("."))
    return b"\x12\x34\x01\x00\x00\x01" + bytes(6) + labels + b"\0" + kind.to_bytes(2) + b"\0\1"


@pytest.fixture
def switch() -> Switch:
    made = Switch("web")
    made.connect([0, 1, 2])
    return made


def test_addresses_and_names_are_as_in_azure() -> None:
    """A9: the first four addresses of the subnet are Azure's own."""
    assert str(private_ip_address(0)) == "10.0.0.4"
    assert private_mac(0) == "52:54:0a:00:00:04"
    assert str(private_ip_address(508)) == "10.0.3.0"  # 10.0.2.0/24 is QEMU's
    assert computer_name("Web", 36) == "web000010"
    assert number_in_name("web", "WEB000010.internal.cloudapp.net.") == 36
    for other in ("web10", "api000010", "web00001_", "web000010.example.com", "000010", ""):
        assert number_in_name("web", other) is None


@given(st.integers(0, 36**6 - 1), st.sampled_from(["web", "w", "0", "web-0", "zzz"]))
def test_a_name_leads_back_to_its_instance(number: int, prefix: str) -> None:
    assert number_in_name(prefix, computer_name(prefix, number)) == number


def test_a_frame_goes_to_whom_it_is_for(switch: Switch) -> None:
    """A9: under MAC addresses that each side knows."""
    assert switch.take(0, frame(0, 1)) == (1, mac(1) + GATEWAY_MAC + frame(0, 1)[12:])
    asked = switch.take(0, arp(0, private_ip_address(1)))
    assert asked is not None
    to, answer = asked
    assert (to, source_mac(answer), answer[22:28]) == (0, GATEWAY_MAC, GATEWAY_MAC)


def test_a_guest_is_nobody_but_itself(switch: Switch) -> None:
    """R1: neither another's MAC address nor another's IP address, nor an answer that was not asked for."""
    own = frame(0, 2)
    assert switch.take(0, own) is not None
    assert switch.take(1, own) is None
    assert switch.take(0, own[:6] + mac(1) + own[12:]) is None
    forged = udp_frame(
        Datagram(private_ip_address(1), 7, private_ip_address(2), 9, b""),
        source_mac=mac(0), target_mac=GATEWAY_MAC,
    )  # fmt: skip
    assert switch.take(0, forged) is None
    reply = bytearray(arp(0, private_ip_address(2), sender=private_ip_address(1)))
    assert switch.take(0, bytes(reply)) is None
    reply[21] = 2  # a gratuitous answer
    assert switch.take(0, bytes(reply)) is None
    assert switch.take(0, arp(0, private_ip_address(0))) is None  # is my address in use?


def test_nothing_leaves_the_network(switch: Switch) -> None:
    """R1: no broadcast, no multicast, no other protocol, and no address outside."""
    for address in ("10.0.255.255", "255.255.255.255", "224.0.0.1", "8.8.8.8", "127.0.0.1",
                    "169.254.169.254", "10.0.0.99"):  # fmt: skip
        assert switch.take(0, frame(0, IPv4Address(address))) is None
    assert switch.take(0, ethernet(GATEWAY_MAC, mac(0), 0x86DD, bytes(60))) is None
    assert switch.take(0, frame(0, 1, bytes(LARGEST))) is None
    assert switch.take(0, arp(0, IPv4Address("192.168.0.1"))) is None
    assert switch.take(7, frame(7, 1)) is None


@given(st.binary(max_size=1600), st.integers(0, 3))
def test_whatever_a_guest_sends_is_carried_or_dropped(data: bytes, number: int) -> None:
    """R2: and what is carried has the sender's own address."""
    switch = Switch("web")
    switch.connect([0, 1, 2])
    for sent in (data, GATEWAY_MAC + mac(number) + data, frame(number, 1)[:34] + data):
        found = switch.take(number, sent)
        if found is not None and found[0] != number:
            assert found[1][26:30] == private_ip_address(number).packed


def test_a_flood_of_mac_addresses_leaves_no_trace(switch: Switch) -> None:
    """R2: the switch learns nothing."""
    before = repr(switch)
    for number in range(5000):
        forged = b"\2" + number.to_bytes(5)
        assert switch.take(0, GATEWAY_MAC + forged + frame(0, 1)[12:]) is None
    assert repr(switch) == before


def test_names_are_answered(switch: Switch) -> None:
    """A9: one that is not there is said not to be; other names are refused."""

    def answer(name: str, kind: int = 1) -> bytes:
        found = switch.take(0, frame(0, GATEWAY, question(name, kind), port=53))
        assert found is not None
        assert (found[0], ipv4_target(found[1])) == (0, private_ip_address(0))
        datagram = read_datagram(found[1])
        assert datagram is not None
        return datagram.payload

    known = answer("WEB000001.internal.cloudapp.net")
    assert (known[3] & 15, known[6:8], known[-4:]) == (0, b"\0\1", private_ip_address(1).packed)
    six = answer("web000001", 28)
    assert (six[3] & 15, six[6:8]) == (0, b"\0\0")
    assert answer("web000009")[3] & 15 == 3
    assert answer("example.com")[3] & 15 == 5
    assert switch.take(0, frame(0, GATEWAY, b"\x80" * 40, port=53)) is None
    assert switch.take(0, frame(0, GATEWAY, question("web000001"), port=54)) is None


@given(st.binary(max_size=300))
def test_whatever_a_guest_asks_is_answered_or_not(data: bytes) -> None:
    """R2."""
    asked = Datagram(private_ip_address(0), 5353, GATEWAY, 53, data)
    names.answer(asked, "web", lambda _number: True)
    names.refuse(asked)
    names.answer(
        Datagram(asked.source, 1, GATEWAY, 53, question("web000001")[:12] + data), "w", bool
    )


def test_a_partition_cuts_both_ways(switch: Switch) -> None:
    """A9."""
    switch.cut = frozenset({frozenset((0, 1))})
    assert switch.take(0, frame(0, 1)) is None
    assert switch.take(1, frame(1, 0)) is None
    assert switch.take(2, frame(2, 0)) is not None
    assert arp_target(arp(0, private_ip_address(1))) is not None


def test_only_a_model_with_a_subnet_has_a_network() -> None:
    """A9, A6: the subnet counts, and what else an interface has is listed."""
    assert not load_document(web_model(), load_balancer=LOAD_BALANCER).model.has_subnet
    body = with_subnet(web_model())
    card = body["properties"]["virtualMachineProfile"]["networkProfile"]
    card["networkInterfaceConfigurations"][0]["properties"]["enableIPForwarding"] = True
    document = load_document(body, load_balancer=LOAD_BALANCER)
    assert document.model.has_subnet
    listed = [path for path in document.not_modelled() if "networkInterface" in path]
    path = "$.virtualMachineProfile.networkProfile.networkInterfaceConfigurations[0]"
    assert listed == [f"{path}.enableIPForwarding"]


def test_the_seed_names_address_and_name_server() -> None:
    """A9: for a guest that reads a NoCloud disk; the user's own data stays as it is."""
    seed = build_seed(
        load_document(with_subnet(web_model()), load_balancer=LOAD_BALANCER).model, cloud_instance_id="i", computer_name="web000001",
        mac="52:54:00:00:00:01", host_key=KeyPair("private", "public"),
        lab_key=KeyPair("private", "public"), grow=False, private=1,
    )  # fmt: skip
    ethernets = json.loads(seed.network_config)["ethernets"]
    assert ethernets["private"] == {
        "match": {"macaddress": "52:54:0a:00:00:05"},
        "addresses": ["10.0.0.5/16"],
        "nameservers": {"addresses": ["10.0.0.1"], "search": ["internal.cloudapp.net"]},
    }
    assert "nameserver 10.0.0.1" in seed.vendor_data
    assert b"fs_setup" in seed.user_data
    assert "nameserver 10.0.2.3" not in seed.vendor_data


def test_other_names_are_asked_of_the_next_name_server() -> None:
    """A9: in a guest with a way out."""
    seed = build_seed(
        load_document(with_subnet(web_model()), load_balancer=LOAD_BALANCER).model,
        cloud_instance_id="i", computer_name="web000001", mac="52:54:00:00:00:01",
        host_key=KeyPair("private", "public"), lab_key=KeyPair("private", "public"),
        grow=False, outbound=True, private=1,
    )  # fmt: skip
    hook = seed.vendor_data
    assert hook.index("nameserver 10.0.0.1") < hook.index("nameserver 10.0.2.3")


# The process.


class Guest:
    """QEMU's end of an instance's cable."""

    def __init__(self, network: VirtualNetwork) -> None:
        self._network = network
        self.number = network.instance_id
        self.link = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
        network.guest_end.unlink(missing_ok=True)
        self.link.bind(str(network.guest_end))
        self.link.settimeout(5)

    def send(self, data: bytes) -> None:
        self.link.sendto(data, str(self._network.switch_end))

    def reaches(self, other: Guest) -> bool:
        """Whether a frame arrives, that is, before one that is sent to itself by way of a name."""
        self.send(frame(self.number, other.number, b"ping"))
        self.link.settimeout(5)
        self.send(frame(self.number, GATEWAY, question("nobody"), port=53))
        self.link.recv(2000)  # what came before was carried before
        other.link.setblocking(False)
        with contextlib.suppress(BlockingIOError):
            return other.link.recv(2000).endswith(b"ping")
        return False


def carriers(files: NetworkFiles) -> list[psutil.Process]:
    found = []
    for one in psutil.process_iter():
        with contextlib.suppress(psutil.Error):
            if str(files.folder) in one.cmdline() and one.status() != psutil.STATUS_ZOMBIE:
                found.append(one)
    return found


@pytest.fixture
def networks(tmp_path: Path) -> Iterator[list[VirtualNetwork]]:
    files = NetworkFiles(tmp_path / "406a9d04.vn")
    yield [VirtualNetwork(files, number, "web") for number in range(3)]
    launcher.end(files)
    wait_for(
        "the process to end", lambda: not carriers(files) or None, timeout=10, clock=SystemClock()
    )


@pytest.fixture
def guests(networks: list[VirtualNetwork]) -> Iterator[list[Guest]]:
    launcher.prepare(networks[0])
    made = [Guest(network) for network in networks]
    launcher.ensure(networks[0])
    yield made
    for guest in made:
        guest.link.close()


def test_frames_are_carried(networks: list[VirtualNetwork], guests: list[Guest]) -> None:
    """A9, M5: by one process, in a folder that is closed to others, and again after a kill."""
    files = networks[0].files
    assert files.folder.stat().st_mode & 0o777 == 0o700
    first, second, _ = guests
    assert first.reaches(second)
    for network in networks:
        launcher.ensure(network)
    (process,) = carriers(files)
    process.kill()
    process.wait(10)
    assert not launcher.is_carried(files)
    launcher.ensure(networks[1])
    assert first.reaches(second)
    guests[1] = again = Guest(networks[1])  # its VM was started again
    second.link.close()
    assert first.reaches(again)
    again.link.close()


def test_a_partition_lasts_for_its_block(
    networks: list[VirtualNetwork], guests: list[Guest]
) -> None:
    """A9, M1: also in another process that carries the frames after a kill."""
    first, second, third = guests
    with launcher.partitioned(networks[0], [1]):
        assert not first.reaches(second)
        assert not second.reaches(first)
        assert third.reaches(first)
        (process,) = carriers(networks[0].files)
        process.kill()
        process.wait(10)
        launcher.ensure(networks[0])
        assert not first.reaches(second)
    assert first.reaches(second)
    assert not list(networks[0].files.folder.glob("cut-*"))


def test_a_partition_ends_with_its_process(
    networks: list[VirtualNetwork], guests: list[Guest]
) -> None:
    """A9, L5: even if that is killed."""
    code = (
        "import sys, time; from pathlib import Path;"
        "from pytest_vmss.guest_platform.virtual_network import launcher;"
        "from pytest_vmss.guest_platform.virtual_network.config import NetworkFiles, VirtualNetwork;"
        "network = VirtualNetwork(NetworkFiles(Path(sys.argv[1])), 0, 'web');"
        "block = launcher.partitioned(network, [1]); block.__enter__();"
        "print('cut', flush=True); time.sleep(60)"
    )
    first, second, _ = guests
    holder = subprocess.Popen(
        [sys.executable, "-c", code, networks[0].files.folder], stdout=subprocess.PIPE, text=True
    )
    with holder:
        assert holder.stdout is not None
        assert holder.stdout.readline() == "cut\n"
        assert not first.reaches(second)
        os.kill(holder.pid, signal.SIGKILL)
    wait_for(
        "the partition to heal", lambda: first.reaches(second) or None, timeout=10,
        clock=SystemClock(),
    )  # fmt: skip


def test_a_partition_that_is_not_written_yet_cuts_nothing(tmp_path: Path) -> None:
    """R3: nor does a file that is no partition."""
    lock = write_partition(NetworkFiles(tmp_path), [0, 1], [2])
    assert read_partitions(tmp_path, []) == {frozenset((0, 2)), frozenset((1, 2))}
    for content in ("", "{", "[[0]]", '[["x"], [1]]', "3"):
        lock.path.write_text(content)
        assert read_partitions(tmp_path, []) == frozenset()
    lock.remove()


def held_for(lock: Lock | None, seconds: float, *, removed: bool = False) -> threading.Thread:
    assert lock is not None
    thread = threading.Timer(seconds, lock.remove if removed else lock.release)
    thread.start()
    return thread


def test_what_a_dead_process_left_is_locked_while_it_is_removed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A9: it may be another's new partition, which is then written again."""
    write_partition(NetworkFiles(tmp_path), [0], [1]).release()
    unlink, locked = Path.unlink, list[bool]()

    def seen(path: Path, missing_ok: bool = False) -> None:
        locked.append(is_locked(path))
        unlink(path, missing_ok)

    monkeypatch.setattr(Path, "unlink", seen)
    assert read_partitions(tmp_path, [0, 1]) == frozenset()
    assert locked == [True]
    assert not list(tmp_path.iterdir())


def test_a_look_at_a_new_partition_does_not_end_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A9: it may see the file before it is locked, and take it for one of a dead process."""
    monkeypatch.setattr(secrets, "token_hex", lambda _size: "known")
    look = held_for(try_lock(tmp_path / "cut-known"), 0.2, removed=True)
    lock = write_partition(NetworkFiles(tmp_path), [0], [1])
    look.join()
    assert read_partitions(tmp_path, [0, 1]) == {frozenset((0, 1))}
    lock.remove()


def test_a_partition_is_not_written_through_a_link(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """R4: the folder is of the account that QEMU runs as, and root writes into it."""
    monkeypatch.setattr(secrets, "token_hex", lambda _size: "known")
    other = tmp_path / "other"
    other.write_text("secret")
    other.chmod(0o600)
    files = NetworkFiles(tmp_path / "406a9d04.vn")
    files.folder.mkdir()
    link = files.folder / "cut-known"
    link.symlink_to(other)
    with pytest.raises(HostError):
        write_partition(files, [0], [1])
    link.unlink()
    lock = try_lock(link)
    assert lock is not None
    link.unlink()
    link.symlink_to(other)  # just now
    lock.write(b"[]", 0o644)
    assert (other.read_text(), other.stat().st_mode & 0o777) == ("secret", 0o600)
    lock.remove()


def test_no_other_network_is_told_by_a_link(tmp_path: Path) -> None:
    """R4: the folder is of the account that QEMU runs as, and root ends the process."""
    mine, other = (VirtualNetwork(NetworkFiles(tmp_path / name), 0, "web") for name in "ab")
    for network in (mine, other):
        launcher.prepare(network)
        launcher.ensure(network)
    mine.files.control.unlink()
    mine.files.control.symlink_to(other.files.control)
    launcher.leave(mine)
    assert launcher.look(other.files)
    launcher.leave(other)


def test_a_partition_from_all_counts_for_whom_is_added(
    networks: list[VirtualNetwork], guests: list[Guest]
) -> None:
    """A9."""
    with launcher.partitioned(networks[0], []):
        added = VirtualNetwork(networks[0].files, 3, "web")
        launcher.prepare(added)
        guest = Guest(added)
        launcher.ensure(added)
        assert not guest.reaches(guests[0])
        assert not guests[0].reaches(guest)
        assert guests[1].reaches(guest)
    assert guests[0].reaches(guest)
    guest.link.close()


@pytest.mark.usefixtures("guests")
def test_many_start_at_once(networks: list[VirtualNetwork]) -> None:
    """A9: more than the process has places for; each is answered, and there is one process."""
    (carrier,) = carriers(networks[0].files)
    carrier.suspend()
    with ThreadPoolExecutor(160) as pool:
        asked = [pool.submit(launcher.ensure, networks[0]) for _ in range(400)]
        time.sleep(0.5)
        carrier.resume()
        for each in asked:
            each.result()
    assert carriers(networks[0].files) == [carrier]


def test_who_looks_whether_it_is_carried_does_not_hinder_its_start(
    networks: list[VirtualNetwork],
) -> None:
    """A9."""
    launcher.prepare(networks[0])
    code = (
        "import sys, threading; from pathlib import Path;"
        "from pytest_vmss.guest_platform.virtual_network.process import _Carrier;"
        "from pytest_vmss.host.locks import try_lock;"
        "look = try_lock(Path(sys.argv[1]) / 'lock');"
        "threading.Timer(0.5, look.release).start(); _Carrier(Path(sys.argv[1]), 'web')"
    )
    subprocess.run([sys.executable, "-c", code, networks[0].files.folder], check=True, timeout=120)


def start_limited(files: NetworkFiles, count: int, *limit: str) -> VirtualNetwork:
    """Starts the process for that many instances with 1024 descriptors; returns the last one."""
    for number in set(range(count)) - set(files.instances):
        files.guest_end(number).touch()
    command = f'ulimit {" ".join(limit)} -n 1024; exec "$@"'
    carrier = [sys.executable, "-m", process.__name__, str(files.folder), "web"]
    subprocess.run(["bash", "-c", command, "bash", *carrier], check=True)
    return VirtualNetwork(files, count - 1, "web")


def test_where_the_host_has_too_few_descriptors_it_is_said(networks: list[VirtualNetwork]) -> None:
    """A9, R2: of the instances for which there are none; the others have what they need."""
    launcher.prepare(networks[0])
    guests = [Guest(network) for network in networks]
    last = start_limited(networks[0].files, 600)
    with pytest.raises(HostError, match=r"instance 599 is not connected .*: 448 others are"):
        launcher.ensure(last)
    with launcher.partitioned(networks[0], [1]):
        assert not guests[0].reaches(guests[1])
        assert guests[0].reaches(guests[2])
    (carrier,) = carriers(networks[0].files)
    assert carrier.num_fds() < 1024
    for guest in guests:
        guest.link.close()


def test_without_descriptors_of_its_own_the_lab_says_so(networks: list[VirtualNetwork]) -> None:
    """A9, Q1: as its own error, and what the process does by itself is not missed."""
    launcher.prepare(networks[0])
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (3, hard))
    try:
        assert not launcher.look(networks[0].files)
        for use in (launcher.prepare, launcher.ensure, launcher.leave):
            with pytest.raises(HostError, match="Too many open files"):
                use(networks[0])
        with pytest.raises(HostError), launcher.partitioned(networks[0], []):
            pass
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))
    launcher.leave(networks[0])
    assert not networks[0].files.folder.exists()


def test_an_instance_that_comes_back_is_still_cut_off(networks: list[VirtualNetwork]) -> None:
    """A9, L5: though no other was there meanwhile; at the end of the block nothing is left."""
    first, second, _ = networks
    for network in (first, second):
        launcher.prepare(network)
    with launcher.partitioned(first, []):
        for network in (first, second):
            launcher.leave(network)
        guests = [Guest(network) for network in (first, second)]
        launcher.ensure(second)
        assert not guests[1].reaches(guests[0])
        for network, guest in zip(networks, guests, strict=False):
            launcher.leave(network)
            guest.link.close()
    assert not first.files.folder.exists()


def test_the_largest_set_has_room(networks: list[VirtualNetwork]) -> None:
    """A9, R2: for its descriptors, though a program has 1024, and for what waits in memory."""
    launcher.prepare(networks[0])
    guest = Guest(networks[0])
    launcher.ensure(start_limited(networks[0].files, 600, "-S"))
    guest.link.close()
    frames = min(process._WAITING * process._MOST_INSTANCES, process._WAITING_FOR_ALL)
    assert frames * (LARGEST + 100) < background._MEMORY / 2


def test_one_that_cannot_be_connected_harms_no_other(
    networks: list[VirtualNetwork], guests: list[Guest]
) -> None:
    """R2, A9: it is told why, and connected once it can be."""
    (carrier,) = carriers(networks[0].files)
    added = VirtualNetwork(networks[0].files, 3, "web")
    launcher.prepare(added)
    guest = Guest(added)
    added.switch_end.mkdir()
    with pytest.raises(HostError, match=r"instance 3 is not connected .*: Is a directory"):
        launcher.ensure(added)
    launcher.ensure(networks[0])
    assert guests[0].reaches(guests[1])
    added.switch_end.rmdir()
    launcher.ensure(added)
    assert guest.reaches(guests[0])
    assert carriers(networks[0].files) == [carrier]
    guest.link.close()


def test_the_network_stays_for_one_that_is_being_started(networks: list[VirtualNetwork]) -> None:
    """A9: a restore removes the last instance while it brings back another."""
    gone, back, _ = networks
    for network in (gone, back):
        launcher.prepare(network)
    launcher.leave(gone)
    guest = Guest(back)
    launcher.ensure(back)
    assert launcher.is_carried(back.files)
    guest.link.close()


def test_a_late_look_leaves_nothing(
    networks: list[VirtualNetwork], monkeypatch: pytest.MonkeyPatch
) -> None:
    """L5: at the health of an instance whose set is being deleted."""
    network = networks[0]
    launcher.prepare(network)
    alone = launcher._alone

    def after_the_others(files: NetworkFiles) -> AbstractContextManager[None]:
        monkeypatch.setattr(launcher, "_alone", alone)
        launcher.leave(network)
        return alone(files)

    monkeypatch.setattr(launcher, "_alone", after_the_others)
    launcher.ensure(network)
    launcher.leave(network)
    launcher.ensure(network)
    assert not list(network.files.folder.parent.iterdir())


def test_who_is_prepared_waits_until_the_network_is_gone(
    networks: list[VirtualNetwork], monkeypatch: pytest.MonkeyPatch
) -> None:
    """A9: else it would be removed too."""
    gone, added, _ = networks
    launcher.prepare(gone)
    with ThreadPoolExecutor(1) as pool:

        def end(files: NetworkFiles) -> None:
            prepared.append(pool.submit(launcher.prepare, added))
            time.sleep(0.2)
            files.remove()

        prepared = list[Future[None]]()
        with monkeypatch.context() as patched:
            patched.setattr(launcher, "end", end)
            launcher.leave(gone)
        prepared[0].result()
    assert added.guest_end.exists()


def test_instances_come_and_go_at_once(networks: list[VirtualNetwork]) -> None:
    """A9, L5: the network may go just when another one is prepared for it."""

    def life(network: VirtualNetwork) -> None:
        for _ in range(50):
            launcher.prepare(network)
            assert network.guest_end.exists()
            launcher.leave(network)

    with ThreadPoolExecutor(len(networks)) as pool:
        list(pool.map(life, networks))
    assert not list(networks[0].files.folder.parent.iterdir())


def test_a_process_that_ends_takes_nothing_of_its_successors(
    networks: list[VirtualNetwork],
) -> None:
    """A9: which may have begun between its last look and its end."""
    launcher.prepare(networks[0])
    code = (
        "import sys; from pathlib import Path;"
        "from pytest_vmss.guest_platform.virtual_network.process import _Carrier;"
        "carrier = _Carrier(Path(sys.argv[1]), 'web'); carrier._used = float('-inf');"
        "release = carrier._lock.release; control = Path('control');"
        "carrier._lock.release = lambda: (release(), control.unlink(), control.touch());"
        "carrier.run(); sys.exit(not control.exists())"
    )
    subprocess.run([sys.executable, "-c", code, networks[0].files.folder], check=True, timeout=120)


def test_a_guest_that_does_not_receive_costs_nobody_anything(
    networks: list[VirtualNetwork], guests: list[Guest]
) -> None:
    """R2: what waits for it is bounded, and the others are served."""
    first, second, third = guests
    first.link.setblocking(True)
    (process,) = carriers(networks[0].files)
    before = process.memory_info().rss
    for _ in range(20_000):
        first.send(frame(0, 1, bytes(1400)))
    assert third.reaches(first)
    assert process.memory_info().rss - before < 16 * 1024**2
    second.link.close()


def test_the_process_ends_with_the_network(
    networks: list[VirtualNetwork], guests: list[Guest]
) -> None:
    """L5: with the last instance, and nothing of it is left."""
    files = networks[0].files
    for network, guest in zip(networks, guests, strict=True):
        assert len(carriers(files)) == 1
        guest.link.close()
        launcher.leave(network)
    wait_for(
        "the process to end", lambda: not carriers(files) or None, timeout=10, clock=SystemClock()
    )
    assert not files.folder.exists()
