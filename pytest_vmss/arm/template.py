"""Expands a template: its resources as Azure would be asked to make them.

Only resources of the wanted types are evaluated, and only what they refer to; the rest of a
template may ask Azure for anything.
"""

from __future__ import annotations

import uuid
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime
from typing import Any, TypeGuard

from pytest_vmss.arm.date_functions import formatted_time
from pytest_vmss.arm.evaluation import Scope
from pytest_vmss.arm.limits import Budget, TemplateError, UnavailableError
from pytest_vmss.arm.parameters import Given, Parameter, declared_parameters, given_in_file, parsed
from pytest_vmss.arm.site import Site
from pytest_vmss.arm.values import Unevaluated, look_up
from pytest_vmss.secrecy import SecretText, mask, quote
from pytest_vmss.untrusted import listed, one_line

__all__ = ["Loader", "Resource", "Supplier", "Template", "expand"]

_DEPLOYMENT = "microsoft.resources/deployments"
_MAX_DEPLOYMENTS = 50
_MAX_NESTING = 8

#: Returns the template that a link names, if it is at hand: (URI, whether it is relative).
Loader = Callable[[str], Mapping[str, Any] | None]
#: Returns a value for a parameter that has none, or None.
Supplier = Callable[[Parameter], str | None]


@dataclass(frozen=True)
class Resource:
    """A resource of an expanded template.

    Attributes:
        kind: Its type, in lower case.
        name: Its name, those of its parents included.
        body: Its body, with :class:`Unevaluated` in the place of what has no value here.
        path: Where the template declares it.
        identifier: Its id.
    """

    kind: str
    name: str
    body: dict[str, Any] = field(repr=False)
    path: str
    identifier: str = field(repr=False)


def expand(
    template: Mapping[str, Any],
    given: Given,
    wanted: frozenset[str],
    *,
    site: Site,
    load: Loader,
    supply: Supplier,
) -> list[Resource]:
    """Returns the resources of some types that a template declares.

    Args:
        template: The template.
        given: The values of its parameters.
        wanted: The types, in lower case.
        site: Where it is deployed.
        load: Finds linked templates.
        supply: Finds values of parameters that have none.

    Raises:
        TemplateError: The template is wrong; it has a path.
    """
    run = _Run(wanted, site, load, Budget())
    root = Template(template, run, supply=supply)
    root.give(given)
    return list(root.resources())


@dataclass
class _Run:
    """What all templates of one expansion share."""

    wanted: frozenset[str]
    site: Site
    load: Loader
    budget: Budget
    deployments: int = 0


