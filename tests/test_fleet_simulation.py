"""The simulation of a node against sums by hand and queueing theory, and what must hold for any arrivals."""

from __future__ import annotations

import math
import random
from collections.abc import Sequence

import pytest
from conftest import examples
from hypothesis import given, settings
from hypothesis import strategies as st

from coe_cli.core.fleet.fleet_device import Job, ServiceTimes
from coe_cli.core.fleet.fleet_simulation import Samples, SimulatedModel, SimulatedNode, Stream, jobs, simulate
from coe_cli.core.scheduling.scheduler_state import ModelCost, PoolConfig

WEIGHTS_MB, SLOT_MB = 1000, 100


def node(
    models: int = 1,
    *,
    loaded: int | None = None,
    slots: int = 1,
    factors: tuple[float, ...] = (1.0,),
    speedup: tuple[float, ...] = (1.0,),
    keep: int | None = None,
    load_s: float = 2.0,
    on_cpu: bool = False,
    max_queue: int = 10**6,
    min_residency_s: float = 0.0,
) -> SimulatedNode:
    """A pool with room for ``loaded`` models (all of them by default) with all slots; no preloads."""
    room = models if loaded is None else loaded
    pool_mb = math.ceil((room * WEIGHTS_MB + slots * SLOT_MB) / 0.9) + 1
    pool = PoolConfig(
        vram_budget_mb=pool_mb, max_concurrent_slots=slots, max_queue=max_queue, min_residency_s=min_residency_s
    )
    cost = ModelCost(weights_mb=WEIGHTS_MB, kv_mb=SLOT_MB, load_s=load_s, max_slots=slots)
    times = ServiceTimes(load_s, 0.5, factors, load_shares_device=on_cpu)
    return SimulatedNode(
        pool=pool,
        models=tuple(SimulatedModel(f"m{i}", cost, times) for i in range(models)),
        parallel_speedup=speedup,
        keep=tuple(range(room if keep is None else keep)),
    )


def played(simulated: SimulatedNode, *asked: tuple[float, int, float, float]) -> list[tuple[float, float, float]]:
    """(waiting, first token, latency) of requests (at_s, model, prefill_s, decode_s), in the order of their arrival."""
    arrivals = [Job(at_s, model, prefill_s, decode_s, i) for i, (at_s, model, prefill_s, decode_s) in enumerate(asked)]
    result = simulate(simulated, arrivals)
    found = zip(result.kinds, result.waiting_s, result.first_token_s, result.latency_s, strict=True)
    return [tuple(round(x, 9) for x in times) for _, *times in sorted(found)]  # type: ignore[misc]


