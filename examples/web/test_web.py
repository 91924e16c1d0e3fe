"""Does the next image come up with our template, and does anybody notice the upgrade?"""

import json
from urllib.request import urlopen

import pytest

pytestmark = pytest.mark.vmss(
    "template.yaml", custom_data="custom-data.yaml", capacity=2, health_timeout=60
)


def version(scale_set):
    """What a user of the site gets, through the load balancer."""
    with urlopen(f"{scale_set.url}/version", timeout=10) as reply:
        return json.load(reply)["version"]


def test_nobody_notices_the_upgrade(scale_set, gallery, images):
    with scale_set.always(lambda: version(scale_set) in {"1.0.0", "1.1.0"}):
        gallery.publish("web", "1.1.0", images.build("1.1.0").path)
        upgrade = scale_set.wait_for_upgrade()
    assert upgrade.completed, upgrade.explain()
    assert upgrade.batches == [(0,), (1,)]  # never both at once
    assert version(scale_set) == "1.1.0"


def test_the_instances_are_what_the_template_says(instance):
    host = instance.host
    assert host.mount_point("/data").filesystem == "ext4"
    assert host.file("/data/extension-runs").content_string.count("\n") == 1
