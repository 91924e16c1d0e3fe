"""SSH keys: the lab's own, and a host key for each generation (M6)."""

from __future__ import annotations

import contextlib
from dataclasses import dataclass
from pathlib import Path

from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from cryptography.hazmat.primitives.serialization import (
    Encoding,
    NoEncryption,
    PrivateFormat,
    PublicFormat,
    load_ssh_private_key,
)

from pytest_vmss.host.files import write_durably
from pytest_vmss.secrecy import SecretBytes, SecretText

__all__ = ["KeyPair", "generate", "lab_key"]

_COMMENT = "pytest-vmss"


@dataclass(frozen=True)
class KeyPair:
    """An Ed25519 key pair in OpenSSH's formats."""

    private: str
    public: str

    def __repr__(self) -> str:
        return f"KeyPair(public={self.public!r})"


def generate(comment: str) -> KeyPair:
    """Generates a key pair."""
    key = Ed25519PrivateKey.generate()
    private = SecretBytes(key.private_bytes(Encoding.PEM, PrivateFormat.OpenSSH, NoEncryption()))
    public = key.public_key().public_bytes(Encoding.OpenSSH, PublicFormat.OpenSSH)
    return KeyPair(SecretText(private.decode()), f"{public.decode()} {comment}")


def lab_key(path: Path) -> KeyPair:
    """Loads the lab's key, generating it if missing; safe if several processes do so at once.

    Args:
        path: The private key, with mode 0600; the public one is stored beside it.

    Raises:
        ValueError: The file is not an SSH private key.
        OSError: It cannot be read or written.
    """
    if not path.exists():
        with contextlib.suppress(FileExistsError):  # another process was first
            write_durably(path, generate(_COMMENT).private.encode(), replace=False)
    private = SecretText(path.read_text())
    # The public key is derived from the private one, so that the two always match.
    loaded = load_ssh_private_key(private.encode(), None)
    public = loaded.public_key().public_bytes(Encoding.OpenSSH, PublicFormat.OpenSSH)
    pair = KeyPair(private, f"{public.decode()} {_COMMENT}")
    beside = path.with_suffix(".pub")
    if not beside.exists() or beside.read_text().strip() != pair.public:
        write_durably(beside, pair.public.encode() + b"\n", mode=0o644)
    return pair
