"""Question → experts: linear scores and nearest examples, calibrated; two domains; an honest "unsure"."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from typing import TYPE_CHECKING, Literal

from msgspec import Struct, structs

from coe_cli.core.models.catalog import GENERAL_EXPERT, Catalog
from coe_cli.core.routing.router_features import clauses, lexical_counts, lexical_row, neighbour_votes, pair_features
from coe_cli.core.routing.selection import choose_model

if TYPE_CHECKING:
    import numpy as np
    import numpy.typing as npt

    Array = npt.NDArray[np.float32]
    Floats = npt.NDArray[np.float64]
    Ints = npt.NDArray[np.int64]

Kind = Literal["single", "multi", "general"]


class Scored(Struct, frozen=True):
    """An expert and the probability that it is the right one."""

    name: str
    probability: float


class Decision(Struct, frozen=True):
    """Who answers.

    ``experts`` are the chosen ones, best first: one, or two when ``kind`` is ``multi``. ``ranking`` has every role.
    ``margin`` is the lead of the first over the second, in probability; ``multi_probability`` says how likely the
    question spans two domains. ``unsure``: no role is likely enough, so the general one answers. ``parts`` has, for a
    question of two domains that can be split, each chosen expert's part of it.
    """

    experts: list[Scored]
    kind: Kind
    unsure: bool
    margin: float
    ranking: list[Scored]
    multi_probability: float = 0.0
    preferred_resident: bool = False
    parts: dict[str, str] = {}


class Routing(Struct, frozen=True):
    """How the question was routed: the decision, or why there is none and what to do about it."""

    decision: Decision | None
    latency_ms: float = 0.0
    problem: str = ""
    remedy: str = ""

    @property
    def unrouted(self) -> str:
        """What the user is told where there is no decision."""
        return f"{self.problem}: {GENERAL_EXPERT} answers ({self.remedy})"


class RouteRequest(Struct, frozen=True):
    """Questions for another process's router, and what it must have been trained on: the body of POST /coe/route.

    ``digest`` is ``examples_digest`` of the asker's catalog, ``embedder`` the embedder that it insists on, if any.
    """

    texts: list[str]
    digest: str
    embedder: str | None = None


class RouteAnswer(Struct, frozen=True):
    """Decisions in the order of the questions, the milliseconds of all, and the models that are loaded."""

    decisions: list[Decision]
    latency_ms: float
    embedder: str
    loaded_models: list[str] = []


class RouterWeights(Struct, frozen=True):
    """Trained weights, plain arrays.

    ``dense`` [dimension, roles + 1], ``lexical`` [buckets, roles + 1] and ``bias`` [roles + 1] give one logit a role and,
    last, the linear detector's; ``idf`` [buckets]. ``pair_weights``, ``pair_mean`` and ``pair_scale`` [features] and
    ``pair_bias`` are the two-domain detector over ``pair_features``, asked only where the linear one gives ``pair_gate``
    or more. ``known`` [examples, dimension], ``known_roles`` and
    ``known_weights`` [examples] are the questions and terms that the router learnt from: the nearest of them vote too.
    The votes count ``neighbour_weight`` times beside the roles' logits, and ``temperature`` calibrates the sum.
    """

    roles: tuple[str, ...]
    dense: Array
    lexical: Array
    bias: Array
    idf: Floats
    temperature: float
    neighbour_weight: float
    pair_weights: Floats
    pair_mean: Floats
    pair_scale: Floats
    pair_bias: float
    pair_gate: float
    known: Array
    known_roles: Ints
    known_weights: Array


class Router:
    """Routes by trained weights. The same question and vectors always give the same decision."""

    def __init__(self, weights: RouterWeights, *, unsure_below: float = 0.4, multi_from: float = 0.5) -> None:
        self.weights = weights
        self.unsure_below = unsure_below
        self.multi_from = multi_from
        self._general = weights.roles.index(GENERAL_EXPERT) if GENERAL_EXPERT in weights.roles else None

    def clauses_to_embed(self, whole: str, vector: Array) -> list[str]:
        """The clauses of ``whole`` whose vectors ``route`` needs too: none, unless the question may span two domains.

        ``vector`` [dimension] is the one of ``whole``.
        """
        parts = clauses(whole)
        if len(parts) < 2 or not self.weights.pair_weights.size or not whole:
            return []
        pair_logit = self._logits([whole], vector[None])[0, -1]
        return parts if pair_logit >= self.weights.pair_gate else []

    def route(self, texts: Sequence[str], vectors: Array) -> Decision:
        """The decision for one question.

        ``texts`` is ``bounded(text)`` followed by its ``clauses_to_embed``, ``vectors`` [len(texts), dimension] theirs.
        """
        import numpy as np

        roles = self.weights.roles
        if not texts[0].strip():
            return self._nothing_asked()
        if len(roles) == 1:
            only = [Scored(roles[0], 1.0)]
            return Decision(only, "general" if self._general == 0 else "single", False, 1.0, only)
        probabilities, pair_logit = self._probabilities(texts, vectors)
        whole = probabilities[0]
        order = np.argsort(-whole, kind="stable")
        ranking = [Scored(roles[i], round(float(whole[i]), 6)) for i in order]
        margin = round(ranking[0].probability - ranking[1].probability, 6)
        both = self._multi_probability(whole, probabilities[1:], pair_logit, len(texts[0].split()))
        pair = self._pair(whole, probabilities[1:])
        if both >= self.multi_from and pair is not None:
            chosen = [Scored(roles[i], round(float(whole[i]), 6)) for i in pair]
            parts = self._split(pair, texts[1:], probabilities[1:])
            return Decision(chosen, "multi", False, margin, ranking, both, parts=parts)
        if ranking[0].probability < self.unsure_below and self._general is not None:
            general = [Scored(roles[self._general], round(float(whole[self._general]), 6))]
            return Decision(general, "general", True, margin, ranking, both)
        kind: Kind = "general" if order[0] == self._general else "single"
        return Decision(ranking[:1], kind, ranking[0].probability < self.unsure_below, margin, ranking, both)

    def _logits(self, texts: Sequence[str], vectors: Array) -> Floats:
        """What the linear models say of each text: [texts, roles + 1]."""
        import numpy as np

        weights = self.weights
        logits = (vectors @ weights.dense + weights.bias).astype(np.float64)
        for row, text in enumerate(texts):
            keys, values = lexical_row(lexical_counts(text), weights.idf)
            logits[row] += values @ weights.lexical[keys].astype(np.float64)
        return logits

    def _probabilities(self, texts: Sequence[str], vectors: Array) -> tuple[Floats, float]:
        import numpy as np

        weights = self.weights
        logits = self._logits(texts, vectors)
        votes = neighbour_votes(vectors, weights.known, weights.known_roles, weights.known_weights, len(weights.roles))
        scaled = (logits[:, :-1] + weights.neighbour_weight * votes) / weights.temperature
        scaled -= scaled.max(axis=1, keepdims=True)
        likelihood = np.exp(scaled)
        return likelihood / likelihood.sum(axis=1, keepdims=True), float(logits[0, -1])

    def _multi_probability(self, whole: Floats, parts: Floats, pair_logit: float, words: int) -> float:
        import numpy as np

        weights = self.weights
        if not weights.pair_weights.size or pair_logit < weights.pair_gate:
            return 0.0
        seen = np.array(pair_features(whole, parts if len(parts) else None, pair_logit, words, self._general))
        score = float((seen - weights.pair_mean) / weights.pair_scale @ weights.pair_weights + weights.pair_bias)
        return round(float(1.0 / (1.0 + np.exp(-np.clip(score, -30, 30)))), 6)

    def _pair(self, whole: Floats, parts: Floats) -> tuple[int, int] | None:
        """The two roles of a two-domain question: by the whole text, helped by what single clauses are sure of."""
        import numpy as np

        evidence = whole + (0.5 * parts.max(axis=0) if len(parts) else 0.0)
        if self._general is not None:
            evidence[self._general] *= 0.5
        order = np.argsort(-evidence, kind="stable")
        return (int(order[0]), int(order[1])) if len(order) > 1 else None

    def _split(self, pair: tuple[int, int], clauses: Sequence[str], probabilities: Floats) -> dict[str, str]:
        """Each role's clauses, or nothing where one of the two would get none."""
        mine: dict[int, list[str]] = {role: [] for role in pair}
        for clause, likely in zip(clauses, probabilities, strict=True):
            mine[pair[0] if likely[pair[0]] >= likely[pair[1]] else pair[1]].append(clause)
        return {self.weights.roles[role]: " ".join(some) for role, some in mine.items()} if all(mine.values()) else {}

    def _nothing_asked(self) -> Decision:
        roles = self.weights.roles
        first = self._general if self._general is not None else 0
        ranking = [Scored(roles[first], 1.0), *(Scored(role, 0.0) for i, role in enumerate(roles) if i != first)]
        return Decision(ranking[:1], "general" if first == self._general else "single", True, 1.0, ranking)


