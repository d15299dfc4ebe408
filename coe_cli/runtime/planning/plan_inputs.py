"""Gather what a plan needs from disk: models, their graphs, measurements, the card."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path
from typing import Literal

from msgspec import Struct, structs

from coe_cli.core.hardware.profile import HardwareProfile, Provider
from coe_cli.core.memory.calibration import Calibration, apply, find
from coe_cli.core.memory.footprint import AccountingName, ModelMemory
from coe_cli.core.memory.prefill import tokens_at_once
from coe_cli.core.memory.scenario import Known, Role, Scenario, role_of, working_set
from coe_cli.core.memory.slot_context import fitting_context
from coe_cli.core.models.catalog import Catalog, ModelEntry, ModelShape
from coe_cli.core.models.model_spec import BYTES_PER_MB, ModelSpec, spec_from_catalog
from coe_cli.core.models.onnx_graph import GraphFacts
from coe_cli.core.providers import on_host, spec_of
from coe_cli.errors import CoeError, ModelDamaged, UsageError
from coe_cli.runtime.folders import Folders
from coe_cli.runtime.model_folder.graph_files import graph_of
from coe_cli.runtime.model_folder.model_files import read_config
from coe_cli.runtime.model_folder.on_disk import find_spec, models_on_disk, spec_from_folder
from coe_cli.runtime.planning.calibration_store import CalibrationStore, Measurements, model_digest


class PlanRequest(Struct, frozen=True):
    """What a user asked of the plan; None leaves it to the profile. Unknown names and odd numbers are refused later.

    ``models`` are names, or paths of GGUF files, beside the experts. With ``solve`` the plan is the one at the solution, if there is any.
    """

    experts: tuple[str, ...] | None = None
    models: tuple[str, ...] = ()
    slots: int | None = None
    context_length: int | None = None
    vram_mb: int | None = None
    provider: Provider | None = None
    chunk_size: int | None = None
    accounting: AccountingName = "exact"
    solve: Literal["context", "slots", "vram"] | None = None


class PlanInputs(Struct, frozen=True):
    """A scenario with all that is known of it. ``computed`` is the same without measurements."""

    scenario: Scenario
    known: Known
    computed: Known
    calibrations: dict[str, Calibration]
    notes: list[str]


def gather(
    request: PlanRequest, profile: HardwareProfile, catalog: Catalog, where: Folders, card_mb: float | None = None
) -> PlanInputs:
    """Settle experts, models, slots, context and budget, and read what those models say of themselves.

    Raises:
        UsageError: an unknown expert, no expert at all, or a number below 1.
        ModelDamaged: a model of the scenario is on disk with a configuration that cannot be used.
    """
    for name, number, least in (
        ("--slots", request.slots, 1),
        ("--context", request.context_length, 1),
        ("--vram-mb", request.vram_mb, 1),
        ("--chunk-size", request.chunk_size, 1),
    ):
        if number is not None and number < least:
            raise UsageError(f"{name} {number} is below {least}", f"Give {name} a number of {least} or more.")
    provider = request.provider or profile.provider
    catalog = with_files(catalog, request.models, provider)
    on_disk = models_on_disk(where.models)
    answering = answering_models(catalog, on_disk, provider, explicit=request.provider is not None)
    named = request.experts is not None or bool(request.models)
    if named:
        if request.experts == ():
            raise UsageError("--experts names no expert", "Give names, separated by commas: see `coe experts list`.")
        roles = tuple(role_of(catalog, name, answering.get(name, "")) for name in request.experts or ())
        roles += tuple(Role(Path(model).name, model) for model in request.models)
    else:
        roles = working_set(catalog, answering, request.slots or profile.max_concurrent_slots)
    default_slots = len(roles) if named else profile.max_concurrent_slots
    wanted = dict.fromkeys(role.model for role in roles)
    candidates = tuple(role_of(catalog, expert, model) for expert, model in answering.items() if model not in wanted)
    computed: dict[str, ModelMemory] = {}
    for model in [*wanted, *dict.fromkeys(role.model for role in candidates)]:
        try:
            computed[model] = memory_of(find_spec(model, catalog, where.models), provider, request.chunk_size)
        except CoeError:
            if model in wanted:
                raise
    budget_mb = request.vram_mb or profile.vram_budget_mb
    smaller = structs.replace(profile, vram_budget_mb=min(budget_mb, profile.vram_budget_mb))
    scenario = Scenario(
        roles=roles,
        slots=request.slots or default_slots,
        context_length=request.context_length or fitting_context(smaller, [computed[model] for model in wanted]),
        budget_mb=budget_mb,
        provider=provider,
    )
    measurements = CalibrationStore(where.state).read()
    calibrations = _calibrations(computed, measurements)
    duplicates = _duplicates({model: on_disk[model] for model in wanted if model in on_disk})
    known = Known(computed, card_mb, duplicates, candidates)
    measured = {name: apply(memory, calibrations.get(name)) for name, memory in computed.items()}
    notes = [measurements.warning] if measurements.warning else []
    return PlanInputs(scenario, structs.replace(known, models=measured), known, calibrations, notes)


def with_files(catalog: Catalog, models: Iterable[str], provider: Provider) -> Catalog:
    """``catalog`` with an entry for each of ``models`` that is the path of a GGUF file: what its import in INT4 for
    ``provider`` would make, judged by the header alone.

    Raises:
        ModelMissing, UsageError, ModelDamaged, UnsupportedArchitecture: a file cannot be imported.
    """
    files = {name: _entry_of_file(Path(name), provider) for name in models if name.lower().endswith(".gguf")}
    return structs.replace(catalog, models={**catalog.models, **files}) if files else catalog


def _entry_of_file(path: Path, provider: Provider) -> ModelEntry:
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


def memory_of(spec: ModelSpec, provider: Provider | None = None, chunk_size: int | None = None) -> ModelMemory:
    """A model's memory on its own provider unless another is named, in a worker, which reads prompts as the provider can.

    One on disk counts with its graph and configuration; another as `coe models pull` leaves it, with pruned logits.
    """
    capabilities = spec_of(provider or spec.provider).capabilities
    if spec.folder is None:
        return ModelMemory(
            spec, provider or spec.provider, prunes_logits=True, chunk_size=tokens_at_once(capabilities, chunk_size)
        )
    return ModelMemory(
        spec,
        provider or spec.provider,
        graph=_graph(spec),
        chunk_size=tokens_at_once(capabilities, chunk_size or _configured_chunk_size(spec.folder)),
    )


def _graph(spec: ModelSpec) -> GraphFacts | None:
    """What the graph says, or None where it cannot be read: a plan then counts with the shape alone."""
    try:
        return graph_of(spec)
    except ModelDamaged:
        return None


def calibration_of(memory: ModelMemory, measurements: Measurements) -> Calibration | None:
    """What real runs of a model on disk measured on its provider with the installed runtime; None if there was none.

    Where no runtime for the provider is installed, measurements with any version count.
    """
    folder = memory.spec.folder
    if folder is None or not measurements.calibrations:
        return None
    from coe_cli.providers.installed import runtime_version

    version = runtime_version(memory.provider)
    return find(measurements.calibrations, model_digest(folder, memory.spec.graph), memory.provider, version)


def answering_models(
    catalog: Catalog, on_disk: dict[str, Path], provider: Provider, *, explicit: bool
) -> dict[str, str]:
    """The model that answers for each expert: its own, or on a CPU profile its fallback when its own is for a GPU.

    A provider that was asked for by name is a what-if: every expert keeps its own model.
    """
    chosen: dict[str, str] = {}
    for name, expert in catalog.experts.items():
        own = expert.model
        if on_host(provider) and not explicit and not on_host(_built_for(own, catalog, on_disk)):
            own = expert.fallback or catalog.default_model
        chosen[name] = own
    return chosen


def _built_for(model: str, catalog: Catalog, on_disk: dict[str, Path]) -> Provider:
    try:
        if model in on_disk:
            return spec_from_folder(model, on_disk[model]).provider
    except CoeError:
        pass
    return spec_from_catalog(model, catalog.models[model]).provider


def _calibrations(models: dict[str, ModelMemory], measurements: Measurements) -> dict[str, Calibration]:
    found = {name: calibration_of(memory, measurements) for name, memory in models.items()}
    return {name: calibration for name, calibration in found.items() if calibration is not None}


def _configured_chunk_size(folder: Path) -> int | None:
    try:
        return read_config(folder.name, folder).search("chunk_size") or None
    except ModelDamaged:
        return None


def _duplicates(on_disk: dict[str, Path]) -> dict[str, list[str]]:
    if len(on_disk) < 2:
        return {}
    from coe_cli.runtime.store.inventory import duplicate_weights

    return duplicate_weights(on_disk)
