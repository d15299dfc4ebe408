"""Models with random weights in the shapes of the catalog's, made by ONNX Runtime GenAI's builder: they weigh and move
memory like the real ones, and need no download.

Both variants, with logits for every token and with a pruned head, are built in one process from the same weights, which
are one tile of noise repeated: filling seven billion weights one by one would take longer than building.

    python benchmarks/random_models.py small-gqa --all /tmp/all --pruned /tmp/pruned [--provider cuda]
"""

from __future__ import annotations

import argparse
import importlib.util
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

SHAPES: dict[str, dict[str, Any]] = {
    "deepseek-r1-distill-qwen-7b": {
        "kind": "Qwen2",
        "vocab_size": 152064,
        "hidden_size": 3584,
        "intermediate_size": 18944,
        "num_hidden_layers": 28,
        "num_attention_heads": 28,
        "num_key_value_heads": 4,
    },
    "sqlcoder-7b-2": {
        "kind": "Llama",
        "vocab_size": 32016,
        "hidden_size": 4096,
        "intermediate_size": 11008,
        "num_hidden_layers": 32,
        "num_attention_heads": 32,
        "num_key_value_heads": 32,
    },
    "small-gqa": {
        "kind": "Qwen2",
        "vocab_size": 65536,
        "hidden_size": 1024,
        "intermediate_size": 4864,
        "num_hidden_layers": 12,
        "num_attention_heads": 16,
        "num_key_value_heads": 2,
    },
    "small-no-gqa": {
        "kind": "Llama",
        "vocab_size": 32000,
        "hidden_size": 768,
        "intermediate_size": 2048,
        "num_hidden_layers": 16,
        "num_attention_heads": 12,
        "num_key_value_heads": 12,
    },
}
_TILE = 2**22
_SHIFT = 4099
"""Each matrix begins elsewhere in the tile: on the CPU ONNX Runtime packs equal weights once."""


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("shape", choices=SHAPES)
    parser.add_argument("--all", type=Path, metavar="FOLDER", help="logits for every token")
    parser.add_argument("--pruned", type=Path, metavar="FOLDER", help="logits for the last token only")
    parser.add_argument("--provider", choices=("cpu", "cuda"), default="cpu")
    options = parser.parse_args()
    targets = [(folder, pruned) for folder, pruned in ((options.all, False), (options.pruned, True)) if folder]
    build(options.shape, options.provider, targets)


def build(shape_name: str, provider: str, targets: list[tuple[Path, bool]]) -> None:
    """Write an INT4 model into each folder; the flag says whether its head is pruned."""
    started = time.monotonic()
    builder, base = _builder()
    model = _random_model(shape_name)
    print(f"{shape_name}: weights after {time.monotonic() - started:.0f} s", flush=True)

    class Loader:
        @staticmethod
        def from_pretrained(*_: Any, **__: Any) -> Any:
            return model

    base.AutoModelForCausalLM = Loader
    with tempfile.TemporaryDirectory() as source:
        model.config.save_pretrained(source)
        _byte_tokenizer().save_pretrained(source)
        for folder, pruned in targets:
            pairs = ["hf_token=false", *(["prune_lm_head=true"] if pruned else [])]
            extra = builder.parse_extra_options("", source, str(folder), "int4", provider, source, pairs)
            builder.create_model("", source, str(folder), "int4", provider, f"{folder}.cache", **extra)
            print(f"{shape_name}: {folder} after {time.monotonic() - started:.0f} s", flush=True)


def _builder() -> tuple[Any, Any]:
    """OGA's builder as a plain script: importing the package itself would load its native library."""
    package = importlib.util.find_spec("onnxruntime_genai")
    if package is None or not package.submodule_search_locations:
        raise SystemExit("onnxruntime-genai is not installed")
    sys.path.insert(0, str(Path(package.submodule_search_locations[0]) / "models"))
    import builder
    import builders.base

    return builder, builders.base


def _random_model(shape_name: str) -> Any:
    import torch
    import transformers

    shape = dict(SHAPES[shape_name])
    kind = shape.pop("kind")
    config = getattr(transformers, f"{kind}Config")(
        **shape,
        max_position_embeddings=32768,
        tie_word_embeddings=False,
        bos_token_id=1,
        eos_token_id=2,
        pad_token_id=2,
        architectures=[f"{kind}ForCausalLM"],
        torch_dtype="float16",
    )
    with torch.device("meta"):
        model = getattr(transformers, f"{kind}ForCausalLM")(config).half()
    model.to_empty(device="cpu")
    torch.manual_seed(0)
    tile = (torch.rand(_TILE) * 0.04 - 0.02).half()
    with torch.no_grad():
        for number, parameter in enumerate(model.parameters()):
            flat = parameter.view(-1)
            if parameter.dim() == 1:
                flat.fill_(1.0)
                continue
            own = tile.roll(number * _SHIFT)
            whole = flat.numel() // _TILE * _TILE
            flat[:whole].view(-1, _TILE).copy_(own.expand(whole // _TILE, _TILE))
            flat[whole:] = own[: flat.numel() - whole]
    return model


def _byte_tokenizer() -> Any:
    from tokenizers import Tokenizer, models
    from transformers import PreTrainedTokenizerFast

    vocabulary = {"<unk>": 0, "<s>": 1, "</s>": 2, **{chr(33 + n): 3 + n for n in range(90)}}
    return PreTrainedTokenizerFast(
        tokenizer_object=Tokenizer(models.BPE(vocab=vocabulary, merges=[], unk_token="<unk>")),
        bos_token="<s>",
        eos_token="</s>",
        unk_token="<unk>",
    )


if __name__ == "__main__":
    main()
