"""Commands that extensions run in a guest, once, whatever breaks meanwhile."""

from __future__ import annotations

import json
import re
import shlex
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from importlib.resources import files
from typing import Any

from pytest_vmss.clock import wait_for
from pytest_vmss.errors import (
    GuestCommandError,
    GuestUnreachableError,
    WaitTimeoutError,
    error_text,
)
from pytest_vmss.guest.extensions.handler import Target
from pytest_vmss.guest.extensions.registry import find_handler, timed_out
from pytest_vmss.guest.tunnel import through_tunnel
from pytest_vmss.model import Extension
from pytest_vmss.model.extension_result import ExtensionResult
from pytest_vmss.secrecy import SecretBytes, SecretText, names_secret, uri_secrets
from pytest_vmss.untrusted import UnreadableError, clean, read_whole, shown

__all__ = [
    "Command",
    "broken_handler",
    "read_outcome",
    "redact",
    "remove_runs",
    "run_command",
    "told_by",
]

_MESSAGE_CHARS = 4096
#: What is looked at of what a guest says; an honest one says less.
_READ_CHARS = 64 * 1024
#: What is shorter is an ordinary word rather than a secret; of parts between punctuation more so.
_SECRET_CHARS, _PART_CHARS = 5, 6
#: For one call of a guest, and what reaches even a slow one in a second.
_CALL_S, _SLOWEST_BYTES_S = 60.0, 50_000

# The command runs apart from the SSH session, so that neither a broken
# connection nor a killed orchestrator ends it or runs it twice. The same text
# begins it, where it was not begun, and waits a while for its end. Everything
# that may be secret comes by standard input, which a broken connection cuts short:
# what has not come whole is not begun, and of two that come at once one begins.
_RUN = """\
set -eu
folder={folder}
if [ ! -e "$folder/started" ]; then
    umask 077
    mkdir -p "$folder"
    parts="$(mktemp -d "$folder/parts.XXXXXX")"
    trap 'rm -rf "$parts"' EXIT
    cd "$parts"
{sections}
    cd "$folder"
    exec 9> begin.lock
    flock 9
    if [ ! -e started ]; then
        mv "$parts"/* .
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
        ' sh "$folder" < /dev/null > /dev/null 2>&1 9>&- &
    fi
    exec 9>&-
fi
cd "$folder"
tries=0
while [ ! -e status ]; do
    tries=$((tries + 1))
    [ "$tries" -gt 30 ] && exit 75
    sleep 0.1
done
"""
_ANSWER = """\
cat status
echo "[stdout]"
tail -c 2048 stdout 2> /dev/null || :
echo
echo "[stderr]"
tail -c 2048 stderr 2> /dev/null || :
"""
_SECTION = """\
    head -c {size} > {name}
    [ "$(wc -c < {name})" -eq {size} ]
    chmod 0700 {name}"""
_AGAIN = 75

# It may have ended this very moment: then that is its end.
_KILL = """\
cd {folder} || exit 0
if [ ! -e status ]; then
    session="$(cat pid)"
    if [ -n "$session" ]; then
        pkill -KILL -s "$session"
        kill -KILL -- "-$session" 2> /dev/null
    fi
    [ -e status ] || echo timeout > status
fi
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

    text: str = field(repr=False)
    files: Mapping[str, bytes] = field(default_factory=dict, repr=False)
    file_uris: tuple[str, ...] = field(default=(), repr=False)
    skip_dos2unix: bool = False


def run_command(
    target: Target, extension: Extension, command: Command, *, run: str
) -> ExtensionResult:
    """Runs a command in a guest once for each run.

    Args:
        target: The guest; what has not ended at its limit is killed.
        extension: Whose command it is.
        command: The command.
        run: Names the run, the same after a crash; an earlier result of it is returned.
    """
    shell, clock = target.shell, target.clock
    folder = shlex.quote(f"{_folder(extension)}/{run}")
    # What errors show on their way holds none of it.
    parts = {"command": SecretBytes(command.text.encode() + b"\n")}
    parts |= {name: SecretBytes(part) for name, part in command.files.items()}
    if command.file_uris:
        uris = [SecretText(through_tunnel(uri, target.files_port)) for uri in command.file_uris]
        told = {"fileUris": uris, "skipDos2Unix": command.skip_dos2unix}
        parts["wanted.json"] = SecretBytes(json.dumps(told).encode())
        program = files("pytest_vmss.guest.in_guest") / "download.py"
        parts["download.py"] = SecretBytes(program.read_bytes())
    sections = "\n".join(
        _SECTION.format(size=len(part), name=shlex.quote(name)) for name, part in parts.items()
    )
    script = _RUN.format(folder=folder, sections=sections) + _ANSWER
    stdin = SecretBytes(b"".join(parts.values()))
    start = clock.monotonic()
    lost: list[str] = []
    patience = _CALL_S * target.factor + len(stdin) / _SLOWEST_BYTES_S

    def probe() -> str | None:
        try:
            result = shell.run(script, stdin=stdin, sudo=True, timeout=patience)
        except (GuestCommandError, GuestUnreachableError) as error:
            lost[:] = [error.message]  # it runs on; the guest knows how it ended
            return None
        if result.exit_code < 0:
            lost[:] = ["the SSH connection broke"]
            return None
        lost.clear()
        if result.exit_code not in (0, _AGAIN):
            raise _NotBegunError(result.stderr.strip()[-500:])
        return result.stdout if result.exit_code == 0 else None

    try:
        answer = wait_for(
            f"the extension {extension.name}",
            probe,
            timeout=target.timeout,
            clock=clock,
            interval=0.05,
        )
    except WaitTimeoutError:
        answer = _kill(target, folder, lost)
        if not answer:
            reason = f"the guest could not be asked how it ended within {target.timeout:.0f} s"
            return _record(extension, None, "; ".join([reason, *lost]), clock.monotonic() - start)
    except _NotBegunError as error:
        reason = f"the command could not be begun: {error}"
        return _record(extension, None, reason, clock.monotonic() - start)
    return read_outcome(extension, answer, clock.monotonic() - start)


class _NotBegunError(Exception):
    """The guest could not begin the command."""


def _kill(target: Target, folder: str, lost: list[str]) -> str:
    """Ends a run that is past its limit; how it ended, empty where nobody can tell."""
    try:
        done = target.shell.run(_KILL.format(folder=folder) + _ANSWER, sudo=True)
    except (GuestCommandError, GuestUnreachableError) as error:
        lost[:] = [error.message]
        return ""
    if done.exit_code < 0:
        return ""
    return done.stdout or "timeout"  # it was never begun


def remove_runs(target: Target, extension: Extension) -> str:
    """Removes what an extension's runs have left; what went wrong."""
    return target.insist(f"rm -rf {shlex.quote(_folder(extension))}").stderr.strip()


