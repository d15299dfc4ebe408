"""Switching models in a budget that holds one, against a bare process that loads the model and writes one token.

Usage: swap.py [--rounds N]. The college keeps one model; each measured run asks for the other one and ends at its first
token, so it covers the end of the loaded worker, the new process, the load and one token. The bare side is
``bare_oga.py`` from its start to its first byte. Both sides read the same files.
"""

from __future__ import annotations

import argparse
import asyncio
import sys
import time

import msgspec
from pairs import COLUMNS, MODEL, ROOT, alternate, first_byte_s, print_table

sys.path.insert(0, str(ROOT))

from coe_cli.core.scheduling.scheduler_state import pool_from_profile
from coe_cli.runtime.college import college_events as ce
from coe_cli.runtime.college.college import College
from coe_cli.runtime.college.college_settings import CollegeSettings
from coe_cli.runtime.college.costs import cost_in
from coe_cli.runtime.college.memory_probe import RssProbe
from coe_cli.runtime.folders import folders, profile_paths
from coe_cli.runtime.model_folder.on_disk import spec_from_folder
from coe_cli.runtime.settings import load_profiles
from coe_cli.runtime.worker.protocol import ChatMessage, Sampling

PROMPT = "Name a colour."


class Swaps:
    """One college with room for one of two models that share their files."""

    def __init__(self) -> None:
        profile = load_profiles(profile_paths()).select("embedded")
        spec = spec_from_folder(MODEL, folders().models / MODEL)
        self._specs = [spec, msgspec.structs.replace(spec, name="other")]
        cost, _ = cost_in(profile)(spec)
        pool = pool_from_profile(profile)
        pool = msgspec.structs.replace(
            pool,
            min_residency_s=0.0,
            vram_budget_mb=pool.fixed_mb + round(1.3 * (cost.weights_mb + cost.kv_mb + cost.activation_mb)),
        )
        self._college = College(CollegeSettings(pool, cost_in(profile), keep_warm_worker=True), RssProbe())
        self._loop = asyncio.new_event_loop()
        self._turn = 0
        self.parts: list[tuple[float, float, float]] = []

    def swap_s(self) -> float:
        """Seconds from the question to the other model's first token."""
        return self._loop.run_until_complete(self._swap())

    async def _swap(self) -> float:
        self._turn += 1
        spec = self._specs[self._turn % 2]
        begin = time.perf_counter()
        first_s = loading_s = load_s = 0.0
        request = ce.Ask(spec, [ChatMessage("user", PROMPT)], max_tokens=1, sampling=Sampling(temperature=0))
        async for event in self._college.ask(request):
            if isinstance(event, ce.Loading):
                loading_s = time.perf_counter() - begin
            elif isinstance(event, ce.PrefillStarted):
                load_s = event.load_s or 0.0
            elif isinstance(event, ce.Delta) and not first_s:
                first_s = time.perf_counter() - begin
        self.parts.append((loading_s, load_s, first_s))
        if list(self._college.workers()) != [spec.name]:
            raise RuntimeError("the other model was not evicted")
        return first_s

    def close(self) -> None:
        self._loop.run_until_complete(self._college.close())


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rounds", type=int, default=11)
    rounds = parser.parse_args().rounds
    bare = [sys.executable, str(ROOT / "benchmarks" / "bare_oga.py"), str(folders().models / MODEL), PROMPT, "1"]
    swaps = Swaps()
    try:
        pair = alternate(swaps.swap_s, lambda: first_byte_s(bare), rounds)
    finally:
        swaps.close()
    print_table(COLUMNS, [pair.cells("swap to the first token", "s", "≤ 1.10")])
    names = ("eviction", "load in the worker", "first token")
    medians = [sorted(column)[len(column) // 2] for column in zip(*swaps.parts[1:], strict=True)]
    parts = ", ".join(f"{name} {value:.3f} s" for name, value in zip(names, medians, strict=True))
    sys.stderr.write(f"In the college, since the question: {parts}\n")


if __name__ == "__main__":
    main()
