"""Conversion in its child process, and a whole tiny model."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import psutil
import pytest
from conftest import command_of
from importing.gguf_files import write_gguf

from coe_cli.core.importing.encodings import rules_for
from coe_cli.core.importing.record import RECORD
from coe_cli.core.providers import names
from coe_cli.errors import ModelDamaged, UsageError
from coe_cli.runtime.importing.convert import convert
from coe_cli.runtime.progress import Step

HIDDEN, MLP, VOCAB = 64, 96, 160
Converted = tuple[Path, list[tuple[str, float]]]


def on_q4_1_grid(matrix: np.ndarray) -> np.ndarray:
    """The matrix, shape [N, K], as GGUF's Q4_1 would give it back."""
    blocks = matrix.reshape(len(matrix), -1, 32)
    low = blocks.min(-1, keepdims=True)
    step = (blocks.max(-1, keepdims=True) - low) / 15
    return (np.rint((blocks - low) / step) * step + low).astype(np.float32).reshape(matrix.shape)


def ignore(step: Step) -> None:
    del step


def test_there_is_a_recipe_for_every_default_and_a_clear_no_otherwise() -> None:
    for provider in names():
        rules_for(provider, "int4")
    for provider, precision in (("cpu", "fp16"), ("dml", "int8"), ("npu", "int4")):
        with pytest.raises(UsageError) as refusal:
            rules_for(provider, precision)
        assert refusal.value.hint


# --- the child


def test_errors_cross_from_the_child_with_their_kind(tmp_path: Path) -> None:
    source = write_gguf(tmp_path / "model.gguf", "mamba")
    with pytest.raises(UsageError, match="`mamba`"):
        convert(source, tmp_path / "out", provider="cpu", precision="int4", on_progress=ignore)


def test_interrupt_ends_the_child(tmp_path: Path) -> None:
    def interrupt(step: Step) -> None:
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        convert(
            write_gguf(tmp_path / "m.gguf"), tmp_path / "out", provider="cpu", precision="int4", on_progress=interrupt
        )
    children = psutil.Process().children()
    assert not any("coe_cli.runtime.importing.convert" in command_of(child) for child in children)


@pytest.mark.slow
def test_a_gguf_file_without_a_tokenizer_is_damaged(tmp_path: Path) -> None:
    with pytest.raises(ModelDamaged, match="tokenizer"):
        source = write_gguf(tmp_path / "m.gguf", tokenizer=False)
        convert(source, tmp_path / "out", provider="cpu", precision="int4", on_progress=ignore)


# --- a whole tiny model


@pytest.fixture(scope="module")
def tiny_model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A llama of two layers with random weights and a word-level tokenizer, as a Hugging Face folder."""
    import torch
    from tokenizers import Tokenizer, models, pre_tokenizers
    from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

    folder = tmp_path_factory.mktemp("tiny")
    vocabulary = {"<s>": 0, "</s>": 1, "<unk>": 2, **{f"w{number}": number for number in range(3, VOCAB)}}
    tokenizer = Tokenizer(models.WordLevel(vocabulary, unk_token="<unk>"))
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, bos_token="<s>", eos_token="</s>", unk_token="<unk>"
    ).save_pretrained(folder)
    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=VOCAB,
        hidden_size=HIDDEN,
        intermediate_size=MLP,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
        max_position_embeddings=128,
        bos_token_id=0,
        eos_token_id=1,
        pad_token_id=1,
        tie_word_embeddings=True,
        initializer_range=0.2,
    )
    model = LlamaForCausalLM(config)
    for name, parameter in model.named_parameters():
        if "proj" in name:
            parameter.data = torch.from_numpy(on_q4_1_grid(parameter.detach().numpy()))
    model.save_pretrained(folder)
    return folder


@pytest.fixture(scope="module")
def converted(tiny_model: Path, tmp_path_factory: pytest.TempPathFactory) -> Converted:
    output = tmp_path_factory.mktemp("converted")
    progress: list[tuple[str, float]] = []
    convert(
        tiny_model,
        output,
        provider="cpu",
        precision="int4",
        on_progress=lambda step: progress.append((step.stage, step.done)),
    )
    return output, progress


@pytest.mark.slow
def test_whole_conversion_reports_progress_and_leaves_only_the_model(converted: Converted) -> None:
    output, progress = converted
    assert list(dict(progress)) == [f"Converting: {stage}" for stage in ("tokenizer", "weights")]
    fractions = [fraction for _, fraction in progress]
    assert fractions == sorted(fractions) and fractions[-1] == 1
    assert not [path for path in output.iterdir() if path.name.startswith(".")]
    record = json.loads((output / RECORD).read_text())
    assert record["recipe"]["precision"] == "int4"
    assert record["matrices"] == {
        "F32: 4 bits, blocks of 32, requantised": 10,
        "F32: 8 bits, blocks of 32, requantised": 1,
    }


@pytest.mark.slow
def test_converted_model_generates_what_its_source_does(tiny_model: Path, converted: Converted) -> None:
    import onnxruntime_genai as og
    import torch
    from transformers import LlamaForCausalLM

    prompt = [5, 17, 40, 9]
    model = og.Model(str(converted[0]))
    parameters = og.GeneratorParams(model)
    parameters.set_search_options(max_length=8, do_sample=False)
    generator = og.Generator(model, parameters)
    generator.append_tokens(np.array(prompt, dtype=np.int32))
    found = np.array(generator.get_output("logits")).reshape(-1)
    with torch.inference_mode():
        source = LlamaForCausalLM.from_pretrained(tiny_model, dtype=torch.float32)
        exact = source(torch.tensor([prompt])).logits[0, -1].numpy()
    assert np.corrcoef(found, exact)[0, 1] > 0.999


@pytest.mark.slow
def test_quality_of_the_conversion_is_measured_against_its_source(tiny_model: Path, converted: Converted) -> None:
    from coe_cli.runtime.conversion.quality import measure_quality

    quality = measure_quality(converted[0], tiny_model, max_tokens=600)
    assert quality.tokens == 600
    assert abs(quality.loss_percent) < 10
    assert 0 < quality.kl_nats < 0.05
    assert quality.agreement > 0.9
