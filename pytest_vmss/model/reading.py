"""Reads untrusted documents: JSON, YAML, and objects from Python code (R3).

Bytes, nesting and number of values are limited, after expanding YAML aliases and before
anything is built. The result contains only JSON values, with secrets masked.
"""

from __future__ import annotations

import errno
import json
import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, cast

import yaml

from pytest_vmss.arm import Unevaluated
from pytest_vmss.arm.values import kind_of
from pytest_vmss.errors import ModelError, ModelProblem
from pytest_vmss.model.decoding import decode, without_comments
from pytest_vmss.secrecy import (
    WRITE_ONLY,
    SealedDocument,
    SecretText,
    conceal,
    is_secret_name,
    is_secure_parameter,
    mask,
    names_secret,
    plain_name,
    seal,
)
from pytest_vmss.untrusted import looked_in, one_line, read_regular

__all__ = ["MAX_DEPTH", "MAX_VALUES", "OPAQUE", "copied", "label_of", "read"]

#: Azure Resource Manager's limit for a template.
MAX_BYTES = 4 * 1024 * 1024
MAX_DEPTH = 64
MAX_VALUES = 100_000
#: Azure's integers have 64 bits.
_INTEGER_BITS = 63
_NUMBER_CHARS = 64
#: YAML tags allowed for keys; merge keys have been resolved by the time keys are checked.
_YAML_TEXTS = frozenset({"tag:yaml.org,2002:str", "tag:yaml.org,2002:timestamp"})

#: Properties whose content is user-defined and taken as it is.
OPAQUE = frozenset({"settings", "protectedSettings", "protectedSettingsFromKeyVault", "tags"})
#: The property whose content is flattened.
_INNER = "properties"
_OPAQUE = {name.lower(): name for name in OPAQUE}

_COMPILERS = {".bicep": "`az bicep build`", ".bicepparam": "`az bicep build-params`"}

#: libyaml's loader if available: it is a hundred times as fast.
_SafeLoader: Any = getattr(yaml, "CSafeLoader", yaml.SafeLoader)


class _RefusedError(Exception):
    """A document exceeds a limit, or contains what JSON cannot."""

    def __init__(self, path: str, message: str) -> None:
        super().__init__(message)
        self.path, self.message = path, message

    def within(self, part: str) -> _RefusedError:
        """The same of what contains the value, as ``.name`` or ``[index]``."""
        return _RefusedError(f"${part}{self.path.removeprefix('$')}", self.message)


class Meter:
    """Counts a document's values and characters while it is traversed."""

    def __init__(self) -> None:
        self._values = self._chars = 0

    def take(self, depth: int, text: str = "") -> None:
        """Counts one value.

        Args:
            depth: How many objects and lists contain it.
            text: Its characters, if it is a string.

        Raises:
            _RefusedError: A limit is exceeded; the message says which.
        """
        self._values += 1
        self._chars += len(text)
        if depth > MAX_DEPTH:
            raise _RefusedError("$", f"is nested deeper than {MAX_DEPTH} levels, or holds itself")
        if self._values > MAX_VALUES:
            raise _RefusedError(
                "$", f"holds more than {MAX_VALUES} values, references and aliases followed"
            )
        if self._chars > MAX_BYTES:
            raise _RefusedError("$", f"holds more than {MAX_BYTES >> 20} MiB of text")


def label_of(source: object, what: str) -> str:
    """Returns a source's name for messages: a file's path, or else ``what``."""
    if isinstance(source, SecretText):
        return what
    return one_line(str(source)) if isinstance(source, (str, Path)) else what


def read(source: Any, label: str, expected: str = "a valid scale set") -> dict[str, Any]:
    """Reads an object from a file, or validates one that was passed in.

    Args:
        source: The path of a file (``.json``, otherwise YAML), or the object.
        label: Its name in messages.
        expected: What it must be, for messages.

    Raises:
        ModelError: It cannot be read, exceeds a limit, or is not a JSON object.
    """
    source = seal(source)
    data = refusals(lambda: _checked(_load(source)), label, expected)
    if not isinstance(data, dict):
        hint = "; give one of its items" if isinstance(data, list) else ""
        raise _error("$", f"must be an object, is {kind_of(data)}{hint}", label, expected)
    return data


def refusals(work: Callable[[], Any], label: str, expected: str = "a valid scale set") -> Any:
    """Calls a function that processes a document, converting its errors to ModelError.

    Raises:
        ModelError: The document is rejected.
    """
    try:
        return work()
    except _RefusedError as error:
        path, message = error.path, error.message
    except MemoryError:
        raise
    except Exception as error:  # noqa: BLE001 - foreign objects may raise anything on access
        path, message = "$", f"cannot be read: it raises {type(error).__name__}"
    # Not in the except block: tracebacks would show the values being processed.
    raise _error(path, message, label, expected)


