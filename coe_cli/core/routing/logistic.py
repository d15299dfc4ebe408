"""Multinomial logistic regression over dense and sparse columns, in numpy alone: L-BFGS with a few hundred products."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import numpy as np
    import numpy.typing as npt

    Array = npt.NDArray[np.float32]
    Ints = npt.NDArray[np.int64]

_MEMORY = 8
_MAX_ITERATIONS = 300
_ARMIJO = 1e-4
_MAX_HALVINGS = 20


class Matrix:
    """Rows of ``dense`` [rows, d] beside sparse ones: row i has ``values[starts[i]:starts[i + 1]]`` at ``keys[…]``.

    ``keys`` are below ``columns``.
    """

    def __init__(self, dense: Array, keys: Ints, values: Array, starts: Ints, columns: int) -> None:
        self.dense, self.keys, self.values, self.starts, self.columns = dense, keys, values, starts, columns

    @property
    def shape(self) -> tuple[int, int]:
        return len(self.dense), self.dense.shape[1] + self.columns

    def take(self, rows: Ints) -> Matrix:
        """The rows at these positions, in this order."""
        import numpy as np

        lengths = np.diff(self.starts)[rows]
        starts = np.concatenate([[0], np.cumsum(lengths)])
        places = np.repeat(self.starts[rows] - starts[:-1], lengths) + np.arange(starts[-1])
        return Matrix(self.dense[rows], self.keys[places], self.values[places], starts, self.columns)

    def product(self, weights: Array) -> Array:
        """Times ``weights`` [columns of both, classes]."""
        split = self.dense.shape[1]
        result: Array = self.dense @ weights[:split]
        if len(self.keys):
            sums = _weighted_sums(self.keys, self.values, self.starts[:-1], weights[split:])
            sums[self.starts[:-1] == self.starts[1:]] = 0.0
            result += sums
        return result

    def transposed(self) -> Callable[[Array], Array]:
        """The function that multiplies the transposed matrix with [rows, classes]."""
        import numpy as np

        order = np.argsort(self.keys, kind="stable")
        row_of = np.repeat(np.arange(len(self.dense)), np.diff(self.starts))[order]
        values = self.values[order]
        used, begins = np.unique(self.keys[order], return_index=True)
        split = self.dense.shape[1]

        def multiply(other: Array) -> Array:
            result = np.zeros((split + self.columns, other.shape[1]), np.float32)
            result[:split] = self.dense.T @ other
            if len(used):
                result[split + used] = _weighted_sums(row_of, values, begins, other)
            return result

        return multiply


def _weighted_sums(places: Ints, values: Array, starts: Ints, table: Array) -> Array:
    """For each run from one start to the next: the sum of ``values`` times the rows of ``table`` at ``places``.

    Column by column, which is twice as fast as taking whole rows. A run without places gives the first value behind it.
    """
    import numpy as np

    result = np.empty((len(starts), table.shape[1]), np.float32)
    terms = np.zeros(len(values) + 1, np.float32)  # the last one belongs to runs that begin behind all values
    for column, entries in enumerate(np.ascontiguousarray(table.T)):
        np.take(entries, places, out=terms[:-1], mode="clip")
        terms[:-1] *= values
        result[:, column] = np.add.reduceat(terms, starts)
    return result


def fit_logistic(
    rows: Matrix, labels: Ints, weight: Array, classes: int, c: float, tolerance: float
) -> tuple[Array, Array]:
    """Coefficients [columns, classes] and biases [classes] that minimise ``c`` Σ weight · cross-entropy + ½ ‖coefficients‖².

    ``tolerance`` is the largest slope that may remain of the mean loss. A class without a row has a bias of -30: it is
    impossible.
    """
    import numpy as np

    there = np.bincount(labels, minlength=classes) > 0
    floor = np.where(there, 0.0, -30.0).astype(np.float32)
    back = rows.transposed()
    target = np.zeros((len(labels), classes), np.float32)
    target[np.arange(len(labels)), labels] = 1.0
    scaled = (c * weight).astype(np.float32)[:, None]

    def loss(point: Array) -> tuple[float, Array]:
        logits = rows.product(point[:-1]) + point[-1] + floor
        logits -= logits.max(axis=1, keepdims=True)
        likelihood = np.exp(logits)
        total = likelihood.sum(axis=1, keepdims=True)
        likelihood /= total
        cross = np.log(total[:, 0]) - logits[np.arange(len(labels)), labels]
        slope = (likelihood - target) * scaled
        gradient = np.concatenate([back(slope) + point[:-1], slope.sum(axis=0, keepdims=True)])
        gradient[-1, ~there] = 0.0
        return float((cross.astype(np.float64) @ scaled[:, 0]) + 0.5 * np.vdot(point[:-1], point[:-1])), gradient

    found = minimise(loss, np.zeros((rows.shape[1] + 1, classes), np.float32), tolerance * float(scaled.sum()))
    return found[:-1], found[-1] + floor


def minimise(loss: Callable[[Array], tuple[float, Array]], start: Array, tolerance: float) -> Array:
    """The point where ``loss`` (value, gradient), convex, is least, to a largest slope of ``tolerance``.

    L-BFGS as in Nocedal and Wright 2006, "Numerical Optimization", algorithm 7.5, with halved steps (Armijo's rule).
    """
    import numpy as np

    point = start
    value, gradient = loss(point)
    steps: list[tuple[Any, Any, float]] = []
    for _ in range(_MAX_ITERATIONS):
        if float(np.abs(gradient).max()) <= tolerance:
            break
        direction = _direction(gradient, steps)
        slope = float(np.vdot(direction, gradient))
        rate = 1.0 if steps else 1.0 / max(1.0, float(np.linalg.norm(gradient)))
        for _ in range(_MAX_HALVINGS):
            following = point + np.float32(rate) * direction
            next_value, next_gradient = loss(following)
            if next_value <= value + _ARMIJO * rate * slope:
                break
            rate /= 2
        else:
            break  # float32 sees no further descent
        moved, turned = following - point, next_gradient - gradient
        curvature = float(np.vdot(moved, turned))
        if curvature > 1e-10:
            steps = [*steps[-_MEMORY + 1 :], (moved, turned, curvature)]
        point, value, gradient = following, next_value, next_gradient
    return point


def _direction(gradient: Array, steps: Sequence[tuple[Any, Any, float]]) -> Any:
    import numpy as np

    direction, shares = -gradient, []
    for moved, turned, curvature in reversed(steps):
        share = np.float32(np.vdot(moved, direction) / curvature)
        shares.append(share)
        direction = direction - share * turned
    if steps:
        _, turned, curvature = steps[-1]
        direction = direction * np.float32(curvature / np.vdot(turned, turned))
    for (moved, turned, curvature), share in zip(steps, reversed(shares), strict=True):
        direction = direction + moved * (share - np.float32(np.vdot(turned, direction) / curvature))
    return direction
