"""Q1, Q2, L5: labs that are made, used and removed by several processes, and killed at it."""

from __future__ import annotations

import json
import os
import signal
import socket
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import psutil
import pytest

from pytest_vmss.api.lab import Lab
from pytest_vmss.clock import SystemClock, wait_for
from pytest_vmss.errors import ConflictError, LabError
from pytest_vmss.host.locks import is_locked
from pytest_vmss.host.paths import LabPaths
from pytest_vmss.labs.identity import labs_folder, networks_folder, read_identity
from pytest_vmss.labs.place import open_place
from pytest_vmss.labs.reap import reap
from pytest_vmss.settings import Settings
from tests.models import LOAD_BALANCER, custom_script, web_model
from tests.simulation.conftest import SimulatedLab
from tests.unit.test_extensions import ask

ROOT = Path(__file__).parents[2]
LIMIT_S = 120

#: What a process of a lab does, in words that the tests give it.
PROCESS = """
import json, os, sys, time
from pathlib import Path
from pytest_vmss.errors import VmssError
from pytest_vmss.api.lab import Lab
from pytest_vmss.labs.reap import reap
from pytest_vmss.settings import Settings

what, state = sys.argv[1], Path(sys.argv[2])
settings = Settings(state, state / "cache")

def meet(count):
    (state / "ready").mkdir(parents=True, exist_ok=True)
    (state / "ready" / str(os.getpid())).touch()
    deadline = time.monotonic() + 60
    while len(list((state / "ready").iterdir())) < count:
        assert time.monotonic() < deadline, "the others did not come"
        time.sleep(0.001)

def say(told):
    print(json.dumps(told), flush=True)

if what == "open":
    meet(4)
    lab = Lab.open(settings, "Shared")
    say([lab.identity.id, lab.environment.lab_key.public, lab.paths.key.with_suffix(".pub").read_text()])
elif what == "reap":
    meet(4)
    say(reap(settings))
elif what == "sessions":
    for _ in range(3):
        Lab.session(settings)
    os._exit(9)
elif what == "session":
    lab = Lab.session(settings)
    if os.fork() == 0:
        time.sleep(60)  # holds nothing of its parent's
        os._exit(0)
    if sys.argv[3:] == ["program"]:
        import subprocess
        subprocess.Popen(["sleep", "60"], close_fds=False)
    say(lab.paths.folder.name)
    sys.stdin.read()
elif what == "serve":
    lab = Lab.open(settings, "shared")
    lab.blobs.put("a", "from anyone")
    say(lab.blobs.url("a"))
    sys.stdin.read()
"""


@pytest.fixture
def settings(tmp_path: Path) -> Settings:
    return Settings(tmp_path / "state", tmp_path / "state/cache")


@pytest.fixture
def start(settings: Settings) -> Callable[..., subprocess.Popen[str]]:
    def start(*arguments: str, prefix: tuple[str, ...] = ()) -> subprocess.Popen[str]:
        what, *more = arguments
        return subprocess.Popen(
            [*prefix, sys.executable, "-c", PROCESS, what, str(settings.state_dir), *more],
            cwd=ROOT,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )

    return start


def ends(process: subprocess.Popen[str]) -> object:
    out, err = process.communicate(timeout=LIMIT_S)
    assert process.returncode == 0, err
    return json.loads(out)


def says(process: subprocess.Popen[str]) -> str:
    assert process.stdout is not None
    line = process.stdout.readline()
    assert line, process.communicate(timeout=LIMIT_S)[1]
    return str(json.loads(line))


def kill(process: subprocess.Popen[str]) -> None:
    process.kill()
    process.communicate(timeout=LIMIT_S)


NIGHTLY = pytest.mark.nightly


def files_of(settings: Settings) -> list[Path]:
    """Files that are left, and folders of labs."""
    found = [path for path in settings.state_dir.rglob("*") if not path.is_dir()]
    return [path for path in found if path.parent.name != "ready"] + list(
        labs_folder(settings).glob("*")
    )


