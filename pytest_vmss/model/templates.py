"""Turns an ARM template and its parameters into the bodies of its resources (P1, P2)."""

from __future__ import annotations

import base64
import hashlib
import re
import secrets
import uuid
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any
from urllib.parse import unquote, urlsplit

from pytest_vmss.arm import Given, Parameter, Resource, Site, TemplateError, expand, given_in_file
from pytest_vmss.errors import ModelError, ModelProblem
from pytest_vmss.model.reading import label_of, read
from pytest_vmss.model.update import overlaid
from pytest_vmss.secrecy import SealedDocument, SecretText, seal
from pytest_vmss.untrusted import listed

__all__ = [
    "CLUSTER",
    "LOAD_BALANCER",
    "SCALE_SET",
    "STANDBY_POOL",
    "Expansion",
    "Parameters",
    "Supply",
    "expand_template",
    "is_template",
    "seal_parameters",
]

SCALE_SET = "microsoft.compute/virtualmachinescalesets"
EXTENSION = f"{SCALE_SET}/extensions"
LOAD_BALANCER = "microsoft.network/loadbalancers"
CLUSTER = "microsoft.servicefabric/clusters"
STANDBY_POOL = "microsoft.standbypool/standbyvirtualmachinepools"
#: What stands in the parameters files of Azure's quickstart templates for a value of one's own.
_PLACEHOLDER = re.compile(r"GEN-(PASSWORD|GUID|UNIQUE|SSH-PUB-KEY)(?:-(\d{1,2}))?")
_WANTED = frozenset({SCALE_SET, EXTENSION, LOAD_BALANCER, CLUSTER, STANDBY_POOL})

#: How much of a link is looked at, in folders, and the most templates that are read for one.
_MAX_FOLDERS, _MAX_LINKED = 16, 16
_VALID_PARAMETERS = "a valid file of parameters"

#: A parameters file, ``name=value``, or an object of either form; or several of these.
Parameters = str | Path | Mapping[str, Any] | SealedDocument | Sequence[Any]
#: Asks for the value of a secure parameter that has none: its name to the value, or None.
Supply = Callable[[str], str | None]


@dataclass
class Expansion:
    """The resources that a template makes.

    Attributes:
        resources: Those of the types that matter here.
        generated: The parameters that had no value of their own, and got one.
    """

    resources: list[Resource] = field(default_factory=list)
    generated: list[str] = field(default_factory=list)

    def of(self, kind: str) -> list[Resource]:
        """The resources of one type."""
        return [resource for resource in self.resources if resource.kind == kind]

    def scale_set(self, name: str | None, label: str) -> dict[str, Any]:
        """Returns the body of a scale set, its child extensions included.

        Args:
            name: Which one, if there are several.
            label: The template's name in messages.

        Raises:
            ModelError: There is none, or it is not clear which one.
        """
        sets = self.of(SCALE_SET)
        if len(sets) > 1 and name is not None:
            sets = [found for found in sets if found.name.lower() == name.lower()]
        if len({found.name.lower() for found in sets}) != 1:
            names = listed(found.name for found in self.of(SCALE_SET))
            message = (
                "must hold one Microsoft.Compute/virtualMachineScaleSets that is made, "
                f"holds {len(self.of(SCALE_SET))}: {names}"
            )
            if self.of(SCALE_SET):
                message += "; choose one by its name (name=, --name)"
            raise ModelError(
                [ModelProblem("$.resources", "InvalidTemplate", message)], source=label
            )
        chosen = sets[0]
        body = chosen.body
        for again in sets[1:]:  # deployed once more, such as to give it an identity
            body = overlaid(body, again.body)
        children = [
            {
                **{key: value for key, value in child.body.items() if key.lower() != "apiversion"},
                "name": child.name.rpartition("/")[2],
            }
            for child in self.of(EXTENSION)
            if child.name.rpartition("/")[0].lower() == chosen.name.lower()
        ]
        return _with_extensions(body, children) if children else body


