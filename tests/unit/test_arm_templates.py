"""ARM templates as people keep them: parameters, loops, conditions, deployments (P1, P2)."""

from __future__ import annotations

import json
import re
import time
from pathlib import Path
from typing import Any

import pytest

from pytest_vmss.errors import ModelError
from pytest_vmss.model import ScaleSetDocument, load_document
from tests.models import LOAD_BALANCER, custom_script, web_model

KIND = "Microsoft.Compute/virtualMachineScaleSets"


def scale_set(**changes: Any) -> dict[str, Any]:
    """A scale set as a resource of a template, without a probe."""
    body = web_model(automatic=False)
    del body["properties"]["virtualMachineProfile"]["networkProfile"]
    return {"type": KIND, "apiVersion": "2024-07-01", **body, **changes}


def template(*resources: Any, **sections: Any) -> dict[str, Any]:
    return {"$schema": "x", "contentVersion": "1.0.0.0", **sections, "resources": list(resources)}


def name_of(document: dict[str, Any], **arguments: Any) -> str:
    return load_document(document, **arguments).model.name


STRING = {"type": "string"}


def test_a_number_may_be_given_for_a_type_that_is_not_known() -> None:
    """P1: limits of length count for what has a length."""
    own = {"$ref": "#/definitions/elsewhere", "minLength": 1}
    assert name_of(template(scale_set(), parameters={"own": own}), parameters={"own": 2.5})


def test_parameters_come_from_files_objects_and_by_name(tmp_path: Path) -> None:
    """P1: later ones win; names count in any case."""
    document = template(
        scale_set(name="[concat(parameters('first'), parameters('second'), parameters('count'))]"),
        parameters={"first": STRING, "Second": STRING, "count": {"type": "int"}},
    )
    file = tmp_path / "web.parameters.json"
    azure = {"first": {"value": "a"}, "second": {"value": "b"}, "count": {"value": 1}}
    file.write_text(json.dumps({"$schema": "x", "contentVersion": "1", "parameters": azure}))
    plain = {"first": "x", "second": "y", "count": 2}
    assert name_of(document, parameters=file) == "ab1"
    assert name_of(document, parameters=f"@{file}") == "ab1"
    assert name_of(document, parameters=plain) == "xy2"
    assert name_of(document, parameters=[file, "COUNT=7", {"first": "c"}]) == "cb7"


@pytest.mark.parametrize(
    ("given", "path", "told"),
    [
        ({}, "$.parameters.it", "has no value"),
        ({"it": 3}, "$.parameters.it", "must be of type string, is int"),
        ({"it": "c"}, "$.parameters.it", "must be one of 'a', 'b'; given 'c'"),
        ({"it": "a", "other": 1}, "$.parameters.other", "no such parameter"),
        (["it=a", "n=x"], "$.parameters.n", "must be of type int"),
        (["it=a", "n=9"], "$.parameters.n", "value of at most 5; given 9"),
        ({"parameters": {"it": "a"}}, "$.parameters.it", "must be an object with a value"),
        (["nowhere.json"], "$", "cannot be read"),
        (7, "parameters", "must be a file"),
        (["it=a", "own=[NaN]"], "$.parameters.own", "must be of type array, as JSON"),
    ],
)
def test_a_wrong_parameter_is_named(given: Any, path: str, told: str) -> None:
    """P1."""
    document = template(
        scale_set(name="[parameters('it')]"),
        parameters={
            "it": {"type": "String", "allowedValues": ["a", "b"]},
            "n": {"type": "int", "maxValue": 5, "defaultValue": 1},
            "own": {"type": "array", "defaultValue": []},
        },
    )
    with pytest.raises(ModelError, match=told) as wrong:
        load_document(document, parameters=given)
    assert [problem.path for problem in wrong.value.problems] == [path]


def test_a_plain_body_has_no_parameters() -> None:
    with pytest.raises(ModelError, match="has no parameters"):
        load_document(web_model(), load_balancer=LOAD_BALANCER, parameters={"a": 1})


