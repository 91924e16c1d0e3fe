"""O5, B6: what is found in an image, without mounting it, and what follows from it."""

from __future__ import annotations

import gzip
import json
import random
import struct
from collections.abc import Mapping
from pathlib import Path
from types import MappingProxyType

import pytest
from click.testing import CliRunner, Result

from pytest_vmss.cli import main
from pytest_vmss.errors import ImageError
from pytest_vmss.gallery import Gallery, ImageStore, file_system
from pytest_vmss.gallery.formats import ImageHead
from pytest_vmss.gallery.inspection import Inspection, _inspect_raw, inspect_file
from pytest_vmss.host.process import run
from pytest_vmss.settings import ImageLimits

MIB = 1024**2
ROOT_AT = 2 * MIB

DEBIAN: Mapping[str, bytes] = {
    "usr/lib/os-release": b'PRETTY_NAME="Debian GNU/Linux 13 (trixie)"\nID=debian\n',
    "usr/bin/env": b"\x7fELF" + bytes(14) + b"\x3e\0" + bytes(100),
    "usr/bin/cloud-init": b"#!/usr/bin/python3\n",
    "usr/lib/python3/dist-packages/cloudinit/version.py": (
        b'__VERSION__ = "25.1.4"\n_PACKAGED_VERSION = "25.1.4-1"\n'
    ),
    "usr/sbin/sshd": b"",
    "boot/vmlinuz-6.12.1-cloud-amd64": b"",
    "etc/cloud/cloud.cfg": b"users:\n - default\ndatasource_list: [ NoCloud, None ]\n",
}
AZURE: Mapping[str, bytes] = {
    **DEBIAN,
    "etc/cloud/cloud.cfg.d/10-azure.cfg": b"datasource_list: [ Azure ]\n",
    "usr/sbin/waagent": b"",
}
AZURE_CFG = "etc/cloud/cloud.cfg.d/10-azure.cfg"
#: YAML of half a KiB; what it lists would be 10 to the 12th characters if it were written out.
ENDLESS = "\n".join(
    [
        "a0: &a0 [x,x,x,x,x,x,x,x,x,x]",
        *(f"a{n}: &a{n} [{','.join([f'*a{n - 1}'] * 10)}]" for n in range(1, 12)),
        "datasource_list: [*a11]",
    ]
).encode()


@pytest.fixture(autouse=True)
def _here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)


def disk(
    files: Mapping[str, bytes],
    *,
    types: tuple[str, ...] = ("bios", "esp"),
    table: str = "",
    links: Mapping[str, str] = MappingProxyType({}),
) -> Path:
    """Makes a raw disk with a GPT, a BIOS boot and an EFI partition, and an ext4 root.

    Args:
        files: What is in the root.
        types: The partitions before it.
        table: Another partition table for it, as sfdisk takes it.
        links: Symbolic links in the root.
    """
    tree = Path("tree")
    for name, content in files.items():
        path = tree / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(content)
    for name, target in links.items():
        (tree / name).parent.mkdir(parents=True, exist_ok=True)
        (tree / name).symlink_to(target)
    raw = Path("disk.raw")
    with raw.open("wb") as file:
        file.truncate(16 * MIB)
    guids = {
        "bios": "21686148-6449-6E6F-744E-656564454649",
        "esp": "C12A7328-F81F-11D2-BA4B-00A0C93EC93B",
    }
    lines = ["label: gpt"]
    lines += [f"start={2048 + 1024 * n}, size=1024, type={guids[t]}" for n, t in enumerate(types)]
    lines.append(f"start={ROOT_AT // 512}, size={13 * MIB // 512}")
    run(["sfdisk", "-q", raw], what="a table", stdin=(table or "\n".join(lines)).encode())
    with raw.open("r+b") as file:
        file.write(b"\xeb\x63")  # a boot loader begins with a jump
    run(
        ["mke2fs", "-q", "-F", "-t", "ext4", "-d", tree, "-E", f"offset={ROOT_AT}", raw, "13M"],
        what="a file system",
    )
    return raw


def look(path: Path, **options: bool) -> Inspection:
    return inspect_file(path, limits=ImageLimits(), work=Path.cwd(), **options)


