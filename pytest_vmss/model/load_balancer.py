"""The parts of Azure's load-balancer resource that a scale set depends on (F2)."""

from __future__ import annotations

import re
from collections.abc import Iterator
from typing import Annotated, Any, Literal

from pydantic import Field

from pytest_vmss.arm import Site
from pytest_vmss.model.names import PlainText, RequestPath, ResourceName
from pytest_vmss.model.scale_set import AzureModel, ScaleSetModel

__all__ = [
    "LoadBalancer",
    "LoadBalancingRule",
    "Probe",
    "last_name",
    "pool_balancers",
    "pool_ids",
    "probe_names",
    "served_rules",
    "unserved_rules",
]

#: Azure's maximum for the probe interval and the number of probes.
_MOST = 2_147_483_646
#: Azure's maximum number of rules of a load balancer; probes are of use only to rules.
_MOST_RULES = 1500


#: The property of an instance's IP configurations that puts it behind load balancers.
_POOLS = "loadbalancerbackendaddresspools"
_POOL_ID = re.compile(r"(?i)(?:^|/)loadBalancers/([^/]+)/backendAddressPools/[^/]+/?$")
_PROBE_ID = re.compile(r"(?i)(?:^|/)loadBalancers/([^/]+)/probes/([^/]+)/?$")


#: How ids begin in a template that is deployed nowhere.
_NOWHERE = f"/subscriptions/{Site().subscription}/"


def last_name(identifier: str) -> str:
    """Returns the last name in a resource id."""
    return identifier.rstrip("/").rpartition("/")[2]


def probe_names(identifier: str) -> tuple[str, str]:
    """Returns the names of the load balancer, which may be empty, and of the probe in an id."""
    found = _PROBE_ID.search(identifier)
    return (found[1], found[2]) if found else ("", last_name(identifier))


def pool_ids(model: ScaleSetModel) -> frozenset[str]:
    """Returns the ids, in lower case, of the backend pools that a set's instances are in."""
    network = model.virtual_machine_profile.network_profile
    found = _pools_in({} if network is None else network.full())
    return frozenset(identifier.rstrip("/").lower() for identifier in found)


def pool_balancers(model: ScaleSetModel) -> frozenset[str]:
    """Returns the names, in lower case, of the load balancers of these pools."""
    found = (_POOL_ID.search(pool) for pool in pool_ids(model))
    return frozenset(match[1] for match in found if match)


def _pools_in(value: Any) -> Iterator[str]:
    if isinstance(value, list):
        for item in value:
            yield from _pools_in(item)
    if not isinstance(value, dict):
        return
    for key, item in value.items():
        if key.lower() != _POOLS:
            yield from _pools_in(item)
            continue
        for pool in item if isinstance(item, list) else ():
            identifiers = pool.items() if isinstance(pool, dict) else ()
            yield from (
                text for name, text in identifiers if name.lower() == "id" and isinstance(text, str)
            )


class Probe(AzureModel):
    """A health probe, from outside the VM (F2)."""

    name: PlainText
    protocol: Literal["Http", "Https", "Tcp"]
    port: Annotated[int, Field(ge=1, le=65535)]
    request_path: RequestPath | None = None
    interval_in_seconds: Annotated[int, Field(ge=5, le=_MOST)] = 15
    number_of_probes: Annotated[int, Field(ge=1, le=_MOST)] = 1
    probe_threshold: Annotated[int, Field(ge=1, le=_MOST)] | None = None

    @property
    def threshold(self) -> int:
        """Consecutive results that change the state; ``probeThreshold``, the newer name, wins."""
        return self.probe_threshold or self.number_of_probes


class SubResource(AzureModel):
    """A reference to a resource by its id."""

    id: str


class LoadBalancingRule(AzureModel):
    """A rule that forwards a frontend port to a port of the instances."""

    name: ResourceName
    protocol: Literal["Tcp", "Udp", "All"] = "Tcp"
    frontend_port: Annotated[int, Field(ge=0, le=65534)]
    backend_port: Annotated[int, Field(ge=0, le=65535)]
    frontend_ip_configuration: SubResource | None = Field(
        default=None, alias="frontendIPConfiguration"
    )
    backend_address_pool: SubResource | None = None
    probe: SubResource | None = None

    @property
    def is_ha_ports(self) -> bool:
        """Whether it forwards all ports: Azure's HA ports, which have the number 0."""
        return self.frontend_port == 0

    @property
    def frontend(self) -> str:
        """The id of its frontend in lower case; empty if it names none."""
        found = self.frontend_ip_configuration
        return "" if found is None else found.id.lower()


