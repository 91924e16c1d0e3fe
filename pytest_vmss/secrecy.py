"""Secret values that are masked in every representation (M5).

Tracebacks, ``--showlocals``, JUnit files and debuggers show what ``repr`` returns. So values
whose names mark them as secrets, Azure's or anyone's, become subclasses with a masked ``repr``
as soon as they are read; in all other respects they remain ordinary values.
"""

from __future__ import annotations

import json
import re
from collections import Counter
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from functools import lru_cache
from typing import Any, SupportsIndex
from urllib.parse import unquote, unquote_plus

__all__ = [
    "MASK",
    "WRITE_ONLY",
    "SealedDocument",
    "SecretBytes",
    "SecretText",
    "conceal",
    "concealed_at",
    "digits_of",
    "has_secret",
    "is_secret_name",
    "is_secure_parameter",
    "mask",
    "named_values",
    "names_secret",
    "own_secrets",
    "plain_name",
    "published",
    "quote",
    "seal",
    "seal_text",
    "unmasked",
    "uri_secrets",
    "with_masks_of",
]

MASK = "**********"
_HIDDEN = "***"

#: Azure's write-only properties, from :func:`plain_name`'s form to Azure's spelling.
WRITE_ONLY: Mapping[str, str] = {
    name.lower(): name
    for name in (
        "adminPassword", "customData", "userData", "protectedSettings",
        "protectedSettingsFromKeyVault",
    )
}  # fmt: skip
_SECRET = frozenset({*(name.lower() for name in WRITE_ONLY.values()), "additionalunattendcontent"})
#: Types of template parameters that are secret.
_SECURE = ("securestring", "secureobject")
_ENDINGS = (
    "password", "passwd", "passphrase", "secret", "token", "accountkey", "accesskey",
    "apikey", "privatekey", "connectionstring",
    # Written as one word, or in capitals, they have no words to be judged by.
    "appkey", "authkey", "activationkey", "encryptionkey", "instrumentationkey", "licensekey",
    "masterkey", "productkey", "sharedkey", "signingkey", "storagekey", "subscriptionkey",
    "workspacekey", "sharedaccesssignature", "sasurl", "sasuri", "connstr", "adminpass", "dbpass",
    "rootpass", "userpass", "adminpw", "dbpw", "rootpw", "userpw",
)  # fmt: skip
#: Words that make a name a secret's.
_WORDS = frozenset({
    "token", "tokens", "secret", "secrets", "pass", "passcode", "passphrase", "passwd",
    "password", "passwords", "passwort", "pwd", "key", "keys", "auth", "authorization", "bearer",
    "credential", "credentials", "creds", "signature", "sig", "sas", "cookie", "cookies", "dsn",
    "jwt", "pat", "pfx",
})  # fmt: skip
#: Final words that make a name one of something about a secret, such as its location.
_ABOUT = frozenset({
    "algorithm", "authentication", "count", "enabled", "expiry", "file", "files", "folder", "id",
    "ids", "identifier", "incarnation", "length", "method", "mode", "name", "names", "path",
    "paths", "size", "source", "timeout", "type", "uri", "uris", "url", "urls", "vault",
    "version",
})  # fmt: skip
#: Words that make a key public, or none: ``publicKeys``, ``keyData``, ``keyVault``, ``costKey``.
_OPEN_KEYS = frozenset({
    "authorized", "cost", "data", "known", "partition", "public", "sort", "space", "ssh", "vault",
})  # fmt: skip
#: First words that make tokens something that is counted: ``maxTokens``.
_COUNTED = frozenset({"max", "min", "num", "total"})
_NAME_PARTS = re.compile(r"[A-Z]+(?![a-z])|[A-Z]?[a-z]+")