class Template:
    """One template with the values of its parameters; implements ``Names``.

    Args:
        body: The template.
        run: The expansion.
        supply: Finds values of parameters that have none.
        path: Where it stands in the outermost template.
        nesting: How many deployments contain it.
        name: The name of its deployment.
        place: Where its resources are made; where the expansion is deployed unless it is given.
    """

    def __init__(
        self,
        body: Mapping[str, Any],
        run: _Run,
        *,
        supply: Supplier = lambda _: None,
        path: str = "$",
        nesting: int = 0,
        name: str = "main",
        place: Site | None = None,
    ) -> None:
        self._body = _sections(body, path)
        self._run, self._supply, self._path = run, supply, path
        self._nesting, self._name = nesting, name
        self._place = place or run.site
        self.site, self.budget = self._place, run.budget
        self._declared = declared_parameters(self._body)
        self._given: dict[str, Any] = {}
        self._values: dict[str, Any] = {}
        self._variables: dict[str, Any] = {}
        self._pending: list[str] = []
        self._deployments: dict[str, Template | None] = {}
        self._symbols: dict[str, str] = {}
        self._is_walked = False

    # Parameters.

    def give(self, given: Given) -> None:
        """Takes values for parameters.

        Raises:
            TemplateError: A parameter is not declared, or its value is wrong.
        """
        for name in (*given.values, *given.texts):
            if name.lower() not in self._declared:
                names = listed(parameter.name for parameter in self._declared.values())
                raise TemplateError(
                    f"is given, but the template declares no such parameter; it has: {names}",
                    f"$.parameters.{one_line(mask(name))}",
                )
        for name, value in given.values.items():
            self._given[name.lower()] = value
        for name, text in given.texts.items():
            parameter = self._declared[name.lower()]
            try:
                self._given[name.lower()] = parsed(parameter, text)
            except TemplateError as error:
                raise error.at(self._parameter_path(parameter)) from None
        for name in self._given:
            self.parameter(name)

    def _parameter_path(self, parameter: Parameter) -> str:
        return f"{self._path}.parameters.{one_line(mask(parameter.name))}"

    def parameter(self, name: str) -> Any:
        """Returns a parameter's value."""
        key = name.lower()
        parameter = self._declared.get(key)
        if parameter is None:
            names = listed(each.name for each in self._declared.values())
            raise TemplateError(f"there is no parameter {quote(name)}; there are: {names}")
        if key not in self._values:
            with _Once(self._pending, f"the parameter {one_line(name)}"):
                try:
                    self._values[key] = parameter.checked(self._value_of(parameter))
                except TemplateError as error:
                    raise error.at(self._parameter_path(parameter)) from None
        return self._values[key]

    def _value_of(self, parameter: Parameter) -> Any:
        key = parameter.name.lower()
        found = self._given.get(key)
        is_lacking = found is None or (isinstance(found, Unevaluated) and parameter.is_secure)
        if not is_lacking:
            return found
        if parameter.default is not None:
            scope = Scope(self, in_default=True)
            return scope.value(parameter.default, f"{self._parameter_path(parameter)}.defaultValue")
        supplied = self._supply(parameter)
        if supplied is not None:
            return parsed(parameter, supplied)
        if parameter.is_secure:
            reason = f"the secure parameter {one_line(parameter.name)} has no value"
            return Unevaluated(reason, is_kept=True)
        if parameter.has_default or isinstance(found, Unevaluated):
            return found
        raise TemplateError(
            "has no value: give it in a parameters file or by name "
            f"(--parameters {one_line(parameter.name)}=…, parameters=)"
        )

    # Variables, functions.

    def variable(self, name: str, depth: int) -> Any:
        """Returns a variable's value."""
        key = name.lower()
        if key not in self._variables:
            declared = self._body["variables"]
            known = self._look_up(declared, name)
            with _Once(self._pending, f"the variable {one_line(name)}"):
                if known is not None and known.lower() != "copy":
                    path = f"{self._path}.variables.{one_line(mask(known))}"
                    self._variables[key] = Scope(self).value(declared[known], path, depth)
                else:
                    self._variables[key] = self._copied_variable(name, depth)
        return self._variables[key]

    def _copied_variable(self, name: str, depth: int) -> Any:
        """Makes a variable that the section's ``copy`` declares."""
        section = self._body["variables"]
        loops = section.get(self._look_up(section, "copy"))
        loops = loops if isinstance(loops, list) else []
        self.budget.spend(len(loops))
        for index, given in enumerate(loops):
            loop = {key.lower(): part for key, part in given.items()} if _is_object(given) else {}
            if str(loop.get("name", "")).lower() == name.lower():
                path = f"{self._path}.variables.copy[{index}]"
                made = Scope(self).value({"copy": [loop]}, path, depth)
                return next(iter(made.values()))
        names = listed(self._body["variables"])
        raise TemplateError(f"there is no variable {quote(name)}; there are: {names}")

    def user_function(self, name: str) -> Mapping[str, Any] | None:
        """Returns a function of the template's own, by its namespace and name in lower case."""
        namespace, dot, member = name.partition(".")
        groups = self._body["functions"] if dot else ()
        self.budget.spend(len(groups))
        for group in groups:
            if (
                not isinstance(group, Mapping)
                or str(group.get("namespace", "")).lower() != namespace
            ):
                continue
            members = group.get("members")
            known = self._look_up(members, member) if isinstance(members, Mapping) else None
            if known is not None and isinstance(members, Mapping):
                definition = members[known]
                return definition if isinstance(definition, Mapping) else None
        return None

    def _look_up(self, section: Mapping[str, Any], name: str) -> str | None:
        """Finds a name in any case; one that is spelt otherwise is looked for among all."""
        if name not in section:
            self.budget.spend(len(section))
        return look_up(section, name)

    def default_function(self, name: str) -> Callable[..., Any] | None:
        """Returns a function that only default values may call."""
        if name == "newguid":
            return lambda: str(uuid.uuid4())
        if name == "utcnow":
            return lambda *pattern: formatted_time(datetime.now(UTC), *pattern)
        return None

    def deployment(self) -> dict[str, Any]:
        """Returns what ``deployment()`` does: a linked template is found beside this one."""
        return {
            "name": self._name,
            "location": self.site.location,
            "properties": {
                "mode": "Incremental",
                "templateLink": {"uri": "https://template.invalid/azuredeploy.json"},
                "template": {"contentVersion": self._body.get("contentVersion", "1.0.0.0")},
            },
        }

    def reference(self, identifier: str) -> Any:
        """Returns the outputs of a deployment in this template.

        Args:
            identifier: Its id, its name, or its symbolic name.

        Raises:
            UnavailableError: It is another resource.
        """
        name = identifier.rstrip("/").rpartition("/")[2].lower()
        found = self._deployment_of(name)
        if found is None:
            raise UnavailableError("reference() asks Azure for what exists there")
        return {"outputs": _Outputs(found)}

    def references(self, symbol: str) -> list[Any]:
        """Returns the outputs of each deployment of a copy loop with a symbolic name.

        Raises:
            UnavailableError: It loops over other resources.
        """
        made: list[Any] = []
        while (found := self._deployment_of(f"{symbol.lower()}[{len(made)}]")) is not None:
            made.append({"outputs": _Outputs(found)})
        if not made:
            raise UnavailableError("references() asks Azure for what exists there")
        return made

    def _deployment_of(self, name: str) -> Template | None:
        """Returns a deployment by its name, or its symbolic name; it may be declared further on."""
        if not self._is_walked and self._known_deployment(name) is None:
            for _ in self._walk(frozenset()):
                pass
            self._is_walked = True
        return self._known_deployment(name)

    def _known_deployment(self, name: str) -> Template | None:
        return self._deployments.get(self._symbols.get(name, name))

    def resource_info(self, symbol: str) -> dict[str, Any]:
        """Returns what a resource with a symbolic name is called.

        Raises:
            TemplateError: There is none.
            UnavailableError: It is a copy loop.
        """
        resources = self._body["resources"]
        known = self._look_up(resources, symbol) if isinstance(resources, Mapping) else None
        entry = resources[known] if known is not None else None
        plain = {key.lower(): item for key, item in entry.items()} if _is_object(entry) else {}
        kind, path = plain.get("type"), f"{self._path}.resources.{one_line(mask(symbol))}"
        if not isinstance(kind, str):
            raise TemplateError(f"there is no resource with the symbolic name {quote(symbol)}")
        if "copy" in plain:
            raise UnavailableError("resourceInfo() of a copy loop is not known")
        name = self._named(plain.get("name"), Scope(self), path, "")
        return {"id": self._id(kind, name), "name": name, "type": kind}

    def output(self, name: str) -> Any:
        """Returns the value of an output.

        Raises:
            TemplateError: There is none.
        """
        outputs = self._body["outputs"]
        known = self._look_up(outputs, name)
        entry = outputs[known] if known is not None else None
        if not isinstance(entry, Mapping):
            raise TemplateError(f"there is no output {quote(name)}; there are: {listed(outputs)}")
        with _Once(self._pending, f"the output {one_line(name)}"):
            return Scope(self).value(
                entry.get("value"), f"{self._path}.outputs.{one_line(mask(name))}"
            )

    @property
    def output_names(self) -> list[str]:
        """The names of the outputs."""
        return list(self._body["outputs"])

    # Resources.

    def resources(self) -> Iterator[Resource]:
        """Yields the resources of the wanted types, those of inner deployments included."""
        yield from self._walk(self._run.wanted)

    def _walk(self, wanted: frozenset[str]) -> Iterator[Resource]:
        listed_resources = self._body["resources"]
        entries: list[tuple[str, Any, str]] = (
            [
                (f"resources.{one_line(mask(key))}", item, key)
                for key, item in listed_resources.items()
            ]
            if isinstance(listed_resources, Mapping)
            else [(f"resources[{index}]", item, "") for index, item in enumerate(listed_resources)]
        )
        for where, entry, symbol in entries:
            yield from self._expanded(entry, f"{self._path}.{where}", wanted, "", "", symbol)

    def _expanded(
        self,
        entry: Any,
        path: str,
        wanted: frozenset[str],
        parent: str,
        parent_name: str,
        symbol: str = "",
    ) -> Iterator[Resource]:
        """Yields what a resource's declaration makes.

        Args:
            entry: The declaration.
            path: Its JSON path.
            wanted: The types to yield.
            parent: The type of the resource that contains it, or empty.
            parent_name: That resource's name.
            symbol: Its symbolic name, if it has one.
        """
        try:
            self.budget.step()
        except TemplateError as error:
            raise error.at(path) from None
        if not isinstance(entry, Mapping):
            raise TemplateError("must be an object", path)
        plain = {key.lower(): item for key, item in entry.items()}
        kind = plain.get("type")
        if not isinstance(kind, str):
            raise TemplateError("must have a type", path)
        kind = f"{parent}/{kind}".strip("/").lower()
        children = plain.get("resources")
        is_wanted = kind in wanted or kind == _DEPLOYMENT
        has_children = isinstance(children, list) and any(
            other.startswith(f"{kind}/") for other in wanted
        )
        if plain.get("existing") is True or not (is_wanted or has_children):
            return
        own = {
            key: item
            for key, item in entry.items()
            if key.lower()
            not in ("copy", "condition", "resources", "dependson", "comments", "type")
        }
        for scope in self._iterations(plain.get("copy"), path):
            if not self._is_made(plain.get("condition", True), scope, path):
                continue
            name = self._named(plain.get("name"), scope, path, parent_name)
            if kind == _DEPLOYMENT:
                self._note_symbol(symbol, name, plain, scope)
                yield from self._deployed(plain, name, scope, path, wanted)
                continue
            if kind in wanted:
                body = scope.value(own, path)
                body["name"] = name
                yield Resource(kind, name, body, path, self._id(kind, name))
            for index, child in enumerate(children if isinstance(children, list) else ()):
                where = f"{path}.resources[{index}]"
                yield from self._expanded(child, where, wanted, kind, name)

    def _id(self, kind: str, name: str) -> str:
        try:
            return self._place.resource_id(kind, name)
        except TemplateError:
            return ""

    def _iterations(self, loop: Any, path: str) -> Iterator[Scope]:
        """Yields the scope of each copy of a resource."""
        scope = Scope(self)
        if loop is None:
            yield scope
            return
        loop = {key.lower(): part for key, part in loop.items()} if _is_object(loop) else {}
        if not {"name", "count"} <= loop.keys():
            raise TemplateError("must be an object with a name and a count", f"{path}.copy")
        name = scope.value(loop["name"], f"{path}.copy.name")
        for index in range(scope.count(loop["count"], f"{path}.copy.count")):
            yield replace(scope.within(str(name), index), resource_index=index)

    @staticmethod
    def _is_made(condition: Any, scope: Scope, path: str) -> bool:
        found = scope.value(condition, f"{path}.condition")
        if isinstance(found, Unevaluated):
            raise TemplateError(f"has no value here: {found.reason}", f"{path}.condition")
        if isinstance(found, str) and found.lower() in ("true", "false"):
            return found.lower() == "true"
        if not isinstance(found, bool):
            raise TemplateError("must be true or false", f"{path}.condition")
        return found

    @staticmethod
    def _named(name: Any, scope: Scope, path: str, parent: str) -> str:
        found = scope.value(name, f"{path}.name")
        if isinstance(found, Unevaluated):
            raise TemplateError(f"has no value here: {found.reason}", f"{path}.name")
        if not isinstance(found, str):
            raise TemplateError("must be a string", f"{path}.name")
        if isinstance(found, SecretText):
            raise TemplateError(
                "is made of a secure parameter, and names are shown everywhere; use a parameter "
                "that is no secret",
                f"{path}.name",
            )
        return f"{parent}/{found}" if parent else found

    # Deployments.

    def _note_symbol(self, symbol: str, name: str, plain: Mapping[str, Any], scope: Scope) -> None:
        """Notes the symbolic name of a deployment; in a copy loop, with its index."""
        if symbol:
            at = "" if plain.get("copy") is None else f"[{scope.resource_index}]"
            self._symbols[f"{symbol}{at}".lower()] = name.lower()

    def _deployed(
        self,
        plain: Mapping[str, Any],
        name: str,
        scope: Scope,
        path: str,
        wanted: frozenset[str],
    ) -> Iterator[Resource]:
        """Yields the resources of a nested or linked deployment."""
        key = name.lower()
        if key not in self._deployments:
            self._deployments[key] = None  # while it is made
            self._deployments[key] = self._inner(plain, name, scope, path)
        found = self._deployments[key]
        if found is not None and wanted:
            yield from found._walk(wanted)

    def _inner(
        self, plain: Mapping[str, Any], name: str, scope: Scope, path: str
    ) -> Template | None:
        """Returns the template of a deployment; None if a linked one is not at hand."""
        properties = plain.get("properties")
        if not isinstance(properties, Mapping):
            return None
        self._run.deployments += 1
        if self._run.deployments > _MAX_DEPLOYMENTS or self._nesting >= _MAX_NESTING:
            raise TemplateError(
                f"has more than {_MAX_DEPLOYMENTS} deployments, or nests more than {_MAX_NESTING}",
                path,
            )
        where = f"{path}.properties"
        parts = {key.lower(): item for key, item in properties.items()}
        body = parts.get("template")
        options = parts.get("expressionevaluationoptions")
        is_inner = isinstance(options, Mapping) and str(options.get("scope", "")).lower() == "inner"
        is_linked = not isinstance(body, Mapping)
        if is_linked:
            body = self._linked(parts.get("templatelink"), scope, f"{where}.templateLink")
        if not isinstance(body, Mapping):
            return None
        place = self._place_of(plain, scope, path)
        inner = (
            Template(
                body, self._run, path=f"{where}.template", nesting=self._nesting + 1, name=name,
                place=place,
            )
            if is_linked or is_inner
            else _Outer(
                body, self._run, self, scope, f"{where}.template", self._nesting + 1, name, place
            )
        )  # fmt: skip
        given = parts.get("parameters")
        link = parts.get("parameterslink")
        if isinstance(link, Mapping) and (is_linked or is_inner):
            inner.give(Given(self._linked_parameters(link, scope, f"{where}.parametersLink")))
        elif isinstance(given, Mapping) and (is_linked or is_inner):
            values = {
                key: scope.value(
                    entry["value"] if isinstance(entry, Mapping) and "value" in entry
                    else _IN_VAULT, f"{where}.parameters.{one_line(mask(key))}",
                )
                for key, entry in given.items()
            }  # fmt: skip
            inner.give(Given(values))
        return inner

    def _place_of(self, plain: Mapping[str, Any], scope: Scope, path: str) -> Site:
        """Returns where a deployment makes its resources: it may name another resource group."""
        place = self._place
        for key, name in (("resourcegroup", "resource_group"), ("subscriptionid", "subscription")):
            found = scope.value(plain.get(key), f"{path}.{key}")
            if isinstance(found, str) and found:
                place = replace(place, **{name: found})
        return place

    def _linked(self, link: Any, scope: Scope, path: str) -> Mapping[str, Any] | None:
        """Returns the file that a link means; None if it is not at hand."""
        if not isinstance(link, Mapping):
            return None
        for key in ("relativePath", "uri"):
            known = look_up(link, key)
            if known is None:
                continue
            found = scope.value(link[known], f"{path}.{known}")
            if isinstance(found, str):
                return self._run.load(found)
        return None

    def _linked_parameters(self, link: Any, scope: Scope, path: str) -> dict[str, Any]:
        found = self._linked(link, scope, path)
        if found is None:
            raise TemplateError("links to a parameters file that is not beside the template", path)
        return given_in_file(found)


