"""The parts of Azure's load-balancer resource that a scale set depends on (F2)."""

from __future__ import annotations

import re
from typing import Annotated, Literal

from pydantic import Field

from pytest_vmss.model.names import PlainText, RequestPath, ResourceName
from pytest_vmss.model.scale_set import AzureModel

__all__ = [
    "LoadBalancer",
    "LoadBalancingRule",
    "Probe",
    "last_name",
    "probe_names",
    "served_rules",
    "unserved_rules",
]

#: Azure's maximum for the probe interval and the number of probes.
_MOST = 2_147_483_646
#: Azure's maximum number of rules of a load balancer; probes are of use only to rules.
_MOST_RULES = 1500


_PROBE_ID = re.compile(r"(?i)(?:^|/)loadBalancers/([^/]+)/probes/([^/]+)/?$")


def last_name(identifier: str) -> str:
    """Returns the last name in a resource id."""
    return identifier.rstrip("/").rpartition("/")[2]


def probe_names(identifier: str) -> tuple[str, str]:
    """Returns the names of the load balancer, which may be empty, and of the probe in an id."""
    found = _PROBE_ID.search(identifier)
    return (found[1], found[2]) if found else ("", last_name(identifier))


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

    def probe_by_id(self, identifier: str) -> Probe | None:
        """Returns the probe of an id, or None if it is another load balancer's.

        Where a load balancer does not say what its own id or name is, only the rest counts.
        """
        balancer, wanted = probe_names(identifier)
        whole = identifier.rstrip("/").lower()
        is_whole = whole.startswith("/subscriptions/") and (self.id or "").lower().startswith(
            "/subscriptions/"
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


def served_rules(balancer: LoadBalancer) -> list[LoadBalancingRule]:
    """Returns the rules that the lab's load balancer serves, at most one for each port.

    It has one address for all frontends, and forwards TCP. An HA ports rule serves the port of
    its probe.
    """
    served: dict[int, LoadBalancingRule] = {}
    for rule in balancer.load_balancing_rules:
        if rule.protocol == "Udp":
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


def unserved_rules(balancer: LoadBalancer) -> list[str]:
    """Says of each rule what of it the lab's load balancer does not serve."""
    served = {rule.name: rule for rule in served_rules(balancer)}
    told = []
    for rule in balancer.load_balancing_rules:
        path = f"loadBalancingRules[{rule.name!r}]"
        if rule.protocol == "Udp":
            told.append(f"{path}: UDP is not served")
        elif rule.name not in served:
            told.append(f"{path}: another rule serves its port, or it is for all ports")
        elif rule.is_ha_ports:
            told.append(f"{path}: of all ports, {served[rule.name].frontend_port} is served")
    return told
