"""Inside the worker: the answers of a paged model, which share each run of its graph (OGA's ``Engine``, continuous batching).

What ``generation`` drives is a slot as in ``slots``: it runs a chunk when it is its turn, and then has a token to give. Here a turn runs
the engine for all slots, as soon as none has a token left that came with the others'.

Nothing of a cache is used again for a later prompt: it would be whole blocks, some of them of answers, whose tokens were made one by one.
So ``prefix_caching`` is off, and each answer reads its prompt anew.
"""

from __future__ import annotations

import json
from collections import deque
from collections.abc import Mapping
from typing import Any, Final

from coe_cli.core.memory.prefill import tokens_at_once
from coe_cli.core.providers import all_specs, spec_of
from coe_cli.errors import ModelDamaged
from coe_cli.runtime.worker import protocol

_EVENTS: Final = 64
_BLOCK_TOKENS: Final = 256
"""OGA's own, where a configuration names none."""
_REQUEST_OPTIONS: Final = ("max_length", "min_length", "random_seed")
"""Search options that an engine calls otherwise; the others have a setter of their name."""


def is_paged(content: Mapping[str, Any]) -> bool:
    """Whether a model's configuration asks for continuous batching."""
    return "dynamic_batching" in content.get("engine", {})


def configure_engine(config: Any, content: Mapping[str, Any], message: protocol.Load) -> None:
    """Give a paged model's cache the blocks of all ``message.slots``, as they are planned, and its runs their size.

    Raises:
        ModelDamaged: the provider has no such kernels.
    """
    capabilities = spec_of(message.provider).capabilities
    if not capabilities.continuous_batching:
        able = ", ".join(spec.label for spec in all_specs() if spec.capabilities.continuous_batching)
        raise ModelDamaged(
            f"the model was imported with --paged, which {spec_of(message.provider).label} cannot run",
            f"Run it on {able}, or import it again without --paged.",
        )
    section, slots = content["engine"]["dynamic_batching"], message.slots
    context = message.context_length
    if context is None and "num_blocks" not in section:
        context = content["model"].get("context_length")
    batching = {"max_batch_size": slots, "max_scheduled_tokens": tokens_at_once(capabilities), "prefix_caching": False}
    if context:
        batching["num_blocks"] = slots * -(-context // section.get("block_size", _BLOCK_TOKENS))
    config.overlay(json.dumps({"engine": {"dynamic_batching": batching}}))


class EngineSlots:
    """The slots of one paged model: an engine with a cache for all of them, which the load has made."""

    def __init__(self, oga: Any, model: Any, ends: int | list[int]) -> None:
        self._oga, self._model = oga, model
        self._end = ends[0] if isinstance(ends, list) else ends
        self._open: dict[Any, EngineSlot] = {}
        self._start()

    def _start(self) -> None:
        self._engine = self._oga.Engine(self._model)
        self._buffer = self._engine.create_event_buffer(_EVENTS)

    def acquire(self, options: dict[str, Any], guidance: protocol.Guidance | None, prompt_ids: list[int]) -> EngineSlot:
        """A slot for one answer."""
        if self._engine is None:
            self._start()
        of_request = self._oga.RequestOptions()
        of_request.set_max_session_tokens(options["max_length"])
        request = self._engine.create_request(options=of_request)
        try:
            of_turn = self._turn_options(request, options, guidance, len(prompt_ids))
        except Exception:
            request.close()
            raise
        slot = self._open[request] = EngineSlot(self, request, of_turn)
        return slot

    def _turn_options(
        self, request: Any, options: dict[str, Any], guidance: protocol.Guidance | None, prompt_tokens: int
    ) -> Any:
        of_turn = self._oga.TurnOptions(request)
        for name, value in options.items():
            if name not in _REQUEST_OPTIONS:
                getattr(of_turn, f"set_{name}")(value)
        if "random_seed" in options:
            of_turn.set_seed(options["random_seed"])
        if options.get("min_length", 0) > prompt_tokens:
            of_turn.set_min_generated_tokens(options["min_length"] - prompt_tokens)
        if guidance is not None:
            of_turn.set_guidance(guidance.kind, guidance.data)
        return of_turn

    def release(self, slot: EngineSlot, *, reusable: bool = True) -> None:
        """The slot's answer has ended: its blocks are free."""
        if self._open.pop(slot.request, None) is not None:
            slot.request.close()

    def warm(self, options: dict[str, Any], ids: Any) -> None:
        """Let one slot write one token."""
        slot = self.acquire(options, None, [])
        slot.begin([int(token) for token in ids])
        while slot.run_chunk() is None:
            pass
        self.release(slot)

    def run(self) -> None:
        """Run the graph once for all slots, unless one has a token that was not taken yet.

        Raises:
            Exception: the engine is broken, as ONNX Runtime GenAI says. All that it was writing fails, and the next answer has a new one.
        """
        if any(slot.tokens for slot in self._open.values()):
            return
        try:
            for event in self._engine.run(self._buffer):
                self._take(event)
        except Exception as error:
            broken, self._open = self._open, {}
            self._engine = self._buffer = None
            for slot in broken.values():
                slot.error = error
            raise

    def _take(self, event: Any) -> None:
        flags, kind = self._oga.EngineEventFlags, event.flags
        if event.request is None:
            raise RuntimeError(f"the engine stopped: {event.error_code.name}")
        if (slot := self._open.get(event.request)) is None:
            return
        finished = bool(kind & flags.TURN_FINISHED)
        if kind & flags.FAILED:
            slot.error = RuntimeError(f"the engine refused it: {event.error_code.name}")
        elif kind & flags.TOKEN:
            slot.tokens.append((int(event.token), finished))
        elif finished:
            slot.tokens.append((self._end, True))  # which the engine keeps to itself


class EngineSlot:
    """One answer of an engine; when it has a token, it is the generator that ``run_chunk`` gives."""

    batched = True

    def __init__(self, owner: EngineSlots, request: Any, options: Any) -> None:
        self.request = request
        self.tokens: deque[tuple[int, bool]] = deque()
        self.error: Exception | None = None
        self._owner, self._options = owner, options
        self._token = 0
        self._done = False

    def reusable_tokens(self, prompt_ids: list[int]) -> int:
        return 0

    def begin(self, prompt_ids: list[int], *, whole: bool = False) -> None:
        """Queue the prompt; the engine reads it in chunks, beside what the others write."""
        import numpy as np

        self.request.begin_turn(np.array(prompt_ids, dtype=np.int32), self._options)

    def run_chunk(self) -> EngineSlot | None:
        """Itself, where it has a token to give after a run.

        Raises:
            Exception: this answer or the whole engine has failed.
        """
        if not self.tokens and self.error is None:
            self._owner.run()
        if self.error is not None:
            raise self.error
        return self if self.tokens else None

    def generate_next_token(self) -> None:
        self._token, self._done = self.tokens.popleft()

    def get_next_tokens(self) -> list[int]:
        return [self._token]

    def is_done(self) -> bool:
        return self._done
