"""D1, D6, E1, K1: an upgrade neither counts a stopped instance as unhealthy nor starts it."""

from __future__ import annotations

from pathlib import Path

import pytest

from pytest_vmss.api.scale_set import ScaleSet
from pytest_vmss.errors import HypervisorError, ProvisioningError
from pytest_vmss.guest.extensions import CustomScript, register
from pytest_vmss.hypervisor import PowerState
from pytest_vmss.report import upgrade_summary
from pytest_vmss.simulation.guest import Behaviour
from pytest_vmss.store import Outcome
from tests.models import custom_script
from tests.simulation.conftest import SimulatedLab
from tests.simulation.test_upgrade import check_accounts

SAID = "stopped, and stays so: nothing was proved about it"


def dead(lab: SimulatedLab, *numbers: int) -> frozenset[str]:
    return frozenset(f"vmss-{lab.identity.id}-web_{number}" for number in numbers)


def versions(web: ScaleSet) -> list[str | None]:
    return [instance.image_version for instance in web]


def extensions(web: ScaleSet) -> list[str]:
    return [result.name for result in web[1].extensions]


def unproven(web: ScaleSet) -> list[bool]:
    return [instance.record.unproven for instance in web]


def starts(lab: SimulatedLab, number: int) -> int:
    return lab.simulated.boots.get(f"vmss-{lab.identity.id}-web_{number}", 0)


def test_they_get_the_new_disk_and_stay_stopped(lab: SimulatedLab) -> None:
    """Two of five are more than 20 %; nobody mistakes them for sick ones."""
    web = lab.start_web(5)
    web.stop([1])
    web.deallocate([3])
    before = [starts(lab, number) for number in (1, 3)]
    upgrade = lab.roll(web, "1.1.0")
    assert upgrade.completed, upgrade.explain()
    assert upgrade.batches == [(0,), (1,), (2,), (3,), (4,)]
    assert versions(web) == ["1.1.0"] * 5
    assert [starts(lab, number) for number in (1, 3)] == before
    powers = [instance.record.power for instance in web]
    assert powers == ["running", "stopped", "running", "deallocated", "running"]
    assert web[1].power_state is PowerState.STOPPED
    assert not web[1].record.in_service
    assert lab.executions.get(("web_1", 2, "custom data")) is None
    check_accounts(lab, web, dead(lab, 1, 3))
    lab.run_due()
    assert len(web.history()) == 1  # nothing is due any more


def test_the_report_says_that_nothing_was_proved(lab: SimulatedLab) -> None:
    """G3, D10."""
    web = lab.start_web(2)
    web.stop([1])
    upgrade = lab.roll(web, "1.1.0")
    told = upgrade.explain()
    assert f"web_1: succeeded ({SAID})" in told
    assert "web_0: succeeded\n" in told
    assert "stopped, and not started: 1" in told
    assert SAID in str(upgrade_summary(upgrade.report))


def test_the_next_start_proves_the_new_disk(lab: SimulatedLab) -> None:
    """E1, E4: boot, custom data, extensions and health, as in any swap."""
    web = lab.start_web(2)
    web.stop([1])
    lab.roll(web, "1.1.0")
    assert unproven(web) == [False, True]
    assert extensions(web) == []
    web.start([1])
    assert web.is_healthy()
    assert unproven(web) == [False, False]
    assert extensions(web) == ["register"]
    assert lab.executions["web_1", 2, "custom data"] == 1
    assert lab.executions["web_1", 2, "register"] == 1
    assert web[1].record.in_service
    check_accounts(lab, web)


@pytest.mark.parametrize("how", ["restart", "redeploy", "reimage"])
def test_so_does_whatever_starts_it(lab: SimulatedLab, how: str) -> None:
    web = lab.start_web(1)
    web.stop()
    lab.roll(web, "1.1.0")
    getattr(web, how)()
    assert web.is_healthy()
    assert versions(web) == ["1.1.0"]
    assert not web[0].record.unproven
    assert [result.name for result in web[0].extensions] == ["register"]


def test_a_bad_disk_is_found_out_when_it_is_started(lab: SimulatedLab) -> None:
    """It stays failed until somebody helps, however often it is started."""
    web = lab.start_web(1)
    web.stop()
    assert lab.roll(web, "1.1.0", Behaviour.EXTENSION_FAILS).completed
    for _ in range(2):
        with pytest.raises(ProvisioningError):
            web.start()
        assert web[0].record.provisioning == "Failed"
        assert web[0].record.unproven
    lab.behaviours["1.1.0"] = Behaviour.GOOD
    web.restart()
    assert web.is_healthy()
    assert web[0].record.provisioning == "Succeeded"


