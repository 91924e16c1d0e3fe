"""L2: what `vmss doctor` finds."""

from __future__ import annotations

import pytest

from pytest_vmss.cli import doctor
from pytest_vmss.errors import HostError
from pytest_vmss.hypervisor.firmware import Firmware


def test_missing_uefi_firmware_is_told_with_the_command(monkeypatch: pytest.MonkeyPatch) -> None:
    """L2, O5: generation 2 needs it."""

    def missing() -> Firmware:
        raise HostError("no UEFI firmware", mend="apt-get install ovmf")

    monkeypatch.setattr(doctor, "find_firmware", missing)
    (found,) = doctor._uefi()
    assert (found.level, found.mend) == ("lacking", "apt-get install ovmf")
    assert "generation 2" in found.what
