"""D7, H5, C1 on real VMs: from an expired token, by way of what sickens, to a good end.

The tests share one set of two and run in the order of the file; together they cost four boots.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from datetime import datetime, timedelta
from pathlib import Path
from typing import Any

import pytest

from pytest_vmss.api.lab import Lab
from pytest_vmss.api.scale_set import ScaleSet
from pytest_vmss.clock import SystemClock
from pytest_vmss.store import Outcome
from tests.models import custom_script
from tests.vm.start import extensions, start

BREACH = "MaxUnhealthyUpgradedInstancePercentExceededInRollingUpgrade"
GALLERY = "eligibility"
TOKEN_S = 1800.0
#: Seconds for one upgrade of the set, on the slowest host.
LIMIT = 5400.0
SCRIPT = """\
#!/bin/sh
echo "$(cat /var/lib/cloud/data/instance-id)" >> /data/downloads
"""


class TokenExpired(SystemClock):
    """The time at which the first token is no longer valid."""

    def now(self) -> datetime:
        return super().now() + timedelta(seconds=TOKEN_S + 1)


def app(vmss: Lab) -> dict[str, Any]:
    """The part of a model with an extension that downloads by a new token."""
    protected = {
        "fileUris": [vmss.blobs.url("app.sh", expires_in=TOKEN_S)],
        "commandToExecute": "./app.sh",
    }
    extension = custom_script("app", settings={}, protectedSettings=protected)
    return extensions([extension])


def policy(pause: str, *, automatic: bool) -> dict[str, Any]:
    return {
        "upgradePolicy": {
            "rollingUpgradePolicy": {"pauseTimeBetweenBatches": pause},
            "automaticOSUpgradePolicy": {"enableAutomaticOSUpgrade": automatic},
        }
    }


def downloads(web: ScaleSet) -> list[int]:
    """How often the extension ran on the current OS disk of each instance."""
    return [
        instance.host.check_output("cat /data/downloads")
        .split()
        .count(instance.generation.cloud_instance_id)
        for instance in web
    ]


@pytest.fixture(scope="module")
def web(vmss: Lab, built: Callable[[str], Path]) -> Iterator[ScaleSet]:
    vmss.blobs.put("app.sh", SCRIPT)
    created = start(vmss, built("1.0.0"), gallery=GALLERY, health_timeout=60)
    created.update(app(vmss))
    created.update_instances()
    yield created
    created.delete()


def test_an_expired_token_stops_it_until_a_new_one_is_deployed(
    web: ScaleSet, vmss: Lab, built: Callable[[str], Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    """H5, C1, E4: fail and stop; a new token, deployed everywhere on the disks that are there."""
    assert downloads(web) == [1, 1]
    monkeypatch.setattr(vmss.blobs, "_clock", TokenExpired())
    vmss.gallery(GALLERY).publish("web", "1.1.0", built("1.1.0"))
    failed = web.wait_for_upgrade(timeout=LIMIT)
    assert failed.faulted, failed.explain()
    assert failed.outcomes == {"web_0": Outcome.ROLLED_BACK, "web_1": Outcome.NOT_STARTED}
    assert "actual=403 expected=200" in failed.errors["web_0"].message

    # so that it is deployed before it goes on
    web.update({**app(vmss), **policy("PT45S", automatic=False)})
    assert [instance.latest_model_applied for instance in web] == [False, False]
    assert web.update_instances().completed
    assert [instance.latest_model_applied for instance in web] == [True, True]
    assert {instance.image_version for instance in web} == {"1.0.0"}
    assert downloads(web) == [2, 2]  # on the old disks, once more
    assert web.is_healthy()


def test_an_upgraded_instance_that_sickens_in_mid_upgrade_stops_it(
    web: ScaleSet, vmss: Lab
) -> None:
    """C1, D7, G2: the same version again by itself; its application ends in the pause after its batch."""
    before = web[1].boot_id
    web.update(policy("PT45S", automatic=True))
    wait_for_pause(web, vmss)
    with web[0].faults.without("nginx"):
        upgrade = web.wait_for_upgrade(timeout=LIMIT)
        assert upgrade.faulted, upgrade.explain()
        assert upgrade.error is not None
        assert upgrade.error.code == BREACH
    assert upgrade.target == "1.1.0"
    assert "of 1 upgraded, 1 are unhealthy now (0)" in upgrade.explain()
    assert upgrade.batches == [(0,)]
    assert upgrade.outcomes == {"web_0": Outcome.SUCCEEDED, "web_1": Outcome.NOT_STARTED}
    assert [instance.image_version for instance in web] == ["1.1.0", "1.0.0"]
    assert web[1].host.check_output("cat /proc/sys/kernel/random/boot_id") == before


def test_with_a_change_of_the_model_the_rest_follows(web: ScaleSet) -> None:
    """C1, C3: the upgraded one is well again, and is not touched; all ends well, and by itself."""
    boot = web[0].boot_id
    wait_for_health(web)
    web.update(policy("PT0S", automatic=True))
    upgrade = web.wait_for_upgrade(timeout=LIMIT)
    assert upgrade.completed, upgrade.explain()
    assert upgrade.record.started_by == "Platform"
    assert upgrade.outcomes == {"web_1": Outcome.SUCCEEDED}
    assert {instance.image_version for instance in web} == {"1.1.0"}
    assert web[0].host.check_output("cat /proc/sys/kernel/random/boot_id") == boot
    assert downloads(web) == [1, 1]
    assert web.is_healthy()


def wait_for_pause(web: ScaleSet, vmss: Lab) -> None:
    """Waits until the latest upgrade pauses after its first batch."""
    until(
        lambda: any(
            event.kind == "pause"
            for event in vmss.store.events(scale_set=web.name)
            if web.unfinished is not None and event.operation == web.unfinished.id
        )
    )


def wait_for_health(web: ScaleSet) -> None:
    """Waits until the load balancer sees what is well again."""
    until(web.is_healthy)


def until(what: Callable[[], bool]) -> None:
    end = time.monotonic() + LIMIT
    while not what():
        assert time.monotonic() < end, "waited in vain"
        time.sleep(0.5)
