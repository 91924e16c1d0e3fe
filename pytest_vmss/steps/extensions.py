"""The step that runs an instance's extensions, stage by stage (E4, H3)."""

from __future__ import annotations

from collections.abc import Container, Sequence
from dataclasses import dataclass
from functools import partial
from typing import ClassVar

from pytest_vmss.clock import Deadline, run_concurrently
from pytest_vmss.environment.environment import InstanceContext
from pytest_vmss.errors import ExtensionError
from pytest_vmss.guest.extensions import find_handler, is_known
from pytest_vmss.model import Extension, stages_of_extensions
from pytest_vmss.model.extension_result import ExtensionResult

__all__ = ["RunExtensions"]


@dataclass(frozen=True)
class RunExtensions:
    """Runs the extensions that are due on the generation (E4).

    Extensions that ``provisionAfterExtensions`` does not order run concurrently; those that
    depend on a failed one are skipped. On a new OS disk, each is run once. On a disk already
    in use, extensions that the model no longer names are removed first; then those run again
    whose definition has changed (``forceUpdateTag`` is a part of it) or whose last run failed.

    Attributes:
        newer: Also rerun extensions whose handler now has a higher version.
    """

    name: ClassVar[str] = "extensions"
    timed: ClassVar[bool] = True
    durable: ClassVar[bool] = True

    generation: int
    newer: bool = False

    def apply(self, context: InstanceContext) -> None:
        generation = context.existing(self.generation)
        model = context.revision(generation.revision).model
        extensions = model.extensions
        if not extensions and not generation.extensions:
            return
        clock, guest = context.environment.clock, context.guest(generation)
        factor = context.environment.hypervisor.slow_factor
        budget = factor * model.extensions_time_budget.total_seconds()
        deadline = Deadline(budget, clock.monotonic)
        self._remove_gone(context, extensions, deadline)

        def run(extension: Extension) -> ExtensionResult | None:
            known = {entry.name.lower(): entry for entry in self._results(context)}
            earlier = known.get(extension.name.lower())
            if earlier is not None and not self._due(context, extension, earlier):
                return None
            broken = [
                known[name.lower()].name
                for name in extension.provision_after_extensions
                if known[name.lower()].status == "error"
            ]
            if broken:
                return _skipped(extension, broken[0])
            if not is_known(extension):
                return _left_out(extension)
            timeout = _limit(context, deadline)
            first = "1" if earlier is None else f"{context.operation}-{generation.revision}"
            return guest.run_extension(extension, first, timeout)

        def run_and_keep(extension: Extension, *, durable: bool) -> None:
            result = run(extension)
            if result is not None:
                self._keep(context, extensions, result, durable=durable)

        stages = stages_of_extensions(extensions)
        for number, stage in enumerate(stages, start=1):
            # After the last stage nothing is changed before the journal is synchronized.
            act = partial(run_and_keep, durable=number < len(stages))
            run_concurrently(stage, act, clock=clock)
        self._judge(context, extensions)

    def _results(self, context: InstanceContext) -> Sequence[ExtensionResult]:
        return context.existing(self.generation).extensions

    def _due(
        self, context: InstanceContext, extension: Extension, earlier: ExtensionResult
    ) -> bool:
        revision = context.existing(self.generation).revision
        if (earlier.operation, earlier.revision) == (context.operation, revision):
            return False  # this operation already ran it
        if earlier.status == "error":
            return True
        if extension not in context.revision(earlier.revision).model.extensions:
            return True
        if not is_known(extension) or earlier.left_out:
            return is_known(extension)
        version = find_handler(extension.publisher, extension.type).version
        return self.newer and version != earlier.version

    def _keep(
        self, context: InstanceContext, extensions: Sequence[Extension], result: ExtensionResult,
        *, durable: bool,
    ) -> None:  # fmt: skip
        """Records an extension's result, in the model's order."""
        store = context.environment.store
        with store.transaction(durable=durable):
            generation = context.existing(self.generation)
            known = {entry.name: entry for entry in generation.extensions}
            known[result.name] = result.model_copy(
                update={"revision": generation.revision, "operation": context.operation}
            )
            results = tuple(known[entry.name] for entry in extensions if entry.name in known)
            store.amend(generation, extensions=results)
            context.event("extension", f"{result.name}: {result.status}")

    def _remove_gone(
        self, context: InstanceContext, extensions: Sequence[Extension], deadline: Deadline
    ) -> None:
        """Removes extensions that the model no longer names, dependants first, like Azure's agent.

        A failure is only a warning: it must not hold up the rest of the model.
        """
        named = {entry.name: entry.handler_name.lower() for entry in extensions}
        before = {entry.name: context.as_run(entry) for entry in self._results(context)}
        gone = {
            name: extension
            for name, extension in before.items()
            if name not in named
            or (extension is not None and named[name] != extension.handler_name.lower())
        }
        for stage in reversed(stages_of_extensions([entry for entry in gone.values() if entry])):
            for extension in stage:
                self._remove(context, extension, deadline)
        if gone:
            self._forget(context, gone)

    def _remove(self, context: InstanceContext, extension: Extension, deadline: Deadline) -> None:
        guest = context.guest(context.existing(self.generation))
        was_left_out = any(
            entry.left_out for entry in self._results(context) if entry.name == extension.name
        )
        wrong = "" if was_left_out else "its handler is not known here"
        if is_known(extension) and not was_left_out:
            wrong = guest.remove_extension(extension, _limit(context, deadline))
        if wrong:
            context.event("warning", f"{extension.name} was not removed cleanly: {wrong}")
        context.event("extension", f"{extension.name}: removed")

    def _forget(self, context: InstanceContext, names: Container[str]) -> None:
        generation = context.existing(self.generation)
        left = tuple(entry for entry in generation.extensions if entry.name not in names)
        context.environment.store.amend(generation, extensions=left)

    def _judge(self, context: InstanceContext, extensions: Sequence[Extension]) -> None:
        """Raises the first failure of an extension whose failures are not suppressed."""
        suppressed = {entry.name for entry in extensions if entry.suppress_failures}
        failed = [entry for entry in self._results(context) if entry.status == "error"]
        for result in failed:
            if result.name in suppressed:
                context.event("warning", f"{result.name} failed, which is suppressed")
        counting = [entry for entry in failed if entry.name not in suppressed]
        counting.sort(key=lambda entry: entry.skipped)  # real failures before skipped ones
        if counting:
            raise self._failure(context, counting[0])

    def _failure(self, context: InstanceContext, result: ExtensionResult) -> ExtensionError:
        console = context.console(context.existing(self.generation))
        publisher, _, kind = result.type.rpartition(".")
        message = (
            f"VM has reported a failure when processing extension '{result.name}' (publisher "
            f"'{publisher}' and type '{kind}'). Error message: '{result.message or 'no output'}'."
        )
        return ExtensionError(
            result.message if result.timed_out else message,
            instance=context.name,
            extension=result.name,
            exit_code=result.exit_code,
            console_tail=console.tail(),
            log=console.path,
            code="VMExtensionProvisioningTimeout" if result.timed_out else None,
        )


def _limit(context: InstanceContext, deadline: Deadline) -> float:
    """Seconds for one extension: its own limit, if there is one, and what all have left (H3)."""
    own, left = context.timeouts.extension, deadline.left()
    return left if own is None else min(own, left)


def _left_out(extension: Extension) -> ExtensionResult:
    """The result of an extension that is left out, for there is no handler that could run it."""
    return ExtensionResult.of(
        extension, message="left out: nobody registered a handler for it here", left_out=True
    )


def _skipped(extension: Extension, failed: str) -> ExtensionResult:
    """The result of an extension that was skipped, in the Azure agent's wording."""
    return ExtensionResult.of(
        extension,
        status="error",
        skipped=True,
        message=(
            "Skipping processing of extensions since execution of dependent extension "
            f"{failed} failed"
        ),
    )
