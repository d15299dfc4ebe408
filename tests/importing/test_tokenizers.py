"""Tokenizers of GGUF files: the ids that llama.cpp makes of two thousand lines, for every way to split words.

``tokenizer_ids.json`` has a hash of llama.cpp's own ids for each hundred lines. It is written anew by
``python -m importing.test_tokenizers LLAMA_TOKENIZE`` in tests/.
"""

from __future__ import annotations

import hashlib
import json
import re
import subprocess
import sys
import unicodedata
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import pytest
from tokenizers import Tokenizer

from coe_cli.core.importing.gguf_tokenizer import problem, tokenizer_files
from coe_cli.core.importing.pre_tokenizers import PRE_TOKENIZERS
from importing.gguf_files import write_tokenizer_gguf
from importing.tokenizer_files import CONTROL, bpe_metadata, spm_metadata
from importing.tokenizer_lines import lines

GOLDEN = Path(__file__).with_name("tokenizer_ids.json")
_WAYS = {way: name for name, way in reversed(PRE_TOKENIZERS.items())}
TOKENIZERS: dict[str, Callable[[], dict[str, Any]]] = {
    **{name: partial(bpe_metadata, name) for name in _WAYS.values()},
    "spm": lambda: spm_metadata(prefix=True),
    "spm-bare": lambda: spm_metadata(prefix=False),
}
"""One for each way to split, under the first of its names, and SentencePiece with and without a space before the text."""


_WITH_MARKS = ("tekken", "gpt-4o")
"""Their own expressions keep combining marks with their letters; llama.cpp's regular expressions cannot, and take them apart."""


def documents(name: str) -> list[str]:
    """A hundred lines each, with some special tokens in them."""
    found = lines()
    if name in _WITH_MARKS:
        found = ["".join(char for char in line if unicodedata.category(char)[0] != "M") for line in found]
    marked = [line + CONTROL[at % 3] if at % 7 == 0 else line for at, line in enumerate(found)]
    marked = [line + "<tool>" if at % 11 == 0 else line for at, line in enumerate(marked)]
    return ["\n".join(marked[start : start + 100]) for start in range(0, len(marked), 100)]


def digest(ids: list[int]) -> str:
    return hashlib.sha256(json.dumps(ids).encode()).hexdigest()[:12]


@pytest.mark.parametrize("name", TOKENIZERS)
def test_ids_are_those_of_llama_cpp(name: str) -> None:
    metadata = TOKENIZERS[name]()
    tokenizer = Tokenizer.from_str(json.dumps(tokenizer_files(metadata, 10_000)[0]))
    found = [digest(tokenizer.encode(text, add_special_tokens=False).ids) for text in documents(name)]
    assert found == json.loads(GOLDEN.read_text())[name]


def test_onnxruntime_genai_reads_them(tmp_path: Path) -> None:
    """It makes the same ids of what people write (but for odd line ends, which it splits wrongly), and gives the text back."""
    oga = pytest.importorskip("onnxruntime_genai")
    if tuple(map(int, oga.__version__.split(".")[:2])) < (0, 18):
        pytest.skip("opens a tokenizer with a model only")
    odd = re.compile("[\x00\x85]|\u2009\r\n|\r\n\t\t")
    texts = [line for line in lines()[:300] if not odd.search(line)]
    for name, metadata in TOKENIZERS.items():
        tokenizer, config = tokenizer_files(metadata(), 10_000)
        (tmp_path / "tokenizer.json").write_text(json.dumps(tokenizer), encoding="utf-8")
        (tmp_path / "tokenizer_config.json").write_text(json.dumps(config), encoding="utf-8")
        (tmp_path / "genai_config.json").write_text(json.dumps(GENAI_CONFIG), encoding="utf-8")
        reader, ours = oga.Tokenizer(str(tmp_path)), Tokenizer.from_str(json.dumps(tokenizer))
        for text in texts:
            ids = ours.encode(text, add_special_tokens=False).ids
            stream = reader.create_stream()
            spelled = "".join(stream.decode(token) for token in ids)
            assert spelled.lstrip(" ") == text.lstrip(" ") or "\ufffd" in spelled, name
            if "spm" not in name:  # which it splits into words like Llama 3; coe makes ids with the tokenizers library
                assert list(map(int, reader.encode(text))) == ids, name


GENAI_CONFIG = {
    "model": {
        "type": "llama",
        "vocab_size": 1000,
        "context_length": 128,
        "bos_token_id": 1,
        "eos_token_id": 2,
        "pad_token_id": 2,
        "decoder": {
            "filename": "a",
            "head_size": 8,
            "hidden_size": 8,
            "num_hidden_layers": 1,
            "inputs": {},
            "outputs": {},
        },
    },
    "search": {},
}


