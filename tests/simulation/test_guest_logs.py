"""E5: what the guest of a failed OS disk tells is kept before the disk is discarded."""

from __future__ import annotations

import errno
import os
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Any

import pytest

from pytest_vmss import steps
from pytest_vmss.errors import GuestUnreachableError, HypervisorError, ModelError
from pytest_vmss.guest.logs import LOG_BYTES, QUICK_LOGS, GuestLog
from pytest_vmss.report.artifacts import collect
from pytest_vmss.report.timeline import set_page
from pytest_vmss.simulation.guest import Behaviour, SimulatedGuest
from pytest_vmss.steps import CreateDataDisks
from pytest_vmss.store import Outcome
from tests.models import LOAD_BALANCER, web_model
from tests.simulation.conftest import SimulatedLab
from tests.simulation.kills import Killed
from tests.simulation.test_resume import kill_at

FAILED = ("1.1.0", Behaviour.UNHEALTHY)


def test_a_failed_disks_journal_outlives_its_rollback(lab: SimulatedLab, tmp_path: Path) -> None:
    """E5, L3, M5: it is of the failed disk, private, named in the failure, and among the artifacts."""
    web = lab.start_web()
    upgrade = lab.roll(web, *FAILED)
    assert upgrade.outcomes["web_0"] is Outcome.ROLLED_BACK
    folder = lab.paths.guest_logs("web", 0, 2)
    assert folder.stat().st_mode & 0o777 == 0o700
    (journal,) = folder.iterdir()
    assert (journal.name, journal.stat().st_mode & 0o777) == ("journal.log", 0o600)
    assert journal.read_text().startswith("image version 1.1.0: unhealthy\nran custom data\n")
    assert not lab.paths.os_disk("web", 0, 2).exists()
    assert upgrade.errors["web_0"].guest_logs == str(folder)
    assert f"    the guest's own logs: {folder}\n" in upgrade.explain() + "\n"
    told = [event.message for event in upgrade.events if event.kind == "logs"]
    assert told == [f"the guest's logs of OS disk number 2 are kept: {folder}"]
    found = collect(lab, tmp_path / "artifacts", test="it", names=["web"])
    copy = found.folder / "web" / "web_0" / "guest-2"
    assert (copy / "journal.log").read_text() == journal.read_text()
    assert found.copies[str(folder)] == str(copy)
    page = (found.folder / "web" / "timeline.html").read_text()
    assert "<code>web_0/guest-2</code>" in page
    assert f"<code>{folder}</code>" in set_page(lab, "web")
    assert "image version 1.0.0" in (copy.parent / "guest" / "journal.log").read_text()
    web.delete()
    assert not folder.exists()


@pytest.mark.parametrize("behaviour", [Behaviour.PANICS, Behaviour.SILENT])
def test_a_guest_that_does_not_answer_is_not_waited_for(
    lab: SimulatedLab, behaviour: Behaviour
) -> None:
    """E5, G1: it is told, and the rollback is none the worse."""
    web = lab.start_web()
    upgrade = lab.roll(web, "1.1.0", behaviour)
    assert upgrade.outcomes["web_0"] is Outcome.ROLLED_BACK
    assert upgrade.stages["web_0"]["before rollback: guest logs"] == 0
    error = upgrade.errors["web_0"]
    assert (error.guest_logs, error.missing_guest_logs) == ("", "does not answer over SSH")
    assert "logs that the guest did not give: does not answer over SSH" in upgrade.explain()
    assert not lab.paths.guest_logs("web", 0, 2).exists()


def test_what_goes_wrong_with_the_logs_fails_no_rollback(
    lab: SimulatedLab, monkeypatch: pytest.MonkeyPatch
) -> None:
    """E5, G1: neither a full disk nor a defect; what was written until then is kept."""

    def logs(_: object, names: Iterable[str], **__: float) -> Iterator[GuestLog]:
        yield GuestLog("journal.log", "it began\n")
        yield GuestLog("cloud-init.log", problem="a command timed out")
        assert tuple(names) == QUICK_LOGS
        raise ZeroDivisionError("a defect")

    monkeypatch.setattr(SimulatedGuest, "logs", logs)
    web = lab.start_web()
    upgrade = lab.roll(web, *FAILED)
    assert upgrade.outcomes["web_0"] is Outcome.ROLLED_BACK
    error = upgrade.errors["web_0"]
    assert (Path(error.guest_logs) / "journal.log").read_text() == "it began\n"
    assert error.missing_guest_logs == (
        "cloud-init.log: a command timed out; ZeroDivisionError: a defect"
    )


