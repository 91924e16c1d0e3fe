"""Masks secrets in whole files: by their form, and by the values that models declare secret (M5)."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import Any

from pytest_vmss.api.lab import Lab
from pytest_vmss.guest.extensions.command import redact
from pytest_vmss.model import ScaleSetModel
from pytest_vmss.secrecy import SecretText, mask
from pytest_vmss.store import ModelRecord

__all__ = ["mask_lines", "masker", "masker_of"]

#: Characters that are searched at once; :func:`mask` hides longer texts as a whole.
_CHUNK = 24_000
#: So far a private key may go on beyond a chunk, rather than be split.
_KEY_CHARS = 16_000
_BEGIN, _END = "-----BEGIN", "-----END"
#: Shorter values are not replaced wherever they occur: "root" may be a password too.
_SECRET_CHARS = 6


def masker(models: Iterable[ScaleSetModel]) -> Callable[[str], str]:
    """Returns a function that masks what is secret in a text.

    Args:
        models: Models whose secrets are replaced wherever they occur.
    """
    known = list(models)
    values = {value for model in known for value in _secrets(model.full())}
    secrets = sorted((value for value in values if len(value) >= _SECRET_CHARS), key=len)
    extensions = [extension for model in known for extension in model.extensions]

    def masked(text: str) -> str:
        for secret in reversed(secrets):
            text = text.replace(secret, "***")
        for extension in extensions:
            text = redact(text, extension)
        return mask_lines(text)

    return masked


def masker_of(lab: Lab) -> Callable[[str], str]:
    """Masks what any revision of any of a lab's models declares to be secret."""
    models = []
    for record in lab.store.select(ModelRecord):
        with contextlib.suppress(Exception):  # of a broken record no more is known
            models.append(lab.environment.revisions.get(record.set_id, record.revision).model)
    return masker(models)


def mask_lines(text: str) -> str:
    """Masks a text of any length, as :func:`~pytest_vmss.secrecy.mask` does a short one."""
    return "".join(mask(chunk) for chunk in _chunks(text))


def _chunks(text: str) -> Iterator[str]:
    """Splits a text between lines, and not within a private key."""
    begin = 0
    while begin < len(text):
        end = text.rfind("\n", begin, begin + _CHUNK) + 1 or begin + _CHUNK
        if len(text) - begin <= _CHUNK:
            end = len(text)
        part = text[begin:end]
        if part.rfind(_BEGIN) > part.rfind(_END):
            stop = text.find(_END, end, end + _KEY_CHARS)
            end = text.find("\n", stop) + 1 or len(text) if stop >= 0 else end
        yield text[begin:end]
        begin = end


def _secrets(value: Any) -> Iterator[str]:
    if isinstance(value, SecretText):
        yield str(value)
    elif isinstance(value, Mapping):
        for item in value.values():
            yield from _secrets(item)
    elif isinstance(value, Sequence) and not isinstance(value, (str, bytes)):
        for item in value:
            yield from _secrets(item)
