"""The part of Azure's load-balancer resource that a scale set hangs on (F2)."""

from __future__ import annotations

import re
from typing import Annotated, Literal

from pydantic import Field

from pytest_vmss.model.names import PlainText, RequestPath, ResourceName
from pytest_vmss.model.scale_set import AzureModel

__all__ = ["LoadBalancer", "LoadBalancingRule", "Probe", "last_name"]

#: Azure's largest interval and number of probes.
_MOST = 2_147_483_646
#: Rules that a load balancer has at most, in Azure's limits; probes are only there for them.
_MOST_RULES = 1500


def last_name(identifier: str) -> str:
    """The name at the end of a resource id, also of one that a template computes."""
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
        """Consecutive answers that make a state: Azure's newer name wins."""
        return self.probe_threshold or self.number_of_probes


class SubResource(AzureModel):
    """A reference by id."""

    id: str


class LoadBalancingRule(AzureModel):
    """From a port of the frontend to a port of the instances."""

    name: ResourceName
    protocol: Literal["Tcp", "Udp", "All"] = "Tcp"
    frontend_port: Annotated[int, Field(ge=1, le=65534)]
    backend_port: Annotated[int, Field(ge=1, le=65535)]
    probe: SubResource | None = None


class LoadBalancerSku(AzureModel):
    """Basic or Standard."""

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
        """The probe that a rule names."""
        if rule.probe is None:
            return None
        wanted = last_name(rule.probe.id).lower()
        return next((probe for probe in self.probes if probe.name.lower() == wanted), None)
