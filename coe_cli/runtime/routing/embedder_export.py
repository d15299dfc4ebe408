"""A sentence-transformers model written as ONNX once, and compared with the original before it is used."""

from __future__ import annotations

import hashlib
import json
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING

import msgspec

from coe_cli.core.notes import Note
from coe_cli.errors import CoeError, DiskFull, ModelDamaged
from coe_cli.package import python_environment, python_path
from coe_cli.replacing import move, remove_folder
from coe_cli.runtime.atomic_write import is_full
from coe_cli.runtime.folders import Folders
from coe_cli.runtime.routing.bert_graph import GRAPH, WEIGHTS, read_bert, write_bert
from coe_cli.runtime.routing.embedder import Embedder, EmbedderInfo, embedder_folder
from coe_cli.runtime.routing.embedder_sources import fetch_embedder
from coe_cli.runtime.routing.shipped_router import shipped_vectors
from coe_cli.runtime.store.integrity import sha256_of

if TYPE_CHECKING:
    from collections.abc import Sequence

MIN_COSINE = 0.9999


def prepare_embedder(name: str, where: Folders, note: Callable[[Note], None]) -> EmbedderInfo:
    """Fetch ``name``, export it, compare it with the original and put it in place; nothing half-made is ever visible.

    Raises:
        ModelMissing: it cannot be fetched.
        ModelDamaged: a pinned digest does not hold, the folder is no sentence-transformers model, or the export's
            vectors are not the original's.
        DiskFull: the cache folder's disk ran full.
        CoeError: the cache folder cannot be written.
    """
    target = embedder_folder(name, where)
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(dir=target.parent, prefix=".building-", ignore_cleanup_errors=True) as scratch:
            work = Path(scratch)
            source = fetch_embedder(name, work, note)
            note(Note("progress", "writing the embedder's ONNX graph and comparing it, once"))
            built = work / "export"
            info = export_embedder(source, built, name)
            remove_folder(target)
            move(built, target)
    except OSError as error:
        if is_full(error):
            raise DiskFull(f"the disk of {where.cache} is full", "Make room, or set COE_CACHE_DIR.") from error
        raise CoeError(
            f"{where.cache} cannot be written: {error.strerror or error}", "Make it writable, or set COE_CACHE_DIR."
        ) from error
    return info


def export_embedder(source: Path | str, target: Path, name: str) -> EmbedderInfo:
    """Write the sentence-transformers model ``source`` (folder or hub id) as a graph into the folder ``target``.

    The graph takes ``input_ids`` and ``attention_mask`` [batch, tokens] and gives ``embedding`` [batch, dimension] of
    length 1. A plain BERT is written by coe itself; anything else by PyTorch, and is compared with the original.

    Raises:
        ModelMissing: sentence-transformers would be needed and is not installed.
        ModelDamaged: the model cannot be loaded, or the cosine of a vector with the original's is below 0.9999.
    """
    target.mkdir(parents=True, exist_ok=True)
    texts = comparison_texts()
    bert = read_bert(Path(source))
    if bert is not None:
        info, original = write_bert(bert, target, name), shipped_vectors(name)
    else:
        from coe_cli.runtime.routing.embedder_torch import export_by_torch

        info, original = export_by_torch(source, target, name, texts)
        info = msgspec.structs.replace(info, sha256=_sha256(target))
    size_mb = round(sum(file.stat().st_size for file in target.iterdir()) / 2**20, 1)
    _write_info(target, info)
    if original is not None:
        vectors = Embedder(target).embed(texts[: len(original)])
        worst = float((vectors * original).sum(axis=1).min())
        if not worst >= MIN_COSINE:
            raise ModelDamaged(
                f"the ONNX graph of `{name}` is not the original: cosine {worst:.5f} on {len(original)} texts",
                "Use another embedder, or other versions of onnxruntime, torch and transformers.",
            )
        info = msgspec.structs.replace(info, worst_cosine=round(worst, 7))
    resident_mb = _measure_rss_mb(target, texts[::4])  # of every length
    info = msgspec.structs.replace(info, resident_mb=max(size_mb, resident_mb))
    _write_info(target, info)
    return info


def comparison_texts() -> list[str]:
    """The 56 texts on which an export is compared: short and long, code, numbers, other scripts, emoji."""
    base = [
        "hello",
        "What is the capital of Portugal?",
        "SELECT name, COUNT(*) FROM users GROUP BY name HAVING COUNT(*) > 1",
        "def add(a: int, b: int) -> int:\n    return a + b",
        "Neither party shall be liable for indirect or consequential damages.",
        "Does vitamin D supplementation reduce falls in nursing home residents?",
        "∫ 1/(x² + 4) dx = ½ arctan(x/2) + C",
        "Ärger über große Straßen — naïve café",
        "你好，世界。这是一个问题。",
        "Какая сегодня погода в Москве?",
        "🎉🎉 👍 🧪",
        "a",
        "",
        "<div class='row'><p>text</p></div> .row { display: flex }",
    ]
    return [
        text
        for repeat in range(4)
        for text in (
            (" ".join([text, "and further, in other words,", str(repeat * 37)] * (1 + 7 * repeat)) if repeat else text)
            for text in base
        )
    ]


def _sha256(folder: Path) -> str:
    """SHA-256 of the digests of graph and weights."""
    parts = [sha256_of(folder / name) for name in (GRAPH, WEIGHTS) if (folder / name).is_file()]
    return hashlib.sha256("".join(parts).encode()).hexdigest()


def _measure_rss_mb(folder: Path, texts: Sequence[str]) -> float:
    """Memory that a process gains by loading the embedder and embedding ``texts``, measured in a process of its own."""
    import subprocess
    import sys

    script = (
        "import json, sys, psutil, numpy\n"
        "from pathlib import Path\n"
        "import onnxruntime, tokenizers\n"
        "from coe_cli.runtime.routing.embedder import Embedder\n"
        "me = psutil.Process(); before = me.memory_info().rss\n"
        "Embedder(Path(sys.argv[1])).embed(json.load(sys.stdin))\n"
        "print((me.memory_info().rss - before) / 2**20)\n"
    )
    environment = python_environment(ORT_DISABLE_TELEMETRY="1", PYTHONPATH=python_path())
    done = subprocess.run(
        [sys.executable, "-c", script, str(folder)],
        input=json.dumps(list(texts)),
        capture_output=True,
        encoding="utf-8",
        errors="replace",
        env=environment,
        timeout=600,
    )
    if done.returncode:
        reason = (done.stderr.strip().splitlines() or ["no output"])[-1]
        raise ModelDamaged(f"the exported embedder does not run in a process of its own: {reason}", "Export it again.")
    return round(float(done.stdout.split()[-1]), 1)


def _write_info(folder: Path, info: EmbedderInfo) -> None:
    (folder / "embedder.json").write_bytes(msgspec.json.format(msgspec.json.encode(info)))
