"""A sample extension handler in Azure's layout."""

from __future__ import annotations

import json
from pathlib import Path

_INSTALL = """\
#!/bin/sh
echo install >> calls
"""

_ENABLE = '''\
#!/usr/bin/env python3
"""Greets, as its settings say."""
import json
import os
import sys

with open("calls", "a") as calls:
    calls.write("enable\\n")
number = os.environ["ConfigSequenceNumber"]
(environment,) = json.load(open("HandlerEnvironment.json"))
paths = environment["handlerEnvironment"]
settings = json.load(open(os.path.join(paths["configFolder"], number + ".settings")))
told = settings["runtimeSettings"][0]["handlerSettings"]["publicSettings"]
if told.get("fail") == "exit":
    sys.exit(3)
message = "%s from %s %s, run %s" % (
    told.get("greeting"), environment["name"],
    os.environ["AZURE_GUEST_AGENT_EXTENSION_VERSION"], number,
)
failed = told.get("fail") == "status"
status = {
    "operation": "enable",
    "status": "error" if failed else "success",
    "code": int(failed),
    "formattedMessage": {"lang": "en-US", "message": "it was told to fail" if failed else message},
}
with open(os.path.join(paths["statusFolder"], number + ".status"), "w") as file:
    json.dump([{"version": 1.0, "timestampUTC": "2026-11-23T00:00:00Z", "status": status}], file)
'''

_MANIFEST = [
    {
        "version": 1.0,
        "handlerManifest": {
            "installCommand": "install.sh",
            "enableCommand": "bin/enable.py --once",
            "disableCommand": "install.sh",
            "uninstallCommand": "install.sh",
            "updateCommand": "install.sh",
            "rebootAfterInstall": False,
            "reportHeartbeat": False,
        },
    }
]


def write_handler(folder: Path) -> Path:
    """Writes the handler's folder."""
    (folder / "bin").mkdir(parents=True)
    for name, text in (("install.sh", _INSTALL), ("bin/enable.py", _ENABLE)):
        path = folder / name
        path.write_text(text)
        path.chmod(0o755)
    (folder / "HandlerManifest.json").write_text(json.dumps(_MANIFEST))
    return folder
