"""D1-D4, D7, M2: every set of 1 to 12 instances, whatever their health and topology.

For each number of instances, each vector of their health, several batch
percentages, 1 to 5 update domains and 1 to 3 zones, a whole upgrade is walked
through. The invariants, of which none may ever be broken:

1. A batch is never empty and never larger than max(1, ⌊N·percent⌋).
2. It never takes out healthy instances beyond what those that are down leave of
   that limit, unless it is a single instance (or the upgrade would never end).
3. It never spans two zones, nor two update domains of a zone.
4. A zone is finished before the next one begins.
5. No instance is taken twice.
6. The upgrade ends within as many decisions as there are instances, and one;
   then every instance was taken exactly once.
7. Where more than maxUnhealthyInstancePercent are unhealthy, the first decision
   is a stop, with Azure's code, and no instance is touched; else it is a batch.
8. After any batches, whatever fails and whatever sickens later: the decision is a
   stop with the code of D7 if and only if more than
   maxUnhealthyUpgradedInstancePercent of those upgraded so far failed or are
   unhealthy now; the health of the others does not count for it.

An Unknown instance is an Unhealthy one to the planner (checked for each
decision of the smaller sets), so that vectors of two states are all vectors.
"""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from pytest_vmss.engine.planner import (
    Batch,
    Complete,
    Health,
    Member,
    Policy,
    Progress,
    Stop,
    next_batch,
)

UPGRADED = "MaxUnhealthyUpgradedInstancePercentExceededInRollingUpgrade"
BEFORE = "MaxUnhealthyInstancePercentExceededBeforeRollingUpgrade"
PERCENTS = (20, 34, 100)


def topologies(count: int) -> Iterator[tuple[int, int]]:
    """Domains and zones; more of them than instances are the same again."""
    seen = set()
    for domains in range(1, 6):
        for zones in range(1, 4):
            shape = tuple((n % zones, n // zones % domains) for n in range(count))
            if shape not in seen:
                seen.add(shape)
                yield domains, zones


def place(count: int, domains: int, zones: int) -> list[tuple[Member, Member]]:
    """Each instance, healthy and unhealthy; spread over zones, and over domains in each."""
    return [
        (
            Member(n, Health.HEALTHY, False, n // zones % domains, 0, str(n % zones)),
            Member(n, Health.UNHEALTHY, False, n // zones % domains, 0, str(n % zones)),
        )
        for n in range(count)
    ]


def check_walk(
    places: list[tuple[Member, Member]],
    vector: int,
    policy: Policy,
    limit: int,
    walked: set[tuple[int, int]],
) -> None:
    """Walks through an upgrade of a set whose unhealthy instances are the vector's bits.

    A walk ends where another has been: the planner is pure (D10), so the rest is the same. Every
    invariant is therefore one of a single decision: from 1 and 5 follows that no walk has more
    batches than there are instances, and from 6 that it takes them all.

    Args:
        places: Each instance, healthy and unhealthy.
        vector: A bit for each instance that is unhealthy.
        policy: The policy.
        limit: The largest batch that it allows.
        walked: Where walks have been: unhealthy instances, and those that were upgraded.
    """
    count = len(places)
    attempted = 0
    while (vector, attempted) not in walked:
        walked.add((vector, attempted))
        state = [pair[vector >> n & 1] for n, pair in enumerate(places)]
        done = frozenset(n for n in range(count) if attempted >> n & 1)
        decision = next_batch(state, policy, Progress(done))
        if isinstance(decision, Complete):
            assert len(done) == count  # 6
            return
        assert isinstance(decision, Batch)
        ids = decision.instance_ids
        assert 1 <= len(ids) <= limit  # 1
        healthy = sum(1 for n in ids if not state[n].unhealthy)
        assert healthy <= max(limit - vector.bit_count(), 0) or len(ids) == 1  # 2
        assert len({(state[n].zone, state[n].domain) for n in ids}) == 1  # 3
        begun = {state[n].zone for n in done} - {state[ids[0]].zone}
        assert all(n in done for n in range(count) if state[n].zone in begun)  # 4
        assert done.isdisjoint(ids)  # 5
        for n in ids:
            attempted |= 1 << n
            vector &= ~(1 << n)


@pytest.mark.parametrize("count", [*range(1, 12), pytest.param(12, marks=pytest.mark.nightly)])
def test_every_set(count: int) -> None:
    patient = [
        (max(1, count * percent // 100), Policy(percent, max_unhealthy_instance_percent=100))
        for percent in PERCENTS
    ]
    for domains, zones in topologies(count):
        places = place(count, domains, zones)
        for limit, policy in patient:
            walked: set[tuple[int, int]] = set()
            for vector in range(2**count):
                check_walk(places, vector, policy, limit, walked)


@pytest.mark.parametrize("count", range(1, 13))
@pytest.mark.parametrize("threshold", [5, 20, 50])
def test_the_first_decision(count: int, threshold: int) -> None:
    policy = Policy(max_unhealthy_instance_percent=threshold)
    for domains, zones in topologies(count):
        places = place(count, domains, zones)
        for vector in range(2**count):
            state = [pair[vector >> n & 1] for n, pair in enumerate(places)]
            decision = next_batch(state, policy, Progress())
            if vector.bit_count() * 100 > count * threshold:  # 7
                assert isinstance(decision, Stop)
                assert decision.code == BEFORE
            else:
                assert isinstance(decision, Batch)


@pytest.mark.parametrize("count", range(1, 9))
@pytest.mark.parametrize("threshold", [5, 20, 50])
def test_after_any_batch(count: int, threshold: int) -> None:
    """D7: all vectors of health, all numbers of upgraded ones, and all that may have failed."""
    policy = Policy(
        max_unhealthy_instance_percent=100, max_unhealthy_upgraded_instance_percent=threshold
    )
    places = place(count, 5, 1)
    for vector in range(2**count):
        state = [pair[vector >> n & 1] for n, pair in enumerate(places)]
        for done in range(count + 1):
            for failed in range(2**done):
                bad = (failed | vector & (2**done - 1)).bit_count()
                progress = Progress(
                    frozenset(range(done)), frozenset(n for n in range(done) if failed >> n & 1)
                )
                decision = next_batch(state, policy, progress)
                stopped = isinstance(decision, Stop) and decision.code == UPGRADED
                assert stopped == (bad * 100 > done * threshold)  # 8


@pytest.mark.parametrize("count", range(1, 7))
def test_unknown_is_unhealthy(count: int) -> None:
    """F5."""
    for vector in range(2**count):
        decisions = [
            next_batch(
                [
                    Member(n, sick if vector >> n & 1 else Health.HEALTHY, False, n % 5)
                    for n in range(count)
                ],
                Policy(),
                Progress(),
            )
            for sick in (Health.UNHEALTHY, Health.UNKNOWN)
        ]
        assert decisions[0] == decisions[1]
