"""B5: recipes and the initramfs."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
from pydantic import ValidationError

from pytest_vmss.errors import ImageError, NotFoundError
from pytest_vmss.image_builder import bootstrap, find_recipes
from pytest_vmss.image_builder.initramfs import build_initramfs
from pytest_vmss.image_builder.recipe import digest_of, load_image


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
