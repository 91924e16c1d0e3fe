"""A project that has only the package installed: as root, and as an unprivileged user."""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.vm.conftest import NOBODY, qemu_processes

TEST_FILE = """
import http.client
import os
import pytest

MODEL = {{
    "name": "app",
    "sku": {{"name": "Standard_B1ls", "capacity": 1}},
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
    assert scale_set.healthy
"""


def write_project(folder: Path, image: Path, uri: str) -> None:
    folder.mkdir()
    (folder / "test_app.py").write_text(TEST_FILE.format(image=str(image), uri=uri))


def run_pytest(
    python: Path, folder: Path, home: Path, user: int | None = None
) -> subprocess.CompletedProcess[str]:
    environment = {
        "PATH": os.environ["PATH"],
        "HOME": str(home),
        "XDG_RUNTIME_DIR": str(home / "run"),
        "LANG": "C.UTF-8",
    }
    return subprocess.run(
        [python, "-m", "pytest", "-p", "no:cacheprovider", "-q", "."],
        cwd=folder,
        env=environment,
        user=user,
        group=user,
        extra_groups=None if user is None else [],
        capture_output=True,
        text=True,
        timeout=900,
        check=False,
    )


def test_with_only_the_package_installed(
    python: Path, place: Path, built: Callable[[str], Path]
) -> None:
    """The acceptance line: an empty folder, one test file; nothing is left (L5)."""
    write_project(
        place / "project",
        built("1.0.0"),
        "qemu:///" if os.geteuid() == 0 else "qemu:///session",
    )
    home = place / "home"
    (home / "run").mkdir(parents=True)
    done = run_pytest(python, place / "project", home)
    assert done.returncode == 0, done.stdout + done.stderr
    assert "1 passed" in done.stdout
    assert qemu_processes(str(home)) == []
    labs = home / ".local/state/pytest-vmss/labs"
    assert list(labs.iterdir()) == []
    assert [path for path in (home / ".local").rglob("*") if not path.is_dir()] == []


@pytest.mark.skipif(os.geteuid() != 0, reason="the whole suite runs unprivileged already")
def test_as_an_unprivileged_user(python: Path, place: Path, built: Callable[[str], Path]) -> None:
    """qemu:///session, with no daemon running beforehand."""
    image = place / "web.qcow2"
    shutil.copyfile(built("1.0.0"), image)
    write_project(place / "user-project", image, "qemu:///session")
    home = place / "user"
    (home / "run").mkdir(parents=True)
    for path in (home, home / "run", place / "user-project"):
        os.chown(path, NOBODY, NOBODY)
    (home / "run").chmod(0o700)
    done = run_pytest(python, place / "user-project", home, NOBODY)
    assert done.returncode == 0, done.stdout + done.stderr
    assert "1 passed" in done.stdout
    assert qemu_processes(str(home)) == []
    assert list((home / ".local/state/pytest-vmss/labs").iterdir()) == []
    assert list(home.rglob("vmss-*")) == []  # libvirt's own logs of our domains


def stop_while_booting(
    python: Path, folder: Path, home: Path, how: signal.Signals
) -> dict[str, str]:
    """Starts a session and stops it while its VM boots; returns its environment."""
    (home / "run").mkdir(parents=True)
    environment = {"PATH": os.environ["PATH"], "HOME": str(home), "LANG": "C.UTF-8"}
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
