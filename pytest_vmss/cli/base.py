"""Shared by all commands: the click group, opening the lab, output helpers."""

from __future__ import annotations

import contextlib
import errno
import os
import sys
import warnings
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from io import TextIOWrapper
from pathlib import Path
from typing import Any, cast

import click
from rich.console import Console

from pytest_vmss import __version__
from pytest_vmss.api.instance import Instance
from pytest_vmss.api.lab import Lab
from pytest_vmss.api.operation import Operation
from pytest_vmss.api.scale_set import ScaleSet
from pytest_vmss.configuration import (
    configured,
    find_project,
    overlay,
    read_assignments,
    read_project,
)
from pytest_vmss.errors import (
    ConflictError,
    HostError,
    LabError,
    NotFoundError,
    NotModelledWarning,
    VmssError,
    error_text,
)
from pytest_vmss.labs.identity import labs_folder
from pytest_vmss.labs.inventory import require_lab
from pytest_vmss.report import LiveView, say, stage_table, upgrade_summary, with_width
from pytest_vmss.settings import OUTBOUND, Settings
from pytest_vmss.untrusted import one_line, read_regular

__all__ = [
    "SECTIONS",
    "announced",
    "ask_for_secret",
    "console",
    "context",
    "custom_data_option",
    "find_instance",
    "finish",
    "load_balancer_option",
    "main",
    "open_lab",
    "parameters_option",
    "read_script",
    "run_due",
    "show_upgrade",
]

#: Characters in a line that no terminal bounds: tables are not broken for a pipe or a file.
_PIPED_COLUMNS = 240


def _console() -> Console:
    console = Console(emoji=False, markup=False)
    columns = os.environ.get("COLUMNS", "")
    if not console.is_terminal and columns.strip("0") == "":
        console.width = _PIPED_COLUMNS
    return with_width(console)


console = _console()

_MESSAGE_CHARS = 1000
#: Most bytes read: Azure accepts 64 KiB of custom data, and scripts smaller than this.
_SCRIPT_BYTES = 1024**2


#: The commands by what they are for, in the order of their use.
SECTIONS: Mapping[str, tuple[str, ...]] = {
    "Begin": ("doctor", "demo", "validate", "help", "completion"),
    "Images": ("image",),
    "Scale sets": ("create", "list", "show", "update", "scale", "delete", "watch"),
    "Upgrades": (
        "upgrade", "upgrade-extensions", "update-instances", "status", "history", "cancel",
        "resume", "set-approver",
    ),
    "Instances": (
        "ssh", "console", "run-command", "start", "stop", "restart", "deallocate", "redeploy",
        "reimage", "checkpoint", "restore", "protect", "repair", "set-orchestration-service-state", "delete-instances",
    ),
    "Labs and files": ("lab", "reap", "cache", "blob"),
}  # fmt: skip


class _Group(click.Group):
    """Shows this package's errors as messages, never as tracebacks."""

    def format_commands(
        self,
        ctx: click.Context,  # noqa: ARG002 - as click calls it
        formatter: click.HelpFormatter,
    ) -> None:
        """Writes the commands by sections, with the whole first paragraph of each."""
        for title, names in SECTIONS.items():
            known = [(name, self.commands[name]) for name in names if name in self.commands]
            if known:
                with formatter.section(title):
                    formatter.write_dl([(name, _first_line(command)) for name, command in known])

    def invoke(self, ctx: click.Context) -> Any:
        try:
            return super().invoke(ctx)
        except VmssError as error:
            raise click.ClickException(f"{error} [{error.code}]") from error
        except OSError as error:
            if error.errno == errno.EPIPE:
                raise  # the reader closed the pipe; click exits quietly
            raise _wrong(error) from error
        except (ValueError, OverflowError) as error:  # includes UnicodeError
            raise _wrong(error) from error

    def main(self, *args: Any, **kwargs: Any) -> Any:
        for stream in (sys.stdout, sys.stderr):
            if isinstance(stream, TextIOWrapper):  # else it may be None, where it was closed
                # A locale without an arrow or an umlaut gets an escape, rather than no answer.
                stream.reconfigure(errors="backslashreplace")
        try:
            return super().main(*args, **kwargs)
        except OSError as error:  # writing help or an error message failed
            _forget_output()
            with contextlib.suppress(OSError):
                sys.stderr.write(f"Error: {error_text(error)}\n")
            sys.exit(1)


