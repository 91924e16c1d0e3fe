"""Do the orders survive the next image, and a bad one?"""

import pytest

pytestmark = pytest.mark.vmss("model.json", custom_data="custom-data.yaml", health_timeout=60)


@pytest.fixture
def orders(scale_set):
    """The set, with an order of its own in each instance."""
    for instance in scale_set:
        assert instance.host.check_output("redis-cli set order %s", instance.name) == "OK"
    return scale_set


def assert_each_has_its_order(scale_set):
    for instance in scale_set:
        assert instance.host.check_output("redis-cli get order") == instance.name


def test_orders_survive_the_upgrade(orders, gallery, images):
    gallery.publish("redis", "1.1.0", images.build("1.1.0").path)
    upgrade = orders.wait_for_upgrade()
    assert upgrade.completed, upgrade.explain()
    assert {instance.image_version for instance in orders} == {"1.1.0"}
    assert_each_has_its_order(orders)


def test_orders_survive_a_bad_image_and_its_rollback(orders, gallery, images):
    gallery.publish("redis", "1.2.0", images.build("1.2.0").path)
    upgrade = orders.wait_for_upgrade()
    assert upgrade.faulted, upgrade.explain()
    assert {instance.image_version for instance in orders} == {"1.0.0"}
    assert orders.is_healthy()
    assert_each_has_its_order(orders)
