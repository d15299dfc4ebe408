"""Bring a model from elsewhere into the models folder: a GGUF file or a Hugging Face folder, converted."""

from __future__ import annotations

import shutil
from pathlib import Path

from coe_cli.core.answers.end_of_turn import token_ids
from coe_cli.core.findings import Level
from coe_cli.core.importing.encodings import Precision
from coe_cli.core.importing.gguf_tokenizer import problem
from coe_cli.core.models.genai_config import read_config
from coe_cli.core.models.model_name import check_name
from coe_cli.core.models.model_spec import BYTES_PER_MB, ModelSpec
from coe_cli.errors import DoesNotFit, ModelDamaged, UnsupportedArchitecture, UsageError
from coe_cli.runtime.folders import folders
from coe_cli.runtime.importing.source import ModelSource
from coe_cli.runtime.progress import OnProgress, Step
from coe_cli.runtime.store.golden_answer import forget
from coe_cli.runtime.store.integrity import check_files, sha256_of, write_manifest
from coe_cli.runtime.store.model_removal import check_replaceable
from coe_cli.runtime.store.model_store import (
    check_room,
    open_model,
    put_in_place,
    staging_folder,
    take_finished,
    writing,
)
from coe_cli.runtime.store.verify import verify


def check_resources(source: ModelSource, provider: str, precision: Precision, models_dir: Path) -> str:
    """What the import needs, in words, checked against what there is.

    Raises:
        UnsupportedArchitecture: a tokenizer of its kind cannot be written.
        DoesNotFit: the machine has less memory in all than it takes.
        DiskFull: the disk has too little room.
    """
    import psutil

    if source.kind == "gguf" and (why := problem(source.metadata, source.decoder.vocab_size)):
        raise UnsupportedArchitecture(f"{source.path} cannot be imported: {why}", "Use another build of the model.")
    memory_bytes, disk_bytes = source.needs(provider, precision)
    memory_mb = memory_bytes / BYTES_PER_MB
    memory = psutil.virtual_memory()
    total_mb, free_mb = memory.total / BYTES_PER_MB, memory.available / BYTES_PER_MB
    if memory_mb > total_mb:
        raise DoesNotFit(
            f"converting {source.path.name} takes about {memory_mb:.0f} MB of memory and this machine has {total_mb:.0f} MB",
            "Convert it on a larger machine and copy the folder, or fetch a model in ONNX Runtime GenAI's layout.",
        )
    check_room(f"{source.path.name}", models_dir, disk_bytes)
    tight = "" if memory_mb <= free_mb else f", more than the {free_mb:.0f} MB that are free: it will be slow"
    return (
        f"converting {source.parameters / 1e6:.0f} million weights ({source.architecture}) to {precision} takes about "
        f"{memory_mb:.0f} MB of memory and {disk_bytes / BYTES_PER_MB:.0f} MB of disk{tight}"
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


def import_model(
    source: ModelSource,
    name: str,
    models_dir: Path,
    on_progress: OnProgress,
    form: tuple[str, Precision],
    *,
    force: bool = False,
) -> ModelSpec:
    """Convert ``source`` for ``form`` (provider and precision) and install it as ``name``; nothing is seen under that name before it is whole and checked.

    Raises:
        UsageError: the name is taken (without ``force``), or is none.
        ModelDamaged: the conversion failed or its result is not sound.
        DiskFull, ModelMissing: the models folder is full or cannot be written.
    """
    from coe_cli.runtime.importing.convert import convert

    provider, precision = form
    target, staging = models_dir / check_name(name), staging_folder(name, models_dir)
    with writing(name, models_dir, on_progress):
        if target.exists() and not force:
            raise UsageError(f"there is a model `{name}` already", "Choose another --name, or use --force.")
        origin = {"uri": f"file:{source.path.resolve()}", "precision": precision, "provider": provider}
        if source.path.is_file():
            origin["sha256"] = sha256_of(source.path)
        if take_finished(target, lambda known: known == origin):
            return open_model(name, target)
        check_replaceable(name, models_dir)
        result = staging / "model"
        try:
            shutil.rmtree(staging, ignore_errors=True)
            result.mkdir(parents=True)
            convert(source.path, result, provider=provider, precision=precision, on_progress=on_progress)
            on_progress(Step("Checking", 0, None))
            for finding in verify(name, result, folders().state, run=False):
                if finding.level is Level.ERROR:
                    raise ModelDamaged(
                        f"the conversion of {source.path} is not sound: {finding.message}",
                        "Report it, with the source.",
                    )
            write_manifest(result, dict(origin))
            check_files(name, result)
            put_in_place(result, target)
        finally:
            shutil.rmtree(staging, ignore_errors=True)
        forget(folders().state, name)
    return open_model(name, target)
