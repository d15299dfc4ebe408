"""The router that comes with coe: trained on the shipped examples for the default embedder, with their vectors.

`python benchmarks/ship_router.py` writes the file. It is used where catalog, examples and embedder are those that it was
trained for; where only examples were added, its vectors spare embedding the others again.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

from coe_cli.core.routing.router import RouterWeights
from coe_cli.core.routing.router_features import LEXICAL_SIZE
from coe_cli.runtime.routing.embedder import EMBEDDED

if TYPE_CHECKING:
    import numpy as np
    import numpy.typing as npt

    Vectors = npt.NDArray[np.float32]

SHIPPED: Final = Path(__file__).resolve().parents[2] / "data" / "router.npz"
PLAIN: Final = ("dense", "bias", "pair_weights", "pair_mean", "pair_scale", "known_roles", "known_weights")
SCALARS: Final = ("temperature", "neighbour_weight", "pair_bias", "pair_gate")


@contextlib.contextmanager
def _arrays() -> Iterator[Mapping[str, Any]]:
    """What the file holds, by name, each array read when it is asked for; nothing where there is no file."""
    import numpy as np

    with np.load(SHIPPED, allow_pickle=False) if SHIPPED.is_file() else contextlib.nullcontext({}) as stored:
        yield stored


def shipped_weights(digest: str | None, *, stamp: str = "") -> RouterWeights | None:
    """The shipped router, if it was trained for ``digest``; without one, for the embedder that ``stamp`` is of."""
    import numpy as np

    with _arrays() as stored:
        if str(stored.get("digest")) != digest if digest is not None else str(stored.get("stamp")) != stamp:
            return None
        roles = tuple(map(str, stored["roles"]))
        arrays: dict[str, Any] = {name: stored[name] for name in PLAIN}
        arrays |= zip(SCALARS, map(float, stored["scalars"]), strict=True)
        active = stored["active"]
        arrays["idf"] = np.zeros(LEXICAL_SIZE)
        arrays["idf"][active] = stored["idf"]
        arrays["lexical"] = np.zeros((LEXICAL_SIZE, len(roles) + 1), np.float32)
        arrays["lexical"][active] = stored["lexical"]
        arrays["known"] = of_length_one(stored["codes"][stored["known"]])
    return RouterWeights(roles=roles, **arrays)


def shipped_examples(stamp: str) -> dict[bytes, Any]:
    """Key of a text → its vector, for the shipped examples, if ``stamp`` is of the embedder that they are from."""
    with _arrays() as stored:
        if str(stored.get("stamp")) != stamp:
            return {}
        return dict(zip(map(bytes, stored["keys"]), of_length_one(stored["codes"]), strict=True))


def shipped_keys() -> set[bytes]:
    """The keys of all texts that the shipped examples are, whatever the embedder."""
    with _arrays() as stored:
        return set(map(bytes, stored.get("keys", ())))


def shipped_vectors(name: str) -> Vectors | None:
    """The original's vectors of the first comparison texts, [texts, dimension], where ``name`` is the default embedder."""
    with _arrays() as stored:
        return of_length_one(stored["originals"]) if name == EMBEDDED and "originals" in stored else None


def of_length_one(rows: Any) -> Vectors:
    """``rows`` [texts, dimension] as vectors of length 1; rows of zeros are not allowed."""
    import numpy as np

    wide = rows.astype(np.float32)
    wide /= np.linalg.norm(wide, axis=1, keepdims=True)
    result: Vectors = wide
    return result
