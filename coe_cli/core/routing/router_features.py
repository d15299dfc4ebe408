"""What the router sees of a question beside its vector: hashed words and letter groups, and the clauses it splits into."""

from __future__ import annotations

import itertools
import re
import zlib
from collections.abc import Sequence
from typing import TYPE_CHECKING, Final

if TYPE_CHECKING:
    import numpy as np
    import numpy.typing as npt

    Array = npt.NDArray[np.float32]
    Floats = npt.NDArray[np.float64]
    Ints = npt.NDArray[np.int64]
    Sparse = list[tuple[Ints, Floats]]

WORD_BUCKETS = 1 << 14
LETTER_BUCKETS = 1 << 15
LEXICAL_SIZE = WORD_BUCKETS + LETTER_BUCKETS
MAX_CLAUSES = 4
NEIGHBOURS = 15

_BLOCK_WEIGHTS = (2.0, 1.5)
_NEIGHBOUR_SHARPNESS = 15.0
_NEIGHBOUR_FLOOR = 0.02

_MAX_CHARS = 1000
_CLAUSE_CHARS = 600
FEATURE_SETTINGS: Final = (
    *(WORD_BUCKETS, LETTER_BUCKETS, MAX_CLAUSES, NEIGHBOURS, *_BLOCK_WEIGHTS),
    *(_NEIGHBOUR_SHARPNESS, _NEIGHBOUR_FLOOR, _MAX_CHARS, _CLAUSE_CHARS),
)
_TOKEN = re.compile(r"[\w@#:.+\-]*\w|[^\w\s]")
_WORD = re.compile(r"\w+")
_CLAUSE = re.compile(
    r"(?<=[.?!;])\s+|[,;:]?\s+(?:and(?: also| then)?|then|plus|also|as well as|but|or)\s+|,\s+|\n+|\s*[&+]\s+|\s+w/\s+",
    re.IGNORECASE,
)


def bounded(text: str) -> str:
    """``text``, or its beginning and end when it is long: a pasted document may have the question on either side."""
    text = text.strip()
    if len(text) <= _MAX_CHARS:
        return text
    head = _MAX_CHARS * 5 // 8
    return text[:head] + "\n" + text[-(_MAX_CHARS - head) :]


def clauses(text: str) -> list[str]:
    """``text`` cut at sentence ends and conjunctions into at most ``MAX_CLAUSES`` parts of three words or more.

    A text that cannot be split, or is longer than a question usually is, comes back whole.
    """
    if len(text) > _CLAUSE_CHARS:
        return [text]
    parts: list[str] = []
    for part in filter(None, (clause.strip() for clause in _CLAUSE.split(text))):
        if parts and (len(part.split()) < 3 or len(parts) >= MAX_CLAUSES):
            parts[-1] += " " + part
        else:
            parts.append(part)
    if len(parts) > 1 and len(parts[0].split()) < 3:
        parts[:2] = [f"{parts[0]} {parts[1]}"]
    return parts if len(parts) > 1 else [text]


def lexical_counts(text: str) -> Sparse:
    """Buckets and 1 + log(count) of the words and word pairs, and of the letter groups of 3 to 5, of ``text``."""
    lowered = text.lower()
    tokens = _TOKEN.findall(lowered)
    words = [f"1{token}" for token in tokens]
    words += [f"2{left} {right}" for left, right in itertools.pairwise(tokens)]
    letters = []
    for word in _WORD.findall(lowered):
        padded = f" {word[:40]} "
        for size in (3, 4, 5):
            letters += [padded[start : start + size] for start in range(max(1, len(padded) - size + 1))]
    return [_hashed(words, 0, WORD_BUCKETS), _hashed(letters, WORD_BUCKETS, LETTER_BUCKETS)]


def inverse_document_frequency(counts: Sequence[Sparse]) -> Floats:
    """Weight of each bucket, [LEXICAL_SIZE]: smoothed IDF, and 0 for what only one text has."""
    import numpy as np

    seen = np.bincount(np.concatenate([keys for blocks in counts for keys, _ in blocks]), minlength=LEXICAL_SIZE)
    return np.where(seen > 1, np.log((1 + len(counts)) / (1 + seen)) + 1, 0.0)


