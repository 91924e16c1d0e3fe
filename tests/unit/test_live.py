"""J4: the live view shows what happens from its start on."""

from __future__ import annotations

from io import StringIO
from pathlib import Path

import pytest
from rich.console import Console

from pytest_vmss.clock import SystemClock
from pytest_vmss.report import LiveView
from pytest_vmss.store import Store


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
