"""``vmss image``: build, publish and list image versions."""

from __future__ import annotations

import contextlib
import json
from collections.abc import Callable, Iterator
from pathlib import Path

import click
from rich.console import Console
from rich.progress import Progress
from rich.table import Table

from pytest_vmss.cli.base import (
    console,
    context,
    main,
    open_lab,
    run_due,
)
from pytest_vmss.gallery import DEFAULT_GALLERY
from pytest_vmss.gallery.definitions import GENERATIONS, PROVISIONING
from pytest_vmss.gallery.inspection import Inspection, inspect_file
from pytest_vmss.gallery.sbom import cyclonedx, describe
from pytest_vmss.image_builder import ImageBuilder, find_recipes, write_recipe
from pytest_vmss.model.image_version import ImageVersionRef
from pytest_vmss.report import plain, say

__all__: list[str] = []


def _definition_options(command: Callable[..., None]) -> Callable[..., None]:
    """Adds the options that give an image definition's properties."""
    for option in (
        click.option(
            "--provisioning",
            type=click.Choice(PROVISIONING, case_sensitive=False),
            help="Where guests look for what they are to be; NoCloud by default.",
        ),
        click.option(
            "--hyper-v-generation",
            type=click.Choice(GENERATIONS, case_sensitive=False),
            help="V1 boots by BIOS, V2 by UEFI; V1 by default, but for images that boot by UEFI alone.",
        ),
    ):
        command = option(command)
    return command


#: Where recipes of one's own are by default.
_OWN = Path("images")


@main.group()
def image() -> None:
    """Build, publish and list image versions."""


@image.command("build")
@click.argument("name")
@click.argument("version", required=False)
@click.option(
    "--recipes",
    type=click.Path(file_okay=False, exists=True, path_type=Path),
    help="Folder of recipes; otherwise ./images if NAME is there, or those of pytest-vmss.",
)
def image_build(name: str, version: str | None, recipes: Path | None) -> None:
    """Build a version (or all) of the image NAME, and print the path of each qcow2."""
    settings, _ = context()
    builder = ImageBuilder(
        _recipes(name, recipes) / name,
        settings.cache_dir,
        say=lambda text: click.echo(text, err=True),
    )
    for wanted in [version] if version else builder.recipe.versions():
        disk = builder.build(wanted).path
        describe(disk)
        click.echo(disk)


def _recipes(name: str, given: Path | None) -> Path:
    """The folder of recipes that has an image: the one given, the working directory's, or ours."""
    if given is not None:
        return given
    return _OWN if (_OWN / name / "image.yaml").is_file() else find_recipes()


@image.command("new")
@click.argument("name")
@click.option(
    "--recipes",
    type=click.Path(file_okay=False, path_type=Path),
    default=_OWN,
    show_default=True,
    help="Folder of recipes; made if there is none.",
)
def image_new(name: str, recipes: Path) -> None:
    """Write a commented recipe for an image NAME of your own."""
    folder = write_recipe(name, recipes)
    option = "" if recipes == _OWN else f" --recipes {recipes}"
    click.echo(f"{folder}/image.yaml and {folder}/1.0.0/version.yaml are written; then")
    click.echo(f"    vmss image build {name} 1.0.0{option}")


@image.command("publish")
@click.argument("definition")
@click.argument("version")
@click.argument("path", type=click.Path(path_type=Path))
@click.option(
    "--gallery", default=DEFAULT_GALLERY, show_default=True, help="The gallery that it is in."
)
@click.option("--raw", is_flag=True, help="The file is a raw disk, whatever it looks like.")
@click.option("--exclude-from-latest", is_flag=True, help="'latest' never means this version.")
@_definition_options
@click.option("--upgrade/--no-upgrade", default=True, help="Run the upgrades that become due.")
def image_publish(
    definition: str,
    version: str,
    path: Path,
    gallery: str,
    raw: bool,
    exclude_from_latest: bool,
    hyper_v_generation: str | None,
    provisioning: str | None,
    upgrade: bool,
) -> None:
    """Publish PATH as VERSION of DEFINITION; sets with automatic upgrades upgrade to it.

    PATH is a qcow2, VHD, VHDX or raw disk, recognized by its content.
    """
    with open_lab(make=True) as lab:
        with _conversion(path) as progress:
            record = lab.gallery(gallery).publish(
                definition,
                version,
                path,
                raw=raw,
                exclude_from_latest=exclude_from_latest,
                hyper_v_generation=hyper_v_generation,
                provisioning=provisioning,
                progress=progress,
            )
        click.echo(
            f"published {gallery}/{definition} {record.version} {record.algorithm}:{record.digest}"
            f"  {record.hyper_v_generation}  {record.provisioning}"
        )
        if upgrade:
            run_due(lab)


