"""How fast the pure scheduler is: requests per second over a simulated pool, no process and no model.

Figures are per second of CPU time, the simulation of arrivals and services included.

Usage: python benchmarks/scheduler_throughput.py [REQUESTS]
"""

from __future__ import annotations

import heapq
import random
import sys
import time
from pathlib import Path

from pairs import print_table

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from coe_cli.core.scheduling.scheduler import Scheduler
from coe_cli.core.scheduling.scheduler_events import (
    Done,
    Event,
    Evict,
    Evicted,
    Load,
    Loaded,
    Preload,
    Refuse,
    Request,
    Start,
    Tick,
)
from coe_cli.core.scheduling.scheduler_state import ModelCost, PoolConfig


def simulate(requests: int, models: int, loaded: int, load: float, seed: int = 1) -> dict[str, float]:
    """Poisson arrivals at ``load`` times what the slots can serve (service 1 s), ``models`` asked for in turns."""
    slots = 8
    rng = random.Random(seed)
    pool_mb = int(loaded * 5000 + slots * 500) * 100 // 90 + 200
    config = PoolConfig(vram_budget_mb=pool_mb, max_concurrent_slots=slots, max_queue=10**9, preload_enabled=True)
    costs = {f"m{i}": ModelCost(weights_mb=5000, kv_mb=500, load_s=2.0, max_slots=4) for i in range(models)}
    scheduler = Scheduler(config, costs)
    names = list(costs)
    rate = slots * load
    pending: list[tuple[float, int, Event]] = []
    seq = events = ended = refused = 0
    now_s = next_arrival_s = 0.0
    arrived = 0
    began_s = time.process_time()
    while ended + refused < requests:
        if arrived < requests and (not pending or next_arrival_s <= pending[0][0]):
            now_s = next_arrival_s
            next_arrival_s += rng.expovariate(rate)
            arrived += 1
            event: Event = Request(arrived, names[int(rng.random() ** 2 * models)])
        elif pending:
            now_s, _, event = heapq.heappop(pending)
            ended += type(event) is Done
        else:
            now_s = scheduler.next_wakeup_s() or now_s + 1.0
            event = Tick()
        events += 1
        for decision in scheduler.handle(event, now_s):
            seq += 1
            if isinstance(decision, Start):
                heapq.heappush(pending, (now_s + rng.expovariate(1.0), seq, Done(decision.request_id)))
            elif isinstance(decision, Load | Preload):
                heapq.heappush(pending, (now_s + 2.0, seq, Loaded(decision.model)))
            elif isinstance(decision, Evict):
                heapq.heappush(pending, (now_s + 0.2, seq, Evicted(decision.model)))
            elif isinstance(decision, Refuse):
                refused += 1
    cpu_s = time.process_time() - began_s
    loads = scheduler.snapshot().loads
    return {"requests_per_s": requests / cpu_s, "events_per_s": events / cpu_s, "loads": loads, "refused": refused}


def main() -> None:
    requests = int(sys.argv[1]) if len(sys.argv) > 1 else 100_000
    cases = [
        ("1 model, 0.7 of capacity", 1, 1, 0.7),
        ("4 models, all loaded, 0.7 of capacity", 4, 4, 0.7),
        ("4 models, all loaded, overloaded 1.2", 4, 4, 1.2),
        ("6 models in room for 3, 0.7 of capacity", 6, 3, 0.7),
    ]
    rows = []
    for name, models, loaded, load in cases:
        row = simulate(requests, models, loaded, load)
        rows.append((name, *(f"{row[key]:,.0f}" for key in ("requests_per_s", "events_per_s", "loads", "refused"))))
    print_table(("case", "requests/s", "events/s", "loads", "refused"), rows)


if __name__ == "__main__":
    main()
