"""Observations of an instance's health."""

from __future__ import annotations

from dataclasses import dataclass

from pytest_vmss.model import Health
from pytest_vmss.untrusted import shown

__all__ = ["Observation", "worst"]

_DETAIL_CHARS = 2000
#: From worst to best.
_ORDER = (Health.UNHEALTHY, Health.UNKNOWN, Health.INITIALIZING, Health.HEALTHY)


@dataclass(frozen=True)
class Observation:
    """The result of one health check of an instance.

    Attributes:
        health: The observed health.
        detail: A description; it may quote the guest, so it is cleaned of control characters and
            limited in length (R2).
        boot: Id of the boot on which it was made, if known.
        custom_metrics: ``customMetrics`` that the application reported.
    """

    health: Health
    detail: str
    boot: str = ""
    custom_metrics: str = ""

    def __post_init__(self) -> None:
        """Cleans and limits the description."""
        object.__setattr__(self, "detail", shown(self.detail, _DETAIL_CHARS))

    @property
    def healthy(self) -> bool:
        """Whether the observed health is Healthy."""
        return self.health is Health.HEALTHY

    @classmethod
    def of(cls, healthy: bool, detail: str) -> Observation:
        """Creates an observation from a source that knows only healthy and unhealthy."""
        return cls(Health.HEALTHY if healthy else Health.UNHEALTHY, detail)


def worst(observations: dict[str, Observation]) -> Observation:
    """Combines several sources' observations: as healthy as the least healthy of them.

    Args:
        observations: By the source's name; at least one.
    """
    if len(observations) == 1:
        return next(iter(observations.values()))
    ranked = sorted(observations.values(), key=lambda entry: _ORDER.index(entry.health))
    told = [
        f"{name}: {entry.detail}"
        for name, entry in observations.items()
        if ranked[0].healthy or not entry.healthy
    ]
    return Observation(ranked[0].health, "; ".join(told))
