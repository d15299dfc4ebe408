"""Count a prompt's tokens before its model is loaded."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path

from coe_cli.errors import ModelDamaged
from coe_cli.runtime.worker.protocol import ChatMessage

_TEMPLATE_TOKENS = 256
"""More than any chat template adds around a short conversation."""


def prompt_tokens(
    folder: Path, messages: Sequence[ChatMessage], template: str | None, context_length: int
) -> int | None:
    """Tokens of the prompt as the model will see it, or None where no count is needed or possible.

    A token stands for at least one byte, so a short text fits without being tokenized; the worker counts exactly.
    """
    size = sum(len(message.content.encode()) for message in messages) + len(template or "")
    if size + _TEMPLATE_TOKENS < context_length:
        return None
    path = folder / "tokenizer.json"
    if not path.is_file():
        return None
    from tokenizers import Tokenizer

    try:
        tokenizer = Tokenizer.from_file(str(path))
    except Exception:  # all that tokenizers raises; the worker will say what is wrong with the file
        return None
    return len(tokenizer.encode(_render(folder, messages, template), add_special_tokens=False).ids)


def render_chat(source: str, messages: Sequence[ChatMessage]) -> str:
    """``messages`` through the chat template ``source``.

    Raises:
        ModelDamaged: the template cannot be used on them.
    """
    from jinja2 import TemplateError
    from jinja2.sandbox import ImmutableSandboxedEnvironment

    try:
        compiled = ImmutableSandboxedEnvironment(
            trim_blocks=True, lstrip_blocks=True, extensions=["jinja2.ext.loopcontrols"]
        ).from_string(source)
        chat = [{"role": message.role, "content": message.content} for message in messages]
        return str(compiled.render(messages=chat, add_generation_prompt=True, bos_token="", eos_token=""))
    except (TemplateError, TypeError, ValueError, ArithmeticError, RecursionError) as error:
        raise ModelDamaged(
            f"the chat template fails: {error}", "Use a plain prompt for this model's experts."
        ) from None


def _render(folder: Path, messages: Sequence[ChatMessage], template: str | None) -> str:
    if template is not None:
        return template + "".join(message.content for message in messages)
    source = chat_template(folder)
    if source is not None:
        try:
            return render_chat(source, messages)
        except ModelDamaged:
            pass
    return "\n\n".join(message.content for message in messages)


def chat_template(folder: Path) -> str | None:
    """The text of the model's chat template, or None where it has none."""
    try:
        own = folder / "chat_template.jinja"
        if own.is_file():
            return own.read_text(encoding="utf-8")
        template = json.loads((folder / "tokenizer_config.json").read_text(encoding="utf-8")).get("chat_template")
    except (OSError, UnicodeDecodeError, json.JSONDecodeError, AttributeError):
        return None
    return template if isinstance(template, str) else None
