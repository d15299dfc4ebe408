"""FLEET.yaml: which machines there are, what is asked of them, how fast they are, and how long anybody may wait."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

from msgspec import Meta, Struct, structs

from coe_cli.core.hardware.profile import HardwareProfile, ProfileSet, Provider
from coe_cli.core.models.catalog import Catalog
from coe_cli.core.names import compared_sizes, nearest

if TYPE_CHECKING:
    from coe_cli.core.documents import Document

DEFAULT_RATES = "default"
"""The entry of ``rates`` for models that have none of their own."""

_Positive = Annotated[float, Meta(gt=0, le=1e9)]
_Seconds = Annotated[float, Meta(ge=0, le=86_400)]
_Count = Annotated[int, Meta(ge=1, le=100_000)]
_Tokens = Annotated[float, Meta(ge=1, le=2**24)]
Balancing = Literal["random", "round_robin"]


class Rates(Struct, frozen=True, forbid_unknown_fields=True):
    """How fast one model is on one node.

    ``decode_tokens_per_s`` is that of one answer alone, or a list: of all answers together with 1, 2, … of the model at
    once (the last figure holds for more). ``overhead_s`` is what each answer costs beside its tokens. Without ``load_s``
    it is the weights at 1000 MB/s. ``measured``: whether the figures come from a measurement or were assumed.
    """

    prefill_tokens_per_s: _Positive
    decode_tokens_per_s: _Positive | Annotated[list[_Positive], Meta(min_length=1, max_length=64)]
    load_s: _Seconds | None = None
    evict_s: _Seconds = 0.2
    overhead_s: _Seconds = 0.0
    measured: bool = False

    @property
    def decode_totals(self) -> tuple[float, ...]:
        """Tokens a second of all answers together, with 1, 2, … answers at once."""
        rate = self.decode_tokens_per_s
        return tuple(rate) if isinstance(rate, list) else (rate,)


class NodeType(Struct, frozen=True, forbid_unknown_fields=True):
    """``count`` machines of one kind. ``vram_mb``, ``slots``, ``context`` and ``provider`` win over the profile's.

    So does ``fixed_mb``, what the system and the embedder take of the budget on such a machine (2000 MB by the
    guide). The profile's own figure is the default, never what was measured where the plan is made: the nodes are other
    machines, and one file gives one plan wherever it is read.
    ``most`` bounds how many of them the smallest fleet may have; ``price`` is what one costs in it, in any unit.
    ``parallel_speedup``: work done a second with 1, 2, … models of the node at work, against one alone; 1 is pure sharing.
    """

    name: Annotated[str, Meta(pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]{0,63}$")]
    profile: str
    count: _Count = 1
    most: _Count | None = None
    price: Annotated[int, Meta(ge=1, le=1_000_000)] = 1
    provider: Provider | None = None
    vram_mb: Annotated[int, Meta(ge=1, le=2**30)] | None = None
    fixed_mb: Annotated[int, Meta(ge=0, le=2**30)] | None = None
    slots: Annotated[int, Meta(ge=1, le=1024)] | None = None
    context: Annotated[int, Meta(ge=16, le=2**24)] | None = None
    parallel_speedup: Annotated[tuple[_Positive, ...], Meta(min_length=1, max_length=64)] = (1.0,)
    rates: dict[str, Rates] = {}


class Demand(Struct, frozen=True, forbid_unknown_fields=True):
    """What one expert is asked: requests a second, and the mean numbers of tokens of a prompt and of an answer."""

    requests_per_s: _Positive
    tokens_in: _Tokens
    tokens_out: _Tokens


class Target(Struct, frozen=True, forbid_unknown_fields=True):
    """``waiting_p95_s``: 95 of 100 requests start to be answered within so many seconds of their arrival."""

    waiting_p95_s: _Positive


class Simulation(Struct, frozen=True, forbid_unknown_fields=True):
    """``requests`` arrive in all; the first ``warm_up`` part is played and not counted.

    ``spread`` is the standard deviation of tokens ÷ their mean; 0 makes all prompts and answers alike.
    """

    requests: Annotated[int, Meta(ge=100, le=10_000_000)] = 30_000
    seed: Annotated[int, Meta(ge=0, le=2**63 - 1)] = 1
    spread: Annotated[float, Meta(ge=0, le=4)] = 0.5
    warm_up: Annotated[float, Meta(ge=0, le=0.9)] = 0.1
    max_queue: _Count = 256


class _FleetFile(Struct, frozen=True, forbid_unknown_fields=True):
    nodes: Annotated[list[NodeType], Meta(min_length=1, max_length=64)]
    demand: Annotated[dict[str, Demand], Meta(min_length=1, max_length=64)]
    rates: dict[str, Rates] = {}
    balancing: Balancing = "random"
    target: Target | None = None
    simulation: Simulation = Simulation()


class Node(Struct, frozen=True):
    """A kind of node with its profile settled: the file's overrides are in it."""

    type: NodeType
    profile: HardwareProfile

    @property
    def name(self) -> str:
        return self.type.name