@pytest.mark.parametrize("form", ["raw", "qcow2", "vpc", "vhdx"])
def test_an_image_for_azure(form: str) -> None:
    """O5: read in each format; nothing is left, and nothing is changed."""
    source = disk(AZURE)
    if form != "raw":
        run(["qemu-img", "convert", "-f", "raw", "-O", form, source, "image"], what="an image")
        source = Path("image")
    before, there = source.read_bytes(), sorted(Path.cwd().iterdir())
    found = look(source)
    assert found.contents is not None
    assert found.contents.distribution == "Debian GNU/Linux 13 (trixie)"
    assert found.contents.architecture == "x86_64"
    assert found.contents.kernels == ("6.12.1-cloud-amd64",)
    assert found.contents.cloud_init == "25.1.4-1"
    assert found.contents.data_sources == ("Azure",)
    assert found.contents.agents == ("waagent",)
    assert [(p.type, p.file_system) for p in found.table.partitions] == [
        ("BIOS boot", ""), ("EFI system", ""), ("Linux", "ext4"),
    ]  # fmt: skip
    assert found.generations == ("V1", "V2")
    assert found.provisioning == "Azure"
    assert [told for told in found.hindrances() if "MiB" not in told] == []
    assert any("--provisioning Azure" in told for told in found.plan())
    assert source.read_bytes() == before
    assert sorted(Path.cwd().iterdir()) == there


@pytest.mark.parametrize(
    ("types", "generations"),
    [(("bios", "esp"), ("V1", "V2")), (("esp",), ("V2",)), (("bios",), ("V1",)), ((), ())],
)
def test_which_firmware_boots_it(types: tuple[str, ...], generations: tuple[str, ...]) -> None:
    """O5."""
    found = look(disk(DEBIAN, types=types))
    assert found.generations == generations
    assert any("nothing to boot" in told for told in found.hindrances()) == (not generations)
    assert any("by UEFI alone" in told for told in found.plan()) == (generations == ("V2",))


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"usr/bin/cloud-init": None}, "cloud-init is not in it"),
        ({"etc/cloud/cloud-init.disabled": b""}, "switched off"),
        ({"etc/cloud/ds-identify.cfg": b"policy: disabled # no"}, "off (/etc/cloud/ds-identify"),
        ({"boot/grub/grub.cfg": b"\tlinux /x cloud-init=disabled"}, "off (/boot/grub/grub.cfg)"),
        ({"etc/cloud/ds-identify.cfg": b"datasource: Ec2"}, "looks for Ec2 alone"),
        ({"etc/cloud/cloud.cfg": b"datasource_list: [Ec2]"}, "looks for Ec2 alone"),
        ({"etc/cloud/cloud.cfg": b"datasource_list: [Ec2"}, "cloud.cfg cannot be parsed"),
        ({"etc/cloud/cloud.cfg": b"datasource_list: " + b"[" * 9000}, "cannot be parsed"),
        ({"etc/cloud/cloud.cfg": ENDLESS}, "cannot be parsed"),
        ({"usr/sbin/sshd": None}, "no SSH server"),
        ({"boot/vmlinuz-6.12.1-cloud-amd64": None}, "no kernel"),
        ({"usr/bin/env": b"\x7fELF" + bytes(14) + b"\xb7\0" + bytes(9)}, "for aarch64"),
        ({"usr/lib/os-release": None}, "no distribution was found"),
    ],
)
def test_what_would_hinder_it(changes: dict[str, bytes | None], words: str) -> None:
    """B6: each is told, and nothing else."""
    files = {
        name: content for name, content in {**DEBIAN, **changes}.items() if content is not None
    }
    (told,) = look(disk(files)).hindrances()
    assert words in told


@pytest.mark.parametrize(
    "listed",
    [
        b"datasource_list: [ azure ]\n",
        b"datasource_list: Azure, None\n",
        b"datasource_list:\n- 'Azure'\n- None\n",
        b"\xef\xbb\xbfdatasource_list: [ Azure, ] # only\r\n",
        b"datasource_list: !!python/tuple [Azure]\n",
        b"# datasource_list: [ Ec2 ]\n",
        b"datasource_list: null\n",
        b"datasource_list: []\n",
    ],
)
def test_data_sources_as_distributions_spell_them(listed: bytes) -> None:
    """O5: cloud-init does not heed case; what lists none takes nothing back."""
    azure = {**AZURE, "etc/cloud/cloud.cfg.d/90.cfg": listed}
    found = look(disk(azure))
    assert found.contents is not None
    assert found.contents.config.unreadable == ()
    assert found.provisioning == "Azure"