# The patterns below run in linear time: each starts at something rare, and is bounded or takes
# what it has read.
#: What precedes a URI's host. Up to the last ``@``, since a password may contain a slash.
_USERINFO = re.compile(r"//(?=[^\s/]{0,256}@|[^\s/:]{0,256}+:\d*+[^\s/\d])([^\s\"'<>?#]{0,256})@")
#: An invalid port: probably a password in a malformed URI; shell variables are left alone.
_NO_PORT = re.compile(
    r"//([^\s/:@?#\[\"'<>]{0,256}+):(?!\d*+(?:[/?#\s\"'<>),;|&]|$)|[${%])[^\s/?#\"'<>@]{1,256}+"
)
#: A query may be a token, whatever its parameters are called; so may such a fragment.
_QUERY = re.compile(r"(//[^\s?#\"'<>]{1,2000}+)\?([^\s#\"'<>]++)")
_FRAGMENT = re.compile(r"#([^\s\"'<>#=]{0,64}+=[^\s\"'<>]++)")
#: ``user:password@host``, as git and databases accept it; not an image and its digest.
_LOGIN = re.compile(
    r"(?<![\w.+/-])(?!mailto:)([\w.+-]{1,64}+):([^\s/@:\"']{3,256}+)@(?!sha\d)(?=[\w\[])"
)
#: What precedes a value: ``name=``, ``name: ``, ``"name":``, or a command's ``--name ``.
_ASSIGNED = re.compile(
    r"(?<![\w./])([A-Za-z_][\w.-]{0,63}+)[\"']?[ \t]{0,16}+[:?+]?={1,3}+>?[ \t]{0,16}+"
)
_TOLD = re.compile(r"(?<![\w./-])([A-Za-z_][\w.-]{0,63}+)(?:[\"'][ \t]{0,2}+:[ \t]*+|:[ \t]++)")
_FLAG = re.compile(r"(?<![\w-])--?([A-Za-z][\w-]{1,63}+)[ \t]++(?!-)")
#: In it, a quotation mark is escaped by a backslash, or doubled.
_QUOTED = r"\"(?:[^\"\\\n]|\\.|\"\")++\"?|'(?:[^'\\\n]|\\.|'')++'?"
_WORD_VALUE = re.compile(rf"{_QUOTED}|(?:[^\s;&,\"'<>|)\\]|\\.|\\)++")
_LINE_VALUE = re.compile(rf"{_QUOTED}|[^\n\"']++")
#: What precedes a value, and the value.
_VALUES = ((_ASSIGNED, _WORD_VALUE), (_FLAG, _WORD_VALUE), (_TOLD, _LINE_VALUE))
#: A text of several lines in YAML; and what precedes ``pass:`` if it is a verb.
_BLOCK = re.compile(r"[|>][-+0-9]{0,2}[ \t]*+(?:#[^\n]*+)?(?:\n|\Z)")
_VERB = re.compile(r"(?i)\b(?:tests?|checks?|all|they|must|should|will|to|not) \Z")
_ELEMENT = re.compile(
    r"(<([A-Za-z_][\w.:-]{0,63}+)(?:\s[^<>]{0,256}+)?>(?:\s{0,64}+<Value>)?)([^<]{1,16384}+)(?=</)"
)
_HEADER = re.compile(r"(?i)\b(bearer|basic|sharedkey)( ++)[\w.~+/=:-]{6,}+")
_PEM = re.compile(
    r"(-----BEGIN [A-Z ]{0,40}PRIVATE KEY-----)(?:.{0,32000}?(?=-----END|\Z)|.{32000})", re.DOTALL
)
#: A text that matches none of these contains no secret, and is not searched.
_MARKS = re.compile(r"[=@?:#]|--|</|(?i:bearer|basic|sharedkey) ")
_SHOWN_CHARS = 200
#: Longer texts are not searched, but hidden as a whole.
_SEARCHED_CHARS = 65536
_LONG_MASK = re.compile(r"<a text of \d{1,12} characters>")
#: A mask within a text, and a value that is masked wherever any is.
_MASKED_PART = re.compile(r"(?<!\*)\*{3}(?!\*)")
_PROBE = "zqj=zqjzqj"
_NAME_CHARS = 256
_PASSES = 4
#: How deep values are searched for secrets.
_DEPTH = 64