def test_a_full_disk_leaves_nothing_that_is_told_as_kept(
    lab: SimulatedLab, monkeypatch: pytest.MonkeyPatch
) -> None:
    """E5, G1."""
    web = lab.start_web()
    folder, real = lab.paths.guest_logs("web", 0, 2), os.open

    def opened(path: Any, flags: int, *args: Any, **kwargs: Any) -> int:
        descriptor = real(path, flags, *args, **kwargs)
        if folder not in Path(path).parents:
            return descriptor
        os.close(descriptor)
        return real("/dev/full", os.O_WRONLY)

    monkeypatch.setattr(os, "open", opened)
    monkeypatch.setattr(os, "fchmod", lambda *_: None)
    upgrade = lab.roll(web, *FAILED)
    assert upgrade.outcomes["web_0"] is Outcome.ROLLED_BACK
    error = upgrade.errors["web_0"]
    assert error.guest_logs == ""
    assert "No space left" in error.missing_guest_logs
    assert not list(folder.iterdir())


def test_a_host_without_descriptors_fails_no_rollback(
    lab: SimulatedLab, monkeypatch: pytest.MonkeyPatch
) -> None:
    """E5, G1: nor does one whose folders cannot be read."""
    web = lab.start_web()
    folder = lab.paths.guest_logs("web", 0, 2)

    def failing(call: Callable[..., Any]) -> Callable[..., Any]:
        def called(path: Any, *args: Any, **kwargs: Any) -> Any:
            if not isinstance(path, int) and folder in (Path(path), *Path(path).parents):
                raise OSError(errno.EMFILE, os.strerror(errno.EMFILE))
            return call(path, *args, **kwargs)

        return called

    for name in ("open", "scandir", "listdir"):
        monkeypatch.setattr(os, name, failing(getattr(os, name)))
    upgrade = lab.roll(web, *FAILED)
    assert upgrade.outcomes["web_0"] is Outcome.ROLLED_BACK
    error = upgrade.errors["web_0"]
    assert (error.guest_logs, "Too many open" in error.missing_guest_logs) == ("", True)


def test_a_log_of_which_nothing_can_be_shown_is_none(
    lab: SimulatedLab, monkeypatch: pytest.MonkeyPatch
) -> None:
    """E5, R2."""

    def logs(*_: object, **__: float) -> Iterator[GuestLog]:
        yield GuestLog("journal.log", "\x1b[2J\x1b[1m\n")

    monkeypatch.setattr(SimulatedGuest, "logs", logs)
    upgrade = lab.roll(lab.start_web(), *FAILED)
    assert upgrade.errors["web_0"].guest_logs == ""


@pytest.mark.parametrize("place", ["link", "file", "folder"])
def test_what_stands_in_the_place_of_the_logs_is_removed(
    lab: SimulatedLab, tmp_path: Path, place: str
) -> None:
    """E5, R3: nothing is written elsewhere, waited for, or taken for the failed disk's logs."""
    web = lab.start_web()
    folder, other = lab.paths.guest_logs("web", 0, 2), tmp_path / "other"
    other.mkdir()
    if place == "link":
        folder.symlink_to(other)
    elif place == "file":
        os.mkfifo(folder)
    else:
        folder.mkdir(mode=0o755)
        os.mkfifo(folder / "journal.log")
        (folder / "system.txt").write_text("of another disk")
    upgrade = lab.roll(web, *FAILED)
    assert upgrade.errors["web_0"].guest_logs == str(folder)
    assert folder.lstat().st_mode & 0o777 == 0o700
    assert [log.name for log in folder.iterdir()] == ["journal.log"]
    assert not list(other.iterdir())


