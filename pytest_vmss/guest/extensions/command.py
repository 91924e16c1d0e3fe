"""Runs extensions' commands in a guest exactly once, even if connections break."""

from __future__ import annotations

import json
import re
import shlex
from collections.abc import Iterable, Iterator, Mapping, Sequence
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
from pytest_vmss.secrecy import SecretBytes, SecretText, digits_of, names_secret, uri_secrets
from pytest_vmss.untrusted import UnreadableError, clean, ending, read_whole, shown

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
#: Maximum number of characters processed of a guest's output; honest output is shorter.
_READ_CHARS = 64 * 1024
#: Shorter strings are taken for ordinary words; the minimum for parts of a secret is higher.
_SECRET_CHARS, _PART_CHARS = 5, 6
#: Timeout in seconds of one call to a guest, and bytes/s that reach even a slow one.
_CALL_S, _SLOWEST_BYTES_S = 60.0, 50_000

# The command runs detached from the SSH session, so that neither a broken connection nor a
# killed orchestrator ends it or makes it run twice. The same script starts it, unless it has
# been started, and waits a while for it to finish: it holds a lock as long as it runs, which a
# restart of the guest takes from it too. Everything that may be secret comes over standard input,
# which a broken connection cuts short: so nothing starts until all input has arrived, and if two
# sessions try at once, another lock lets only one start it. The command's own shell says that it
# has started and only then lets go of that lock, so that a session that is killed has started
# nothing, or all. Each program that the shell starts is 20 ms of an emulated guest, so it starts
# few.
_RUN = """\
set -eu
folder={folder}
if [ ! -e "$folder/started" ]; then
    umask 077
    parts="$folder/parts.$$"
    mkdir -p "$parts"
    trap 'rm -rf "$parts"' EXIT
    cd "$parts"
{sections}
    exec 8> ../running.lock 9> ../begin.lock
    flock 9
    if [ ! -e ../started ] && [ ! -e ../status ]; then
        flock 8
        mv {names} ..
        setsid sh -c '
            cd "$1"
            read -r boot < /proc/sys/kernel/random/boot_id
            echo "$$ $boot" > pid
            : > started
            exec 9>&-
            end() {{
                echo "$1" > status.part
                mv status.part status
                exit
            }}
            if [ -s wanted.json ]; then
                python3 download.py wanted.json . > stdout 2> stderr < /dev/null || end download
            fi
            umask 022
            sh ./command > stdout 2> stderr < /dev/null 8>&-
            end "$?"
        ' sh "$folder" < /dev/null > /dev/null 2>&1 &
    fi
    exec 8>&- 9>&-
fi
cd "$folder"
exec 8> running.lock
ended=0
timeout 3 flock 8 || ended="$?"
if [ ! -e status ]; then
    [ "$ended" -eq 124 ] || sleep 1
    exit 75
fi
"""
# Of a long output, the end from the start of a word: half of a secret could not be recognized.
_ANSWER = """\
told() {
    [ -s "$1" ] || return 0
    if [ "$(wc -c < "$1")" -gt 2048 ]; then
        tail -c 2048 "$1" | LC_ALL=C sed '1s/^[^[:space:]]*/…/'
    else
        cat "$1"
    fi
}
read -r status < status || :
echo "$status"
echo "[stdout]"
told stdout
echo
echo "[stderr]"
told stderr
"""
_SECTION = """\
    head -c {size} > {name}
    [ "$(wc -c < {name})" -eq {size} ]"""
_AGAIN = 75

# If the command finished just now, its own status stays. All of its session is killed, also
# what is in process groups of its own; a small image has no pkill, and dash's kill knows no --
# after -KILL. What a restart of the guest has ended is left alone: its number may be another's.
# With the lock no session is in the middle of a start, and none starts anything afterwards.
_KILL = """\
cd {folder} || exit 0
exec 9> begin.lock
timeout 3 flock 9 || :
if [ ! -e status ]; then
    read -r session boot < pid || session=
    read -r now < /proc/sys/kernel/random/boot_id
    if [ -n "$session" ] && [ "$boot" = "$now" ]; then
        for entry in /proc/[0-9]*; do
            read -r line 2> /dev/null < "$entry/stat" || continue
            set -- ${{line##*) }}
            [ "$4" = "$session" ] && kill -s KILL "${{entry#/proc/}}" 2> /dev/null
        done
        kill -s KILL -- "-$session" 2> /dev/null
    fi
    [ -e status ] || echo timeout > status
fi
"""


@dataclass(frozen=True)
class Command:
    """A command to run as root in a folder of its own.

    Attributes:
        text: Script for ``/bin/sh``.
        files: Files created in the folder first, by name; they are executable.
        file_uris: URIs of files downloaded to the folder first.
        skip_dos2unix: Whether to keep line endings of downloaded text files.
    """

    text: str = field(repr=False)
    files: Mapping[str, bytes] = field(default_factory=dict, repr=False)
    file_uris: tuple[str, ...] = field(default=(), repr=False)
    skip_dos2unix: bool = False


