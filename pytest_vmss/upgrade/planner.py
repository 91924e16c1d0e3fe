"""Which instances are upgraded next, or why the upgrade stops (D1-D10).

One pure function, :func:`next_batch`: it reads nothing and changes nothing,
and explains every decision in words.
"""

from __future__ import annotations

from collections.abc import Collection, Sequence
from dataclasses import dataclass, field
from enum import StrEnum

__all__ = [
    "Batch",
    "Complete",
    "Decision",
    "Health",
    "Member",
    "Policy",
    "Progress",
    "Stop",
    "next_batch",
]


class Health(StrEnum):
    """Health as the planner counts it; Unknown counts as unhealthy (F5)."""

    HEALTHY = "Healthy"
    UNHEALTHY = "Unhealthy"
    UNKNOWN = "Unknown"


@dataclass(frozen=True)
class Member:
    """An instance, as far as the planner cares.

    Attributes:
        instance_id: The number in its name.
        health: As just observed.
        on_target: Already on the version that the upgrade brings.
        domain: Update domain; a batch stays inside one.
        zone: Availability zone, empty for a regional set.
        protected: ``protectFromScaleSetActions``.
    """

    instance_id: int
    health: Health
    on_target: bool
    domain: int = 0
    zone: str = ""
    protected: bool = False

    @property
    def unhealthy(self) -> bool:
        """Whether it counts against the limits."""
        return self.health is not Health.HEALTHY


@dataclass(frozen=True)
class Policy:
    """``rollingUpgradePolicy``; percentages of all instances."""

    max_batch_instance_percent: int = 20
    max_unhealthy_instance_percent: int = 20
    max_unhealthy_upgraded_instance_percent: int = 20
    prioritize_unhealthy_instances: bool = False
    enable_cross_zone_upgrade: bool = False


@dataclass(frozen=True)
class Progress:
    """What the upgrade has done so far.

    Attributes:
        attempted: Instances whose swap has ended, however.
        failed: Those of them that failed, rolled back or not.
        skipped: Instances left out for good.
    """

    attempted: frozenset[int] = frozenset()
    failed: frozenset[int] = frozenset()
    skipped: frozenset[int] = frozenset()


@dataclass(frozen=True)
class Batch:
    """Upgrade these instances next, side by side."""

    instance_ids: tuple[int, ...]
    why: str


@dataclass(frozen=True)
class Stop:
    """The upgrade ends Faulted; Azure's code and words."""

    code: str
    message: str
    why: str


@dataclass(frozen=True)
class Complete:
    """Nothing is left to upgrade."""

    why: str
    skipped: tuple[int, ...] = field(default=())


Decision = Batch | Stop | Complete

_FAILED = "Rolling Upgrade failed"
_IMPACT = "The most impactful error is: Instance found to be unhealthy or unreachable."


