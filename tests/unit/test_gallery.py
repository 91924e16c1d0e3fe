"""B1, B2, B4: what may be published, and what stays as it was."""

from __future__ import annotations

import hashlib
import os
import sqlite3
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from pytest_vmss.errors import ConflictError, ImageError, LabError, ModelError, NotFoundError
from pytest_vmss.gallery import Gallery, ImageStore, publication
from pytest_vmss.gallery.qcow2 import inspect
from pytest_vmss.host.locks import wait_for_lock
from pytest_vmss.host.process import run
from pytest_vmss.model import ImageReference
from pytest_vmss.model.image_version import ImageVersionRef
from pytest_vmss.settings import ImageLimits
from pytest_vmss.store import VersionRecord


@pytest.fixture
def gallery(images: ImageStore) -> Gallery:
    return Gallery(images)


def qcow2(path: Path, size: str = "1M", *options: str) -> Path:
    run(["qemu-img", "create", "-q", "-f", "qcow2", *options, path, size], what="an image")
    return path


def stored(images: ImageStore) -> list[str]:
    return (
        sorted(path.name for path in images._files.folder.glob("*"))
        if images._files.folder.exists()
        else []
    )


def test_publish_stores_by_digest_read_only(
    gallery: Gallery, images: ImageStore, tmp_path: Path
) -> None:
    source = qcow2(tmp_path / "a.qcow2")
    record = gallery.publish("web", "1.0.0", source)
    path = images.path_of(record)
    assert path.name == f"{record.digest}.qcow2"
    assert path.read_bytes() == source.read_bytes()
    assert path.stat().st_mode & 0o222 == 0
    source.write_bytes(b"changed afterwards")
    assert images.path_of(record).read_bytes() != source.read_bytes()


def test_latest_is_by_number_and_not_excluded(gallery: Gallery, tmp_path: Path) -> None:
    """B2."""
    for number, version in enumerate(("1.9.0", "1.10.0", "1.2.11")):
        gallery.publish("web", version, qcow2(tmp_path / version, f"{number + 1}M"))
    assert gallery.versions("web") == ["1.2.11", "1.9.0", "1.10.0"]
    assert gallery.latest("web") == "1.10.0"
    gallery.publish("web", "2.0.0", qcow2(tmp_path / "x", "9M"), exclude_from_latest=True)
    assert gallery.latest("web") == "1.10.0"


def test_a_published_version_never_changes(
    gallery: Gallery, images: ImageStore, tmp_path: Path
) -> None:
    first = gallery.publish("web", "1.0.0", qcow2(tmp_path / "a"))
    assert gallery.publish("web", "1.0.0", tmp_path / "a") == first  # the same again is fine
    with pytest.raises(ConflictError, match="never changes"):
        gallery.publish("web", "1.0.0", qcow2(tmp_path / "b", "2M"))
    assert stored(images) == [f"{first.digest}.qcow2"]


@pytest.mark.parametrize("bad", ["text", "empty", "missing", "backing", "data-file", "cut", "raw"])
def test_a_bad_file_is_refused_and_nothing_is_stored(
    gallery: Gallery, images: ImageStore, tmp_path: Path, bad: str
) -> None:
    """B4."""
    path, words = tmp_path / "bad", "not a qcow2"
    match bad:
        case "text":
            path.write_text("this is no image")
        case "empty":
            path.touch()
        case "missing":
            words = "cannot be read"
        case "backing":
            qcow2(tmp_path / "base")
            run(
                ["qemu-img", "create", "-q", "-f", "qcow2", "-F", "qcow2", "-b", "base", path],
                what="an overlay",
            )
            words = "backing file"
        case "data-file":
            qcow2(path, "1M", "-o", f"data_file={tmp_path / 'data'}")
            words = "another file"
        case "cut":
            path.write_bytes(qcow2(tmp_path / "whole").read_bytes()[:60])
            words = "not a usable qcow2"
        case "raw":
            path.write_bytes(bytes(4096))
            words = "boot sector"
    with pytest.raises(ImageError, match=words):
        gallery.publish("web", "1.0.0", path, raw=bad == "raw")
    assert stored(images) == []
    assert gallery.versions("web") == []


