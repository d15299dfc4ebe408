"""Inside the worker: a loaded model and the answers it is writing. The only code that drives ONNX Runtime GenAI."""

from __future__ import annotations

import os
import time
from collections import deque
from collections.abc import Callable
from functools import cache
from pathlib import Path
from typing import Any

from coe_cli.core.answers.repetition import RepetitionDetector
from coe_cli.core.answers.sampling import search_options
from coe_cli.core.answers.stop_strings import StopStrings
from coe_cli.core.answers.token_bytes import TokenBytes, TokenLogprob
from coe_cli.core.providers import spec_of
from coe_cli.errors import PromptTooLong, UsageError
from coe_cli.providers.settings import configure
from coe_cli.runtime.worker import protocol
from coe_cli.runtime.worker.engine import EngineSlots, configure_engine, is_paged
from coe_cli.runtime.worker.private_folder import private_folder
from coe_cli.runtime.worker.slots import Slots

_TOKENIZER = "tokenizer.json"


class PreparedModel:
    """A model in memory, with its tokenizer for the answers' text.

    Raises:
        RuntimeError: OGA cannot load it; the text says why.
        ModelDamaged: it asks for something that is not allowed.
    """

    def __init__(self, oga: Any, message: protocol.Load) -> None:
        self.name = os.path.basename(os.path.normpath(message.folder))  # noqa: PTH119
        self.provider = message.provider
        folder, settings = private_folder(Path(message.folder))
        config = oga.Config(str(folder))
        of_model = settings.provider_options(message.provider)
        configure(oga, config, message.provider, message.provider_options, message.session_options, of_model)
        if paged := is_paged(settings.content):
            configure_engine(config, settings.content, message)
        self.search: dict[str, Any] = settings.content.get("search", {})
        self.model = oga.Model(config)
        self.tokenizer = oga.Tokenizer(self.model)
        self.token_bytes = token_bytes(folder)
        chunk_size, can = settings.search("chunk_size"), spec_of(message.provider).capabilities
        self.slots: Slots | EngineSlots = (
            EngineSlots(oga, self.model, settings.content["model"].get("eos_token_id", 0))
            if paged
            else Slots(oga, self.model, message.slots, chunk_size, can)
        )
        if message.warm_context_length is not None:
            self.slots.warm({"max_length": message.warm_context_length}, self.tokenizer.encode("warm up")[:8])


