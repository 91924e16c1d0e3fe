"""What every guest does, simulated or real; both rings run it."""

from __future__ import annotations

from collections.abc import Callable

import pytest

from pytest_vmss.errors import BootError
from pytest_vmss.guest import Guest
from pytest_vmss.guest.logs import LOGS
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
    hang: str,
    count: Callable[[], int],
    power_off: Callable[[], None],
) -> None:
    """Checks a guest that runs and has booted.

    Args:
        make: Makes a new connection to it, as after a crash of the orchestrator.
        command: Makes ``count`` one more each time it is run in the guest.
        hang: Does not end.
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
    assert guest.wait_cloud_init().status in ("done", "degraded")
    assert guest.wait_cloud_init().status in ("done", "degraded")

    before = count()
    counted = extension("contract", command)
    first = guest.run_extension(counted, "a", 600.0)
    assert (first.name, first.status, first.exit_code) == ("contract", "success", 0)
    assert first.version
    guest.close()
    guest.close()
    guest = make()
    again = guest.run_extension(counted, "a", 600.0)
    assert (again.status, again.exit_code, again.message) == ("success", 0, first.message)
    assert count() == before + 1
    guest.run_extension(counted, "b", 600.0)
    assert count() == before + 2
    assert guest.report_extension(counted, first) == first  # it says nothing of itself

    assert guest.remove_extension(counted, 600.0) == ""
    assert make().remove_extension(counted, 600.0) == ""
    assert guest.run_extension(counted, "a", 600.0).status == "success"
    assert count() == before + 3

    failed = guest.run_extension(extension("fails", "exit 7"), "a", 600.0)
    assert (failed.status, failed.exit_code) == ("error", 7)
    assert make().run_extension(extension("fails", "exit 7"), "a", 600.0).exit_code == 7

    late = make().run_extension(extension("late", hang), "a", 5.0)
    assert (late.status, late.exit_code, late.timed_out) == ("error", None, True)
    assert make().run_extension(extension("late", hang), "a", 5.0).timed_out

    assert guest.check("exit 0")[0]
    assert guest.check("exit 4") == (False, "`exit 4` ended with status 4")
    assert guest.check(lambda _: None)[0]
    assert not guest.check(lambda _: False)[0]
    assert 22 in guest.listening()

    told = {log.name: log for log in guest.logs(LOGS, timeout=600.0, each=300.0)}
    assert tuple(told) == LOGS
    assert told["journal.log"].text
    assert {log.problem for log in told.values()} == {""}
    assert [log.name for log in make().logs(["journal.log"], timeout=600.0, each=300.0)] == [
        "journal.log"
    ]

    make().sync()
    power_off()
    with pytest.raises(BootError):
        make().sync()
    with pytest.raises(BootError):
        make().wait_boot(None)
    with pytest.raises(BootError):
        make().logs(LOGS, timeout=600.0, each=300.0)
