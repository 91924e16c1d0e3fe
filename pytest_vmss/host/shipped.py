"""Files that ship with the package: beside it in a checkout, inside it once installed."""

from __future__ import annotations

from importlib.resources import files
from pathlib import Path

from pytest_vmss.errors import NotFoundError

__all__ = ["shipped"]


def shipped(name: str) -> Path:
    """Returns the path of a shipped file or folder, whichever module asks for it.

    Args:
        name: Its path in a checkout, below ``images/``, ``examples/`` or ``docs/``; an installed
            package has a copy below a folder of that name with an underscore in front.

    Raises:
        NotFoundError: The installation is incomplete.
    """
    package = Path(str(files("pytest_vmss"))).resolve()
    for path in (package / f"_{name}", package.parent / name):
        if path.exists():
            return path
    raise NotFoundError(f"this installation of pytest-vmss has no {name!r}; reinstall it")
