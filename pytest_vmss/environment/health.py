"""An instance's health now, as the set's model defines health (F1-F4)."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterable
from dataclasses import dataclass, replace
from functools import partial
from typing import Self

from pytest_vmss.clock import wait_for
from pytest_vmss.environment.environment import Environment, InstanceContext
from pytest_vmss.environment.revisions import Revision
from pytest_vmss.errors import BalancerError, InstanceError, WaitTimeoutError
from pytest_vmss.guest import Check
from pytest_vmss.health import Observation, Tracker, worst
from pytest_vmss.hypervisor import Hypervisor, PowerState
from pytest_vmss.load_balancer import Balancer
from pytest_vmss.model import ApplicationHealthSettings, Health, Probe, application_health
from pytest_vmss.store import GenerationRecord

__all__ = ["HEALTH_INTERVAL", "HealthMonitor", "HealthSources", "judge_all", "observe_health"]

#: Seconds between two polls of an instance whose health is awaited.
HEALTH_INTERVAL = 0.2
#: The same for polls that put load on the guest.
_COSTLY_INTERVAL = 1.0

#: The most probes in which a state must be reached, as a multiple of the threshold.
_FLAPS = 5

_PROBE = "health probe"
_EXTENSION = "Application Health extension"
_OWN = "check of the lab's own"
_STATE = "power and extensions"


@dataclass(frozen=True)
class HealthSources:
    """How the health of a set's instances is measured.

    Attributes:
        probe: The load balancer's probe.
        balancer: That load balancer.
        application: Settings of the Application Health extension.
        check: The custom health source: a command or function (F4).
    """

    probe: Probe | None
    balancer: Balancer | None
    application: ApplicationHealthSettings | None
    check: Check | None

    @classmethod
    def of(cls, environment: Environment, scale_set: str, applied: Revision) -> Self:
        """Returns the health sources of a set's instances.

        Args:
            environment: The lab's environment.
            scale_set: The set.
            applied: The model that is applied to the instances in question, which decides on
                the extension; the load balancer is that of the set's current model.
        """
        record = environment.set_record(scale_set)
        function = environment.checks.get(record.unique_id) if record.health_function else None
        return cls(
            environment.revisions.get(record.unique_id, record.revision).probe,
            environment.traffic.balancer(scale_set),
            application_health(applied.model),
            function or record.health_command,
        )

    @property
    def judge(self) -> tuple[Probe, Balancer] | None:
        """The set's probe and the load balancer that makes it; None if that cannot judge it.

        QEMU's user network accepts every TCP connection, so the load balancer cannot judge Tcp
        probes.
        """
        probe, balancer = self.probe, self.balancer
        if probe is None or balancer is None or not balancer.judges or probe.protocol == "Tcp":
            return None
        return probe, balancer

    @property
    def grace(self) -> float:
        """Seconds for which an application may be Initializing."""
        return 0.0 if self.application is None else self.application.grace_seconds


@dataclass(frozen=True)
class _Source:
    """A source of an instance's health.

    Attributes:
        look: Makes one observation.
        threshold: Number of consecutive equal observations that make a state.
        every: Seconds between two observations.
    """

    look: Callable[[], Observation]
    threshold: int = 1
    every: float = _COSTLY_INTERVAL


class HealthMonitor:
    """Polls one instance until its health is known; create a new one for each boot.

    Args:
        context: The instance.
        health_sources: How its health is measured.
    """

    def __init__(self, context: InstanceContext, health_sources: HealthSources) -> None:
        self._context = context
        self._sources = _sources(context, health_sources, now=False)
        self._trackers = {n: Tracker(source.threshold) for n, source in self._sources.items()}
        self._next = dict.fromkeys(self._sources, 0.0)
        self.last: dict[str, Observation] = {}

    def look(self) -> Observation | None:
        """Polls every source that is due.

        The last observation of each source, with its state, is in ``last``.

        Returns:
            Their combined observation; None while one of them has no state yet.
        """
        trouble = _not_running(self._context)
        if trouble is not None:
            self.last = {_STATE: trouble}
            return trouble
        clock = self._context.environment.clock
        for name, source in self._sources.items():
            now = clock.monotonic()
            if now >= self._next[name]:
                self._next[name] = now + source.every
                self._trackers[name].observe(source.look())
        self.last = {name: tracker.seen for name, tracker in self._trackers.items()}
        if any(tracker.state is None for tracker in self._trackers.values()):
            return None
        return worst(self.last)


def _sources(
    context: InstanceContext, health_sources: HealthSources, *, now: bool
) -> dict[str, _Source]:
    """An instance's sources of health, by name.

    Args:
        context: The instance.
        health_sources: How its health is measured.
        now: Use the load balancer's verdict, if it has one, instead of probing again.
    """
    sources = {}
    probe, application, check = (
        health_sources.probe,
        health_sources.application,
        health_sources.check,
    )
    if probe is not None:
        sources[_PROBE] = (
            _Source(partial(_probed, context, probe, health_sources), every=HEALTH_INTERVAL)
            if now
            else _Source(partial(_probe, context, probe), probe.threshold, HEALTH_INTERVAL)
        )
    if application is not None:
        # The extension counts consecutive observations itself.
        sources[_EXTENSION] = _Source(
            partial(context.environment.health_report, context, application)
        )
    if not sources:
        sources[_STATE] = _Source(partial(_own_state, context), every=HEALTH_INTERVAL)
    if check is not None:
        sources[_OWN] = _Source(partial(_check, context, check))
    return {
        name: replace(source, look=partial(_masked, context, source.look))
        for name, source in sources.items()
    }


def _masked(context: InstanceContext, look: Callable[[], Observation]) -> Observation:
    """An observation that shows no secret, whatever a guest or a suite's check says (M5)."""
    seen = look()
    return replace(seen, detail=context.mask(seen.detail), boot=context.mask(seen.boot))


