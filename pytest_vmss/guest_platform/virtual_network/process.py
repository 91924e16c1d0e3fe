"""The process that carries the frames of a set's private network (A9).

It is not part of the lab's process, so instances reach each other when that ends or is killed. It
ends by itself when no VM of the set runs any more, or the network's folder is gone.

Every VM has a cable of two Unix datagram sockets, which need no connection: QEMU sends to one and
receives from the other, whichever of the two processes is started again.

Usage: ``python -m pytest_vmss.guest_platform.virtual_network.process FOLDER PREFIX``; it returns
when frames are carried, and goes on in the background.
"""

from __future__ import annotations

import contextlib
import os
import selectors
import socket
import sys
import time
from collections import deque
from collections.abc import Callable
from functools import partial
from pathlib import Path

from pytest_vmss.errors import HostError
from pytest_vmss.guest_platform.background import drop_rights, in_background
from pytest_vmss.guest_platform.virtual_network.config import GUEST_END, NetworkFiles
from pytest_vmss.guest_platform.virtual_network.partitions import read_partitions
from pytest_vmss.guest_platform.virtual_network.switch import LARGEST, Switch
from pytest_vmss.host.locks import Lock, try_lock

__all__ = ["DONE", "END", "LOOK", "main"]

#: What the lab's processes send to the control socket, and the answer.
LOOK, END, DONE = b"look", b"end!", b"done"

#: Seconds between two looks at the folder.
_TICK_S = 1.0
#: Seconds without any VM after which the process ends; one that is started takes less.
_ALONE_S = 10.0
#: Frames that may wait for a guest that does not receive; later ones are dropped, as by a wire.
_WAITING = 512
#: Frames that are taken from an instance before the next one has its turn.
_TURN = 64
_MOST_INSTANCES = 1024
_MOST_CONTROLS = 16


def main(folder: Path, prefix: str) -> int:
    """Carries frames in a process of its own; returns once they are carried.

    Args:
        folder: The network's folder.
        prefix: The set's ``computerNamePrefix``.

    Returns:
        0, or 1 after a message on standard error.
    """
    return in_background(lambda: _Carrier(folder, prefix).run)


class _Cable:
    """The switch's end of an instance's cable."""

    def __init__(self, number: int) -> None:
        self.number = number
        self._far = f"{number}{GUEST_END}"
        self._near = NetworkFiles(Path()).switch_end(number)
        self._near.unlink(missing_ok=True)
        self.incoming = _datagrams()
        self.incoming.bind(str(self._near))
        self.outgoing = _datagrams()
        self._linked = False
        self.waiting = deque[bytes]()

    def receive(self) -> list[bytes]:
        """The frames that have arrived, as many as an instance has in its turn."""
        frames = list[bytes]()
        with contextlib.suppress(OSError):
            while len(frames) < _TURN:
                # One byte more, so that a longer frame is seen to be too long.
                frames.append(self.incoming.recv(LARGEST + 1))
        return frames

    def send(self, frame: bytes) -> None:
        """Sends a frame, now or later; drops it if too many wait."""
        if len(self.waiting) < _WAITING:
            self.waiting.append(frame)
            self.flush()

    def flush(self) -> None:
        """Sends what can be sent now."""
        while self.waiting:
            try:
                self._give(self.waiting[0])
            except BlockingIOError:
                return
            except OSError:  # no VM is there to receive it
                self.waiting.clear()
                return
            self.waiting.popleft()

    def _give(self, frame: bytes) -> None:
        """Sends a frame to the VM, which may be another process than the last time."""
        if self._linked:
            try:
                self.outgoing.send(frame)
            except BlockingIOError:
                raise
            except OSError:
                self._linked = False
            else:
                return
        self.outgoing.connect(self._far)
        self._linked = True
        self.outgoing.send(frame)

    def is_used(self) -> bool:
        """Whether a VM holds the other end."""
        with _datagrams() as probe, contextlib.suppress(OSError):
            probe.connect(self._far)
            return True
        return False

    def close(self) -> None:
        """Removes it."""
        self.incoming.close()
        self.outgoing.close()
        self._near.unlink(missing_ok=True)


