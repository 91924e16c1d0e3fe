"""Secret values that no representation shows (M5).

Tracebacks, ``--showlocals``, JUnit files and debuggers show what ``repr`` returns. So values
under names that Azure, or anybody, gives to secrets become subclasses whose ``repr`` is masked
as soon as they are read; to everything else they are the values that they were.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any, SupportsIndex

__all__ = [
    "MASK",
    "WRITE_ONLY",
    "SealedDocument",
    "SecretBytes",
    "SecretText",
    "conceal",
    "is_secret_name",
    "plain_name",
    "seal",
    "seal_text",
    "without_secrets",
]

MASK = "**********"

#: Azure's write-only properties: as :func:`plain_name` has them, to Azure's spelling.
WRITE_ONLY: Mapping[str, str] = {
    name.lower(): name
    for name in (
        "adminPassword", "customData", "userData", "protectedSettings",
        "protectedSettingsFromKeyVault",
    )
}  # fmt: skip
_SECRET = frozenset(
    {*(name.lower() for name in WRITE_ONLY.values()), "additionalunattendcontent", "token"}
)
#: Types of a template's parameters.
_SECURE = ("securestring", "secureobject")
_ENDINGS = (
    "password", "passphrase", "secret", "sastoken", "accesstoken", "accountkey", "accesskey",
    "apikey", "privatekey", "connectionstring",
)  # fmt: skip
#: A query may be a token, whatever its parameters are called; so may what is before a host.
_URI_SECRET = re.compile(r"://[^/?#]*@|\?")
_SHOWN_CHARS = 200


class SecretText(str):
    """A text whose representation is masked."""

    shown: str

    def __new__(cls, value: str, shown: str = MASK) -> SecretText:
        """Wraps a text.

        Args:
            value: The text.
            shown: What is shown of it.
        """
        text = super().__new__(cls, value)
        text.shown = shown
        return text

    def __repr__(self) -> str:
        return repr(self.shown)

    def __getitem__(self, index: SupportsIndex | slice) -> SecretText:
        return SecretText(super().__getitem__(index))

    def __reduce__(self) -> tuple[type[SecretText], tuple[str, str]]:
        return SecretText, (str(self), self.shown)


class SecretBytes(bytes):
    """Bytes whose representation is masked, also of parts of them."""

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


class SealedDocument:
    """A document as a caller handed it in, of which nothing is shown before it is checked."""

    __slots__ = ("content",)

    def __init__(self, content: Mapping[str, Any]) -> None:
        self.content = content

    def __repr__(self) -> str:
        return "<a document>"


def seal(source: Any) -> Any:
    """Keeps a document or text that was handed in from being shown; files stay as they are.

    Never fails: what is wrong with a document is found where it is read.
    """
    if isinstance(source, Mapping):
        return SealedDocument(source)
    if type(source) is str and (len(source) > 4096 or re.search(r"[\n{]", source)):
        return SecretText(source, "<a text>")  # no path: a document, which may hold anything
    return source


def seal_text(text: str | None) -> SecretText | None:
    """The same for a text that is secret as a whole, such as custom data."""
    return None if text is None else SecretText(text)


def plain_name(name: str) -> str:
    """A property's name in lower case, without what separates words."""
    return re.sub(r"[^a-z0-9]", "", name.lower())


def is_secret_name(name: str) -> bool:
    """Whether a property of this name, however it is spelt, holds a secret."""
    plain = plain_name(name)
    return plain in _SECRET or plain.endswith(_ENDINGS)


def conceal(value: Any, *, secret: bool = False) -> Any:
    """A copy of a JSON value in which nothing secret is shown.

    Args:
        value: Nested no deeper than a document may be.
        secret: Everything in it is.
    """
    if isinstance(value, Mapping):
        kind = value.get("type")  # of a template's parameter, which may have any name
        secret = secret or (isinstance(kind, str) and kind.lower() in _SECURE)
        return {
            key: conceal(item, secret=secret or (isinstance(key, str) and is_secret_name(key)))
            for key, item in value.items()
        }
    if isinstance(value, (list, tuple)):
        return [conceal(item, secret=secret) for item in value]
    return _concealed(value, secret=secret)


def _concealed(value: Any, *, secret: bool) -> Any:
    if isinstance(value, (SecretText, bool)) or value is None:
        return value
    if isinstance(value, str):
        if secret:
            return SecretText(value)
        if "://" in value and (found := _URI_SECRET.search(value)):
            # Of a URI, what comes before its query may be shown, and helps.
            clear = value[: found.start()] if found[0] == "?" else value.partition("://")[0]
            return SecretText(
                value, f"{clear[:_SHOWN_CHARS]}{'?' if found[0] == '?' else '://'}***"
            )
        return value
    if secret and isinstance(value, int):
        return _SecretInt(value)
    return _SecretFloat(value) if secret and isinstance(value, float) else value


def without_secrets(value: Any) -> Any:
    """A copy of a JSON value without properties that hold secrets."""
    if isinstance(value, Mapping):
        return {
            key: without_secrets(item) for key, item in value.items() if not is_secret_name(key)
        }
    return [without_secrets(item) for item in value] if isinstance(value, list) else value