@pytest.mark.parametrize(
    ("path", "content"),
    [
        ("etc/cloud/ds-identify.cfg", "# chosen\n datasource : '{}'\npolicy: search,found=all\n"),
        ("boot/grub/grub.cfg", "menuentry x {{\n\tlinux\t/vmlinuz ro ci.ds={} quiet\n}}\n"),
        ("boot/grub2/grub.cfg", "  linuxefi /vmlinuz xds=Ec2 'ds={}\\;s=/x'\n"),
        ("boot/loader/entries/a.conf", "title x\noptions root=LABEL=a ci.datasource={}\n"),
        ("boot/grub2/grubenv", "# GRUB\nkernelopts=root=a ds={};x\n####"),
        ("grub2/grub.cfg", 'set default_kernelopts="ds={}"\n'),
    ],
)
@pytest.mark.parametrize(("name", "expected"), [("Azure", "Azure"), ("nocloud", "NoCloud")])
def test_a_chosen_data_source_counts_for_those_listed(
    path: str, content: str, name: str, expected: str
) -> None:
    """O5: by ds-identify's configuration, or on the kernel's command line, also in a /boot apart."""
    listed = b"datasource_list: [ NoCloud, Azure ]" if name == "Azure" else AZURE[AZURE_CFG]
    found = look(disk({**AZURE, AZURE_CFG: listed, path: content.format(name).encode()}))
    assert found.contents is not None
    assert found.contents.data_sources == (name,)
    assert found.provisioning == expected


@pytest.mark.parametrize("folder", ["/usr/share/oem", "../../../usr/share/" + 30 * "very-long-/"])
def test_links_in_an_image_are_followed(folder: str) -> None:
    """O5: a configuration may be one, and so may each program; never out of the file system."""
    place = "usr/share/" + folder.partition("/share/")[2].rstrip("/")
    files = {name: body for name, body in AZURE.items() if name not in (AZURE_CFG, "usr/bin/env")}
    files[f"{place}/azure.cfg"] = AZURE[AZURE_CFG]
    files["usr/lib/uutils/env"] = AZURE["usr/bin/env"]
    links = {
        AZURE_CFG: f"{folder}/azure.cfg", "usr/bin/env": "../lib/uutils/env",
        "etc/cloud/cloud.cfg.d/95-loop.cfg": "95-loop.cfg",
        "etc/cloud/cloud.cfg.d/96-away.cfg": f"{'../' * 9}{Path('outside.cfg').absolute()}",
        "etc/cloud/cloud.cfg.d/97-odd.cfg": 'a" b\nquit',
    }  # fmt: skip
    Path("outside.cfg").write_bytes(b"datasource_list: [ Ec2 ]")
    found = look(disk(files, links=links))
    assert found.contents is not None
    assert found.contents.architecture == "x86_64"
    assert found.contents.data_sources == ("Azure",)
    assert found.contents.config.unreadable == ()


def test_cloud_inits_version_where_meson_writes_it() -> None:
    """O5: from 26.1 on it is in a module of its own."""
    folder = "usr/lib/python3/dist-packages/cloudinit"
    files = {
        **DEBIAN,
        f"{folder}/version.py": b"try:\n    from cloudinit import meson_versions\nexcept: pass\n"
        b'    __VERSION__ = "@MISSING_MESON_BUILD_ARTIFACT@"\n',
        f"{folder}/meson_versions.py": b'UPSTREAM_VERSION = "26.1"      # Required to release\n'
        b'DOWNSTREAM_VERSION = "26.1-0ubuntu3"  # Optional for downstream packagers\n',
    }
    found = look(disk(files))
    assert found.contents is not None
    assert found.contents.cloud_init == "26.1-0ubuntu3"