class _Carrier:
    """The process: a switch, and the cables to it.

    Raises:
        HostError: Another process carries the frames.
        OSError: The sockets cannot be made.
    """

    def __init__(self, folder: Path, prefix: str) -> None:
        # Paths are relative, since the length of socket paths is limited.
        os.chdir(folder)
        self._folder = Path().stat()
        self._path = folder
        drop_rights()
        self._files = NetworkFiles(Path())
        self._lock = self._take_lock()
        self._switch = Switch(prefix)
        self._cables: dict[int, _Cable] = {}
        self._selector = selectors.DefaultSelector()
        self._files.control.unlink(missing_ok=True)
        self._control = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        self._control.setblocking(False)
        self._control.bind(str(self._files.control))
        self._control.listen(_MOST_CONTROLS)
        self._selector.register(self._control, selectors.EVENT_READ, self._accept)
        self._controls: set[socket.socket] = set()
        self._used = time.monotonic()
        self._ended = False
        self._look()

    def _take_lock(self) -> Lock:
        lock = try_lock(self._files.lock)
        if lock is None:
            raise HostError(f"another process carries the frames at {self._path}")
        return lock

    def run(self) -> None:
        """Carries frames until no VM is left."""
        due = time.monotonic() + _TICK_S
        while not self._ended:
            for key, _ in self._selector.select(max(0.0, due - time.monotonic())):
                call: Callable[[], object] = key.data
                call()
            if time.monotonic() >= due:
                self._look()
                due = time.monotonic() + _TICK_S
        self._files.control.unlink(missing_ok=True)

    def _look(self) -> None:
        """Sees which instances there are, who is cut off from whom, and whether to go on."""
        there = set(self._files.instances[:_MOST_INSTANCES])
        for number in self._cables.keys() - there:
            self._drop(number)
        for number in sorted(there - self._cables.keys()):
            cable = self._cables[number] = _Cable(number)
            self._selector.register(
                cable.incoming, selectors.EVENT_READ, partial(self._carry, cable)
            )
        self._switch.connect(there)
        cut = read_partitions(Path(), there)
        if cut != self._switch.cut:
            self._switch.cut = cut
            for cable in self._cables.values():  # what waits may come from one that is cut off
                cable.waiting.clear()
        if any(cable.is_used() for cable in self._cables.values()):
            self._used = time.monotonic()
        elif not self._is_there() or time.monotonic() - self._used > _ALONE_S:
            self._end_alone()

    def _is_there(self) -> bool:
        """Whether the network's folder is still the one that this process serves."""
        with contextlib.suppress(OSError):
            return os.path.samestat(self._folder, self._path.stat())
        return False

    def _end_alone(self) -> None:
        """Ends, unless a VM is started just now: who starts one looks for the lock afterwards."""
        self._lock.release()
        if self._is_there() and any(cable.is_used() for cable in self._cables.values()):
            lock = try_lock(self._files.lock)
            if lock is not None:
                self._lock = lock
                return
        self._ended = True

    def _drop(self, number: int) -> None:
        cable = self._cables.pop(number)
        self._selector.unregister(cable.incoming)
        self._wait_for(cable, False)
        cable.close()

    def _carry(self, cable: _Cable) -> None:
        """Carries what an instance has sent."""
        for frame in cable.receive():
            found = self._switch.take(cable.number, frame)
            if found is not None:
                target = self._cables[found[0]]
                target.send(found[1])
                self._wait_for(target, bool(target.waiting))

    def _wait_for(self, cable: _Cable, waits: bool) -> None:
        """Has the cable's waiting frames sent once they can be."""
        registered = cable.outgoing in self._selector.get_map()
        if waits and not registered:
            self._selector.register(
                cable.outgoing, selectors.EVENT_WRITE, partial(self._flush, cable)
            )
        elif registered and not waits:
            self._selector.unregister(cable.outgoing)

    def _flush(self, cable: _Cable) -> None:
        cable.flush()
        self._wait_for(cable, bool(cable.waiting))

    def _accept(self) -> None:
        with contextlib.suppress(OSError):
            link, _ = self._control.accept()
            if len(self._controls) >= _MOST_CONTROLS:
                link.close()
                return
            link.setblocking(False)
            self._controls.add(link)
            self._selector.register(link, selectors.EVENT_READ, partial(self._obey, link))

    def _obey(self, link: socket.socket) -> None:
        """Does what a process of the lab asks for, and answers."""
        self._selector.unregister(link)
        self._controls.discard(link)
        with link, contextlib.suppress(OSError):
            command = link.recv(len(LOOK))
            if command == END:
                self._ended = True
                self._lock.release()
            elif command == LOOK:
                self._look()
            else:
                return
            if command == END or not self._ended:
                link.sendall(DONE)


def _datagrams() -> socket.socket:
    made = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
    made.setblocking(False)
    return made


if __name__ == "__main__":
    sys.exit(main(Path(sys.argv[1]), sys.argv[2]))