_IN_VAULT = None


class _Outer(Template):
    """A nested template whose expressions belong to the template around it, Azure's default."""

    def __init__(
        self,
        body: Mapping[str, Any],
        run: _Run,
        outside: Template,
        scope: Scope,
        path: str,
        nesting: int,
        name: str,
        place: Site,
    ) -> None:
        super().__init__(
            {key: item for key, item in body.items() if key.lower() != "parameters"},
            run, path=path, nesting=nesting, name=name, place=place,
        )  # fmt: skip
        self.site = outside.site
        self._outside, self._scope = outside, scope

    def parameter(self, name: str) -> Any:
        """Returns a parameter of the template around it."""
        return self._outside.parameter(name)

    def variable(self, name: str, depth: int) -> Any:
        """Returns a variable of the template around it."""
        return self._outside.variable(name, depth)

    def user_function(self, name: str) -> Mapping[str, Any] | None:
        """Returns a function of the template around it."""
        return self._outside.user_function(name)

    def reference(self, identifier: str) -> Any:
        """Returns the outputs of a deployment in it, or in the template around it."""
        try:
            return super().reference(identifier)
        except UnavailableError:
            return self._outside.reference(identifier)

    def _iterations(self, loop: Any, path: str) -> Iterator[Scope]:
        for inner in super()._iterations(loop, path):
            outer = self._scope.resource_index
            at = outer if inner.resource_index is None else inner.resource_index
            yield Scope(self, loops=(*self._scope.loops, *inner.loops), resource_index=at)