@pytest.mark.parametrize(
    ("simulated", "asked", "expected"),
    [
        pytest.param(node(), [(1.0, 0, 0.5, 2.0)], [(0.0, 0.5, 2.5)], id="alone"),
        pytest.param(
            node(), [(0.0, 0, 0.5, 2.0), (1.0, 0, 0.5, 1.0)], [(0.0, 0.5, 2.5), (1.5, 2.0, 3.0)], id="one slot"
        ),
        pytest.param(
            # both prompts first, one after the other; then a token of each in turn: the shorter ends after 2 × 1 s
            node(slots=2),
            [(0.0, 0, 0.5, 2.0), (0.0, 0, 0.5, 1.0)],
            [(0.0, 0.5, 4.0), (0.0, 1.0, 3.0)],
            id="two answers of one model take turns",
        ),
        pytest.param(
            # the first has written 1 s of its 2 when the prompt comes in between; then both have 1 s to go
            node(slots=2),
            [(0.0, 0, 0.5, 2.0), (1.5, 0, 0.5, 1.0)],
            [(0.0, 0.5, 4.0), (0.0, 0.5, 2.5)],
            id="a prompt holds the other answer up",
        ),
        pytest.param(
            node(slots=2, factors=(1.0, 1.6)),
            [(0.0, 0, 0.0, 2.0), (0.0, 0, 0.0, 2.0)],
            [(0.0, 0.0, 2.5), (0.0, 0.0, 2.5)],
            id="two answers together are faster than in turn",
        ),
        pytest.param(
            node(2, slots=2),
            [(0.0, 0, 0.5, 2.0), (0.0, 1, 0.5, 1.0)],
            [(0.0, 1.0, 4.0), (0.0, 1.0, 3.0)],
            id="two models share the device",
        ),
        pytest.param(
            node(2, slots=2, speedup=(1.0, 1.5)),
            [(0.0, 0, 0.5, 1.0), (0.0, 1, 0.5, 1.0)],
            [(0.0, 0.666666667, 2.0), (0.0, 0.666666667, 2.0)],
            id="two models at work do more together",
        ),
        pytest.param(
            # 0.5 s for the eviction, 2 s for the load
            node(2, loaded=1),
            [(0.0, 0, 0.5, 1.0), (0.1, 1, 0.5, 1.0)],
            [(0.0, 0.5, 1.5), (1.4 + 2.5, 4.4, 5.4)],
            id="a swap",
        ),
        pytest.param(
            # the load is 2 device-seconds: beside the answer until 3 s have passed, half of each; then alone
            node(2, keep=1, slots=2, on_cpu=True),
            [(0.0, 0, 0.5, 1.0), (0.0, 1, 0.5, 1.0)],
            [(0.0, 1.0, 3.0), (3.5, 4.0, 5.0)],
            id="on a CPU a load takes its share",
        ),
        pytest.param(
            node(2, keep=1, slots=2),
            [(0.0, 0, 0.5, 1.0), (0.0, 1, 0.5, 1.0)],
            [(0.0, 0.5, 1.5), (2.0, 2.5, 3.5)],
            id="on a GPU it does not",
        ),
        pytest.param(
            node(max_queue=1),
            [(0.0, 0, 0.5, 1.0), (0.1, 0, 0.5, 1.0), (0.2, 0, 0.5, 1.0)],
            [(0.0, 0.5, 1.5), (1.4, 1.9, 2.9), (math.inf, math.inf, math.inf)],
            id="a full queue refuses",
        ),
    ],
)
def test_sums_by_hand(
    simulated: SimulatedNode,
    asked: Sequence[tuple[float, int, float, float]],
    expected: Sequence[tuple[float, float, float]],
) -> None:
    for found, wanted in zip(played(simulated, *asked), expected, strict=True):
        assert found == pytest.approx(wanted, abs=1e-6)


def test_an_idle_model_makes_room_however_young_it_is() -> None:
    """The scheduler's own rule: it protects a young model only from another when both have waiting requests."""
    simulated = node(2, loaded=1, min_residency_s=60.0)
    _, second, third = played(simulated, (0.0, 0, 0.0, 1.0), (2.0, 1, 0.0, 1.0), (6.0, 0, 0.0, 1.0))
    assert second[0] == pytest.approx(2.5)
    assert third[0] == pytest.approx(2.5)


def _mean(values: Sequence[float]) -> float:
    return sum(values) / len(values)


@pytest.mark.long
@pytest.mark.parametrize(("spread", "load"), [(0.0, 0.7), (0.5, 0.7), (1.0, 0.6)])
def test_one_slot_waits_as_pollaczek_and_khinchine_say(spread: float, load: float) -> None:
    """M/G/1: mean waiting is λ E[S²] ÷ 2(1 − ρ)."""
    stream = Stream(0, 0, load, 0.0, 0.3, 0.7)
    result = simulate(node(), jobs([stream], 60_000 / load, spread, random.Random(7)), 1000.0)
    square = 1.0 + spread**2 * (0.3**2 + 0.7**2)
    assert _mean(result.waiting_s) == pytest.approx(load * square / (2 * (1 - load)), rel=0.06)
    assert result.busy_s / result.span_s == pytest.approx(load, rel=0.02)
    assert result.loads == 0


