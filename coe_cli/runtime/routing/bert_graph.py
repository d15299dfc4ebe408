"""A BERT embedder's folder written as an ONNX graph, without PyTorch; the operators are ONNX Runtime's fused ones."""

from __future__ import annotations

import hashlib
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

import msgspec

from coe_cli.errors import ModelDamaged
from coe_cli.runtime.importing.external_data import ExternalData
from coe_cli.runtime.importing.graph_writer import CONTRIB, GraphNodes
from coe_cli.runtime.regular_file import lies_in, read_regular
from coe_cli.runtime.routing.embedder import EMBEDDER_FORMAT, EmbedderInfo
from coe_cli.runtime.routing.embedder_check import read_modules
from coe_cli.runtime.store.integrity import sha256_of

if TYPE_CHECKING:
    from numpy.typing import NDArray

    Tensors = dict[str, NDArray[Any]]

GRAPH: Final = "model.onnx"
WEIGHTS: Final = "model.onnx.data"
GRAPH_VERSION: Final = 1
"""Goes into the digest of what is written here: another graph may give other vectors."""
_SAFETENSORS: Final = "model.safetensors"
_OPSET, _IR_VERSION = 17, 8
_MAX_BYTES: Final = 2**20
_MAX_TOKENS: Final = 8192
_POOLINGS: Final = ("mean", "cls", "max")
_WRITTEN_MODULES: Final = (["Transformer", "Pooling"], ["Transformer", "Pooling", "Normalize"])


class BertConfig(msgspec.Struct, frozen=True):
    """The keys of ``config.json`` that the graph follows; others change nothing for this ``model_type``."""

    model_type: str
    hidden_size: int
    num_hidden_layers: int
    num_attention_heads: int
    hidden_act: str
    layer_norm_eps: float
    max_position_embeddings: int
    pad_token_id: int = 0
    position_embedding_type: str = "absolute"


class BertEmbedder(msgspec.Struct, frozen=True):
    """A folder that can be written: a BERT with ``pooling`` over its last layer, and a tokenizer of one file."""

    folder: Path
    config: BertConfig
    pooling: str
    max_tokens: int
    prompt: str


class _Pooling(msgspec.Struct):
    pooling_mode: str = ""
    pooling_mode_cls_token: bool = False
    pooling_mode_mean_tokens: bool = False
    pooling_mode_max_tokens: bool = False
    pooling_mode_mean_sqrt_len_tokens: bool = False
    pooling_mode_weightedmean_tokens: bool = False
    pooling_mode_lasttoken: bool = False

    def kind(self) -> str:
        named = {"mean_tokens": "mean", "cls_token": "cls", "max_tokens": "max"}
        old = [name for name in self.__struct_fields__[1:] if getattr(self, name)]
        return self.pooling_mode or "+".join(named.get(n := name.removeprefix("pooling_mode_"), n) for name in old)


class _Limits(msgspec.Struct):
    max_seq_length: int | None = None
    model_max_length: float | None = None


class _Prompts(msgspec.Struct):
    prompts: dict[str, str] = {}
    default_prompt_name: str | None = None


def read_bert(folder: Path) -> BertEmbedder | None:
    """What of the sentence-transformers folder is to be written, or None where it is anything but a plain BERT."""
    try:
        modules = read_modules(folder)
        config = _read(folder / "config.json", BertConfig)
        kinds = [module.kind for module in modules]
        pooling = _read(folder / modules[1].path / "config.json", _Pooling).kind() if len(modules) > 1 else ""
        limits = [
            _read_if_there(folder / name, _Limits) for name in ("sentence_bert_config.json", "tokenizer_config.json")
        ]
        prompts = _read_if_there(folder / "config_sentence_transformers.json", _Prompts)
    except (OSError, msgspec.MsgspecError, ValueError, RecursionError):
        return None
    plain = config.model_type == "bert" and config.hidden_act == "gelu" and config.position_embedding_type == "absolute"
    files = all((folder / name).is_file() for name in (_SAFETENSORS, "tokenizer.json"))
    inside = all(lies_in(folder / module.path, folder) for module in modules)
    if not (plain and files and inside and kinds in _WRITTEN_MODULES and pooling in _POOLINGS and not modules[0].path):
        return None
    stated = limits[0].max_seq_length or limits[1].model_max_length or config.max_position_embeddings
    max_tokens = int(min(stated, config.max_position_embeddings, _MAX_TOKENS))
    prompt = prompts.prompts.get(prompts.default_prompt_name or "", "")
    return BertEmbedder(folder, config, pooling, max_tokens, prompt)


def _read(path: Path, kind: Any) -> Any:
    return msgspec.json.decode(read_regular(path, _MAX_BYTES), type=kind)


def _read_if_there(path: Path, kind: Any) -> Any:
    return _read(path, kind) if path.exists() else kind()


