"""L2: each command that README and docs tell to type is run, and ends as they say.

``vmss`` meets one simulated lab; other programs are real. What cannot run here is in ``NOT_RUN``
with the reason, and is checked as far as it can be. The tutorial's is in ``test_tutorial.py``.
"""

from __future__ import annotations

import ast
import importlib.util
import itertools
import json
import os
import re
import shlex
import shutil
import subprocess
import sys
import tomllib
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from types import SimpleNamespace
from typing import Any, NamedTuple

import click
import pytest
from click.testing import CliRunner, Result

from pytest_vmss.api.instance import Instance
from pytest_vmss.api.scale_set import ScaleSet
from pytest_vmss.cli import base, images, main, sets, upgrades
from pytest_vmss.settings import Settings
from pytest_vmss.simulation.hypervisor import SimulatedHypervisor
from pytest_vmss.simulation.lab import SimulatedLab
from tests.models import LOAD_BALANCER, node_type, web_model, with_application_health
from tests.simulation import suites
from tests.simulation.documents import ROOT, blocks
from tests.simulation.test_documented_fragments import template
from tests.simulation.test_documented_suites import make_images
from tests.simulation.typed import PAGES, in_blocks, in_sentences, in_the_table
from tests.unit.test_documented_commands import is_missing_file, problem

#: What is typed for a word in capitals, unless the command says otherwise.
GIVEN = {
    "NAME": "web", "SET": "web", "ID": "0", "CAPACITY": "4", "VERSION": "1.0.0",
    "FILE": "out/web-1.1.0.qcow2", "PATH": "out/web-1.1.0.qcow2", "MODEL": "other.json",
    "CHANGE": "change.yaml",
}  # fmt: skip