def test_what_was_not_stopped_on_purpose_counts(lab: SimulatedLab) -> None:
    """D1: a machine that went down by itself is unhealthy."""
    web = lab.start_web(5)
    web.stop([0])
    for name in dead(lab, 3, 4):
        lab.simulated.power_off(name)
    upgrade = lab.roll(web, "1.1.0")
    assert upgrade.error is not None
    assert upgrade.error.code == "MaxUnhealthyInstancePercentExceededBeforeRollingUpgrade"
    assert "2 of 5 instances are unhealthy (3, 4)" in upgrade.explain()
    web.restart([3, 4])
    lab.run_due()  # C1: what stopped it is cured, although one is stopped still
    assert web.history()[0].completed, web.history()[0].explain()
    assert versions(web) == ["1.1.0"] * 5
    assert web[0].record.power == "stopped"


def test_a_surge_replaces_only_what_runs(lab: SimulatedLab) -> None:
    """D9: a stopped instance is not replaced by a running one."""
    web = lab.start_web(3, policy={"maxSurge": True})
    web.stop([1])
    upgrade = lab.roll(web, "1.1.0")
    assert upgrade.completed, upgrade.explain()
    assert [instance.instance_id for instance in web] == ["1", "3", "4"]
    assert web.instance(1).record.power == "stopped"
    assert set(versions(web)) == {"1.1.0"}


@pytest.mark.parametrize("automatic", [True, False])
def test_one_that_fails_keeps_its_disk_and_stays_stopped(
    lab: SimulatedLab, automatic: bool
) -> None:
    """G1: rolled back by an automatic upgrade, left failed by one by hand; never started."""
    web = lab.start_web(2, automatic=automatic)
    web.stop([0])
    lab.publish("1.1.0")
    create = lab.simulated.create_os_disk

    def refuse(path: Path, image: Path, size_gib: int | None) -> None:
        if path.parent == lab.paths.instance("web", 0):
            raise HypervisorError("refused")
        create(path, image, size_gib)

    lab.simulated.create_os_disk = refuse  # type: ignore[method-assign]
    lab.run_due() if automatic else web.upgrade()
    upgrade = web.history()[0]
    assert upgrade.faulted
    outcome = upgrade.outcomes["web_0"]
    assert outcome is (Outcome.ROLLED_BACK if automatic else Outcome.FAILED)
    assert web[0].image_version == "1.0.0"
    assert web[0].record.power == "stopped"
    assert web[0].power_state is PowerState.STOPPED
    assert not web[0].record.in_service
    check_accounts(lab, web, dead(lab, 0))
    lab.simulated.create_os_disk = create  # type: ignore[method-assign]
    web.start([0])
    assert web[0].health() == "Healthy"


@pytest.mark.parametrize("mode", ["Rolling", "Automatic", "Manual"])
def test_a_new_model_reaches_them_without_a_start(lab: SimulatedLab, mode: str) -> None:
    """C9: what of it must run in the guest runs at the next start."""
    web = lab.start_web(2)
    web.stop([1])
    other = custom_script("other", settings={"commandToExecute": "true"})
    profile = {"extensionProfile": {"extensions": [other]}}
    web.update({"upgradePolicy": {"mode": mode}, "virtualMachineProfile": profile})
    if mode == "Manual":
        web.update_instances()
    assert web[1].latest_model_applied
    assert web[1].record.power == "stopped"
    assert [result.name for result in web[1].extensions] == ["register"]
    web.start([1])
    assert [result.name for result in web[1].extensions] == ["other"]
    assert web[1].record.generation == 1
    assert web.is_healthy()


def test_newer_handlers_reach_them_at_their_next_start(lab: SimulatedLab) -> None:
    """H3."""
    web = lab.start_web(2)
    web.stop([1])

    class Newer(CustomScript):
        version = "99.0"

    register(Newer())
    try:
        assert web.upgrade_extensions().completed
        assert web[0].extensions[0].version == "99.0"
        assert web[1].extensions[0].version == CustomScript.version
        assert web[1].record.power == "stopped"
        web.start([1])
        assert web[1].extensions[0].version == "99.0"
    finally:
        register(CustomScript())
