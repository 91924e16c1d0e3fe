"""Commands about upgrades: start, watch, resume, cancel, history, status."""

from __future__ import annotations

import contextlib
import json
import time
from collections.abc import Callable
from pathlib import Path

import click

from pytest_vmss.api.lab import Lab
from pytest_vmss.api.operation import Operation
from pytest_vmss.api.scale_set import ScaleSet
from pytest_vmss.cli.base import (
    console,
    finish,
    main,
    open_lab,
)
from pytest_vmss.errors import LabError, UpgradeError
from pytest_vmss.host.files import write_durably
from pytest_vmss.report import LiveView, upgrade_summary
from pytest_vmss.report.timeline import set_page

__all__: list[str] = []


def _roll(name: str, act: Callable[[ScaleSet], Operation | None]) -> None:
    with open_lab() as lab:
        with LiveView.of(lab, console):
            ended = act(lab.scale_set(name))
        if ended is None:
            raise UpgradeError(f"no operation on {name!r} was interrupted")
        finish(lab, ended)


@main.command()
@click.argument("name")
def upgrade(name: str) -> None:
    """Start an OS upgrade to the latest version, without automatic rollback."""
    _roll(name, lambda scale_set: scale_set.upgrade())


#: Seconds between two looks for upgrades that have ended; in real time.
_LOOK_S = 0.5
_look = time.sleep


@main.command()
def watch() -> None:
    """Run automatic upgrades and repairs as they become due, until Ctrl-C.

    That is what a test session does: sets upgrade when a newer version is published, when the
    model or an instance's protection changes, and when a failed precondition is cured, whichever
    process does it. What is running at Ctrl-C is left unfinished, and can be resumed.
    """
    with open_lab() as lab:
        shown = {report.record.id for report in lab.finished_upgrades()}
        with contextlib.suppress(KeyboardInterrupt), LiveView.of(lab, console):
            lab.watch()
            while True:
                _look(_LOOK_S)
                for report in lab.finished_upgrades():
                    if report.record.id not in shown:
                        shown.add(report.record.id)
                        console.print(upgrade_summary(report))
        working = lab.environment.working
        names = [entry.name for entry in lab.scale_sets() if entry.name.lower() in working]
        program = lab.environment.program
    for name in names:
        click.echo(f"unfinished: {name}; go on with: {program} resume {name}")


@main.command("upgrade-extensions")
@click.argument("name")
def upgrade_extensions(name: str) -> None:
    """Roll newer versions of extension handlers through a scale set."""
    _roll(name, lambda scale_set: scale_set.upgrade_extensions())


@main.command()
@click.argument("name")
def resume(name: str) -> None:
    """Resume an operation that was interrupted."""
    _roll(name, lambda scale_set: scale_set.resume())


@main.command()
@click.argument("name")
def cancel(name: str) -> None:
    """Cancel the running upgrade; it ends after its current batch."""
    with open_lab() as lab:
        scale_set = lab.scale_set(name)
        scale_set.cancel()
        unfinished = scale_set.unfinished
        if unfinished is None:
            click.echo("cancelled")
        elif unfinished.interruption:
            click.echo(
                f"it was interrupted, and is cancelled with: {lab.environment.program} resume {name}"
            )
        else:
            click.echo("it is cancelled after its current batch")


@main.command()
@click.argument("name")
@click.option("--explain", is_flag=True, help="Every decision and error, with evidence.")
@click.option("--json", "as_json", is_flag=True, help="As Azure's osUpgradeHistory.")
@click.option(
    "--html",
    type=click.Path(path_type=Path, dir_okay=False),
    metavar="FILE",
    help="Write a page with the timeline of every operation, not of upgrades alone.",
)
def history(name: str, explain: bool, as_json: bool, html: Path | None) -> None:
    """Show the last OS upgrades of a scale set, newest first, and its creation if that failed."""
    with open_lab() as lab:
        if html is not None:
            _write_page(lab, name, html)
            return
        if as_json:
            click.echo(json.dumps({"value": lab.scale_set(name).os_upgrade_history()}, indent=2))
            return
        scale_set = lab.scale_set(name)
        entries: list[Operation] = [*scale_set.history()]
        if not scale_set.creation.completed:
            entries.append(scale_set.creation)
        if not entries:
            click.echo(f"no upgrade of {name!r} yet")
        for entry in entries:
            if explain:
                click.echo(entry.explain())
            else:
                console.print(upgrade_summary(entry.report))


def _write_page(lab: Lab, name: str, path: Path) -> None:
    """Writes the timelines of a set that there is.

    Raises:
        LabError: The file cannot be written.
    """
    if path.is_dir():  # an empty name, too: that is the working directory
        raise LabError(f"{path} is a folder, and cannot be written; name a file")
    page = set_page(lab, lab.scale_set(name).name)
    try:
        write_durably(path, page.encode())
    except OSError as error:
        raise LabError(f"{path} cannot be written: {error.strerror}") from error
    click.echo(f"written: {path}")


@main.command()
@click.argument("name")
def status(name: str) -> None:
    """Show the latest rolling upgrade as Azure's rollingUpgrades/latest."""
    with open_lab() as lab:
        click.echo(json.dumps(lab.scale_set(name).rolling_upgrade_status(), indent=2))
