"""The prompt process: one for all models, bounded in memory by itself and in time by its parent, which may end it at any moment.

The channel is what stdin and stdout were at the start. When it closes, the parent is gone and so is the process.
"""

from __future__ import annotations

import os
import queue
import signal
import sys
import threading
from collections import OrderedDict
from collections.abc import Callable
from pathlib import Path
from typing import BinaryIO

import msgspec
from msgspec.structs import replace

from coe_cli.core.answers.fill_in import FILL_FORMS, FILL_TEMPLATE
from coe_cli.core.answers.prompt_text import bare, fill_plain
from coe_cli.core.answers.thinking import CLOSE as UNTHINK
from coe_cli.core.answers.thinking import OPEN as THINK
from coe_cli.core.answers.tool_calls import FORMATS, ToolCall
from coe_cli.core.names import size_words
from coe_cli.interrupts import on_interrupt
from coe_cli.runtime.job_object import bound_by_job
from coe_cli.runtime.model_folder import tokenizer_files
from coe_cli.runtime.private_channel import die_with_parent, take_standard_streams
from coe_cli.runtime.prompts.chat_rendering import ChatTemplate, TemplateFails, flat_turns
from coe_cli.runtime.prompts.prompt_messages import Begun, NotPrepared, Prepare, Prompt, Stage
from coe_cli.runtime.prompts.tokenizing import ControlTokenInText, ModelTokenizer, TooMany
from coe_cli.runtime.worker.protocol import frame, frame_length

_MAX_OPEN_MODELS = 4
MEMORY_MB = 1536
"""Of 2²⁰ bytes. A tokenizer of 256,000 tokens takes 300, the ids of a long text a tenth of that."""
_ANOTHER_MODEL = "Use a plain prompt for this model's experts, or another model."


class OpenModel:
    """What prompts for one folder are made with, as its files were at ``stamp``."""

    def __init__(self, folder: Path, stamp: tokenizer_files.Stamp) -> None:
        self.stamp = stamp
        self.tokenizer = ModelTokenizer(folder)
        self._folder = folder
        self._template: ChatTemplate | None = None
        self.thinks = self.tokenizer.knows(THINK) or THINK in (tokenizer_files.chat_template(folder) or "")

    def chat_template(self) -> ChatTemplate | None:
        """
        Raises:
            TemplateFails: it cannot be compiled.
        """
        source = tokenizer_files.chat_template(self._folder) if self._template is None else None
        if source is not None:
            self._template = ChatTemplate(source, tokenizer_files.special_tokens(self._folder))
        return self._template


class _NoFillForm(Exception):
    """The tokenizer has no tokens for filling in the middle."""


class Preparation:
    """Answers requests one after the other; ``say`` hears which stage one has come to."""

    def __init__(self, say: Callable[[Stage], None]) -> None:
        self._say = say
        self._models: OrderedDict[str, OpenModel] = OrderedDict()

    def answer(self, request: Prepare) -> Prompt | NotPrepared:
        """The prompt, or why there is none."""
        name = request.model
        try:
            return self._prepare(request)
        except TooMany as error:
            count = f"{error.tokens}" if error.exact else f"at least {error.tokens}"
            return NotPrepared(
                "prompt_too_long",
                f"the prompt has {count} tokens and the context of {name} is {request.context_length}",
                "Shorten the prompt, or choose a profile or model with a longer context.",
                error.tokens,
                error.exact,
            )
        except TemplateFails as error:
            return NotPrepared(
                "model_damaged", f"the chat template of `{name}` cannot be used: {error}", _ANOTHER_MODEL
            )
        except _NoFillForm:
            return NotPrepared(
                "nothing_to_fill",
                f"`{name}` has no tokens for filling in the middle",
                "Ask a model that was made for it, such as Qwen2.5-Coder, or leave out the text after the gap.",
            )
        except ControlTokenInText:
            return NotPrepared(
                "usage",
                f"the text spells a control token of `{name}`, which has no other way to write it",
                "Leave it out.",
            )

    def _prepare(self, request: Prepare) -> Prompt | NotPrepared:
        self._say("opening")
        try:
            model = self._open(request.folder)
        except MemoryError:
            raise
        except Exception as error:  # all that tokenizers raises
            reason = " ".join(str(error).split())[:200]
            return NotPrepared(
                "model_damaged",
                f"the tokenizer of `{request.model}` cannot be used: {reason}",
                f"Fetch it again: coe models pull {request.model}",
            )
        model.tokenizer.check_length(request.text_bytes, request.context_length)
        self._say("rendering")
        hidden = False
        if not request.allow_special_tokens:
            request, hidden = _hidden(request, model.tokenizer)
        text, notes, tool_format = ("", [], None) if request.ids is not None else self._render(request, model)
        self._say("tokenizing")
        encode = model.tokenizer.encode_hidden if hidden else model.tokenizer.encode
        ids = request.ids or encode(text, request.context_length, begins_text=request.begins_text)
        if not ids:
            return NotPrepared("usage", "the prompt has no token that the model knows", "Give it some text.")
        made = Prompt(ids, text.rstrip().endswith(THINK), notes, model.thinks, tool_format=tool_format or "")
        if tool_format:
            made = replace(made, tool_marker=model.tokenizer.control_token(FORMATS[tool_format].mark))
        if request.back:
            back, tokens, token_bytes = model.tokenizer.back(ids)
            made = replace(made, text=back, tokens=tokens, token_bytes=token_bytes, rendered=text)
        return made

    def _render(self, request: Prepare, model: OpenModel) -> tuple[str, list[str], str | None]:
        """The text, what is to be said about it, and the format of calls if the model's own template has functions."""
        if request.rendering.continues:
            *before, last = request.messages
            text, notes, tool_format = self._turns(replace(request, messages=before), model)
            if text.rstrip().endswith(THINK) and UNTHINK not in last.content:
                text = f"{text.rstrip()}\n{UNTHINK}\n\n"
            return text + last.content, notes, tool_format
        return self._turns(request, model)

    def _turns(self, request: Prepare, model: OpenModel) -> tuple[str, list[str], str | None]:
        if request.template == FILL_TEMPLATE:
            known = (
                form for form in FILL_FORMS if all(model.tokenizer.control_token(t) is not None for t in form if t)
            )
            form = next(known, None)
            if form is None:
                raise _NoFillForm
            return form.text([(message.role, message.content) for message in request.messages]), [], None
        template = model.chat_template() if request.template is None else None
        if template is not None and template.tool_format is not None:
            text = template.with_tools(request.messages, request.tools, request.rendering)
            if text is not None:
                return text, [], template.tool_format
        turns = flat_turns(request.messages, request.tools)
        if request.template is not None:
            return fill_plain(request.template, turns), [], None
        if template is None:
            note = f"{request.model} has no chat template: it is given the bare texts"
            return bare(turns), [note], None
        text, whole = template.render(turns, request.rendering)
        note = f"the chat template of {request.model} leaves out a part of the conversation"
        return text, [] if whole else [note], None

    def _open(self, folder: str) -> OpenModel:
        stamp = tokenizer_files.stamp(Path(folder))
        known = self._models.pop(folder, None)
        if known is None or known.stamp != stamp:
            known = OpenModel(Path(folder), stamp)
        self._models[folder] = known
        if len(self._models) > _MAX_OPEN_MODELS:
            self._models.popitem(last=False)
        return known


