"""The ``vmss`` command: the same things by hand."""

from __future__ import annotations

import base64
import json
import os
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, cast

import click
from rich.console import Console

from pytest_vmss import __version__
from pytest_vmss.errors import NotFoundError, UpgradeError, VmssError
from pytest_vmss.images import ImageBuilder, find_recipes
from pytest_vmss.instance import Instance
from pytest_vmss.lab import Lab
from pytest_vmss.operation import Upgrade
from pytest_vmss.process import require
from pytest_vmss.reap import reap as reap_labs
from pytest_vmss.report import LiveView, instance_table, stage_table, upgrade_summary
from pytest_vmss.scale_set import ScaleSet
from pytest_vmss.settings import Accelerator, Settings

__all__ = ["main"]

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
@click.pass_context
def main(ctx: click.Context, lab: str, connect: str | None, accel: str | None) -> None:
    """Azure's automatic OS image upgrade for VM Scale Sets, rehearsed on a laptop."""
    settings = Settings(
        connect=connect or os.environ.get("VMSS_CONNECT") or None,
        accelerator=cast("Accelerator | None", accel),
    )
    ctx.obj = (settings, lab)


@contextmanager
def _lab() -> Iterator[Lab]:
    settings, name = cast("tuple[Settings, str]", click.get_current_context().obj)
    lab = Lab.open(settings, name)
    try:
        yield lab
    finally:
        lab.close()


def _show_upgrade(lab: Lab, upgrade: Upgrade) -> None:
    console.print(upgrade_summary(upgrade.account))
    console.print(stage_table(upgrade.record, lab.store.steps(upgrade.id)))


def _instance(scale_set: ScaleSet, instance_id: int) -> Instance:
    for instance in scale_set:
        if instance.instance_id == str(instance_id):
            return instance
    known = ", ".join(instance.instance_id for instance in scale_set)
    raise NotFoundError(
        f"the scale set {scale_set.name!r} has no instance {instance_id}; "
        f"there are: {known or 'none'}"
    )


@main.group()
def image() -> None:
    """Build, publish and list image versions."""


@image.command("build")
@click.argument("name")
@click.argument("version", required=False)
@click.option(
    "--recipes",
    type=click.Path(file_okay=False, exists=True, path_type=Path),
    help="Folder of recipes; the ones that ship with pytest-vmss otherwise.",
)
def image_build(name: str, version: str | None, recipes: Path | None) -> None:
    """Build a version (or all) of the image NAME, and print the qcow2's path."""
    settings, _ = cast("tuple[Settings, str]", click.get_current_context().obj)
    builder = ImageBuilder(
        (recipes or find_recipes()) / name,
        settings.cache_dir,
        say=lambda text: click.echo(text, err=True),
    )
    for wanted in [version] if version else builder.recipe.versions():
        click.echo(builder.build(wanted).path)


@image.command("publish")
@click.argument("definition")
@click.argument("version")
@click.argument("path", type=click.Path(path_type=Path))
@click.option("--gallery", default="gallery", show_default=True)
@click.option("--raw", is_flag=True, help="The file is a raw disk, not a qcow2.")
@click.option("--exclude-from-latest", is_flag=True, help="'latest' never means this version.")
@click.option("--upgrade/--no-upgrade", default=True, help="Run the upgrades that become due.")
def image_publish(
    definition: str,
    version: str,
    path: Path,
    gallery: str,
    raw: bool,
    exclude_from_latest: bool,
    upgrade: bool,
) -> None:
    """Publish PATH as VERSION of DEFINITION; sets that may, upgrade to it."""
    with _lab() as lab:
        record = lab.gallery(gallery).publish(
            definition, version, path, raw=raw, exclude_from_latest=exclude_from_latest
        )
        click.echo(f"published {gallery}/{definition} {record.version} sha256:{record.digest}")
        if not upgrade:
            return
        before = {entry.id for web in lab.scale_sets() for entry in web.history(limit=None)}
        with LiveView(lab.store, console):
            lab.run_due()
        fresh = [
            entry
            for scale_set in lab.scale_sets()
            for entry in scale_set.history(limit=None)
            if entry.id not in before
        ]
        for entry in fresh:
            _show_upgrade(lab, entry)
        if any(not entry.completed for entry in fresh):
            sys.exit(1)