@pytest.mark.parametrize(
    "what",
    [
        "making_a_session", "making_a_lasting_lab", "removing_a_session",
        "removing_a_lasting_lab", "reaping", "publishing", "serving",
    ],
)  # fmt: skip
@pytest.mark.parametrize(
    ("how", "stride"),
    [
        ("kill", 4),
        ("once", 11),
        ("full", 11),
        ("meet", 11),
        *(pytest.param(how, 1, marks=NIGHTLY) for how in ("kill", "once", "full", "meet")),
    ],
)
def test_at_every_file_operation(what: str, how: str, stride: int) -> None:
    """Q1: killed there, failing there once or from there on, or another process reaping there.

    After each, no machine is without its disk or its lab, and the next reap or opening leaves
    nothing of it. `python -m tests.simulation.lab_kills` tries them all.
    """
    done = subprocess.run(
        [sys.executable, "-m", "tests.simulation.lab_kills", what, how, str(stride)],
        cwd=ROOT,
        capture_output=True,
        text=True,
        timeout=LIMIT_S,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    told = json.loads(done.stdout)
    assert told["problems"] == [], done.stderr
    assert told["points"] >= (8 if what in ("publishing", "serving") else 30) // stride


def test_four_processes_make_one_lab(
    settings: Settings, start: Callable[..., subprocess.Popen[str]]
) -> None:
    """One identity, one network, one key pair; none meets a locked database."""
    told = [ends(process) for process in [start("open") for _ in range(4)]]
    assert told == [told[0]] * 4
    (folder,) = labs_folder(settings).iterdir()
    assert folder.name == "shared"
    identity = read_identity(LabPaths(folder))
    assert [entry.name for entry in networks_folder(settings).iterdir()] == [identity.network]


def test_four_processes_reap_at_once(
    settings: Settings, start: Callable[..., subprocess.Popen[str]]
) -> None:
    """L5: each lab is removed by one of them, nobody tells otherwise, and nothing is left."""
    assert start("sessions").wait(LIMIT_S) == 9
    assert len(list(labs_folder(settings).iterdir())) == 3
    lines: list[str] = []
    for process in [start("reap") for _ in range(4)]:
        lines += ends(process)  # type: ignore[arg-type]
    assert len(lines) == 3, lines
    assert all(line.startswith("removed the lab s") for line in lines), lines
    assert files_of(settings) == []


def test_a_lab_lives_as_long_as_its_process(
    settings: Settings, start: Callable[..., subprocess.Popen[str]]
) -> None:
    """Q2: neither its children nor programs that it started keep a dead one looking alive."""
    session = start("session", "program")
    children: list[psutil.Process] = []
    try:
        name = says(session)
        assert reap(settings) == []
        assert (labs_folder(settings) / name).exists()
        children = psutil.Process(session.pid).children()
        assert len(children) == 2
        session.kill()
        session.wait(LIMIT_S)
        assert all(child.is_running() for child in children)
        # A child on a busy host may not have let go of what it was forked with.
        told = wait_for(
            "the lab to be reaped",
            lambda: reap(settings) or None,
            timeout=LIMIT_S,
            clock=SystemClock(),
        )
        assert told == [f"removed the lab {name} of the dead process {session.pid}"]
        assert files_of(settings) == []
    finally:
        for child in children:
            child.kill()
        kill(session)


def test_a_forked_child_that_ends_takes_nothing_with_it(settings: Settings) -> None:
    """Q2: the parent's lab lives on, and is not the child's to use or to remove."""
    lab = Lab.session(settings)
    pid = os.fork()
    if pid == 0:
        refused = 0
        for act in (lab.destroy, lab.store.events, lambda: lab.store.event("", "a", "b")):
            try:
                act()
            except LabError as error:
                refused += "fork" in error.message
        os._exit(10 + refused)
    assert os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) == 13
    assert is_locked(lab.paths.in_use)
    assert reap(settings) == []
    lab.store.event("", "still", "here")
    lab.destroy()
    assert files_of(settings) == []


