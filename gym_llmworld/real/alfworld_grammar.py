"""The text side of ALFWorld: TextWorld's grammar files (``.twl2``), parsed once, derived directly.

TextWorld parses a grammar symbol again for every admissible command of every step. Here each text
is parsed once per process, and a derivation is a walk over tuples. What comes out is the same,
letter for letter, including what TextWorld does with odd texts: it stops at a stray ``;`` or
bracket without a word.
"""

from __future__ import annotations

import ast
import json
import re
import textwrap
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import Protocol

from gym_llmworld.errors import EngineError

Placeholder = tuple[str, str]
"""Name and type of a variable, as in ``o:object``."""

Binding = Mapping[Placeholder, str]
"""Which thing (by its PDDL id) each placeholder stands for."""

Atom = tuple[str, tuple[Placeholder, ...]]
Query = tuple[Atom, ...]


class FactBase(Protocol):
    """What a derivation asks about the present state of a game."""

    def matching(self, predicate: str, types: Sequence[str]) -> Sequence[tuple[str, ...]]:
        """Returns the argument ids of the true facts of this predicate and types, sorted."""
        ...

    def name(self, thing: str) -> str:
        """Returns how a thing is called, ``cabinet 3``."""
        ...


@dataclass(frozen=True, slots=True)
class Text:
    """Letters that are shown as they are."""

    text: str


@dataclass(frozen=True, slots=True)
class Rule:
    """``#look.feedback#``: replaced by the first rule of this name whose condition holds."""

    name: str


@dataclass(frozen=True, slots=True)
class Term:
    """``o``, ``o.name``, ``r.name or r.id``, ``o.indefinite + ' ' + o.name``."""

    expression: ast.expr


@dataclass(frozen=True, slots=True)
class Each:
    """``{expression | query}``: the expression for every answer to the query."""

    inner: Rule | Term
    query: Query
    listed: bool
    """In square brackets: separated by commas, "nothing" when there is no answer."""


Symbol = Text | Rule | Term | Each


@dataclass(frozen=True, slots=True)
class Alternative:
    """One right-hand side of a rule; it applies where its condition has an answer."""

    condition: Query
    symbols: tuple[Symbol, ...]


@dataclass(frozen=True, slots=True)
class Grammar:
    """A parsed grammar file.

    Attributes:
        rules: Alternatives by rule name, in file order.
        templates: How the command of each action is worded, by the action's PDDL name.
        feedbacks: How what it led to is worded.
    """

    rules: Mapping[str, tuple[Alternative, ...]]
    templates: Mapping[str, tuple[Symbol, ...]]
    feedbacks: Mapping[str, tuple[Symbol, ...]]

    def intro(self, facts: FactBase) -> str:
        """Words the start of a game.

        Raises:
            EngineError: The grammar has no such rule.
        """
        return self.derive([Rule("intro")], facts, {})

    def derive(self, symbols: Sequence[Symbol], facts: FactBase, binding: Binding) -> str:
        """Words symbols in the present state.

        Raises:
            EngineError: The grammar names a rule that it does not have.
        """
        return "".join(self._derive(symbols, facts, dict(binding)))

    def _derive(
        self, symbols: Sequence[Symbol], facts: FactBase, binding: dict[Placeholder, str]
    ) -> Iterator[str]:
        for symbol in symbols:
            if isinstance(symbol, Text):
                yield symbol.text
            elif isinstance(symbol, Term):
                yield _evaluate(symbol.expression, facts, binding)
            elif isinstance(symbol, Rule):
                yield from self._derive(self._replace(symbol, facts, binding), facts, binding)
            else:
                yield from self._derive_each(symbol, facts, binding)

    def _derive_each(
        self, symbol: Each, facts: FactBase, binding: dict[Placeholder, str]
    ) -> Iterator[str]:
        answers = list(_answers(symbol.query, facts, binding))
        if symbol.listed and not answers:
            yield from self._derive([Rule("list_empty")], facts, binding)
        for number, answer in enumerate(answers):
            if symbol.listed and number:
                last = number == len(answers) - 1
                separator = "list_last_separator" if last else "list_separator"
                yield from self._derive([Rule(separator)], facts, binding)
            yield from self._derive([symbol.inner], facts, answer)

    def _replace(
        self, rule: Rule, facts: FactBase, binding: dict[Placeholder, str]
    ) -> Sequence[Symbol]:
        for alternative in self.rules.get(rule.name, ()):
            if next(_answers(alternative.condition, facts, binding), None) is not None:
                return alternative.symbols
        raise EngineError(
            f"the game's grammar has no rule #{rule.name}# that applies in this state; expected "
            "one. The game file is damaged or needs another ALFWorld version"
        )

    def query_predicates(self, symbols: Sequence[Symbol]) -> frozenset[str]:
        """Returns the predicates that these symbols ask about; rules they name are not followed."""
        queries = (symbol.query for symbol in symbols if isinstance(symbol, Each))
        return frozenset(predicate for query in queries for predicate, _ in query)


