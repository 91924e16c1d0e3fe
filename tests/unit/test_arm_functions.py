"""The functions of ARM templates, by the rules that Azure's reference gives for each (P1)."""

from __future__ import annotations

import time
import tracemalloc
import uuid
from datetime import UTC, datetime
from typing import Any

import pytest

from pytest_vmss.arm import Given, Resource, Site, TemplateError, Unevaluated, expand
from pytest_vmss.arm.date_functions import formatted_time
from pytest_vmss.arm.functions import FUNCTIONS
from pytest_vmss.arm.syntax import is_expression, parse

KIND = "Microsoft.Compute/virtualMachineScaleSets"
GROUP = "/subscriptions/00000000-0000-0000-0000-000000000000/resourceGroups/lab"


def made(template: dict[str, Any], **parameters: Any) -> list[Resource]:
    """The scale sets of a template."""
    return expand(
        template,
        Given(parameters),
        frozenset({KIND.lower()}),
        site=Site(location="westeurope"),
        load=lambda _: None,
        supply=lambda _: None,
    )


def evaluated(value: Any, **sections: Any) -> Any:
    """What a value in a resource becomes."""
    resource = {"type": KIND, "name": "web", "properties": {"it": value}}
    (found,) = made({**sections, "resources": [resource]})
    return found.body["properties"]["it"]


