"""Placement of new instances, and the choice of those to remove. Pure functions (D3, A2)."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Literal

__all__ = ["GROUP_SIZE", "Placed", "Spot", "choose_to_remove", "next_spot"]

#: The most instances that a placement group holds.
GROUP_SIZE = 100
#: Update domains of each placement group and zone.
UPDATE_DOMAINS = 5

ScaleInRule = Literal["Default", "OldestVM", "NewestVM"]


@dataclass(frozen=True)
class Spot:
    """A place in a set's topology."""

    zone: str
    group: int
    domain: int


@dataclass(frozen=True)
class Placed:
    """An instance and its place.

    Attributes:
        protected: Whether either kind of instance protection is set; never chosen for removal.
        unhealthy: Whether it is unhealthy; only used for ``prioritizeUnhealthyVMs``.
    """

    instance_id: int
    spot: Spot
    created: datetime
    protected: bool = False
    unhealthy: bool = False


def next_spot(spots: Iterable[Spot], zones: Sequence[str]) -> Spot:
    """The place of the next new instance: the emptiest zone, then its emptiest update domain.

    Args:
        spots: The places of the set's instances.
        zones: The model's zones; none for a regional set.
    """
    taken = list(spots)
    in_zones = Counter(spot.zone for spot in taken)
    zone = min(zones, key=lambda name: (in_zones[name], zones.index(name))) if zones else ""
    in_groups = Counter(spot.group for spot in taken if spot.zone == zone)
    group = next(number for number in range(len(taken) + 1) if in_groups[number] < GROUP_SIZE)
    in_domains = Counter(spot.domain for spot in taken if spot.zone == zone and spot.group == group)
    domain = min(range(UPDATE_DOMAINS), key=lambda number: (in_domains[number], number))
    return Spot(zone, group, domain)


def choose_to_remove(
    instances: Sequence[Placed],
    count: int,
    rules: Sequence[ScaleInRule],
    *,
    unhealthy_first: bool = False,
) -> list[int]:
    """Chooses the instances to remove, by Azure's scale-in policy.

    ``Default`` keeps the zones balanced and removes the highest instance id;
    ``NewestVM`` and ``OldestVM`` balance the zones too. Protected instances are
    never chosen.

    Args:
        instances: All instances of the set.
        count: How many to remove.
        rules: ``scaleInPolicy.rules``; the first applies.
        unhealthy_first: ``prioritizeUnhealthyVMs``.

    Returns:
        Their numbers; fewer than requested if too many are protected.
    """
    rule = rules[0] if rules else "Default"
    free = [placed for placed in instances if not placed.protected]
    in_zones = Counter(placed.spot.zone for placed in instances)
    chosen: list[int] = []
    while free and len(chosen) < count:

        def rank(placed: Placed) -> tuple[bool, int, float, int]:
            age, number = placed.created.timestamp(), placed.instance_id
            by_rule = {
                "Default": (0.0, number),
                "NewestVM": (age, number),
                "OldestVM": (-age, -number),
            }
            sick_first = unhealthy_first and placed.unhealthy
            return (sick_first, in_zones[placed.spot.zone], *by_rule[rule])

        goes = max(free, key=rank)
        free.remove(goes)
        in_zones[goes.spot.zone] -= 1
        chosen.append(goes.instance_id)
    return chosen