def _answers(
    query: Query, facts: FactBase, binding: dict[Placeholder, str]
) -> Iterator[dict[Placeholder, str]]:
    """Yields every way to make the query true; different placeholders never share a thing."""
    if not query:
        yield binding
        return
    (predicate, placeholders), rest = query[0], query[1:]
    for arguments in facts.matching(predicate, [kind for _, kind in placeholders]):
        extended = dict(binding)
        used = set(binding.values())
        for placeholder, thing in zip(placeholders, arguments, strict=True):
            bound = extended.get(placeholder)
            if bound is None and thing not in used:
                extended[placeholder] = thing
                used.add(thing)
            elif bound != thing:
                break
        else:
            yield from _answers(rest, facts, extended)


def _evaluate(expression: ast.expr, facts: FactBase, binding: Binding) -> str:
    if isinstance(expression, ast.Constant):
        return str(expression.value)
    if isinstance(expression, ast.BinOp):
        return _evaluate(expression.left, facts, binding) + _evaluate(
            expression.right, facts, binding
        )
    if isinstance(expression, ast.BoolOp):
        values = (_evaluate(value, facts, binding) for value in expression.values)
        return next((value for value in values if value), "")
    attribute = expression.attr if isinstance(expression, ast.Attribute) else "name"
    variable = expression.value if isinstance(expression, ast.Attribute) else expression
    assert isinstance(variable, ast.Name)
    thing = next((t for (name, _), t in binding.items() if name == variable.id), None)
    if thing is None:
        raise EngineError(f"the grammar uses {ast.unparse(expression)!r}, which nothing binds here")
    return _ATTRIBUTES[attribute](facts, thing)


_ATTRIBUTES: Mapping[str, Callable[[FactBase, str], str]] = {
    "name": lambda facts, thing: facts.name(thing),
    "id": lambda facts, thing: thing,
    "indefinite": lambda facts, thing: "a",
    "definite": lambda facts, thing: "the",
}


@lru_cache(maxsize=8192)
def parse_symbols(text: str) -> tuple[Symbol, ...]:
    """Parses the right-hand side of a rule or a command template.

    Raises:
        EngineError: An expression is not one of those that ALFWorld's grammars use. (TextWorld
            would evaluate any Python; a game file is data and must not run code.)
    """
    position = _LEADING.match(text).end()  # type: ignore[union-attr]
    symbols: list[Symbol] = []
    while position < len(text):
        match = _SYMBOL.match(text, position)
        if match is None:
            break
        symbols.append(_symbol(match))
        position = match.end()
    return tuple(symbols)


# TextWorld drops blanks, or one comment line, at the very beginning, and tabs between symbols.
_LEADING = re.compile(r"(?://.*|\s*)\n?")
_EACH = (
    r"\{(?:#(?P<rule>[\w()/!<>\-\s,.]+)#|(?P<term>[^|\[\]{}\n<>]+))"
    r"(?:\s*\|\s*(?P<given>[^;|{}\n\[\]#]+))?\}"
)
_SYMBOL = re.compile(
    rf"\t*(?:(?P<open>\[)?{_EACH}(?(open)\])"
    r"|#(?P<bare>[\w()/!<>\-\s,.]+)#"
    r'|"(?P<quoted>[^;|"<>\[\]#{}]*)"'
    r'|(?P<plain>[^;|"<>\[\]#{}]+))'
)


def _symbol(match: re.Match[str]) -> Symbol:
    if match["plain"] is not None:
        return Text(match["plain"])
    if match["quoted"] is not None:
        return Text(match["quoted"])
    if match["bare"] is not None:
        return Rule(match["bare"])
    inner = Rule(match["rule"]) if match["rule"] is not None else Term(_expression(match["term"]))
    return Each(inner, parse_query(match["given"] or ""), listed=match["open"] is not None)


def _expression(text: str) -> ast.expr:
    try:
        expression = ast.parse(text.strip(), mode="eval").body
    except SyntaxError as error:
        raise EngineError(f"the grammar holds an expression that is none: {text!r}") from error
    _check(expression, text)
    return expression


