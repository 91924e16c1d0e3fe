"""B5: recipes and the initramfs."""

from __future__ import annotations

import os
import py_compile
import re
import shlex
import struct
import subprocess
import sys
from pathlib import Path
from unittest.mock import Mock

import pytest
import yaml
from click.testing import CliRunner
from pydantic import ValidationError

import pytest_vmss
from pytest_vmss.cli import main
from pytest_vmss.errors import ConflictError, HostError, ImageError, NotFoundError
from pytest_vmss.image_builder import (
    BaseRecipe,
    BuiltImage,
    ImageBuilder,
    ImageRecipe,
    VersionRecipe,
    assemble,
    bootstrap,
    find_recipes,
    write_recipe,
)
from pytest_vmss.image_builder.initramfs import build_initramfs
from pytest_vmss.image_builder.recipe import digest_of, load_image
from pytest_vmss.image_builder.scratch import scratch


def test_the_shipped_recipes_are_valid() -> None:
    image = load_image(find_recipes() / "web")
    assert image.versions() == ["1.0.0", "1.1.0", "1.2.0", "1.3.0", "1.4.0"]
    base = image.base_recipe()
    kernels = {image.version(version).kernel for version in image.versions()}
    assert kernels == set(base.kernels)
    assert image.version("1.0.0").kernel != image.version("1.1.0").kernel
    for version in image.versions():
        served = image.version(version).files / "usr/share/web/version.json"
        assert f'"{version}"' in served.read_text()
    with pytest.raises(NotFoundError, match=r"there are: 1\.0\.0"):
        image.version("9.9.9")


#: What cloud-init does at each stage of a boot: its modules' loggers are there before it reads how
#: to log; those of events come later. In a process of its own, for it changes all loggers.
_LOGS = """
import io, logging, logging.config, sys

main, util, stages = map(logging.getLogger, ("cloudinit", "cloudinit.util", "cloudinit.stages"))
logging.config.fileConfig(io.StringIO(sys.stdin.read()))
main.debug("Cloud-init v. 22.4.2 running 'init-local'")
logging.getLogger("cloudinit.reporting.start.init-local").debug("start: init-local/check-cache")
util.debug("Reading from /proc/uptime")
util.warning("failed to read")
stages.warning("failed to fetch")
"""


@pytest.mark.parametrize("base", ["debian-12", "azure-debian-12", "azure-debian-13"])
def test_cloud_init_loses_no_warning_by_a_shorter_configuration(base: str, tmp_path: Path) -> None:
    """H1, L3: they tell a degraded boot; the first line of each stage is what its analysis needs."""
    path = find_recipes() / base / "files/etc/cloud/cloud.cfg.d/05_logging.cfg"
    (texts,) = yaml.safe_load(path.read_text())["log_cfgs"]
    log = tmp_path / "cloud-init.log"
    text = "\n".join(texts).replace("/var/log/cloud-init.log", str(log))
    subprocess.run([sys.executable, "-I", "-c", _LOGS], input=text, text=True, check=True)
    assert [line.partition("]: ")[2] for line in log.read_text().splitlines()] == [
        "Cloud-init v. 22.4.2 running 'init-local'",
        "start: init-local/check-cache",
        "failed to read",
        "failed to fetch",
    ]


def test_a_recipe_that_is_not_valid(tmp_path: Path) -> None:
    (tmp_path / "image.yaml").write_text("publisher: a/b\n")
    with pytest.raises(ImageError, match="not valid"):
        load_image(tmp_path)
    with pytest.raises(NotFoundError, match="no recipe"):
        load_image(tmp_path / "nothing")


