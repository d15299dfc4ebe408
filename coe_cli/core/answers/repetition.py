"""Whether an answer has begun to repeat itself: small models do, and go on until their context is full."""

from __future__ import annotations

from typing import Final

LEAST_TOKENS: Final = 256
LEAST_TIMES: Final = 8
MOST_PERIOD: Final = 128
WORDLESS_TOKENS: Final = 1024
"""Rules, zeros and blanks repeat in good answers too: what has no letter is given so many tokens."""
_LOOK_EVERY: Final = 16


class RepetitionDetector:
    """Feed the tokens of an answer one by one.

    An answer repeats itself when its end is one block of at most 128 tokens, at least 8 times and over 256 tokens; a block
    without a letter over 1,024. Whatever changes from one time to the next, such as a number that counts, is no repetition.
    """

    def __init__(self) -> None:
        self._ids: list[int] = []
        self._letters: list[bool] = []

    def feed(self, token: int, text: str) -> bool:
        """Take in one token, whose text is ``text``; whether the answer repeats itself by now."""
        self._ids.append(token)
        self._letters.append(any(map(str.isalpha, text)))
        if len(self._ids) % _LOOK_EVERY or len(self._ids) < LEAST_TOKENS:
            return False
        return any(self._repeats(period) for period in range(1, MOST_PERIOD + 1))

    def _repeats(self, period: int) -> bool:
        ids = self._ids
        if ids[-1] != ids[-1 - period]:
            return False
        least = max(LEAST_TOKENS, LEAST_TIMES * period)
        if not any(self._letters[-period:]):
            least = max(least, WORDLESS_TOKENS)
        return len(ids) >= least and ids[-least:-period] == ids[period - least :]
