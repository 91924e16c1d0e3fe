"""F3, F5: the rules of the Application Health extension, and what the lab reads of it."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pytest_vmss.errors import HypervisorError
from pytest_vmss.guest.agent import guest_time, read_file
from pytest_vmss.guest.extensions import find_handler
from pytest_vmss.guest.extensions.application_health import program_settings
from pytest_vmss.guest.in_guest.application_health import (
    Rules,
    document,
    judge,
    look,
    rules_of,
    tell,
)
from pytest_vmss.health import Observation, Tracker, parse_custom_metrics, read_report, worst
from pytest_vmss.model import ApplicationHealthSettings, Extension, Health
from tests.http_server import HttpServer

HEALTHY, UNHEALTHY, UNKNOWN, INITIALIZING = "Healthy", "Unhealthy", "Unknown", "Initializing"


def extension(version: str = "2.0", **settings: Any) -> Extension:
    return Extension(
        name="health",
        publisher="Microsoft.ManagedServices",
        type="ApplicationHealthLinux",
        type_handler_version=version,
        settings=settings,
    )


def check(version: str = "2.0", **settings: Any) -> list[str]:
    return find_handler("microsoft.managedservices", "applicationhealthlinux").check(
        extension(version, **settings)
    )


# Its settings.


def test_defaults_are_azures() -> None:
    rich = program_settings(extension(protocol="http", requestPath="health", numberOfProbes=3))
    assert rich == {
        "protocol": "http", "port": 80, "requestPath": "/health", "intervalInSeconds": 5,
        "numberOfProbes": 3, "gracePeriod": 15,
    }  # fmt: skip
    binary = program_settings(extension("1.0", protocol="TCP", port=22))
    assert binary == {"protocol": "tcp", "port": 22, "intervalInSeconds": 5, "numberOfProbes": 1}
    https = program_settings(extension(protocol="https", requestPath="/h", gracePeriod=600))
    assert (https["port"], https["gracePeriod"]) == (443, 600)


@pytest.mark.parametrize(
    ("version", "settings", "problem"),
    [
        ("2.0", {}, "protocol is required, and missing"),
        ("2.0", {"protocol": "udp"}, "protocol Input should be 'http', 'https' or 'tcp'"),
        ("2.0", {"protocol": "http"}, "the protocol http needs a requestPath"),
        ("2.0", {"protocol": "tcp"}, "the protocol tcp needs a port"),
        ("2.0", {"protocol": "tcp", "port": 1, "requestPath": "/"}, "takes no requestPath"),
        ("2.0", {"protocol": "tcp", "port": 0}, "greater than or equal to 1"),
        ("2.0", {"protocol": "tcp", "port": 1, "intervalInSeconds": 4}, "intervalInSeconds"),
        ("2.0", {"protocol": "tcp", "port": 1, "intervalInSeconds": 61}, "intervalInSeconds"),
        ("2.0", {"protocol": "tcp", "port": 1, "numberOfProbes": 25}, "numberOfProbes"),
        ("2.0", {"protocol": "tcp", "port": 1, "gracePeriod": 14401}, "gracePeriod"),
        ("1.0", {"protocol": "tcp", "port": 1, "gracePeriod": 60}, "needs typeHandlerVersion 2.0"),
        ("2.0", {"protocol": "http", "reqestPath": "/"}, "did you mean requestPath?"),
        ("2.0", {"protocol": "tcp", "port": 1, "cookie": 1}, "there are: protocol, port, request"),
    ],
)
def test_settings_out_of_range_are_told(
    version: str, settings: dict[str, Any], problem: str
) -> None:
    (told,) = check(version, **settings)
    assert problem in told


# The rules, as Azure has them (azure-arm.md 6.3).


def play(rules: Rules, seen: list[str], every: float = 5.0) -> list[str | None]:
    return [rules.observe(entry, every * index) for index, entry in enumerate(seen)]


def test_binary_states_need_consecutive_looks() -> None:
    rules = Rules(2, None, UNKNOWN, 0.0)
    assert play(rules, [HEALTHY, HEALTHY, UNHEALTHY, HEALTHY, UNHEALTHY, UNHEALTHY]) == [
        None, HEALTHY, HEALTHY, HEALTHY, HEALTHY, UNHEALTHY,
    ]  # fmt: skip


def test_initializing_ends_with_a_state() -> None:
    rules = Rules(2, 600.0, UNKNOWN, 0.0)
    assert play(rules, [UNKNOWN, UNKNOWN, UNHEALTHY, HEALTHY, HEALTHY]) == [
        INITIALIZING, INITIALIZING, INITIALIZING, INITIALIZING, HEALTHY,
    ]  # fmt: skip
    rules = Rules(2, 600.0, UNKNOWN, 0.0)
    assert play(rules, [UNHEALTHY, UNHEALTHY])[-1] == UNHEALTHY


def test_initializing_holds_until_the_grace_period_ends() -> None:
    http, tcp = Rules(3, 20.0, UNKNOWN, 0.0), Rules(30, 20.0, UNHEALTHY, 0.0)
    expected = [INITIALIZING] * 4
    assert play(http, [UNKNOWN] * 6) == [*expected, UNKNOWN, UNKNOWN]
    assert play(tcp, [HEALTHY] * 5) == [*expected, UNHEALTHY]
    # It never comes back.
    assert INITIALIZING not in play(http, [UNKNOWN, HEALTHY, UNKNOWN, HEALTHY, HEALTHY, HEALTHY])
    assert http.state == HEALTHY


@given(
    st.integers(1, 5),
    st.one_of(st.none(), st.floats(1, 300)),
    st.lists(st.sampled_from([HEALTHY, UNHEALTHY, UNKNOWN]), max_size=60),
)
def test_no_state_without_enough_equal_looks(
    probes: int, grace: float | None, seen: list[str]
) -> None:
    """Invariants: a state is backed by its last looks, and Initializing ends with its grace."""
    rules = Rules(probes, grace, UNKNOWN, 0.0)
    before = rules.state
    for index, entry in enumerate(seen):
        state = rules.observe(entry, 5.0 * index)
        expired = grace is not None and 5.0 * index >= grace
        if state != before and not (before == INITIALIZING and expired):
            assert seen[max(index + 1 - probes, 0) : index + 1] == [state] * probes
        if expired:
            assert state != INITIALIZING
        before = state


# The looks.


class Application(HttpServer):
    """An application over HTTP."""

    def __init__(self) -> None:
        self.answer: tuple[int, bytes] = (200, b"")
        super().__init__(lambda _: self.answer)

    def settings(self, version: str = "2.0", protocol: str = "http") -> dict[str, Any]:
        path = {} if protocol == "tcp" else {"requestPath": "/health"}
        return program_settings(extension(version, protocol=protocol, port=self.port, **path))


@pytest.fixture
def application() -> Iterator[Application]:
    made = Application()
    yield made
    made.close()


@pytest.mark.parametrize(
    ("answer", "rich", "binary"),
    [
        ((200, b'{"ApplicationHealthState": "Healthy"}'), HEALTHY, HEALTHY),
        ((299, b'{"ApplicationHealthState": "Healthy"}'), HEALTHY, UNHEALTHY),
        ((200, b'{"ApplicationHealthState": "Unhealthy"}'), UNHEALTHY, HEALTHY),
        ((200, b'{"ApplicationHealthState": "Poorly"}'), UNKNOWN, HEALTHY),
        ((200, b'{"ApplicationHealthState": 1}'), UNKNOWN, HEALTHY),
        ((200, b'{"state": "Healthy"}'), UNKNOWN, HEALTHY),
        ((200, b'["Healthy"]'), UNKNOWN, HEALTHY),
        ((200, b"\xff\xfe"), UNKNOWN, HEALTHY),
        ((200, b"OK"), UNKNOWN, HEALTHY),
        ((200, b"[" * 60_000), UNKNOWN, HEALTHY),  # the program goes on, and its state with it
        ((500, b'{"ApplicationHealthState": "Healthy"}'), UNKNOWN, UNHEALTHY),
    ],
)
def test_what_an_answer_means(
    application: Application, answer: tuple[int, bytes], rich: str, binary: str
) -> None:
    application.answer = answer
    assert look(application.settings())[0] == rich
    assert look(application.settings("1.0"))[0] == binary
    assert look(application.settings(protocol="tcp"))[0] == HEALTHY


def test_an_application_that_is_not_there(application: Application) -> None:
    rich, binary = application.settings(), application.settings("1.0")
    tcp = application.settings(protocol="tcp")
    application.close()
    assert look(rich)[0] == UNKNOWN
    assert look(binary)[0] == UNHEALTHY
    state, words, _ = look(tcp)
    assert state == UNHEALTHY
    assert "refused" in words


def test_custom_metrics_are_passed_on(application: Application) -> None:
    """D5."""
    metrics = '{"rollingUpgrade": {"PhaseOrderingNumber": 3, "SkipUpgrade": "true"}}'
    body = {"ApplicationHealthState": "Healthy", "customMetrics": metrics}
    application.answer = (200, json.dumps(body).encode())
    state, words, told = look(application.settings())
    assert told == metrics
    seen = read_report(document(state, words, told, "b", 0), now=0, settings=SETTINGS)
    assert seen.healthy
    found = parse_custom_metrics(seen.custom_metrics)
    assert (found.phase, found.skip) == (3, True)
    (entry,) = json.loads(document(state, words, "{broken", "b", 0))
    statuses = {part["name"]: part["status"] for part in entry["status"]["substatus"]}
    assert statuses == {
        "AppHealthStatus": "success", "ApplicationHealthState": "success", "CustomMetrics": "error",
    }  # fmt: skip
    body["customMetrics"] = "[" * 30_000
    application.answer = (200, json.dumps(body).encode())
    state, words, told = look(application.settings())
    assert state == HEALTHY
    assert '"status": "error"' in document(state, words, told, "b", 0)


def test_a_full_disk_does_not_keep_a_report_from_the_port(tmp_path: Path) -> None:
    """F3: nor does it end the program."""
    (tmp_path / "full").touch()
    port = tmp_path / "port"
    port.touch()
    tell(str(tmp_path / "full/0.status"), str(port), "Healthy")
    assert port.read_text() == "\nHealthy\n"
    tell(str(tmp_path / "new/0.status"), str(tmp_path / "no-port"), "Healthy")
    assert (tmp_path / "new/0.status").read_text() == "Healthy"


# What the lab reads.

SETTINGS = ApplicationHealthSettings(protocol="http", request_path="/", interval_in_seconds=5)
SECOND = 10**9


@pytest.mark.parametrize("state", [HEALTHY, UNHEALTHY, UNKNOWN, INITIALIZING])
def test_a_report_is_read_as_it_was_written(state: str) -> None:
    seen = read_report(document(state, "words", None, "boot", 0), now=SECOND, settings=SETTINGS)
    assert seen == Observation(Health(state), "words", "boot")


def test_a_report_that_says_nothing_is_unknown() -> None:
    def read(text: str, age: float = 0.0) -> Observation:
        return read_report(text, now=int(age * SECOND), settings=SETTINGS)

    assert read(document(None, "one look", None, "b", 0)).health is Health.UNKNOWN
    for broken in ("", "[]", "{}", '[{"status": 1}]', "nonsense", "[1, 2]"):
        assert read(broken).health is Health.UNKNOWN
        assert "cannot be read" in read(broken).detail
    healthy = document(HEALTHY, "well", None, "b", 0)
    assert read(healthy, 24).healthy
    old = read(healthy, 26)
    assert old.health is Health.UNKNOWN
    assert "its last report is 26 s old" in old.detail
    ahead = document(HEALTHY, "well", None, "b", 2**62)
    assert read(ahead).health is Health.UNKNOWN, "it would be believed for a century"
    assert "in the future" in read(ahead).detail
    assert read(document(HEALTHY, "well", None, "b", 20 * SECOND)).healthy, "a clock was set"


def test_the_rules_follow_the_settings() -> None:
    assert (
        rules_of(program_settings(extension(protocol="tcp", port=1)), 0.0).observe(UNHEALTHY, 5.0)
        == UNHEALTHY
    )
    assert rules_of(program_settings(extension("1.0", protocol="tcp", port=1)), 0.0).state is None


# Files over the guest agent.


def agent(files: dict[str, bytes], log: list[str]) -> Callable[[str], str]:
    def ask(command: str) -> str:
        call = json.loads(command)
        log.append(call["execute"])
        if call["execute"] == "guest-file-open":
            if call["arguments"]["path"] not in files:
                raise HypervisorError("No such file or directory")
            return '{"return": 1000}'
        if call["execute"] == "guest-file-read":
            raise HypervisorError("gone")
        return '{"return": {}}'

    return ask


def test_handles_of_the_agent_are_closed() -> None:
    log: list[str] = []
    with pytest.raises(HypervisorError, match="gone"):
        read_file(agent({"/x": b""}, log), "/x")
    assert log == ["guest-file-open", "guest-file-read", "guest-file-close"]
    with pytest.raises(HypervisorError, match="No such file"):
        read_file(agent({}, log), "/x")
    assert guest_time(lambda _: '{"return": 5}') == 5


# The tracker, and what several sources say together.


def test_consecutive_observations_make_a_state() -> None:
    """F5."""
    tracker = Tracker(2)
    good, bad = Observation(Health.HEALTHY, "good"), Observation(Health.UNHEALTHY, "bad")
    assert tracker.observe(good) is None
    assert tracker.observe(bad) is None
    assert tracker.observe(good) is None
    assert tracker.observe(good) is Health.HEALTHY
    assert tracker.observe(bad) is Health.HEALTHY
    assert tracker.observe(bad) is Health.UNHEALTHY


def test_another_boot_begins_anew() -> None:
    """F5: stale answers from before never count."""
    tracker = Tracker(2)
    first, second = (Observation(Health.HEALTHY, "", boot) for boot in "ab")
    assert [tracker.observe(seen) for seen in (first, first, second, second)] == [
        None, Health.HEALTHY, None, Health.HEALTHY,
    ]  # fmt: skip


def test_an_instance_is_as_healthy_as_the_least_of_its_sources() -> None:
    seen = {
        "a": Observation(Health.HEALTHY, "fine"),
        "b": Observation(Health.UNKNOWN, "silent"),
        "c": Observation(Health.INITIALIZING, "starts"),
    }
    assert worst(seen) == Observation(Health.UNKNOWN, "b: silent; c: starts")
    assert worst({**seen, "d": Observation(Health.UNHEALTHY, "ill")}).health is Health.UNHEALTHY
    assert worst({"a": seen["a"]}) == seen["a"]


def test_a_state_that_is_quoted_in_part_says_so() -> None:
    """M5: by that mark, half of a secret is known."""
    body = json.dumps({"ApplicationHealthState": "x" * 45 + "s3cr3t"}).encode()
    _, told, _ = judge({"gracePeriod": 0}, 200, body)
    assert told == f"ApplicationHealthState is '{'x' * 45}s3cr…'"