def test_a_secure_parameter_is_asked_for_or_generated_and_shown_nowhere() -> None:
    """P1, M5."""
    document = template(scale_set(), parameters={"word": {"type": "securestring"}})
    machine = document["resources"][0]["properties"]["virtualMachineProfile"]
    machine["osProfile"]["adminPassword"] = "[parameters('word')]"
    machine["extensionProfile"]["extensions"][0]["properties"]["settings"] = {
        "commandToExecute": "[concat('use ', parameters('word'))]"
    }

    def loaded(**arguments: Any) -> tuple[str, ScaleSetDocument]:
        found = load_document(document, **arguments)
        password = found.model.virtual_machine_profile.os_profile.admin_password
        assert password is not None
        return password.get_secret_value(), found

    given, found = loaded(parameters={"word": "hunter22"})
    assert given == "hunter22"
    assert found.generated == ()
    assert "hunter22" not in repr(found) + json.dumps(found.model.wire())
    assert (found.model.extensions[0].settings or {})["commandToExecute"] == "use hunter22"
    asked, found = loaded(supply=lambda name: f"asked for {name}")
    assert asked == "asked for word"
    made, found = loaded()
    assert len(made) >= 12
    assert found.generated == ("word",)
    vault = {"word": {"reference": {"keyVault": {"id": "x"}, "secretName": "y"}}}
    made, found = loaded(parameters={"parameters": vault})
    assert found.generated == ("word",)


@pytest.mark.parametrize(
    "expression",
    [
        "variables(parameters('pw'))", "parameters(parameters('pw'))",
        "lambdaVariables(parameters('pw'))", "createObject(parameters('pw'), 1).x",
        "createObject('x', 1)[parameters('pw')]",
        "format(concat('{0:', parameters('pw'), '}'), 1)", "fail(parameters('pw'))",
        "resourceId(concat('a/', parameters('pw'), '/b'), 'c')",
        "reference('inner').outputs[parameters('pw')].value",
    ],
)  # fmt: skip
def test_a_message_quotes_no_secure_parameter(expression: str) -> None:
    """P1, M5: also where it is used as a name."""
    document = template(
        deployment(template()), scale_set(name=f"[{expression}]"),
        parameters={"pw": {"type": "securestring"}},
    )  # fmt: skip
    with pytest.raises(ModelError) as wrong:
        load_document(document, parameters={"pw": "Hunter2!"})
    assert "hunter2" not in f"{wrong.value}{wrong.value.problems}".lower()


@pytest.mark.parametrize(
    "tags",
    [
        {"[parameters('pw')]": "x"},
        {"[concat('a', parameters('pw'))]": "x"},
        "[createObject(parameters('pw'), 'x')]",
        "[toObject(createArray(parameters('pw')), lambda('x', lambdaVariables('x')))]",
    ],
)
def test_a_secure_parameter_names_no_property(tags: Any) -> None:
    """M5: names are shown in lists, paths and messages; values are not."""
    document = template(scale_set(tags=tags), parameters={"pw": {"type": "securestring"}})
    with pytest.raises(ModelError, match="a property's name is made of a secure") as caught:
        load_document(document, parameters="pw=S3cr3tXyzzy")
    assert "S3cr3t" not in str(caught.value)


@pytest.mark.parametrize("name", ["[parameters('pw')]", "[concat('web-', parameters('pw'))]"])
def test_a_secure_parameter_names_no_resource(name: str) -> None:
    """M5: a set's name is in paths, events and reports."""
    for document in (
        template(scale_set(name=name)),
        template(scale_set(), {"type": "Microsoft.Network/loadBalancers", "name": name}),
    ):
        document["parameters"] = {"pw": {"type": "securestring"}}
        with pytest.raises(ModelError, match=r"name: is made of a secure parameter") as caught:
            load_document(document, parameters="pw=S3cr3tXyzzy")
        assert "S3cr3t" not in str(caught.value)


