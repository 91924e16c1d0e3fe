"""O1–O3: sets of images that look for Azure, through the real engine."""

from __future__ import annotations

import contextlib
import json
import re
from collections.abc import Callable, Iterator
from datetime import timedelta
from typing import Any

import pytest

from pytest_vmss.errors import (
    HostError,
    InterruptedOperationError,
    ModelError,
    NotModelledWarning,
)
from pytest_vmss.guest_platform.config import PlatformFiles
from pytest_vmss.guest_platform.events_file import Approvals, ScheduledEvent, publish, read_events
from pytest_vmss.simulation.guest import Behaviour
from pytest_vmss.steps import notice
from pytest_vmss.store import Outcome
from tests.models import LOAD_BALANCER, web_model
from tests.simulation.conftest import SimulatedLab


def told(lab: SimulatedLab, number: int) -> dict[str, str]:
    """What the metadata service tells an instance of the image it runs."""
    machine = lab.simulated.defined[f"vmss-{lab.environment.lab_id}-web_{number}"]
    assert machine.platform is not None
    compute = json.loads(machine.platform.document)["compute"]
    assert compute["name"] == f"web_{number}"
    image: dict[str, str] = compute["storageProfile"]["imageReference"]
    return image


def test_a_set_is_upgraded_and_rolled_back(lab: SimulatedLab) -> None:
    """O1, O3, G1: each OS disk is told the version that it was made from."""
    lab.gallery().define("web", provisioning="Azure")
    web = lab.start(web_model(capacity=3), LOAD_BALANCER)
    first = web[0]
    assert first.generation.cloud_instance_id == first.record.uuid
    assert first.generation.host_key == ""  # the guest makes its own
    assert [told(lab, n)["exactVersion"] for n in range(3)] == ["1.0.0"] * 3
    assert lab.roll(web, "1.1.0").completed
    assert [told(lab, n)["exactVersion"] for n in range(3)] == ["1.1.0"] * 3
    faulted = lab.roll(web, "1.2.0", Behaviour.UNHEALTHY)
    assert faulted.faulted
    assert web.is_healthy()
    assert [told(lab, n)["exactVersion"] for n in range(3)] == ["1.1.0"] * 3


@pytest.mark.parametrize(
    ("behaviour", "code", "words"),
    [
        (Behaviour.NOT_READY, "OSProvisioningClientError", "could not be provisioned"),
        (Behaviour.SILENT, "OSProvisioningTimedOut", "did not report that it is provisioned"),
        (
            Behaviour.DVD_UNREADABLE, "OSProvisioningClientError",
            r"custom data did not run: .* \(DataSourceAzure \[seed=IMDS\]\)",
        ),
    ],
)  # fmt: skip
def test_a_version_that_is_not_provisioned_is_rolled_back(
    lab: SimulatedLab, behaviour: Behaviour, code: str, words: str
) -> None:
    """O2, G1: each failure is told apart."""
    lab.gallery().define("web", provisioning="Azure")
    web = lab.start(web_model(capacity=1), LOAD_BALANCER)
    upgrade = lab.roll(web, "1.1.0", behaviour)
    assert upgrade.outcomes["web_0"] is Outcome.ROLLED_BACK, upgrade.explain()
    assert upgrade.errors["web_0"].code == code
    assert re.search(words, upgrade.errors["web_0"].message)
    assert web.is_healthy()
    assert web[0].image_version == "1.0.0"


@pytest.mark.parametrize("custom_data", [None, ""])
def test_without_custom_data_the_dvd_may_stay_unread(
    lab: SimulatedLab, custom_data: str | None
) -> None:
    """O2: the metadata service has all the rest."""
    lab.gallery().define("web", provisioning="Azure")
    body = web_model(capacity=1)
    body["properties"]["virtualMachineProfile"]["osProfile"]["customData"] = custom_data
    web = lab.start(body, LOAD_BALANCER)
    assert lab.roll(web, "1.1.0", Behaviour.DVD_UNREADABLE).completed


