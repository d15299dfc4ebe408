"""A small real sentence-transformers model and a small catalog, for the tests of embedder, router and `coe route`."""

from __future__ import annotations

import json
import string
from pathlib import Path
from typing import Any
from unittest import mock

import numpy as np
import yaml

WORDS = [
    "how",
    "do",
    "i",
    "write",
    "a",
    "query",
    "the",
    "table",
    "join",
    "select",
    "contract",
    "clause",
    "law",
    "sign",
    "bread",
    "cake",
    "bake",
    "oven",
    "code",
    "loop",
    "and",
    "of",
]


LETTERS = [*string.ascii_lowercase, *(f"##{c}" for c in string.ascii_lowercase), *string.punctuation, *string.digits]


def build_sentence_transformer(
    folder: Path, *, dimension: int = 32, pooling: str = "mean", dense: bool = False, seed: int = 0
) -> Path:
    """A BERT of two layers with random weights and its own word-piece tokenizer, as sentence-transformers saves one.

    ``pooling`` is that of sentence-transformers: mean, cls (as BAAI/bge-m3 has it), max. ``dense`` adds a module that only
    PyTorch exports.
    """
    model = folder / "model"
    vocabulary = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", *WORDS, *(w for w in LETTERS if w not in WORDS)]
    kinds = ["Transformer", "Pooling", *(["Dense"] if dense else [])]
    places = ["", *(f"{number}_{kind}" for number, kind in enumerate(kinds) if number)]
    for place in places:
        (model / place).mkdir(parents=True, exist_ok=True)
    modules = [
        {"idx": number, "name": str(number), "path": place, "type": f"sentence_transformers.models.{kind}"}
        for number, (kind, place) in enumerate(zip(kinds, places, strict=True))
    ]
    documents: dict[str, Any] = {
        "modules.json": modules,
        "config.json": {
            "architectures": ["BertModel"],
            "model_type": "bert",
            "vocab_size": len(vocabulary),
            "hidden_size": dimension,
            "num_hidden_layers": 2,
            "num_attention_heads": 2,
            "intermediate_size": 64,
            "max_position_embeddings": 64,
            "type_vocab_size": 2,
            "hidden_act": "gelu",
            "layer_norm_eps": 1e-12,
            "pad_token_id": 0,
        },
        "sentence_bert_config.json": {"max_seq_length": 64, "do_lower_case": False},
        "tokenizer_config.json": {
            "tokenizer_class": "PreTrainedTokenizerFast",
            "model_max_length": 64,
            **{f"{name}_token": f"[{name.upper()}]" for name in ("pad", "unk", "cls", "sep", "mask")},
        },
        "1_Pooling/config.json": {"word_embedding_dimension": dimension, "pooling_mode": pooling},
    }
    random = np.random.default_rng(seed)
    if dense:
        activation = "torch.nn.modules.activation.Tanh"
        sizes = {"in_features": dimension, "out_features": dimension}
        documents["2_Dense/config.json"] = {**sizes, "bias": True, "activation_function": activation}
        weights = {"linear.weight": random.normal(size=(dimension, dimension)), "linear.bias": np.zeros(dimension)}
        _save(model / "2_Dense" / "model.safetensors", weights)
    for name, content in documents.items():
        (model / name).write_text(json.dumps(content), encoding="utf-8")
    _save(model / "model.safetensors", _bert(random, len(vocabulary), dimension))
    _tokenizer(vocabulary).save(str(model / "tokenizer.json"))
    return model


def _save(path: Path, tensors: dict[str, Any]) -> None:
    from safetensors.numpy import save_file

    save_file({name: tensor.astype(np.float32) for name, tensor in tensors.items()}, path, {"format": "pt"})