@image.command("list")
def image_list() -> None:
    """List the published versions."""
    with _lab() as lab:
        for definition in lab.images.definitions():
            for record in lab.images.versions(definition.gallery, definition.name):
                click.echo(
                    f"{record.gallery}/{record.definition} {record.version}"
                    f"  {record.size // 1024**2} MiB  sha256:{record.digest[:12]}"
                    f"  {record.published:%Y-%m-%d %H:%M}"
                    f"{'  excluded from latest' if record.exclude_from_latest else ''}"
                )


@main.command()
@click.argument("model", type=click.Path(path_type=Path))
@click.option("--name", help="Replaces the model's name.")
@click.option("--capacity", type=int, help="Replaces the model's capacity.")
@click.option("--load-balancer", type=click.Path(path_type=Path), help="Its Azure JSON.")
@click.option(
    "--custom-data",
    type=click.Path(dir_okay=False, exists=True, path_type=Path),
    help="File with the custom data, not encoded.",
)
@click.option("--port", "ports", type=int, multiple=True, help="Forward another guest port.")
@click.option("--health-timeout", type=float, help="Seconds, in place of Azure's 300.")
def create(
    model: Path,
    name: str | None,
    capacity: int | None,
    load_balancer: Path | None,
    custom_data: Path | None,
    ports: tuple[int, ...],
    health_timeout: float | None,
) -> None:
    """Create the scale set of MODEL (Azure's JSON or YAML) and wait until it is healthy."""
    encoded = None if custom_data is None else base64.b64encode(custom_data.read_bytes()).decode()
    with _lab() as lab:
        with LiveView(lab.store, console):
            scale_set = lab.create(
                model,
                name=name,
                capacity=capacity,
                load_balancer=load_balancer,
                custom_data=encoded,
                ports=ports,
                health_timeout=health_timeout,
            )
        console.print(instance_table(scale_set))
        for path in scale_set.model.not_modelled():
            console.print(f"not modelled here: {path}", style="dim", highlight=False)


@main.command("list")
def list_sets() -> None:
    """List the scale sets."""
    with _lab() as lab:
        for scale_set in lab.scale_sets():
            record = scale_set.record
            versions = {instance.image_version or "?" for instance in scale_set}
            click.echo(
                f"{record.name}  {record.state}  {len(scale_set)} instances"
                f"  {', '.join(sorted(versions))}"
            )


@main.command()
@click.argument("name")
@click.option("--json", "as_json", is_flag=True, help="Azure's model and the instance view.")
@click.option("--health", is_flag=True, help="Ask each instance for its health.")
def show(name: str, as_json: bool, health: bool) -> None:
    """Show a scale set and its instances."""
    with _lab() as lab:
        scale_set = lab.scale_set(name)
        if as_json:
            body = {**scale_set.model.wire(), "instances": scale_set.instance_view()}
            click.echo(json.dumps(body, indent=2))
            return
        console.print(instance_table(scale_set, health=health))