def test_placeholders_of_quickstart_templates_are_filled() -> None:
    """P1: as their own tests do."""
    document = template(
        scale_set(name="[concat(parameters('n'), '-', parameters('plain'))]"),
        parameters={"n": {"type": "string", "maxLength": 9}, "plain": STRING},
    )
    found = load_document(document, parameters={"n": "GEN-UNIQUE-9", "plain": "GEN-UNIQUELY"})
    assert len(found.model.name) == len("-GEN-UNIQUELY") + 9
    assert found.generated == ("n",)
    again = load_document(document, parameters={"n": "GEN-UNIQUE-9", "plain": "GEN-UNIQUELY"})
    assert again.model == found.model
    web = scale_set()
    profile = web["properties"]["virtualMachineProfile"]["osProfile"]
    key = {"path": "/home/a/.ssh/authorized_keys", "keyData": "[parameters('key')]"}
    profile["linuxConfiguration"] = {"ssh": {"publicKeys": [key]}}
    document = template(web, parameters={"key": {"type": "securestring"}})
    models = [load_document(document, parameters={"key": "GEN-SSH-PUB-KEY"}).model for _ in "12"]
    made = models[0].full()["virtualMachineProfile"]["osProfile"]["linuxConfiguration"]["ssh"]
    assert re.fullmatch(r"ssh-ed25519 [\w+/]{68} generated", str(made["publicKeys"][0]["keyData"]))
    assert models[0] == models[1]


def test_copy_loops_of_resources_properties_and_variables() -> None:
    """P1."""
    disks = {
        "name": "dataDisks", "count": 3,
        "input": {"lun": "[copyIndex('dataDisks')]", "createOption": "Empty",
                  "diskSizeGB": "[variables('gib')[copyIndex('dataDisks')]]"},
    }  # fmt: skip
    resource = scale_set(
        name="[concat('web', copyIndex('sets', 1))]", copy={"name": "sets", "count": 2}
    )
    storage = resource["properties"]["virtualMachineProfile"]["storageProfile"]
    del storage["dataDisks"]
    storage["copy"] = [disks]
    document = template(
        resource,
        variables={"copy": [{"name": "gib", "count": 3, "input": "[add(copyIndex('gib'), 4)]"}]},
    )
    with pytest.raises(ModelError, match="holds 2: web1, web2; choose one by its name"):
        load_document(document)
    model = load_document(document, name="WEB2").model
    assert model.name == "WEB2"
    assert [(disk.lun, disk.disk_size_gb) for disk in model.data_disks] == [(0, 4), (1, 5), (2, 6)]


def test_copy_index_without_a_name_is_the_resources() -> None:
    """P1: in a loop of properties too, which has to be named; names count in any case."""
    items = {
        "name": "items",
        "count": 2,
        "input": "[format('{0}{1}', copyIndex(), copyIndex('items'))]",
    }
    resource = scale_set(
        name="[concat('web', copyIndex())]",
        copy={"Name": "sets", "COUNT": 3},
        zzz={"copy": [items]},
    )
    own = {"Copy": [{"Name": "v", "Count": 1, "Input": "[copyIndex('v')]"}]}
    document = template(resource, variables=own)
    for made in (document, template(deployment(template(resource)))):
        extra = load_document(made, name="web2").model.model_extra or {}
        assert extra["zzz"] == {"items": ["20", "21"]}
    document = template(scale_set(zzz="[variables('v')]", yyy={"copy": [items]}), variables=own)
    extra = load_document(document).model.model_extra or {}
    assert (extra["zzz"], extra["yyy"]) == ([0], {"items": ["00", "11"]})