def _error(path: str, message: str, label: str, expected: str) -> ModelError:
    problem = ModelProblem(path, "InvalidRequestContent", message)
    return ModelError([problem], source=label, expected=expected)


def _load(source: object) -> object:
    if isinstance(source, SealedDocument):
        return source.content
    if isinstance(source, SecretText):
        raise _RefusedError("$", "is a document's text, not a file's path: parse it first")
    if isinstance(source, bytes):
        return _parsed(_decoded(source), is_json=False)
    if not isinstance(source, (str, Path)):
        raise _RefusedError(
            "$", f"must be a file's path, an object or bytes, is {type(source).__name__}"
        )
    path = Path(source)
    if path.suffix.lower() in (".bicep", ".bicepparam"):
        raise _RefusedError(
            "$", f"is Bicep: give the JSON that {_COMPILERS[path.suffix.lower()]} makes"
        )
    return _parsed(_text(path), is_json=path.suffix.lower() == ".json")


def _parsed(text: SecretText, *, is_json: bool) -> object:
    """Parses a document's text.

    Raises:
        _RefusedError: It cannot be parsed; the message quotes nothing of it.
    """
    try:
        return _json(str(text)) if is_json else _yaml(str(text))
    except _RefusedError:
        raise
    except RecursionError:
        message = f"is nested deeper than {MAX_DEPTH} levels"
    except json.JSONDecodeError as error:
        what = error.msg.partition(":")[0]
        message = f"cannot be parsed: {what}, in line {error.lineno}, column {error.colno}"
    except yaml.MarkedYAMLError as error:
        message = f"cannot be parsed: {_yaml_problem(error)}"
    except Exception as error:  # noqa: BLE001 - loaders pass on whatever int() and others raise
        message = f"cannot be parsed: it holds what YAML does not take ({type(error).__name__})"
    raise _RefusedError("$", message)


_MERGE = "tag:yaml.org,2002:merge"
#: Our own descriptions, since the errors' messages quote the document (M5).
_PROBLEMS: tuple[tuple[type[yaml.MarkedYAMLError], str], ...] = (
    (yaml.scanner.ScannerError, "a character or an indentation is not what YAML takes there"),
    (yaml.parser.ParserError, "a part is not where YAML takes it, or is not closed"),
    (yaml.composer.ComposerError, "an alias has no anchor, or there are several documents"),
    (yaml.constructor.ConstructorError, "a tag or a value is not of a kind that JSON has"),
)


def _yaml_problem(error: yaml.MarkedYAMLError) -> str:
    """Describes a YAML error and its position without quoting the document."""
    words = next((told for kind, told in _PROBLEMS if isinstance(error, kind)), "it is not YAML")
    mark = error.problem_mark or error.context_mark
    return f"{words}, in line {mark.line + 1}, column {mark.column + 1}" if mark else words


def _text(path: Path) -> SecretText:
    """Reads a file's text, within the size limit.

    Raises:
        _RefusedError: It is not a regular file, too large, or neither UTF-8 nor UTF-16.
    """
    try:
        content = read_regular(path, MAX_BYTES)
    except (OSError, ValueError) as error:  # ValueError: a NUL in its path
        if getattr(error, "errno", None) == errno.EFBIG:
            message = f"is larger than {MAX_BYTES >> 20} MiB, the limit of templates"
            raise _RefusedError("$", message) from None
        reason = getattr(error, "strerror", None) or "it has no valid name"
        raise _RefusedError("$", f"cannot be read: {reason}{looked_in(path)}") from None
    return _decoded(content)


def _decoded(content: bytes) -> SecretText:
    """Decodes a document.

    Raises:
        _RefusedError: It is neither UTF-8 nor UTF-16, or too large.
    """
    if len(content) > MAX_BYTES:
        raise _RefusedError("$", f"is larger than {MAX_BYTES >> 20} MiB, the limit of templates")
    try:
        return SecretText(decode(content), "<a document's text>")
    except UnicodeDecodeError as error:
        message = f"cannot be read: it is not {error.encoding.upper()} at byte {error.start}"
    raise _RefusedError("$", message)


class _Loader(_SafeLoader):  # type: ignore[misc]
    """A YAML loader limited to JSON's types and to numbers of reasonable length."""

    def construct_mapping(self, node: Any, deep: bool = False) -> Any:
        """Builds a mapping, requiring all keys to be strings.

        An attacker could choose numeric keys that share one hash, which makes a dict take
        quadratic time; hashes of strings are unpredictable.
        """
        self.flatten_mapping(node)
        for key, _ in node.value:
            if key.tag not in _YAML_TEXTS:
                kind = one_line(key.tag.rpartition(":")[2])
                line = key.start_mark.line + 1
                raise _RefusedError(
                    "$",
                    f"has a name that is not a text but {kind}, in line {line}; put it in quotes",
                )
        return super().construct_mapping(node, deep=deep)


