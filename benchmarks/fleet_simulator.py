"""The fleet simulator against a real college, and how fast it is.

    python benchmarks/fleet_simulator.py accuracy [--requests 500] [--load 0.6]
    python benchmarks/fleet_simulator.py scale [--nodes 1000] [--requests 1000000]

``accuracy``: two models (the embedded one under two names) stay resident in a college with two slots and answer a trace
of Poisson arrivals. Before and after it the rates are measured on the same college: overhead and prefill from prompts of two
lengths, decode alone, of two answers of one model at once, and of two models at once; their means go into the simulator,
which then plays the same arrivals with the same numbers of tokens.

``scale``: so many nodes of three kinds with five experts, as `coe vram plan --fleet` simulates them, on all cores.
"""

from __future__ import annotations

import argparse
import asyncio
import random
import statistics
import time
from dataclasses import dataclass, field
from pathlib import Path

from msgspec import structs

from coe_cli.core.fleet.fleet_device import Job, ServiceTimes
from coe_cli.core.fleet.fleet_simulation import SimulatedModel, SimulatedNode, simulate
from coe_cli.core.models.model_spec import ModelSpec
from coe_cli.core.scheduling.scheduler_state import PoolConfig, pool_from_profile
from coe_cli.runtime.college import college_events as ce
from coe_cli.runtime.college.college import College
from coe_cli.runtime.college.college_settings import CollegeSettings
from coe_cli.runtime.college.costs import cost_in
from coe_cli.runtime.college.memory_probe import MemoryProbe
from coe_cli.runtime.folders import folders, profile_paths
from coe_cli.runtime.model_folder.on_disk import spec_from_folder
from coe_cli.runtime.settings import load_profiles
from coe_cli.runtime.worker.protocol import ChatMessage, Sampling

MODEL = "smollm2-135m"
WORDS_IN, TOKENS_OUT, SPREAD = 25, 16, 0.5
SHORT, LONG = 10, 100
ROUNDS = 8


@dataclass
class Seen:
    """What one real request met with; times in seconds from its arrival."""

    model: int
    at_s: float
    prompt_tokens: int = 0
    completion_tokens: int = 0
    started_s: float = 0.0
    first_token_s: float = 0.0
    ended_s: float = 0.0
    decode_s: float = 0.0


@dataclass
class Rates:
    """Device-seconds; ``pair_factor``: tokens a second of two answers of one model ÷ of one; ``speedup``: of two models."""

    overhead_s: list[float] = field(default_factory=list)
    token_in_s: list[float] = field(default_factory=list)
    token_out_s: list[float] = field(default_factory=list)
    pair_factor: list[float] = field(default_factory=list)
    speedup: list[float] = field(default_factory=list)


class TimedCollege(College):
    """Notes when the scheduler lets a request start, which is what the simulator calls the end of its waiting."""

    def __init__(self, settings: CollegeSettings) -> None:
        super().__init__(settings, MemoryProbe())
        self.started_at: dict[int, float] = {}

    def _start(self, decision: object) -> None:
        self.started_at[decision.request_id] = time.perf_counter()  # type: ignore[attr-defined]
        super()._start(decision)  # type: ignore[arg-type]