def _folder(extension: Extension) -> str:
    return f"/var/lib/waagent/custom-script/{extension.name}"


def read_outcome(extension: Extension, answer: str, seconds: float) -> ExtensionResult:
    """What came of a run, in the words of Azure's handler.

    Args:
        extension: Whose run it was.
        answer: What the guest says of it: its status on the first line, and its output.
        seconds: How long it took.
    """
    status, _, output = answer.partition("\n")
    output = output[-_READ_CHARS:].strip()
    if status == "timeout":
        return timed_out(extension, seconds=seconds)
    if status == "download":
        reason = output.rpartition("[stderr]\n")[2]
        before = "Enable failed: processing file downloads failed: "
        return _record(extension, None, reason, seconds, before)
    try:
        code = read_whole(status, "the exit status")
    except UnreadableError as error:
        return _record(extension, None, f"the guest did not tell how it ended: {error}", seconds)
    told = "Enable succeeded: " if code == 0 else (
        f"Enable failed: failed to execute command: command terminated with exit status={code}"
    )  # fmt: skip
    return _record(extension, code, output, seconds, before=f"{told}\n")


def _record(
    extension: Extension, code: int | None, message: str, seconds: float, before: str = ""
) -> ExtensionResult:
    """What came of a run.

    Args:
        extension: Whose run it was.
        code: Its exit status.
        message: What was said of it; loses what the settings keep secret.
        seconds: How long it took.
        before: Words of the lab's own that go before the message.
    """
    return ExtensionResult(
        name=extension.name,
        type=extension.handler_name,
        version=find_handler(extension.publisher, extension.type).version,
        status="success" if code == 0 else "error",
        exit_code=code,
        message=(before + redact(clean(message), extension))[-_MESSAGE_CHARS:],
        seconds=seconds,
    )


def broken_handler(extension: Extension, failure: BaseException) -> ExtensionResult:
    """What came of an extension whose handler failed itself."""
    return _record(extension, None, f"its handler failed: {error_text(failure)}", 0.0)


def redact(text: str, extension: Extension) -> str:
    """A text without what an extension's settings keep secret (M5).

    That is every word of its protected settings, and of others what names or URIs tell to be
    secret. Rather too much than too little.
    """
    for secret in sorted(set(_secrets(extension)), key=len, reverse=True):
        text = text.replace(secret, "***")
    return text


def told_by(text: str, extension: Extension) -> str:
    """What an extension says, fit to be kept and shown: its beginning, cleaned, without secrets."""
    return shown(redact(clean(text[:_READ_CHARS]), extension), _MESSAGE_CHARS)


def _secrets(extension: Extension) -> Iterator[str]:
    protected = [*_leaves(extension.protected_settings or {})]
    for value in (*protected, *_named(extension.settings or {})):
        yield from _words(value)
    for value in (*protected, *_leaves(extension.settings or {})):
        for secret in uri_secrets(value):
            yield from _words(secret)


def _words(value: str) -> Iterator[str]:
    """A secret, and the parts of it that a program might show alone."""
    # As it is written, and as a shell or a reader of JSON takes it.
    for text in {value, re.sub(r"\\(.)", r"\1", value)}:
        parts = (text, *text.splitlines(), *re.split(r"[\s'\"=&;|<>()]+", text))
        yield from (part for part in parts if len(part) >= _SECRET_CHARS)
        yield from (part for part in re.split(r"\W+", text) if len(part) >= _PART_CHARS)


def _named(value: Any) -> Iterator[str]:
    """The texts that names tell to be secret."""
    if isinstance(value, Mapping):
        for key, item in value.items():
            yield from _leaves(item) if names_secret(key, value) else _named(item)
    elif isinstance(value, (list, tuple)):
        for item in value:
            yield from _named(item)


def _leaves(value: Any) -> Iterator[str]:
    """The texts and numbers in a value."""
    if isinstance(value, Mapping):
        for item in value.values():
            yield from _leaves(item)
    elif isinstance(value, Sequence) and not isinstance(value, (str, bytes)):
        for item in value:
            yield from _leaves(item)
    elif value is not None and not isinstance(value, bool):
        yield str(value)
