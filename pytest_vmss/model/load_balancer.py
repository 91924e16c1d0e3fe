"""The part of Azure's load-balancer resource that a scale set's health hangs on."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field

from pytest_vmss.model.scale_set import AzureModel

__all__ = ["LoadBalancer", "Probe"]


class Probe(AzureModel):
    """A health probe, from outside the VM (F2)."""

    name: str
    protocol: Literal["Http", "Https", "Tcp"]
    port: Annotated[int, Field(ge=1, le=65535)]
    request_path: str | None = None
    interval_in_seconds: Annotated[int, Field(ge=5)] = 15
    number_of_probes: Annotated[int, Field(ge=1)] = 1
    probe_threshold: Annotated[int, Field(ge=1)] | None = None

    @property
    def threshold(self) -> int:
        """Consecutive answers that make a state: Azure's newer name wins."""
        return self.probe_threshold or self.number_of_probes


class LoadBalancer(AzureModel):
    """A ``Microsoft.Network/loadBalancers`` resource."""

    name: str = "loadBalancer"
    probes: list[Probe] = Field(default_factory=list)
