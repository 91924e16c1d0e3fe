"""What all commands share: the group, the lab, how things are shown."""

from __future__ import annotations

import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, cast

import click
from rich.console import Console

from pytest_vmss import __version__
from pytest_vmss.api.instance import Instance
from pytest_vmss.api.lab import Lab
from pytest_vmss.api.operation import Operation
from pytest_vmss.api.scale_set import ScaleSet
from pytest_vmss.errors import NotFoundError, VmssError
from pytest_vmss.report import stage_table, upgrade_summary
from pytest_vmss.settings import (
    OUTBOUND,
    Accelerator,
    GuestNetwork,
    Settings,
    default_guest_network,
)

__all__ = ["console", "context", "find_instance", "finish", "main", "open_lab", "show_upgrade"]

console = Console()


class _Group(click.Group):
    """Shows this package's errors as messages, never as tracebacks."""

    def invoke(self, ctx: click.Context) -> Any:
        try:
            return super().invoke(ctx)
        except VmssError as error:
            raise click.ClickException(f"{error} [{error.code}]") from error


@click.group(cls=_Group, context_settings={"help_option_names": ["-h", "--help"]})
@click.version_option(__version__, prog_name="vmss")
@click.option("--lab", default="default", show_default=True, help="Name of the lab.")
@click.option("--connect", help="libvirt connection URI; chosen by the host otherwise.")
@click.option("--accel", type=click.Choice(["kvm", "tcg"]), help="Force the accelerator.")
@click.option(
    "--guest-network",
    type=click.Choice(["isolated", "outbound"]),
    help="What guests reach from their next start on: nothing, or whatever this host can, "
    "its own loopback among it. (VMSS_GUEST_NETWORK; isolated otherwise)",
)
@click.pass_context
def main(
    ctx: click.Context,
    lab: str,
    connect: str | None,
    accel: str | None,
    guest_network: str | None,
) -> None:
    """Azure's automatic OS image upgrade for VM Scale Sets, rehearsed on a laptop."""
    settings = Settings(
        connect=connect or os.environ.get("VMSS_CONNECT") or None,
        accelerator=cast("Accelerator | None", accel),
        guest_network=cast("GuestNetwork", guest_network or default_guest_network()),
    )
    if settings.guest_network == "outbound":
        click.echo(OUTBOUND, err=True)
    ctx.obj = (settings, lab)


@contextmanager
def open_lab() -> Iterator[Lab]:
    """The lab that the options name, closed at the end."""
    settings, name = context()
    lab = Lab.open(settings, name)
    try:
        yield lab
    finally:
        lab.close()


def show_upgrade(lab: Lab, upgrade: Operation) -> None:
    """Shows how an operation ended, and how long its stages took."""
    console.print(upgrade_summary(upgrade.report))
    console.print(stage_table(upgrade.record, lab.store.steps(upgrade.id)))


def find_instance(scale_set: ScaleSet, instance_id: int) -> Instance:
    """An instance by its number.

    Raises:
        NotFoundError: There is none.
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
    """Settings and the lab's name, from the options before the command."""
    return cast("tuple[Settings, str]", click.get_current_context().obj)


def finish(lab: Lab, ended: Operation) -> None:
    """Shows an operation that has ended; one that did not complete ends the command too."""
    show_upgrade(lab, ended)
    if not ended.completed:
        click.echo(ended.explain(), err=True)
        sys.exit(1)