def test_a_raw_disk_becomes_a_qcow2(gallery: Gallery, images: ImageStore, tmp_path: Path) -> None:
    """B4."""
    disk = tmp_path / "disk.raw"
    disk.write_bytes(bytes(510) + b"\x55\xaa" + bytes(1024 * 1024 - 512))
    record = gallery.publish("web", "1.0.0", disk, raw=True)
    assert record.virtual_size == 1024 * 1024
    assert images.path_of(record).read_bytes()[:4] == b"QFI\xfb"


@pytest.mark.parametrize(
    "version",
    ["1.0", "1.0.0.0", "latest", "01.0.0", "1.0.-1", "1.0.0/x", "1.0.1\n", "\n1.0.1", "\u0661.0.0"],
)
def test_a_wrong_version_number(gallery: Gallery, tmp_path: Path, version: str) -> None:
    with pytest.raises(ImageError, match=r"Major\.Minor\.Patch"):
        gallery.publish("web", version, qcow2(tmp_path / "a"))


@pytest.mark.parametrize("name", ["a/b", "", "..", "-a", "a" * 81, "a\n"])
def test_a_wrong_name(images: ImageStore, tmp_path: Path, name: str) -> None:
    """M6."""
    with pytest.raises(ImageError, match="is not a valid image definition name"):
        Gallery(images).publish(name, "1.0.0", qcow2(tmp_path / "a"))
    with pytest.raises(ImageError, match="is not a valid gallery name"):
        Gallery(images, name)


@pytest.mark.parametrize("given", [5, None, ["a"], b"a", "a\0b"])
def test_arguments_of_no_use_are_refused(
    gallery: Gallery, images: ImageStore, tmp_path: Path, given: Any
) -> None:
    """A6: by an error that says what was expected, before anything is stored."""
    path = qcow2(tmp_path / "a")
    identifier: Any = "a" if given is None else given
    asked: list[Callable[[], object]] = [
        lambda: gallery.publish(given, "1.0.0", path),
        lambda: gallery.publish("web", given, path),
        lambda: gallery.publish("web", "1.0.0", given),
        lambda: gallery.publish("web", "1.0.0", path, raw=given),
        lambda: gallery.publish("web", "1.0.0", path, exclude_from_latest=given),
        lambda: gallery.publish("web", "1.0.0", path, identifier=identifier),
        lambda: gallery.publish("web", "1.0.0", path, identifier=(given, "b", "c")),
        lambda: gallery.delete(given, "1.0.0"),
        lambda: gallery.delete("web", given),
        lambda: gallery.versions(given),
        lambda: gallery.latest(given),
    ]
    for ask in asked:
        with pytest.raises((ImageError, ModelError)):
            ask()
    assert stored(images) == []


def test_a_file_that_was_changed_is_not_used(
    gallery: Gallery, images: ImageStore, tmp_path: Path
) -> None:
    """B1: checked on use."""
    record = gallery.publish("web", "1.0.0", qcow2(tmp_path / "a"))
    path = images.path_of(record)
    path.chmod(0o600)
    path.write_bytes(b"QFI\xfb and something else")
    with pytest.raises(ImageError, match="was changed"):
        images.path_of(record)
    path.unlink()
    with pytest.raises(ImageError, match="is gone"):
        images.path_of(record)


def test_a_version_of_before_holes_were_skipped(
    gallery: Gallery, images: ImageStore, tmp_path: Path
) -> None:
    """B1: its digest is of all bytes; it is checked so, and is the same version still."""
    source = qcow2(tmp_path / "a")
    record = gallery.publish("web", "1.0.0", source)
    plain = hashlib.sha256(source.read_bytes()).hexdigest()
    old = record.model_copy(update={"digest": plain, "algorithm": "sha256"})
    images.path_of(record).rename(images._files.folder / f"{plain}.qcow2")
    images._store.put(VersionRecord.model_validate(old.model_dump(exclude={"algorithm"})))
    assert gallery.publish("web", "1.0.0", source) == old
    assert stored(images) == [f"{plain}.qcow2"]
    path = images.path_of(old)
    with pytest.raises(ConflictError):
        gallery.publish("web", "1.0.0", qcow2(tmp_path / "b", "2M"))
    path.chmod(0o600)
    path.write_bytes(qcow2(tmp_path / "b", "2M").read_bytes())
    with pytest.raises(ImageError, match="was changed"):
        images.path_of(old)


