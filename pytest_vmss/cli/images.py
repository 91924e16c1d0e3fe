"""``vmss image``: build, publish and list image versions."""

from __future__ import annotations

import sys
from pathlib import Path

import click

from pytest_vmss.cli.base import (
    console,
    context,
    main,
    open_lab,
    show_upgrade,
)
from pytest_vmss.images import ImageBuilder, find_recipes
from pytest_vmss.report import LiveView

__all__: list[str] = []


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
    settings, _ = context()
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
    with open_lab() as lab:
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
            show_upgrade(lab, entry)
        if any(not entry.completed for entry in fresh):
            sys.exit(1)


@image.command("list")
def image_list() -> None:
    """List the published versions."""
    with open_lab() as lab:
        for definition in lab.images.definitions():
            for record in lab.images.versions(definition.gallery, definition.name):
                click.echo(
                    f"{record.gallery}/{record.definition} {record.version}"
                    f"  {record.size // 1024**2} MiB  sha256:{record.digest[:12]}"
                    f"  {record.published:%Y-%m-%d %H:%M}"
                    f"{'  excluded from latest' if record.exclude_from_latest else ''}"
                )
