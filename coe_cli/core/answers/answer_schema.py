"""What a JSON schema may ask of a grammar: bounds that are looked at before the library that builds the grammar sees it.

That library counts repetitions out and has no time limit: a schema of 90 bytes (``maxItems`` of a milliard) holds a worker for
minutes. More than fits the context can never be written, so nothing that could be answered is refused.
"""

from __future__ import annotations

import json
import math
import re
from collections.abc import Sequence
from typing import Any, Literal

from coe_cli.errors import UnusableGrammar

MAX_BYTES = 131_072
MAX_DEPTH = 32
MAX_NODES = 5_000
MAX_PATTERN_CHARS = 1_000
MAX_PATTERN_ATOMS = 4_000
"""Parts of a pattern once its repetitions are written out: {8} of {4} counts 32."""
MAX_GRAMMAR_CHARS = 16_384
MAX_REPEATS = 1_000
CHARS_A_TOKEN = 16
"""No text has more characters than this for each token of it, near enough."""

_COUNTS = ("minItems", "maxItems", "minProperties", "maxProperties", "minContains", "maxContains")
_LENGTHS = ("minLength", "maxLength")
_REPEATS = re.compile(r"(?:[{,~]|\.\.)\s*(\d+)")
_PATTERN_PART = re.compile(r"\\.|\[(?:\\.|[^\]\\])*\]|\{(?P<least>\d+)(?:,(?P<most>\d*))?\}|.", re.DOTALL)


def check_schema(schema: object, context_length: int) -> None:
    """See that a grammar can be built from ``schema`` and answered within ``context_length`` tokens.

    Raises:
        UnusableGrammar: it is too large, too deep, repeats something too often, refers to nothing but itself, or has what is not JSON.
    """
    left = MAX_NODES
    pending: list[tuple[Any, int]] = [(schema, 0)]
    while pending:
        value, depth = pending.pop()
        left -= 1
        if depth > MAX_DEPTH:
            raise _refused(f"it is more than {MAX_DEPTH} levels deep")
        if left < 0:
            raise _refused(f"it has more than {MAX_NODES} parts")
        if isinstance(value, dict):
            _check_numbers(value, context_length)
            _check_reference(value, schema)
            pending += [(part, depth + 1) for part in (*value.keys(), *value.values())]
        elif isinstance(value, list):
            pending += [(part, depth + 1) for part in value]
        elif isinstance(value, str) and any("\ud800" <= character <= "\udfff" for character in value):
            raise _refused("it has text with unpaired surrogates, which is not Unicode")
        elif isinstance(value, float) and not math.isfinite(value):
            raise _refused(f"`{value}` is not a number of JSON")
    size = len(json.dumps(schema, ensure_ascii=False).encode())
    if size > MAX_BYTES:
        raise _refused(f"it has {size} bytes, and {MAX_BYTES} are allowed")


def check_functions(functions: Sequence[dict[str, Any]], context_length: int) -> None:
    """See that calls of ``functions`` (OpenAI's: name, description, parameters) can be written within ``context_length`` tokens.

    Raises:
        UnusableGrammar: they cannot; its ``param`` is the place of the schema in a chat completion.
    """
    places: dict[str, object] = {parameters_of(n): each.get("parameters") for n, each in enumerate(functions)}
    for place, schema in (places | {"tools": functions}).items():
        try:
            check_schema(schema, context_length)
        except UnusableGrammar as error:
            error.param = place
            raise


def parameters_of(function: int) -> str:
    """The place of the schema of a function in a chat completion."""
    return f"tools.{function}.function.parameters"


def check_guidance(kind: Literal["json_schema", "regex", "lark_grammar"], data: str, context_length: int) -> None:
    """See that a grammar of any kind can be built and answered within ``context_length`` tokens.

    Raises:
        UnusableGrammar: it cannot.
    """
    if kind == "json_schema":
        check_schema(json.loads(data), context_length)
    elif kind == "regex":
        check_pattern(data)
    else:
        check_grammar(data, context_length)


def check_pattern(pattern: str) -> None:
    """See that a regular expression is short, once its repetitions are written out too.

    Raises:
        UnusableGrammar: it is not.
    """
    if len(pattern) > MAX_PATTERN_CHARS:
        raise _refused(f"a pattern has {len(pattern)} characters, and {MAX_PATTERN_CHARS} are allowed")
    if _atoms(pattern) > MAX_PATTERN_ATOMS:
        raise _refused(f"a pattern has more than {MAX_PATTERN_ATOMS} parts once its repetitions are written out")


def check_grammar(grammar: str, context_length: int) -> None:
    """See that a Lark grammar is of a size that can be built. The library bounds rules and terminals itself, not schemas in it.

    Raises:
        UnusableGrammar: it is too long or repeats something too often, or a schema in it does.
    """
    if len(grammar) > MAX_GRAMMAR_CHARS:
        raise _refused(f"the grammar has {len(grammar)} characters, and {MAX_GRAMMAR_CHARS} are allowed")
    if any(int(number) > MAX_REPEATS for number in _REPEATS.findall(grammar)):
        raise _refused(f"the grammar repeats something more than {MAX_REPEATS} times")
    for found in re.finditer(r"%json\b\s*", grammar):
        try:
            schema, _ = json.JSONDecoder().raw_decode(grammar, found.end())
        except (ValueError, RecursionError):
            raise _refused("what follows %json in the grammar is not JSON") from None
        check_schema(schema, context_length)


def _check_numbers(schema: dict[str, Any], context_length: int) -> None:
    for names, most in ((_COUNTS, context_length), (_LENGTHS, context_length * CHARS_A_TOKEN)):
        for name in names:
            value = schema.get(name)
            if isinstance(value, int | float) and not value <= most:
                raise _refused(
                    f"`{name}` is {value:.12g}, and an answer of {context_length} tokens has {most} at most",
                    "Lower it, or leave it out: the context ends the answer.",
                )
    pattern = schema.get("pattern")
    patterns = [pattern] if isinstance(pattern, str) else []
    named = schema.get("patternProperties")
    for text in [*patterns, *(named if isinstance(named, dict) else ())]:
        check_pattern(text)


def _check_reference(value: dict[str, Any], schema: object) -> None:
    """A reference that comes back to itself, through references alone, stands for nothing: the grammar would be empty."""
    seen: set[str] = set()
    while isinstance(value, dict) and isinstance(reference := value.get("$ref"), str) and reference.startswith("#"):
        if reference in seen:
            raise _refused(f"`$ref` `{reference[:64]}` leads to itself")
        seen.add(reference)
        target: Any = schema
        for part in filter(None, reference.removeprefix("#").split("/")):
            name = part.replace("~1", "/").replace("~0", "~")
            target = target.get(name) if isinstance(target, dict) else None
        value = target


def _atoms(pattern: str) -> int:
    """Parts of a pattern with its repetitions written out; whether the pattern is a right one is for others to say."""
    outer: list[int] = []
    total = last = 0
    for part in _PATTERN_PART.finditer(pattern):
        text = part[0]
        if text == "(":
            outer.append(total)
            total = last = 0
        elif text == ")" and outer:
            total, last = outer.pop() + total, total
        elif part["least"] is not None:
            times = max(int(part["most"] or part["least"]), 1)
            total += last * (times - 1)
            last *= times
        else:
            total, last = total + 1, 1
    return total + sum(outer)


def _refused(why: str, hint: str = "Correct or simplify it.") -> UnusableGrammar:
    return UnusableGrammar(f"the answer's JSON schema or grammar cannot be used: {why}", hint)