def test_addresses(gallery: Gallery, images: ImageStore, tmp_path: Path) -> None:
    gallery.publish("web", "1.0.0", qcow2(tmp_path / "a"), identifier=("Acme", "Shop", "12-gen1"))
    by_id = ImageReference(id="/x/galleries/Gallery/images/Web")
    assert images.resolve(images.image_of(by_id)).version == "1.0.0"
    exact = ImageReference(id="/x/galleries/gallery/images/web/versions/2.0.0")
    with pytest.raises(NotFoundError, match=r"there are: 1\.0\.0"):
        images.resolve(images.image_of(exact))
    by_name = ImageReference(publisher="Acme", offer="Shop", sku="12-gen1", version="latest")
    assert images.image_of(by_name) == ImageVersionRef("gallery", "web", None)
    any_case = ImageReference(publisher="ACME", offer="shop", sku="12-Gen1", version="Latest")
    assert images.image_of(any_case) == ImageVersionRef("gallery", "web", None)
    other = ImageReference(publisher="Acme", offer="Shop", sku="13", version="latest")
    with pytest.raises(NotFoundError, match="Acme:Shop:12-gen1"):
        images.image_of(other)
    with pytest.raises(NotFoundError, match="published are: gallery/web"):
        images.resolve(ImageVersionRef("gallery", "nothing"))
    gallery.delete("web", "1.0.0")
    with pytest.raises(NotFoundError, match="published are: none"):
        images.resolve(ImageVersionRef("gallery", "web"))


