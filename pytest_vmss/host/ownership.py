"""Checks the ownership of a user's folders: whether they are accessible, and trustworthy."""

from __future__ import annotations

import errno
import glob
import grp
import os
import pwd
import stat
import struct
from collections.abc import Iterator
from pathlib import Path

from pytest_vmss.host.files import PART

__all__ = [
    "account_name",
    "mend_ownership",
    "obstacle",
    "require_own",
    "require_trusted",
    "told_obstacle",
]

_MAX_LINKS = 40  # the kernel's limit
_UID_MAP = Path("/proc/self/uid_map")
#: The kernel's form of an ACL: a version, then entries of a tag, permissions and a number.
_ACL, _ACL_HEAD, _ACL_ENTRY = "system.posix_acl_access", 4, "<HHI"
_ACL_USER, _ACL_GROUP, _ACL_WRITE = 0x02, 0x08, 0x02
_OVERFLOW_UID = Path("/proc/sys/kernel/overflowuid")


def account_name(uid: int | None = None) -> str:
    """Returns the name of an account, or its number if it has no name.

    Args:
        uid: Its number; None for the account that runs this process.
    """
    number = os.geteuid() if uid is None else uid
    try:
        return pwd.getpwuid(number).pw_name
    except KeyError:
        return f"uid {number}"


def obstacle(path: Path) -> Path | None:
    """Finds what prevents this account from writing a path, existing or not; None if nothing does.

    Returns:
        The path itself, or the ancestor that this account cannot write or search.
    """
    for candidate in (path, *path.parents):
        if os.path.lexists(candidate):
            needed = os.W_OK | os.X_OK if candidate.is_dir() else os.W_OK
            return None if os.access(candidate, needed, effective_ids=True) else candidate
    return path


def mend_ownership(path: Path) -> str:
    """Returns the command that gives this account a file or folder, with everything in it."""
    return f"sudo chown -R {os.geteuid()}:{os.getegid()} {path}"


def told_obstacle(path: Path) -> str:
    """Describes, for an error message, what prevents writing a path, and how to fix it."""
    found = obstacle(path)
    if found is None:
        return ""
    owner = account_name(found.lstat().st_uid) if os.path.lexists(found) else "another"
    return (
        f" ({found} belongs to {owner}, and this is {account_name()}; if it should be this "
        f"account's: {mend_ownership(found)})"
    )


def require_own(*paths: Path) -> None:
    """Rejects files and folders that accounts other than this one can change (M5).

    The lab trusts their content. A folder's owner can put another key, database or disk there at
    any time; so can anyone who may write to it, or has a hard link to the file.

    Args:
        paths: Files and folders within a folder that :func:`require_trusted` accepts; missing ones
            are ignored.

    Raises:
        PermissionError: One belongs to another account, is a link, or can be changed by others.
    """
    for path in paths:
        try:
            about = path.lstat()
        except FileNotFoundError:
            continue
        _refuse_stranger(path, about, [os.geteuid()])
        if stat.S_ISLNK(about.st_mode):
            raise PermissionError(
                f"{path} is a symbolic link, and only what is really there is trusted; "
                "put the state directory itself where there is room"
            )
        _refuse_writers(path, about)
        is_shared = stat.S_ISREG(about.st_mode) and about.st_nlink > 1
        if is_shared and about.st_nlink - _own_parts(path, about) > 1:
            raise PermissionError(
                f"{path} has a second name elsewhere (a hard link), through which it can be "
                f"changed; replace it by a copy of its own: cp {path} {path}.own && "
                f"mv {path}.own {path}"
            )


def require_trusted(path: Path) -> None:
    """Rejects a folder that an account other than this one and root can replace.

    This checks every folder from the root down, following symbolic links. Each must belong to
    this account or root, and others may not write to it, unless it is sticky like ``/tmp``,
    which keeps accounts from replacing each other's files.

    Args:
        path: The folder; missing parts are ignored.

    Raises:
        PermissionError: A folder or link belongs to another account, or others may write to it.
    """
    owners = [os.geteuid(), 0]
    last: tuple[Path, os.stat_result] | None = None
    is_outside = True  # at first, folders may belong to accounts outside the container
    for component, about in _components(path.absolute()):
        if last is not None:
            _refuse_writers(*last, is_ancestor=True)
        is_outside = is_outside and about.st_uid not in owners and _is_unmapped(about.st_uid)
        if not is_outside:
            _refuse_stranger(component, about, owners)
        last = None if stat.S_ISLNK(about.st_mode) else (component, about)
    if last is not None:
        # What is still to be created below it will belong to this account from the start.
        _refuse_writers(*last, is_ancestor=last[0] != path.resolve())


