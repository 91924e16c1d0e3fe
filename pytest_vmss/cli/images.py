"""``vmss image``: build, publish and list image versions."""

from __future__ import annotations

import json
from pathlib import Path

import click
from rich.table import Table

from pytest_vmss.cli.base import (
    console,
    context,
    main,
    open_lab,
    run_due,
)
from pytest_vmss.gallery import DEFAULT_GALLERY, ImageAddress
from pytest_vmss.gallery.sbom import cyclonedx, describe
from pytest_vmss.image_builder import ImageBuilder, find_recipes
from pytest_vmss.report import plain

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
    """Build a version (or all) of the image NAME, and print the path of each qcow2."""
    settings, _ = context()
    builder = ImageBuilder(
        (recipes or find_recipes()) / name,
        settings.cache_dir,
        say=lambda text: click.echo(text, err=True),
    )
    for wanted in [version] if version else builder.recipe.versions():
        disk = builder.build(wanted).path
        describe(disk)
        click.echo(disk)


@image.command("publish")
@click.argument("definition")
@click.argument("version")
@click.argument("path", type=click.Path(path_type=Path))
@click.option(
    "--gallery", default=DEFAULT_GALLERY, show_default=True, help="The gallery that it is in."
)
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
    """Publish PATH as VERSION of DEFINITION; sets with automatic upgrades upgrade to it."""
    with open_lab(make=True) as lab:
        record = lab.gallery(gallery).publish(
            definition, version, path, raw=raw, exclude_from_latest=exclude_from_latest
        )
        click.echo(
            f"published {gallery}/{definition} {record.version} {record.algorithm}:{record.digest}"
        )
        if upgrade:
            run_due(lab)


@image.command("list")
def image_list() -> None:
    """List the published versions."""
    with open_lab() as lab:
        for definition in lab.images.definitions():
            for record in lab.images.versions(definition.gallery, definition.name):
                click.echo(
                    f"{record.gallery}/{record.definition} {record.version}"
                    f"  {record.size // 1024**2} MiB  {record.algorithm}:{record.digest[:12]}"
                    f"  {record.published:%Y-%m-%d %H:%M}"
                    f"{'  excluded from latest' if record.exclude_from_latest else ''}"
                )


@image.command("show")
@click.argument("definition")
@click.argument("version")
@click.option(
    "--gallery", default=DEFAULT_GALLERY, show_default=True, help="The gallery that it is in."
)
@click.option("--json", "as_json", is_flag=True, help="The packages as CycloneDX JSON.")
def image_show(definition: str, version: str, gallery: str, as_json: bool) -> None:
    """Show VERSION of DEFINITION and its packages."""
    with open_lab() as lab:
        record = lab.images.resolve(ImageAddress(gallery, definition, version))
        packages = lab.images.packages(record)
        if as_json:
            document = cyclonedx(f"{record.definition} {record.version}", packages)
            click.echo(json.dumps(document, indent=2))
            return
        click.echo(f"{record.gallery}/{record.definition} {record.version}")
        click.echo(f"published {record.published:%Y-%m-%d %H:%M}, digest {record.digest}")
        click.echo(f"{record.size // 1024**2} MiB, a disk of {record.virtual_size // 1024**2} MiB")
        if not packages:
            click.echo("no list of packages: there was no PATH.cdx.json beside the file")
            return
        table = Table("package", "version", box=None)
        for package in packages:
            table.add_row(plain(package.name), plain(package.version))
        console.print(table)
