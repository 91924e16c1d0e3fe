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
import resource
import selectors
import socket
import sys
import time
from collections import deque
from collections.abc import Callable
from functools import partial
from pathlib import Path

from pytest_vmss.errors import ConflictError, HostError
from pytest_vmss.guest_platform.background import drop_rights, in_background
from pytest_vmss.guest_platform.virtual_network.config import GUEST_END, NetworkFiles
from pytest_vmss.guest_platform.virtual_network.partitions import read_partitions
from pytest_vmss.guest_platform.virtual_network.switch import LARGEST, Switch
from pytest_vmss.host.locks import Lock, wait_for_lock

__all__ = ["DONE", "END", "LOOK", "main"]

#: What the lab's processes send to the control socket, and the answer. After LOOK may come an
#: instance's number, and the answer may be why that one is not connected.
LOOK, END, DONE = b"look ", b"end", b"done"

#: Seconds between two looks at the folder.
_TICK_S = 1.0
#: Seconds without any VM after which the process ends; one that is started takes less.
_ALONE_S = 10.0
#: Frames that may wait for a guest that does not receive; later ones are dropped, as by a wire.
_WAITING = 512
#: Frames that may wait for all guests together, which share them evenly.
_WAITING_FOR_ALL = 128 * 1024
#: Frames that are taken from an instance before the next one has its turn.
_TURN = 64
_MOST_INSTANCES = 1024
#: Processes of the lab that are listened to at once; of more, the oldest silent one makes room.
_MOST_CONTROLS = 64
_COMMAND_BYTES = 64
#: Descriptors for each instance, and for everything else.
_FOR_EACH, _FOR_ALL = 2, _MOST_CONTROLS + 64
#: Seconds in which others have seen whether the lock is held.
_SEEN_S = 2.0


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

    def send(self, frame: bytes, most: int) -> None:
        """Sends a frame, now or later; drops it if that many wait."""
        if len(self.waiting) < most:
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

    def is_used(self, probe: socket.socket) -> bool:
        """Whether a VM holds the other end."""
        with contextlib.suppress(OSError):
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
        self._room = _allow_descriptors()
        self._switch = Switch(prefix)
        self._cables: dict[int, _Cable] = {}
        self._selector = selectors.DefaultSelector()
        self._files.control.unlink(missing_ok=True)
        self._control = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        self._control.setblocking(False)
        self._control.bind(str(self._files.control))
        self._control.listen(_MOST_CONTROLS)
        self._selector.register(self._control, selectors.EVENT_READ, self._accept)
        #: Those who have said nothing yet, oldest first, and those who want a look.
        self._silent: dict[socket.socket, None] = {}
        self._asking: dict[socket.socket, bytes] = {}
        #: Why instances are not connected, by their numbers.
        self._without: dict[bytes, bytes] = {}
        self._probe = _datagrams()
        self._used = time.monotonic()
        self._ended = False
        self._look()

    def _take_lock(self) -> Lock:
        # Who sees whether it is held, holds it for a moment.
        try:
            return wait_for_lock(self._files.lock, what="carries the frames", timeout=_SEEN_S)
        except ConflictError as error:
            raise HostError(f"another process carries the frames at {self._path}") from error

    def run(self) -> None:
        """Carries frames until no VM is left."""
        due = time.monotonic() + _TICK_S
        while not self._ended:
            for key, _ in self._selector.select(max(0.0, due - time.monotonic())):
                call: Callable[[], object] = key.data
                call()
            if not self._ended and (self._asking or time.monotonic() >= due):
                self._look()
                self._answer()
                due = time.monotonic() + _TICK_S

    def _look(self) -> None:
        """Sees which instances there are, who is cut off from whom, and whether to go on."""
        numbers = self._files.instances
        there, more = set(numbers[: self._room]), numbers[self._room :]
        for number in self._cables.keys() - there:
            self._drop(number)
        full = f"{self._room} others are, and more would need more open files".encode()
        self._without = dict.fromkeys((b"%d" % number for number in more), full)
        for number in sorted(there - self._cables.keys()):
            try:
                self._add(number)
            except OSError as error:  # it alone goes without; the next look tries again
                self._without[b"%d" % number] = str(error.strerror).encode()
        self._switch.connect(self._cables)
        cut = read_partitions(Path(), there)
        if cut != self._switch.cut:
            self._switch.cut = cut
            for cable in self._cables.values():  # what waits may come from one that is cut off
                cable.waiting.clear()
        if self._is_used():
            self._used = time.monotonic()
        elif not self._is_there() or time.monotonic() - self._used > _ALONE_S:
            self._end_alone()

    def _is_used(self) -> bool:
        """Whether there is any VM."""
        return any(cable.is_used(self._probe) for cable in self._cables.values())

    def _is_there(self) -> bool:
        """Whether the network's folder is still the one that this process serves."""
        with contextlib.suppress(OSError):
            return os.path.samestat(self._folder, self._path.stat())
        return False

    def _end_alone(self) -> None:
        """Ends, unless a VM is started just now: who starts one looks for the lock afterwards."""
        self._lock.release()
        if self._is_there() and self._is_used():
            with contextlib.suppress(HostError):
                self._lock = self._take_lock()
                return
        self._ended = True

    def _add(self, number: int) -> None:
        cable = _Cable(number)
        self._selector.register(cable.incoming, selectors.EVENT_READ, partial(self._carry, cable))
        self._cables[number] = cable

    def _drop(self, number: int) -> None:
        cable = self._cables.pop(number)
        self._selector.unregister(cable.incoming)
        self._wait_for(cable, False)
        cable.close()

    def _carry(self, cable: _Cable) -> None:
        """Carries what an instance has sent."""
        most = min(_WAITING, _WAITING_FOR_ALL // len(self._cables))
        for frame in cable.receive():
            found = self._switch.take(cable.number, frame)
            if found is not None:
                target = self._cables[found[0]]
                target.send(found[1], most)
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
            link.setblocking(False)
            if len(self._silent) >= _MOST_CONTROLS:
                self._hear(next(iter(self._silent))).close()
            self._silent[link] = None
            self._selector.register(link, selectors.EVENT_READ, partial(self._obey, link))

    def _hear(self, link: socket.socket) -> socket.socket:
        """Waits no longer for what a process of the lab says."""
        self._selector.unregister(link)
        del self._silent[link]
        return link

    def _obey(self, link: socket.socket) -> None:
        """Does what a process of the lab asks for; a look is one for all who ask meanwhile."""
        if link not in self._silent:  # it has just made room for another
            return
        self._hear(link)
        command = b""
        with contextlib.suppress(OSError):
            command = link.recv(_COMMAND_BYTES)
        if command.startswith(LOOK):
            self._asking[link] = command.removeprefix(LOOK)
            return
        with link, contextlib.suppress(OSError):
            if command == END:
                self._ended = True
                self._lock.release()
                link.sendall(DONE)

    def _answer(self) -> None:
        """Answers those who asked; silence tells them that this process ends."""
        for link, number in self._asking.items():
            with link, contextlib.suppress(OSError):
                if not self._ended:
                    link.sendall(self._without.get(number, DONE))
        self._asking.clear()


def _allow_descriptors() -> int:
    """Allows as many descriptors as the largest set needs, or else as the host does.

    Returns:
        For how many instances they suffice.
    """
    _, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    most = _FOR_EACH * _MOST_INSTANCES + _FOR_ALL
    if hard != resource.RLIM_INFINITY:
        most = min(most, hard)
    resource.setrlimit(resource.RLIMIT_NOFILE, (most, hard))
    return max(0, most - _FOR_ALL) // _FOR_EACH


def _datagrams() -> socket.socket:
    made = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
    made.setblocking(False)
    return made


if __name__ == "__main__":
    sys.exit(main(Path(sys.argv[1]), sys.argv[2]))
