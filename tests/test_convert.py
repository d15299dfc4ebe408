"""Conversion: the quantiser's arithmetic, the rewritten graph, the child process, and a whole tiny model."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import psutil
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from coe_cli.core.recipe import recipe_for, session_options
from coe_cli.errors import CoeError, ModelDamaged, UsageError
from coe_cli.runtime.conversion.checkpoint import find_source, mend_tokenizer, write_checkpoint
from coe_cli.runtime.conversion.convert import RECORD, convert
from coe_cli.runtime.conversion.quantize import quantize_asymmetric, quantize_offset_corrected, quantize_symmetric
from coe_cli.runtime.conversion.quantize_graph import part_of, quantize_graph
from coe_cli.runtime.progress import Step

HIDDEN, MLP, VOCAB = 64, 96, 160


def weights(seed: int, rows: int, columns: int, shift: float = 0.0) -> np.ndarray:
    return (np.random.default_rng(seed).normal(size=(rows, columns)) + shift).astype(np.float32)


def on_q4_1_grid(matrix: np.ndarray) -> np.ndarray:
    """The matrix, shape [N, K], as GGUF's Q4_1 would give it back."""
    blocks = matrix.reshape(len(matrix), -1, 32)
    low = blocks.min(-1, keepdims=True)
    step = (blocks.max(-1, keepdims=True) - low) / 15
    return (np.rint((blocks - low) / step) * step + low).astype(np.float32).reshape(matrix.shape)


def ignore(step: Step) -> None:
    del step


# --- the quantiser


@settings(max_examples=40)
@given(st.integers(0, 2**31), st.sampled_from([(1, 32), (5, 64), (3, 96)]), st.floats(-3, 3), st.floats(1e-3, 1e3))
def test_codes_stand_for_the_nearest_level(seed, shape, shift, size):
    matrix = weights(seed, *shape, shift) * np.float32(size)
    for quantize, bits in ((quantize_symmetric, 8), (quantize_asymmetric, 8), (quantize_asymmetric, 4)):
        quantized = quantize(matrix, bits, 32)
        # half a level for the code; the asymmetric zero point is rounded too, which shifts both ends by half a level
        bound = np.repeat(quantized.scales, 32, axis=1) * (0.501 if quantize is quantize_symmetric else 1.001)
        assert (np.abs(quantized.dequantized() - matrix) <= bound).all()


def with_block_sums(inputs: np.ndarray, columns: int) -> np.ndarray:
    sums = inputs.reshape(len(inputs), -1, 32).sum(-1)
    extended = np.concatenate([inputs, sums], axis=1)
    return np.pad(extended, ((0, 0), (0, columns - extended.shape[1])))


