"""Everything known of one model, for `coe models show`."""

from __future__ import annotations

from pathlib import Path

from msgspec import Struct

from coe_cli.core.catalog import Catalog, ModelShape
from coe_cli.core.model_spec import BYTES_PER_MB, KV_ELEMENT_BYTES, ModelSpec, find_spec
from coe_cli.core.onnx_graph import GraphFacts, graph_of
from coe_cli.core.profile import HardwareProfile
from coe_cli.runtime.integrity import read_manifest
from coe_cli.runtime.inventory import duplicates_of
from coe_cli.runtime.prompt_length import chat_template

MODEL_SCHEMA_VERSION = 1
_HEAD_POSITIONS = {True: "last", False: "all", None: None}


class FileFacts(Struct, frozen=True):
    name: str
    size_mb: float
    sha256: str | None


class CacheFigures(Struct, frozen=True):
    """Key-value cache of one slot at a profile's context (DESIGN §4, exact)."""

    profile: str
    context_length: int
    kv_bytes_per_token: int
    kv_mb: float


class ModelCard(Struct, frozen=True):
    """One model. What is not known without its files is None; ``attention`` is GQA, MQA or MHA."""

    schema_version: int
    name: str
    on_disk: bool
    folder: str | None
    description: str
    licence: str | None
    origin: str | None
    provider: str
    model_type: str | None
    experts: list[str]
    context_length: int
    shape: ModelShape
    attention: str
    weights_mb: float
    weight_formats: dict[str, int] | None
    head_positions: str | None
    chat_template: bool | None
    cache: CacheFigures
    duplicate_of: list[str]
    files: list[FileFacts]


def model_card(name: str, catalog: Catalog, profile: HardwareProfile, models_dir: Path) -> ModelCard:
    """Read what the catalog, the configuration, the graph and the manifest say of ``name``.

    Raises:
        ModelMissing: nobody knows the name.
        ModelDamaged: the configuration or the graph cannot be used.
    """
    spec = find_spec(name, catalog, models_dir)
    entry = catalog.models.get(name)
    facts = graph_of(spec) if spec.folder else None
    manifest = (read_manifest(spec.folder) if spec.folder else None) or {"files": {}, "origin": {}}
    origin = manifest.get("origin") or {}
    return ModelCard(
        schema_version=MODEL_SCHEMA_VERSION,
        name=name,
        on_disk=spec.folder is not None,
        folder=str(spec.folder) if spec.folder else None,
        description=entry.description if entry else "",
        licence=(entry.licence if entry else "") or origin.get("licence") or None,
        origin=origin.get("uri") or (entry.sources[0].uri if entry and entry.sources else None),
        provider=spec.provider,
        model_type=spec.model_type or None,
        experts=catalog.experts_of(name),
        context_length=spec.context_length,
        shape=spec.shape,
        attention=_attention(spec.shape),
        weights_mb=round(spec.weights_bytes / BYTES_PER_MB, 3),
        weight_formats=facts.weights if facts else None,
        head_positions=_HEAD_POSITIONS[facts.prunes_logits] if facts else None,
        chat_template=chat_template(spec.folder) is not None if spec.folder else None,
        cache=_cache(spec, facts, profile),
        duplicate_of=duplicates_of(name, models_dir),
        files=_files(spec.folder, manifest["files"]) if spec.folder else [],
    )


def _cache(spec: ModelSpec, facts: GraphFacts | None, profile: HardwareProfile) -> CacheFigures:
    stored = facts.cache_element_bytes if facts else None
    per_token = spec.kv_bytes_per_token(stored or KV_ELEMENT_BYTES[spec.provider])
    context = min(profile.context_length, spec.context_length)
    return CacheFigures(profile.name, context, per_token, round(per_token * context / BYTES_PER_MB, 1))


def _attention(shape: ModelShape) -> str:
    if shape.num_key_value_heads == shape.num_attention_heads:
        return "MHA"
    return "MQA" if shape.num_key_value_heads == 1 else "GQA"


def _files(folder: Path, recorded: dict[str, dict[str, str]]) -> list[FileFacts]:
    return [
        FileFacts(
            name := path.relative_to(folder).as_posix(),
            round(path.stat().st_size / BYTES_PER_MB, 3),
            recorded.get(name, {}).get("sha256"),
        )
        for path in sorted(folder.rglob("*"))
        if path.is_file()
    ]
