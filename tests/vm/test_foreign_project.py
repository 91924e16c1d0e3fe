"""A project that has only the package installed: as root, and as an unprivileged user."""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from tests.vm.conftest import NOBODY, qemu_processes

TEST_FILE = """
import http.client
import os
import pytest

MODEL = {{
    "name": "app",
    "sku": {{"name": "Standard_B2ts_v2", "capacity": 1}},
    "properties": {{
        "virtualMachineProfile": {{
            "osProfile": {{"computerNamePrefix": "app"}},
            "storageProfile": {{
                "imageReference": {{"id": "/galleries/gallery/images/web"}},
                "dataDisks": [{{"lun": 0, "createOption": "Empty", "diskSizeGB": 1}}],
            }},
        }},
    }},
}}

@pytest.fixture(autouse=True)
def image(gallery):
    gallery.publish("web", "1.0.0", {image!r})

@pytest.mark.vmss(model=MODEL, ports=[80])
def test_the_application_answers(scale_set, vmss):
    assert vmss.hypervisor.uri.startswith({uri!r})
    address, port = scale_set[0].address(80)
    connection = http.client.HTTPConnection(address, port, timeout=20)
    connection.request("GET", "/healthz")
    assert connection.getresponse().status == 200
    assert scale_set[0].host.system_info.codename == "bookworm"
    assert scale_set.is_healthy()
"""


def write_project(folder: Path, image: Path, uri: str) -> None:
    folder.mkdir()
    (folder / "test_app.py").write_text(TEST_FILE.format(image=str(image), uri=uri))


class Session:
    """pytest in a folder of its own, under way.

    Args:
        python: The interpreter.
        folder: The project.
        home: The user's.
        user: Number of the user; this process's otherwise.
    """

    def __init__(self, python: Path, folder: Path, home: Path, user: int | None = None) -> None:
        self.home = home
        environment = {
            "PATH": os.environ["PATH"],
            "HOME": str(home),
            "XDG_STATE_HOME": str(home / ".local/state"),
            "XDG_RUNTIME_DIR": str(home / "run"),
            "LANG": "C.UTF-8",
        }
        self.process = subprocess.Popen(
            [python, "-m", "pytest", "-p", "no:cacheprovider", "-q", "."],
            cwd=folder,
            env=environment,
            user=user,
            group=user,
            extra_groups=None if user is None else [],
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        )

    def passes(self) -> None:
        """Its one test has passed."""
        out, _ = self.process.communicate(timeout=900)
        assert self.process.returncode == 0, out
        assert "1 passed" in out


@pytest.fixture(scope="module")
def sessions(
    python: Path, place: Path, built: Callable[[str], Path]
) -> Iterator[dict[str, Session]]:
    """Those of this process's user and of one without rights, side by side."""
    image = place / "web.qcow2"
    shutil.copyfile(built("1.0.0"), image)
    root = os.geteuid() == 0
    users = {"own": None, "other": NOBODY} if root else {"own": None}
    started: dict[str, Session] = {}
    try:
        for name, user in users.items():
            folder, home = place / f"{name}-project", place / f"{name}-home"
            write_project(folder, image, "qemu:///" if root and not user else "qemu:///session")
            (home / "run").mkdir(parents=True)
            (home / "run").chmod(0o700)
            if user is not None:
                for path in (home, home / "run", folder):
                    os.chown(path, user, user)
            started[name] = Session(python, folder, home, user)
        yield started
    finally:
        for session in started.values():
            session.process.kill()
            session.process.communicate()


def test_the_installed_package_has_what_ships_with_it(python: Path) -> None:
    """What the demo, the tutorial and `vmss image build` take; a checkout has its own copy."""
    code = (
        "from pytest_vmss.cli.demo import example; from pytest_vmss.image_builder import "
        "find_recipes; print(example('template.yaml'), example('custom-data.yaml'), find_recipes())"
    )
    done = subprocess.run([python, "-c", code], capture_output=True, text=True, check=True, cwd="/")
    for path in done.stdout.split():
        assert "site-packages/pytest_vmss/_" in path


def test_with_only_the_package_installed(sessions: dict[str, Session]) -> None:
    """The acceptance line: an empty folder, one test file; nothing is left (L5)."""
    session = sessions["own"]
    session.passes()
    assert qemu_processes(str(session.home)) == []
    state = session.home / ".local"
    assert list((state / "state/pytest-vmss/labs").iterdir()) == []
    assert [path for path in state.rglob("*") if not path.is_dir()] == []


@pytest.mark.skipif(os.geteuid() != 0, reason="the whole suite runs unprivileged already")
def test_as_an_unprivileged_user(sessions: dict[str, Session]) -> None:
    """qemu:///session, with no daemon running beforehand."""
    session = sessions["other"]
    session.passes()
    assert qemu_processes(str(session.home)) == []
    assert list((session.home / ".local/state/pytest-vmss/labs").iterdir()) == []
    assert list(session.home.rglob("vmss-*")) == []  # libvirt's own logs of our domains


def stop_while_booting(
    python: Path, folder: Path, home: Path, how: signal.Signals
) -> dict[str, str]:
    """Starts a session and stops it while its VM boots; returns its environment."""
    (home / "run").mkdir(parents=True)
    environment = {
        "PATH": os.environ["PATH"],
        "HOME": str(home),
        "XDG_STATE_HOME": str(home / ".local/state"),
        "LANG": "C.UTF-8",
    }
    session = subprocess.Popen(
        # Background jobs of a shell ignore SIGINT, and their children do too.
        ["env", "--default-signal=INT", python, "-m", "pytest", "-p", "no:cacheprovider", "-q"],
        cwd=folder,
        env=environment,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    )
    try:
        deadline = time.monotonic() + 120
        while not qemu_processes(str(home)):
            assert session.poll() is None
            assert time.monotonic() < deadline, "waited 120 s for the VM to start, in vain"
            time.sleep(0.2)
        time.sleep(2.0)
        session.send_signal(how)
        session.wait(60)
    finally:
        session.kill()
        session.wait()
    return environment


def test_what_a_killed_session_leaves_is_reaped(
    python: Path, place: Path, built: Callable[[str], Path]
) -> None:
    """L5: SIGKILL in the middle of a boot; `vmss reap` removes that, and only that."""
    write_project(place / "killed", built("1.0.0"), "qemu:///")
    home = place / "killed-home"
    environment = stop_while_booting(python, place / "killed", home, signal.SIGKILL)
    assert qemu_processes(str(home))
    reaped = subprocess.run(
        [python.parent / "vmss", "reap"],
        env=environment,
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )
    assert reaped.returncode == 0, reaped.stderr
    assert "removed the lab" in reaped.stdout
    assert qemu_processes(str(home)) == []
    assert [path for path in (home / ".local").rglob("*") if not path.is_dir()] == []


def test_an_interrupted_session_leaves_nothing(
    python: Path, place: Path, built: Callable[[str], Path]
) -> None:
    """L5: Ctrl-C in the middle of a boot ends the waits at once, and cleans up."""
    write_project(place / "interrupted", built("1.0.0"), "qemu:///")
    home = place / "interrupted-home"
    stop_while_booting(python, place / "interrupted", home, signal.SIGINT)
    assert qemu_processes(str(home)) == []
    assert [path for path in (home / ".local").rglob("*") if not path.is_dir()] == []
