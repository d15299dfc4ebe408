"""ONNX Runtime GenAI's paged engine on CUDA: eight requests that share each run of the graph against one alone, and generators that take turns.

A graph for the engine is made of one that `coe models import --provider cuda` wrote: the same weights, PagedAttention in place of
GroupQueryAttention, tokens of all requests in one row, logits of the rows that are asked for. Each line of the table is a process of its
own on an otherwise idle card.

    python benchmarks/paged_engine.py graph MODEL TARGET
    python benchmarks/paged_engine.py measure MODEL TARGET [--random] [--results rows.jsonl]
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from generators import in_batch, in_turns
from pairs import print_table

from coe_cli.providers.settings import configure, default_session_options

os.environ["ORT_DISABLE_TELEMETRY"] = "1"
CONTEXT, TOKENS, BLOCK, MOST = 4096, 128, 256, 8
LENGTHS = (12, 40, 75, 150, 230, 300, 420, 500)
"""Tokens of the random prompts."""
MANNERS = ("", "Answer for a child of ten. ", "Answer in short sentences. ", "You are a patient teacher. ")
TEXTS = (
    "Tell a long story about a lighthouse keeper.",
    "Write a long letter to a friend about a journey by train through the mountains in winter.",
    "List many animals.",
    "Explain at length how bread is made, from the field to the table, for somebody who has never seen it done.",
    "Write a Python function that reads a file of numbers and prints their mean, and explain each line of it.",
    "What is the difference between weather and climate?",
    "Describe the water cycle in detail.",
    "Give me ten tips for learning a new language, each with an example.",
)
PAGED_INPUTS = {
    "input_ids": (7, ["num_tokens"]),
    "block_table": (6, ["batch_size", "max_num_blocks"]),
    "cumulative_sequence_lengths": (6, ["batch_size + 1"]),
    "past_sequence_lengths": (6, ["batch_size"]),
    "attention_metadata": (6, [3]),
    "logits_indices": (6, ["num_logits"]),
}
"""ONNX's element type and shape of each; the metadata are bounds of the lengths, read on the CPU."""
WAYS: dict[str, dict[str, Any]] = {
    "turns": {"way": "turns"},
    "turns, runs recorded": {"way": "turns", "options": {"enable_cuda_graph": "1"}},
    "batch": {"way": "batch"},
    "engine": {"way": "engine"},
    "engine, runs recorded": {"way": "engine", "options": {"enable_cuda_graph": "1"}},
    "engine, fpA-intB kernels": {"way": "engine", "session": {"ep.cuda.fpa_intb_gemm": "1"}},
    "engine, prompts apart": {"way": "apart"},
    "engine, apart, runs recorded": {"way": "apart", "options": {"enable_cuda_graph": "1"}},
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("command", choices=("graph", "measure", "child"))
    parser.add_argument("model", help="folder of a model for CUDA")
    parser.add_argument("target", type=Path, nargs="?", help="folder of the model for the engine")
    parser.add_argument("--random", action="store_true", help="prompts of random tokens, for models without sense")
    parser.add_argument("--way", action="append", choices=WAYS, help="only this one; may be repeated")
    parser.add_argument("--results", type=Path)
    options = parser.parse_args()
    if options.command == "graph":
        write_paged(Path(options.model), options.target)
    elif options.command == "child":
        print(json.dumps(run_child(json.loads(options.model))))
    else:
        measure(options)


def write_paged(source: Path, target: Path) -> None:
    """The engine's graph and configuration; the weights' file is linked."""
    import onnx

    target.mkdir(parents=True, exist_ok=True)
    model = onnx.load(str(source / "model.onnx"), load_external_data=False)
    onnx.save(paged(model), str(target / "model.onnx"))
    for path in source.iterdir():
        if path.name not in ("model.onnx", "genai_config.json") and not (target / path.name).exists():
            os.link(path, target / path.name)
    config = json.loads((source / "genai_config.json").read_text(encoding="utf-8"))
    decoder = config["model"]["decoder"]
    named = decoder["inputs"]
    decoder["inputs"] = {name: name for name in PAGED_INPUTS} | {
        name: named[name] for name in ("past_key_names", "past_value_names")
    }
    decoder["state_groups"] = [{"kind": "paged_kv", "layer_ids": list(range(decoder["num_hidden_layers"]))}]
    config["engine"] = {
        "dynamic_batching": {"block_size": BLOCK, "max_batch_size": MOST, "num_blocks": MOST * CONTEXT // BLOCK}
    }
    (target / "genai_config.json").write_text(json.dumps(config, indent=4), encoding="utf-8")


def paged(model: Any) -> Any:
    """``model`` with PagedAttention: rows of all requests behind one another, caches in blocks."""
    from onnx import helper

    graph = model.graph
    replaced: dict[str, str] = {}
    nodes = []
    for node in graph.node:
        if node.name.startswith("/model/attn_mask/"):
            continue
        if node.op_type == "GroupQueryAttention":
            query, key, value, past_key, past_value, _, _, *rotation = node.input
            lengths = ["cumulative_sequence_lengths", "past_sequence_lengths", "block_table"]
            rotation = [*rotation[:2], "", ""][:2]
            del node.input[:]
            node.input.extend([query, key, value, past_key, past_value, *lengths, *rotation, *[""] * 6])
            node.input.append("attention_metadata")
            node.op_type = "PagedAttention"
        elif node.name == "/lm_head/prune/Gather":
            node.input[1] = "logits_indices"
            del node.attribute[:]
            node.attribute.append(helper.make_attribute("axis", 0))
        elif node.name == "/lm_head/prune/Unsqueeze":
            replaced[node.output[0]] = node.input[0]
            continue
        nodes.append(node)
    for node in nodes:
        for place, name in enumerate(node.input):
            node.input[place] = replaced.get(name, name)
    del graph.node[:]
    graph.node.extend(nodes)
    for item in [*graph.input, *graph.output]:
        kind, sizes = item.type.tensor_type.elem_type, [size.dim_value for size in item.type.tensor_type.shape.dim]
        cached = item.name.startswith(("past_key_values.", "present."))
        shape = ["num_blocks", BLOCK, sizes[1], sizes[3]] if cached else ["num_logits", sizes[-1]]
        item.CopyFrom(helper.make_tensor_value_info(item.name, kind, shape))
    caches = [item for item in graph.input if item.name.startswith("past_key_values.")]
    del graph.input[:]
    graph.input.extend(helper.make_tensor_value_info(name, *form) for name, form in PAGED_INPUTS.items())
    graph.input.extend(caches)
    return model


class Loaded:
    """One model in this process, and the ways to let it write."""

    def __init__(self, job: dict[str, Any]) -> None:
        import numpy as np
        import onnxruntime_genai as oga

        self.oga = oga
        folder = job["folder"]
        config = oga.Config(folder)
        session = {**default_session_options("cuda"), **job.get("session", {})}
        configure(oga, config, "cuda", job.get("options", {}), session)
        self.model = oga.Model(config)
        self.pad = json.loads((Path(folder) / "genai_config.json").read_text(encoding="utf-8"))["model"]["pad_token_id"]
        if job["random"]:
            rng = np.random.default_rng(7)
            self.prompts = [rng.integers(10, 30000, length).astype(np.int32) for length in LENGTHS * 2]
        else:
            tokenizer = oga.Tokenizer(self.model)
            asked = [manner + text for manner in MANNERS for text in TEXTS]
            chats = [json.dumps([{"role": "user", "content": text}]) for text in asked]
            self.prompts = [
                np.array(tokenizer.encode(tokenizer.apply_chat_template(chat, add_generation_prompt=True)), np.int32)
                for chat in chats
            ]

    def params(self, **options: Any) -> Any:
        params = self.oga.GeneratorParams(self.model)
        params.set_search_options(max_length=CONTEXT, min_length=CONTEXT - 1, do_sample=False, **options)
        return params

    def turns(self, prompts: Sequence[Any]) -> list[list[int]]:
        """A generator each, one token each in turn: what a worker does."""
        return in_turns([self.oga.Generator(self.model, self.params()) for _ in prompts], prompts, TOKENS)

    def batch(self, prompts: Sequence[Any]) -> list[list[int]]:
        """One generator for all; shorter prompts are padded on the left."""
        generator = self.oga.Generator(self.model, self.params(batch_size=len(prompts)))
        return in_batch(generator, prompts, self.pad, TOKENS)

    def engine(self, prompts: Sequence[Any], *, apart: bool = False) -> list[list[int]]:
        """All requests at once, or each when the one before has its first token."""
        if not hasattr(self, "_engine"):
            self._engine = self.oga.Engine(self.model)
        engine, waiting = self._engine, list(prompts)
        buffer = engine.create_event_buffer(64)
        requests: list[Any] = []
        answers: list[list[int]] = []
        while waiting or engine.has_pending_requests():
            while waiting and (not apart or all(answers)):
                request = engine.create_request()
                options = self.oga.TurnOptions(request)
                options.set_do_sample(False)
                options.set_min_generated_tokens(TOKENS)
                options.set_max_generated_tokens(TOKENS)
                request.begin_turn(waiting.pop(0), options)
                requests.append(request)
                answers.append([])
            for event in engine.run(buffer):
                if event.finish_reason == self.oga.FinishReason.FAILED:
                    raise RuntimeError(event.error_code.name)
                if event.flags & self.oga.EngineEventFlags.TOKEN:
                    answers[requests.index(event.request)].append(int(event.token))
        for request in requests:
            request.close()
        return answers

    def apart(self, prompts: Sequence[Any]) -> list[list[int]]:
        return self.engine(prompts, apart=True)


def run_child(job: dict[str, Any]) -> dict[str, Any]:
    """One way in this process: each prompt alone, all together, the rates of both, and the device's memory."""
    import pynvml

    pynvml.nvmlInit()
    card = pynvml.nvmlDeviceGetHandleByIndex(0)

    def used_mb() -> float:
        return float(pynvml.nvmlDeviceGetMemoryInfo(card).used) / 2**20

    before = used_mb()
    loaded = Loaded(job)
    write, prompts = getattr(loaded, job["way"]), loaded.prompts
    loaded_mb = used_mb() - before
    write(prompts[:1])
    alone = [write([ids])[0] for ids in prompts]
    alone_mb = used_mb() - before
    groups = [prompts[start : start + MOST] for start in range(0, len(prompts), MOST)]
    together = [answer for group in groups for answer in write(group)]
    rates: dict[str, list[float]] = {"one": [], "all": []}
    for _ in range(3):
        for name, some in (("one", prompts[4:5]), ("all", prompts[:MOST])):
            begin = time.perf_counter()
            write(some)
            rates[name].append(len(some) * TOKENS / (time.perf_counter() - begin))
    return {
        "one": statistics.median(rates["one"]),
        "all": statistics.median(rates["all"]),
        "alone": alone,
        "together": together,
        "loaded_mb": loaded_mb,
        "alone_mb": alone_mb,
        "all_mb": used_mb() - before,
    }


def agreement(some: list[list[int]], others: list[list[int]]) -> tuple[int, float, float]:
    """Equal answers; share of equal tokens; share of equal tokens among those whose beginning is the same."""
    whole = sum(a == b for a, b in zip(some, others, strict=True))
    pairs = [list(zip(a, b, strict=True)) for a, b in zip(some, others, strict=True)]
    same = sum(x == y for answer in pairs for x, y in answer)
    lasting = [next((place for place, (x, y) in enumerate(answer) if x != y), len(answer)) for answer in pairs]
    compared = sum(min(place + 1, len(answer)) for place, answer in zip(lasting, pairs, strict=True))
    return whole, same / sum(map(len, pairs)), sum(lasting) / compared


def measure(options: argparse.Namespace) -> None:
    """A process for each way; the reference is a generator alone."""
    rows, reference = [], None
    for name in options.way or WAYS:
        job = {**WAYS[name], "random": options.random}
        job["folder"] = str(options.model if job["way"] in ("turns", "batch") else options.target)
        found = subprocess.run(
            [sys.executable, __file__, "child", json.dumps(job)], capture_output=True, text=True, check=False
        )
        if found.returncode:
            rows.append([name, f"refused: {found.stderr.strip().splitlines()[-1][:200]}", *[""] * 7])
            sys.stderr.write(f"{name}: {found.stderr[-1500:]}\n")
            continue
        seen = json.loads(found.stdout.splitlines()[-1])
        reference = reference or seen["alone"]
        own, to_reference = agreement(seen["together"], seen["alone"]), agreement(seen["together"], reference)
        if options.results:
            with options.results.open("a", encoding="utf-8") as results:
                results.write(json.dumps({"name": name, **seen}) + "\n")
        rows.append(
            [
                name,
                f"{seen['one']:.0f}",
                f"{seen['all']:.0f}",
                f"{seen['all'] / seen['one']:.2f}",
                f"{own[0]} of {len(reference)}, {own[1]:.1%}, {own[2]:.2%}",
                f"{to_reference[0]} of {len(reference)}, {to_reference[1]:.1%}, {to_reference[2]:.2%}",
                f"{seen['loaded_mb']:.0f}",
                f"{seen['alone_mb']:.0f}",
                f"{seen['all_mb']:.0f}",
            ]
        )
        sys.stderr.write(f"{rows[-1]}\n")
    header = (
        "way",
        "one, tokens/s",
        "eight",
        "ratio",
        "as alone",
        "as a generator alone",
        "loaded MB",
        "after one",
        "after eight",
    )
    print_table(header, rows)


if __name__ == "__main__":
    main()