def test_no_checkpoint_is_made_of_such_a_set(lab: SimulatedLab) -> None:
    """O1, L1: it is booted, and an event says why."""
    lab.gallery().define("web", provisioning="Azure")
    lab.publish("1.0.0")
    web = lab.create(web_model(capacity=1), load_balancer=LOAD_BALANCER, pristine=True)
    assert web.is_healthy()
    assert any("look for Azure" in event.message for event in lab.store.events())


def test_other_sets_stay_as_they_are(lab: SimulatedLab) -> None:
    """O1: without a platform, and with a host key from the seed."""
    web = lab.start_web(1)
    machine = lab.simulated.defined[f"vmss-{lab.environment.lab_id}-web_0"]
    assert machine.platform is None
    assert web[0].generation.host_key.startswith("ssh-ed25519 ")


# Scheduled events (O4).


def with_notice(seconds: int = 900) -> dict[str, Any]:
    body = web_model(capacity=2)
    body["properties"]["virtualMachineProfile"]["scheduledEventsProfile"] = {
        "osImageNotificationProfile": {"enable": True, "notBeforeTimeout": f"PT{seconds}S"}
    }
    return body


@pytest.fixture
def events(monkeypatch: pytest.MonkeyPatch) -> list[ScheduledEvent]:
    """All events that guests were told of."""
    told: list[ScheduledEvent] = []

    def keep(files: PlatformFiles, *published: ScheduledEvent) -> None:
        told.extend(published)
        publish(files, *published)

    monkeypatch.setattr(notice, "publish", keep)
    return told


def said(lab: SimulatedLab) -> list[str]:
    return [event.message for event in lab.store.events() if event.kind == "scheduled event"]


def test_a_silent_application_is_upgraded_after_the_time_out(
    lab: SimulatedLab, events: list[ScheduledEvent]
) -> None:
    """O4: and has its time however long the others' limits are."""
    lab.gallery().define("web", provisioning="Azure")
    web = lab.start(with_notice(), LOAD_BALANCER)
    begun = lab.clock.monotonic()
    upgrade = lab.roll(web, "1.1.0")
    assert upgrade.completed, upgrade.explain()
    assert lab.clock.monotonic() - begun > 2 * 900
    assert said(lab) == [
        "Reimage: the guest may approve it within 900 s",
        "Reimage: not approved in time; it begins anyway",
    ] * 2  # fmt: skip
    assert [(event.instance, event.started) for event in events] == [
        ("web_0", False), ("web_0", True), ("web_1", False), ("web_1", True),
    ]  # fmt: skip


@pytest.fixture
def approving(monkeypatch: pytest.MonkeyPatch) -> None:
    """The application approves each event as soon as it sees it."""

    def approve(files: PlatformFiles, *published: ScheduledEvent) -> None:
        publish(files, *published)
        for event in published:
            Approvals(files.approvals).add(event.event_id)

    monkeypatch.setattr(notice, "publish", approve)


@pytest.mark.usefixtures("approving")
def test_an_application_that_approves_is_upgraded_at_once(lab: SimulatedLab) -> None:
    """O4."""
    lab.gallery().define("web", provisioning="Azure")
    web = lab.start(with_notice(), LOAD_BALANCER)
    begun = lab.clock.monotonic()
    assert lab.roll(web, "1.1.0").completed
    assert lab.clock.monotonic() - begun < 900
    assert said(lab)[1::2] == ["Reimage: approved by the guest"] * 2


def fail(*_: object) -> bool:
    raise HostError("the host has a fault")


@contextlib.contextmanager
def interrupted(
    function: str = "is_approved", fault: Callable[..., object] = fail
) -> Iterator[None]:
    """The host interrupts an operation while an event is pending, or in another function."""
    with pytest.MonkeyPatch.context() as broken:
        broken.setattr(notice, function, fault)
        with pytest.raises(InterruptedOperationError):
            yield