def write_bert(embedder: BertEmbedder, target: Path, name: str) -> EmbedderInfo:
    """Write graph, weights and tokenizer into the folder ``target``; the digest is of what they were written from.

    The graph takes ``input_ids`` and ``attention_mask`` [batch, tokens], int64, and gives ``embedding``
    [batch, dimension] of length 1. Layers as in Devlin et al. 2018, "BERT", with the names of Hugging Face's BertModel.

    Raises:
        ModelDamaged: a tensor is missing, has another shape or type, or is one that a BERT does not have.
    """
    from tokenizers import Tokenizer

    tensors = _tensors(embedder)
    with ExternalData(target / WEIGHTS) as data:
        nodes = _BertNodes(data, tensors, embedder.config)
        nodes.write(embedder.pooling)
        model = nodes.model("embedder", *_interface(embedder.config), opset=_OPSET, ir_version=_IR_VERSION)
    (target / GRAPH).write_bytes(model.SerializeToString(deterministic=True))
    try:
        tokenizer = Tokenizer.from_str(read_regular(embedder.folder / "tokenizer.json", 64 * _MAX_BYTES).decode())
    except Exception as error:  # the library raises plain Exceptions
        raise ModelDamaged(f"{embedder.folder} is damaged: its tokenizer cannot be read: {error}", _AGAIN) from None
    tokenizer.no_truncation()
    tokenizer.no_padding()
    (target / "tokenizer.json").write_text(tokenizer.to_str(), encoding="utf-8")
    return EmbedderInfo(
        format=EMBEDDER_FORMAT,
        name=name,
        dimension=embedder.config.hidden_size,
        max_tokens=embedder.max_tokens,
        pad_id=embedder.config.pad_token_id,
        prompt=embedder.prompt,
        sha256=written_digest(sha256_of(embedder.folder / _SAFETENSORS), embedder.pooling),
    )


def written_digest(weights_sha256: str, pooling: str) -> str:
    """What the vectors of a written graph depend on, beside its limit of tokens and its prompt."""
    return hashlib.sha256(f"{GRAPH_VERSION} {pooling} {weights_sha256}".encode()).hexdigest()


_AGAIN: Final = "Fetch it again: coe route --rebuild."


def _tensors(embedder: BertEmbedder) -> Tensors:
    import numpy as np
    from safetensors import SafetensorError, safe_open

    path, config = embedder.folder / _SAFETENSORS, embedder.config
    try:
        with safe_open(path, framework="numpy") as file:
            names = [name for name in file.keys() if not name.endswith("position_ids")]  # noqa: SIM118
            tensors = {name.removeprefix("bert."): file.get_tensor(name) for name in names}
    except (SafetensorError, OSError, TypeError, ValueError) as error:
        raise ModelDamaged(f"{path} is damaged: {error}", _AGAIN) from None
    expected = _shapes(config, tensors)
    extra = [name for name in tensors if name not in expected and not name.startswith(("pooler.", "cls."))]
    wrong = [name for name, shape in expected.items() if name not in tensors or tensors[name].shape != shape]
    if extra or wrong or config.hidden_size % config.num_attention_heads:
        raise ModelDamaged(f"{path} is damaged: {(extra + wrong + ['its config'])[0]} makes no sense", _AGAIN)
    return {name: np.asarray(tensors[name], np.float32) for name in expected}


def _shapes(config: BertConfig, tensors: Tensors) -> dict[str, tuple[int, ...]]:
    """Name → shape of all tensors of the encoder; how large vocabulary and inner layer are is read from the tensors."""
    hidden = config.hidden_size
    words = len(tensors.get("embeddings.word_embeddings.weight", ()))
    kinds = len(tensors.get("embeddings.token_type_embeddings.weight", ()))
    inner = len(tensors.get("encoder.layer.0.intermediate.dense.weight", ()))
    shapes: dict[str, tuple[int, ...]] = {
        "embeddings.word_embeddings.weight": (words, hidden),
        "embeddings.position_embeddings.weight": (config.max_position_embeddings, hidden),
        "embeddings.token_type_embeddings.weight": (kinds, hidden),
    }
    norms = ["embeddings.LayerNorm"]
    dense: dict[str, tuple[int, int]] = {}
    for layer in (f"encoder.layer.{index}" for index in range(config.num_hidden_layers)):
        norms += [f"{layer}.attention.output.LayerNorm", f"{layer}.output.LayerNorm"]
        dense |= {f"{layer}.attention.self.{part}": (hidden, hidden) for part in ("query", "key", "value")}
        dense |= {f"{layer}.attention.output.dense": (hidden, hidden)}
        dense |= {f"{layer}.intermediate.dense": (inner, hidden), f"{layer}.output.dense": (hidden, inner)}
    for norm in norms:
        shapes |= {f"{norm}.weight": (hidden,), f"{norm}.bias": (hidden,)}
    for name, shape in dense.items():
        shapes |= {f"{name}.weight": shape, f"{name}.bias": shape[:1]}
    return shapes


