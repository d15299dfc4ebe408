"""How tokens are chosen: the parameters of a request, those that are refused, and what ONNX Runtime GenAI is told.

OGA takes ``do_sample``, ``temperature``, ``top_k``, ``top_p`` and ``random_seed`` in 0.13.1 and 0.18.0 (``src/config.h``). It is
greedy for ``top_k`` 1 or ``temperature`` 0, whatever else is set, and takes ``top_p`` 0 as "no nucleus" (``src/generators.cpp``).
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated, Any, Final

from msgspec import Meta, Struct

from coe_cli.core.answers.limits import SEED, TEMPERATURE, TOP_K, TOP_P

UNSUPPORTED: Final[Mapping[str, float]] = {
    "min_p": 0,
    "repetition_penalty": 1,
    "presence_penalty": 0,
    "frequency_penalty": 0,
}
"""Parameters that other programs know and coe does not → the value that asks for nothing, which alone is taken."""

TOP_K_DEFAULT: Final = 50
"""OGA's own, where a request wants to sample and the model's configuration leaves one candidate."""


class Sampling(Struct, frozen=True):
    """How tokens are chosen; None leaves the model's own setting. A temperature or top_p of 0 means greedy."""

    temperature: Annotated[float, Meta(ge=TEMPERATURE.least, le=TEMPERATURE.most)] | None = None
    top_p: Annotated[float, Meta(ge=TOP_P.least, le=TOP_P.most)] | None = None
    top_k: Annotated[int, Meta(ge=TOP_K.least, le=TOP_K.most)] | None = None
    seed: Annotated[int, Meta(ge=SEED.least, le=SEED.most)] | None = None

    @property
    def greedy(self) -> bool:
        """Whether the request itself leaves one candidate a step."""
        return self.temperature == 0 or self.top_p == 0 or self.top_k == 1


def unsupported(fields: Mapping[str, Any]) -> tuple[str, str] | None:
    """The first parameter in ``fields`` that cannot be honoured, and why; None where there is none."""
    for name, neutral in UNSUPPORTED.items():
        if fields.get(name) not in (None, neutral):
            return name, f"is not supported; leave it out or give {neutral}"
    if fields.get("logit_bias"):
        return "logit_bias", "is not supported; leave it out"
    return None


def search_options(sampling: Sampling, configured: Mapping[str, Any]) -> dict[str, Any]:
    """OGA's search options for a request to a model whose configuration has the ``search`` section ``configured``.

    What the request says wins: one that asks for a temperature, a nucleus or candidates is not held to the configuration's
    ``top_k`` 1 or ``temperature`` 0, which would make it greedy.
    """
    options: dict[str, Any] = {} if sampling.seed is None else {"random_seed": sampling.seed}
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
