"""Models that are files: a GGUF file counts as what its import would make of it, judged by its header alone."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path

from msgspec import structs

from coe_cli.core.hardware.profile import Provider
from coe_cli.core.models.catalog import Catalog, ModelEntry, ModelShape
from coe_cli.core.models.model_spec import BYTES_PER_MB


def with_files(catalog: Catalog, models: Iterable[str], provider: Provider) -> Catalog:
    """``catalog`` with an entry for each of ``models`` that is the path of a GGUF file, in INT4 for ``provider``.

    Raises:
        ModelMissing, UsageError, ModelDamaged, UnsupportedArchitecture: a file cannot be imported.
    """
    files = {name: _entry(Path(name), provider) for name in models if name.lower().endswith(".gguf")}
    return structs.replace(catalog, models={**catalog.models, **files}) if files else catalog


def _entry(path: Path, provider: Provider) -> ModelEntry:
    from coe_cli.runtime.importing.source import inspect

    source = inspect(path)
    decoder, (_, disk_bytes) = source.decoder, source.needs(provider, "int4")
    shape = ModelShape(
        num_hidden_layers=decoder.layers,
        hidden_size=decoder.hidden_size,
        num_attention_heads=decoder.heads,
        num_key_value_heads=decoder.kv_heads,
        head_size=decoder.head_size,
        vocab_size=decoder.vocab_size,
    )
    return ModelEntry(provider, decoder.context_length, shape, disk_bytes / BYTES_PER_MB)