class _BertNodes(GraphNodes):
    """The nodes of one BERT."""

    def __init__(self, data: ExternalData, tensors: Tensors, config: BertConfig) -> None:
        super().__init__(data)
        self._tensors, self._config = tensors, config

    def write(self, pooling: str) -> None:
        import numpy as np

        word, place, kind = (f"embeddings.{name}_embeddings.weight" for name in ("word", "position", "token_type"))
        # Every token is of the first segment, whose vector is added once and for all.
        places = self.data.add(place, self._tensors[place] + self._tensors[kind][0])
        width = self.node("Slice", "width", [self.node("Shape", "shape", ["input_ids"]), *self._ints(1, 2)])
        here = self.node("Slice", "places", [places, *self._ints(0), width, *self._ints(0)])
        tokens = self.node("Gather", "tokens", [self._weight(word), "input_ids"])
        norm = [self._weight("embeddings.LayerNorm.weight"), self._weight("embeddings.LayerNorm.bias")]
        inputs = [self.node("Add", "embeddings", [tokens, here]), *norm]
        state = self.node("LayerNormalization", "embedded", inputs, axis=-1, epsilon=self._config.layer_norm_eps)
        mask = self.cast("attention_mask", np.int32)
        for index in range(self._config.num_hidden_layers):
            state = self._layer(f"encoder.layer.{index}", state, mask)
        pooled = self._pooled(pooling, state)
        length = self.node("ReduceL2", "length", [pooled], axes=[1], keepdims=1)
        divisor = self.node("Max", "divisor", [length, self.constant(1e-12, np.float32)])
        self.node("Div", "embedding", [pooled, divisor], ["embedding"])

    def _layer(self, layer: str, state: str, mask: str) -> str:
        import numpy as np

        own = [f"{layer}.attention.self.{part}" for part in ("query", "key", "value")]
        packed = np.concatenate([self._tensors[f"{name}.weight"] for name in own]).T
        biases = np.concatenate([self._tensors[f"{name}.bias"] for name in own])
        inputs = [state, self.data.add(f"{layer}.qkv.weight", packed), self.data.add(f"{layer}.qkv.bias", biases), mask]
        heads = self._config.num_attention_heads
        seen = self.node("Attention", f"{layer}.attention", inputs, domain=CONTRIB, num_heads=heads)
        state = self._added(f"{layer}.attention.output", seen, state)
        inputs = [self._matrix(f"{layer}.intermediate.dense", state), self._weight(f"{layer}.intermediate.dense.bias")]
        bent = self.node("BiasGelu", f"{layer}.gelu", inputs, domain=CONTRIB)
        return self._added(f"{layer}.output", bent, state)

    def _added(self, name: str, value: str, before: str) -> str:
        """``value`` times the matrix, plus its bias and ``before``, normalised."""
        norm = [self._weight(f"{name}.LayerNorm.weight"), self._weight(f"{name}.LayerNorm.bias")]
        inputs = [self._matrix(f"{name}.dense", value), before, *norm, self._weight(f"{name}.dense.bias")]
        epsilon = self._config.layer_norm_eps
        return self.node("SkipLayerNormalization", name, inputs, domain=CONTRIB, epsilon=epsilon)

    def _pooled(self, pooling: str, state: str) -> str:
        """[batch, dimension] of [batch, tokens, dimension]: the first token, or mean or maximum of those in the mask."""
        import numpy as np

        if pooling == "cls":
            return self.node("Gather", "pooled", [state, self.constant(0, np.int64)], axis=1)
        column = self.node("Unsqueeze", "mask_column", ["attention_mask", *self._ints(2)])
        if pooling == "max":
            inputs = [self.cast(column, np.bool_), state, self.constant(-1e9, np.float32)]
            return self.node("ReduceMax", "pooled", [self.node("Where", "masked", inputs)], axes=[1], keepdims=0)
        weights = self.cast(column, np.float32)
        weighted = self.node("Mul", "weighted", [state, weights])
        total = self.node("ReduceSum", "total", [weighted, *self._ints(1)], keepdims=0)
        count = self.node("ReduceSum", "count", [weights, *self._ints(1)], keepdims=0)
        return self.node("Div", "pooled", [total, count])

    def _matrix(self, name: str, value: str) -> str:
        weight = self.data.add(f"{name}.weight", self._tensors[f"{name}.weight"].T)
        return self.node("MatMul", f"{name}.product", [value, weight])

    def _weight(self, name: str) -> str:
        return self.data.add(name, self._tensors[name])

    def _ints(self, *values: int) -> list[str]:
        """A constant of one element for each value."""
        import numpy as np

        return [self.constant([value], np.int64) for value in values]


def _interface(config: BertConfig) -> tuple[list[Any], list[Any]]:
    from onnx import TensorProto, helper

    value = helper.make_tensor_value_info
    inputs = [value(name, TensorProto.INT64, ["batch", "tokens"]) for name in ("input_ids", "attention_mask")]
    return inputs, [value("embedding", TensorProto.FLOAT, ["batch", config.hidden_size])]
