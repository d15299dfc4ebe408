"""Inside the worker: the generators of one model, each with its KV cache, and what of it a new prompt can use again.

A prompt that is run in chunks gives the same bits as in one chunk, as long as no chunk is a single token: one token at a
time goes through other kernels with other rounding (measured on the CPU, ONNX Runtime GenAI 0.13.1 and 0.18.0). So only
the tokens of earlier prompts are used again, not those of answers, which were made one by one; the next answer is then
the same as in a fresh run.
"""

from __future__ import annotations

import json
from typing import Any

from coe_cli.core.memory.prefill import LEAST_CHUNK, next_chunk, tokens_at_once
from coe_cli.core.providers.base import Capabilities
from coe_cli.runtime.worker.protocol import Guidance


class Slot:
    """One generator. ``prompt_ids`` are the tokens at the start of its cache that came from a prompt.

    Prompts are run in chunks of ``chunk_tokens`` at most, with None in one.
    """

    batched = False

    def __init__(self, generator: Any, key: str, chunk_tokens: int | None) -> None:
        self._generator = generator
        self._chunk_tokens = chunk_tokens
        self.key = key
        self.prompt_ids: list[int] = []
        self._rest: list[int] = []
        self._whole = False
        self.used = False

    def reusable_tokens(self, prompt_ids: list[int]) -> int:
        """How many tokens at the start of ``prompt_ids`` need not be run again."""
        length = 0
        for mine, new in zip(self.prompt_ids, prompt_ids, strict=False):
            if mine != new:
                break
            length += 1
        return max(0, min(length, len(prompt_ids) - LEAST_CHUNK))

    def begin(self, prompt_ids: list[int], *, whole: bool = False) -> None:
        """Keep what can be used again; ``run_chunk`` then runs the rest, with ``whole`` in one chunk."""
        kept = self.reusable_tokens(prompt_ids)
        if self.used:
            self._generator.rewind_to(kept)
        self.used = True
        self.prompt_ids, self._rest, self._whole = prompt_ids[:kept], prompt_ids[kept:], whole

    def run_chunk(self) -> Any:
        """Run the next chunk of the prompt; the generator, ready to write, when it was the last."""
        import numpy as np

        length = len(self._rest)
        if not self._whole:
            length = next_chunk(length, self._chunk_tokens)
        chunk, self._rest, before = self._rest[:length], self._rest[length:], self.prompt_ids
        self.prompt_ids = []
        self._generator.append_tokens(np.array(chunk, dtype=np.int32))
        self.prompt_ids = before + chunk
        return None if self._rest else self._generator


class Slots:
    """The slots of one model; never more generators than have answered at once, at most ``limit``.

    The scheduler counts a slot's memory from its first use on (``ModelEntry.warm_slots``): an idle generator beyond those
    would hold memory that is in nobody's plan.

    A generator's options are fixed when it is made, and a seeded one also carries the state of its random numbers: it is
    used again only for a request with the same options and without a seed or a grammar. Where the provider's generators take
    tokens once (``capabilities``), each request has a generator of its own.

    ``chunk_size`` bounds the chunks of a prompt below those of ``core.memory.prefill``. A prompt that a grammar wants in one chunk
    is split by OGA itself, which does that in the first run of a generator only.
    """

    def __init__(
        self,
        oga: Any,
        model: Any,
        limit: int,
        chunk_size: int | None = None,
        capabilities: Capabilities = Capabilities(),
    ) -> None:
        self._oga, self._model, self._limit = oga, model, max(1, limit)
        self._reuses = capabilities.reuses_prefixes
        self._chunk_tokens = tokens_at_once(capabilities, chunk_size)
        self._idle: list[Slot] = []
        self._running = 0
        self._opened = 1

    def acquire(self, options: dict[str, Any], guidance: Guidance | None, prompt_ids: list[int]) -> Slot:
        """An idle slot with the longest common beginning, or a new one in place of the one idle for longest."""
        key = json.dumps(options, sort_keys=True)
        repeatable = self._reuses and guidance is None and "random_seed" not in options
        fitting = [slot for slot in self._idle if slot.key == key] if repeatable else []
        running = self._running + 1
        opened = min(self._limit, max(self._opened, running))
        if fitting:
            slot = max(fitting, key=lambda slot: slot.reusable_tokens(prompt_ids))
            self._idle.remove(slot)
        else:
            while self._idle and running + len(self._idle) > opened:
                del self._idle[0]
            slot = self._new(options, guidance, key if repeatable else "")
        self._running, self._opened = running, opened
        return slot

    def _new(self, options: dict[str, Any], guidance: Guidance | None, key: str) -> Slot:
        params = self._oga.GeneratorParams(self._model)
        params.set_search_options(**options)
        if guidance is not None:
            if self._chunk_tokens is not None:
                params.set_search_options(chunk_size=self._chunk_tokens)
            params.set_guidance(guidance.kind, guidance.data)
        return Slot(self._oga.Generator(self._model, params), key, self._chunk_tokens)

    def release(self, slot: Slot, *, reusable: bool = True) -> None:
        """The slot's answer has ended; after a failure its generator is not to be trusted any more."""
        self._running -= 1
        if reusable and slot.key and self._running + len(self._idle) < self._opened:
            self._idle.append(slot)

    def warm(self, options: dict[str, Any], ids: Any) -> None:
        """Make one generator of the slots' size and let it write one token; it is thrown away where it cannot answer again."""
        slot = self.acquire(options, None, [])
        slot.begin([int(token) for token in ids], whole=True)
        slot.run_chunk().generate_next_token()
        self.release(slot)
