"""What one look at an instance saw."""

from __future__ import annotations

from dataclasses import dataclass

from pytest_vmss.model import Health
from pytest_vmss.untrusted import shown

__all__ = ["Observation", "worst"]

_DETAIL_CHARS = 2000
#: The worse come first.
_ORDER = (Health.UNHEALTHY, Health.UNKNOWN, Health.INITIALIZING, Health.HEALTHY)


@dataclass(frozen=True)
class Observation:
    """What one look at an instance saw.

    Attributes:
        health: The state that it speaks for.
        detail: What was seen, in words; some of them a guest's, and so without control
            characters and of bounded length (R2).
        boot: Boot id of the boot on which it was made, where that is known.
        custom_metrics: ``customMetrics`` that the application reported.
    """

    health: Health
    detail: str
    boot: str = ""
    custom_metrics: str = ""

    def __post_init__(self) -> None:
        """Cleans what is shown."""
        object.__setattr__(self, "detail", shown(self.detail, _DETAIL_CHARS))

    @property
    def healthy(self) -> bool:
        """Whether it speaks for health."""
        return self.health is Health.HEALTHY

    @classmethod
    def of(cls, healthy: bool, detail: str) -> Observation:
        """An observation that knows only well and not well."""
        return cls(Health.HEALTHY if healthy else Health.UNHEALTHY, detail)


def worst(observations: dict[str, Observation]) -> Observation:
    """What several sources say together: as healthy as the least healthy of them.

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
