"""A1, A6, R3: whatever a document is like, it is a model or a clear error, never a traceback."""

from __future__ import annotations

import copy
from collections.abc import Callable
from typing import Any

from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from benchmarks.fuzz_documents import originals
from pytest_vmss.errors import ModelError
from pytest_vmss.model import load_document
from tests.models import LOAD_BALANCER

_WRONG = st.recursive(
    st.none() | st.booleans() | st.integers(-(2**64), 2**64) | st.floats() | st.text(max_size=20)
    | st.sampled_from(["[parameters('a')]", "[concat(", "[[x]", "PT1H", "latest", "Standard_B1s"]),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=9), inner, max_size=3),
    max_leaves=5,
)  # fmt: skip


def _places(value: Any) -> list[tuple[Any, Any]]:
    """Every (object or list, key) in a document."""
    entries: list[tuple[Any, Any]] = []
    if isinstance(value, dict):
        entries = [(value, key) for key in value]
    elif isinstance(value, list):
        entries = [(value, index) for index in range(len(value))]
    return entries + [place for holder, key in entries for place in _places(holder[key])]


def _respell(draw: Callable[[Any], Any], holder: Any, key: Any) -> None:
    if isinstance(holder, dict):
        flips = draw(st.lists(st.booleans(), min_size=len(key), max_size=len(key)))
        name = "".join(
            letter.swapcase() if flip else letter for letter, flip in zip(key, flips, strict=True)
        )
        holder[name] = holder.pop(key)


@st.composite
def documents(draw: Callable[[Any], Any]) -> Any:
    """A document with names in random case, and unknown, missing, extra or wrong values."""
    document = copy.deepcopy(draw(st.sampled_from(originals())))
    for _ in range(draw(st.integers(1, 6))):
        places = _places(document)
        if not places:
            break
        holder, key = places[draw(st.integers(0, len(places) - 1))]
        what = draw(st.sampled_from(["respell", "wrong", "missing", "extra"]))
        if what == "respell":
            _respell(draw, holder, key)
        elif what == "missing":
            del holder[key]
        elif what == "extra" and isinstance(holder, dict):
            holder[draw(st.text(max_size=12))] = draw(_WRONG)
        else:
            holder[key] = draw(_WRONG)
    return document


@settings(max_examples=250, deadline=None, suppress_health_check=list(HealthCheck))
@given(documents())
def test_a_document_is_a_model_or_a_clear_error(document: Any) -> None:
    """A1, A6: and a model loads again to the same."""
    try:
        loaded = load_document(document, load_balancer=LOAD_BALANCER)
    except ModelError as error:
        assert error.problems  # noqa: PT017
        assert all(  # noqa: PT017 - whether it is refused is not known
            problem.path and problem.code and problem.message for problem in error.problems
        )
        return
    again = load_document(loaded.model.full(), load_balancer=LOAD_BALANCER, is_stored=True)
    assert again.model == loaded.model
    assert again.model.wire() == loaded.model.wire()
