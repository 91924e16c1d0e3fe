"""Q4: what `benchmarks.mutants` plants and nothing else would notice."""

from __future__ import annotations

import pytest

from pytest_vmss.errors import GuestUnreachableError, HostError, ProvisioningError
from pytest_vmss.hypervisor import Machine
from pytest_vmss.simulation.guest import Behaviour, SimulatedGuest
from pytest_vmss.simulation.hypervisor import SimulatedHypervisor
from pytest_vmss.simulation.load_balancer import SimulatedBalancer
from pytest_vmss.steps import Commit
from pytest_vmss.store import Outcome
from tests.simulation.conftest import SimulatedLab


def test_a_disk_that_is_not_there_is_not_committed(lab: SimulatedLab) -> None:
    """Q1."""
    web = lab.start_web(1)
    web[0].os_disk.unlink()
    with pytest.raises(HostError, match="is not there"):
        Commit(1).apply(web[0]._context)


def test_the_guest_writes_out_before_its_old_disk_goes(
    lab: SimulatedLab, monkeypatch: pytest.MonkeyPatch
) -> None:
    """M3."""
    web, sync = lab.start_web(2), SimulatedGuest.sync
    seen: list[tuple[str, int, bool]] = []

    def noted(self: SimulatedGuest, *, patient: bool = True) -> None:
        sync(self, patient=patient)
        (instance,) = [entry for entry in web if entry.name == self.name]
        number = instance.record.generation
        old = lab.paths.os_disk("web", int(instance.instance_id), 1)
        seen.append((self.name, number, old.exists()))

    monkeypatch.setattr(SimulatedGuest, "sync", noted)
    assert lab.roll(web, "1.1.0").completed
    assert sorted(seen) == [("web_0", 1, True), ("web_1", 1, True)]


def test_a_guest_that_cannot_write_out_at_once_is_asked_again(
    lab: SimulatedLab, monkeypatch: pytest.MonkeyPatch
) -> None:
    """M3, E4: an extension may have begun to restart its SSH server; it is healthy later."""
    web, sync = lab.start_web(1), SimulatedGuest.sync
    asked: list[bool] = []

    def late(self: SimulatedGuest, *, patient: bool = True) -> None:
        asked.append(patient)
        if not patient:
            raise GuestUnreachableError("does not answer over SSH", instance=self.name)
        sync(self, patient=patient)

    monkeypatch.setattr(SimulatedGuest, "sync", late)
    assert lab.roll(web, "1.1.0").completed
    assert asked == [False, True]


def test_a_way_back_that_does_not_come_up_is_no_way_back(
    lab: SimulatedLab, monkeypatch: pytest.MonkeyPatch
) -> None:
    """G1, G3: the recovery is checked too."""
    web, start = lab.start_web(3), SimulatedHypervisor.start

    def broken(self: SimulatedHypervisor, machine: Machine) -> None:
        if machine.generation == 2:
            lab.behaviours["1.0.0"] = Behaviour.UNHEALTHY  # from here on, also on the old disk
        start(self, machine)

    monkeypatch.setattr(SimulatedHypervisor, "start", broken)
    upgrade = lab.roll(web, "1.1.0", Behaviour.PANICS)
    assert upgrade.outcomes["web_0"] is Outcome.ROLLBACK_FAILED
    assert web[0].record.provisioning == "Failed"


def test_a_restart_without_a_new_boot_is_none(
    lab: SimulatedLab, monkeypatch: pytest.MonkeyPatch
) -> None:
    """E1: the boot id that was there before does not count."""
    web, start = lab.start_web(1), SimulatedHypervisor.start

    def the_same(self: SimulatedHypervisor, machine: Machine) -> None:
        start(self, machine)
        self.boots[machine.name] -= 1

    monkeypatch.setattr(SimulatedHypervisor, "start", the_same)
    with pytest.raises(ProvisioningError):
        web.restart()


def test_an_instance_is_through_when_the_load_balancer_finds_it_healthy(
    lab: SimulatedLab, monkeypatch: pytest.MonkeyPatch
) -> None:
    """F2, E1: what answers the lab's own probe alone is not committed."""
    web, healthy = lab.start_web(1), SimulatedBalancer.healthy
    domain = f"vmss-{lab.identity.id}-web_0"

    def blind(self: SimulatedBalancer, name: str) -> bool | None:
        return None if lab.simulated.running_generation(domain) == 2 else healthy(self, name)

    monkeypatch.setattr(SimulatedBalancer, "healthy", blind)
    upgrade = lab.roll(web, "1.1.0")
    assert upgrade.outcomes == {"web_0": Outcome.ROLLED_BACK}
    assert "the load balancer's probe did not find it healthy" in upgrade.errors["web_0"].message


def test_a_guest_that_ignores_the_shutdown_is_stopped_all_the_same(lab: SimulatedLab) -> None:
    """K1: after the limit its power is cut, also where nothing starts afterwards."""
    web = lab.start_web(1)
    domain = f"vmss-{lab.identity.id}-web_0"
    lab.simulated.deaf.add(domain)
    web.stop()
    assert domain not in lab.simulated.running
