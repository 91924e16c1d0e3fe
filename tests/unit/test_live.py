"""J4: the live view shows what happens from its start on."""

from __future__ import annotations

import re
from io import StringIO
from pathlib import Path

import pytest
from rich.console import Console

from pytest_vmss.clock import SystemClock
from pytest_vmss.report import LiveView, plain, say
from pytest_vmss.store import Store
from pytest_vmss.untrusted import clean


@pytest.mark.parametrize("words", ["[/nope]", "[red]x[/red] :skull:", "\x1b]0;pwned\x07\u202e:x:"])
def test_a_line_is_what_was_said(words: str) -> None:
    """R2: names of a model's properties, and whatever else others chose."""
    screen = Console(file=StringIO(), force_terminal=True, width=20)
    say(screen, f"not modelled here: $.{words}", plain("!", "red"), style="dim")
    told = re.sub(r"\x1b\[[\d;]*m", "", screen.file.getvalue())  # type: ignore[attr-defined]
    assert told == f"not modelled here: $.{clean(words)}!\n"


def test_it_starts_with_the_next_event_whatever_there_was(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A lab that has lived for long starts no slower."""
    store = Store(tmp_path / "db", SystemClock())
    store.event("web", "warning", "long ago")
    store.event("other", "warning", "long ago too")
    with monkeypatch.context() as patched:
        patched.setattr(Store, "events", None)
        out = StringIO()
        view = LiveView(store, Console(file=out, width=100))
    with view:
        store.event("web", "warning", "just now")
    assert "just now" in out.getvalue()
    assert "long ago" not in out.getvalue()
    store.close()
