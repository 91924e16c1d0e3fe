"""The parts of Azure's load-balancer resource that a scale set depends on (F2)."""

from __future__ import annotations

import re
from typing import Annotated, Literal

from pydantic import Field

from pytest_vmss.model.names import PlainText, RequestPath, ResourceName
from pytest_vmss.model.scale_set import AzureModel

__all__ = ["LoadBalancer", "LoadBalancingRule", "Probe", "last_name"]

#: Azure's maximum for the probe interval and the number of probes.
_MOST = 2_147_483_646
#: Azure's maximum number of rules of a load balancer; probes are of use only to rules.
_MOST_RULES = 1500


def last_name(identifier: str) -> str:
    """Returns the last name in a resource id, which may be a template expression."""
    quoted = re.findall(r"'([^']+)'", identifier)
    return (quoted[-1] if quoted else identifier).rstrip("/").rpartition("/")[2]


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
    frontend_port: Annotated[int, Field(ge=1, le=65534)]
    backend_port: Annotated[int, Field(ge=1, le=65535)]
    probe: SubResource | None = None


class LoadBalancerSku(AzureModel):
    """The SKU of a load balancer."""

    name: Literal["Basic", "Standard", "Gateway"] = "Standard"


class LoadBalancer(AzureModel):
    """A ``Microsoft.Network/loadBalancers`` resource."""

    name: PlainText = "loadBalancer"
    sku: LoadBalancerSku | None = None
    load_balancing_rules: list[LoadBalancingRule] = Field(
        default_factory=list, max_length=_MOST_RULES
    )
    probes: list[Probe] = Field(default_factory=list, max_length=_MOST_RULES)

    def probe_of(self, rule: LoadBalancingRule) -> Probe | None:
        """Returns the probe that a rule names, or None."""
        if rule.probe is None:
            return None
        wanted = last_name(rule.probe.id).lower()
        return next((probe for probe in self.probes if probe.name.lower() == wanted), None)