def test_an_event_that_is_pending_is_the_same_after_a_resume(
    lab: SimulatedLab, events: list[ScheduledEvent]
) -> None:
    """O4, M1: with the same id and the same end."""
    lab.gallery().define("web", provisioning="Azure")
    web = lab.start(with_notice(), LOAD_BALANCER)
    lab.publish("1.1.0")
    with interrupted():
        lab.run_due()
    lab.clock.sleep(300)
    resumed = web.resume()
    assert resumed is not None
    assert resumed.completed
    first, again = events[:2]
    assert first.event_id == again.event_id
    assert abs((first.not_before - again.not_before).total_seconds()) < 1
    assert said(lab)[0].startswith("Reimage: the guest may approve")
    assert said(lab)[1].startswith("Reimage: not approved in time")


def test_an_event_that_has_started_does_not_start_again_after_a_resume(
    lab: SimulatedLab, events: list[ScheduledEvent]
) -> None:
    """O4, M1: the guest has approved it, or had its time; killed before that is journaled."""
    lab.gallery().define("web", provisioning="Azure")
    web = lab.start(with_notice(), LOAD_BALANCER)

    def killed(files: PlatformFiles, *published: ScheduledEvent) -> None:
        events.extend(published)
        publish(files, *published)
        if published[0].started:
            fail()

    lab.publish("1.1.0")
    with interrupted("publish", killed):
        lab.run_due()
    begun = lab.clock.monotonic()
    assert web.resume() is not None
    assert 900 <= lab.clock.monotonic() - begun < 2 * 900
    assert [(event.instance, event.started) for event in events] == [
        ("web_0", False), ("web_0", True), ("web_1", False), ("web_1", True),
    ]  # fmt: skip


def test_a_clock_that_was_set_back_does_not_lengthen_the_notice(
    lab: SimulatedLab, events: list[ScheduledEvent], monkeypatch: pytest.MonkeyPatch
) -> None:
    """O4, Q2: 15 minutes at most, whatever the time of day was when the event was published."""
    lab.gallery().define("web", provisioning="Azure")
    web = lab.start(with_notice(), LOAD_BALANCER)
    lab.publish("1.1.0")
    with interrupted():
        lab.run_due()
    now = lab.clock.now
    monkeypatch.setattr(lab.clock, "now", lambda: now() - timedelta(hours=5))
    assert web.resume() is not None
    first, again = events[:2]
    assert first.event_id == again.event_id
    assert again.not_before == first.not_before - timedelta(hours=5)


def test_without_the_profile_nobody_is_told(
    lab: SimulatedLab, events: list[ScheduledEvent]
) -> None:
    """O4."""
    lab.gallery().define("web", provisioning="Azure")
    web = lab.start_web(1)
    assert lab.roll(web, "1.1.0").completed
    assert not events


def test_other_images_say_that_nobody_is_told(lab: SimulatedLab) -> None:
    """O4, A6."""
    with pytest.warns(NotModelledWarning, match="osImageNotificationProfile.*metadata service"):
        web = lab.start(with_notice(), LOAD_BALANCER)
    begun = lab.clock.monotonic()
    assert lab.roll(web, "1.1.0").completed
    assert lab.clock.monotonic() - begun < 900


def with_terminate_notice(body: dict[str, Any], minutes: int = 5) -> dict[str, Any]:
    body["properties"]["virtualMachineProfile"]["scheduledEventsProfile"] = {
        "terminateNotificationProfile": {"enable": True, "notBeforeTimeout": f"PT{minutes}M"}
    }
    return body


def test_an_instance_is_told_that_it_is_deleted(
    lab: SimulatedLab, events: list[ScheduledEvent]
) -> None:
    """O4, A2: by scaling in; it has its time, and an upgrade is not announced."""
    lab.gallery().define("web", provisioning="Azure")
    web = lab.start(with_terminate_notice(web_model(capacity=2)), LOAD_BALANCER)
    assert lab.roll(web, "1.1.0").completed
    assert not events
    begun = lab.clock.monotonic()
    web.scale(1)
    assert 300 <= lab.clock.monotonic() - begun < 400
    assert [(event.event_type, event.instance, event.started) for event in events] == [
        ("Terminate", "web_1", False), ("Terminate", "web_1", True),
    ]  # fmt: skip
    assert events[0].wire()["EventType"] == "Terminate"
    assert said(lab) == [
        "Terminate: the guest may approve it within 300 s",
        "Terminate: not approved in time; it begins anyway",
    ]
    assert [instance.name for instance in web] == ["web_0"]


