"""Write coe_cli/data/router.npz, the router that comes with coe: `python benchmarks/ship_router.py`, about a minute.

To be run when the shipped examples, the catalog or the training change (a test says so). It needs the default embedder
and, where there is no file yet, sentence-transformers for the vectors of the original that a graph is compared with.
Run again it writes the same file, but for what another processor adds up in another order; `--check` trains and compares
instead of writing.
"""

from __future__ import annotations

import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import numpy as np

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from coe_cli.core.routing.router import RouterWeights
from coe_cli.core.routing.router_features import bounded
from coe_cli.runtime.folders import folders
from coe_cli.runtime.routing.embedder import EMBEDDED, Embedder, embedder_folder
from coe_cli.runtime.routing.embedder_export import comparison_texts, prepare_embedder
from coe_cli.runtime.routing.embedder_sources import fetch_embedder
from coe_cli.runtime.routing.router_cache import router_digest, training_set, vector_stamp
from coe_cli.runtime.routing.router_training import train_router
from coe_cli.runtime.routing.shipped_router import (
    PLAIN,
    SCALARS,
    SHIPPED,
    of_length_one,
    shipped_examples,
    shipped_vectors,
    shipped_weights,
)
from coe_cli.runtime.routing.vector_cache import text_key
from coe_cli.runtime.settings import load_catalog

COMPARED = ("dense", "lexical", "bias", "pair_weights", *SCALARS)
LARGEST_GAP = 0.02
CATALOG = Path(__file__).resolve().parent.parent / "profiles" / "experts.yaml"


def main() -> int:
    where = folders()
    folder = embedder_folder(EMBEDDED, where)
    if not (folder / "embedder.json").is_file():
        prepare_embedder(EMBEDDED, where, print)
    embedder = Embedder(folder)
    catalog = load_catalog([CATALOG])
    stamp = vector_stamp(embedder.info)
    kept = shipped_examples(stamp)
    used: dict[bytes, Any] = {}

    def embed(texts: Any) -> Any:
        keys = [text_key(text) for text in texts]
        missing = {key: text for key, text in zip(keys, texts, strict=True) if key not in kept}
        print(f"{len(missing)} of {len(set(keys))} texts are new")
        if missing:
            kept.update(zip(missing, rounded(embedder.embed(list(missing.values()))), strict=True))
        used.update((key, kept[key]) for key in keys)
        return np.stack([kept[key] for key in keys])

    begin = time.process_time()
    examples = training_set(catalog)
    weights = train_router(examples, embed)
    print(f"trained in {time.process_time() - begin:.1f} s of CPU time")
    digest = router_digest(catalog, embedder.info)
    if "--check" in sys.argv:
        return compared(weights, shipped_weights(digest))
    # The clauses' vectors are left out: only cross-fitting needs them, which a change of some examples does not repeat.
    kept_keys = {text_key(bounded(text)) for text, _ in (*examples.single, *examples.double)}
    kept_keys |= {text_key(text) for text, _ in examples.terms}
    used = {key: vector for key, vector in used.items() if key in kept_keys}
    there = shipped_vectors(EMBEDDED)
    ship(SHIPPED, digest, stamp, weights, used, originals() if there is None else there)
    print(f"{SHIPPED}: {SHIPPED.stat().st_size / 1e6:.1f} MB")
    return 0


def ship(
    path: Path, digest: str, stamp: str, weights: RouterWeights, vectors: dict[bytes, Any], originals: Any
) -> None:
    """Write the file. ``vectors`` are those that ``rounded`` gave: key of a text → vector, ``known`` among them."""
    codes = codes_of(np.stack(list(vectors.values())))
    place = {code.tobytes(): index for index, code in enumerate(codes)}
    active = np.flatnonzero(weights.idf)
    np.savez(
        path,
        digest=np.array(digest),
        stamp=np.array(stamp),
        roles=np.array(weights.roles),
        keys=np.array([list(key) for key in vectors], np.uint8),
        codes=codes,
        known=np.array([place[code.tobytes()] for code in codes_of(weights.known)], np.int32),
        originals=originals.astype(np.float16),
        active=active.astype(np.int32),
        idf=weights.idf[active].astype(np.float32),
        lexical=weights.lexical[active].astype(np.float16),
        scalars=np.array([getattr(weights, name) for name in SCALARS]),
        **{name: getattr(weights, name) for name in PLAIN},
    )


def rounded(vectors: Any) -> Any:
    """The vectors as the file keeps them: 8 bits a number, length 1; cosine with the exact ones about 0.9999."""
    return of_length_one(codes_of(vectors))


def codes_of(vectors: Any) -> Any:
    largest = np.abs(vectors).max(axis=1, keepdims=True)
    codes: Any = np.rint(vectors * (127 / largest)).astype(np.int8)
    return codes


def compared(weights: RouterWeights, shipped: RouterWeights | None) -> int:
    """Exit code 1 where the shipped router is not what training gives."""
    if shipped is None:
        print("the shipped router was trained on other examples, settings or code")
        return 1
    gap = {name: float(np.abs(getattr(weights, name) - getattr(shipped, name)).max(initial=0.0)) for name in COMPARED}
    print("largest differences:", ", ".join(f"{name} {value:.1e}" for name, value in gap.items()))
    return int(max(gap.values()) > LARGEST_GAP)


def originals() -> Any:
    from sentence_transformers import SentenceTransformer

    with tempfile.TemporaryDirectory() as scratch:
        model = SentenceTransformer(str(fetch_embedder(EMBEDDED, Path(scratch), print)), device="cpu")
        return model.encode(comparison_texts()[:28], normalize_embeddings=True)


if __name__ == "__main__":
    sys.exit(main())
