"""L1: hooks that a suite may implement, and what a broken set-up does to the tests behind it."""

from __future__ import annotations

import inspect
import re
from pathlib import Path

import pytest

from pytest_vmss import hookspecs

CONFTEST = """
import threading

import pytest

from pytest_vmss.api.lab import Lab
from pytest_vmss.simulation.guest import Behaviour
from pytest_vmss.simulation.lab import SimulatedLab

session = SimulatedLab.session.__func__
Lab.session = classmethod(lambda cls, settings: session(SimulatedLab, settings))
TOLD = []


def pytest_vmss_configure_lab(lab):
    lab.publish("1.0.0")


def pytest_vmss_before_batch(scale_set, operation, instances):
    TOLD.append(("before batch", scale_set.name, [each.image_version for each in instances]))


def pytest_vmss_after_batch(scale_set, operation, instances):
    TOLD.append(("after batch", operation.target, [each.image_version for each in instances]))


def pytest_vmss_before_step(operation, instance, step):
    TOLD.append(("before step", instance.name, step))


def pytest_vmss_after_step(operation, instance, step, error):
    TOLD.append(("after step", instance.name, step, type(error).__name__))


def pytest_vmss_health_changed(instance, health, before):
    TOLD.append(("health", instance.name, health, before))


def pytest_vmss_unhealthy(scale_set, instance):
    TOLD.append(("unhealthy", instance.name))


def pytest_vmss_rolled_back(operation, instance):
    TOLD.append(("rolled back", instance.name, instance.image_version))


def pytest_vmss_operation_ended(scale_set, operation):
    TOLD.append(("ended", operation.action, operation.status))


@pytest.fixture
def told():
    TOLD.clear()
    return TOLD
"""

TESTS = """
import pytest

from pytest_vmss.simulation.guest import Behaviour
from tests.models import LOAD_BALANCER, web_model

pytestmark = pytest.mark.vmss(model=web_model(capacity=2), load_balancer=LOAD_BALANCER)
"""


def run(pytester: pytest.Pytester, tests: str, conftest: str = CONFTEST) -> pytest.RunResult:
    pytester.makeconftest(conftest)
    pytester.makepyfile(TESTS + tests)
    return pytester.runpytest_subprocess(
        "-rs", "-p", "no:cacheprovider", "-p", "no:xdist", "--vmss-no-checkpoints",
        "--vmss-state-dir", "state", "--vmss-cache-dir", "cache", "--vmss-artifacts", "off",
    )  # fmt: skip


def test_each_moment_is_told(pytester: pytest.Pytester) -> None:
    result = run(
        pytester,
        """
def test_it(told, vmss, scale_set):
    vmss.publish("1.1.0")
    assert scale_set.wait_for_upgrade().completed
    assert ("ended", "create", "Completed") in told
    steps = [entry for entry in told if "step" in entry[0] and entry[1] == "web_0"]
    assert [entry[0] for entry in steps] == ["before step", "after step"] * (len(steps) // 2)
    assert all(one[2] == two[2] for one, two in zip(steps[::2], steps[1::2]))
    assert ("before step", "web_0", "swap: boot") in told
    batches = [entry for entry in told if "batch" in entry[0]]
    assert batches == [
        ("before batch", "web", ["1.0.0"]), ("after batch", "1.1.0", ["1.1.0"]),
    ] * 2
    first = told.index(("before batch", "web", ["1.0.0"]))
    assert ("before step", "web_0", "swap: boot") not in told[:first]
    assert told[-1] == ("ended", "upgrade", "Completed")


def test_a_bad_image(told, vmss, scale_set):
    vmss.publish("1.2.0", Behaviour.UNHEALTHY)
    assert scale_set.wait_for_upgrade().faulted
    assert [entry for entry in told if entry[0] == "rolled back"] == [
        ("rolled back", "web_0", "1.1.0")
    ]
    assert ("after step", "web_0", "swap: health", "UnhealthyError") in told
    vmss.sick.add("web_1")
    vmss.publish("1.3.0")
    scale_set.wait_for_upgrade()
    assert ("unhealthy", "web_1") in told
    assert any(entry[:2] == ("health", "web_1") for entry in told)
""",
    )
    result.assert_outcomes(passed=2)


def test_a_hook_that_fails_fails_the_test_and_not_the_operation(pytester: pytest.Pytester) -> None:
    """Q3: it is never silent."""
    result = run(
        pytester,
        """
def test_it(vmss, scale_set):
    vmss.publish("1.1.0")
    assert scale_set.wait_for_upgrade().completed


def test_next(scale_set):
    assert scale_set.is_healthy()
""",
        CONFTEST
        + """

def pytest_vmss_after_batch(instances):
    if instances[0].instance_id == "0":
        pytest.fail("the hook does not like it")
""",
    )
    result.assert_outcomes(passed=2, errors=1)
    result.stdout.fnmatch_lines(["*ERROR at teardown of test_it*", "*the hook does not like it*"])


