"""Commands that change a set's model, size and instances."""

from __future__ import annotations

import json
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Literal

import click

from pytest_vmss.api.scale_set import ScaleSet
from pytest_vmss.cli.base import (
    announced,
    console,
    custom_data_option,
    find_instance,
    finish,
    load_balancer_option,
    main,
    open_lab,
    parameters_option,
    read_script,
    run_due,
)
from pytest_vmss.report import LiveView, instance_table

__all__: list[str] = []


@main.command()
@click.argument("name")
@click.argument("change", type=click.Path(path_type=Path))
@parameters_option
@click.option("--replace", is_flag=True, help="CHANGE is the whole model, not a part of it.")
@load_balancer_option
@custom_data_option
@click.option("--upgrade/--no-upgrade", default=True, help="Run the upgrades that become due.")
def update(
    name: str,
    change: Path,
    parameters: tuple[str, ...],
    replace: bool,
    load_balancer: Path | None,
    custom_data: Path | None,
    upgrade: bool,
) -> None:
    """Merge CHANGE (JSON or YAML) into the model; upgradePolicy.mode says how it is applied.

    Automatic upgrades that become due with it are run.
    """
    with open_lab() as lab:
        scale_set = lab.scale_set(name)
        with announced(), LiveView.of(lab, console):
            ended = scale_set.update(
                change,
                replace=replace,
                parameters=parameters or None,
                load_balancer=load_balancer,
                custom_data=custom_data,
            )
        if ended is not None:
            finish(lab, ended)
        behind = [i.instance_id for i in scale_set if not i.latest_model_applied]
        if behind:
            click.echo(
                f"not on the latest model: {', '.join(behind)}; bring it to them with: "
                f"vmss update-instances {name}"
            )
        if upgrade:
            run_due(lab)


@main.command()
@click.argument("name")
@click.argument("capacity", type=int)
def scale(name: str, capacity: int) -> None:
    """Scale a set out or in to CAPACITY instances."""
    with open_lab() as lab:
        with LiveView.of(lab, console):
            lab.scale_set(name).scale(capacity)
        console.print(instance_table(lab.scale_set(name)))


_IDS = click.argument("instance_ids", type=int, nargs=-1)


def _act(name: str, act: Callable[[ScaleSet], object]) -> None:
    with open_lab() as lab:
        scale_set = lab.scale_set(name)
        with LiveView.of(lab, console):
            act(scale_set)
        console.print(instance_table(scale_set))


@main.command("update-instances")
@click.argument("name")
@_IDS
def update_instances(name: str, instance_ids: tuple[int, ...]) -> None:
    """Update instances (all, if none is named) to the latest model, at once."""
    _act(name, lambda scale_set: scale_set.update_instances(instance_ids or None))


@main.command()
@click.argument("name")
@_IDS
def start(name: str, instance_ids: tuple[int, ...]) -> None:
    """Start instances (all, if none is named)."""
    _act(name, lambda scale_set: scale_set.start(instance_ids or None))


@main.command()
@click.argument("name")
@_IDS
@click.option("--skip-shutdown", is_flag=True, help="Cut the power instead of asking the guest.")
def stop(name: str, instance_ids: tuple[int, ...], skip_shutdown: bool) -> None:
    """Stop instances (all, if none is named)."""
    _act(name, lambda s: s.stop(instance_ids or None, skip_shutdown=skip_shutdown))


@main.command()
@click.argument("name")
@_IDS
def deallocate(name: str, instance_ids: tuple[int, ...]) -> None:
    """Stop and deallocate instances; protected ones must be named."""
    _act(name, lambda scale_set: scale_set.deallocate(instance_ids or None))


@main.command()
@click.argument("name")
@_IDS
def restart(name: str, instance_ids: tuple[int, ...]) -> None:
    """Restart instances (all, if none is named)."""
    _act(name, lambda scale_set: scale_set.restart(instance_ids or None))


@main.command()
@click.argument("name")
@_IDS
def redeploy(name: str, instance_ids: tuple[int, ...]) -> None:
    """Stop instances, start new machines on the same disks; protected ones must be named."""
    _act(name, lambda scale_set: scale_set.redeploy(instance_ids or None))