def is_template(raw: Mapping[str, Any]) -> bool:
    """Whether a document is an ARM template, rather than a resource's body."""
    names = {key.lower() for key in raw}
    return "resources" in names and not names & {"sku", "properties"}


def expand_template(
    raw: Mapping[str, Any],
    label: str,
    *,
    folder: Path | None = None,
    parameters: Parameters | None = None,
    supply: Supply | None = None,
    is_change: bool = False,
) -> Expansion:
    """Evaluates a template.

    Args:
        raw: The template, read and checked.
        label: Its name in messages.
        folder: Where it lies; linked templates are looked for there and below.
        parameters: The values of its parameters.
        supply: Asks for the value of a secure parameter that has none.
        is_change: Whether it changes an existing set, which keeps its own secrets.

    Raises:
        ModelError: The template or a parameter is wrong.
    """
    given, generated = _filled(_given(parameters))
    made = Expansion(generated=generated)

    def supplied(parameter: Parameter) -> str | None:
        if not parameter.is_secure or is_change:
            return None
        value = supply(parameter.name) if supply is not None else None
        if value:
            return SecretText(value)
        made.generated.append(parameter.name)
        return SecretText("{}") if parameter.kind == "secureobject" else _password()

    try:
        made.resources = expand(
            raw, given, _WANTED, site=Site(), load=_Linked(folder), supply=supplied
        )
        return made
    except TemplateError as error:
        problem = ModelProblem(error.path or "$", "InvalidTemplate", error.message)
    except RecursionError:
        problem = ModelProblem("$", "InvalidTemplate", "refers to itself, or is nested too deep")
    raise ModelError([problem], source=label)  # here: tracebacks would show the template


def seal_parameters(parameters: Any) -> Any:
    """Hides the values of parameters from ``repr``; what they are is checked where they are read."""
    if isinstance(parameters, (list, tuple)):
        return [seal_parameters(entry) for entry in parameters]
    if isinstance(parameters, str) and "=" in parameters:
        return SecretText(parameters, "<a parameter>")
    return seal(parameters)


def _given(parameters: Parameters | None) -> Given:
    """Reads the values that are given for parameters; later ones win.

    Raises:
        ModelError: A file cannot be read, or an entry is neither a file nor ``name=value``.
    """
    values: dict[str, Any] = {}
    texts: dict[str, str] = {}
    if parameters is None:
        return Given()
    for entry in _entries(parameters):
        name, equals, value = _split(entry)
        if equals:
            texts[name] = SecretText(value)
            values.pop(name, None)
            continue
        source = seal(Path(entry.removeprefix("@")) if isinstance(entry, str) else entry)
        label = label_of(source, "the parameters")
        try:
            found = given_in_file(read(source, label, _VALID_PARAMETERS))
        except TemplateError as error:
            problem = ModelProblem(error.path or "$", "InvalidTemplate", error.message)
        else:
            values.update(found)
            continue
        raise ModelError([problem], source=label, expected=_VALID_PARAMETERS)
    return Given(values, texts)


def _filled(given: Given) -> tuple[Given, list[str]]:
    """Replaces the placeholders of Azure's quickstart templates, as their tests do.

    Returns:
        The values, and the names of those that were generated.
    """
    made = {
        name: _generated(name, found)
        for name, value in given.values.items()
        if isinstance(value, str) and (found := _PLACEHOLDER.fullmatch(value))
    }
    return Given({**given.values, **made}, given.texts), list(made)


def _generated(name: str, placeholder: re.Match[str]) -> str:
    """Returns a value for a placeholder; the same for the same parameter, except a password."""
    digest = hashlib.sha256(name.lower().encode()).hexdigest()
    if placeholder[1] == "PASSWORD":
        return _password()
    if placeholder[1] == "SSH-PUB-KEY":
        return _public_key(bytes.fromhex(digest))
    if placeholder[1] == "GUID":
        return str(uuid.UUID(digest[:32]))
    return f"u{digest}"[: int(placeholder[2] or 13)]