def _components(path: Path) -> Iterator[tuple[Path, os.stat_result]]:
    """Yields each folder and link on the way to a path, from the root on, as far as they exist.

    Raises:
        OSError: There are too many links, probably a cycle.
    """
    at, names = Path("/"), list(reversed(path.parts[1:]))
    yield at, at.lstat()
    links = 0
    while names:
        name = names.pop()
        if name == "..":
            at = at.parent
            continue
        try:
            about = (at / name).lstat()
        except (FileNotFoundError, NotADirectoryError):
            return
        yield at / name, about
        if not stat.S_ISLNK(about.st_mode):
            at /= name
            continue
        links += 1
        if links > _MAX_LINKS:
            raise OSError(errno.ELOOP, os.strerror(errno.ELOOP), str(path))
        target = (at / name).readlink()
        if target.is_absolute():
            at = Path("/")
        names += reversed([part for part in target.parts if part != "/"])


def _refuse_stranger(path: Path, about: os.stat_result, owners: list[int]) -> None:
    if about.st_uid not in owners:
        raise PermissionError(
            f"{path} belongs to {account_name(about.st_uid)}, and this is {account_name()}, "
            "who trusts only what is its own"
        )


def _refuse_writers(path: Path, about: os.stat_result, *, is_ancestor: bool = False) -> None:
    """Rejects a path that others may write to."""
    mode = stat.S_IMODE(about.st_mode)
    if is_ancestor and mode & stat.S_ISVTX:
        return
    if mode & stat.S_IWOTH:
        raise PermissionError(
            f"everyone may write {path} (mode {mode:04o}); if nobody has: chmod o-w {path}"
        )
    if mode & stat.S_IWGRP and not _is_private_group(about):
        raise PermissionError(
            f"the group {_group_name(about.st_gid)} may write {path} (mode {mode:04o}); "
            f"if nobody of it has: chmod g-w {path}"
        )
    # The group's permission is also the mask of what an ACL grants others.
    if mode & stat.S_IWGRP and (others := _writers_by_acl(path, about)):
        raise PermissionError(
            f"an access control list lets {', '.join(others)} write {path}; if nobody of them "
            f"has: setfacl -b {path}"
        )


def _is_private_group(about: os.stat_result) -> bool:
    """Whether a file's group is its owner's private group, as on Debian, with no other member.

    With the umask 0002, which goes with such groups, the group may write all of its owner's files.
    The group file does not list those whose primary group it is.
    """
    if _is_unmapped(about.st_uid):
        return False
    if any(
        account.pw_gid == about.st_gid and account.pw_uid != about.st_uid
        for account in pwd.getpwall()
    ):
        return False
    try:
        group = grp.getgrgid(about.st_gid)
    except KeyError:  # an account of a container, which is in no group file
        return about.st_gid == about.st_uid
    owner = account_name(about.st_uid)
    is_same = about.st_gid == about.st_uid or group.gr_name == owner
    return is_same and set(group.gr_mem) <= {owner}


def _writers_by_acl(path: Path, about: os.stat_result) -> list[str]:
    """Returns accounts and groups that a POSIX ACL names and allows to write, except the owner's.

    Where there are no such lists, nobody is named.
    """
    try:
        raw = os.getxattr(path, _ACL, follow_symlinks=False)
    except OSError:
        return []
    writers = []
    for tag, permissions, number in struct.iter_unpack(_ACL_ENTRY, raw[_ACL_HEAD:]):
        if not permissions & _ACL_WRITE:
            continue
        if tag == _ACL_USER and number not in (about.st_uid, os.geteuid(), 0):
            writers.append(account_name(number))
        elif tag == _ACL_GROUP and number != about.st_gid:
            writers.append(f"the group {_group_name(number)}")
    return writers


def _group_name(gid: int) -> str:
    try:
        return grp.getgrgid(gid).gr_name
    except KeyError:
        return f"gid {gid}"


def _is_unmapped(uid: int) -> bool:
    """Whether an owner is outside this user namespace, like the owner of a container's ``/``.

    No account in here is that one. The folders around a container's own often belong to it, and
    whoever created the container controls its content anyway.
    """
    try:
        rows = [line.split() for line in _UID_MAP.read_text().splitlines()]
        ranges = [(int(first), int(count)) for first, _, count in rows]
        overflow = int(_OVERFLOW_UID.read_text())
    except (OSError, ValueError):
        return False
    return uid == overflow and not any(first <= uid < first + count for first, count in ranges)


def _own_parts(path: Path, about: os.stat_result) -> int:
    """Counts hard links to a file that an interrupted write left beside it."""
    parts = path.parent.glob(f".{glob.escape(path.name)}-*{PART}")
    return sum(
        (part.lstat().st_dev, part.lstat().st_ino) == (about.st_dev, about.st_ino) for part in parts
    )
