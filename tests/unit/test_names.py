"""M6, A6: which names and ports reach XML, paths, guests and HAProxy."""

from __future__ import annotations

import copy
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydantic import TypeAdapter, ValidationError

from pytest_vmss.errors import ModelError
from pytest_vmss.guest.extensions import find_handler, known_types
from pytest_vmss.model import Extension, check_model, host_ports, load_document
from pytest_vmss.model.arguments import _UNIT
from pytest_vmss.model.names import PlainText
from pytest_vmss.model.rules import _check_balancer
from tests.models import LOAD_BALANCER, application_health, web_model

CONTROL = ["\n", "\r", "\0", "\x1b", "\x7f", "\x85", "\u2028"]
WRONG = ["", "..", ".", "a/b", "../x", "a b", " web", "web ", "web\n", "\nweb", "ä", "a:b", "a$b"]


def changed(body: dict[str, Any], path: str, value: object) -> dict[str, Any]:
    body = copy.deepcopy(body)
    found: Any = body
    *parents, last = path.split(".")
    for part in parents:
        found = found[int(part) if part.isdigit() else part]
    found[last] = value
    return body


PROFILE = "properties.virtualMachineProfile"
EXTENSION = f"{PROFILE}.extensionProfile.extensions.0"


def of_model(path: str, value: object) -> None:
    load_document(changed(web_model(), path, value), load_balancer=LOAD_BALANCER)


def of_balancer(path: str, value: object) -> None:
    load_document(web_model(), load_balancer=changed(LOAD_BALANCER, path, value))


@pytest.mark.parametrize("value", [*WRONG, *(f"a{char}b" for char in CONTROL), "w" * 81])
def test_names_are_checked_before_anything_is_made(value: str) -> None:
    """The error names the path and Azure's code."""
    for take, path, told in (
        (of_model, "name", "$.name"),
        (of_model, f"{PROFILE}.osProfile.computerNamePrefix", "osProfile.computerNamePrefix"),
        (of_model, f"{PROFILE}.osProfile.adminUsername", "osProfile.adminUsername"),
        (of_model, f"{EXTENSION}.name", "extensions[0].name"),
        (of_model, f"{EXTENSION}.properties.typeHandlerVersion", "[0].typeHandlerVersion"),
        (of_balancer, "properties.loadBalancingRules.0.name", "$.loadBalancingRules[0].name"),
    ):
        with pytest.raises(ModelError) as refused:
            take(path, value)
        (problem,) = refused.value.problems
        assert problem.path.endswith(told)
        assert problem.code == "InvalidParameter"


@pytest.mark.parametrize("name", ["web", "web.lock", "Web_1", "0", "w" * 64, "_x_"])
def test_what_azure_takes_for_a_sets_name(name: str) -> None:
    of_model("name", name)


@pytest.mark.parametrize("char", CONTROL)
def test_nothing_that_is_shown_or_configured_holds_control_characters(char: str) -> None:
    text = f"/a{char}    server evil 1.2.3.4:80"
    for take, path in (
        (of_balancer, "name"),
        (of_balancer, "properties.probes.0.name"),
        (of_balancer, "properties.probes.0.properties.requestPath"),
        (of_model, f"{EXTENSION}.properties.publisher"),
        (of_model, f"{EXTENSION}.properties.type"),
    ):
        with pytest.raises(ModelError, match="InvalidParameter"):
            take(path, text)


@pytest.mark.parametrize("path", ["/a b", "/ä", "/a\tb", "/" + "x" * 1024])
def test_request_paths_are_encoded(path: str) -> None:
    """F2, F3: of the probe, and of the Application Health extension."""
    with pytest.raises(ModelError, match=r"\$\.probes\[0\]\.requestPath"):
        of_balancer("properties.probes.0.properties.requestPath", path)
    entry = application_health(requestPath=path)
    extension = Extension.model_validate({"name": "health", **entry["properties"]})
    (told,) = find_handler("Microsoft.ManagedServices", "ApplicationHealthLinux").check(extension)
    assert told.startswith("requestPath ")


def test_digits_are_ascii() -> None:
    with pytest.raises(ModelError, match="typeHandlerVersion"):
        of_model(f"{EXTENSION}.properties.typeHandlerVersion", "٢.١")
    assert not _UNIT.fullmatch("ü")


# Ports.


def test_two_guest_ports_never_share_one_of_the_host() -> None:
    assert host_ports([22, 80]) == {22: 10022, 80: 10080}
    assert host_ports([80, 10080, 22, 10022]) == {22: 20022, 80: 20080, 10022: 10022, 10080: 10080}
    assert host_ports([10080, 80, 20080]) == {80: 30080, 10080: 10080, 20080: 20080}
    every = [80, *range(10080, 65536, 10000)]
    assert len(set(host_ports(every).values())) == len(every)


@given(st.sets(st.integers(1, 65535) | st.integers(1, 1023), max_size=30))
def test_the_hosts_ports_are_distinct_unprivileged_and_the_same_each_time(ports: set[int]) -> None:
    given_ports = host_ports(ports)
    assert set(given_ports) == ports
    assert len(set(given_ports.values())) == len(ports)
    assert all(1024 <= port <= 65535 for port in given_ports.values())
    assert given_ports == host_ports(sorted(ports, reverse=True))


def rules(*entries: tuple[str, int, str]) -> list[str]:
    balancer = copy.deepcopy(LOAD_BALANCER)
    (first,) = balancer["properties"]["loadBalancingRules"]
    balancer["properties"]["loadBalancingRules"] = [
        {
            "name": name,
            "properties": {**first["properties"], "frontendPort": port, "protocol": kind},
        }
        for name, port, kind in entries
    ]
    document = load_document(web_model(), load_balancer=balancer)
    problems = check_model(
        document.model, probe=document.probe, sizes={}, extension_types=known_types(),
        balancer=document.balancer,
    )  # fmt: skip
    assert [str(p) for p in problems] == [
        str(p) for p in _check_balancer(document.model, document.balancer)
    ]
    return [str(problem) for problem in problems]


def test_frontends_that_would_share_a_port_are_refused() -> None:
    """F2: before anything is made, and not when HAProxy starts."""
    assert rules(("a", 80, "Tcp"), ("b", 10081, "Tcp")) == []
    assert rules(("a", 80, "Tcp"), ("b", 10080, "Udp")) == []
    (told,) = rules(("a", 80, "Tcp"), ("b", 10080, "Tcp"))
    assert "the frontend ports 80 and 10080 would both be port 10080 of the host" in told
    (told,) = rules(("a", 80, "Tcp"), ("A", 81, "Tcp"))
    assert "2 rules have the name 'a'" in told


@pytest.mark.parametrize(
    "text",
    ["a\n", "\x1b[1m", "\x9b", "\u2028", "\u202e", "\u2066x", "\u200b", "\ue000", "\U000e0001"],
)
def test_texts_that_are_shown_hold_nothing_that_is_not_seen(text: str) -> None:
    """R2: bidi and invisible characters make a name look like another one."""
    shown = TypeAdapter(PlainText)
    with pytest.raises(ValidationError):
        shown.validate_python(text)
    for plain in ("", "Microsoft.Azure", "Grüße, 日本語 – 1 €"):
        assert shown.validate_python(plain) == plain
