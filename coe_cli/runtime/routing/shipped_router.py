"""The router that comes with coe: trained on the shipped examples for the default embedder, with their vectors.

`python benchmarks/ship_router.py` writes the file. It is used where catalog, examples and embedder are those that it was
trained for; where only examples were added, its vectors spare embedding the others again.
"""

from __future__ import annotations

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
_PLAIN: Final = ("dense", "bias", "pair_weights", "pair_mean", "pair_scale", "known_roles", "known_weights")
SCALARS: Final = ("temperature", "neighbour_weight", "pair_bias", "pair_gate")


def shipped_weights(digest: str | None, *, stamp: str = "") -> RouterWeights | None:
    """The shipped router, if it was trained for ``digest``; without one, for the embedder that ``stamp`` is of."""
    import numpy as np

    if not SHIPPED.is_file():
        return None
    with np.load(SHIPPED, allow_pickle=False) as stored:
        if str(stored["digest"]) != digest if digest is not None else str(stored["stamp"]) != stamp:
            return None
        roles = tuple(map(str, stored["roles"]))
        arrays: dict[str, Any] = {name: stored[name] for name in _PLAIN}
        arrays |= zip(SCALARS, map(float, stored["scalars"]), strict=True)
        active = stored["active"]
        arrays["idf"] = np.zeros(LEXICAL_SIZE)
        arrays["idf"][active] = stored["idf"]
        arrays["lexical"] = np.zeros((LEXICAL_SIZE, len(roles) + 1), np.float32)
        arrays["lexical"][active] = stored["lexical"]
        arrays["known"] = _of_length_one(stored["codes"][stored["known"]])
    return RouterWeights(roles=roles, **arrays)


def shipped_examples(stamp: str) -> dict[bytes, Any]:
    """Key of a text → its vector, for the shipped examples, if ``stamp`` is of the embedder that they are from."""
    import numpy as np

    if not SHIPPED.is_file():
        return {}
    with np.load(SHIPPED, allow_pickle=False) as stored:
        if str(stored["stamp"]) != stamp:
            return {}
        return dict(zip(map(bytes, stored["keys"]), _of_length_one(stored["codes"]), strict=True))


def shipped_keys() -> set[bytes]:
    """The keys of all texts that the shipped examples are, whatever the embedder."""
    import numpy as np

    if not SHIPPED.is_file():
        return set()
    with np.load(SHIPPED, allow_pickle=False) as stored:
        return set(map(bytes, stored["keys"]))


def shipped_vectors(name: str) -> Vectors | None:
    """The original's vectors of the first comparison texts, [texts, dimension], where ``name`` is the default embedder."""
    import numpy as np

    if name != EMBEDDED or not SHIPPED.is_file():
        return None
    with np.load(SHIPPED, allow_pickle=False) as stored:
        return _of_length_one(stored["originals"])


def ship(
    path: Path, digest: str, stamp: str, weights: RouterWeights, vectors: dict[bytes, Any], originals: Vectors
) -> None:
    """Write the file. ``vectors`` are those that ``rounded`` gave: key of a text → vector, ``known`` among them."""
    import numpy as np

    codes = _codes(np.stack(list(vectors.values())))
    place = {code.tobytes(): index for index, code in enumerate(codes)}
    active = np.flatnonzero(weights.idf)
    np.savez(
        path,
        digest=np.array(digest),
        stamp=np.array(stamp),
        roles=np.array(weights.roles),
        keys=np.array([list(key) for key in vectors], np.uint8),
        codes=codes,
        known=np.array([place[code.tobytes()] for code in _codes(weights.known)], np.int32),
        originals=originals.astype(np.float16),
        active=active.astype(np.int32),
        idf=weights.idf[active].astype(np.float32),
        lexical=weights.lexical[active].astype(np.float16),
        scalars=np.array([getattr(weights, name) for name in SCALARS]),
        **{name: getattr(weights, name) for name in _PLAIN},
    )


def rounded(vectors: Vectors) -> Vectors:
    """The vectors as the file keeps them: 8 bits a number, length 1; cosine with the exact ones about 0.9999."""
    return _of_length_one(_codes(vectors))


def _codes(vectors: Vectors) -> npt.NDArray[np.int8]:
    import numpy as np

    largest = np.abs(vectors).max(axis=1, keepdims=True)
    codes: npt.NDArray[np.int8] = np.rint(vectors * (127 / largest)).astype(np.int8)
    return codes


def _of_length_one(rows: Any) -> Vectors:
    import numpy as np

    wide = rows.astype(np.float32)
    wide /= np.linalg.norm(wide, axis=1, keepdims=True)
    result: Vectors = wide
    return result
