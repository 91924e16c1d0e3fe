"""Which instances are upgraded next, or why the upgrade stops (D1-D10).

One pure function, :func:`next_batch`: it reads nothing and changes nothing,
and explains every decision in words.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field
from typing import NamedTuple

from pytest_vmss.model import Health

__all__ = [
    "TOO_UNHEALTHY_BEFORE",
    "Batch",
    "Complete",
    "Decision",
    "Health",
    "Member",
    "Policy",
    "Progress",
    "Stop",
    "batch_limit",
    "next_batch",
]


class Member(NamedTuple):
    """What the planner needs to know of an instance; one is made of each for each decision.

    Attributes:
        instance_id: The number in its name.
        health: As just observed.
        on_target: Whether it already has what the upgrade installs.
        domain: Update domain in its zone and placement group; a batch stays inside one.
        group: Placement group.
        zone: Availability zone, empty for a regional set.
        phase: ``PhaseOrderingNumber``; None comes last.
        protected: ``protectFromScaleSetActions``.
        stopped: Somebody stopped it; it is upgraded without being started.
    """

    instance_id: int
    health: Health
    on_target: bool
    domain: int = 0
    group: int = 0
    zone: str = ""
    phase: int | None = None
    protected: bool = False
    stopped: bool = False

    @property
    def unhealthy(self) -> bool:
        """Whether it counts against the limits; Unknown (F5) and Initializing do too.

        What somebody stopped on purpose does not.
        """
        return self.health is not Health.HEALTHY and not self.stopped


@dataclass(frozen=True)
class Policy:
    """``rollingUpgradePolicy``; percentages of all instances.

    Attributes:
        time_limit: Seconds that the whole upgrade may take; None for no limit.
    """

    max_batch_instance_percent: int = 20
    max_unhealthy_instance_percent: int = 20
    max_unhealthy_upgraded_instance_percent: int = 20
    prioritize_unhealthy_instances: bool = False
    enable_cross_zone_upgrade: bool = False
    max_surge: bool = False
    time_limit: float | None = None


@dataclass(frozen=True)
class Progress:
    """What the upgrade has done so far.

    Attributes:
        attempted: Instances whose upgrade has ended, with any outcome.
        failed: Those of them that failed, rolled back or not.
        replaced: The new instance for each attempted one that was replaced (``maxSurge``).
        skipped: Instances left out for good, by ``SkipUpgrade``.
        elapsed: Seconds since it started.
    """

    attempted: frozenset[int] = frozenset()
    failed: frozenset[int] = frozenset()
    replaced: Mapping[int, int] = field(default_factory=dict)
    skipped: frozenset[int] = frozenset()
    elapsed: float = 0.0


@dataclass(frozen=True)
class Batch:
    """Upgrade these instances next, concurrently."""

    instance_ids: tuple[int, ...]
    reason: str


@dataclass(frozen=True)
class Stop:
    """The upgrade ends Faulted, with Azure's code and wording."""

    code: str
    message: str
    reason: str


@dataclass(frozen=True)
class Complete:
    """Nothing is left to upgrade.

    Attributes:
        skipped: Instances that are left unchanged.
    """

    reason: str
    skipped: tuple[int, ...] = field(default=())


Decision = Batch | Stop | Complete

#: The code of an upgrade that was stopped before its first batch (D1).
TOO_UNHEALTHY_BEFORE = "MaxUnhealthyInstancePercentExceededBeforeRollingUpgrade"

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
    stop = _stopped_by_upgraded(members, policy, progress)
    if stop is not None:
        return stop
    pending: list[Member] = []
    left_out: list[Member] = []
    for member in members:
        if member.on_target or member.instance_id in progress.attempted:
            continue
        out = member.protected or member.instance_id in progress.skipped
        (left_out if out else pending).append(member)
    if not pending:
        reason = "no instance is left to upgrade" + _left_out(left_out)
        return Complete(reason, tuple(sorted(member.instance_id for member in left_out)))
    stop = _stopped_by_time(policy, progress, len(pending))
    if stop is None:
        stop = _stopped_by_set(members, policy, progress)
    if stop is not None:
        return stop
    return _cut_batch(members, pending, left_out, policy, progress)


def _percent(part: int, whole: int) -> float:
    return 100.0 * part / whole if whole else 0.0


def _names(ids: Collection[int]) -> str:
    return ", ".join(str(number) for number in sorted(ids)) or "none"


def _left_out(members: Sequence[Member]) -> str:
    """Which instances are left out and why, as the end of a sentence."""
    reasons = {
        "protectFromScaleSetActions": [m.instance_id for m in members if m.protected],
        "SkipUpgrade": [m.instance_id for m in members if not m.protected],
    }
    told = [f"{_names(ids)} ({reason})" for reason, ids in reasons.items() if ids]
    return f"; left out: {', '.join(told)}" if told else ""