def test_one_version_published_twice_at_once(
    gallery: Gallery, images: ImageStore, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """B1: of two contents one is published, and the other refused, whoever is first."""
    together = threading.Barrier(2)

    def wait(path: Path, *, name: str, limits: ImageLimits) -> int:
        together.wait(30)
        return inspect(path, name=name, limits=limits)

    monkeypatch.setattr(publication, "inspect", wait)
    published: list[str] = []
    refused: list[ConflictError] = []

    def publish(source: Path) -> None:
        try:
            published.append(gallery.publish("web", "1.0.0", source).digest)
        except ConflictError as error:
            refused.append(error)

    threads = [
        threading.Thread(target=publish, args=(qcow2(tmp_path / size, size),))
        for size in ("1M", "2M")
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert (len(published), len(refused)) == (1, 1)
    assert [record.digest for record in images.versions("gallery", "web")] == published
    assert stored(images) == [f"{published[0]}.qcow2"]


def test_what_killed_publications_left_is_removed(
    gallery: Gallery, images: ImageStore, tmp_path: Path
) -> None:
    """Q1: and only that: not what another process is writing, not what is recorded."""
    record = gallery.publish("web", "1.0.0", qcow2(tmp_path / "a"))
    path = images.path_of(record)
    (images._files.folder / "dead.part").write_bytes(b"half an image")
    (images._files.folder / "dead.part").chmod(0o444)
    # Killed after it had its name, and before it was recorded; and after that.
    lost = images._files.folder / f"{'0' * 64}.qcow2"
    lost.write_bytes(b"x")
    os.link(lost, images._files.folder / "lost.part")
    os.link(path, images._files.folder / "done.part")
    with wait_for_lock(images._files.folder / "alive.part", what="writes", timeout=1):
        gallery.publish("web", "1.1.0", qcow2(tmp_path / "b", "2M"))
        names = stored(images)
        assert "alive.part" in names
        assert len(names) == 3
        assert lost.name not in names
    assert images.path_of(record) == path


def test_a_publication_that_cannot_be_recorded_leaves_nothing(
    gallery: Gallery, images: ImageStore, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Q1."""

    def full(_: object) -> None:
        raise sqlite3.OperationalError("database or disk is full")

    with monkeypatch.context() as now:
        now.setattr(publication.Publication, "_record", lambda *_: full(None))
        with pytest.raises(LabError, match="disk is full"):
            gallery.publish("web", "1.0.0", qcow2(tmp_path / "a"))
    assert stored(images) == []
    assert gallery.versions("web") == []
    gallery.publish("web", "1.0.0", tmp_path / "a")


def test_generation_and_provisioning_belong_to_the_definition(
    gallery: Gallery, images: ImageStore, tmp_path: Path
) -> None:
    """O5: a version has those of its definition, and one that contradicts is refused."""
    source = qcow2(tmp_path / "a")
    first = gallery.publish("web", "1.0.0", source, hyper_v_generation="v2", provisioning="azure")
    assert (first.hyper_v_generation, first.provisioning) == ("V2", "Azure")
    second = gallery.publish("web", "1.1.0", source)
    assert (second.hyper_v_generation, second.provisioning) == ("V2", "Azure")
    contradictions: list[dict[str, Any]] = [
        {"hyper_v_generation": "V1"},
        {"provisioning": "NoCloud"},
    ]
    for contradiction in contradictions:
        with pytest.raises(ConflictError, match="belong to the definition") as refused:
            gallery.publish("web", "1.2.0", source, **contradiction)
        assert refused.value.code == "PropertyChangeNotAllowed"
        with pytest.raises(ConflictError, match="belong to the definition"):
            gallery.define("web", **contradiction)
    assert gallery.versions("web") == ["1.0.0", "1.1.0"]
    assert len(stored(images)) == 1


def test_without_properties_a_definition_is_as_before(gallery: Gallery, tmp_path: Path) -> None:
    """O5: generation 1 and NoCloud, which every image was published as."""
    record = gallery.publish("web", "1.0.0", qcow2(tmp_path / "a"))
    assert (record.hyper_v_generation, record.provisioning) == ("V1", "NoCloud")
    assert (
        VersionRecord.model_validate_json(
            record.model_dump_json(exclude={"hyper_v_generation", "provisioning"})
        )
        == record
    )


def test_a_definition_before_its_first_version(
    gallery: Gallery, images: ImageStore, tmp_path: Path
) -> None:
    """O5: it can be replaced and deleted while it has no versions."""
    gallery.define("web", hyper_v_generation="V1")
    gallery.define("web", hyper_v_generation="V2", identifier=("p", "o", "s"))
    source = qcow2(tmp_path / "a")
    with pytest.raises(ConflictError, match="V1 was asked for"):
        gallery.publish("web", "1.0.0", source, hyper_v_generation="V1")
    assert gallery.publish("web", "1.0.0", source).hyper_v_generation == "V2"
    assert images.definition("gallery", "WEB").publisher == "p"
    with pytest.raises(ConflictError, match="has versions"):
        gallery.delete_definition("web")
    gallery.delete("web", "1.0.0")
    gallery.delete_definition("web")
    with pytest.raises(NotFoundError):
        gallery.delete_definition("web")
    gallery.publish("web", "1.0.0", source)
    gallery.delete("web", "1.0.0")
    # A definition that only a deleted version made binds no later one.
    assert gallery.publish("web", "2.0.0", source, hyper_v_generation="V2")


@pytest.mark.parametrize("given", [5, "V3", "Gen2", b"V1", ["V1"]])
def test_properties_that_no_definition_can_have(
    gallery: Gallery, images: ImageStore, tmp_path: Path, given: Any
) -> None:
    """A6, O5."""
    source = qcow2(tmp_path / "a")
    for ask in (
        lambda: gallery.publish("web", "1.0.0", source, hyper_v_generation=given),
        lambda: gallery.publish("web", "1.0.0", source, provisioning=given),
        lambda: gallery.define("web", hyper_v_generation=given),
        lambda: gallery.define("web", provisioning=given),
    ):
        with pytest.raises(ModelError):
            ask()
    assert stored(images) == []
