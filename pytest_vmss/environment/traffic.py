"""The load balancers in front of scale sets (F2)."""

from __future__ import annotations

from collections.abc import Callable, Sequence

from pytest_vmss.environment.revisions import Revisions
from pytest_vmss.errors import NotFoundError
from pytest_vmss.host.addresses import host_port
from pytest_vmss.load_balancer import Balancer, Member, Rule
from pytest_vmss.store import InstanceRecord, ScaleSetRecord, Store
from pytest_vmss.store.queries import find_scale_set, instances_of

__all__ = ["Traffic", "member_of"]

_HTTPS = 443


class Traffic:
    """Starts, updates and stops the load balancers of a lab's sets.

    Args:
        store: The records of sets and instances.
        revisions: Their models.
        make_balancer: Creates the load balancer of a set, from its rules.
    """

    def __init__(
        self,
        store: Store,
        revisions: Revisions,
        make_balancer: Callable[[ScaleSetRecord, Sequence[Rule]], Balancer],
    ) -> None:
        self._store = store
        self._revisions = revisions
        self._make_balancer = make_balancer

    def balancer(self, scale_set: str) -> Balancer | None:
        """The load balancer in front of a set; None if the model declares none with rules."""
        record = find_scale_set(self._store, scale_set)
        revision = self._revisions.get(record.unique_id, record.revision)
        declared = revision.balancer
        if record.frontend is None or declared is None:
            return None
        rules = [
            Rule(
                rule.name,
                record.frontend,
                host_port(rule.frontend_port),
                rule.backend_port,
                probe := declared.probe_of(rule),
                judges=probe is not None and probe == revision.probe,
            )
            for rule in revision.served_rules
        ]
        return self._make_balancer(record, rules) if rules else None

    def url(self, scale_set: str) -> str:
        """The URL of the first rule that a set's load balancer serves.

        Raises:
            NotFoundError: The set has no load balancer with a rule.
        """
        record = find_scale_set(self._store, scale_set)
        revision = self._revisions.get(record.unique_id, record.revision)
        rules = revision.served_rules
        if record.frontend is None or not rules:
            raise NotFoundError(
                f"there is no load balancer in front of {record.name!r}: give one with "
                "loadBalancingRules for TCP (load_balancer=, or in a template whose scale set "
                "names its probe or backend pool)"
            )
        port = rules[0].frontend_port
        scheme = "https" if port == _HTTPS else "http"
        return f"{scheme}://{record.frontend}:{host_port(port)}"

    def serve(self, scale_set: str) -> None:
        """Starts a set's load balancer unless it is running, and updates its members.

        Raises:
            BalancerError: It cannot be started.
            HostError: HAProxy is not installed.
        """
        balancer = self.balancer(scale_set)
        if balancer is None:
            self.stop(find_scale_set(self._store, scale_set))
            return
        records = instances_of(self._store, scale_set)
        balancer.ensure(
            [member_of(record) for record in records if record.generation or record.in_service]
        )

    def stop(self, record: ScaleSetRecord) -> None:
        """Stops a set's load balancer, even if its model no longer declares one."""
        if record.frontend is not None:
            self._make_balancer(record, []).stop()


def member_of(record: InstanceRecord) -> Member:
    """An instance as its load balancer knows it."""
    return Member(record.name, record.address, record.forwards, record.in_service)
