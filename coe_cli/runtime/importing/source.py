"""What lies in a GGUF file or a Hugging Face folder, read from headers alone, and refused there if it cannot be imported."""

from __future__ import annotations

import json
import mmap
import struct
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

from msgspec.structs import replace

from coe_cli.core.importing.architectures import SUPPORTED_CLASSES, SUPPORTED_GGUF, Architecture, by_class, by_gguf
from coe_cli.core.importing.decoder import Decoder
from coe_cli.core.importing.encodings import Precision, rules_for
from coe_cli.core.importing.facts import Facts
from coe_cli.core.importing.ggml import BLOCK_TYPES, SUPPORTED
from coe_cli.core.importing.gguf_header import GgufHeader, parse_gguf
from coe_cli.core.importing.hub_files import PICKLED
from coe_cli.core.importing.needs import needs
from coe_cli.core.importing.tensor_names import GGUF_TABLES, expected_shapes, gguf_part, hf_part
from coe_cli.core.models.model_spec import BYTES_PER_MB, GENAI_CONFIG
from coe_cli.errors import CoeError, ModelDamaged, ModelMissing, PickledWeights, UnsupportedArchitecture, UsageError
from coe_cli.runtime.importing.weights_map import Stored, WeightsMap
from coe_cli.runtime.regular_file import open_regular, read_text

_MAX_HEADER_BYTES = 16 * 2**20
"""Of a safetensors file; a hundred thousand tensors. JSON takes up to forty times its bytes in memory."""
_MAX_CONFIG_BYTES = 2**20
_MAX_DIMENSIONS = 4
_MAX_VOCABULARY = 1 << 22
_FETCH_AGAIN = "Fetch it again from where it came from."


@dataclass(frozen=True)
class ModelSource:
    """A source that can be imported. ``metadata`` is the GGUF header's, or the folder's ``config.json``."""

    path: Path
    kind: Literal["gguf", "huggingface"]
    architecture: str
    decoder: Decoder
    parts: dict[str, Stored]
    metadata: dict[str, Any] = field(repr=False)

    @property
    def parameters(self) -> int:
        return sum(stored.rows * stored.columns for stored in self.parts.values())

    @property
    def size_mb(self) -> float:
        return sum(stored.rows * stored.row_bytes for stored in self.parts.values()) / BYTES_PER_MB

    def needs(self, provider: str, precision: Precision) -> tuple[int, int]:
        """Bytes of memory and of disk that its import takes.

        Raises:
            UsageError: there is no such recipe.
        """
        matrices = {
            part: (item.type_name, item.rows, item.columns) for part, item in self.parts.items() if item.rows > 1
        }
        return needs(self.decoder, matrices, rules_for(provider, precision), precision)

    def weights(self) -> WeightsMap:
        return WeightsMap(self.parts)


def inspect(path: Path) -> ModelSource:
    """Look at a GGUF file or a Hugging Face folder: header, architecture, tensor names, types and shapes.

    Raises:
        ModelMissing: there is nothing at ``path``.
        UsageError: it is something else, for example a model in OGA layout already.
        PickledWeights: the weights are only there as pickles.
        UnsupportedArchitecture: its architecture, or something that it has, cannot be written as a graph.
        ModelDamaged: a header cannot be read, or contradicts itself.
    """
    if not path.exists():
        raise ModelMissing(f"{path} does not exist", "Name a GGUF file or a Hugging Face folder.")
    if path.is_dir() and not (path / "config.json").is_file() and not (path / GENAI_CONFIG).is_file():
        ggufs = sorted(path.glob("*.gguf"))
        if len(ggufs) == 1:
            path = ggufs[0]
        else:
            hint = f"Name one of its files: {', '.join(file.name for file in ggufs)}." if ggufs else _NAME_ONE
            raise UsageError(f"{path} has no config.json", hint)
    return _inspect_folder(path) if path.is_dir() else _inspect_file(path)


_NAME_ONE = "Name a GGUF file or a Hugging Face folder."


# --- GGUF


def read_header(path: Path) -> GgufHeader:
    """The header of the GGUF file at ``path``.

    Raises:
        UsageError: it is no GGUF file.
        ModelDamaged: it is truncated, or contradicts itself.
    """
    try:
        with open_regular(path) as file:
            if file.read(4) != b"GGUF":
                raise UsageError(f"{path} is not a GGUF file", _NAME_ONE)
            with mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as content, memoryview(content) as view:
                return parse_gguf(view)
    except OSError as error:
        raise ModelDamaged(f"{path} cannot be read: {error.strerror or error}", _NAME_ONE) from None
    except (ValueError, RecursionError) as error:
        raise ModelDamaged(f"{path} is damaged: {error}", _FETCH_AGAIN) from None


