"""`coe ask`: a question to an expert, the answer on stdout."""

from __future__ import annotations

import contextlib
import os
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Annotated

import typer

from coe_cli.commands.options import (
    CatalogFileOption,
    ContinueOption,
    ExpertOption,
    FallbackOption,
    ModelOption,
    NoPullOption,
    NoServeOption,
    ProfileOption,
    ProfilesFileOption,
    RawOption,
    ShowThinkingOption,
    SystemOption,
    TemperatureOption,
    TopKOption,
    TopPOption,
    a_number,
    read_catalog,
    read_profiles,
    utf8_words,
)
from coe_cli.core.answers.answer import join_question, some_question
from coe_cli.core.answers.limits import MAX_TOKENS, SECONDS_MOST, SEED
from coe_cli.core.text_encoding import decode_text
from coe_cli.errors import UsageError
from coe_cli.output.answer_sink import AnswerFormat
from coe_cli.output.console import Output
from coe_cli.runtime.atomic_write import written_out

EXAMPLES = """Examples:

coe ask What is a deadlock

cat error.log | coe ask "What went wrong here?"

coe ask -e python_backend -x "A function that merges two sorted lists" > merge.py

coe ask --experts sql_query,python_backend "Weekly sign-ups as SQL, and a plot of them"

coe ask --format json --seed 7 --temperature 0.8 "Name a colour" | jq -r .answer
"""


