"""``vmss cache``: the checkpoints from which sets are restored."""

from __future__ import annotations

import contextlib
import datetime
from collections.abc import Iterator

import click
from rich.table import Table
from rich.text import Text

from pytest_vmss.checkpoints import CheckpointCache, Entry
from pytest_vmss.cli.base import console, context, main
from pytest_vmss.errors import HostError
from pytest_vmss.report import plain
from pytest_vmss.settings import GIB

__all__: list[str] = []

_MIB = 1024**2


@contextlib.contextmanager
def _cache() -> Iterator[CheckpointCache]:
    """The cache of checkpoints, for a block that reads or changes it.

    Raises:
        HostError: Its folder cannot be used.
    """
    settings, _ = context()
    try:
        yield CheckpointCache(settings.cache_dir / "checkpoints", settings.checkpoints_gib * GIB)
    except OSError as error:
        raise HostError(
            f"the cache of checkpoints cannot be used: {error}; mend that, or name another folder "
            "(VMSS_CACHE_DIR)"
        ) from error


@main.group()
def cache() -> None:
    """List and remove checkpoints of booted scale sets."""


@cache.command("list")
def cache_list() -> None:
    """List the checkpoints, the least recently used first."""
    table = Table("key", "scale set", "instances", "MiB", "made (UTC)", "last used (UTC)", box=None)
    with _cache() as found:
        entries = found.entries()
    for entry in entries:
        table.add_row(
            plain(entry.key),
            *_told(entry),
            f"{entry.size // _MIB}",
            plain("" if entry.manifest is None else f"{entry.manifest.created:%Y-%m-%d %H:%M}"),
            plain(_moment(entry.used)),
        )
    console.print(table)


def _moment(seconds: float) -> str:
    """A time since the epoch in words; empty if it is in no year that there is."""
    try:
        moment = datetime.datetime.fromtimestamp(seconds, datetime.UTC)
    except (ValueError, OverflowError):  # whatever the file system has
        return ""
    return f"{moment:%Y-%m-%d %H:%M}"


def _told(entry: Entry) -> tuple[str | Text, str]:
    if entry.manifest is None:
        return ("damaged", "")
    return (plain(entry.manifest.scale_set), str(len(entry.manifest.instances)))


@cache.command("prune")
@click.option(
    "--to-gib",
    type=click.IntRange(min=0),
    default=0,
    show_default=True,
    help="Keep the most recently used ones, up to this size in all.",
)
def cache_prune(to_gib: int) -> None:
    """Remove checkpoints, the least recently used first.

    Sets that were restored from them keep running.
    """
    with _cache() as found:
        removed = found.prune(to_gib * GIB)
    size = sum(entry.size for entry in removed)
    click.echo(f"{len(removed)} removed, {size // _MIB} MiB")
