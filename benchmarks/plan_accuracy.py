"""The plan's memory figures against real processes: predicted and measured peak for each context and prompt.

Every row of `measure` is a fresh process that loads one model, makes a generator for the whole context, reads one prompt and writes
a few tokens, with the session options of coe's workers. On the CPU the figure is the peak resident set less what the
process holds after importing OGA; on CUDA it is the device memory in use less the bare CUDA context, on WebGPU all of it (nothing else
may use the card meanwhile). The rows of `worker` are coe's own workers after many prompts (`worker_peaks.py`), on the CPU. No
calibration is read.

    python benchmarks/plan_accuracy.py
    python benchmarks/random_models.py small-gqa --all /tmp/all --pruned /tmp/pruned [--provider cuda]
    python benchmarks/plan_accuracy.py measure NAME=FOLDER [NAME=FOLDER ...] [--provider cuda] [--grid 8192:16,8192:1024:512] \
        [--results rows.jsonl]
    python benchmarks/plan_accuracy.py worker NAME=FOLDER [NAME=FOLDER ...] [--results lives.jsonl]
    python benchmarks/plan_accuracy.py table rows.jsonl [...]
"""

from __future__ import annotations

import argparse
import contextlib
import json
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from pairs import MODEL, print_table
from worker_peaks import HEADER, LIVES, SHORT_LIVES, Life, measure_life, worker_cells

from coe_cli.core.hardware.profile import PerSlotEstimate, Provider
from coe_cli.core.memory.footprint import FormulaAccounting, ModelMemory
from coe_cli.core.models.model_spec import BYTES_PER_MB
from coe_cli.core.providers import cpu, cuda
from coe_cli.providers.settings import configure, default_provider_options, default_session_options
from coe_cli.runtime.folders import folders
from coe_cli.runtime.model_folder.graph_files import read_graph
from coe_cli.runtime.model_folder.on_disk import spec_from_folder
from coe_cli.runtime.worker.worker_process import worker_environment

ANSWER_TOKENS = 8
SHORT_GRID = "512:16,2048:1024,4096:16,8192:1024,8192:4096:512"
"""What is measured without arguments, of the embedded model."""
TOKEN_STRIDE = 23
"""Prompt tokens are so far apart in the vocabulary that each touches its own part of the embedding table."""
DEFAULT_GRID = (
    "512:16,512:256,1024:16,1024:768,2048:16,2048:1024,2048:1024:256,4096:16,4096:2048,4096:2048:512,"
    "8192:16,8192:256,8192:1024,8192:4096,8192:4096:512"
)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    commands = parser.add_subparsers(dest="command")
    measure = commands.add_parser("measure", help="run the grid, one process a row")
    measure.add_argument("models", nargs="+", metavar="NAME=FOLDER")
    measure.add_argument("--provider", choices=("cpu", "cuda", "webgpu"), default="cpu")
    measure.add_argument("--grid", default=DEFAULT_GRID, help="context:prompt[:chunk_size], comma-separated")
    measure.add_argument("--results", type=Path, help="also append the rows to this file")
    worker = commands.add_parser("worker", help="workers after many prompts, one process a row")
    worker.add_argument("models", nargs="+", metavar="NAME=FOLDER")
    worker.add_argument("--results", type=Path, help="also append the rows to this file")
    table = commands.add_parser("table", help="the rows as Markdown")
    table.add_argument("results", nargs="+", type=Path)
    child = commands.add_parser("child")
    child.add_argument("job")
    options = parser.parse_args()
    if options.command is None:
        own = f"{MODEL}={folders().models / MODEL}"
        measure_all(parser.parse_args(["measure", own, "--grid", SHORT_GRID]))
        measure_workers(parser.parse_args(["worker", own]), SHORT_LIVES)
    elif options.command == "measure":
        measure_all(options)
    elif options.command == "worker":
        measure_workers(options, LIVES)
    elif options.command == "table":
        write_table([json.loads(line) for path in options.results for line in path.read_text().splitlines()])
    else:
        print(json.dumps(run_child(json.loads(options.job))))