@pytest.mark.long
def test_many_slots_share_as_theory_says() -> None:
    """M/G/1 with processor sharing: mean time in the system is E[S] ÷ (1 − ρ), whatever the spread."""
    stream = Stream(0, 0, 0.6, 0.0, 0.0, 1.0)
    result = simulate(node(slots=64), jobs([stream], 100_000, 0.5, random.Random(7)))
    assert _mean(result.latency_s) == pytest.approx(1 / 0.4, rel=0.05)


@pytest.mark.long
def test_a_balancer_in_turns_lets_a_node_wait_less() -> None:
    waits = {}
    for nodes in (1, 8):
        stream = Stream(0, 0, 0.7, 0.0, 0.3, 0.7, nodes)
        arrivals = jobs([stream], 30_000, 0.5, random.Random(3))
        assert len(arrivals) == pytest.approx(21_000, rel=0.03)
        waits[nodes] = _mean(simulate(node(), arrivals).waiting_s)
    assert waits[8] < 0.5 * waits[1]


requests = st.tuples(st.floats(0, 30), st.integers(0, 2), st.floats(0, 2), st.floats(0, 3))


@settings(max_examples=examples(150))
@given(
    asked=st.lists(requests, max_size=25),
    loaded=st.integers(1, 3),
    slots=st.integers(1, 3),
    on_cpu=st.booleans(),
    max_queue=st.sampled_from([2, 1000]),
    min_residency_s=st.sampled_from([0.0, 5.0]),
)
def test_every_request_ends_once_and_in_order(
    asked: list[tuple[float, int, float, float]],
    loaded: int,
    slots: int,
    on_cpu: bool,
    max_queue: int,
    min_residency_s: float,
) -> None:
    simulated = node(
        3,
        loaded=loaded,
        slots=slots,
        on_cpu=on_cpu,
        max_queue=max_queue,
        min_residency_s=min_residency_s,
        speedup=(1.0, 1.2),
    )
    arrivals = [Job(at_s, m, p, d, i) for i, (at_s, m, p, d) in enumerate(sorted(asked))]
    result: Samples = simulate(simulated, arrivals)
    assert sorted(result.kinds) == list(range(len(asked)))
    for kind, waiting, first, latency in zip(
        result.kinds, result.waiting_s, result.first_token_s, result.latency_s, strict=True
    ):
        if math.isinf(waiting):
            assert max_queue == 2
            continue
        job = arrivals[kind]
        slack = 1e-6
        assert -slack <= waiting <= first - job.prefill_s / 1.2 + slack
        assert first <= latency - job.decode_s / 1.2 + slack
    if result.kinds:
        work_s = sum(a.prefill_s + a.decode_s for a, w in zip(arrivals, result.kinds, strict=False))
        assert max(t for t in (*result.latency_s, 0.0) if t < math.inf) <= 30 + 1000 + 10 * work_s


@pytest.mark.long
def test_the_same_seed_gives_the_same_figures_on_any_number_of_cores() -> None:
    from fleet_fixtures import problem_of

    from coe_cli.core.fleet.fleet import Demand, Simulation
    from coe_cli.runtime.fleet.fleet_simulation import simulate_fleet

    problem, groups = problem_of({"python_backend": Demand(2.0, 100, 50)}, nodes=40)
    one, two, other = (
        simulate_fleet(problem, groups, Simulation(25_000, seed=seed, warm_up=0.1), cores)
        for seed, cores in ((1, 1), (1, 2), (2, 2))
    )
    assert [s.waiting_s for s in one] == [s.waiting_s for s in two]
    assert [s.latency_s for s in one] == [s.latency_s for s in two]
    assert [s.latency_s for s in one] != [s.latency_s for s in other]
    assert sum(s.nodes for s in one) == 40
