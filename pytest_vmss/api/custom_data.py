"""Custom data as tests and the command line give it: a file, bytes, text, or base64."""

from __future__ import annotations

import base64
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import yaml

from pytest_vmss.errors import ModelError, ModelProblem
from pytest_vmss.model.arguments import check_custom_data
from pytest_vmss.secrecy import SealedDocument, SecretText, seal_text
from pytest_vmss.untrusted import read_regular

__all__ = ["CustomData", "beside", "encode_custom_data", "located"]

#: A file, the content itself, its base64, or an object for cloud-config; see :func:`encode_custom_data`.
CustomData = str | bytes | Path | Mapping[str, Any] | SealedDocument

#: The limit of Azure, in bytes.
_MOST_BYTES = 65536
_NEITHER = "a string that is not base64, and no file has that name"


def encode_custom_data(value: CustomData | None, folder: Path | None = None) -> SecretText | None:
    """Returns custom data in base64, as Azure's models have it.

    Args:
        value: A path or bytes mean the content as it is. So does a string with line breaks or
            with ``#`` at its start, as all custom data for cloud-init has. Another string is
            the name of a file; if there is none of that name, it must be base64. An object
            becomes cloud-config.
        folder: Where files are looked for before the working directory.

    Returns:
        The base64; None for None, which leaves custom data to the model.

    Raises:
        ModelError: It is none of these, cannot be read, or is more than 64 KiB; the message
            quotes nothing of the content.
    """
    if isinstance(value, (Mapping, SealedDocument)):
        value = _cloud_config(value)
    if isinstance(value, Path):
        value = located(value, folder)
    if isinstance(value, str) and ("\n" in value or value.startswith("#")):
        value = value.encode(errors="surrogatepass")
    elif isinstance(value, str):
        value = beside(value, folder or Path()) or beside(value, Path()) or value
    if isinstance(value, Path):
        value = _read(value)
    if isinstance(value, bytes):
        value = base64.b64encode(value).decode()
    if value is not None and not _is_base64(value):
        raise _problem(
            "must be a path, bytes, an object, or a string: the content, with line breaks or '#' at its "
            "start, the name of a file, or base64; given "
            + (_NEITHER if isinstance(value, str) else f"a {type(value).__name__}")
        )
    return seal_text(check_custom_data(value))


def beside(name: str | Path, folder: Path) -> Path | None:
    """Returns the file of a name, relative to a folder; None if there is none."""
    try:
        path = folder / name
        return path if path.exists() else None
    except (OSError, ValueError):  # it is too long for a name, or no name at all
        return None


def located(value: Any, folder: Path | None) -> Any:
    """Returns the file of a name, relative to a folder first; any other value as it is."""
    if folder is None or not isinstance(value, (str, Path)) or "\n" in str(value):
        return value
    return beside(value, folder) or value


def _cloud_config(value: Mapping[str, Any] | SealedDocument) -> bytes:
    content = value.content if isinstance(value, SealedDocument) else value
    try:
        return f"#cloud-config\n{yaml.safe_dump(dict(content), sort_keys=False)}".encode()
    except (yaml.YAMLError, ValueError, TypeError, RecursionError):
        message = "is an object that YAML cannot hold; give texts, numbers, lists and objects"
    raise _problem(message)


def _read(path: Path) -> bytes:
    try:
        return read_regular(path, _MOST_BYTES)
    except (OSError, ValueError) as error:
        reason = getattr(error, "strerror", None) or str(error)
        raise _problem(
            f"{path} cannot be read: {reason}; give a regular file of at most "
            f"{_MOST_BYTES >> 10} KiB"
        ) from error


def _is_base64(value: object) -> bool:
    try:
        return isinstance(value, str) and base64.b64decode(value, validate=True) is not None
    except ValueError:
        return False


def _problem(message: str) -> ModelError:
    problem = ModelProblem("custom_data", "InvalidParameter", message)
    return ModelError([problem], source="what was asked for", expected="possible")
