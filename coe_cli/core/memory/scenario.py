"""What is to be planned, and the plain sum of it: loaded models, running slots, fixed part."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Literal

from msgspec import Struct

from coe_cli.core.hardware.profile import Provider
from coe_cli.core.memory.footprint import Accounting, ModelMemory
from coe_cli.core.models.catalog import GENERAL_EXPERT, Catalog
from coe_cli.core.models.model_spec import BYTES_PER_MB


class Role(Struct, frozen=True):
    """An expert as the plan sees it: its model and the guide's slot cost."""

    expert: str
    model: str
    slot_cost: int = 1


class Scenario(Struct, frozen=True):
    """What is to be planned: the loaded experts, and how many slots run at once; slots go round the experts."""

    roles: tuple[Role, ...]
    slots: int
    context_length: int
    budget_mb: int
    provider: Provider

    def running(self) -> list[Role]:
        return [self.roles[index % len(self.roles)] for index in range(self.slots)] if self.roles else []


class Known(Struct, frozen=True):
    """What the planner is told of the machine and the models: memory of each model by name, the card, twin weights.

    ``guide_fixed_mb`` is the guide's fixed part where the profile's is a measured one.
    """

    models: Mapping[str, ModelMemory]
    card_mb: float | None = None
    duplicates: Mapping[str, Sequence[str]] = {}
    candidates: tuple[Role, ...] = ()
    guide_fixed_mb: float | None = None


class PlannedModel(Struct, frozen=True):
    """A loaded model; ``weights_mb`` counts once, however many slots use it."""

    name: str
    source: Literal["disk", "catalog"]
    weights_mb: float
    kv_bytes_per_token: int
    context_length: int
    slot_cost: int
    experts: list[str]


class PlannedSlot(Struct, frozen=True):
    """What one running generation adds to its model's weights."""

    expert: str
    model: str
    context_length: int
    kv_mb: float
    activation_mb: float
    total_mb: float


def working_set(catalog: Catalog, models: Mapping[str, str], slots: int) -> tuple[Role, ...]:
    """The experts that ``slots`` slots are planned for: one a model, the general one first, then the most used models.

    ``models`` gives the model that answers for each expert, which may be its fallback.
    """
    users: dict[str, list[str]] = {}
    for expert in sorted(catalog.experts, key=lambda name: name != GENERAL_EXPERT):
        if expert in models:
            users.setdefault(models[expert], []).append(expert)
    general = models.get(GENERAL_EXPERT)
    ranked = sorted(users, key=lambda model: (model != general, -len(users[model])))
    return tuple(role_of(catalog, users[model][0], model) for model in ranked[:slots])


def role_of(catalog: Catalog, expert: str, model: str) -> Role:
    """``expert`` answered by ``model``; the slot cost belongs to the expert's own model.

    Raises:
        UsageError: unknown expert.
    """
    entry = catalog.expert(expert)
    return Role(expert, model, entry.slot_cost if entry.model == model else 1)


def total_mb(scenario: Scenario, models: Mapping[str, ModelMemory], counting: Accounting, fixed_mb: float) -> float:
    """Fixed part, each loaded model's weights once, each slot's cache and activations, in MB."""
    costs: dict[str, list[int]] = {role.model: [] for role in scenario.roles}
    size = 0
    for role in scenario.running():
        before = len(costs[role.model])
        costs[role.model].append(role.slot_cost)
        size += counting.slot(models[role.model], scenario.context_length, role.slot_cost, before).total_bytes
    for name, paid in costs.items():
        size += counting.weights_bytes(models[name], paid) + _unopened(scenario, models[name], counting, len(paid))
    return fixed_mb + size / BYTES_PER_MB


def _unopened(scenario: Scenario, memory: ModelMemory, counting: Accounting, opened: int) -> int:
    """What a paged model's load takes for the slots that others use: its cache has room for all."""
    if not memory.block_tokens or counting.name != "exact":
        return 0
    before = range(opened, scenario.slots)
    return sum(counting.slot(memory, scenario.context_length, 1, number).total_bytes for number in before)


class Usage(Struct, frozen=True):
    """The arithmetic of one scenario in one accounting."""

    models: list[PlannedModel]
    slots: list[PlannedSlot]
    total_mb: float


def usage(scenario: Scenario, models: Mapping[str, ModelMemory], counting: Accounting, fixed_mb: float) -> Usage:
    """The same sum in its parts, as a plan shows them."""
    running = scenario.running()
    planned: list[PlannedModel] = []
    for name in dict.fromkeys(role.model for role in scenario.roles):
        memory = models[name]
        costs = [role.slot_cost for role in running if role.model == name]
        size = counting.weights_bytes(memory, costs) + _unopened(scenario, memory, counting, len(costs))
        mine = [role for role in scenario.roles if role.model == name]
        planned.append(
            PlannedModel(
                name=name,
                source=memory.spec.source,
                weights_mb=_mb(size),
                kv_bytes_per_token=counting.kv_bytes_per_token(memory),
                context_length=memory.spec.context_length,
                slot_cost=max(role.slot_cost for role in mine),
                experts=list(dict.fromkeys(role.expert for role in mine)),
            )
        )
    slots: list[PlannedSlot] = []
    opened: dict[str, int] = {}
    for role in running:
        before = opened.get(role.model, 0)
        opened[role.model] = before + 1
        part = counting.slot(models[role.model], scenario.context_length, role.slot_cost, before)
        slots.append(
            PlannedSlot(
                expert=role.expert,
                model=role.model,
                context_length=scenario.context_length,
                kv_mb=_mb(part.kv_bytes),
                activation_mb=_mb(part.activation_bytes),
                total_mb=_mb(part.total_bytes),
            )
        )
    return Usage(planned, slots, total_mb(scenario, models, counting, fixed_mb))


def _mb(size: int) -> float:
    return round(size / BYTES_PER_MB, 1)
