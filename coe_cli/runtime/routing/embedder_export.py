"""A sentence-transformers model made into ONNX once, and proved equal to the original before it is used."""

from __future__ import annotations

import contextlib
import hashlib
import io
import json
import os
import shutil
import tempfile
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

import msgspec

from coe_cli.core.notes import Note
from coe_cli.errors import CoeError, DiskFull, ModelDamaged
from coe_cli.package import python_environment, python_path
from coe_cli.replacing import move
from coe_cli.runtime.folders import Folders
from coe_cli.runtime.routing.embedder import EMBEDDER_FORMAT, Embedder, EmbedderInfo, embedder_folder
from coe_cli.runtime.routing.embedder_sources import fetch_embedder, file_sha256
from coe_cli.runtime.store.source_errors import is_full

if TYPE_CHECKING:
    from collections.abc import Sequence

MIN_COSINE = 0.9999
_WEIGHTS = "model.onnx.data"


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
            note(Note("progress", "exporting the embedder to ONNX and comparing the two, once"))
            built = work / "export"
            info = export_embedder(source, built, name)
            if target.exists():
                shutil.rmtree(target)
            move(built, target)
    except OSError as error:
        if is_full(error):
            raise DiskFull(f"the disk of {where.cache} is full", "Make room, or set COE_CACHE_DIR.") from error
        raise CoeError(
            f"{where.cache} cannot be written: {error.strerror or error}", "Make it writable, or set COE_CACHE_DIR."
        ) from error
    return info


def export_embedder(source: Path | str, target: Path, name: str) -> EmbedderInfo:
    """Export the sentence-transformers model ``source`` (folder or hub id) into the folder ``target``.

    The graph takes ``input_ids`` and ``attention_mask`` [batch, tokens] and gives ``embedding`` [batch, dimension] of
    length 1: transformer, pooling and any further modules in one.

    Raises:
        ModelDamaged: the model cannot be loaded, or the cosine of a vector with the original's is below 0.9999.
    """
    target.mkdir(parents=True, exist_ok=True)
    with _quiet():
        model = _load(source)
        _export_graph(model, target)
        tokenizer = model.tokenizer.backend_tokenizer
        tokenizer.no_truncation()
        tokenizer.no_padding()
        (target / "tokenizer.json").write_text(tokenizer.to_str(), encoding="utf-8")
        prompts = getattr(model, "prompts", None) or {}
        prompt = prompts.get(getattr(model, "default_prompt_name", None) or "", "")
        info = EmbedderInfo(
            format=EMBEDDER_FORMAT,
            name=name,
            dimension=int(_dimension(model)),
            max_tokens=int(min(model.max_seq_length or 512, 8192)),
            pad_id=int(model.tokenizer.pad_token_id or 0),
            prompt=prompt,
            sha256=_sha256(target),
            size_mb=round(sum(f.stat().st_size for f in target.iterdir()) / 2**20, 1),
        )
        _write_info(target, info)
        texts = comparison_texts()
        original = model.encode(texts, normalize_embeddings=True, show_progress_bar=False, batch_size=8)
    embedder = Embedder(target)
    exported = embedder.embed(texts)
    worst = float((exported * original).sum(axis=1).min())
    if not worst >= MIN_COSINE:
        raise ModelDamaged(
            f"the ONNX export of `{name}` is not the original: cosine {worst:.5f} on {len(texts)} texts",
            "Use another embedder, or other versions of torch and transformers.",
        )
    info = msgspec.structs.replace(
        info, worst_cosine=round(worst, 7), resident_mb=max(info.size_mb, _measure_resident_mb(target, texts))
    )
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


def _load(source: Path | str) -> Any:
    from sentence_transformers import SentenceTransformer

    try:
        return SentenceTransformer(str(source), device="cpu").eval()
    except Exception as error:
        reason = str(error).strip().splitlines() or [type(error).__name__]
        raise ModelDamaged(
            f"{source} is no sentence-transformers model: {reason[0][:200]}", "Name another embedder."
        ) from error


def _dimension(model: Any) -> int:
    ask = getattr(model, "get_embedding_dimension", None) or model.get_sentence_embedding_dimension
    return int(ask())


def _export_graph(model: Any, target: Path) -> None:
    import torch

    class Graph(torch.nn.Module):  # type: ignore[misc]
        def __init__(self) -> None:
            super().__init__()
            self.model = model

        def forward(self, input_ids: Any, attention_mask: Any) -> Any:
            features = self.model({"input_ids": input_ids, "attention_mask": attention_mask})
            return torch.nn.functional.normalize(features["sentence_embedding"].float(), dim=-1)

    sample = model.tokenizer(["one text", "another text, which is longer"], padding=True, return_tensors="pt")
    dynamic = {0: "batch", 1: "tokens"}
    # The TorchScript exporter: torch.export's (dynamo=True) gave wrong vectors here without an error.
    with torch.no_grad():
        torch.onnx.export(
            Graph(),
            (sample["input_ids"], sample["attention_mask"]),
            str(target / "model.onnx"),
            input_names=["input_ids", "attention_mask"],
            output_names=["embedding"],
            dynamic_axes={"input_ids": dynamic, "attention_mask": dynamic, "embedding": {0: "batch"}},
            opset_version=17,
            dynamo=False,
        )
    _move_weights_out(target)


def _move_weights_out(target: Path) -> None:
    """The weights into one file beside the graph: it is mapped into memory, which loads the model twice as fast.

    Models beyond protobuf's 2 GB are exported as one file a tensor: these are brought into one as well.
    """
    import onnx

    graph = onnx.load(str(target / "model.onnx"))
    for path in list(target.iterdir()):
        path.unlink()
    onnx.save(
        graph,
        str(target / "model.onnx"),
        save_as_external_data=True,
        all_tensors_to_one_file=True,
        location=_WEIGHTS,
        size_threshold=1024,
    )


def _sha256(folder: Path) -> str:
    """SHA-256 of the digests of graph and weights."""
    parts = [file_sha256(folder / name) for name in ("model.onnx", _WEIGHTS) if (folder / name).is_file()]
    return hashlib.sha256("".join(parts).encode()).hexdigest()


def _measure_resident_mb(folder: Path, texts: Sequence[str]) -> float:
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


@contextlib.contextmanager
def _quiet() -> Any:
    """PyTorch's and transformers' warnings about tracing and unused weights say nothing that the comparison does not."""
    import logging

    os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
    os.environ.setdefault("TRANSFORMERS_VERBOSITY", "error")
    os.environ.setdefault("HF_HUB_DISABLE_PROGRESS_BARS", "1")
    previous = logging.root.manager.disable
    logging.disable(logging.WARNING)
    try:
        with warnings.catch_warnings(), contextlib.redirect_stderr(io.StringIO()):
            warnings.simplefilter("ignore")
            yield
    finally:
        logging.disable(previous)
