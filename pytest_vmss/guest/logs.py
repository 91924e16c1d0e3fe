"""What a guest tells about itself after a failure: journal, cloud-init, extensions (L3)."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass

from pytest_vmss.clock import Deadline
from pytest_vmss.errors import error_text

__all__ = ["LOGS", "LOG_BYTES", "QUICK_LOGS", "GuestLog", "Run", "last_lines", "read_logs"]

#: The most bytes of one log; a guest that sends more has none.
LOG_BYTES = 2 * 1024 * 1024
#: Each start of cloud-init costs seconds where guests are emulated.
_SLOW = "cloud-init-analyze.txt"
#: A first line, which is there if nothing was cut off.
_WHOLE = "whole"


def last_lines(command: str, size: int) -> str:
    """Bounds what a shell command prints to the end of it, from the start of a line.

    What is left of a line that was cut could be half of a secret, which masking would not find.
    It is replaced by an ellipsis, by which masking finds the rest of one of several lines.

    Args:
        command: For the guest's shell.
        size: The most bytes.
    """
    first = f"1{{/^{_WHOLE}$/d;s/.*/…/;}}"
    return f'{{ echo {_WHOLE}; {command}; }} | tail -c {size} | LC_ALL=C sed "{first}"'


_EXTENSION_LOG = 'echo "==> $log <=="; ' + last_lines('tail -c 100000 "$log"', 100_000)
#: What is run as root, by the name of the log. Each command bounds what it writes.
_COMMANDS: Mapping[str, str] = {
    "journal.log": last_lines(
        "journalctl --no-pager --boot --lines=20000 --output=short-precise", 2_000_000
    ),
    "cloud-init.log": last_lines("tail -c 1000000 /var/log/cloud-init.log", 1_000_000),
    "cloud-init-output.log": last_lines(
        "tail -c 1000000 /var/log/cloud-init-output.log", 1_000_000
    ),
    "cloud-init-status.json": last_lines("cat /run/cloud-init/status.json", 1_000_000),
    "extensions.log": last_lines(
        "find /var/log/azure -type f -name '*.log' -exec sh -c "
        f"'for log; do {_EXTENSION_LOG}; done' sh {{}} + 2>/dev/null",
        1_000_000,
    ),
    "system.txt": last_lines(
        "{ uptime; systemctl --failed --no-pager; df -h; free -m; ss -tlnp; ip -brief address; } "
        "2>&1",
        200_000,
    ),
    _SLOW: last_lines("cloud-init analyze show 2>&1", 500_000),
}
#: The names of all logs, the most telling first.
LOGS = tuple(_COMMANDS)
#: Those that cost little time.
QUICK_LOGS = tuple(name for name in LOGS if name != _SLOW)

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
            yield GuestLog(name, run(_COMMANDS[name], min(each, left)))
        except Exception as error:  # noqa: BLE001 - the next command may be answered
            yield GuestLog(name, problem=error_text(error))
