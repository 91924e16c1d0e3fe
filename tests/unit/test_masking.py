"""M5: what files and pages of a failed test show of a model's secrets."""

from __future__ import annotations

import base64
import html
import json
import pickle
import random
import re
import shlex
import subprocess
import textwrap
import time
import traceback
from collections.abc import Callable, Iterable, Iterator
from typing import cast
from urllib.parse import quote, quote_plus

import pytest

from pytest_vmss import errors
from pytest_vmss.environment.masked_guest import MaskedGuest
from pytest_vmss.environment.masking import mask_lines, masker
from pytest_vmss.guest import Guest
from pytest_vmss.guest.boot_facts import BootFacts
from pytest_vmss.guest.logs import GuestLog
from pytest_vmss.model.document import load_document
from pytest_vmss.untrusted import clean, ending
from tests.models import LOAD_BALANCER, custom_script, encode, web_model

PASSWORD = "Adm1n\"pa\\ss<&>wörd??'s~~"
APOSTROPHE_AND_MARK = "'\""
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


def _masker_of(*secrets: str) -> Callable[[str], str]:
    """Masks the values of protected settings that are no text of a command."""
    model = web_model()
    extension = custom_script("setup", settings={"commandToExecute": "true"})
    extension["properties"]["protectedSettings"] = {
        f"value{index}": secret for index, secret in enumerate(secrets)
    }
    profile = model["properties"]["virtualMachineProfile"]
    profile["extensionProfile"]["extensions"] = [extension]
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
        lambda text: base64.urlsafe_b64encode(text.encode()).decode(),
        lambda text: text.encode().hex(),
        lambda text: text.encode().hex().upper(),
        lambda text: repr(text.encode())[1:],
        lambda text: f"'{repr(APOSTROPHE_AND_MARK + text)[4:]}",
        lambda text: shlex.quote(text).replace("'\"'\"'", r"'\''"),
        lambda text: re.sub("%..", lambda found: found[0].lower(), quote(text)),
        lambda text: re.sub("[<>&]", lambda mark: f"\\u{ord(mark[0]):04x}", json.dumps(text)),
        lambda text: html.escape(text).replace("&#x27;", "&#39;"),
        lambda text: html.escape(text).replace("&#x27;", "&#39;").replace("&quot;", "&#34;"),
        lambda text: html.escape(text).replace("&#x27;", "&apos;"),
        lambda text: html.escape(text).replace("&#x27;", "'"),
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


@pytest.mark.parametrize("before", ["", "u", "us", "user:", "\0"])
@pytest.mark.parametrize("which", SECRETS)
def test_a_secret_in_the_middle_of_what_is_encoded_is_masked(
    masked: Callable[[str], str], which: str, before: str
) -> None:
    """Such as a login in a header, or an entry of a registry's credentials."""
    shown = masked(encode(f"{before}{SECRETS[which]}\n"))
    assert "***" in shown
    assert len(shown) <= len(f"{encode(before)}***{encode(' ')}")


@pytest.mark.parametrize("width", [64, 76])
def test_a_secret_in_lines_of_base64_is_masked(width: int) -> None:
    secret = "".join(chr(33 + index * 7 % 90) for index in range(300))
    lines = textwrap.wrap(encode(secret), width)
    shown = _masker_of(secret)("".join(f"  {line}\n" for line in lines))
    assert [line for line in lines if line in shown] == []


@pytest.mark.parametrize("width", [20, 33, 60, 77])
@pytest.mark.parametrize("write", [str, encode, lambda text: text.encode().hex(" "), quote])
@pytest.mark.parametrize("end", ["\n", "\r\n", "  \n\t "])
def test_a_secret_that_is_split_between_lines_is_masked(
    write: Callable[[str], str], width: int, end: str
) -> None:
    secret = 'a s3cr3t of "some" words, which ends here'
    written = write(f"it says: {secret} aloud, and much more")
    text = end.join(written[at : at + width] for at in range(0, len(written), width))
    shown = "".join(_masker_of(secret)(text).split())
    whole = "".join(written.split())
    assert "***" in shown
    assert len(shown) <= len(whole) - len("".join(write(secret).split())) + 8
    before, _, after = shown.partition("***")
    assert whole.startswith(before)
    assert whole.endswith(after)


