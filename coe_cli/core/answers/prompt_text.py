"""The text of a conversation before it is tokenized: roles that templates refuse, and plain templates. Turns are (role, text)."""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence

Turn = tuple[str, str]

_PLACES = re.compile(r"\{(system|question)\}")
_BETWEEN = "\n\n"


def joined(turns: Iterable[Turn]) -> list[Turn]:
    """Neighbours of one role as one turn, their texts an empty line apart."""
    result: list[Turn] = []
    for role, text in turns:
        if result and result[-1][0] == role:
            result[-1] = (role, result[-1][1] + _BETWEEN + text)
        else:
            result.append((role, text))
    return result


def alternating(turns: Sequence[Turn]) -> list[Turn]:
    """The turns in their order, for templates that want roles to alternate: a system text stays at the start only."""
    late = [turn if index == 0 else _as_user(turn) for index, turn in enumerate(joined(turns))]
    return joined(late) if len(late) > 1 else without_system(late)


def without_system(turns: Sequence[Turn]) -> list[Turn]:
    """The turns in their order, for templates that know no system role: a system text is said by the user."""
    return joined(_as_user(turn) for turn in turns)


def fill_plain(template: str, turns: Sequence[Turn]) -> str:
    """A conversation through a plain template with the places ``{system}`` and ``{question}``.

    Each question goes through the template and is followed by its answer, the last one by nothing. Places are filled in one
    pass, so what a text has in braces stays. ``{question}`` alone gives a single text as it is, white space included.
    """
    if template == "{question}" and len(turns) == 1:
        return turns[0][1]
    system = _BETWEEN.join(text.strip() for role, text in turns if role == "system")
    rest = joined((role, text.strip()) for role, text in turns if role != "system")
    if not rest:
        rest, system = [("user", system)], ""
    parts: list[str] = []
    for index, (role, text) in enumerate(rest):
        if role == "user":
            values = {"system": system, "question": text}
            parts.append(_PLACES.sub(lambda place, values=values: values[place[1]], template))  # type: ignore[misc]
        else:
            parts.append(text if index == len(rest) - 1 else text + _BETWEEN)
    return "".join(parts)


def bare(turns: Iterable[Turn]) -> str:
    """The texts an empty line apart, for a model without any template."""
    return _BETWEEN.join(text for _, text in turns)


def _as_user(turn: Turn) -> Turn:
    return ("user", turn[1]) if turn[0] == "system" else turn