def _inspect_file(path: Path) -> ModelSource:
    if path.match("*.safetensors"):
        raise UsageError(f"{path} is one file of a Hugging Face folder", f"Name the folder: {path.parent}")
    if any(path.match(pattern) for pattern in PICKLED):
        raise _pickled(path)
    header = read_header(path)
    name = str(header.metadata.get("general.architecture", ""))
    if header.metadata.get("split.count", 1) not in (0, 1):
        raise UsageError(f"{path} is one part of a model in several files", "Fetch a model that is in one file.")
    architecture = by_gguf(name)
    if architecture is None:
        raise _unsupported(path, f"a `{name or 'model of no named architecture'}` model", SUPPORTED_GGUF)
    parts: dict[str, Stored] = {}
    tables: dict[str, tuple[float, ...]] = {}
    unknown: list[str] = []
    for tensor in header.tensors:
        if tensor.block is None:
            raise UnsupportedArchitecture(
                f"{path} has weights of type {tensor.type_name} (`{tensor.name[:60]}`), which cannot be read",
                f"Fetch a file with other quantisation: {', '.join(SUPPORTED)} can be read.",
            )
        stored = Stored(path, tensor.offset, tensor.block.name, tensor.shape)
        if tensor.name in GGUF_TABLES:
            tables[tensor.name] = _table(stored)
        elif (part := gguf_part(tensor.name)) is not None:
            parts[part] = stored
        else:
            unknown.append(tensor.name)
    _refuse_unknown(path, name, unknown)
    facts = Facts(header.metadata, gguf=name, tables=tables)
    return _source(path, name, architecture, facts, parts, header.metadata)


def _table(stored: Stored) -> tuple[float, ...]:
    if stored.type_name != "F32" or len(stored.shape) != 1 or stored.columns > 4096:
        raise ModelDamaged(f"{stored.path} is damaged: its table of frequencies makes no sense", _FETCH_AGAIN)
    with stored.path.open("rb") as file:
        file.seek(stored.offset)
        return struct.unpack(f"<{stored.columns}f", file.read(4 * stored.columns))


# --- Hugging Face


def _inspect_folder(path: Path) -> ModelSource:
    if (path / GENAI_CONFIG).is_file():
        raise UsageError(f"{path} is in ONNX Runtime GenAI's layout already", f"Copy it: coe models pull file:{path}")
    try:
        config = json.loads(read_text(path / "config.json", _MAX_CONFIG_BYTES))
        name = str(config["architectures"][0])
    except (OSError, ValueError, KeyError, IndexError, TypeError, RecursionError) as error:
        raise ModelDamaged(f"{path / 'config.json'} cannot be used: {error!r}", "Fetch it again.") from None
    if config.get("auto_map"):
        # Such a folder brings Python code of its own; transformers runs it only with trust_remote_code, coe never does.
        raise UnsupportedArchitecture(f"{path} needs code of its own to be loaded", "Use a model without custom code.")
    architecture = by_class(name)
    if architecture is None:
        raise _unsupported(path, f"a {name}", SUPPORTED_CLASSES)
    if config.get("quantization_config"):
        raise UnsupportedArchitecture(
            f"{path} has quantised weights, which can be read from GGUF files only",
            "Fetch the model's original weights, or a GGUF file of it.",
        )
    files = sorted(path.glob("*.safetensors"))
    if not files:
        if any(item for pattern in PICKLED for item in path.glob(pattern)):
            raise _pickled(path)
        raise UsageError(f"{path} has no weights (*.safetensors)", "Fetch the folder again, with its weights.")
    parts: dict[str, Stored] = {}
    unknown: list[str] = []
    for file in files:
        for tensor, stored in _safetensors(file).items():
            part = hf_part(tensor, ffn_norm_is_post_attention=architecture.ffn_norm_is_post_attention)
            if part is None:
                unknown.append(tensor)
            elif part:
                parts[part] = stored
    _refuse_unknown(path, name, unknown)
    return _source(path, name, architecture, Facts(config), parts, config)


