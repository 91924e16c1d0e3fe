"""H2: packaged handlers in Azure's layout; the guest's part runs here, in another root."""

from __future__ import annotations

import base64
import json
import zipfile
from pathlib import Path
from typing import Any

import pytest
from cryptography.hazmat.primitives.asymmetric.rsa import RSAPrivateKey
from cryptography.hazmat.primitives.serialization import load_pem_private_key, pkcs7
from cryptography.x509 import load_pem_x509_certificate

from pytest_vmss.errors import ImageError
from pytest_vmss.guest.extensions import PackagedHandler
from pytest_vmss.guest.extensions.package import handler_settings
from pytest_vmss.guest.in_guest.handler_agent import serve
from pytest_vmss.model import Extension
from tests.handlers import write_handler

NAME = {"publisher": "Contoso", "type": "Sample", "version": "1.2.0"}


def extension(**fields: Any) -> Extension:
    return Extension(
        name="sample", publisher="Contoso", type="Sample", type_handler_version="1.2", **fields
    )


def spec(run: str, **settings: Any) -> dict[str, Any]:
    told, certificate = handler_settings(extension(settings=settings))
    return {
        "name": "Contoso.Sample", "version": "1.2.0", "run": run, "handlerSettings": told,
        "certificate": certificate,
    }  # fmt: skip


@pytest.fixture
def package(tmp_path: Path) -> Path:
    """The sample handler, zipped."""
    handler = PackagedHandler(write_handler(tmp_path / "sample"), **NAME)
    path = tmp_path / "sample.zip"
    path.write_bytes(handler._package)
    return path


def test_a_handler_is_run_as_the_agent_runs_it(package: Path, tmp_path: Path) -> None:
    """Installed once, enabled for each run, with Azure's files; the same run is the same number."""
    root = tmp_path / "root"
    first = serve(spec("1", greeting="hello"), str(package), str(root))
    assert first["ok"], first
    assert first["message"] == "hello from Contoso.Sample 1.2.0, run 0"
    again = serve(spec("1", greeting="hello"), str(package), str(root))
    assert again["message"] == first["message"]
    second = serve(spec("2", greeting="bye"), str(package), str(root))
    assert second["message"] == "bye from Contoso.Sample 1.2.0, run 1"
    folder = root / "var/lib/waagent/Contoso.Sample-1.2.0"
    assert (folder / "calls").read_text().split() == ["install", "enable", "enable", "enable"]
    (environment,) = json.loads((folder / "HandlerEnvironment.json").read_text())
    assert set(environment["handlerEnvironment"]) == {
        "logFolder", "configFolder", "statusFolder", "heartbeatFile",
    }  # fmt: skip
    assert (folder / "config/1.settings").stat().st_mode & 0o777 == 0o600


def test_failures_are_told(package: Path, tmp_path: Path) -> None:
    failed = serve(spec("1", fail="status"), str(package), str(tmp_path / "a"))
    assert (failed["ok"], failed["message"]) == (False, "it was told to fail")
    broken = serve(spec("1", fail="exit"), str(package), str(tmp_path / "b"))
    assert broken["message"] == "enableCommand ended with exit status 3"


def test_protected_settings_are_an_envelope_for_the_agents_key() -> None:
    """M5: in the guest's files they are encrypted, as Azure's are."""
    settings, certificate = handler_settings(
        extension(settings={"a": 1}, protected_settings={"key": "secret-value"})
    )
    assert certificate is not None
    assert settings["publicSettings"] == {"a": 1}
    assert settings["protectedSettingsCertThumbprint"] == certificate["thumbprint"]
    key = load_pem_private_key(certificate["private"].encode(), None)
    assert isinstance(key, RSAPrivateKey)
    opened = pkcs7.pkcs7_decrypt_der(
        base64.b64decode(settings["protectedSettings"]),
        load_pem_x509_certificate(certificate["public"].encode()),
        key,
        [],
    )
    assert json.loads(opened) == {"key": "secret-value"}
    assert handler_settings(extension()) == ({"publicSettings": {}}, None)


def test_what_is_no_package_is_refused(tmp_path: Path) -> None:
    def refuse(path: Path, words: str) -> None:
        with pytest.raises(ImageError, match=words):
            PackagedHandler(path, **NAME)

    (tmp_path / "empty").mkdir()
    refuse(tmp_path / "empty", "has no HandlerManifest.json")
    (tmp_path / "text").write_text("hello")
    refuse(tmp_path / "text", "is no zip file")
    for number, (content, words) in enumerate(
        [("[]", "must be a list with one object"), ("{}", "is no packaged handler"),
         ('[{"handlerManifest": {"installCommand": "a"}}]', "lacks enableCommand")]
    ):  # fmt: skip
        path = tmp_path / f"{number}.zip"
        with zipfile.ZipFile(path, "w") as archive:
            archive.writestr("HandlerManifest.json", content)
        refuse(path, words)
