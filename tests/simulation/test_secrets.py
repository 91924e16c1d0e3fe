"""M5: what a suite that fails leaves behind, in whatever way it fails and shows, holds no secret."""

from __future__ import annotations

import base64
import contextlib
import html
import json
import sqlite3
from collections.abc import Iterator
from pathlib import Path
from urllib.parse import quote

import pytest

from pytest_vmss.cli import main
from pytest_vmss.simulation.guest import Behaviour
from tests.models import LOAD_BALANCER, custom_script, web_model
from tests.simulation.conftest import SimulatedLab
from tests.simulation.test_fixture import CONFTEST

SECRET = "s3cr3t0f0urs"
#: What fails: the marker's model is refused, or what comes of it fails within the package.
_SUITE = """
import copy

import pytest

from pytest_vmss.errors import HostError
from pytest_vmss.simulation.guest import SimulatedGuest
from tests.models import LOAD_BALANCER, web_model

SECRET = "-".join(["s3cr3t0f0urs"])
"""
_WAYS = {
    "refused": """
def model():
    body = web_model(capacity=1)
    profile = body["properties"]["virtualMachineProfile"]
    profile["osProfile"]["AdminPassword"] = SECRET
    profile["osProfile"]["admin_username"] = "Not A Name"
    profile["extensionProfile"]["extensions"][0]["properties"]["protected_settings"] = SECRET
    return body

@pytest.mark.vmss(model=model(), load_balancer=LOAD_BALANCER, custom_data=SECRET + "!")
def test_it(scale_set):
    pass
""",
    "host": """
def model():
    body = web_model(capacity=1)
    profile = body["properties"]["virtualMachineProfile"]
    profile["osProfile"]["adminPassword"] = SECRET
    entry = profile["extensionProfile"]["extensions"][0]["properties"]
    entry["settings"] = {"fileUris": ["https://files.example/x.sh?sig=" + SECRET]}
    entry["protectedSettings"] = {"commandToExecute": "login " + SECRET}
    return body

@pytest.mark.vmss(model=model(), load_balancer=LOAD_BALANCER)
def test_it(request, monkeypatch):
    def wait_boot(self, previous):
        raise HostError("libvirt has gone")

    monkeypatch.setattr(SimulatedGuest, "wait_boot", wait_boot)
    request.getfixturevalue("scale_set")
""",
}
#: What a guest prints in its own errors: secrets of the model, in the spellings of programs.
_GUEST = """
import base64, contextlib, json, sqlite3
from pathlib import Path
from urllib.parse import quote

import pytest

from pytest_vmss.errors import CloudInitError, GuestCommandError, KernelPanicError
from pytest_vmss.guest.cloud_init import CloudInitResult
from pytest_vmss.guest.extensions import find_handler
from pytest_vmss.health import Observation
from pytest_vmss.model import Health
from pytest_vmss.model.extension_result import ExtensionResult, Substatus
from pytest_vmss.simulation.guest import SimulatedGuest
from pytest_vmss.simulation.lab import SimulatedLab
from tests.models import LOAD_BALANCER, web_model

PASSWORD = "-".join(["s3cr3t", "f0r", "/", '"', "q&ts"])
BASE64 = base64.b64encode(PASSWORD.encode()).decode()
SPELLINGS = [PASSWORD, BASE64, quote(PASSWORD, safe=""), json.dumps(PASSWORD)[1:-1]]
SAID = "denied: " + " | ".join(SPELLINGS)

def model():
    body = web_model(capacity=1)
    profile = body["properties"]["virtualMachineProfile"]
    text = "#cloud-config\\nchpasswd: {password: '" + PASSWORD + "'}\\n"
    profile["osProfile"]["customData"] = base64.b64encode(text.encode()).decode()
    entry = profile["extensionProfile"]["extensions"][0]["properties"]
    entry["settings"] = {}
    entry["protectedSettings"] = {"commandToExecute": "login '" + PASSWORD + "'"}
    return body

def cloud_init(self):
    try:
        answer = "x: " + SAID
        raise GuestCommandError(answer, instance=self.name, exit_code=1, stderr=answer)
    except GuestCommandError as error:
        raise CloudInitError(
            f"cloud-init ended in error: {SAID}", instance=self.name, errors=[SAID],
            console_tail=SAID, log=Path("console.log"),
        ) from error

def degraded(self):
    return CloudInitResult("degraded", (SAID, "x" * 960 + SAID), SAID)

def boot(self, previous):
    raise KernelPanicError(f"the kernel panicked: {SAID}", instance=self.name, console_tail=SAID)

def extension(self, extension, run, timeout):
    return ExtensionResult.of(
        extension, "error", SAID, handler_message=SAID, exit_code=1,
        version=find_handler(extension.publisher, extension.type).version,
        substatuses=(Substatus(name="a", status="error", message=SAID),),
    )

def probe(self, name):
    return Observation(Health.UNHEALTHY, SAID)

WAYS = {
    "boot": (SimulatedGuest, "wait_boot", boot),
    "cloud-init": (SimulatedGuest, "wait_cloud_init", cloud_init),
    "extension": (SimulatedGuest, "run_extension", extension),
    "probe": (SimulatedLab, "probe", probe),
}

@pytest.fixture
def patch(request, monkeypatch):
    monkeypatch.setattr(*WAYS[request.param])

@pytest.mark.parametrize("patch", WAYS, indirect=True)
@pytest.mark.vmss(model=model(), load_balancer=LOAD_BALANCER)
def test_never_comes_up(patch, scale_set):
    pass

@pytest.mark.parametrize("patch", WAYS, indirect=True)
def test_is_rolled_back(vmss, request, scale_set, patch):
    for path in vmss.paths.folder.rglob("console-*.log"):
        path.write_text(SAID)
    vmss.publish(f"1.{list(WAYS).index(request.node.callspec.params['patch']) + 1}.0")
    upgrade = scale_set.wait_for_upgrade()
    with contextlib.closing(sqlite3.connect(vmss.paths.database)) as database:
        queries = (
            "SELECT message FROM event",
            "SELECT coalesce(error, '') FROM step",
            "SELECT body FROM record WHERE kind != 'model'",
        )
        rows = [row for query in queries for row in database.execute(query)]
    with Path("records.txt").open("a") as file:
        print(*rows, upgrade.explain(), scale_set.os_upgrade_history(), file=file, sep="\\n")
        print(scale_set[0].console.tail(), scale_set[0].instance_view(), file=file)
    print(SAID)
    said = SAID
    assert upgrade.completed, said

test_is_rolled_back = pytest.mark.vmss(model=model(), load_balancer=LOAD_BALANCER)(
    test_is_rolled_back
)

def test_warns(vmss, monkeypatch):
    monkeypatch.setattr(SimulatedGuest, "wait_cloud_init", degraded)
    web = vmss.create(model(), load_balancer=LOAD_BALANCER)
    warned = [event.message for event in vmss.store.events() if "degraded" in event.message]
    assert warned == ["-"]
"""
_OPTIONS = (
    ("-vv", "--showlocals", "--tb=long", "--full-trace"),
    ("--showlocals", "--tb=auto", "-o", "junit_logging=all"),
    ("--tb=native", "-vv"),
    ("--tb=short", "--showlocals", "-rA"),
)


