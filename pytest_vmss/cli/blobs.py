"""Files for guests to download."""

from __future__ import annotations

from pathlib import Path

import click

from pytest_vmss.cli.base import main, open_lab
from pytest_vmss.errors import NotFoundError

__all__: list[str] = []


@main.group()
def blob() -> None:
    """Manage files that guests download by fileUris."""


@blob.command()
@click.argument("path", type=click.Path(dir_okay=False, exists=True, path_type=Path))
@click.option("--name", help="In place of the file's own.")
@click.option("--expires-in", type=float, default=3600.0, show_default=True, help="Seconds.")
def put(path: Path, name: str | None, expires_in: float) -> None:
    """Store the file at PATH, and print a URL with a token; this lab's operations serve it."""
    with open_lab() as lab:
        try:
            lab.blobs.expiry(expires_in)  # before anything is stored
            lab.blobs.put(path.name if name is None else name, path)
        except ValueError as error:
            raise click.UsageError(str(error)) from error
        click.echo(lab.blobs.url(path.name if name is None else name, expires_in=expires_in))


@blob.command()
@click.argument("name")
@click.option("--expires-in", type=float, default=3600.0, show_default=True, help="Seconds.")
def url(name: str, expires_in: float) -> None:
    """Print another URL, with a fresh token."""
    with open_lab() as lab:
        try:
            click.echo(lab.blobs.url(name, expires_in=expires_in))
        except ValueError as error:
            raise click.UsageError(str(error)) from error


@blob.command("list")
def list_blobs() -> None:
    """List the files."""
    with open_lab() as lab:
        names = lab.blobs.names()
        if not names:
            raise NotFoundError("there is no blob in this lab; store one with: vmss blob put PATH")
        click.echo("\n".join(names))