def test_the_configuration_beside_it() -> None:
    template = "{{ messages }}"
    _, config = tokenizer_files(bpe_metadata("llama-bpe") | {"tokenizer.chat_template": template}, 10_000)
    assert config["chat_template"] == template
    assert (config["bos_token"], config["eos_token"], config["add_bos_token"]) == (CONTROL[0], CONTROL[2], True)
    tokenizer, config = tokenizer_files(bpe_metadata("llama-bpe") | {"tokenizer.ggml.add_bos_token": False}, 10_000)
    assert config["add_bos_token"] is False and tokenizer["post_processor"] is None
    assert tokenizer_files(bpe_metadata("qwen2"), 10_000)[1]["add_bos_token"] is False
    added = {token["content"]: token for token in tokenizer["added_tokens"]}
    assert [token["special"] for token in added.values()] == [True, True, True, False] and "<tool>" in added
    tokenizer, _ = tokenizer_files(spm_metadata(prefix=True) | {"general.name": "Phi-3 mini"}, 10_000)
    strips = {token["content"]: token["rstrip"] for token in tokenizer["added_tokens"]}
    assert strips["</s>"] and not strips["<s>"]


def test_text_makes_no_control_token_and_no_html_ends_an_answer() -> None:
    metadata = bpe_metadata("qwen2")
    metadata["tokenizer.ggml.tokens"][300] = "</s>"
    added = {token["content"] for token in tokenizer_files(metadata, 10_000)[0]["added_tokens"]}
    assert added == {*CONTROL, "<tool>"}
    del metadata["tokenizer.ggml.token_type"]
    added = {token["content"] for token in tokenizer_files(metadata, 10_000)[0]["added_tokens"]}
    assert {"</s>", "<|endoftext|>", "<|im_end|>"} <= added
    metadata = spm_metadata(prefix=True)
    metadata["tokenizer.ggml.tokens"][259:261] = ["<s", ">x"]
    merges = tokenizer_files(metadata, 10_000)[0]["model"]["merges"]
    assert not any(left + right in ("<s>", "</s>", "<unk>") for left, right in merges)


@pytest.mark.parametrize(
    ("change", "says"),
    [
        ({"tokens": None}, "no tokenizer"),
        ({"tokens": []}, "no tokenizer"),
        ({"model": "bert"}, "'bert'"),
        ({"pre": "kimi-k2"}, "'kimi-k2'"),
        ({"pre": ["qwen2"]}, "not known"),
        ({"tokens": ["a"] * 20_000}, "20000 tokens"),
    ],
)
def test_what_a_header_shows_is_refused_at_once(change: dict[str, Any], says: str) -> None:
    metadata = bpe_metadata("qwen2") | {f"tokenizer.ggml.{key}": value for key, value in change.items()}
    assert says in problem(metadata, 10_000)


@pytest.mark.parametrize(
    ("base", "change", "says"),
    [
        (bpe_metadata("qwen2"), {"tokens": ["a", "b", "a"]}, "twice"),
        (bpe_metadata("qwen2"), {"tokens": ["a", b"\xff".decode("utf-8", "surrogateescape")]}, "UTF-8"),
        (bpe_metadata("qwen2"), {"tokens": ["a", 5]}, "no text"),
        (bpe_metadata("qwen2"), {"token_type": [1]}, "which kind"),
        (bpe_metadata("qwen2"), {"merges": [1, 2]}, "no merges"),
        (spm_metadata(prefix=True), {"scores": [1.0]}, "no scores"),
        (spm_metadata(prefix=True), {"scores": ["a"] * 9999}, "no scores"),
        (spm_metadata(prefix=True), {"tokens": ["a" * 600], "token_type": [1]}, "characters"),
    ],
)
def test_what_contradicts_itself_is_damaged(base: dict[str, Any], change: dict[str, Any], says: str) -> None:
    with pytest.raises(ValueError, match=says):
        tokenizer_files(base | {f"tokenizer.ggml.{key}": value for key, value in change.items()}, 10_000)


def llama_ids(program: str, gguf: Path, text: str, scratch: Path) -> list[int]:
    scratch.write_text(text, encoding="utf-8", newline="")
    command = [program, "-m", str(gguf), "-f", str(scratch), "--ids", "--no-bos", "--log-disable"]
    return json.loads(subprocess.run(command, check=True, capture_output=True, text=True).stdout)


if __name__ == "__main__":
    import tempfile

    with tempfile.TemporaryDirectory() as folder:
        golden = {}
        for name, metadata in TOKENIZERS.items():
            gguf = write_tokenizer_gguf(Path(folder) / f"{name}.gguf", metadata())
            golden[name] = [
                digest(llama_ids(sys.argv[1], gguf, text, Path(folder) / "text")) for text in documents(name)
            ]
    GOLDEN.write_text(json.dumps(golden, indent=1) + "\n")
