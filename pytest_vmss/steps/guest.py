"""Steps that act in the guest or wait for it: cloud-init, model, health."""

from __future__ import annotations

import contextlib
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import ClassVar

from pytest_vmss.clock import run_concurrently, wait_for
from pytest_vmss.environment.environment import InstanceContext
from pytest_vmss.environment.health import HEALTH_INTERVAL, HealthMonitor, HealthSources
from pytest_vmss.errors import CloudInitError, InstanceError, UnhealthyError, WaitTimeoutError
from pytest_vmss.guest.cloud_init import CloudInitResult
from pytest_vmss.health import worst
from pytest_vmss.steps.step import Conclusion
from pytest_vmss.store import GenerationRecord

__all__ = ["ApplyModel", "AwaitHealth", "FinishCloudInit"]

#: How cloud-init says that its data source for Azure had the metadata service alone.
_WITHOUT_DVD = "[seed=IMDS]"
#: The most listening ports that a message lists.
_PORTS = 20


@dataclass(frozen=True)
class FinishCloudInit:
    """Waits for cloud-init to finish, and checks its status."""

    name: ClassVar[str] = "cloud-init"
    timed: ClassVar[bool] = True
    durable: ClassVar[bool] = False

    generation: int

    def apply(self, context: InstanceContext) -> Conclusion:
        generation = context.existing(self.generation)
        verdict = context.guest(generation).wait_cloud_init()
        told = "; ".join(verdict.problems)
        failure = ""
        if verdict.status == "degraded" and context.environment.degraded_is_fatal:
            failure = f"cloud-init ended degraded, which is fatal here: {told}"
        elif self._lost_custom_data(context, generation, verdict):
            failure = (
                "the custom data did not run: cloud-init could not read ovf-env.xml on the "
                f"provisioning DVD, and went by the metadata service alone ({verdict.datasource}); "
                "are the kernel's modules udf, isofs, sr_mod and virtio_scsi in the image, and "
                f"allowed? It says: {told or 'nothing'}"
            )
        if failure:
            console = context.console(context.existing(self.generation))
            raise CloudInitError(
                failure,
                instance=context.name,
                errors=verdict.problems,
                console_tail=console.tail(),
                log=console.path,
            )

        def conclude() -> None:
            context.environment.store.amend(generation, cloud_init=verdict.status)
            if verdict.problems:
                context.event("warning", f"cloud-init ended {verdict.status}: {told}")

        return conclude

    @staticmethod
    def _lost_custom_data(
        context: InstanceContext, generation: GenerationRecord, verdict: CloudInitResult
    ) -> bool:
        """Whether a guest came up without its custom data, which is on Azure's DVD only (O2)."""
        if generation.provisioning != "Azure" or not verdict.datasource.endswith(_WITHOUT_DVD):
            return False
        model = context.revision(generation.revision).model
        return bool(model.virtual_machine_profile.os_profile.custom_data)  # there may be none in it


@dataclass(frozen=True)
class ApplyModel:
    """Applies another revision of the model to an OS disk that is in use."""

    name: ClassVar[str] = "apply model"
    timed: ClassVar[bool] = False
    durable: ClassVar[bool] = True

    generation: int
    revision: int

    def apply(self, context: InstanceContext) -> None:
        generation = context.existing(self.generation)
        context.environment.store.amend(generation, revision=self.revision)
        platform = context.machine(self.generation).platform
        if platform is not None:
            platform.write()  # the metadata service says so at once


@dataclass(frozen=True)
class AwaitHealth:
    """Waits until the application is healthy on the current boot (F6).

    Attributes:
        flush: Meanwhile, have the guest flush what it has written to its new OS disk, before the
            old one is removed (M3). Otherwise a machine that loses power within half a minute of
            its first boot comes back with empty files in place of those that cloud-init wrote.
    """

    name: ClassVar[str] = "health"
    timed: ClassVar[bool] = True
    durable: ClassVar[bool] = False  # the guest would write the same a little later

    generation: int
    flush: bool = False

    def apply(self, context: InstanceContext) -> None:
        if not self.flush:
            self._wait(context)
            return
        guest, is_flushed = context.guest(context.existing(self.generation)), False

        def flush() -> None:
            nonlocal is_flushed
            # Its extensions may have begun to restart its network or its SSH server.
            with contextlib.suppress(InstanceError):
                guest.sync(patient=False)
                is_flushed = True

        both: tuple[Callable[[], None], ...] = (partial(self._wait, context), flush)
        run_concurrently(both, lambda act: act(), clock=context.environment.clock)
        if not is_flushed:
            guest.sync()

    def _wait(self, context: InstanceContext) -> None:
        applied = context.revision(context.existing(self.generation).revision)
        health_sources = HealthSources.of(context.environment, context.scale_set, applied)
        watch = HealthMonitor(context, health_sources)
        # Initializing is no verdict: the timeout counts from the end of the grace period.
        health, grace = context.timeouts.health, health_sources.grace
        allowed = f"{health:.0f} s"
        if health < context.base_timeouts.health:
            allowed += ", all that was left of the time for the instance"
        if grace:
            allowed += f", and {grace:.0f} s before that for its extension's grace period"

        def healthy() -> bool | None:
            seen = watch.look()
            return (seen is not None and seen.healthy) or None

        try:
            wait_for(
                f"{context.name} to be healthy",
                healthy,
                timeout=health + grace,
                clock=context.environment.clock,
                interval=HEALTH_INTERVAL,
                describe=lambda: worst(watch.last).detail,
            )
        except WaitTimeoutError as error:
            console = context.console(context.existing(self.generation))
            raise UnhealthyError(
                f"the application did not become healthy within {allowed}: "
                f"{worst(watch.last).detail}{self._deaf_ports(context, health_sources)}",
                instance=context.name,
                console_tail=console.tail(),
                log=console.path,
            ) from error

    def _deaf_ports(self, context: InstanceContext, health_sources: HealthSources) -> str:
        """Names the ports that health sources query but nothing in the guest listens on."""
        sources = (health_sources.probe, health_sources.application)
        asked = {source.port for source in sources if source and source.port}
        try:
            guest = context.guest(context.existing(self.generation))
            listening = guest.listening() if asked else set()
        except InstanceError:
            return ""
        deaf = sorted(port for port in asked if port not in listening)
        if not deaf:
            return ""
        found = ", ".join(map(str, sorted(listening)[:_PORTS])) or "none"
        more = f" and {len(listening) - _PORTS} more" if len(listening) > _PORTS else ""
        return (
            f"; nothing listens on port {', '.join(map(str, deaf))} in the guest (listening are: "
            f"{found}{more})"
        )
