"""R3, M5: the host's programs are bounded in time and output, and leave nothing behind."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import psutil
import pytest

from pytest_vmss.errors import ToolError
from pytest_vmss.host.process import run
from tests.processes import wait_until_ended, with_argument


def shell(text: str, **options: object) -> bytes:
    return run(["sh", "-c", text], what="trying it", **options)  # type: ignore[arg-type]


def test_what_is_said_both_ways() -> None:
    big = b"x" * 3_000_000
    assert run(["cat"], what="it", stdin=big) == big
    assert run(["true"], what="it", stdin=big) == b""
    assert shell("exec >&- 2>&-; sleep 0.1") == b""
    with pytest.raises(ToolError, match="failed with status 3: oops") as failed:
        shell("echo oops >&2; exit 3")
    assert failed.value.returncode == 3
    with pytest.raises(ToolError, match="failed with status -9"):
        shell("kill -9 $$")


def test_endless_output_is_stopped() -> None:
    with pytest.raises(ToolError, match="wrote more than its limit of 1 MiB of output"):
        run(["yes"], what="it", output_mib=1)
    with pytest.raises(ToolError, match="ran longer than its limit of 1 s") as failed:
        shell("yes >&2", timeout=1)
    assert len(failed.value.stderr) <= 2000


@pytest.mark.parametrize("end", ["exit 0", "exit 1", "exec sleep 60"])
def test_nothing_that_it_has_started_survives(end: str) -> None:
    mark = f"60.{os.getpid()}{len(end)}"
    try:
        shell(f"sleep {mark} & {end}", timeout=1)
    except ToolError:
        assert end != "exit 0"
    for process in with_argument(mark):
        wait_until_ended(process.pid)


def test_who_holds_its_pipes_keeps_nobody_waiting() -> None:
    begun = time.monotonic()
    assert shell("echo done; setsid sleep 5.25 &") == b"done\n"
    assert time.monotonic() - begun < 4
    for process in with_argument("5.25"):
        process.kill()


def test_a_daemon_runs_on() -> None:
    mark = f"61.{os.getpid()}"
    shell(f"sleep {mark} &", daemon=True)
    (process,) = with_argument(mark)
    process.kill()


def test_a_program_gets_what_it_needs_of_the_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    """M5: and no secrets of others."""
    monkeypatch.setenv("MY_SECRET_TOKEN", "s3cr3t")
    names = (
        "https_proxy", "VMSS_DEBIAN_MIRROR", "LC_ALL", "FAKEROOTKEY", "XDG_RUNTIME_DIR",
        "PYTHONUSERBASE", "PYTHONNOUSERSITE", "PYTHONPYCACHEPREFIX", "PYTHONSAFEPATH", "TMP",
        "TEMP", "PERL5LIB", "MTOOLSRC", "LOCALE_ARCHIVE", "QEMU_MODULE_DIR", "NIX_SSL_CERT_FILE",
        "GCONV_PATH", "CURL_CA_BUNDLE", "CONDA_PREFIX",
    )  # fmt: skip
    for name in names:
        monkeypatch.setenv(name, "kept")
    told = shell("env", env={"OWN": "given"}).decode()
    assert "s3cr3t" not in told
    assert told.count("=kept\n") == len(names)
    assert "OWN=given\n" in told


def test_grace_is_for_cleaning_up(tmp_path: Path) -> None:
    with pytest.raises(ToolError, match="ran longer"):
        shell(f"trap 'touch {tmp_path}/clean; exit' TERM; sleep 60 & wait", timeout=0.5, grace=5)
    assert (tmp_path / "clean").exists()


@pytest.mark.parametrize("where", ["", ">&2"])
def test_what_is_said_while_cleaning_up_is_taken(tmp_path: Path, where: str) -> None:
    """A broken pipe would end it half-way."""
    clean = f"yes | head -c 300000 {where} && touch {tmp_path}/clean; exit 1"
    with pytest.raises(ToolError, match="ran longer"):
        shell(f"trap '{clean}' TERM; sleep 60 & wait", timeout=0.5, grace=5)
    assert (tmp_path / "clean").exists()


def test_a_second_interruption_still_kills(tmp_path: Path) -> None:
    """Whoever is impatient leaves nothing behind either."""
    mark = f"62.{os.getpid()}"
    code = (
        "import signal, sys; from pytest_vmss.host.process import run\n"
        # A shell starts what it runs in the background with this signal ignored.
        "signal.signal(signal.SIGINT, signal.default_int_handler)\n"
        "run(['bash', '-c', sys.argv[1]], what='it', grace=30)"
    )
    script = (
        f"exec 2>/dev/null; trap 'touch {tmp_path}/term' TERM; touch {tmp_path}/up; "
        f"while :; do sleep {mark}; done"
    )
    caller = subprocess.Popen(
        [sys.executable, "-c", code, script], stderr=subprocess.DEVNULL, start_new_session=True
    )
    try:
        for sign in ("up", "term"):
            end_at = time.monotonic() + 20
            while not (tmp_path / sign).exists() and time.monotonic() < end_at:
                time.sleep(0.02)
            time.sleep(0.3)  # it has started it, and waits for it
            caller.send_signal(signal.SIGINT)
        caller.wait(10)
        for process in with_argument(mark):
            wait_until_ended(process.pid)
        assert with_argument(mark) == []
    finally:
        caller.kill()
        caller.wait()
        for process in with_argument(mark):
            psutil.Process(process.ppid()).kill()
            process.kill()


def test_who_ignores_ended_children_can_run_programs() -> None:
    """As after `nohup` in some services: the kernel keeps no status."""
    before = signal.signal(signal.SIGCHLD, signal.SIG_IGN)
    try:
        assert shell("sleep 0.1; echo done") == b"done\n"
        with pytest.raises(ToolError, match="ran longer"):
            shell("sleep 60", timeout=0.2)
    finally:
        signal.signal(signal.SIGCHLD, before)


def test_what_cannot_be_started_is_told() -> None:
    with pytest.raises(ToolError, match="cannot be started"):
        run(["true", "a\0b"], what="it")
    with pytest.raises(ToolError, match="cannot be started"):
        run(["true"], what="it", cwd=Path("/nonexistent"))
