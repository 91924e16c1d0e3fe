"""What an ordinary account meets: folders not its own, a sudo that asks, a kill in mid-build."""

from __future__ import annotations

import contextlib
import fcntl
import os
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

import libvirt
import pytest

from pytest_vmss.cli import doctor
from pytest_vmss.errors import HostError, ToolError
from pytest_vmss.host.ownership import obstacle, told_obstacle
from pytest_vmss.host.process import run
from pytest_vmss.host.qemu_account import AccountChoice, QemuAccount
from pytest_vmss.hypervisor import connection
from pytest_vmss.image_builder import ImageBuilder, bootstrap, find_recipes
from pytest_vmss.image_builder.recipe import digest_of, load_image
from pytest_vmss.image_builder.scratch import places, scratch
from pytest_vmss.settings import Settings
from tests.processes import wait_until_ended

NOBODY = 65534


@pytest.fixture
def ordinary(tmp_path: Path) -> Iterator[Path]:
    """A folder of an ordinary account's, as which the test runs; root may write everything."""
    if os.geteuid() != 0:
        yield tmp_path
        return
    with tempfile.TemporaryDirectory(prefix="vmss-") as name:  # pytest's own are root's alone
        folder = Path(name)
        os.chown(folder, NOBODY, NOBODY)
        os.seteuid(NOBODY)
        try:
            yield folder
        finally:
            os.seteuid(0)


def scratch_folders(place: Path) -> list[Path]:
    return list(place.glob("vmss-build-*"))


def test_scratch_lets_others_pass_through_whatever_the_umask(tmp_path: Path) -> None:
    before = os.umask(0o077)
    try:
        with scratch(tmp_path / "new" / "place") as work:
            assert work.folder.stat().st_mode & 0o777 == 0o711
            (work.folder / "folder").mkdir()
            (work.folder / "folder/file").touch()
    finally:
        os.umask(before)
    assert scratch_folders(tmp_path / "new/place") == []


def test_scratch_of_the_dead_is_swept_and_of_the_living_is_not(tmp_path: Path) -> None:
    """L5: a lock tells, which a program that outlives the builder holds too."""
    program = "import os, sys, time; print(flush=True); time.sleep(60)"
    with scratch(tmp_path) as living:
        with contextlib.suppress(KeyboardInterrupt), scratch(tmp_path) as left:
            child = subprocess.Popen(
                [sys.executable, "-c", program], pass_fds=[left.lock], stdout=subprocess.PIPE
            )
            assert child.stdout is not None
            child.stdout.readline()
            kept = left.folder.with_name(f"{left.folder.name}x")
            shutil.copytree(left.folder, kept)
            raise KeyboardInterrupt
        with child:
            held = os.open(kept, os.O_RDONLY)
            fcntl.flock(held, fcntl.LOCK_EX)
            with scratch(tmp_path):
                assert kept.exists()
            os.close(held)
            with scratch(tmp_path):
                assert not kept.exists()
            child.kill()
        assert living.folder.exists()


def test_a_place_that_cannot_be_written_is_told(ordinary: Path) -> None:
    (ordinary / "closed").mkdir(mode=0o500)
    with (
        pytest.raises(HostError, match=r"closed.*Permission denied.*TMPDIR"),
        scratch(ordinary / "closed"),
    ):
        pass


def test_a_home_of_another_account_is_told(ordinary: Path) -> None:
    """HOME is root's after `su` without a dash or `runuser`: errors with a mend, no traceback."""
    home = ordinary / "root"
    (home / "cache").mkdir(parents=True)
    home.chmod(0)
    try:
        with (
            pytest.raises(HostError, match=r"no scratch folder can be made"),
            scratch(home / "cache"),
        ):
            pass
        with pytest.raises(HostError, match=rf"{home} belongs to .*VMSS_CACHE_DIR"):
            ImageBuilder(find_recipes() / "web", home / "cache").build("1.0.0")
    finally:
        home.chmod(0o700)


