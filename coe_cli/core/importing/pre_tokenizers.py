"""How the tokenizers of GGUF files split text into words before they merge bytes (llama.cpp, src/llama-vocab.cpp, ``regex_exprs``).

A file names its way, such as ``qwen2``. The expressions are those of the models' own ``tokenizer.json``, as the ``tokenizers`` library and
ONNX Runtime GenAI read them. The latter knows a list of expressions; ways that have others (Falcon's, DeepSeek LLM's) are not here.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Final

from msgspec import Struct


class PreTokenizer(Struct, frozen=True):
    """``patterns`` split one after the other. ``whole_words`` are not merged where the vocabulary has them; ``bos``: begins a text."""

    patterns: tuple[str, ...]
    whole_words: bool = False
    bos: bool = False


_ENDINGS = r"(?i:'s|'t|'re|'ve|'m|'ll|'d)"
_MARKS = r" ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
_MARKS_OR_SLASH = r" ?[^\s\p{L}\p{N}]+[\r\n/]*|\s*[\r\n]+|\s+(?!\S)|\s+"
_WORD = r"[^\r\n\p{L}\p{N}]?\p{L}+"
_UPPER, _LOWER = r"[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]", r"[\p{Ll}\p{Lm}\p{Lo}\p{M}]"
_LOWER_WORD = rf"[^\r\n\p{{L}}\p{{N}}]?{_UPPER}*{_LOWER}+"
_UPPER_WORD = rf"[^\r\n\p{{L}}\p{{N}}]?{_UPPER}+{_LOWER}*"
_GPT2 = r"'s|'t|'re|'ve|'m|'ll|'d| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\s+(?!\S)|\s+"
_LLAMA3 = rf"{_ENDINGS}|{_WORD}|\p{{N}}{{1,3}}|{_MARKS}"
_QWEN2 = rf"{_ENDINGS}|{_WORD}|\p{{N}}|{_MARKS}"
_GPT4O = rf"{_LOWER_WORD}{_ENDINGS}?|{_UPPER_WORD}{_ENDINGS}?|\p{{N}}{{1,3}}|{_MARKS_OR_SLASH}"
_WAYS: Final[Mapping[str, PreTokenizer]] = {
    "gpt-2 phi-2 mpt olmo jais trillion exaone4 a.x-4.0 mellum gigachat granite-docling": PreTokenizer((_GPT2,)),
    "starcoder refact command-r smollm codeshell exaone minerva-7b mellum2": PreTokenizer((r"\p{N}", _GPT2)),
    "llama3 llama-v3 llama-bpe falcon3 falcon-h1 pixtral midm-2.0 lfm2": PreTokenizer((_LLAMA3,), True, True),
    "dbrx smaug-bpe chatglm-bpe": PreTokenizer((_LLAMA3,)),
    "qwen2 deepseek-r1-qwen kormo f2llmv2 megrez hunyuan solar-open stablelm2 grok-2": PreTokenizer((_QWEN2,)),
    "gpt-4o llama4 kanana2 talkie minimax-m2": PreTokenizer((_GPT4O,)),
    "tekken": PreTokenizer((rf"{_LOWER_WORD}|{_UPPER_WORD}|\p{{N}}|{_MARKS_OR_SLASH}",), True, True),
    "deepseek-v3 hunyuan-dense joyai-llm": PreTokenizer(
        (
            r"\p{N}{1,3}",
            "[\u4e00-\u9fa5\u3040-\u309f\u30a0-\u30ff]+",
            r"""[!"#$%&'()*+,\-./:;<=>?@\[\\\]^_`{|}~][A-Za-z]+|[^\r\n\p{L}\p{P}\p{S}]?[\p{L}\p{M}]+"""
            r"| ?[\p{P}\p{S}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+",
        )
    ),
}

PRE_TOKENIZERS: Final = {name: way for names, way in _WAYS.items() for name in names.split()}