@pytest.mark.parametrize("options", _OPTIONS, ids=" ".join)
@pytest.mark.parametrize("way", _WAYS)
def test_a_failing_suite_shows_no_secret(
    pytester: pytest.Pytester, way: str, options: tuple[str, ...]
) -> None:
    pytester.makeconftest(CONFTEST)
    pytester.makepyfile(_SUITE + _WAYS[way])
    result = pytester.runpytest_inprocess(
        "-p", "no:cacheprovider", "-p", "no:xdist", "--junitxml=junit.xml", *options
    )
    assert sum(result.parseoutcomes().get(end, 0) for end in ("failed", "error", "errors")) == 1
    shown = result.stdout.str() + result.stderr.str() + Path("junit.xml").read_text()
    lines = [line for line in shown.splitlines() if SECRET in line]
    # The suite's own line that makes it.
    assert [line for line in lines if 'SECRET = "-".join(["' not in line] == []


def _spellings(secret: str) -> tuple[str, ...]:
    return (
        secret,
        base64.b64encode(secret.encode()).decode(),
        quote(secret, safe=""),
        json.dumps(secret)[1:-1],
        html.escape(secret),
        # What is left of one that was cut off.
        secret[:8],
    )


@pytest.mark.parametrize("options", _OPTIONS, ids=" ".join)
def test_what_a_guest_prints_of_its_secrets_is_masked(
    pytester: pytest.Pytester, options: tuple[str, ...]
) -> None:
    """M5: in exceptions, events, records, the timeline, JUnit's file and on the terminal."""
    pytester.makeconftest(CONFTEST)
    pytester.makepyfile(_GUEST)
    result = pytester.runpytest_inprocess(
        "-p", "no:cacheprovider", "-p", "no:xdist", "--junitxml=junit.xml",
        "--basetemp=lab", "-o", "tmp_path_retention_policy=all", *options,
    )  # fmt: skip
    assert result.parseoutcomes() == {"failed": 5, "errors": 4}
    left = {
        "terminal": result.stdout.str() + result.stderr.str(),
        **{
            str(path): path.read_text(errors="replace")
            for path in pytester.path.rglob("*")
            if path.is_file() and path.suffix not in (".py", ".pyc")
        },
    }
    assert {Path(name).name for name in left} >= {
        "junit.xml", "timeline.html", "events.jsonl", "summary.txt", "records.txt",
    }  # fmt: skip
    assert "denied: ***" in left["terminal"]
    secret = "-".join(["s3cr3t", "f0r", "/", '"', "q&ts"])
    shown = {
        (name, line[:200])
        for name, text in left.items()
        for line in text.splitlines()
        for spelling in _spellings(secret)
        if spelling in line
    }
    assert shown == set()