class SecretText(str):
    """A string whose ``repr`` is masked, as are those of its parts.

    Otherwise it is an ordinary string: formatting or joining it yields its characters, which
    commands that are run need. Messages must therefore quote it with ``!r``.
    """

    shown: str

    def __new__(cls, value: str, shown: str = MASK) -> SecretText:
        """Wraps a string.

        Args:
            value: The string.
            shown: What its ``repr`` shows instead.
        """
        text = super().__new__(cls, value)
        text.shown = shown
        return text

    def __repr__(self) -> str:
        return repr(self.shown)

    def __getitem__(self, index: SupportsIndex | slice) -> SecretText:
        return SecretText(super().__getitem__(index))

    def __add__(self, other: str) -> SecretText:
        return SecretText(super().__add__(other))

    def __radd__(self, other: str) -> SecretText:
        return SecretText(str.__add__(other, self))

    def encode(self, encoding: str = "utf-8", errors: str = "strict") -> SecretBytes:
        """Encodes it, masked too."""
        return SecretBytes(super().encode(encoding, errors))

    def __reduce__(self) -> tuple[type[SecretText], tuple[str, str]]:
        return SecretText, (str(self), self.shown)


def _keeping(name: str) -> Any:
    """Wraps a method of ``str`` so that its results are masked too."""
    method = getattr(str, name)

    def kept(self: SecretText, *args: Any, **kwargs: Any) -> Any:
        return _wrapped(method(self, *args, **kwargs))

    kept.__name__ = name
    kept.__doc__ = method.__doc__
    return kept


def _wrapped(part: Any) -> Any:
    if isinstance(part, str):
        return SecretText(part)
    return type(part)(SecretText(piece) for piece in part)


for _name in (
    "__format__", "__mul__", "__rmul__", "capitalize", "casefold", "center", "expandtabs",
    "ljust", "lower", "lstrip", "partition", "removeprefix", "removesuffix", "replace", "rjust",
    "rpartition", "rsplit", "rstrip", "split", "splitlines", "strip", "swapcase", "title",
    "translate", "upper", "zfill",
):  # fmt: skip
    setattr(SecretText, _name, _keeping(_name))


class SecretBytes(bytes):
    """Bytes whose ``repr``, like that of their slices, shows only the length."""

    def __repr__(self) -> str:
        return f"<{len(self)} bytes>"

    def __getitem__(self, index: Any) -> Any:
        part = super().__getitem__(index)
        return SecretBytes(part) if isinstance(part, bytes) else part


class _SecretInt(int):
    def __repr__(self) -> str:
        return MASK


class _SecretFloat(float):
    def __repr__(self) -> str:
        return MASK


_KINDS = (SecretText, SecretBytes, _SecretInt, _SecretFloat)


def digits_of(number: float) -> str:
    """Formats a number with its digits, even if its ``repr`` is masked."""
    kind = int if isinstance(number, int) else float
    return kind.__repr__(number)


class SealedDocument:
    """A document as handed in by the caller; its ``repr`` hides it until it is validated."""

    __slots__ = ("content",)

    def __init__(self, content: Mapping[str, Any]) -> None:
        self.content = content

    def __repr__(self) -> str:
        return "<a document>"


def seal(source: Any) -> Any:
    """Hides a document or text that was handed in from ``repr``; paths are returned as they are.

    Never fails: problems of a document are found where it is read.
    """
    if isinstance(source, Mapping):
        return SealedDocument(source)
    if type(source) is str and (len(source) > 4096 or re.search(r"[\n{]", source)):
        return SecretText(source, "<a text>")  # a document, not a path: may contain anything
    if type(source) is bytes:
        return SecretBytes(source)
    return source


def seal_text(text: str | None) -> SecretText | None:
    """Hides a text that is secret as a whole, such as custom data, from ``repr``."""
    return None if text is None else SecretText(text)


def plain_name(name: str) -> str:
    """Returns a property's name in lower case, without the separators of its words."""
    return re.sub(r"[^a-z0-9]", "", name.lower())


def is_secret_name(name: str) -> bool:
    """Whether a property of this name, in any spelling, holds a secret.

    The name is judged by its words: ``DB_PASSWORD`` and ``sasToken`` name secrets;
    ``publicKeys``, ``passwordFile`` and ``keyVaultId`` do not.
    """
    return _is_secret_name(name[-_NAME_CHARS:])


