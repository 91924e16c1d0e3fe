"""E4, H3, C8: extensions in their order, and what becomes of those behind a failed one."""

from __future__ import annotations

from typing import Any

import pytest

from pytest_vmss.api.scale_set import ScaleSet
from pytest_vmss.errors import ModelError, ProvisioningError
from pytest_vmss.guest.extensions import Handler, Target, register, registry
from pytest_vmss.health import RollingUpgradeMetrics
from pytest_vmss.model import Extension, Health
from pytest_vmss.model.extension_result import ExtensionResult
from pytest_vmss.simulation.guest import Behaviour, SimulatedGuest
from pytest_vmss.store import Outcome
from tests.models import LOAD_BALANCER, custom_script, web_model, with_application_health
from tests.simulation.conftest import SimulatedLab


def script(name: str, *after: str, command: str = "true", **fields: Any) -> dict[str, Any]:
    return custom_script(name, *after, **{"settings": {"commandToExecute": command}, **fields})


def body_with(*extensions: dict[str, Any], capacity: int = 1, **profile: Any) -> dict[str, Any]:
    body = web_model(capacity=capacity, extensions=False)
    body["properties"]["virtualMachineProfile"]["extensionProfile"] = {
        "extensions": list(extensions), **profile,
    }  # fmt: skip
    return body


def start(lab: SimulatedLab, *extensions: dict[str, Any], capacity: int = 1) -> ScaleSet:
    return lab.start(body_with(*extensions, capacity=capacity), LOAD_BALANCER)


