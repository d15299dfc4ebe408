"""Training of the router from its examples: logistic regression, cross-fitted for the two-domain detector."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any

from coe_cli.core.models.catalog import GENERAL_EXPERT
from coe_cli.core.routing.router import RouterWeights
from coe_cli.core.routing.router_examples import TrainingSet
from coe_cli.core.routing.router_features import (
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

_TERM_WEIGHT = 0.4
_TERM_VOTE = 0.3
_NEIGHBOUR_WEIGHT = 0.75
_C = 5.0
_MAX_BALANCE = 5.0
_BALANCE_POWER = 0.75
_FOLDS = 4
_SEED = 20240
_MISSED_DOUBLES = 0.02


def train_router(examples: TrainingSet, embed: Callable[[Sequence[str]], Vectors]) -> RouterWeights:
    """Weights for the roles of ``examples``; ``embed`` gives vectors of length 1, [texts, dimension].

    The roles are told apart by multinomial logistic regression over the vector and hashed words, and by the votes of the
    nearest examples (Router.route adds both up in the same way). What both say of questions that they were not fitted on
    (cross-fitting) sets the weight of the votes and the temperature, and trains the two-domain detector.
    """
    from threadpoolctl import threadpool_limits  # type: ignore[import-untyped]

    if len(examples.roles) == 1:
        return _untrained(examples.roles, embed(["text"]).shape[1])
    data = _Data(examples, embed)
    # The fits are many small vector operations: on a busy machine a second BLAS thread makes them ten times slower.
    with threadpool_limits(1, "blas"):
        return _train(examples, data)


def _train(examples: TrainingSet, data: _Data) -> RouterWeights:
    import numpy as np

    general = examples.roles.index(GENERAL_EXPERT) if GENERAL_EXPERT in examples.roles else None
    logits, votes = np.zeros((2, len(data.texts), len(examples.roles)))
    features = np.zeros((len(data.texts), 0))
    if len(data.texts) >= 4 * _FOLDS:
        fold = np.random.default_rng(_SEED).permutation(len(data.texts)) % _FOLDS
        rows: list[Any] = []
        for held in range(_FOLDS):
            test, train = np.flatnonzero(fold == held), np.flatnonzero(fold != held)
            roles, pair = data.fit(train)
            logits[test], votes[test] = data.judge(roles, data.rows[test], data.vectors[test], train)
            rows += zip(test, data.judge_clauses(roles, test, train), pair(data.rows[test]), strict=True)
        single = np.flatnonzero(data.second < 0)
        temperature, weight = _calibration(logits[single], votes[single], data.first[single])
        rows.sort(key=lambda row: row[0])
        features = np.array(
            [
                pair_features(
                    _softmax((logits[index] + weight * votes[index]) / temperature),
                    None if parts is None else _softmax((parts[0] + weight * parts[1]) / temperature),
                    float(logit),
                    len(data.texts[index].split()),
                    general,
                )
                for index, parts, logit in rows
            ]
        )
    else:
        temperature, weight = 1.0, _NEIGHBOUR_WEIGHT
    return data.finish(features, temperature, weight)


class _Data:
    """The examples as matrices, and the models that are fitted on parts of them."""

    def __init__(self, examples: TrainingSet, embed: Callable[[Sequence[str]], Vectors]) -> None:
        import numpy as np

        self.roles = examples.roles
        self.texts = [bounded(text) for text, _ in examples.single] + [bounded(text) for text, _ in examples.double]
        self.first = np.array([role for _, role in examples.single] + [pair[0] for _, pair in examples.double])
        self.second = np.array([-1] * len(examples.single) + [pair[1] for _, pair in examples.double])
        terms = [text for text, _ in examples.terms]
        self._term_role = np.array([role for _, role in examples.terms], dtype=np.int64)
        parts = [clauses(text) for text in self.texts]
        self._clauses = [part if len(part) > 1 else [] for part in parts]
        flat = [text for part in self._clauses for text in part]
        self._clause_start = np.cumsum([0, *map(len, self._clauses)])
        counts = [lexical_counts(text) for text in (*self.texts, *terms)]
        self.idf = inverse_document_frequency(counts)
        vectors = embed([*self.texts, *terms, *flat])
        self.dimension = vectors.shape[1]
        self.vectors = vectors[: len(self.texts)]
        self._term_vectors = vectors[len(self.texts) : len(self.texts) + len(terms)]
        self._flat_vectors = vectors[len(self.texts) + len(terms) :]
        # Buckets that no two texts share weigh nothing: without them the fit is several times faster.
        self.active = np.flatnonzero(self.idf)
        rows = _matrix(vectors, [*counts, *(lexical_counts(text) for text in flat)], self.idf, self.active)
        self.rows = rows[: len(self.texts)]
        self._terms = rows[len(self.texts) : len(self.texts) + len(terms)]
        self._flat = rows[len(self.texts) + len(terms) :]

    def fit(self, train: Any) -> tuple[Any, Callable[[Any], Any]]:
        """The role model and the linear two-domain detector, fitted on the rows ``train``."""
        import numpy as np
        from scipy.sparse import vstack  # type: ignore[import-untyped]
        from sklearn.linear_model import LogisticRegression  # type: ignore[import-untyped]

        double = train[self.second[train] >= 0]
        single = train[self.second[train] < 0]
        rows = vstack([self.rows[single], self.rows[double], self.rows[double], self._terms]).tocsr()
        labels = np.concatenate([self.first[single], self.first[double], self.second[double], self._term_role])
        weight = np.concatenate(
            [np.ones(len(single)), np.full(2 * len(double), 0.5), np.full(len(self._term_role), _TERM_WEIGHT)]
        )
        total = np.bincount(labels, weight, len(self.roles))
        balance = weight.sum() / len(self.roles) / np.maximum(total, 1e-9)
        weight *= np.minimum(balance, _MAX_BALANCE)[labels] ** _BALANCE_POWER
        roles = LogisticRegression(C=_C, max_iter=300, tol=1e-3).fit(rows, labels, sample_weight=weight)
        if not len(double):
            return roles, lambda some: np.zeros(some.shape[0])
        pair = LogisticRegression(C=10, max_iter=300, tol=1e-3, class_weight={0: 1, 1: 5})
        pair.fit(self.rows[train], self.second[train] >= 0)
        return roles, pair.decision_function

    def judge(self, model: Any, rows: Any, vectors: Any, train: Any) -> tuple[Any, Any]:
        """Logits of the linear model and votes of the neighbours among the questions ``train``, each [rows, roles].

        A role that was not in the training rows is impossible.
        """
        import numpy as np

        scores = model.decision_function(rows)
        if scores.ndim == 1:
            scores = np.stack([-scores / 2, scores / 2], axis=1)
        full = np.full((rows.shape[0], len(self.roles)), -30.0)
        full[:, model.classes_] = scores
        return full, neighbour_votes(vectors, *self.known(train), len(self.roles))

    def judge_clauses(self, model: Any, some: Any, train: Any) -> list[tuple[Any, Any] | None]:
        """``judge`` of the clauses of each question in ``some``; None where it does not split."""
        import numpy as np

        spans = [np.arange(self._clause_start[index], self._clause_start[index + 1]) for index in some]
        flat = np.concatenate(spans)
        if not len(flat):
            return [None] * len(spans)
        logits, votes = self.judge(model, self._flat[flat], self._flat_vectors[flat], train)
        cuts = np.cumsum([len(span) for span in spans])[:-1]
        parts = zip(spans, np.split(logits, cuts), np.split(votes, cuts), strict=True)
        return [(logit, vote) if len(span) else None for span, logit, vote in parts]

    def known(self, train: Any) -> tuple[Any, Any, Any]:
        """Vectors, roles and weights of those that vote: the questions of one role among ``train``, and the terms."""
        import numpy as np

        single = train[self.second[train] < 0]
        vectors = np.concatenate([self.vectors[single], self._term_vectors])
        weights = np.concatenate([np.ones(len(single)), np.full(len(self._term_role), _TERM_VOTE)])
        return vectors, np.concatenate([self.first[single], self._term_role]), weights.astype(np.float32)

    def finish(self, features: Any, temperature: float, neighbour_weight: float) -> RouterWeights:
        import numpy as np
        from sklearn.linear_model import LogisticRegression

        everything = np.arange(len(self.texts))
        roles, pair = self.fit(everything)
        size = len(self.roles)
        coefficients = np.zeros((size + 1, self.dimension + len(self.active)))
        bias = np.full(size + 1, -30.0)
        if len(roles.classes_) == 2:
            coefficients[roles.classes_] = np.stack([-roles.coef_[0] / 2, roles.coef_[0] / 2])
            bias[roles.classes_] = [-roles.intercept_[0] / 2, roles.intercept_[0] / 2]
        else:
            coefficients[roles.classes_], bias[roles.classes_] = roles.coef_, roles.intercept_
        bias[size] = 0.0
        doubles = self.second >= 0
        mean = scale = weights = np.zeros(0)
        offset = gate = 0.0
        if features.shape[1] and doubles.sum() >= _FOLDS:
            linear = pair.__self__  # type: ignore[attr-defined]
            coefficients[size], bias[size] = linear.coef_[0], linear.intercept_[0]
            mean, scale = features.mean(axis=0), np.maximum(features.std(axis=0), 1e-6)
            detector = LogisticRegression(C=1, max_iter=2000).fit((features - mean) / scale, doubles)
            gate = float(np.quantile(features[doubles, 0], _MISSED_DOUBLES))
            weights, offset = detector.coef_[0], float(detector.intercept_[0])
        known, known_roles, known_weights = self.known(everything)
        lexical = np.zeros((len(self.idf), size + 1), dtype=np.float32)
        lexical[self.active] = coefficients[:, self.dimension :].T
        return RouterWeights(
            roles=self.roles,
            dense=np.ascontiguousarray(coefficients[:, : self.dimension].T, dtype=np.float32),
            lexical=lexical,
            bias=bias.astype(np.float32),
            idf=self.idf,
            temperature=temperature,
            neighbour_weight=neighbour_weight,
            pair_weights=weights,
            pair_mean=mean,
            pair_scale=scale,
            pair_bias=offset,
            pair_gate=gate,
            known=np.ascontiguousarray(known, dtype=np.float32),
            known_roles=known_roles.astype(np.int64),
            known_weights=known_weights,
        )


def _matrix(vectors: Vectors, counts: Sequence[Any], idf: Any, active: Any) -> Any:
    import numpy as np
    from scipy.sparse import csr_matrix, hstack

    rows = [lexical_row(count, idf) for count in counts]
    starts = np.cumsum([0, *(len(keys) for keys, _ in rows)])
    keys = np.concatenate([keys for keys, _ in rows])
    values = np.concatenate([values for _, values in rows])
    lexical = csr_matrix((values, keys, starts), shape=(len(rows), len(idf)), dtype=np.float32)[:, active]
    return hstack([csr_matrix(vectors), lexical]).tocsr()


def _calibration(logits: Any, votes: Any, labels: Any) -> tuple[float, float]:
    """The temperature and the weight of the votes that make held-out answers most likely.

    Temperature scaling (Guo et al. 2017, "On Calibration of Modern Neural Networks") with a second term.
    """
    import numpy as np
    from scipy.optimize import minimize  # type: ignore[import-untyped]

    def loss(parameters: Any) -> float:
        temperature, weight = np.exp(parameters[0]), parameters[1]
        likely = _softmax((logits + weight * votes) / temperature)[np.arange(len(labels)), labels]
        return float(-np.log(np.maximum(likely, 1e-12)).mean())

    start = (0.0, _NEIGHBOUR_WEIGHT)
    found = minimize(loss, start, method="L-BFGS-B", bounds=((-2.0, 2.0), (0.0, 3.0))).x
    return float(np.exp(found[0])), float(found[1])


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
        temperature=1.0,
        neighbour_weight=0.0,
        pair_weights=empty,
        pair_mean=empty,
        pair_scale=empty,
        pair_bias=0.0,
        pair_gate=0.0,
        known=np.zeros((0, dimension), dtype=np.float32),
        known_roles=np.zeros(0, dtype=np.int64),
        known_weights=np.zeros(0, dtype=np.float32),
    )
