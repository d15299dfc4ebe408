"""Filling in the middle: the forms in which code models are given the text before a gap and the text after it."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

FILL_TEMPLATE = "{fill}"
"""The template of a prompt whose turns are files (``tool``), the text after (``user``), the text before (``user``) and, perhaps, the
beginning of what is to be written (``assistant``)."""
_FILE = "filename"
"""What the file with the gap is called, where others come before it."""


class FillForm(NamedTuple):
    """Control tokens before each part of the prompt; ``file`` stands before the name of each file, where the model knows one."""

    before: str
    after: str
    middle: str
    file: str = ""

    def text(self, turns: Sequence[tuple[str, str]]) -> str:
        """The prompt, ready for what is to be filled in."""
        files = [text for role, text in turns if role == "tool"]
        after, before = (text for role, text in turns if role == "user")
        begun = "".join(text for role, text in turns if role == "assistant")
        told = "".join(f"{self.file}{text}\n" for text in files)
        name = f"{self.file}{_FILE}\n" if files and self.file else ""
        return f"{told}{name}{self.before}{before}{self.after}{after}{self.middle}{begun}"


FILL_FORMS = (
    FillForm("<|fim_prefix|>", "<|fim_suffix|>", "<|fim_middle|>", "<|file_sep|>"),
    FillForm("<|fim_prefix|>", "<|fim_suffix|>", "<|fim_middle|>", "<|file_separator|>"),
    FillForm("<|fim_prefix|>", "<|fim_suffix|>", "<|fim_middle|>"),
    FillForm("<fim_prefix>", "<fim_suffix>", "<fim_middle>", "<file_sep>"),
    FillForm("<fim_prefix>", "<fim_suffix>", "<fim_middle>"),
    FillForm("<｜fim▁begin｜>", "<｜fim▁hole｜>", "<｜fim▁end｜>"),
    FillForm("▁<PRE>", "▁<SUF>", "▁<MID>"),
)
"""Qwen2.5-Coder's, CodeGemma's, StarCoder's, DeepSeek-Coder's and Code Llama's."""
