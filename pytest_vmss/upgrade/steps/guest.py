"""What runs in a guest: cloud-init, extensions, the application."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from pytest_vmss.clock import wait_for
from pytest_vmss.errors import ExtensionError, InstanceError, UnhealthyError, WaitTimeoutError
from pytest_vmss.guest.console import Console
from pytest_vmss.guest.extensions import find_handler
from pytest_vmss.health import worst
from pytest_vmss.model import Extension
from pytest_vmss.store import ExtensionRecord, GenerationRecord
from pytest_vmss.upgrade.observe import HEALTH_INTERVAL, Measures, Watch
from pytest_vmss.upgrade.steps.step import Conclusion
from pytest_vmss.upgrade.world import InstanceContext

__all__ = ["ApplyModel", "AwaitHealth", "FinishCloudInit", "RunExtensions", "Sync"]


@dataclass(frozen=True)
class FinishCloudInit:
    """Waits for cloud-init's own verdict."""

    name: ClassVar[str] = "cloud-init"

    generation: int

    def apply(self, context: InstanceContext) -> Conclusion:
        generation = context.existing(self.generation)
        status = context.guest(generation).wait_cloud_init()
        concluded = generation.model_copy(update={"cloud_init": status})
        return lambda: context.world.store.put(concluded)


@dataclass(frozen=True)
class ApplyModel:
    """Gives an OS disk that is in use another revision of the model."""

    name: ClassVar[str] = "apply model"

    generation: int
    revision: int

    def apply(self, context: InstanceContext) -> None:
        generation = context.existing(self.generation)
        context.world.store.put(generation.model_copy(update={"revision": self.revision}))


@dataclass(frozen=True)
class RunExtensions:
    """Runs the extensions that are due on the generation, in the model's order (E4).

    Each is run once on a new OS disk. On one that has been in use, those run
    again whose definition has changed or whose last run failed.

    Attributes:
        newer: Run those again, too, whose handler has got a higher version since.
    """

    name: ClassVar[str] = "extensions"

    generation: int
    newer: bool = False

    def apply(self, context: InstanceContext) -> None:
        generation = context.existing(self.generation)
        revision = generation.revision
        extensions = context.revision(revision).model.extensions
        if not extensions and not generation.extensions:
            return
        known = {result.name: result for result in generation.extensions}
        for extension in extensions:
            earlier = known.get(extension.name)
            if earlier is not None and not self._due(context, extension, earlier, revision):
                continue
            run = "1" if earlier is None else f"{context.operation}-{revision}"
            result = context.guest(generation).run_extension(extension, run)
            known[extension.name] = result.model_copy(
                update={"revision": revision, "operation": context.operation}
            )
            with context.world.store.transaction():
                generation = self._keep(context, generation, extensions, known)
                context.event("extension", f"{extension.name}: {result.status}")
        for result in self._keep(context, generation, extensions, known).extensions:
            if result.status == "error":
                raise self._failure(context, result)

    def _due(
        self,
        context: InstanceContext,
        extension: Extension,
        earlier: ExtensionRecord,
        revision: int,
    ) -> bool:
        if (earlier.operation, earlier.revision) == (context.operation, revision):
            return False  # this very operation ran it
        if earlier.status == "error":
            return True
        if extension not in context.revision(earlier.revision).model.extensions:
            return True
        version = find_handler(extension.publisher, extension.type).version
        return self.newer and version != earlier.version

    @staticmethod
    def _keep(
        context: InstanceContext,
        generation: GenerationRecord,
        extensions: list[Extension],
        known: dict[str, ExtensionRecord],
    ) -> GenerationRecord:
        """Records what came of the model's extensions, and forgets those no longer in it."""
        results = tuple(known[entry.name] for entry in extensions if entry.name in known)
        if results == generation.extensions:
            return generation
        changed = generation.model_copy(update={"extensions": results})
        context.world.store.put(changed)
        return changed

    def _failure(self, context: InstanceContext, result: ExtensionRecord) -> ExtensionError:
        console = Console(context.machine(self.generation).console)
        ended = (
            "did not end"
            if result.exit_code is None
            else f"ended with exit code {result.exit_code}"
        )
        return ExtensionError(
            f"VM has reported a failure when processing extension {result.name!r} "
            f"(type {result.type}): its command {ended}: {result.message or 'no output'}",
            instance=context.name,
            extension=result.name,
            exit_code=result.exit_code,
            console_tail=console.tail(),
            log=console.path,
        )


@dataclass(frozen=True)
class AwaitHealth:
    """Waits until the application is healthy on the current boot (F6)."""

    name: ClassVar[str] = "health"

    generation: int

    def apply(self, context: InstanceContext) -> None:
        applied = context.revision(context.existing(self.generation).revision)
        measures = Measures.of(context.world, context.scale_set, applied)
        watch = Watch(context, measures)
        # Initializing is no judgement: the limit counts from the end of the grace period.
        limit = context.limits.health + measures.grace

        def healthy() -> bool | None:
            seen = watch.look()
            return (seen is not None and seen.healthy) or None

        try:
            wait_for(
                f"{context.name} to be healthy",
                healthy,
                limit=limit,
                clock=context.world.clock,
                interval=HEALTH_INTERVAL,
                describe=lambda: worst(watch.last).detail,
            )
        except WaitTimeoutError as late:
            console = Console(context.machine(self.generation).console)
            raise UnhealthyError(
                f"the application did not become healthy within {limit:.0f} s: "
                f"{worst(watch.last).detail}{self._deaf_ports(context, measures)}",
                instance=context.name,
                console_tail=console.tail(),
                log=console.path,
            ) from late

    def _deaf_ports(self, context: InstanceContext, measures: Measures) -> str:
        """Says so where nothing in the guest listens on a port that is asked."""
        sources = (measures.probe, measures.application)
        asked = {source.port for source in sources if source and source.port}
        try:
            guest = context.guest(context.existing(self.generation))
            listening = guest.listening() if asked else set()
        except InstanceError:
            return ""
        deaf = sorted(port for port in asked if port not in listening)
        if not deaf:
            return ""
        return (
            f"; nothing listens on port {', '.join(map(str, deaf))} in the guest (listening are: "
            f"{', '.join(map(str, sorted(listening))) or 'none'})"
        )


@dataclass(frozen=True)
class Sync:
    """Makes what the guest has written on its new OS disk durable, before the old one goes (M3).

    Without it a machine that loses its power in the half minute after its first boot
    comes back with empty files where cloud-init has written.
    """

    name: ClassVar[str] = "sync"

    generation: int

    def apply(self, context: InstanceContext) -> None:
        context.guest(context.existing(self.generation)).sync()
