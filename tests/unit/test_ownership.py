"""What belongs to somebody else is not trusted (M5)."""

from __future__ import annotations

import grp
import os
import pwd
import shutil
import stat
import struct
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace

import pytest

from pytest_vmss.api.lab import Lab
from pytest_vmss.errors import LabError
from pytest_vmss.host import ownership
from pytest_vmss.host.ownership import require_own, require_trusted
from pytest_vmss.host.paths import LabPaths
from pytest_vmss.labs.reap import reap
from pytest_vmss.settings import Settings

STRANGER = 12345


@pytest.fixture
def give_away(monkeypatch: pytest.MonkeyPatch) -> Callable[[Path], None]:
    """Makes a file a stranger's; who is not root becomes the stranger to it."""
    if os.geteuid() == 0:
        return lambda path: os.chown(path, STRANGER, STRANGER)
    return lambda _path: monkeypatch.setattr(os, "geteuid", lambda: STRANGER)


@pytest.fixture
def settings(tmp_path: Path) -> Settings:
    return Settings(state_dir=tmp_path / "state", cache_dir=tmp_path / "cache")


@pytest.fixture
def lab(settings: Settings) -> LabPaths:
    """A lab that was made and closed."""
    made = Lab.open(settings, "default")
    made.close()
    return made.paths


@pytest.mark.parametrize(
    "part", ["", "..", "id_ed25519", "vmss.db", "lab.json", "../../locks", "../../networks"]
)
def test_a_lab_with_anything_of_a_strangers_is_not_opened(
    settings: Settings, lab: LabPaths, give_away: Callable[[Path], None], part: str
) -> None:
    """M5: its owner could put another key or disk there."""
    give_away((lab.folder / part).resolve())
    with pytest.raises(LabError, match=r"belongs to uid 12345|this is uid 12345"):
        Lab.open(settings, "default")


def test_a_strangers_folder_is_not_made_a_lab(
    settings: Settings, lab: LabPaths, give_away: Callable[[Path], None]
) -> None:
    """M5: a key that is waiting there is not used."""
    kept = lab.key.read_bytes()
    shutil.rmtree(lab.folder)
    lab.folder.mkdir()
    lab.key.write_bytes(kept)
    give_away(lab.folder)
    with pytest.raises(LabError, match="VMSS_STATE_DIR"):
        Lab.open(settings, "default")
    assert [path.name for path in lab.folder.iterdir()] == [lab.key.name]


def test_reaping_leaves_a_strangers_lab_alone(
    settings: Settings, lab: LabPaths, give_away: Callable[[Path], None]
) -> None:
    """M5, Q2: what it says about machines and folders is not believed."""
    lab.identity.write_text(lab.identity.read_text().replace('"lasting"', '"session"'))
    assert '"session"' in lab.identity.read_text()
    give_away(lab.identity)
    said = reap(settings)
    assert any("stays" in line and str(STRANGER) in line for line in said), said
    assert lab.identity.exists()


def test_a_lab_is_its_owners_whatever_the_umask(settings: Settings) -> None:
    """M5: it can be opened again, for nobody else could write there meanwhile."""
    before = os.umask(0)
    try:
        Lab.open(settings, "default").close()
        again = Lab.open(settings, "default")
    finally:
        os.umask(before)
    for folder in (settings.state_dir, *settings.state_dir.iterdir(), again.paths.folder):
        assert folder.stat().st_mode & 0o022 == 0, folder
    again.close()


def test_where_everyone_writes(tmp_path: Path) -> None:
    """M5: as little as a stranger's; a folder like /tmp keeps its files apart."""
    require_own(tmp_path, tmp_path / "missing")
    tmp_path.chmod(0o777)
    with pytest.raises(PermissionError, match="chmod o-w"):
        require_own(tmp_path)
    below = tmp_path / "below"
    below.mkdir(mode=0o700)
    with pytest.raises(PermissionError, match=f"{tmp_path} .*chmod o-w"):
        require_trusted(below)
    tmp_path.chmod(0o1777)
    require_trusted(below)
    require_trusted(below / "to" / "be made")
    require_trusted(tmp_path / "to be made")
    with pytest.raises(PermissionError, match="chmod o-w"):
        require_trusted(tmp_path)  # a stranger can be first with a name in it
    tmp_path.chmod(0o700)