def test_the_doctor_says_as_whom_guests_run(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """R4: where root's guests are confined less than others, that is said with what to do."""
    settings = Settings(state_dir=tmp_path)

    def look(choice: AccountChoice, user: int = 0) -> list[tuple[str, str, str]]:
        monkeypatch.setattr(os, "geteuid", lambda: user)
        monkeypatch.setattr(doctor, "choose_account", lambda _: choice)
        found = doctor._confinement(settings)
        return [(finding.level, finding.what, finding.mend) for finding in found]

    ((level, what, mend),) = look(AccountChoice(None, "it may not enter /x", "chmod o+x /x"))
    assert (level, mend) == ("note", "chmod o+x /x")
    assert "QEMU runs as root" in what
    assert what.endswith("it may not enter /x")
    account = QemuAccount(NOBODY, 12345)
    ((level, what, mend),) = look(AccountChoice(account))
    assert (level, mend) == ("ok", "")
    assert what.startswith("QEMU runs as nobody, in a group of each lab's own")
    first, second = look(AccountChoice(account, is_shared=True))
    assert (first[0], second[0]) == ("ok", "note")
    assert "reaches the disks of root's other labs" in second[1]
    ((level, what, mend),) = look(AccountChoice(None), NOBODY)
    assert (level, mend) == ("ok", "")
    assert what.startswith("QEMU runs as nobody, without capabilities")


def test_the_doctor_names_what_a_run_as_root_took(
    ordinary: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """L2: folders and locks in the cache and state; libvirt's own, where they are in the way."""
    monkeypatch.setenv("HOME", str(ordinary))
    for name in ("XDG_RUNTIME_DIR", "XDG_CONFIG_HOME", "XDG_CACHE_HOME"):
        monkeypatch.delenv(name, raising=False)
    lock = ordinary / "cache/disks/web.qcow2.lock"
    lock.parent.mkdir(parents=True)
    lock.touch()
    settings = Settings(state_dir=ordinary / "state", cache_dir=ordinary / "cache")
    assert list(doctor._folders(settings)) == []
    lock.chmod(0o444)
    (ordinary / "state/labs/default").mkdir(parents=True)
    (ordinary / "state/labs/default").chmod(0)
    runtime = ordinary / "runtime"
    runtime.mkdir(mode=0o500)
    monkeypatch.setenv("XDG_RUNTIME_DIR", str(runtime))
    found = list(doctor._folders(settings))
    assert [finding.level for finding in found] == ["lacking"] * 3
    told = " ".join(finding.mend for finding in found)
    assert f"chown -R {os.geteuid()}:{os.getegid()} {ordinary}/state/labs/default" in told
    assert f"chown -R {os.geteuid()}:{os.getegid()} {lock}" in told
    assert str(runtime) in found[2].what
    (ordinary / "state/labs/default").chmod(0o700)


def test_a_runtime_folder_of_another_account_is_told(ordinary: Path) -> None:
    """qemu:///session after a run as root: nothing needs to be installed."""
    folder = ordinary / "libvirt"
    folder.mkdir(mode=0o500)
    libvirt.virResetLastError()  # whose words the exception would take over
    refused = libvirt.libvirtError(
        f"Unable to create lock '{folder}/libvirtd.lock': Permission denied"
    )
    error = connection._no_answer("qemu:///session", refused)
    assert error.mend == f"sudo chown -R {os.geteuid()}:{os.getegid()} {folder}"
    assert "XDG_RUNTIME_DIR" in str(error)
    assert "apt-get" not in str(error)
    error = connection._no_answer("qemu:///session", libvirt.libvirtError("no connection driver"))
    assert error.mend.startswith("apt-get install libvirt-daemon-system")


def test_the_users_own_tmpdir_comes_first(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TMPDIR", "/srv/scratch")
    assert places(Path("/home/u/.cache"))[:2] == [Path("/srv/scratch"), Path("/home/u/.cache")]
    monkeypatch.setenv("TMPDIR", "/tmp")
    found = places(Path("/var/tmp"))
    assert found == [Path("/tmp"), Path("/var/tmp")]


@pytest.mark.parametrize(
    ("said", "mend"),
    [
        ("E: cannot find newuidmap\n", "apt-get install uidmap"),
        ("E: failed to parse /etc/subuid and /etc/subgid\n", "usermod --add-subuids "),
    ],
)
def test_what_gives_an_account_namespaces(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, said: str, mend: str
) -> None:
    """L2: mmdebstrap says why it can have none; the command that mends it is told."""
    _fake_mmdebstrap(monkeypatch, tmp_path, f"echo '{said}' >&2; exit 25")
    monkeypatch.setattr(os, "geteuid", lambda: NOBODY)
    with pytest.raises(HostError, match=r"unshare mode: .*fakechroot mode: ") as refused:
        bootstrap.choose_way(tmp_path)
    assert mend in refused.value.mend
    assert mend in str(refused.value)


def test_the_first_place_that_works_is_taken(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """B5: the subordinate root may not enter the cache, so it is another folder."""
    open_place = tmp_path / "open"
    monkeypatch.setattr(bootstrap, "places", lambda cache: [cache, open_place])
    monkeypatch.setattr(os, "geteuid", lambda: os.getuid() or NOBODY)
    refuse = (
        'case "$TMPDIR" in */cache/*) echo "E: cannot enter: Permission denied" >&2; exit 1;; esac'
    )
    _fake_mmdebstrap(monkeypatch, tmp_path, refuse)
    way = bootstrap.choose_way(tmp_path / "cache")
    assert (way.mode, way.place, way.reason) == ("unshare", open_place, "")
    monkeypatch.setattr(bootstrap, "_ROOM_MIB", 2**40)
    with pytest.raises(HostError, match=r"cache: cannot enter.*open: \d+ MiB are free"):
        bootstrap.choose_way(tmp_path / "cache")


def test_a_failure_in_fakechroot_mode_tells_the_better_one(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """A host's library may be too new for the filesystem's programs; subordinate ids help."""
    monkeypatch.setenv("TMPDIR", str(tmp_path))
    monkeypatch.setattr(os, "geteuid", lambda: os.getuid() or NOBODY)
    script = """case "$*" in
        --unshare-helper*) echo "E: failed to parse /etc/subuid and /etc/subgid" >&2; exit 25;;
        *--variant=apt*) echo "E: libc.so.6: version GLIBC_2.38 not found" >&2; exit 1;;
    esac"""
    _fake_mmdebstrap(monkeypatch, tmp_path, script)
    base = load_image(find_recipes() / "web").base_recipe()
    with (
        (tmp_path / "tar").open("wb") as tar,
        pytest.raises(
            ToolError, match=r"in fakechroot mode: .*GLIBC_2\.38 not found; .*usermod --add-subuids"
        ),
    ):
        bootstrap.bootstrap(base, tmp_path / "cache", tar)


def _fake_mmdebstrap(monkeypatch: pytest.MonkeyPatch, folder: Path, script: str) -> None:
    """Programs that answer as mmdebstrap does, where it is not what is tested."""
    programs = folder / "programs"
    programs.mkdir(exist_ok=True)
    for name in ("mmdebstrap", "fakechroot"):
        (programs / name).write_text(f"#!/bin/sh\n{script}\n")
        (programs / name).chmod(0o755)
    monkeypatch.setenv("PATH", f"{programs}:{os.environ['PATH']}")


def test_a_cache_of_another_account_is_told(ordinary: Path) -> None:
    """A run as root leaves a cache that the user cannot write: whose it is, and what mends it."""
    cache = ordinary / "cache"
    cache.mkdir()
    cache.chmod(0o555)
    assert obstacle(cache / "disks/x.lock") == cache
    assert f"chown -R {os.geteuid()}:{os.getegid()} {cache}" in told_obstacle(cache / "disks")
    builder = ImageBuilder(find_recipes() / "web", cache)
    with pytest.raises(HostError, match=rf"cannot be written: .*{cache}.* belongs to "):
        builder.build("1.0.0")
    cache.chmod(0o755)
    assert obstacle(cache / "disks/x.lock") is None
    assert told_obstacle(cache) == ""


def test_permissions_that_the_umask_gave_do_not_count(tmp_path: Path) -> None:
    """B5: a clone made under umask 0077 builds the same images."""
    (tmp_path / "image.yaml").write_text("{publisher: p, offer: o, sku: s, base: b}")
    (tmp_path / "files/folder").mkdir(parents=True)
    (tmp_path / "files/folder/program").touch(mode=0o755)
    recipe = load_image(tmp_path)
    seen = set()
    for folder, program in ((0o755, 0o755), (0o700, 0o700), (0o775, 0o775)):
        (tmp_path / "files/folder").chmod(folder)
        (tmp_path / "files/folder/program").chmod(program)
        seen.add(digest_of(recipe))
    assert len(seen) == 1
    (tmp_path / "files/folder/program").chmod(0o600)
    assert digest_of(recipe) not in seen


def test_a_program_past_its_limit_ends_with_all_that_it_started(tmp_path: Path) -> None:
    """Every wait has a limit; mmdebstrap is asked first, for it has mounts to undo."""
    script = tmp_path / "program"
    script.write_text(
        f"#!/bin/sh\ntrap 'echo asked >{tmp_path}/asked; exit 1' TERM\n"
        f"sleep 77 & echo $! >{tmp_path}/child\nwait\n"
    )
    script.chmod(0o755)
    start = time.monotonic()
    with pytest.raises(ToolError, match="ran longer than its limit"):
        run([script], what="trying", timeout=0.5, grace=10.0)
    assert time.monotonic() - start < 8
    assert (tmp_path / "asked").read_text() == "asked\n"
    wait_until_ended(int((tmp_path / "child").read_text()))


def test_output_goes_to_a_file(tmp_path: Path) -> None:
    with (tmp_path / "out").open("wb") as file:
        assert run(["echo", "hello"], what="trying", stdout=file) == b""
    assert (tmp_path / "out").read_text() == "hello\n"


@pytest.fixture
def checkout(ordinary: Path) -> Path:
    """What scripts/setup looks at."""
    root = Path(__file__).resolve().parents[2]
    (ordinary / "scripts").mkdir()
    script = ordinary / "scripts/setup"
    script.write_bytes((root / "scripts/setup").read_bytes())
    script.chmod(0o755)
    (ordinary / "pyproject.toml").write_text("dependencies\n[project.scripts]\n")
    return ordinary


def set_up(checkout: Path, **programs: str) -> subprocess.CompletedProcess[str]:
    """Runs scripts/setup as an ordinary account, on a host whose programs are these."""
    bin_folder = checkout / "bin"
    bin_folder.mkdir()
    for name, script in programs.items():
        (bin_folder / name.replace("_", "-")).write_text(f"#!/bin/sh\n{script}\n")
        (bin_folder / name.replace("_", "-")).chmod(0o755)
    root = os.getuid() == 0
    if root:
        os.seteuid(0)  # else it may not become another
    return subprocess.run(
        [checkout / "scripts/setup"],
        env={"PATH": f"{bin_folder}:/usr/bin:/bin"},
        user=NOBODY if root else None,
        group=NOBODY if root else None,
        extra_groups=[] if root else None,
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        timeout=20,
        check=False,
    )


def test_set_up_does_not_wait_for_a_password(checkout: Path) -> None:
    """A sudo that asks would wait for ever in CI."""
    sudo = 'case "$1" in -n) exit 1;; *) exec sleep 60;; esac'
    done = set_up(checkout, dpkg_query="exit 1", sudo=sudo)
    assert done.returncode == 1
    assert "sudo wants a password" in done.stderr
    assert "apt-get install qemu-system-x86" in done.stderr


def test_set_up_uses_sudo_that_does_not_ask(checkout: Path) -> None:
    sudo = f'echo "$*" >>{checkout}/ran; case "$*" in *install*) exit 9;; esac'
    done = set_up(checkout, dpkg_query="exit 1", sudo=sudo)
    assert done.returncode == 9  # of the last, which fails here so that nothing follows
    ran = (checkout / "ran").read_text()
    assert "-n env apt-get update" in ran
    assert "-n env DEBIAN_FRONTEND=noninteractive apt-get install" in ran


def test_set_up_tells_folders_that_root_took(checkout: Path) -> None:
    (checkout / ".venv/bin").mkdir(parents=True)
    (checkout / ".venv/bin").chmod(0o555)
    done = set_up(checkout, dpkg_query="echo installed")
    assert done.returncode == 1
    assert "./.venv/bin" in done.stderr
    assert "sudo chown -R " in done.stderr
    (checkout / ".venv/bin").chmod(0o755)
