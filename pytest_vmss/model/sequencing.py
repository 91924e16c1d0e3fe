"""The order of extensions: ``provisionAfterExtensions`` as a graph (H3)."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from graphlib import CycleError, TopologicalSorter

from pytest_vmss.errors import ModelProblem
from pytest_vmss.model.scale_set import Extension
from pytest_vmss.secrecy import mask, quote
from pytest_vmss.untrusted import listed

__all__ = ["check_sequence", "stages_of_extensions"]

#: Maximum number of extensions of a cycle that a message shows.
_SHOWN = 20
_PATH = "$.virtualMachineProfile.extensionProfile.extensions"


def stages_of_extensions(extensions: Sequence[Extension]) -> list[list[Extension]]:
    """Groups extensions into stages: those of one stage may run at once, after all earlier ones.

    Args:
        extensions: Extensions that passed :func:`check_sequence`.
    """
    sorter = _graph(extensions)
    sorter.prepare()
    stages = []
    while sorter.is_active():
        ready = set(sorter.get_ready())
        stages.append([entry for entry in extensions if entry.name.lower() in ready])
        sorter.done(*ready)
    return stages


def _graph(extensions: Sequence[Extension]) -> TopologicalSorter[str]:
    return TopologicalSorter(
        {
            entry.name.lower(): [name.lower() for name in entry.provision_after_extensions]
            for entry in extensions
        }
    )


def check_sequence(extensions: Sequence[Extension]) -> Iterator[ModelProblem]:
    """Checks that dependencies exist, have settings and form no cycle (azure-arm.md 6.6)."""
    known = {entry.name.lower(): entry for entry in extensions}
    missing = False
    for index, entry in enumerate(extensions):
        path = f"{_PATH}[{index}].provisionAfterExtensions"
        for name in entry.provision_after_extensions:
            needed = known.get(name.lower())
            if needed is None:
                missing = True
                others = (mask(other.name) for other in extensions if other.name != entry.name)
                yield ModelProblem(
                    path,
                    "InvalidParameter",
                    f"the extension {entry.name!r} depends on {quote(name)}, which is not defined in "
                    f"the extension profile; defined are: {listed(others)}",
                )
            elif needed.settings is None and needed.protected_settings is None:
                yield ModelProblem(
                    path,
                    "InvalidParameter",
                    f"the extension {entry.name!r} depends on {needed.name!r}, which has no "
                    "settings; an extension that others depend on must have a settings object",
                )
    if missing:
        return
    try:
        _graph(extensions).prepare()
    except CycleError as error:
        circle: list[str] = error.args[1]
        shown = [repr(known[name].name) for name in reversed(circle[-_SHOWN:])]
        if len(circle) > _SHOWN:
            shown.append("…")
        yield ModelProblem(
            _PATH,
            "InvalidParameter",
            "provisionAfterExtensions must not form a cycle; given " + " → ".join(shown),
        )