def test_a_secret_of_several_lines_is_masked_however_they_end_and_are_indented() -> None:
    hidden = _masker_of("one line\nand the next")
    for text in ("one line\r\nand the next", "one line\n     and the next"):
        assert hidden(f"  {text}\nend") == "  ***\nend"


def test_the_rest_of_a_secret_that_was_cut_off_before_it_is_masked() -> None:
    hidden = _masker_of("correct horse battery staple")
    text = "a correct horse battery staple is told"
    for limit in range(10, 36):
        told = hidden(ending(text, limit))
        assert "staple" not in told
        assert told.endswith(ending(" is told", limit))
    assert hidden("… is told, and… more of it") == "… is told, and… more of it"


def test_secrets_that_overlap_are_both_masked() -> None:
    hidden = _masker_of("abcdefgh", "fghijklm")
    assert hidden("1 abcdefghijklm 2 fghijklm") == "1 *** 2 ***"
    assert hidden("abcdefghabcdefgh") == "******"


def test_a_secret_is_masked_where_control_characters_of_its_were_removed() -> None:
    secret = "line 1\r\nline 2\x1b[1m3"
    assert _masker_of(secret)(f"it says {clean(secret)} aloud") == "it says *** aloud"


def test_what_no_secret_is_stays_although_secrets_are_short() -> None:
    """Neither words, numbers nor digests are taken for the encoded forms of a short secret."""
    hidden = _masker_of("root", "admin1", "AAAAAA", "123456", "aaaaaa")
    numbers = random.Random(1)
    lines = (f"{n} sha256:{numbers.randbytes(32).hex()} {encode(str(n))}\n" for n in range(10_000))
    text = f"root, rooted: administrator {'A' * 5} cm9v YWRtaW\n" + "".join(lines)
    kept = hidden(text)
    assert kept.replace("***", "123456") == text
    assert kept.count("***") == text.count("123456")


def test_what_the_model_shows_anyhow_is_not_hidden() -> None:
    """M5: such as the set's own name, its image, and short words of a protected command."""
    model = web_model()
    profile = model["properties"]["virtualMachineProfile"]
    model["name"] = "web-shop"
    profile["osProfile"]["computerNamePrefix"] = "shop-of-ours"
    extension = custom_script("setup", settings={"app": "checkout service", "version": "1.20.300"})
    extension["properties"]["protectedSettings"] = {
        "set": "web-shop", "host": "shop-of-ours", "app": "checkout", "version": "1.20.300",
        "commandToExecute": "start nginx with a-s3cret of checkout",
    }  # fmt: skip
    profile["extensionProfile"]["extensions"] = [extension]
    hidden = masker([load_document(model, load_balancer=LOAD_BALANCER).model])
    text = "web-shop_0 (shop-of-ours000000) runs checkout 1.20.300 behind nginx: "
    assert hidden(f"{text}a-s3cret") == f"{text}***"


def test_many_secrets_do_not_make_masking_slow() -> None:
    """The time grows with the text alone, not with each way to write each secret."""
    hidden = _masker_of(*(f"s3cret-{number}-{number * 7919 % 10_007}" for number in range(2_000)))
    text = "[    1.234567] systemd[1]: Started the service that says something.\n" * 60_000
    start = time.process_time()
    assert hidden(text) == text
    assert time.process_time() - start < 10


def test_many_beginnings_of_a_secret_do_not_make_masking_slow() -> None:
    """R2: a guest knows its secrets; only what a cut may have ended is compared with them."""
    hidden = _masker_of("Correct-Horse-1")
    start = time.process_time()
    assert hidden("Corre\n" * 200_000 + "Correct-H…") == "Corre\n" * 200_000 + "***…"
    assert time.process_time() - start < 10


