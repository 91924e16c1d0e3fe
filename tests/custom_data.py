"""Custom data in every format that cloud-init takes, in one (H1)."""

from __future__ import annotations

import gzip
from email.mime.multipart import MIMEMultipart
from email.mime.text import MIMEText

__all__ = ["FORMATS", "every_format", "included"]

#: Each leaves a file of its name in /var/lib/formats.
FORMATS = ("boothook", "cloud-config", "include", "jinja", "part-handler", "script")

_FOLDER = "/var/lib/formats"

_JINJA = f"""\
## template: jinja
#cloud-config
write_files:
  - path: {_FOLDER}/jinja
    content: "{{{{ v1.local_hostname }}}}"
merge_how: "list(append)+dict(recurse_array)+str()"
"""

_CONFIG = f"""\
write_files:
  - path: {_FOLDER}/cloud-config
    content: "cloud-config"
merge_how: "list(append)+dict(recurse_array)+str()"
"""

_HANDLER = f'''\
#part-handler
import os


def list_types():
    return ["text/x-vmss-test"]


def handle_part(data, ctype, filename, payload):
    if ctype == "text/x-vmss-test":
        os.makedirs("{_FOLDER}", exist_ok=True)
        with open("{_FOLDER}/part-handler", "w") as file:
            file.write(payload if isinstance(payload, str) else payload.decode())
'''


def _script(name: str) -> str:
    return f"#!/bin/sh\nmkdir -p {_FOLDER}\nprintf %s {name} > {_FOLDER}/{name}\n"


def every_format(config: str, include: str) -> bytes:
    """A gzipped multipart of all formats.

    Args:
        config: A cloud-config that goes along, without its first line.
        include: URL of :func:`included`.
    """
    parts = MIMEMultipart()
    for subtype, text in (
        ("cloud-config", f"#cloud-config\n{config}{_CONFIG}"),
        ("jinja2", _JINJA),
        ("x-shellscript", _script("script")),
        ("cloud-boothook", "#cloud-boothook\n" + _script("boothook")),
        ("part-handler", _HANDLER),
        ("x-vmss-test", "part-handler"),
        ("x-include-url", f"#include\n{include}\n"),
    ):
        parts.attach(MIMEText(text, subtype))
    return gzip.compress(parts.as_bytes(), mtime=0)


def included() -> str:
    """What the include file leads to."""
    return _script("include")
