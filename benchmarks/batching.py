"""Several answers of one model at once: generators that take turns, one generator with a batch, and OGA's Engine.

Usage: batching.py [ROUNDS]. For 1, 2 and 4 prompts of unlike length: tokens a second of all together, and how many answers
are, token for token, those of a generator alone. The ways take turns within each round. The college lets generators take
turns; the batch has to begin with all of its prompts at once, so nobody could join it. Engine is asked through whichever
interface the installed release has.
"""

from __future__ import annotations

import json
import os
import statistics
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

os.environ["ORT_DISABLE_TELEMETRY"] = "1"
import onnxruntime_genai as oga
from generators import in_batch, in_turns
from pairs import MODEL, print_table

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))
from coe_cli.providers.settings import default_session_options
from coe_cli.runtime.folders import folders

CONTEXT_LENGTH, TOKENS = 1024, 48
PROMPTS = [
    "Tell a long story about a lighthouse keeper.",
    "Write a long letter to a friend about a journey by train through the mountains in winter.",
    "List many animals.",
    "Explain at length how bread is made, from the field to the table, for somebody who has never seen it done.",
]
Way = Callable[[list[Any]], list[list[int]]]


class Bench:
    """One model and the ways to let it write several answers."""

    def __init__(self) -> None:
        config = oga.Config(str(folders().models / MODEL))
        options = {"model": {"decoder": {"session_options": default_session_options("cpu")}}}
        config.overlay(json.dumps(options))
        self.model = oga.Model(config)
        self.tokenizer = oga.Tokenizer(self.model)

    def prompt(self, text: str) -> Any:
        chat = json.dumps([{"role": "user", "content": text}])
        return self.tokenizer.encode(self.tokenizer.apply_chat_template(chat, add_generation_prompt=True))

    def params(self, **options: Any) -> Any:
        params = oga.GeneratorParams(self.model)
        params.set_search_options(max_length=CONTEXT_LENGTH, do_sample=False, min_length=CONTEXT_LENGTH - 1, **options)
        return params

    def taking_turns(self, prompts: list[Any]) -> list[list[int]]:
        """What the college does: a generator each, one token each in turn."""
        return in_turns([oga.Generator(self.model, self.params()) for _ in prompts], prompts, TOKENS)

    def batch(self, prompts: list[Any]) -> list[list[int]]:
        """One generator; shorter prompts are padded on the left."""
        pad = json.loads((folders().models / MODEL / "genai_config.json").read_text())["model"]["pad_token_id"]
        return in_batch(oga.Generator(self.model, self.params(batch_size=len(prompts))), prompts, pad, TOKENS)

    def engine(self, prompts: list[Any]) -> list[list[int]]:
        """Continuous batching, in the interface of the release that is installed."""
        engine = oga.Engine(self.model)
        return (self._turns if hasattr(engine, "run") else self._steps)(engine, prompts)

    def _turns(self, engine: Any, prompts: list[Any]) -> list[list[int]]:
        requests = [engine.create_request() for _ in prompts]
        for request, ids in zip(requests, prompts, strict=True):
            options = oga.TurnOptions(request)
            options.set_do_sample(False)
            options.set_min_generated_tokens(TOKENS)
            options.set_max_generated_tokens(TOKENS)
            request.begin_turn(ids, options)
        answers: list[list[int]] = [[] for _ in prompts]
        buffer = engine.create_event_buffer(64)
        while engine.has_pending_requests():
            for event in engine.run(buffer):
                if event.finish_reason == oga.FinishReason.FAILED:
                    raise RuntimeError(event.error_code.name)
                if event.flags & oga.EngineEventFlags.TOKEN:
                    answers[requests.index(event.request)].append(int(event.token))
        return answers

    def _steps(self, engine: Any, prompts: list[Any]) -> list[list[int]]:
        requests = []
        for ids in prompts:
            request = oga.Request(self.params())
            request.add_tokens(ids)
            engine.add_request(request)
            requests.append(request)
        answers: list[list[int]] = [[] for _ in prompts]
        while min(map(len, answers)) < TOKENS:
            ready = engine.step()
            while ready is not None and ready.has_unseen_tokens():
                answers[requests.index(ready)].append(int(ready.get_unseen_token()))
        return [answer[:TOKENS] for answer in answers]


def why_not(way: Way, prompts: list[Any]) -> str:
    try:
        way(prompts)
    except (RuntimeError, AttributeError, TypeError, ValueError) as error:
        return str(error).strip().splitlines()[0][:110]
    return ""


def main() -> None:
    rounds = int(sys.argv[1]) if len(sys.argv) > 1 else 3
    bench = Bench()
    prompts = [bench.prompt(text) for text in PROMPTS]
    shortest = min(map(len, prompts))
    cut = [ids[-shortest:] for ids in prompts]
    ways: dict[str, Way] = {"taking turns": bench.taking_turns, "one batch": bench.batch, "Engine": bench.engine}
    rows = []
    for title, some in (("1", prompts[:1]), ("2", prompts[:2]), ("4", prompts), ("4 of one length", cut)):
        alone = [bench.taking_turns([ids])[0] for ids in some]
        reasons = {name: why_not(way, some) for name, way in ways.items()}
        rates: dict[str, list[float]] = {name: [] for name, reason in reasons.items() if not reason}
        same: dict[str, int] = {}
        for _ in range(rounds):
            for name in rates:
                begin = time.perf_counter()
                answers = ways[name](some)
                rates[name].append(len(some) * TOKENS / (time.perf_counter() - begin))
                same[name] = sum(a == b for a, b in zip(answers, alone, strict=True))
        for name, reason in reasons.items():
            if reason:
                rows.append((title, name, f"refused: {reason}", ""))
            else:
                rows.append((title, name, f"{statistics.median(rates[name]):.0f}", f"{same[name]} of {len(some)}"))
    print_table(("prompts", "way", "tokens/s", "as alone"), rows)


if __name__ == "__main__":
    main()
