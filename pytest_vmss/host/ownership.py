"""Whose the user's folders are: some do not let the user in, others are a stranger's."""

from __future__ import annotations

import os
import pwd
import stat
from pathlib import Path

__all__ = ["account_name", "mend_ownership", "obstacle", "require_own", "told_obstacle"]


def account_name(uid: int | None = None) -> str:
    """The name of an account; its number where it has none.

    Args:
        uid: Its number; None for who runs this.
    """
    number = os.geteuid() if uid is None else uid
    try:
        return pwd.getpwuid(number).pw_name
    except KeyError:
        return f"uid {number}"


def obstacle(path: Path) -> Path | None:
    """What keeps this account from writing a file or folder, made or not; None if nothing does.

    Returns:
        The path itself, or the folder above it in which it cannot be reached or made.
    """
    for candidate in (path, *path.parents):
        if os.path.lexists(candidate):
            needed = os.W_OK | os.X_OK if candidate.is_dir() else os.W_OK
            return None if os.access(candidate, needed, effective_ids=True) else candidate
    return path


def mend_ownership(path: Path) -> str:
    """The command that gives this account a file or folder, with everything in it."""
    return f"sudo chown -R {os.geteuid()}:{os.getegid()} {path}"


def told_obstacle(path: Path) -> str:
    """For an error message: what is in the way of writing a path, and what mends it."""
    found = obstacle(path)
    if found is None:
        return ""
    owner = account_name(found.lstat().st_uid) if os.path.lexists(found) else "another"
    return (
        f" ({found} belongs to {owner}, and this is {account_name()}; if it should be this "
        f"account's: {mend_ownership(found)})"
    )


def require_own(*paths: Path, or_roots: bool = False) -> None:
    """Sees that what is trusted like this account's own word was left by nobody else (M5).

    Who owns a folder can put another key, database or disk there at any time; and so can
    anyone where everyone may write.

    Args:
        paths: Files and folders; those that are not there are nobody's.
        or_roots: They may be root's as well, who can do everything anyway.

    Raises:
        PermissionError: One is another account's, or everyone may change what is in it.
    """
    for path in paths:
        try:
            about = path.lstat()
        except FileNotFoundError:
            continue
        if about.st_uid != os.geteuid() and not (or_roots and about.st_uid == 0):
            raise PermissionError(
                f"{path} belongs to {account_name(about.st_uid)}, and this is {account_name()}, "
                "who trusts only what is its own"
            )
        mode = stat.S_IMODE(about.st_mode)
        if not stat.S_ISLNK(about.st_mode) and mode & (stat.S_IWOTH | stat.S_ISVTX) == stat.S_IWOTH:
            raise PermissionError(
                f"everyone may write {path} (mode {mode:04o}); if nobody has: chmod o-w {path}"
            )
