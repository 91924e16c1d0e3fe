"""What every guest does, simulated or real; both rings run it."""

from __future__ import annotations

from collections.abc import Callable

import pytest

from pytest_vmss.errors import BootError
from pytest_vmss.guest import Guest
from pytest_vmss.model import Extension


def extension(name: str, command: str) -> Extension:
    return Extension(
        name=name,
        publisher="Microsoft.Azure.Extensions",
        type="CustomScript",
        type_handler_version="2.1",
        settings={"commandToExecute": command},
    )


def check_guest(
    make: Callable[[], Guest],
    *,
    command: str,
    count: Callable[[], int],
    power_off: Callable[[], None],
) -> None:
    """Checks a guest that runs and has booted.

    Args:
        make: Makes a new connection to it, as after a crash of the orchestrator.
        command: Makes ``count`` one more each time it is run in the guest.
        count: How often that was.
        power_off: Cuts its power.
    """
    guest = make()
    facts = guest.wait_boot(None)
    assert facts.boot_id
    assert facts.kernel
    assert guest.wait_boot("another boot") == facts
    with pytest.raises(BootError):
        guest.wait_boot(facts.boot_id)  # there was no boot since
    assert guest.wait_cloud_init() == "done"
    assert guest.wait_cloud_init() == "done"

    before = count()
    counted = extension("contract", command)
    first = guest.run_extension(counted, "a")
    assert (first.name, first.status, first.exit_code) == ("contract", "success", 0)
    assert first.version
    guest.close()
    guest.close()
    guest = make()
    again = guest.run_extension(counted, "a")
    assert (again.status, again.exit_code, again.message) == ("success", 0, first.message)
    assert count() == before + 1
    guest.run_extension(counted, "b")
    assert count() == before + 2

    failed = guest.run_extension(extension("fails", "exit 7"), "a")
    assert (failed.status, failed.exit_code) == ("error", 7)
    assert make().run_extension(extension("fails", "exit 7"), "a").exit_code == 7

    make().sync()
    power_off()
    with pytest.raises(BootError):
        make().sync()
    with pytest.raises(BootError):
        make().wait_boot(None)
