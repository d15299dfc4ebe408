"""From the events of one answer to its pieces, thoughts told from the answer: the one place where every way in does it."""

from __future__ import annotations

from coe_cli.core.answers.thinking import TextDelta, ThinkingSplitter
from coe_cli.runtime.college import college_events as ce


class AnswerPieces:
    """Feed it every event of one answer.

    Args:
        splits_thinking: false where nothing of the answer can be a thought: a raw completion, or a grammar, which leaves no
            place for one whatever the template has opened.
    """

    def __init__(self, *, splits_thinking: bool = True) -> None:
        self._splits_thinking = splits_thinking
        self._splitter = ThinkingSplitter(thinks=False)

    def of(self, event: ce.CollegeEvent) -> list[TextDelta]:
        """The pieces that are certain with this event."""
        if isinstance(event, ce.Delta):
            return self._splitter.feed(event.text)
        if isinstance(event, ce.Finished):
            return self._splitter.finish()
        if isinstance(event, ce.PrefillStarted):
            thinks = self._splits_thinking and (event.thinks or event.in_thinking)
            self._splitter = ThinkingSplitter(thinks=thinks, in_thinking=event.in_thinking)
        return []
