"""Providers on one card in one run: each one's recipe of the same model through `coe bench`, and a bare loop on the same files.

Each provider has a Python with its own runtime, since two runtimes cannot be installed together. Providers and loops take turns; the
card has to be otherwise idle. Shares are of the bandwidth that a plain copy on the card reached in this run.

    python benchmarks/providers.py cuda:MODEL:PYTHON webgpu:MODEL:PYTHON [--prompts 16,512,4096] [--rounds 2]
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

from pairs import print_table

from coe_cli.core.bench.bench_figures import bandwidth_share
from coe_cli.core.bench.bench_grid import Point
from coe_cli.core.memory.footprint import ModelMemory
from coe_cli.core.memory.prefill import CHUNK_TOKENS
from coe_cli.providers.settings import configure, default_provider_options, default_session_options
from coe_cli.runtime.folders import folders
from coe_cli.runtime.model_folder.graph_files import read_graph
from coe_cli.runtime.model_folder.on_disk import spec_from_folder

os.environ["ORT_DISABLE_TELEMETRY"] = "1"
CONTEXT, TOKENS, REPEATS = 8192, 64, 3


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("sides", nargs="+", metavar="PROVIDER:MODEL:PYTHON")
    parser.add_argument("--prompts", default="16,512,4096")
    parser.add_argument("--rounds", type=int, default=2)
    parser.add_argument("--results", type=Path)
    options = parser.parse_args()
    if options.sides[0] == "bare":
        print(json.dumps(bare(*options.sides[1:])))
        return
    sides = [side.split(":", 2) for side in options.sides]
    seen: dict[tuple[str, int], list[dict[str, Any]]] = {}
    loops: dict[tuple[str, int], list[dict[str, float]]] = {}
    copies: list[float] = []
    for _ in range(options.rounds):
        for provider, model, python in sides:
            report = through_coe(provider, model, python, options.prompts)
            copies += filter(None, report["machine"]["bandwidth_gb_per_s"].values())
            for row in report["rows"]:
                seen.setdefault((provider, row["prompt_tokens"]), []).append(row)
            answer = subprocess.run(
                [python, __file__, "bare", provider, str(folders().models / model), "--prompts", options.prompts],
                check=True,
                stdout=subprocess.PIPE,
                text=True,
            )
            for prompt, figures in json.loads(answer.stdout.splitlines()[-1]).items():
                loops.setdefault((provider, int(prompt)), []).append(figures)
    if options.results:
        rows = [{"provider": key[0], "prompt": key[1], "coe": seen[key], "bare": loops.get(key)} for key in seen]
        options.results.write_text(json.dumps({"copies": copies, "rows": rows}, indent=1), encoding="utf-8")
    table(sides, seen, loops, max(copies, default=None))


def through_coe(provider: str, model: str, python: str, prompts: str) -> dict[str, Any]:
    grid = ["--prompt-tokens", prompts, "--max-length", str(CONTEXT), "--gen-tokens", str(TOKENS), "-r", str(REPEATS)]
    command = [python, "-m", "coe_cli", "bench", model, "--provider", provider, *grid, "--format", "json"]
    answer = subprocess.run(command, stdout=subprocess.PIPE, text=True, check=False)
    report: dict[str, Any] = json.loads(answer.stdout)
    sys.stderr.write("".join(f"{provider} {row['prompt_tokens']}: {row}\n" for row in report["rows"]))
    return report


def bare(provider: str, folder: str) -> dict[str, dict[str, float]]:
    """Medians of ``REPEATS`` after one that does not count: a generator each, its prompt in pieces as coe reads it."""
    import numpy as np
    import onnxruntime_genai as oga

    prompts = [int(number) for number in sys.argv[sys.argv.index("--prompts") + 1].split(",")]
    config = oga.Config(folder)
    decoder = json.loads((Path(folder) / "genai_config.json").read_text(encoding="utf-8"))["model"]["decoder"]
    own = {key: value for item in decoder["session_options"]["provider_options"] for key, value in item.items()}
    given = default_provider_options(provider)
    configure(oga, config, provider, given, default_session_options(provider), own.get(provider, {}))
    model = oga.Model(config)
    rng = np.random.default_rng(1)
    found: dict[str, dict[str, float]] = {}
    for prompt in prompts:
        firsts, rates = [], []
        for _ in range(1 + REPEATS):
            params = oga.GeneratorParams(model)
            params.set_search_options(max_length=CONTEXT, min_length=CONTEXT - 1, do_sample=False)
            generator = oga.Generator(model, params)
            ids = rng.integers(10, 30000, prompt).astype(np.int32)
            begin = time.perf_counter()
            for start in range(0, prompt, CHUNK_TOKENS):
                generator.append_tokens(ids[start : start + CHUNK_TOKENS])
            generator.generate_next_token()
            generator.get_next_tokens()
            first = time.perf_counter()
            for _ in range(TOKENS - 1):
                generator.generate_next_token()
                generator.get_next_tokens()
            firsts.append(first - begin)
            rates.append((TOKENS - 1) / (time.perf_counter() - first))
            del generator
        found[str(prompt)] = {"ttft_s": statistics.median(firsts[1:]), "decode_tps": statistics.median(rates[1:])}
    return found


def table(
    sides: list[list[str]],
    seen: dict[tuple[str, int], list[dict[str, Any]]],
    loops: dict[tuple[str, int], list[dict[str, float]]],
    copy: float | None,
) -> None:
    rows = []
    for provider, model, _ in sides:
        folder = folders().models / model
        memory = ModelMemory(spec_from_folder(model, folder), provider, graph=read_graph(folder / "model.onnx"))
        for (side, prompt), runs in seen.items():
            if side != provider:
                continue
            figures = {
                name: [run[name] for run in runs if run[name] is not None]
                for name in ("ttft_s", "prefill_tps", "decode_tps", "peak_mb", "plan_mb")
            }
            if not figures["decode_tps"]:
                rows.append([provider, prompt, runs[0]["error"], *[""] * 9])
                continue
            mid = {name: statistics.median(values) for name, values in figures.items() if values}
            point = Point(prompt_tokens=prompt, gen_tokens=TOKENS, depth=0, max_length=CONTEXT, slots=1)
            share = bandwidth_share(memory, point, mid["decode_tps"], copy)
            loop = loops[side, prompt]
            decode, first = (statistics.median(run[name] for run in loop) for name in ("decode_tps", "ttft_s"))
            rates = figures["decode_tps"]
            rows.append(
                [
                    provider,
                    prompt,
                    f"{mid['ttft_s'] * 1000:.0f}",
                    f"{mid['prefill_tps']:.0f}",
                    f"{mid['decode_tps']:.1f} ({min(rates):.1f}–{max(rates):.1f})",
                    "–" if share is None else f"{share:.0%}",
                    f"{mid['peak_mb']:.0f}" if "peak_mb" in mid else "–",
                    f"{mid['plan_mb']:.0f}",
                    f"{first * 1000:.0f}",
                    f"{decode:.1f}",
                    f"{mid['decode_tps'] / decode:.2f}",
                ]
            )
    header = (
        "provider",
        "prompt",
        "first token, ms",
        "prefill, tokens/s",
        "decode, tokens/s",
        "of bandwidth",
        "peak MB",
        "plan MB",
    )
    print_table((*header, "bare first token, ms", "bare decode", "decode, coe ÷ bare"), rows)
    sys.stderr.write(f"copy: {copy} GB/s\n")


if __name__ == "__main__":
    main()