def test_a_root_in_a_logical_partition() -> None:
    """O5: as Debian's installer makes them."""
    table = f"label: dos\nstart=1024, size=512, type=83\nstart=2048, type=5\nstart={ROOT_AT // 512}"
    found = look(disk(AZURE, table=table))
    assert [(p.number, p.type, p.file_system) for p in found.table.partitions] == [
        (1, "Linux", ""), (2, "extended", ""), (5, "Linux", "ext4"),
    ]  # fmt: skip
    assert (found.provisioning, found.generations) == ("Azure", ("V1",))


def test_logical_partitions_without_end_are_given_up() -> None:
    """R3."""
    raw = disk(DEBIAN, table=f"label: dos\nstart=2048, type=5\nstart={ROOT_AT // 512}")
    with raw.open("r+b") as file:
        file.seek(2048 * 512 + 446 + 16)
        file.write(struct.pack("<8xII", 1, 9))  # the next one is at the next sector
        first = bytearray(512)
        first[450] = 0x83
        struct.pack_into("<II", first, 454, 1, 1)
        struct.pack_into("<II", first, 446 + 16 + 8, 1, 1)  # and again
        first[510:] = b"\x55\xaa"
        file.seek(2049 * 512)
        file.write(first)
    assert len(look(raw).table.partitions) <= 62


def test_a_bios_starts_what_a_gpt_marks_for_it() -> None:
    """O5: without a partition for a boot loader, as extlinux does."""
    table = f"label: gpt\nstart={ROOT_AT // 512}, attrs=LegacyBIOSBootable"
    assert look(disk(DEBIAN, table=table)).generations == ("V1",)
    assert look(disk(DEBIAN, table=table.partition(",")[0])).generations == ()