def test_a_hook_that_fails_is_told_with_its_own_test_if_that_fails_too(
    pytester: pytest.Pytester,
) -> None:
    """Q3: also where its fixtures fail; it was the next test's error, or nobody's."""
    result = run(
        pytester,
        """
@pytest.fixture
def broken():
    yield
    raise RuntimeError("the suite's own")


def test_it(broken, scale_set): pass
def test_next(vmss): pass
""",
        CONFTEST.replace('TOLD.append(("ended"', 'wanted(operation); TOLD.append(("ended"')
        + """

def wanted(operation):
    if operation.action == "create":
        raise ValueError("the hook does not like it")
""",
    )
    result.assert_outcomes(passed=2, errors=1)
    result.stdout.fnmatch_lines(
        [
            "*ERROR at teardown of test_it*",
            "*RuntimeError: the suite's own*",
            "*a hook of pytest-vmss failed too:*",
            "*ValueError: the hook does not like it*",
        ]
    )


def test_a_broken_set_up_skips_the_tests_behind_it(pytester: pytest.Pytester) -> None:
    """One error, and one reason; there was an error with its traceback for each test."""
    result = run(
        pytester,
        """
def test_one(scale_set): pass
def test_two(scale_set): pass
def test_three(vmss): pass
def test_other(): pass
""",
        """
from pytest_vmss.errors import HostError


def pytest_vmss_configure_lab(lab):
    raise HostError("there is no image\\nand more words")
""",
    )
    result.assert_outcomes(errors=1, skipped=2, passed=1)
    result.stdout.fnmatch_lines(
        [
            "SKIPPED *the lab could not be set up, see the error of *::test_one: HostError: there is no*"
        ]
    )
    assert result.stdout.str().count("ERROR at setup of") == 1


def test_each_hook_is_typed_and_documented() -> None:
    how_to = (Path(__file__).parents[2] / "docs/reference.md").read_text()
    for name in hookspecs.__all__:
        hook = getattr(hookspecs, name)
        told = inspect.getdoc(hook) or ""
        signature = inspect.signature(hook)
        assert signature.return_annotation, name
        for argument, parameter in signature.parameters.items():
            assert parameter.annotation is not parameter.empty, name
            assert re.search(rf"\b{argument}: ", told), f"{name} {argument}"
        assert f"`{name}`" in how_to, name


def test_a_warning_that_is_an_error_leaves_no_lab(pytester: pytest.Pytester) -> None:
    """L5: whatever ends the set-up of a session, its lab goes with it."""
    pytester.makeconftest(CONFTEST)
    pytester.makepyfile(TESTS + "def test_it(scale_set): pass\n")
    result = pytester.runpytest_subprocess(
        "-p", "no:cacheprovider", "-p", "no:xdist", "-W", "error", "--vmss-state-dir", "state",
        "--vmss-cache-dir", "cache", "--vmss-guest-network", "outbound",
    )  # fmt: skip
    result.assert_outcomes(errors=1)
    assert list((pytester.path / "state" / "labs").iterdir()) == []


def test_a_hook_that_fails_is_explained_by_the_set_as_it_was(pytester: pytest.Pytester) -> None:
    """L1, L3: shown from where the hook begins, and with what the test made, not its removal."""
    hook = "\n\ndef pytest_vmss_before_batch(scale_set):\n    raise ValueError('not this one')\n"
    pytester.makeconftest(CONFTEST + hook)
    pytester.makepyfile(
        TESTS
        + "\n\ndef test_it(vmss, scale_set):\n"
        + '    vmss.publish("1.1.0")\n    scale_set.wait_for_upgrade()\n'
    )
    result = pytester.runpytest_subprocess(
        "-p", "no:cacheprovider", "-p", "no:xdist", "--vmss-no-checkpoints",
        "--vmss-state-dir", "state", "--vmss-cache-dir", "cache",
    )  # fmt: skip
    result.assert_outcomes(passed=1, errors=1)
    result.stdout.fnmatch_lines(
        ["*ValueError: not this one*", "OS upgrade of web from 1.0.0 to 1.1.0 completed in *"]
    )
    assert "pytest_vmss/plugin" not in result.stdout.str()
    (folder,) = (pytester.path / "vmss-artifacts").glob("*--test_it")
    assert (folder / "web" / "web_0" / "instance.json").is_file()


@pytest.mark.parametrize(
    ("leaves", "told"),
    [
        ("sys.exit(4)", "*SystemExit: 4*"),
        ("raise asyncio.CancelledError", "*CancelledError*"),
        ("pytest.exit('enough')", "*Exit: enough*"),
    ],
)
def test_a_hook_that_wants_to_leave_changes_nothing_in_the_operation(
    pytester: pytest.Pytester, leaves: str, told: str
) -> None:
    """L1: the upgrade was left unfinished; pytest.exit was one of a group, and ended nothing."""
    hook = f"\n\nimport asyncio, sys\n\n\ndef pytest_vmss_after_batch(scale_set):\n    {leaves}\n"
    tests = """
def test_it(vmss, scale_set):
    vmss.publish("1.1.0")
    assert scale_set.wait_for_upgrade().completed


def test_behind():
    pass
"""
    result = run(pytester, tests, CONFTEST.replace("def pytest_vmss_after_batch", "def _") + hook)
    result.stdout.fnmatch_lines([told])
    if "pytest.exit" in leaves:
        assert result.ret == pytest.ExitCode.INTERRUPTED
        result.assert_outcomes(passed=1)
    else:
        result.assert_outcomes(passed=2, errors=1)
    assert "1.0.0 → 1.1.0  Completed" in result.stdout.str()
