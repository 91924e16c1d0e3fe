"""L1: what runs in a restored guest. Its effects on the kernel are shown on real VMs."""

from __future__ import annotations

import fcntl
import io
import json
import struct
import sys
import time
from pathlib import Path

import pytest

from pytest_vmss.guest.in_guest import wake


def test_it_sets_the_clock_and_reseeds(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    done: list[object] = []
    monkeypatch.setattr(sys, "stdin", io.StringIO(json.dumps({"time": 17, "seed": "00ff"})))
    monkeypatch.setattr(time, "clock_settime_ns", lambda clock, ns: done.append((clock, ns)))
    monkeypatch.setattr(fcntl, "ioctl", lambda _, request, *rest: done.append((request, *rest)))
    wake.main()
    assert done == [
        (time.CLOCK_REALTIME, 17),
        (0x40085203, struct.pack("ii", 16, 2) + b"\x00\xff"),
        (0x5207,),
    ]
    assert capsys.readouterr().out == Path("/proc/sys/kernel/random/boot_id").read_text()
