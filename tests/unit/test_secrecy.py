"""M5: what is secret is known by name, form and mark, and stays masked wherever it is shown."""

from __future__ import annotations

import copy
import json
import pickle
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from email.mime.multipart import MIMEMultipart
from pathlib import Path
from types import SimpleNamespace
from typing import Any, NamedTuple

import pytest
from pydantic import BaseModel, ConfigDict, ValidationError

from pytest_vmss.errors import ModelError
from pytest_vmss.guest import seed
from pytest_vmss.guest.keys import generate
from pytest_vmss.guest.seed import build_seed
from pytest_vmss.model import ScaleSetModel, load_document
from pytest_vmss.model.update import check_update, merge
from pytest_vmss.secrecy import (
    MASK,
    SecretText,
    has_secret,
    is_secret_name,
    mask,
    quote,
    uri_secrets,
)
from tests.models import LOAD_BALANCER, encode, web_model

SECRET = "S3cr3tXyz99"


# Names and forms.


@pytest.mark.parametrize(
    "name",
    [
        "MySecret", "connectionString", "sasToken", "storageAccountKey", "Authorization", "bearer",
        "authToken", "pwd", "githubToken", "passwd", "Passwort", "secretValue",
        "clientSecretValue", "password1", "apiKeyPrimary", "primaryKey", "sharedAccessSignature",
        "sas", "SAS_URL", "credentials", "credential", "pat", "accessKey1", "privateKeyPem", "key",
        "sshPrivateKey", "pfx", "sig", "signature", "registrationToken", "refresh_token",
        "my-token", "cookie", "keys", "secrets", "passwords", "tokens", "licenseKey", "dsn",
        "DB_PASSWORD", "adminpassword", "admin_password", "workspacekey", "WORKSPACEKEY",
        "sharedkey", "sharedaccesssignature", "encryptionkey", "masterkey", "instrumentationkey",
        "AUTHKEY", "licensekey", "DBPASS", "userpass", "adminPw", "connStr", "conn_str", "sasurl",
        "blobSASURL", "my_app.encryptionkey", "refreshTokens",
    ],
)  # fmt: skip
def test_names_of_secrets(name: str) -> None:
    assert is_secret_name(name)


@pytest.mark.parametrize(
    "name",
    [
        "keyData", "publicKeys", "publicKey", "disablePasswordAuthentication", "keyVaultId",
        "keyUrl", "secretUrl", "path", "passwordFile", "keyVault", "forceUpdateTag",
        "commandToExecute", "computerNamePrefix", "sourceVault", "author", "certificateUrl",
        "keyIncarnationId", "monkey", "keyboard", "patchMode", "tokenType", "authorizedKeys",
        "costKey", "max_tokens", "maxTokens", "bypass", "hotkey", "KeySpace", "compass",
    ],
)  # fmt: skip
def test_names_of_what_may_be_seen(name: str) -> None:
    assert not is_secret_name(name)


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        ("https://u:SS@host/x", "https://***@host/x"),
        ("https://u:p@ss/SS@host/x", "https://***@host/x"),
        ("see https://a/b and https://u:SS@host/x?y", "see https://a/b and https://***@host/x?***"),
        ("http://u:SS?x@h/", "http://u:***?***"),
        ("http://h:SS/x", "http://h:***/x"),
        ("git clone u:SS99@host:x", "git clone u:***@host:x"),
        ("https://host/x#access_token=SS", "https://host/x#***"),
        ("//host/x?sig=SS", "//host/x?***"),
        ("sv=2020&sig=SS", "sv=2020&sig=***"),
        ("AccountName=a;AccountKey=SS==;x", "AccountName=a;AccountKey=***;x"),
        ("login --password 'SS SS' --user x", "login --password '***' --user x"),
        ("export DB_PASSWORD=SS; x", "export DB_PASSWORD=***; x"),
        ("password: SS SS", "password: ***"),
        ('{"password":"SS"}', '{"password":"***"}'),
        ("Authorization: Bearer SSSSSSSS", "Authorization: ***"),
        (r'{"password":"a\"SS","b":1}', '{"password":"***","b":1}'),
        ("password='it''SS' x", "password='***' x"),
        (r"password=a\ SS b", "password=*** b"),
        ("password    =   SS", "password    =   ***"),
        ("password := SS, password => SS", "password := ***, password => ***"),
        ("password: |\n  SS\n\n  SS\nuser: x", "password: ***\nuser: x"),
        ("a:\n  - password: >-  # x\n      SS\n    user: x", "a:\n  - password: ***\n    user: x"),
        ("password: |", "password: ***"),
        ("<Password>SS</Password>", "<Password>***</Password>"),
        (
            '<AdminPassword a="b">\n<Value>SS</Value><PlainText>true</PlainText>',
            '<AdminPassword a="b">\n<Value>***</Value><PlainText>true</PlainText>',
        ),
        ("pass: SS", "pass: ***"),
        ("-----BEGIN PRIVATE KEY-----\nSS\n-----END", "-----BEGIN PRIVATE KEY-----***-----END"),
    ],
)
def test_forms_of_secrets(text: str, shown: str) -> None:
    assert mask(text) == shown
    assert mask(shown) == shown