def _number(construct: Callable[[Any, Any], Any]) -> Callable[[Any, Any], Any]:
    def bounded(loader: Any, node: Any) -> Any:
        if len(node.value) > _NUMBER_CHARS:  # base-60 numbers would take quadratic time
            raise _RefusedError("$", f"holds a number of {len(node.value)} characters")
        return construct(loader, node)

    return bounded


_Loader.add_constructor("tag:yaml.org,2002:int", _number(_SafeLoader.construct_yaml_int))
_Loader.add_constructor("tag:yaml.org,2002:float", _number(_SafeLoader.construct_yaml_float))
# JSON has no dates: an unquoted API version is a string.
_Loader.add_constructor("tag:yaml.org,2002:timestamp", _SafeLoader.construct_yaml_str)


def _json(text: str) -> object:
    """Loads JSON as ARM takes it: with comments, trailing commas, and texts of several lines."""
    twice = _Twice()

    def checked(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
        twice.refuse(pairs)
        return dict(pairs)

    return json.loads(without_comments(text), strict=False, object_pairs_hook=checked)


class _Twice:
    """Refuses objects that have two values of one name: which of them counts would be a guess.

    Values that are the same are taken. A document has so many of them that it may hold.
    """

    def __init__(self) -> None:
        self._compared = 0

    def refuse(
        self, pairs: Iterable[tuple[str, Any]], made: Callable[[Any], Any] = lambda value: value
    ) -> None:
        """Refuses an object.

        Args:
            pairs: Its names and values.
            made: Makes JSON values to compare of them.

        Raises:
            _RefusedError: It has two values of one name, or too many are to be compared.
        """
        known = dict[str, Any]()
        for name, value in pairs:
            first = known.setdefault(name, value)
            if first is not value and not self._are_same(made(first), made(value)):
                told = f"gives {one_line(mask(name))!r} twice in one object, with other values"
                raise _RefusedError("$", told)

    def _are_same(self, one: Any, other: Any) -> bool:
        """Whether two values are the same to JSON, to which neither 1.0 nor true is 1."""
        self._compared += 1
        if self._compared > 2 * MAX_VALUES:  # each level that holds them compares them again
            raise _RefusedError("$", f"holds more than {MAX_VALUES} values that are given twice")
        if type(one) is not type(other):
            return False
        if isinstance(one, dict):
            return one.keys() == other.keys() and all(
                self._are_same(value, other[name]) for name, value in one.items()
            )
        if isinstance(one, list):
            return len(one) == len(other) and all(map(self._are_same, one, other))
        return bool(one == other) or one is other


def _yaml(text: str) -> object:
    """Loads YAML after counting its events; the loader's exceptions propagate."""
    meter = Meter()
    sizes: dict[str, int] = {}
    open_nodes: list[tuple[str | None, int]] = []  # anchor, values before it
    values = 0
    for event in yaml.parse(text, Loader=_Loader):
        if isinstance(event, (yaml.SequenceEndEvent, yaml.MappingEndEvent)):
            anchor, before = open_nodes.pop()
            if anchor is not None:
                sizes[anchor] = values - before
            continue
        if isinstance(event, yaml.AliasEvent):
            name = event.anchor or ""
            if any(anchor == name for anchor, _ in open_nodes):
                raise _RefusedError("$", "holds itself, by an alias inside its own anchor")
            values += sizes.get(name, 1)
        elif isinstance(event, yaml.NodeEvent):
            meter.take(len(open_nodes) + 1)
            if isinstance(event, yaml.ScalarEvent):
                if event.anchor is not None:
                    sizes[event.anchor] = 1
            else:
                open_nodes.append((event.anchor, values))
            values += 1
        if values > 2 * MAX_VALUES:  # keys count here too
            raise _RefusedError("$", f"holds more than {MAX_VALUES} values, aliases followed")
    return _constructed(text)


def _constructed(text: str) -> object:
    loader = _Loader(text)
    try:
        node = loader.get_single_node()
        if node is None:
            return None
        _refuse_twice_in(node, loader, _Twice(), set())
        return loader.construct_document(node)
    finally:
        loader.dispose()


def _refuse_twice_in(node: yaml.Node, loader: Any, twice: _Twice, visited: set[int]) -> None:
    """Refuses a document in which a mapping has a name twice, before merge keys are followed."""
    if id(node) in visited or isinstance(node, yaml.ScalarNode):
        return
    visited.add(id(node))
    for part in node.value:
        for each in part if isinstance(node, yaml.MappingNode) else (part,):
            _refuse_twice_in(each, loader, twice, visited)
    if isinstance(node, yaml.MappingNode):
        twice.refuse(
            (
                (name.value, value)
                for name, value in node.value
                if isinstance(name, yaml.ScalarNode) and name.tag != _MERGE
            ),
            # Follows the merge keys in a value; it has been visited.
            lambda value: loader.construct_object(value, deep=True),
        )


def copied(value: object, label: str) -> Any:
    """Copies what a template made, checked against a document's limits, with secrets masked.

    Values in it may be shared, so that it is far larger than it looks.

    Raises:
        ModelError: It exceeds a limit.
    """
    return refusals(lambda: _checked(value), label)


def _checked(data: object) -> Any:
    """Returns a copy of JSON data, checked against the limits, with secrets masked."""
    return conceal(_copy(data, 0, Meter(), opaque=False))


def _copy(value: object, depth: int, meter: Meter, *, opaque: bool, secret: bool = False) -> Any:
    """Copies a value, checking it against the limits.

    Args:
        value: The value.
        depth: How many objects and lists contain it.
        meter: Counts it.
        opaque: Whether it is in a property whose keys are user-defined.
        secret: Whether it is in a secret, of which messages must not even name keys.

    Raises:
        _RefusedError: It is refused; each level adds its part of the path, up to a secret.
    """
    kind = type(value)  # an object may claim to be of another class
    if issubclass(kind, (str, int, float, type(None))):  # the most frequent ones
        plain = _scalar(value)
        meter.take(depth, plain if isinstance(plain, str) else "")
        return plain
    meter.take(depth)
    if issubclass(kind, (dict, Mapping)):
        return _copied_object(cast("Mapping[Any, Any]", value), depth, meter, opaque, secret)
    if issubclass(kind, (list, tuple)):
        items: list[Any] = []
        for index, item in enumerate(cast("Sequence[Any]", value)):
            try:
                items.append(_copy(item, depth + 1, meter, opaque=opaque, secret=secret))
            except _RefusedError as error:
                raise error if secret else error.within(f"[{index}]") from None
        return items
    return _scalar(value)


def _copied_object(
    value: Mapping[Any, Any], depth: int, meter: Meter, opaque: bool, secret: bool
) -> dict[str, Any]:
    """Copies an object; see :func:`_copy`."""
    is_secure = secret or is_secure_parameter(value)
    copied: dict[str, Any] = {}
    for key, item in value.items():
        name = _name(key, copied, opaque=opaque)
        meter.take(depth, name)
        try:
            copied[name] = _copy(
                item, depth + 1, meter,
                opaque=opaque or name in OPAQUE, secret=is_secure or names_secret(name, value),
            )  # fmt: skip
        except _RefusedError as error:
            raise error if secret else error.within(f".{one_line(mask(name))}") from None
    return copied


def _name(key: object, others: Mapping[str, Any], *, opaque: bool) -> str:
    """Returns a property's name; write-only properties get Azure's spelling, however written."""
    if not issubclass(type(key), str):
        raise _RefusedError(
            "$", f"has a name that is not a text but {type(key).__name__}; put it in quotes"
        )
    name = str.__str__(cast("str", key))
    _scalar(name)
    if not opaque:
        name = WRITE_ONLY.get(plain_name(name)) or _OPAQUE.get(name.lower(), name)
        twice = name in others and is_secret_name(name)
        if twice or (name.lower() == _INNER and any(key.lower() == _INNER for key in others)):
            raise _RefusedError(f"$.{name}", "is given twice, in different spellings")
    return name


def _scalar(value: object) -> object:
    kind = type(value)
    # A subclass may override anything, so continue with plain values.
    if issubclass(kind, str):
        text = str.__str__(cast("str", value))
        if not text.isascii() and not _is_unicode(text):
            raise _RefusedError("$", "holds half of a surrogate pair, which is no character")
        return value if issubclass(kind, SecretText) else text
    if issubclass(kind, float):
        number = float.__pos__(cast("float", value))
        if not math.isfinite(number):
            raise _RefusedError("$", "must be a finite number")
        return number
    if value is None or issubclass(kind, (bool, Unevaluated)):
        return value
    if issubclass(kind, int):
        whole = int.__pos__(cast("int", value))
        if whole.bit_length() > _INTEGER_BITS:
            raise _RefusedError("$", "must be an integer of 64 bits")
        return whole
    raise _RefusedError("$", f"is {kind.__name__}, which JSON does not have")


def _is_unicode(text: str) -> bool:
    try:
        text.encode()
    except UnicodeEncodeError:
        return False
    return True
