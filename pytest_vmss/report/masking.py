"""Masks secrets in whole files: by their form, and by the values that models declare secret (M5)."""

from __future__ import annotations

import base64
import binascii
import contextlib
import html
import json
import re
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import Any
from urllib.parse import quote, quote_plus

from pytest_vmss.api.lab import Lab
from pytest_vmss.guest.extensions.command import secret_words
from pytest_vmss.model import ScaleSetModel
from pytest_vmss.secrecy import SecretText, mask, named_values
from pytest_vmss.store import ModelRecord

__all__ = ["mask_lines", "masker", "masker_of"]

#: Characters that are searched at once, longer lines apart; :func:`mask` hides longer texts as a
#: whole.
_CHUNK = 24_000
#: So far a private key may go on beyond a chunk, rather than be split.
_KEY_CHARS = 16_000
_BEGIN, _END = "-----BEGIN", "-----END"
#: Shorter values are not replaced wherever they occur: "root" may be a password too.
_SECRET_CHARS = 6
#: Shorter lines of a secret of several lines are not replaced alone.
_LINE_CHARS = 16
#: The end of a line that is not followed by one that is indented and may belong to it.
_LINE_END = re.compile(r"\n(?=\S)")


def masker(models: Iterable[ScaleSetModel]) -> Callable[[str], str]:
    """Returns a function that masks what is secret in a text.

    Args:
        models: Models whose secrets are replaced wherever they occur, also as JSON, XML, URIs,
            Python and base64 write them.
    """
    known = list(models)
    found = {part for model in known for value in _secrets(model.full()) for part in _parts(value)}
    found = {value for value in found if len(value) >= _SECRET_CHARS}
    for model in known:
        for extension in model.extensions:
            found.update(secret_words(extension))
    secrets = sorted({form for value in found for form in _forms(value)}, key=len, reverse=True)

    def masked(text: str) -> str:
        for secret in secrets:
            text = text.replace(secret, "***")
        return mask_lines(text)

    return masked


def _parts(value: str) -> Iterator[str]:
    """Yields a secret, and what of it a program may print alone."""
    texts = [value, *_decoded(value)]
    for text in texts:
        yield text.strip()
        lines = [line.strip() for line in text.splitlines()]
        yield from (line for line in lines if len(line) >= _LINE_CHARS and text is value)
        yield from named_values(text)


def _decoded(value: str) -> Iterator[str]:
    """Yields the text that a value such as ``customData`` is the base64 of, if it is of one."""
    with contextlib.suppress(binascii.Error, ValueError):  # includes UnicodeDecodeError
        yield base64.b64decode(value, validate=True).decode()


def _forms(value: str) -> Iterator[str]:
    """Yields the ways in which programs write a value."""
    yield value
    yield json.dumps(value)[1:-1]
    yield json.dumps(value, ensure_ascii=False)[1:-1]
    yield repr(str.__str__(value))[1:-1]
    yield html.escape(value)
    yield html.escape(value, quote=False)
    yield quote(value)
    yield quote(value, safe="")
    yield quote_plus(value)
    encoded = base64.b64encode(value.encode(errors="surrogatepass")).decode()
    yield encoded.rstrip("=")


def masker_of(lab: Lab) -> Callable[[str], str]:
    """Masks what any revision of any of a lab's models declares to be secret."""
    models = []
    for record in lab.store.select(ModelRecord):
        with contextlib.suppress(Exception):  # of a broken record no more is known
            models.append(lab.environment.revisions.get(record.set_id, record.revision).model)
    return masker(models)


def mask_lines(text: str) -> str:
    """Masks a text of any length, as :func:`~pytest_vmss.secrecy.mask` does a short one."""
    return "".join(_mask_chunk(chunk) for chunk in _chunks(text))


def _mask_chunk(chunk: str) -> str:
    body = chunk.removesuffix("\n")
    return mask(body) + chunk[len(body) :]


def _chunks(text: str) -> Iterator[str]:
    """Splits a text between lines, and not within a private key or what is indented below a name.

    A line is never split, for a secret could be. One that is too long to be searched is hidden by
    :func:`mask`.
    """
    begin = 0
    while begin < len(text):
        end = _chunk_end(text, begin)
        part = text[begin:end]
        if part.rfind(_BEGIN) > part.rfind(_END):
            stop = text.find(_END, end, end + _KEY_CHARS)
            end = _line_end(text, stop if stop >= 0 else min(end + _KEY_CHARS, len(text)))
        yield text[begin:end]
        begin = end


def _chunk_end(text: str, begin: int) -> int:
    if len(text) - begin <= _CHUNK:
        return len(text)
    stop = begin + _CHUNK
    ends = [found.end() for found in _LINE_END.finditer(text, begin, stop)]
    return ends[-1] if ends else text.rfind("\n", begin, stop) + 1 or _line_end(text, stop)


def _line_end(text: str, at: int) -> int:
    return text.find("\n", at) + 1 or len(text)


def _secrets(value: Any) -> Iterator[str]:
    if isinstance(value, SecretText):
        yield str(value)
    elif isinstance(value, Mapping):
        for item in value.values():
            yield from _secrets(item)
    elif isinstance(value, Sequence) and not isinstance(value, (str, bytes)):
        for item in value:
            yield from _secrets(item)
