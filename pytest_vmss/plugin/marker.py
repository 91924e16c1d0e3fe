"""The marker ``vmss``: its arguments, and the files that they name."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

if TYPE_CHECKING:
    from pytest_vmss.model import ScaleSetModel

__all__ = ["MARKER", "arguments_of", "capacity_of", "model_of"]

#: Its declaration, as ``pytest --markers`` shows it.
MARKER = (
    "vmss(model, *, images, name, capacity, parameters, supply, load_balancer, custom_data, ports, "
    "health_timeout, health, approver, pristine): the scale set that the fixture scale_set creates "
    "for the test from `model`, Azure's JSON, and `images`, the versions of its image that are "
    "published before, as {version: file}; files are looked for beside the test. The other "
    "arguments are those of Lab.create"
)


def arguments_of(
    node: pytest.Item | pytest.Collector, marker: pytest.Mark | None
) -> tuple[Any, dict[str, Any]]:
    """The model and the other arguments of a marker.

    Raises:
        pytest.UsageError: It names no model.
    """
    from pytest_vmss.secrecy import SecretBytes, seal, seal_text

    if marker:
        _check_marker(marker)
    # Sealed here already, so that no error message shows secrets (M5).
    named = dict(marker.kwargs) if marker else {}
    images = {"images": named.pop("images")} if "images" in named else {}
    arguments = {name: seal(value) for name, value in named.items()} | images
    if marker and marker.args:
        arguments["model"] = seal(marker.args[0])
    if isinstance(arguments.get("custom_data"), str):
        arguments["custom_data"] = seal_text(arguments["custom_data"])
    elif isinstance(arguments.get("custom_data"), bytes):
        arguments["custom_data"] = SecretBytes(arguments["custom_data"])
    if "model" not in arguments:
        raise pytest.UsageError("the set needs a model: @pytest.mark.vmss(model='web.json')")
    _locate(node, arguments)
    return arguments.pop("model"), arguments


def _locate(node: pytest.Item | pytest.Collector, arguments: dict[str, Any]) -> None:
    """Replaces the names of files in a marker's arguments by paths, beside the test first."""
    from pytest_vmss.secrecy import seal

    for name in ("model", "load_balancer", "custom_data"):
        if name in arguments:
            arguments[name] = _beside(node, arguments[name])
    for name in ("model", "load_balancer"):
        if isinstance(given := arguments.get(name), (str, Path)) and not _exists(given):
            arguments[name] = node.path.parent / given  # which the error then names
    given = arguments.get("parameters")
    if isinstance(given, (list, tuple)):
        arguments["parameters"] = [_beside(node, seal(entry)) for entry in given]
    elif given is not None:
        arguments["parameters"] = _beside(node, given)
    if isinstance(arguments.get("images"), Mapping):
        arguments["images"] = {
            version: _beside(node, path) for version, path in arguments["images"].items()
        }


def _check_marker(marker: pytest.Mark) -> None:
    """Refuses arguments that the marker does not have.

    Raises:
        ModelError: There are some, or the model is given twice.
    """
    from pytest_vmss.api.lab import Lab
    from pytest_vmss.errors import ModelError, ModelProblem
    from pytest_vmss.model.arguments import argument_names, check_argument_names

    owner = "@pytest.mark.vmss"
    if len(marker.args) > 1 or (marker.args and "model" in marker.kwargs):
        message = "takes the model alone without a name: @pytest.mark.vmss('web.json', capacity=3)"
        problem = ModelProblem(owner, "InvalidParameter", message)
        raise ModelError([problem], source="what was asked for", expected="possible")
    check_argument_names(marker.kwargs, ["model", "images", *argument_names(Lab.create)], owner)


def _beside(node: pytest.Item | pytest.Collector, value: Any) -> Any:
    """A file relative to the test's file, wherever pytest was started; other values as they are."""
    from pytest_vmss.api.custom_data import located

    return located(value, node.path.parent)


def _exists(path: str | Path) -> bool:
    try:
        return "\n" in str(path) or Path(path).exists()
    except (OSError, ValueError):  # it is too long for a name, or no name at all
        return True  # what reads it says so


def capacity_of(node: pytest.Item, marker: pytest.Mark) -> int:
    """How many instances the set of a marker has."""
    return model_of(*arguments_of(node, marker)).sku.capacity


def model_of(source: Any, arguments: Mapping[str, Any]) -> ScaleSetModel:
    """The model that a test's marker describes."""
    from pytest_vmss.model import load_document

    return load_document(source, **_of_document(arguments)).model


def _of_document(arguments: Mapping[str, Any]) -> dict[str, Any]:
    """Those of a marker's arguments that make the model."""
    names = ("name", "capacity", "parameters", "load_balancer")
    return {name: value for name, value in arguments.items() if name in names}