class LoadBalancerSku(AzureModel):
    """The SKU of a load balancer."""

    name: Literal["Basic", "Standard", "Gateway"] = "Standard"


class LoadBalancer(AzureModel):
    """A ``Microsoft.Network/loadBalancers`` resource."""

    name: PlainText | None = None
    id: str | None = None
    sku: LoadBalancerSku | None = None
    load_balancing_rules: list[LoadBalancingRule] = Field(
        default_factory=list, max_length=_MOST_RULES
    )
    probes: list[Probe] = Field(default_factory=list, max_length=_MOST_RULES)

    @property
    def title(self) -> str:
        """Its name in messages."""
        return self.name or "loadBalancer"

    def has_pool_of(self, model: ScaleSetModel) -> bool:
        """Whether a set's instances are in one of its backend pools."""
        names = pool_balancers(model)
        return bool(names) if self.name is None else self.name.lower() in names

    def probe_by_id(self, identifier: str) -> Probe | None:
        """Returns the probe of an id, or None if it is another load balancer's.

        Where a load balancer does not say what its own id or name is, only the rest counts; and
        so it is where one id is of Azure, and the other of a template that is deployed nowhere.
        """
        balancer, wanted = probe_names(identifier)
        whole, own = identifier.rstrip("/").lower(), (self.id or "").lower()
        is_whole = (
            whole.startswith("/subscriptions/")
            and own.startswith("/subscriptions/")
            and whole.startswith(_NOWHERE) == own.startswith(_NOWHERE)
        )
        for probe in self.probes:
            if probe.name.lower() != wanted.lower():
                continue
            if is_whole and whole != f"{self.id}/probes/{probe.name}".lower():
                continue
            if balancer and self.name and balancer.lower() != self.name.lower():
                continue
            return probe
        return None

    def probe_of(self, rule: LoadBalancingRule) -> Probe | None:
        """Returns the probe that a rule names, or None."""
        if rule.probe is None:
            return None
        wanted = last_name(rule.probe.id).lower()
        return next((probe for probe in self.probes if probe.name.lower() == wanted), None)


def served_rules(balancer: LoadBalancer, model: ScaleSetModel) -> list[LoadBalancingRule]:
    """Returns the rules that the lab's load balancer serves, at most one for each port.

    It has one address for all frontends, and forwards TCP. An HA ports rule serves the port of
    its probe.

    Args:
        balancer: The load balancer.
        model: The set behind it.
    """
    served: dict[int, LoadBalancingRule] = {}
    pools = pool_ids(model)
    for rule in balancer.load_balancing_rules:
        if rule.protocol == "Udp" or not _reaches(rule, pools):
            continue
        if rule.is_ha_ports:
            probe = balancer.probe_of(rule)
            if probe is None:
                continue
            ports = {"frontend_port": probe.port, "backend_port": probe.port}
            served.setdefault(probe.port, rule.model_copy(update=ports))
        else:
            served.setdefault(rule.frontend_port, rule)
    return list(served.values())


def _reaches(rule: LoadBalancingRule, pools: frozenset[str]) -> bool:
    """Whether a rule sends traffic to a set; one of them may not say by which pool."""
    if rule.backend_address_pool is None or not pools:
        return True
    wanted = last_name(rule.backend_address_pool.id).lower()
    return wanted in {last_name(pool) for pool in pools}


def unserved_rules(balancer: LoadBalancer, model: ScaleSetModel) -> list[str]:
    """Says of each rule what of it the lab's load balancer does not serve."""
    served = {rule.name: rule for rule in served_rules(balancer, model)}
    pools = pool_ids(model)
    told = []
    for rule in balancer.load_balancing_rules:
        path = f"loadBalancingRules[{rule.name!r}]"
        if not _reaches(rule, pools):
            told.append(f"{path}: the set is not in its backend pool")
        elif rule.protocol == "Udp":
            told.append(f"{path}: UDP is not served")
        elif rule.name not in served:
            why = (
                "it is for all ports, and has no probe whose port could be served"
                if rule.is_ha_ports and balancer.probe_of(rule) is None
                else "another rule serves its port"
            )
            told.append(f"{path}: {why}")
        elif rule.is_ha_ports:
            told.append(f"{path}: of all ports, {served[rule.name].frontend_port} is served")
    return told
