"""Which model is likely to be asked for next: counts of what followed what, the recent more than the old."""

from __future__ import annotations

from collections.abc import Iterable

_HALVE_AT = 256
"""A row of counts is halved when it reaches this total, so that habits of long ago fade."""


class NextModel:
    """First-order transition counts with overall frequency as the fallback. Deterministic; no clock."""

    def __init__(self) -> None:
        self._followers: dict[str, dict[str, float]] = {}
        self._frequency: dict[str, float] = {}
        self._last: str | None = None

    def observe(self, model: str) -> None:
        if self._last is not None:
            _count(self._followers.setdefault(self._last, {}), model)
        _count(self._frequency, model)
        self._last = model

    def likeliest(self, candidates: Iterable[str]) -> str | None:
        """The candidate most likely to be asked for next; None when none of them was ever asked for."""
        followers = self._followers.get(self._last, {}) if self._last is not None else {}
        best, best_score = None, (0.0, 0.0)
        for name in candidates:
            score = (followers.get(name, 0.0), self._frequency.get(name, 0.0))
            if score > best_score:
                best, best_score = name, score
        return best


def _count(row: dict[str, float], model: str) -> None:
    total = row.get("", 0.0) + 1  # the row's total is kept under a name that no model has
    row[model] = row.get(model, 0.0) + 1
    if total >= _HALVE_AT:
        for name in row:
            row[name] /= 2
        total /= 2
    row[""] = total