class Trial:
    def __init__(self, college: TimedCollege, specs: list[ModelSpec], rng: random.Random) -> None:
        self._college, self._specs, self._rng = college, specs, rng
        self._asked = 0

    def prompt(self, words: int) -> str:
        """Words that no other prompt begins with, so that no cache is of use."""
        return " ".join(
            f"{self._rng.choice('bcdfgklmnprst')}{self._rng.choice('aeiou')}{self._rng.randrange(10)}"
            for _ in range(words)
        )

    async def ask(self, model: int, words: int, tokens: int) -> Seen:
        seen = Seen(model, time.perf_counter())
        self._asked += 1
        number = self._asked
        ask = ce.Ask(
            self._specs[model],
            [ChatMessage("user", self.prompt(max(1, words)))],
            max_tokens=max(1, tokens),
            sampling=Sampling(temperature=0),
        )
        async for event in self._college.ask(ask):
            if isinstance(event, ce.PrefillStarted):
                seen.prompt_tokens = event.prompt_tokens - event.reused_tokens
            elif isinstance(event, ce.Delta) and not seen.first_token_s:
                seen.first_token_s = time.perf_counter() - seen.at_s
            elif isinstance(event, ce.Finished):
                seen.completion_tokens, seen.decode_s = event.completion_tokens, event.decode_s
        seen.ended_s = time.perf_counter() - seen.at_s
        seen.started_s = self._college.started_at[number] - seen.at_s
        return seen

    async def measure(self, rates: Rates) -> None:
        """One round: short and long prompts, an answer alone, two of one model, two of two models."""
        short, long = await self.ask(0, SHORT, 1), await self.ask(0, LONG, 1)
        token_in_s = (long.ended_s - short.ended_s) / (long.prompt_tokens - short.prompt_tokens)
        alone = await self.ask(0, SHORT, 32)
        token_out_s = alone.decode_s / (alone.completion_tokens - 1)
        rates.token_in_s.append(token_in_s)
        rates.overhead_s.append(short.ended_s - short.prompt_tokens * token_in_s - token_out_s)
        rates.token_out_s.append(token_out_s)
        for models, into in (((0, 0), rates.pair_factor), ((0, 1), rates.speedup)):
            begin = time.perf_counter()
            both = await asyncio.gather(*(self.ask(model, SHORT, 32) for model in models))
            span_s = time.perf_counter() - begin
            work_s = sum(
                rates.overhead_s[-1] + s.prompt_tokens * token_in_s + s.completion_tokens * token_out_s for s in both
            )
            into.append(work_s / span_s)

    async def trace(self, arrivals: list[tuple[float, int, int, int]]) -> list[Seen]:
        begin = time.perf_counter()

        async def one(at_s: float, model: int, words: int, tokens: int) -> Seen:
            await asyncio.sleep(max(0.0, begin + at_s - time.perf_counter()))
            seen = await self.ask(model, words, tokens)
            seen.at_s -= begin
            return seen

        return list(await asyncio.gather(*(one(*arrival) for arrival in arrivals)))


def gamma(rng: random.Random, mean: float) -> float:
    return rng.gammavariate(1 / SPREAD**2, mean * SPREAD**2)


async def accuracy(requests: int, load: float, seed: int) -> None:
    profile = structs.replace(load_profiles(profile_paths()).select("embedded"), context_length=1024)
    spec = spec_from_folder(MODEL, folders().models / MODEL)
    specs = [structs.replace(spec, name="one"), structs.replace(spec, name="two")]
    pool = structs.replace(pool_from_profile(profile), preload_enabled=False, max_queue=10_000)
    cost, context_length = cost_in(profile)(spec)
    rng = random.Random(seed)
    college = TimedCollege(CollegeSettings(pool, lambda spec: (cost, context_length)))
    try:
        trial, rates = Trial(college, specs, rng), Rates()
        for model in (0, 1, 0, 1):
            await trial.ask(model, SHORT, 8)
        await asyncio.gather(*(trial.ask(model, SHORT, 8) for model in (0, 0, 1, 1)))
        await trial.measure(Rates())
        for _ in range(ROUNDS):
            await trial.measure(rates)
        words_per_token = SHORT / (await trial.ask(0, SHORT, 1)).prompt_tokens
        work_s = (
            statistics.median(rates.overhead_s)
            + WORDS_IN / words_per_token * statistics.median(rates.token_in_s)
            + TOKENS_OUT * statistics.median(rates.token_out_s)
        )
        arrivals, at_s = [], 0.0
        for _ in range(requests):
            at_s += rng.expovariate(load / work_s)
            model = int(rng.random() < 0.3)
            arrivals.append((at_s, model, round(gamma(rng, WORDS_IN)), max(2, round(gamma(rng, TOKENS_OUT)))))
        real = await trial.trace(arrivals)
        for _ in range(ROUNDS):
            await trial.measure(rates)
    finally:
        await college.close()
    report(real, rates, pool, cost, work_s)