def _safetensors(path: Path) -> dict[str, Stored]:
    """The tensors of a safetensors file: eight bytes of length, then a JSON header with each tensor's type, shape and place."""
    try:
        size = path.stat().st_size
        with open_regular(path) as file:
            (length,) = struct.unpack("<Q", file.read(8))
            if length > min(_MAX_HEADER_BYTES, size - 8):
                raise ValueError("its header is too long")
            header = json.loads(file.read(length))
        found: dict[str, Stored] = {}
        for name, facts in header.items():
            if name == "__metadata__":
                continue
            kind, shape = str(facts["dtype"]), tuple(_counts(facts["shape"], _MAX_DIMENSIONS))
            start, end = _counts(facts["data_offsets"], 2)
            if kind not in ("F32", "F16", "BF16"):
                raise UnsupportedArchitecture(
                    f"{path} has weights of type {kind[:20]} (`{name[:60]}`), which cannot be read",
                    "Fetch the model's weights in fp16, bf16 or fp32.",
                )
            count = BLOCK_TYPES[kind].bytes
            for dim in shape:
                count *= dim
            if not shape or min(shape) < 1 or end - start != count or 8 + length + end > size:
                raise ValueError(f"it is shorter than its header says, or tensor `{name[:60]}` makes no sense")
            found[name] = Stored(path, 8 + length + start, kind, shape)
    except CoeError:
        raise
    except (OSError, ValueError, KeyError, TypeError, struct.error, AttributeError, RecursionError) as error:
        raise ModelDamaged(f"{path} is damaged: {error}", _FETCH_AGAIN) from None
    return found


def _counts(values: Any, most: int) -> list[int]:
    """
    Raises:
        ValueError: these are not whole numbers that a file may have, or more than ``most``.
    """
    if not isinstance(values, list) or len(values) > most:
        raise ValueError("its header makes no sense")
    if not all(type(value) is int and 0 <= value < 2**48 for value in values):
        raise ValueError("its header makes no sense")
    return values


# --- both


def _refuse_unknown(path: Path, name: str, unknown: list[str]) -> None:
    if unknown:
        raise UnsupportedArchitecture(
            f"{path} has tensors that a {name} model does not have, such as `{unknown[0][:60]}`",
            "It may be another model under that name; fetch one in ONNX Runtime GenAI's layout.",
        )


def _source(
    path: Path, name: str, architecture: Architecture, facts: Facts, parts: dict[str, Stored], metadata: dict[str, Any]
) -> ModelSource:
    kind: Literal["gguf", "huggingface"] = "gguf" if path.is_file() else "huggingface"
    try:
        decoder = architecture.read(facts)
    except ValueError as error:
        raise UnsupportedArchitecture(
            f"{path} cannot be imported: {error}", "Use another build of the model."
        ) from None
    except (TypeError, KeyError, OverflowError, ZeroDivisionError) as error:
        raise ModelDamaged(f"{path} is damaged: its metadata make no sense ({error!r})", _FETCH_AGAIN) from None
    for part, shape in expected_shapes(decoder, parts).items():
        if part not in parts or parts[part].shape != shape:
            has = f"has the shape {list(parts[part].shape)}" if part in parts else "is missing"
            raise ModelDamaged(f"{path} is damaged: {part} {has}, not {list(shape)}", _FETCH_AGAIN)
    table = parts.get("embedding.weight")
    if table is None or len(table.shape) != 2 or table.columns != decoder.hidden_size or table.rows > _MAX_VOCABULARY:
        raise ModelDamaged(f"{path} is damaged: it has no usable embedding", _FETCH_AGAIN)
    tied = "head.weight" not in parts or bool(kind == "huggingface" and facts.get("tie_word_embeddings"))
    if tied:
        parts.pop("head.weight", None)
    elif parts["head.weight"].shape != table.shape:
        raise ModelDamaged(f"{path} is damaged: head and embedding differ in shape", _FETCH_AGAIN)
    kept = {"embedding.weight", "head.weight", *expected_shapes(decoder, parts)}
    if left := sorted(set(parts) - kept):
        raise UnsupportedArchitecture(
            f"{path} has tensors that a {name} model does not have, such as {left[0]}",
            "It may be another model under that name; fetch one in ONNX Runtime GenAI's layout.",
        )
    interleaved = kind == "gguf" and architecture.permuted
    decoder = replace(decoder, vocab_size=table.rows, tied=tied, interleaved_qk=interleaved)
    return ModelSource(path, kind, name, decoder, parts, metadata)


def _unsupported(path: Path, what: str, supported: tuple[str, ...]) -> UnsupportedArchitecture:
    return UnsupportedArchitecture(
        f"{path} is {what}, which cannot be imported",
        f"These can: {', '.join(supported)}. Models in ONNX Runtime GenAI's layout need no import.",
    )


def _pickled(path: Path) -> PickledWeights:
    return PickledWeights(
        f"{path} has its weights as Python pickles, and loading those runs whatever code is in them",
        "Use a build with safetensors or GGUF; most repositories on the hub have one.",
    )