def _not_running(context: InstanceContext) -> Observation | None:
    trouble = _power_trouble(context.environment.hypervisor, context.domain)
    if trouble is None:
        context.keep_served()
    return trouble


def _power_trouble(hypervisor: Hypervisor, domain: str) -> Observation | None:
    state = hypervisor.state(domain)
    if state is PowerState.RUNNING:
        return None
    return Observation(Health.UNHEALTHY, f"the machine does not run ({state})")


def _running(context: InstanceContext) -> GenerationRecord | None:
    running = context.environment.hypervisor.running_generation(context.domain)
    return None if running is None else context.generation(running)


def _probe(context: InstanceContext, probe: Probe) -> Observation:
    """F2: the probe, made by the lab itself."""
    return context.environment.probe(probe, context.record)


def _verdict(probe: Probe, healthy: bool) -> Observation:
    """F2: what the load balancer says of a member."""
    told = "healthy" if healthy else "unhealthy"
    return Observation.of(healthy, f"the load balancer's probe {probe.name} finds it {told}")


def _probed(context: InstanceContext, probe: Probe, health_sources: HealthSources) -> Observation:
    """F2: the load balancer's verdict, if it has one; else as many probes as the model asks for."""
    verdict = None
    if health_sources.judge is not None:
        _, balancer = health_sources.judge
        with contextlib.suppress(BalancerError):  # the next batch restarts it, or reports it
            verdict = balancer.healthy(context.name)
    if verdict is not None:
        return _verdict(probe, verdict)
    tracker = Tracker(probe.threshold)
    looks = _FLAPS * probe.threshold
    for _ in range(looks):
        if tracker.observe(_probe(context, probe)) is not None:
            return tracker.last
        context.environment.clock.sleep(HEALTH_INTERVAL)
    return Observation(
        Health.UNKNOWN,
        f"the probe {probe.name} flaps: never {probe.threshold} equal answers in a row among "
        f"{looks}; the last: {tracker.last.detail}",
    )


def _own_state(context: InstanceContext) -> Observation:
    """F1: without a probe or health extension, it came up, and all extensions succeeded."""
    generation = _running(context)
    if generation is None:
        return Observation(Health.UNHEALTHY, "it does not run")
    if reason := generation.never_came_up:
        return Observation(Health.UNHEALTHY, reason)
    if generation.boot_id == generation.boot_before:
        return Observation(Health.UNHEALTHY, "it has not come up since its last start")
    model = context.revision(generation.revision).model
    results = {entry.name.lower(): entry.status for entry in generation.extensions}
    for extension in model.extensions:
        status = results.get(extension.name.lower())
        if status in (None, "error") and not extension.suppress_failures:
            how = "failed" if status else "has not run"
            return Observation(Health.UNHEALTHY, f"the extension {extension.name} {how}")
    return Observation(Health.HEALTHY, "it came up, and every extension succeeded")


def _check(context: InstanceContext, check: Check) -> Observation:
    """F4: the custom health source, a command or a function of the suite."""
    generation = _running(context)
    if generation is None:
        return Observation(Health.UNKNOWN, "it does not run")
    try:
        return Observation.of(*context.guest(generation).check(check))
    except InstanceError as error:
        return Observation(Health.UNKNOWN, error.message)


def judge_all(
    environment: Environment, names: Iterable[str], health_sources: HealthSources
) -> dict[str, Observation]:
    """The health of those instances on which the load balancer alone decides, all at once.

    It is asked once, instead of once for each instance, and the guests are not asked at all.

    Args:
        environment: The lab's environment.
        names: The instances.
        health_sources: How their health is measured.

    Returns:
        The observation of each, by name; without those that need :func:`observe_health`.
    """
    others = health_sources.application or health_sources.check
    if health_sources.judge is None or others is not None:
        return {}
    if environment.serves_guests:
        return {}  # each look also sees that the guest is served
    probe, balancer = health_sources.judge
    try:
        verdicts = balancer.verdicts()
    except BalancerError:
        return {}  # the next batch restarts it, or reports it
    told = {healthy: _verdict(probe, healthy) for healthy in (True, False)}
    hypervisor = environment.hypervisor
    return {
        name: _power_trouble(hypervisor, environment.domain(name)) or told[verdicts[name]]
        for name in names
        if name in verdicts
    }


def observe_health(
    context: InstanceContext, health_sources: HealthSources
) -> dict[str, Observation]:
    """An instance's health now, by source; waits while it is Initializing (F3).

    It waits no longer than until the end of the grace period.
    """
    sources = _sources(context, health_sources, now=True)
    seen: dict[str, Observation] = {}

    def settled() -> bool | None:
        nonlocal seen
        trouble = _not_running(context)
        seen = (
            {name: source.look() for name, source in sources.items()}
            if trouble is None
            else dict.fromkeys(sources, trouble)
        )
        return worst(seen).health is not Health.INITIALIZING or None

    with contextlib.suppress(WaitTimeoutError):
        wait_for(
            f"{context.name} to be healthy or not",
            settled,
            timeout=health_sources.grace + _COSTLY_INTERVAL,
            clock=context.environment.clock,
            interval=_COSTLY_INTERVAL,
        )
    return seen
