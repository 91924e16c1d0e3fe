"""Packaged handlers in Azure's layout, run in the guest as Azure's agent runs them (H2)."""

from __future__ import annotations

import base64
import datetime
import hashlib
import io
import json
import re
import shlex
import zipfile
from importlib.resources import files
from pathlib import Path
from typing import Any

from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import rsa
from cryptography.hazmat.primitives.serialization import pkcs7

from pytest_vmss.errors import ImageError
from pytest_vmss.guest.extensions.command import Command, remove_runs, run_command, told_by
from pytest_vmss.guest.extensions.handler import Handler, Target
from pytest_vmss.guest.extensions.registry import register
from pytest_vmss.guest.extensions.report import with_status
from pytest_vmss.model import Extension, read_status
from pytest_vmss.model.extension_result import ExtensionResult
from pytest_vmss.secrecy import SecretBytes, SecretText
from pytest_vmss.untrusted import UnreadableError, one_line, read_json

__all__ = ["PackagedHandler", "register_package"]

_MANIFEST = "HandlerManifest.json"
_COMMANDS = tuple(
    f"{verb}Command" for verb in ("install", "enable", "update", "disable", "uninstall")
)
_RSA_BITS = 2048
#: Maximum number of problems reported for an uninstallation.
_PROBLEMS = 20
_VERSION = re.compile(r"\d+(\.\d+)*")


class PackagedHandler(Handler):
    """A handler from a package such as is published to Azure.

    Args:
        package: A zip file, or the unpacked folder.
        publisher: Publisher of the extension.
        type: Type of the extension.
        version: Version of the handler.

    Raises:
        ImageError: The package or the version is invalid.
    """

    reports = True

    def __init__(self, package: Path, *, publisher: str, type: str, version: str) -> None:
        if not _VERSION.fullmatch(version):
            raise ImageError(f"{version!r} is no version of a handler: give numbers, e.g. 1.2.0")
        self.publisher = publisher
        self.type = type
        self.version = version
        self._package = _zipped(package)
        self._check_manifest(package)

    @property
    def fingerprint(self) -> str | None:
        """Its version, which is told in guests, and the digest of its package."""
        own = super().fingerprint
        return own and f"{own} {hashlib.sha256(self._package).hexdigest()}"

    def _check_manifest(self, source: Path) -> None:
        try:
            with zipfile.ZipFile(io.BytesIO(self._package)) as archive:
                (entry,) = json.loads(archive.read(_MANIFEST))
            manifest = entry["handlerManifest"]
            missing = [name for name in _COMMANDS if not isinstance(manifest.get(name), str)]
        except (KeyError, ValueError, TypeError, AttributeError) as error:
            raise ImageError(
                f"{source} is no packaged handler: its {_MANIFEST} must be a list with one object "
                f"that has handlerManifest ({error!r})"
            ) from error
        if missing:
            raise ImageError(f"the {_MANIFEST} of {source} lacks {', '.join(missing)}")

    def run(self, target: Target, extension: Extension, *, run: str) -> ExtensionResult:
        """Installs or updates the handler if needed, and enables it with the settings."""
        settings, certificate = handler_settings(extension)
        spec = {
            **self._told(target, extension),
            "version": self.version,
            "run": run,
            "handlerSettings": settings,
            "certificate": certificate,
        }
        command = Command(
            text="python3 handler_agent.py enable spec.json package.zip",
            files={
                "handler_agent.py": _program(),
                "spec.json": json.dumps(spec).encode(),
                "package.zip": self._package,
            },
        )
        done = run_command(target, extension, command, run=run)
        if done.timed_out:
            return done
        found = self.report(target, extension, done)
        # It may have failed before it could report; then its output says why.
        return found if (found.status == "error") == (done.exit_code != 0) else done

    def remove(self, target: Target, extension: Extension) -> str:
        """Disables and uninstalls the handler, unless another extension uses it."""
        wrong = self._ask(target, "uninstall", extension)
        told = "its uninstallation said nothing"
        if isinstance(wrong, list):
            told = "; ".join(str(problem) for problem in wrong[:_PROBLEMS])
        return told_by(told, extension) or remove_runs(target, extension)

    def report(
        self, target: Target, extension: Extension, last: ExtensionResult
    ) -> ExtensionResult:
        """Reads its status file and the handler's heartbeat."""
        found = self._ask(target, "report", extension)
        try:
            status = read_status(found["status"])
            handler, words = found["handler"]["status"], found["handler"]["message"]
        except (UnreadableError, KeyError, TypeError):
            return last
        return with_status(last, status, extension).model_copy(
            update={
                "exit_code": None,
                "handler": one_line(str(handler)),
                "handler_message": told_by(str(words), extension),
            }
        )

    def _told(self, target: Target, extension: Extension) -> dict[str, Any]:
        name = f"{self.publisher}.{self.type}"
        return {"name": name, "extension": extension.name, "factor": target.factor}

    def _ask(self, target: Target, verb: str, extension: Extension) -> Any:
        """Runs the agent program in the guest; returns its JSON output, or None if malformed."""
        # It runs at most two commands, so this timeout lets it report which one took too long.
        spec = {**self._told(target, extension), "limit": target.timeout / 3}
        told = shlex.quote(json.dumps(spec))
        done = target.insist(f"python3 - {verb} {told}", stdin=_program())
        try:
            return read_json(done.stdout)
        except UnreadableError:
            return None


def _program() -> bytes:
    return (files("pytest_vmss.guest.in_guest") / "handler_agent.py").read_bytes()


def register_package(package: Path, *, publisher: str, type: str, version: str) -> None:
    """Registers a packaged handler, so that models can use it.

    Args:
        package: A zip file with HandlerManifest.json at its top level, or the unpacked folder.
        publisher: Publisher of the extension.
        type: Type of the extension.
        version: Version of the handler; a higher one reaches instances by an extension upgrade.

    Raises:
        ImageError: The package or the version is invalid.
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
    """Returns ``handlerSettings`` as Azure's agent writes them, and the encryption certificate.

    Protected settings are a CMS envelope in base64; handlers decrypt it with ``openssl cms
    -decrypt``, using the key that is stored under the certificate's thumbprint. The certificate is
    None if there are none.
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
    thumbprint = certificate.fingerprint(hashes.SHA1()).hex().upper()  # noqa: S303 - as in Azure
    settings["protectedSettingsCertThumbprint"] = thumbprint
    settings["protectedSettings"] = base64.b64encode(envelope).decode()
    pem = serialization.Encoding.PEM
    private = SecretBytes(
        key.private_bytes(pem, serialization.PrivateFormat.PKCS8, serialization.NoEncryption())
    )
    return settings, {
        "thumbprint": thumbprint,
        "public": certificate.public_bytes(pem).decode(),
        "private": SecretText(private.decode()),
    }
