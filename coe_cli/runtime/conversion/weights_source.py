"""What lies in a GGUF file or a Hugging Face folder, read from headers alone: no weights are loaded, nothing is run."""

from __future__ import annotations

import importlib.util
import json
import re
import struct
from pathlib import Path
from typing import Literal

from msgspec import Struct

from coe_cli.core.model_spec import BYTES_PER_MB, GENAI_CONFIG
from coe_cli.errors import ModelDamaged, ModelMissing, UsageError

_PICKLED = ("*.bin", "*.pt", "*.pth", "*.ckpt", "*.pkl", "*.pickle")
_MAX_HEADER_BYTES = 100 * 2**20
_GGUF_ARCHITECTURES = {
    "llama": "LlamaForCausalLM",
    "mistral": "MistralForCausalLM",
    "qwen2": "Qwen2ForCausalLM",
    "qwen3": "Qwen3ForCausalLM",
    "phi3": "Phi3ForCausalLM",
    "gemma2": "Gemma2ForCausalLM",
    "gemma3": "Gemma3ForCausalLM",
    "nemotron": "NemotronForCausalLM",
}
"""GGUF names of architectures that transformers dequantises and ONNX Runtime GenAI's builder then builds."""

_RESULT_BITS = {"int4": 5.0, "int8": 8.5, "fp16": 16.0}
"""Bits a weight takes in the result; int4 has scales, and some matrices are kept in 8 bits."""
_SPARE_MB = 1500
"""What Python, PyTorch and transformers take themselves."""


class UnsupportedArchitecture(UsageError):
    """ONNX Runtime GenAI cannot run such a model."""

    code = "unsupported_architecture"


class PickledWeights(UsageError):
    """Loading such weights would run code that came with them."""

    code = "pickled_weights"


class WeightsSource(Struct, frozen=True):
    """``architecture`` is transformers' class name; ``parameters`` counts weights."""

    path: Path
    kind: Literal["gguf", "huggingface"]
    architecture: str
    parameters: int
    size_mb: float

    def needs(self, precision: str) -> tuple[float, float]:
        """MB of memory and of disk that a conversion takes at its peak, estimated from the number of weights.

        The weights are held as fp16 and written to disk so, then quantised into a second copy.
        """
        fp16_mb = self.parameters * 2 / BYTES_PER_MB
        result_mb = self.parameters * _RESULT_BITS[precision] / 8 / BYTES_PER_MB
        return 2 * fp16_mb + result_mb + _SPARE_MB, fp16_mb + result_mb


def inspect(path: Path) -> WeightsSource:
    """Look at a GGUF file or a Hugging Face folder.

    Raises:
        ModelMissing: there is nothing at ``path``.
        UsageError: it is something else, for example a model in OGA layout already.
        PickledWeights: the weights are only there as pickles.
        UnsupportedArchitecture: OGA's builder does not know the architecture.
        ModelDamaged: a header cannot be read.
    """
    if not path.exists():
        raise ModelMissing(f"{path} does not exist", "Name a GGUF file or a Hugging Face folder.")
    source = _inspect_folder(path) if path.is_dir() else _inspect_file(path)
    supported = builder_architectures()
    if source.architecture not in supported:
        raise UnsupportedArchitecture(
            f"{path} is a {source.architecture}, which ONNX Runtime GenAI cannot run",
            f"It runs these: {', '.join(sorted(supported))}.",
        )
    return source


def builder_architectures() -> set[str]:
    """Text models that the installed ``onnxruntime_genai.models.builder`` builds, read from its source, not imported."""
    spec = importlib.util.find_spec("onnxruntime_genai")
    for folder in (spec.submodule_search_locations or []) if spec else []:
        builder = Path(folder) / "models" / "builder.py"
        if builder.is_file():
            text = builder.read_text(encoding="utf-8")
            return set(re.findall(r'architectures\[0\] == "(\w+ForCausalLM)"', text))
    raise ModelMissing(
        "onnxruntime_genai is not installed", "Install coe-cli again: pip install --force-reinstall coe-cli"
    )


