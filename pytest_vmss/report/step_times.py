"""How long steps took before on this host, so that the live view can say how far one is."""

from __future__ import annotations

import json
import statistics
from pathlib import Path

from pytest_vmss.errors import error_text
from pytest_vmss.host.files import write_durably
from pytest_vmss.untrusted import UnreadableError, read_json_file

__all__ = ["StepTimes"]

#: Times that are remembered of each step, and steps.
_TIMES, _STEPS = 9, 500
_BYTES = 1024**2


class StepTimes:
    """The seconds that steps of each name took, learnt from earlier runs.

    Args:
        path: The file that remembers them; None for this process alone.
    """

    def __init__(self, path: Path | None = None) -> None:
        self._path = path
        self._times: dict[str, list[float]] = {} if path is None else _read(path)
        self._fresh: dict[str, list[float]] = {}

    def expected(self, step: str) -> float | None:
        """The median of what a step took; None if it is not known."""
        known = self._times.get(step)
        return statistics.median(known) if known else None

    def learn(self, step: str, seconds: float) -> None:
        """Notes what a step took; nothing if the clock was set back meanwhile."""
        if seconds < 0:
            return
        for times in (self._times, self._fresh):
            entry = times.setdefault(step, [])
            entry.append(seconds)
            del entry[:-_TIMES]

    def save(self) -> str:
        """Adds what was learnt to the file, and to what others have learnt meanwhile.

        Returns:
            Why it could not be written; empty if it was. Nothing depends on the file.
        """
        if self._path is None or not self._fresh:
            return ""
        merged = _read(self._path)
        for step, times in self._fresh.items():
            merged[step] = [*merged.pop(step, []), *times][-_TIMES:]
        kept = dict(list(merged.items())[-_STEPS:])
        try:
            self._path.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
            write_durably(self._path, json.dumps(kept).encode())
        except OSError as error:
            return error_text(error)
        self._fresh = {}
        return ""


def _read(path: Path) -> dict[str, list[float]]:
    """Reads the file; what is not as written here counts as nothing."""
    try:
        found = read_json_file(path, _BYTES)
    except (OSError, UnreadableError):
        return {}
    if not isinstance(found, dict):
        return {}
    return {
        step: [float(time) for time in times[-_TIMES:]]
        for step, times in found.items()
        if isinstance(times, list) and all(isinstance(time, (int, float)) for time in times)
    }