@pytest.mark.parametrize(
    "text",
    [
        "nginx:1.25@sha256:abcd",
        "https://registry.example/@scope/x",
        "http://[::1]:80/health",
        "curl http://localhost:8080",
        "wget http://$HOST:$PORT/x, http://h:80, (http://h:81)",
        "/subscriptions/0/resourceGroups/lab/providers/Microsoft.Compute/galleries/g",
        "apt-get install -y nginx && echo a=b",
        "mailto:somebody@example.org",
        "tests pass: all",
        "<Compass>x</Compass><b>y</b>",
    ],
)
def test_what_is_no_secret_is_shown(text: str) -> None:
    assert mask(text) == text


@pytest.mark.parametrize(
    "part",
    [
        "//a:b",
        "a",
        "a-",
        "=",
        "a=",
        "//",
        "?",
        "//a?",
        "#",
        "a:b",
        "--a ",
        "'=",
        "key='",
        "a:bbb@",
        "key: |\n ",
        "key: |\n",
        "<key>",
        "<key ",
        "<key>\n",
        "key  ",
        "key=\\",
        "pass: ",
        "- key: |\n\n",
        "key='\\'",
        'key=""',
        "key: ",
        "key:=",
    ],
)
def test_masking_takes_time_in_proportion(part: str) -> None:
    """R3."""
    begun = time.process_time()
    mask((part * 60_000)[:60_000])
    assert time.process_time() - begun < 2


def test_secrets_of_uris_are_told_decoded_too() -> None:
    assert {"a%2Bb", "a+b"} <= set(uri_secrets("https://h/x?sig=a%2Bb&c=d"))
    assert "p%40w" in set(uri_secrets("http://u:p%40w@h/"))
    assert "p@w" in set(uri_secrets("http://u:p%40w@h/"))


# Masked texts.


def test_parts_of_a_masked_text_are_masked() -> None:
    text = SecretText(f"login {SECRET}")
    parts = [
        text[2:], text + "x", "x" + text, text.split(), text.partition(" "), text.upper(),
        text.strip(), text.replace("l", "L"), text.splitlines(), text.removeprefix("login "),
        f"{text}", format(text), text.rsplit(" ", 1), text.lower(), [*text.splitlines()],
        copy.deepcopy(text), pickle.loads(pickle.dumps(text)), text * 2,
    ]  # fmt: skip
    shown = repr(parts)
    assert "S3" not in shown
    assert "s3" not in shown
    assert "ogin" not in shown
    assert f"run {text}" == f"run login {SECRET}", "what runs a command needs it"


def test_a_quote_is_masked_before_it_is_cut() -> None:
    assert quote(SecretText(SECRET * 99)) == repr(MASK)
    assert SECRET not in quote(f"https://x/?sig={SECRET}{'z' * 999}")
    assert len(quote("z" * 9999)) < 250
    assert quote(3) == "3"


def test_secrets_are_found_in_containers() -> None:
    assert has_secret({"a": [({"b": SecretText("x")},)]})
    assert not has_secret({"a": ["x", 1, None]})
    itself: list[Any] = []
    itself.append(itself)
    assert has_secret(itself), "rather too much than too little"


class _Plain(NamedTuple):
    text: object


@dataclass
class _Data:
    text: object
    parent: object = None
    never_set: int = field(init=False)