@pytest.mark.parametrize(
    ("expression", "value"),
    [
        ("'it''s'", "it's"),
        ("concat('a', 'b', 3)", "ab3"),
        ("concat(createArray(1), createArray('x'))", [1, "x"]),
        ("CONCAT('A', toLower('B'))", "Ab"),
        ("add(2, 3)", 5), ("sub(2, 3)", -1), ("mul(2, 3)", 6),
        ("div(-7, 2)", -3), ("mod(-7, 2)", -1), ("mod(7, 3)", 1),
        ("int('42')", 42), ("float('1.5')", 1.5), ("string(12)", "12"), ("string(true())", "True"),
        ("string(createObject('a', createArray(1, null())))", '{"a":[1,null]}'),
        ("bool('TRUE')", True), ("bool(0)", False), ("not(true())", False),
        ("and(true(), false())", False), ("or(true(), false())", True),
        ("if(equals(1, 1), 'yes', 'no')", "yes"),
        ("equals('a', 'A')", False), ("equals(1, true())", False), ("equals(1, '1')", False),
        ("equals(createObject('a', 1), createObject('A', 1))", True),
        ("less('a', 'b')", True), ("greaterOrEquals(2, 2)", True),
        ("coalesce(null(), 'x')", "x"),
        ("min(3, 1, 2)", 1), ("max(createArray(3, 1))", 3), ("range(2, 3)", [2, 3, 4]),
        ("length('abc')", 3), ("length(createObject('a', 1))", 1),
        ("empty('')", True), ("empty(null())", True), ("empty(createArray(1))", False),
        ("first('abc')", "a"), ("last(createArray(1, 2))", 2), ("first(createArray())", None),
        ("take('abc', 2)", "ab"), ("take(createArray(1), 5)", [1]), ("skip('abc', 1)", "bc"),
        ("contains('abc', 'b')", True), ("contains('abc', 'B')", False),
        ("contains(createArray(1, 2), 2)", True), ("contains(createObject('Ab', 1), 'aB')", True),
        ("indexOf('test', 'T')", 0), ("lastIndexOf('test', 'T')", 3), ("indexOf('a', 'z')", -1),
        ("startsWith('abc', 'AB')", True), ("endsWith('abc', 'x')", False),
        ("union(createArray(1, 2), createArray(2, 3))", [1, 2, 3]),
        ("union(createObject('a', createObject('x', 1)), createObject('A', createObject('y', 2)))",
         {"a": {"x": 1, "y": 2}}),
        ("intersection(createArray(1, 2), createArray(2, 3))", [2]),
        ("shallowMerge(createArray(createObject('a', 1), createObject('a', 2)))", {"a": 2}),
        ("flatten(createArray(createArray(1), createArray(2)))", [1, 2]),
        ("items(createObject('b', 1, 'a', 2))",
         [{"key": "a", "value": 2}, {"key": "b", "value": 1}]),
        ("objectKeys(createObject('b', 1, 'a', 2))", ["a", "b"]),
        ("tryGet(createObject('a', createArray(7)), 'a', 0)", 7),
        ("tryGet(createObject(), 'a')", None),
        ("indexFromEnd(createArray(1, 2), 1)", 2),
        ("array('x')", ["x"]),
        ("split('a,b;c', createArray(',', ';'))", ["a", "b", "c"]),
        ("join(createArray('a', 'b'), '-')", "a-b"),
        ("replace('aXbX', 'X', '-')", "a-b-"), ("trim(' a ')", "a"), ("toUpper('a')", "A"),
        ("substring('abcd', 1, 2)", "bc"), ("substring('abcd', 2)", "cd"),
        ("padLeft(7, 3, '0')", "007"), ("padLeft('long', 2)", "long"),
        ("format('{0}-{1:D3} {{x}} {2,4}|', 'a', 7, 'b')", "a-007 {x}    b|"),
        ("format('{0:N0} {0:X}', 4096)", "4,096 1000"),
        ("base64('ä')", "w6Q="), ("base64ToString('w6Q=')", "ä"),
        ("base64ToJson('eyJhIjoxfQ==')", {"a": 1}),
        ("json('{\"a\": [1, null]}')", {"a": [1, None]}), ("json('null')", None),
        ("json('{''a'': 1}')", {"a": 1}),
        ("uri('http://x.org/a/', 'b.json')", "http://x.org/a/b.json"),
        ("uri('http://x.org/a', 'b.json')", "http://x.org/b.json"),
        ("uriComponent('a b/ü')", "a%20b%2F%C3%BC"), ("uriComponentToString('a%20b')", "a b"),
        ("dataUriToString(dataUri('hi'))", "hi"),
        ("guid('a', 'b')",
         str(uuid.uuid5(uuid.UUID("11fb06fb-712d-4ddd-98c7-e71bbd588830"), "a-b"))),
        ("equals(uniqueString('a'), uniqueString('a'))", True),
        ("equals(uniqueString('a'), uniqueString('b'))", False),
        ("length(uniqueString('a', 'b'))", 13),
        ("resourceGroup().location", "westeurope"), ("resourceGroup().id", GROUP),
        ("subscription().subscriptionId", "00000000-0000-0000-0000-000000000000"),
        ("environment().suffixes.storage", "core.windows.net"),
        ("resourceId('Microsoft.Network/loadBalancers', 'lb')",
         f"{GROUP}/providers/Microsoft.Network/loadBalancers/lb"),
        ("resourceId('Microsoft.Network/loadBalancers/probes', 'lb', 'p')",
         f"{GROUP}/providers/Microsoft.Network/loadBalancers/lb/probes/p"),
        ("resourceId('other', 'Microsoft.X/a', 'n')",
         f"{GROUP.replace('/lab', '/other')}/providers/Microsoft.X/a/n"),
        ("subscriptionResourceId('Microsoft.X/a', 'n')",
         f"{GROUP.partition('/resourceGroups')[0]}/providers/Microsoft.X/a/n"),
        ("extensionResourceId('/x', 'Microsoft.Y/b', 'n')", "/x/providers/Microsoft.Y/b/n"),
        ("parseCidr('10.1.0.0/24').lastUsable", "10.1.0.254"),
        ("cidrSubnet('10.0.0.0/16', 24, 1)", "10.0.1.0/24"), ("cidrHost('10.0.0.0/24', 1)", "10.0.0.2"),
        ("dateTimeAdd('2024-01-31T00:00:00Z', 'P1M')", "2024-02-29T00:00:00Z"),
        ("dateTimeAdd('2024-01-01T00:00:00Z', '-PT1H', 'yyyy-MM-dd HH')", "2023-12-31 23"),
        ("dateTimeToEpoch('1970-01-02T00:00:00Z')", 86400),
        ("dateTimeFromEpoch(86400)", "1970-01-02T00:00:00Z"),
        ("pickZones('Microsoft.Compute', 'virtualMachines', 'x', 2, 1)", ["2", "3"]),
        ("map(createArray(1, 2), lambda('x', add(lambdaVariables('x'), 1)))", [2, 3]),
        ("filter(createArray(1, 2), lambda('x', greater(lambdaVariables('x'), 1)))", [2]),
        ("reduce(createArray(1, 2), 0, lambda('a', 'b', add(lambdaVariables('a'), lambdaVariables('b'))))",
         3),
        ("sort(createArray(2, 1), lambda('a', 'b', less(lambdaVariables('a'), lambdaVariables('b'))))",
         [1, 2]),
        ("toObject(createArray('a'), lambda('k', lambdaVariables('k')), lambda('k', 1))", {"a": 1}),
        ("createObject('a', createArray(5)).A[0]", 5),
        ("createObject('a', 1).?b", None),
    ],
)  # fmt: skip
def test_a_function_has_the_value_that_the_reference_gives(expression: str, value: Any) -> None:
    """P1."""
    found = evaluated(f"[{expression}]")
    assert found == value
    assert type(found) is type(value)