def measure_all(options: argparse.Namespace) -> None:
    """Measure every row, keep them in ``--results`` if it is given, and print the table."""
    rows = []
    with options.results.open("a", encoding="utf-8") if options.results else contextlib.nullcontext() as results:
        for item in options.models:
            name, folder = item.split("=", 1)
            for cell in options.grid.split(","):
                context, prompt, *chunk = (int(part) for part in cell.split(":"))
                row = measure_row(name, Path(folder), options.provider, context, prompt, chunk[0] if chunk else None)
                if results is not None:
                    results.write(json.dumps(row) + "\n")
                    results.flush()
                rows.append(row)
                sys.stderr.write(
                    f"{name} {cell}: predicted {row['predicted_mb']:.0f}, measured {row['measured_mb']:.0f} MB, "
                    f"{row['error']:+.1%}\n"
                )
    write_table(rows)


def measure_workers(options: argparse.Namespace, lives: Sequence[Life]) -> None:
    """The same for workers that answer many prompts."""
    rows = []
    with options.results.open("a", encoding="utf-8") if options.results else contextlib.nullcontext() as results:
        for item in options.models:
            name, folder = item.split("=", 1)
            for life in lives:
                row = measure_life(name, Path(folder), life)
                if results is not None:
                    results.write(json.dumps(row) + "\n")
                    results.flush()
                rows.append(row)
                sys.stderr.write(f"{name}, {life.name}: {row['error']:+.1%}\n")
    write_table(rows)


def measure_row(
    name: str, folder: Path, provider: Provider, context: int, prompt: int, chunk: int | None
) -> dict[str, Any]:
    """Predicted and measured megabytes of one process; ``error`` is predicted ÷ measured − 1."""
    model = ModelMemory(
        spec_from_folder(name, folder),
        provider,
        graph=read_graph(folder / "model.onnx"),
        chunk_size=chunk,
        has_tokenizer=False,
    )
    own = {"cpu": cpu.PROCESS_BYTES, "cuda": cuda.CONTEXT_BYTES}.get(provider, 0)
    running = (
        model.on.load_bytes(model)
        + model.on.kv_cache_bytes(model, context)
        + model.on.activation_bytes(model, context, prompt)
    )
    predicted = max(running, model.on.load_peak_bytes(model)) - own
    slot = FormulaAccounting(PerSlotEstimate()).slot(model, context, 1)
    job = {
        "folder": str(folder),
        "provider": provider,
        "context": context,
        "prompt": prompt,
        "chunk": chunk,
        "session_options": default_session_options(provider),
    }
    answer = subprocess.run(
        [sys.executable, __file__, "child", json.dumps(job)],
        check=True,
        stdout=subprocess.PIPE,
        text=True,
        env=worker_environment(),
    )
    seen = json.loads(answer.stdout.splitlines()[-1])
    measured = seen["peak"] - seen["before"]
    return {
        "model": name,
        "provider": provider,
        "prunes_logits": not model.logits_for_every_token,
        "context_length": context,
        "prompt_tokens": prompt,
        "chunk_size": chunk,
        "weights_mb": round((model.on.load_bytes(model) - own) / BYTES_PER_MB, 1),
        "kv_mb": round(model.on.kv_cache_bytes(model, context) / BYTES_PER_MB, 1),
        "activation_mb": round(model.on.activation_bytes(model, context, prompt) / BYTES_PER_MB, 1),
        "predicted_mb": round(predicted / BYTES_PER_MB, 1),
        "measured_mb": round(measured / BYTES_PER_MB, 1),
        "measured_load_mb": round((seen["load"] - seen["before"]) / BYTES_PER_MB, 1),
        "error": round(predicted / measured - 1, 4),
        "formula_mb": round((model.spec.weights_bytes + slot.total_bytes) / BYTES_PER_MB, 1),
        "guide_mb": 8000.0,
        "oga": seen["oga"],
    }


