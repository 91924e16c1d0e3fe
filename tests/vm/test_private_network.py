"""A9 on real VMs: the instances of a set reach each other, by name and by private address.

That they do so after an upgrade too is in test_upgrade.py.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator
from pathlib import Path

import psutil
import pytest

from pytest_vmss.api.lab import Lab
from pytest_vmss.api.scale_set import ScaleSet
from tests.vm.start import answers_to, start

Built = Callable[[str], Path]


@pytest.fixture(scope="module")
def web(vmss: Lab, built: Built) -> Iterator[ScaleSet]:
    """Two instances in a private network; the tests run in the order of the file."""
    made = start(vmss, built("1.0.0"), gallery="private-network")
    yield made
    made.delete()


def carriers(web: ScaleSet) -> list[psutil.Process]:
    """The processes that carry the frames of a set's instances."""
    folder = str(web._environment.paths.network(web.record.unique_id))
    found = []
    for process in psutil.process_iter():
        with contextlib.suppress(psutil.Error):
            if folder in process.cmdline() and process.status() != psutil.STATUS_ZOMBIE:
                found.append(process)
    return found


def test_instances_reach_each_other(web: ScaleSet) -> None:
    """A9: by name, by the name with Azure's suffix, and by address."""
    first, second = web
    for one, other in ((first, second), (second, first)):
        name = other.computer_name
        found = one.host.check_output(f"getent ahostsv4 {name}").split()[0]
        assert found == {"0": "10.0.0.4", "1": "10.0.0.5"}[other.instance_id]
        for host in (name, f"{name}.internal.cloudapp.net", found):
            assert answers_to(one, host)


def test_a_partition_ends_with_its_block(web: ScaleSet) -> None:
    """A9, Q1: the lab still reaches both sides, and an exception heals it too."""
    first, second = web

    def cut_and_fail() -> None:
        with first.faults.partitioned(second):
            assert not answers_to(first, second.computer_name)
            assert not answers_to(second, first.computer_name)
            assert web.is_healthy()
            raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        cut_and_fail()
    assert answers_to(first, second.computer_name)


def test_frames_are_carried_again_after_a_kill(web: ScaleSet) -> None:
    """A9, M1: the next look at the set's health starts what was killed, in mid-partition too."""
    first, second = web
    with first.faults.partitioned():
        (carrier,) = carriers(web)
        carrier.kill()
        carrier.wait(10)
        assert not answers_to(second, first.computer_name)
        assert web.is_healthy()
        assert len(carriers(web)) == 1
        assert not answers_to(second, first.computer_name)
    assert answers_to(second, first.computer_name)


def test_the_network_is_kept_through_restores(web: ScaleSet) -> None:
    """A9, L1: guests that are restored from memory reach each other at once."""
    first, second = web
    web.checkpoint()
    first.faults.kill()
    web.restore()
    assert answers_to(first, second.computer_name)
    assert answers_to(second, first.private_ip_address or "")


def test_nothing_is_left_of_the_network(web: ScaleSet) -> None:
    """A9, L5: its process ends with the last instance."""
    assert len(carriers(web)) == 1
    folder = web._environment.paths.network(web.record.unique_id)
    web.scale(0)
    assert carriers(web) == []
    assert not folder.exists()
