"""Reads cloud-init's result and the problems it reported (H1, E5)."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from itertools import islice
from typing import Any, Literal

from pytest_vmss.guest.logs import last_lines
from pytest_vmss.untrusted import UnreadableError, one_line, read_json, shown

__all__ = ["AGAIN", "AS_ROOT", "LOGS", "CloudInitResult", "read_verdict", "wait_script"]

#: Exit status of :func:`wait_script` while cloud-init is still running.
AGAIN = 75
#: The same where only root may read what it says.
AS_ROOT = 77

_MARK = "=== pytest-vmss ==="
#: Maximum number of problems kept, and of characters of each.
_PROBLEMS = 20
_PROBLEM_CHARS = 1000
_DATASOURCE_CHARS = 200

_RUN, _LOG = "/run/cloud-init", "/var/log/cloud-init.log"


def wait_script(*, as_root: bool) -> str:
    """A script for the guest's shell that waits a while for cloud-init to finish.

    That is cheaper than polling. What it waits for is a link into a folder that may be root's
    alone. Versions before 23.4 do not record recoverable errors, so the log is searched.

    Args:
        as_root: Whether it is run as root. Without sudo, which costs an emulated guest a tenth
            of a second, it ends with :data:`AS_ROOT` where it may not read something.
    """

    def require(test: str) -> str:
        return "" if as_root else f"[ {test} ] || exit {AS_ROOT}"

    return f"""\
tries=0
while [ ! -s {_RUN}/result.json ] && [ ! -e {_RUN}/disabled ]; do
    tries=$((tries + 1))
    [ "$tries" -gt 12 ] || {{ sleep 0.25; continue; }}
    {require("-x /run")}
    [ ! -d {_RUN} ] || {require(f"-x {_RUN}") or ":"}
    [ ! -L {_RUN}/result.json ] || {require(f"-e {_RUN}/result.json") or ":"}
    exit {AGAIN}
done
[ ! -L {_RUN}/result.json ] || {require(f"-e {_RUN}/result.json") or ":"}
[ -s {_RUN}/result.json ] || exec echo disabled
{require(f"-r {_RUN}/result.json")}
{require(f"-r {_RUN}/status.json")}
echo '{_MARK}' | cat {_RUN}/result.json - {_RUN}/status.json
echo '{_MARK}'
if ! grep -q recoverable_errors {_RUN}/status.json; then
    {require(f"-r {_LOG}")}
    grep -h '\\[WARNING\\]: ' {_LOG} | tail -n 20
fi
exit 0
"""


#: A script for the guest's shell, run as root: prints the end of both logs.
LOGS = f"""\
for log in /var/log/cloud-init.log /var/log/cloud-init-output.log; do
    echo "== $log =="
    {last_lines('tail -c 65536 "$log"', 65_536)}
done
"""


@dataclass(frozen=True)
class CloudInitResult:
    """The result of cloud-init.

    Attributes:
        status: ``error``: it failed; ``degraded``: it recovered from errors; ``disabled``: it did
            not run.
        problems: The errors that it reported, which name the failing module.
        datasource: What it found, and where, such as ``DataSourceAzure [seed=/dev/sr0]``.
    """

    status: Literal["done", "degraded", "disabled", "error"]
    problems: tuple[str, ...] = ()
    datasource: str = ""

    def __post_init__(self) -> None:
        """Cleans and limits text from the guest."""
        object.__setattr__(self, "datasource", one_line(self.datasource, _DATASOURCE_CHARS))
        told = tuple(shown(problem, _PROBLEM_CHARS) for problem in self.problems[:_PROBLEMS])
        object.__setattr__(self, "problems", told)


def read_verdict(text: str) -> CloudInitResult:
    """Parses the output of :func:`wait_script`.

    Raises:
        UnreadableError: The output is malformed.
    """
    if text.strip() == "disabled":
        return CloudInitResult("disabled")
    parts = text.split(_MARK + "\n", 3)
    if len(parts) != 3:
        raise UnreadableError(f"it has {len(parts)} parts in place of 3: {one_line(text)!r}")
    result, status, warnings = parts
    found = _part(read_json(result), "v1")
    datasource = str(found.get("datasource") or "")
    errors = _list(found.get("errors"))
    if errors:
        return CloudInitResult("error", tuple(str(error) for error in errors[:_PROBLEMS]))
    problems = tuple(
        islice((*_recoverable(_part(read_json(status), "v1")), *_words(warnings)), _PROBLEMS)
    )
    return CloudInitResult("degraded" if problems else "done", problems, datasource)


def _part(value: Any, name: str) -> dict[str, Any]:
    """Returns an object inside another.

    Raises:
        UnreadableError: There is no such object.
    """
    found = value.get(name) if isinstance(value, dict) else None
    if not isinstance(found, dict):
        raise UnreadableError(f"it has no object {name!r}")
    return found


def _list(value: Any) -> list[Any]:
    """Returns a value as a list; one that is not a list becomes its only item, unless empty."""
    return value if isinstance(value, list) else [value] if value else []


def _recoverable(status: dict[str, Any]) -> Iterator[str]:
    """Yields the errors that versions from 23.4 on record by stage and level."""
    for stage, entry in status.items():
        levels = entry.get("recoverable_errors", {}) if isinstance(entry, dict) else {}
        for level, messages in levels.items() if isinstance(levels, dict) else ():
            if level in ("WARNING", "ERROR", "CRITICAL"):
                yield from (f"{stage}: {message}" for message in _list(messages))


def _words(log: str) -> Iterator[str]:
    for line in log.splitlines():
        _, _, message = line.partition("[WARNING]: ")
        if message:
            yield message
