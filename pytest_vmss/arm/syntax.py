"""The grammar of template expressions, ``[concat(parameters('name'), '-vm')]``."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cache, lru_cache
from typing import Any, cast

from lark import Lark, Token, Transformer, UnexpectedInput, v_args

from pytest_vmss.arm.limits import MAX_DEPTH, Budget, TemplateError

__all__ = ["Access", "Call", "Expression", "Literal", "is_expression", "is_parsed", "parse"]

#: Azure's limit for the length of an expression.
_MAX_CHARS = 24_576

_GRAMMAR = r"""
?start: expression
?expression: call
    | STRING                                   -> text
    | INTEGER                                  -> number
    | expression "." NAME                      -> dot
    | expression ".?" NAME                     -> safe_dot
    | expression "[" expression "]"            -> index
    | expression "[?" expression "]"           -> safe_index
call: qualified "(" [expression ("," expression)*] ")"
qualified: NAME ("." NAME)*

STRING: /'[^']*(?:''[^']*)*'/
INTEGER: /[+-]?[0-9]{1,20}/
NAME: /[A-Za-z_$][A-Za-z0-9_$]*/
%ignore /[ \t\r\n]+/
"""


@dataclass(frozen=True)
class Literal:
    """A text or a number."""

    value: str | int


@dataclass(frozen=True)
class Call:
    """A call of a function; ``name`` is in lower case, with its namespace if it has one."""

    name: str
    arguments: tuple[Expression, ...]


@dataclass(frozen=True)
class Access:
    """A property or an item of a value.

    Attributes:
        target: The value.
        key: The property's name or the item's index.
        is_safe: Whether null stands for what is not there (``.?``).
    """

    target: Expression
    key: Expression
    is_safe: bool = False


Expression = Literal | Call | Access


@v_args(inline=True)
class _Builder(Transformer[Token, Any]):
    """Builds expressions from lark's trees."""

    def text(self, token: Token) -> Literal:
        return Literal(token[1:-1].replace("''", "'"))

    def number(self, token: Token) -> Literal:
        return Literal(int(token))

    def dot(self, target: Expression, name: Token) -> Access:
        return Access(target, Literal(str(name)))

    def safe_dot(self, target: Expression, name: Token) -> Access:
        return Access(target, Literal(str(name)), is_safe=True)

    def index(self, target: Expression, key: Expression) -> Access:
        return Access(target, key)

    def safe_index(self, target: Expression, key: Expression) -> Access:
        return Access(target, key, is_safe=True)

    def qualified(self, *names: Token) -> str:
        return ".".join(names).lower()

    def call(self, name: str, *arguments: Expression | None) -> Call:
        return Call(name, tuple(each for each in arguments if each is not None))


@cache
def _parser() -> Lark:
    """Returns the parser; made for the first expression, as it takes 50 ms of each command's start."""
    return Lark(_GRAMMAR, parser="lalr", transformer=_Builder(), maybe_placeholders=True)


def is_expression(text: str) -> bool:
    """Whether a template's string is an expression; ``[[`` escapes a bracket."""
    return text.startswith("[") and text.endswith("]") and not text.startswith("[[")


def is_parsed(text: str, budget: Budget) -> bool:
    """Whether a string is a valid expression.

    Args:
        text: The string.
        budget: Counts it; what is beyond is not parsed any more, and taken as one.
    """
    if not is_expression(text) or len(text) > _MAX_CHARS:
        return False
    try:
        budget.read(text)
    except TemplateError:
        return True
    try:
        parse(text)
    except TemplateError:
        return False
    return True


@lru_cache(maxsize=2048)
def parse(text: str) -> Expression:
    """Parses an expression, with its brackets.

    Raises:
        TemplateError: It is not valid.
    """
    if len(text) > _MAX_CHARS:
        raise TemplateError(f"is an expression of more than {_MAX_CHARS} characters")
    if _nesting(text) > MAX_DEPTH:
        raise TemplateError(f"is an expression nested deeper than {MAX_DEPTH} levels")
    try:
        return cast("Expression", _parser().parse(text[1:-1]))
    except UnexpectedInput as error:
        column = error.column + 1 if isinstance(error.column, int) and error.column > 0 else None
    where = "at its end" if column is None else f"at character {column}"
    raise TemplateError(f"is not a valid expression {where}; write a literal '[' as '[['")


def _nesting(text: str) -> int:
    """Returns how deep an expression's parentheses, brackets and accesses are nested, at most."""
    deepest = depth = 0
    chain = 0
    quoted = False
    for letter in text:
        if letter == "'":
            quoted = not quoted
        elif quoted:
            continue
        elif letter in "([":
            depth += 1
            chain += letter == "["
        elif letter in ")]":
            depth -= 1
        elif letter == ".":
            chain += 1
        elif letter == ",":
            chain = 0
        deepest = max(deepest, depth, chain)
    return deepest