class _Slotted:
    """As attrs makes them."""

    __slots__ = ("text",)
    __attrs_attrs__ = (SimpleNamespace(name="text"),)

    def __init__(self, text: object) -> None:
        self.text = text


class _Model(BaseModel):
    model_config = ConfigDict(extra="allow")
    text: Any


@pytest.mark.parametrize(
    "make", [_Plain, _Data, _Slotted, lambda x: _Model(text=x), lambda x: _Model(text="", more=x)]
)
def test_secrets_are_found_in_fields(make: Callable[[object], object]) -> None:
    """M5: pytest explains how fields differ."""
    assert has_secret([make({"a": SecretText("x")})])
    assert has_secret([make(SecretText("x").encode())])
    assert not has_secret([make({"a": "x"})])


def test_what_knows_its_owner_is_no_secret() -> None:
    owner = _Data([])
    owner.text = [_Data("x", owner)]
    assert not has_secret(owner)


# Models.


def _profile(body: dict[str, Any]) -> dict[str, Any]:
    profile: dict[str, Any] = body["properties"]["virtualMachineProfile"]
    return profile


def _os(**fields: Any) -> Callable[[dict[str, Any]], None]:
    return lambda body: _profile(body)["osProfile"].update(fields)


def _extension(**fields: Any) -> Callable[[dict[str, Any]], None]:
    def change(body: dict[str, Any]) -> None:
        _profile(body)["extensionProfile"]["extensions"][0]["properties"].update(fields)

    return change


def _load(change: Callable[[dict[str, Any]], None], value: str | None = None) -> ScaleSetModel:
    """A model in which something is changed; with a value, by a parameter that is a securestring."""
    body = copy.deepcopy(web_model())
    change(body)
    source: dict[str, Any] = body
    if value is not None:
        body["type"] = "Microsoft.Compute/virtualMachineScaleSets"
        parameters = {"x": {"type": "securestring", "defaultValue": value}}
        source = {"parameters": parameters, "resources": [body]}
    return load_document(source, load_balancer=LOAD_BALANCER).model


def _shown(model: ScaleSetModel) -> str:
    copied = pickle.loads(pickle.dumps(model.model_copy(deep=True)))
    return "".join(
        [
            repr(model), str(model), repr(copied), json.dumps(model.wire()),
            model.model_dump_json(), model.virtual_machine_profile.model_dump_json(),
            json.dumps([extension.wire() for extension in model.extensions]),
            repr(model.model_dump()), repr(model.full()), repr(model.not_modelled()),
        ]
    )  # fmt: skip


_URI = f"https://u:{SECRET}@host/x?sv=1&sig={SECRET}"


@pytest.mark.parametrize(
    "change",
    [
        lambda body: body.update(tags={"authToken": SECRET, "uri": _URI}),
        lambda body: body["sku"].update(tier=_URI),
        lambda body: _profile(body)["storageProfile"]["imageReference"].update(
            id=f"/galleries/g/images/web?sig=1&u=https://a/?sig={SECRET}"
        ),
        _os(headers=[{"name": "Authorization", "value": f"Basic {SECRET}"}]),
        _os(list=[{"name": "adminPassword", "value": SECRET}]),
        _os(list=[{"key": "DB_TOKEN", "value": SECRET}]),
        _os(repo=f"//host/x?sig={SECRET}"),
        _os(repo=f"sv=2020-01-01&sig={SECRET}"),
        _os(repo=f"https://host/x#access_token={SECRET}"),
        _os(number={"apiKey": [{"a": SECRET}]}),
        _extension(settings={"env": f"AccountKey={SECRET};x", "fileUris": [_URI]}),
        _extension(settings={"commandToExecute": f"{'echo ' * 60} --password {SECRET}"}),
        _extension(forceUpdateTag=_URI),
    ],
)
def test_no_form_of_a_model_shows_a_secret(change: Callable[[dict[str, Any]], None]) -> None:
    """Neither it, nor a copy, nor its JSON, nor a part of it; ``full`` alone holds it."""
    model = _load(change)
    assert SECRET not in _shown(model)
    assert SECRET in json.dumps(model.full())
    stored = ScaleSetModel.model_validate(json.loads(json.dumps(model.full())))
    assert stored == model
    assert SECRET not in _shown(stored)


