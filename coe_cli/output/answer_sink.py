"""Where an answer goes while it is written: plain stream, JSON, JSON lines, or only its last code block."""

from __future__ import annotations

from enum import StrEnum
from typing import Any

import msgspec

from coe_cli.core.answers.answer import Answer, last_code_block
from coe_cli.errors import CoeError
from coe_cli.output.console import Output, Wait
from coe_cli.output.terminal import for_terminal


class AnswerFormat(StrEnum):
    """Formats of `coe ask`."""

    HUMAN = "human"
    JSON = "json"
    JSONL = "jsonl"
    QUIET = "quiet"


class NoCodeBlock(CoeError):
    """``-x`` asks for a code block and the answer has none."""

    code = "no_code_block"


class AnswerSink:
    """The plain stream: the answer on stdout as it comes, thoughts on stderr if they are wanted.

    ``says_waiting``: a note on stderr of what the answer waits for, where that takes more than a second.
    """

    def __init__(self, output: Output, *, show_thinking: bool = False, says_waiting: bool = False) -> None:
        self._output = output
        self._show_thinking = show_thinking
        self._clean = for_terminal if output.stdout.isatty() else str
        self._ends_with_newline, self._wrote = True, False
        self._says_waiting = says_waiting
        self._wait, self._waits_for = Wait(output), ""

    def phase(self, name: str, worker_pid: int) -> None:
        """Say what is being done now."""
        self._wait_for("loading the model" if name == "loading" else name)

    def _wait_for(self, what: str) -> None:
        """Nothing is to be seen until ``what`` is done."""
        if self._says_waiting and what != self._waits_for:
            self._wait.begin(what)
            self._waits_for = what

    def wrote(self, tokens: int) -> None:
        """Count so many tokens more."""

    def delta(self, text: str, *, is_thinking: bool) -> None:
        """A delta of the answer or of the thoughts before it."""
        if is_thinking:
            if self._show_thinking:
                self._wait.end()
                self._output.stderr.write(for_terminal(text))
                self._output.stderr.flush()
            else:
                self._wait_for("thinking")
            return
        self._wait.end()
        self._ends_with_newline, self._wrote = text.endswith("\n"), True
        self._output.stdout.write(self._clean(text))
        self._output.stdout.flush()

    def finish(self, answer: Answer) -> None:
        """The answer is complete."""
        self.end()

    def end(self) -> None:
        """No more of the answer comes; a line of it that is open is ended."""
        self.close()
        if not self._ends_with_newline:
            self._output.stdout.write("\n")
            self._output.stdout.flush()
            self._ends_with_newline = True

    def break_off(self) -> None:
        """The answer ends unfinished and something else follows: keep the two apart."""
        self.close()
        if self._wrote:
            self._output.stdout.write("\n" if self._ends_with_newline else "\n\n")
            self._ends_with_newline, self._wrote = True, False

    def close(self) -> None:
        """Whatever happened, leave the screen clean."""
        self._wait.end()
        if not self._ends_with_newline and self._output.stdout.isatty():
            self._output.stdout.write("\n")
            self._ends_with_newline = True


class JsonSink(AnswerSink):
    """One JSON object when the answer is complete, with ``routing`` in it where that is wanted."""

    def __init__(self, output: Output, routing: dict[str, Any] | None = None) -> None:
        super().__init__(output)
        self._more = {} if routing is None else {"routing": routing}

    def delta(self, text: str, *, is_thinking: bool) -> None:
        pass

    def finish(self, answer: Answer) -> None:
        self._output.json({**msgspec.to_builtins(answer), **self._more})


class JsonLinesSink(JsonSink):
    """One JSON object a line: ``{"type": "token"|"thinking", "text"}`` and at the end ``{"type": "answer", …}``."""

    def delta(self, text: str, *, is_thinking: bool) -> None:
        self._output.json_line({"type": "thinking" if is_thinking else "token", "text": text})

    def finish(self, answer: Answer) -> None:
        self._output.json_line({"type": "answer", **msgspec.to_builtins(answer), **self._more})


class CodeBlockSink(AnswerSink):
    """Only the last code block of the answer, without its fences."""

    def delta(self, text: str, *, is_thinking: bool) -> None:
        if is_thinking:
            super().delta(text, is_thinking=True)
        else:
            self._wait_for("answering; its last code block comes when it is complete")

    def finish(self, answer: Answer) -> None:
        """Write the block.

        Raises:
            NoCodeBlock: the answer has none.
        """
        block = last_code_block(answer.answer)
        if block is None:
            raise NoCodeBlock("the answer has no code block", "Run it without -x to see the answer.")
        self._output.stdout.write(self._clean(block) if block.endswith("\n") else self._clean(block) + "\n")
        self._output.stdout.flush()
