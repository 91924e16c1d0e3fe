"""R3, M5: documents that are too much, or hold secrets, are refused or masked at the door."""

from __future__ import annotations

import base64
import copy
import gzip
import itertools
import json
import math
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any
from unittest.mock import MagicMock

import pytest

from pytest_vmss.engine import preflight as resources
from pytest_vmss.errors import BalancerError, ModelError
from pytest_vmss.guest.extensions import CustomScript, known_types, redact
from pytest_vmss.load_balancer.configuration import _quoted
from pytest_vmss.model import Extension, ScaleSetModel, check_model, load_document, reading
from pytest_vmss.untrusted import listed
from tests.models import LOAD_BALANCER, web_model

_SET = {"type": "Microsoft.Compute/virtualMachineScaleSets"}
SECRET = "s3cr3t-value"
BOMB = "\n".join(
    [f"a0: &a0 [{','.join(['lol'] * 9)}]"]
    + [f"a{n}: &a{n} [{','.join([f'*a{n - 1}'] * 9)}]" for n in range(1, 9)]
)


@pytest.mark.parametrize(
    ("text", "told"),
    [
        (BOMB, "aliases followed"),
        ("[" * 100_000, "cannot be parsed"),
        ("- " * 2_000 + "x", "nested deeper"),
        ("&a {b: *a}", "holds itself"),
        ("a: " + "9" * 5_000, "a number of 5000 characters"),
        ("a: !!int x", "cannot be parsed"),
        ("a: !!bool x", "cannot be parsed"),
        ("a: !!binary AAAA", "which JSON does not have"),
        ("{1: 2}", "put it in quotes"),
        (
            "x:\n" + "".join(f" {n * (2**61 - 1)}: 1\n" for n in range(1, 40_000)),
            "not a text but int",
        ),
        ("!!set {1: null}", "not a text but int"),
        ("{[a]: 2}", "not a text but seq"),
        ("{a: &a {1: 2}, b: {<<: *a}}", "not a text but int"),
        ("a: !!python/object/apply:os.system [id]", "cannot be parsed"),
        ("x: " + "y" * (5 << 20), "larger than 4 MiB"),
        ("a: [" + "x," * 200_000 + "]", "more than 100000 values"),
    ],
)
def test_yaml_is_bounded(tmp_path: Path, text: str, told: str) -> None:
    """R3: within two seconds, and by the project's own error alone."""
    path = tmp_path / "model.yaml"
    path.write_text(text)
    begun = time.process_time()
    with pytest.raises(ModelError, match=told) as refused:
        load_document(path)
    assert len(str(refused.value)) < 5_000
    assert time.process_time() - begun < 2


@pytest.mark.parametrize(
    ("text", "told"),
    [
        (b"[" * 100_000, "nested deeper"),
        (b'{"a": 99999999999999999999}', "64 bits"),
        (b'{"a": NaN}', "finite"),
        (b'{"a": "\\ud800"}', "surrogate"),
        (b'{"a":' * 90 + b"1" + b"}" * 90, "nested deeper"),
        (b"\xff\xfe{", "not UTF-16"),
        (b"\xff{}", "not UTF-8"),
        (
            json.dumps(
                {
                    "parameters": {"a": {"type": "string", "defaultValue": "[parameters('a')]"}},
                    "resources": [{**_SET, "name": "[parameters('a')]"}],
                }
            ).encode(),
            "refers to itself",
        ),
        (b'{"resources":[],"parameters":[1]}', "must be an object"),
    ],
)
def test_json_is_bounded(tmp_path: Path, text: bytes, told: str) -> None:
    path = tmp_path / "model.json"
    path.write_bytes(text)
    with pytest.raises(ModelError, match=told):
        load_document(path)


@pytest.mark.parametrize(
    ("text", "kind"),
    [('"a:a"', "string"), ("null", "null"), ("5", "int"), ("[]", "array"), ("true", "bool")],
)
@pytest.mark.parametrize("ending", ["json", "yaml"])
def test_what_is_no_object_is_named_in_azures_words(
    tmp_path: Path, text: str, kind: str, ending: str
) -> None:
    """P1: not in Python's, nor by a class of this package's."""
    path = tmp_path / f"model.{ending}"
    path.write_text(text)
    with pytest.raises(ModelError, match=rf"must be an object, is {kind}\b"):
        load_document(path)


def test_what_code_hands_in_is_bounded() -> None:
    itself: dict[str, Any] = {}
    itself["a"] = itself
    for source in (itself, {"a": {1}}, {"a": b"x"}, "a\0b", '{"a": "' + SECRET + '"}'):
        with pytest.raises(ModelError) as refused:
            load_document(source)
        assert SECRET not in str(refused.value)