@pytest.mark.usefixtures("approving")
def test_an_instance_that_approves_its_end_is_deleted_at_once(lab: SimulatedLab) -> None:
    """O4: with its set too; one that is stopped is not told."""
    lab.gallery().define("web", provisioning="Azure")
    web = lab.start(with_terminate_notice(web_model(capacity=2)), LOAD_BALANCER)
    web.stop([web[1].instance_id])
    begun = lab.clock.monotonic()
    web.delete()
    assert lab.clock.monotonic() - begun < 60
    assert said(lab) == [
        "Terminate: the guest may approve it within 300 s", "Terminate: approved by the guest",
    ]  # fmt: skip


def test_an_instance_that_is_replaced_is_told_of_its_end(
    lab: SimulatedLab, events: list[ScheduledEvent]
) -> None:
    """O4, D9: the one that goes, once the one that comes is healthy."""
    lab.gallery().define("web", provisioning="Azure")
    body = with_terminate_notice(web_model(capacity=2, policy={"maxSurge": True}))
    web = lab.start(body, LOAD_BALANCER)
    upgrade = lab.roll(web, "1.1.0")
    assert upgrade.completed, upgrade.explain()
    assert [event.instance for event in events if event.started] == ["web_0", "web_1"]
    assert [instance.name for instance in web] == ["web_2", "web_3"]


def test_an_instance_whose_replacement_became_unhealthy_stays(lab: SimulatedLab) -> None:
    """O4, D9: while it was told of its end, of which it is told no longer."""
    lab.gallery().define("web", provisioning="Azure")
    body = with_terminate_notice(web_model(capacity=2, policy={"maxSurge": True}))
    web = lab.start(body, LOAD_BALANCER)
    lab.publish("1.1.0")
    with interrupted():
        lab.run_due()
    files = PlatformFiles(lab.paths.platform(web[0].record.uuid))
    assert [event["EventType"] for event in read_events(files.events)["Events"]] == ["Terminate"]
    lab.sick.add("web_2")
    upgrade = web.resume()
    assert upgrade is not None
    assert upgrade.outcomes["web_0"] is Outcome.ROLLED_BACK
    assert "no longer healthy" in upgrade.errors["web_0"].message
    assert not read_events(files.events)["Events"]
    assert [instance.name for instance in web] == ["web_0", "web_1"]
    assert web.is_healthy()


def test_a_deletion_whose_notice_was_interrupted_goes_on(
    lab: SimulatedLab, events: list[ScheduledEvent]
) -> None:
    """O4, M1: with the same event and the same end."""
    lab.gallery().define("web", provisioning="Azure")
    web = lab.start(with_terminate_notice(web_model(capacity=2)), LOAD_BALANCER)
    with interrupted():
        web.scale(1)
    lab.clock.sleep(200)
    begun = lab.clock.monotonic()
    assert web.resume() is not None
    assert lab.clock.monotonic() - begun < 150
    assert len({event.event_id for event in events}) == 1
    assert [instance.name for instance in web] == ["web_0"]


@pytest.mark.parametrize("minutes", [4, 16])
def test_azures_limits_of_a_terminate_notice(lab: SimulatedLab, minutes: int) -> None:
    """O4, A6."""
    with pytest.raises(ModelError, match="terminateNotificationProfile"):
        lab.create(with_terminate_notice(web_model(), minutes), load_balancer=LOAD_BALANCER)


def test_other_images_say_that_nobody_is_told_of_the_end(lab: SimulatedLab) -> None:
    """O4, A6."""
    body = with_terminate_notice(web_model(capacity=1))
    with pytest.warns(NotModelledWarning, match="terminateNotificationProfile.*metadata service"):
        web = lab.start(body, LOAD_BALANCER)
    begun = lab.clock.monotonic()
    web.delete()
    assert lab.clock.monotonic() - begun < 60
