"""M5: what files and pages of a failed test show of a model's secrets."""

from __future__ import annotations

import base64
import html
import json
import shlex
from collections.abc import Callable
from urllib.parse import quote, quote_plus

import pytest

from pytest_vmss.model.document import load_document
from pytest_vmss.report.masking import mask_lines, masker
from tests.models import LOAD_BALANCER, custom_script, encode, web_model

PASSWORD = 'Adm1n"pa\\ss<&>wörd'
KEY = "A1B2C3D4E5F6G7H8" * 4
SECRETS = {
    "adminPassword": PASSWORD,
    "protected setting": 'pr0tected"Välue<&>',
    "token in custom data": "customdata-s3cr3t",
    "userData": "userdata-s3cr3t",
    "line of a key": KEY,
}


@pytest.fixture(scope="module")
def masked() -> Callable[[str], str]:
    model = web_model()
    profile = model["properties"]["virtualMachineProfile"]
    profile["osProfile"]["adminPassword"] = PASSWORD
    token = f"#cloud-config\nwrite_files:\n - token: {SECRETS['token in custom data']}\n"
    profile["osProfile"]["customData"] = encode(token)
    profile["userData"] = encode(SECRETS["userData"])
    extension = custom_script("setup", settings={})
    command = f"setup {SECRETS['protected setting']} <<END\n{KEY}\nEND\n"
    extension["properties"]["protectedSettings"] = {"commandToExecute": command}
    profile["extensionProfile"]["extensions"].append(extension)
    return masker([load_document(model, load_balancer=LOAD_BALANCER).model])


@pytest.mark.parametrize(
    "write",
    [
        str,
        json.dumps,
        lambda text: json.dumps(text, ensure_ascii=False),
        repr,
        shlex.quote,
        html.escape,
        quote,
        lambda text: quote(text, safe=""),
        quote_plus,
        encode,
        lambda text: base64.b64encode(text.encode()).decode().rstrip("="),
    ],
)
@pytest.mark.parametrize("which", SECRETS)
def test_a_declared_secret_is_masked_however_a_program_writes_it(
    masked: Callable[[str], str], which: str, write: Callable[[str], str]
) -> None:
    written = write(SECRETS[which])
    shown = masked(f"[   1.0] it says {written} aloud")
    core = written.strip("\"'=")
    assert core not in shown
    assert core[:8] not in shown
    assert core[-8:] not in shown


def test_no_place_in_a_long_text_splits_a_secret() -> None:
    """A line is searched as a whole, and a block with the name above it."""
    for before in range(23_900, 24_100):
        assert "hunter" not in mask_lines("a " * (before // 2) + " password=hunter2hunter2 end\n")
        lines = "a line\n" * (before // 7) + "b" * (before % 7)
        assert "hunter" not in mask_lines(f"{lines}\npassword: |\n  hunter2\n  hunter3\nuser: x\n")


def test_a_long_text_without_secrets_is_shown_as_it_is() -> None:
    text = "a line that says nothing\n" * 10_000 + "b" * 1_000_000 + "\n  c\n"
    assert mask_lines(text) == text


def test_a_line_too_long_to_be_searched_is_hidden_alone() -> None:
    text = f"before\n{'a' * 100_000} password=hunter2\nafter\n"
    assert mask_lines(text) == "before\n<a text of 100017 characters>\nafter\n"
