"""Which files of a repository an import takes, and what the model is called where nobody says so."""

from __future__ import annotations

import fnmatch
import re
from collections.abc import Mapping
from typing import Any, Final

from coe_cli.core.importing.encodings import Precision, encoding_of, rules_for
from coe_cli.core.importing.ggml import BLOCK_TYPES
from coe_cli.core.importing.needs import bits_per_weight
from coe_cli.core.names import size_words
from coe_cli.core.units import BYTES_PER_MB
from coe_cli.errors import DoesNotFit, UsageError

_BEST_FIRST: Final = (
    *("Q4_K_M", "Q4_K_S", "Q4_1", "Q4_0", "IQ4_NL", "IQ4_XS"),
    *("Q5_K_M", "Q5_K_S", "Q5_1", "Q5_0", "Q6_K", "Q8_0"),
    *("Q3_K_L", "Q3_K_M", "Q3_K_S", "Q2_K", "BF16", "F16", "F32"),
)
"""Four bits, which coe keeps as they are, before more bits, which take more memory, before fewer, which know less."""
_QUANT = re.compile(r"[-._](I?Q[2-8](_[0-9A-Z]+)*|B?F16|F32)$", re.IGNORECASE)
_SPLIT = re.compile(r"-\d{5}-of-\d{5}\.gguf$")
_TAKEN: Final = ("*.safetensors", "*.json", "*.jinja")
_NOT_TAKEN: Final = ("consolidated*.safetensors", "*adapter*")
PICKLED: Final = ("*.bin", "*.pt", "*.pth", "*.ckpt", "*.pkl", "*.pickle")
"""Weights whose loading runs whatever code is in them."""


def is_importable(path: str) -> bool:
    """Whether a file of a Hugging Face folder belongs to its weights, configuration or tokenizer."""
    taken, left = (any(fnmatch.fnmatch(path, pattern) for pattern in patterns) for patterns in (_TAKEN, _NOT_TAKEN))
    return taken and not left and "/" not in path


def quant_of(path: str) -> str:
    """``Q4_K_M`` of ``model-Q4_K_M.gguf`` or ``model.Q4_K_M.gguf``; empty where the name does not say."""
    match = _QUANT.search(path.removesuffix(".gguf"))
    return match[1].upper() if match else ""


def choose_gguf(
    files: Mapping[str, int], quant: str | None, room_bytes: float, provider: str, precision: Precision
) -> str:
    """The file of that quantisation; without one the best of those whose import leaves room for the cache. ``files``: path → bytes.

    Raises:
        UsageError: there is no such file.
        DoesNotFit: all are larger than the room that the profile has for a model.
    """
    whole = {path: size for path, size in files.items() if not _SPLIT.search(path)}
    by_quant = {quant_of(path): path for path in sorted(whole, reverse=True)}
    there = ", ".join(
        f"{name or path} ({size_words(whole[path] / BYTES_PER_MB)})" for name, path in sorted(by_quant.items())
    )
    if not whole:
        raise UsageError("the repository has its GGUF files in several parts", "Name one that has them whole.")
    if quant is not None:
        if quant.upper() not in by_quant:
            raise UsageError(f"the repository has no {quant} file", f"It has: {there}.")
        return by_quant[quant.upper()]
    if len(whole) == 1:
        return next(iter(whole))
    readable = [name for name in _BEST_FIRST if name in by_quant]
    if not readable:
        raise UsageError("the repository has several GGUF files of unknown quantisation", f"Name one: {there}.")
    in_memory = {name: whole[by_quant[name]] * _growth(name, provider, precision) * _IN_MEMORY for name in readable}
    fitting = [name for name in readable if in_memory[name] <= room_bytes]
    if not fitting:
        raise DoesNotFit(
            f"no file of the repository fits the profile's room of {size_words(room_bytes / BYTES_PER_MB)}: it has {there}",
            "Choose one with --quant all the same, or a profile with a larger budget.",
        )
    return by_quant[fitting[0]]


def _growth(quant: str, provider: str, precision: Precision) -> float:
    """Bytes that an import makes ÷ bytes of the file, by the type that gives the quantisation its name: Q2_K and Q3_K become 4 bits, Q5_K 8."""
    source_type = max((name for name in BLOCK_TYPES if quant.startswith(name)), key=len)
    made = encoding_of(source_type, rules_for(provider, precision), precision)
    return bits_per_weight(made, scale_bits=16) / BLOCK_TYPES[source_type].bits_per_weight


_IN_MEMORY: Final = 1.3
"""Memory of a loaded model beside its weights on disk, with a small cache: the CPU packs them with scales and block sums in fp32."""


def guess_name(metadata: Mapping[str, Any], file_name: str) -> str:
    """A name for a model: what its header calls it, or else its file's name, without the quantisation."""
    said = metadata.get("general.name")
    stem = re.sub(r"\.gguf$", "", file_name, flags=re.IGNORECASE)
    text = said if isinstance(said, str) and re.search("[A-Za-z]", said) else stem
    text = re.sub(r"[^A-Za-z0-9.]+", "-", _QUANT.sub("", text)).strip("-.")
    return re.sub(r"-gguf$", "", text, flags=re.IGNORECASE)[:100]
