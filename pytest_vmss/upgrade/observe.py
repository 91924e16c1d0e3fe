"""An instance's health now, as the set's model defines health (F1, F2)."""

from __future__ import annotations

from pytest_vmss.health import ProbeResult, Tracker
from pytest_vmss.hypervisor import PowerState
from pytest_vmss.load_balancer import Balancer
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
    trouble = _not_running(world, record)
    if trouble is not None:
        return trouble
    if probe is not None:
        return world.probe(probe, record)
    domain = f"vmss-{world.lab_id}-{record.name}"
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


def _not_running(world: World, record: InstanceRecord) -> ProbeResult | None:
    state = world.hypervisor.state(f"vmss-{world.lab_id}-{record.name}")
    if state is PowerState.RUNNING:
        return None
    return ProbeResult(False, f"the machine does not run ({state})")


def observe_health(
    world: World, record: InstanceRecord, probe: Probe | None, balancer: Balancer | None
) -> ProbeResult:
    """An instance's health now.

    Where a load balancer probes it, that has the say; else as many looks as the
    probe asks for make a state (F5).

    Args:
        world: Where it is.
        record: The instance.
        probe: The load balancer's probe, where there is one.
        balancer: The load balancer. QEMU's user network takes every TCP connection, so
            that of Tcp probes it knows nothing.
    """
    if balancer is not None and probe is not None and probe.protocol != "Tcp":
        trouble = _not_running(world, record)
        if trouble is not None:
            return trouble
        verdict = balancer.healthy(record.name)
        if verdict is not None:
            told = "healthy" if verdict else "unhealthy"
            return ProbeResult(verdict, f"the load balancer's probe {probe.name} finds it {told}")
    tracker = Tracker(1 if probe is None else probe.threshold)
    while tracker.observe(result := look(world, record, probe)) is None:
        world.clock.sleep(HEALTH_INTERVAL)
    return result
