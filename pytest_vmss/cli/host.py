"""Commands about the host: doctor, reap and demo."""

from __future__ import annotations

import sys

import click

from pytest_vmss.cli.base import (
    console,
    context,
    main,
)
from pytest_vmss.labs.inventory import find_labs
from pytest_vmss.labs.reap import reap as reap_labs
from pytest_vmss.report import plain, say

__all__: list[str] = []


@main.command()
def reap() -> None:
    """Remove what dead test sessions left behind, and kept labs whose time is over."""
    settings, _ = context()
    lines = reap_labs(settings)
    for line in lines:
        click.echo(line)
    if not lines:
        click.echo("nothing was left behind")
    remaining = find_labs(settings)
    if remaining:
        click.echo(f"labs on this host: {len(remaining)}; `vmss lab list` shows them")


@main.command()
def doctor() -> None:
    """Show what the host lacks, and the command that fixes it."""
    from pytest_vmss.cli.doctor import examine

    settings, _ = context()
    findings = examine(settings)
    styles = {"ok": "green", "note": "yellow", "lacking": "red"}
    for finding in findings:
        say(console, plain(f"{finding.level:<7}", styles[finding.level]), f" {finding.what}")
        if finding.mend:
            say(console, f"        mend it: {finding.mend}")
    if any(finding.level == "lacking" for finding in findings):
        sys.exit(1)


@main.command()
def demo() -> None:
    """Run the main workflow on real VMs: upgrade, keep the data, refuse a bad image."""
    from pytest_vmss.cli.demo import run_demo

    settings, _ = context()
    sys.exit(0 if run_demo(settings, console) else 1)