@pytest.mark.parametrize(
    "change",
    [
        lambda body: body.update(tags={"a": "[parameters('x')]"}),
        lambda body: body.update(location="[parameters('x')]"),
        _os(computerNamePrefix="[parameters('x')]"),
        _os(foo="[parameters('x')]"),
        _os(linuxConfiguration={"ssh": {"publicKeys": [{"keyData": "[parameters('x')]"}]}}),
        _extension(forceUpdateTag="[parameters('x')]"),
        _extension(settings={"env": "[parameters('x')]"}),
        _extension(provisionAfterExtensions="[parameters('x')]"),
        lambda body: body["sku"].update(capacity="[parameters('x')]"),
        _os(adminUsername="[parameters('x')]"),
        lambda body: _profile(body)["storageProfile"]["osDisk"].update(
            createOption="[parameters('x')]"
        ),
    ],
)
@pytest.mark.parametrize("value", [SECRET, SECRET * 5, f"{SECRET}A!" * 60])
def test_a_secure_parameter_is_masked_wherever_it_is_used(
    change: Callable[[dict[str, Any]], None], value: str
) -> None:
    """Also in fields that are texts, and where it is not valid, and too long to be quoted."""
    try:
        told = _shown(_load(change, value))
    except ModelError as error:
        told = f"{error}{error!r}{error.problems}"
    assert SECRET not in told


def test_what_is_shown_can_be_given_back() -> None:
    """What is masked in a model that a suite has read, changed and hands in is what it was."""
    secrets = {"tags": {"token": SECRET}}
    model = _load(lambda body: (body.update(secrets), _extension(settings={"a": _URI})(body))[1])
    wire = model.wire()
    wire["tags"]["other"] = "new"
    (entry,) = wire["virtualMachineProfile"]["extensionProfile"]["extensions"]
    assert entry["settings"] == {"a": "https://***@host/x?***"}
    merged = merge(model.full(), wire)
    assert merged["tags"] == {"token": SECRET, "other": "new"}
    (entry,) = merged["virtualMachineProfile"]["extensionProfile"]["extensions"]
    assert entry["settings"] == {"a": _URI}


def test_a_refused_change_shows_no_secret() -> None:
    reference = {"publisher": _URI, "offer": "o", "sku": "s", "version": "latest"}
    old = load_document(web_model(), load_balancer=LOAD_BALANCER).model
    new = old.model_copy(deep=True)
    new.virtual_machine_profile.storage_profile.image_reference = type(
        old.image_reference
    ).model_validate(reference)
    (problem,) = [p for p in check_update(old, new) if "publisher" in p.path]
    assert SECRET not in str(problem)


def test_a_wrong_assignment_shows_no_input() -> None:
    """pydantic's own errors quote what they were given."""
    model = load_document(web_model(), load_balancer=LOAD_BALANCER).model
    with pytest.raises(ValidationError) as refused:
        model.virtual_machine_profile.os_profile.admin_password = [SECRET]  # type: ignore[assignment]
    assert SECRET not in str(refused.value)


@pytest.mark.parametrize("path", ["protectedSettings", "settings.apiKey", "settings.tokens"])
def test_paths_end_at_the_first_secret(path: str) -> None:
    """Of what is in a secret, not even names are told."""
    outer, _, inner = path.partition(".")
    held: Any = {SECRET: {1, 2}}
    with pytest.raises(ModelError) as refused:
        _load(_extension(**{outer: {inner: held} if inner else held}))
    assert SECRET not in str(refused.value)
    assert refused.value.problems[0].path.endswith(path)


# Documents that cannot be parsed.


@pytest.mark.parametrize(
    "text",
    [
        f"a: {{adminPassword: *{SECRET}}}",
        f"adminPassword: !{SECRET}\n",
        f"adminPassword: !{SECRET}!x y\n",
        f"adminPassword: %{SECRET}\n",
        f"adminPassword: @{SECRET}\n",
        f'adminPassword: "{SECRET}\n',
        f"adminPassword: a: {SECRET}\n",
        f'adminPassword: "\\{SECRET}"\n',
        f"adminPassword: !!int {SECRET}\n",
        f"adminPassword: !!float {SECRET}\n",
        f"adminPassword: !!bool {SECRET}\n",
        f"adminPassword: !!binary {SECRET}=é\n",
        f"a: &{SECRET} [*{SECRET}]\n",
        f"a: &{SECRET} b\nc: &{SECRET} d\n",
        f"%{SECRET}\n--- a\n",
        f"%TAG !{SECRET}! x\n--- !{SECRET}q!a b\n",
        f"a:\n  <<: {SECRET}\n",
        f"a:\n  ? [{SECRET}]\n  : b\n",
        f"a: !!omap [{SECRET}]\n",
        f"adminPassword: {SECRET}\0x",
    ],
)
def test_a_document_that_cannot_be_parsed_is_not_quoted(tmp_path: Path, text: str) -> None:
    path = tmp_path / "model.yaml"
    path.write_text(text)
    with pytest.raises(ModelError) as refused:
        load_document(path)
    assert SECRET not in str(refused.value)
    assert refused.value.__context__ is None