def run_child(job: dict[str, Any]) -> dict[str, Any]:
    """Load, prefill and decode in this process; bytes in use before, after the load, and at the peak."""
    import numpy
    import onnxruntime_genai as oga

    in_use, peak = (_resident, _peak_resident) if job["provider"] == "cpu" else (_device_memory(job["provider"]), None)
    before = in_use()
    config = oga.Config(job["folder"])
    decoder = json.loads((Path(job["folder"]) / "genai_config.json").read_text(encoding="utf-8"))["model"]["decoder"]
    own = {key: value for item in decoder["session_options"]["provider_options"] for key, value in item.items()}
    given = default_provider_options(job["provider"])
    configure(oga, config, job["provider"], given, job["session_options"], own.get(job["provider"], {}))
    if job["chunk"]:
        config.overlay(json.dumps({"search": {"chunk_size": job["chunk"]}}))
    model = oga.Model(config)
    seen = [in_use()]
    load = seen[0]
    params = oga.GeneratorParams(model)
    params.set_search_options(max_length=job["context"], do_sample=False)
    generator = oga.Generator(model, params)
    vocabulary = json.loads((Path(job["folder"]) / "genai_config.json").read_text())["model"]["vocab_size"]
    generator.append_tokens((numpy.arange(job["prompt"]) * TOKEN_STRIDE % (vocabulary - 10) + 5).astype(numpy.int32))
    seen.append(in_use())
    for _ in range(min(ANSWER_TOKENS, job["context"] - job["prompt"])):
        if generator.is_done():
            break
        generator.generate_next_token()
    seen.append(in_use())
    return {
        "before": before,
        "load": load,
        "peak": peak() if peak is not None else max(seen),
        "oga": getattr(oga, "__version__", "unknown"),
    }


def _resident() -> int:
    import psutil

    return int(psutil.Process().memory_info().rss)


def _peak_resident() -> int:
    import psutil

    if sys.platform == "win32":
        return int(psutil.Process().memory_info().peak_wset)
    for line in Path("/proc/self/status").read_text().splitlines():
        if line.startswith("VmHWM:"):
            return int(line.split()[1]) * 1024
    raise RuntimeError("the kernel does not tell the peak resident set")


def _device_memory(provider: str) -> Any:
    """A function that gives the bytes in use on GPU 0; for CUDA after this process has made its context."""
    import ctypes

    import pynvml

    if provider == "cuda":
        driver = ctypes.CDLL("libcuda.so.1")
        context = ctypes.c_void_p()
        if driver.cuInit(0) or driver.cuDevicePrimaryCtxRetain(ctypes.byref(context), 0):
            raise RuntimeError("no CUDA context")
    pynvml.nvmlInit()
    handle = pynvml.nvmlDeviceGetHandleByIndex(0)
    return lambda: int(pynvml.nvmlDeviceGetMemoryInfo(handle).used)


def write_table(rows: list[dict[str, Any]]) -> None:
    if "slots" in rows[0]:
        print_table(HEADER, [worker_cells(row) for row in rows])
        sys.stderr.write(f"Largest error of {len(rows)} rows: {max(abs(row['error']) for row in rows):.1%}\n")
        return
    header = (
        "model",
        "logits",
        "context",
        "prompt",
        "chunk",
        "weights",
        "KV",
        "activations",
        "predicted",
        "measured",
        "error",
        "formula",
        "guide",
    )
    lines = []
    for row in rows:
        cells = (
            row["model"],
            "last" if row["prunes_logits"] else "all",
            row["context_length"],
            row["prompt_tokens"],
            row["chunk_size"] or "",
            *(f"{row[key]:.0f}" for key in ("weights_mb", "kv_mb", "activation_mb", "predicted_mb", "measured_mb")),
            f"{row['error']:+.1%}",
            *(f"{row[key]:.0f}" for key in ("formula_mb", "guide_mb")),
        )
        lines.append(cells)
    print_table(header, lines)
    sys.stderr.write(f"Largest error of {len(rows)} rows: {max(abs(row['error']) for row in rows):.1%}\n")


if __name__ == "__main__":
    main()