@pytest.fixture
def order(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """The names of extensions as they were run."""
    ran: list[str] = []
    run = SimulatedGuest.run_extension

    def remember(
        self: SimulatedGuest, extension: Extension, name: str, timeout: float
    ) -> ExtensionResult:
        ran.append(extension.name)
        return run(self, extension, name, timeout)

    monkeypatch.setattr(SimulatedGuest, "run_extension", remember)
    return ran


DIAMOND = (
    script("top", "left", "right"),
    script("left", "base"),
    script("right", "base"),
    script("base"),
)


def test_the_declared_order_on_every_disk(lab: SimulatedLab, order: list[str]) -> None:
    """E4, H3: once for each OS disk."""
    web = start(lab, *DIAMOND)
    for act in (lambda: lab.roll(web, "1.1.0"), web.reimage, lambda: None):
        assert (order[0], order[-1], sorted(order[1:3])) == ("base", "top", ["left", "right"])
        assert len(order) == 4
        order.clear()
        act()
    assert set(lab.runs.values()) == {1}
    assert [entry.name for entry in web[0].extensions] == ["top", "left", "right", "base"]


def test_independent_ones_run_side_by_side(lab: SimulatedLab) -> None:
    web = start(lab, *(script(f"e{n}") for n in range(8)))
    assert lab.roll(web, "1.1.0").stages["web_0"]["extensions"] == pytest.approx(1.0, abs=0.1)


def test_those_behind_a_failed_one_are_skipped(lab: SimulatedLab, order: list[str]) -> None:
    """H3: the Azure agent's words; the others run, and the rest of the set is untouched."""
    web = start(lab, *DIAMOND, capacity=3)
    order.clear()
    web.update(body_with(
        *DIAMOND[:1], script("left", "base", command="exit 3"), *DIAMOND[2:], script("other"),
        script("roof", "top"), capacity=3,
    ))  # fmt: skip
    upgrade = lab.roll(web, "1.1.0")
    assert upgrade.outcomes == {
        "web_0": Outcome.ROLLED_BACK, "web_1": Outcome.NOT_STARTED, "web_2": Outcome.NOT_STARTED,
    }  # fmt: skip
    assert set(order) == {"base", "left", "right", "other"}
    assert upgrade.errors["web_0"].code == "VMExtensionProvisioningError"
    assert (
        "VM has reported a failure when processing extension 'left' (publisher "
        "'Microsoft.Azure.Extensions' and type 'CustomScript')" in upgrade.errors["web_0"].message
    )
    told = [event.message for event in upgrade.events if event.kind == "extension"]
    assert sorted(told) == [
        "base: success", "left: error", "other: success", "right: success", "roof: error",
        "top: error",
    ]  # fmt: skip
    assert [i.latest_model_applied for i in web] == [False] * 3


def test_a_skipped_one_says_why_and_runs_once_its_dependency_is_mended(lab: SimulatedLab) -> None:
    lab.publish("1.0.0")
    broken = body_with(script("base", command="exit 1"), script("top", "base"))
    broken["properties"]["upgradePolicy"]["automaticOSUpgradePolicy"] = {}
    with pytest.raises(ProvisioningError):
        lab.create(broken, load_balancer=LOAD_BALANCER)
    web = lab.scale_set("web")
    base, top = web[0].extensions
    assert (base.skipped, top.skipped) == (False, True)
    assert top.message == (
        "Skipping processing of extensions since execution of dependent extension base failed"
    )
    view = web[0].instance_view()
    assert [entry["statuses"][0]["code"] for entry in view["extensions"]] == [
        "ProvisioningState/failed", "ProvisioningState/failed",
    ]  # fmt: skip
    mended = body_with(script("base"), script("top", "base"))
    mended["properties"]["upgradePolicy"]["automaticOSUpgradePolicy"] = {}
    web.update(mended)
    web.update_instances()
    assert [entry.status for entry in web[0].extensions] == ["success", "success"]
    assert web[0].record.provisioning == "Succeeded"


def test_one_that_hangs_is_ended_by_the_budget(lab: SimulatedLab) -> None:
    """H3: Azure's code and words; guests without KVM have ten times as long."""
    web = start(lab, script("fine"))
    hangs = body_with(script("hangs", command="hang"), script("later", "hangs"),
                      extensionsTimeBudget="PT15M")  # fmt: skip
    web.update(hangs)
    upgrade = lab.roll(web, "1.1.0")
    assert upgrade.outcomes == {"web_0": Outcome.ROLLED_BACK}
    assert upgrade.errors["web_0"].code == "VMExtensionProvisioningTimeout"
    assert upgrade.errors["web_0"].message.endswith(
        "Provisioning of VM extension hangs has timed out. Extension provisioning has taken too "
        "long to complete. The extension did not report a message."
    )


def test_suppressed_failures_do_not_fail_the_instance(lab: SimulatedLab) -> None:
    """H3."""
    web = start(lab, script("fine"), script("bad", command="exit 1", suppressFailures=True))
    assert [entry.status for entry in web[0].extensions] == ["success", "error"]
    assert web[0].record.provisioning == "Succeeded"
    assert lab.roll(web, "1.1.0").completed
    told = [event.message for event in lab.store.events() if event.kind == "warning"]
    assert "bad failed, which is suppressed" in told


def test_a_force_update_tag_runs_it_again(lab: SimulatedLab, order: list[str]) -> None:
    """H3."""
    web = start(lab, script("one"), script("two"))
    order.clear()
    web.update(body_with(script("one", forceUpdateTag="2"), script("two")))
    web.update_instances()
    assert order == ["one"]


@pytest.mark.parametrize(
    ("extensions", "words"),
    [
        ((script("a", "b"), script("b", "a")), "must not form a cycle"),
        ((script("a", "b"),), "depends on 'b', which is not defined"),
        ((script("a", "b"), script("b", settings=None)), "which has no settings"),
        ((script("a", settings={"script": "YQ==", "commandToExecute": "b"}),), "only one is"),
        ((script("a", type="Nothing"),), "no handler for the extension"),
    ],
)
def test_wrong_extensions_are_refused_before_anything_is_touched(
    lab: SimulatedLab, extensions: tuple[dict[str, Any], ...], words: str
) -> None:
    web = start(lab, script("fine"))
    starts = len(lab.simulated.starts)
    with pytest.raises(ModelError, match=words):
        web.update(body_with(*extensions))
    assert web.record.revision == 1
    assert len(lab.simulated.starts) == starts


@pytest.mark.parametrize("budget", ["PT14M", "PT121M"])
def test_budgets_out_of_range_are_refused(lab: SimulatedLab, budget: str) -> None:
    lab.publish("1.0.0")
    with pytest.raises(ModelError, match="extensionsTimeBudget"):
        lab.create(body_with(extensionsTimeBudget=budget), load_balancer=LOAD_BALANCER)


def test_what_cannot_be_reached_ends_an_upgrade_before_its_first_batch(lab: SimulatedLab) -> None:
    """C8."""
    uri = "http://store.example/a.sh?sig=secret"
    settings = {"commandToExecute": "sh a.sh", "fileUris": [uri]}
    web = start(lab, script("fetch", settings=settings), capacity=2)
    lab.unreachable[uri] = "http://store.example/a.sh cannot be reached: timed out"
    upgrade = lab.roll(web, "1.1.0")
    assert upgrade.faulted
    assert upgrade.batches == []
    assert upgrade.error is not None
    assert upgrade.error.code == "ExternalResourceUnreachable"
    assert "the extension 'fetch': http://store.example/a.sh cannot" in upgrade.error.message
    assert {i.image_version for i in web} == {"1.0.0"}
    lab.unreachable.clear()
    lab.virtual.sleep(1)
    assert lab.roll(web, "1.2.0").completed


@pytest.mark.parametrize("fatal", [False, True])
def test_a_degraded_cloud_init_is_told_and_fatal_where_that_is_set(
    lab: SimulatedLab, fatal: bool
) -> None:
    """H1."""
    web = start(lab)
    lab.environment.degraded_is_fatal = fatal
    upgrade = lab.roll(web, "1.1.0", Behaviour.CLOUD_INIT_DEGRADED)
    if fatal:
        assert upgrade.outcomes == {"web_0": Outcome.ROLLED_BACK}
        assert "degraded, which is fatal here: Failed to mount" in upgrade.errors["web_0"].message
    else:
        assert upgrade.completed
        assert web[0].generation.cloud_init == "degraded"
        told = [event.message for event in upgrade.events if event.kind == "warning"]
        assert told == ["cloud-init ended degraded: Failed to mount"]


def removals(lab: SimulatedLab) -> list[str]:
    return [e.message for e in lab.store.events() if e.message.endswith(": removed")]


def test_what_leaves_the_model_is_removed_dependants_first(
    lab: SimulatedLab, order: list[str]
) -> None:
    """H2: before the others run again, as Azure's agent does it; on a new disk it never was."""
    web = start(lab, *DIAMOND, capacity=2)
    order.clear()
    web.update(body_with(script("right", "new"), script("new"), capacity=2))
    web.update_instances([0])
    first = removals(lab)
    assert first == ["top: removed", "left: removed", "base: removed"]
    assert order == ["new", "right"]
    assert [entry.name for entry in web[0].extensions] == ["right", "new"]
    web.reimage([0])
    assert removals(lab) == first
    assert lab.roll(web, "1.1.0").completed
    assert removals(lab) == first


def test_one_that_comes_back_runs_again(lab: SimulatedLab, order: list[str]) -> None:
    web = start(lab, script("one"))
    for extensions in ((), (script("one"),)):
        web.update(body_with(*extensions))
        web.update_instances()
    assert order == ["one", "one"]
    assert web[0].extensions[0].status == "success"


class Sticky(Handler):
    publisher, type, version = "Contoso", "Sticky", "1.0"

    def run(self, target: Target, extension: Extension, *, run: str) -> ExtensionResult:
        raise NotImplementedError  # simulated guests run nothing


def sticky(name: str = "sticks") -> dict[str, Any]:
    settings = {"cannot be removed": "it is in use"}
    return script(name, publisher="Contoso", type="Sticky", settings=settings)


def test_what_cannot_be_removed_is_a_warning(
    lab: SimulatedLab, order: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """One of another type under the same name is another extension."""
    monkeypatch.setattr(registry, "_handlers", dict(registry._handlers))
    register(Sticky())
    web = start(lab, sticky("a"), sticky("b"))
    order.clear()
    web.update(body_with(script("a")))
    web.update_instances()
    assert web[0].record.provisioning == "Succeeded"
    assert [(entry.name, entry.type) for entry in web[0].extensions] == [
        ("a", "Microsoft.Azure.Extensions.CustomScript")
    ]
    assert order == ["a"]
    told = {event.message for event in lab.store.events() if event.kind == "warning"}
    assert told == {
        "a was not removed cleanly: it is in use", "b was not removed cleanly: it is in use",
    }  # fmt: skip


def test_a_handler_that_is_not_known_here_leaves_its_extension(
    lab: SimulatedLab, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Another process may not have registered it; its instance view can be had all the same."""
    handlers = dict(registry._handlers)
    monkeypatch.setattr(registry, "_handlers", dict(handlers))
    register(Sticky())
    web = start(lab, sticky())
    monkeypatch.setattr(registry, "_handlers", handlers)
    view = web[0].instance_view()
    assert view["extensions"][0]["name"] == "sticks"
    web.update(body_with())
    web.update_instances()
    told = [event.message for event in lab.store.events() if event.kind == "warning"]
    assert told == ["sticks was not removed cleanly: its handler is not known here"]


def test_extensions_in_the_instance_view(lab: SimulatedLab) -> None:
    """H4, J3: statuses and substatuses in Azure's words; the Application Health extension's live."""
    failing = script("two", command="exit 4", suppressFailures=True)
    web = lab.start(with_application_health(body_with(script("one"), failing, capacity=1)), {})
    lab.metrics["web_0"] = RollingUpgradeMetrics(phase=2)
    lab.applications["web_0"] = Health.UNHEALTHY
    lab.virtual.sleep(60)
    view = web[0].instance_view()
    one, two, health = view["extensions"]
    assert one["statuses"][0]["code"] == "ProvisioningState/succeeded"
    assert one["substatuses"] == []
    assert (two["statuses"][0]["code"], two["exitCode"]) == ("ProvisioningState/failed", 4)
    assert health["statuses"][0]["message"] == "it is Unhealthy"
    told = {part["code"]: part["message"] for part in health["substatuses"]}
    assert told == {
        "ComponentStatus/AppHealthStatus/failed": "Application found to be unhealthy",
        "ComponentStatus/ApplicationHealthState/failed": "Unhealthy",
        "ComponentStatus/CustomMetrics/succeeded": (
            '{"rollingUpgrade": {"PhaseOrderingNumber": 2, "SkipUpgrade": false}}'
        ),
    }
    handlers = {entry["type"]: entry["status"] for entry in view["vmAgent"]["extensionHandlers"]}
    assert set(handlers) == {
        "Microsoft.Azure.Extensions.CustomScript",
        "Microsoft.ManagedServices.ApplicationHealthLinux",
    }
    assert {entry["displayStatus"] for entry in handlers.values()} == {"Ready"}
    assert [entry["code"] for entry in view["statuses"]] == [
        "ProvisioningState/succeeded", "PowerState/running",
    ]  # fmt: skip
    assert [disk["name"] for disk in view["disks"]] == ["os-1.qcow2", "lun0.qcow2"]
    web.stop()
    view = web[0].instance_view()
    assert view["statuses"][1]["code"] == "PowerState/stopped"
    assert view["extensions"][2]["substatuses"] == []