def _check(expression: ast.expr, text: str) -> None:
    match expression:
        case ast.Constant(value=str()) | ast.Name():
            return
        case ast.Attribute(value=ast.Name(), attr=attribute) if attribute in _ATTRIBUTES:
            return
        case ast.BinOp(left=left, op=ast.Add(), right=right):
            parts = [left, right]
        case ast.BoolOp(op=ast.Or(), values=values):
            parts = values
        case _:
            raise EngineError(
                f"the grammar holds the expression {text!r}; expected only names such as o.name, "
                "strings, + and or. Other code in a game file is not run"
            )
    for part in parts:
        _check(part, text)


@lru_cache(maxsize=4096)
def parse_query(text: str) -> Query:
    """Parses ``openable(r:receptacle) & opened(r:receptacle)``; the empty text is always true.

    Raises:
        EngineError: The text has another form.
    """
    atoms = []
    for part in text.split("&") if text.strip() else ():
        match = re.fullmatch(r"\s*([\w-]+)\(([^()]*)\)\s*", part)
        if match is None:
            raise EngineError(f"the grammar asks {text!r}; expected name(variable:type, ...) & ...")
        atoms.append((match[1], tuple(map(_placeholder, filter(None, match[2].split(","))))))
    return tuple(atoms)


def _placeholder(text: str) -> Placeholder:
    name, _, kind = (part.strip() for part in text.partition(":"))
    return name, kind or name.rstrip("'")


@lru_cache(maxsize=64)
def parse_grammar(text: str) -> Grammar:
    """Parses a grammar file.

    Args:
        text: A ``.twl2`` document: ``grammar`` blocks of JSON rules, and ``action`` blocks.

    Raises:
        EngineError: The text is no such document.
    """
    rules: dict[str, list[dict[str, str]]] = {}
    templates, feedbacks = {}, {}
    position = _SKIP.match(text).end()  # type: ignore[union-attr]
    while position < len(text):
        match = _BLOCK.match(text, position)
        if match is None:
            raise EngineError(f"the game's grammar cannot be read from {text[position:][:60]!r} on")
        if match["name"] is None:
            rules.update(_rules(match["rules"]))
        else:
            parts = {part["key"]: part for part in _PART.finditer(match["body"])}
            if "grammar" in parts:
                lines = _dedent(parts["grammar"]["block"]).split("\n")
                kept = (line for line in lines if not line.lstrip().startswith("#"))
                rules.update(_rules("\n".join(kept)))
            if not {"template", "feedback"} <= parts.keys():
                raise EngineError(
                    f"the grammar's action {match['name']} lacks template or feedback"
                )
            name = match["name"].lower()
            templates[name] = parse_symbols(parts["template"]["text"])
            feedbacks[name] = parse_symbols(parts["feedback"]["text"])
        position = _SKIP.match(text, match.end()).end()  # type: ignore[union-attr]
    return Grammar(
        rules={name: tuple(map(_alternative, found)) for name, found in rules.items()},
        templates=templates,
        feedbacks=feedbacks,
    )


_SKIP = re.compile(r"(?:\s+|#[^\n]*)*")
_BLOCK = re.compile(
    r'grammar\s*::\s*"""(?P<rules>.*?)"""\s*;'
    r'|action\s+(?P<name>[\w/-]+)\s*\{(?P<body>(?:[^"}]|"""(?:.*?)"""|"[^"]*")*)\}',
    re.DOTALL,
)
_PART = re.compile(
    r'(?P<key>template|feedback|pddl|grammar)\s*::\s*(?:"""(?P<block>.*?)"""|"(?P<text>[^"]*)")\s*;',
    re.DOTALL,
)


def _dedent(block: str) -> str:
    return textwrap.dedent(block)


def _rules(text: str) -> dict[str, list[dict[str, str]]]:
    try:
        rules = json.loads(text)
    except json.JSONDecodeError as error:
        raise EngineError(f"a grammar block is not JSON: {error}") from error
    if not isinstance(rules, dict):
        raise EngineError(f"a grammar block must be a JSON object, got {type(rules).__name__}")
    return rules


def _alternative(rule: Mapping[str, str]) -> Alternative:
    if not isinstance(rule, dict) or not isinstance(rule.get("rhs"), str):
        raise EngineError(f'a grammar rule must be an object with the text "rhs", got {rule!r}')
    return Alternative(parse_query(rule.get("condition", "")), parse_symbols(rule["rhs"]))