def test_a_package_of_another_suite(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """B5: only what is named with a suite comes from it; updates and security are the base's own."""
    base = load_image(find_recipes() / "web").base_recipe()
    assert "cloud-init/trixie" in base.packages
    seen: list[str] = []
    way = bootstrap.Way("root", tmp_path)
    monkeypatch.setattr(bootstrap, "choose_way", lambda _: way)
    monkeypatch.setattr(
        bootstrap, "_mmdebstrap", lambda _, options, *__, **___: seen.extend(options)
    )
    with (tmp_path / "tar").open("wb") as tar:
        bootstrap.bootstrap(base, tmp_path, tar)
    (default,) = (option for option in seen if "Default-Release" in option)
    pattern = default.partition("/")[2].rpartition("/")[0]
    suites = ["bookworm", "bookworm-updates", "bookworm-security", "trixie", "bookworm-backports"]
    assert [bool(re.search(pattern, suite)) for suite in suites] == [True] * 3 + [False] * 2
    for wrong in ("a/../b", "a/", "/a", "a/b/c", "a=1"):
        with pytest.raises(ValidationError, match="packages"):
            type(base).model_validate({**dict(base), "packages": [wrong]})


def test_kernels_come_from_the_bases_own_sources(tmp_path: Path) -> None:
    """B5: whatever release the host has; the hook runs outside the new root filesystem."""
    tools = tmp_path / "bin"
    tools.mkdir()
    for name, body in {
        "apt-cache": 'echo "asked $APT_CONFIG" >> "$LOG"; echo "  Depends: linux-image-6.12.1"',
        "apt-get": 'echo "got $APT_CONFIG $*" >> "$LOG"; touch kernel.deb',
        "dpkg-deb": "mkdir -p boot usr/share/doc usr/lib/modules/6.12.1; touch boot/System.map-6",
    }.items():
        (tools / name).write_text(f"#!/bin/sh\n{body}\n")
        (tools / name).chmod(0o755)
    hook = bootstrap.HOOK.format(kernels="linux-image-cloud-amd64")
    subprocess.run(
        ["/bin/sh", "-c", hook, "hook", tmp_path / "root"],
        env={
            "PATH": f"{tools}:/usr/bin:/bin", "LOG": str(tmp_path / "log"),
            "MMDEBSTRAP_APT_CONFIG": "/of/the/base",
        },
        check=True,
        timeout=60,
    )  # fmt: skip
    assert (tmp_path / "log").read_text().splitlines() == [
        "asked /of/the/base",
        "got /of/the/base -o APT::Sandbox::User=root download linux-image-6.12.1",
    ]
    kernel = tmp_path / "root/kernels/linux-image-cloud-amd64"
    assert sorted(str(path.relative_to(kernel)) for path in kernel.rglob("*")) == [
        "boot", "usr", "usr/lib", "usr/lib/modules", "usr/lib/modules/6.12.1",
    ]  # fmt: skip


def test_a_version_of_the_next_release(tmp_path: Path) -> None:
    """B5: an image definition outlives the distribution's release that it began with."""
    image = load_image(find_recipes() / "azure-web")
    suites = {
        version: image.base_recipe(image.version(version)).suite for version in image.versions()
    }
    assert suites == {
        "1.0.0": "bookworm", "1.1.0": "bookworm", "1.2.0": "bookworm",
        "2.0.0": "trixie", "2.1.0": "trixie",
    }  # fmt: skip
    folder = write_recipe("own", tmp_path)
    with (folder / "1.0.0/version.yaml").open("a") as file:
        file.write("base: nothing\n")
    recipe = load_image(folder)
    with pytest.raises(NotFoundError, match="the base 'nothing'"):
        recipe.base_recipe(recipe.version("1.0.0"))


def test_every_file_counts_for_the_digest(tmp_path: Path) -> None:
    """B5: same inputs, same digest; other inputs, another."""
    (tmp_path / "image.yaml").write_text("{publisher: p, offer: o, sku: s, base: b}")
    recipe = load_image(tmp_path)
    seen = {digest_of(recipe)}
    (tmp_path / "files").mkdir()
    (tmp_path / "files/a").write_text("1")
    seen.add(digest_of(recipe))
    (tmp_path / "files/a").chmod(0o755)
    seen.add(digest_of(recipe))
    (tmp_path / "files/b").symlink_to("a")
    seen.add(digest_of(recipe))
    assert len(seen) == 4
    assert digest_of(recipe) == digest_of(recipe)


def test_initramfs_loads_what_modules_depend_on_first(tmp_path: Path) -> None:
    modules = tmp_path / "usr/lib/modules/6.1"
    (modules / "kernel").mkdir(parents=True)
    (tmp_path / "bin").mkdir()
    (tmp_path / "bin/busybox").write_bytes(b"busybox")
    for name in ("virtio", "virtio_ring", "virtio-pci"):
        (modules / f"kernel/{name}.ko").write_bytes(name.encode())
    (modules / "modules.dep").write_text(
        "kernel/virtio-pci.ko: kernel/virtio_ring.ko kernel/virtio.ko\n"
        "kernel/virtio_ring.ko: kernel/virtio.ko\nkernel/virtio.ko:\n"
    )
    (modules / "modules.builtin").write_text("kernel/ext4.ko\n")
    archive = build_initramfs(tmp_path, "6.1", ("virtio_pci", "ext4"))
    assert archive == build_initramfs(tmp_path, "6.1", ("virtio_pci", "ext4"))
    assert archive.startswith(b"070701")
    assert b"virtio.ko\nvirtio_ring.ko\nvirtio-pci.ko\n" in archive
    with pytest.raises(ImageError, match="no module 'nothing'"):
        build_initramfs(tmp_path, "6.1", ("nothing",))


def test_a_base_is_found_beside_the_image_first(tmp_path: Path) -> None:
    """B5: a recipe folder of one's own needs no copy of the shipped base."""
    image = write_recipe("own", tmp_path / "recipes")
    shipped = load_image(image).base_recipe()
    assert shipped.folder == find_recipes() / "debian-12"
    own = tmp_path / "recipes/debian-12"
    own.mkdir()
    (own / "base.yaml").write_text((shipped.folder / "base.yaml").read_text())
    assert load_image(image).base_recipe().folder == own
    (image / "image.yaml").write_text("{publisher: p, offer: o, sku: s, base: nothing}")
    with pytest.raises(NotFoundError, match=r"the base 'nothing' .* neither .*recipes/nothing/"):
        load_image(image).base_recipe()


def test_a_new_recipe_is_valid_and_commented(tmp_path: Path) -> None:
    folder = write_recipe("shop", tmp_path / "images")
    recipe = load_image(folder)
    assert recipe.versions() == ["1.0.0"]
    assert recipe.version("1.0.0").kernel in recipe.base_recipe().kernels
    text = (folder / "image.yaml").read_text() + (folder / "1.0.0/version.yaml").read_text()
    for kind in (ImageRecipe, VersionRecipe):
        for key in set(kind.model_fields) - {"folder"}:
            assert re.search(rf"^(# )?{key}:", text, re.MULTILINE), key
    assert text.count("#") > 10
    with pytest.raises(ConflictError, match=r"there is .*shop already"):
        write_recipe("shop", tmp_path / "images")
    for name in ("", "../x", "a/b", ".x", "x" * 81):
        with pytest.raises(ImageError, match="cannot name an image"):
            write_recipe(name, tmp_path / "images")


def test_a_misspelt_key_names_the_one_meant(tmp_path: Path) -> None:
    text = "{publisher: p, offer: o, sku: s, base: b, size_mb: 2000}"
    (tmp_path / "image.yaml").write_text(text)
    with pytest.raises(ImageError, match=r"size_mb: .*; did you mean size_mib\?") as refused:
        load_image(tmp_path)
    assert "http" not in str(refused.value)


def test_each_key_is_in_the_reference() -> None:
    reference = (Path(__file__).parents[2] / "docs/reference.md").read_text()
    section = reference.partition("## Recipe keys\n")[2].partition("\n## ")[0]
    for kind in (ImageRecipe, VersionRecipe, BaseRecipe):
        for key in set(kind.model_fields) - {"folder"}:
            assert f"`{key}`" in section, key


def test_the_command_writes_and_finds_recipes_of_ones_own(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    built: list[tuple[Path, str]] = []

    def build(builder: ImageBuilder, version: str) -> BuiltImage:
        built.append((builder.recipe.folder, version))
        raise HostError("far enough")

    monkeypatch.setattr(ImageBuilder, "build", build)
    told = CliRunner().invoke(main, ["image", "new", "web"])
    assert told.exit_code == 0, told.output
    assert "vmss image build web 1.0.0" in told.output
    CliRunner().invoke(main, ["image", "build", "web", "1.0.0"])
    (tmp_path / "images/web/image.yaml").unlink()
    CliRunner().invoke(main, ["image", "build", "web", "1.1.0"])
    assert built == [(tmp_path / "images/web", "1.0.0"), (find_recipes() / "web", "1.1.0")]


def test_the_builder_is_public() -> None:
    assert pytest_vmss.ImageBuilder is ImageBuilder
    assert ImageBuilder(str(find_recipes() / "web")).recipe.name == "web"
    assert ImageBuilder.named("web").recipe.versions()


def test_a_service_of_ones_own_is_enabled_as_the_new_recipe_says(tmp_path: Path) -> None:
    """B5: the link that the comment makes is the one that systemd follows."""
    folder = write_recipe("shop", tmp_path / "images")
    text = (folder / "image.yaml").read_text().replace("NAME", "shop")
    commands = re.findall(r"^# +(mkdir -p .*|ln -s .*)$", text, re.MULTILINE)
    assert len(commands) == 2
    for command in commands:
        subprocess.run(shlex.split(command), check=True, cwd=folder)
    units = folder / "files/etc/systemd/system"
    (units / "shop.service").write_text("[Service]\nExecStart=/bin/true\n")
    link = units / "multi-user.target.wants/shop.service"
    assert link.is_symlink()
    assert link.samefile(units / "shop.service")


def test_what_is_copied_for_the_next_version_names_no_version(tmp_path: Path) -> None:
    folder = write_recipe("shop", tmp_path / "images")
    for path in (folder / "1.0.0/files").rglob("*"):
        assert path.is_dir() or "1.0.0" not in path.read_text()


def test_a_base_of_ones_own_is_copied_as_the_new_recipe_says(tmp_path: Path) -> None:
    """B5: with its files, without which cloud-init would find no configuration."""
    folder = write_recipe("shop", tmp_path / "images")
    text = (folder / "image.yaml").read_text()
    (command,) = re.findall(r"^# +(cp -r .*)$", text, re.MULTILINE)
    subprocess.run(shlex.split(command), check=True)
    (folder / "image.yaml").write_text(text.replace("\nbase: debian-12", "\nbase: own-base"))
    base = load_image(folder).base_recipe()
    assert base.folder == tmp_path / "images/own-base"
    assert (base.files / "etc/cloud/cloud.cfg").is_file()


def test_settings_of_this_python_are_not_the_guests(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """B5: packages compile their modules beside them, wherever this process has its own compiled."""
    monkeypatch.setenv("PYTHONPYCACHEPREFIX", str(tmp_path))
    monkeypatch.setenv("PYTHONDONTWRITEBYTECODE", "1")
    seen: dict[str, str] = {}
    monkeypatch.setattr(bootstrap, "run", lambda *_, env, **__: seen.update(env))
    with scratch(tmp_path) as work:
        bootstrap._mmdebstrap("root", [], work, what="trying it", timeout=1)
    assert (seen["PYTHONPYCACHEPREFIX"], seen["PYTHONDONTWRITEBYTECODE"]) == ("", "")


def test_compiled_modules_that_are_not_of_their_source_are_left_alone(tmp_path: Path) -> None:
    """B5: a script of a package may change a module after it was compiled; links lead elsewhere."""
    folder = tmp_path / "root/usr/lib/python3/dist-packages"
    (folder / "__pycache__").mkdir(parents=True)
    tag = sys.implementation.cache_tag
    before = {}
    for name in ("changed", "linked", "short"):
        source, path = folder / f"{name}.py", folder / "__pycache__" / f"{name}.{tag}.pyc"
        source.write_text(f"NAME = {name!r}\n")
        mode = py_compile.PycInvalidationMode.CHECKED_HASH
        py_compile.compile(str(source), str(path), invalidation_mode=mode, doraise=True)
        if name == "changed":
            source.write_text("NAME = 'CHANGED'\n")
        elif name == "linked":
            path.symlink_to(path.rename(tmp_path / path.name))
        else:
            path.write_bytes(path.read_bytes()[:7])
        before[path] = path.read_bytes()
    assemble._date_bytecode(tmp_path / "root", 1_700_000_000)
    assert {path: path.read_bytes() for path in before} == before


def test_compiled_modules_of_python_are_trusted_by_time_and_size(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """B5: mmdebstrap's have a hash instead; a module that a recipe replaces keeps nothing compiled."""
    folder = tmp_path / "root/usr/lib/python3/dist-packages"
    folder.mkdir(parents=True)
    timestamp = 1_700_000_000
    checked = py_compile.PycInvalidationMode.CHECKED_HASH
    compiled: dict[str, Path] = {}
    for name, changed in (("old", timestamp - 5), ("new", timestamp + 5), ("replaced", timestamp)):
        source = folder / f"{name}.py"
        source.write_text(f"NAME = {name!r}\n")
        os.utime(source, (changed, changed))
        path = folder / "__pycache__" / f"{name}.{sys.implementation.cache_tag}.pyc"
        py_compile.compile(str(source), str(path), invalidation_mode=checked, doraise=True)
        compiled[name] = path
    body = compiled["old"].read_bytes()[16:]
    assemble._date_bytecode(tmp_path / "root", timestamp)
    for name, changed in (("old", timestamp - 5), ("new", timestamp)):
        header = struct.unpack("<III", compiled[name].read_bytes()[4:16])
        assert header == (0, changed, (folder / f"{name}.py").stat().st_size)
    assert compiled["old"].read_bytes()[16:] == body
    files = tmp_path / "files/usr/lib/python3/dist-packages"
    files.mkdir(parents=True)
    (files / "replaced.py").write_text("NAME = 'REPLACED'\n")
    monkeypatch.setattr(os, "chown", Mock())  # the builder is root in its namespace, or thinks so
    assemble._overlay(tmp_path / "files", tmp_path / "root")
    assert [path.exists() for path in compiled.values()] == [True, True, False]
