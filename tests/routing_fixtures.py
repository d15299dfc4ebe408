"""A small real sentence-transformers model and a small catalog, for the tests of embedder, router and `coe route`."""

from __future__ import annotations

import string
from pathlib import Path

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


def build_sentence_transformer(folder: Path, *, dimension: int = 32, pooling: str = "mean") -> Path:
    """A BERT of two layers with random weights and its own word-piece tokenizer, saved in ``folder``.

    ``pooling`` is that of sentence-transformers: mean, cls (as BAAI/bge-m3 has it), max.
    """
    import torch
    from sentence_transformers import SentenceTransformer
    from sentence_transformers.models import Pooling, Transformer
    from transformers import BertConfig, BertModel, BertTokenizerFast

    torch.manual_seed(0)
    plain = folder / "plain"
    plain.mkdir(parents=True)
    letters = [
        *string.ascii_lowercase,
        *(f"##{c}" for c in string.ascii_lowercase),
        *string.punctuation,
        *string.digits,
    ]
    vocabulary = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", *WORDS, *(w for w in letters if w not in WORDS)]
    (plain / "vocab.txt").write_text("\n".join(vocabulary), encoding="utf-8")
    BertTokenizerFast(str(plain / "vocab.txt"), model_max_length=64).save_pretrained(plain)
    config = BertConfig(
        vocab_size=len(vocabulary),
        hidden_size=dimension,
        num_hidden_layers=2,
        num_attention_heads=2,
        intermediate_size=64,
        max_position_embeddings=64,
    )
    BertModel(config).save_pretrained(plain)
    transformer = Transformer(str(plain), max_seq_length=64)
    model = SentenceTransformer(modules=[transformer, Pooling(dimension, pooling_mode=pooling)], device="cpu")
    model.save(str(folder / "model"))
    return folder / "model"


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
    """Fill ``cache`` with the export of ``source`` and a router trained on the shipped examples."""
    from coe_cli.core.models.catalog import load_catalog
    from coe_cli.runtime.folders import Folders
    from coe_cli.runtime.routing.router_cache import open_router

    shipped = Path(__file__).resolve().parent.parent / "profiles" / "experts.yaml"
    where = Folders(models=cache, config=cache, state=cache, cache=cache)
    open_router(load_catalog([shipped]), where, lambda _: None, embedder=str(source))
