"""What a hostile guest floods its host with, and how the host's process fares meanwhile (R2)."""

from __future__ import annotations

import base64
import signal
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from types import FrameType

import psutil

from pytest_vmss.api.instance import Instance

#: What is said on the console: many beginnings of what is looked for there, on one endless
#: line, with what would set a terminal's title and colours.
CONSOLE = r"""
import itertools
line = b"error: x not found. \x1b]0;owned\x07\x1b[31m Kernel \xff\x9b31m" * 400
with open("/dev/ttyS0", "wb", buffering=0) as console:
    while True:
        console.write(line)
"""
#: What answers the agent's requests.
AGENT = r"""
import os
channel = os.open("/dev/virtio-ports/org.qemu.guest_agent.0", os.O_RDWR)
while True:
    os.write(channel, os.urandom(512) + b'{"return": ' + b"[" * 3000 + b"\n")
"""
#: What answers at the port of the application.
SERVER = r"""
import socket, threading
def answer(link):
    try:
        link.sendall(b"HTTP/1.1 200 OK\r\n")
        while True:
            link.sendall(b"X-More: " + b"x" * 60000 + b"\r\n")
    except OSError:
        link.close()
listener = socket.socket()
listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
listener.bind(("", 80))
listener.listen(64)
while True:
    threading.Thread(target=answer, args=(listener.accept()[0],), daemon=True).start()
"""


@dataclass
class Responsiveness:
    """How this process fared.

    Attributes:
        grown: By how much its memory grew at most, in MiB.
        longest: The longest that a thread of it stood still, in seconds.
        late: How late an interrupt came at most, in seconds.
        interrupts: How many came.
    """

    grown: float = 0.0
    longest: float = 0.0
    late: float = 0.0
    interrupts: int = 0
    _due: float = field(default=0.0, repr=False)


@contextmanager
def responsive() -> Iterator[Responsiveness]:
    """Watches this process: its memory, its threads, and how soon it takes an interrupt."""
    seen, end = Responsiveness(), threading.Event()
    process = psutil.Process()
    before = process.memory_info().rss

    def look() -> None:
        last = time.monotonic()
        while not end.wait(0.05):
            now = time.monotonic()
            seen.longest = max(seen.longest, now - last)
            last = now
            seen.grown = max(seen.grown, (process.memory_info().rss - before) / 2**20)

    def interrupt(_signal: int, _frame: FrameType | None) -> None:
        now = time.monotonic()
        seen.late = max(seen.late, now - seen._due)
        seen.interrupts += 1
        seen._due = now + 0.5
        signal.setitimer(signal.ITIMER_REAL, 0.5)

    looker = threading.Thread(target=look, daemon=True)
    previous = signal.signal(signal.SIGALRM, interrupt)
    seen._due = time.monotonic() + 0.5
    signal.setitimer(signal.ITIMER_REAL, 0.5)
    looker.start()
    try:
        yield seen
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, previous)
        end.set()
        looker.join()


#: Begins after whoever asked for it has gone: SSH, the way in, is flooded too.
BEGIN = r"""
sleep 3
echo "ForceCommand cat /dev/zero" > /etc/ssh/sshd_config.d/00-flood.conf
systemctl restart ssh
systemctl stop nginx qemu-guest-agent
for name in probe agent console; do
    systemd-run --unit=$name-flood python3 /root/$name.py
done
"""


def attack(instance: Instance) -> None:
    """Turns an instance against whoever asks it something."""
    programs = {"console.py": CONSOLE, "agent.py": AGENT, "probe.py": SERVER, "begin": BEGIN}
    for name, program in programs.items():
        packed = base64.b64encode(program.encode()).decode()
        instance.host.check_output("echo %s | base64 -d > %s", packed, f"/root/{name}")
    instance.host.check_output("systemd-run --unit=attack sh /root/begin")
    instance.close()
    time.sleep(15)  # under way
