"""Evaluates template expressions, and values that contain them."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from typing import Any, Protocol

from pytest_vmss.arm.functions import FUNCTIONS, unavailable_reason
from pytest_vmss.arm.limits import MAX_COPIES, Budget, TemplateError, UnavailableError
from pytest_vmss.arm.site import Site
from pytest_vmss.arm.syntax import Access, Call, Expression, Literal, is_expression, parse
from pytest_vmss.arm.values import (
    Unevaluated,
    boolean,
    integer,
    kind_of,
    look_up,
    property_name,
    text,
)
from pytest_vmss.secrecy import SecretText, conceal, has_secret, mask, quote
from pytest_vmss.untrusted import listed, one_line

__all__ = ["Names", "Scope"]


class Names(Protocol):
    """What the names of one template stand for."""

    site: Site
    budget: Budget

    def parameter(self, name: str) -> Any:
        """The value of a parameter."""

    def variable(self, name: str, depth: int) -> Any:
        """The value of a variable."""

    def deployment(self) -> dict[str, Any]:
        """What ``deployment()`` returns."""

    def reference(self, identifier: str) -> Any:
        """What ``reference()`` returns of a deployment in the template.

        Raises:
            UnavailableError: It is another resource.
        """

    def references(self, symbol: str) -> list[Any]:
        """What ``references()`` returns of a copy loop of deployments; raises likewise."""

    def resource_info(self, symbol: str) -> dict[str, Any]:
        """What ``resourceInfo()`` returns of a resource with a symbolic name."""

    def user_function(self, name: str) -> Mapping[str, Any] | None:
        """The definition of a function of the template's own, or None."""

    def default_function(self, name: str) -> Callable[..., Any] | None:
        """A function that only default values of parameters may call, or None."""


