"""F6, G4, H3: Azure's budgets are the defaults, and the lab's own limits never undercut them."""

from __future__ import annotations

from datetime import timedelta
from typing import Any

import pytest

from pytest_vmss.errors import ProvisioningError, WaitTimeoutError
from pytest_vmss.guest.extensions import timed_out
from pytest_vmss.model import Extension, Health
from pytest_vmss.model.extension_result import ExtensionResult
from pytest_vmss.settings import Settings, Timeouts
from pytest_vmss.simulation.guest import SimulatedGuest
from tests.models import LOAD_BALANCER, custom_script, web_model, with_application_health
from tests.simulation.conftest import SimulatedLab

MINUTES = 60.0


@pytest.fixture
def fast(lab: SimulatedLab) -> SimulatedLab:
    """A lab whose guests are as fast as under KVM, where the limits are lowest."""
    lab.simulated.slow_factor = 1.0
    return lab


def take(monkeypatch: pytest.MonkeyPatch, seconds: float) -> None:
    """Lets every extension take so long."""
    real = SimulatedGuest.run_extension

    def slow(
        self: SimulatedGuest, extension: Extension, run: str, timeout: float
    ) -> ExtensionResult:
        self._clock.sleep(min(seconds, timeout))
        return timed_out(extension) if timeout < seconds else real(self, extension, run, timeout)

    monkeypatch.setattr(SimulatedGuest, "run_extension", slow)


def chain(budget: str | None = None) -> dict[str, Any]:
    """A set with two extensions, one after the other."""
    body = web_model(capacity=1)
    profile = body["properties"]["virtualMachineProfile"]["extensionProfile"]
    settings = {"commandToExecute": "true"}
    profile["extensions"] = [
        custom_script("one", settings=settings),
        custom_script("two", "one", settings=settings),
    ]
    if budget is not None:
        profile["extensionsTimeBudget"] = budget
    return body


def test_extensions_have_ninety_minutes_in_all(
    fast: SimulatedLab, monkeypatch: pytest.MonkeyPatch
) -> None:
    """H3: Azure's PT1H30M, whichever takes them, at creation and in an upgrade."""
    take(monkeypatch, 44 * MINUTES)
    web = fast.start(chain(), LOAD_BALANCER)
    assert fast.roll(web, "1.1.0").completed
    take(monkeypatch, 46 * MINUTES)
    upgrade = fast.roll(web, "1.2.0")
    assert upgrade.faulted
    assert upgrade.errors["web_0"].code == "VMExtensionProvisioningTimeout"


def test_two_hours_where_the_model_gives_them(
    fast: SimulatedLab, monkeypatch: pytest.MonkeyPatch
) -> None:
    """H3, G4: ``extensionsTimeBudget``; the instance's own limit grows with it."""
    take(monkeypatch, 59 * MINUTES)
    web = fast.start(chain("PT2H"), LOAD_BALANCER)
    assert web.is_healthy()


def test_a_limit_for_each_extension_where_the_user_sets_one(
    fast: SimulatedLab, monkeypatch: pytest.MonkeyPatch
) -> None:
    """H3: then, and only then, it undercuts Azure's."""
    fast.environment.base_timeouts = Timeouts(extension=90.0)
    take(monkeypatch, 10 * MINUTES)
    with pytest.raises(ProvisioningError, match="VMExtensionProvisioningTimeout"):
        fast.start(chain(), LOAD_BALANCER)


def test_the_grace_period_is_had_in_full(fast: SimulatedLab) -> None:
    """F6, G4: an application that warms up for nearly four hours, of the four that it may."""
    body = with_application_health(web_model(capacity=1), gracePeriod=14400)
    web = fast.start(body, {})
    stop, report = fast.simulated.request_stop, fast.environment.health_report
    started: list[float] = []

    def stopping(name: str) -> None:
        stop(name)
        fast.applications["web_0"] = Health.UNKNOWN
        started.append(fast.virtual.monotonic())

    def warming(*arguments: Any) -> Any:
        if started and fast.virtual.monotonic() - started[0] > 14000:
            fast.applications.clear()
        else:
            fast.virtual.sleep(60)
        return report(*arguments)

    fast.simulated.request_stop = stopping  # type: ignore[method-assign]
    fast.environment.health_report = warming
    upgrade = fast.roll(web, "1.1.0")
    assert upgrade.completed, upgrade.explain()
    assert upgrade.stages["web_0"]["health"] > 13000


def test_a_long_pause_does_not_end_an_upgrade(fast: SimulatedLab) -> None:
    """G4, D8: the whole has no limit of its own unless one is set."""
    web = fast.start_web(5, policy={"pauseTimeBetweenBatches": "PT12H"})
    upgrade = fast.roll(web, "1.1.0")
    assert upgrade.completed, upgrade.explain()
    assert upgrade.record.ended is not None
    assert upgrade.record.ended - upgrade.record.started > timedelta(days=2)


@pytest.mark.parametrize("factor", [1.0, 10.0])
def test_the_limit_of_an_instance_covers_all_that_it_may_take(factor: float) -> None:
    """G4: and yet there is one."""
    timeouts = Timeouts().scaled(factor)
    budgets = 5400.0 * factor
    parts = timeouts.drain + timeouts.stop + timeouts.boot + timeouts.cloud_init + timeouts.health
    assert parts + budgets < timeouts.limit_of_instance(budgets) < 2 * (parts + budgets)
    assert Timeouts(instance=90.0).scaled(factor).limit_of_instance(budgets) == 90.0 * factor


def test_how_long_a_test_waits_is_a_setting(settings: Settings) -> None:
    """G4: ``timeouts.wait``."""
    lab = SimulatedLab.session(
        Settings(
            settings.state_dir,
            settings.cache_dir,
            rollout_delay=(1e6, 1e6),
            timeouts=Timeouts(wait=3.0),
        )
    )
    web = lab.start_web(1)
    lab.watch()
    lab.publish("1.1.0")
    with pytest.raises(WaitTimeoutError, match="timed out after 3 s waiting for"):
        web.wait_for_upgrade()
    lab.destroy()
