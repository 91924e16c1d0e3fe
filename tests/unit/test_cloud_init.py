"""H1, E5: cloud-init's verdict, as its versions write it; userData for the guest."""

from __future__ import annotations

import base64
import email
import email.policy
import json
import os
import subprocess
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from pytest_vmss.errors import ModelError
from pytest_vmss.guest.cloud_init import (
    AGAIN,
    AS_ROOT,
    CloudInitResult,
    read_verdict,
    wait_script,
)
from pytest_vmss.guest.keys import generate
from pytest_vmss.guest.seed import USER_DATA_FILE, build_seed
from pytest_vmss.model import keep_secrets, load_document
from pytest_vmss.untrusted import UnreadableError
from tests.models import LOAD_BALANCER, encode, web_model

MARK = "=== pytest-vmss ===\n"


def answer(errors: list[str], stages: dict[str, Any] | None = None, log: str = "") -> str:
    result = {"v1": {"datasource": "DataSourceNoCloud", "errors": errors}}
    status = {"v1": {"datasource": None, "stage": None, **(stages or {})}}
    return f"{json.dumps(result)}\n{MARK}{json.dumps(status)}\n{MARK}{log}"


def test_done_and_disabled() -> None:
    done = CloudInitResult("done", datasource="DataSourceNoCloud")
    assert read_verdict(answer([])) == done
    assert read_verdict(answer([], {"init": {"errors": [], "recoverable_errors": {}}})) == done
    assert read_verdict("disabled\n") == CloudInitResult("disabled")


def test_the_failing_module_is_named() -> None:
    told = "('scripts_user', RuntimeError('Runparts: 1 failures (runcmd) in 1 attempted'))"
    verdict = read_verdict(answer([told], log="x [WARNING]: also\n"))
    assert verdict == CloudInitResult("error", (told,))


def test_degraded_since_23_4() -> None:
    """By stage and level; deprecations are none of it."""
    stages = {
        "init": {"recoverable_errors": {"WARNING": ["Failed at merging in cloud config"]}},
        "modules-final": {"recoverable_errors": {"DEPRECATED": ["old key"], "ERROR": ["no such"]}},
    }
    verdict = read_verdict(answer([], stages))
    assert verdict.status == "degraded"
    assert verdict.problems == (
        "init: Failed at merging in cloud config", "modules-final: no such",
    )  # fmt: skip


@pytest.fixture
def guest() -> Iterator[Path]:
    """A guest's root, which any account can reach, where cloud-init has ended."""
    with tempfile.TemporaryDirectory(prefix="vmss-") as name:
        root = Path(name)
        for folder in (root, root / "run", root / "run/cloud-init", root / "log"):
            folder.mkdir(exist_ok=True)
            folder.chmod(0o755)
        result, status, _ = answer([]).split(MARK)
        (root / "run/cloud-init/result.json").write_text(result)
        (root / "run/cloud-init/status.json").write_text(status)
        (root / "log/cloud-init.log").write_text("x [WARNING]: it was odd\n")
        yield root


def wait(root: Path, *, as_root: bool) -> tuple[int, str]:
    """How the script ends in a guest, as an ordinary user or as root, and what it prints."""
    script = wait_script(as_root=as_root).replace("/run/cloud-init", f"{root}/run/cloud-init")
    script = script.replace("/var/log", f"{root}/log").replace("sleep 0.25", "sleep 0")
    user = None if as_root or os.geteuid() != 0 else 65534
    done = subprocess.run(
        ["/bin/sh", "-c", script],
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
        user=user,
    )
    return done.returncode, done.stdout


def test_an_ordinary_user_reads_the_verdict(guest: Path) -> None:
    code, told = wait(guest, as_root=False)
    assert code == 0
    assert read_verdict(told).problems == ("it was odd",)
    assert wait(guest, as_root=True) == (code, told)
    (guest / "run/cloud-init/result.json").unlink()
    assert wait(guest, as_root=False) == wait(guest, as_root=True) == (AGAIN, "")
    (guest / "run/cloud-init/disabled").touch()
    assert wait(guest, as_root=False) == wait(guest, as_root=True) == (0, "disabled\n")