@lru_cache(maxsize=4096)
def _is_secret_name(name: str) -> bool:
    plain = plain_name(name)
    if plain in _SECRET or "connectionstring" in plain:
        return True
    words = [word.lower() for word in _NAME_PARTS.findall(name)]
    if not words or plain == "disablepasswordauthentication":
        return False
    if "sas" in words:
        return True
    if words[-1] in _ABOUT:
        return False
    found = _WORDS.intersection(words)
    if found and found <= {"key", "keys"}:
        return "private" in words or not _OPEN_KEYS.intersection(words)
    if found <= {"token", "tokens"} and words[0] in _COUNTED:
        return False
    return bool(found) or plain.endswith(_ENDINGS)


def mask(text: str) -> str:
    """Masks the secrets in a text that can be recognized by their form.

    These are a URI's credentials, its query, and a fragment with values; the values of
    ``password=…``, ``token: …`` and ``--secret …``; credentials in HTTP ``Authorization``
    headers; private keys in PEM.
    """
    if isinstance(text, SecretText):
        return text.shown
    if not _MARKS.search(text):
        return text
    if len(text) > _SEARCHED_CHARS:
        return f"<a text of {len(text)} characters>"
    for _ in range(_PASSES):  # so that what is masked is masked in the same way again
        text, before = _masked(text), text
        if text == before:
            break
    return text


def named_values(text: str) -> Iterator[str]:
    """Yields the values that follow names of secrets in a text, as :func:`mask` finds them."""
    for heads, value in _VALUES:
        for head in heads.finditer(text):
            found = value.match(text, head.end()) if is_secret_name(head[1]) else None
            if found and _BLOCK.match(text, head.end()) is None:
                yield found[0].strip().strip("\"'")


def _masked(text: str) -> str:
    masked = _USERINFO.sub(f"//{_HIDDEN}@", text)
    masked = _NO_PORT.sub(rf"//\1:{_HIDDEN}", masked)
    masked = _QUERY.sub(rf"\1?{_HIDDEN}", masked)
    masked = _FRAGMENT.sub(f"#{_HIDDEN}", masked)
    masked = _LOGIN.sub(rf"\1:{_HIDDEN}@", masked)
    masked = _HEADER.sub(rf"\1\2{_HIDDEN}", masked)
    masked = _PEM.sub(rf"\1{_HIDDEN}", masked)
    masked = _ELEMENT.sub(_without_content, masked)
    for heads, value in _VALUES:
        masked = _without_values(masked, heads, value)
    return masked


def _without_content(element: re.Match[str]) -> str:
    return f"{element[1]}{_HIDDEN}" if is_secret_name(element[2]) else element[0]


def _without_values(text: str, heads: re.Pattern[str], value: re.Pattern[str]) -> str:
    """Masks the values that follow names of secrets in a text."""
    parts: list[str] = []
    at = 0
    for head in heads.finditer(text):
        if head.start() < at or not is_secret_name(head[1]):
            continue
        if head[1] == "pass" and _VERB.search(text, max(0, head.start() - 16), head.start()):
            continue  # "tests pass: all"
        found = value.match(text, head.end())
        if found:
            mark = found[0][0] if found[0][0] in "\"'" else ""
            parts += (text[at : head.end()], f"{mark}{_HIDDEN}{mark}")
            block = _BLOCK.match(text, head.end()) if heads is _TOLD else None
            at = found.end() if block is None else _block_end(text, head.start(), block.end())
    return "".join((*parts, text[at:]))


def _block_end(text: str, head: int, start: int) -> int:
    """Finds the end of a YAML block: its lines are indented deeper than their property.

    Args:
        text: The text.
        head: Where the property's name starts.
        start: Where the block's first line starts.
    """
    before = text[text.rfind("\n", 0, head) + 1 : head]
    is_item = not before.strip(" \t-\"'")  # also an item's first property
    indent = len(before) - (0 if is_item else len(before.lstrip(" \t")))
    end = start
    while start < len(text):
        after = text.find("\n", start) + 1 or len(text)
        content = text[start:after].lstrip(" \t")
        if content.strip() and after - start - len(content) <= indent:
            break
        start = after
        end = after if content.strip() else end
    return end - 1 if text[end - 1 : end] == "\n" else end


