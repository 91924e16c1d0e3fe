"""What a hostile guest tries, as root: runs in guests alone (M6).

Reads targets as JSON, and writes those that answered. It knows no mercy with the guest's
own network: what the kernel keeps at home is sent to the gateway.
"""

from __future__ import annotations

import json
import socket
import struct
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

_TIMEOUT_S = 6.0


def tcp(host: str, port: int) -> bool:
    """Whether a connection is taken."""
    try:
        with socket.create_connection((host, port), _TIMEOUT_S):
            return True
    except OSError:
        return False


def udp(host: str, port: int) -> bool:
    """Whether a datagram is answered."""
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    try:
        with socket.socket(family, socket.SOCK_DGRAM) as link:
            link.settimeout(_TIMEOUT_S)
            link.sendto(
                b"\x12\x34\x01\0\0\x01\0\0\0\0\0\0\x07example\x03com\0\0\x01\0\x01", (host, port)
            )
            return bool(link.recv(512))
    except OSError:
        return False


def icmp(host: str, _port: int) -> bool:
    """Whether an echo is answered."""
    body = struct.pack("!BBHHH", 8, 0, 0xF7FF - 0x1234, 0x1234, 0)
    try:
        with socket.socket(socket.AF_INET, socket.SOCK_RAW, socket.IPPROTO_ICMP) as link:
            link.settimeout(_TIMEOUT_S)
            link.sendto(body, (host, 0))
            return bool(link.recvfrom(512)[1][0] == host)
    except OSError:
        return False


def open_up() -> None:
    """Sends even loopback addresses to the gateway, but for 127.0.0.1."""
    for folder in Path("/proc/sys/net/ipv4/conf").iterdir():
        (folder / "route_localnet").write_text("1")
    for line in (
        "ip route del local 127.0.0.0/8 dev lo table local",
        "ip route add 127.64.0.0/10 via 10.0.2.2 src 10.0.2.15",
        "ip route add default via 10.0.2.2",
    ):
        subprocess.run(line.split(), check=True)


def main(targets: str, found: str) -> None:
    """Tries everything side by side."""
    wanted = json.loads(Path(targets).read_text())
    open_up()
    kinds = {"tcp": tcp, "udp": udp, "icmp": icmp}
    with ThreadPoolExecutor(64) as pool:
        answers = list(pool.map(lambda target: kinds[target[0]](target[1], target[2]), wanted))
    subprocess.run(["ip", "route", "del", "default"], check=True)  # as it was
    answered = [target for target, answer in zip(wanted, answers, strict=True) if answer]
    Path(found).write_text(json.dumps(answered))


if __name__ == "__main__":
    main(*sys.argv[1:])
