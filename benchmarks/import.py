"""What an import costs: CPU time, memory beyond the system's file cache, and size of the result, on real or random weights.

    python benchmarks/import.py FILE.gguf|FOLDER... [--provider NAME] [--precision NAME] [--random LAYERSxHIDDENxMLPxHEADSxKVxVOCAB]

``--random 28x3584x18944x28x4x152064`` writes a Q4_K_M-like GGUF file of that shape (a 7B's here) with random weights into a
temporary folder first. Memory is the child's largest private memory (RssAnon on Linux), sampled 20 times a second: mapped files are not in it.
"""

from __future__ import annotations

import argparse
import struct
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import psutil
from pairs import print_table

_TYPES = {"F32": (0, 1, 4), "Q4_K": (12, 256, 144), "Q6_K": (14, 256, 210)}
_SCALES = {"Q4_K": {0: 3e-5, 2: 22.5e-5}, "Q6_K": {208: 3e-5}}
"""Where a block's scales are, and values that give weights around zero, small enough for 28 layers in fp16."""


def write_random_gguf(path: Path, shape: str) -> None:
    """A qwen2 of random weights: Q4_K, with every other layer's value and down matrix and the head in Q6_K, as Q4_K_M has it."""
    import numpy as np

    layers, hidden, inner, heads, kv_heads, vocabulary = (int(value) for value in shape.split("x"))
    head = hidden // heads
    tensors: list[tuple[str, tuple[int, ...], str]] = [("token_embd.weight", (vocabulary, hidden), "Q4_K")]
    for layer in range(layers):
        wide = "Q6_K" if layer % 2 else "Q4_K"
        matrices = {
            "attn_q": (heads * head, hidden, "Q4_K"),
            "attn_k": (kv_heads * head, hidden, "Q4_K"),
            "attn_v": (kv_heads * head, hidden, wide),
            "attn_output": (hidden, heads * head, "Q4_K"),
            "ffn_gate": (inner, hidden, "Q4_K"),
            "ffn_up": (inner, hidden, "Q4_K"),
            "ffn_down": (hidden, inner, wide),
        }
        tensors += [
            (f"blk.{layer}.{name}.weight", (rows, columns), kind) for name, (rows, columns, kind) in matrices.items()
        ]
        tensors += [(f"blk.{layer}.{name}.weight", (hidden,), "F32") for name in ("attn_norm", "ffn_norm")]
    tensors += [("output_norm.weight", (hidden,), "F32"), ("output.weight", (vocabulary, hidden), "Q6_K")]
    facts = {
        "block_count": layers,
        "embedding_length": hidden,
        "feed_forward_length": inner,
        "attention.head_count": heads,
        "attention.head_count_kv": kv_heads,
        "context_length": 32768,
    }
    rng = np.random.default_rng(0)
    with path.open("wb") as file:
        file.write(b"GGUF" + struct.pack("<IQQ", 3, len(tensors), len(facts) + 2))
        file.write(_text("general.architecture") + struct.pack("<I", 8) + _text("qwen2"))
        file.write(_text("qwen2.attention.layer_norm_rms_epsilon") + struct.pack("<If", 6, 1e-6))
        for key, value in facts.items():
            file.write(_text(f"qwen2.{key}") + struct.pack("<II", 4, value))
        offset = 0
        for name, sizes, kind in tensors:
            number, elements, size = _TYPES[kind]
            file.write(_text(name) + struct.pack("<I", len(sizes)))
            file.write(struct.pack(f"<{len(sizes)}Q", *reversed(sizes)) + struct.pack("<IQ", number, offset))
            offset += -(-int(np.prod(sizes)) // elements * size // 32) * 32
        file.write(bytes(-file.tell() % 32))
        for _, sizes, kind in tensors:
            _, elements, size = _TYPES[kind]
            count = int(np.prod(sizes)) // elements
            for start in range(0, count, 1 << 18):
                raw = rng.integers(0, 256, (min(1 << 18, count - start), size), np.uint8)
                for place, scale in _SCALES.get(kind, {}).items():
                    raw[:, place : place + 2] = np.array([scale], np.float16).view(np.uint8)
                file.write(np.ones(len(raw), np.float32).data if kind == "F32" else raw.data)
            file.write(bytes(-file.tell() % 32))


def _text(value: str) -> bytes:
    return struct.pack("<Q", len(value)) + value.encode()


def graph_and_tokenizer(source: str, output: str, provider: str, precision: str) -> None:
    """The child: graph and weights, and the tokenizer, which a random file does not have."""
    from coe_cli.core.importing.encodings import rules_for
    from coe_cli.runtime.importing.source import inspect
    from coe_cli.runtime.importing.tokenizer_files import write_tokenizer
    from coe_cli.runtime.importing.write_decoder import write_decoder

    found = inspect(Path(source))
    if "random-" not in source:
        write_tokenizer(found, Path(output))
    write_decoder(found.decoder, found.weights(), Path(output), rules_for(provider, precision), precision)  # type: ignore[arg-type]


def measure(source: Path, provider: str, precision: str) -> tuple[float, float, float, float]:
    """CPU seconds, private MB at the peak, MB of the source's weights and MB of the result."""
    with tempfile.TemporaryDirectory(dir=source.parent) as output:
        command = [sys.executable, __file__, "--child", str(source), output, provider, precision]
        child = psutil.Popen(command, stderr=subprocess.PIPE)
        peak, cpu = 0, 0.0
        while child.poll() is None:
            try:
                times, memory = child.cpu_times(), child.memory_info()
                cpu = max(cpu, times.user + times.system)
                peak = max(peak, memory.rss - getattr(memory, "shared", 0))
            except (psutil.NoSuchProcess, psutil.AccessDenied):
                break
            time.sleep(0.05)
        assert child.stderr is not None
        if child.wait():
            sys.exit(child.stderr.read().decode())
        size = sum(path.stat().st_size for path in Path(output).iterdir())
    files = [source] if source.is_file() else list(source.glob("*.safetensors"))
    return cpu, peak / 2**20, sum(file.stat().st_size for file in files) / 2**20, size / 2**20


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("sources", nargs="*", type=Path)
    parser.add_argument("--provider", default="cpu")
    parser.add_argument("--precision", default="int4")
    parser.add_argument("--random", metavar="SHAPE")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory(dir=Path.cwd()) as scratch:
        sources = list(options.sources)
        if options.random:
            sources.append(Path(scratch) / f"random-{options.random}.gguf")
            write_random_gguf(sources[-1], options.random)
        rows = []
        for source in sources:
            cpu, peak, before, after = measure(source, options.provider, options.precision)
            rows.append(
                [source.name, f"{cpu:.1f}", f"{peak:.0f}", f"{before:.0f}", f"{after:.0f}", f"{after / before:.2f}"]
            )
        print_table(["source", "CPU s", "memory MB", "source MB", "result MB", "ratio"], rows)


if __name__ == "__main__":
    if sys.argv[1:2] == ["--child"]:
        graph_and_tokenizer(*sys.argv[2:6])
    else:
        main()
