"""`coe models import` with the real converter, on a Llama of random weights that transformers writes."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from model_store.conftest import Coe
from model_store.tiny_model import write_tiny_model

WRITE = """
import sys, torch
from transformers import LlamaConfig, LlamaForCausalLM
torch.manual_seed(0)
config = LlamaConfig(vocab_size=288, hidden_size=64, intermediate_size=128, num_hidden_layers=2, num_attention_heads=4,
                     num_key_value_heads=2, max_position_embeddings=512, bos_token_id=256, eos_token_id=257)
LlamaForCausalLM(config).half().save_pretrained(sys.argv[1])
"""


@pytest.mark.slow
def test_a_hugging_face_folder_becomes_a_model_that_answers(coe: Coe, tmp_path: Path) -> None:
    source = tmp_path / "llama"
    subprocess.run([sys.executable, "-c", WRITE, str(source)], check=True, capture_output=True, env=os.environ)
    tokenizer = write_tiny_model(tmp_path / "tokenizer")
    for name in ("tokenizer.json", "tokenizer_config.json"):
        (source / name).write_bytes((tokenizer / name).read_bytes())
    result = coe("models", "import", str(source), "--name", "mine", "--provider", "cpu", "--precision", "int8")
    assert result.code == 0, result.stderr
    assert "LlamaForCausalLM" in result.stderr
    card = coe("models", "show", "mine", "--format", "json").json
    assert (card["attention"], card["head_positions"], card["shape"]["num_hidden_layers"]) == ("GQA", "last", 2)
    assert coe("models", "verify", "mine").code == 0
    origin = json.loads((coe.models / "mine" / "coe_manifest.json").read_text())["origin"]
    assert (origin["provider"], origin["precision"]) == ("cpu", "int8")
    assert coe.left_over == []