def _inspect_file(path: Path) -> WeightsSource:
    if path.match("*.safetensors"):
        raise UsageError(f"{path} is one file of a Hugging Face folder", f"Name the folder: {path.parent}")
    if any(path.match(pattern) for pattern in _PICKLED):
        raise _pickled(path)
    with path.open("rb") as file:
        if file.read(4) != b"GGUF":
            raise UsageError(f"{path} is not a GGUF file", "Name a GGUF file or a Hugging Face folder.")
    from gguf import GGUFReader

    try:
        reader = GGUFReader(path)
        field = reader.get_field("general.architecture")
        name = str(field.contents()) if field is not None else ""
        parameters = sum(int(tensor.n_elements) for tensor in reader.tensors)
    except Exception as error:
        raise ModelDamaged(f"{path} is damaged: {error}", "Fetch it again from where it came from.") from None
    architecture = _GGUF_ARCHITECTURES.get(name, name or "model of no named architecture")
    return WeightsSource(path, "gguf", architecture, parameters, path.stat().st_size / BYTES_PER_MB)


def _inspect_folder(path: Path) -> WeightsSource:
    if (path / GENAI_CONFIG).is_file():
        raise UsageError(f"{path} is in ONNX Runtime GenAI's layout already", f"Copy it: coe models pull file:{path}")
    try:
        config = json.loads((path / "config.json").read_text(encoding="utf-8"))
        architecture = str(config["architectures"][0])
    except FileNotFoundError:
        ggufs = sorted(item.name for item in path.glob("*.gguf"))
        hint = f"Name one of its files: {', '.join(ggufs)}." if ggufs else "Name a GGUF file or a Hugging Face folder."
        raise UsageError(f"{path} has no config.json", hint) from None
    except (OSError, ValueError, KeyError, IndexError, TypeError) as error:
        raise ModelDamaged(f"{path / 'config.json'} cannot be used: {error!r}", "Fetch it again.") from None
    if config.get("auto_map"):
        # Such a folder brings Python code of its own; transformers runs it only with trust_remote_code, coe never does.
        raise UnsupportedArchitecture(f"{path} needs code of its own to be loaded", "Use a model without custom code.")
    files = sorted(path.glob("*.safetensors"))
    if not files:
        if any(item for pattern in _PICKLED for item in path.glob(pattern)):
            raise _pickled(path)
        raise UsageError(f"{path} has no weights (*.safetensors)", "Fetch the folder again, with its weights.")
    parameters = sum(_safetensors_parameters(file) for file in files)
    size_mb = sum(file.stat().st_size for file in files) / BYTES_PER_MB
    return WeightsSource(path, "huggingface", architecture, parameters, size_mb)


def _safetensors_parameters(path: Path) -> int:
    """Weights in a safetensors file: eight bytes of length, then a JSON header with each tensor's shape."""
    try:
        with path.open("rb") as file:
            (length,) = struct.unpack("<Q", file.read(8))
            if length > _MAX_HEADER_BYTES:
                raise ValueError("its header is too long")
            header = json.loads(file.read(length))
        total, end = 0, 0
        for name, facts in header.items():
            if name != "__metadata__":
                count = 1
                for size in facts["shape"]:
                    count *= size
                total += count
                end = max(end, facts["data_offsets"][1])
        if path.stat().st_size < 8 + length + end:
            raise ValueError("it is shorter than its header says")
    except (OSError, ValueError, KeyError, TypeError, struct.error, AttributeError) as error:
        raise ModelDamaged(f"{path} is damaged: {error}", "Fetch it again from where it came from.") from None
    return total


def _pickled(path: Path) -> PickledWeights:
    return PickledWeights(
        f"{path} has its weights as Python pickles, and loading those runs whatever code is in them",
        "Use a build with safetensors or GGUF; most repositories on the hub have one.",
    )
