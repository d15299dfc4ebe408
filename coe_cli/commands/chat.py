"""`coe chat`: a conversation in the terminal."""

from __future__ import annotations

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
    read_catalog,
    read_profiles,
)
from coe_cli.core.answers.limits import MAX_TOKENS, SEED
from coe_cli.output.console import Output


def chat(
    model: ModelOption = None,
    expert: ExpertOption = None,
    profile: ProfileOption = None,
    system: SystemOption = None,
    resume: ContinueOption = False,
    max_tokens: Annotated[
        int | None, typer.Option(min=1, max=MAX_TOKENS.most, help="Tokens of an answer at most.")
    ] = None,
    temperature: TemperatureOption = None,
    top_p: TopPOption = None,
    top_k: TopKOption = None,
    seed: Annotated[int | None, typer.Option(min=0, max=SEED.most, help="Repeat sampled answers.")] = None,
    show_thinking: ShowThinkingOption = False,
    raw: RawOption = False,
    fallback: FallbackOption = False,
    no_pull: NoPullOption = False,
    no_log: Annotated[bool, typer.Option("--no-log", help="Keep nothing of it for `coe logs`.")] = False,
    no_serve: NoServeOption = False,
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
            raw=raw,
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