def _hidden(request: Prepare, tokenizer: ModelTokenizer) -> tuple[Prepare, bool]:
    """The request with a mark for each control token that a text in it spells out, and whether there was any."""
    contents, found = tokenizer.hide(message.content for message in request.messages)
    called = [msgspec.json.encode(message.tool_calls).decode() for message in request.messages]
    tools = msgspec.json.encode(request.tools).decode()
    (*called, tools), others = tokenizer.hide([*called, tools])
    messages = [
        replace(message, content=text, tool_calls=msgspec.json.decode(calls, type=list[ToolCall]))
        for message, text, calls in zip(request.messages, contents, called, strict=True)
    ]
    return replace(request, messages=messages, tools=msgspec.json.decode(tools)), found or others


def main() -> None:
    """Answer requests on this process's stdin and stdout until the channel closes."""
    on_interrupt(signal.SIG_IGN)
    channel_in, channel_out = take_standard_streams()
    die_with_parent()
    bound_memory()
    inbox: queue.SimpleQueue[Prepare] = queue.SimpleQueue()
    threading.Thread(target=_listen, args=(channel_in, inbox), daemon=True).start()

    def send(message: Begun | Prompt | NotPrepared) -> None:
        channel_out.write(frame(message))
        channel_out.flush()

    preparation = Preparation(lambda stage: send(Begun(stage)))
    try:
        while True:
            request = inbox.get()
            try:
                send(preparation.answer(request))
            except MemoryError:
                send(
                    NotPrepared(
                        "model_damaged",
                        f"the prompt for `{request.model}` takes more than {size_words(MEMORY_MB)} to make",
                        _ANOTHER_MODEL,
                    )
                )
                break
    except OSError:
        pass
    finally:
        sys.stderr.flush()
        os._exit(0)


def _listen(channel: BinaryIO, inbox: queue.SimpleQueue[Prepare]) -> None:
    decode = msgspec.msgpack.Decoder(Prepare).decode
    try:
        while head := channel.read(4):
            inbox.put(decode(channel.read(frame_length(head))))
    finally:
        os._exit(0)


def bound_memory() -> None:
    """Let no allocation pass ``MEMORY_MB``: Python raises MemoryError there, other code ends the process."""
    if sys.platform == "win32":
        bound_by_job(MEMORY_MB * 2**20)
        return
    import resource

    for name in ("RLIMIT_DATA", "RLIMIT_AS"):
        limit = getattr(resource, name, None)
        if limit is None:
            continue
        size = (MEMORY_MB if name == "RLIMIT_DATA" else 4 * MEMORY_MB) * 2**20
        try:
            resource.setrlimit(limit, (size, size))
        except (ValueError, OSError):  # macOS takes neither; a lower limit of the user's stays
            continue


if __name__ == "__main__":
    main()