@pytest.mark.parametrize(
    ("expression", "told"),
    [
        ("concat('a'", "not a valid expression"),
        ("concat('a',)", "not a valid expression"),
        ("nothing('a')", "no such function"),
        ("concat(createArray(1), 'a')", "joins strings with strings"),
        ("div(1, 0)", "divides by zero"),
        ("substring('abc', 2, 5)", "not within"),
        ("int('x')", "not a whole number"),
        ("add('1', 2)", "must be an integer, is string"),
        ("toLower(1)", "must be a string, is int"),
        ("toLower()", "takes 1 arguments; given 0"),
        ("createObject('a', 1).b", "'b' does not exist; there are: a"),
        ("createArray(1)[3]", "index 3 is not within"),
        ("parameters('none')", "no parameter 'none'"),
        ("variables('none')", "no variable 'none'"),
        ("copyIndex()", "not in a copy loop"),
        ("json('{')", "not JSON"),
        ("base64ToString('!')", "not base64"),
        ("if(1)", "must be a bool"),
        ("resourceId('Microsoft.Network/loadBalancers/probes', 'lb')", "needs 2 names; given 1"),
        ("fail('no')", "fails: no"),
        ("format('{1}', 'a')", "names the argument 1"),
        ("newGuid()", "in the default values of parameters alone"),
        ("int('+-5')", "not a whole number"),
        ("int(json('NaN'))", "not JSON"),
        ("string(json('[1e400]'))", "not JSON"),
        (f"float(json('{'9' * 400}'))", "takes no such arguments"),
        ("uri('http://[', 'x')", "not parts of a URI"),
        ("subscriptionResourceId('x')", "needs a resource type"),
        ("subscriptionResourceId()", "needs a resource type"),
        ("base64(json('\"\\ud800\"'))", "not JSON"),
        ("map(createArray(1), lambda())", "lambda function with a body"),
    ],
)
def test_a_wrong_expression_is_an_error_with_its_path(expression: str, told: str) -> None:
    """P1: what Azure would refuse is refused, and where it is."""
    with pytest.raises(TemplateError, match=told) as wrong:
        evaluated(f"[{expression}]")
    assert wrong.value.path == "$.resources[0].properties.it"


@pytest.mark.parametrize(
    "expression",
    [
        "reference('x').properties.id", "concat('a', listKeys('x', '2019-06-01').keys[0].value)",
        "providers('Microsoft.Network', 'virtualNetworks').apiVersions[0]", "listSas('x')",
    ],
)  # fmt: skip
def test_what_only_azure_knows_is_never_a_literal(expression: str) -> None:
    """P1."""
    assert isinstance(evaluated(f"[{expression}]"), Unevaluated)
    assert isinstance(evaluated([{"a": f"[{expression}]"}])[0]["a"], Unevaluated)
    assert evaluated(f"[if(true(), 'known', {expression})]") == "known"


def test_text_that_is_no_expression() -> None:
    assert evaluated("[[concat('a')]") == "[concat('a')]"
    assert evaluated("[a] b") == "[a] b"
    assert not is_expression("[[x]")


def test_the_table_has_no_name_in_capitals() -> None:
    assert all(name == name.lower() for name in FUNCTIONS)


def test_expressions_are_bounded() -> None:
    """R3."""
    for text in (f"[{'a(' * 80}1{')' * 80}]", f"[{'x' * 30_000}]", "[a()" + ".b" * 90 + "]"):
        with pytest.raises(TemplateError, match=r"nested deeper|more than"):
            parse(text)


@pytest.mark.parametrize(
    "expression",
    [
        "join(range(0, 10000), variables('long'))",
        "format(variables('places'), variables('long'))",
        "concat(variables('long'), replace(variables('long'), 'a', variables('long')))",
        "json(variables('quotes'))",
        "string(union(range(0, 9000), map(range(0, 9000), lambda('x', variables('many')))))",
        "reduce(range(0, 9000), '', lambda('a', 'b', concat(lambdaVariables('a'), variables('long'))))",
        "string(map(range(0, 9000), lambda('x', variables('wide').none)))",
        "length(join(variables('x14'), ''))",
        "length(string(variables('x14')))",
    ],
)
def test_a_hostile_expression_is_refused_in_time(expression: str) -> None:
    """R3: in time and memory; what is made is counted before it is there."""
    variables = {
        "long": "a" * 100_000, "places": "{0}" * 5000, "quotes": "'\\" * 400_000,
        "many": "[range(0, 9000)]", "wide": {f"k{n}": n for n in range(9000)}, "x0": ["\U0001f600" * 4000],
        **{f"x{n + 1}": f"[concat(variables('x{n}'), variables('x{n}'))]" for n in range(14)},
    }  # fmt: skip
    begun = time.process_time()
    tracemalloc.start()
    with pytest.raises(TemplateError):
        evaluated(f"[{expression}]", variables=variables)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert time.process_time() - begun < 4
    assert peak < 100 * 2**20


def test_times_are_formatted_as_dotnet_does() -> None:
    moment = datetime(2024, 3, 5, 14, 7, 9, 120000, tzinfo=UTC)
    assert formatted_time(moment) == "20240305T140709Z"
    assert formatted_time(moment, "d") == "03/05/2024"
    assert formatted_time(moment, "yy-M-d h:mm tt fff") == "24-3-5 2:07 PM 120"
    assert formatted_time(moment, "ddd MMM 'at' HH") == "Tue Mar at 14"


def test_an_order_that_is_none_ends_in_time() -> None:
    """R3: nothing tells how long it takes to sort by what always says yes."""
    begun = time.process_time()
    assert len(evaluated("[sort(range(0, 9000), lambda('a', 'b', true()))]")) == 9000
    assert time.process_time() - begun < 4
