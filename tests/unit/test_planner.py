"""D1-D10: the planner's decisions, each with a reason in words."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pytest_vmss.engine.planner import (
    Batch,
    Complete,
    Health,
    Member,
    Policy,
    Progress,
    Stop,
    batch_limit,
    next_batch,
)

NOTHING = Progress()


def members(count: int, *, sick: frozenset[int] = frozenset(), domains: int = 5) -> list[Member]:
    return [
        Member(
            number,
            Health.UNHEALTHY if number in sick else Health.HEALTHY,
            on_target=False,
            domain=number % domains,
        )
        for number in range(count)
    ]


@pytest.mark.parametrize(
    ("total", "limit"), [(1, 1), (4, 1), (5, 1), (9, 1), (10, 2), (14, 2), (15, 3), (100, 20)]
)
def test_twenty_percent_rounded_down_at_least_one(total: int, limit: int) -> None:
    """D2."""
    assert batch_limit(total, 20) == limit
    decision = next_batch(members(total, domains=1), Policy(), NOTHING)
    assert isinstance(decision, Batch)
    assert len(decision.instance_ids) == limit
    assert "rounded down" in decision.reason


def test_what_was_stopped_is_neither_unhealthy_nor_left_out() -> None:
    """D1, D2, D6."""
    known = members(5, sick=frozenset({0, 1, 2}), domains=1)
    stopped = [member._replace(stopped=member.unhealthy) for member in known]
    assert isinstance(next_batch(known, Policy(), NOTHING), Stop)
    decision = next_batch(stopped, Policy(prioritize_unhealthy_instances=True), NOTHING)
    assert isinstance(decision, Batch)
    assert decision.instance_ids == (0,)
    assert "stopped, and not started: 0" in decision.reason


def test_a_batch_shrinks_when_others_are_down() -> None:
    """D2: never more than the share is out at once."""
    decision = next_batch(members(10, sick=frozenset({9}), domains=1), Policy(), NOTHING)
    assert decision == Batch((0, 9), decision.reason) or decision == Batch((0,), decision.reason)
    assert isinstance(decision, Batch)
    healthy_out = [number for number in decision.instance_ids if number != 9]
    assert len(healthy_out) == 1
    assert "1 already down" in decision.reason


def test_unhealthy_first_when_asked() -> None:
    """D5."""
    sick = frozenset({7})
    policy = Policy(prioritize_unhealthy_instances=True)
    decision = next_batch(members(10, sick=sick), policy, NOTHING)
    assert isinstance(decision, Batch)
    assert 7 in decision.instance_ids


def test_zones_one_after_another() -> None:
    """D4."""
    both = [
        Member(number, Health.HEALTHY, on_target=False, zone=str(number % 2))
        for number in range(20)
    ]
    decision = next_batch(both, Policy(), NOTHING)
    assert isinstance(decision, Batch)
    assert {number % 2 for number in decision.instance_ids} == {0}
    decision = next_batch(both, Policy(enable_cross_zone_upgrade=True), NOTHING)
    assert isinstance(decision, Batch)
    assert {number % 2 for number in decision.instance_ids} == {0, 1}


def test_too_many_unhealthy_before_and_during() -> None:
    """D1, D6: exactly the threshold is still allowed."""
    at_limit = members(10, sick=frozenset({0, 1}))
    assert isinstance(next_batch(at_limit, Policy(), NOTHING), Batch)
    over = members(10, sick=frozenset({0, 1, 2}))
    before = next_batch(over, Policy(), NOTHING)
    assert isinstance(before, Stop)
    assert before.code == "MaxUnhealthyInstancePercentExceededBeforeRollingUpgrade"
    assert "30% of instances" in before.message
    during = next_batch(over, Policy(), Progress(attempted=frozenset({9})))
    assert isinstance(during, Stop)
    assert during.code == "MaxUnhealthyInstancePercentExceededInRollingUpgrade"


def test_too_many_of_the_upgraded_failed() -> None:
    """D7: one rolled back counts, though it is healthy again; at the threshold it goes on."""
    progress = Progress(attempted=frozenset({0, 1, 2, 3}), failed=frozenset({3}))
    stop = next_batch(members(10), Policy(), progress)
    assert isinstance(stop, Stop)
    assert stop.code == "MaxUnhealthyUpgradedInstancePercentExceededInRollingUpgrade"
    assert "First failed instance ID is: 3." in stop.message
    progress = Progress(attempted=frozenset(range(5)), failed=frozenset({3}))
    assert isinstance(next_batch(members(10), Policy(), progress), Batch)


@pytest.mark.parametrize("health", [Health.UNHEALTHY, Health.UNKNOWN])
def test_one_that_sickened_after_its_upgrade_counts(health: Health) -> None:
    """D7: with those that failed, and once; one that was not upgraded yet does not."""
    state = members(10, sick=frozenset({9}))
    state[0] = state[0]._replace(health=health)
    patient = Policy(max_unhealthy_instance_percent=100)
    decision = next_batch(state, patient, Progress(frozenset({0, 5})))
    assert isinstance(decision, Stop)
    assert decision.code == "MaxUnhealthyUpgradedInstancePercentExceededInRollingUpgrade"
    assert "50% of instances" in decision.message
    assert "First failed instance ID is: 0." in decision.message
    assert decision.reason.startswith("of 2 upgraded, 1 are unhealthy now (0): 50 %")
    both = next_batch(state, patient, Progress(frozenset({0, 1, 5}), frozenset({0, 1})))
    assert isinstance(both, Stop)
    assert both.reason.startswith("of 3 upgraded, 2 failed (0, 1): 66.6667 %")
    assert isinstance(next_batch(state, patient, Progress(frozenset(range(5)))), Batch)


def test_a_replacement_counts_in_place_of_what_it_replaced() -> None:
    """D7, D9: with ``maxSurge`` the new instance is the upgraded one."""
    state = [m._replace(on_target=m.instance_id == 9) for m in members(10, sick=frozenset({9}))]
    progress = Progress(frozenset({0}), replaced={0: 9})
    decision = next_batch(state[1:], Policy(), progress)
    assert isinstance(decision, Stop)
    assert "(9)" in decision.reason


def test_the_last_batch_is_judged_too() -> None:
    """D7: nothing is left to upgrade, and yet the upgrade failed."""
    state = members(3, sick=frozenset({2}))
    decision = next_batch(state, Policy(), Progress(frozenset({0, 1, 2})))
    assert isinstance(decision, Stop)


def test_protected_instances_are_left_out_and_reported() -> None:
    """D9."""
    one = [Member(0, Health.HEALTHY, on_target=False, protected=True)]
    assert next_batch(one, Policy(), NOTHING) == Complete(
        "no instance is left to upgrade; left out: 0 (protectFromScaleSetActions)", (0,)
    )
    two = [*one, Member(1, Health.HEALTHY, on_target=False, domain=1)]
    decision = next_batch(two, Policy(), NOTHING)
    assert isinstance(decision, Batch)
    assert decision.instance_ids == (1,)
    assert decision.reason.endswith("left out: 0 (protectFromScaleSetActions)")


def test_what_skips_the_upgrade_is_left_out_and_reported() -> None:
    """D5: SkipUpgrade."""
    decision = next_batch(members(2), Policy(), Progress(skipped=frozenset({0})))
    assert isinstance(decision, Batch)
    assert decision.instance_ids == (1,)
    assert "left out: 0 (SkipUpgrade)" in decision.reason
    progress = Progress(skipped=frozenset({0, 1}))
    assert next_batch(members(2), Policy(), progress) == Complete(
        "no instance is left to upgrade; left out: 0, 1 (SkipUpgrade)", (0, 1)
    )


def test_phases_in_ascending_order_and_those_without_last() -> None:
    """D5: PhaseOrderingNumber."""
    phases = {0: None, 1: 7, 2: 0, 3: -1, 4: None, 5: 0}
    every = [
        Member(number, Health.HEALTHY, on_target=False, phase=phase)
        for number, phase in phases.items()
    ]
    order = walk(every, Policy(max_batch_instance_percent=100))
    assert order == [(3,), (2, 5), (1,), (0, 4)]


def test_unhealthy_ones_come_before_all_healthy_ones_of_their_phase() -> None:
    """D5: not only first in their batch; no healthy one is taken with them."""
    every = [
        Member(
            number,
            Health.UNHEALTHY if number in (3, 8) else Health.HEALTHY,
            on_target=False,
            domain=number % 5,
            zone=str(number % 2),
        )
        for number in range(10)
    ]
    policy = Policy(prioritize_unhealthy_instances=True)
    order = walk(every, policy)
    assert sorted(order[:2]) == [(3,), (8,)]
    assert sorted(sum(order, ())) == list(range(10))


def test_a_zone_and_a_domain_are_finished_before_the_next() -> None:
    """D3, D4: also where what is left of them would no longer come first."""
    every = [
        Member(
            number, Health.HEALTHY, on_target=False, domain=number % 2, zone=str(number // 2 % 2)
        )
        for number in range(16)
    ]
    order = walk(every, Policy())
    places = [(every[ids[0]].zone, every[ids[0]].domain) for ids in order]
    assert places == sorted(places)
    progress = Progress(attempted=frozenset({2}))
    decision = next_batch(every, Policy(), progress)
    assert isinstance(decision, Batch)
    assert {every[number].zone for number in decision.instance_ids} == {"1"}


def test_placement_groups_have_update_domains_of_their_own() -> None:
    """D3: the domain 0 of one group is not the domain 0 of another."""
    every = [
        Member(number, Health.HEALTHY, on_target=False, domain=0, group=number % 2)
        for number in range(10)
    ]
    decision = next_batch(every, Policy(max_batch_instance_percent=100), NOTHING)
    assert isinstance(decision, Batch)
    assert decision.instance_ids == (0, 2, 4, 6, 8)
    assert "placement group 0" in decision.reason


def test_an_upgrade_that_takes_too_long_stops_between_batches() -> None:
    """G4."""
    policy = Policy(time_limit=60)
    assert isinstance(next_batch(members(2), policy, Progress(elapsed=60)), Batch)
    stop = next_batch(members(2), policy, Progress(attempted=frozenset({0}), elapsed=61))
    assert isinstance(stop, Stop)
    assert stop.code == "RollingUpgradeTimeoutError"
    done = [Member(0, Health.HEALTHY, on_target=True)]
    assert isinstance(next_batch(done, policy, Progress(elapsed=61)), Complete)


def walk(every: list[Member], policy: Policy) -> list[tuple[int, ...]]:
    """The batches of a whole upgrade in which all goes well."""
    batches: list[tuple[int, ...]] = []
    attempted: frozenset[int] = frozenset()
    state = {member.instance_id: member for member in every}
    while isinstance(
        decision := next_batch(list(state.values()), policy, Progress(attempted)), Batch
    ):
        batches.append(decision.instance_ids)
        attempted |= frozenset(decision.instance_ids)
        for number in decision.instance_ids:
            state[number] = state[number]._replace(health=Health.HEALTHY)
    assert isinstance(decision, Complete)
    return batches


def test_unknown_counts_as_unhealthy() -> None:
    """F5."""
    assert Member(0, Health.UNKNOWN, on_target=False).unhealthy


@given(
    st.lists(st.sampled_from(list(Health)), min_size=1, max_size=12),
    st.sampled_from([5, 20, 50, 100]),
    st.booleans(),
)
def test_never_more_out_than_allowed(health: list[Health], percent: int, prioritize: bool) -> None:
    """M2: healthy instances that a batch takes out, with those already down, stay within it."""
    every = [
        Member(number, state, on_target=False, domain=number % 5)
        for number, state in enumerate(health)
    ]
    policy = Policy(
        max_batch_instance_percent=percent,
        max_unhealthy_instance_percent=100,
        prioritize_unhealthy_instances=prioritize,
    )
    decision = next_batch(every, policy, NOTHING)
    assert isinstance(decision, Batch)
    limit = batch_limit(len(every), percent)
    assert len(decision.instance_ids) <= limit
    down = sum(1 for member in every if member.unhealthy)
    taken = sum(1 for number in decision.instance_ids if not every[number].unhealthy)
    assert taken <= max(limit - down, 0) or decision.instance_ids == (decision.instance_ids[0],)
