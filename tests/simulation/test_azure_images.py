"""O1–O3: sets of images that look for Azure, through the real engine."""

from __future__ import annotations

import json

from pytest_vmss.simulation.guest import Behaviour
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
