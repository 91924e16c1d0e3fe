"""Types for names and texts, limited to characters safe in XML, paths, guests and HAProxy (M6).

Every pattern matches the whole string: in pydantic's engine ``$`` matches only at the very
end, and Python's own patterns are used with ``fullmatch``.
"""

from __future__ import annotations

from typing import Annotated

from pydantic import AfterValidator, BeforeValidator, Field, StringConstraints

__all__ = [
    "FORBIDDEN_ADMINS",
    "AdminName",
    "KeyData",
    "PlainText",
    "Prefix",
    "RequestPath",
    "ResourceName",
    "SetName",
    "TagValue",
    "Version",
    "Zone",
]

_LETTERS = "A-Za-z0-9"
#: Unicode's control, format (bidi and invisible), private and unassigned characters, and those
#: that terminals and parsers treat as line ends. pydantic's engine supports these categories.
_UNSEEN = r"\p{C}\p{Zl}\p{Zp}"

#: Name of a scale set, and so of its folder, its VMs and its lock.
SetName = Annotated[str, Field(pattern=rf"^[{_LETTERS}_]([{_LETTERS}_.-]{{0,62}}[{_LETTERS}_])?$")]
#: Name of an extension or a load-balancer rule, and so of folders in guests and HAProxy sections.
ResourceName = Annotated[str, Field(pattern=rf"^[{_LETTERS}][{_LETTERS}._-]{{0,79}}$")]
#: Prefix of computer names.
Prefix = Annotated[
    str,
    Field(min_length=1, max_length=58, pattern=rf"^[{_LETTERS}]([{_LETTERS}-]*[{_LETTERS}])?$"),
]
#: Names that Azure refuses for the administrator.
FORBIDDEN_ADMINS = frozenset({
    "1", "123", "a", "actuser", "adm", "admin", "admin1", "admin2", "administrator", "aspnet",
    "backup", "console", "david", "guest", "john", "owner", "root", "server", "sql", "support",
    "support_388945a0", "sys", "test", "test1", "test2", "test3", "user", "user1", "user2",
    "user3", "user4", "user5",
})  # fmt: skip


def _check_admin(name: str) -> str:
    if name.lower() in FORBIDDEN_ADMINS:
        raise ValueError("is a name that Azure does not allow for the administrator")
    return name


#: Name of the administrator: what ``useradd`` takes, up to Azure's 64 characters.
AdminName = Annotated[
    str,
    Field(pattern=rf"^[{_LETTERS}_][{_LETTERS}_.-]{{0,63}}$"),
    AfterValidator(_check_admin),
]
#: Version of an extension's handler.
Version = Annotated[str, Field(pattern=r"^[0-9]+(\.[0-9]+)*$", max_length=64)]
#: Encoded path of a URL: HAProxy and HTTP accept neither spaces nor control characters.
RequestPath = Annotated[str, Field(pattern="^[!-~]*$", max_length=1024)]
#: A text that is only displayed.
PlainText = Annotated[str, Field(pattern=rf"^[^{_UNSEEN}]*$", max_length=260)]
#: An SSH public key, as one line of ``authorized_keys``; its fields may be parted by tabs.
KeyData = Annotated[
    str,
    BeforeValidator(lambda value: value.replace("\t", " ") if isinstance(value, str) else value),
    StringConstraints(strip_whitespace=True, max_length=16384, pattern=rf"^[^{_UNSEEN}]*$"),
]
#: Name of an availability zone.
Zone = Annotated[
    str,
    BeforeValidator(lambda value: str(value) if type(value) is int else value),
    Field(min_length=1, max_length=64, pattern=rf"^[^{_UNSEEN}]*$"),
]
#: Value of a tag; ARM stores numbers and truth values as texts.
TagValue = Annotated[
    str,
    BeforeValidator(
        lambda value: (
            str(value).lower()
            if isinstance(value, bool)
            else str(value)
            if isinstance(value, (int, float))
            else value
        )
    ),
    Field(max_length=256),
]
