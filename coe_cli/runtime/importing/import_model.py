"""Before and after a GGUF file or a Hugging Face folder is converted: its name, what that takes, what is to be said."""

from __future__ import annotations

from pathlib import Path

from coe_cli.core.answers.end_of_turn import token_ids
from coe_cli.core.importing.encodings import fitted, rules_for
from coe_cli.core.importing.gguf_tokenizer import problem
from coe_cli.core.importing.hub_files import guess_name
from coe_cli.core.models.catalog import Source
from coe_cli.core.models.model_name import check_name
from coe_cli.core.models.model_spec import BYTES_PER_MB, ModelSpec
from coe_cli.core.names import compared_sizes, size_words
from coe_cli.errors import DoesNotFit, UnsupportedArchitecture
from coe_cli.runtime.importing.source import ModelSource, inspect
from coe_cli.runtime.model_folder.model_files import read_config
from coe_cli.runtime.store.install import Recipe, Request
from coe_cli.runtime.store.model_store import check_room


def check_resources(source: ModelSource, recipe: Recipe, models_dir: Path) -> str:
    """What the import needs, in words, checked against what there is.

    Raises:
        UsageError: there is no such recipe, or none for a model of its kind.
        UnsupportedArchitecture: a tokenizer of its kind cannot be written.
        DoesNotFit: the machine has less memory in all than it takes.
        DiskFull: the disk has too little room.
    """
    import psutil

    if source.kind == "gguf" and (why := problem(source.metadata, source.decoder.vocab_size)):
        raise UnsupportedArchitecture(f"{source.path} cannot be imported: {why}", "Use another build of the model.")
    fitted(rules_for(recipe.provider, recipe.precision, paged=recipe.paged), source.decoder)
    memory_bytes, disk_bytes = source.needs(recipe.provider, recipe.precision)
    memory_mb = memory_bytes / BYTES_PER_MB
    memory = psutil.virtual_memory()
    total_mb, free_mb = memory.total / BYTES_PER_MB, memory.available / BYTES_PER_MB
    if memory_mb > total_mb:
        takes, there = compared_sizes(memory_mb, total_mb)
        raise DoesNotFit(
            f"converting {source.path.name} takes about {takes} of memory and this machine has {there}",
            "Convert it on a larger machine and copy the folder, or fetch a model in ONNX Runtime GenAI's layout.",
        )
    check_room(f"{source.path.name}", models_dir, disk_bytes)
    takes, free = compared_sizes(memory_mb, free_mb)
    tight = "" if memory_mb <= free_mb else f", more than the {free} that are free: it will be slow"
    return (
        f"converting {source.parameters / 1e6:.0f} million weights ({source.architecture}) to {recipe.precision} takes about "
        f"{takes} of memory and {size_words(disk_bytes / BYTES_PER_MB)} of disk{tight}"
    )


def ends_note(source: ModelSource, spec: ModelSpec, model_folder: Path) -> str:
    """What is to be said where the source's configuration does not name all tokens that end an answer; else nothing."""
    said = source.metadata.get("eos_token_id", source.metadata.get("tokenizer.ggml.eos_token_id"))
    named = token_ids(said, spec.shape.vocab_size)
    written = token_ids(
        read_config(spec.name, model_folder).content["model"].get("eos_token_id"), spec.shape.vocab_size
    )
    more = ", ".join(str(token) for token in written if token not in named)
    if not more:
        return ""
    known = ", ".join(map(str, named)) or "nothing"
    return f"{source.path.name} ends an answer at token {known}, its tokenizer and chat template at {more} too: {spec.name} stops at all"


def local_request(path: Path, name: str | None, recipe: Recipe, models_dir: Path) -> Request:
    """The request that imports the GGUF file or Hugging Face folder at ``path``; without ``name`` it is called what it says itself.

    Raises:
        CoeError: as ``inspect`` and ``check_resources``.
    """
    source = inspect(path)
    check_resources(source, recipe, models_dir)
    name = check_name(name or guess_name(source.metadata, source.path.resolve().name))
    return Request(name, [Source(f"file:{source.path.resolve()}")], recipe=recipe)