@pytest.mark.parametrize("lacking", ["count", "input"])
def test_a_copy_loop_is_whole(lacking: str) -> None:
    """P1: a part of one is not kept as a literal."""
    loop = {key: 1 for key in ("count", "input") if key != lacking} | {"name": "v"}
    for document in (
        template(scale_set(zzz={"copy": [loop]})),
        template(scale_set(zzz="[variables('v')]"), variables={"copy": [loop]}),
    ):
        with pytest.raises(
            ModelError, match=r"copy\[0\].*: must have a name, a count and an input"
        ):
            load_document(document)


def test_conditions_and_what_already_exists() -> None:
    """P1."""
    document = template(
        scale_set(name="no", condition="[equals(1, 2)]"),
        scale_set(name="there", existing=True),
        scale_set(name="yes", condition="[parameters('make')]"),
        parameters={"make": {"type": "bool", "defaultValue": True}},
    )
    assert name_of(document) == "yes"
    with pytest.raises(ModelError, match="holds 0: none"):
        load_document(document, parameters=["make=false"])
    unknown = template(scale_set(condition="[reference('x').enabled]"))
    with pytest.raises(ModelError, match="has no value here") as wrong:
        load_document(unknown)
    assert wrong.value.problems[0].path == "$.resources[0].condition"


@pytest.mark.parametrize("nested", [True, False])
def test_child_extensions_belong_to_their_set(nested: bool) -> None:
    """P1."""
    own = {"publisher": "Microsoft.Azure.Extensions", "typeHandlerVersion": "2.1",
           "type": "CustomScript", "settings": {"commandToExecute": "true"}}  # fmt: skip
    parent = scale_set()
    replaced = {"name": "REGISTER", "properties": {**own, "forceUpdateTag": "2"}}
    replaced["apiVersion"] = "2023-09-01"
    added = {"name": "late", "properties": own}
    if nested:
        parent["resources"] = [{"type": "extensions", **child} for child in (replaced, added)]
        document = template(parent)
    else:
        document = template(parent, *(
            {"type": f"{KIND}/extensions", **child, "name": f"[concat('Web/', '{child['name']}')]"}
            for child in (replaced, added)
        ))  # fmt: skip
    model = load_document(document).model
    assert [(entry.name, entry.force_update_tag) for entry in model.extensions] == [
        ("REGISTER", "2"), ("late", None),
    ]  # fmt: skip
    assert [path for path in model.not_modelled() if "apiVersion" in path] == []


def deployment(inner: Any, *, scope: str | None = None, **properties: Any) -> dict[str, Any]:
    options = {"expressionEvaluationOptions": {"scope": scope}} if scope else {}
    return {
        "type": "Microsoft.Resources/deployments",
        "name": "inner",
        "properties": {"mode": "Incremental", "template": inner, **options, **properties},
    }


def test_nested_deployments_and_their_scopes() -> None:
    """P1: without a scope, expressions are the outer template's, as in Azure."""
    inner = template(
        scale_set(name="[parameters('it')]"), parameters={"it": STRING}, outputs={
            "size": {"type": "string", "value": "[concat('Standard_', parameters('it'))]"}
        },
    )  # fmt: skip
    outer = {"it": {"type": "string", "defaultValue": "outer"}}
    given = {"it": {"value": "[concat('in', 'ner')]"}}
    assert (
        name_of(template(deployment(inner, scope="Inner", parameters=given), parameters=outer))
        == "inner"
    )
    assert name_of(template(deployment(inner), parameters=outer)) == "outer"
    reading = scale_set(
        name="reader", sku={"name": "[reference('inner').outputs.size.value]", "capacity": 1}
    )
    inner["resources"] = []
    document = template(
        reading, deployment(inner, scope="inner", parameters={"it": {"value": "B1s"}})
    )
    assert load_document(document).model.sku.name == "Standard_B1s"


def test_a_set_that_is_deployed_twice_is_one() -> None:
    """P2: such as to give it an identity later; objects are merged."""
    again = deployment(template(scale_set(name="WEB", plan={"name": "x"}, sku={"capacity": 5})))
    model = load_document(template(scale_set(sku={"name": "Standard_B1s"}), again)).model
    assert (model.sku.name, model.sku.capacity) == ("Standard_B1s", 5)
    assert "$.plan" in model.not_modelled()


