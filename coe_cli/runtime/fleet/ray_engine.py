"""The engine on a Ray cluster: each loaded model is an actor that Ray places where its memory is free.

Rows are handed to actors that are ready, one more than an actor has slots, so that a slot that becomes free is taken at
once. New actors are asked for one at a time, for the model with the most rows to each of its actors; Ray places one when
some node has its ``vram_mb`` left. A model whose rows are done keeps its actors for the next batch, unless another
one waits for their room. When an actor is lost with its node, its rows are run by another; a row has one result.
"""

from __future__ import annotations

import contextlib
import time
import uuid
from collections import deque
from collections.abc import Callable, Iterator, Mapping
from typing import Any

from msgspec import structs

from coe_cli.core.answers.answer import Answer
from coe_cli.core.batch.batch_order import WORTH_A_REPLICA
from coe_cli.core.batch.batch_progress import EngineStatus
from coe_cli.core.fleet.ray_node import NAMESPACE, VRAM_RESOURCE, model_resource
from coe_cli.core.hardware.profile import HardwareProfile
from coe_cli.core.models.model_spec import ModelSpec
from coe_cli.core.names import compared_sizes
from coe_cli.core.scheduling.scheduler_state import ModelCost
from coe_cli.errors import DeviceLost, DoesNotFit
from coe_cli.runtime.batch.batch_engine import PreparedRow, RowFailure, RowResult, RowSource
from coe_cli.runtime.fleet.ray_actor import ModelActor, RowToAnswer
from coe_cli.runtime.fleet.ray_cluster import RayCluster
from coe_cli.runtime.fleet.ray_plan import ActorPlan, actor_plan

_LOOK_UP_S = 0.2
_CALM_S = 1.0
"""Between two looks at the room where one more actor would gain nothing or has none: each is a call to Ray's head."""
_AHEAD = 1
_MOST_LOSSES = 5
"""Actors that a row may lose before it is given up."""
_PATIENCE_S = 1.0
"""Ray has so long to place an actor that had no room when it was asked for, before idle ones are ended for it."""
_START_S = 15.0
"""The same for one that had room: it is starting, unless another batch took the room."""
_IDLE_ELSEWHERE_S = 5.0
_CONTENT_S = 15.0


class _Row:
    """A row that was taken and has no result yet."""

    __slots__ = ("losses", "prepared", "replica")

    def __init__(self, prepared: PreparedRow) -> None:
        self.prepared = prepared
        self.losses = 0
        self.replica: _Replica | None = None


class _Replica:
    """One actor of a model, ours or one that an earlier batch left."""

    __slots__ = ("handle", "model", "ours", "patient_until", "placed", "running")

    def __init__(self, model: str, handle: Any, ours: bool, patience_s: float) -> None:
        self.model = model
        self.handle = handle
        self.ours = ours
        self.patient_until = time.monotonic() + patience_s
        self.placed = False
        self.running = 0


