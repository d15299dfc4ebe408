"""The router that comes with coe fits the examples, the catalog and the default embedder that come with it."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from coe_cli.core.routing.router import Router
from coe_cli.core.routing.router_examples import TrainingSet
from coe_cli.core.routing.router_features import NEIGHBOURS, bounded
from coe_cli.runtime.folders import Folders
from coe_cli.runtime.routing import router_training
from coe_cli.runtime.routing.bert_graph import written_digest
from coe_cli.runtime.routing.embedder import EMBEDDED, EMBEDDER_FORMAT, EmbedderInfo
from coe_cli.runtime.routing.embedder_export import comparison_texts
from coe_cli.runtime.routing.embedder_sources import EMBEDDERS
from coe_cli.runtime.routing.router_cache import Allowed, open_router, router_digest, training_set, vector_stamp
from coe_cli.runtime.routing.router_training import SETTINGS
from coe_cli.runtime.routing.shipped_router import (
    SHIPPED,
    shipped_examples,
    shipped_vectors,
    shipped_weights,
)
from coe_cli.runtime.routing.vector_cache import VectorCache, text_key
from coe_cli.runtime.settings import load_catalog

CATALOG = load_catalog([Path(__file__).resolve().parent.parent / "profiles" / "experts.yaml"])
PINNED = {source.sha256["model.safetensors"] for source in EMBEDDERS[EMBEDDED]}


def written_info() -> EmbedderInfo:
    """What the graph is that coe writes of the pinned files."""
    (weights,) = PINNED
    return EmbedderInfo(EMBEDDER_FORMAT, EMBEDDED, 384, 256, 0, "", written_digest(weights, "mean"))


def test_the_shipped_router_was_trained_on_the_shipped_examples() -> None:
    weights = shipped_weights(router_digest(CATALOG, written_info()))
    assert weights is not None, "examples, catalog or training changed: python benchmarks/ship_router.py"
    assert SHIPPED.stat().st_size < 9e6
    assert weights.roles == tuple(CATALOG.experts)
    assert weights.dense.shape == (384, len(CATALOG.experts) + 1)
    examples = training_set(CATALOG)
    vectors = shipped_examples(vector_stamp(written_info()))
    router = Router(weights)
    some = examples.single[::40]
    decided = [router.route([bounded(text)], vectors[text_key(bounded(text))][None]) for text, _ in some]
    right = [
        decision.ranking[0].name == examples.roles[role] for decision, (_, role) in zip(decided, some, strict=True)
    ]
    assert np.mean(right) > 0.95


def test_other_settings_of_the_training_make_another_router(monkeypatch: pytest.MonkeyPatch) -> None:
    """So that neither the shipped file nor one in a cache outlives a change of them."""
    before = router_digest(CATALOG, written_info())
    monkeypatch.setattr("coe_cli.runtime.routing.router_training.SETTINGS", (1, 2, 3))
    assert router_digest(CATALOG, written_info()) != before
    assert {"_C", "_BALANCE_POWER", "_TOLERANCE"} <= vars(router_training).keys()
    assert {router_training._C, router_training._BALANCE_POWER, NEIGHBOURS} <= set(SETTINGS)


def test_changed_examples_keep_the_calibration(monkeypatch: pytest.MonkeyPatch) -> None:
    """Which spares four fifths of the training: cross-fitting is not done again."""
    weights = shipped_weights(router_digest(CATALOG, written_info()))
    assert weights is not None
    calibration = router_training.Calibration.of(weights)
    monkeypatch.setattr(router_training, "_calibrate", None)
    some = training_set(CATALOG)
    few = TrainingSet(some.roles, some.single[::60], [], some.double[::60])
    vectors = shipped_examples(vector_stamp(written_info()))
    trained = router_training.train_router(
        few, lambda texts: np.stack([vectors[text_key(text)] for text in texts]), calibration
    )
    assert router_training.Calibration.of(trained) == calibration
    assert Router(trained).route(["x"], np.stack([next(iter(vectors.values()))])).experts


def test_another_embedder_or_catalog_has_no_shipped_router() -> None:
    assert shipped_weights("x") is None
    assert shipped_weights(None, stamp="x") is None
    assert shipped_examples("x") == {}
    assert shipped_vectors("bge-m3") is None


def test_shipped_vectors_spare_embedding(tmp_path: Path) -> None:
    seen: list[str] = []

    def embed(texts: Sequence[str]) -> Any:
        seen.extend(texts)
        return np.ones((len(texts), 2), np.float32)

    shipped = {text_key("known"): np.zeros(2, np.float32)}
    for _ in range(2):
        cache = VectorCache(tmp_path / "v.npz", "one", embed, lambda note: None, shipped=shipped)
        assert cache.embed(["new", "known"]).tolist() == [[1, 1], [0, 0]]
    assert seen == ["new"]


@pytest.mark.slow
def test_the_default_embedder_is_written_from_its_wheel_and_needs_no_training(tmp_path: Path) -> None:
    """The vectors of the original, which come with coe, are compared while it is prepared."""
    where = Folders(models=tmp_path, config=tmp_path, state=tmp_path, cache=tmp_path)
    router = open_router(CATALOG, where, lambda note: None, embedder=EMBEDDED, may=Allowed(train=False))
    info = router.embedder.info
    assert (info.sha256, info.max_tokens, info.prompt) == (written_info().sha256, 256, "")
    assert info.worst_cosine > 0.99999
    original = shipped_vectors(EMBEDDED)
    assert original is not None and len(original) == 28 <= len(comparison_texts())
    assert router.route("Which customers ordered twice?").experts[0].name == "sql_query"
