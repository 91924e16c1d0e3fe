"""Masks secrets in texts of any length: by their form, and by the values that models hold (M5)."""

from __future__ import annotations

import base64
import binascii
import contextlib
import html
import json
import re
from bisect import bisect_left, bisect_right
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from itertools import accumulate, product
from typing import Any
from urllib.parse import quote, quote_plus

from pytest_vmss.guest.extensions.command import secret_words
from pytest_vmss.model import ScaleSetModel
from pytest_vmss.secrecy import SecretText, mask, named_values
from pytest_vmss.untrusted import clean

__all__ = ["mask_lines", "masker", "value_masker"]

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
#: No secret, however written, is shorter than its first characters, by which it is found.
_HEAD_CHARS = 5
#: Where a text was cut off, maybe within a secret.
_CUT = "…"
#: Shorter values are not searched where the end of a line splits them.
_SPLIT_CHARS = 8
_NO_WORD = re.compile(r"\W+")
_BLANKS = re.compile(r"\s+")
_WORD = re.compile(r"\S+")
#: How programs write what HTML gives a meaning to, in JSON that may become part of a page.
_JSON_IN_HTML = {ord(mark): f"\\u{ord(mark):04x}" for mark in "<>&"}
_APOSTROPHES = ("'", "&#x27;", "&#39;", "&apos;")
_QUOTATION_MARKS = ('"', "&quot;", "&#34;")
#: How shells write an apostrophe within apostrophes, such as in the trace of ``set -x``.
_SHELL_APOSTROPHES = (r"'\''", "'\"'\"'")
_PERCENT = re.compile(r"%[0-9A-F]{2}")
_URL_SAFE = str.maketrans("+/", "-_")
#: Characters in a line of base64, as common programs write it.
_BASE64_WIDTHS = (64, 76)
#: The end of a line that is not followed by one that is indented and may belong to it.
_LINE_END = re.compile(r"\n(?=\S)")


def masker(models: Iterable[ScaleSetModel]) -> Callable[[str], str]:
    """Returns a function that masks what is secret in a text, by its form or by its value.

    Args:
        models: Models whose secrets are replaced; see :func:`value_masker`.
    """
    mask_values = value_masker(models)
    return lambda text: mask_lines(mask_values(text))


def value_masker(models: Iterable[ScaleSetModel]) -> Callable[[str], str]:
    """Returns a function that masks the secrets of models in a text.

    Args:
        models: Models whose secrets are replaced wherever they occur, also as JSON, XML, URIs,
            Python and base64 write them.
    """
    known = list(models)
    parts = {part for model in known for value in _secrets(model.full()) for part in _parts(value)}
    parts.update(clean(part) for part in list(parts))  # as logs are, before they are masked
    parts.update(
        word for model in known for each in model.extensions for word in secret_words(each)
    )
    shown = {word for model in known for text in _shown(model.full()) for word in _words(text)}
    found = {part for part in parts if len(part) >= _SECRET_CHARS} - shown
    return _Values({form for value in found for form in _forms(value)})


class _Forms:
    """Finds texts wherever they occur, in a time that hardly depends on how many they are.

    Args:
        texts: The texts to find.
    """

    def __init__(self, texts: Iterable[str]) -> None:
        #: The texts by their first characters, the longest first, and by their last ones.
        self._heads: dict[str, list[str]] = {}
        self._ends: dict[str, list[str]] = {}
        self._longest = 0
        for form in sorted(set(texts), key=len, reverse=True):
            self._heads.setdefault(form[:_HEAD_CHARS], []).append(form)
            self._ends.setdefault(form[-_HEAD_CHARS:], []).append(form)
            self._longest = max(self._longest, len(form))

    def found_in(self, text: str) -> Iterator[tuple[int, int]]:
        """Yields where they begin and end, also where they are cut off at an ellipsis."""
        head, heads = _HEAD_CHARS, self._heads
        likely = [at for at in range(len(text) - head + 1) if text[at : at + head] in heads]
        cut = text.find(_CUT)
        if cut >= 0:
            yield from self._rest(text, cut + 1)
        for begin in likely:
            known = heads[text[begin : begin + head]]
            form = next((form for form in known if text.startswith(form, begin)), "")
            stop = begin + len(form)
            cut = text.find(_CUT, begin) if 0 <= cut < begin else cut
            size = cut - begin
            # Only a longer one may have been cut off; comparing others would take too long.
            if any(
                len(form) <= size < len(one) and one.startswith(text[begin:cut]) for one in known
            ):
                stop = cut
            if stop > begin:
                yield begin, stop

    def _rest(self, text: str, begin: int) -> Iterator[tuple[int, int]]:
        """Yields the end of one, if a text was cut off before it."""
        begin += len(text[begin:]) - len(text[begin:].lstrip())
        for end in range(begin + _HEAD_CHARS, min(begin + self._longest, len(text)) + 1):
            known = self._ends.get(text[end - _HEAD_CHARS : end], ())
            if any(form.endswith(text[begin:end]) for form in known):
                yield begin, end


