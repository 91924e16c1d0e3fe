"""Model documents that are mutated until most are wrong, for ``python -m benchmarks.fuzz`` (R3)."""

from __future__ import annotations

import copy
import json
import random
import tempfile
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any

import yaml

from pytest_vmss.guest.extensions import check_settings, known_types
from pytest_vmss.model import check_model, load_document, review
from tests.models import LOAD_BALANCER, web_model, with_application_health

__all__ = ["cases", "originals"]

_VALUES: tuple[Any, ...] = (
    None, True, 0, -1, 1e308, float("nan"), 2**63, 10**400, "", "x" * 5000, "\ud800", "a\0b",
    "[parameters('a')]", "[variables('b')]", "[reference('x').y]", "[listKeys('x', '1').keys[0]]",
    "[concat(parameters('a'), variables('b'))]", "[copyIndex()]", "[if(true(), 1, 2)]", "[a(]",
    "[json('{')]", "[range(0, 10000)]", "[[x]", {"copy": [{"name": "x", "count": 3, "input": 1}]},
    {"name": "x", "count": 2}, "Flexible", "uniform", "PT1H", "P999999999D", "2018-10-01", [], {}, [[]],
    {"properties": {"properties": {}}}, "http://[", "../x", "\u0662.\u0660", b"x", {1: 2},
)  # fmt: skip
#: What is written to a file at most; of larger ones the loader gets the value itself.
_WRITTEN_VALUES, _WRITTEN_DEPTH = 30_000, 200
_YAML = (
    "!!int x", "!!float x", "!!bool x", "!!timestamp x", "!!binary AAA", "!!set {a}", "&a [*a]",
    "*a", "2001-99-99", "0b_", "1:2:x", "[" * 200, "? ? ?", "<<: *a", "9" * 5000, "\t", "%", "'",
)  # fmt: skip


def originals() -> list[dict[str, Any]]:
    """Documents that are sound, of every kind."""
    plain = {
        "parameters": {"a": {"type": "string", "defaultValue": "web"}},
        "variables": {"b": ["x", "[parameters('a')]"]},
        "resources": [
            {"type": "Microsoft.Compute/virtualMachineScaleSets", **web_model()},
            {"type": "Microsoft.Network/loadBalancers", **LOAD_BALANCER},
        ],
    }
    return [web_model(), with_application_health(web_model()), plain, _template()]


def _template() -> dict[str, Any]:
    """A template with parameters, a loop, a condition, a child and a deployment."""
    body = web_model(automatic=False)
    machine = body["properties"]["virtualMachineProfile"]
    machine["networkProfile"]["healthProbe"]["id"] = "[variables('probe')]"
    machine["storageProfile"] = {
        **machine["storageProfile"],
        "copy": [{"name": "dataDisks", "count": 2, "input": {
            "lun": "[copyIndex('dataDisks')]", "createOption": "Empty", "diskSizeGB": 1}}],
    }  # fmt: skip
    del machine["storageProfile"]["dataDisks"]
    machine["osProfile"]["adminPassword"] = "[concat(parameters('secret'), uniqueString('a'))]"
    extension = machine["extensionProfile"]["extensions"].pop()
    probe = "Microsoft.Network/loadBalancers/probes"
    return {
        "languageVersion": "1.0",
        "parameters": {
            "a": {"type": "string", "allowedValues": ["web", "x"], "defaultValue": "web"},
            "secret": {"type": "securestring", "minLength": 3},
            "count": {"type": "int", "defaultValue": 2, "maxValue": 9},
        },
        "functions": [{"namespace": "n", "members": {"f": {
            "parameters": [{"name": "x", "type": "string"}],
            "output": {"type": "string", "value": "[toLower(parameters('x'))]"}}}}],
        "variables": {
            "probe": f"[resourceId('{probe}', 'web-lb', 'healthz')]",
            "copy": [{"name": "many", "count": 3, "input": "[copyIndex('many', 1)]"}],
            "object": {"x": ["[variables('many')[0]]", "[format('{0}-{1:D2}', 'a', 1)]"]},
        },
        "resources": [
            {
                "type": "Microsoft.Compute/virtualMachineScaleSets", **body,
                "name": "[n.f(concat(parameters('a'), copyIndex()))]",
                "condition": "[equals(copyIndex(), sub(parameters('count'), 1))]",
                "copy": {"name": "sets", "count": "[parameters('count')]"},
                "tags": "[union(createObject('a', string(variables('object').x)), json('{}'))]",
                "resources": [{"type": "extensions", **extension}],
            },
            {
                "type": "Microsoft.Resources/deployments", "name": "inner",
                "properties": {
                    "expressionEvaluationOptions": {"scope": "inner"},
                    "parameters": {"p": {"value": "[parameters('a')]"}},
                    "template": {
                        "parameters": {"p": {"type": "string"}},
                        "resources": [{"type": "Microsoft.Network/loadBalancers", **LOAD_BALANCER}],
                        "outputs": {"o": {"value": "[parameters('p')]"}},
                    },
                },
            },
        ],
    }  # fmt: skip