def batch_limit(total: int, percent: int) -> int:
    """How many instances may be out at once: the percentage rounded down, at least 1 (D2)."""
    return max(1, total * percent // 100)


def next_batch(members: Sequence[Member], policy: Policy, progress: Progress) -> Decision:
    """Decides the next batch.

    Args:
        members: All instances of the set, as just observed.
        policy: The set's rolling upgrade policy.
        progress: What this upgrade has done so far.
    """
    stop = _stopped_by_upgraded(policy, progress)
    if stop is not None:
        return stop
    pending = [
        member
        for member in members
        if not member.on_target
        and member.instance_id not in progress.attempted
        and member.instance_id not in progress.skipped
        and not member.protected
    ]
    if not pending:
        left_out = tuple(sorted(m.instance_id for m in members if m.protected and not m.on_target))
        return Complete("no instance is left to upgrade", left_out)
    stop = _stopped_by_set(members, policy, progress)
    if stop is not None:
        return stop
    return _cut_batch(members, pending, policy)


def _percent(part: int, whole: int) -> float:
    return 100.0 * part / whole if whole else 0.0


def _names(ids: Collection[int]) -> str:
    return ", ".join(str(number) for number in sorted(ids)) or "none"


def _stopped_by_upgraded(policy: Policy, progress: Progress) -> Stop | None:
    """D7: too many of those upgraded so far are unhealthy; one rolled back counts."""
    share = _percent(len(progress.failed), len(progress.attempted))
    limit = policy.max_unhealthy_upgraded_instance_percent
    if not progress.failed or share <= limit:
        return None
    return Stop(
        "MaxUnhealthyUpgradedInstancePercentExceededInRollingUpgrade",
        f"{_FAILED} after exceeding the MaxUnhealthyUpgradedInstancePercent value defined in the "
        f"RollingUpgradePolicy. {share:g}% of instances are in an unhealthy state after being "
        f"upgraded - more than the threshold of {limit}%. {_IMPACT} "
        f"First failed instance ID is: {min(progress.failed)}.",
        f"of {len(progress.attempted)} upgraded, {len(progress.failed)} failed "
        f"({_names(progress.failed)}): {share:g} % is more than {limit} %",
    )


def _stopped_by_set(members: Sequence[Member], policy: Policy, progress: Progress) -> Stop | None:
    """D1 and D6: too much of the whole set is unhealthy, for whatever reason."""
    unhealthy = [member.instance_id for member in members if member.unhealthy]
    share = _percent(len(unhealthy), len(members))
    limit = policy.max_unhealthy_instance_percent
    if share <= limit:
        return None
    why = (
        f"{len(unhealthy)} of {len(members)} instances are unhealthy ({_names(unhealthy)}): "
        f"{share:g} % is more than {limit} %"
    )
    if not progress.attempted:
        return Stop(
            "MaxUnhealthyInstancePercentExceededBeforeRollingUpgrade",
            f"{_FAILED} due to exceeding the MaxUnhealthyInstancePercent value (defined in the "
            f"RollingUpgradePolicy) before any batch was attempted. {share:g}% of instances are "
            f"in an unhealthy state, more than the threshold of {limit}% configured in the "
            f"RollingUpgradePolicy. {_IMPACT}",
            why,
        )
    return Stop(
        "MaxUnhealthyInstancePercentExceededInRollingUpgrade",
        f"{_FAILED} after exceeding the MaxUnhealthyInstancePercent value defined in the "
        f"RollingUpgradePolicy. {share:g}% of instances are in an unhealthy state - more than the "
        f"threshold of {limit}%. {_IMPACT}",
        why,
    )


def _cut_batch(members: Sequence[Member], pending: Sequence[Member], policy: Policy) -> Batch:
    def rank(member: Member) -> tuple[str, int, bool, int]:
        late = policy.prioritize_unhealthy_instances and not member.unhealthy
        return ("" if policy.enable_cross_zone_upgrade else member.zone, member.domain, late,
                member.instance_id)  # fmt: skip

    ordered = sorted(pending, key=rank)
    if policy.prioritize_unhealthy_instances:
        # The domain of the first unhealthy one comes first, then the rest of its domain.
        first = min(ordered, key=lambda member: (not member.unhealthy, rank(member)))
    else:
        first = ordered[0]
    together = [
        member
        for member in ordered
        if member.domain == first.domain
        and (policy.enable_cross_zone_upgrade or member.zone == first.zone)
    ]
    limit = batch_limit(len(members), policy.max_batch_instance_percent)
    # Instances that are down already take their share of the limit; swapping
    # one of them takes nothing more away (D2).
    down = sum(1 for member in members if member.unhealthy)
    room = max(limit - down, 0)
    chosen: list[Member] = []
    for member in together:
        if len(chosen) == limit:
            break
        if member.unhealthy:
            chosen.append(member)
        elif room > 0:
            chosen.append(member)
            room -= 1
    if not chosen:
        chosen = [together[0]]  # at least one, or the upgrade would never end
    ids = tuple(member.instance_id for member in chosen)
    place = f"update domain {first.domain}" + (f", zone {first.zone}" if first.zone else "")
    why = (
        f"{len(ids)} of {len(pending)} left, at most {limit} at once "
        f"({policy.max_batch_instance_percent} % of {len(members)}, rounded down), in {place}"
    )
    if down:
        why += f"; {down} already down"
    return Batch(ids, why)