class _Outputs(Mapping[str, Any]):
    """The outputs of a deployment, evaluated when they are asked for."""

    def __init__(self, template: Template) -> None:
        self._template = template

    def __getitem__(self, name: str) -> Any:
        return {"value": self._template.output(name)}

    def __iter__(self) -> Iterator[str]:
        return iter(self._template.output_names)

    def __len__(self) -> int:
        return len(self._template.output_names)


def _is_object(value: Any) -> TypeGuard[Mapping[str, Any]]:
    return isinstance(value, Mapping)


class _Once:
    """Refuses values that refer to themselves."""

    def __init__(self, pending: list[str], what: str) -> None:
        self._pending, self._what = pending, what

    def __enter__(self) -> None:
        if self._what.lower() in self._pending:
            raise TemplateError(f"{self._what} refers to itself")
        self._pending.append(self._what.lower())

    def __exit__(self, *_: object) -> None:
        self._pending.pop()


def _sections(template: Mapping[str, Any], path: str) -> dict[str, Any]:
    """Returns a template with all of its sections, each of the right type.

    Raises:
        TemplateError: One is of another type.
    """
    found = {
        key.lower() if key.lower() in _SECTIONS else key: item for key, item in template.items()
    }
    for name, kinds in _SECTIONS.items():
        value = found.get(name)
        if value is None:
            found[name] = kinds[0]()
        elif not isinstance(value, kinds):
            raise TemplateError(
                "must be an object" if kinds[0] is dict else "must be a list of resources",
                f"{path}.{name}",
            )
    return found


_SECTIONS: Mapping[str, tuple[type, ...]] = {
    "functions": (list,),
    "outputs": (dict,),
    "parameters": (dict,),
    "resources": (list, dict),
    "variables": (dict,),
}
