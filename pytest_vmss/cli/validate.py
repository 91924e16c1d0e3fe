"""The command that says what would be run of a document, and makes nothing (P3)."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

import click

from pytest_vmss.api.custom_data import encode_custom_data
from pytest_vmss.api.lab import own_size
from pytest_vmss.cli.base import (
    console,
    context,
    custom_data_option,
    load_balancer_option,
    main,
    parameters_option,
)
from pytest_vmss.errors import ModelError, ModelProblem
from pytest_vmss.guest.extensions import is_known
from pytest_vmss.model import Review, ScaleSetDocument, load_document, model_warnings, review
from pytest_vmss.model.reading import label_of
from pytest_vmss.operations.revisions import model_problems
from pytest_vmss.report import plain, say

__all__: list[str] = []


@main.command()
@click.argument("model", type=click.Path(path_type=Path))
@click.option("--name", help="Gives a body its name, or chooses among a template's sets.")
@parameters_option
@load_balancer_option
@custom_data_option
@click.option("--json", "as_json", is_flag=True, help="The result as JSON.")
def validate(
    model: Path,
    name: str | None,
    parameters: tuple[str, ...],
    load_balancer: Path | None,
    custom_data: Path | None,
    as_json: bool,
) -> None:
    """Say what of MODEL would be run here; status 1 if it would be refused.

    Nothing is made, and no hypervisor is needed. Whether its image is published, and whether the
    host has room, is found out by `create`.
    """
    found, problems = Review(), list[ModelProblem]()
    warnings, title, verdict = list[str](), name or "", ""
    try:
        document = load_document(
            model,
            name=name,
            parameters=parameters or None,
            load_balancer=load_balancer,
            custom_data=encode_custom_data(custom_data),
        )
    except ModelError as error:
        problems, verdict = list(error.problems), error.verdict
    else:
        found, problems = _examined(document)
        warnings, title = model_warnings(document.probe), document.model.name
        verdict = _verdict(model, document, problems)
    if as_json:
        click.echo(json.dumps(_wire(title, found, warnings, problems), indent=2))
    else:
        _show(found, warnings, problems, verdict)
    sys.exit(1 if problems else 0)


def _examined(document: ScaleSetDocument) -> tuple[Review, list[ModelProblem]]:
    """What counts of a document by the command's settings, and what is wrong with it."""
    settings, _ = context()
    size = own_size(settings)
    skips = settings.unknown_extensions == "skip"
    left_out = [
        extension.name.lower()
        for extension in document.model.extensions
        if skips and not is_known(extension)
    ]
    problems = model_problems(document, sizes=settings.sizes, own_size=size, left_out=left_out)
    return review(document, left_out=left_out, own_size=size), problems


def _verdict(path: Path, document: ScaleSetDocument, problems: list[ModelProblem]) -> str:
    """Says of a document that could be read whether it would be run."""
    if problems:
        return ModelError(problems, source=label_of(path, "the model")).verdict
    title, capacity = document.model.name, document.model.sku.capacity
    return f"{label_of(path, 'the model')}: the scale set {title}, capacity {capacity}"


def _wire(
    name: str, found: Review, warnings: list[str], problems: list[ModelProblem]
) -> dict[str, Any]:
    return {
        "name": name,
        "valid": not problems,
        "counts": found.counts,
        "notModelled": found.not_modelled,
        "unknown": found.unknown,
        "leftOut": found.left_out,
        "notes": [*found.notes, *warnings],
        "problems": [
            {"path": problem.path, "code": problem.code, "message": problem.message}
            for problem in problems
        ],
    }


def _show(found: Review, warnings: list[str], problems: list[ModelProblem], verdict: str) -> None:
    for path in found.counts:
        say(console, plain("counts       ", "green"), path)
    if found.not_modelled:
        told = f"{len(found.not_modelled)}: {', '.join(found.not_modelled)}"
        say(console, plain("not modelled ", "dim"), told)
    for told in found.misspelt():
        say(console, plain("unknown      ", "yellow"), told)
    for told in found.left_out:
        say(console, plain("left out     ", "yellow"), told)
    for told in (*found.notes, *warnings):
        say(console, plain("note         ", "yellow"), told)
    for problem in problems:
        say(console, plain("refused      ", "red"), str(problem))
    say(
        console,
        plain("invalid      ", "red") if problems else plain("valid        ", "green"),
        verdict,
    )