def _password() -> SecretText:
    """Returns a secret with every kind of character, as Azure wants passwords."""
    return SecretText(f"{secrets.token_urlsafe(18)}-aA1")


def _public_key(point: bytes) -> str:
    """Returns an SSH key as OpenSSH writes it, whose private half nobody has."""
    kind = b"ssh-ed25519"
    parts = b"".join(len(part).to_bytes(4) + part for part in (kind, point))
    return f"{kind.decode()} {base64.b64encode(parts).decode()} generated"


def _entries(parameters: Parameters) -> Iterable[Any]:
    single = isinstance(parameters, (str, Path, Mapping, SealedDocument))
    entries = [parameters] if single else parameters
    if isinstance(entries, (bytes, bytearray)) or not isinstance(entries, Iterable):
        problem = ModelProblem(
            "parameters",
            "InvalidParameter",
            "must be a file, name=value, an object of names and values, or a list of these; "
            f"given a {type(parameters).__name__}",
        )
        raise ModelError([problem], source="what was asked for", expected="possible")
    return entries


def _split(entry: Any) -> tuple[str, str, str]:
    """Splits ``name=value``; a file's path may contain ``=`` too."""
    if not isinstance(entry, str) or entry.startswith("@"):
        return "", "", ""
    name, equals, value = entry.partition("=")
    is_name = name.strip().replace("_", "").replace("-", "").isalnum()
    return (name.strip(), equals, value) if equals and is_name else ("", "", "")


class _Linked:
    """Finds linked templates beside the main one, wherever their link leads on the web."""

    def __init__(self, folder: Path | None) -> None:
        self._folder = None if folder is None else folder.resolve()
        self._known: dict[Path, dict[str, Any]] = {}

    def __call__(self, uri: str) -> dict[str, Any] | None:
        path = self._path(uri)
        if path is None:
            return None
        if path not in self._known:
            if len(self._known) >= _MAX_LINKED:
                raise TemplateError(f"links to more than {_MAX_LINKED} templates of its folder")
            self._known[path] = read(path, label_of(path, "a linked template"), "a template")
        return self._known[path]

    def _path(self, uri: str) -> Path | None:
        """Returns the file that a link means; None if there is none in the folder or below."""
        if self._folder is None:
            return None
        try:
            whole = unquote(urlsplit(uri).path)
        except ValueError:  # it is no URI
            return None
        parts = [part for part in whole.split("/") if part not in (".", "..", "")][-_MAX_FOLDERS:]
        for start in range(len(parts)):
            path = self._folder.joinpath(*parts[start:])
            try:
                if path.is_file() and path.resolve() == path:  # no symbolic link leads elsewhere
                    return path
            except (OSError, ValueError):  # a name that no file can have
                continue
        return None


def _with_extensions(body: dict[str, Any], children: list[dict[str, Any]]) -> dict[str, Any]:
    """Returns a scale set's body with extensions that are resources of their own."""
    made = dict(body)
    properties = _part(made, "properties")
    profile = _part(properties, "virtualMachineProfile")
    extensions = _part(profile, "extensionProfile")
    key = next((key for key in extensions if key.lower() == "extensions"), "extensions")
    own = extensions.get(key)
    names = {str(child["name"]).lower() for child in children}
    kept = [
        entry
        for entry in (own if isinstance(own, list) else [])
        if not (isinstance(entry, Mapping) and str(entry.get("name", "")).lower() in names)
    ]
    extensions[key] = [*kept, *children]
    return made


def _part(body: dict[str, Any], name: str) -> dict[str, Any]:
    """Returns a copy of an object's part, which it puts in its place."""
    key = next((key for key in body if key.lower() == name.lower()), name)
    inner = body.get(key)
    body[key] = dict(inner) if isinstance(inner, Mapping) else {}
    found: dict[str, Any] = body[key]
    return found