@pytest.mark.skipif(os.geteuid() != 0, reason="only root may make a namespace everywhere")
def test_in_another_pid_namespace(
    settings: Settings, start: Callable[..., subprocess.Popen[str]]
) -> None:
    """Q2: containers share a state directory and see none of each other's processes."""
    lab = Lab.session(settings)
    other = start("session", prefix=("unshare", "--pid", "--fork", "--mount-proc", "--kill-child"))
    theirs = labs_folder(settings) / says(other)
    code = "from pytest_vmss.cli import main; main(['reap'])"
    told = subprocess.run(
        ["unshare", "--pid", "--fork", "--mount-proc", sys.executable, "-c", code],
        cwd=ROOT,
        env={**os.environ, "VMSS_STATE_DIR": str(settings.state_dir)},
        capture_output=True,
        text=True,
        timeout=LIMIT_S,
        check=True,
    )
    assert told.stdout.startswith("nothing was left behind\n")
    assert reap(settings) == []
    assert theirs.exists()
    assert lab.paths.folder.exists()
    kill(other)
    lab.destroy()
    assert len(reap(settings)) == 1
    assert files_of(settings) == []


def test_after_the_clock_was_set(settings: Settings, monkeypatch: pytest.MonkeyPatch) -> None:
    """Q2: processes seem to have started at another time then."""
    lab = Lab.session(settings)
    real = psutil.Process.create_time
    monkeypatch.setattr(psutil.Process, "create_time", lambda process: real(process) + 3600)
    assert is_locked(lab.paths.in_use)
    assert reap(settings) == []
    lab.destroy()
    assert not is_locked(lab.paths.in_use)


def test_a_lab_that_another_process_has_open_is_not_removed(settings: Settings) -> None:
    lab, other = Lab.open(settings, "x"), Lab.open(settings, "X")
    assert lab.identity == other.identity
    with pytest.raises(ConflictError, match="another process has the lab x open"):
        lab.destroy()
    lab.store.event("", "nothing", "changed")
    other.close()
    lab.destroy()
    assert files_of(settings) == []


@pytest.mark.parametrize("name", ["", "a/b", "x\n", "..", "a" * 33, "ä"])
def test_names_are_checked_at_the_door(settings: Settings, name: str) -> None:
    """M6."""
    with pytest.raises(LabError, match="cannot name a lab"):
        Lab.open(settings, name)
    assert not settings.state_dir.exists()


def test_a_lab_of_an_earlier_version_keeps_its_name(settings: Settings) -> None:
    """Its disks are not lost from sight, whatever case the name is written in."""
    made = Lab.open(settings, "mine")
    made.close()
    made.paths.folder.rename(labs_folder(settings) / "Mine")
    for name in ("mine", "Mine", "MINE"):
        found = Lab.open(settings, name)
        assert found.identity.id == made.identity.id
        found.close()
    open_place(settings, LabPaths(labs_folder(settings) / "mine"), "lasting", Lab).close()
    with pytest.raises(ConflictError, match="Mine, mine"):
        Lab.open(settings, "MINE")


def test_what_is_not_a_lab_is_left_alone_and_told(settings: Settings) -> None:
    """L5: and only that."""
    folder = labs_folder(settings) / "somebody"
    folder.mkdir(parents=True)
    (folder / "disk.qcow2").write_text("precious")
    (line,) = reap(settings)
    assert "somebody stays: it holds files, and lab.json" in line
    assert (folder / "disk.qcow2").read_text() == "precious"
    Lab.open(settings, "kept").close()
    (labs_folder(settings) / "kept/lab.json").write_text("{}")
    assert len(reap(settings)) == 2
    assert LabPaths(labs_folder(settings) / "kept").database.exists()