@pytest.fixture
def as_stats(monkeypatch: pytest.MonkeyPatch) -> Callable[..., None]:
    """Lets a folder appear with another owner, group or mode."""

    def change(path: Path, **fields: int) -> None:
        real = Path.lstat

        def lstat(self: Path) -> os.stat_result:
            about = real(self)
            if self != path:
                return about
            values = {name: getattr(about, name) for name in ("st_mode", "st_uid", "st_gid")}
            values |= fields
            return os.stat_result(
                (values["st_mode"], about.st_ino, about.st_dev, about.st_nlink, values["st_uid"],
                 values["st_gid"], about.st_size, 0, 0, 0)
            )  # fmt: skip

        monkeypatch.setattr(Path, "lstat", lstat)

    return change


_FOLDER = stat.S_IFDIR


@pytest.mark.parametrize(
    ("fields", "told"),
    [
        ({"st_uid": STRANGER}, "belongs to uid 12345"),
        ({"st_mode": _FOLDER | 0o777}, "everyone may write"),
        ({"st_mode": _FOLDER | 0o775, "st_gid": STRANGER}, "the group gid 12345 may write"),
        ({"st_mode": _FOLDER | 0o1777, "st_uid": STRANGER}, "belongs to uid 12345"),
        ({"st_mode": _FOLDER | 0o1777}, ""),
        ({"st_mode": _FOLDER | 0o755, "st_gid": STRANGER}, ""),
        ({"st_mode": _FOLDER | 0o775, "st_uid": 0, "st_gid": 0}, ""),
    ],
)
def test_every_folder_above_counts(
    tmp_path: Path, as_stats: Callable[..., None], fields: dict[str, int], told: str
) -> None:
    """M5: whoever can rename one of them can put another in its place."""
    state = tmp_path / "above" / "state"
    state.mkdir(parents=True, mode=0o700)
    as_stats(tmp_path / "above", **fields)
    if not told:
        require_trusted(state)
        return
    with pytest.raises(PermissionError, match=told):
        require_trusted(state)
    with pytest.raises(LabError, match=told):
        Lab.open(Settings(state_dir=state), "default")


def test_a_group_of_ones_own_may_write(
    tmp_path: Path, as_stats: Callable[..., None], monkeypatch: pytest.MonkeyPatch
) -> None:
    """M5: on Debian each user has one, and the umask 0002."""
    state = tmp_path / "home" / "state"
    state.mkdir(parents=True)
    members: list[str] = []
    monkeypatch.setattr(
        grp, "getgrgid", lambda gid: SimpleNamespace(gr_gid=gid, gr_name="me", gr_mem=members)
    )
    monkeypatch.setattr(os, "geteuid", lambda: STRANGER)
    for path in (tmp_path, state):
        as_stats(path, st_uid=STRANGER)
    as_stats(tmp_path / "home", st_mode=_FOLDER | 0o775, st_uid=STRANGER, st_gid=STRANGER)
    for path in tmp_path.parents:
        as_stats(path, st_mode=_FOLDER | 0o755, st_uid=0)
    require_trusted(state)
    members.append("uid 12345")
    require_trusted(state)
    members.append("somebody else")
    with pytest.raises(PermissionError, match="the group me may write"):
        require_trusted(state)


