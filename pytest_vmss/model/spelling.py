"""Gives a document Azure's spelling: ARM takes names and enumerated values in any case (A1).

The same walk finds expressions without a value, and tells those that count from others (P1).
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from functools import lru_cache
from typing import Any, Literal, get_args, get_origin

from pydantic import BaseModel

from pytest_vmss.arm import Budget, Unevaluated, is_parsed
from pytest_vmss.errors import ModelProblem
from pytest_vmss.model.azure_names import is_azure_name, is_slip, nearest
from pytest_vmss.model.reading import OPAQUE
from pytest_vmss.secrecy import mask
from pytest_vmss.untrusted import one_line

__all__ = ["Spelled", "respelled", "spell"]

#: Names that other tools use for a property, by Azure's name in lower case.
_OTHER_NAMES = {"typepropertiestype": "type"}
#: Declared properties without which a model is complete.
_OPTIONAL = frozenset({"apiVersion", "tags"})
_TOLD = 100


@dataclass
class Spelled:
    """A body in Azure's spelling.

    Attributes:
        body: The body, without what has no value here.
        problems: What is wrong, such as a needed value that no expression has here.
        unevaluated: Values that were left out because nothing modelled reads them.
        extension_settings: Values that were left out of extensions' settings; whether they count,
            the extension's handler decides.
    """

    body: Any = None
    problems: list[ModelProblem] = field(default_factory=list)
    unevaluated: list[ModelProblem] = field(default_factory=list)
    extension_settings: list[ModelProblem] = field(default_factory=list)


def spell(
    kind: type[BaseModel],
    body: Any,
    *,
    in_template: bool = False,
    catch_misspelt: bool = False,
) -> Spelled:
    """Returns a flattened body in the spelling of a model.

    Args:
        kind: The model.
        body: The body.
        in_template: Whether it comes from a template, whose expressions have been evaluated.
        catch_misspelt: Whether a name that Azure does not have is a problem if it is near one
            that is missing.
    """
    found = Spelled()
    speller = _Speller(found, in_template=in_template, catch_misspelt=catch_misspelt)
    found.body = speller.typed(kind, body, "$")
    del found.problems[_TOLD:]
    return found


def respelled(settings: Mapping[str, Any] | None, names: Iterable[str]) -> dict[str, Any]:
    """Returns settings with those names as they are written here; handlers take them in any case."""
    known = {name.lower(): name for name in names}
    return {known.get(key.lower(), key): value for key, value in (settings or {}).items()}


@dataclass(frozen=True)
class _Shape:
    """What a field holds.

    Attributes:
        model: The model of the value or of its items.
        choices: The enumerated values, by their lower case.
    """

    model: type[BaseModel] | None
    choices: Mapping[str, str]


@lru_cache(maxsize=1024)
def _fields(kind: type[BaseModel]) -> Mapping[str, tuple[str, _Shape]]:
    """Returns a model's fields by their names in lower case: the name, and what it holds."""
    found = {}
    for name, declared in kind.model_fields.items():
        alias = declared.alias or name
        models = [part for part in _parts(declared.annotation) if isinstance(part, type)]
        model = next((part for part in models if issubclass(part, BaseModel)), None)
        choices = {
            choice.lower(): choice
            for part in _parts(declared.annotation)
            if get_origin(part) is Literal
            for choice in get_args(part)
        }
        for spelling in (alias, name):
            found[spelling.lower()] = (alias, _Shape(model, choices))
    return found


def _parts(annotation: Any) -> list[Any]:
    """Returns an annotation and those it is made of."""
    if get_origin(annotation) is Literal:
        return [annotation]
    inner = [part for argument in get_args(annotation) for part in _parts(argument)]
    return [annotation, *inner]