@settings(max_examples=40)
@given(st.integers(0, 2**31), st.sampled_from([(4, 64), (3, 96), (2, 1088)]))
def test_offset_correction_reproduces_a_q4_1_grid(seed, shape):
    rng = np.random.default_rng(seed)
    rows, columns = shape
    codes = rng.integers(0, 16, (rows, columns // 32, 32))
    codes[..., 0], codes[..., 1] = 0, 15
    steps = rng.uniform(0.5, 1.5, (rows, columns // 32, 1))
    offsets = -steps * rng.uniform(5, 10, steps.shape)
    matrix = (steps * codes + offsets).astype(np.float32).reshape(rows, columns)
    inputs = rng.normal(size=(6, columns)).astype(np.float32)

    plain = quantize_asymmetric(matrix, 4, 32).dequantized()
    corrected = quantize_offset_corrected(matrix, 32).dequantized()

    def error(outputs: np.ndarray) -> float:
        return float(np.linalg.norm(outputs - inputs @ matrix.T))

    assert error(with_block_sums(inputs, corrected.shape[1]) @ corrected.T) < 0.2 * error(inputs @ plain.T)


def test_symmetric_8_bit_reproduces_a_q8_0_grid():
    rng = np.random.default_rng(1)
    codes = rng.integers(-127, 128, (7, 3, 32))
    codes[..., 0] = 127
    matrix = (codes * rng.uniform(0.001, 0.1, (7, 3, 1))).astype(np.float32).reshape(7, 96)
    np.testing.assert_allclose(quantize_symmetric(matrix, 8, 32).dequantized(), matrix, rtol=1e-6)


@pytest.mark.parametrize("quantize", [quantize_symmetric, quantize_asymmetric])
def test_a_block_of_zeros_stays_zero(quantize):
    assert not quantize(np.zeros((2, 64), np.float32), 8, 32).dequantized().any()


# --- the graph


def decoder_graph(folder: Path) -> Path:
    """A head, a shared embedding and one MLP matrix, named as the model builder names them."""
    import onnx
    from onnx import TensorProto, helper, numpy_helper

    def name(what: str) -> str:
        return f"/model/{what}"

    nodes = [
        helper.make_node(
            "Transpose", ["lm_head.MatMul.weight"], ["table"], name=name("embed_tokens/Transpose"), perm=[1, 0]
        ),
        helper.make_node("Gather", ["table", "input_ids"], ["hidden"], name=name("embed_tokens/Gather")),
        helper.make_node("MatMul", ["hidden", "up.MatMul.weight"], ["up"], name=name("layers.0/mlp/up_proj/MatMul")),
        helper.make_node(
            "MatMul", ["hidden", "gate.MatMul.weight"], ["gate"], name=name("layers.0/mlp/gate_proj/MatMul")
        ),
        helper.make_node("Mul", ["up", "gate"], ["product"], name="product"),
        helper.make_node(
            "MatMul", ["product", "down.MatMul.weight"], ["down"], name=name("layers.0/mlp/down_proj/MatMul")
        ),
        helper.make_node("MatMul", ["down", "lm_head.MatMul.weight"], ["logits"], name="/lm_head/MatMul"),
    ]
    tensors = {
        "lm_head": on_q4_1_grid(weights(1, VOCAB, HIDDEN)).T,
        "up": on_q4_1_grid(weights(2, MLP, HIDDEN)).T,
        "gate": on_q4_1_grid(weights(3, MLP, HIDDEN)).T,
        "down": on_q4_1_grid(weights(4, HIDDEN, MLP)).T,
    }
    graph = helper.make_graph(
        nodes,
        "decoder",
        [helper.make_tensor_value_info("input_ids", TensorProto.INT64, ["batch", "sequence"])],
        [helper.make_tensor_value_info("logits", TensorProto.FLOAT, ["batch", "sequence", VOCAB])],
        [numpy_helper.from_array(value, f"{key}.MatMul.weight") for key, value in tensors.items()],
        value_info=[helper.make_tensor_value_info("table", TensorProto.FLOAT, [VOCAB, HIDDEN])],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 21)], ir_version=10)
    path = folder / "model.onnx"
    onnx.save(model, path, save_as_external_data=True, location="model.onnx.data", size_threshold=0)
    return path


def run_graph(path: Path) -> np.ndarray:
    import onnxruntime

    session = onnxruntime.InferenceSession(str(path), providers=["CPUExecutionProvider"])
    return session.run(["logits"], {"input_ids": np.arange(40, dtype=np.int64)[None]})[0]


@pytest.mark.parametrize(("precision", "most"), [("int4", 0.03), ("int8", 0.03)])
def test_quantised_graph_computes_nearly_the_same(tmp_path, precision, most):
    source = decoder_graph(tmp_path)
    target = tmp_path / precision / "model.onnx"
    target.parent.mkdir()
    seen: list[float] = []
    quantize_graph(source, target, recipe_for("cpu", precision), on_progress=seen.append)
    exact, found = run_graph(source), run_graph(target)
    assert np.linalg.norm(found - exact) < most * np.linalg.norm(exact)
    assert seen == sorted(seen) and seen[-1] == 1
    before, after = (path.with_name("model.onnx.data").stat().st_size for path in (source, target))
    assert after < 0.4 * before


def test_int4_graph_holds_every_layer_matrix_in_4_bits(tmp_path):
    import onnx

    target = tmp_path / "int4.onnx"
    quantize_graph(decoder_graph(tmp_path), target, recipe_for("cpu", "int4"))
    nodes = [node for node in onnx.load(target, load_external_data=False).graph.node if node.op_type == "MatMulNBits"]
    bits = {node.name: next(a.i for a in node.attribute if a.name == "bits") for node in nodes}
    assert {part_of(name): bit for name, bit in bits.items()} == {"gate_up": 4, "down": 4, "head": 8}


def test_graph_without_weights_of_the_recipe_is_refused(tmp_path):
    import onnx

    source = decoder_graph(tmp_path)
    model = onnx.load(source)
    for node in model.graph.node:
        node.name = ""
    onnx.save(model, source)
    with pytest.raises(ModelDamaged):
        quantize_graph(source, tmp_path / "out.onnx", recipe_for("cpu", "int4"))


# --- recipes


def test_there_is_a_recipe_for_every_default_and_a_clear_no_otherwise():
    for provider in ("cpu", "dml", "cuda"):
        assert recipe_for(provider, "int4").builder_options["prune_lm_head"] == "true"
    for provider, precision in (("cpu", "fp16"), ("dml", "int8")):
        with pytest.raises(UsageError) as refusal:
            recipe_for(provider, precision)
        assert refusal.value.hint


def test_session_options_set_the_threads_on_the_cpu_only():
    assert session_options("cpu", 6)["intra_op_num_threads"] == 6
    assert session_options("dml", 6) == {}


# --- sources


def gguf_file(path: Path, architecture: str = "llama") -> Path:
    import gguf

    writer = gguf.GGUFWriter(str(path), architecture)
    writer.add_tensor("token_embd.weight", weights(1, 32, 64))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return path


def test_missing_and_ambiguous_sources_are_usage_errors(tmp_path):
    with pytest.raises(UsageError, match="does not exist"):
        find_source(tmp_path / "absent.gguf")
    with pytest.raises(UsageError, match="no GGUF file"):
        find_source(tmp_path)
    one = gguf_file(tmp_path / "a.gguf")
    assert find_source(tmp_path) == one
    gguf_file(tmp_path / "b.gguf")
    with pytest.raises(UsageError, match="2 GGUF files"):
        find_source(tmp_path)


@pytest.mark.parametrize("keep", [3, 40, -64])
def test_truncated_gguf_is_damaged(tmp_path, keep):
    path = gguf_file(tmp_path / "model.gguf")
    path.write_bytes(path.read_bytes()[:keep])
    with pytest.raises(ModelDamaged, match=r"model\.gguf"):
        write_checkpoint(find_source(path), tmp_path / "hf")


def test_unsupported_architecture_is_a_clear_no(tmp_path):
    with pytest.raises(UsageError, match="`mamba`"):
        write_checkpoint(gguf_file(tmp_path / "model.gguf", "mamba"), tmp_path / "hf")
    folder = tmp_path / "folder"
    folder.mkdir()
    (folder / "config.json").write_text(json.dumps({"model_type": "bert"}))
    with pytest.raises(UsageError, match="`bert`") as refusal:
        write_checkpoint(find_source(folder), tmp_path / "hf")
    assert "llama" in refusal.value.hint


def test_broken_config_is_damaged(tmp_path):
    (tmp_path / "config.json").write_text("{")
    with pytest.raises(ModelDamaged):
        write_checkpoint(find_source(tmp_path), tmp_path / "hf")


def test_tokenizer_class_is_mended_and_others_are_left(tmp_path):
    path = tmp_path / "tokenizer_config.json"
    for before, after in (("TokenizersBackend", "PreTrainedTokenizerFast"), ("LlamaTokenizer", "LlamaTokenizer")):
        path.write_text(json.dumps({"tokenizer_class": before, "kept": 1}))
        mend_tokenizer(tmp_path)
        assert json.loads(path.read_text()) == {"tokenizer_class": after, "kept": 1}


# --- the child


def test_errors_cross_from_the_child_with_their_kind(tmp_path):
    source = gguf_file(tmp_path / "model.gguf", "mamba")
    with pytest.raises(UsageError, match="`mamba`"):
        convert(source, tmp_path / "out", provider="cpu", precision="int4", on_progress=ignore)


def test_interrupt_ends_the_child(tmp_path):
    def interrupt(step: Step) -> None:
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        convert(
            gguf_file(tmp_path / "m.gguf"), tmp_path / "out", provider="cpu", precision="int4", on_progress=interrupt
        )
    assert not [
        child for child in psutil.Process().children() if "coe_cli.runtime.conversion.convert" in child.cmdline()
    ]


def test_what_the_child_prints_becomes_the_message(tmp_path):
    (tmp_path / "config.json").write_text(json.dumps({"model_type": "llama"}))
    with pytest.raises(CoeError, match="conversion failed"):
        convert(tmp_path, tmp_path / "out", provider="cpu", precision="int4", on_progress=ignore)


# --- a whole tiny model


@pytest.fixture(scope="module")
def tiny_model(tmp_path_factory) -> Path:
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
def converted(tiny_model, tmp_path_factory) -> tuple[Path, list[tuple[str, float]]]:
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
def test_whole_conversion_reports_progress_and_leaves_only_the_model(converted):
    output, progress = converted
    assert list(dict(progress)) == [f"Converting: {stage}" for stage in ("read", "build", "quantize", "finish")]
    fractions = [fraction for _, fraction in progress]
    assert fractions == sorted(fractions) and fractions[-1] == 1
    assert not [path for path in output.iterdir() if path.name.startswith(".")]
    record = json.loads((output / RECORD).read_text())
    assert record["recipe"]["precision"] == "int4"


@pytest.mark.slow
def test_converted_model_generates_what_its_source_does(tiny_model, converted):
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
def test_quality_of_the_conversion_is_measured_against_its_source(tiny_model, converted):
    from coe_cli.runtime.conversion.quality import measure_quality

    quality = measure_quality(converted[0], tiny_model, max_tokens=600)
    assert quality.tokens == 600
    assert abs(quality.loss_percent) < 10
    assert 0 < quality.kl_nats < 0.05
    assert quality.agreement > 0.9
