"""The docstrings' words for Sphinx, as Markdown has them."""

from __future__ import annotations

import re

import griffe

__all__ = ["PlainRoles"]

_ROLE = re.compile(r":[a-z]+:`~?([^`]+)`")


class PlainRoles(griffe.Extension):
    """Takes the role off names: ``:meth:`open``` becomes ```open```."""

    def on_object(self, *, obj: griffe.Object, **_: object) -> None:
        """Called by griffe for each module, class, function and attribute."""
        if obj.docstring:
            obj.docstring.value = _ROLE.sub(r"`\1`", obj.docstring.value)
