"""The step that keeps what the guest of a failed OS disk tells, before the disk is discarded."""

from __future__ import annotations

import shutil
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar

from pytest_vmss.environment.environment import InstanceContext
from pytest_vmss.environment.lab_secrets import masker_of
from pytest_vmss.errors import error_summary
from pytest_vmss.guest.logs import LOG_BYTES, QUICK_LOGS
from pytest_vmss.host.files import PART, write_durably
from pytest_vmss.secrecy import mask
from pytest_vmss.steps.step import Conclusion
from pytest_vmss.store import GenerationRecord, OutcomeRecord
from pytest_vmss.untrusted import clean, one_line

__all__ = ["KeepGuestLogs"]

#: Seconds for all logs of a guest under KVM, and for each of them.
_TOTAL_S = 10.0
_EACH_S = 5.0
_REASON_CHARS = 300


@dataclass(frozen=True)
class KeepGuestLogs:
    """Keeps the logs of the guest on a failed OS disk, as far as it answers (E5).

    Whatever cannot be had is told, and neither fails the instance nor is waited for. A repetition
    replaces what an interrupted one has written.

    Attributes:
        generation: Number of the OS disk.
    """

    name: ClassVar[str] = "guest logs"
    timed: ClassVar[bool] = False
    durable: ClassVar[bool] = True

    generation: int

    def apply(self, context: InstanceContext) -> Conclusion | None:
        generation = context.generation(self.generation)
        if generation is None or not generation.started:
            return None  # nothing has run on it
        folder = context.environment.paths.guest_logs(
            context.scale_set, context.instance_id, self.generation
        )
        problems: list[str] = []
        try:
            _sweep(folder)
            self._collect(context, generation, folder, problems)
        except Exception as error:  # noqa: BLE001 - the rollback must go on
            problems.append(error_summary(error)[1])
        kept = str(folder) if _holds_logs(folder) else ""
        return lambda: self._conclude(context, kept, problems)

    def _collect(
        self,
        context: InstanceContext,
        generation: GenerationRecord,
        folder: Path,
        problems: list[str],
    ) -> None:
        """Writes one log after the other, masked; notes those that could not be read."""
        environment = context.environment
        if environment.hypervisor.running_generation(context.domain) != self.generation:
            problems.append("its machine does not run on that disk")
            return
        factor = environment.hypervisor.slow_factor
        logs = context.guest(generation).logs(
            QUICK_LOGS, timeout=_TOTAL_S * factor, each=_EACH_S * factor
        )
        masked = masker_of(environment)
        _make_anew(folder)
        for log in logs:
            text = masked(clean(log.text))
            if log.problem:
                problems.append(f"{log.name}: {log.problem}")
            elif text.strip():
                write_durably(folder / log.name, text.encode(errors="replace")[-LOG_BYTES:])
            environment.clock.check()

    def _conclude(self, context: InstanceContext, kept: str, problems: Sequence[str]) -> None:
        """Writes where the logs are beside the instance's error, and why some are missing."""
        missing = one_line(mask("; ".join(problems)), _REASON_CHARS)
        store, key = context.environment.store, (context.scale_set.lower(), context.operation)
        result = store.get(OutcomeRecord, *key, context.instance_id)
        if result is not None and result.error is not None:
            error = result.error.model_copy(
                update={"guest_logs": kept, "missing_guest_logs": missing}
            )
            store.amend(result, error=error)
        told = f"the guest's logs of OS disk number {self.generation} "
        told += f"are kept: {kept}" if kept else "could not be read"
        context.event("logs", f"{told}; missing: {missing}" if missing else told)


def _sweep(folder: Path) -> None:
    """Removes logs that were half written when a kill or the host ended it."""
    if folder.is_dir() and not folder.is_symlink():
        for part in folder.glob(f"*{PART}"):
            part.unlink()


def _make_anew(folder: Path) -> None:
    """Makes a private, empty folder; whatever is in its place, a link too, is removed."""
    if folder.is_dir() and not folder.is_symlink():
        shutil.rmtree(folder)
    else:
        folder.unlink(missing_ok=True)
    folder.mkdir(mode=0o700)


def _holds_logs(folder: Path) -> bool:
    """Whether a folder holds logs; needs no descriptor, for there may be none left."""
    try:
        return not folder.is_symlink() and any((folder / name).is_file() for name in QUICK_LOGS)
    except OSError:
        return False
