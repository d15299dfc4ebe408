"""Hardware profiles: how much memory may be used, in how many slots, at which context length."""

from __future__ import annotations

import itertools
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

import msgspec
from msgspec import Meta, Struct, structs

from coe_cli.core.duration import HOW_TO_WRITE, parse_duration_s
from coe_cli.core.names import nearest
from coe_cli.errors import ProfileInvalid

if TYPE_CHECKING:
    from coe_cli.core.documents import Document

Provider = Literal["dml", "cuda", "cpu"]

_PositiveInt = Annotated[int, Meta(ge=1, le=2**40)]
_NonNegativeInt = Annotated[int, Meta(ge=0, le=2**40)]
_Fraction = Annotated[float, Meta(gt=0, le=1)]
_Seconds = Annotated[float, Meta(ge=0, le=86_400)]
_Duration = float | str
"""Seconds, or text as in ``core.duration``."""

DEFAULT_KEEP_ALIVE_S = 300.0


class FixedOverhead(Struct, frozen=True, forbid_unknown_fields=True):
    """Memory that is always taken, in MB."""

    bge_m3_embeddings: _NonNegativeInt = 1000
    system_overhead: _NonNegativeInt = 1000
    total: _NonNegativeInt = 2000


class PerSlotEstimate(Struct, frozen=True, forbid_unknown_fields=True):
    """The guide's constants for one slot, in MB."""

    model_weights_7b_int4: _NonNegativeInt = 5000
    kv_cache_8k_context: _NonNegativeInt = 2500
    activation_memory: _NonNegativeInt = 500
    total: _NonNegativeInt = 8000


class VramComponents(Struct, frozen=True, forbid_unknown_fields=True):
    fixed_overhead: FixedOverhead = FixedOverhead()
    per_slot_estimate: PerSlotEstimate = PerSlotEstimate()


class PressureThresholds(Struct, frozen=True, forbid_unknown_fields=True):
    """Fractions of the pool (budget less the fixed part), in rising order."""

    elevated: _Fraction = 0.80
    high: _Fraction = 0.90
    critical: _Fraction = 0.95


class EvictionPolicy(Struct, frozen=True, forbid_unknown_fields=True):
    target: Literal["largest_consumer", "largest_kv_cache"] = "largest_consumer"
    min_resident_seconds: _Seconds = 60.0
    retry_delay_seconds: _Seconds = 5.0


class AutoDetect(Struct, frozen=True, forbid_unknown_fields=True):
    enabled: bool = True
    safety_margin: _Fraction = 0.90
    fallback_profile: str = "standard"


class HistorySettings(Struct, frozen=True, forbid_unknown_fields=True):
    """Whether questions and answers are kept, and how many conversations at most."""

    enabled: bool = True
    max_conversations: Annotated[int, Meta(ge=1, le=1_000_000)] = 1000


class RoutingSettings(Struct, frozen=True, forbid_unknown_fields=True):
    """Who answers when the user names neither expert nor model: in `coe ask`, in a batch, as `auto` over HTTP.

    ``enabled`` false leaves every such question to the general reasoner. ``prefer_resident`` takes the runner-up where it
    is about as likely and only its model is loaded. ``two_experts`` asks both experts of a question that spans two
    domains; without it the likelier one answers alone.
    """

    enabled: bool = True
    prefer_resident: bool = True
    two_experts: bool = True


class _ProfileEntry(Struct, frozen=True, forbid_unknown_fields=True):
    vram_budget_mb: _PositiveInt
    max_concurrent_slots: Annotated[int, Meta(ge=1, le=1024)]
    context_length: Annotated[int, Meta(ge=16, le=2**24)]
    provider: Provider = "dml"
    preload_enabled: bool = False
    keep_alive: _Duration | None = None
    description: str = ""
    notes: str = ""


class _ProfileFile(Struct, frozen=True, forbid_unknown_fields=True):
    default_profile: str | None = None
    profiles: dict[str, _ProfileEntry] = {}
    vram_components: VramComponents | None = None
    pressure_thresholds: PressureThresholds | None = None
    eviction_policy: EvictionPolicy | None = None
    auto_detect: AutoDetect | None = None
    history: HistorySettings | None = None
    routing: RoutingSettings | None = None
    keep_alive: _Duration | None = None


class HardwareProfile(Struct, frozen=True):
    """One profile with the settings that all profiles of its files share. Memory is in MB (2**20 bytes)."""

    name: str
    vram_budget_mb: int
    max_concurrent_slots: int
    context_length: int
    provider: Provider
    preload_enabled: bool
    description: str
    notes: str
    vram_components: VramComponents
    pressure_thresholds: PressureThresholds
    eviction_policy: EvictionPolicy
    auto_detect: AutoDetect
    keep_alive_s: float | None = DEFAULT_KEEP_ALIVE_S
    """A college without requests for so long ends; None keeps it."""

    @property
    def fixed_mb(self) -> int:
        return self.vram_components.fixed_overhead.total

    def with_fixed(self, total_mb: int, embedder_mb: int | None = None) -> HardwareProfile:
        """The same profile with another fixed part, of which ``embedder_mb`` is the embedder's where that is known."""
        overhead = structs.replace(self.vram_components.fixed_overhead, total=total_mb)
        if embedder_mb is not None:
            overhead = structs.replace(overhead, bge_m3_embeddings=embedder_mb)
        return structs.replace(self, vram_components=structs.replace(self.vram_components, fixed_overhead=overhead))


