"""A sample extension handler in Azure's layout."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

_HANDLER = '''\
#!/usr/bin/env python3
"""Greets, as its settings say; every call is a line of a log that outlives it."""
import json
import os
import sys

VERB = sys.argv[1]
PREFIX = "AZURE_GUEST_AGENT_"
(environment,) = json.load(open("HandlerEnvironment.json"))
paths = environment["handlerEnvironment"]
version = os.environ[PREFIX + "EXTENSION_VERSION"]
told = [
    name[len(PREFIX):] + "=" + os.environ[name]
    for name in sorted(os.environ)
    if name.startswith(PREFIX) and not name.startswith(PREFIX + "EXTENSION")
]
with open(os.path.join(paths["logFolder"], "calls"), "a") as calls:
    calls.write(" ".join([VERB, version, *told]) + "\\n")
try:
    fails = json.load(open("fails.json"))
except OSError:
    fails = {}
if VERB in fails:
    print("about to fail")
    sys.exit(fails[VERB])
if VERB == "enable":
    number = os.environ["ConfigSequenceNumber"]
    settings = json.load(open(os.path.join(paths["configFolder"], number + ".settings")))
    public = settings["runtimeSettings"][0]["handlerSettings"]["publicSettings"]
    if public.get("fail") == "exit":
        sys.exit(3)

    def part(name, status, message):
        told = {"lang": "en-US", "message": message}
        return {"name": name, "status": status, "formattedMessage": told}

    message = "%s from %s %s, run %s" % (public.get("greeting"), environment["name"], version, number)
    if public.get("fail") == "status":
        status = dict(part("", "error", "it was told to fail"), code=1)
    else:
        parts = [part("Greeting", "success", "x" * public.get("length", 1)),
                 part("Rest", "transitioning", "later")]
        status = dict(part("", "success", message), code=0, substatus=parts)
    del status["name"]
    status["operation"] = "enable"
    entry = {"version": 1.0, "timestampUTC": "2026-11-23T00:00:00Z", "status": status}
    with open(os.path.join(paths["statusFolder"], number + ".status"), "w") as file:
        json.dump([entry], file)
    if "heartbeat" in public:
        beat = {"status": public["heartbeat"], "code": 0, "Message": "as it was told"}
        with open(paths["heartbeatFile"], "w") as file:
            json.dump([{"version": 1.0, "heartbeat": beat}], file)
'''


def write_handler(folder: Path, *, fails: dict[str, int] | None = None, **manifest: Any) -> Path:
    """Writes the handler's folder.

    Args:
        folder: Is made.
        fails: Exit statuses of commands that fail.
        manifest: What its manifest has besides the commands.
    """
    (folder / "bin").mkdir(parents=True)
    path = folder / "bin/handler.py"
    path.write_text(_HANDLER)
    path.chmod(0o755)
    verbs = ("install", "enable", "update", "disable", "uninstall")
    commands = {f"{verb}Command": f"bin/handler.py {verb}" for verb in verbs}
    entry = {"version": 1.0, "handlerManifest": {**commands, **manifest}}
    (folder / "HandlerManifest.json").write_text(json.dumps([entry]))
    if fails:
        (folder / "fails.json").write_text(json.dumps(fails))
    return folder
