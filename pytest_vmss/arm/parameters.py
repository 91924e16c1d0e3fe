"""The parameters of a template: their declarations, and the values that are given for them."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from pytest_vmss.arm.limits import TemplateError
from pytest_vmss.arm.values import Unevaluated, is_integer, kind_of, read_json
from pytest_vmss.secrecy import SecretText, conceal, mask, quote
from pytest_vmss.untrusted import listed, one_line

__all__ = ["Given", "Parameter", "declared_parameters", "given_in_file", "parsed"]

_KINDS = {
    "string": "string", "securestring": "string", "int": "int", "bool": "bool",
    "array": "array", "object": "object", "secureobject": "object",
}  # fmt: skip


@dataclass(frozen=True)
class Parameter:
    """A parameter as a template declares it.

    Attributes:
        name: Its name.
        kind: Its type, in lower case.
        definition: The rest of the declaration.
    """

    name: str
    kind: str
    definition: Mapping[str, Any] = field(repr=False)

    @property
    def is_secure(self) -> bool:
        """Whether its value is secret."""
        return self.kind.startswith("secure")

    @property
    def has_default(self) -> bool:
        """Whether it may be left out."""
        return self._fact("defaultValue") is not None or bool(self._fact("nullable"))

    def checked(self, value: Any) -> Any:
        """Returns a value, marked as secret if it is.

        Raises:
            TemplateError: It is of another type, or not one that is allowed.
        """
        if isinstance(value, Unevaluated) or (value is None and self._fact("nullable")):
            return value
        wanted = _KINDS.get(self.kind)
        if wanted is not None and kind_of(value) != wanted:
            raise TemplateError(f"must be of type {wanted}, is {kind_of(value)}")
        self._check_allowed(value)
        self._check_range(value)
        if not self.is_secure:
            return value
        return SecretText(value) if isinstance(value, str) else conceal(value, secret=True)

    def _check_allowed(self, value: Any) -> None:
        allowed = self._fact("allowedValues")
        if not isinstance(allowed, list):
            return
        known = [_folded(item) for item in allowed]
        items = value if isinstance(value, list) and _folded(value) not in known else [value]
        if any(_folded(item) not in known for item in items):
            names = listed(quote(item) for item in allowed)
            raise TemplateError(f"must be one of {names}{self._told(value)}")

    def _check_range(self, value: Any) -> None:
        number = value if is_integer(value) else None
        size = len(value) if kind_of(value) in ("string", "array", "object") else None
        for name, found, is_least in (
            ("minValue", number, True), ("maxValue", number, False),
            ("minLength", size, True), ("maxLength", size, False),
        ):  # fmt: skip
            limit = self._fact(name)
            if found is None or not is_integer(limit):
                continue
            if (found < limit) if is_least else (found > limit):
                what = "length" if "Length" in name else "value"
                word = "least" if is_least else "most"
                raise TemplateError(f"must have a {what} of at {word} {limit}{self._told(value)}")

    def _told(self, value: Any) -> str:
        if self.is_secure or not isinstance(value, (str, int, float)):
            return ""
        return f"; given {quote(value)}"

    def _fact(self, name: str) -> Any:
        wanted = name.lower()
        return next((v for key, v in self.definition.items() if key.lower() == wanted), None)

    @property
    def default(self) -> Any:
        """The default value, unevaluated."""
        return self._fact("defaultValue")


def _folded(value: Any) -> str:
    return json.dumps(value, sort_keys=True, default=str).lower()


def declared_parameters(template: Mapping[str, Any]) -> dict[str, Parameter]:
    """Returns a template's parameters by their names in lower case.

    Raises:
        TemplateError: One is not declared as an object with a type.
    """
    definitions = template.get("definitions")
    found = {}
    for name, entry in (template.get("parameters") or {}).items():
        where = f"$.parameters.{one_line(mask(name))}"
        if not isinstance(entry, Mapping):
            raise TemplateError("must be an object with a type", where)
        kind = _kind_of(entry, definitions)
        if kind is None or (kind and kind not in _KINDS):
            raise TemplateError(f"must have a type: {', '.join(sorted(_KINDS))}", where)
        found[name.lower()] = Parameter(name, kind, entry)
    return found


def _kind_of(entry: Mapping[str, Any], definitions: Any) -> str | None:
    """Returns a declaration's type; empty if it is a type of the template's own of any kind."""
    kind, reference = entry.get("type"), entry.get("$ref")
    for _ in range(16):
        if not isinstance(reference, str):
            break
        target = (
            definitions.get(reference.rpartition("/")[2])
            if isinstance(definitions, Mapping)
            else None
        )
        if not isinstance(target, Mapping):
            return ""
        kind, reference = target.get("type") if kind is None else kind, target.get("$ref")
    return kind.lower() if isinstance(kind, str) else None


@dataclass(frozen=True)
class Given:
    """Values for a template's parameters.

    Attributes:
        values: Name to value, as a file gives them; later ones win.
        texts: Name to the text of ``name=value``, whose meaning depends on the declaration.
    """

    values: Mapping[str, Any] = field(default_factory=dict, repr=False)
    texts: Mapping[str, str] = field(default_factory=dict, repr=False)


def given_in_file(document: Mapping[str, Any]) -> dict[str, Any]:
    """Returns the values of a parameters file: Azure's with its schema, or plain names and values.

    Raises:
        TemplateError: It is neither.
    """
    inner = next((v for key, v in document.items() if key.lower() == "parameters"), None)
    entries = inner if isinstance(inner, Mapping) else document
    is_azure = inner is not None or "$schema" in document
    found: dict[str, Any] = {}
    for name, entry in entries.items():
        if name in ("$schema", "contentVersion"):
            continue
        wrapped = isinstance(entry, Mapping) and {"value", "reference", "expression"} & entry.keys()
        where = f"$.parameters.{one_line(mask(name))}"
        if is_azure and not wrapped:
            raise TemplateError("must be an object with a value", where)
        if not wrapped:
            found[name] = entry
        elif "value" in entry:
            found[name] = entry["value"]
        else:
            found[name] = Unevaluated("its value is in a key vault")
    return found


def parsed(parameter: Parameter, given: str) -> Any:
    """Returns the value that ``name=value`` means for a parameter of some type.

    Args:
        parameter: The parameter.
        given: The value's text, sealed as long as nobody knew whether it is a secret.

    Raises:
        TemplateError: It is not a value of that type.
    """
    if parameter.kind in ("string", "securestring", ""):
        return given if parameter.is_secure else str.__str__(given)
    if parameter.kind == "bool" and given.lower() in ("true", "false"):
        return given.lower() == "true"
    try:
        return read_json(given)
    except (ValueError, RecursionError):
        pass
    raise TemplateError(f"must be of type {parameter.kind}, as JSON")