class _Number(int):
    def bit_length(self) -> int:
        return 1


class _Words(str):
    __slots__ = ()

    def __str__(self) -> str:
        return "\ud800"

    def __len__(self) -> int:
        return 1


class _Broken(dict[str, Any]):
    def items(self) -> Any:
        raise RuntimeError(SECRET)


def test_objects_of_somebodys_own_are_read_as_what_they_are() -> None:
    """R3: what classes of the caller's say of their values is not believed."""
    for value in (_Number(2**80), _Words("\ud800"), {_Words("\ud800"): 1}, _Broken(a=1)):
        with pytest.raises(ModelError) as refused:
            load_document({**web_model(), "x": value})
        assert SECRET not in str(refused.value)
    body = {"name": _Words("plain"), "n": _Number(7)}
    read_back = reading.read(body, "the model")
    assert read_back == {"name": "plain", "n": 7}
    assert {type(value) for value in read_back.values()} == {str, int}


class _Short(str):
    """A text that claims to be empty, and to be of ASCII."""

    __slots__ = ()

    def __len__(self) -> int:
        return 0

    def isascii(self) -> bool:
        return True


def test_the_length_and_the_letters_of_a_text_are_counted_by_the_reader_itself() -> None:
    """R3: a class of the caller's cannot make its text shorter than it is."""
    for value in ([_Short("x" * 1_000_000)] * 5, _Short("\ud800")):
        with pytest.raises(ModelError, match=r"\$\.x(\[4\])?: holds "):
            reading.read({"x": value}, "the model")


@pytest.mark.parametrize("kind", [str, bool, int, float, dict, list, type(None)])
def test_an_object_that_claims_another_class_is_refused_by_its_path(kind: type) -> None:
    """R3: such as a mock, which is not JSON whatever it imitates."""
    with pytest.raises(ModelError, match=r"\$\.a\[0\]: is \w+, which JSON does not have"):
        reading.read({"a": [MagicMock(spec=kind)]}, "the model")


@pytest.mark.parametrize(
    ("body", "path"),
    [
        ({"password": {SECRET: math.nan}}, "$.password"),
        ({"env": [{"name": "dbPassword", "value": {SECRET: math.nan}}]}, "$.env[0].value"),
        ({"env": [{"value": [{SECRET: math.nan}], "key": "token"}]}, "$.env[0].value"),
        (
            {"parameters": {"p": {"defaultValue": {SECRET: math.nan}, "type": "SecureObject"}}},
            "$.parameters.p.defaultValue",
        ),
    ],
)
def test_a_refusals_path_names_nothing_within_a_secret(body: dict[str, Any], path: str) -> None:
    """M5: whether a name, a name beside it, or a template's type makes it one."""
    with pytest.raises(ModelError) as refused:
        reading.read(body, "the model")
    assert SECRET not in str(refused.value)
    assert [problem.path for problem in refused.value.problems] == [path]


def test_many_wrong_values_make_a_short_message() -> None:
    body = web_model()
    body["properties"]["virtualMachineProfile"]["storageProfile"]["dataDisks"] = [
        {"lun": "x", "createOption": "q"}
    ] * 20_000
    begun = time.process_time()
    with pytest.raises(ModelError) as refused:
        load_document(body, load_balancer=LOAD_BALANCER)
    assert len(str(refused.value)) < 100_000
    assert time.process_time() - begun < 2


def _balancer(probes: int, rules: int) -> dict[str, Any]:
    first = LOAD_BALANCER["properties"]["probes"][0]
    return {
        "name": "web-lb",
        "probes": [first]
        + [{"name": f"p{n}" + "x" * 250, "protocol": "Tcp", "port": 1} for n in range(probes)],
        "loadBalancingRules": [
            {"name": f"r{n}", "frontendPort": n + 2000, "backendPort": 1, "probe": {"id": "nobody"}}
            for n in range(rules)
        ],
    }


def test_a_balancer_with_very_many_wrong_rules_costs_little() -> None:
    """R3: each problem names what there is, and all of it for each would be hundreds of MiB."""
    document = load_document(web_model(), load_balancer=_balancer(1_400, 1_500))
    begun = time.process_time()
    problems = check_model(
        document.model,
        probe=document.probe,
        sizes={},
        extension_types=known_types(),
        balancer=document.balancer,
    )
    assert time.process_time() - begun < 1
    assert 50 <= len(problems) <= 100
    assert sum(len(problem.message) for problem in problems) < 300_000
    assert any("there are: healthz, p0x" in problem.message for problem in problems)