def lexical_row(counts: Sparse, idf: Floats) -> tuple[Ints, Floats]:
    """Buckets and values of one text; the words have length 2 and the letter groups 1.5, beside the vector's 1."""
    import numpy as np

    keys, values = [], []
    for (block, tf), share in zip(counts, _BLOCK_WEIGHTS, strict=True):
        weighted = tf * idf[block]
        length = float(np.sqrt((weighted**2).sum()))
        keys.append(block)
        values.append(weighted * (share / length) if length > 0 else weighted)
    return np.concatenate(keys), np.concatenate(values)


def neighbour_votes(vectors: Array, known: Array, known_roles: Ints, known_weights: Array, roles: int) -> Floats:
    """How the nearest known texts vote: log shares of the roles, [texts, roles]; zeros where nothing is known.

    ``vectors`` [texts, dimension] and ``known`` [examples, dimension] have length 1; ``known_roles`` and
    ``known_weights`` [examples]. Each of the ``NEIGHBOURS`` nearest votes for its role, by its cosine and its weight.
    """
    import numpy as np

    votes = np.zeros((len(vectors), roles))
    if not len(known):
        return votes
    # For a few rows BLAS spends more on waking its threads than on the product, 13 ms instead of 1 on a busy machine.
    few = len(vectors) <= 2 * MAX_CLAUSES
    far = -(np.einsum("td,nd->tn", vectors, known) if few else vectors @ known.T)
    count = min(NEIGHBOURS, len(known))
    nearest = np.argpartition(far, count - 1, axis=1)[:, :count]
    cosine = -np.take_along_axis(far, nearest, axis=1).astype(np.float64)
    strength = np.exp(_NEIGHBOUR_SHARPNESS * (cosine - 1.0)) * known_weights[nearest]
    for row, (places, strong) in enumerate(zip(nearest, strength, strict=True)):
        votes[row] = np.bincount(known_roles[places], strong, roles)
    shares: Floats = votes / votes.sum(axis=1, keepdims=True)
    return np.log(shares + _NEIGHBOUR_FLOOR)


def pair_features(
    whole: Floats, parts: Floats | None, pair_logit: float, words: int, general: int | None
) -> list[float]:
    """What the two-domain detector judges by.

    ``whole`` are the roles' probabilities for the question, [roles], ``parts`` those of its clauses, [clauses, roles],
    or None when it does not split; ``pair_logit`` is what the linear detector says of the whole question.
    """
    import numpy as np

    ranked = np.sort(whole)[::-1]
    third = float(ranked[2]) if len(ranked) > 2 else 0.0
    apart = sure = agreed = 0.0
    if parts is not None:
        experts = parts if general is None else np.delete(parts, general, axis=1)
        for left in range(len(parts)):
            for right in range(left + 1, len(parts)):
                a, b = int(parts[left].argmax()), int(parts[right].argmax())
                if a == b:
                    continue
                apart = max(apart, 1.0 - float(parts[left] @ parts[right]))
                if int(experts[left].argmax()) != int(experts[right].argmax()):
                    both = float(experts[left].max() * experts[right].max())
                    sure = max(sure, both)
                    agreed = max(agreed, float(whole[a] + whole[b]) * both)
    return [
        pair_logit,
        float(np.log(ranked[1] + 1e-4)),
        float(np.log(ranked[0] + 1e-4)),
        float(ranked[1] / (ranked[0] + ranked[1])),
        float(np.log(third + 1e-4)),
        float(-(whole * np.log(whole + 1e-9)).sum()),
        apart,
        sure,
        agreed,
        float(parts is not None),
        float(0 if parts is None else len(parts)),
        float(np.log1p(words)),
        float(whole[general]) if general is not None else 0.0,
    ]


def _hashed(grams: list[str], offset: int, buckets: int) -> tuple[Ints, Floats]:
    import numpy as np

    counted: dict[int, int] = {}
    for gram in grams:
        key = offset + zlib.crc32(gram.encode("utf-8", "replace")) % buckets
        counted[key] = counted.get(key, 0) + 1
    keys = np.fromiter(counted, dtype=np.int64, count=len(counted))
    return keys, 1.0 + np.log(np.fromiter(counted.values(), dtype=np.float64, count=len(counted)))