def _bert(random: np.random.Generator, words: int, dimension: int) -> dict[str, Any]:
    def dense(name: str, rows: int, columns: int) -> dict[str, Any]:
        weight, bias = random.normal(scale=0.02, size=(rows, columns)), random.normal(scale=0.02, size=rows)
        return {f"{name}.weight": weight, f"{name}.bias": bias}

    def norm(name: str) -> dict[str, Any]:
        scale, offset = 1 + random.normal(scale=0.02, size=dimension), random.normal(scale=0.02, size=dimension)
        return {f"{name}.weight": scale, f"{name}.bias": offset}

    tensors = norm("embeddings.LayerNorm")
    for table, rows in (("word", words), ("position", 64), ("token_type", 2)):
        tensors[f"embeddings.{table}_embeddings.weight"] = random.normal(scale=0.02, size=(rows, dimension))
    for layer in ("encoder.layer.0", "encoder.layer.1"):
        for part in ("query", "key", "value"):
            tensors |= dense(f"{layer}.attention.self.{part}", dimension, dimension)
        tensors |= dense(f"{layer}.attention.output.dense", dimension, dimension)
        tensors |= dense(f"{layer}.intermediate.dense", 64, dimension) | dense(f"{layer}.output.dense", dimension, 64)
        tensors |= norm(f"{layer}.attention.output.LayerNorm") | norm(f"{layer}.output.LayerNorm")
    return tensors | dense("pooler.dense", dimension, dimension)


def _tokenizer(vocabulary: list[str]) -> Any:
    from tokenizers import Tokenizer, models, normalizers, pre_tokenizers, processors

    tokenizer = Tokenizer(models.WordPiece({word: n for n, word in enumerate(vocabulary)}, unk_token="[UNK]"))
    tokenizer.normalizer = normalizers.BertNormalizer(lowercase=True)
    tokenizer.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    tokenizer.post_processor = processors.TemplateProcessing(
        single="[CLS] $A [SEP]",
        special_tokens=[("[CLS]", vocabulary.index("[CLS]")), ("[SEP]", vocabulary.index("[SEP]"))],
    )
    return tokenizer


EXAMPLES = {
    "sql_query": [
        "how do i join two tables",
        "write a select query",
        "query the orders table",
        "select rows of a table",
    ],
    "legal_contracts": [
        "draft a contract clause",
        "is this clause law",
        "sign the contract",
        "contract law of the clause",
    ],
    "general_reasoner": ["how do i bake bread", "bake a cake in the oven", "write a cake poem", "hello there"],
}


def write_catalog(path: Path, examples: dict[str, list[str]]) -> Path:
    """A catalog with one model and the roles of ``examples``."""
    shape = {
        "num_hidden_layers": 2,
        "hidden_size": 32,
        "num_attention_heads": 2,
        "num_key_value_heads": 2,
        "head_size": 16,
        "vocab_size": 100,
    }
    content = {
        "default_model": "one",
        "models": {"one": {"provider": "cpu", "context_length": 512, "weights_mb": 1, "shape": shape}},
        "experts": {
            role: {"model": "one", "system_prompt": "Answer.", "description": role.replace("_", " "), "examples": some}
            for role, some in examples.items()
        },
    }
    path.write_text(yaml.safe_dump(content, sort_keys=False), encoding="utf-8")
    return path


def prepare_routing(cache: Path, source: Path) -> None:
    """Fill ``cache`` with the export of ``source`` and what counts as a router trained on the shipped examples.

    It is trained on every eighth of them, to stay quick: `tests/test_shipped_router.py` has all.
    """
    from coe_cli.core.models.catalog import Catalog
    from coe_cli.core.routing.router_examples import TrainingSet
    from coe_cli.runtime.folders import Folders
    from coe_cli.runtime.routing import router_cache
    from coe_cli.runtime.settings import load_catalog

    shipped = Path(__file__).resolve().parent.parent / "profiles" / "experts.yaml"
    where = Folders(models=cache, config=cache, state=cache, cache=cache)
    whole = router_cache.training_set

    def some(catalog: Catalog) -> TrainingSet:
        read = whole(catalog)
        return TrainingSet(read.roles, read.single[::8], read.terms[::8], read.double[::4])

    with mock.patch.object(router_cache, "training_set", some):
        router_cache.open_router(load_catalog([shipped]), where, lambda _: None, embedder=str(source))