def prefer_resident(
    decision: Decision, model_of: Mapping[str, str], loaded_models: Collection[str], margin: float = 0.15
) -> Decision:
    """``decision``, or the runner-up where it is within ``margin``, its model is loaded and the first one's is not.

    ``model_of`` maps roles to models. Only a decision for one expert that is not unsure is changed, and the result says
    so in ``preferred_resident``. The general role is no substitute for a specialist, nor the reverse.
    """
    if len(decision.experts) != 1 or decision.unsure or model_of.get(decision.experts[0].name) in loaded_models:
        return decision
    first = decision.experts[0]
    if first.name == GENERAL_EXPERT:
        return decision
    for other in decision.ranking:
        if first.probability - other.probability > margin:
            break
        if other.name not in (first.name, GENERAL_EXPERT) and model_of.get(other.name) in loaded_models:
            return structs.replace(decision, experts=[other], preferred_resident=True)
    return decision


def swap_aware(
    decision: Decision, catalog: Catalog, on_disk: Collection[str], loaded_models: Collection[str]
) -> Decision:
    """``decision``, or the runner-up whose model is loaded, as ``prefer_resident`` has it.

    The model that counts for an expert is the one that would answer for it with the models ``on_disk``.
    """
    answering = {role: choose_model(catalog, on_disk, expert=role, model=None).model for role in catalog.experts}
    return prefer_resident(decision, answering, loaded_models)
