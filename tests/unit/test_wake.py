"""L1: what runs in a restored guest. Its effects on the kernel are shown on real VMs."""

from __future__ import annotations

import fcntl
import io
import struct
import subprocess
import sys
import time
from pathlib import Path

import pytest

from pytest_vmss.guest.in_guest import wake

_IMPORTS = "; ".join(
    line for line in Path(wake.__file__).read_text().splitlines() if line.startswith("import ")
)


def test_it_sets_the_clock_and_reseeds(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    done: list[object] = []
    monkeypatch.setattr(sys, "stdin", io.StringIO("17\n00ff\n"))
    monkeypatch.setattr(time, "clock_settime_ns", lambda clock, ns: done.append((clock, ns)))
    monkeypatch.setattr(fcntl, "ioctl", lambda _, request, *rest: done.append((request, *rest)))
    wake.main()
    assert done == [
        (time.CLOCK_REALTIME, 17),
        (0x40085203, struct.pack("ii", 16, 2) + b"\x00\xff"),
        (0x5207,),
    ]
    assert capsys.readouterr().out == Path("/proc/sys/kernel/random/boot_id").read_text()


@pytest.mark.parametrize(
    ("hardware", "taken"),
    [("1700000006\n", 6), ("1699999999\n", 0), ("1700009999\n", 0), ("odd", 0), (None, 0)],
)
def test_the_hardwares_clock_is_not_late(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, hardware: str | None, taken: int
) -> None:
    """On a busy host seconds pass before the program runs; a guest may have set it to anything."""
    monkeypatch.setattr(wake, "RTC", str(tmp_path / "since_epoch"))
    if hardware is not None:
        (tmp_path / "since_epoch").write_text(hardware)
    sent = 1_700_000_000 * 10**9
    assert wake.current(sent) == sent + taken * 10**9


def test_it_needs_no_module_that_is_read_from_disk() -> None:
    """What is not built in would double the time of a restore's only program."""
    code = f"import sys; known = set(sys.modules); {_IMPORTS}; print(*sorted(set(sys.modules) - known))"
    argv = [sys.executable, "-I", "-S", "-c", code]
    loaded = subprocess.run(argv, capture_output=True, text=True, check=True).stdout.split()
    assert set(loaded) <= {"fcntl", "time"}
