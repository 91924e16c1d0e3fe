"""Azure's CustomScript extension for Linux (H2)."""

from __future__ import annotations

import base64
import binascii
import gzip
import io
import zlib
from typing import Any

from pytest_vmss.guest.extensions.command import Command, remove_runs, run_command
from pytest_vmss.guest.extensions.handler import Handler, Target
from pytest_vmss.guest.in_guest.download import name_of
from pytest_vmss.model import Extension, respelled
from pytest_vmss.model.extension_result import ExtensionResult
from pytest_vmss.secrecy import SecretBytes

__all__ = ["CustomScript"]

_KNOWN = {"commandToExecute", "script", "fileUris", "timestamp", "skipDos2Unix"}
_STORAGE = {"storageAccountName", "storageAccountKey", "managedIdentity"}
#: Maximum size of a script in bytes, unpacked; Azure accepts 256 KiB packed.
_SCRIPT_MAX = 4 * 1024 * 1024
_GZIP = b"\x1f\x8b"


class CustomScript(Handler):
    """``Microsoft.Azure.Extensions/CustomScript``, with Azure's rules and messages."""

    publisher = "Microsoft.Azure.Extensions"
    type = "CustomScript"
    version = "2.1.0"

    def check(self, extension: Extension) -> list[str]:
        """Validates its settings, and returns the problems."""
        public, protected = _settings(extension)
        both = {**public, **protected}
        problems = [
            f"'{name}' was specified both in public and protected settings; it must be specified "
            "only once"
            for name in ("commandToExecute", "script", "fileUris")
            if name in public and name in protected
        ]
        if "commandToExecute" in both and "script" in both:
            problems.append(
                "'commandToExecute' and 'script' were both specified, but only one is validate at "
                "a time"
            )
        if "commandToExecute" not in both and "script" not in both:
            problems.append("'commandToExecute' is not specified")
        problems += self._check_values(both)
        problems += [
            f"'{name}' belongs in protectedSettings" for name in sorted(_STORAGE & public.keys())
        ]
        if _STORAGE & protected.keys():
            problems.append(
                f"{', '.join(sorted(_STORAGE & protected.keys()))} cannot be used here: there is "
                "no storage account; give fileUris a token (vmss.blobs)"
            )
        unknown = sorted({*both} - _KNOWN - _STORAGE)
        if unknown:
            problems.append(f"there is no setting {', '.join(unknown)}; there are: "
                            f"{', '.join(sorted(_KNOWN))}")  # fmt: skip
        return problems

    @staticmethod
    def _check_values(settings: dict[str, Any]) -> list[str]:
        problems = [
            f"{name} must be a {kind.__name__}"
            for name, kind in (
                ("commandToExecute", str), ("script", str), ("skipDos2Unix", bool),
                ("timestamp", int),
            )
            if name in settings and not isinstance(settings[name], kind)
        ]  # fmt: skip
        if isinstance(settings.get("script"), str):
            try:
                _decode(settings["script"])
            except ValueError as error:
                problems.append(f"script must be base64, of a text or of gzip: {error}")
        uris = settings.get("fileUris", [])
        if not isinstance(uris, list) or not all(isinstance(uri, str) for uri in uris):
            return [*problems, "fileUris must be a list of strings"]
        for index, uri in enumerate(uris):
            if not uri.lower().startswith(("http://", "https://")):
                problems.append(f"fileUris[{index}] must be an http or https URI")
                continue
            try:
                name_of(uri)
            except ValueError as error:
                problems.append(f"fileUris[{index}]: {error}")
        return problems

    def run(self, target: Target, extension: Extension, *, run: str) -> ExtensionResult:
        """Downloads ``fileUris``, then runs ``commandToExecute`` or ``script`` there as root."""
        public, protected = _settings(extension)
        settings = {**public, **protected}
        script = settings.get("script")
        command = Command(
            text="./script.sh" if script else str(settings["commandToExecute"]),
            files={"script.sh": _decode(script)} if script else {},
            file_uris=tuple(settings.get("fileUris", ())),
            skip_dos2unix=bool(settings.get("skipDos2Unix", False)),
        )
        return run_command(target, extension, command, run=run)

    def remove(self, target: Target, extension: Extension) -> str:
        """Removes the files of its runs."""
        return remove_runs(target, extension)


def _settings(extension: Extension) -> tuple[dict[str, Any], dict[str, Any]]:
    names = _KNOWN | _STORAGE
    return respelled(extension.settings, names), respelled(extension.protected_settings, names)


def _decode(script: str) -> bytes:
    """Decodes a script: base64, optionally of gzip.

    Raises:
        ValueError: It is not base64, the gzip data is invalid, or it is too large.
    """
    try:
        content = SecretBytes(base64.b64decode(script, validate=True))
        if not content.startswith(_GZIP):
            return content
        # Never unpacks more than the limit.
        with gzip.GzipFile(fileobj=io.BytesIO(content)) as packed:
            text = SecretBytes(packed.read(_SCRIPT_MAX + 1))
    except (binascii.Error, OSError, EOFError, zlib.error) as error:
        raise ValueError(str(error)) from error
    if len(text) > _SCRIPT_MAX:
        raise ValueError(f"unpacked, it is larger than {_SCRIPT_MAX >> 10} KiB")
    return text