def test_where_a_document_is_wrong_is_told(tmp_path: Path) -> None:
    (tmp_path / "a.yaml").write_text("a: b\nc: [\n")
    with pytest.raises(ModelError, match=r"not closed, in line 3, column 1"):
        load_document(tmp_path / "a.yaml")
    (tmp_path / "a.json").write_text('{"a": 1\n "b"}')
    with pytest.raises(ModelError, match=r"in line 2, column 2"):
        load_document(tmp_path / "a.json")


# What makes a seed.


def test_no_variable_of_a_seeds_making_shows_a_secret(monkeypatch: pytest.MonkeyPatch) -> None:
    """Tracebacks show variables, of the standard library's frames too."""
    secrets = {name: f"S3cr3t-{name}" for name in ("custom", "user")}
    body = web_model()
    _os(customData=encode(secrets["custom"]))(body)
    _profile(body)["userData"] = encode(secrets["user"])
    model = load_document(body, load_balancer=LOAD_BALANCER).model
    host_key = generate("c")
    needles = [*secrets.values(), *map(encode, secrets.values()), host_key.private[100:140]]

    def fail(*_: object, **__: object) -> str:
        raise RuntimeError("boom")

    for place, name in (
        (MIMEMultipart, "as_string"),
        (seed, "Seed"),
        (seed, "MIMEText"),
    ):
        with monkeypatch.context() as patch:
            patch.setattr(place, name, fail)
            with pytest.raises(RuntimeError, match="boom") as failed:
                build_seed(
                    model, cloud_instance_id="i", computer_name="c", mac="52:54:00:00:00:01",
                    host_key=host_key, lab_key=generate("lab"), grow=False,
                )  # fmt: skip
        shown = [
            repr(value)
            for entry in failed.traceback
            if entry.frame.f_globals["__name__"] != __name__
            for value in entry.frame.f_locals.values()
        ]
        assert shown
        for needle in needles:
            assert needle not in "".join(shown)


# Texts that reach guests and files.


@pytest.mark.parametrize("text", ["a\nb", "a\0", "a\u2028b", "a\x1b[31m", "a\x85b"])
def test_zones_and_keys_hold_no_control_characters(text: str) -> None:
    """M6."""
    with pytest.raises(ModelError):
        _load(lambda body: body.update(zones=[text]))
    with pytest.raises(ModelError):
        _load(_os(linuxConfiguration={"ssh": {"publicKeys": [{"keyData": text}]}}))


def test_a_key_may_end_its_line() -> None:
    """As what `file()` and `cat` bring it does."""
    keys = [{"keyData": "ssh-ed25519 AAAA me@example\n"}]
    model = _load(_os(linuxConfiguration={"ssh": {"publicKeys": keys}}))
    linux = model.virtual_machine_profile.os_profile.linux_configuration
    assert linux is not None
    assert linux.ssh is not None
    assert linux.ssh.public_keys[0].key_data == "ssh-ed25519 AAAA me@example"


@pytest.mark.parametrize(
    "text",
    [
        '"token": "{}"',
        "token: {}",
        "token={} next",
        "--password '{}' next",
        "<password>{}</password>",
        "-----BEGIN RSA PRIVATE KEY-----\n{}\n-----END RSA PRIVATE KEY-----",
        "-----BEGIN RSA PRIVATE KEY-----\n{}",
    ],
)
def test_a_long_secret_is_masked_to_its_end(text: str) -> None:
    """M5: some tokens have thousands of characters, and so have keys that a console shows."""
    shown = mask(text.format("S" * 12_000))
    assert "SS" not in shown
    assert "***" in shown