class Fleet(Struct, frozen=True):
    """A whole fleet file, checked against profiles and catalog."""

    path: Path
    nodes: tuple[Node, ...]
    demand: dict[str, Demand]
    rates: dict[str, Rates]
    balancing: Balancing
    target: Target | None
    simulation: Simulation

    def rates_of(self, node: Node, model: str) -> Rates | None:
        """The node's own figures for the model or for any, else the fleet's; None where neither has any."""
        for known in (node.type.rates, self.rates):
            for name in (model, DEFAULT_RATES):
                if name in known:
                    return known[name]
        return None


def fleet_of(document: Document, profiles: ProfileSet, catalog: Catalog) -> Fleet:
    """The fleet in ``document``.

    Raises:
        ProfileInvalid: it breaks the schema, or names an unknown profile, expert or model, or a node twice.
    """
    content = document.convert(_FleetFile)
    _check(document, content, profiles, catalog)
    nodes = tuple(Node(entry, _settled(entry, profiles.profiles[entry.profile])) for entry in content.nodes)
    return Fleet(
        path=document.path,
        nodes=nodes,
        demand=content.demand,
        rates=content.rates,
        balancing=content.balancing,
        target=content.target,
        simulation=content.simulation,
    )


def _settled(entry: NodeType, profile: HardwareProfile) -> HardwareProfile:
    own = {
        "provider": entry.provider,
        "vram_budget_mb": entry.vram_mb,
        "max_concurrent_slots": entry.slots,
        "context_length": entry.context,
    }
    settled = structs.replace(profile, **{key: value for key, value in own.items() if value is not None})
    return settled if entry.fixed_mb is None else settled.with_fixed(entry.fixed_mb)


def _check(document: Document, content: _FleetFile, profiles: ProfileSet, catalog: Catalog) -> None:
    seen: set[str] = set()
    models = [*catalog.models, DEFAULT_RATES]
    for index, entry in enumerate(content.nodes):
        where: list[str | int] = ["nodes", index]
        if entry.profile not in profiles.profiles:
            problem = f"no profile is called `{entry.profile}`"
            raise document.error([*where, "profile"], problem, nearest(entry.profile, list(profiles.profiles)))
        if entry.name in seen:
            raise document.error(
                [*where, "name"], f"`{entry.name}` is written twice", "Give every kind of node a name."
            )
        if entry.most is not None and entry.most < entry.count:
            problem = f"{entry.most} is below the count of {entry.count}"
            raise document.error([*where, "most"], problem, "Let it be as many as there are, or leave it out.")
        node = _settled(entry, profiles.profiles[entry.profile])
        if node.vram_budget_mb <= node.fixed_mb:
            key, named, hint = (
                ("fixed_mb", node.fixed_mb, f"Let it be less than {node.vram_budget_mb}.")
                if entry.vram_mb is None and entry.fixed_mb is not None
                else ("vram_mb", node.vram_budget_mb, f"Let it be more than {node.fixed_mb}.")
            )
            budget, fixed = compared_sizes(node.vram_budget_mb, node.fixed_mb)
            problem = f"{named} leaves nothing: the budget is {budget}, its fixed part {fixed}"
            raise document.error([*where, key], problem, hint)
        seen.add(entry.name)
        _check_names(document, [*where, "rates"], list(entry.rates), models, "model")
    _check_names(document, ["rates"], list(content.rates), models, "model")
    _check_names(document, ["demand"], list(content.demand), list(catalog.experts), "expert")


def _check_names(document: Document, where: list[str | int], names: list[str], known: list[str], kind: str) -> None:
    for name in names:
        if name not in known:
            raise document.error([*where, name], f"no {kind} is called `{name}`", nearest(name, known))