@dataclass(frozen=True)
class Scope:
    """Evaluates what stands at one place of a template.

    Attributes:
        names: What its names stand for.
        loops: The copy loops around it: name in lower case and index; the innermost is the last.
        resource_index: The index of the innermost loop that copies a resource.
        locals: The variables of the lambda functions around it.
        parameters: In a function of the template's own, the function's parameters.
        in_default: Whether it stands in the default value of a parameter.
    """

    names: Names
    loops: tuple[tuple[str, int], ...] = ()
    resource_index: int | None = None
    locals: Mapping[str, Any] = field(default_factory=dict)
    parameters: Mapping[str, Any] | None = None
    in_default: bool = False

    def value(self, value: Any, path: str, depth: int = 0) -> Any:
        """Evaluates a JSON value and all expressions in it.

        Args:
            value: The value as it is in the template.
            path: Its JSON path.
            depth: How many evaluations contain it.

        Returns:
            A new value, with :class:`Unevaluated` in the place of what has no value here.

        Raises:
            TemplateError: An expression is wrong, or a limit exceeded; it has a path.
        """
        try:
            self.names.budget.step(depth)
            if isinstance(value, str):
                return self._string(value, depth)
        except TemplateError as error:
            raise error.at(path) from None
        if isinstance(value, list):
            return [
                self.value(item, f"{path}[{index}]", depth + 1) for index, item in enumerate(value)
            ]
        if not isinstance(value, Mapping):
            return value
        made: dict[str, Any] = {}
        for key, item in value.items():
            where = f"{path}.{one_line(mask(key))}"
            if key.lower() == "copy" and _is_copy(item):
                made.update(self._copies(item, where, depth))
                continue
            try:
                found = self._string(key, depth)
                if isinstance(found, Unevaluated):
                    made[key] = found  # what has no name has no value either
                    continue
                name = property_name(found)
            except TemplateError as error:
                raise error.at(where) from None
            made[name] = self.value(item, where, depth + 1)
        return made

    def _string(self, value: str, depth: int) -> Any:
        if not is_expression(value):
            return value[1:] if value.startswith("[[") else value
        try:
            self.names.budget.read(value)
            return self._evaluate(parse(value), depth)
        except UnavailableError as error:
            return Unevaluated(error.reason)
        except RecursionError:
            pass
        raise TemplateError("is nested too deep")

    def _copies(self, loops: Any, path: str, depth: int) -> dict[str, Any]:
        """Evaluates the copy loops of an object, each of which makes an array property."""
        made: dict[str, Any] = {}
        for index, given in enumerate(loops):
            where = f"{path}[{index}]"
            loop = {key.lower(): part for key, part in given.items()}
            if not {"count", "input"} <= loop.keys():
                raise TemplateError("must have a name, a count and an input", where)
            name = self.value(loop["name"], f"{where}.name", depth + 1)
            made[str(name)] = [
                self.within(str(name), number).value(loop["input"], f"{where}.input", depth + 1)
                for number in range(self.count(loop["count"], f"{where}.count"))
            ]
        return made

    def within(self, loop: str, index: int) -> Scope:
        """Returns the scope inside one iteration of a copy loop."""
        return replace(self, loops=(*self.loops, (loop.lower(), index)))

    def count(self, value: Any, path: str) -> int:
        """Evaluates the number of a loop's iterations.

        Raises:
            TemplateError: It is no number from 0 to 800, or has no value here.
        """
        found = self.value(value, path)
        if isinstance(found, Unevaluated):
            raise TemplateError(f"has no value here: {found.reason}", path)
        try:
            number = integer(found, "the count")
        except TemplateError as error:
            raise error.at(path) from None
        if not 0 <= number <= MAX_COPIES:
            raise TemplateError(f"must be from 0 to {MAX_COPIES}; given {number}", path)
        return number

    def _evaluate(self, expression: Expression, depth: int) -> Any:
        self.names.budget.step(depth)
        if isinstance(expression, Literal):
            return expression.value
        if isinstance(expression, Access):
            target = self._evaluate(expression.target, depth + 1)
            key = self._evaluate(expression.key, depth + 1)
            if isinstance(target, Mapping) and key not in target:
                self.names.budget.spend(len(target))  # it is looked for in other spellings
            return _accessed(target, key, is_safe=expression.is_safe)
        result = self._call(expression, depth)
        self.names.budget.take(result)
        return result

    def _known(self, expression: Expression, depth: int) -> Any:
        """Evaluates an argument.

        Raises:
            UnavailableError: It has no value here.
        """
        value = self._evaluate(expression, depth + 1)
        if isinstance(value, Unevaluated):
            raise UnavailableError(value.reason)
        return value

    def _call(self, call: Call, depth: int) -> Any:
        special = _SPECIAL.get(call.name)
        if special is not None:
            try:
                return special(self, call, depth)
            except IndexError:
                raise TemplateError(f"{call.name}() has too few arguments") from None
        own = self._own(call.name)
        if own is not None:
            least = most = len(call.arguments)
            function: Callable[..., Any] = own
        elif call.name in FUNCTIONS:
            function, least, most = FUNCTIONS[call.name]
        else:
            return self._user_function(call, depth)
        if not least <= len(call.arguments) <= most:
            raise TemplateError(
                f"{call.name}() takes {least if least == most else f'{least} to {most}'} "
                f"arguments; given {len(call.arguments)}"
            )
        arguments = [self._known(argument, depth) for argument in call.arguments]
        self.names.budget.weigh(arguments)
        return _apply(call.name, function, arguments)

    def _own(self, name: str) -> Callable[..., Any] | None:
        """A function that depends on the place, or None."""
        if self.in_default and (found := self.names.default_function(name)) is not None:
            return found
        site = self.names.site
        table: dict[str, Callable[..., Any]] = {
            "deployment": self.names.deployment,
            "resourcegroup": site.group,
            "resourceid": site.resource_id,
            "subscription": site.subscription_view,
            "subscriptionresourceid": site.subscription_resource_id,
            "tenant": lambda: {"tenantId": site.subscription, "displayName": "lab"},
        }
        return table.get(name)

    def _user_function(self, call: Call, depth: int) -> Any:
        definition = self.names.user_function(call.name)
        if definition is None:
            if (reason := unavailable_reason(call.name)) is not None:
                raise UnavailableError(reason)
            if self.names.default_function(call.name) is not None:
                raise TemplateError(
                    f"calls {one_line(call.name)}(), which Azure allows in the default values of "
                    "parameters alone; make it one's"
                )
            raise TemplateError(f"calls {one_line(call.name)}(), and there is no such function")
        declared = definition.get("parameters") or []
        if not isinstance(declared, list) or len(declared) != len(call.arguments):
            raise TemplateError(f"{one_line(call.name)}() takes other arguments")
        given = {
            str(entry.get("name", "") if isinstance(entry, Mapping) else "").lower(): self._known(
                argument, depth
            )
            for entry, argument in zip(declared, call.arguments, strict=True)
        }
        output = definition.get("output")
        value = output.get("value") if isinstance(output, Mapping) else None
        found = Scope(self.names, parameters=given).value(value, "", depth + 1)
        if isinstance(found, Unevaluated):
            raise UnavailableError(found.reason)
        return found

    # Functions that do not evaluate all of their arguments, or depend on the place.

    def _parameters(self, call: Call, depth: int) -> Any:
        name = text(self._known(call.arguments[0], depth), "the parameter's name")
        if self.parameters is None:
            return self.names.parameter(name)
        if name.lower() in self.parameters:
            return self.parameters[name.lower()]
        raise TemplateError(f"there is no parameter {quote(name)}")

    def _variables(self, call: Call, depth: int) -> Any:
        name = text(self._known(call.arguments[0], depth), "the variable's name")
        return self.names.variable(name, depth + 1)

    def _copy_index(self, call: Call, depth: int) -> int:
        arguments = [self._known(argument, depth) for argument in call.arguments]
        wanted = arguments.pop(0).lower() if arguments and isinstance(arguments[0], str) else None
        offset = integer(arguments[0], "the offset") if arguments else 0
        if wanted is None and self.resource_index is not None:
            return self.resource_index + offset
        for name, index in reversed(self.loops):
            if wanted is None or name == wanted:
                return index + offset
        raise TemplateError("copyIndex() is not in a copy loop of that name")

    def _if(self, call: Call, depth: int) -> Any:
        condition = boolean(self._known(call.arguments[0], depth), "the condition")
        return self._evaluate(call.arguments[1 if condition else 2], depth + 1)

    def _and(self, call: Call, depth: int) -> bool:
        return all(boolean(self._known(argument, depth)) for argument in call.arguments)

    def _or(self, call: Call, depth: int) -> bool:
        return any(boolean(self._known(argument, depth)) for argument in call.arguments)

    def _coalesce(self, call: Call, depth: int) -> Any:
        for argument in call.arguments:
            if (value := self._evaluate(argument, depth + 1)) is not None:
                return value
        return None

    def _reference(self, call: Call, depth: int) -> Any:
        identifier, *options = [self._known(argument, depth) for argument in call.arguments]
        found = self.names.reference(text(identifier))
        is_full = len(options) > 1 and text(options[1]).lower() == "full"
        return {"properties": found} if is_full else found

    def _references(self, call: Call, depth: int) -> list[Any]:
        return self.names.references(text(self._known(call.arguments[0], depth)))

    def _resource_info(self, call: Call, depth: int) -> dict[str, Any]:
        return self.names.resource_info(text(self._known(call.arguments[0], depth)))

    def _fail(self, call: Call, depth: int) -> Any:
        raise TemplateError(f"fails: {mask(text(self._known(call.arguments[0], depth)))[:200]}")

    def _lambda_variables(self, call: Call, depth: int) -> Any:
        name = text(self._known(call.arguments[0], depth), "the variable's name")
        if name.lower() in self.locals:
            return self.locals[name.lower()]
        raise TemplateError(f"there is no lambda variable {quote(name)}")

    def _lambda(self, expression: Expression, depth: int) -> Callable[..., Any]:
        """Returns the function that a ``lambda('x', …)`` expression makes."""
        if not isinstance(expression, Call) or expression.name != "lambda":
            raise TemplateError("takes a lambda function")
        if not expression.arguments:
            raise TemplateError("takes a lambda function with a body")
        *heads, body = expression.arguments
        names = [text(self._known(head, depth)).lower() for head in heads]

        def apply(*values: Any) -> Any:
            given = dict(zip(names, values, strict=False))
            inner = replace(self, locals={**self.locals, **given})
            return inner._known(body, depth + 1)

        return apply

    def _over(self, call: Call, depth: int) -> tuple[list[Any], Callable[..., Any]]:
        values = self._known(call.arguments[0], depth)
        if not isinstance(values, list):
            raise TemplateError(f"takes an array; given {kind_of(values)}")
        return values, self._lambda(call.arguments[-1], depth)

    def _map(self, call: Call, depth: int) -> list[Any]:
        values, function = self._over(call, depth)
        return [function(value, index) for index, value in enumerate(values)]

    def _filter(self, call: Call, depth: int) -> list[Any]:
        values, function = self._over(call, depth)
        return [value for index, value in enumerate(values) if boolean(function(value, index))]

    def _reduce(self, call: Call, depth: int) -> Any:
        values, function = self._over(call, depth)
        reduced = self._known(call.arguments[1], depth)
        for index, value in enumerate(values):
            reduced = function(reduced, value, index)
            self.names.budget.take(reduced)
        return reduced

    def _sort(self, call: Call, depth: int) -> list[Any]:
        values, is_before = self._over(call, depth)
        made: list[Any] = []
        for value in values:
            at = next(
                (place for place, other in enumerate(made) if boolean(is_before(value, other))),
                len(made),
            )
            made.insert(at, value)
        return made

    def _to_object(self, call: Call, depth: int) -> dict[str, Any]:
        values = self._known(call.arguments[0], depth)
        if not isinstance(values, list):
            raise TemplateError(f"takes an array; given {kind_of(values)}")
        key = self._lambda(call.arguments[1], depth)
        item = self._lambda(call.arguments[2], depth) if len(call.arguments) > 2 else None
        return {
            property_name(key(value)): value if item is None else item(value) for value in values
        }