def _first_line(command: click.Command) -> str:
    return (command.help or "").partition("\n\n")[0].replace("\n", " ").strip()


def _complete_lab(_: click.Context, __: click.Parameter, incomplete: str) -> list[str]:
    """The names of labs that begin with what has been typed."""
    folder = labs_folder(Settings())
    names = [entry.name for entry in folder.iterdir()] if folder.is_dir() else []
    return sorted(name for name in names if name.startswith(incomplete))


def _wrong(error: Exception) -> click.ClickException:
    """Turns an error into a message for the user; with ``VMSS_TRACEBACK`` set, raises it."""
    if os.environ.get("VMSS_TRACEBACK"):
        raise error
    _forget_output()
    return click.ClickException(
        f"{one_line(error_text(error), _MESSAGE_CHARS)} (VMSS_TRACEBACK=1 shows where)"
    )


def _forget_output() -> None:
    """Discards output that cannot be written, so that the interpreter does not retry at exit."""
    try:
        sys.stdout.flush()
    except (OSError, ValueError):
        with contextlib.suppress(OSError, ValueError):
            descriptor = os.open(os.devnull, os.O_WRONLY)
            os.dup2(descriptor, sys.stdout.fileno())
            os.close(descriptor)


@click.group(cls=_Group, context_settings={"help_option_names": ["-h", "--help"]})
@click.version_option(__version__, prog_name="vmss")
@click.option(
    "--lab",
    default="default",
    show_default=True,
    shell_complete=_complete_lab,
    help="Name of the lab.",
)
@click.option("--connect", help="libvirt connection URI; chosen by the host otherwise.")
@click.option(
    "--accel",
    type=click.Choice(["kvm", "tcg"], case_sensitive=False),
    help="Force the accelerator.",
)
@click.option(
    "--guest-network",
    type=click.Choice(["isolated", "outbound"], case_sensitive=False),
    help="What guests reach from their next start on: nothing, or whatever this host can, "
    "its own loopback among it. (VMSS_GUEST_NETWORK; isolated otherwise)",
)
@click.option("--size", help="Make every set in this VM size, whatever its model says.")
@click.option(
    "--unknown-extensions",
    type=click.Choice(["refuse", "skip"], case_sensitive=False),
    help="Extensions that nobody registered: refuse the model, or leave them out.",
)
@click.option(
    "--set",
    "assignments",
    multiple=True,
    metavar="NAME=VALUE",
    help="Any other setting, in TOML, such as timeouts.boot=120; again for another. "
    "([tool.vmss] of the nearest pyproject.toml otherwise)",
)
@click.pass_context
def main(
    ctx: click.Context,
    lab: str,
    connect: str | None,
    accel: str | None,
    guest_network: str | None,
    size: str | None,
    unknown_extensions: str | None,
    assignments: tuple[str, ...],
) -> None:
    """Azure's automatic OS image upgrade for VM Scale Sets, rehearsed on a laptop."""
    table = overlay(read_project(_project()), read_assignments(assignments, "--set"))
    given = {
        "connect": connect,
        "accelerator": accel,
        "guest_network": guest_network,
        "size": size,
        "unknown_extensions": unknown_extensions,
    }
    arguments = configured(table)
    arguments.update((name, value) for name, value in given.items() if value is not None)
    settings = Settings(**arguments)
    if settings.guest_network == "outbound":
        click.echo(OUTBOUND, err=True)
    ctx.obj = (settings, lab)


def _project() -> Path | None:
    """The ``pyproject.toml`` that counts where the command was started."""
    try:
        return find_project(Path.cwd())
    except OSError:  # the working directory is gone
        return None


@contextmanager
def open_lab(*, make: bool = False) -> Iterator[Lab]:
    """Opens the lab that the options name, and closes it at the end.

    Args:
        make: Whether to make the lab if there is none. It does not stay if the block fails before
            anything is in it.

    Raises:
        NotFoundError: There is none.
    """
    settings, name = context()
    if not make:
        require_lab(settings, name)
    lab = Lab.open(settings, name)
    try:
        yield lab
    except BaseException:
        with contextlib.suppress(LabError, ConflictError):  # another process may use it
            lab.destroy(if_unused=True)
        raise
    finally:
        lab.close()


