"""E1: a boot is proved by another boot id than the one before."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from pytest_vmss.errors import GuestUnreachableError
from pytest_vmss.guest import LinuxGuest
from pytest_vmss.guest.connection import Connection
from pytest_vmss.simulation.clock import VirtualClock
from tests.linux_guests import linux_guest

OLD = "7f0d3b8e-93d7-4a6b-8c47-0f2a6f3f6f01"
NEW = "0a6c2d11-5b0e-4a51-9f0b-3c1d7e9a2b02"


class Answering:
    """Stands for a shell into a guest that tells of its boots, one at each look."""

    host_key = "ssh-ed25519 AAAA"

    def __init__(self, boots: list[str]) -> None:
        self.boots = boots

    def check(self, _: str, **__: Any) -> str:
        boot = self.boots.pop(0) if len(self.boots) > 1 else self.boots[0]
        return f"{boot}\n6.1.0\n1.1.0\n"

    def close(self) -> None:
        pass


def guest_of(boots: list[str], folder: Path, monkeypatch: pytest.MonkeyPatch) -> LinuxGuest:
    guest = linux_guest(folder, VirtualClock(), agent_connected=lambda: True)
    shell = Answering(boots)
    monkeypatch.setattr(Connection, "connect", lambda _: shell)
    return guest


def test_the_boot_on_its_way_down_is_waited_out(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    guest = guest_of([OLD, OLD, NEW], tmp_path, monkeypatch)
    assert guest.wait_boot(OLD).boot_id == NEW


def test_the_boot_before_alone_is_none(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    guest = guest_of([OLD], tmp_path, monkeypatch)
    with pytest.raises(GuestUnreachableError):
        guest.wait_boot(OLD)


def test_what_is_no_boot_id_proves_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """R2: an answer that is empty, or something else, is not taken for another boot."""
    guest = guest_of(["", "it works!", NEW], tmp_path, monkeypatch)
    assert guest.wait_boot(OLD).boot_id == NEW