def cases(random: random.Random, count: int) -> Iterator[Callable[[], object]]:
    """Documents that are to be loaded and checked.

    Args:
        random: Decides everything.
        count: How many.
    """
    sound = originals()
    memory = Path("/dev/shm")  # files cost less there
    with tempfile.TemporaryDirectory(dir=memory if memory.is_dir() else None) as folder:
        for _ in range(count):
            document = copy.deepcopy(random.choice(sound))
            for _change in range(random.choice((1, 1, 2, 3, 8))):
                _mutate(document, random)
            kind = random.choice(("mapping", "json", "yaml"))
            path = Path(folder) / f"model.{kind}"
            if not _is_writable(document):
                kind = "mapping"  # the loader gets it as it is
            written = b"" if kind == "mapping" else _written(document, kind, random)
            if kind == "mapping":
                yield partial(_load, document)
                continue
            path.write_bytes(written)
            yield partial(_load, path)


def _load(source: Any) -> object:
    document = load_document(source, load_balancer=LOAD_BALANCER)
    again = load_document(document.model.full(), load_balancer=LOAD_BALANCER, is_stored=True)
    if again.model != document.model:
        raise AssertionError("it loads again to another model")
    review(document)
    return check_model(
        document.model, probe=document.probe, sizes={}, extension_types=known_types(),
        clusters=list(document.clusters), balancer=document.balancer,
        unread_settings=document.unread_settings,
    ) + check_settings(document.model.extensions)  # fmt: skip


def _mutate(document: Any, random: random.Random) -> None:
    """Changes, removes, repeats or moves one value somewhere in a document."""
    place = document
    while True:
        keys: list[Any] = list(place) if isinstance(place, dict) else list(range(len(place)))
        if not keys:
            return
        key = random.choice(keys)
        if isinstance(place[key], (dict, list)) and random.random() < 0.8:
            place = place[key]
            continue
        break
    what = random.randrange(7)
    if what == 0:
        del place[key]
    elif what == 1 and isinstance(place, list):
        place *= random.choice((2, 50, 2000)) if len(place) < 10 else 2
    elif what == 2 and isinstance(place, dict):
        place[random.choice((str(key).upper(), f"{key}_", "ä", "", "\n"))] = place[key]
    elif what == 6 and isinstance(place, dict):
        place[_respelled(str(key), random)] = place.pop(key)
    elif what == 3:
        deep: Any = place[key]
        for _ in range(random.choice((1, 60, 300))):
            deep = [deep]
        place[key] = deep
    else:
        place[key] = copy.deepcopy(random.choice(_VALUES))


def _respelled(name: str, random: random.Random) -> str:
    return "".join(random.choice((letter.lower(), letter.upper())) for letter in name)


def _is_writable(document: Any) -> bool:
    """Whether a document is small and flat enough for the libraries that write it."""
    values, level = 0, [document]
    for _depth in range(_WRITTEN_DEPTH):
        level = [
            child
            for entry in level
            if isinstance(entry, (dict, list))
            for child in (entry.values() if isinstance(entry, dict) else entry)
        ]
        values += len(level)
        if not level:
            return True
        if values > _WRITTEN_VALUES:
            return False
    return False


def _written(document: Any, kind: str, random: random.Random) -> bytes:
    try:
        text = json.dumps(document, default=repr)
    except (TypeError, ValueError):
        text = "{}"
    if kind == "yaml":
        if random.random() < 0.2:
            plain = json.loads(text, parse_int=lambda _: 1)
            try:
                text = yaml.dump(plain, Dumper=yaml.CSafeDumper)
            except UnicodeEncodeError:  # the slow one escapes what is no character
                text = yaml.safe_dump(plain)
        for _ in range(random.randrange(3)):
            text = text.replace(random.choice(('"web"', "true", "null", "1", "80")),
                                random.choice(_YAML), 1)  # fmt: skip
    content = bytearray(text.encode(errors="replace"))
    for _ in range(random.choice((0, 0, 1, 4))):
        content[random.randrange(len(content))] = random.randrange(256)
    return bytes(content[: random.randrange(len(content))] if random.random() < 0.05 else content)
