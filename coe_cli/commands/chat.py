"""`coe chat`: a conversation in the terminal."""

from __future__ import annotations

from typing import Annotated

import typer

from coe_cli.commands.options import (
    CatalogFileOption,
    ProfileOption,
    ProfilesFileOption,
    a_number,
    complete_experts,
    complete_models,
    read_catalog,
    read_profiles,
    utf8_text,
)
from coe_cli.core.answers.limits import MAX_TOKENS, SEED, TOP_K
from coe_cli.output.console import Output


def chat(
    model: Annotated[
        str | None, typer.Option("--model", "-m", help="This model.", autocompletion=complete_models)
    ] = None,
    expert: Annotated[
        str | None, typer.Option("--expert", "-e", help="This expert.", autocompletion=complete_experts)
    ] = None,
    profile: ProfileOption = None,
    system: Annotated[
        str | None, typer.Option("--system", "-s", help="A system prompt of your own.", callback=utf8_text)
    ] = None,
    resume: Annotated[bool, typer.Option("--continue", "-c", help="Go on with the last conversation.")] = False,
    max_tokens: Annotated[
        int | None, typer.Option(min=1, max=MAX_TOKENS.most, help="Tokens of an answer at most.")
    ] = None,
    temperature: Annotated[
        float | None, typer.Option(min=0.0, max=2.0, callback=a_number, help="0 takes the likeliest token each time.")
    ] = None,
    top_p: Annotated[float | None, typer.Option(min=0.0, max=1.0, callback=a_number, help="Nucleus sampling.")] = None,
    top_k: Annotated[
        int | None, typer.Option(min=1, max=TOP_K.most, help="Sample from the k likeliest tokens.")
    ] = None,
    seed: Annotated[int | None, typer.Option(min=0, max=SEED.most, help="Repeat sampled answers.")] = None,
    show_thinking: Annotated[bool, typer.Option(help="Thoughts of reasoning models, on stderr.")] = False,
    fallback: Annotated[
        bool,
        typer.Option("--fallback", help="Let the fallback model answer for an expert whose own is not installed."),
    ] = False,
    no_pull: Annotated[bool, typer.Option("--no-pull", help="Never fetch the embedded model.")] = False,
    no_log: Annotated[bool, typer.Option("--no-log", help="Keep nothing of it for `coe logs`.")] = False,
    no_serve: Annotated[
        bool,
        typer.Option("--no-serve", envvar="COE_NO_SERVE", help="Use no resident college, and leave none behind."),
    ] = False,
    profiles_file: ProfilesFileOption = None,
    catalog_file: CatalogFileOption = None,
) -> None:
    """Talk to an expert; it remembers what was said before.

    A line that ends with \\ goes on in the next one, and three double quotes open and close a block. Ctrl-C stops an
    answer, Ctrl-D leaves. /help lists the commands. Lines from a pipe are answered one after the other.

    Example: coe chat -e python_backend
    """
    from coe_cli.use_cases.chatting import ChatOptions, run_chat

    run_chat(
        ChatOptions(
            model=model,
            expert=expert,
            profile=profile,
            system=system,
            resume=resume,
            max_tokens=max_tokens,
            temperature=temperature,
            top_p=top_p,
            top_k=top_k,
            seed=seed,
            show_thinking=show_thinking,
            no_log=no_log,
            fallback=fallback,
            serve=not no_serve,
            pull=not no_pull,
            profiles_file=profiles_file,
            catalog_file=catalog_file,
        ),
        read_catalog(catalog_file),
        read_profiles(profiles_file),
        Output(),
    )