def test_linked_templates_are_found_beside_the_main_one(tmp_path: Path) -> None:
    """P1, R3: wherever the link leads on the web, but nowhere else on disk."""
    (tmp_path / "nested").mkdir()
    linked = template(scale_set(name="[parameters('it')]"), parameters={"it": STRING})
    (tmp_path / "nested" / "set.json").write_text(json.dumps(linked))
    (tmp_path / "secret.json").write_text(json.dumps(template(scale_set(name="outside"))))
    main = tmp_path / "nested" / "main.json"

    def loaded(link: dict[str, str]) -> str:
        call = deployment(None, templateLink=link, parameters={"it": {"value": "linked"}})
        del call["properties"]["template"]
        main.write_text(json.dumps(template(call)))
        return name_of(main)  # type: ignore[arg-type]

    assert loaded({"relativePath": "set.json"}) == "linked"
    assert loaded({"uri": "https://raw.example/master/nested/set.json"}) == "linked"
    assert (
        loaded({"uri": "[uri(deployment().properties.templateLink.uri, 'set.json')]"}) == "linked"
    )
    assert loaded({"uri": f"https://x.example/{'x' * 300}/set.json"}) == "linked"
    (tmp_path / "nested" / "up").symlink_to(tmp_path)
    for away in (
        "../secret.json", "https://x.example/%2e%2e/secret.json", "/etc/passwd",
        "up/secret.json", "http://[", f"{'x' * 300}/set2.json", "a%00b", "a/" * 1_000_000,
    ):  # fmt: skip
        with pytest.raises(ModelError, match="holds 0"):
            loaded({"uri": away})


def test_functions_of_the_templates_own() -> None:
    """P1."""
    functions = [
        {"namespace": "My", "members": {"join": {
            "parameters": [{"name": "a", "type": "string"}, {"name": "b", "type": "string"}],
            "output": {"type": "string", "value": "[concat(parameters('A'), '-', parameters('b'))]"},
        }}}
    ]  # fmt: skip
    assert name_of(template(scale_set(name="[my.JOIN('x', 'y')]"), functions=functions)) == "x-y"


def test_symbolic_names_and_types_of_the_templates_own() -> None:
    """P1: what Bicep writes."""
    document = {
        "languageVersion": "2.0",
        "definitions": {"short": {"type": "string", "maxLength": 3}},
        "parameters": {"n": {"$ref": "#/definitions/short", "nullable": True}},
        "resources": {"web": scale_set(name="[coalesce(parameters('n'), 'bicep')]")},
    }
    assert name_of(document) == "bicep"
    assert name_of(document, parameters={"n": "abc"}) == "abc"


@pytest.mark.parametrize(
    "content",
    [
        json.dumps(web_model()).encode("utf-8-sig"),
        json.dumps(web_model()).encode("utf-16"),
        json.dumps(web_model()).encode("utf-16-le"),
        ("// first\n" + json.dumps(web_model()).replace(
            '"location": "westeurope"', '"location": /* near\n us, */ "westeurope" // here, "x"\n'
        )[:-1] + ",}").encode(),
    ],
)  # fmt: skip
def test_files_as_tools_write_them(tmp_path: Path, content: bytes) -> None:
    """P1: byte-order marks, UTF-16, comments and trailing commas."""
    path = tmp_path / "web.json"
    path.write_bytes(content)
    document = load_document(path, load_balancer=LOAD_BALANCER)
    assert document.model == load_document(web_model(), load_balancer=LOAD_BALANCER).model


def test_a_comment_keeps_the_place_of_an_error(tmp_path: Path) -> None:
    path = tmp_path / "web.json"
    path.write_text('{ /* two\n lines */ "a": 1,\n "b" 2, "http://x": 0}')
    with pytest.raises(ModelError, match="line 3, column 6"):
        load_document(path)
    path.with_suffix(".bicep").write_text("resource")
    with pytest.raises(ModelError, match="az bicep build"):
        load_document(path.with_suffix(".bicep"))