def uri_secrets(text: str) -> Iterator[str]:
    """Yields the secrets in a text's URIs, as written and percent-decoded.

    These are the credentials before a host, and the values of a query and of a fragment.
    """
    text = text[:_SEARCHED_CHARS]
    found: list[str] = []
    for match in _USERINFO.finditer(text):
        found += (match[1], match[1].partition(":")[2])
    found += (match[2] for match in _LOGIN.finditer(text))
    query = text.partition("?")[2] if "//" in text else ""  # also if it is not a valid URI
    for part in (query, *(match[1] for match in _FRAGMENT.finditer(text))):
        whole = part.partition("#")[0]
        found += (whole, *(pair.partition("=")[2] for pair in whole.split("&")))
    for part in found:
        if part:
            yield from {part, unquote(part), unquote_plus(part)}


def conceal(value: Any, *, secret: bool = False) -> Any:
    """Returns a copy of a JSON value in which secrets are masked in ``repr``.

    Args:
        value: A JSON value; its objects and lists may be of other types.
        secret: Whether all of it is secret.
    """
    if isinstance(value, Mapping):
        secret = secret or is_secure_parameter(value)
        return {
            key: conceal(item, secret=secret or names_secret(key, value))
            for key, item in value.items()
        }
    if isinstance(value, (list, tuple)):
        return [conceal(item, secret=secret) for item in value]
    return _concealed(value, secret=secret)


def is_secure_parameter(value: Mapping[Any, Any]) -> bool:
    """Whether an object is a template parameter of a secure type, which may have any name."""
    kind = value.get("type")
    return isinstance(kind, str) and kind.lower() in _SECURE


def own_secrets(value: Any) -> Iterator[tuple[str | int, ...]]:
    """Yields the paths of texts in a JSON value that are secret although nothing in it tells so.

    Such is what a template made of a secure parameter: the mark is not stored with the text.
    """
    yield from _own_secrets(value, conceal(_unmarked(value)), ())


def _own_secrets(
    value: Any, told: Any, path: tuple[str | int, ...]
) -> Iterator[tuple[str | int, ...]]:
    if isinstance(value, Mapping):
        for key, item in value.items():
            yield from _own_secrets(item, told[key], (*path, key))
    elif isinstance(value, (list, tuple)):
        for index, item in enumerate(value):
            yield from _own_secrets(item, told[index], (*path, index))
    elif isinstance(value, SecretText) and not isinstance(told, SecretText):
        yield path


