"""Inside the worker: the log probabilities of an answer's tokens, handed on with the text that they belong to."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable
from functools import cache
from pathlib import Path
from typing import Any

from coe_cli.core.answers.token_bytes import TokenBytes, TokenLogprob

_TOKENIZER = "tokenizer.json"


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
        top = [(self._tokens.of(each), float(row[each])) for each in best]
        text = self._tokens.of(token)
        self._waiting.append((self._written, TokenLogprob(text, float(row[token]), top)))
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