def test_one_machine_that_stays_does_not_keep_the_rest(
    lab: SimulatedLab, settings: Settings, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Q1: what cannot be removed is told, and found again; its disk stays as long as it does."""
    lab.start_web(3)
    stuck = f"vmss-{lab.identity.id}-web_1"
    remove = lab.simulated.remove

    def refuse(name: str) -> None:
        if name == stuck:
            raise OSError("libvirt has a cold")
        remove(name)

    monkeypatch.setattr(lab.simulated, "remove", refuse)
    with pytest.raises(LabError, match=f"{stuck}: libvirt has a cold.*vmss reap"):
        lab.destroy()
    assert lab.simulated.machines("vmss") == [stuck]
    assert [path.name for path in lab.paths.sets.glob("*/*")] == ["1"]
    assert lab.paths.os_disk("web", 1, 1).exists()
    assert lab.paths.images.exists()
    monkeypatch.setattr(lab.simulated, "remove", remove)
    lab.destroy()
    assert files_of(settings) == []


def test_a_session_whose_database_is_broken_is_removed(settings: Settings) -> None:
    lab = SimulatedLab.session(settings)
    lab.start_web(1)
    lab.store.close()
    lab.paths.database.write_bytes(b"no database" * 1000)
    lab.destroy()
    assert lab.simulated.machines("vmss") == []
    assert files_of(settings) == []


def test_files_are_served_by_whoever_is_there(
    settings: Settings, start: Callable[..., subprocess.Popen[str]]
) -> None:
    """H5: two processes of one lab; when the one ends, or is killed, the other takes over."""
    first = start("serve")
    url = says(first)
    second = start("serve")
    assert says(second).partition("?")[0] == url.partition("?")[0]
    assert ask(url)[:2] == (200, b"from anyone")
    first.send_signal(signal.SIGKILL)
    first.communicate(timeout=LIMIT_S)
    lab = Lab.open(settings, "shared")
    lab.blobs.serve()
    assert ask(url)[:2] == (200, b"from anyone")
    kill(second)
    lab.blobs.serve()
    assert ask(url)[:2] == (200, b"from anyone")
    lab.destroy()


def test_a_port_of_somebody_else_is_an_error_for_whoever_needs_it(
    settings: Settings,
) -> None:
    """H5, Q1: a set that downloads nothing does not care."""
    lab = SimulatedLab.session(settings)
    lab.blobs.put("a", "a")
    url = lab.blobs.url("a")
    port = lab.blobs.port
    assert port is not None
    needy = web_model("needy", capacity=1)
    profile = needy["properties"]["virtualMachineProfile"]["extensionProfile"]
    profile["extensions"].append(
        custom_script("script", settings={"commandToExecute": "./a", "fileUris": [url]})
    )
    lab.start(needy, LOAD_BALANCER)
    modest = lab.start(web_model("modest", capacity=1), LOAD_BALANCER)
    lab.blobs.close()
    with socket.create_server(("127.0.0.1", port)):
        modest.restart()
        with pytest.raises(Exception, match="taken by another program"):
            lab.scale_set("needy").restart()
    lab.blobs.close()
    lab.destroy()


def test_the_lock_of_the_memory_goes_if_its_holder_was_killed(tmp_path: Path) -> None:
    """L5: and stays while a process holds it."""
    settings = Settings(tmp_path, tmp_path / "cache")
    path = tmp_path / "room.lock"
    program = (
        "import sys; from pathlib import Path; from pytest_vmss.host.locks import try_lock; "
        "lock = try_lock(Path(sys.argv[1])); print('held', flush=True); sys.stdin.read()"
    )
    with subprocess.Popen(
        [sys.executable, "-c", program, path], stdin=subprocess.PIPE, stdout=subprocess.PIPE
    ) as holder:
        assert holder.stdout is not None
        holder.stdout.readline()
        assert reap(settings) == []
        assert path.exists()
        holder.kill()
    assert path.exists()
    assert reap(settings) == []
    assert not path.exists()
