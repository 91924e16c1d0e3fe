"""D3, A2: where instances go, and which go."""

from __future__ import annotations

from collections import Counter
from datetime import UTC, datetime, timedelta

from hypothesis import given
from hypothesis import strategies as st

from pytest_vmss.health import RollingUpgradeMetrics, parse_custom_metrics
from pytest_vmss.operations.placement import GROUP_SIZE, Placed, Spot, choose_to_remove, next_spot

START = datetime(2026, 1, 1, tzinfo=UTC)


@given(st.integers(0, 330), st.integers(0, 3))
def test_instances_are_spread_evenly(count: int, zones: int) -> None:
    names = [str(number) for number in range(zones)]
    spots: list[Spot] = []
    for _ in range(count):
        spots.append(next_spot(spots, names))
    in_zones = Counter(spot.zone for spot in spots)
    assert max(in_zones.values(), default=0) - min(in_zones.values(), default=0) <= 1
    groups = Counter((spot.zone, spot.group) for spot in spots)
    assert max(groups.values(), default=0) <= GROUP_SIZE
    for place in groups:
        domains = Counter(spot.domain for spot in spots if (spot.zone, spot.group) == place)
        assert max(domains.values()) - min(domains[d] for d in range(5)) <= 1


def test_a_gap_is_filled_first() -> None:
    spots = [Spot("", 0, domain) for domain in (0, 1, 3, 4, 0)]
    assert next_spot(spots, []) == Spot("", 0, 2)


def placed(number: int, zone: str = "", **changes: bool) -> Placed:
    return Placed(
        number, Spot(zone, 0, number % 5), START + timedelta(minutes=10 - number), **changes
    )


def test_rules_of_scaling_in() -> None:
    three = [placed(number) for number in range(3)]  # the higher the number, the older
    assert choose_to_remove(three, 2, ["Default"]) == [2, 1]
    assert choose_to_remove(three, 2, []) == [2, 1]
    assert choose_to_remove(three, 1, ["NewestVM"]) == [0]
    assert choose_to_remove(three, 1, ["OldestVM"]) == [2]
    zones = [placed(0, "1"), placed(1, "1"), placed(2, "2")]
    assert choose_to_remove(zones, 2, ["Default"]) == [1, 2]
    sick = [placed(0, unhealthy=True), placed(1), placed(2, protected=True)]
    assert choose_to_remove(sick, 1, [], unhealthy_first=True) == [0]
    assert choose_to_remove(sick, 1, []) == [1]
    assert sorted(choose_to_remove(sick, 3, [])) == [0, 1]


def test_custom_metrics_as_azure_writes_them() -> None:
    """azure-arm.md 6.3: a JSON string, keys in any case, SkipUpgrade as text too."""
    text = '{"rollingUpgrade":{"PhaseOrderingNumber":0,"SkipUpgrade":false}}'
    assert parse_custom_metrics(text) == RollingUpgradeMetrics(phase=0)
    text = '{"ROLLINGUPGRADE":{"phaseorderingnumber":"3","skipUpgrade":"True"}}'
    assert parse_custom_metrics(text) == RollingUpgradeMetrics(phase=3, skip=True)
    for broken in ("", "no json", "[]", '{"rollingUpgrade": 1}', '{"rollingUpgrade":{"x":[]}}',
                   '{"rollingUpgrade":{"PhaseOrderingNumber":"first"}}'):  # fmt: skip
        assert parse_custom_metrics(broken) == RollingUpgradeMetrics()