def test_a_table_for_larger_sectors_is_told() -> None:
    """O5: what is in it is read, and no machine here would."""
    raw = disk(AZURE)
    with raw.open("r+b") as file:
        file.seek(512)
        small = file.read(512 + 128 * 128)
        file.seek(512)
        file.write(bytes(4096 - 512))
        header = bytearray(small[:512])
        struct.pack_into("<Q", header, 72, 2)
        entries = bytearray(small[512:])
        for at in range(32, 3 * 128, 128):
            first, last = struct.unpack_from("<QQ", entries, at)
            struct.pack_into("<QQ", entries, at, first // 8, (last + 1) // 8 - 1)
        file.seek(4096)
        file.write(bytes(header).ljust(4096, b"\0") + entries)
    found = look(raw)
    assert found.provisioning == "Azure"
    assert found.generations == ()
    (told,) = found.hindrances()
    assert "sectors of 4096 bytes" in told


def test_what_an_image_says_is_shown_as_text() -> None:
    """R2, R3: no control characters, and not without end."""
    hostile = b'PRETTY_NAME="\x1b]0;evil\x07' + b"x" * 5000 + b'"\n'
    found = look(disk({**DEBIAN, "usr/lib/os-release": hostile}))
    assert found.contents is not None
    assert found.contents.distribution.isprintable()
    assert len(found.contents.distribution) <= 101


def test_other_file_systems_are_named() -> None:
    """O5: what cannot be read is told, and auto means NoCloud."""
    raw = Path("disk.raw")
    raw.write_bytes(b"XFSB".ljust(510, b"\0") + b"\x55\xaa" + bytes(4 * MIB - 512))
    found = look(raw)
    assert found.table.scheme == ""
    assert any("it holds xfs" in told for told in found.hindrances())
    assert found.provisioning == "NoCloud"


def test_an_image_with_names_without_end_is_given_up(monkeypatch: pytest.MonkeyPatch) -> None:
    """R3: each is looked into with a program; together they have a limit of time."""
    names = {f"usr/lib/python3.{number}/x": b"" for number in range(200)}
    kernels = {f"boot/vmlinuz-{number}": b"" for number in range(100)}
    files = {name: content for name, content in DEBIAN.items() if "version.py" not in name}
    image = disk({**files, **names, **kernels})
    found = look(image)
    assert found.contents is not None
    assert len(found.contents.kernels) == 20
    monkeypatch.setattr(file_system, "_WHOLE_LIMIT_S", 0.1)
    with pytest.raises(ImageError, match=r"longer than its limit of .* e2fsck"):
        look(image)


def test_damaged_disks_are_looked_into() -> None:
    """R3: whatever is damaged, there is an answer, in time."""
    content = disk(AZURE).read_bytes()
    chance = random.Random(5)
    for _ in range(12):
        bad = bytearray(content)
        for start, size in ((446, 66), (512, 4096), (ROOT_AT + 1024, 4096), (ROOT_AT, 300_000)):
            for _ in range(chance.randrange(6)):
                bad[start + chance.randrange(size)] = chance.randrange(256)
        Path("bad.raw").write_bytes(bad)
        with Path("bad.raw").open("rb") as file:
            found = _inspect_raw(ImageHead("raw", len(bad)), file.fileno())
        assert json.dumps(found.to_wire()).isprintable()


@pytest.mark.parametrize(
    ("types", "expected"), [(("bios", "esp"), "V1"), (("esp",), "V2"), ((), "V1")]
)
def test_a_new_definition_has_the_generation_that_can_boot(
    images: ImageStore, types: tuple[str, ...], expected: str
) -> None:
    """O5: unless somebody chose one; a later version of it changes nothing."""
    gallery = Gallery(images)
    source = disk(DEBIAN, types=types)
    assert gallery.publish("web", "1.0.0", source).hyper_v_generation == expected
    assert images.definition("gallery", "web").hyper_v_generation == expected
    gallery.publish("chosen", "1.0.0", source, hyper_v_generation="V1")
    assert gallery.publish("chosen", "1.1.0", source).hyper_v_generation == "V1"
    gallery.define("defined")
    assert gallery.publish("defined", "1.0.0", source).hyper_v_generation == "V1"


@pytest.mark.parametrize(("files", "expected"), [(AZURE, "Azure"), (DEBIAN, "NoCloud")])
def test_auto_looks_into_each_version(
    images: ImageStore, files: Mapping[str, bytes], expected: str
) -> None:
    """O5: when it is published, and remembers what it found."""
    gallery = Gallery(images)
    record = gallery.publish("web", "1.0.0", disk(files), provisioning="auto")
    assert record.provisioning == expected
    assert images.definition("gallery", "web").provisioning == "auto"
    assert [path.name for path in images.path_of(record).parent.iterdir()] == [
        f"{record.digest}.qcow2"
    ]
    assert gallery.publish("web", "1.0.0", "disk.raw").provisioning == expected


def test_auto_says_when_it_cannot_tell(images: ImageStore) -> None:
    """O5: a distribution on xfs is taken for NoCloud, and not in silence."""
    raw = Path("disk.raw")
    raw.write_bytes(b"XFSB".ljust(510, b"\0") + b"\x55\xaa" + bytes(4 * MIB - 512))
    record = Gallery(images).publish("web", "1.0.0", raw, provisioning="auto")
    assert record.provisioning == "NoCloud"
    (told,) = [event.message for event in images._store.events() if event.kind == "warning"]
    assert "what disk.raw looks for cannot be read" in told


def test_the_command(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """O5."""
    monkeypatch.setenv("VMSS_STATE_DIR", str(tmp_path / "state"))
    monkeypatch.setenv("VMSS_CACHE_DIR", str(tmp_path / "cache"))

    def vmss_command(*arguments: object) -> Result:
        return CliRunner().invoke(main, [str(word) for word in arguments])

    source = disk(AZURE)
    told = vmss_command("image", "inspect", source)
    assert told.exit_code == 0, told.output
    for words in ("Debian GNU/Linux 13", "data sources  Azure", "25.1.4-1", "waagent", "raw"):
        assert words in told.output
    wire = json.loads(vmss_command("image", "inspect", source, "--json").output)
    assert wire["provisioning"] == "Azure"
    assert wire["hyperVGenerations"] == ["V1", "V2"]
    assert wire["cloudInit"] == {
        "version": "25.1.4-1", "disabled": False, "dataSources": ["Azure"],
    }  # fmt: skip
    Path("text").write_text("no image")
    refused = vmss_command("image", "inspect", "text")
    assert refused.exit_code == 1
    assert "no boot sector" in refused.output


def test_what_is_no_image_is_refused() -> None:
    """B4."""
    Path("text").write_text("no image")
    with pytest.raises(ImageError):
        look(Path("text"))
    Path("packed").write_bytes(gzip.compress(disk(DEBIAN).read_bytes()))
    with pytest.raises(ImageError, match=r"packed is compressed by gzip.* unpack it first"):
        look(Path("packed"))
