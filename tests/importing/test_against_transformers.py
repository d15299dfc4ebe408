"""A small random model of every architecture gives the same logits as transformers, at prefill and decode."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from coe_cli.core.importing.encodings import Precision
from coe_cli.runtime.importing.source import inspect
from coe_cli.runtime.importing.write_decoder import write_decoder
from importing.configurations import CONFIGURATIONS, RULES, configuration
from importing.running import Running

pytestmark = pytest.mark.slow
PROMPT, STEPS = 11, 4


@pytest.fixture(scope="module", params=CONFIGURATIONS)
def reference(request: Any, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, list[int], np.ndarray]:
    """A folder that transformers wrote, tokens, and its logits at each position, shape [tokens, vocabulary]."""
    import torch
    from transformers import AutoConfig, AutoModelForCausalLM

    values = configuration(request.param)
    folder = tmp_path_factory.mktemp(request.param)
    (folder / "config.json").write_text(json.dumps(values))
    torch.manual_seed(0)
    model = AutoModelForCausalLM.from_config(AutoConfig.from_pretrained(folder), attn_implementation="eager").eval()
    for name, parameter in model.named_parameters():
        if "norm" in name:
            parameter.data += 0.2 * torch.randn_like(parameter)
        elif name.endswith("bias"):
            parameter.data = 0.3 * torch.randn_like(parameter)
    model.save_pretrained(folder)
    tokens = np.random.default_rng(1).integers(3, values["vocab_size"], PROMPT + STEPS).tolist()
    with torch.inference_mode():
        logits = model(torch.tensor([tokens])).logits[0].numpy()
    return folder, tokens, logits


@pytest.mark.parametrize(
    ("provider", "precision", "most"),
    [
        ("cpu", "fp32", 1e-4),
        ("cuda", "fp16", 1e-2),
        ("dml", "fp16", 1e-2),
        ("webgpu", "fp16", 1e-2),
    ],
)
def test_the_graph_computes_what_transformers_does(
    reference: tuple[Path, list[int], np.ndarray], tmp_path: Path, provider: str, precision: Precision, most: float
) -> None:
    folder, tokens, expected = reference
    source = inspect(folder)
    write_decoder(source.decoder, source.weights(), tmp_path, RULES[provider], precision)
    running = Running(tmp_path / "model.onnx")
    found = [running.logits(tokens[:PROMPT])] + [running.logits([token]) for token in tokens[PROMPT:]]
    for position, logits in enumerate(found):
        wanted = expected[PROMPT - 1 + position]
        assert np.linalg.norm(logits - wanted) < most * np.linalg.norm(wanted), f"step {position}"