class _Values:
    """Hides values in texts, also those that are split between lines.

    Args:
        forms: The ways in which the values are written.
    """

    def __init__(self, forms: Collection[str]) -> None:
        self._forms = _Forms(forms)
        joined = {_BLANKS.sub("", form) for form in forms}
        self._joined = _Forms(form for form in joined if len(form) >= _SPLIT_CHARS)

    def __call__(self, text: str) -> str:
        """Masks a text."""
        spans = sorted({*self._forms.found_in(text), *self._split_in(text)})
        parts: list[str] = []
        end = 0  # of what has been copied or hidden
        for begin, stop in spans:
            if begin >= end:  # else it overlaps with another, and both are hidden
                parts += (text[end:begin], "***")
            end = max(end, stop)
        return "".join((*parts, text[end:]))

    def _split_in(self, text: str) -> Iterator[tuple[int, int]]:
        """Yields where values are that have the ends of lines in them, however they are indented."""
        if "\n" not in text.strip():
            return
        words = list(_WORD.finditer(text))
        starts = [0, *accumulate(len(word[0]) for word in words)]  # in what is joined
        for begin, stop in self._joined.found_in("".join(word[0] for word in words)):
            first, last = bisect_right(starts, begin) - 1, bisect_left(starts, stop) - 1
            start = words[first].start() + begin - starts[first]
            end = words[last].start() + stop - starts[last]
            if "\n" in text[start:end]:
                yield start, end


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
    for form in (json.dumps(value), json.dumps(value, ensure_ascii=False)):
        yield form[1:-1]
        yield form[1:-1].translate(_JSON_IN_HTML)
    plain = str.__str__(value)
    yield repr(plain)[1:-1]
    yield repr(f'"{plain}')[2:-1]  # in a text that has quotation marks of both kinds
    yield from (value.replace("'", mark) for mark in _SHELL_APOSTROPHES)
    for apostrophe, mark in product(_APOSTROPHES, _QUOTATION_MARKS):
        yield html.escape(value, quote=False).replace("'", apostrophe).replace('"', mark)
    for form in (quote(value), quote(value, safe=""), quote_plus(value)):
        yield form
        yield _PERCENT.sub(lambda found: found[0].lower(), form)
    data = value.encode(errors="surrogatepass")
    yield repr(data)[2:-1]
    for digits in (data.hex(), data.hex(" "), data.hex(":")):
        yield from (digits, digits.upper())
    for form in _base64_forms(data):
        yield form
        yield form.translate(_URL_SAFE)


def _base64_forms(data: bytes) -> Iterator[str]:
    """Yields what base64 makes of data, alone or in the middle of others, and in lines."""
    whole = base64.b64encode(data).decode().rstrip("=")
    yield whole
    for width in _BASE64_WIDTHS:
        lines = (whole[at : at + width] for at in range(0, len(whole), width))
        yield from (line for line in lines if _LINE_CHARS <= len(line) < len(whole))
    for before in range(3):
        first, last = -(-before * 8 // 6), (before + len(data)) * 8 // 6
        yield base64.b64encode(bytes(before) + data).decode()[first:last]


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


def _shown(value: Any) -> Iterator[str]:
    """Yields the texts of a model that no part of is secret: to hide them elsewhere is no use."""
    if isinstance(value, Mapping):
        for item in value.values():
            yield from _shown(item)
    elif isinstance(value, Sequence) and not isinstance(value, (str, bytes)):
        for item in value:
            yield from _shown(item)
    elif isinstance(value, str) and not isinstance(value, SecretText):
        yield value


def _words(text: str) -> Iterator[str]:
    yield text
    yield from text.split()
    yield from _NO_WORD.split(text)


def _secrets(value: Any) -> Iterator[str]:
    if isinstance(value, SecretText):
        yield str(value)
    elif isinstance(value, Mapping):
        for item in value.values():
            yield from _secrets(item)
    elif isinstance(value, Sequence) and not isinstance(value, (str, bytes)):
        for item in value:
            yield from _secrets(item)
