"""L2: the command line's messages for bad input; nothing is made."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace

import pytest
from click.testing import CliRunner, Result

from pytest_vmss.api.lab import Lab
from pytest_vmss.cli import main
from pytest_vmss.cli.demo import example
from pytest_vmss.errors import NotFoundError
from pytest_vmss.host.process import run
from pytest_vmss.image_builder import find_recipes
from pytest_vmss.model import load_document
from pytest_vmss.settings import Settings
from tests.models import LOAD_BALANCER, web_model

Vmss = Callable[..., Result]


@pytest.fixture
def vmss_command(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Vmss:
    monkeypatch.setenv("VMSS_STATE_DIR", str(tmp_path / "state"))
    Lab.open(Settings()).close()
    return lambda *arguments: CliRunner().invoke(main, [str(word) for word in arguments])


def test_help_names_every_command(vmss_command: Vmss) -> None:
    text = vmss_command("--help").output
    for command in (
        "image", "create", "list", "show", "ssh", "console", "upgrade", "history", "delete",
        "reap", "doctor", "demo",
    ):  # fmt: skip
        assert f"  {command} " in text


def test_help_finds_words_that_no_heading_has(vmss_command: Vmss) -> None:
    result = vmss_command("help", "application", "health")
    assert result.exit_code == 0
    assert "    vmss help health  (reference)" in result.output.splitlines()
    assert "## " in vmss_command("help", "health").output
    nothing = vmss_command("help", "zeppelin", "health")
    assert nothing.exit_code == 1
    assert "`vmss help` lists them" in nothing.output


@pytest.mark.parametrize("name", ["a/b", "../x", "", "x" * 33])
def test_a_lab_with_a_bad_name(vmss_command: Vmss, name: str) -> None:
    result = vmss_command("--lab", name, "list")
    assert result.exit_code == 1
    assert "cannot name a lab" in result.output


def test_not_a_qcow2(vmss_command: Vmss, tmp_path: Path) -> None:
    path = tmp_path / "image"
    path.write_text("no image")
    result = vmss_command("image", "publish", "web", "1.0.0", path)
    assert result.exit_code == 1
    assert "is not a qcow2 image" in result.output
    assert "qemu-img convert" in result.output
    assert vmss_command("image", "list").output == ""


def test_generation_and_provisioning_are_given_and_shown(
    vmss_command: Vmss, tmp_path: Path
) -> None:
    """O5."""
    path = tmp_path / "web.qcow2"
    run(["qemu-img", "create", "-q", "-f", "qcow2", path, "1M"], what="an image")
    defined = vmss_command("image", "define", "web", "--hyper-v-generation", "v2")
    assert "web  hyperVGeneration V2  provisioning NoCloud" in defined.output
    asked = ("image", "publish", "web", "1.0.0", path, "--no-upgrade")
    refused = vmss_command(*asked, "--provisioning", "Azure")
    assert refused.exit_code == 1
    assert "provisioning NoCloud, and provisioning Azure was asked for" in refused.output
    assert vmss_command(*asked).exit_code == 0
    assert "V2  NoCloud" in vmss_command("image", "list").output
    shown = vmss_command("image", "show", "web", "1.0.0").output
    assert "hyperVGeneration V2, provisioning NoCloud" in shown


def test_a_set_of_an_image_that_is_not_published(vmss_command: Vmss, tmp_path: Path) -> None:
    model, balancer = tmp_path / "m.json", tmp_path / "lb.json"
    model.write_text(json.dumps(web_model()))
    balancer.write_text(json.dumps(LOAD_BALANCER))
    result = vmss_command("create", model)
    assert "--load-balancer" in result.output
    result = vmss_command("create", model, "--load-balancer", balancer)
    assert result.exit_code == 1
    assert "vmss image publish" in result.output
    result = vmss_command("create", model, "--load-balancer", balancer, "--name", "a/b")
    assert "$.name" in result.output
    assert vmss_command("list").output == ""


@pytest.mark.parametrize("command", ["show", "history", "upgrade", "cancel", "delete"])
def test_a_set_that_is_not_there(vmss_command: Vmss, command: str) -> None:
    result = vmss_command(command, "nothing")
    assert result.exit_code == 1
    assert "there is no scale set 'nothing'" in result.output
    assert "Traceback" not in result.output


def test_nothing_to_reap(vmss_command: Vmss) -> None:
    assert vmss_command("reap").output == (
        "nothing was left behind\nlabs on this host: 1; `vmss lab list` shows them\n"
    )


def told(result: Result, words: str) -> None:
    """A command failed with a message, and nothing else."""
    assert result.exit_code in (1, 2)
    assert isinstance(result.exception, SystemExit)
    assert words in result.output.replace("\n", " ")
    assert "Traceback" not in result.output


@pytest.mark.parametrize("given", ["nan", "inf", "-inf", "1e30", "1e12", "-1e12"])
def test_a_token_that_cannot_expire(vmss_command: Vmss, tmp_path: Path, given: str) -> None:
    """Nothing is stored then."""
    (tmp_path / "x.sh").write_text("echo")
    told(vmss_command("blob", "put", tmp_path / "x.sh", f"--expires-in={given}"), "a token cannot")
    told(vmss_command("blob", "list"), "there is no blob")
    vmss_command("blob", "put", tmp_path / "x.sh")
    told(vmss_command("blob", "url", "x.sh", f"--expires-in={given}"), "a token cannot expire in")


@pytest.mark.parametrize("name", ["", "../x", "ä", "\udcff"])
def test_a_blob_with_a_bad_name(vmss_command: Vmss, tmp_path: Path, name: str) -> None:
    (tmp_path / "x.sh").write_text("echo")
    told(vmss_command("blob", "put", tmp_path / "x.sh", "--name", name), "is no name for a blob")


@pytest.mark.parametrize("kind", ["fifo", "folder", "device", "large", "missing"])
def test_files_that_cannot_be_read_as_such(vmss_command: Vmss, tmp_path: Path, kind: str) -> None:
    """R3: no pipe is waited for, and no device read without end."""
    path = tmp_path / kind
    if kind == "fifo":
        os.mkfifo(path)
    elif kind == "folder":
        path.mkdir()
    elif kind == "device":
        path = Path("/dev/zero")
    elif kind == "large":
        with path.open("wb") as file:
            file.truncate(2 << 30)
    for arguments in (
        ("blob", "put", path),
        ("create", path),
        ("create", tmp_path / "m.json", "--custom-data", path),
        ("update", "web", path, "--custom-data", path),
        ("run-command", "web", "0", path),
    ):
        result = vmss_command(*arguments)
        assert result.exit_code in (1, 2), arguments
        assert isinstance(result.exception, SystemExit), arguments


def test_a_script_that_is_no_text(vmss_command: Vmss, tmp_path: Path) -> None:
    (tmp_path / "script").write_bytes(b"\xff\xfe")
    told(vmss_command("run-command", "web", "0", tmp_path / "script"), "is not UTF-8 at byte 0")


@pytest.mark.parametrize(
    "text", ["{", "[]", "null", '"x"', '{"id": 1}', '{"id": "a/b"}', "[" * 99999, "\0"]
)
def test_a_lab_whose_file_is_broken(vmss_command: Vmss, tmp_path: Path, text: str) -> None:
    """It is told of; other labs are listed and reaped as ever."""
    assert vmss_command("list").exit_code == 0
    path = tmp_path / "state" / "labs" / "default" / "lab.json"
    whole = path.read_text()
    for broken in (text, whole.replace('"lasting"', "[1]"), whole.replace('"network"', '"no"')):
        path.write_text(broken)
        result = vmss_command("list")
        assert result.exit_code == 1
        assert isinstance(result.exception, SystemExit)
        assert "default" in vmss_command("reap").output
        assert path.read_text() == broken
    Lab.open(Settings(), "other").close()
    assert vmss_command("--lab", "other", "list").exit_code == 0


@pytest.mark.parametrize("arguments", ["--help", "list", "blob --help", "image list"])
def test_output_that_cannot_be_written(tmp_path: Path, arguments: str) -> None:
    """A full disk is told of in a line."""
    with Path("/dev/full").open("w") as full:
        done = subprocess.run(
            [sys.executable, "-c", "from pytest_vmss.cli import main; main()", *arguments.split()],
            stdout=full, stderr=subprocess.PIPE, text=True, check=False, timeout=60,
            env={**os.environ, "VMSS_STATE_DIR": str(tmp_path)},
        )  # fmt: skip
    assert "Traceback" not in done.stderr
    assert "Exception ignored" not in done.stderr
    if "help" in arguments:
        assert done.returncode == 1
        assert "No space left" in done.stderr


@pytest.mark.parametrize("encoding", ["ascii", "latin-1"])
def test_a_terminal_that_lacks_a_character_gets_an_escape(tmp_path: Path, encoding: str) -> None:
    """It got no answer, but an error of the encoding, and status 1 whatever the answer was."""
    name = "größe → web.json"
    (tmp_path / name).write_text(json.dumps(web_model()))
    command = [sys.executable, "-c", "from pytest_vmss.cli import main; main()", "validate", name]
    balancer = tmp_path / "lb.json"
    balancer.write_text(json.dumps(LOAD_BALANCER))
    done = subprocess.run(
        [*command, "--load-balancer", balancer.name],
        cwd=tmp_path,
        env={**os.environ, "PYTHONIOENCODING": encoding},
        capture_output=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    assert done.stderr == b""
    assert name.encode(encoding, "backslashreplace") in done.stdout


@pytest.mark.parametrize("columns", ["0", "00", ""])
def test_a_width_of_nothing_is_none(tmp_path: Path, columns: str) -> None:
    """Some terminals and CI systems set COLUMNS to 0; the table had no characters."""
    done = subprocess.run(
        [sys.executable, "-c", "from pytest_vmss.cli import main; main()", "cache", "list"],
        env={**os.environ, "COLUMNS": columns, "VMSS_CACHE_DIR": str(tmp_path)},
        capture_output=True,
        text=True,
        check=True,
    )
    assert "last used" in done.stdout


@pytest.mark.parametrize(("used", "told"), [(3600, "1970-01-01 01:00"), (2**40, "damaged")])
def test_the_times_of_the_cache_are_of_one_zone(tmp_path: Path, used: int, told: str) -> None:
    """L2: whatever the host's is, and whatever time a file claims to have."""
    folder = tmp_path / "checkpoints" / ("0" * 32)
    folder.mkdir(parents=True)
    os.utime(folder, (used, used))
    done = subprocess.run(
        [sys.executable, "-c", "from pytest_vmss.cli import main; main()", "cache", "list"],
        env={**os.environ, "TZ": "Asia/Tokyo", "COLUMNS": "200", "VMSS_CACHE_DIR": str(tmp_path)},
        capture_output=True,
        text=True,
        check=True,
    )
    assert "last used (UTC)" in done.stdout
    assert told in done.stdout