def test_a_probe_is_found_by_its_whole_id() -> None:
    """P2: two balancers whose probes have the same name, and others that nobody needs."""

    def balancer(name: str, port: int) -> dict[str, Any]:
        rule = {"name": "r", "properties": {
            "protocol": "tcp", "frontendPort": 80, "backendPort": 80,
            "probe": {"id": f"[resourceId('Microsoft.Network/loadBalancers/probes', '{name}', 'p')]"},
        }}  # fmt: skip
        probe = {"name": "p", "properties": {"protocol": "TCP", "port": port}}
        return {
            "type": "Microsoft.Network/loadBalancers", "name": name,
            "properties": {"probes": [probe], "loadBalancingRules": [rule]},
        }  # fmt: skip

    resource = scale_set()
    resource["properties"]["virtualMachineProfile"]["networkProfile"] = {
        "healthProbe": {"id": "[concat(variables('lb'), '/probes/P')]"}
    }
    document = template(
        balancer("one", 1), resource, balancer("two", 2), balancer("broken", 0),
        variables={"lb": "[resourceId('Microsoft.Network/loadBalancers', 'TWO')]"},
    )  # fmt: skip
    found = load_document(document)
    assert found.probe is not None
    assert found.probe.port == 2
    document["variables"]["lb"] = (
        "[resourceId('elsewhere', 'Microsoft.Network/loadBalancers', 'two')]"
    )
    with pytest.raises(ModelError, match="names the load-balancer probe 'two/P'"):
        load_document(document)


def test_what_has_no_value_here_counts_where_it_is_read() -> None:
    """P1: an error with its path where the property counts, and listed where it does not."""
    resource = scale_set(apiVersion="[providers('Microsoft.Compute', 'x').apiVersions[0]]")
    resource["properties"]["licenseType"] = "[reference('x').license]"
    settings = {"commandToExecute": "true", "url": "[reference('y').uri]"}
    machine = resource["properties"]["virtualMachineProfile"]
    machine["extensionProfile"]["extensions"] = [custom_script("one", settings=settings)]
    found = load_document(template(resource))
    assert "reference" not in json.dumps(found.model.full())
    assert [problem.path for problem in found.unevaluated] == ["$.apiVersion", "$.licenseType"]
    assert [problem.path for problem in found.unread_settings] == [
        "$.virtualMachineProfile.extensionProfile.extensions[0].settings.url"
    ]
    machine["osProfile"]["adminUsername"] = "[reference('z').user]"
    with pytest.raises(ModelError, match=r"reference\(\) asks Azure") as wrong:
        load_document(template(resource))
    assert wrong.value.problems[0].path == "$.virtualMachineProfile.osProfile.adminUsername"


def test_an_expression_outside_a_template_is_an_error() -> None:
    """P1: it is never kept as a literal."""
    body = scale_set(licenseType="[parameters('license')]", location="[resourceGroup().location]")
    with pytest.raises(ModelError, match="expression of a template") as wrong:
        load_document(body)
    assert {problem.path for problem in wrong.value.problems} == {"$.licenseType", "$.location"}
    assert load_document({**scale_set(), "tags": {"a": "[no expression]"}}).model.tags


@pytest.mark.parametrize(
    "sections",
    [
        {"variables": {"a": "[variables('b')]", "b": "[variables('A')]"}},
        {"variables": {"a": {"x": "[variables('a').x]"}}},
        {"variables": {"a": "[parameters('p')]"},
         "parameters": {"p": {"type": "string", "defaultValue": "[parameters('q')]"},
                        "q": {"type": "string", "defaultValue": "[parameters('p')]"}}},
    ],
)  # fmt: skip
def test_what_refers_to_itself_is_an_error(sections: dict[str, Any]) -> None:
    with pytest.raises(ModelError, match="refers to itself"):
        load_document(template(scale_set(name="[string(variables('a'))]"), **sections))