class World:
    """A folder with what the pages take for granted, and the command line on a simulated lab.

    Args:
        folder: The working directory.
        settings: Where labs are.
        patch: Puts the simulation in place of what is real.
    """

    def __init__(self, folder: Path, settings: Settings, patch: pytest.MonkeyPatch) -> None:
        self.folder = folder
        self.settings = settings
        for place, name, value in suites.patches():
            patch.setattr(place, name, value, raising=False)
        self.lab = suites.Lab.open(settings)
        patch.setattr(base, "Lab", SimpleNamespace(open=lambda *_: self.lab))
        patch.setattr(self.lab, "close", lambda: None)
        patch.setattr(images, "describe", lambda *_: None)
        patch.setattr(sets, "subprocess", SimpleNamespace(run=self._log_in))
        patch.setattr(upgrades, "_look", self._ctrl_c)
        patch.setattr(Instance, "run_command", self._run_command)
        patch.chdir(folder)
        self._write()

    def _write(self) -> None:
        make_images(self.folder / "out")
        bodies = {
            "web.json": web_model(),
            "other.json": with_application_health(web_model("other", capacity=1)),
            "lb.json": LOAD_BALANCER,
            "cluster.json": node_type(2, name="nodes"),
            "azuredeploy.json": template(),
            "azuredeploy.parameters.json": {"unused": "x", "instanceCount": 2},
            "new-token.yaml": {"virtualMachineProfile": {"userData": "bmV3"}},
        }
        for name, body in bodies.items():
            (self.folder / name).write_text(json.dumps(body))
        (change,) = (
            block.text for block in blocks("docs/how-to.md") if "change.yaml" in block.text
        )
        (self.folder / "change.yaml").write_text(change)
        (self.folder / "setup.sh").write_text("true\n")
        (self.folder / "server.py").write_text("")
        for name in ("images", "examples"):
            shutil.copytree(ROOT / name, self.folder / name)
        shutil.copy(self.folder / GIVEN["FILE"], self.folder / "IN")
        disk, vhd = self.folder / GIVEN["FILE"], self.folder / "web-1.0.0.vhd"
        subprocess.run(
            ["qemu-img", "convert", "-O", "vpc", "-o", "subformat=fixed", disk, vhd], check=True
        )

    @staticmethod
    def _log_in(argv: list[str], *, check: bool) -> subprocess.CompletedProcess[str]:
        """In place of ssh: prints how it was called."""
        assert not check
        click.echo(shlex.join(argv))
        return subprocess.CompletedProcess(argv, 0)

    @staticmethod
    def _run_command(_: Instance, script: str) -> dict[str, Any]:
        """In place of a guest's shell: says what it was given."""
        return {"value": [{"code": "ProvisioningState/succeeded", "message": f"ran {script}"}]}

    @staticmethod
    def _ctrl_c(_: float) -> None:
        raise KeyboardInterrupt

    def vmss(self, *words: str) -> Result:
        """Runs the command; what it asks is answered with yes."""
        return CliRunner().invoke(main, words, prog_name="vmss", input="y\n")

    def follow(self, command: str, case: Case) -> None:
        """Types a command, and checks what comes of it."""
        case.before(self)
        given = {**GIVEN, **case.given}
        words = [given.get(word, word) for word in shlex.split(command)]
        done = self.vmss(*words[1:])
        assert done.exit_code == 0, f"{command}\n{done.output}\n{done.exception!r}"
        assert re.search(case.says, done.output, re.MULTILINE), f"{command}\n{done.output}"

    def shell(self, script: str) -> str:
        """Runs a script in the folder, with ``vmss`` at hand; returns what it prints."""
        program = self.folder / "bin/vmss"
        program.parent.mkdir(exist_ok=True)
        program.write_text(
            f"#!{sys.executable}\nfrom pytest_vmss.cli import main\nmain(prog_name='vmss')\n"
        )
        program.chmod(0o755)
        done = subprocess.run(
            ["bash", "-ec", script],
            cwd=self.folder,
            env=os.environ | {
                "PATH": f"{program.parent}:{os.environ['PATH']}", "PYTHONPATH": str(ROOT)
            },
            capture_output=True,
            text=True,
            check=False,
        )  # fmt: skip
        assert done.returncode == 0, f"{script}\n{done.stderr}"
        return done.stdout

    def web(self) -> ScaleSet:
        """The set ``web``; made if there is none."""
        for found in self.lab.scale_sets():
            if found.name == "web":
                if found.unfinished:
                    found.resume()
                return found
        self.image()
        body = web_model()
        body["properties"]["automaticRepairsPolicy"] = {"enabled": True}
        return self.lab.create(body, load_balancer=LOAD_BALANCER, health_timeout=20)

    def roll(self) -> None:
        """Publishes the next version, which is run by ``web``."""
        count = len(self.lab.gallery().versions("web"))
        self.lab.roll(self.web(), f"1.{count}.0")

    def image(self) -> None:
        """A first version of the image ``web``."""
        if not self.lab.gallery().versions("web"):
            self.lab.gallery().publish("web", "1.0.0", self.folder / "out/web-1.0.0.qcow2")


def nothing(_: World) -> None:
    """The lab is empty, or as the commands before left it."""


def image(world: World) -> None:
    """There is an image ``web``, and no set."""
    for found in world.lab.scale_sets():
        found.delete()
    world.image()


def ready(world: World) -> None:
    """The set ``web`` runs."""
    world.web()


def saved(world: World) -> None:
    """It has a checkpoint."""
    world.web().checkpoint()


def stored(world: World) -> None:
    """There is a file for guests."""
    world.lab.blobs.put("setup.sh", world.folder / "setup.sh")


def other_lab(world: World) -> None:
    """There is another lab, which no process has open."""
    world.web()
    SimulatedLab.open(world.settings, "old").close()


def upgraded(world: World) -> None:
    """An upgrade of ``web`` has completed."""
    web = world.web()
    if not any(entry.completed for entry in web.history()[:1]):
        world.roll()


def interrupted(world: World) -> None:
    """An upgrade of ``web`` was killed half-way."""
    world.web()
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(SimulatedHypervisor, "start", _killed)
        with pytest.raises(_KilledError):
            world.roll()


class _KilledError(BaseException):
    """Ends an operation as a kill of its process does."""


def _killed(*_: object) -> None:
    raise _KilledError