@main.command(context_settings={"ignore_unknown_options": True})
@click.argument("name")
@click.argument("instance_id", type=int)
@click.argument("command", nargs=-1, type=click.UNPROCESSED)
def ssh(name: str, instance_id: int, command: tuple[str, ...]) -> None:
    """Log in to an instance, or run COMMAND on it; the host key is pinned."""
    with _lab() as lab:
        scale_set = lab.scale_set(name)
        instance = _instance(scale_set, instance_id)
        address, port = instance.address(22)
        known = lab.paths.instance(scale_set.name, instance_id) / "known_hosts"
        known.write_text(f"[{address}]:{port} {instance.generation.host_key}\n")
        user = scale_set.model.virtual_machine_profile.os_profile.admin_username
        argv = [
            require("ssh"),
            "-i", str(lab.paths.key),
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
    """Print an instance's serial console, from the first byte of its OS disk."""
    with _lab() as lab:
        path = _instance(lab.scale_set(name), instance_id).console.path
        offset = 0
        while True:
            data = path.read_bytes()[offset:] if path.exists() else b""
            offset += len(data)
            click.echo(data.decode(errors="replace"), nl=False)
            if not follow:
                return
            time.sleep(0.2)


@main.command()
@click.argument("name")
def upgrade(name: str) -> None:
    """Start an OS upgrade by hand: to the latest version, without automatic rollback."""
    with _lab() as lab:
        with LiveView(lab.store, console):
            ended = lab.scale_set(name).upgrade()
        _finish(lab, ended)


@main.command("upgrade-extensions")
@click.argument("name")
def upgrade_extensions(name: str) -> None:
    """Roll newer versions of extension handlers through a scale set."""
    with _lab() as lab:
        with LiveView(lab.store, console):
            ended = lab.scale_set(name).upgrade_extensions()
        _finish(lab, ended)


@main.command()
@click.argument("name")
@click.argument("change", type=click.Path(path_type=Path))
@click.option("--replace", is_flag=True, help="CHANGE is the whole model, not a part of it.")
@click.option("--load-balancer", type=click.Path(path_type=Path), help="Its Azure JSON.")
@click.option(
    "--custom-data",
    type=click.Path(dir_okay=False, exists=True, path_type=Path),
    help="File with the custom data, not encoded.",
)
def update(
    name: str,
    change: Path,
    replace: bool,
    load_balancer: Path | None,
    custom_data: Path | None,
) -> None:
    """Lay CHANGE (JSON or YAML) over the model; instances follow as upgradePolicy.mode says."""
    encoded = None if custom_data is None else base64.b64encode(custom_data.read_bytes()).decode()
    with _lab() as lab:
        scale_set = lab.scale_set(name)
        with LiveView(lab.store, console):
            ended = scale_set.update(
                change, replace=replace, load_balancer=load_balancer, custom_data=encoded
            )
        if ended is not None:
            _finish(lab, ended)
        behind = [i.instance_id for i in scale_set if not i.latest_model_applied]
        if behind:
            click.echo(
                f"not on the latest model: {', '.join(behind)}; bring it to them with: "
                f"vmss update-instances {name}"
            )


@main.command()
@click.argument("name")
@click.argument("capacity", type=int)
def scale(name: str, capacity: int) -> None:
    """Scale a set out or in to CAPACITY instances."""
    with _lab() as lab:
        with LiveView(lab.store, console):
            lab.scale_set(name).scale(capacity)
        console.print(instance_table(lab.scale_set(name)))


_IDS = click.argument("instance_ids", type=int, nargs=-1)


def _act(name: str, act: Callable[[ScaleSet], object]) -> None:
    with _lab() as lab:
        scale_set = lab.scale_set(name)
        with LiveView(lab.store, console):
            act(scale_set)
        console.print(instance_table(scale_set))


@main.command("update-instances")
@click.argument("name")
@_IDS
def update_instances(name: str, instance_ids: tuple[int, ...]) -> None:
    """Bring instances (all, if none is named) to the latest model, at once."""
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
    """Stop instances and give their place up; protected ones must be named."""
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
@click.option("--data-disks", is_flag=True, help="Fresh, empty data disks too (reimageall).")
def reimage(name: str, instance_ids: tuple[int, ...], data_disks: bool) -> None:
    """Give instances a fresh OS disk of the image that they have; data disks stay."""
    ids = instance_ids or None
    _act(name, lambda s: s.reimage_all(ids) if data_disks else s.reimage(ids))


@main.command("delete-instances")
@click.argument("name")
@click.argument("instance_ids", type=int, nargs=-1, required=True)
def delete_instances(name: str, instance_ids: tuple[int, ...]) -> None:
    """Delete instances with their disks; the set's capacity shrinks by them."""
    _act(name, lambda scale_set: scale_set.delete_instances(instance_ids))


@main.command()
@click.argument("name")
@click.argument("instance_id", type=int)
@click.option("--from-scale-in/--no-from-scale-in", default=None)
@click.option("--from-scale-set-actions/--no-from-scale-set-actions", default=None)
def protect(
    name: str, instance_id: int, from_scale_in: bool | None, from_scale_set_actions: bool | None
) -> None:
    """Protect an instance from scaling in, or from all set-wide actions."""
    with _lab() as lab:
        _instance(lab.scale_set(name), instance_id).protect(
            from_scale_in=from_scale_in, from_scale_set_actions=from_scale_set_actions
        )


@main.command()
@click.argument("name")
def resume(name: str) -> None:
    """Go on with an operation that was interrupted."""
    with _lab() as lab:
        with LiveView(lab.store, console):
            ended = lab.scale_set(name).resume()
        if ended is None:
            raise UpgradeError(f"no operation on {name!r} was interrupted")
        _finish(lab, ended)


def _finish(lab: Lab, ended: Upgrade) -> None:
    _show_upgrade(lab, ended)
    if not ended.completed:
        click.echo(ended.explain(), err=True)
        sys.exit(1)


@main.command()
@click.argument("name")
def cancel(name: str) -> None:
    """Let the running upgrade end after its current batch."""
    with _lab() as lab:
        lab.scale_set(name).cancel()


@main.command()
@click.argument("name")
@click.option("--explain", is_flag=True, help="Every decision and error, with evidence.")
@click.option("--json", "as_json", is_flag=True, help="As Azure's osUpgradeHistory.")
def history(name: str, explain: bool, as_json: bool) -> None:
    """Show the last OS upgrades of a scale set, newest first."""
    with _lab() as lab:
        if as_json:
            click.echo(json.dumps({"value": lab.scale_set(name).os_upgrade_history()}, indent=2))
            return
        upgrades = lab.scale_set(name).history()
        if not upgrades:
            click.echo(f"no upgrade of {name!r} yet")
        for entry in upgrades:
            if explain:
                click.echo(entry.explain())
            else:
                console.print(upgrade_summary(entry.account))


@main.command()
@click.argument("name")
def status(name: str) -> None:
    """Show the latest rolling upgrade as Azure's rollingUpgrades/latest."""
    with _lab() as lab:
        click.echo(json.dumps(lab.scale_set(name).rolling_upgrade_status(), indent=2))


@main.command()
@click.argument("name")
@click.option("--yes", is_flag=True, help="Do not ask.")
def delete(name: str, yes: bool) -> None:
    """Delete a scale set, its VMs and all their disks."""
    with _lab() as lab:
        scale_set = lab.scale_set(name)
        if not yes:
            click.confirm(
                f"Delete {scale_set.name!r}, its {len(scale_set)} VMs and their data disks?",
                abort=True,
            )
        scale_set.delete()


@main.command()
def reap() -> None:
    """Remove what dead test sessions left behind."""
    settings, _ = cast("tuple[Settings, str]", click.get_current_context().obj)
    lines = reap_labs(settings)
    for line in lines:
        click.echo(line)
    if not lines:
        click.echo("nothing was left behind")


@main.command()
def doctor() -> None:
    """Tell what the host lacks, and the command that mends it."""
    from pytest_vmss.doctor import examine

    settings, _ = cast("tuple[Settings, str]", click.get_current_context().obj)
    findings = examine(settings)
    marks = {"ok": "[green]ok[/]     ", "note": "[yellow]note[/]   ", "lacking": "[red]lacking[/]"}
    for finding in findings:
        console.print(marks[finding.level], finding.what, highlight=False, soft_wrap=True)
        if finding.mend:
            console.print(f"         mend it: {finding.mend}", highlight=False, soft_wrap=True)
    if any(finding.level == "lacking" for finding in findings):
        sys.exit(1)


@main.command()
def demo() -> None:
    """Run the main job on real VMs: upgrade, keep the data, refuse a bad image."""
    from pytest_vmss.demo import run_demo

    settings, _ = cast("tuple[Settings, str]", click.get_current_context().obj)
    sys.exit(0 if run_demo(settings, console) else 1)