def run_command(
    target: Target, extension: Extension, command: Command, *, run: str
) -> ExtensionResult:
    """Runs a command in a guest, once per run id.

    Args:
        target: The guest; a command that exceeds its timeout is killed.
        extension: The extension whose command it is.
        command: The command.
        run: Id of the run, the same after a crash; a run that has finished is not repeated.

    Returns:
        The result, or that of the earlier run with the same id.
    """
    shell, clock = target.shell, target.clock
    folder = shlex.quote(f"{_folder(extension)}/{run}")
    # Wrapped, so that no traceback shows them.
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
    if command.files:
        sections += f"\n    chmod 0700 {_names(command.files)}"
    script = _RUN.format(folder=folder, sections=sections, names=_names(parts)) + _ANSWER
    stdin = SecretBytes(b"".join(parts.values()))
    start = clock.monotonic()
    lost: list[str] = []
    patience = _CALL_S * target.factor + len(stdin) / _SLOWEST_BYTES_S

    def probe() -> str | None:
        try:
            result = shell.run(script, stdin=stdin, sudo=True, timeout=patience)
        except (GuestCommandError, GuestUnreachableError) as error:
            lost[:] = [error.message]  # the command runs on; the guest has its result
            return None
        if result.exit_code < 0:
            lost[:] = ["the SSH connection broke"]
            return None
        lost.clear()
        if result.exit_code not in (0, _AGAIN):
            raise _NotBegunError(ending(result.stderr, 500))
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
    """The guest could not start the command."""


def _kill(target: Target, folder: str, lost: list[str]) -> str:
    """Kills a run that timed out; returns its outcome, or an empty string if it is unknown."""
    try:
        done = target.shell.run(_KILL.format(folder=folder) + _ANSWER, sudo=True)
    except (GuestCommandError, GuestUnreachableError) as error:
        lost[:] = [error.message]
        return ""
    if done.exit_code < 0:
        return ""
    return done.stdout or "timeout"  # it was never started


def remove_runs(target: Target, extension: Extension) -> str:
    """Removes the files of an extension's runs; returns what went wrong."""
    return target.insist(f"rm -rf {shlex.quote(_folder(extension))}").stderr.strip()


def _names(parts: Iterable[str]) -> str:
    """Files of the current folder as words for the guest's shell, whatever they are called."""
    return shlex.join(f"./{name}" for name in parts)


def _folder(extension: Extension) -> str:
    return f"/var/lib/waagent/custom-script/{extension.name}"


def read_outcome(extension: Extension, answer: str, seconds: float) -> ExtensionResult:
    """Converts a run's outcome to a result, with messages like those of Azure's handler.

    Args:
        extension: The extension that was run.
        answer: The guest's report: the status on the first line, then the output.
        seconds: How long it took.
    """
    status, _, output = answer.partition("\n")
    output = ending(output, _READ_CHARS)
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
    """Creates the result of a run.

    Args:
        extension: The extension that was run.
        code: Its exit status.
        message: Message from the guest; the settings' secrets are redacted.
        seconds: How long it took.
        before: Text of the lab's own that precedes the message.
    """
    return ExtensionResult.of(
        extension,
        version=find_handler(extension.publisher, extension.type).version,
        status="success" if code == 0 else "error",
        exit_code=code,
        message=ending(before + redact(clean(message), extension), _MESSAGE_CHARS),
        seconds=seconds,
    )


def broken_handler(extension: Extension, failure: BaseException) -> ExtensionResult:
    """Returns the result of an extension whose handler raised an exception."""
    return _record(extension, None, f"its handler failed: {error_text(failure)}", 0.0)


def redact(text: str, extension: Extension) -> str:
    """Redacts the secrets of an extension's settings in a text (M5).

    These are all words of its protected settings, and whatever names or URIs mark as secret in
    the public ones. Redacts too much rather than too little.
    """
    for secret in sorted(set(secret_words(extension)), key=len, reverse=True):
        text = text.replace(secret, "***")
    return text


def told_by(text: str, extension: Extension) -> str:
    """Prepares an extension's message to be stored and shown: shortened, cleaned and redacted."""
    return shown(redact(clean(text[:_READ_CHARS]), extension), _MESSAGE_CHARS)


def secret_words(extension: Extension) -> Iterator[str]:
    """Yields what :func:`redact` searches for; some of it more than once."""
    protected = [*_leaves(extension.protected_settings or {})]
    for value in (*protected, *_named(extension.settings or {})):
        yield from _words(value)
    for value in (*protected, *_leaves(extension.settings or {})):
        for secret in uri_secrets(value):
            yield from _words(secret)


def _words(value: str) -> Iterator[str]:
    """Yields a secret, and the parts of it that a program might print alone."""
    # As it is written, and unescaped as a shell or a JSON parser reads it.
    for text in {value, re.sub(r"\\(.)", r"\1", value)}:
        parts = (text, *text.splitlines(), *text.split(), *re.split(r"[\s'\"=&;|<>()]+", text))
        yield from (part for part in parts if len(part) >= _SECRET_CHARS)
        yield from (part for part in re.split(r"\W+", text) if len(part) >= _PART_CHARS)


def _named(value: Any) -> Iterator[str]:
    """Yields the strings whose names mark them as secret."""
    if isinstance(value, Mapping):
        for key, item in value.items():
            yield from _leaves(item) if names_secret(key, value) else _named(item)
    elif isinstance(value, (list, tuple)):
        for item in value:
            yield from _named(item)


def _leaves(value: Any) -> Iterator[str]:
    """Yields the strings and numbers in a value, as strings."""
    if isinstance(value, Mapping):
        for item in value.values():
            yield from _leaves(item)
    elif isinstance(value, Sequence) and not isinstance(value, (str, bytes)):
        for item in value:
            yield from _leaves(item)
    elif isinstance(value, (int, float)) and not isinstance(value, bool):
        yield digits_of(value)
    elif value is not None and not isinstance(value, bool):
        yield str(value)
