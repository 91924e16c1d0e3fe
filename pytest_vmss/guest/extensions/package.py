"""Packaged handlers in Azure's layout, run in the guest as its agent runs them (H2)."""

from __future__ import annotations

import base64
import datetime
import io
import json
import zipfile
from importlib.resources import files
from pathlib import Path
from typing import Any

from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import rsa
from cryptography.hazmat.primitives.serialization import pkcs7

from pytest_vmss.clock import Clock
from pytest_vmss.errors import ImageError
from pytest_vmss.guest.extensions.command import Command, redact, run_command
from pytest_vmss.guest.extensions.registry import register
from pytest_vmss.guest.shell import Shell
from pytest_vmss.model import Extension
from pytest_vmss.store import ExtensionRecord

__all__ = ["PackagedHandler", "register_package"]

_MANIFEST = "HandlerManifest.json"
_COMMANDS = ("installCommand", "enableCommand")
_RSA_BITS = 2048


class PackagedHandler:
    """A handler of which there is a package, as it is published to Azure.

    Args:
        package: A zip file, or the folder that would be in it.
        publisher: Of the extension.
        type: Of the extension.
        version: Of the handler.

    Raises:
        ImageError: It is not such a package.
    """

    def __init__(self, package: Path, *, publisher: str, type: str, version: str) -> None:
        self.publisher = publisher
        self.type = type
        self.version = version
        self._package = _zipped(package)
        self._check_manifest(package)

    def _check_manifest(self, source: Path) -> None:
        try:
            with zipfile.ZipFile(io.BytesIO(self._package)) as archive:
                (entry,) = json.loads(archive.read(_MANIFEST))
            manifest = entry["handlerManifest"]
            missing = [name for name in _COMMANDS if not isinstance(manifest.get(name), str)]
        except (KeyError, ValueError, TypeError, AttributeError) as wrong:
            raise ImageError(
                f"{source} is no packaged handler: its {_MANIFEST} must be a list with one object "
                f"that has handlerManifest ({wrong!r})"
            ) from wrong
        if missing:
            raise ImageError(f"the {_MANIFEST} of {source} lacks {', '.join(missing)}")

    def check(self, extension: Extension) -> list[str]:  # noqa: ARG002 - the protocol's
        """Nothing: only the handler itself knows its settings."""
        return []

    def run(
        self, shell: Shell, extension: Extension, *, run: str, limit: float, clock: Clock
    ) -> ExtensionRecord:
        """Installs the handler where it is not, and enables it with the extension's settings."""
        program = (files("pytest_vmss.guest.in_guest") / "handler_agent.py").read_bytes()
        settings, certificate = handler_settings(extension)
        spec = {
            "name": f"{self.publisher}.{self.type}",
            "version": self.version,
            "run": run,
            "handlerSettings": settings,
            "certificate": certificate,
        }
        command = Command(
            text="python3 handler_agent.py spec.json package.zip",
            files={
                "handler_agent.py": program,
                "spec.json": json.dumps(spec).encode(),
                "package.zip": self._package,
            },
        )
        done = run_command(shell, extension, command, run=run, limit=limit, clock=clock)
        told = done.message.partition("[stdout]\n")[2].partition("\n[stderr]")[0]
        try:
            message = str(json.loads(told)["message"])
        except (ValueError, KeyError, TypeError):
            message = done.message
        return done.model_copy(update={"message": redact(message, extension)})


def register_package(package: Path, *, publisher: str, type: str, version: str) -> None:
    """Makes a packaged handler known, so that models may name it.

    Args:
        package: A zip file with HandlerManifest.json at its top, or the folder itself.
        publisher: Of the extension.
        type: Of the extension.
        version: Of the handler; a higher one reaches instances by an extension upgrade.

    Raises:
        ImageError: It is not such a package.
    """
    register(PackagedHandler(package, publisher=publisher, type=type, version=version))


def _zipped(package: Path) -> bytes:
    if package.is_file():
        content = package.read_bytes()
        if not zipfile.is_zipfile(io.BytesIO(content)):
            raise ImageError(f"{package} is no zip file")
        return content
    if not (package / _MANIFEST).is_file():
        raise ImageError(f"{package} has no {_MANIFEST}")
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w", zipfile.ZIP_DEFLATED) as archive:
        for path in sorted(package.rglob("*")):
            if path.is_file():
                archive.write(path, path.relative_to(package))
    return buffer.getvalue()


def handler_settings(
    extension: Extension,
) -> tuple[dict[str, Any], dict[str, str] | None]:
    """``handlerSettings`` as the agent writes them, and the certificate they are encrypted for.

    Protected settings are a CMS envelope in base64, whose key is beside the agent's files
    under the certificate's thumbprint; handlers open it with ``openssl cms -decrypt``.
    """
    settings: dict[str, Any] = {"publicSettings": extension.settings or {}}
    if not extension.protected_settings:
        return settings, None
    key = rsa.generate_private_key(public_exponent=65537, key_size=_RSA_BITS)
    name = x509.Name([x509.NameAttribute(x509.NameOID.COMMON_NAME, "pytest-vmss")])
    now = datetime.datetime.now(datetime.UTC)
    certificate = (
        x509.CertificateBuilder()
        .subject_name(name)
        .issuer_name(name)
        .public_key(key.public_key())
        .serial_number(x509.random_serial_number())
        .not_valid_before(now - datetime.timedelta(days=1))
        .not_valid_after(now + datetime.timedelta(days=3650))
        .sign(key, hashes.SHA256())
    )
    envelope = (
        pkcs7.PKCS7EnvelopeBuilder()
        .set_data(json.dumps(extension.protected_settings).encode())
        .add_recipient(certificate)
        .encrypt(serialization.Encoding.DER, [pkcs7.PKCS7Options.Binary])
    )
    thumbprint = certificate.fingerprint(hashes.SHA1()).hex().upper()  # noqa: S303 - Azure's
    settings["protectedSettingsCertThumbprint"] = thumbprint
    settings["protectedSettings"] = base64.b64encode(envelope).decode()
    pem = serialization.Encoding.PEM
    private = key.private_bytes(
        pem, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
    )
    return settings, {
        "thumbprint": thumbprint,
        "public": certificate.public_bytes(pem).decode(),
        "private": private.decode(),
    }