class ProfileSet(Struct, frozen=True):
    """All profiles that are known, the later files' entries over the earlier ones'."""

    profiles: dict[str, HardwareProfile]
    default_profile: str
    paths: tuple[Path, ...]
    history: HistorySettings = HistorySettings()
    routing: RoutingSettings = RoutingSettings()

    def select(self, name: str | None = None) -> HardwareProfile:
        """The profile called ``name``, or the default one.

        Raises:
            ProfileInvalid: no profile has that name.
        """
        wanted = name or self.default_profile
        try:
            return self.profiles[wanted]
        except KeyError:
            raise ProfileInvalid(
                f"unknown profile `{wanted}`", nearest(wanted, list(self.profiles)) + " See `coe profile list`."
            ) from None


def load_profiles(paths: list[Path]) -> ProfileSet:
    """Read profile files, the first one complete and each later one over those before it.

    Raises:
        ProfileInvalid: a file is unreadable or breaks the schema, or a threshold is out of order.
    """
    from coe_cli.core.documents import Document

    entries: dict[str, _ProfileEntry] = {}
    default = "standard"
    components, thresholds, eviction, auto = VramComponents(), PressureThresholds(), EvictionPolicy(), AutoDetect()
    history, routing = HistorySettings(), RoutingSettings()
    shared_keep_alive_s: float | None = DEFAULT_KEEP_ALIVE_S
    keep_alive_s: dict[str, float | None] = {}
    last: Document | None = None
    for path in paths:
        document = last = Document(path)
        content = document.convert(_ProfileFile)
        _check(document, content)
        entries.update(content.profiles)
        default = content.default_profile or default
        components = content.vram_components or components
        thresholds = content.pressure_thresholds or thresholds
        eviction = content.eviction_policy or eviction
        auto = content.auto_detect or auto
        history = content.history or history
        routing = content.routing or routing
        if content.keep_alive is not None:
            shared_keep_alive_s = _seconds(document, ["keep_alive"], content.keep_alive)
        for name, entry in content.profiles.items():
            keep_alive_s.pop(name, None)
            if entry.keep_alive is not None:
                keep_alive_s[name] = _seconds(document, ["profiles", name, "keep_alive"], entry.keep_alive)
    profiles = {
        name: HardwareProfile(
            name=name,
            vram_components=components,
            pressure_thresholds=thresholds,
            eviction_policy=eviction,
            auto_detect=auto,
            keep_alive_s=keep_alive_s.get(name, shared_keep_alive_s),
            **{field: getattr(entry, field) for field in _ProfileEntry.__struct_fields__ if field != "keep_alive"},
        )
        for name, entry in entries.items()
    }
    if last is not None:
        for key, name in (("default_profile", default), ("auto_detect.fallback_profile", auto.fallback_profile)):
            if name not in profiles:
                raise last.error([*key.split(".")], f"no profile is called `{name}`", nearest(name, list(profiles)))
    return ProfileSet(profiles=profiles, default_profile=default, paths=tuple(paths), history=history, routing=routing)


def _seconds(document: Document, key_path: list[str | int], value: _Duration) -> float | None:
    try:
        return parse_duration_s(value if isinstance(value, str) else f"{value:f}".rstrip("0").rstrip("."))
    except ValueError as error:
        raise document.error(key_path, str(error), HOW_TO_WRITE) from None


def _check(document: Document, content: _ProfileFile) -> None:
    thresholds = content.pressure_thresholds
    if thresholds is not None:
        order = [("elevated", thresholds.elevated), ("high", thresholds.high), ("critical", thresholds.critical)]
        for (lower_name, lower), (name, value) in itertools.pairwise(order):
            if value <= lower:
                raise document.error(
                    ["pressure_thresholds", name],
                    f"{value:g} is not above {lower_name} ({lower:g})",
                    "Thresholds rise: elevated < high < critical.",
                )
    components = content.vram_components
    if components is not None:
        for section in ("fixed_overhead", "per_slot_estimate"):
            parts = msgspec.structs.asdict(getattr(components, section))
            total = parts.pop("total")
            if total != sum(parts.values()):
                raise document.error(
                    ["vram_components", section, "total"],
                    f"{total} is not the sum of the parts ({sum(parts.values())})",
                    "Make the total the sum of the lines above it.",
                )
