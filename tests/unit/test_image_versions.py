"""B1, C3: an image version has one name, in whatever case its gallery and definition are written."""

from __future__ import annotations

import dataclasses

import pytest

from pytest_vmss.model.image_version import ImageVersionRef


def test_names_are_compared_in_any_case() -> None:
    one, other = ImageVersionRef("Shop", "Web", "1.0.0"), ImageVersionRef("shop", "WEB", "1.0.0")
    assert one.key == other.key
    assert one.definition_key == dataclasses.replace(other, version="2.0.0").definition_key
    assert one.key != dataclasses.replace(other, version="2.0.0").key


def test_it_is_told_as_people_write_it() -> None:
    assert str(ImageVersionRef("shop", "web", "1.0.0")) == "shop/web 1.0.0"
    assert str(ImageVersionRef("shop", "web")) == "shop/web"


def test_it_never_changes() -> None:
    with pytest.raises(dataclasses.FrozenInstanceError):
        ImageVersionRef("shop", "web").version = "1.0.0"  # type: ignore[misc]
