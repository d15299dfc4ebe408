"""Simulate a whole placement: every node of it, on all cores of this machine. The same seed gives the same figures."""

from __future__ import annotations

import math
import multiprocessing
import random
import signal
from collections.abc import Callable, Sequence
from concurrent.futures import FIRST_COMPLETED, ProcessPoolExecutor, wait

from msgspec import Struct

from coe_cli.core.fleet.fleet import Simulation
from coe_cli.core.fleet.fleet_problem import Group, Problem
from coe_cli.core.fleet.fleet_simulation import Samples, SimulatedNode, Stream, jobs, simulate
from coe_cli.interrupts import children_without_interrupt, on_interrupt
from coe_cli.providers.settings import allowed_cores

LEAST_PER_NODE = 500
"""With fewer requests a node than this, fewer nodes of a group are simulated, for longer."""
_ALONE_BELOW = 20_000
"""Requests that are simulated before other processes would have started."""

_LOOK_S = 0.2
_END_WAIT_S = 2.0
_CHUNKS_PER_CORE = 8

OnPart = Callable[[float], None]


class _Work(Struct):
    """Some nodes of one group, by their numbers."""

    group: int
    node: SimulatedNode
    streams: tuple[Stream, ...]
    numbers: list[int]
    span_s: float
    warm_up: float
    spread: float
    seed: int


def simulate_fleet(
    problem: Problem,
    groups: Sequence[Group],
    settings: Simulation,
    cores: int | None = None,
    on_part: OnPart = lambda part: None,
) -> list[Samples]:
    """About ``settings.requests`` requests in all, shared out as the placement says; samples of each group, in its order.

    ``on_part`` hears how much is done, from 0 to 1.
    """
    cores = cores or allowed_cores()
    works = _works(problem, groups, settings, cores)
    expected = [sum(s.per_s for s in work.streams) * work.span_s * len(work.numbers) for work in works]
    whole = sum(expected) or 1.0
    found: dict[int, Samples] = {}

    def ended(index: int, samples: Samples) -> None:
        found[index] = samples
        on_part(sum(expected[other] for other in found) / whole)

    if cores == 1 or settings.requests < _ALONE_BELOW:
        for index, work in enumerate(works):
            ended(index, _simulate(work))
    else:
        ignore = (signal.SIG_IGN,)  # a terminal's Ctrl-C reaches them too, and could leave a lock held
        with ProcessPoolExecutor(max_workers=cores, initializer=on_interrupt, initargs=ignore) as pool:
            try:
                with children_without_interrupt():
                    futures = {pool.submit(_simulate, work): index for index, work in enumerate(works)}
                running = set(futures)
                while running:  # Windows lets no Ctrl-C in while a thread waits without end
                    done, running = wait(running, _LOOK_S, FIRST_COMPLETED)
                    for future in done:
                        ended(futures[future], future.result())
            except BaseException:
                pool.shutdown(wait=False, cancel_futures=True)
                children = multiprocessing.active_children()
                for child in children:
                    child.terminate()
                for child in children:
                    child.join(_END_WAIT_S)
                raise
    merged = [Samples() for _ in groups]
    for index, work in enumerate(works):
        merged[work.group].add(found[index])
    return merged


def _works(problem: Problem, groups: Sequence[Group], settings: Simulation, cores: int) -> list[_Work]:
    works = []
    fleet_per_s = problem.total_per_s()
    for index, group in enumerate(groups):
        node, streams = problem.simulated(group)
        node_per_s = sum(stream.per_s for stream in streams)
        group_requests = settings.requests * node_per_s * group.count / fleet_per_s
        count = max(1, min(group.count, math.floor(group_requests / LEAST_PER_NODE)))
        span_s = group_requests / count / node_per_s
        size = max(1, math.ceil(count / (cores * _CHUNKS_PER_CORE)))
        for start in range(0, count, size):
            numbers = list(range(start, min(start + size, count)))
            works.append(_Work(index, node, streams, numbers, span_s, settings.warm_up, problem.spread, settings.seed))
    return works


def _simulate(work: _Work) -> Samples:
    total = Samples()
    for number in work.numbers:
        rng = random.Random(f"{work.seed}/{work.group}/{number}")
        arrivals = jobs(work.streams, work.span_s, work.spread, rng)
        total.add(simulate(work.node, arrivals, work.warm_up * work.span_s))
    return total