def _unmarked(value: Any) -> Any:
    if isinstance(value, Mapping):
        return {key: _unmarked(item) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [_unmarked(item) for item in value]
    return str.__str__(value) if isinstance(value, SecretText) else value


def concealed_at(value: Any, paths: Collection[Sequence[str | int]]) -> Any:
    """Returns a copy of a JSON value in which the texts at some paths are masked in ``repr``."""
    if () in [tuple(path) for path in paths]:
        return conceal(value, secret=True)
    heads: dict[str | int, list[Sequence[str | int]]] = {}
    for path in paths:
        heads.setdefault(path[0], []).append(path[1:])
    if isinstance(value, Mapping):
        return {key: concealed_at(item, heads.get(key, ())) for key, item in value.items()}
    if isinstance(value, list):
        return [concealed_at(item, heads.get(index, ())) for index, item in enumerate(value)]
    return value


def names_secret(key: object, siblings: Mapping[Any, Any]) -> bool:
    """Whether a property is a secret, judged by its name or by a sibling's value.

    Args:
        key: The property.
        siblings: The object that contains it: the ``value`` in ``{"name": "adminPassword", "value":
            …}`` is secret.
    """
    if not isinstance(key, str):
        return False
    if key.lower() in ("value", "defaultvalue"):
        names = (siblings.get("name"), siblings.get("key"))
        return any(isinstance(name, str) and is_secret_name(name) for name in names)
    if key.lower() == "key" and "value" in siblings:
        return False
    return is_secret_name(key)


def _concealed(value: Any, *, secret: bool) -> Any:
    if isinstance(value, (SecretText, bool)) or value is None:
        return value
    if isinstance(value, str):
        if secret:
            return SecretText(value)
        masked = mask(value)
        return value if masked == value else SecretText(value, masked[:_SHOWN_CHARS])
    if secret and isinstance(value, int):
        return _SecretInt(value)
    return _SecretFloat(value) if secret and isinstance(value, float) else value


def published(value: Any, known: Any = None, *, secret: bool = False) -> Any:
    """Returns a copy of a JSON value that is safe to show to anyone: secrets are masked.

    Nothing is omitted, so that :func:`unmasked` can restore it. (What Azure never returns of a
    model, its fields exclude.)

    Args:
        value: The value.
        known: The same value as :func:`conceal` returned it, if that marks more as secret.
        secret: Whether all of it is secret.
    """
    if isinstance(value, Mapping):
        others = known if isinstance(known, Mapping) else {}
        return {
            key: published(item, others.get(key), secret=secret or names_secret(key, value))
            for key, item in value.items()
        }
    if isinstance(value, (list, tuple)):
        same = isinstance(known, (list, tuple)) and len(known) == len(value)
        return [
            published(item, known[index] if same else None, secret=secret)
            for index, item in enumerate(value)
        ]
    if value is None or isinstance(value, bool):
        return value
    if secret or isinstance(known, (_SecretInt, _SecretFloat)):
        return MASK
    masked = mask(str(value)) if isinstance(value, str) else value
    return known.shown if isinstance(known, SecretText) and masked == value else masked


def with_masks_of(given: Any, checked: Any) -> Any:
    """Returns a validated value whose strings are masked again where the given ones were.

    Args:
        given: The value as it was read.
        checked: The result of its validation.
    """
    if isinstance(given, SecretText) and type(checked) is str:
        return given if given == checked else SecretText(checked)
    if isinstance(given, Mapping) and isinstance(checked, dict):
        return {key: with_masks_of(given.get(key), item) for key, item in checked.items()}
    if not isinstance(given, (list, tuple)) or not isinstance(checked, list):
        return checked
    if len(given) != len(checked):
        return checked
    return [with_masks_of(old, new) for old, new in zip(given, checked, strict=True)]


def quote(value: object) -> str:
    """Formats a value for a message: shortened, and without recognizable secrets."""
    if not isinstance(value, str):
        return repr(value)
    masked = mask(value)
    return repr(str(masked) if len(masked) <= _SHOWN_CHARS else f"{masked[:_SHOWN_CHARS]}…")


def unmasked(value: Any, stored: Any, left: list[tuple[str | int, ...]]) -> Any:
    """Restores the stored secrets in a JSON value that :func:`published` masked.

    Args:
        value: The value, possibly derived from a published one.
        stored: The stored original, as :func:`conceal` returns it.
        left: The paths of masks are added to it for which nothing is stored.
    """
    return _restored(
        (value, published(value, value)), (stored, published(stored, stored)), (), left
    )


def _restored(
    given: tuple[Any, Any],
    stored: tuple[Any, Any],
    path: tuple[str | int, ...],
    left: list[tuple[str | int, ...]],
) -> Any:
    """Restores secrets, of pairs of a value and of how it is published."""
    value, look = given
    old, old_look = stored
    if isinstance(value, Mapping):
        olds, old_looks = stored if isinstance(old, Mapping) else ({}, {})
        return {
            key: _restored(
                (item, look[key]), (olds.get(key), old_looks.get(key)), (*path, key), left
            )
            for key, item in value.items()
        }
    if isinstance(value, list):
        olds, old_looks = stored if isinstance(old, (list, tuple)) else ((), ())
        return [
            _restored(
                (value[index], look[index]),
                (None, None) if source is None else (olds[source], old_looks[source]),
                (*path, index),
                left,
            )
            for index, source in enumerate(_sources(look, old_looks))
        ]
    if not isinstance(value, str) or value == old:
        return value
    if old is not None and not isinstance(old, (Mapping, list, tuple)):
        is_secret = old_look != old  # it is not shown as it is
        if is_secret and value in (MASK, old_look, getattr(old, "shown", MASK)):
            return old
    if _holds_mask(value):
        left.append(path)
    return value


def _sources(looks: Sequence[Any], old_looks: Sequence[Any]) -> list[int | None]:
    """Finds the stored item that each item of a list is derived from.

    This is the one of the same name, if that is unique; otherwise the only one that looks the
    same, or, if as many items look so as before, the one in the same order.

    Args:
        looks: The items, as they are published.
        old_looks: The stored items, as they are published.

    Returns:
        For each item, the index of a stored one, or None.
    """
    names, old_names = ([_label(item) for item in items] for items in (looks, old_looks))
    named = {name: index for index, name in enumerate(old_names)}
    counts, old_counts = Counter(names), Counter(old_names)
    forms = [json.dumps(item, sort_keys=True) for item in looks]
    form_counts = Counter(forms)
    alike: dict[str, list[int]] = {}
    for index, item in enumerate(old_looks):
        alike.setdefault(json.dumps(item, sort_keys=True), []).append(index)
    passed: Counter[str] = Counter()
    found: list[int | None] = []
    for name, form in zip(names, forms, strict=True):
        if name and counts[name] == old_counts[name] == 1:
            found.append(named[name])
            continue
        same = alike.get(form, [])
        if len(same) == form_counts[form]:
            found.append(same[passed[form]])
        else:
            found.append(same[0] if len(same) == 1 else None)
        passed[form] += 1
    return found


def _label(item: Any) -> str:
    """Returns what an object in a list is called, in any case; an empty string if nothing."""
    if not isinstance(item, Mapping):
        return ""
    for key in ("name", "key"):
        name = item.get(key)
        if isinstance(name, str) and not names_secret(key, item) and not _holds_mask(name):
            return f"{key} {name.casefold()}"
    return ""


def _holds_mask(text: str) -> bool:
    """Whether a text holds a mask where :func:`published` would have put one."""
    if text == MASK or _LONG_MASK.fullmatch(text):
        return True
    if _HIDDEN not in text or len(text) > _SEARCHED_CHARS:
        return False  # a longer one is not shown in part
    # Asterisks elsewhere are the text's own.
    tried = _MASKED_PART.sub(_PROBE, text)
    return _masked(tried).count(_PROBE) < tried.count(_PROBE)


def has_secret(value: object, depth: int = _DEPTH) -> bool:
    """Whether a value is a secret or contains one, also in fields of dataclasses and the like.

    Visited are dictionaries, lists, tuples, sets, dataclasses, attrs' classes and pydantic's models.
    """
    return _has_secret(value, depth, set())


def _has_secret(value: object, depth: int, visited: set[int]) -> bool:
    """Whether a value contains a secret; objects with fields are visited once."""
    if isinstance(value, _KINDS):
        return True
    if not depth:
        return True  # err on the side of caution
    parts: Iterable[object] = ()
    if isinstance(value, Mapping):
        parts = (part for item in value.items() for part in item)
    elif isinstance(value, (list, tuple, set, frozenset)):
        parts = value
    elif id(value) not in visited and (names := _field_names(type(value))):
        visited.add(id(value))  # it may well be part of its own parts
        parts = (_field(value, name) for name in names)
    return any(_has_secret(part, depth - 1, visited) for part in parts)


def _field_names(kind: type) -> tuple[str, ...]:
    """Returns the fields of a dataclass, a class of attrs or a model of pydantic."""
    if isinstance(models := _field(kind, "__pydantic_fields__"), Mapping):
        return (*models, "__pydantic_extra__")
    if isinstance(attributes := _field(kind, "__attrs_attrs__"), tuple):
        return tuple(str(field.name) for field in attributes)
    declared = _field(kind, "__dataclass_fields__")
    return tuple(declared) if isinstance(declared, Mapping) else ()


def _field(value: object, name: str) -> object:
    try:
        return getattr(value, name, None)
    except Exception:  # noqa: BLE001 - a foreign object's property; it is only explained less well
        return None
