"""SSH keys: the lab's own, and a host key for each generation (M6)."""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path

from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from cryptography.hazmat.primitives.serialization import (
    Encoding,
    NoEncryption,
    PrivateFormat,
    PublicFormat,
)

__all__ = ["KeyPair", "generate", "lab_key"]


@dataclass(frozen=True)
class KeyPair:
    """An Ed25519 key in OpenSSH's formats."""

    private: str
    public: str

    def __repr__(self) -> str:
        return f"KeyPair(public={self.public!r})"


def generate(comment: str) -> KeyPair:
    """Makes a new key."""
    key = Ed25519PrivateKey.generate()
    private = key.private_bytes(Encoding.PEM, PrivateFormat.OpenSSH, NoEncryption())
    public = key.public_key().public_bytes(Encoding.OpenSSH, PublicFormat.OpenSSH)
    return KeyPair(private.decode(), f"{public.decode()} {comment}")


def lab_key(path: Path) -> KeyPair:
    """The lab's key, made where there is none; the private file has mode 0600."""
    public = path.with_suffix(".pub")
    if not path.exists():
        pair = generate("pytest-vmss")
        public.write_text(pair.public + "\n")
        part = path.with_suffix(".part")
        part.unlink(missing_ok=True)
        with os.fdopen(os.open(part, os.O_CREAT | os.O_EXCL | os.O_WRONLY, 0o600), "w") as file:
            file.write(pair.private)
        part.replace(path)
    return KeyPair(path.read_text(), public.read_text().strip())
