"""cloud-init's own verdict on what it did (H1, E5)."""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, Literal

__all__ = ["AGAIN", "LOGS", "WAIT", "CloudInitResult", "read_verdict"]

#: Exit status of :data:`WAIT` while cloud-init has not ended.
AGAIN = 75

_MARK = "=== pytest-vmss ==="

#: For the guest's shell: waits a while for cloud-init's end, which costs less than asking often.
#: Versions before 23.4 do not count what went wrong without being fatal: their log does.
WAIT = f"""\
tries=0
while [ ! -s /run/cloud-init/result.json ] && [ ! -e /run/cloud-init/disabled ]; do
    tries=$((tries + 1))
    [ "$tries" -gt 12 ] && exit {AGAIN}
    sleep 0.25
done
[ -s /run/cloud-init/result.json ] || exec echo disabled
cat /run/cloud-init/result.json
echo '{_MARK}'
cat /run/cloud-init/status.json
echo '{_MARK}'
if ! grep -q recoverable_errors /run/cloud-init/status.json; then
    grep -h '\\[WARNING\\]: ' /var/log/cloud-init.log | tail -n 20
fi
exit 0
"""

#: For the guest's shell, as root: both logs, the newest lines of each.
LOGS = """\
for log in /var/log/cloud-init.log /var/log/cloud-init-output.log; do
    echo "== $log =="
    tail -c 65536 "$log"
done
"""


@dataclass(frozen=True)
class CloudInitResult:
    """How cloud-init ended.

    Attributes:
        status: ``error``: it failed; ``degraded``: something went wrong that was not fatal.
        problems: What went wrong, in its own words; the failing module is named there.
    """

    status: Literal["done", "degraded", "disabled", "error"]
    problems: tuple[str, ...] = ()


def read_verdict(text: str) -> CloudInitResult:
    """Reads what :data:`WAIT` printed.

    Raises:
        ValueError: It is not that.
    """
    if text.strip() == "disabled":
        return CloudInitResult("disabled")
    result, status, warnings = text.split(_MARK + "\n")
    errors = tuple(str(error) for error in json.loads(result)["v1"].get("errors", []))
    if errors:
        return CloudInitResult("error", errors)
    problems = (*_recoverable(json.loads(status)["v1"]), *_words(warnings))
    return CloudInitResult("degraded" if problems else "done", problems)


def _recoverable(status: dict[str, Any]) -> Iterator[str]:
    """What a version from 23.4 on counts, by stage and level."""
    for stage, entry in status.items():
        levels = entry.get("recoverable_errors", {}) if isinstance(entry, dict) else {}
        for level, messages in levels.items():
            if level in ("WARNING", "ERROR", "CRITICAL"):
                yield from (f"{stage}: {message}" for message in messages)


def _words(log: str) -> Iterator[str]:
    for line in log.splitlines():
        _, _, message = line.partition("[WARNING]: ")
        if message:
            yield message
