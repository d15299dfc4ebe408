"""Any sentence-transformers model as an ONNX graph by PyTorch's exporter (extra ``embedders``)."""

from __future__ import annotations

import contextlib
import io
import os
import warnings
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from coe_cli.errors import ModelDamaged, ModelMissing, first_line
from coe_cli.package import install_command
from coe_cli.replacing import remove
from coe_cli.runtime.routing.bert_graph import GRAPH, WEIGHTS
from coe_cli.runtime.routing.embedder import EMBEDDED, EMBEDDER_FORMAT, EmbedderInfo


def export_by_torch(source: Path | str, target: Path, name: str, texts: Sequence[str]) -> tuple[EmbedderInfo, Any]:
    """Write graph and tokenizer into ``target``; also gives the original's vectors of ``texts``, [texts, dimension].

    Transformer, pooling and any further modules become one graph.

    Raises:
        ModelMissing: sentence-transformers is not installed.
        ModelDamaged: the model cannot be loaded.
    """
    with _quiet():
        model = _load(source)
        _export_graph(model, target)
        tokenizer = model.tokenizer.backend_tokenizer
        tokenizer.no_truncation()
        tokenizer.no_padding()
        (target / "tokenizer.json").write_text(tokenizer.to_str(), encoding="utf-8")
        prompts = getattr(model, "prompts", None) or {}
        info = EmbedderInfo(
            format=EMBEDDER_FORMAT,
            name=name,
            dimension=int(_dimension(model)),
            max_tokens=int(min(model.max_seq_length or 512, 8192)),
            pad_id=int(model.tokenizer.pad_token_id or 0),
            prompt=prompts.get(getattr(model, "default_prompt_name", None) or "", ""),
            sha256="",
        )
        return info, model.encode(list(texts), normalize_embeddings=True, show_progress_bar=False, batch_size=8)


def _load(source: Path | str) -> Any:
    try:
        from sentence_transformers import SentenceTransformer
    except ImportError:
        raise ModelMissing(
            f"`{source}` is no plain BERT: sentence-transformers is needed to export it, and is not installed",
            f"Install it: {install_command('embedders')}. Or use the default embedder: {EMBEDDED}.",
        ) from None
    try:
        return SentenceTransformer(str(source), device="cpu").eval()
    except Exception as error:
        raise ModelDamaged(
            f"{source} is no sentence-transformers model: {first_line(error)}", "Name another embedder."
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
            str(target / GRAPH),
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

    graph = onnx.load(str(target / GRAPH))
    for path in list(target.iterdir()):
        remove(path)
    onnx.save(
        graph,
        str(target / GRAPH),
        save_as_external_data=True,
        all_tensors_to_one_file=True,
        location=WEIGHTS,
        size_threshold=1024,
    )


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