@pytest.mark.parametrize(
    "path",
    [
        "run/cloud-init",
        "run/cloud-init/result.json",
        "run/cloud-init/status.json",
        "log/cloud-init.log",
    ],
)
def test_what_only_root_may_read_is_asked_for_as_root(guest: Path, path: str) -> None:
    (guest / path).chmod(0)
    assert wait(guest, as_root=False)[0] == AS_ROOT
    (guest / path).chmod(0o700)


@pytest.mark.parametrize("folder", ["cloud", "cloud/data"])
def test_so_is_what_is_a_link_into_a_folder_of_roots(guest: Path, folder: str) -> None:
    """As cloud-init writes it."""
    (guest / "cloud/data").mkdir(parents=True)
    for name in ("result.json", "status.json"):
        link = guest / "run/cloud-init" / name
        link.rename(guest / "cloud/data" / name)
        link.symlink_to(guest / "cloud/data" / name)
    assert wait(guest, as_root=False) == wait(guest, as_root=True)
    (guest / folder).chmod(0o700)
    assert wait(guest, as_root=False)[0] == AS_ROOT
    assert wait(guest, as_root=True)[0] == 0
    (guest / "run/cloud-init/disabled").touch()
    assert wait(guest, as_root=False)[0] == AS_ROOT


def test_without_a_status_root_is_not_sent_for_root(guest: Path) -> None:
    """What is missing is told as unreadable rather than waited for."""
    (guest / "run/cloud-init/status.json").unlink()
    code, told = wait(guest, as_root=True)
    assert code == 0
    with pytest.raises(UnreadableError):
        read_verdict(told)


def test_degraded_before_by_its_log() -> None:
    log = "2026-11-23 06:00:00,123 - util.py[WARNING]: Failed loading yaml blob\nother\n"
    assert read_verdict(answer([], log=log)) == CloudInitResult(
        "degraded", ("Failed loading yaml blob",), "DataSourceNoCloud"
    )


def model_with(user_data: str) -> dict[str, Any]:
    body = web_model()
    body["properties"]["virtualMachineProfile"]["userData"] = user_data
    return body


def test_user_data_is_for_the_guest_alone() -> None:
    """H1, M5: readable from inside, and not in what is shown."""
    model = load_document(model_with(encode("role=web'\n$x")), load_balancer=LOAD_BALANCER).model
    assert "userData" not in json.dumps(model.wire())
    full = model.full()
    assert full["virtualMachineProfile"]["userData"] == encode("role=web'\n$x")
    kept = keep_secrets(full, web_model()["properties"])
    assert kept["virtualMachineProfile"]["userData"] == encode("role=web'\n$x")
    seed = build_seed(
        model, cloud_instance_id="i", computer_name="c", mac="52:54:00:00:00:01",
        host_key=generate("c"), lab_key=generate("lab"), grow=False,
    )  # fmt: skip
    parsed = email.message_from_string(seed.vendor_data, policy=email.policy.default)
    config, hook = parsed.iter_parts()
    assert config.get_content_type() == "text/cloud-config"
    assert hook.get_content_type() == "text/cloud-boothook"
    text = hook.get_content()
    assert USER_DATA_FILE in text
    assert base64.b64decode(text.split("echo ")[1].split(" ")[0]) == b"role=web'\n$x"


@pytest.mark.parametrize(
    ("value", "words"),
    [("not base64 é", "must be base64"), (encode("x" * 65537), "Azure takes 65536 at most")],
)
def test_wrong_user_data_is_refused(value: str, words: str) -> None:
    with pytest.raises(ModelError, match=words):
        load_document(model_with(value), load_balancer=LOAD_BALANCER)
