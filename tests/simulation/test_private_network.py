"""A9: addresses, partitions and their end, on simulated machines."""

from __future__ import annotations

from dataclasses import replace
from io import StringIO
from pathlib import Path

import pytest
from rich.console import Console

from pytest_vmss.api.instance import Instance
from pytest_vmss.api.scale_set import ScaleSet
from pytest_vmss.errors import HostError, ModelError, NotFoundError
from pytest_vmss.guest_platform.virtual_network.config import NetworkFiles
from pytest_vmss.hypervisor.domain import PRIVATE_NIC, domain_xml
from pytest_vmss.report.tables import instance_table
from pytest_vmss.settings import Settings
from tests.models import LOAD_BALANCER, web_model, with_subnet
from tests.simulation.conftest import SimulatedLab


@pytest.fixture
def web(lab: SimulatedLab) -> ScaleSet:
    return lab.start(with_subnet(web_model()), LOAD_BALANCER)


def reaches(lab: SimulatedLab, one: Instance, other: Instance) -> bool:
    both = [lab.simulated.reaches(*pair) for pair in (
        (one._context.domain, other._context.domain), (other._context.domain, one._context.domain),
    )]  # fmt: skip
    assert both[0] == both[1]
    return both[0]


def test_an_address_is_an_instances_own(lab: SimulatedLab, web: ScaleSet) -> None:
    """A4, A9: over a swap, and never another's; it is shown."""
    lab.roll(web, "1.1.0")
    web.scale(2)
    web.scale(3)
    assert [i.private_ip_address for i in web] == ["10.0.0.4", "10.0.0.5", "10.0.0.7"]
    assert web[2].resource()["lab"]["privateIPAddress"] == "10.0.0.7"
    shown = StringIO()
    Console(file=shown, width=200).print(instance_table(web))
    assert "10.0.0.7" in shown.getvalue()
    machine = web[2]._context.machine(web[2].record.generation)
    assert machine.network is not None
    short = replace(machine.network, files=NetworkFiles(Path("/run/a.vn")))  # wherever tests run
    xml = domain_xml(replace(machine, network=short), accelerator="tcg", run_as=None)
    assert PRIVATE_NIC in xml
    assert "mac=52:54:0a:00:00:07" in xml


def test_without_a_subnet_there_is_no_network(lab: SimulatedLab) -> None:
    """A9: no second card, no address, and a partition is refused."""
    web = lab.start_web(2)
    assert web[0].private_ip_address is None
    assert not reaches(lab, web[0], web[1])
    machine = web[0]._context.machine(1)
    assert PRIVATE_NIC not in domain_xml(machine, accelerator="tcg", run_as=None)
    with pytest.raises(NotFoundError, match="has no subnet"), web[0].faults.partitioned():
        raise AssertionError("it is partitioned")


def test_a_partition_cuts_some_off_from_others(lab: SimulatedLab, web: ScaleSet) -> None:
    """A9: from those that are named, or from all; several add up; health is not touched."""
    first, second, third = web
    with first.faults.partitioned(second):
        assert not reaches(lab, first, second)
        assert reaches(lab, first, third)
        with first.faults.partitioned():
            assert not reaches(lab, first, third)
            assert reaches(lab, second, third)
            assert web.is_healthy()
        assert reaches(lab, first, third)
        assert not reaches(lab, first, second)
    assert reaches(lab, first, second)


def test_a_partition_stays_through_a_swap(lab: SimulatedLab, web: ScaleSet) -> None:
    """A9: it is the network's, and ends with the block alone, also by an exception."""
    first, second, _ = web

    def fail() -> None:
        with first.faults.partitioned():
            assert lab.roll(web, "1.1.0").completed
            second.faults.kill()
            web.start([1])
            assert not reaches(lab, first, second)
            raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        fail()
    assert reaches(lab, first, second)


def test_a_partition_from_all_counts_for_instances_that_are_added(
    lab: SimulatedLab, web: ScaleSet
) -> None:
    """A9: the set may scale out in the block."""
    first = web[0]
    with first.faults.partitioned():
        web.scale(4)
        assert not reaches(lab, first, web[3])
        assert reaches(lab, web[1], web[3])
    assert reaches(lab, first, web[3])


def test_a_path_that_is_too_long_for_a_socket_is_told(web: ScaleSet) -> None:
    """A9: QEMU would end without a reason."""
    machine = web[0]._context.machine(1)
    assert machine.network is not None
    files = NetworkFiles(Path("/" + "x" * 98) / "a.vn")
    with pytest.raises(HostError, match="VMSS_STATE_DIR"):
        domain_xml(
            replace(machine, network=replace(machine.network, files=files)),
            accelerator="tcg", run_as=None,
        )  # fmt: skip


def test_only_other_instances_of_the_set_can_be_cut_off(lab: SimulatedLab, web: ScaleSet) -> None:
    """A9: bad input is refused before anything is changed."""
    gone = web[2]
    web.scale(2)
    for other in (web[0], gone):
        with (
            pytest.raises(NotFoundError, match="has no other instance"),
            web[0].faults.partitioned(web[1], other),
        ):
            raise AssertionError("it is partitioned")
    assert reaches(lab, web[0], web[1])


def test_an_instance_of_another_lab_stands_for_none_of_that_name(
    settings: Settings, web: ScaleSet
) -> None:
    """A9: suites have sets of the same name in several labs."""
    other = SimulatedLab.session(settings)
    try:
        namesake = other.start_web(2)
        with pytest.raises(ModelError, match=r"others\[1\]: must be an instance of 'web'"):
            web[0].faults.partitioned(web[1], namesake[1])
    finally:
        other.destroy()


def test_a_set_keeps_its_network(web: ScaleSet) -> None:
    """A9: its instances have their network cards for life."""
    body = web_model(automatic=False)
    body["properties"]["virtualMachineProfile"]["networkProfile"][
        "networkInterfaceConfigurations"
    ] = []
    with pytest.raises(ModelError, match="networkInterfaceConfigurations"):
        web.update(body, load_balancer=LOAD_BALANCER)
    assert web[0].private_ip_address == "10.0.0.4"


@pytest.mark.parametrize("width", [80, 120, 200])
@pytest.mark.parametrize("health", [False, True])
def test_the_table_of_instances_breaks_nothing(web: ScaleSet, width: int, health: bool) -> None:
    """L3: a narrow terminal leaves columns out, the least important first."""
    shown = StringIO()
    Console(file=shown, width=width).print(instance_table(web, health=health))
    lines = shown.getvalue().strip().splitlines()
    print(shown.getvalue())
    assert len(lines) == 2 + len(web)
    for line, instance in zip(lines[2:], web, strict=True):
        address, port = instance.address(22)
        wanted = [instance.name, "Succeeded", "1.0.0", f"{address}:{port}"]
        wanted += [instance.private_ip_address or ""] + ["Healthy"] * health
        assert [word for word in wanted if word not in line.split()] == []
    assert ("kernel" in lines[0]) == (width > 80)