_DOUBLED = {
    f"v{n}": f"[createArray(variables('v{n + 1}'), variables('v{n + 1}'))]" for n in range(40)
}
_LONGER = {f"v{n}": f"[concat(variables('v{n + 1}'), variables('v{n + 1}'))]" for n in range(40)}


@pytest.mark.parametrize(
    "sections",
    [
        {"variables": {**_DOUBLED, "v40": 1}},
        {"variables": {**_LONGER, "v40": "x"}},
        {"variables": {"v0": "[string(range(0, 10000))]", "copy": [
            {"name": "w", "count": 800, "input": "[length(range(0, 10000))]"}]}},
        {"variables": {"v0": "[padLeft('x', 99999999)]"}},
        {"variables": {"copy": [{"name": "v0", "count": 800000, "input": 1}]}},
        {"variables": {f"v{n}": f"[variables('v{n + 1}')]" for n in range(5000)}},
        {"variables": {"v0": [f"[variables('W{n}')]" for n in range(9000)],
                       **{f"w{n}": 1 for n in range(9000)}}},
        {"variables": {"v0": [f"[variables('x{n}')]" for n in range(9000)],
                       "copy": [{"name": f"x{n}", "count": 0, "input": 1} for n in range(9000)]}},
        {"variables": {"v0": [f"[createArray({','.join(['a.f()'] * 990)})]"] * 20},
         "functions": [{"namespace": "a", "members": {
             **{f"M{n}": {} for n in range(20_000)}, "F": {"output": {"value": 1}}}}]},
        {"variables": {"v0": [f"[or(true(),{','.join('1' * 12_000)},{n})]" for n in range(80)]}},
        {"variables": {"v0": ["[reference('x')]"] * 15_000}, "outputs": {"x": 1},
         "resources": [{"type": "x"}] * 9000},
        {"resources": [{"type": KIND, "name": "x", "copy": {"name": "c", "count": 800},
                        "resources": [{"type": "x"}] * 20_000}]},
        {"parameters": {f"p{n}": {"$ref": "#/definitions/x"} for n in range(9000)},
         "definitions": {"x": {"type": "string", **{f"k{n}": 0 for n in range(9000)}}}},
    ],
)  # fmt: skip
def test_a_hostile_template_is_refused_in_time(sections: dict[str, Any]) -> None:
    """R3."""
    begun = time.process_time()
    hostile = scale_set(tags={"a": "[variables('v0')]", "b": "[string(variables('v0'))]"})
    if "w" in json.dumps(sections.get("variables", {}).get("copy", "")):
        hostile["tags"]["a"] = "[variables('w')]"
    more = sections.get("resources", [])
    with pytest.raises(ModelError):
        load_document({**template(), **sections, "resources": [hostile, *more]})
    assert time.process_time() - begun < 5


def test_many_expressions_in_a_body_are_refused_in_time() -> None:
    """P1, R3: where no template is."""
    begun = time.process_time()
    heavy = [f"[or(true(),{','.join('1' * 12_000)},{n})]" for n in range(60)]
    with pytest.raises(ModelError, match=r"zzz\[59\]: is an expression"):
        load_document({**scale_set(), "zzz": heavy})
    assert time.process_time() - begun < 5


@pytest.mark.parametrize(("kind", "is_shown"), [("string", True), ("securestring", False)])
def test_what_is_given_by_value_is_a_secret_only_if_its_parameter_is_secure(
    kind: str, is_shown: bool
) -> None:
    """P1, M5."""
    document = template(
        scale_set(tags={"team": "[parameters('p')]"}), parameters={"p": {"type": kind}}
    )
    model = load_document(document, parameters=["p=platform"]).model
    assert (model.wire()["tags"]["team"] == "platform") is is_shown
