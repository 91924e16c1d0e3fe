"""P5: custom data is taken as a file, bytes, text or base64, and no message shows it."""

from __future__ import annotations

import base64
import traceback
from pathlib import Path
from typing import Any

import pytest

from pytest_vmss.api.custom_data import beside, encode_custom_data
from pytest_vmss.errors import ModelError

CONTENT = b"#cloud-config\n{}\n"
ENCODED = base64.b64encode(CONTENT).decode()


@pytest.fixture(autouse=True)
def _here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "custom-data.yaml").write_bytes(CONTENT)
    (tmp_path / "abcd").write_bytes(CONTENT)


@pytest.mark.parametrize(
    "given",
    [
        Path("custom-data.yaml"),
        "custom-data.yaml",
        "abcd",  # a file, although it is base64 too
        CONTENT,
        CONTENT.decode(),
        ENCODED,
    ],
)
def test_each_way_to_give_it(given: Any) -> None:
    encoded = encode_custom_data(given)
    assert encoded == ENCODED
    assert ENCODED not in repr(encoded)


def test_text_of_one_line_and_none() -> None:
    assert encode_custom_data("#!/bin/true") == base64.b64encode(b"#!/bin/true").decode()
    assert encode_custom_data(None) is None


@pytest.mark.parametrize(
    ("given", "problem"),
    [
        ("no-such-file.yaml", "a string that is not base64, and no file has that name"),
        ("role=secret", "must be a path, bytes, an object, or a string"),
        (Path("no-such-file.yaml"), "no-such-file.yaml cannot be read: No such file"),
        (Path(), "cannot be read: .*give a regular file of at most 64 KiB"),
        (b"secret" * 20000, "must be at most 65536 bytes"),
        ("#secret" * 20000, "must be at most 65536 bytes"),
        (5, "must be a path, bytes, an object, or a string"),
        ("x" * 5001, "must be a path, bytes, an object, or a string"),
        ("a\0", "must be a path, bytes, an object, or a string"),
    ],
)
def test_what_it_cannot_be(given: Any, problem: str) -> None:
    with pytest.raises(ModelError, match=problem) as refused:
        encode_custom_data(given)
    assert "secret" not in "".join(traceback.format_exception(refused.value))


def test_a_file_too_large_is_not_read_whole(tmp_path: Path) -> None:
    with (tmp_path / "large").open("wb") as file:
        file.truncate(1 << 30)
    with pytest.raises(ModelError, match="large cannot be read"):
        encode_custom_data(tmp_path / "large")


def test_beside(tmp_path: Path) -> None:
    assert beside("abcd", tmp_path) == tmp_path / "abcd"
    assert beside(Path("abcd"), tmp_path) == tmp_path / "abcd"
    for other in ("missing", "x" * 5000, "a\0b"):
        assert beside(other, tmp_path) is None
