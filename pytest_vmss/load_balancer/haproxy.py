"""HAProxy as a load balancer: its members, in and out of service (F2)."""

from __future__ import annotations

import shutil
from collections.abc import Sequence
from functools import partial
from pathlib import Path

from pytest_vmss.clock import SystemClock, wait_for
from pytest_vmss.errors import BalancerError, WaitTimeoutError
from pytest_vmss.host.process import require
from pytest_vmss.load_balancer.configuration import check_options, configuration_of
from pytest_vmss.load_balancer.haproxy_process import HAProxyProcess
from pytest_vmss.load_balancer.protocol import Member, Rule
from pytest_vmss.load_balancer.runtime_socket import RuntimeSocket

__all__ = ["HAProxy"]

#: States of servers whose health check succeeds, or that have none.
_IN_HEALTH = ("UP", "DRAIN", "NOLB", "no check")
#: The state of a server that was added but not put in or out of service; nothing of its health.
_HALF_ADDED = "MAINT"
#: What the status of a check ends with that had no result yet.
_UNCHECKED = "INI"
_START_S = 10.0
#: Seconds for the connections of a removed member to end.
_CLOSE_S = 5.0


class HAProxy:
    """Implements :class:`~pytest_vmss.load_balancer.protocol.Balancer`.

    The HAProxy process outlives this one, so that a set is served between two commands; its
    process id is in a file in the folder.

    Args:
        folder: Folder of its files.
        rules: The load-balancing rules; at least one.
    """

    def __init__(self, folder: Path, rules: Sequence[Rule]) -> None:
        self._folder = folder
        self._rules = tuple(rules)
        self._process = HAProxyProcess(folder)
        self._socket = RuntimeSocket(folder)

    def require(self) -> None:
        """Checks that HAProxy is installed; creates nothing.

        Raises:
            HostError: HAProxy is not installed.
        """
        require("haproxy")

    @property
    def judges(self) -> bool:
        """Whether it has the set's own health probe, and so knows what is healthy."""
        return any(rule.judges and rule.probe is not None for rule in self._rules)

    def ensure(self, members: Sequence[Member]) -> None:
        """Ensures that it runs with exactly these members, in or out of service as specified.

        Raises:
            BalancerError: It cannot be started; the message is HAProxy's.
            HostError: HAProxy is not installed.
        """
        if not self._answers():
            self._start()
        wanted = {member.name for member in members}
        for name in {name for _, name in self._socket.servers()} - wanted:
            self.take_out(name)
            self.remove(name)
        for member in members:
            self.add(member)

    def _answers(self) -> bool:
        if self._process.current() is None:
            return False
        try:
            known = self._process.configuration.read_text()
            return known == configuration_of(self._rules) and bool(self._socket.ask("show info"))
        except (OSError, BalancerError):
            return False

    def _start(self) -> None:
        self.stop()
        self._process.start(configuration_of(self._rules))
        try:
            wait_for(
                "the load balancer to answer",
                lambda: self._answers() or None,
                timeout=_START_S,
                clock=SystemClock(),
                interval=0.02,
            )
        except WaitTimeoutError as error:
            raise BalancerError(f"the load balancer does not answer: {error.message}") from error

    def stop(self) -> None:
        """Stops the load balancer, and removes all of its files.

        Raises:
            BalancerError: Its process could not be ended, or its folder could not be removed.
        """
        if not self._folder.exists():
            return
        self._process.end()
        try:
            shutil.rmtree(self._folder)
        except FileNotFoundError:
            pass  # another process of the lab was faster
        except OSError as error:
            raise BalancerError(
                f"the load balancer's folder {self._folder} cannot be removed: {error}"
            ) from error

    # Members.

    def add(self, member: Member) -> None:
        """Adds a member, in or out of service."""
        known = self._socket.servers()
        for rule in self._rules:
            server = f"{rule.name}/{member.name}"
            if (rule.name, member.name) not in known:
                port = member.forwards[rule.backend_port]
                checked = "" if rule.probe is None else f" port {member.forwards[rule.probe.port]}"
                self._socket.command(
                    f"add server {server} {member.address}:{port}{check_options(rule.probe)}{checked}"
                )
            if rule.probe is not None:
                self._socket.command(f"enable health {server}")
        (self.put_back if member.in_service else self.take_out)(member.name)

    def remove(self, name: str) -> None:
        """Removes a member, closing the connections it still has."""
        known = self._socket.servers()
        for rule in self._rules:
            if (rule.name, name) not in known:
                continue
            server = f"{rule.name}/{name}"
            self._socket.command(f"set server {server} state maint")
            self._socket.command(f"shutdown sessions server {server}")
            try:
                wait_for(
                    f"the connections of {name} to end",
                    partial(self._deleted, server),
                    timeout=_CLOSE_S,
                    clock=SystemClock(),
                    interval=0.02,
                )
            except WaitTimeoutError as error:
                raise BalancerError(f"{name} cannot be removed: {error.message}") from error

    def _deleted(self, server: str) -> bool | None:
        """Deletes a server; returns None while it still has connections."""
        return self._socket.command(f"del server {server}", fails=True) or None

    def take_out(self, name: str) -> None:
        """Stops sending new connections to a member; existing ones continue."""
        self._set_state(name, "drain")

    def put_back(self, name: str) -> None:
        """Sends connections to a member again, as soon as it is healthy."""
        self._set_state(name, "ready")

    def _set_state(self, name: str, state: str) -> None:
        known = self._socket.servers()
        for rule in self._rules:
            if (rule.name, name) in known:
                self._socket.command(f"set server {rule.name}/{name} state {state}")

    def connections(self, name: str) -> int:
        """Returns the number of a member's current connections."""
        return sum(int(row["scur"] or 0) for row in self._socket.rows() if row["svname"] == name)

    def healthy(self, name: str) -> bool | None:
        """Whether a member is healthy by the set's own probe; None if that is not known yet."""
        return self.verdicts().get(name)

    def verdicts(self) -> dict[str, bool]:
        """Whether each member is healthy, by its name; without those of which it is not known yet."""
        judging = {rule.name for rule in self._rules if rule.judges and rule.probe is not None}
        known: dict[str, bool] = {}
        unknown = set()
        for row in self._socket.rows():
            if row["pxname"] not in judging:
                continue
            name = row["svname"]
            if row["status"].startswith(_HALF_ADDED) or row["check_status"].endswith(_UNCHECKED):
                unknown.add(name)
            # "DOWN 1/2" is on its way up, but still down.
            known[name] = known.get(name, True) and row["status"].startswith(_IN_HEALTH)
        return {name: healthy for name, healthy in known.items() if name not in unknown}

    def report(self) -> str:
        """Returns HAProxy's ``show stat``: also when and why each check failed.

        Raises:
            BalancerError: It does not answer.
        """
        return self._socket.ask("show stat")