_COMPARISONS = {
    "equal": "extension.protected_settings['commandToExecute'] == 'logout'",
    "uri": "extension.settings['fileUris'][0] == 'https://files.example/y'",
    "list": "extension.settings['fileUris'] == ['https://files.example/y']",
    "dict": "extension.protected_settings == {'commandToExecute': 'x'}",
    "in": "'login' not in extension.protected_settings['commandToExecute']",
    "starts": "extension.protected_settings['commandToExecute'].startswith('x')",
    "word": "extension.protected_settings['commandToExecute'].split()[1] == 'x'",
    "format": "f\"{extension.protected_settings['commandToExecute']}\" == 'x'",
    "model": "extension == {}",
    "bytes": "SecretBytes(SECRET.encode()) == b'x'",
    "dataclass": "Row('a', SecretText(SECRET)) == Row('a', SecretText(SECRET + 'x'))",
    "encoded": "SecretText(SECRET).encode() == b'x'",
    "nested": "{'a': [extension.protected_settings]} == {'a': []}",
}


@pytest.mark.parametrize("compared", _COMPARISONS.values(), ids=_COMPARISONS)
def test_a_failed_assertion_shows_no_secret(pytester: pytest.Pytester, compared: str) -> None:
    """pytest takes what is compared apart to explain how it differs."""
    pytester.makepyfile(
        f"""
        from dataclasses import dataclass

        import pytest
        from pytest_vmss.model import load_document
        from pytest_vmss.secrecy import SecretBytes, SecretText
        from tests.models import LOAD_BALANCER, web_model

        SECRET = "-".join(["{SECRET}"])

        @dataclass
        class Row:
            name: str
            secret: str

        @pytest.fixture
        def extension():
            body = web_model(capacity=1)
            profile = body["properties"]["virtualMachineProfile"]
            entry = profile["extensionProfile"]["extensions"][0]["properties"]
            entry["settings"] = {{"fileUris": ["https://files.example/x.sh?sig=" + SECRET]}}
            entry["protectedSettings"] = {{"commandToExecute": "login " + SECRET}}
            return load_document(body, load_balancer=LOAD_BALANCER).model.extensions[0]

        def test_it(extension):
            assert {compared}
        """
    )
    result = pytester.runpytest_inprocess(
        "-p", "no:cacheprovider", "-p", "no:xdist", "-vv", "--tb=short", "--junitxml=junit.xml"
    )
    result.assert_outcomes(failed=1)
    assert SECRET not in result.stdout.str() + Path("junit.xml").read_text()


def test_other_comparisons_are_explained_as_ever(pytester: pytest.Pytester) -> None:
    pytester.makepyfile(
        """
        from pytest_vmss.secrecy import SecretText

        def test_it():
            assert ["one", "two"] == ["one", "too"]
        """
    )
    result = pytester.runpytest_inprocess("-p", "no:cacheprovider", "-p", "no:xdist")
    result.stdout.fnmatch_lines(["*At index 1 diff: 'two' != 'too'*"])


