"""Routing decisions for people and for programs."""

from __future__ import annotations

import itertools
import time
from collections.abc import Iterable, Iterator
from typing import TYPE_CHECKING, Any

from coe_cli.core.routing.router import Decision
from coe_cli.output.tables import write_line

if TYPE_CHECKING:
    from coe_cli.output.console import Output
    from coe_cli.runtime.routing.router_cache import QuestionRouter

_CHUNK = 512
_SHOWN_CHARS = 70


def decision_as_dict(text: str, decision: Decision, latency_ms: float) -> dict[str, Any]:
    """The contract of ``coe route --format jsonl``."""
    return {"text": text, **_decision(decision), "latency_ms": round(latency_ms, 2)}


def routing_as_dict(decision: Decision, latency_ms: float) -> dict[str, Any]:
    """``routing`` in the JSON of ``coe ask --explain``."""
    return {
        **_decision(decision),
        "latency_ms": round(latency_ms, 2),
        "preferred_resident": decision.preferred_resident,
        "parts": decision.parts,
    }


def _decision(decision: Decision) -> dict[str, Any]:
    return {
        "experts": [{"name": expert.name, "probability": round(expert.probability, 4)} for expert in decision.experts],
        "kind": decision.kind,
        "unsure": decision.unsure,
    }


def describe(decision: Decision) -> str:
    """One line on who answers and why."""
    named = " + ".join(f"{expert.name} {expert.probability:.0%}" for expert in decision.experts)
    if decision.kind == "multi":
        return f"{named} (two domains: {decision.multi_probability:.0%})"
    if decision.unsure:
        best = decision.ranking[0]
        guess = f"; nearest: {best.name} {best.probability:.0%}" if best.name != decision.experts[0].name else ""
        return f"{decision.experts[0].name} (unsure{guess})"
    first = decision.experts[0]
    if decision.preferred_resident:
        better = decision.ranking[0]
        return f"{named}, taken because its model is loaded; {better.name} {better.probability:.0%} is as likely"
    other = next((expert for expert in decision.ranking if expert.name != first.name), None)
    then = f", then {other.name} {other.probability:.0%}" if other and other.probability >= 0.05 else ""
    return f"{named}{then}"


def parts_of(decision: Decision) -> list[str]:
    """A line for each expert that has a part of its own of a question that can be split."""
    return [f"{expert} is asked: {' '.join(part.split())}" for expert, part in decision.parts.items()]


def write_decisions(output: Output, router: QuestionRouter, texts: Iterable[str], output_format: str) -> None:
    """Route ``texts`` and write each decision; the latency is the share of its batch."""
    whole: list[dict[str, Any]] = []
    several = False
    for chunk in _chunks(iter(texts)):
        start = time.perf_counter()
        decisions = router.route_many(chunk)
        latency_ms = (time.perf_counter() - start) * 1000 / len(chunk)
        several = several or len(chunk) > 1
        for text, decision in zip(chunk, decisions, strict=True):
            if output_format == "human":
                shown = " ".join(text.split())
                shown = shown[: _SHOWN_CHARS - 1] + "…" if len(shown) > _SHOWN_CHARS else shown
                _write_human(output, (f"{shown}\n    " if several else "") + describe(decision), decision)
            elif output_format == "jsonl":
                line = decision_as_dict(text, decision, latency_ms)
                output.json_line(line)
            else:
                whole.append(decision_as_dict(text, decision, latency_ms))
        output.stdout.flush()
    if output_format == "json":
        output.json(whole)


def write_decided(output: Output, text: str, decision: Decision, latency_ms: float, output_format: str) -> None:
    """Write one decision that somebody else has made."""
    if output_format == "human":
        _write_human(output, describe(decision), decision)
    elif output_format == "jsonl":
        output.json_line(decision_as_dict(text, decision, latency_ms))
    else:
        output.json([decision_as_dict(text, decision, latency_ms)])


def _write_human(output: Output, said: str, decision: Decision) -> None:
    for line in (said, *(f"    {line}" for line in parts_of(decision))):
        write_line(output, line)


def _chunks(texts: Iterator[str]) -> Iterator[list[str]]:
    while chunk := list(itertools.islice(texts, _CHUNK)):
        yield chunk
