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
    places: list[tuple[Member, Member]], vector: int, policy: Policy, limit: int
) -> None:
    """Walks through an upgrade of a set whose unhealthy instances are the vector's bits."""
    count = len(places)
    state = [pair[vector >> n & 1] for n, pair in enumerate(places)]
    down = vector.bit_count()
    attempted: set[int] = set()
    zones: list[str] = []
    for _ in range(count + 1):
        decision = next_batch(state, policy, Progress(frozenset(attempted)))
        if isinstance(decision, Complete):
            assert len(attempted) == count  # 6
            return
        assert isinstance(decision, Batch)
        ids = decision.instance_ids
        assert 1 <= len(ids) <= limit  # 1
        healthy = sum(1 for n in ids if not state[n].unhealthy)
        assert healthy <= max(limit - down, 0) or len(ids) == 1  # 2
        assert len({(state[n].zone, state[n].domain) for n in ids}) == 1  # 3
        zone = state[ids[0]].zone
        if not zones or zones[-1] != zone:
            assert zone not in zones  # 4
            zones.append(zone)
        assert attempted.isdisjoint(ids)  # 5
        attempted.update(ids)
        down -= len(ids) - healthy
        for n in ids:
            state[n] = places[n][0]
    pytest.fail(f"it did not end in {count + 1} decisions")


@pytest.mark.parametrize("count", [*range(1, 12), pytest.param(12, marks=pytest.mark.nightly)])
def test_every_set(count: int) -> None:
    patient = [
        (max(1, count * percent // 100), Policy(percent, max_unhealthy_instance_percent=100))
        for percent in PERCENTS
    ]
    for domains, zones in topologies(count):
        places = place(count, domains, zones)
        for vector in range(2**count):
            for limit, policy in patient:
                check_walk(places, vector, policy, limit)


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