custom_data_option = click.option(
    "--custom-data",
    type=click.Path(path_type=Path),
    help="File with the custom data, not encoded.",
)
load_balancer_option = click.option(
    "--load-balancer", type=click.Path(path_type=Path), help="Its Azure JSON."
)
parameters_option = click.option(
    "--parameters",
    "-p",
    multiple=True,
    metavar="FILE|NAME=VALUE",
    help="Values for a template's parameters; again for more, and later ones win.",
)


def ask_for_secret(name: str) -> str | None:
    """Asks for a template's secure parameter on the terminal; None generates one."""
    if not sys.stdin.isatty():
        return None
    told = f"{one_line(name)} (secret; empty for a generated one)"
    value: str = click.prompt(told, default="", show_default=False, hide_input=True, err=True)
    return value or None


@contextmanager
def announced() -> Iterator[None]:
    """Prints warnings about models as lines, when they arise."""
    usual = warnings.showwarning

    def show(message: Warning | str, category: type[Warning], *rest: Any, **named: Any) -> None:
        if issubclass(category, NotModelledWarning):
            say(console, str(message), style="dim")
        else:
            usual(message, category, *rest, **named)

    with warnings.catch_warnings():
        warnings.simplefilter("always", NotModelledWarning)
        warnings.showwarning = show
        yield


def read_script(path: Path) -> str:
    """Reads a script; from standard input if the path is ``-``.

    Raises:
        HostError: It cannot be read, or is not UTF-8.
    """
    if str(path) == "-":
        content = sys.stdin.buffer.read(_SCRIPT_BYTES + 1)
    else:
        content = _read(path, _SCRIPT_BYTES)
    try:
        text = content.decode()
    except UnicodeDecodeError as error:
        raise HostError(
            f"{path} is not UTF-8 at byte {error.start}; give a script's text"
        ) from None
    if len(content) > _SCRIPT_BYTES:
        raise HostError(f"the script is larger than {_SCRIPT_BYTES >> 10} KiB; give a shorter one")
    return text


def _read(path: Path, limit: int) -> bytes:
    try:
        return read_regular(path, limit)
    except (OSError, ValueError) as error:
        reason = getattr(error, "strerror", None) or str(error)
        raise HostError(f"{path} cannot be read: {reason}; give a regular file") from error


def show_upgrade(lab: Lab, upgrade: Operation) -> None:
    """Prints how an operation ended, and how long its stages took."""
    console.print(upgrade_summary(upgrade.report))
    console.print(stage_table(upgrade.record, lab.store.steps(upgrade.id)))


def run_due(lab: Lab) -> None:
    """Runs the automatic upgrades that are due, and prints them; exits with status 1 if one failed."""
    before = {entry.id for web in lab.scale_sets() for entry in web.history(limit=None)}
    with LiveView.of(lab, console):
        lab.run_due()
    fresh = [
        entry
        for scale_set in lab.scale_sets()
        for entry in scale_set.history(limit=None)
        if entry.id not in before
    ]
    for entry in fresh:
        show_upgrade(lab, entry)
    if any(not entry.completed for entry in fresh):
        sys.exit(1)


def find_instance(scale_set: ScaleSet, instance_id: int) -> Instance:
    """Returns an instance by its number.

    Raises:
        NotFoundError: There is no such instance.
    """
    for instance in scale_set:
        if instance.instance_id == str(instance_id):
            return instance
    known = ", ".join(instance.instance_id for instance in scale_set)
    raise NotFoundError(
        f"the scale set {scale_set.name!r} has no instance {instance_id}; "
        f"there are: {known or 'none'}"
    )


def context() -> tuple[Settings, str]:
    """The settings and the lab's name, from the options before the command."""
    return cast("tuple[Settings, str]", click.get_current_context().obj)


def finish(lab: Lab, ended: Operation) -> None:
    """Prints an operation that has ended; exits with status 1 if it did not complete."""
    show_upgrade(lab, ended)
    if not ended.completed:
        click.echo(ended.explain(), err=True)
        sys.exit(1)
