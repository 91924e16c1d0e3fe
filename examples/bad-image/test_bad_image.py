"""Is a bad image stopped at the first instance, and undone, before anybody notices?"""

from urllib.request import urlopen

import pytest

pytestmark = pytest.mark.vmss("model.json", load_balancer="lb.json", health_timeout=30)


def answers(scale_set):
    """Whether a user of the shop gets an answer, through the load balancer."""
    with urlopen(f"{scale_set.url}/healthz", timeout=10) as reply:
        return reply.status == 200


@pytest.mark.parametrize(
    ("version", "code"),
    [
        ("1.1.0", "InstanceUnhealthy"),  # nginx does not start
        ("1.2.0", "OSProvisioningClientError"),  # cloud-init ends in error
    ],
)
def test_a_bad_image_is_stopped_and_undone(scale_set, gallery, images, version, code):
    before = {instance.name: instance.os_disk for instance in scale_set}
    with scale_set.always(lambda: answers(scale_set)):
        gallery.publish("shop", version, images.build(version).path)
        upgrade = scale_set.wait_for_upgrade()

    assert upgrade.faulted, upgrade.explain()
    assert upgrade.error.code == "MaxUnhealthyUpgradedInstancePercentExceededInRollingUpgrade"
    assert upgrade.outcomes == {"shop_0": "rolled back", "shop_1": "not started"}
    assert upgrade.errors["shop_0"].code == code

    assert {instance.name: instance.os_disk for instance in scale_set} == before
    assert {instance.image_version for instance in scale_set} == {"1.0.0"}
    assert scale_set.is_healthy()
