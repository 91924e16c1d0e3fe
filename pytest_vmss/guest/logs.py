"""What a guest tells about itself after a failure: journal, cloud-init, extensions (L3)."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass

from pytest_vmss.clock import Deadline
from pytest_vmss.errors import error_text

__all__ = ["LOGS", "LOG_BYTES", "QUICK_LOGS", "GuestLog", "Run", "ended", "read_logs"]

#: The most bytes of one log; a guest that sends more has none.
LOG_BYTES = 2 * 1024 * 1024
#: Each start of cloud-init costs seconds where guests are emulated.
_SLOW = "cloud-init-analyze.txt"

#: What is run as root, by the name of the log. Each command bounds what it writes.
_COMMANDS: Mapping[str, str] = {
    "journal.log": "journalctl --no-pager --boot --lines=20000 --output=short-precise "
    "| tail -c 2000000",
    "cloud-init.log": "tail -c 1000000 /var/log/cloud-init.log",
    "cloud-init-output.log": "tail -c 1000000 /var/log/cloud-init-output.log",
    "cloud-init-status.json": "head -c 1000000 /run/cloud-init/status.json",
    "extensions.log": "find /var/log/azure -type f -name '*.log' -exec tail -v -c 100000 {} + "
    "2>/dev/null | tail -c 1000000",
    "system.txt": "{ uptime; systemctl --failed --no-pager; df -h; free -m; ss -tlnp; ip -brief "
    "address; } 2>&1 | tail -c 200000",
    _SLOW: "cloud-init analyze show 2>&1 | tail -c 500000",
}
#: The names of all logs, the most telling first.
LOGS = tuple(_COMMANDS)
#: Those that cost little time.
QUICK_LOGS = tuple(name for name in LOGS if name != _SLOW)

#: How many bytes at the end of a log a command writes.
_END = re.compile(r"tail -c (\d+)(?!.*tail -c)", re.DOTALL)

#: Runs a command as root within so many seconds, and returns its output.
Run = Callable[[str, float], str]


@dataclass(frozen=True)
class GuestLog:
    """One log of a guest.

    Attributes:
        name: One of :data:`LOGS`.
        text: Its end, as the guest sent it; empty if there is none.
        problem: Why it could not be read; empty if it was.
    """

    name: str
    text: str = ""
    problem: str = ""


def read_logs(
    run: Run, names: Iterable[str], *, deadline: Deadline, each: float
) -> Iterator[GuestLog]:
    """Yields a guest's logs, as each is read.

    Args:
        run: Runs a command in the guest.
        names: Which of :data:`LOGS`.
        deadline: The end of the time for all of them.
        each: Seconds for each.
    """
    for name in names:
        left = deadline.left()
        if not left:
            yield GuestLog(name, problem="there was no time left for it")
            continue
        try:
            yield GuestLog(name, _told(run(_COMMANDS[name], min(each, left)), _COMMANDS[name]))
        except Exception as error:  # noqa: BLE001 - the next command may be answered
            yield GuestLog(name, problem=error_text(error))


def _told(text: str, command: str) -> str:
    limit = _END.search(command)
    return text if limit is None else ended(text, int(limit[1]))


def ended(text: str, limit: int) -> str:
    """Marks a log of which only the end was written, without the line that was cut.

    Masking would find no half of a secret; of one in several lines it finds the rest by the mark.

    Args:
        text: The log.
        limit: How many bytes of it are written at most.
    """
    whole = len(text.encode(errors="replace")) < limit
    return text if whole else f"…\n{text.partition(chr(10))[2]}"