def test_what_a_crash_of_the_host_left_half_written_is_removed(
    lab: SimulatedLab, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Q1: although the guest, which has stopped, cannot be asked again."""
    web = lab.start_web()
    folder = lab.paths.guest_logs("web", 0, 2)

    def kill(path: Path, *_: object) -> None:
        path.with_name(f".{path.name}-1.part").touch()
        raise Killed

    with monkeypatch.context() as patched:
        patched.setattr("pytest_vmss.steps.logs.write_durably", kill)
        with pytest.raises(Killed):
            lab.roll(web, *FAILED)
    assert [path.name for path in folder.iterdir()] == [".journal.log-1.part"]
    lab.simulated.running.clear()
    web.resume()
    assert list(folder.iterdir()) == []


def test_the_logs_hold_no_secret_and_are_bounded(
    lab: SimulatedLab, monkeypatch: pytest.MonkeyPatch
) -> None:
    """M5, R2: as in artifacts; also what could not be read, and why."""

    def logs(*_: object, **__: float) -> Iterator[GuestLog]:
        yield GuestLog("journal.log", "a\x1b[2Jb Correct-Horse-1 password=hunter2hunter2\n")
        yield GuestLog("system.txt", "\ufffd" * LOG_BYTES)
        yield GuestLog("cloud-init.log", problem="password=hunter2hunter2\nCorrect-Horse-1")

    monkeypatch.setattr(SimulatedGuest, "logs", logs)
    body = web_model(capacity=1)
    profile = body["properties"]["virtualMachineProfile"]
    profile["osProfile"]["adminPassword"] = "Correct-Horse-1"
    web = lab.start(body, LOAD_BALANCER)
    upgrade = lab.roll(web, *FAILED)
    folder = Path(upgrade.errors["web_0"].guest_logs)
    assert (folder / "journal.log").read_text() == "ab *** password=***\n"
    assert (folder / "system.txt").stat().st_size <= LOG_BYTES
    told = upgrade.explain() + "".join(event.message for event in upgrade.events)
    assert "cloud-init.log: password=***" in told
    assert not [secret for secret in ("hunter2", "Correct-Horse") if secret in told]


@pytest.mark.parametrize("when", ["before", "after", "journalled"])
def test_killed_while_it_keeps_them_a_resume_goes_on(
    lab: SimulatedLab, monkeypatch: pytest.MonkeyPatch, when: str
) -> None:
    """M1, E5."""
    web = lab.start_web()
    lab.publish(*FAILED)
    with monkeypatch.context() as patch:
        kill_at(patch, steps.KeepGuestLogs, when, 1)
        with pytest.raises(Killed):
            lab.run_due()
    upgrade = web.resume()
    assert upgrade is not None
    assert upgrade.outcomes["web_0"] is Outcome.ROLLED_BACK
    error = upgrade.errors["web_0"]
    assert (Path(error.guest_logs) / "journal.log").stat().st_size
    assert error.missing_guest_logs == ""


def test_a_resume_whose_machine_is_gone_does_without(
    lab: SimulatedLab, monkeypatch: pytest.MonkeyPatch
) -> None:
    """M1, E5: the host was restarted in the middle."""
    web = lab.start_web()
    lab.publish(*FAILED)
    with monkeypatch.context() as patch:
        kill_at(patch, steps.KeepGuestLogs, "before", 1)
        with pytest.raises(Killed):
            lab.run_due()
    lab.simulated.power_off(web[0]._context.domain)
    upgrade = web.resume()
    assert upgrade is not None
    assert upgrade.outcomes["web_0"] is Outcome.ROLLED_BACK
    assert upgrade.errors["web_0"].missing_guest_logs == "its machine does not run on that disk"


def test_the_rollback_has_its_own_time(lab: SimulatedLab, monkeypatch: pytest.MonkeyPatch) -> None:
    """G4: a guest that takes all the time that it has costs the rollback none of its own."""
    web = lab.start_web()
    limit = web[0]._context.limit

    def logs(guest: SimulatedGuest, *_: object, timeout: float, each: float) -> Iterator[GuestLog]:
        assert each < timeout < 60 * lab.hypervisor.slow_factor
        guest._clock.sleep(limit)
        raise GuestUnreachableError("hangs", instance="web_0")

    monkeypatch.setattr(SimulatedGuest, "logs", logs)
    upgrade = lab.roll(web, *FAILED)
    assert upgrade.outcomes["web_0"] is Outcome.ROLLED_BACK


def test_a_disk_that_never_ran_has_nothing_to_tell(
    lab: SimulatedLab, monkeypatch: pytest.MonkeyPatch
) -> None:
    """E5: the previous one's guest is not asked in its place."""
    web = lab.start_web()

    def full(*_: object) -> None:
        raise HypervisorError("no space left on device")

    monkeypatch.setattr(CreateDataDisks, "apply", full)
    upgrade = lab.roll(web, "1.1.0")
    assert upgrade.outcomes["web_0"] is Outcome.ROLLED_BACK
    error = upgrade.errors["web_0"]
    assert (error.guest_logs, error.missing_guest_logs) == ("", "")
    assert not list(lab.paths.instance("web", 0).glob("guest-*"))


@pytest.mark.parametrize(
    ("arguments", "told"),
    [
        ({"names": "journal.log"}, "names: must be a list of journal.log, "),
        ({"names": ["journal"]}, "names[0]: must be"),
        ({"names": [b"journal.log"]}, "names[0]: must be"),
        ({"names": 1}, "names: must be a list"),
        ({"timeout": -1}, "timeout: "),
        ({"each": float("nan")}, "each: "),
    ],
)
def test_wrong_arguments_for_logs_are_refused(
    lab: SimulatedLab, arguments: dict[str, Any], told: str
) -> None:
    """A6, L3: by the call, not once the first log is read."""
    with pytest.raises(ModelError) as refused:
        lab.start_web()[0].logs(**arguments)
    assert told in str(refused.value)


def test_the_logs_of_another_disk_are_not_told_as_the_current_ones(
    lab: SimulatedLab, monkeypatch: pytest.MonkeyPatch
) -> None:
    """L3: in the middle of a swap, whose guest's agent would answer."""
    web = lab.start_web()
    lab.publish(*FAILED)
    with monkeypatch.context() as patch:
        kill_at(patch, steps.KeepGuestLogs, "before", 1)
        with pytest.raises(Killed):
            lab.run_due()
    with pytest.raises(GuestUnreachableError, match=r"on OS disk number 2, .* current one \(1\)"):
        web[0].logs()
    assert web.resume() is not None
    (journal,) = web[0].logs(["journal.log"])
    assert journal.text.startswith("image version 1.0.0")