@main.command()
@click.argument("name")
@_IDS
@click.option("--data-disks", is_flag=True, help="Fresh, empty data disks too (reimageall).")
def reimage(name: str, instance_ids: tuple[int, ...], data_disks: bool) -> None:
    """Give instances a fresh OS disk from their current image; data disks stay by default."""
    ids = instance_ids or None
    _act(name, lambda s: s.reimage_all(ids) if data_disks else s.reimage(ids))


_LABEL = click.argument("checkpoint_name", default="")


@main.command()
@click.argument("name")
@_LABEL
def checkpoint(name: str, checkpoint_name: str) -> None:
    """Save a set with the memory and the disks of its instances, for `vmss restore`."""
    _act(name, lambda scale_set: scale_set.checkpoint(checkpoint_name))


@main.command()
@click.argument("name")
@_LABEL
def restore(name: str, checkpoint_name: str) -> None:
    """Put a set back as it was at a checkpoint; what was written since is gone."""
    _act(name, lambda scale_set: scale_set.restore(checkpoint_name))


@main.command()
@click.argument("name")
def repair(name: str) -> None:
    """Check all instances once, and repair those that are due by automaticRepairsPolicy."""
    with open_lab() as lab:
        scale_set = lab.scale_set(name)
        with LiveView.of(lab, console):
            ended = scale_set.repair()
        if ended is not None:
            finish(lab, ended)
            return
        (service,) = scale_set.orchestration_services
        click.echo(f"nothing to repair (automatic repairs: {service['serviceState']})")


@main.command("set-orchestration-service-state")
@click.argument("name")
@click.option(
    "--action",
    type=click.Choice(["Suspend", "Resume"], case_sensitive=False),
    required=True,
    help="What is done to it.",
)
@click.option(
    "--service-name",
    type=click.Choice(["AutomaticRepairs"]),
    default="AutomaticRepairs",
    help="The service; there is one.",
)
def set_orchestration_service_state(
    name: str, action: Literal["Suspend", "Resume"], service_name: str
) -> None:
    """Suspend or resume automatic repairs."""
    with open_lab() as lab:
        scale_set = lab.scale_set(name)
        scale_set.set_orchestration_service_state(action)
        (service,) = scale_set.orchestration_services
        click.echo(f"{service_name}: {service['serviceState']}")


@main.command("run-command")
@click.argument("name")
@click.argument("instance_id", type=int)
@click.argument("script", type=click.Path(path_type=Path, allow_dash=True))
@click.option("--json", "as_json", is_flag=True, help="As Azure's runCommand.")
def run_command(name: str, instance_id: int, script: Path, as_json: bool) -> None:
    """Run SCRIPT (a file, or - for standard input) as root in an instance."""
    text = read_script(script)
    with open_lab() as lab:
        answer = find_instance(lab.scale_set(name), instance_id).run_command(text)
    (status,) = answer["value"]
    click.echo(json.dumps(answer, indent=2) if as_json else status.get("message", ""))
    sys.exit(status["code"] != "ProvisioningState/succeeded")


@main.command("delete-instances")
@click.argument("name")
@click.argument("instance_ids", type=int, nargs=-1, required=True)
def delete_instances(name: str, instance_ids: tuple[int, ...]) -> None:
    """Delete instances with their disks; the set's capacity shrinks accordingly."""
    _act(name, lambda scale_set: scale_set.delete_instances(instance_ids))


@main.command()
@click.argument("name")
@click.argument("instance_id", type=int)
@click.option(
    "--from-scale-in/--no-from-scale-in", default=None, help="Scaling in never removes it."
)
@click.option(
    "--from-scale-set-actions/--no-from-scale-set-actions",
    default=None,
    help="Set-wide actions such as upgrades leave it out.",
)
def protect(
    name: str, instance_id: int, from_scale_in: bool | None, from_scale_set_actions: bool | None
) -> None:
    """Protect an instance from scaling in, or from all set-wide actions, or no longer."""
    if from_scale_in is None and from_scale_set_actions is None:
        raise click.UsageError(
            "say what to change: --[no-]from-scale-in, --[no-]from-scale-set-actions, or both"
        )
    with open_lab() as lab:
        find_instance(lab.scale_set(name), instance_id).protect(
            from_scale_in=from_scale_in, from_scale_set_actions=from_scale_set_actions
        )
