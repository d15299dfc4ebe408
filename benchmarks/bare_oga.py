"""The yardstick: a bare ONNX Runtime GenAI loop with its threads set. Usage: bare_oga.py MODEL_DIR PROMPT MAX_TOKENS."""

from __future__ import annotations

import json
import os
import sys
import time

os.environ["ORT_DISABLE_TELEMETRY"] = "1"
import onnxruntime_genai as oga

CONTEXT_LENGTH = 4096


def main() -> None:
    """Stream the answer to stdout; the last line of stderr is JSON with the decode rate."""
    folder, prompt, max_tokens = sys.argv[1], sys.argv[2], int(sys.argv[3])
    config = oga.Config(folder)
    threads = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    config.overlay(json.dumps({"model": {"decoder": {"session_options": {"intra_op_num_threads": threads}}}}))
    model = oga.Model(config)
    tokenizer = oga.Tokenizer(model)
    stream = tokenizer.create_stream()
    chat = json.dumps([{"role": "user", "content": prompt}])
    params = oga.GeneratorParams(model)
    params.set_search_options(max_length=CONTEXT_LENGTH, do_sample=False)
    generator = oga.Generator(model, params)
    generator.append_tokens(tokenizer.encode(tokenizer.apply_chat_template(chat, add_generation_prompt=True)))
    tokens, first_at = 0, 0.0
    while not generator.is_done() and tokens < max_tokens:
        generator.generate_next_token()
        tokens += 1
        if tokens == 1:
            first_at = time.perf_counter()
        sys.stdout.write(stream.decode(generator.get_next_tokens()[0]))
        sys.stdout.flush()
    elapsed = time.perf_counter() - first_at
    sys.stderr.write(json.dumps({"tokens": tokens, "tokens_per_s": (tokens - 1) / elapsed if elapsed else None}) + "\n")


if __name__ == "__main__":
    main()