@pytest.mark.parametrize(("probes", "rules"), [(2_000, 1), (1, 2_000)])
def test_a_balancer_has_no_more_than_azures(probes: int, rules: int) -> None:
    with pytest.raises(ModelError, match="1500"):
        load_document(web_model(), load_balancer=_balancer(probes, rules))


def test_a_list_in_a_message_is_bounded() -> None:
    assert listed([]) == "none"
    assert listed(["a", "b\n\x1b[1m"]) == "a, b"
    endless = (f"n{number}" for number in itertools.count())
    assert listed(endless, 2) == "n0, n1, …"
    assert next(endless) == "n3"


def test_a_packed_script_is_bounded() -> None:
    script = base64.b64encode(gzip.compress(bytes(64 << 20))).decode()
    extension = Extension(
        name="e", publisher="p", type="t", type_handler_version="1.0", settings={"script": script}
    )
    (told,) = CustomScript().check(extension)
    assert "unpacked, it is larger than" in told


@pytest.mark.parametrize("path", ["/a\n", "/a\r", "/a\0", "/a b", "/ä", "/" + "x" * 2_000])
def test_haproxy_is_given_nothing_that_ends_a_word(path: str) -> None:
    with pytest.raises(BalancerError):
        _quoted(path)


@pytest.mark.parametrize(
    "host", ["127.0.0.1", "127.1", "0x7f.1", "[::ffff:127.0.0.1]", "10.0.2.2", "localhost"]
)
def test_a_models_uris_do_not_reach_the_hosts_loopback(
    host: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """R3, C8: but for the lab's own port."""
    asked: list[int] = []

    def ask(*_: object, port: int, **__: object) -> int:
        asked.append(port)
        return 200

    monkeypatch.setattr(resources, "http_status", ask)
    assert resources.reach(f"http://{host}:8080/x", own_port=lambda: 8081) == ""
    assert asked == []
    assert resources.reach(f"http://{host}:8081/x", own_port=lambda: 8081) == ""
    assert asked == [8081]


# Secrets.


def _os(body: dict[str, Any], **fields: Any) -> None:
    body["properties"]["virtualMachineProfile"]["osProfile"].update(fields)


def _extension(body: dict[str, Any], **fields: Any) -> None:
    (entry,) = body["properties"]["virtualMachineProfile"]["extensionProfile"]["extensions"]
    entry["properties"].update(fields)


@pytest.mark.parametrize(
    "change",
    [
        lambda body: _os(body, AdminPassword=SECRET),
        lambda body: _os(body, admin_password=SECRET),
        lambda body: _os(body, adminPassword={"a": SECRET}),
        lambda body: _os(body, additionalUnattendContent=[{"content": SECRET}]),
        lambda body: _extension(body, protectedsettings={"a": [SECRET, {"b": SECRET}]}),
        lambda body: _extension(body, protected_settings=SECRET),
        lambda body: _extension(body, protectedSettingsFromKeyVault={"secretUrl": SECRET}),
        lambda body: _extension(body, settings=SECRET),
        lambda body: body["properties"]["virtualMachineProfile"].update(UserData=SECRET + "=="),
    ],
)
def test_secrets_are_known_however_they_are_spelt(change: Callable[[Any], None]) -> None:
    """M5: neither the wire form, nor a representation, nor an error's text shows one."""
    body = copy.deepcopy(web_model())
    change(body)
    try:
        model = load_document(body, load_balancer=LOAD_BALANCER).model
    except ModelError as error:
        told = str(error)
    else:
        told = _shown(model)
        assert SECRET in json.dumps(model.full())
    assert SECRET not in told


def _shown(model: ScaleSetModel) -> str:
    """All that is shown of a model, also of one from the database."""
    stored = ScaleSetModel.model_validate(json.loads(json.dumps(model.full())))
    return json.dumps(model.wire()) + repr(model) + repr(model.full()) + repr(stored)


def test_tokens_are_masked_in_representations_and_kept_in_values() -> None:
    body = web_model()
    uri = f"https://files.example/x.sh?sv=1&sig={SECRET}"
    _extension(body, settings={"commandToExecute": "x", "fileUris": [uri]})
    model = load_document(body, load_balancer=LOAD_BALANCER).model
    assert SECRET not in repr(model)
    (extension,) = model.extensions
    assert (extension.settings or {})["fileUris"] == [uri]
    assert redact(f"failed: {uri}", extension).endswith("?***")
    broken = extension.model_copy(update={"settings": {"fileUris": [f"http://[?sig={SECRET}"]}})
    assert SECRET not in redact(SECRET, broken)