def test_whose_primary_group_it_is_is_a_member(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """M5: the group file does not name them."""
    monkeypatch.setattr(
        grp, "getgrgid", lambda gid: SimpleNamespace(gr_gid=gid, gr_name="me", gr_mem=[])
    )
    about = tmp_path.stat()
    me = SimpleNamespace(pw_name="me", pw_uid=about.st_uid, pw_gid=about.st_gid)
    other = SimpleNamespace(pw_name="other", pw_uid=STRANGER, pw_gid=about.st_gid)
    monkeypatch.setattr(pwd, "getpwuid", lambda _: me)
    accounts = [me, SimpleNamespace(pw_name="third", pw_uid=STRANGER + 1, pw_gid=STRANGER + 1)]
    monkeypatch.setattr(pwd, "getpwall", lambda: accounts)
    tmp_path.chmod(0o770)
    require_own(tmp_path)
    accounts.append(other)
    with pytest.raises(PermissionError, match="the group me may write"):
        require_own(tmp_path)


@pytest.mark.parametrize(
    ("tag", "number", "permissions", "told"),
    [
        (0x02, STRANGER, 7, "lets uid 12345 write"),
        (0x08, STRANGER, 6, "lets the group gid 12345 write"),
        (0x02, STRANGER, 5, ""),
        (0x08, STRANGER, 4, ""),
        (0x02, os.geteuid(), 7, ""),
    ],
)
@pytest.mark.parametrize("mode", [0o770, 0o750])
def test_whom_an_acl_names_may_write(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch,
    tag: int, number: int, permissions: int, told: str, mode: int,
) -> None:  # fmt: skip
    """M5: the mode tells only that somebody may."""
    monkeypatch.setattr(ownership, "_is_private_group", lambda _: True)
    nobody = 0xFFFFFFFF
    entries = [
        (0x01, 7, nobody), *sorted([(0x04, 7, nobody), (tag, permissions, number)]),
        (0x10, 7, nobody), (0x20, 0, nobody),
    ]  # fmt: skip
    packed = struct.pack("<I", 2) + b"".join(struct.pack("<HHI", *entry) for entry in entries)
    try:
        os.setxattr(tmp_path, "system.posix_acl_access", packed)
    except OSError:
        pytest.skip("this file system has no ACLs")
    tmp_path.chmod(mode)  # sets the mask
    if not told or mode == 0o750:
        require_own(tmp_path)
        return
    with pytest.raises(PermissionError, match=f"{told} .*setfacl -b"):
        require_own(tmp_path)


def test_folders_around_a_container_are_nobodys(
    tmp_path: Path, as_stats: Callable[..., None], monkeypatch: pytest.MonkeyPatch
) -> None:
    """M5: in a user namespace ``/`` is often of an account that has no number there."""
    state = tmp_path / "state"
    state.mkdir()
    for path in tmp_path.parents:
        as_stats(path, st_mode=_FOLDER | 0o755, st_uid=65534, st_gid=65534)
    with pytest.raises(PermissionError, match="belongs to"):
        require_trusted(state)
    (tmp_path / "map").write_text("0 1000 1\n")
    monkeypatch.setattr(ownership, "_UID_MAP", tmp_path / "map")
    require_trusted(state)
    as_stats(state, st_uid=65534)
    with pytest.raises(PermissionError, match="belongs to"):
        require_trusted(state)


def test_links_are_followed_to_the_state_folder_and_not_within(
    tmp_path: Path, give_away: Callable[[Path], None]
) -> None:
    """M5."""
    (tmp_path / "real" / "state").mkdir(parents=True, mode=0o700)
    link = tmp_path / "link"
    link.symlink_to("../" + tmp_path.name + "/real")
    linked = Settings(state_dir=link / "state")
    Lab.open(linked, "default").close()
    shutil.move(linked.state_dir / "networks", tmp_path / "elsewhere")
    (linked.state_dir / "networks").symlink_to(tmp_path / "elsewhere")
    with pytest.raises(LabError, match="is a symbolic link"):
        Lab.open(linked, "default")
    (tmp_path / "a").symlink_to("b")
    (tmp_path / "b").symlink_to("a")
    with pytest.raises(OSError, match="symbolic links"):
        require_trusted(tmp_path / "a")
    if os.geteuid() == 0:
        os.lchown(link, STRANGER, STRANGER)
    else:
        give_away(link)
    with pytest.raises(PermissionError, match="12345"):
        require_trusted(link / "state")


@pytest.mark.parametrize("part", ["id_ed25519", "vmss.db", "lab.json"])
def test_a_file_with_a_second_name_is_not_trusted(
    settings: Settings, lab: LabPaths, tmp_path: Path, part: str
) -> None:
    """M5: through it others may change the file."""
    os.link(lab.folder / part, tmp_path / "second")
    with pytest.raises(LabError, match="second name"):
        Lab.open(settings, "default")
    (tmp_path / "second").unlink()
    # What a kill between the two steps of writing leaves is the lab's own.
    os.link(lab.folder / part, lab.folder / f".{part}-0a1b2c3d.part")
    Lab.open(settings, "default").close()