def report(real: list[Seen], rates: Rates, pool: PoolConfig, cost: object, work_s: float) -> None:
    overhead_s, token_in_s, token_out_s, pair, speedup = (
        statistics.median(values)
        for values in (rates.overhead_s, rates.token_in_s, rates.token_out_s, rates.pair_factor, rates.speedup)
    )
    times = ServiceTimes(1.0, 0.2, (1.0, pair), load_shares_device=True)
    models = tuple(SimulatedModel(name, cost, times) for name in ("one", "two"))  # type: ignore[arg-type]
    node = SimulatedNode(pool, models, (1.0, speedup), (0, 1))
    jobs = [
        Job(s.at_s, s.model, overhead_s + s.prompt_tokens * token_in_s, s.completion_tokens * token_out_s, i)
        for i, s in enumerate(sorted(real, key=lambda seen: seen.at_s))
    ]
    simulated = simulate(node, jobs)
    print(
        f"\n{len(real)} requests of {work_s:.2f} s alone on average over {max(s.at_s for s in real):.0f} s; measured:"
        f" {overhead_s * 1000:.0f} ms an answer, {1 / token_in_s:.0f} tokens/s prefill, {1 / token_out_s:.0f} decode,"
        f" two answers of one model {pair:.2f}, two models {speedup:.2f} times one\n"
    )
    print("| seconds | real p50 | simulated p50 | ratio | real p95 | simulated p95 | ratio | limit |")
    print("|---|---|---|---|---|---|---|---|")
    for name, mine, theirs in (
        ("waiting", [s.started_s for s in real], simulated.waiting_s),
        ("to the first token", [s.first_token_s for s in real], simulated.first_token_s),
        ("to the end", [s.ended_s for s in real], simulated.latency_s),
    ):
        cells = []
        for part in (0.5, 0.95):
            a, b = (sorted(values)[round(part * (len(values) - 1))] for values in (mine, theirs))
            cells += [f"{a:.3f}", f"{b:.3f}", f"{b / a:.2f}" if a > 0.01 else "–"]
        print(f"| {name} | {' | '.join(cells)} | 0.85–1.15 |")


def scale(nodes: int, requests: int) -> None:
    import tempfile

    from coe_cli.core.fleet.fleet import Simulation, fleet_of
    from coe_cli.runtime.fleet.fleet_placement import Placement
    from coe_cli.runtime.fleet.fleet_plan import problem_of
    from coe_cli.runtime.fleet.fleet_simulation import simulate_fleet
    from coe_cli.runtime.settings import read_catalog, read_document, read_profiles

    asked = {"python_backend": 60, "sql_query": 20, "general_reasoner": 40, "math_expert": 10, "medical_expert": 10}
    text = "nodes:\n"
    for name, profile, part in (("desk", "standard", 0.6), ("tower", "performance", 0.3), ("small", "compact", 0.1)):
        text += f"  - {{name: {name}, profile: {profile}, count: {round(nodes * part)}}}\n"
    text += "demand:\n"
    for expert, per_s in asked.items():
        text += f"  {expert}: {{requests_per_s: {per_s * nodes / 1000}, tokens_in: 300, tokens_out: 200}}\n"
    text += "rates:\n  default: {prefill_tokens_per_s: 1500, decode_tokens_per_s: 50, load_s: 5}\n"
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "FLEET.yaml"
        path.write_text(text)
        fleet = fleet_of(read_document(path), read_profiles(), read_catalog())
        problem = problem_of(fleet, read_catalog(), folders())
    begin = time.perf_counter()
    groups = Placement(problem).for_counts([node.type.count for node in fleet.nodes])
    placed_s = time.perf_counter() - begin
    begin = time.perf_counter()
    samples = simulate_fleet(problem, groups, Simulation(requests, seed=1, warm_up=0.0))
    simulated_s = time.perf_counter() - begin
    count = sum(len(s.kinds) for s in samples)
    print("\n| nodes | requests | placement | simulation | requests/s | limit |")
    print("|---|---|---|---|---|---|")
    print(
        f"| {sum(s.nodes for s in samples)} | {count} | {placed_s:.1f} s | {simulated_s:.1f} s |"
        f" {count / simulated_s:,.0f} | < 60 s for 1000 and 1,000,000 |"
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("what", choices=["accuracy", "scale"])
    parser.add_argument("--requests", type=int)
    parser.add_argument("--load", type=float, default=0.6)
    parser.add_argument("--nodes", type=int, default=1000)
    parser.add_argument("--seed", type=int, default=1)
    arguments = parser.parse_args()
    if arguments.what == "scale":
        scale(arguments.nodes, arguments.requests or 1_000_000)
    else:
        asyncio.run(accuracy(arguments.requests or 500, arguments.load, arguments.seed))


if __name__ == "__main__":
    main()