def test_what_a_failed_run_leaves_holds_secrets_in_private_files_alone(
    lab: SimulatedLab, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """M5, M6: searched is everything: files, events, steps, records, tables, history, JSON."""
    lab.publish("1.0.0")
    body = web_model(capacity=2)
    profile = body["properties"]["virtualMachineProfile"]
    profile["osProfile"]["adminPassword"] = SECRET
    profile["osProfile"]["customData"] = base64.b64encode(SECRET.encode()).decode()
    entry = profile["extensionProfile"]["extensions"][0]["properties"]
    entry["settings"] = {"fileUris": [f"https://files.example/x.sh?sig={SECRET}"]}
    entry["protectedSettings"] = {"commandToExecute": f"login {SECRET}"}
    body["tags"] = {"apiToken": SECRET, "owner": "us"}
    web = lab.create(body, load_balancer=LOAD_BALANCER)
    lab.unreachable[f"https://files.example/x.sh?sig={SECRET}"] = "it is gone"
    web.update({"tags": {"apiToken": SECRET + "2"}})
    assert lab.roll(web, "1.1.0").faulted
    lab.unreachable.clear()
    upgrade = lab.roll(web, "1.2.0", Behaviour.UNHEALTHY)
    assert upgrade.faulted

    @contextlib.contextmanager
    def open_lab() -> Iterator[SimulatedLab]:
        yield lab

    for module in ("sets", "upgrades", "operations", "images"):
        monkeypatch.setattr(f"pytest_vmss.cli.{module}.open_lab", open_lab)
    for command in (
        ["show", "web"], ["show", "web", "--json"], ["list"], ["history", "web", "--explain"],
        ["history", "web", "--json"], ["status", "web"], ["show", "nobody"],
    ):  # fmt: skip
        with contextlib.suppress(SystemExit):
            main(command)
    shown = "".join(capsys.readouterr()) + upgrade.explain() + repr(web.model) + repr(web.record)
    shown += json.dumps(
        [web.instance_view(), web.virtual_machines(), web.os_upgrade_history(), web.model.wire()]
    )
    database = sqlite3.connect(lab.paths.database)
    rows = [
        row
        for query in (
            "SELECT message FROM event",
            "SELECT coalesce(error, '') FROM step",
            "SELECT body FROM record WHERE kind != 'model'",
        )
        for row in database.execute(query)
    ]
    (model, *_) = database.execute("SELECT body FROM record WHERE kind = 'model'").fetchone()
    database.close()
    assert SECRET in model  # what is searched for is there
    for told in (
        "web_0",
        "apiToken",
        "owner",
        "***",
        "rolled back",
        "Unreachable",
        "there is no scale set",
    ):
        assert told in shown
    assert len(rows) > 100
    spellings = (SECRET, base64.b64encode(SECRET.encode()).decode())
    for spelling in spellings:
        assert spelling not in shown
        assert [row for row in rows if spelling in row[0]] == []
        for path in lab.settings.state_dir.rglob("*"):
            if path.is_file() and spelling.encode() in path.read_bytes():
                assert path.stat().st_mode & 0o077 == 0, path
                assert path.name.startswith((lab.paths.database.name, "seed")), path


def test_what_a_secure_parameter_made_stays_secret_in_the_store(lab: SimulatedLab) -> None:
    """M5, P1: in a tag and a setting too, after it was stored, changed and read again."""
    lab.publish("1.0.0")
    body = web_model(capacity=1, automatic=False, extensions=False)
    body["tags"] = {"plain": "shown", "secret": "[concat('x-', parameters('pw'))]"}
    del body["properties"]["virtualMachineProfile"]["networkProfile"]
    run = {"commandToExecute": "[concat('echo ', parameters('pw'))]"}
    body["properties"]["virtualMachineProfile"]["extensionProfile"] = {
        "extensions": [custom_script("a", settings=run)]
    }
    resource = {"type": "Microsoft.Compute/virtualMachineScaleSets", **body}
    document = {"parameters": {"pw": {"type": "securestring"}}, "resources": [resource]}
    web = lab.create(document, parameters="pw=S3cr3tXyzzy")
    web.update({"properties": {"overprovision": False}})
    web.scale(2)
    lab.environment.revisions._revisions.clear()  # as another process reads it
    shown = [repr(web.model), web.model.wire(), web.virtual_machines(), lab.store.events()]
    assert "S3cr3t" not in str(shown)
    assert web.model.wire()["tags"] == {"plain": "shown", "secret": "**********"}
    assert web.model.full()["tags"]["secret"] == "x-S3cr3tXyzzy"
    assert web.model.tags["secret"] == "x-S3cr3tXyzzy"