class Case(NamedTuple):
    """How a command is run.

    Attributes:
        says: What its output has, as a regular expression.
        before: Brings about what the page takes for granted.
        given: What is typed for words in capitals, where it is not as in ``GIVEN``.
    """

    says: str = ""
    before: Callable[[World], None] = ready
    given: Mapping[str, str] = {}


_LAB = {"NAME": "default"}
_KEY = {"NAME": "setup.sh"}
_SHOP = {"NAME": "shop"}

#: Each ends with status 0.
RUN: dict[str, Case] = {
    "vmss --lab NAME console web 0": Case(given=_LAB),
    "vmss --lab NAME history SET --explain": Case("no upgrade of 'web' yet", given=_LAB),
    "vmss --lab NAME ssh SET ID": Case("azureuser@127", given=_LAB),
    "vmss --lab NAME ssh web 0": Case("azureuser@127", given=_LAB),
    "vmss --version": Case(r"vmss, version \d", nothing),
    "vmss blob list": Case("^setup.sh$", stored),
    "vmss blob put PATH": Case("^http://.*/setup.sh", given={"PATH": "setup.sh"}),
    "vmss blob put setup.sh --expires-in 300": Case("^http://.*/setup.sh"),
    "vmss blob url NAME": Case("^http://.*/setup.sh", stored, _KEY),
    "vmss blob url setup.sh": Case("^http://.*/setup.sh", stored),
    "vmss cache list": Case("last used", nothing),
    "vmss cache prune": Case("0 removed", nothing),
    "vmss cancel NAME": Case("is cancelled with: .* resume web", interrupted),
    "vmss checkpoint NAME": Case("checkpoint: Completed"),
    "vmss completion bash": Case("_VMSS_COMPLETE", nothing),
    "vmss console NAME ID": Case(),
    "vmss console SET ID": Case(),
    "vmss create MODEL": Case("other_0 .*Succeeded", image),
    "vmss create azuredeploy.json -p azuredeploy.parameters.json": Case("web_1 .*Succeeded", image),
    "vmss create azuredeploy.json -p azuredeploy.parameters.json -p instanceCount=3 --name web": Case(
        "web_2 .*Succeeded", image
    ),
    "vmss create cluster.json --approver http://127.0.0.1:8080/approve": Case(
        "nodes_1 .*Succeeded", image
    ),
    "vmss create examples/web/template.yaml --custom-data examples/web/custom-data.yaml": Case(
        r"web_1 .*Succeeded[^\0]*load balancer: http://127", image
    ),
    "vmss deallocate NAME": Case("deallocate: Completed"),
    "vmss delete NAME": Case("Delete 'web', its 3 VMs"),
    "vmss delete web": Case(r"Delete 'web', its \d VMs"),
    "vmss delete-instances NAME ID": Case("web_0 .*Succeeded", given={"ID": "1"}),
    "vmss help": Case(r"how-to\n *Use your own", nothing),
    "vmss history NAME": Case(r"web: 1.\d.0 → 1.\d.0 *Completed", upgraded),
    "vmss history NAME --explain": Case(r"upgrade of web to 1.\d.0: Completed", upgraded),
    "vmss history NAME --html FILE": Case("written: web.html", upgraded, {"FILE": "web.html"}),
    "vmss history SET --explain": Case(r"upgrade of web to 1.\d.0: Completed", upgraded),
    "vmss history web --explain": Case("upgrade of web to 1.1.0: Completed"),
    "vmss image build NAME": Case(r"/built-1.0.0-\S+[^\0]*/built-1.1.0", nothing),
    "vmss image build web 1.0.0": Case("^/.*/built-1.0.0-.*qcow2$", nothing),
    "vmss image define NAME": Case("gallery/new  hyperVGeneration V1", nothing, {"NAME": "new"}),
    "vmss image inspect FILE": Case("format +qcow2", nothing),
    "vmss image list": Case("gallery/web 1.0.0", image),
    "vmss image new NAME": Case("vmss image build shop 1.0.0", nothing, _SHOP),
    "vmss image publish NAME 1.0.0 FILE": Case("published gallery/shop 1.0.0", nothing, _SHOP),
    "vmss image publish NAME VERSION PATH": Case("published gallery/shop 1.0.0", nothing, _SHOP),
    "vmss image publish web 1.0.0 PATH": Case(
        "published gallery/web 1.0.0", nothing, {"PATH": "out/web-1.0.0.qcow2"}
    ),
    "vmss image publish web 1.0.0 web-1.0.0.vhd --provisioning Azure": Case(
        "published gallery/web 1.0.0", nothing
    ),
    "vmss image publish web 1.1.0 PATH": Case("web: 1.0.0 → 1.1.0 *Completed"),
    "vmss image show NAME 1.0.0": Case("gallery/web 1.0.0", image),
    "vmss image show NAME VERSION": Case("gallery/web 1.0.0", image),
    "vmss lab delete NAME": Case("Delete the lab 'old'", other_lab, {"NAME": "old"}),
    "vmss lab list": Case("default .*web"),
    "vmss lab show": Case("set: +web, 3 instances"),
    "vmss list": Case("web  Succeeded  3 instances"),
    "vmss protect NAME ID --from-scale-in --from-scale-set-actions": Case(),
    "vmss protect web 0 --from-scale-set-actions": Case(),
    "vmss reap": Case("nothing was left behind", nothing),
    "vmss redeploy NAME": Case("redeploy: Completed"),
    "vmss reimage NAME": Case("reimage: Completed"),
    "vmss reimage web 0": Case("reimage: Completed"),
    "vmss repair NAME": Case("nothing to repair"),
    "vmss restart NAME": Case("restart: Completed"),
    "vmss restart web 0": Case("restart: Completed"),
    "vmss restore NAME": Case("restore: Completed", saved),
    "vmss resume NAME": Case(r"web: .* → 1.\d.0 *Completed", interrupted),
    "vmss resume web": Case(r"web: .* → 1.\d.0 *Completed", interrupted),
    "vmss run-command NAME ID SCRIPT": Case("ran true", given={"SCRIPT": "setup.sh"}),
    "vmss scale NAME CAPACITY": Case("web_3 .*Succeeded"),
    "vmss scale web 5": Case("web_4 .*Succeeded"),
    "vmss set-approver NAME": Case(),
    "vmss set-orchestration-service-state NAME --action Suspend": Case("Suspended"),
    "vmss show NAME": Case("web_2 .*Succeeded"),
    "vmss ssh NAME ID": Case("azureuser@127"),
    "vmss ssh web 0": Case("azureuser@127"),
    "vmss start NAME": Case("start: Completed"),
    "vmss status NAME": Case('"code": "Completed"', upgraded),
    "vmss stop NAME": Case("stop: Completed"),
    "vmss update --no-upgrade web new-token.yaml": Case("bring it to them with: vmss update-inst"),
    "vmss update NAME CHANGE": Case("bring it to them with: vmss update-instances web"),
    "vmss update web change.yaml": Case("bring it to them with: vmss update-instances web"),
    "vmss update-instances NAME": Case("Completed"),
    "vmss update-instances web": Case("Completed"),
    "vmss upgrade NAME": Case(r"web: 1.\d.0 → 1.\d.0 *Completed"),
    "vmss upgrade-extensions NAME": Case("extension-upgrade *Completed"),
    "vmss validate FILE": Case("^valid", nothing, {"FILE": "other.json"}),
    "vmss validate MODEL": Case("^valid", nothing),
    "vmss validate azuredeploy.json -p azuredeploy.parameters.json": Case("^valid", nothing),
    "vmss validate model.json": Case("^valid", nothing),
    "vmss validate model.json --load-balancer lb.json": Case("^valid", nothing),
    "vmss validate template.yaml": Case("^valid", nothing),
    "vmss validate template.yaml --custom-data custom-data.yaml": Case("^valid", nothing),
    "vmss watch": Case("", ready),
}