def _stopped_by_upgraded(
    members: Sequence[Member], policy: Policy, progress: Progress
) -> Stop | None:
    """D7: too many of the instances upgraded so far are unhealthy.

    One that failed counts, even if it is healthy again after its rollback, and so does one that
    was upgraded well and is unhealthy now.
    """
    upgraded = {progress.replaced.get(n, n) for n in progress.attempted - progress.failed}
    sick = {m.instance_id for m in members if m.instance_id in upgraded and m.unhealthy}
    bad = progress.failed | sick
    share = _percent(len(bad), len(progress.attempted))
    limit = policy.max_unhealthy_upgraded_instance_percent
    if not bad or share <= limit:
        return None
    told = {"failed": progress.failed, "are unhealthy now": sick}
    counts = " and ".join(f"{len(ids)} {what} ({_names(ids)})" for what, ids in told.items() if ids)
    return Stop(
        "MaxUnhealthyUpgradedInstancePercentExceededInRollingUpgrade",
        f"{_FAILED} after exceeding the MaxUnhealthyUpgradedInstancePercent value defined in the "
        f"RollingUpgradePolicy. {share:g}% of instances are in an unhealthy state after being "
        f"upgraded - more than the threshold of {limit}%. {_IMPACT} "
        f"First failed instance ID is: {min(bad)}.",
        f"of {len(progress.attempted)} upgraded, {counts}: {share:g} % is more than {limit} %",
    )


def _stopped_by_time(policy: Policy, progress: Progress, pending: int) -> Stop | None:
    """G4: an upgrade ends within a bounded time, between two batches."""
    limit = policy.time_limit
    if limit is None or progress.elapsed <= limit:
        return None
    return Stop(
        "RollingUpgradeTimeoutError",
        f"Rolling Upgrade did not end within {limit:.0f} s; {pending} instances are left as they "
        "were. Raise the limit (setting timeouts.upgrade), or start the upgrade again to go on.",
        f"{progress.elapsed:.0f} s are more than {limit:.0f} s",
    )


def _stopped_by_set(members: Sequence[Member], policy: Policy, progress: Progress) -> Stop | None:
    """D1 and D6: too much of the whole set is unhealthy, for whatever reason."""
    unhealthy = [member.instance_id for member in members if member.unhealthy]
    share = _percent(len(unhealthy), len(members))
    limit = policy.max_unhealthy_instance_percent
    if share <= limit:
        return None
    reason = (
        f"{len(unhealthy)} of {len(members)} instances are unhealthy ({_names(unhealthy)}): "
        f"{share:g} % is more than {limit} %"
    )
    if not progress.attempted:
        return Stop(
            TOO_UNHEALTHY_BEFORE,
            f"{_FAILED} due to exceeding the MaxUnhealthyInstancePercent value (defined in the "
            f"RollingUpgradePolicy) before any batch was attempted. {share:g}% of instances are "
            f"in an unhealthy state, more than the threshold of {limit}% configured in the "
            f"RollingUpgradePolicy. {_IMPACT}",
            reason,
        )
    return Stop(
        "MaxUnhealthyInstancePercentExceededInRollingUpgrade",
        f"{_FAILED} after exceeding the MaxUnhealthyInstancePercent value defined in the "
        f"RollingUpgradePolicy. {share:g}% of instances are in an unhealthy state - more than the "
        f"threshold of {limit}%. {_IMPACT}",
        reason,
    )


def _cut_batch(
    members: Sequence[Member],
    pending: Sequence[Member],
    left_out: Sequence[Member],
    policy: Policy,
    progress: Progress,
) -> Batch:
    together, where = _next_place(members, pending, policy, progress)
    limit = batch_limit(len(members), policy.max_batch_instance_percent)
    # Instances that are already down count against the limit; upgrading one of them
    # takes no further instance out of service (D2).
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
    reason = (
        f"{len(chosen)} of {len(pending)} left, at most {limit} at once "
        f"({policy.max_batch_instance_percent} % of {len(members)}, rounded down), in {where}"
    )
    if down:
        reason += f"; {down} already down"
    stopped = [member.instance_id for member in chosen if member.stopped]
    if stopped:
        reason += f"; stopped, and not started: {_names(stopped)}"
    if policy.max_surge and len(stopped) < len(chosen):
        reason += "; replacements first (maxSurge)"
    return Batch(tuple(member.instance_id for member in chosen), reason + _left_out(left_out))


def _next_place(
    members: Sequence[Member], pending: Sequence[Member], policy: Policy, progress: Progress
) -> tuple[list[Member], str]:
    """The instances that may be in one batch now, best first, and their place in words.

    Phases come first, in ascending order (D5). Within a phase, unhealthy instances
    come before all healthy ones if the policy asks for it, and a zone, placement group
    or update domain that was started is finished before the next (D3, D4).
    """
    across = policy.enable_cross_zone_upgrade

    def place(member: Member) -> tuple[str, int, int]:
        return ("" if across else member.zone, member.group, member.domain)

    phases = {member.phase for member in pending}
    phase = min(phases, key=lambda number: (number is None, number or 0))
    candidates = [member for member in pending if member.phase == phase]
    sick = [member for member in candidates if member.unhealthy]
    prioritised = bool(sick) and policy.prioritize_unhealthy_instances
    if prioritised:
        candidates = sick
    begun = {place(member) for member in members if member.instance_id in progress.attempted}
    begun_zones = {zone for zone, _, _ in begun}

    def rank(spot: tuple[str, int, int]) -> tuple[bool, str, bool, int, int]:
        zone, group, domain = spot
        return (zone not in begun_zones, zone, spot not in begun, group, domain)

    spot = min({place(member) for member in candidates}, key=rank)
    together = sorted(
        (member for member in candidates if place(member) == spot),
        key=lambda member: member.instance_id,
    )
    zone, group, domain = spot
    where = f"update domain {domain}"
    if any(member.group for member in members):
        where += f", placement group {group}"
    if zone:
        where += f", zone {zone}"
    if phase is not None:
        where += f", phase {phase}"
    if prioritised:
        where += ", unhealthy ones first"
    return together, where
