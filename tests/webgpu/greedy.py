"""What ONNX Runtime GenAI writes greedily on a provider: greedy.py MODEL_FOLDER PROVIDER prints one JSON object.

Prompt → its tokens, and for each how far the second choice lay below the first, in standard deviations of the logits. Two slots
answer in turns, and each is used twice, cut back to where its two prompts part.
"""

from __future__ import annotations

import json
import os
import sys
from pathlib import Path

import numpy as np

sys.path.insert(0, str(Path(__file__).parents[2]))

PROMPTS = ("The capital of France", "tell " * 40, "tell " * 30 + "no more", "one, two, three")
TOKENS = 16
CONTEXT = 1024


def main(folder: str, provider: str) -> None:
    import onnxruntime_genai as oga

    from coe_cli.providers.settings import configure, default_provider_options, default_session_options
    from coe_cli.runtime.model_folder.model_files import read_config

    config = oga.Config(folder)
    of_model = read_config("model", Path(folder)).provider_options(provider)
    options = default_provider_options(provider)
    configure(oga, config, provider, options, default_session_options(provider), of_model)
    model = oga.Model(config)
    tokenizer = oga.Tokenizer(model)
    parameters = oga.GeneratorParams(model)
    parameters.set_search_options(max_length=CONTEXT, do_sample=False)
    slots = [oga.Generator(model, parameters) for _ in range(2)]
    found: dict[str, list[tuple[int, float]]] = {prompt: [] for prompt in PROMPTS}
    before: list[list[int]] = [[], []]
    for turn in (PROMPTS[:2], PROMPTS[3:1:-1]):
        for place, prompt in enumerate(turn):
            ids = [int(token) for token in tokenizer.encode(prompt)]
            pairs = zip(ids[:-1], before[place], strict=False)
            same = next((n for n, (new, old) in enumerate(pairs) if new != old), 0)
            if before[place]:
                slots[place].rewind_to(same)
            slots[place].append_tokens(ids[same:])
            before[place] = ids
        for _ in range(TOKENS):
            for slot, prompt in zip(slots, turn, strict=True):
                logits = np.asarray(slot.get_logits(), np.float32).reshape(-1)
                second, first = np.sort(logits)[-2:]
                slot.generate_next_token()
                found[prompt].append((int(slot.get_next_tokens()[0]), float((first - second) / logits.std())))
    sys.stdout.write(json.dumps(found) + "\n")
    sys.stdout.flush()
    os._exit(0)


if __name__ == "__main__":
    main(*sys.argv[1:])
