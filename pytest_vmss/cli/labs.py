"""``vmss lab``: the labs on this host, what each holds and costs, and until when it stays."""

from __future__ import annotations

import click
from rich.table import Table

from pytest_vmss.cli.base import console, context, main
from pytest_vmss.labs.inventory import (
    LabState,
    LabSummary,
    find_labs,
    require_lab,
    summarise,
)
from pytest_vmss.labs.reap import remove_lab
from pytest_vmss.report import counted, plain, say

__all__: list[str] = []

_MIB = 1024**2


@main.group()
def lab() -> None:
    """List, show and delete labs."""


@lab.command("list")
def lab_list() -> None:
    """List the labs, with what each holds and costs."""
    settings, _ = context()
    found = find_labs(settings)
    if not found:
        click.echo("there is no lab; `vmss create` and `vmss image publish` make one")
        return
    table = Table("lab", "state", "scale sets", "VMs", "images", "memory", "disk", box=None)
    for each in found:
        holds = each.holdings
        unread = "?" if holds.trouble else ""
        table.add_row(
            plain(each.name),
            plain(_fate(each)),
            plain(unread or ", ".join(found.name for found in holds.sets) or "none"),
            unread or str(sum(found.running for found in holds.sets)),
            unread or str(holds.images),
            unread or f"{sum(found.memory_mib for found in holds.sets)} MiB",
            f"{each.disk_bytes // _MIB} MiB",
        )
    console.print(table)
    if any(each.state is LabState.LEFT for each in found):
        click.echo("`vmss reap` removes what sessions have left behind")


@lab.command("show")
@click.argument("name", required=False)
def lab_show(name: str | None) -> None:
    """Show what the lab NAME (that of --lab otherwise) holds and costs."""
    settings, given = context()
    each = summarise(*require_lab(settings, name or given))
    say(console, f"lab:     {each.name}, {_fate(each)}")
    say(console, f"folder:  {each.paths.folder}, {each.disk_bytes // _MIB} MiB on the disk")
    if each.network:
        say(console, f"network: {each.network}.0/24")
    if each.holdings.trouble:
        say(console, f"its records cannot be read: {each.holdings.trouble}", style="yellow")
        return
    say(console, f"images:  {counted(each.holdings.images, 'version')}")
    for found in each.holdings.sets:
        say(
            console,
            f"set:     {found.name}, {counted(found.instances, 'instance')}, {found.running} of them "
            f"running in {found.memory_mib} MiB of memory",
        )
    if not each.holdings.sets:
        say(console, "set:     none")


@lab.command("delete")
@click.argument("name")
@click.option("--yes", is_flag=True, help="Do not ask.")
def lab_delete(name: str, yes: bool) -> None:
    """Delete the lab NAME with its scale sets, VMs, disks and images."""
    settings, _ = context()
    settings, paths = require_lab(settings, name)
    each = summarise(settings, paths)
    if not yes:
        held = each.holdings
        what = (
            "what it holds, which cannot be read"
            if held.trouble
            else f"{counted(len(held.sets), 'scale set')}, "
            f"{counted(sum(found.instances for found in held.sets), 'VM')} "
            f"and {counted(held.images, 'image version')}"
        )
        click.confirm(f"Delete the lab {each.name!r} with {what}?", abort=True)
    remove_lab(settings, paths)


def _fate(each: LabSummary) -> str:
    """What becomes of a lab, in words."""
    if each.kept_until is not None:
        return f"kept until {each.kept_until.astimezone():%Y-%m-%d %H:%M}"
    if each.state is LabState.OPEN:
        return "open in a process"
    return str(each.state)