def test_what_is_left_of_a_secret_is_hidden_although_it_begins_with_another() -> None:
    """M5: a word of it, say."""
    assert _masker_of("Correct", "Correct-Horse-1")("a Correct-H… Correct") == "a ***… ***"


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


_QUOTED = "s3cr3t-words"
_SAID = f"denied: {_QUOTED}"


def _noted(error: Exception) -> Exception:
    error.add_note(_SAID)
    return error


@pytest.mark.parametrize(
    "error",
    [
        _noted(errors.HostError("it failed")),
        ExceptionGroup("two", [errors.HostError(_SAID), ExceptionGroup("one", [OSError(_SAID)])]),
        OSError(5, _SAID, _SAID),
        subprocess.CalledProcessError(1, ["ssh", _SAID], output=_SAID, stderr=_SAID.encode()),
        json.JSONDecodeError("no JSON", _SAID, 0),
        UnicodeDecodeError("utf-8", _SAID.encode() + b"\xff", 20, 21, "invalid"),
        KeyError({_SAID: [_SAID]}),
        errors.WaitTimeoutError(_SAID, timeout=1, last=_SAID),
        errors.ToolError(_SAID, argv=["ssh", _SAID], returncode=1, stderr=_SAID),
        errors.ViolationError("it failed", violations=[_SAID]),
    ],
    ids=lambda error: type(error).__name__,
)
def test_whatever_an_error_quotes_is_masked(error: Exception) -> None:
    """M5: in its text, its notes, its attributes, and in the members of a group."""
    outer = errors.GuestUnreachableError("it is lost", instance="web_0")
    outer.__context__ = error
    errors.mask_error(outer, lambda text: text.replace(_QUOTED, "***"))
    shown = "".join(traceback.format_exception(outer))
    shown += repr([error, error.args, vars(error)]) + str(getattr(error, "object", ""))
    assert _QUOTED not in shown
    assert "***" in shown


def test_a_masked_error_keeps_its_code_and_its_names() -> None:
    """E5: a secret may be a word of ours."""
    error = errors.ExtensionError(
        "it failed: Provisioning", instance="web_0", extension="web", exit_code=1
    )
    errors.mask_error(error, lambda text: re.sub("Provisioning|web", "***", text))
    assert error.message == "it failed: ***"
    assert (error.code, error.instance) == ("VMExtensionProvisioningError", "web_0")


@pytest.mark.parametrize(
    "error",
    [
        errors.BootError("it failed", instance="web_0", console_tail="panic"),
        errors.ExtensionError("it failed", instance="web_0", extension="a", exit_code=1),
        errors.ModelError([errors.ModelProblem("$", "InvalidParameter", "is wrong")]),
        errors.WaitTimeoutError("it", timeout=1, last="that"),
        errors.ViolationError("it failed", violations=["one"]),
    ],
    ids=lambda error: type(error).__name__,
)
def test_an_error_passes_to_another_process(error: errors.VmssError) -> None:
    """E5: from a pool of processes, for example; with all that it tells."""
    error.add_note("a note")
    passed = pickle.loads(pickle.dumps(error))
    assert type(passed) is type(error)
    assert (str(passed), vars(passed)) == (str(error), vars(error))


class _Talkative:
    """A guest that says its secret wherever it may say anything short."""

    def wait_boot(self, _previous: str | None) -> BootFacts:
        return BootFacts(_SAID, _SAID, _SAID)

    def wake(self) -> str:
        return _SAID

    def logs(self, names: Iterable[str], **_limits: float) -> Iterator[GuestLog]:
        return (GuestLog(name, problem=_SAID) for name in names)


def test_boots_and_logs_that_cannot_be_read_tell_no_secret() -> None:
    """M5, E5: both are stored."""
    guest = MaskedGuest(cast("Guest", _Talkative()), lambda text: text.replace(_QUOTED, "***"))
    logs = list(guest.logs(["journal.log"], timeout=1, each=1))
    shown = repr([guest.wait_boot(None), guest.wake(), logs])
    assert _QUOTED not in shown
    assert shown.count("denied: ***") == 5
