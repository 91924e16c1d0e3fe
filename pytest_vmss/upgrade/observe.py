"""An instance's health now, as the set's model defines health (F1, F2)."""

from __future__ import annotations

from pytest_vmss.health import ProbeResult, Tracker
from pytest_vmss.hypervisor import PowerState
from pytest_vmss.model import Probe
from pytest_vmss.store import GenerationRecord, InstanceRecord
from pytest_vmss.upgrade.world import World

__all__ = ["HEALTH_INTERVAL", "look", "observe_health"]

#: Seconds between two looks at an instance whose health is being waited for.
HEALTH_INTERVAL = 0.2


def look(world: World, record: InstanceRecord, probe: Probe | None) -> ProbeResult:
    """One look at an instance.

    Args:
        world: Where it is.
        record: The instance.
        probe: The load balancer's probe; without one it is healthy that runs and whose
            extensions have all succeeded (F1).
    """
    domain = f"vmss-{world.lab_id}-{record.name}"
    state = world.hypervisor.state(domain)
    if state is not PowerState.RUNNING:
        return ProbeResult(False, f"the machine does not run ({state})")
    if probe is not None:
        return world.probe(probe, record)
    running = world.hypervisor.running_generation(domain)
    generation = (
        None
        if running is None
        else world.store.get(GenerationRecord, *record.key, f"{running:06d}")
    )
    for extension in generation.extensions if generation else ():
        if extension.status == "error":
            return ProbeResult(False, f"the extension {extension.name} failed")
    return ProbeResult(True, "running, and every extension succeeded")


def observe_health(world: World, record: InstanceRecord, probe: Probe | None) -> ProbeResult:
    """An instance's health, after as many looks as its probe asks for (F5)."""
    tracker = Tracker(1 if probe is None else probe.threshold)
    while tracker.observe(result := look(world, record, probe)) is None:
        world.clock.sleep(HEALTH_INTERVAL)
    return result
