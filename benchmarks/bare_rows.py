"""The yardstick of `coe batch`: a bare ONNX Runtime GenAI loop over rows. Usage: bare_rows.py MODEL_DIR ROWS THREADS [PART OF].

``ROWS`` is a file of `{"messages", "max_tokens"}` lines; process PART of OF takes every OF-th row. Greedy, one row after
the other, a new generator for each. Prints the number of tokens.
"""

from __future__ import annotations

import json
import os
import sys
from pathlib import Path

os.environ["ORT_DISABLE_TELEMETRY"] = "1"
import onnxruntime_genai as oga

CONTEXT_LENGTH = 4096


def main() -> None:
    folder, rows, threads = sys.argv[1], Path(sys.argv[2]), int(sys.argv[3])
    part, of = (int(sys.argv[4]), int(sys.argv[5])) if len(sys.argv) > 4 else (0, 1)
    config = oga.Config(folder)
    config.overlay(json.dumps({"model": {"decoder": {"session_options": {"intra_op_num_threads": threads}}}}))
    model = oga.Model(config)
    tokenizer = oga.Tokenizer(model)
    tokens = 0
    for line in rows.read_text().splitlines()[part::of]:
        row = json.loads(line)
        params = oga.GeneratorParams(model)
        params.set_search_options(max_length=CONTEXT_LENGTH, do_sample=False)
        generator = oga.Generator(model, params)
        stream = tokenizer.create_stream()
        chat = tokenizer.apply_chat_template(json.dumps(row["messages"]), add_generation_prompt=True)
        generator.append_tokens(tokenizer.encode(chat))
        written, text = 0, []
        while not generator.is_done() and written < row["max_tokens"]:
            generator.generate_next_token()
            written += 1
            text.append(stream.decode(generator.get_next_tokens()[0]))
        tokens += written
    print(tokens)


if __name__ == "__main__":
    main()