@contextlib.contextmanager
def _conversion(path: Path) -> Iterator[Callable[[float], None]]:
    """Shows how far a conversion has come, on a terminal, once there is one."""
    with Progress(console=Console(stderr=True), transient=True) as shown:
        task = shown.add_task(f"converting {plain(path.name)}", total=1.0, visible=False)
        yield lambda done: shown.update(task, completed=done, visible=True)


@image.command("define")
@click.argument("definition")
@click.option(
    "--gallery", default=DEFAULT_GALLERY, show_default=True, help="The gallery that it is in."
)
@_definition_options
def image_define(
    definition: str, gallery: str, hyper_v_generation: str | None, provisioning: str | None
) -> None:
    """Create the image DEFINITION before its first version."""
    with open_lab(make=True) as lab:
        record = lab.gallery(gallery).define(
            definition, hyper_v_generation=hyper_v_generation, provisioning=provisioning
        )
        click.echo(
            f"{gallery}/{record.name}  hyperVGeneration {record.hyper_v_generation}"
            f"  provisioning {record.provisioning}"
        )


@image.command("list")
def image_list() -> None:
    """List the published versions."""
    with open_lab() as lab:
        for definition in lab.images.definitions():
            for record in lab.images.versions(definition.gallery, definition.name):
                click.echo(
                    f"{record.image}  {record.size // 1024**2} MiB  {record.algorithm}:{record.digest[:12]}"
                    f"  {record.published:%Y-%m-%d %H:%M} UTC"
                    f"  {record.hyper_v_generation}  {record.provisioning}"
                    f"{'  excluded from latest' if record.exclude_from_latest else ''}"
                )


@image.command("inspect")
@click.argument("path", metavar="FILE", type=click.Path(path_type=Path))
@click.option("--raw", is_flag=True, help="The file is a raw disk, whatever it looks like.")
@click.option("--json", "as_json", is_flag=True, help="As JSON.")
def image_inspect(path: Path, raw: bool, as_json: bool) -> None:
    """Tell what FILE is, what the lab will do with it, and what would hinder it."""
    settings, _ = context()
    settings.cache_dir.mkdir(parents=True, exist_ok=True, mode=0o700)
    found = inspect_file(path, raw=raw, limits=settings.images, work=settings.cache_dir)
    if as_json:
        click.echo(json.dumps(found.to_wire(), indent=2))
        return
    for name, value in _told(found):
        say(console, plain(f"{name:<13} "), value)
    for told in found.plan():
        say(console, plain("the lab       ", "green"), told)
    for told in found.hindrances():
        say(console, plain("hindrance     ", "yellow"), told)


def _told(found: Inspection) -> Iterator[tuple[str, str]]:
    """Yields what was found, by name."""
    yield "format", f"{found.head.format}, a disk of {found.head.size // 1024**2} MiB"
    yield "partitions", found.table.scheme or "none, the disk is one file system"
    for each in found.table.partitions:
        kind, holds = each.type or "unknown type", each.file_system or "no known file system"
        yield "", f"{each.number}: {each.size // 1024**2} MiB  {kind}  {holds}"
    if (contents := found.contents) is None:
        return
    yield "distribution", f"{contents.distribution} {contents.architecture}".strip()
    yield "kernel", ", ".join(contents.kernels) or "none"
    yield "cloud-init", "none" if contents.cloud_init is None else contents.cloud_init or "unknown"
    if contents.cloud_init is not None:
        yield "data sources", ", ".join(contents.data_sources) or "all that cloud-init knows"
    yield "agents", ", ".join(contents.agents) or "none"


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
        record = lab.images.resolve(ImageVersionRef(gallery, definition, version))
        packages = lab.images.packages(record)
        if as_json:
            document = cyclonedx(f"{record.definition} {record.version}", packages)
            click.echo(json.dumps(document, indent=2))
            return
        click.echo(f"{record.gallery}/{record.definition} {record.version}")
        click.echo(f"published {record.published:%Y-%m-%d %H:%M} UTC, digest {record.digest}")
        click.echo(f"{record.size // 1024**2} MiB, a disk of {record.virtual_size // 1024**2} MiB")
        definition_record = lab.images.definition(record.gallery, record.definition)
        click.echo(
            f"hyperVGeneration {record.hyper_v_generation}, provisioning {record.provisioning}"
            f"{' (auto)' if definition_record.provisioning == 'auto' else ''}"
        )
        if not packages:
            click.echo("no list of packages: there was no PATH.cdx.json beside the file")
            return
        table = Table("package", "version", box=None)
        for package in packages:
            table.add_row(plain(package.name), plain(package.version))
        console.print(table)
