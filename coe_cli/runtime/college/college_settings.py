"""How a college is made: its pool, what models cost in it, and how its workers share the cores."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from msgspec import structs

from coe_cli.core.models.model_spec import ModelSpec
from coe_cli.core.scheduling.scheduler_state import ModelCost, PoolConfig
from coe_cli.providers.settings import worker_threads
from coe_cli.runtime.college.calibration_recorder import CalibrationRecorder
from coe_cli.runtime.prompts.prompts import PromptSource


@dataclass(frozen=True)
class CollegeSettings:
    """``cost_of`` gives a model's cost and the context length of its slots; times are in seconds."""

    pool: PoolConfig
    cost_of: Callable[[ModelSpec], tuple[ModelCost, int]]
    load_timeout_s: float = 600.0
    watchdog_s: float = 300.0
    worker_command: list[str] | None = None
    recorder: CalibrationRecorder | None = None
    worker_threads: int | None = None
    """Threads of one worker on the CPU; None gives it all cores."""
    replicas: int | None = None
    """On the CPU: so many workers answer side by side, of one model or of several, each in one slot with its share of the
    cores. Two workers with a thread each write a quarter more than one with two. None: each model has one worker and all
    cores."""
    keep_warm_worker: bool = False
    """After the second load, whenever nothing is asked, have a process ready for the next one."""
    prompts: PromptSource | None = None
    """Makes the prompts; None for a process of the college's own, which ends with it."""

    @property
    def threads(self) -> int | None:
        """Threads of one worker on the CPU, or None for all cores."""
        return self.worker_threads if self.replicas is None else max(1, worker_threads() // self.replicas)

    def pool_in_use(self) -> PoolConfig:
        """The pool with as many slots as there are workers to answer in."""
        return self.pool if self.replicas is None else structs.replace(self.pool, max_concurrent_slots=self.replicas)

    def cost(self, spec: ModelSpec) -> tuple[ModelCost, int]:
        """The cost of one worker of ``spec``, and the context length of its slots."""
        cost, context_length = self.cost_of(spec)
        return (cost if self.replicas is None else structs.replace(cost, max_slots=1)), context_length