def ask(
    question: Annotated[
        list[str] | None,
        typer.Argument(
            metavar="[QUESTION]...",
            help="The question, quoted or not. Text on stdin comes before it, as context; - alone is all of stdin. "
            "What follows -- is the question, whatever it looks like.",
            callback=utf8_words,
        ),
    ] = None,
    model: ModelOption = None,
    expert: ExpertOption = None,
    profile: ProfileOption = None,
    system: SystemOption = None,
    max_tokens: Annotated[
        int | None, typer.Option(min=1, max=MAX_TOKENS.most, help="Tokens of the answer at most.")
    ] = None,
    temperature: TemperatureOption = None,
    top_p: TopPOption = None,
    top_k: TopKOption = None,
    seed: Annotated[int | None, typer.Option(min=0, max=SEED.most, help="Repeat a sampled answer.")] = None,
    output_format: Annotated[AnswerFormat, typer.Option("--format", help="How the answer is written.")] = (
        AnswerFormat.HUMAN
    ),
    output_file: Annotated[
        Path | None, typer.Option("--output", "-o", metavar="FILE", help="Write the answer here, when it is complete.")
    ] = None,
    quiet: Annotated[
        bool, typer.Option("--quiet", "-q", help="Nothing but the answer, and what went wrong; asks nothing.")
    ] = False,
    extract: Annotated[bool, typer.Option("--extract", "-x", help="Only the answer's last code block.")] = False,
    show_thinking: ShowThinkingOption = False,
    explain: Annotated[
        bool, typer.Option("--explain", help="Say first who answers and why, as `coe route` does, on stderr.")
    ] = False,
    experts: Annotated[
        str | None,
        typer.Option(
            "--experts", help="How many experts answer together, or which: 2, a,b or auto (the router's choice)."
        ),
    ] = None,
    no_synthesis: Annotated[
        bool, typer.Option("--no-synthesis", help="Drafts of several experts under headings, not made into one answer.")
    ] = False,
    refine: Annotated[
        bool, typer.Option("--refine", help="One expert's draft, which the general reasoner then improves.")
    ] = False,
    no_route: Annotated[
        bool, typer.Option("--no-route", envvar="COE_NO_ROUTE", help="Without -e and -m the general reasoner answers.")
    ] = False,
    raw: RawOption = False,
    no_live: Annotated[bool, typer.Option("--no-live", help="No live view on a terminal.")] = False,
    fallback: FallbackOption = False,
    no_pull: NoPullOption = False,
    resume: ContinueOption = False,
    no_log: Annotated[bool, typer.Option("--no-log", help="Do not keep this question and its answer.")] = False,
    no_serve: NoServeOption = False,
    timeout_s: Annotated[
        float,
        typer.Option(
            "--timeout",
            min=0.1,
            max=SECONDS_MOST,
            callback=a_number,
            help="Give up when nothing happens for so many seconds.",
        ),
    ] = 600.0,
    allow_special_tokens: Annotated[
        bool,
        typer.Option(
            "--allow-special-tokens", help="Take what is spelled like a control token (<|im_end|>) as one, not as text."
        ),
    ] = False,
    profiles_file: ProfilesFileOption = None,
    catalog_file: CatalogFileOption = None,
) -> None:
    """Ask a question and stream the answer.

    The answer goes to stdout and everything else to stderr. Without -e and -m the question is routed to the expert that
    it suits, or to two experts whose drafts the general reasoner joins. Where an expert's model is not installed a
    terminal asks whether to install it or to answer with the fallback model, the embedded one; a pipe ends with exit code 4 unless
    --fallback or the profile allows the fallback model, as the profile `embedded` does.
    """
    if extract and output_format in (AnswerFormat.JSON, AnswerFormat.JSONL):
        raise UsageError("-x takes one code block out of an answer, JSON has all of it", "Give one of the two.")
    words = question or []
    given = join_question(_read_stdin(wanted=words == ["-"]), "" if words == ["-"] else " ".join(words))
    text = some_question(given, "Give one as an argument or on stdin: coe ask What is a deadlock")
    from coe_cli.use_cases.ask_steps import AskOptions, View
    from coe_cli.use_cases.asking import run_ask

    with _output_to(output_file, quiet=quiet) as output:
        run_ask(
            AskOptions(
                question=text,
                model=model,
                expert=expert,
                profile=profile,
                system=system,
                max_tokens=max_tokens,
                temperature=temperature,
                top_p=top_p,
                top_k=top_k,
                seed=seed,
                pull=not no_pull,
                timeout_s=timeout_s,
                serve=not no_serve,
                resume=resume,
                no_log=no_log,
                route=not no_route,
                explain=explain,
                experts=experts,
                synthesis=not no_synthesis,
                refine=refine,
                profiles_file=profiles_file,
                catalog_file=catalog_file,
                allow_special_tokens=allow_special_tokens,
                fallback=fallback,
            ),
            read_catalog(catalog_file),
            read_profiles(profiles_file),
            output,
            View(output_format, extract, show_thinking, live=not no_live and not raw),
        )


@contextlib.contextmanager
def _output_to(path: Path | None, *, quiet: bool) -> Iterator[Output]:
    """Streams of the answer. A file appears when the answer is complete, and keeps what it had when it is not."""
    with contextlib.ExitStack() as open_files:
        streams = {}
        if quiet:
            streams["stderr"] = open_files.enter_context(Path(os.devnull).open("w", encoding="utf-8"))
        if path is not None and str(path) != "-":
            target = open_files.enter_context(written_out(path))
            streams["stdout"] = open_files.enter_context(target.open("w", encoding="utf-8", newline="\n"))
        yield Output(**streams)


def _read_stdin(*, wanted: bool) -> str:
    """Text that was piped in; '' on a terminal, unless it is ``wanted`` from there.

    Raises:
        UsageError: the bytes are not text.
    """
    if sys.stdin is None or sys.stdin.closed or (sys.stdin.isatty() and not wanted):
        return ""
    data = sys.stdin.buffer.read()
    try:
        text = decode_text(data)
    except UnicodeDecodeError as error:
        raise UsageError(
            f"stdin is not {error.encoding.upper()} text (byte {error.start})", "Save it as UTF-8 first."
        ) from None
    if "\0" in text:
        raise UsageError("stdin is binary", "Pipe text, not a binary file.")
    return text
