"""Hardware profiles: how much memory may be used, in how many slots, at which context length."""

from __future__ import annotations

import itertools
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

import msgspec
from msgspec import Meta, Struct, field, structs

from coe_cli.core.duration import HOW_TO_WRITE, parse_duration_s
from coe_cli.core.hardware.cards import HOW_TO_WRITE_MEMORY, parse_memory_mb
from coe_cli.core.names import nearest
from coe_cli.core.problem import Problem
from coe_cli.core.providers import home, on_host, spec_of
from coe_cli.errors import ProfileInvalid

if TYPE_CHECKING:
    from coe_cli.core.documents import Document
    from coe_cli.core.layers import Layers

Provider = str
"""The name of one of ``core.providers``."""

_PositiveInt = Annotated[int, Meta(ge=1, le=2**40)]
_NonNegativeInt = Annotated[int, Meta(ge=0, le=2**40)]
_Fraction = Annotated[float, Meta(gt=0, le=1)]
_Seconds = Annotated[float, Meta(ge=0, le=86_400)]
_Duration = float | str
"""Seconds, or text as in ``core.duration``."""

DEFAULT_KEEP_ALIVE_S = 300.0
MAX_ANSWER_TOKENS = 1024


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


class ProfileKeys(Struct, frozen=True, kw_only=True):
    """The keys of a profile that are taken as they are written. Memory is in MB (2**20 bytes)."""

    max_concurrent_slots: Annotated[int, Meta(ge=1, le=1024)]
    context_length: Annotated[int, Meta(ge=16, le=2**24)]
    provider: Provider = field(default_factory=lambda: home().name)
    preload_enabled: bool = False
    description: str = ""
    notes: str = ""
    max_answer_tokens: Annotated[int, Meta(ge=1, le=2**24)] = MAX_ANSWER_TOKENS
    """Where an answer ends whose request names no limit."""


class _ProfileEntry(ProfileKeys, frozen=True, forbid_unknown_fields=True, kw_only=True):
    vram_budget_mb: _PositiveInt | str
    keep_alive: _Duration | None = None
    model_keep_alive: _Duration | None = None
    fallback: bool | None = None

    def __post_init__(self) -> None:
        spec_of(self.provider)


PROFILE_KEYS = _ProfileEntry.__struct_fields__
"""What a profile may say."""


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
    model_keep_alive: _Duration | None = None


class HardwareProfile(ProfileKeys, frozen=True, kw_only=True):
    """One profile with the settings that all profiles of its files share."""

    name: str
    vram_budget_mb: int
    vram_components: VramComponents
    pressure_thresholds: PressureThresholds
    eviction_policy: EvictionPolicy
    auto_detect: AutoDetect
    keep_alive_s: float | None = DEFAULT_KEEP_ALIVE_S
    """A college without requests for so long ends; None keeps it."""
    model_keep_alive_s: float | None = None
    """A model that was idle for so long is unloaded, unless the catalog says otherwise; None keeps it."""
    fallback: bool = False
    """Whether the fallback model answers for an expert whose own is not installed, without being asked for."""

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
    """All profiles that are known."""

    profiles: dict[str, HardwareProfile]
    default_profile: str
    paths: tuple[Path, ...] = ()
    history: HistorySettings = HistorySettings()
    routing: RoutingSettings = RoutingSettings()
    problems: dict[str, Problem] = {}
    """Why an entry of the user's own file was left out, by its key (``profiles.mine``)."""

    def select(self, name: str | None = None) -> HardwareProfile:
        """The profile called ``name``, or the default one.

        Raises:
            ProfileInvalid: no profile has that name, or its entry or the whole file is broken: another budget in its
                place could be more than the machine has.
        """
        wanted = name or self.default_profile
        for key, problem in self.problems.items():
            section = key.partition(".")[0]
            if key in ("", "profiles", f"profiles.{wanted}") or section in ("vram_components", "pressure_thresholds"):
                raise problem.error()
        try:
            return self.profiles[wanted]
        except KeyError:
            raise ProfileInvalid(
                f"unknown profile `{wanted}`", nearest(wanted, list(self.profiles)) + " See `coe profile list`."
            ) from None


def profiles_of(layers: Layers) -> ProfileSet:
    """The profiles in ``layers``.

    Raises:
        ProfileInvalid: a layer breaks the schema, or a threshold is out of order.
    """
    content = layers.convert(_ProfileFile)
    _check(layers, content)
    auto = content.auto_detect or AutoDetect()
    default = content.default_profile or "standard"
    for key, name in (("default_profile", default), ("auto_detect.fallback_profile", auto.fallback_profile)):
        if name not in content.profiles:
            raise layers.error(
                [*key.split(".")], f"no profile is called `{name}`", nearest(name, list(content.profiles))
            )

    def seconds(said: _ProfileFile | _ProfileEntry, at: list[str | int], otherwise_s: float | None) -> float | None:
        value = getattr(said, str(at[-1]))
        return otherwise_s if value is None else _seconds(layers, at, value)

    college_s = seconds(content, ["keep_alive"], DEFAULT_KEEP_ALIVE_S)
    model_s = seconds(content, ["model_keep_alive"], None)
    profiles = {}
    for name, entry in content.profiles.items():
        profiles[name] = HardwareProfile(
            name=name,
            vram_components=content.vram_components or VramComponents(),
            pressure_thresholds=content.pressure_thresholds or PressureThresholds(),
            eviction_policy=content.eviction_policy or EvictionPolicy(),
            auto_detect=auto,
            vram_budget_mb=_megabytes(layers, name, entry.vram_budget_mb),
            keep_alive_s=seconds(entry, ["profiles", name, "keep_alive"], college_s),
            model_keep_alive_s=seconds(entry, ["profiles", name, "model_keep_alive"], model_s),
            fallback=on_host(entry.provider) if entry.fallback is None else entry.fallback,
            **{key: getattr(entry, key) for key in ProfileKeys.__struct_fields__},
        )
    return ProfileSet(
        profiles=profiles,
        default_profile=default,
        history=content.history or HistorySettings(),
        routing=content.routing or RoutingSettings(),
    )


def _megabytes(document: Document, profile: str, value: int | str) -> int:
    try:
        return value if isinstance(value, int) else parse_memory_mb(value)
    except ValueError as error:
        raise document.error(["profiles", profile, "vram_budget_mb"], str(error), HOW_TO_WRITE_MEMORY) from None


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
