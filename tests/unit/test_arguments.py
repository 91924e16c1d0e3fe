"""A6, P5: what the public API is given is checked before anything is done."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from pytest_vmss.errors import LabError, ModelError
from pytest_vmss.model import arguments
from pytest_vmss.secrecy import SecretText
from pytest_vmss.settings import ImageLimits, Settings, Timeouts
from tests.models import encode

NAN, INF = float("nan"), float("inf")


def seconds(value: Any) -> float | None:
    return arguments.check_seconds(value, "health_timeout", none=True)


def flag(value: Any) -> bool | None:
    return arguments.check_flag(value, "from_scale_in", none=True)


def action(value: Any) -> str:
    return arguments.check_choice(value, "action", ("Suspend", "Resume"))


def looks(_: object) -> None: ...


GOOD: list[tuple[Callable[[Any], Any], Any, Any]] = [
    (arguments.check_instance_count, 0, 0),
    (arguments.check_name, "web", "web"),
    (arguments.check_ports, [80, 80, 8080], (80, 8080)),
    (arguments.check_ports, range(80, 82), (80, 81)),
    (seconds, 5, 5.0),
    (seconds, None, None),
    (arguments.check_custom_data, encode("x"), encode("x")),
    (arguments.check_health, "true", "true"),
    (arguments.check_health, looks, looks),
    (arguments.check_script, "echo ä\n", "echo ä\n"),
    (flag, False, False),
    (flag, None, None),
    (action, "Resume", "Resume"),
    (arguments.check_instance_ids, [0, "2", 2], (0, 2)),
    (arguments.check_instance_ids, None, None),
]
BAD: list[tuple[Callable[[Any], Any], list[Any]]] = [
    (arguments.check_instance_count, [-1, 1001, "3", 2.5, NAN, True, 10**30, [1]]),
    (arguments.check_name, ["", 5, "x" * 300, "\ud800", "a\0", b"x"]),
    (arguments.check_port, [0, 65536, "80", True, 80.0, None]),
    (arguments.check_ports, [80, ["80"], [0], [True], "80", None, range(1, 70000), {80: 1}]),
    (seconds, [NAN, INF, -INF, 0, -5, "x", 10**400, True, 1e300, [1]]),
    (arguments.check_custom_data, [5, b"x", "!!", "a\0", "é", "eA==\n", "eA", encode("x" * 70000)]),
    (arguments.check_health, [5, "", " ", "a\0b", "x" * 10**6, ["a"], b"x", "\ud800", int]),
    (arguments.check_script, [5, b"x", "a\0b", "\ud800", "x" * 2**21]),
    (flag, ["x", 1, 0]),
    (action, ["suspend", 5, None]),
    (
        arguments.check_instance_ids,
        ["01", [], [None], 5, ["0 "], [0.0], [True], ["²"], [-1], ["9" * 5000], [10**400]],
    ),
]


@pytest.mark.parametrize(("check", "given", "used"), GOOD)
def test_what_is_taken(check: Callable[[Any], Any], given: Any, used: Any) -> None:
    assert check(given) == used


@pytest.mark.parametrize(
    ("check", "given"), [(check, given) for check, values in BAD for given in values]
)
def test_what_is_refused(check: Callable[[Any], Any], given: Any) -> None:
    with pytest.raises(ModelError, match=r"must (be|name)") as refused:
        check(given)
    (problem,) = refused.value.problems
    assert problem.code == "InvalidParameter"
    assert problem.path
    assert len(str(refused.value)) < 600


@pytest.mark.parametrize(
    "check",
    [arguments.check_custom_data, arguments.check_health, arguments.check_script],
)
def test_what_may_be_secret_is_not_quoted(check: Callable[[Any], Any]) -> None:
    """M5."""
    with pytest.raises(ModelError) as refused:
        check("s3cr3t\0" * 9)
    assert "s3cr3t" not in str(refused.value)
    with pytest.raises(ModelError) as refused:
        arguments.check_name(SecretText("s3cr3t" * 99))
    assert "s3cr3t" not in str(refused.value)


@pytest.mark.parametrize(
    "given",
    [
        {"timeout_factor": NAN},
        {"timeout_factor": INF},
        {"timeout_factor": 0},
        {"timeout_factor": -1.0},
        {"timeout_factor": "2"},
        {"timeouts": Timeouts(boot=NAN)},
        {"timeouts": Timeouts(health=-1)},
        {"timeouts": Timeouts(upgrade=INF)},
        {"sizes": {"": (1, 256)}},
        {"sizes": {"a\nb": (1, 256)}},
        {"sizes": {"Tiny": (0, 256)}},
        {"sizes": {"Tiny": (1, -1)}},
        {"sizes": {"Tiny": (1, 2**40)}},
        {"sizes": {"Tiny": (True, 256)}},
        {"sizes": {"Tiny": (1,)}},
        {"images": ImageLimits(virtual_gib=0, stored_gib=1)},
        {"first_rollout_delay": NAN},
        {"rollout_delay": (5.0, 1.0)},
        {"rollout_delay": (NAN, 1.0)},
        {"repair_grace": -1},
        {"accelerator": "xen"},
        {"guest_network": "open"},
    ],
    ids=str,
)
def test_settings_that_no_lab_can_have(given: dict[str, Any], tmp_path: Path) -> None:
    with pytest.raises(LabError, match="must be"):
        Settings(tmp_path, tmp_path, **given)


def test_settings_that_a_lab_can_have(tmp_path: Path) -> None:
    Settings(
        tmp_path, tmp_path, timeout_factor=2, timeouts=Timeouts(drain=0), sizes={"T": (1, 256)},
        rollout_delay=(0, 0), repair_grace=0.0,
    )  # fmt: skip