def test_a_page_needs_a_file(vmss_command: Vmss) -> None:
    """An empty name, such as that of a variable that is not set, is the working directory's."""
    with pytest.MonkeyPatch.context() as patched:
        patched.setattr(Lab, "scale_set", lambda _, name: SimpleNamespace(name=name))
        result = vmss_command("history", "web", "--html", "")
    assert result.exit_code == 1
    assert ". is a folder, and cannot be written; name a file" in result.output


def test_protecting_from_nothing_is_a_mistake(vmss_command: Vmss) -> None:
    result = vmss_command("protect", "web", "0")
    assert result.exit_code == 2
    assert "say what to change: --[no-]from-scale-in" in result.output


def test_a_relative_folder_where_there_is_none(tmp_path: Path) -> None:
    gone = tmp_path / "gone"
    gone.mkdir()
    code = (
        "import os, sys; os.chdir(sys.argv.pop()); os.rmdir(os.getcwd()); "
        "from pytest_vmss.cli import main; main()"
    )
    done = subprocess.run(
        [sys.executable, "-c", code, "list", str(gone)],
        stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, check=False, timeout=60,
        env={**os.environ, "VMSS_STATE_DIR": "relative"},
    )  # fmt: skip
    assert done.returncode == 1
    assert "working directory that is gone" in done.stdout
    assert "Traceback" not in done.stdout


def test_what_the_demo_takes_from_the_example_is_there() -> None:
    """`make demo` in a checkout; the wheel's copy is looked at by the ring of real VMs."""
    document = load_document(example("template.yaml"))
    assert document.balancer is not None
    assert b"#cloud-config" in example("custom-data.yaml").read_bytes()
    assert (find_recipes() / "web").is_dir()
    with pytest.raises(NotFoundError, match=r"no 'examples/web/nothing\.yaml'"):
        example("nothing.yaml")
