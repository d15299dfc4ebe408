"""How tokens are chosen: the parameters of a request, and what ONNX Runtime GenAI is told.

OGA takes ``do_sample``, ``temperature``, ``top_k``, ``top_p``, ``repetition_penalty``, ``min_length`` and ``random_seed`` in 0.13.1 and 0.18.0 (``src/config.h``). It is
greedy for ``top_k`` 1 or ``temperature`` 0, whatever else is set, and takes ``top_p`` 0 as "no nucleus" (``src/generators.cpp``).
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated, Any, Final

from msgspec import Meta, Struct

from coe_cli.core.answers.limits import (
    MAX_TOKENS,
    REPETITION_PENALTY,
    SEED,
    STOP_CHARS,
    STOP_IDS_MOST,
    STOPS_MOST,
    TEMPERATURE,
    TOP_K,
    TOP_P,
)

TOP_K_DEFAULT: Final = 50
"""OGA's own, where a request wants to sample and the model's configuration leaves one candidate."""

Stops = Annotated[
    list[Annotated[str, Meta(min_length=STOP_CHARS.least, max_length=STOP_CHARS.most)]], Meta(max_length=STOPS_MOST)
]


class SamplingFields(Struct, frozen=True):
    """How tokens are chosen, wherever a request is written; None leaves the model's own setting. A temperature or top_p of 0 means greedy."""

    temperature: Annotated[float, Meta(ge=TEMPERATURE.least, le=TEMPERATURE.most)] | None = None
    top_p: Annotated[float, Meta(ge=TOP_P.least, le=TOP_P.most)] | None = None
    top_k: Annotated[int, Meta(ge=TOP_K.least, le=TOP_K.most)] | None = None
    seed: Annotated[int, Meta(ge=SEED.least, le=SEED.most)] | None = None
    repetition_penalty: Annotated[float, Meta(ge=REPETITION_PENALTY.least, le=REPETITION_PENALTY.most)] | None = None


class Sampling(SamplingFields, frozen=True):
    """The model cannot end the answer before ``min_tokens``; each of ``stop_token_ids`` ends it as its own end does."""

    min_tokens: Annotated[int, Meta(ge=0, le=MAX_TOKENS.most)] | None = None
    stop_token_ids: Annotated[list[Annotated[int, Meta(ge=0)]], Meta(max_length=STOP_IDS_MOST)] = []

    @property
    def greedy(self) -> bool:
        """Whether the request itself leaves one candidate a step."""
        return self.temperature == 0 or self.top_p == 0 or self.top_k == 1


def search_options(sampling: Sampling, configured: Mapping[str, Any]) -> dict[str, Any]:
    """OGA's search options for a request to a model whose configuration has the ``search`` section ``configured``.

    What the request says wins: one that asks for a temperature, a nucleus or candidates is not held to the configuration's
    ``top_k`` 1 or ``temperature`` 0, which would make it greedy.
    """
    options: dict[str, Any] = {} if sampling.seed is None else {"random_seed": sampling.seed}
    if sampling.repetition_penalty not in (None, 1):
        options["repetition_penalty"] = sampling.repetition_penalty
    named = {"temperature": sampling.temperature, "top_p": sampling.top_p, "top_k": sampling.top_k}
    asked = {name: value for name, value in named.items() if value is not None}
    if not asked:
        return options
    if sampling.greedy:
        return options | {"do_sample": False}
    if configured.get("top_k") == 1:
        options["top_k"] = TOP_K_DEFAULT
    if configured.get("temperature") == 0:
        options["temperature"] = 1.0
    return options | {"do_sample": True} | asked
