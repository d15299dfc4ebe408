"""Everything known of one model, for `coe models show`."""

from __future__ import annotations

from datetime import UTC, datetime
from pathlib import Path

from msgspec import Struct

from coe_cli.core.hardware.profile import HardwareProfile, ProfileSet
from coe_cli.core.memory.calibration import Calibration, apply
from coe_cli.core.memory.footprint import ExactAccounting, ModelMemory
from coe_cli.core.memory.slot_context import fitting_context
from coe_cli.core.models.catalog import Catalog, ModelEntry, ModelShape
from coe_cli.core.models.model_spec import BYTES_PER_MB, spec_from_catalog
from coe_cli.core.providers import runs_on
from coe_cli.core.routing.selection import choose_profile
from coe_cli.runtime.model_folder.graph_files import graph_of
from coe_cli.runtime.model_folder.on_disk import find_spec
from coe_cli.runtime.model_folder.tokenizer_files import chat_template
from coe_cli.runtime.planning.calibration_store import CalibrationStore
from coe_cli.runtime.planning.plan_inputs import calibration_of, memory_of
from coe_cli.runtime.store.integrity import read_manifest
from coe_cli.runtime.store.inventory import duplicates_of

MODEL_SCHEMA_VERSION = 1
_HEAD_POSITIONS = {True: "last", False: "all", None: None}


class FileFacts(Struct, frozen=True):
    name: str
    size_mb: float
    sha256: str | None


class CacheFigures(Struct, frozen=True):
    """Key-value cache of one slot at a profile's context (exact)."""

    profile: str
    context_length: int
    kv_bytes_per_token: int
    kv_mb: float


class PlanFigures(Struct, frozen=True):
    """What `coe vram plan` counts for the model with one slot, on the provider that it was built for; MB of 2²⁰ bytes."""

    profile: str
    provider: str
    context_length: int
    weights_mb: float
    kv_mb: float
    activation_mb: float
    total_mb: float


class CalibrationFigures(Struct, frozen=True):
    """What real runs measured: MB after a load, slots as a multiple of the plan's, and predicted ÷ measured − 1.

    None is not measured yet; ``newest_at`` is ISO 8601 in UTC.
    """

    load_mb: float | None
    slot_ratio: float | None
    error: float | None
    measurements: int
    newest_at: str
    runtime_version: str
    adapter: str


class BuildFacts(Struct, frozen=True):
    """A build of the catalog: for which provider, from where. ``verified`` is false until somebody has looked at the source."""

    provider: str
    format: str
    uri: str
    licence: str | None
    download_mb: float
    verified: bool


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
    plan: PlanFigures
    calibration: CalibrationFigures | None
    duplicate_of: list[str]
    files: list[FileFacts]
    builds: list[BuildFacts]
    runs_on: list[str]


def model_card(
    name: str, catalog: Catalog, profiles: ProfileSet, profile_name: str | None, models_dir: Path, state_dir: Path
) -> ModelCard:
    """Read what the catalog, the configuration, the graph, the manifest and earlier runs say of ``name``.

    Without a ``profile_name`` the figures are those of the profile under which `coe ask` would run it.

    Raises:
        ProfileInvalid: no profile has that name.
        ModelMissing: nobody knows the name.
        ModelDamaged: the configuration or the graph cannot be used.
    """
    spec = find_spec(name, catalog, models_dir)
    profile = choose_profile(profiles, profile_name, spec.provider)
    entry, builds = catalog.models.get(name), []
    if entry is not None:
        builds = [_build(entry.on(provider)) for provider in (entry.provider, *entry.builds) if entry.sources]
        entry = entry.on(profile.provider)
        spec = spec if spec.folder else spec_from_catalog(name, entry)
    facts = graph_of(spec) if spec.folder else None
    computed = memory_of(spec, spec.provider)
    calibration = calibration_of(computed, CalibrationStore(state_dir).read())
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
        cache=_cache(computed, profile),
        plan=_plan(apply(computed, calibration), profile),
        calibration=_calibration(calibration),
        duplicate_of=duplicates_of(name, models_dir),
        files=_files(spec.folder, manifest["files"]) if spec.folder else [],
        builds=builds,
        runs_on=runs_on(spec.provider),
    )


def _build(entry: ModelEntry) -> BuildFacts:
    uri = entry.sources[0].uri
    return BuildFacts(entry.provider, entry.format, uri, entry.licence or None, entry.download_mb, entry.verified)


def _cache(memory: ModelMemory, profile: HardwareProfile) -> CacheFigures:
    per_token = memory.spec.kv_bytes_per_token(memory.element_bytes)
    context = min(profile.context_length, memory.spec.context_length)
    return CacheFigures(profile.name, context, per_token, round(per_token * context / BYTES_PER_MB, 1))


def _plan(memory: ModelMemory, profile: HardwareProfile) -> PlanFigures:
    context = min(fitting_context(profile, [memory]), memory.spec.context_length)
    counting = ExactAccounting()
    slot = counting.slot(memory, context)
    sizes = (counting.weights_bytes(memory), slot.kv_bytes, slot.activation_bytes)
    weights_mb, kv_mb, activation_mb = (round(size / BYTES_PER_MB, 1) for size in sizes)
    total_mb = round(sum(sizes) / BYTES_PER_MB, 1)
    return PlanFigures(profile.name, memory.provider, context, weights_mb, kv_mb, activation_mb, total_mb)


def _calibration(found: Calibration | None) -> CalibrationFigures | None:
    if found is None:
        return None
    return CalibrationFigures(
        load_mb=round(found.load_bytes / BYTES_PER_MB, 1) if found.load_bytes is not None else None,
        slot_ratio=round(found.slot_ratio, 4) if found.slot_ratio is not None else None,
        error=round(found.error, 4) if found.error is not None else None,
        measurements=found.records,
        newest_at=datetime.fromtimestamp(found.newest_at_s, UTC).isoformat(timespec="seconds"),
        runtime_version=found.key.runtime_version,
        adapter=found.key.adapter,
    )


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