class Generation:
    """One answer in progress: ``prepare``, then ``step`` until ``finish_reason`` is set."""

    def __init__(self, model: PreparedModel, message: protocol.Generate) -> None:
        self.request_id = message.request_id
        self.finish_reason: protocol.FinishReason | None = None
        self._model = model
        self._message = message
        self._begin = time.perf_counter()
        self._first_token_at = self._begin
        self._prompt_ids = message.prompt_ids
        self._slot: Any = None
        self._generator: Any = None
        self._completion_tokens = 0
        self._token_at_s: list[float] = []
        self._stops = StopStrings(message.stop)
        self._repetition = RepetitionDetector()
        self._repeats = False
        self._logprobs: Logprobs | None = None

    def prepare(self) -> protocol.Started:
        """Find a slot for the prompt.

        Raises:
            PromptTooLong: prompt and one token of answer do not fit ``context_length``.
        """
        prompt_tokens, context = len(self._prompt_ids), self._message.context_length
        if prompt_tokens >= context:
            raise PromptTooLong(
                f"the prompt has {prompt_tokens} tokens and the context is {context}",
                "Shorten the prompt, or choose a profile or model with a longer context.",
            )
        if self._message.logprobs is not None:
            self._logprobs = Logprobs(self._model.token_bytes(), self._message.logprobs)
        room = context - prompt_tokens
        self._budget = min(self._message.max_tokens or room, room)
        self._slot = self._model.slots.acquire(self._search_options(), self._message.guidance, self._prompt_ids)
        if self._logprobs is not None and self._slot.batched:
            raise UsageError(
                "a model that was imported with --paged tells no log probabilities",
                "Ask without them, or import it again without --paged.",
            )
        self._stream = self._model.tokenizer.create_stream()
        reused = self._slot.reusable_tokens(self._prompt_ids)
        # A grammar sees the prompt as one chunk only.
        self._slot.begin(self._prompt_ids, whole=self._message.guidance is not None)
        return protocol.Started(self.request_id, prompt_tokens, reused)

    def release(self, *, reusable: bool = True) -> None:
        """Give the slot back, ``reusable`` with what is in its cache; safe to call more than once."""
        self._generator = None
        if self._slot is not None:
            self._model.slots.release(self._slot, reusable=reusable)
            self._slot = None

    def step(self) -> str | None:
        """Run a chunk of the prompt, or generate one token; the text that may be shown, None while the prompt is read.

        Sets ``finish_reason`` at the end.
        """
        if self._generator is None:
            self._generator = self._slot.run_chunk()
            return None
        if self._logprobs is not None:
            self._logprobs.look(self._generator.get_logits())
        self._generator.generate_next_token()
        self._completion_tokens += 1
        if self._completion_tokens == 1:
            self._first_token_at = time.perf_counter()
        if self._message.measured:
            self._token_at_s.append(time.perf_counter())
        if self._generator.is_done():
            context_full = len(self._prompt_ids) + self._completion_tokens >= self._message.context_length
            self.finish_reason = "length" if context_full else "stop"
            # The last token is the end-of-sequence mark unless the context ran out.
            text = self._decode() if context_full else ""
        else:
            text = self._written()
        if self._slot.batched:
            self._generator = None  # until it has another token
        shown = self._before_stop(text) if self._message.stop else text
        if self._logprobs is not None:
            ended = self.finish_reason is not None
            self._logprobs.show(shown, last=ended and not self._stops.stopped)
        return shown

    def take_logprobs(self) -> list[TokenLogprob]:
        """Those of the tokens in the text that ``step`` has given and that were not taken yet."""
        return self._logprobs.take() if self._logprobs is not None else []

    def done(self, reason: protocol.FinishReason) -> protocol.Done:
        return protocol.Done(
            request_id=self.request_id,
            finish_reason=reason,
            prompt_tokens=len(self._prompt_ids),
            completion_tokens=self._completion_tokens,
            first_token_s=self._first_token_at - self._begin,
            decode_s=time.perf_counter() - self._first_token_at,
            token_at_s=self._token_at_s,
            repeats=self._repeats,
            stopped_by=self._stops.stopped_by,
        )

    def _written(self) -> str:
        """The text of the token just written; sets ``finish_reason`` where it is the last."""
        sampling, token = self._message.sampling, self._token()
        if token in sampling.stop_token_ids and self._completion_tokens > (sampling.min_tokens or 0):
            self.finish_reason = "stop"
            return ""
        text = self._decode()
        repeats = not self._message.measured and self._repetition.feed(token, text)
        self._repeats = repeats and self._completion_tokens >= (sampling.min_tokens or 0)
        if self._repeats or self._completion_tokens >= self._budget:
            self.finish_reason = "length"
        return text

    def _decode(self) -> str:
        token = self._token()
        if self._logprobs is not None:
            self._logprobs.add(token)
        return str(self._stream.decode(token))

    def _token(self) -> int:
        return int(self._generator.get_next_tokens()[0])

    def _search_options(self) -> dict[str, Any]:
        options = {
            "max_length": self._message.context_length,
            **search_options(self._message.sampling, self._model.search),
        }
        if self._message.sampling.min_tokens:
            asked = len(self._prompt_ids) + self._message.sampling.min_tokens
            options["min_length"] = min(asked, self._message.context_length)
        if self._message.measured:
            options["min_length"] = self._message.context_length  # no end-of-sequence before that
        return options

    def _before_stop(self, text: str) -> str:
        shown = self._stops.feed(text)
        if self._stops.stopped:
            self.finish_reason = "stop"
        return shown if self.finish_reason is None else shown + self._stops.finish()


def token_bytes(folder: Path) -> Callable[[], TokenBytes]:
    """Reads the bytes of a model's tokens when they are first needed."""
    return cache(lambda: TokenBytes((folder / _TOKENIZER).read_bytes()))


class Logprobs:
    """For each token ``look`` and ``add``, then ``show``. They are the model's own: before temperature, penalties and grammar.

    ``alternatives``: how many of the likeliest tokens are told beside each.
    """

    def __init__(self, tokens: TokenBytes, alternatives: int) -> None:
        self._tokens, self._alternatives = tokens, alternatives
        self._logprobs: Any = None
        self._waiting: deque[tuple[int, TokenLogprob]] = deque()
        self._written = self._shown = 0
        self._ready: list[TokenLogprob] = []

    def look(self, logits: Any) -> None:
        """Take in the logits of the next token, of shape [1, tokens, vocabulary]; the last position counts."""
        import numpy as np

        values = np.asarray(logits, np.float64).reshape(-1, logits.shape[-1])[-1]
        highest = values.max()
        self._logprobs = values - (highest + np.log(np.exp(values - highest).sum()))

    def add(self, token: int) -> None:
        """The token that was chosen."""
        import numpy as np

        row, count = self._logprobs, min(self._alternatives, len(self._logprobs))
        likeliest: Any = np.argpartition(row, -count)[-count:] if count else []
        best = sorted((int(each) for each in likeliest), key=lambda each: -row[each])
        top = [(self._tokens.of(each), float(row[each]), each) for each in best]
        text = self._tokens.of(token)
        self._waiting.append((self._written, TokenLogprob(text, float(row[token]), token, top)))
        self._written += len(text)

    def show(self, text: str, *, last: bool) -> None:
        """Make ready what begins within the text that is shown by now; with ``last`` all that is left."""
        self._shown += len(text.encode())
        while self._waiting and (last or self._waiting[0][0] < self._shown):
            self._ready.append(self._waiting.popleft()[1])

    def take(self) -> list[TokenLogprob]:
        """What is ready, once."""
        ready, self._ready = self._ready, []
        return ready