class _Speller:
    def __init__(self, found: Spelled, *, in_template: bool, catch_misspelt: bool) -> None:
        self._found, self._in_template = found, in_template
        self._catch_misspelt = catch_misspelt
        self._budget = Budget()

    def typed(self, kind: type[BaseModel], body: Any, path: str) -> Any:
        """Spells an object that a model describes."""
        if not isinstance(body, Mapping):
            return self._needed(body, path)
        fields = _fields(kind)
        spelled: dict[str, Any] = {}
        given: set[str] = set()
        aliased = {alias for alias in _OTHER_NAMES if any(key.lower() == alias for key in body)}
        for key, item in body.items():
            lowered = key.lower()
            if lowered not in _OTHER_NAMES and lowered in {_OTHER_NAMES[a] for a in aliased}:
                continue  # what the tool calls by the other name is the resource's own type
            lowered = _OTHER_NAMES.get(lowered, lowered)
            known = fields.get(lowered)
            name = known[0] if known else key
            where = f"{path}.{one_line(mask(name))}"
            if known is None:
                if self._catch_misspelt:
                    self._check_name(name, where, body, fields)
                self._put(spelled, name, self.untyped(item, where), item)
                continue
            if name in given:
                self._found.problems.append(
                    ModelProblem(
                        where, "InvalidParameter", "is given twice, in different spellings"
                    )
                )
            given.add(name)
            self._put(spelled, name, self._field(name, known[1], item, where), item)
        return spelled

    def _check_name(
        self,
        name: str,
        path: str,
        body: Mapping[str, Any],
        fields: Mapping[str, tuple[str, _Shape]],
    ) -> None:
        """Refuses a name that Azure does not have if it is a slip of one that is missing (A6)."""
        if is_azure_name(name) or len(self._found.problems) >= _TOLD:
            return
        given = {key.lower() for key in body}
        missing = {alias for alias, _ in fields.values() if alias.lower() not in given}
        meant = nearest(name, sorted(missing))
        if meant and is_slip(name, meant):
            self._found.problems.append(
                ModelProblem(
                    path,
                    "InvalidRequestContent",
                    f"is no property that Azure has; did you mean {meant}?",
                )
            )

    @staticmethod
    def _put(spelled: dict[str, Any], name: str, value: Any, item: Any) -> None:
        if not isinstance(item, Unevaluated):
            spelled[name] = value

    def _field(self, name: str, shape: _Shape, item: Any, path: str) -> Any:
        if name in OPAQUE and name != "tags":
            return self._opaque(item, path, self._found.extension_settings)
        if name in _OPTIONAL:
            return self.untyped(item, path)
        if shape.model is not None:
            if isinstance(item, list):
                return [
                    self.typed(shape.model, entry, f"{path}[{index}]")
                    for index, entry in enumerate(item)
                ]
            return self.typed(shape.model, item, path)
        if isinstance(item, list):
            return [
                self._value(entry, shape, f"{path}[{index}]") for index, entry in enumerate(item)
            ]
        return self._value(item, shape, path)

    def _value(self, item: Any, shape: _Shape, path: str) -> Any:
        if isinstance(item, str):
            item = shape.choices.get(item.lower(), item)
        return self._needed(item, path)

    def _needed(self, item: Any, path: str) -> Any:
        if isinstance(item, Unevaluated) and not item.is_kept:
            self._found.problems.append(
                ModelProblem(
                    path,
                    "InvalidTemplate",
                    f"has no value here: {item.reason}; give it by a parameter, or in its place",
                )
            )
        self._check_literal(item, path)
        return item

    def untyped(self, item: Any, path: str) -> Any:
        """Keeps a value that nothing modelled reads."""
        return self._opaque(item, path, self._found.unevaluated)

    def _opaque(self, item: Any, path: str, left_out: list[ModelProblem]) -> Any:
        if isinstance(item, Unevaluated):
            if item.is_kept:
                return None
            left_out.append(
                ModelProblem(path, "InvalidTemplate", f"has no value here: {item.reason}")
            )
            return None
        if isinstance(item, Mapping):
            kept: dict[str, Any] = {}
            for key, part in item.items():
                name = one_line(mask(key))
                value = self._opaque(part, f"{path}.{name}", left_out)
                self._put(kept, key, value, part)
            return kept
        if isinstance(item, list):
            return [
                self._opaque(part, f"{path}[{index}]", left_out) for index, part in enumerate(item)
            ]
        self._check_literal(item, path)
        return item

    def _check_literal(self, item: Any, path: str) -> None:
        """Refuses a template's expression in a document that is no template."""
        if self._in_template or not isinstance(item, str):
            return
        if len(self._found.problems) >= _TOLD or not is_parsed(item, self._budget):
            return
        self._found.problems.append(
            ModelProblem(
                path,
                "InvalidTemplate",
                "is an expression of a template, and this is none: give the whole template with "
                "its parameters, or put the value in its place",
            )
        )
