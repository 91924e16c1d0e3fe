"""Functions of arrays and objects; several take strings too."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from itertools import chain
from typing import Any

from pytest_vmss.arm.limits import TemplateError
from pytest_vmss.arm.number_functions import is_equal
from pytest_vmss.arm.values import integer, kind_of, look_up, property_name, text, to_text

__all__ = ["ARRAY_FUNCTIONS"]


def _sequence(value: Any) -> Any:
    if isinstance(value, (str, list)):
        return value
    raise TemplateError(f"takes a string or an array; given {kind_of(value)}")


def _array(value: Any) -> list[Any]:
    if isinstance(value, list):
        return value
    raise TemplateError(f"takes an array; given {kind_of(value)}")


def _object(value: Any) -> Mapping[str, Any]:
    if isinstance(value, Mapping):
        return value
    raise TemplateError(f"takes an object; given {kind_of(value)}")


def _concat(*values: Any) -> Any:
    if all(isinstance(value, list) for value in values):
        return list(chain.from_iterable(values))
    if any(isinstance(value, (list, Mapping)) for value in values):
        raise TemplateError("joins strings with strings, or arrays with arrays")
    return "".join(to_text(value) for value in values)


def _contains(container: Any, wanted: Any) -> bool:
    if isinstance(container, str):
        return to_text(wanted) in container
    if isinstance(container, Mapping):
        return look_up(container, text(wanted, "the property's name")) is not None
    return any(is_equal(item, wanted) for item in _array(container))


def _create_object(*arguments: Any) -> dict[str, Any]:
    if len(arguments) % 2:
        raise TemplateError("takes pairs of a property's name and its value")
    return {
        property_name(name): value
        for name, value in zip(arguments[::2], arguments[1::2], strict=True)
    }


def _empty(value: Any) -> bool:
    if value is None:
        return True
    if isinstance(value, Mapping):
        return not value
    return not _sequence(value)


def _first(value: Any) -> Any:
    given = _sequence(value)
    return given[0] if given else "" if isinstance(given, str) else None


def _last(value: Any) -> Any:
    given = _sequence(value)
    return given[-1] if given else "" if isinstance(given, str) else None


def _flatten(value: Any) -> list[Any]:
    return list(chain.from_iterable(_array(item) for item in _array(value)))


def _index_of(search: Callable[[str, str], int], from_end: bool) -> Callable[[Any, Any], int]:
    def index(container: Any, wanted: Any) -> int:
        if isinstance(container, str):
            return search(container.lower(), text(wanted).lower())
        found = [at for at, item in enumerate(_array(container)) if is_equal(item, wanted)]
        return found[-1 if from_end else 0] if found else -1

    return index


def _items(value: Any) -> list[dict[str, Any]]:
    given = _object(value)
    return [{"key": key, "value": given[key]} for key in sorted(given, key=str.lower)]


def _keys(value: Any) -> list[str]:
    return sorted(_object(value), key=str.lower)


def _length(value: Any) -> int:
    return len(value) if isinstance(value, Mapping) else len(_sequence(value))


def _skip(value: Any, count: Any) -> Any:
    return _sequence(value)[max(integer(count), 0) :]


def _take(value: Any, count: Any) -> Any:
    return _sequence(value)[: max(integer(count), 0)]


def _merged(*values: Any) -> dict[str, Any]:
    merged: dict[str, Any] = {}
    spelt: dict[str, str] = {}
    for value in values:
        for key, item in _object(value).items():
            known = spelt.setdefault(key.lower(), key)
            before = merged.get(known)
            both = isinstance(before, Mapping) and isinstance(item, Mapping)
            merged[known] = _merged(before, item) if both else item
    return merged


def _key(value: Any) -> str:
    """Returns the same text for values that are equal; names of properties count in any case."""
    return json.dumps(_lowered(value), sort_keys=True, default=repr)


def _lowered(value: Any) -> Any:
    if isinstance(value, Mapping):
        return {key.lower(): _lowered(item) for key, item in value.items()}
    return [_lowered(item) for item in value] if isinstance(value, list) else value


def _distinct(*values: Any) -> list[Any]:
    found: dict[str, Any] = {}
    for item in chain.from_iterable(_array(value) for value in values):
        found.setdefault(_key(item), item)
    return list(found.values())


def _union(*values: Any) -> Any:
    is_object = isinstance(values[0], Mapping)
    return _merged(*values) if is_object else _distinct(*values)


def _intersection(*values: Any) -> Any:
    if isinstance(values[0], Mapping):
        entries = {f"{key.lower()} {_key(item)}": key for key, item in values[0].items()}
        for other in values[1:]:
            given = {f"{key.lower()} {_key(item)}" for key, item in _object(other).items()}
            entries = {form: key for form, key in entries.items() if form in given}
        return {key: values[0][key] for key in entries.values()}
    common = {_key(item) for item in _array(values[0])}
    for other in values[1:]:
        common &= {_key(item) for item in _array(other)}
    return [item for item in _distinct(values[0]) if _key(item) in common]


def _shallow_merge(values: Any) -> dict[str, Any]:
    merged: dict[str, Any] = {}
    spelt: dict[str, str] = {}
    for value in _array(values):
        for key, item in _object(value).items():
            merged[spelt.setdefault(key.lower(), key)] = item
    return merged


def _index_from_end(value: Any, place: Any) -> Any:
    given, at = _array(value), integer(place)
    if not 1 <= at <= len(given):
        raise TemplateError(f"the index {at} from the end is not within the {len(given)} items")
    return given[-at]


def _try_index_from_end(value: Any, place: Any) -> Any:
    given, at = _array(value), integer(place)
    return given[-at] if 1 <= at <= len(given) else None


def _try_get(value: Any, *path: Any) -> Any:
    for key in path:
        if isinstance(value, Mapping):
            known = look_up(value, text(key, "a property's name"))
            value = None if known is None else value[known]
        elif isinstance(value, list):
            at = integer(key, "an index")
            value = value[at] if 0 <= at < len(value) else None
        else:
            return None
    return value


ARRAY_FUNCTIONS: Mapping[str, tuple[Callable[..., Any], int, int]] = {
    "array": (lambda value: value if isinstance(value, list) else [value], 1, 1),
    "concat": (_concat, 1, 1000),
    "contains": (_contains, 2, 2),
    "createarray": (lambda *values: list(values), 0, 1000),
    "createobject": (_create_object, 0, 1000),
    "empty": (_empty, 1, 1),
    "first": (_first, 1, 1),
    "flatten": (_flatten, 1, 1),
    "indexfromend": (_index_from_end, 2, 2),
    "indexof": (_index_of(str.find, from_end=False), 2, 2),
    "intersection": (_intersection, 2, 100),
    "items": (_items, 1, 1),
    "last": (_last, 1, 1),
    "lastindexof": (_index_of(str.rfind, from_end=True), 2, 2),
    "length": (_length, 1, 1),
    "objectkeys": (_keys, 1, 1),
    "shallowmerge": (_shallow_merge, 1, 1),
    "skip": (_skip, 2, 2),
    "take": (_take, 2, 2),
    "tryget": (_try_get, 2, 100),
    "tryindexfromend": (_try_index_from_end, 2, 2),
    "union": (_union, 1, 100),
}
