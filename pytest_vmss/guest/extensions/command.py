"""Commands that extensions run in a guest, once, whatever breaks meanwhile."""

from __future__ import annotations

import json
import re
import shlex
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from importlib.resources import files
from typing import Any
from urllib.parse import urlsplit

from pytest_vmss.clock import wait_for
from pytest_vmss.errors import GuestCommandError, WaitTimeoutError
from pytest_vmss.guest.extensions.handler import Target
from pytest_vmss.guest.extensions.registry import find_handler, timed_out
from pytest_vmss.model import Extension
from pytest_vmss.store import ExtensionRecord

__all__ = ["Command", "redact", "remove_runs", "run_command"]

_MESSAGE_CHARS = 4096
_SECRET_CHARS = 5

# The command runs apart from the SSH session, so that neither a broken
# connection nor a killed orchestrator ends it or runs it twice. The same text
# begins it, where it was not begun, and waits a while for its end. Everything
# that may be secret comes by standard input.
_RUN = """\
set -eu
folder={folder}
if [ ! -e "$folder/started" ]; then
    umask 077
    mkdir -p "$folder"
    cd "$folder"
{sections}
    : > started
    setsid sh -c '
        cd "$1"
        echo $$ > pid
        end() {{
            echo "$1" > status.part
            mv status.part status
            exit
        }}
        if [ -s wanted.json ]; then
            python3 download.py wanted.json . > stdout 2> stderr < /dev/null || end download
        fi
        umask 022
        sh ./command > stdout 2> stderr < /dev/null
        end "$?"
    ' sh "$folder" < /dev/null > /dev/null 2>&1 &
fi
cd "$folder"
tries=0
while [ ! -e status ]; do
    tries=$((tries + 1))
    [ "$tries" -gt 30 ] && exit 75
    sleep 0.1
done
cat status
echo "[stdout]"
tail -c 2048 stdout 2> /dev/null || :
echo
echo "[stderr]"
tail -c 2048 stderr 2> /dev/null || :
"""
_AGAIN = 75

_KILL = """\
cd {folder} || exit 0
[ -e status ] && exit 0
session="$(cat pid)"
pkill -KILL -s "$session"
kill -KILL -- "-$session" 2> /dev/null
echo timeout > status
"""


@dataclass(frozen=True)
class Command:
    """What is run, as root, in a folder of its own.

    Attributes:
        text: For ``/bin/sh``.
        files: What is put into the folder before, by name; a script is executable.
        file_uris: What is downloaded into the folder before.
        skip_dos2unix: Leave line ends of downloaded texts as they are.
    """

    text: str
    files: Mapping[str, bytes] = field(default_factory=dict)
    file_uris: tuple[str, ...] = ()
    skip_dos2unix: bool = False


def run_command(
    target: Target, extension: Extension, command: Command, *, run: str
) -> ExtensionRecord:
    """Runs a command in a guest once for each run.

    Args:
        target: The guest; what has not ended at its limit is killed.
        extension: Whose command it is.
        command: The command.
        run: Names the run, the same after a crash; an earlier result of it is returned.
    """
    shell, clock = target.shell, target.clock
    folder = shlex.quote(f"{_folder(extension)}/{run}")
    parts = {"command": command.text.encode() + b"\n", **command.files}
    if command.file_uris:
        told = {"fileUris": command.file_uris, "skipDos2Unix": command.skip_dos2unix}
        parts["wanted.json"] = json.dumps(told).encode()
        parts["download.py"] = (files("pytest_vmss.guest.in_guest") / "download.py").read_bytes()
    sections = "\n".join(
        f"    head -c {len(part)} > {shlex.quote(name)}\n    chmod 0700 {shlex.quote(name)}"
        for name, part in parts.items()
    )
    script = _RUN.format(folder=folder, sections=sections)
    stdin = b"".join(parts.values())
    start = clock.monotonic()

    def probe() -> str | None:
        result = shell.run(script, stdin=stdin, sudo=True)
        if result.exit_code not in (0, _AGAIN):
            raise GuestCommandError(
                f"the command could not be begun: {result.stderr.strip()[-500:]}",
                instance="",
                exit_code=result.exit_code,
                stderr=result.stderr,
            )
        return result.stdout if result.exit_code == 0 else None

    try:
        answer = wait_for(
            f"the extension {extension.name}", probe, limit=target.limit, clock=clock, interval=0.05
        )
    except WaitTimeoutError:
        shell.run(_KILL.format(folder=folder), sudo=True)
        return timed_out(extension, seconds=clock.monotonic() - start)
    except GuestCommandError as failed:
        return _record(extension, None, failed.message, clock.monotonic() - start)
    return _read(extension, answer, clock.monotonic() - start)


def remove_runs(target: Target, extension: Extension) -> str:
    """Removes what an extension's runs have left; what went wrong."""
    done = target.shell.run(f"rm -rf {shlex.quote(_folder(extension))}", sudo=True)
    return done.stderr.strip()


def _folder(extension: Extension) -> str:
    return f"/var/lib/waagent/custom-script/{extension.name}"


def _read(extension: Extension, answer: str, seconds: float) -> ExtensionRecord:
    """What came of it, in the words of Azure's handler."""
    status, _, output = answer.partition("\n")
    output = output.strip()
    if status == "timeout":
        return timed_out(extension, seconds=seconds)
    if status == "download":
        why = output.rpartition("[stderr]\n")[2]
        return _record(
            extension, None, f"Enable failed: processing file downloads failed: {why}", seconds
        )
    code = int(status)
    told = "Enable succeeded: " if code == 0 else (
        f"Enable failed: failed to execute command: command terminated with exit status={code}"
    )  # fmt: skip
    return _record(extension, code, f"{told}\n{output}", seconds)


def _record(
    extension: Extension, code: int | None, message: str, seconds: float
) -> ExtensionRecord:
    return ExtensionRecord(
        name=extension.name,
        type=extension.handler_name,
        version=find_handler(extension.publisher, extension.type).version,
        status="success" if code == 0 else "error",
        exit_code=code,
        message=redact(message, extension)[-_MESSAGE_CHARS:],
        seconds=seconds,
    )


def redact(text: str, extension: Extension) -> str:
    """A text without what an extension's settings keep secret (M5).

    That is every word of its protected settings, and the queries of its ``fileUris``,
    which may be tokens. Rather too much than too little.
    """
    for secret in sorted(set(_secrets(extension)), key=len, reverse=True):
        text = text.replace(secret, "***")
    return text


def _secrets(extension: Extension) -> Iterator[str]:
    for value in _leaves(extension.protected_settings or {}):
        yield from _words(value)
    uris = (extension.settings or {}).get("fileUris", [])
    for uri in uris if isinstance(uris, list) else ():
        query = urlsplit(str(uri)).query
        yield from _words(query)


def _words(value: str) -> Iterator[str]:
    """A secret, and the parts of it that a program might show alone."""
    parts: Iterable[str] = [value, *value.splitlines(), *re.split(r"[\s'\"=&;|<>()]+", value)]
    return (part for part in parts if len(part) >= _SECRET_CHARS)


def _leaves(value: Any) -> Iterator[str]:
    if isinstance(value, dict):
        for item in value.values():
            yield from _leaves(item)
    elif isinstance(value, Sequence) and not isinstance(value, (str, bytes)):
        for item in value:
            yield from _leaves(item)
    elif value is not None and not isinstance(value, bool):
        yield str(value)
