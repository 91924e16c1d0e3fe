"""Commands about sets: create, list, show, log in, delete."""

from __future__ import annotations

import json
import subprocess
import sys
import time
from pathlib import Path

import click

from pytest_vmss.api.scale_set import ScaleSet
from pytest_vmss.cli.base import (
    announced,
    ask_for_secret,
    console,
    custom_data_option,
    find_instance,
    load_balancer_option,
    main,
    open_lab,
    parameters_option,
    run_due,
)
from pytest_vmss.guest import SSH_PORT
from pytest_vmss.guest.console_log import LogReader
from pytest_vmss.host.process import require
from pytest_vmss.report import LiveView, counted, instance_table, say

__all__: list[str] = []


@main.command()
@click.argument("model", type=click.Path(path_type=Path))
@click.option("--name", help="Replaces the model's name, or chooses among a template's sets.")
@click.option("--capacity", type=int, help="Replaces the model's capacity.")
@parameters_option
@load_balancer_option
@custom_data_option
@click.option("--port", "ports", type=int, multiple=True, help="Forward another guest port.")
@click.option("--health-timeout", type=float, help="Seconds, in place of Azure's 300.")
@click.option("--health-command", help="Run over SSH; its exit status is a health source too.")
@click.option("--approver", help="URL on loopback that approves update domains (Service Fabric).")
@click.option(
    "--pristine",
    is_flag=True,
    help="Restore it from the checkpoint of its first creation on this host, or make that.",
)
@click.option("--upgrade/--no-upgrade", default=True, help="Run the upgrades that become due.")
def create(
    model: Path,
    name: str | None,
    capacity: int | None,
    parameters: tuple[str, ...],
    load_balancer: Path | None,
    custom_data: Path | None,
    ports: tuple[int, ...],
    health_timeout: float | None,
    health_command: str | None,
    approver: str | None,
    pristine: bool,
    upgrade: bool,
) -> None:
    """Create the scale set of MODEL (Azure's JSON or YAML) and wait until it is healthy.

    Automatic upgrades that are due then are run.
    """
    with open_lab(make=True) as lab:
        with announced(), LiveView.of(lab, console):
            scale_set = lab.create(
                model,
                name=name,
                capacity=capacity,
                parameters=parameters or None,
                supply=ask_for_secret,
                load_balancer=load_balancer,
                custom_data=custom_data,
                ports=ports,
                health_timeout=health_timeout,
                health=health_command,
                approver=approver,
                pristine=pristine,
            )
        console.print(instance_table(scale_set))
        _show_frontend(scale_set)
        if upgrade:
            run_due(lab)


@main.command("set-approver")
@click.argument("name")
@click.argument("url", required=False)
def set_approver(name: str, url: str | None) -> None:
    """Let the endpoint URL approve update domains of a Service Fabric node type.

    Without URL nobody is asked, and every update domain is approved.
    """
    with open_lab() as lab:
        lab.scale_set(name).set_approver(url)


@main.command("list")
def list_sets() -> None:
    """List the scale sets."""
    with open_lab() as lab:
        for scale_set in lab.scale_sets():
            record = scale_set.record
            versions = {instance.image_version or "?" for instance in scale_set}
            click.echo(
                f"{record.name}  {record.state}  {counted(len(scale_set), 'instance')}"
                f"  {', '.join(sorted(versions))}{_unfinished(scale_set)}"
            )


def _unfinished(scale_set: ScaleSet) -> str:
    """The set's unfinished operation, and how to resume it if it was interrupted (Q1)."""
    operation = scale_set.unfinished
    if operation is None:
        return ""
    action = operation.record.action
    if not operation.interruption:
        return f"  ({action} in progress)"
    return f"  ({action} unfinished, {operation.interruption}; {operation.go_on})"


@main.command()
@click.argument("name")
@click.option(
    "--json", "as_json", is_flag=True, help="Azure's model, instance view and virtual machines."
)
@click.option("--health", is_flag=True, help="Ask each instance for its health.")
def show(name: str, as_json: bool, health: bool) -> None:
    """Show a scale set and its instances."""
    with open_lab() as lab:
        scale_set = lab.scale_set(name)
        if as_json:
            body = {
                **scale_set.model.wire(),
                "instanceView": scale_set.instance_view(),
                "virtualMachines": scale_set.virtual_machines(),
            }
            click.echo(json.dumps(body, indent=2))
            return
        console.print(instance_table(scale_set, health=health))
        _show_frontend(scale_set)
        if told := _unfinished(scale_set).strip():
            click.echo(told)


def _show_frontend(scale_set: ScaleSet) -> None:
    if scale_set.record.frontend is not None:
        say(console, f"load balancer: {scale_set.url}")


@main.command(context_settings={"ignore_unknown_options": True})
@click.argument("name")
@click.argument("instance_id", type=int)
@click.argument("command", nargs=-1, type=click.UNPROCESSED)
def ssh(name: str, instance_id: int, command: tuple[str, ...]) -> None:
    """Log in to an instance, or run COMMAND on it; the host key is pinned."""
    with open_lab() as lab:
        scale_set = lab.scale_set(name)
        instance = find_instance(scale_set, instance_id)
        address, port = instance.address(SSH_PORT)
        known = lab.paths.instance(scale_set.name, instance_id) / "known_hosts"
        known.write_text(f"[{address}]:{port} {instance.generation.host_key}\n")
        user = scale_set.model.virtual_machine_profile.os_profile.admin_username
        argv = [
            require("ssh"),
            "-i", instance.generation.ssh_key or str(lab.paths.key),
            "-o", "IdentitiesOnly=yes",
            "-o", "StrictHostKeyChecking=yes",
            "-o", f"UserKnownHostsFile={known}",
            "-p", str(port),
            f"{user}@{address}",
            *command,
        ]  # fmt: skip
    sys.exit(subprocess.run(argv, check=False).returncode)


@main.command("console")
@click.argument("name")
@click.argument("instance_id", type=int)
@click.option("--follow", "-f", is_flag=True, help="Go on as it grows, until Ctrl-C.")
def show_console(name: str, instance_id: int, follow: bool) -> None:
    """Print an instance's serial console, from the first byte of its OS disk.

    If the log has grown beyond 16 MiB, its middle is left out.
    """
    with open_lab() as lab:
        path = find_instance(lab.scale_set(name), instance_id).console.path
        log = LogReader(path)
        while True:
            for text in log.read():
                click.echo(text, nl=False)
            if not follow:
                return
            time.sleep(0.2)


@main.command()
@click.argument("name")
@click.option("--yes", is_flag=True, help="Do not ask.")
def delete(name: str, yes: bool) -> None:
    """Delete a scale set, its VMs and all their disks."""
    with open_lab() as lab:
        scale_set = lab.scale_set(name)
        if not yes:
            click.confirm(
                f"Delete {scale_set.name!r}, its {len(scale_set)} VMs and their data disks?",
                abort=True,
            )
        scale_set.delete()