#: Commands of other programs, and what they print; run by a shell.
SHELL = {
    'eval "$(vmss completion bash)"': "",
    "qemu-img convert -O qcow2 IN OUT": "",
    "qemu-system-x86_64 --version": "QEMU emulator version",
    "virsh --version": r"^\d+\.\d+",
}

#: Commands that are run by tests of their own.
ELSEWHERE = {
    "make demo": "tests/nightly/test_demo.py::test_make_demo",
    "pytest": "tests/simulation/test_documented_suites.py::test_an_example",
    "pytest -n 3": "tests/simulation/test_documented_suites.py::test_on_several_workers",
    "pytest examples/etcd": "tests/vm/test_examples.py::test_an_example",
    "vmss doctor": "tests/simulation/test_documented_shell.py::test_the_doctor",
    "vmss demo": "tests/nightly/test_demo.py::test_make_demo",
}


def is_a_target(words: list[str]) -> None:
    """Of the Makefile; what make would do is printed, and not done."""
    done = subprocess.run(
        ["make", "--dry-run", *words[1:]], cwd=ROOT, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr


def is_set_up(words: list[str]) -> None:
    """By ``scripts/setup``, from Debian's packages of these names."""
    listed = re.search(r'^packages="(.*?)"', (ROOT / "scripts/setup").read_text(), re.M | re.S)
    assert listed
    assert set(words[2:]) <= set(listed[1].split())


def is_installed(words: list[str]) -> None:
    """From PyPI: this package, and what the tests are installed with."""
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    lock = (ROOT / "requirements-dev.lock").read_text()
    for name in words[2:]:
        assert name in {project["name"], "httpx"} or f"\n{name}==" in lock


def is_azures(words: list[str]) -> None:
    """As the reference of Azure's command line has it."""
    known = {
        "vmss show": {"-g", "-n"},
        "network lb show": {"-g", "-n"},
        "disk grant-access": {"--resource-group", "--name", "--duration-in-seconds"},
        "bicep build": {"--file"},
    }
    words = words[1 : words.index(">") if ">" in words else None]
    options = {word for word in words if word.startswith("-")}
    command = " ".join(itertools.takewhile(lambda word: not word.startswith("-"), words))
    assert options <= known[command]


def is_a_benchmark(words: list[str]) -> None:
    """A module that can be found."""
    assert len(words) == 3
    assert importlib.util.find_spec(words[2])


def is_a_test(words: list[str]) -> None:
    """A file of tests, and a part of the name of one of them."""
    _, _, _, file, *options = words
    names = re.findall(r"^def (test_\w+)", (ROOT / file).read_text(), re.MULTILINE)
    assert set(options) <= {"-s", "-k", options[-1] if options else ""}
    assert not options or any(options[-1] in name for name in names)


#: First words of what is not run here: why, and what is checked of it.
NOT_RUN: dict[str, tuple[str, Callable[[list[str]], None]]] = {
    "apt-get install": ("changes the host", is_set_up),
    "az": ("needs an account of Azure's", is_azures),
    "make": ("sets the host up, then runs all tests, this one among them", is_a_target),
    "sudo make": ("the same", lambda words: is_a_target(words[1:])),
    "pip install": ("needs a network", is_installed),
    "python -m benchmarks": ("takes minutes, most of them real VMs", is_a_benchmark),
    ".venv/bin/python -m pytest": ("is one of the rings", is_a_test),
}


def reason(command: str) -> str:
    """First words of ``NOT_RUN`` that a command begins with; none if it is run."""
    if command in ELSEWHERE:
        return ""
    return next((words for words in NOT_RUN if re.match(rf"{words}[ .]", command + " ")), "")


def told(page: str) -> list[str]:
    """The whole commands of a page; in a sentence a part of one may name a command."""
    found = [*in_blocks(page), *(each for each in in_sentences(page) if is_whole(each))]
    if page == "docs/reference.md":
        found += [command for command, _ in in_the_table()]
    return list(dict.fromkeys(found))


def is_whole(command: str) -> bool:
    if re.fullmatch(r"vmss( --(?!version)\S+( \S+)?)*|az( \w+)+|apt-get install", command):
        return False
    error = problem(command) if command.startswith("vmss ") else None
    return error is None or (
        is_missing_file(error) and not isinstance(error, click.MissingParameter)
    )


@pytest.fixture
def world(memory: Path, settings: Settings, monkeypatch: pytest.MonkeyPatch) -> Iterator[World]:
    folder = memory / "project"
    folder.mkdir()
    monkeypatch.setenv("VMSS_STATE_DIR", str(settings.state_dir))
    monkeypatch.setenv("VMSS_CACHE_DIR", str(settings.cache_dir))
    made = World(folder, settings, monkeypatch)
    yield made
    made.lab.destroy()


@pytest.fixture
def settings(memory: Path) -> Settings:
    return Settings(state_dir=memory / "state", cache_dir=memory / "cache")


def test_each_is_run_or_listed() -> None:
    """And nothing is listed that no page tells."""
    every = {command: page for page in PAGES for command in told(page)}
    for command, page in every.items():
        known = command in {*RUN, *SHELL, *ELSEWHERE} or "<<" in command or reason(command)
        assert known, f"{page}: {command}"
    assert set(every) >= {*RUN, *SHELL, *ELSEWHERE}
    assert {reason(command) for command in every} >= set(NOT_RUN)


@pytest.mark.parametrize("page", PAGES)
def test_commands_of_vmss(world: World, monkeypatch: pytest.MonkeyPatch, page: str) -> None:
    """In their order, on one lab."""
    if page.startswith("examples/"):
        monkeypatch.chdir(world.folder / Path(page).parent)
    for command in told(page):
        if command in RUN:
            world.follow(command, RUN[command])


def test_the_doctor(world: World) -> None:
    """Status 1 if something is lacking, with the command that mends it."""
    done = world.vmss("doctor")
    lacking = re.findall("^lacking .*\n(.*)", done.output, re.MULTILINE)
    assert done.exit_code == bool(lacking), done.output
    assert all("mend it: " in line for line in lacking)
    assert re.search("^ok +qemu-img: /", done.output, re.MULTILINE)


def test_commands_for_a_shell(world: World) -> None:
    for command, says in SHELL.items():
        done = world.shell(command)
        assert re.search(says, done), f"{command}\n{done}"
    assert (world.folder / "OUT").read_bytes().startswith(b"QFI\xfb")


def test_a_service_of_ones_own(world: World) -> None:
    """The how-to's block with a here-document makes an image that can be built."""
    (script,) = (command for command in told("docs/how-to.md") if "<<" in command)
    assert world.vmss("image", "new", "shop").exit_code == 0
    world.shell(script)
    files = world.folder / "images/shop/files"
    wanted = files / "etc/systemd/system/multi-user.target.wants/shop.service"
    assert "ExecStart=/usr/bin/python3 /opt/shop/server.py" in wanted.read_text()
    assert (files / "opt/shop/server.py").is_file()
    assert world.vmss("image", "build", "shop").exit_code == 0


@pytest.mark.parametrize("words", NOT_RUN)
def test_what_is_not_run_is_checked(words: str) -> None:
    for page in PAGES:
        for command in told(page):
            if reason(command) == words:
                NOT_RUN[words][1](shlex.split(command))


def test_what_is_run_elsewhere_has_a_test() -> None:
    for test in ELSEWHERE.values():
        file, _, name = test.partition("::")
        tree = ast.parse((ROOT / file).read_text())
        assert name in {node.name for node in tree.body if isinstance(node, ast.FunctionDef)}


def test_the_vagrantfile_tells_what_there_is() -> None:
    """Vagrant and its boxes are nowhere here: its shell is checked, and the targets it names."""
    text = (ROOT / "vagrant/Vagrantfile").read_text()
    scripts = re.findall(r"<<~SHELL\n(.*?)\n +SHELL", text, re.DOTALL)
    scripts += re.findall(r'inline: "([^"]+)"', text)
    scripts += re.findall(r"vagrant ssh -c '([^']+)'", text)
    assert len(scripts) == 3
    for script in scripts:
        subprocess.run(["sh", "-n"], input=script, text=True, check=True)
        for target in re.findall(r"make (demo\w*)", script):
            is_a_target(["make", target])
        for path in re.findall(r"scripts/\w+", script):
            assert (ROOT / path).is_file()