def _is_copy(value: Any) -> bool:
    """Whether a property named ``copy`` holds loops, rather than a property's value."""
    return isinstance(value, list) and all(
        isinstance(loop, Mapping) and "name" in {key.lower() for key in loop} for loop in value
    )


def _accessed(target: Any, key: Any, *, is_safe: bool) -> Any:
    """Returns a property or an item."""
    for part in (target, key):
        if isinstance(part, Unevaluated):
            raise UnavailableError(part.reason)
    if is_safe and target is None:
        return None
    if isinstance(target, Mapping):
        name = text(key, "a property's name")
        known = look_up(target, name)
        if known is None and not is_safe:
            raise TemplateError(
                f"the property {quote(name)} does not exist; there are: "
                f"{listed(mask(key) for key in target)}"
            )
        return None if known is None else target[known]
    if isinstance(target, list):
        at = integer(key, "an index")
        if not 0 <= at < len(target):
            if is_safe:
                return None
            raise TemplateError(f"the index {at} is not within the {len(target)} items")
        return target[at]
    raise TemplateError(f"asks for a part of a value that is {kind_of(target)}")


def _apply(name: str, function: Callable[..., Any], arguments: list[Any]) -> Any:
    """Calls a function; what it makes of secrets is secret."""
    try:
        result = function(*arguments)
    except TemplateError as error:
        raise TemplateError(f"{name}(): {error.message}") from None
    except (ArithmeticError, LookupError, TypeError, ValueError):
        raise TemplateError(f"{name}() takes no such arguments") from None
    except RecursionError:
        raise TemplateError(f"{name}() is given a value that is nested too deep") from None
    if has_secret(arguments) and isinstance(result, (str, list, Mapping)):
        return SecretText(result) if isinstance(result, str) else conceal(result, secret=True)
    return result


_SPECIAL: Mapping[str, Callable[[Scope, Call, int], Any]] = {
    "and": Scope._and,
    "coalesce": Scope._coalesce,
    "copyindex": Scope._copy_index,
    "fail": Scope._fail,
    "filter": Scope._filter,
    "if": Scope._if,
    "lambdavariables": Scope._lambda_variables,
    "map": Scope._map,
    "or": Scope._or,
    "parameters": Scope._parameters,
    "reduce": Scope._reduce,
    "reference": Scope._reference,
    "references": Scope._references,
    "resourceinfo": Scope._resource_info,
    "sort": Scope._sort,
    "toobject": Scope._to_object,
    "variables": Scope._variables,
}