class RayEngine:
    """See ``batch_engine.Engine``. ``cost_of`` and ``profile`` are those of this machine: a slot is alike on all nodes."""

    def __init__(
        self,
        cluster: RayCluster,
        profile: HardwareProfile,
        cost_of: Callable[[ModelSpec], tuple[ModelCost, int]],
        *,
        retries: int = 2,
        worker_command: list[str] | None = None,
    ) -> None:
        self._cluster = cluster
        self._ray = cluster.ray
        self._profile = profile
        self._cost_of = cost_of
        self._retries = retries
        self._worker_command = tuple(worker_command) if worker_command else None
        self._replicas: list[_Replica] = []
        self._plans: dict[str, ActorPlan] = {}
        self._again: dict[str, deque[_Row]] = {}
        self._answers: dict[Any, _Row] = {}
        self._starting: dict[Any, _Replica] = {}
        self._made_room_at = 0.0
        self._scale_at = 0.0
        self._content: dict[str, float] = {}
        """Model → until when no further actor of it is asked for, since there was no room."""
        self._stopping = False
        self._closed = False
        self._loads = 0
        self._completion_tokens = 0
        self._status = EngineStatus()

    def run(self, source: RowSource) -> Iterator[RowResult]:
        """See ``Engine.run``."""
        self._adopt(source)
        while True:
            yield from self._hand_out(source)
            if not self._answers and not any(self._again.values()) and (self._stopping or not source.remaining()):
                return
            yield from self._scale(source)
            self._look()
            yield from self._gather()

    def stop(self) -> None:
        """See ``Engine.stop``."""
        self._stopping = True

    def status(self) -> EngineStatus:
        """See ``Engine.status``."""
        return self._status

    def close(self) -> None:
        """See ``Engine.close``."""
        if self._closed:
            return
        self._closed = self._stopping = True
        for reference in self._answers:
            self._quietly(self._ray.cancel, reference)
        for replica in self._starting.values():
            self._quietly(self._ray.kill, replica.handle)
        self._cluster.close()

    # --- rows

    def _hand_out(self, source: RowSource) -> Iterator[RowResult]:
        """Give every actor that is ready rows of its model, those with the fewest first."""
        for replica in sorted((r for r in self._replicas if r.placed), key=lambda r: r.running):
            window = self._plan(source, replica.model).settings.pool.max_concurrent_slots + _AHEAD
            while replica.running < window:
                row = self._next(source, replica.model)
                if isinstance(row, RowResult):
                    yield row
                elif row is None:
                    break
                else:
                    self._ask(replica, row)

    def _next(self, source: RowSource, model: str) -> _Row | RowResult | None:
        again = self._again.get(model)
        if again:
            return again.popleft()
        if self._stopping:
            return None
        taken = source.take(model)
        return _Row(taken) if isinstance(taken, PreparedRow) else taken

    def _ask(self, replica: _Replica, row: _Row) -> None:
        row.replica = replica
        ask = row.prepared.ask
        spec = structs.replace(ask.model, folder=None)
        stripped = structs.replace(ask, model=spec, buffered=True, retries=self._retries)
        prepared = row.prepared
        row_to_answer = RowToAnswer(stripped, prepared.expert, prepared.notes, prepared.splits_thinking)
        reference = replica.handle.answer.remote(row_to_answer)
        replica.running += 1
        self._answers[reference] = row

    def _gather(self) -> Iterator[RowResult]:
        """Wait a little for answers and for actors that start."""
        references = [*self._answers, *self._starting]
        if not references:
            time.sleep(_LOOK_UP_S / 4)
            return
        ended, _ = self._ray.wait(references, num_returns=1, timeout=_LOOK_UP_S)
        if ended:  # and what else there is by now
            ended, _ = self._ray.wait(references, num_returns=len(references), timeout=0)
        for reference in ended:
            if reference in self._starting:
                self._started(reference)
            else:
                result = self._ended(reference)
                if result is not None:
                    yield result

    def _ended(self, reference: Any) -> RowResult | None:
        row = self._answers.pop(reference)
        assert row.replica is not None
        replica, prepared = row.replica, row.prepared
        replica.running -= 1
        try:
            outcome = self._ray.get(reference)
        except self._ray.exceptions.RayActorError:
            self._lose(replica)
            row.losses += 1
            if row.losses < _MOST_LOSSES:
                self._again.setdefault(replica.model, deque()).append(row)
                return None
            error = DeviceLost(f"the node of `{replica.model}` was lost {row.losses} times", "Look at the nodes.")
            outcome = RowFailure.of(error)
        except self._ray.exceptions.RayError as error:
            text = str(error).splitlines()[-1] if str(error) else type(error).__name__
            outcome = RowFailure("unexpected", f"Ray: {text}", "Please report it.")
        if isinstance(outcome, Answer):
            self._completion_tokens += outcome.usage.completion_tokens
            return RowResult(prepared.line, replica.model, prepared.expert, outcome)
        return RowResult(prepared.line, replica.model, prepared.expert, None, outcome)

    # --- actors

    def _adopt(self, source: RowSource) -> None:
        """Take over what earlier batches left, as far as it suits this one."""
        for name in self._ray.util.list_named_actors():
            for model in source.remaining():
                if name.startswith(self._plan(source, model).prefix):
                    self._quietly(self._take_over, model, name)

    def _take_over(self, model: str, name: str) -> None:
        self._watch(model, self._ray.get_actor(name), ours=False, patience_s=_PATIENCE_S)

    def _watch(self, model: str, handle: Any, *, ours: bool, patience_s: float) -> None:
        replica = _Replica(model, handle, ours, patience_s)
        self._starting[handle.ready.remote()] = replica
        self._replicas.append(replica)

    def _scale(self, source: RowSource) -> Iterator[RowResult]:
        """Ask for one more actor where that helps, and make room for one that waits."""
        now = time.monotonic()
        if now < self._scale_at:
            return
        self._scale_at = now + _LOOK_UP_S
        rows = dict(source.remaining()) if not self._stopping else {}
        for model, again in self._again.items():
            if again:
                rows[model] = rows.get(model, 0) + len(again)
        for replica in [r for r in self._starting.values() if not rows.get(r.model)]:
            self._drop(replica)
        waiting = [r for r in self._starting.values() if now > r.patient_until]
        for replica in waiting:
            if not self._placeable(source, replica.model):  # the only node for it was lost meanwhile
                self._drop(replica)
            elif sum(other.model == replica.model for other in self._replicas) > 1:  # one more is not worth waiting for
                self._drop(replica)
                self._content[replica.model] = now + _CONTENT_S
            else:
                for idle in [r for r in self._replicas if r.placed and not r.running and not rows.get(r.model)]:
                    self._drop(idle)
                self._make_room_elsewhere()
        if self._starting:
            return
        for model in [m for m in rows if not self._has_replica(m) and not self._placeable(source, m)]:
            yield from self._give_up(source, model)
            del rows[model]
        wanted = self._wanted(source, rows, now)
        if wanted is not None:
            self._start(source, wanted)
        else:
            self._scale_at = now + _CALM_S

    def _wanted(self, source: RowSource, rows: dict[str, int], now: float) -> str | None:
        """The model that gains the most by one more actor."""
        count = {model: sum(r.model == model for r in self._replicas) for model in rows}
        slots = {model: self._plan(source, model).settings.pool.max_concurrent_slots for model in rows}
        worth = [
            model
            for model in rows
            if not count[model]
            or (
                rows[model] >= WORTH_A_REPLICA * slots[model]
                and self._content.get(model, 0.0) < now
                and self._room_for(source, model)
            )
        ]
        return max(worth, key=lambda m: (rows[m] / (count[m] + 1), m), default=None)

    def _room_for(self, source: RowSource, model: str) -> bool:
        """Whether a further actor could be placed beside those that there are, as far as this batch can tell."""
        demand = self._plan(source, model).demand
        return any(_holds(free, demand) for free in self._cluster.free())

    def _start(self, source: RowSource, model: str) -> None:
        plan = self._plan(source, model)
        patience_s = _START_S if self._room_for(source, model) else _PATIENCE_S
        actor = self._ray.remote(ModelActor).options(
            name=f"{plan.prefix}{uuid.uuid4().hex[:8]}",
            namespace=NAMESPACE,
            lifetime="detached",
            num_cpus=0,
            resources=plan.demand,
            max_restarts=0,
            max_task_retries=0,
            scheduling_strategy="SPREAD",
        )
        self._watch(model, actor.remote(plan.settings), ours=True, patience_s=patience_s)

    def _started(self, reference: Any) -> None:
        replica = self._starting.pop(reference)
        try:
            self._ray.get(reference)
        except self._ray.exceptions.RayError:
            self._lose(replica)
            return
        replica.placed = True  # where the model's files are no good, each of its rows says so
        self._loads += replica.ours

    def _lose(self, replica: _Replica) -> None:
        """The actor is gone, or of no use any more; what it ran comes back by itself, row by row."""
        if replica in self._replicas:
            self._replicas.remove(replica)
            self._quietly(self._ray.kill, replica.handle)

    def _drop(self, replica: _Replica) -> None:
        """End an actor that this batch does not need any more."""
        self._replicas.remove(replica)
        for reference in [ref for ref, other in self._starting.items() if other is replica]:
            del self._starting[reference]
        self._quietly(self._ray.kill, replica.handle)

    def _make_room_elsewhere(self) -> None:
        """Ask actors that other batches left to end if nobody uses them."""
        now = time.monotonic()
        if now - self._made_room_at < 2 * _PATIENCE_S:
            return
        self._made_room_at = now
        ours = {replica.handle._actor_id for replica in self._replicas}
        for name in self._ray.util.list_named_actors():
            self._quietly(self._retire, name, ours)

    def _retire(self, name: str, ours: set[Any]) -> None:
        handle = self._ray.get_actor(name)
        if handle._actor_id not in ours:
            self._ray.wait([handle.retire.remote(_IDLE_ELSEWHERE_S)], timeout=_LOOK_UP_S)

    def _give_up(self, source: RowSource, model: str) -> Iterator[RowResult]:
        demand_mb = self._plan(source, model).demand[VRAM_RESOURCE]
        nodes = self._cluster.nodes()
        if any(model_resource(model) in node for node in nodes):
            most_mb = max(node.get(VRAM_RESOURCE, 0.0) for node in nodes)
            needed, most = compared_sizes(demand_mb, most_mb)
            text = f"`{model}` needs {needed} with its slots, and the largest node has {most} for models"
            failure = RowFailure.of(DoesNotFit(text, "Choose a profile with fewer slots, or a node with more memory."))
        else:
            text = f"no node of the cluster has `{model}` on its disk"
            hint = f"Run `coe models pull {model}` on a node and start it anew with `coe node --start`."
            failure = RowFailure("model_missing", text, hint)
        while (row := self._next(source, model)) is not None:
            if isinstance(row, RowResult):
                yield row
            else:
                yield RowResult(row.prepared.line, model, row.prepared.expert, None, failure)

    def _placeable(self, source: RowSource, model: str) -> bool:
        """Whether some node could hold the model if it were empty."""
        demand = self._plan(source, model).demand
        return any(_holds(node, demand) for node in self._cluster.nodes())

    def _has_replica(self, model: str) -> bool:
        return any(replica.model == model for replica in self._replicas)

    def _plan(self, source: RowSource, model: str) -> ActorPlan:
        if model not in self._plans:
            spec = source.spec(model)
            self._plans[model] = actor_plan(spec, self._profile, *self._cost_of(spec), self._worker_command)
        return self._plans[model]

    def _look(self) -> None:
        self._status = EngineStatus(
            models=sorted({replica.model for replica in self._replicas if replica.running}),
            loads=self._loads,
            completion_tokens=self._completion_tokens,
        )

    def _quietly(self, act: Callable[..., object], *arguments: object) -> None:
        """Do what may fail because an actor or the cluster is gone, and is then not needed any more."""
        with contextlib.suppress(ValueError, self._ray.exceptions.RayError, ConnectionError):
            act(*arguments)


def _holds(resources: Mapping[str, float], demand: Mapping[str, float]) -> bool:
    return all(resources.get(name, 0.0) >= amount for name, amount in demand.items())
