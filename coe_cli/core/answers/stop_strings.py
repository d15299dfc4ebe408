"""Stop strings: end an answer where one of them is complete, and show nothing that may turn out to begin one."""

from __future__ import annotations

from collections.abc import Sequence


class StopStrings:
    """Feed text as it arrives; the result does not depend on how it is cut.

    The stop string that is complete first counts; of several that are complete at the same character, the longest.
    """

    def __init__(self, stops: Sequence[str]) -> None:
        self._stops = [stop for stop in stops if stop]
        self._held = ""
        self.stopped_by = ""

    @property
    def stopped(self) -> bool:
        """Whether a stop string is complete."""
        return bool(self.stopped_by)

    def feed(self, text: str) -> str:
        """The text that is certain to be part of the answer; sets ``stopped_by`` when a stop string is complete."""
        self._held += text
        found = [(at + len(stop), at) for stop in self._stops if (at := self._held.find(stop)) >= 0]
        if found:
            end, at = min(found)
            self.stopped_by = self._held[at:end]
            shown, self._held = self._held[:at], ""
            return shown
        keep = max((overlap(self._held, stop) for stop in self._stops), default=0)
        cut = len(self._held) - keep
        shown, self._held = self._held[:cut], self._held[cut:]
        return shown

    def finish(self) -> str:
        """What was held back and is part of the answer after all, since it ended here."""
        shown, self._held = self._held, ""
        return shown


def overlap(text: str, tag: str) -> int:
    """Length of the longest end of ``text`` that begins ``tag`` without being all of it."""
    return next((n for n in range(min(len(text), len(tag) - 1), 0, -1) if text.endswith(tag[:n])), 0)
