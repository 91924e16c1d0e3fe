"""Which characters names and texts may hold before they reach XML, paths, guests and HAProxy (M6).

Every pattern matches the whole text: pydantic's engine takes ``$`` for the very end, and
patterns of Python's own are used with ``fullmatch``.
"""

from __future__ import annotations

from typing import Annotated

from pydantic import Field, StringConstraints

__all__ = [
    "AdminName",
    "KeyData",
    "PlainText",
    "Prefix",
    "RequestPath",
    "ResourceName",
    "SetName",
    "Version",
    "Zone",
]

_LETTERS = "A-Za-z0-9"
#: Unicode's controls, formats (bidi and invisible ones), private and unassigned characters, and
#: what terminals and parsers take for the end of a line. pydantic's engine knows the categories.
_UNSEEN = r"\p{C}\p{Zl}\p{Zp}"

#: Of a scale set: also of its folder, its machines and its lock.
SetName = Annotated[str, Field(pattern=rf"^[{_LETTERS}_]([{_LETTERS}_.-]{{0,62}}[{_LETTERS}_])?$")]
#: Of an extension, and of a load balancer's rule: also of folders in guests and of HAProxy's parts.
ResourceName = Annotated[str, Field(pattern=rf"^[{_LETTERS}][{_LETTERS}._-]{{0,79}}$")]
#: Of computers.
Prefix = Annotated[
    str,
    Field(min_length=1, max_length=58, pattern=rf"^[{_LETTERS}]([{_LETTERS}-]*[{_LETTERS}])?$"),
]
#: Of the administrator in Linux guests.
AdminName = Annotated[str, Field(pattern=r"^[a-z_][a-z0-9_-]{0,31}$")]
#: Of an extension's handler.
Version = Annotated[str, Field(pattern=r"^[0-9]+(\.[0-9]+)*$", max_length=64)]
#: Of a URL, encoded: HAProxy and HTTP take neither spaces nor control characters.
RequestPath = Annotated[str, Field(pattern="^[!-~]*$", max_length=1024)]
#: A text that is only shown.
PlainText = Annotated[str, Field(pattern=rf"^[^{_UNSEEN}]*$", max_length=260)]
#: An SSH public key, as one line of ``authorized_keys``.
KeyData = Annotated[
    str,
    StringConstraints(strip_whitespace=True, max_length=16384, pattern=rf"^[^{_UNSEEN}]*$"),
]
#: Of an availability zone.
Zone = Annotated[str, Field(min_length=1, max_length=64, pattern=rf"^[^{_UNSEEN}]*$")]
