"""An etcd cluster keeps its quorum and its data, whatever happens to one member at a time.

Run it with ``pytest examples/etcd``; images are built when they are first needed.
"""

from __future__ import annotations

import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from etcd_client import Writer, read_all

from pytest_vmss import Gallery, ImageBuilder, Lab, ScaleSet

HERE = Path(__file__).resolve().parent
PORT = 2379
#: Seconds in which a member must catch up with the others.
CATCH_UP_S = 180.0


@pytest.fixture(scope="module")
def images() -> ImageBuilder:
    return ImageBuilder(HERE / "images/etcd")


@pytest.fixture(scope="module")
def cluster(vmss: Lab, images: ImageBuilder) -> Iterator[ScaleSet]:
    vmss.gallery().publish("etcd", "1.0.0", images.build("1.0.0").path)
    made = vmss.create(HERE / "template.yaml", custom_data=HERE / "custom-data.yaml")
    yield made
    made.delete()


@pytest.fixture
def members(cluster: ScaleSet) -> list[tuple[str, int]]:
    return [member.address(PORT) for member in cluster]


def check(cluster: ScaleSet, writer: Writer, members: list[tuple[str, int]]) -> None:
    """Every member catches up, and has all that was acknowledged."""
    end = time.monotonic() + CATCH_UP_S
    while not cluster.is_healthy():
        assert time.monotonic() < end, f"a member did not catch up within {CATCH_UP_S:.0f} s"
        time.sleep(1.0)
    assert writer.acknowledged
    for member in members:
        there = read_all(member)
        lost = {key for key, value in writer.acknowledged.items() if there.get(key) != value}
        assert not lost, f"{len(lost)} of {len(writer.acknowledged)} writes are lost"


def test_members_find_each_other_by_name(cluster: ScaleSet) -> None:
    assert [member.private_ip_address for member in cluster] == ["10.0.0.4", "10.0.0.5", "10.0.0.6"]
    listed = cluster[0].host.check_output("ETCDCTL_API=3 etcdctl member list")
    for member in cluster:
        assert f"http://{member.computer_name}:2380" in listed


def test_a_partition_costs_no_acknowledged_write(
    cluster: ScaleSet, members: list[tuple[str, int]]
) -> None:
    with Writer(members) as writer:
        writer.wait_for(10)
        with cluster[0].faults.partitioned():
            writer.wait_for(20)
        writer.wait_for(10)
    check(cluster, writer, members)


def test_a_kill_costs_no_acknowledged_write(
    cluster: ScaleSet, members: list[tuple[str, int]]
) -> None:
    with Writer(members) as writer:
        writer.wait_for(10)
        cluster[1].faults.kill()
        writer.wait_for(20)
        cluster.start([1])
        writer.wait_for(10)
    check(cluster, writer, members)


def test_an_upgrade_costs_no_acknowledged_write(
    cluster: ScaleSet, gallery: Gallery, images: ImageBuilder, members: list[tuple[str, int]]
) -> None:
    with Writer(members) as writer:
        writer.wait_for(10)
        gallery.publish("etcd", "1.1.0", images.build("1.1.0").path)
        upgrade = cluster.wait_for_upgrade()
        writer.wait_for(10)
    assert upgrade.completed, upgrade.explain()
    assert {member.image_version for member in cluster} == {"1.1.0"}
    check(cluster, writer, members)
