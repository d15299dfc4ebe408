"""Training of the router from its examples: logistic regression, cross-fitted for the two-domain detector."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any, Final, NamedTuple

from coe_cli.core.models.catalog import GENERAL_EXPERT
from coe_cli.core.routing.logistic import Matrix, fit_logistic, minimise
from coe_cli.core.routing.router import RouterWeights
from coe_cli.core.routing.router_examples import TrainingSet
from coe_cli.core.routing.router_features import (
    FEATURE_SETTINGS,
    bounded,
    clauses,
    inverse_document_frequency,
    lexical_counts,
    lexical_row,
    neighbour_votes,
    pair_features,
)

if TYPE_CHECKING:
    import numpy as np
    import numpy.typing as npt

    Vectors = npt.NDArray[np.float32]
    Floats = npt.NDArray[np.float64]
    Ints = npt.NDArray[np.int64]

_TERM_WEIGHT = 0.4
_TERM_VOTE = 0.3
_NEIGHBOUR_WEIGHT = 0.75
_C = 3.0
_PAIR_C, _PAIR_WEIGHT = 10.0, 5.0
_MAX_BALANCE = 5.0
_BALANCE_POWER = 0.75
_FOLDS = 4
_SEED = 20240
_MISSED_DOUBLES = 0.02
_TOLERANCE = 1e-3
SETTINGS: Final = (
    *(_TERM_WEIGHT, _TERM_VOTE, _NEIGHBOUR_WEIGHT, _C, _PAIR_C, _PAIR_WEIGHT, _MAX_BALANCE, _BALANCE_POWER),
    *(_FOLDS, _SEED, _MISSED_DOUBLES, _TOLERANCE, *FEATURE_SETTINGS),
)
"""What weights depend on beside examples, embedder and code."""


class Calibration(NamedTuple):
    """What is set on questions that the models were not fitted on; the names are those of ``RouterWeights``."""

    temperature: float
    neighbour_weight: float
    pair_weights: Floats
    pair_mean: Floats
    pair_scale: Floats
    pair_bias: float
    pair_gate: float

    @classmethod
    def of(cls, weights: RouterWeights) -> Calibration:
        """That of a router."""
        return cls(*(getattr(weights, name) for name in cls._fields))


def train_router(
    examples: TrainingSet, embed: Callable[[Sequence[str]], Vectors], calibration: Calibration | None = None
) -> RouterWeights:
    """Weights for the roles of ``examples``; ``embed`` gives vectors of length 1, [texts, dimension].

    The roles are told apart by multinomial logistic regression over the vector and hashed words, and by the votes of the
    nearest examples (Router.route adds both up in the same way). What both say of questions that they were not fitted on
    (cross-fitting) sets the weight of the votes and the temperature, and trains the two-domain detector: four fifths of
    the time, which a ``calibration`` from nearly the same examples saves.
    """
    from threadpoolctl import threadpool_limits

    if len(examples.roles) == 1:
        return _untrained(examples.roles, embed(["text"]).shape[1])
    data = _Data(examples, embed, split=calibration is None)
    # The fits are many small vector operations: on a busy machine a second BLAS thread makes them ten times slower.
    with threadpool_limits(1, "blas"):
        return data.finish(calibration or _calibrate(examples, data))


class _Fitted(NamedTuple):
    """``coefficients`` [columns, roles] and ``bias`` [roles] of the role model, ``pair`` [columns] of the detector."""

    coefficients: Vectors
    bias: Vectors
    pair: Vectors
    pair_bias: float


def _calibrate(examples: TrainingSet, data: _Data) -> Calibration:
    import numpy as np

    general = examples.roles.index(GENERAL_EXPERT) if GENERAL_EXPERT in examples.roles else None
    if len(data.texts) < 4 * _FOLDS:
        return _detector(np.zeros((len(data.texts), 0)), data.second >= 0, 1.0, _NEIGHBOUR_WEIGHT)
    logits, votes = np.zeros((2, len(data.texts), len(examples.roles)))
    pair_logits = np.zeros(len(data.texts))
    of_clauses: dict[int, tuple[Vectors, Floats] | None] = {}
    fold = np.random.default_rng(_SEED).permutation(len(data.texts)) % _FOLDS
    for held in range(_FOLDS):
        test, train = np.flatnonzero(fold == held), np.flatnonzero(fold != held)
        fitted = data.fit(train)
        logits[test], votes[test] = data.judge(fitted, test, train)
        pair_logits[test] = data.pair_logits(fitted, test)
        of_clauses |= zip(test.tolist(), data.judge_clauses(fitted, test, train), strict=True)
    single = np.flatnonzero(data.second < 0)
    temperature, weight = _calibration(logits[single], votes[single], data.first[single])

    def likely(some_logits: Any, some_votes: Floats) -> Floats:
        shares: Floats = _softmax((some_logits + weight * some_votes) / temperature)
        return shares

    features = []
    for index, text in enumerate(data.texts):
        parts = of_clauses[index]
        whole, split = likely(logits[index], votes[index]), None if parts is None else likely(*parts)
        features.append(pair_features(whole, split, float(pair_logits[index]), len(text.split()), general))
    return _detector(np.array(features), data.second >= 0, temperature, weight)


def _detector(features: Floats, doubles: Any, temperature: float, neighbour_weight: float) -> Calibration:
    """With the two-domain detector over ``features`` [questions, features], where enough are of two domains."""
    import numpy as np

    if not features.shape[1] or doubles.sum() < _FOLDS:
        nothing = np.zeros(0)
        return Calibration(temperature, neighbour_weight, nothing, nothing, nothing, 0.0, 0.0)
    mean, scale = features.mean(axis=0), np.maximum(features.std(axis=0), 1e-6)
    seen = _dense(((features - mean) / scale).astype(np.float32))
    weights, bias = _fit_yes_or_no(seen, doubles, 1.0, 1.0, 1e-5)
    gate = float(np.quantile(features[doubles, 0], _MISSED_DOUBLES))
    return Calibration(temperature, neighbour_weight, weights.astype(np.float64), mean, scale, bias, gate)


class _Data:
    """The examples as matrices, and the models that are fitted on parts of them."""

    def __init__(self, examples: TrainingSet, embed: Callable[[Sequence[str]], Vectors], *, split: bool) -> None:
        """``split``: clauses too, which only cross-fitting needs."""
        import numpy as np

        self.roles = examples.roles
        self.texts = [bounded(text) for text, _ in examples.single] + [bounded(text) for text, _ in examples.double]
        self.first = np.array([role for _, role in examples.single] + [pair[0] for _, pair in examples.double])
        self.second = np.array([-1] * len(examples.single) + [pair[1] for _, pair in examples.double])
        terms = [text for text, _ in examples.terms]
        self._term_role = np.array([role for _, role in examples.terms], dtype=np.int64)
        self._terms = len(self.texts) + np.arange(len(terms))
        parts = [clauses(text) if split else [text] for text in self.texts]
        self._clauses = [part if len(part) > 1 else [] for part in parts]
        flat = [text for part in self._clauses for text in part]
        self._clause_start = np.cumsum([0, *map(len, self._clauses)])
        counts = [lexical_counts(text) for text in (*self.texts, *terms)]
        self.idf = inverse_document_frequency(counts)
        vectors = embed([*self.texts, *terms, *flat])
        self.dimension = vectors.shape[1]
        # Buckets that no two texts share weigh nothing: without them the fit is several times faster.
        self.active = np.flatnonzero(self.idf)
        counts += [lexical_counts(text) for text in flat]
        self._rows = _matrix(vectors, counts, self.idf, self.active)  # of questions, terms and clauses

    def fit(self, train: Ints) -> _Fitted:
        """The role model and the linear two-domain detector, fitted on the questions ``train`` and the terms."""
        import numpy as np

        double, single = train[self.second[train] >= 0], train[self.second[train] < 0]
        rows = self._rows.take(np.concatenate([single, double, double, self._terms]))
        labels = np.concatenate([self.first[single], self.first[double], self.second[double], self._term_role])
        weight = np.concatenate(
            [np.ones(len(single)), np.full(2 * len(double), 0.5), np.full(len(self._term_role), _TERM_WEIGHT)]
        )
        total = np.bincount(labels, weight, len(self.roles))
        balance = weight.sum() / len(self.roles) / np.maximum(total, 1e-9)
        weight *= np.minimum(balance, _MAX_BALANCE)[labels] ** _BALANCE_POWER
        coefficients, bias = fit_logistic(rows, labels, weight, len(self.roles), _C, _TOLERANCE)
        if not len(double):
            return _Fitted(coefficients, bias, np.zeros(len(coefficients), np.float32), 0.0)
        pair, offset = _fit_yes_or_no(
            self._rows.take(train), self.second[train] >= 0, _PAIR_C, _PAIR_WEIGHT, _TOLERANCE
        )
        return _Fitted(coefficients, bias, pair, offset)

    def judge(self, fitted: _Fitted, places: Ints, train: Ints) -> tuple[Vectors, Floats]:
        """Logits of the role model and votes of the neighbours among the questions ``train``, each [places, roles].

        ``places`` are rows of questions, terms and clauses. A role that was not in the training rows is impossible.
        """
        logits = self._rows.take(places).product(fitted.coefficients) + fitted.bias
        return logits, neighbour_votes(self._rows.dense[places], *self.known(train), len(self.roles))

    def pair_logits(self, fitted: _Fitted, places: Ints) -> Vectors:
        """What the linear two-domain detector says of the questions ``places``."""
        return self._rows.take(places).product(fitted.pair[:, None])[:, 0] + fitted.pair_bias

    def judge_clauses(self, fitted: _Fitted, some: Ints, train: Ints) -> list[tuple[Vectors, Floats] | None]:
        """``judge`` of the clauses of each question in ``some``; None where it does not split."""
        import numpy as np

        spans = [np.arange(self._clause_start[index], self._clause_start[index + 1]) for index in some]
        flat = np.concatenate(spans)
        if not len(flat):
            return [None] * len(spans)
        logits, votes = self.judge(fitted, len(self.texts) + len(self._term_role) + flat, train)
        cuts = np.cumsum([len(span) for span in spans])[:-1]
        parts = zip(spans, np.split(logits, cuts), np.split(votes, cuts), strict=True)
        return [(logit, vote) if len(span) else None for span, logit, vote in parts]

    def known(self, train: Ints) -> tuple[Vectors, Ints, Vectors]:
        """Vectors, roles and weights of those that vote: the questions of one role among ``train``, and the terms."""
        import numpy as np

        single = train[self.second[train] < 0]
        weights = np.concatenate([np.ones(len(single)), np.full(len(self._terms), _TERM_VOTE)])
        roles = np.concatenate([self.first[single], self._term_role])
        return self._rows.dense[np.concatenate([single, self._terms])], roles, weights.astype(np.float32)

    def finish(self, calibration: Calibration) -> RouterWeights:
        """The models fitted on everything."""
        import numpy as np

        fitted = self.fit(np.arange(len(self.texts)))
        known, known_roles, known_weights = self.known(np.arange(len(self.texts)))
        coefficients = np.concatenate([fitted.coefficients, fitted.pair[:, None]], axis=1)
        lexical = np.zeros((len(self.idf), len(self.roles) + 1), dtype=np.float32)
        lexical[self.active] = coefficients[self.dimension :]
        return RouterWeights(
            roles=self.roles,
            dense=coefficients[: self.dimension],
            lexical=lexical,
            bias=np.append(fitted.bias, np.float32(fitted.pair_bias)),
            idf=self.idf,
            known=np.ascontiguousarray(known, dtype=np.float32),
            known_roles=known_roles.astype(np.int64),
            known_weights=known_weights,
            **calibration._asdict(),
        )


def _matrix(vectors: Vectors, counts: Sequence[Any], idf: Floats, active: Ints) -> Matrix:
    """Vectors beside the buckets that are ``active``."""
    import numpy as np

    column = np.full(len(idf), -1)
    column[active] = np.arange(len(active))
    rows = [lexical_row(count, idf) for count in counts]
    keys = column[np.concatenate([keys for keys, _ in rows])]
    values = np.concatenate([values for _, values in rows]).astype(np.float32)
    ends = np.cumsum([len(keys) for keys, _ in rows])
    starts = np.concatenate([[0], np.cumsum(keys >= 0)[ends - 1]])
    return Matrix(vectors, keys[keys >= 0], values[keys >= 0], starts, len(active))


def _dense(rows: Vectors) -> Matrix:
    import numpy as np

    nothing = np.zeros(0, np.int64)
    return Matrix(rows, nothing, np.zeros(0, np.float32), np.zeros(len(rows) + 1, np.int64), 0)


def _fit_yes_or_no(rows: Matrix, yes: Any, c: float, weight_of_yes: float, tolerance: float) -> tuple[Vectors, float]:
    """Coefficients [columns] and bias of a logistic regression with two answers."""
    import numpy as np

    # Both answers have coefficients, which are each other's opposite: half of ``c`` is the usual penalty on the difference.
    weight = np.where(yes, weight_of_yes, 1.0).astype(np.float32)
    both, bias = fit_logistic(rows, yes.astype(np.int64), weight, 2, c / 2, tolerance)
    return both[:, 1] - both[:, 0], float(bias[1] - bias[0])


def _calibration(logits: Floats, votes: Floats, labels: Ints) -> tuple[float, float]:
    """The temperature and the weight of the votes that make held-out answers most likely.

    Temperature scaling (Guo et al. 2017, "On Calibration of Modern Neural Networks") with a second term. In the factors of
    logits and votes the loss is convex.
    """
    import numpy as np

    right = np.arange(len(labels)), labels

    def loss(factors: Any) -> tuple[float, Any]:
        likely = _softmax(factors[0] * logits + factors[1] * votes)
        value = float(-np.log(np.maximum(likely[right], 1e-12)).mean())
        likely[right] -= 1.0
        return value, np.array([np.vdot(likely, logits), np.vdot(likely, votes)]) / len(labels)

    of_logits, of_votes = minimise(loss, np.array([1.0, _NEIGHBOUR_WEIGHT]), 1e-6)
    temperature = 1.0 / np.clip(of_logits, np.exp(-2.0), np.exp(2.0))
    return float(temperature), float(np.clip(of_votes * temperature, 0.0, 3.0))


def _softmax(logits: Any) -> Any:
    import numpy as np

    shifted = np.exp(logits - logits.max(axis=-1, keepdims=True))
    return shifted / shifted.sum(axis=-1, keepdims=True)


def _untrained(roles: tuple[str, ...], dimension: int) -> RouterWeights:
    """Weights for a catalog with one role: there is nothing to tell apart."""
    import numpy as np

    from coe_cli.core.routing.router_features import LEXICAL_SIZE

    empty = np.zeros(0)
    return RouterWeights(
        roles=roles,
        dense=np.zeros((dimension, 2), dtype=np.float32),
        lexical=np.zeros((LEXICAL_SIZE, 2), dtype=np.float32),
        bias=np.zeros(2, dtype=np.float32),
        idf=np.zeros(LEXICAL_SIZE),
        known=np.zeros((0, dimension), dtype=np.float32),
        known_roles=np.zeros(0, dtype=np.int64),
        known_weights=np.zeros(0, dtype=np.float32),
        **Calibration(1.0, 0.0, empty, empty, empty, 0.0, 0.0)._asdict(),
    )
