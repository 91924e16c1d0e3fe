"""R2: a hostile guest harms no other instance's operation, and no terminal."""

from __future__ import annotations

import base64
import io
import json
from collections.abc import Callable

import pytest
from rich.console import Console

from pytest_vmss.api.backends import reported_metrics
from pytest_vmss.errors import CloudInitError, VmssError
from pytest_vmss.guest.boot_facts import BootFacts
from pytest_vmss.model import Health
from pytest_vmss.report import LiveView, instance_table
from pytest_vmss.simulation.guest import SimulatedGuest
from tests.models import web_model, with_application_health
from tests.simulation.conftest import SimulatedLab

Lie = Callable[[str, str], str]


def _file(content: bytes) -> Lie:
    answer = json.dumps({"return": {"buf-b64": base64.b64encode(content).decode()}})
    return lambda asked, honest: answer if asked == "guest-file-read" else honest


def _told(asked: str, answer: str) -> Lie:
    return lambda what, honest: answer if what == asked else honest


def _status(nanoseconds: str) -> bytes:
    part = '{"name": "ApplicationHealthState", "status": "success", "formattedMessage": {"message": "Healthy"}}'
    return (
        f'[{{"bootId": "b", "nanoseconds": {nanoseconds}, "status": {{"status": "success", '
        f'"substatus": [{part}]}}}}]'
    ).encode()


_LIES: dict[str, Lie] = {
    "infinite": _file(_status("1e999")),
    "huge": _file(_status("1" + "0" * 400)),
    "a huge float": _file(_status("1e300")),
    "deep": _file(b"[" * 100_000),
    "no UTF-8": _file(b"\xff\xfe\xfd"),
    "a list": _file(b'[{"status": [1]}]'),
    "no file": _told("guest-file-read", '{"return": {}}'),
    "no base64": _told("guest-file-read", '{"return": {"buf-b64": "abc"}}'),
    "no return": _told("guest-file-read", '{"x": 1}'),
    "no JSON": _told("guest-file-open", "nonsense"),
    "a handle": _told("guest-file-open", '{"return": {"a": []}}'),
    "no time": _told("guest-get-time", '{"return": null}'),
    "no end of time": _told("guest-get-time", '{"return": 1e999}'),
}


@pytest.mark.parametrize("lie", _LIES.values(), ids=_LIES)
def test_a_hostile_agent_makes_its_instance_unknown_and_no_other(
    lab: SimulatedLab, lie: Lie
) -> None:
    """F3, D7: the others are upgraded, and know that they are healthy."""
    web = lab.start(with_application_health(web_model(capacity=3), "2.0"), {})
    honest, bad = lab.simulated.agent, f"vmss-{lab.identity.id}-web_1"

    def agent(name: str, command: str) -> str:
        answer = honest(name, command)
        return lie(json.loads(command)["execute"], answer) if name == bad else answer

    lab.simulated.agent = agent  # type: ignore[method-assign]
    lab.environment.metrics = reported_metrics
    seen = web[1].observations()["Application Health extension"]
    assert seen.health is Health.UNKNOWN
    assert seen.detail.startswith(("its report cannot be read: ", "it reports nothing: "))
    assert [web[0].health(), web[2].health()] == [Health.HEALTHY] * 2
    lab.publish("1.1.0")
    lab.run_due()
    upgrade = web.history()[0]
    assert upgrade.record.ended is not None
    assert not web.unfinished


@pytest.mark.parametrize(
    ("version", "kernel"),
    [
        ("1.0.0 \x1b]0;PWNED\x07\x1b[2J", "6.1"),
        ("1.0.0", "6.1[link=http://evil]x[/link]"),
        ("1.0.0[/x]", "6.1"),
        ("1.0.0\ud800\u202e", "6.1\u009b2J"),
    ],
)
def test_what_a_guest_calls_itself_commands_no_terminal(
    lab: SimulatedLab, monkeypatch: pytest.MonkeyPatch, version: str, kernel: str
) -> None:
    """J4: nor is it read as rich's markup."""
    monkeypatch.setattr(
        SimulatedGuest, "wait_boot", lambda _, __: BootFacts("boot-1", kernel, version)
    )
    screen = Console(file=io.StringIO(), force_terminal=True, width=250)
    with LiveView(lab.store, screen):
        web = lab.start_web(1)
    screen.print(instance_table(web))
    screen.print(LiveView(lab.store, screen)._table())
    told = screen.file.getvalue()  # type: ignore[attr-defined]
    for command in ("\x1b]0;", "\x1b]8;", "\x1b[2J", "\u009b", "\u202e"):
        assert command not in told
    assert "1.0.0" in told


def test_what_cloud_init_says_commands_no_terminal(
    lab: SimulatedLab, monkeypatch: pytest.MonkeyPatch
) -> None:
    """J1, L5: neither in the exception, nor in events, nor in explain()."""

    def bad(guest: SimulatedGuest) -> None:
        raise CloudInitError(
            "cloud-init ended in error: \x1b]0;PWNED\x07 \x1b[8m hidden",
            instance=guest.name, errors=("x",), console_tail="\x1b[2Jtail",
        )  # fmt: skip

    monkeypatch.setattr(SimulatedGuest, "wait_cloud_init", bad)
    screen = Console(file=io.StringIO(), force_terminal=True, width=200)
    with LiveView(lab.store, screen), pytest.raises(VmssError, match="hidden") as failed:
        lab.start_web(1)
    events = "".join(event.message for event in lab.store.events())
    for told in (str(failed.value), events):
        assert "\x1b" not in told
    assert "hidden" in events
    assert "\x1b]0;" not in screen.file.getvalue()  # type: ignore[attr-defined]
