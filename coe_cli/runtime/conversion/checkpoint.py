"""Reads a GGUF file or a Hugging Face folder and writes what the OGA model builder takes: a plain Hugging Face folder."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

from coe_cli.core.recipe import SUPPORTED_ARCHITECTURES
from coe_cli.errors import ModelDamaged, UsageError

_DAMAGED_HINT = "Fetch the file again, or name another source."


def find_source(source: Path) -> Path:
    """The GGUF file or the folder with a ``config.json`` that ``source`` names; a folder may hold one GGUF file instead.

    Raises:
        UsageError: nothing there can be converted, or there is more than one choice.
        ModelDamaged: the file does not begin as a GGUF file does.
    """
    if source.is_dir():
        if (source / "config.json").is_file():
            return source
        found = sorted(source.glob("*.gguf"))
        if len(found) != 1:
            what = "no config.json and no GGUF file" if not found else f"{len(found)} GGUF files"
            raise UsageError(f"{source} holds {what}", "Name one GGUF file, or a Hugging Face model folder.")
        source = found[0]
    if not source.is_file():
        raise UsageError(f"{source} does not exist", "Name a GGUF file or a Hugging Face model folder.")
    with source.open("rb") as file:
        if file.read(4) != b"GGUF":
            raise ModelDamaged(f"{source} is not a GGUF file", _DAMAGED_HINT)
    return source


def write_checkpoint(source: Path, target: Path) -> Path:
    """A folder that the builder can read: ``source`` itself if it is a supported Hugging Face folder, else ``target``.

    A GGUF file is dequantised to fp16 and written to ``target`` with its tokenizer.

    Raises:
        UsageError: the architecture is not supported.
        ModelDamaged: the source is truncated or inconsistent.
    """
    if source.is_dir():
        try:
            architecture = json.loads((source / "config.json").read_text(encoding="utf-8")).get("model_type", "")
        except (OSError, ValueError, AttributeError) as error:
            raise ModelDamaged(
                f"{source / 'config.json'} cannot be read: {_first_line(error)}", _DAMAGED_HINT
            ) from None
        check_architecture(str(architecture), source)
        return source
    _write_gguf(source, target)
    return target


def check_architecture(architecture: str, source: Path) -> None:
    """Raises:
    UsageError: ``architecture`` is not one that the converter takes.
    """
    if architecture not in SUPPORTED_ARCHITECTURES:
        raise UsageError(
            f"{source.name} is a `{architecture or 'unnamed'}` model, which cannot be converted",
            f"Supported: {', '.join(SUPPORTED_ARCHITECTURES)}. Models in OGA layout need no conversion.",
        )


def _write_gguf(source: Path, target: Path) -> None:
    import functools

    import gguf

    try:
        # transformers parses the file's metadata four times over, which is most of a small model's load
        gguf.GGUFReader = functools.cache(gguf.GGUFReader)
        reader = gguf.GGUFReader(str(source))
        field = reader.get_field("general.architecture")
        architecture = str(field.contents()) if field else ""
        last = max((int(tensor.data_offset) + int(tensor.n_bytes) for tensor in reader.tensors), default=0)
    except Exception as error:
        raise ModelDamaged(f"{source} cannot be read: {_first_line(error)}", _DAMAGED_HINT) from None
    if not last or last > source.stat().st_size:
        raise ModelDamaged(f"{source} is truncated", _DAMAGED_HINT)
    check_architecture(architecture, source)

    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer

    where = {"gguf_file": source.name, "local_files_only": True}
    quantized = AutoModelForCausalLM.from_pretrained(str(source.parent), dtype=torch.float16, **where)
    config = quantized.config
    if hasattr(config, "quantization_config"):
        del config.quantization_config
    # a model that came from GGUF counts as quantised and refuses to be saved, so its weights move into a fresh one
    plain = AutoModelForCausalLM.from_config(config, dtype=torch.float16)
    plain.load_state_dict(quantized.state_dict(), strict=False)
    plain.tie_weights()
    plain.save_pretrained(str(target))
    AutoTokenizer.from_pretrained(str(source.parent), **where).save_pretrained(str(target))


def mend_tokenizer(folder: Path) -> None:
    """Name a tokenizer class that OGA 0.13.1 knows: it refuses transformers 5's ``TokenizersBackend``."""
    path = folder / "tokenizer_config.json"
    config = json.loads(path.read_text(encoding="utf-8"))
    if config.get("tokenizer_class") == "TokenizersBackend":
        config["tokenizer_class"] = "PreTrainedTokenizerFast"
        path.write_text(json.dumps(config, indent=2, ensure_ascii=False), encoding="utf-8")


def copy_side_files(source: Path, target: Path) -> None:
    """Everything but the graph: tokenizer, chat template and genai_config.json."""
    for file in source.iterdir():
        if file.is_file() and not file.name.startswith("model.onnx"):
            shutil.copy(file, target / file.name)


def _first_line(error: Exception) -> str:
    return (str(error).splitlines() or [type(error).__name__])[0]
